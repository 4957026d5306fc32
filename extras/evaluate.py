"""Evaluate a model on held-out text: python -m extras.evaluate [--key=value ...]

The loss is computed in float32. train.py evaluates in its own dtype, such as bfloat16, so its
numbers differ slightly. Overlap with the training text shows how much a model memorized: compare
the overlap of its samples with that of held-out documents."""
from lib.settings import configure

out_dir = 'out'             # a run, a checkpoint, or the folder of a Hugging Face model
dataset = ''                # NAME of data/NAME; '' = the one the model was trained on
eval_tokens = 0             # tokens of the validation split to evaluate; 0 = all
settings = configure(globals())

import contextlib
import math

import numpy as np
import torch

from lib.dataset import Validation, open_dataset
from lib.device import Hardware
from lib.errors import require
from lib.tokenizer import load_tokenizer
from sample import LanguageModel, load
from train import evaluate

ROWS = 20                       # samples, and held-out documents, to look up in the training text
ROW_TOKENS = 300                # of each held-out document: the length of a sample
PIECE = 1 << 16                 # tokens of the training text to search at once


def open_validation(lm: LanguageModel, dataset: str, eval_tokens: int):
    """Open a dataset ('' = the model's): a Validation, its documents (arrays of ids, each with its
    end-of-text), and the ids of the training split. A document cut by eval_tokens is left out,
    unless it is the only one. Raises Error if the model has another tokenizer."""
    name = dataset or lm.settings.get('dataset')
    require(name, 'this model does not record its dataset: set dataset')
    require(eval_tokens >= 0, f'eval_tokens={eval_tokens} must not be negative')
    meta, train, val = open_dataset(name)
    require(load_tokenizer(meta['tokenizer']) == lm.tokenizer,
            f'data/{name} uses a different tokenizer from the model; set a different dataset')
    validation = Validation(meta, val, lm.tokenizer, eval_tokens, lm.model.config.block_size)
    ends = np.flatnonzero(validation.ids == meta['eot']) + 1
    documents = np.split(validation.ids, ends)[:max(1, len(ends))]
    return validation, documents, train


def longest_overlap(rows: list, train) -> list[int]:
    """The longest run of ids in any row (n,) that also occurs in train (N,)."""
    separator = 1 << 32                                     # no run spans two rows
    ids = np.concatenate([[*row, separator] for row in rows]).astype(np.uint64)
    longest_row = max(len(row) for row in rows)
    best = ids[:0]
    for start in range(0, len(train), PIECE):
        piece = train[start:start + PIECE + longest_row].astype(np.uint64)
        while True:                                         # is there a run longer by one?
            length = len(best) + 1
            found = np.isin(hash_runs(ids, length), hash_runs(piece, length))
            if not found.any():
                break
            best = ids[found.argmax():][:length]
    return best.tolist()


def hash_runs(ids, length: int):
    """A hash, modulo 2 ** 64, of each run of `length` ids."""
    total = np.zeros(max(0, len(ids) - length + 1), np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + ids[i:i + len(total)]
    return total


def main():
    lm = load(out_dir, dtype='float32')
    validation, documents, train = open_validation(lm, dataset, eval_tokens)
    hardware = Hardware(lm.model.wte.weight.device, torch.float32, contextlib.nullcontext(), 0, 1)
    loss = evaluate(lm.model, validation, micro=8, hardware=hardware)
    print(f'loss        {loss:.4f} nats per token, of {len(validation.ids):,} tokens, in float32 '
          '(train.py evaluates in its own dtype)')
    print(f'perplexity  {math.exp(loss):.3f}')
    print(f'bits/byte   {validation.bits_per_byte(loss):.4f}')
    if validation.floor:
        print(f'floor       {validation.floor:.4f} nats per token, which no model can beat on '
              f'average; the loss is {loss / validation.floor - 1:.1%} above it')
    held_out = [document[:-1][:ROW_TOKENS] for document in documents[:ROWS]]
    for name, rows in (('samples', lm.rows(num_samples=ROWS)), ('held-out documents', held_out)):
        run = longest_overlap(rows, train)
        text = lm.tokenizer.decode(run)
        print(f'overlap     {name}: up to {len(run)} tokens ({len(text.split())} words) in a row '
              f'also occur in the training text: {text[:60]!r}')


if __name__ == '__main__':
    main()
