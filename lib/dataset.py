"""Datasets: the files in data/NAME, training sequences and evaluation windows.

train.bin and val.bin hold raw token ids, with end-of-text after every document; meta.json
describes them. It is written last, so a folder without it is not a dataset."""
import json
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from lib.errors import Error, require
from lib.files import checksum

FORMAT = 2                      # format version of the files in data/NAME


# ---- opening a dataset
def open_dataset(name: str, verify: bool = False) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return (meta, train, val) of data/NAME; train and val are memory maps of ids (N,).

    Verifies the checksums of files up to 1 GB, and of all files with verify=True. Raises Error,
    with the command that creates the dataset, if it is missing or corrupted."""
    folder = Path('data', name)
    command = f'python prepare.py --name={name} ...'
    if name == 'stories':
        command = 'python prepare.py'
    others = ', '.join(sorted(path.parent.name for path in Path('data').glob('*/meta.json')))
    require((folder / 'meta.json').exists(),
            f'{folder} is missing or incomplete (data/ has {others or "no datasets yet"}); create '
            f'it with: {command}')
    try:
        meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
        if meta['checksum'] != checksum_of_meta(meta):
            raise ValueError('the checksum of meta.json is wrong')
        command = meta['command'].removesuffix(' --overwrite=True')
        if meta['format'] != FORMAT:
            raise ValueError(f'format {meta["format"]}; this version reads {FORMAT}')
        train, val = (open_split(folder, meta, split, verify) for split in ('train', 'val'))
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise Error(f'{folder} is corrupted ({type(e).__name__}: {e}); recreate it with: '
                    f'{command} --overwrite=True') from e
    return meta, train, val


def open_split(folder: Path, meta: dict, split: str, verify: bool) -> np.ndarray:
    """The memory map of a split's ids (N,). Raises OSError or ValueError for a corrupted file."""
    path = folder / f'{split}.bin'
    if path.stat().st_size != meta[split]['tokens'] * np.dtype(meta['dtype']).itemsize:
        raise ValueError(f'the size of {path.name} does not match meta.json')
    ids = np.memmap(path, meta['dtype'], 'r')
    if (verify or ids.nbytes <= 10 ** 9) and checksum(path) != meta[split]['checksum']:
        raise ValueError(f'the checksum of {path.name} does not match meta.json')
    return ids


def checksum_of_meta(meta: dict) -> str:
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return f'{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}'


# ---- training
def sequence_start(sequence: int, tokens: int, block_size: int, seed: int) -> int:
    """Where a training sequence starts in a text of `tokens` tokens.

    Each epoch shuffles all windows, which do not overlap, and shifts them by a new random offset.
    For example, 14 tokens and block_size 4 give 2 windows. With offset 3 their inputs are tokens
    3 to 6 and 7 to 10, their targets 4 to 7 and 8 to 11; the starts are 3 and 7, or 7 and 3."""
    windows = max(1, tokens // block_size - 1)              # per epoch, with room for an offset
    epoch, at = divmod(sequence, windows)
    offset, order = shuffle(windows, tokens - windows * block_size, seed, epoch)
    return offset + block_size * order[at]


@lru_cache(2)
def shuffle(windows: int, offsets: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """The offset of an epoch, below `offsets`, and the order of its windows."""
    rng = np.random.default_rng((seed, epoch))
    return rng.integers(offsets), rng.permutation(windows)


# ---- evaluation
def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte, given a total loss of `nats` over a text of `size` bytes: comparable across
    tokenizers."""
    return nats / size / math.log(2)


class Validation:
    """The validation split, or its first eval_tokens tokens, packed into windows. Unlike training
    sequences, windows keep documents whole, so that a token is predicted from its own document.

    floor: -ln p(text) under the true distribution, in nats per token, which no model can beat on
    average; None if unknown."""

    def __init__(self, meta: dict, val, tokenizer, eval_tokens: int, block_size: int):
        self.eot = meta['eot']
        self.block_size = block_size
        self.ids = val                                      # (N,), a memory map
        self.bytes = meta['val']['bytes']                   # UTF-8 bytes of the text
        self.floor = None
        if 0 < eval_tokens < len(val):
            self.ids = val[:eval_tokens]
            self.bytes = len(tokenizer.decode(self.ids).encode())
        elif meta['val']['nats']:
            self.floor = meta['val']['nats'] / len(val)
        self.cuts = window_cuts(self.ids, self.eot, block_size)         # (windows + 1,)

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.cuts) - 1

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss in nats per token to bits per byte."""
        return bits_per_byte(loss * len(self.ids), self.bytes)

    def batch(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (n, T) of the n windows from `first`, padded past the last window, so
        that a compiled model sees a single shape."""
        cuts = self.cuts[first:first + n + 1]
        x, y = read_windows(self.ids, self.eot, self.block_size, cuts)
        missing = ((0, n - len(x)), (0, 0))
        return np.pad(x, missing), np.pad(y, missing, constant_values=-1)


def window_cuts(ids, eot: int, block_size: int) -> np.ndarray:
    """Boundaries (windows + 1,) of windows of at most block_size tokens in ids (N,).

    Documents, each ending in eot, are packed whole; only documents longer than a window are cut.
    Documents of 3, 2 and 6 tokens and block_size 4 give [0 3 5 9 11]."""
    step = 1 << 24                                          # read the memory map in pieces
    ends = [np.flatnonzero(ids[i:i + step] == eot) + i + 1 for i in range(0, len(ids), step)]
    ends = np.append(np.concatenate(ends), len(ids))
    cuts, document_start = [0], 0
    for end in ends.tolist():
        if end - cuts[-1] > block_size and document_start > cuts[-1]:
            cuts.append(document_start)                     # start a window with this document
        while end - cuts[-1] > block_size:
            cuts.append(cuts[-1] + block_size)              # the document exceeds a window
        document_start = end
    if len(ids) > cuts[-1]:
        cuts.append(len(ids))
    return np.array(cuts)


def read_windows(ids, eot: int, block_size: int, cuts) -> tuple[np.ndarray, np.ndarray]:
    """Inputs x and targets y, (windows, block_size) each, of the windows between the cuts.

    The input at each position is the token before the target, or eot at the start of the text.
    With eot 0 and block_size 4 the documents [5 6 0] and [7 8 9 0] become
        y = [[5 6 0 -1] [7 8 9 0]]          targets of -1 are ignored
        x = [[0 5 6  0] [0 7 8 9]]"""
    x = np.full((len(cuts) - 1, block_size), eot, np.int64)
    y = np.full_like(x, -1)
    for row, (start, end) in enumerate(zip(cuts, cuts[1:])):
        length = end - start
        y[row, :length] = ids[start:end]
        x[row, 1:length] = y[row, :length - 1]
        if start > 0:
            x[row, 0] = ids[start - 1]
    return x, y
