"""The loss of a trained model on its validation text, and how much it copies, for
--evaluate=True"""
import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch

from config import require
from data.tokenizer import Tokenizer
from model import evaluate
from prepare import Validation, evaluation_windows, open_dataset, validation_text

OVERLAP_SAMPLES = 20      # samples, and held-out documents, that are looked up in the training text
OVERLAP_TOKENS = 300            # of each held-out document


class OpenedValidation(NamedTuple):
    text: Validation
    documents: list[np.ndarray]     # its documents, each with its end-of-text
    train: np.ndarray               # ids of the training text


def open_validation(lm, dataset: str, eval_tokens: int) -> OpenedValidation:
    """The validation text of a dataset, '' for that of the model. Error if its tokenizer is
    another.

    A document that eval_tokens cuts counts only if it is the only one."""
    name = dataset or lm.dataset
    require(name, 'this model does not say what it was trained on: set dataset')
    meta, train, val = open_dataset(name)
    require(Tokenizer(meta['tokenizer']) == lm.tokenizer,
            f'data/{name} has a different tokenizer from the model; set a different dataset')
    text = validation_text(meta, val, lm.tokenizer, eval_tokens)
    ends = np.flatnonzero(text.ids == meta['eot']) + 1
    documents = np.split(text.ids, ends)[:max(1, len(ends))]
    return OpenedValidation(text, documents, train)


def print_evaluation(lm, dataset: str, eval_tokens: int):
    """Print the validation loss as in training, its perplexity, bits per byte, floor, and the
    overlap of samples and of held-out documents with the training text."""
    text, documents, train = open_validation(lm, dataset, eval_tokens)
    windows = evaluation_windows(text.ids, lm.tokenizer.eot, lm.model.config.block_size)
    x, y = (torch.from_numpy(ids) for ids in windows)
    loss = evaluate(lm.model, x, y, 8, contextlib.nullcontext())
    print(f'loss        {loss:.4f} nats per token, of {len(text.ids):,} tokens')
    print(f'perplexity  {math.exp(loss):.3f}')
    print(f'bits/byte   {text.bits_per_byte(loss):.4f}')
    floor = text.floor()
    if floor:
        print(f'floor       {floor:.4f} nats per token, the entropy of the text: '
              f'{loss / floor - 1:+.1%}')
    samples = lm.rows(num_samples=OVERLAP_SAMPLES)
    held_out = [document[:-1][:OVERLAP_TOKENS] for document in documents[:OVERLAP_SAMPLES]]
    for name, rows in (('samples', samples), ('held-out documents', held_out)):
        run = longest_overlap(rows, train)
        shared = lm.tokenizer.decode(run)
        print(f'overlap     {len(run)} tokens, {len(shared.split())} words of a training text, '
              f'at most, in {len(rows)} {name if len(rows) > 1 else name[:-1]}: {shared[:60]!r}')


def longest_overlap(rows: list, train) -> list[int]:
    """The longest run of ids of one of the rows (n,) that is also in train (N,), read piece by
    piece."""
    separator = 1 << 32                                     # no run goes past the end of a row
    ids = np.concatenate([[*row, separator] for row in rows]).astype(np.uint64)
    longest_row = max(len(row) for row in rows)
    best = ids[:0]
    for start in range(0, len(train), 1 << 16):
        piece = train[start:start + (1 << 16) + longest_row].astype(np.uint64)
        while True:                                         # is there a run longer by one?
            length = len(best) + 1
            found = np.isin(hashes_of_runs(ids, length), hashes_of_runs(piece, length))
            if not found.any():
                break
            best = ids[found.argmax():][:length]
    return best.tolist()


def hashes_of_runs(ids, length: int):
    """A hash, modulo 2**64, of each run of so many ids."""
    total = np.zeros(max(0, len(ids) - length + 1), np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + ids[i:i + len(total)]
    return total
