"""Turn text into a dataset: python prepare.py [--key=value ...]

Writes data/NAME/train.bin, val.bin and meta.json in four steps: copy all documents to a temporary
file, split them into train and val, train or load a tokenizer, and write the token ids:

    ids = [i for document in documents for i in (*encode(document), eot)]

The rest is there to stream the text, so the corpus never has to fit in memory."""
from lib.settings import configure

# the source
dataset = 'stories'         # stories, tinystories, or the name or folder of a Hugging Face dataset
dataset_config = ''         # configuration of the Hugging Face dataset; '' = its default
split = ''                  # split to train on; '' = train. A validation or test split is held out
input = ''                  # comma-separated local files, folders and globs, instead of dataset
separator = '<|endoftext|>'     # separates documents in a .txt file; '' = one document per file
text_column = 'text'        # column with the text, in a dataset, .jsonl, .csv or .parquet file
num_stories = 60000         # number of stories to generate
# the dataset
name = ''                   # NAME in data/NAME; '' = derived from the source (plus _gpt2 or _char)
tokenizer = 'bpe'           # bpe (trained here), gpt2, char, or the folder or repo of another
vocab_size = 0              # maximum bpe vocab size; 0 = 4096, or 2048 for small datasets
val_fraction = 0.05         # fraction held out for validation, unless the source has a split for it
seed = 1337                 # random seed for the stories and the split
overwrite = False           # replace an existing dataset of this name
settings = configure(globals())

# Imported after the settings, so that --help and errors in settings appear immediately.
import json
import logging
import shlex
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from lib.dataset import FORMAT, bits_per_byte, checksum_of_meta, open_dataset
from lib.errors import Error, extra, require
from lib.files import checksum
from lib.terminal import fit, show_progress, warn
from lib.tokenizer import Tokenizer, cut, load_tokenizer
from text.advice import print_next
from text.corpus import divide, new_files, size_of, texts_of, write_documents
from text.source import check_settings, dataset_folder, fingerprint, local_files, read_source
from text.vocabulary import train_bpe

VOCABULARY_TEXT = 1 << 26         # maximum bytes of text to train the tokenizer on
SMALL_TEXT = 1_000_000            # below this many bytes, vocab_size defaults to 2048


# ---- the four steps
def make_dataset(folder: Path, source: dict, about: dict) -> dict:
    """Turn source, {split: iterator of its documents}, into a dataset. Prints a report and returns
    the contents of meta.json."""
    began = time.time()
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        # 1. Copy all documents to a temporary file, back to back. Each becomes a row (start, end,
        #    hash, nats, is_val) of the array `documents`; nats is -ln p(text), where it is known.
        raw, documents = write_documents(source, file, seed)
        # 2. Drop duplicates and split: {'train': rows, 'val': rows}.
        splits = divide(documents, raw, val_fraction)
        # 3. Train or load a tokenizer.
        is_simple = about['source'] == 'stories' or len(raw) < SMALL_TEXT
        size = vocab_size or (2048 if is_simple else 4096)
        tok = make_tokenizer(tokenizer, size, splits['train'], raw)
        # 4. Write the ids of each document, then end-of-text.
        meta = write_dataset(folder, tok, splits, raw, about)
    report(meta, duplicates=len(documents) - len(np.unique(documents['hash'])))
    if tok.kind == 'hf':
        warn_of_lost_text(tok, meta)
    print(f'wrote {folder} in {time.time() - began:.1f} s')
    return meta


def make_tokenizer(kind: str, vocab_size: int, train: np.ndarray, raw) -> Tokenizer:
    """Train or load a tokenizer. bpe is trained on the documents `train`; char takes the characters
    of all documents, so that it can also encode val."""
    if kind == 'bpe':
        every = size_of(train) // VOCABULARY_TEXT + 1       # subsample a large corpus
        texts = (text for text, _ in islice(texts_of(train, raw), 0, None, every))
        return Tokenizer(train_bpe(texts, vocab_size))
    if kind == 'char':
        alphabet = set()
        for text, _ in cut(raw, 0, len(raw)):
            alphabet.update(text)
        return Tokenizer({'kind': 'char', 'alphabet': ''.join(sorted(alphabet))})
    if kind == 'gpt2':
        return Tokenizer({'kind': 'gpt2'})
    return load_tokenizer(extra('foreign', needed_by=f'--tokenizer={kind}').read_tokenizer(kind))


def write_dataset(folder: Path, tokenizer: Tokenizer, splits: dict, raw, about: dict) -> dict:
    """Write the files of a dataset. Returns the contents of meta.json, which includes `about`."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    meta = {
        'format': FORMAT,
        **about,                                            # source, license, command, fingerprint
        'tokenizer': tokenizer.spec,
        'vocab_size': tokenizer.vocab_size,
        'eot': tokenizer.eot,                               # follows every document
        'dtype': np.dtype(dtype).name,                      # dtype of the ids in the .bin files
    }
    with new_files(folder) as new:
        for split, documents in splits.items():
            path = new / f'{split}.bin'
            with open(path, 'wb') as f:
                texts = show_progress(texts_of(documents, raw), f'tokenizing {split}')
                for ids in tokenizer.encode_stream(texts):      # each document is followed by eot
                    f.write(ids.astype(dtype))
            nats = documents['nats'].sum()
            meta[split] = {
                'tokens': path.stat().st_size // np.dtype(dtype).itemsize,
                'documents': len(documents),
                'bytes': size_of(documents),                # UTF-8 bytes
                'checksum': checksum(path),
                'nats': None if np.isnan(nats) else float(nats),    # -ln p(text) of the split
            }
        meta['checksum'] = checksum_of_meta(meta)
        if 'json' in tokenizer.spec:
            (new / 'tokenizer.json').write_text(tokenizer.spec['json'], encoding='utf-8')
        (new / 'meta.json').write_text(json.dumps(meta), encoding='utf-8')
    return meta


# ---- the command
def report(meta: dict, duplicates: int):
    """Print the dataset's statistics."""
    train, val = meta['train'], meta['val']
    lines = [f'documents  {train["documents"]:,} train, {val["documents"]:,} val, '
             f'{duplicates:,} dropped as duplicates',
             f'tokens     {train["tokens"]:,} train, {val["tokens"]:,} val, '
             f'{val["bytes"] / val["tokens"]:.2f} bytes per token, '
             f'vocabulary {meta["vocab_size"]:,}']
    if val['nats']:
        lines.append(f'floor      {val["nats"] / val["documents"]:.2f} nats per story, '
                     f'{val["nats"] / val["tokens"]:.4f} per token, '
                     f'{bits_per_byte(val["nats"], val["bytes"]):.4f} bits per byte')
    for line in lines:
        print(fit(line, hang=' ' * 11))
    if val['tokens'] < 1000:
        warn(f'only {val["tokens"]} validation tokens: the validation loss will be noisy')


def warn_of_lost_text(tok, meta: dict):
    """Warn if the tokenizer, a ForeignTokenizer, does not cover the text."""
    tokens = meta['train']['tokens'] + meta['val']['tokens']
    if tok.unknown or tok.lost:
        warn(f'this tokenizer does not cover the text: {tok.unknown / tokens:.1%} of the tokens '
             f'are unknown, {tok.lost / max(1, tok.visible):.1%} of the text is lost')


def main():
    logging.disable(logging.CRITICAL)           # silence library logs; real failures raise
    check_settings(settings)
    folder = dataset_folder(settings)
    try:
        files = local_files(settings)
        about = {'source': input or dataset, 'command': shlex.join(['python', *sys.argv]),
                 'fingerprint': fingerprint(settings, files)}
        if (folder / 'meta.json').exists() and not overwrite:
            meta = open_dataset(folder.name)[0]
            require(meta['fingerprint'] == about['fingerprint'],
                    f'{folder} was made with different settings or files ({meta["command"]}); use '
                    'a different --name, or --overwrite=True (you will then be unable to '
                    'resume runs trained on the old dataset)')
            print(f'{folder} is up to date')
        else:
            source, about['license'] = read_source(settings, files)
            meta = make_dataset(folder, source, about)
    except BrokenPipeError:                     # stdout was closed, e.g. by `| head`
        raise
    except OSError as e:
        raise Error(f'{e.filename or folder}: {e.strerror or e}; nothing was written') from e
    print_next(about['source'], folder.name, meta)


if __name__ == '__main__':
    main()
