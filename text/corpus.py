"""Documents for prepare.py: copied into one temporary file, then split into train and val.

Only a few MB of text are in memory at a time, whatever the size of the corpus."""
import contextlib
import math
import mmap
import os
import shutil
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lib.errors import require
from lib.files import acquire_lock, sync
from lib.terminal import show_progress, warn
from lib.tokenizer import cut, to_utf8

DOCUMENT = np.dtype([
    ('start', np.int64),        # offset of its first byte in the temporary file
    ('end', np.int64),          # one past its last byte
    ('hash', np.uint64),        # of the seed and its text
    ('nats', np.float64),       # -ln p(text); nan = unknown
    ('is_val', bool)])          # whether the source holds it out


def size_of(documents: np.ndarray) -> int:
    """Total bytes of documents."""
    return int((documents['end'] - documents['start']).sum())


def texts_of(documents: np.ndarray, raw: mmap.mmap):
    """Yield (text, ends) for each piece of documents; ends marks a document's last."""
    for document in documents:
        yield from cut(raw, int(document['start']), int(document['end']))


def write_documents(source: dict, file, seed: int) -> tuple[mmap.mmap, np.ndarray]:
    """Write the documents of {split: iterator of Pieces} to file as UTF-8, back to back, skipping
    empty ones. Returns the bytes of the file and an array (N,) of DOCUMENT."""
    documents = bytearray()
    size = replaced = start = 0
    has_text = False
    new_digest = blake2b(digest_size=8, key=str(seed).encode())
    digest = new_digest.copy()
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
                hashed = int.from_bytes(digest.digest(), 'little')
                row = (start, size, hashed, piece.nats, split == 'val')
                documents += np.array(row, DOCUMENT).tobytes()
            start, has_text, digest = size, False, new_digest.copy()
    file.flush()
    require(documents, 'the source has no text')
    if replaced:
        warn(f'the text has {replaced:,} U+FFFD characters: it was not valid UTF-8')
    raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return raw, np.frombuffer(documents, DOCUMENT)


def divide(documents: np.ndarray, raw: mmap.mmap, val_fraction: float) -> dict[str, np.ndarray]:
    """Drop exact duplicates and split the documents into {'train': documents, 'val': documents}.

    The source's own split is kept. Otherwise a document's hash decides, so its split does not
    depend on other documents; but if the largest document exceeds val_fraction of the text, every
    document is split and its tail held out."""
    kept = np.sort(np.unique(documents['hash'], return_index=True)[1])  # keep the first of each
    sizes = documents['end'][kept] - documents['start'][kept]
    is_val = documents['is_val'][kept]
    if not is_val.any() and sizes.max() > val_fraction * sizes.sum():
        splits = cut_tails(documents[kept], raw, val_fraction)
    else:
        if not is_val.any():
            hashes = documents['hash'][kept]
            is_val = hashes / 2 ** 64 < val_fraction
            is_val[hashes.argmin()] = True                  # at least one document in each split
            is_val[hashes.argmax()] = False
        splits = {'train': documents[kept[~is_val]], 'val': documents[kept[is_val]]}
    for part in splits.values():
        require(size_of(part), 'the source is too short to split into train and val')
    return splits


def cut_tails(documents: np.ndarray, raw: mmap.mmap, val_fraction: float) -> dict[str, np.ndarray]:
    """Cut each document in two and hold out its tail: about the last val_fraction of its bytes."""
    documents['nats'] = math.nan
    heads, tails = documents.copy(), documents.copy()
    for head, tail in zip(heads, tails):
        size = int(head['end'] - head['start'])
        middle = int(head['start']) + int(size * (1 - val_fraction))
        while middle < head['end'] and raw[middle] & 0xC0 == 0x80:      # inside a UTF-8 character
            middle += 1
        head['end'] = tail['start'] = middle
    splits = {'train': heads, 'val': tails}
    return {split: part[part['end'] > part['start']] for split, part in splits.items()}


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
            files = sorted(new.iterdir(), key=lambda file: file.name == 'meta.json')
            for file in files:
                sync(file)
            for name in ('meta.json', 'tokenizer.json'):
                (folder / name).unlink(missing_ok=True)
            for file in files:                              # meta.json last
                os.replace(file, folder / file.name)
            sync(folder)
        finally:
            shutil.rmtree(new)
