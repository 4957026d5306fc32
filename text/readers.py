"""Documents from files: one reader per kind of file.

A reader yields a Piece for each document. To add a kind of file, write a function read_KIND with
the same arguments and add its suffix to READERS."""
import csv
import json
import math
import os
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lib.errors import Error, require
from lib.terminal import warn
from text.encodings import BLOCK, blocks, open_text

ROWS = 16                       # rows to read at once; a row may be megabytes long
LONGEST_LINE = 1 << 26          # maximum characters in a line of .jsonl, or a field of .csv
MAX_GLUED = 0.02                # warn about a PDF with a larger share of glued words
SEPARATOR = '<|endoftext|>'     # the default; many files do not use it


class Piece(NamedTuple):
    """A document, or part of one that is too long for memory; its last part has ends=True."""
    text: str
    ends: bool = True
    nats: float = math.nan      # -ln of the document's probability, where it is known


# ---- text
def read_text(path, text_column: str, separator: str):
    """A .txt file, split into documents at `separator` ('' = the file is one document).

    Line breaks around a separator belong to it. NUL is dropped, and so is U+FEFF, the byte order
    mark that concatenating files leaves in the middle."""
    rest = ''                                   # read but not yet yielded
    at_start = False                            # whether rest begins right after a separator
    dropped = 0
    with open_text(path) as file:
        for block in blocks(file):
            text = block.replace('\0', '').replace('\ufeff', '')
            dropped += len(block) - len(text)
            *documents, rest = (rest + text).split(separator) if separator else [rest + text]
            for document in documents:
                if at_start:
                    document = document.lstrip('\n')
                yield Piece(document.rstrip('\n'))
                at_start = True
            if at_start:
                rest = rest.lstrip('\n')
            if len(rest) > BLOCK:               # keep what may be the start of a separator
                end = len(rest[:-len(separator) or None].rstrip('\n'))
                yield Piece(rest[:end], ends=False)
                rest = rest[end:]
                at_start = False
        yield Piece(rest)
    if dropped:
        warn(f'{path}: dropped {dropped:,} NUL characters and byte order marks inside the text')


def read_markdown(path, text_column: str, separator: str):
    """A .md file, which is one document."""
    yield from read_text(path, text_column, separator='')


def read_pdf(path, text_column: str, separator: str):
    """A .pdf file, which is one document. Raises ValueError if it cannot be read."""
    from text.layout import glued
    from text.pdf import read_pdf_file
    text = read_pdf_file(path)
    if not text:
        raise ValueError('it has no text; is it a scan?')
    if glued(text) > MAX_GLUED:
        warn(f'{path}: {glued(text):.1%} of its text is in words of 18 letters or more; '
             'spaces seem to be missing')
    yield Piece(text)


# ---- rows
def text_of_row(row, text_column: str, where: str) -> str:
    """The text of a row, '' for None. Raises ValueError if there is none; the message starts with
    `where`, the position of the row."""
    if not isinstance(row, dict):
        raise ValueError(f'{where} is not an object such as {{"{text_column}": "..."}}')
    if text_column not in row:
        columns = textwrap.shorten(', '.join(row) or 'none', 200, placeholder=' ...')
        is_chat = 'messages' in row or 'conversations' in row
        advice = 'join each chat into one text' if is_chat else 'set --text_column'
        raise ValueError(f'{where} has no column {text_column}, but {columns}; {advice}')
    text = row[text_column]
    if not isinstance(text, str | None):
        kind = type(text).__name__
        raise ValueError(f'{where} has {kind} in column {text_column}, not text; '
                         'set --text_column')
    return text or ''


def read_jsonl(path, text_column: str, separator: str):
    """A .jsonl file: each line is a JSON object."""
    with open_text(path) as file:
        lines = iter(lambda: file.readline(LONGEST_LINE), '')
        for number, line in enumerate(lines, 1):
            where = f'line {number}'
            if len(line) == LONGEST_LINE:
                raise ValueError(f'{where} is longer than {LONGEST_LINE:,} characters')
            line = line.strip().strip('\ufeff')
            if not line:
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                reason = str(e).partition(': line ')[0]         # json counts each line as line 1
                raise ValueError(f'{where} is not JSON ({reason}): fix or remove it') from e
            yield Piece(text_of_row(row, text_column, where))


def read_csv(path, text_column: str, separator: str):
    """A .csv file whose first row names the columns, separated by commas, semicolons or tabs."""
    csv.field_size_limit(LONGEST_LINE)
    with open_text(path, newline='') as file:
        header = file.readline()
        file.seek(0)
        # strict: an open quote would otherwise swallow all rows after it
        rows = csv.DictReader(file, delimiter=max(',;\t', key=header.count),
                              skipinitialspace=True, strict=True)
        try:
            for row in rows:
                where = f'line {rows.line_num}'
                if None in row:                 # where DictReader puts cells without a column
                    raise ValueError(f'{where} has too many cells: put text with commas in quotes')
                yield Piece(text_of_row(row, text_column, where))
        except csv.Error as e:
            raise ValueError(f'after line {rows.line_num}: {e}') from e


def read_parquet(path, text_column: str, separator: str):
    """A .parquet file. Only the text column is read."""
    from pyarrow.parquet import ParquetFile
    with ParquetFile(path, buffer_size=BLOCK) as file:          # 0 would read whole row groups
        is_there = text_column in file.schema_arrow.names
        columns = [text_column] if is_there else None           # all, to name them in the error
        yield from read_arrow(file.iter_batches(ROWS, columns=columns), text_column)


def read_arrow(batches, text_column: str):
    """The documents in Arrow tables or batches of rows."""
    for batch in batches:
        for row in batch.to_pylist():
            yield Piece(text_of_row(row, text_column, 'it'))


# ---- files
READERS = {
    '.txt': read_text,
    '.md': read_markdown,
    '.pdf': read_pdf,
    '.jsonl': read_jsonl,
    '.jsonl.gz': read_jsonl,
    '.csv': read_csv,
    '.parquet': read_parquet,
}


def find_reader(name):
    """The reader for a file of this name, or None."""
    name = str(name).lower()
    return next((READERS[suffix] for suffix in READERS if name.endswith(suffix)), None)


def find_files(patterns: str) -> list[Path]:
    """The files with a reader in a comma-separated list of paths, folders and globs. Prints what
    is left out. Raises Error if one of them matches no file with a reader."""
    parts = [part.strip() for part in patterns.split(',') if part.strip()]
    if not parts or os.path.exists(os.path.expanduser(patterns)):
        parts = [patterns]                      # a path may itself contain commas
    found = []
    left_out = Counter()
    for part in parts:
        files = []
        for path in sorted(expand(part, left_out)):
            if find_reader(path) and path.is_file():
                files.append(path)
            else:
                suffix = path.suffix.lower() or 'without a suffix'
                kind = 'special file' if find_reader(path) else suffix
                left_out[kind if path.exists() else 'broken link'] += 1
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

    A link to a folder is followed, unless that folder was already read or contains this one."""
    real = folder.resolve()
    seen = {real, *real.parents}

    def skip_unreadable(error: OSError):
        left_out['unreadable folder'] += 1

    for parent, folders, names in os.walk(folder, onerror=skip_unreadable, followlinks=True):
        for name in sorted(folders):
            path = Path(parent, name)
            is_foreign = name[0] == '.' or name in ('__MACOSX', 'node_modules')
            is_environment = os.path.exists(path / 'pyvenv.cfg')
            if is_foreign or is_environment or path.resolve() in seen:
                left_out[f'{name}/'] += 1
                folders.remove(name)
            seen.add(path.resolve())
        visible = [name for name in names if name[0] != '.']
        if len(visible) < len(names):
            left_out['hidden'] += len(names) - len(visible)
        yield from (Path(parent, name) for name in visible)


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
            except Error:
                raise
            except Exception as e:              # damaged files make libraries raise anything
                reason = str(e) or type(e).__name__
                if read is not read_pdf:
                    raise Error(f'{path} cannot be read: {reason}') from e
                warn(f'{path} is left out: {reason}')
    if texts and documents == texts and separator not in ('', SEPARATOR):
        warn(f'the separator {separator!r} is not in any .txt file: each file is one document')
