"""Documents for prepare.py: copied into one temporary file, then split into train and val. And the
new files of a dataset.

Only a few MB of text are in memory at a time, whatever the size of the corpus."""
import contextlib
import math
import mmap
import os
import shutil
from array import array
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import require
from lib.files import acquire_lock, sync
from lib.terminal import show_progress, warn
from lib.tokenizer import cut, to_utf8


class Corpus(NamedTuple):
    """The N documents in the temporary file. Fields but raw are arrays (N,)."""
    raw: mmap.mmap                # the file's bytes: all documents, back to back
    start: np.ndarray             # offset of the first byte
    end: np.ndarray               # one past the last byte
    hash: np.ndarray              # hash of seed and text
    nats: np.ndarray              # -ln p(text); nan = unknown
    split: np.ndarray             # 'train' or 'val'; '' if the source has no splits

    def size(self, indices) -> int:
        """Total bytes of these documents."""
        return int((self.end[indices] - self.start[indices]).sum())

    def texts(self, indices):
        """Yield (text, ends) for each piece of these documents; ends marks a document's last."""
        for i in indices:
            yield from cut(self.raw, int(self.start[i]), int(self.end[i]))


def write_documents(source: dict, file, seed: int) -> Corpus:
    """Write the documents of {split: reader} to file as UTF-8, back to back, skipping empty ones.
    A reader yields Pieces; a long document has several, and ends=True marks its last."""
    start, end, hashes, nats, splits = array('q'), array('q'), array('Q'), array('d'), []
    size = replaced = begin = 0
    has_text = False
    digest = blake2b(digest_size=8, key=str(seed).encode())
    for split, reader in source.items():
        for piece in show_progress(reader, f'reading {split}'):
            raw = to_utf8(piece.text)
            size += file.write(raw)
            digest.update(raw)
            replaced += raw.count('\ufffd'.encode())
            has_text = has_text or bool(piece.text.strip())
            if not piece.ends:
                continue
            if has_text:
                start.append(begin)
                end.append(size)
                hashes.append(int.from_bytes(digest.digest(), 'little'))
                nats.append(piece.nats)
                splits.append(split)
            begin, has_text = size, False
            digest = blake2b(digest_size=8, key=str(seed).encode())
    file.flush()
    require(splits, 'the source has no text')
    if replaced:
        warn(f'the text has {replaced:,} U+FFFD characters: it was not valid UTF-8')
    raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Corpus(raw, np.frombuffer(start, np.int64), np.frombuffer(end, np.int64),
                  np.frombuffer(hashes, np.uint64), np.frombuffer(nats, np.float64),
                  np.array(splits))


def divide(corpus: Corpus, val_fraction: float) -> tuple[Corpus, dict[str, np.ndarray]]:
    """Drop exact duplicates and split the documents into {'train': indices, 'val': indices}.

    The source's own split is kept. Otherwise a document's hash decides, so its split does not
    depend on other documents; but if the largest document exceeds val_fraction of the text, every
    document is split and its tail held out. Also returns the corpus, which splitting changes."""
    kept = np.sort(np.unique(corpus.hash, return_index=True)[1])        # keep the first duplicate
    largest = (corpus.end[kept] - corpus.start[kept]).max()
    if corpus.split[0]:
        is_val = corpus.split[kept] == 'val'
    elif len(kept) == 1 or largest > val_fraction * corpus.size(kept):
        corpus, is_val = cut_tails(corpus, kept, val_fraction)
        kept = np.arange(len(is_val))
    else:
        hashes = corpus.hash[kept]
        is_val = hashes / 2 ** 64 < val_fraction
        is_val[hashes.argmin()] = True                      # at least one document in each split
        is_val[hashes.argmax()] = False
    splits = {'train': kept[~is_val], 'val': kept[is_val]}
    for indices in splits.values():
        require(corpus.size(indices), 'the source is too short to split into train and val')
    return corpus, splits


def cut_tails(corpus: Corpus, kept, val_fraction: float) -> tuple[Corpus, np.ndarray]:
    """Split each kept document in two: the tail is about the last val_fraction of its bytes.
    Returns a corpus of the parts, and a mask of which are tails."""
    start, end = corpus.start[kept], corpus.end[kept]
    middle = start + ((end - start) * (1 - val_fraction)).astype(np.int64)
    for i, byte in enumerate(middle.tolist()):
        while byte < end[i] and corpus.raw[byte] & 0xC0 == 0x80:   # inside a UTF-8 character
            byte += 1
        middle[i] = byte
    parts = Corpus(corpus.raw, np.append(start, middle), np.append(middle, end),
                   np.tile(corpus.hash[kept], 2), np.full(2 * len(kept), math.nan),
                   np.tile(corpus.split[kept], 2))
    is_tail = np.arange(2 * len(kept)) >= len(kept)
    is_nonempty = parts.end > parts.start
    fields = (field[is_nonempty] for field in parts[1:])
    return Corpus(corpus.raw, *fields), is_tail[is_nonempty]


@contextlib.contextmanager
def new_files(folder: Path):
    """Yield an empty folder for a dataset's new files, then move them to `folder`: at any time it
    holds the old dataset, the new one, or none. Raises Error if another process is writing it."""
    with acquire_lock(folder):
        new = folder / '.new'
        shutil.rmtree(new, ignore_errors=True)              # left over from a killed process
        new.mkdir()
        try:
            yield new
            replace_files(folder, new)
        finally:
            shutil.rmtree(new)


def replace_files(folder: Path, new: Path):
    """Move new files into a dataset's folder, meta.json last."""
    files = [new / name for name in ('train.bin', 'val.bin', 'tokenizer.json', 'meta.json')]
    files = [file for file in files if file.exists()]
    for file in files:
        sync(file)
    for name in ('meta.json', 'tokenizer.json'):
        (folder / name).unlink(missing_ok=True)
    for file in files:
        os.replace(file, folder / file.name)
    sync(folder)
