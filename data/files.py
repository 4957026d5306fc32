"""The files of a dataset: its name, writing all together, what is in them, and checks."""
import contextlib
import json
import math
import os
import re
import shutil
import zlib
from hashlib import blake2b
from pathlib import Path

import numpy as np

from config import ROOT
from config._files import acquire_lock, checksum, sync
from config._terminal import fit, warn

FORMAT = 1                      # of the files in data/NAME


# ---- names and sources
def name_dataset(source: str, tokenizer: str) -> str:
    """NAME of data/NAME: the last part of the source before any * or ?, and the tokenizer."""
    first = re.split(r'/?[^/]*[*?[]', source.split(',')[0].strip())[0]
    path = Path(first).resolve()
    name = path.stem if os.path.isfile(path) else path.name
    return f'{name}_{tokenizer}' if tokenizer in ('gpt2', 'char') else name


def fingerprint(knobs: dict, files: list[Path]) -> str:
    """Hash of the knobs of prepare.py and the local files from which a dataset is made."""
    files = sorted(files) + sorted(Path(knobs['tokenizer']).glob('*.json'))
    knobs = {key: value for key, value in knobs.items() if key not in ('name', 'overwrite')}
    content = repr([knobs, [(path.name, checksum(path)) for path in files]])
    return blake2b(content.encode(), digest_size=8).hexdigest()


def guess_command(name: str) -> str:
    """The command that makes data/NAME, guessed from its name or from a recipe."""
    base, _, kind = name.rpartition('_')
    source, option = (base, f' --tokenizer={kind}') if kind in ('gpt2', 'char') else (name, '')
    if source in ('stories', 'tinystories'):
        return f'python prepare.py --dataset={source}{option}'
    for recipe in sorted((ROOT / 'config').glob('[!_]*.py')):
        text = recipe.read_text(encoding='utf-8', errors='replace')
        command = re.search(r'^# +(python prepare\.py .*)', text, re.M)
        if command and f"\ndataset = '{name}'\n" in text:
            return command[1]
    return f'python prepare.py --input=FILES --name={name}{option}'


def datasets_there() -> str:
    """The names of the datasets that data/ holds, for a message."""
    names = sorted(path.parent.name for path in Path('data').glob('*/meta.json'))
    return f'data/ has {", ".join(names)}' if names else 'data/ has no dataset yet'


# ---- writing
@contextlib.contextmanager
def new_files(folder: Path):
    """Yield a folder for the new files of the dataset in `folder`. They are moved there at the end:
    it holds the old dataset, the new one, or none. Raises Error if another process writes it."""
    with acquire_lock(folder / '.lock'):
        new = folder / '.new'
        shutil.rmtree(new, ignore_errors=True)              # a killed run may have left it
        new.mkdir()
        try:
            yield new
            replace_files(folder, new)
        finally:
            shutil.rmtree(new)


def replace_files(folder: Path, new: Path):
    """Move files into a dataset's folder; meta.json, which makes it a dataset, comes last."""
    files = [new / name for name in ('train.bin', 'val.bin', 'tokenizer.json', 'meta.json')]
    files = [file for file in files if file.exists()]
    for file in files:
        sync(file)
    for name in ('meta.json', 'tokenizer.json'):
        (folder / name).unlink(missing_ok=True)
    for file in files:
        os.replace(file, folder / file.name)
    sync(folder)


# ---- what is in a dataset
def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte of a text of `size` bytes and `nats` in all: comparable across tokenizers."""
    return nats / size / math.log(2)


def report(meta: dict, duplicates: int, val_fraction: float):
    """Print what was prepared, and warn if the val split is too small, or much larger than
    val_fraction of the text; 1 = the source has its own split."""
    train, val = meta['train'], meta['val']
    lines = [f'documents  {train["documents"]:,} train, {val["documents"]:,} val, '
             f'{duplicates:,} dropped as duplicates',
             f'tokens     {train["tokens"]:,} train, {val["tokens"]:,} val, '
             f'{val["bytes"] / val["tokens"]:.2f} bytes per token, '
             f'vocabulary {meta["vocab_size"]:,}']
    if val['entropy']:
        lines.append(f'floor      {val["entropy"] / val["documents"]:.2f} nats per story, '
                     f'{val["entropy"] / val["tokens"]:.4f} per token, '
                     f'{bits_per_byte(val["entropy"], val["bytes"]):.4f} bits per byte')
    for line in lines:
        print(fit(line, hang=' ' * 11))
    share = val['bytes'] / (val['bytes'] + train['bytes'])
    if share > 2 * val_fraction:
        warn(f'{share:.0%} of the text is held out, as documents are not cut; '
             'divide the text into smaller ones')
    if val['tokens'] < 1000:
        warn(f'only {val["tokens"]} tokens for validation: their loss will say little')


# ---- checks
def checksum_of_meta(meta: dict) -> str:
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    return f'{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}'


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
