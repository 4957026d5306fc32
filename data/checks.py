"""Whether the files of a dataset are what its meta.json says, and which command makes it."""
import json
import math
import zlib
from pathlib import Path

import numpy as np

from config._files import checksum

FORMAT = 1                      # of the files in data/NAME


def checksum_of_meta(meta: dict) -> str:
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return f'{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}'


def guess_command(name: str) -> str:
    """The command that makes data/NAME, as far as its name says it."""
    base, _, kind = name.rpartition('_')
    source, option = (base, f' --tokenizer={kind}') if kind in ('gpt2', 'char') else (name, '')
    if source in ('stories', 'tinystories'):
        return f'python prepare.py --dataset={source}{option}'
    return f'python prepare.py --input=FILES --name={name}{option}'


def verify_meta(meta: dict):
    """Raise ValueError, KeyError or TypeError if meta.json is damaged or has impossible values."""
    if meta['format'] != FORMAT:
        raise ValueError(f'format {meta["format"]}, this program reads {FORMAT}')
    if meta['checksum'] != checksum_of_meta(meta):
        raise ValueError('meta.json is damaged')
    counts = [meta['vocab_size'], meta['eot'] + 1]
    for split in ('train', 'val'):
        counts += [meta[split][key] for key in ('tokens', 'bytes', 'documents')]
        entropy = meta[split]['entropy'] or 0
        if not 0 <= entropy < math.inf:
            raise ValueError(f'meta.json says entropy={entropy}')
    largest = {'uint16': 1 << 16, 'uint32': 1 << 32}[meta['dtype']]
    are_counts = all(type(count) is int and count > 0 for count in counts)
    if not are_counts or not meta['eot'] < meta['vocab_size'] <= largest:
        raise ValueError('meta.json contains impossible values')


def open_split(folder: Path, meta: dict, split: str, verify: bool) -> np.ndarray:
    """The memory map of a split's ids, (tokens,). Raises OSError or ValueError for a damaged file.

    Its content is verified up to 1 GB, or with verify=True."""
    path, about = folder / f'{split}.bin', meta[split]
    if path.stat().st_size != about['tokens'] * np.dtype(meta['dtype']).itemsize:
        raise ValueError(f'{path.name} has a different size from what meta.json says')
    ids = np.memmap(path, meta['dtype'], 'r')
    if verify or ids.nbytes <= 10 ** 9:
        if checksum(path) != about['checksum']:
            raise ValueError(f'{path.name} has a different checksum from what meta.json says')
        if ids.max() >= meta['vocab_size']:
            raise ValueError(f'{path.name} has ids from vocab_size={meta["vocab_size"]} on')
    return ids
