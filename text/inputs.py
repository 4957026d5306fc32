"""The files that --input names by paths, folders and globs, and their documents."""
import os
import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from lib.errors import Error, require
from lib.terminal import warn
from text.readers import READERS, find_reader, read_pdf, read_text

SEPARATOR = '<|endoftext|>'     # the default; many files do not use it


def find_files(patterns: str) -> list[Path]:
    """The files with a reader in a comma-separated list of paths, folders and globs; at least one
    for each. Prints what is left out."""
    parts = [part.strip() for part in patterns.split(',') if part.strip()]
    if not parts or os.path.exists(os.path.expanduser(patterns)):
        parts = [patterns]                      # a path may itself contain commas
    found = []
    left_out = Counter()
    for part in parts:
        files = []
        for path in sorted(expand(part, left_out)):
            if not path.exists():
                left_out['broken link'] += 1
            elif not find_reader(path):
                left_out[path.suffix.lower() or 'without a suffix'] += 1
            elif not path.is_file():
                left_out['special file'] += 1
            else:
                files.append(path)
        require(files, f'--input={part}: no readable files there; the kinds that can be '
                       f'read are {" ".join(READERS)}')
        found += files
    if left_out:
        kinds = [f'{n:,} {kind}' for kind, n in left_out.most_common(10)]
        print(f'left out   {", ".join(kinds)}' + (', ...' if len(left_out) > 10 else ''))
    return found


def expand(pattern: str, left_out: Counter) -> list[Path]:
    """The files that match a path, a folder or a glob. Raises Error if there are none."""
    path = Path(pattern).expanduser()
    if os.path.isdir(path):
        return list(walk(path, left_out))
    if os.path.exists(path):
        return [path]
    root = Path(path.anchor)
    try:
        paths = [found for found in root.glob(str(path.relative_to(root))) if not found.is_dir()]
    except (OSError, ValueError):               # too long, or not a pattern
        paths = []
    require(paths, f'--input={pattern}: no such file or folder')
    # As in a shell, wildcards do not match hidden files.
    return [found for found in paths
            if not any(part[0] == '.' and part not in path.parts for part in found.parts)]


def walk(folder: Path, left_out: Counter):
    """Yield the files in a folder and its subfolders; count what is skipped in left_out.

    A symlink to a folder is followed, unless that folder was already read or contains this one."""
    real = folder.resolve()
    seen = {real, *real.parents}
    tree = os.walk(folder, onerror=lambda error: left_out.update(['unreadable folder']),
                   followlinks=True)
    for parent, folders, names in tree:
        for name in sorted(folders):
            path = Path(parent, name)
            is_foreign = name[0] == '.' or name in ('__MACOSX', 'node_modules')
            is_environment = os.path.exists(path / 'pyvenv.cfg')
            if is_foreign or is_environment or path.resolve() in seen:
                left_out[f'{name}/'] += 1
                folders.remove(name)
            seen.add(path.resolve())
        for name in names:
            if name[0] == '.':
                left_out['hidden'] += 1
            else:
                yield Path(parent, name)


def read_files(files: list[Path], text_column: str, separator: str):
    """The documents of files. A PDF that cannot be read is left out with a warning; any other
    file raises Error. The separator may contain the escapes \\n, \\t and \\\\."""
    escapes = {r'\n': '\n', r'\t': '\t', r'\\': '\\'}
    separator = re.sub(r'\\[nt\\]', lambda escape: escapes[escape[0]], separator)
    texts = documents = 0                       # .txt files, and documents in them
    with tqdm(files, 'file', position=1, disable=None, leave=False) as bar:
        for path in bar:
            bar.set_postfix_str(path.name[-40:])
            read = find_reader(path)
            is_text = read is read_text
            texts += is_text
            try:
                for piece in read(path, text_column, separator):
                    documents += is_text and piece.ends
                    yield piece
            except Exception as e:              # libraries raise anything on corrupted files
                reason = str(e) or type(e).__name__
                if isinstance(e, Error):
                    raise
                if read is not read_pdf:
                    raise Error(f'{path} cannot be read: {reason}') from e
                warn(f'{path} is left out: {reason}')
    if texts and documents == texts and separator not in ('', SEPARATOR):
        warn(f'the separator {separator!r} is not in any .txt file: each file is one document')
