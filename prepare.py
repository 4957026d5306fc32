"""Turn text into a dataset: python prepare.py [--knob=value ...]

It writes data/NAME/train.bin, val.bin and meta.json in four steps. All documents (data/readers.py)
are copied into one temporary file, divided into train and val, tokenized (data/tokenizer.py), and
written: ids = [i for document in documents for i in (*encode(document), eot)]. The rest of the code
is there so that only some MB of text are in memory at a time, and 100 bytes for each document.

The second half has the functions with which train.py and sample.py read a dataset: open_dataset,
get_batch, validation_text and evaluation_windows."""
from config import Error, configure, require

# the source
dataset = 'stories'         # stories, tinystories, or a Hugging Face dataset by name or folder
input = ''                  # or files, folders, globs of .txt .md .pdf .jsonl .parquet, with commas
separator = '<|endoftext|>'     # divides a .txt file into documents; '' = a file is one document
text_column = 'text'        # of a dataset, .jsonl or .parquet
num_stories = 60000         # number of stories to make
# the dataset
name = ''                   # of data/NAME; '' = the last part of the source (and _gpt2 or _char)
tokenizer = 'bpe'           # bpe (trained here), gpt2, char, or the folder of a tokenizer.json
vocab_size = 0              # for bpe, with end-of-text; 0 = 4096, or 2048 if the text is short
val_fraction = 0.05         # share of documents for validation, unless the source has a split
seed = 1337                 # for the stories and the split
overwrite = False           # replace a different dataset of this name
config = configure(globals())

# The imports come after the knobs, so that --help and a mistyped knob are answered at once.
import json
import logging
import math
import mmap
import os
import shlex
import sys
import tempfile
import time
from array import array
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from config._files import checksum
from config._fit import next_command
from config._terminal import show_progress, warn
from data.files import (
    FORMAT,
    bits_per_byte,
    checksum_of_meta,
    datasets_there,
    fingerprint,
    guess_command,
    name_dataset,
    new_files,
    open_split,
    report,
    verify_meta,
)
from data.readers import Piece, find_files, read_dataset, read_files
from data.stories.teller import GRAMMAR, read_grammar, tell_stories
from data.tokenizer import Tokenizer, cut, read_tokenizer, to_utf8, train_bpe

VOCABULARY_TEXT = 1 << 26         # maximum bytes of text to train a bpe on
SMALL_TEXT = 1_000_000            # bytes of text below which a bpe has 2048 tokens


# ---- 1. all documents into one temporary file
class Corpus(NamedTuple):
    """The N documents in the temporary file; each field is an array (N,)."""
    start: np.ndarray             # first byte
    end: np.ndarray               # one past the last byte
    hash: np.ndarray              # of the seed and the text
    nats: np.ndarray              # -ln of the text's probability; nan = unknown
    split: np.ndarray             # 'train' or 'val'; '' if the source has no splits


def write_documents(splits: dict, file, seed: int) -> Corpus:
    """Write the documents of {split: reader} to file as UTF-8, one after the other; empty ones
    are skipped. A reader yields a long document in several pieces, of which only the last has
    `ends` set: Piece('Once upon', ends=False), Piece(' a time.', ends=True)."""
    end, hashes, nats = array('q'), array('Q'), array('d')
    size = lost = 0
    documents = {}                                          # their number in each split
    for split, reader in splits.items():
        before = len(end)
        digest = None                                       # of the document that is open, if any
        for piece in show_progress(reader, f'reading {split}'):
            if digest is None:
                if piece.ends and not piece.text.strip():
                    continue
                digest = blake2b(digest_size=8, key=str(seed).encode())
            raw = to_utf8(piece.text)
            digest.update(raw)
            size += file.write(raw)
            if not raw.isascii():
                lost += raw.count('\ufffd'.encode())
            if piece.ends:
                end.append(size)
                hashes.append(int.from_bytes(digest.digest(), 'little'))
                nats.append(piece.nats)
                digest = None
        documents[split] = len(end) - before
    file.flush()
    require(size, 'no text was found in the source')
    if lost:
        warn(f'{lost:,} characters of the text are U+FFFD: invalid UTF-8, or lone surrogates')
    end = np.frombuffer(end, np.int64)
    return Corpus(start=np.append(0, end[:-1]), end=end, hash=np.frombuffer(hashes, np.uint64),
                  nats=np.frombuffer(nats, np.float64),
                  split=np.repeat(list(documents), list(documents.values())))


# ---- 2. train and val
def divide(corpus: Corpus, raw, val_fraction: float) -> tuple[Corpus, dict[str, np.ndarray]]:
    """The corpus and {'train': indices, 'val': indices} of its documents, without duplicates.

    The source's own split is kept. Without one, a document goes to val if its hash is small: so
    its side does not depend on the other documents. A single document is cut in two."""
    kept = np.sort(np.unique(corpus.hash, return_index=True)[1])        # without duplicates
    if corpus.split[0]:
        is_val = corpus.split[kept] == 'val'
    elif len(kept) == 1:
        corpus = cut_in_two(corpus, raw, val_fraction)
        kept, is_val = np.array([0, 1]), np.array([False, True])
    else:
        hashes = corpus.hash[kept]
        is_val = hashes / 2 ** 64 < val_fraction
        is_val[hashes.argmin()] = True                      # each side has one document at least
        is_val[hashes.argmax()] = False
    sides = {'train': kept[~is_val], 'val': kept[is_val]}
    for side in sides.values():
        require((corpus.end[side] > corpus.start[side]).any(),
                'the source is too short to be divided into train and val')
    return corpus, sides


def cut_in_two(corpus: Corpus, raw, val_fraction: float) -> Corpus:
    """The first document as two: the second is the last val_fraction of its characters."""
    size = int(corpus.end[0])
    n = sum(len(text) for text, _ in cut(raw, 0, size))
    characters = int(n * (1 - val_fraction))
    middle = 0                                              # the bytes of these characters
    for text, _ in cut(raw, 0, size):
        middle += len(text[:characters].encode())
        characters -= len(text[:characters])
    return Corpus(start=np.array([0, middle]), end=np.array([middle, size]),
                  hash=corpus.hash[[0, 0]], nats=np.array([math.nan, math.nan]),
                  split=corpus.split[[0, 0]])


# ---- 3. tokens
def texts_of(raw, corpus: Corpus, indices):
    """Yield (text, ends) for the pieces of these documents; ends: is it a document's last?"""
    for i in indices:
        yield from cut(raw, int(corpus.start[i]), int(corpus.end[i]))


def make_tokenizer(kind: str, vocab_size: int, raw, corpus: Corpus, train) -> Tokenizer:
    """The tokenizer of this kind. A bpe is trained on the documents with indices `train`; char has
    the characters of all documents, so that it can encode val as well."""
    if kind == 'bpe':
        size = int((corpus.end[train] - corpus.start[train]).sum())
        every = size // VOCABULARY_TEXT + 1                 # a large corpus: only every n-th piece
        texts = (text for text, _ in islice(texts_of(raw, corpus, train), 0, None, every))
        with tqdm(desc='learning the vocabulary', bar_format='{desc}', disable=None, leave=False):
            return Tokenizer(train_bpe(texts, vocab_size))
    if kind == 'char':
        alphabet = set()
        for text, _ in cut(raw, 0, len(raw)):
            alphabet.update(text)
        return Tokenizer({'kind': 'char', 'alphabet': ''.join(sorted(alphabet))})
    return Tokenizer({'kind': 'gpt2'} if kind == 'gpt2' else read_tokenizer(kind))


# ---- 4. files
def write_dataset(folder: Path, tokenizer: Tokenizer, raw, corpus: Corpus, sides: dict,
                  about: dict) -> dict:
    """Write the files of a dataset, and return what is in meta.json; `about` goes into it."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    meta = {
        'format': FORMAT,
        **about,                                            # source, licence, command, fingerprint
        'tokenizer': tokenizer.spec,
        'vocab_size': tokenizer.vocab_size,
        'eot': tokenizer.eot,                               # the id after every document
        'dtype': np.dtype(dtype).name,                      # of the ids in the .bin files
    }
    with new_files(folder) as new:
        for split, indices in sides.items():
            path = new / f'{split}.bin'
            with open(path, 'wb') as f:
                texts = show_progress(texts_of(raw, corpus, indices), f'tokenizing {split}')
                size = sum(f.write(ids.astype(dtype)) for ids in tokenizer.encode_stream(texts))
            nats = corpus.nats[indices]
            meta[split] = {
                'tokens': size // np.dtype(dtype).itemsize,
                'documents': len(indices),
                'bytes': int((corpus.end[indices] - corpus.start[indices]).sum()),  # of UTF-8
                'checksum': checksum(path),
                'entropy': None if np.isnan(nats).any() else float(nats.sum()),     # in nats
            }
        meta['checksum'] = checksum_of_meta(meta)
        if 'json' in tokenizer.spec:
            (new / 'tokenizer.json').write_text(tokenizer.spec['json'], encoding='utf-8')
        (new / 'meta.json').write_text(json.dumps(meta), encoding='utf-8')
    return meta


# ---- opening a dataset
def open_dataset(name: str, verify: bool = False) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return (meta, train, val) of data/NAME; train and val are memory maps of ids (tokens,).

    Checksums and ids are verified in files up to 1 GB; with verify=True in larger ones, too.
    Raises Error for any damage, with the command that makes the dataset again."""
    folder = Path('data', name)
    command = guess_command(name)
    require(os.path.exists(folder / 'meta.json'),
            f'{folder} is not there, or only half written ({datasets_there()}); make it with: '
            f'{command}')
    try:
        meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
        verify_meta(meta)
        command = meta['command'].removesuffix(' --overwrite=True')
        train, val = (open_split(folder, meta, split, verify) for split in ('train', 'val'))
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as e:
        raise Error(f'{folder} is damaged ({type(e).__name__}: {e}); make it again with: '
                    f'{command} --overwrite=True') from e
    return meta, train, val


# ---- batches of the train split
def windows_per_epoch(tokens: int, block_size: int) -> int:
    """One less than there is room for, so that the first one can begin anywhere in that room."""
    return max(1, (tokens - block_size) // block_size)


@lru_cache(2)
def window_starts(tokens: int, block_size: int, seed: int, epoch: int) -> np.ndarray:
    """The first token of each window of an epoch, in training order.

    Each epoch cuts the tokens into windows at a new random phase and shuffles the windows; each
    occurs once. A window has block_size inputs; its last target is the token after them."""
    windows = windows_per_epoch(tokens, block_size)
    rng = np.random.default_rng((seed, epoch))
    phase = rng.integers(tokens - windows * block_size)
    return phase + block_size * rng.permutation(windows)


def get_batch(data, block_size: int, seed: int, sequences: range) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, (len(sequences), block_size) each, of these sequences of a run.

    The sequences of a run are numbered from 0; each step takes the next batch_size of them. As a
    batch depends on the arguments only, a resumed run needs no state of its data, and several
    processes take slices of a batch."""
    require(len(data) > block_size,
            f'the train split has {len(data)} tokens; lower block_size below that')
    windows = windows_per_epoch(len(data), block_size)
    rows = []
    for i in sequences:
        start = window_starts(len(data), block_size, seed, epoch=i // windows)[i % windows]
        rows.append(data[start:start + block_size + 1])
    ids = np.stack(rows).astype(np.int64)
    return ids[:, :-1], ids[:, 1:]


# ---- the val split
class Validation(NamedTuple):
    """The text to evaluate on: the val split or its beginning."""
    ids: np.ndarray               # (N,)
    bytes: int                    # length of the text in UTF-8
    entropy: float | None         # -ln of the text's probability, if known

    def floor(self) -> float | None:
        """Nats per token: no model can have a lower loss, on average. None if it is not known."""
        return self.entropy / len(self.ids) if self.entropy else None

    def bits_per_byte(self, loss: float) -> float:
        """A loss, in nats per token, in a unit that does not depend on the tokenizer."""
        return bits_per_byte(loss * len(self.ids), self.bytes)


def validation_text(meta: dict, val, tokenizer: Tokenizer, eval_tokens: int) -> Validation:
    """The first eval_tokens ids of the val split; 0 = all, and then the entropy may be known."""
    if eval_tokens == 0 or eval_tokens >= len(val):
        return Validation(val.astype(np.int64), meta['val']['bytes'], meta['val']['entropy'])
    ids = val[:eval_tokens].astype(np.int64)
    return Validation(ids, len(tokenizer.decode(ids).encode()), None)


def evaluation_windows(ids, eot: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ids (N,), documents with eot after each, into inputs and targets (windows, block_size).

    Documents are packed whole; only those longer than a window are cut. With windows of 4 and
    eot written as a dot, ab. c. defgh. becomes the targets ab. | c. | defg | h. and each input
    is the token before: .ab .c .def gh. The rest of a window is padded with inputs eot and targets
    -1, which do not count. A document sees the documents before it in its window."""
    lengths = [0]                           # tokens in each window
    ends = [*np.flatnonzero(ids == eot) + 1, len(ids)]
    for document in np.diff([0, *ends]):                    # its length
        for begin in range(0, document, block_size):
            piece = min(block_size, document - begin)       # all of it, if it fits into a window
            if lengths[-1] + piece > block_size:
                lengths.append(0)
            lengths[-1] += piece
    cuts = np.cumsum([0, *lengths])                         # where windows begin and end
    x = np.full((len(lengths), block_size), eot)
    y = np.full_like(x, -1)
    before = np.append(eot, ids)
    for row, (start, end) in enumerate(zip(cuts, cuts[1:])):
        x[row, :end - start] = before[start:end]
        y[row, :end - start] = ids[start:end]
    return x, y


# ---- the command
def dataset_folder() -> Path:
    """data/NAME, of the knob `name` or else of the source."""
    target = name or name_dataset(input or dataset, tokenizer)
    require(target == Path(target).name and target not in ('', '..'),
            f'name={target} is not the name of a folder in data/')
    return Path('data', target)


def source_files() -> tuple[str, list[Path]]:
    """The source that the knobs name, and its local files, if any."""
    if input:
        return input, find_files(input)
    if dataset == 'stories':
        return dataset, [GRAMMAR]
    source = 'roneneldan/TinyStories' if dataset == 'tinystories' else dataset
    return source, [path for path in Path(source).rglob('*') if path.is_file()]


def read_source(source: str, files: list[Path]) -> tuple[dict, str | None]:
    """Return ({split: its documents}, licence); the split is '' if the source has none."""
    if input:
        return {'': read_files(files, text_column, separator)}, None
    if dataset == 'stories':
        stories = tell_stories(read_grammar(), num_stories, seed)
        return {'': (Piece(text, nats=nats) for text, nats in stories)}, 'MIT'
    return read_dataset(source, text_column)


def make_dataset(folder: Path, splits: dict, about: dict) -> dict:
    """Run the steps 1 to 4, print what came out, and return what is in meta.json."""
    began = time.time()
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        found = write_documents(splits, file, seed)
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        corpus, sides = divide(found, raw, val_fraction)
        is_simple = about['source'] == 'stories' or len(raw) < SMALL_TEXT
        size = vocab_size or (2048 if is_simple else 4096)
        tok = make_tokenizer(tokenizer, size, raw, corpus, sides['train'])
        meta = write_dataset(folder, tok, raw, corpus, sides, about)
    report(meta, len(found.hash) - len(np.unique(found.hash)), val_fraction if input else 1.0)
    print(f'{folder} made in {time.time() - began:.1f} s')
    return meta


def main():
    logging.disable(logging.CRITICAL)                       # libraries raise what matters
    require(0 < val_fraction < 1, f'val_fraction={val_fraction} is not between 0 and 1')
    require(vocab_size == 0 or 257 <= vocab_size <= 1 << 24,
            f'vocab_size={vocab_size}: a bpe has 257 tokens (all bytes and end-of-text) to '
            '16,777,216')
    require(not input or 'dataset' not in config.given,
            '--input takes the place of --dataset: leave one out')
    require('num_stories' not in config.given or (dataset == 'stories' and not input),
            'num_stories is for the stories alone: leave it out')
    folder = dataset_folder()
    try:
        source, files = source_files()
        about = {'source': source, 'command': shlex.join(['python', *sys.argv]),
                 'fingerprint': fingerprint(config, files)}
        if (folder / 'meta.json').exists() and not overwrite:
            meta = open_dataset(folder.name)[0]
            require(meta.get('fingerprint') == about['fingerprint'],
                    f'{folder} was made from other knobs, or the files have changed since '
                    f'({meta["command"]}); use a different --name, or --overwrite=True, after '
                    'which runs on the old one cannot be resumed')
            print(f'{folder} is there already, made from the same text and knobs: nothing to do')
        else:
            splits, about['licence'] = read_source(source, files)
            meta = make_dataset(folder, splits, about)
    except BrokenPipeError:             # of what is printed
        raise
    except OSError as e:
        raise Error(f'{e.filename or folder}: {e.strerror or e}; '
                    'what was there before is intact') from e
    print('next: ' + next_command(source, folder.name, meta['train']['tokens']))


if __name__ == '__main__':
    main()
