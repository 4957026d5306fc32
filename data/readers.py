"""From files and datasets to documents: one reader for each kind of file, and what cleans the
text of PDFs.

A reader yields a Piece for each document; a document too long for memory comes in several, the
last of which ends it. A new kind of file needs a function read_KIND and its line in READERS."""
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from config import Error, require

BLOCK = 1 << 20                 # characters of a text file that are read at once
LONGEST_LINE = 1 << 26          # bytes of a line in a .jsonl file, at most
PDF_WORK = 20_000_000        # operators and characters of a PDF, at most: about a minute of reading


class Piece(NamedTuple):
    """A document, or a part of one. nats is -ln of its probability where that is known."""
    text: str
    ends: bool = True           # whether the document ends with this piece
    nats: float = math.nan


# ---- text
def read_text(path, text_column: str, separator: str):
    """A .txt file, its documents divided by `separator` ('' = it is one document)."""
    with open(path, encoding='utf-8-sig', errors='replace') as f:
        rest = ''
        follows_separator = False               # whether rest begins a document after a separator
        while block := f.read(BLOCK):
            *documents, rest = (rest + block).split(separator) if separator else [rest + block]
            for document in documents:          # the line ends around a separator belong to it
                yield Piece(trim(document, follows_separator))
                follows_separator = True
            if follows_separator:
                rest = rest.lstrip('\n')
            if len(rest) > BLOCK:               # all but what may be the beginning of a separator
                end = len(rest[:-len(separator) or None].rstrip('\n'))
                yield Piece(rest[:end], ends=False)
                rest = rest[end:]
                follows_separator = False
        yield Piece(rest)


def trim(document: str, follows_separator: bool) -> str:
    if follows_separator:
        document = document.lstrip('\n')
    return document.rstrip('\n')


def read_markdown(path, text_column: str, separator: str):
    """A .md file, which is one document."""
    yield from read_text(path, text_column, separator='')


# ---- rows
def text_of_row(row: dict, text_column: str) -> str:
    if text_column not in row:
        columns = ', '.join(row) or 'none'
        raise ValueError(f'no column {text_column}, but {columns}; set --text_column')
    text = row[text_column]
    if not isinstance(text, str | None):
        kind = type(text).__name__
        raise ValueError(f'column {text_column} holds {kind}, not text; set --text_column')
    return text or ''


def read_jsonl(path, text_column: str, separator: str):
    with open(path, 'rb') as f:
        while line := f.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(f'a line is longer than {LONGEST_LINE} bytes')
            if line.strip():
                row = json.loads(line.decode('utf-8-sig', 'replace'))
                yield Piece(text_of_row(row, text_column))


def read_parquet(path, text_column: str, separator: str):
    from pyarrow import parquet
    yield from read_arrow(parquet.ParquetFile(path).iter_batches(1000), text_column)


def read_arrow(batches, text_column: str):
    """The documents of Arrow's batches of rows. Only the column of the text becomes Python
    objects."""
    for batch in batches:
        if text_column in batch.column_names:
            texts = batch[text_column].to_pylist()
            if isinstance(next(filter(None, texts), ''), str):
                yield from map(Piece, (text or '' for text in texts))
                continue
        for row in batch.to_pylist():           # a row without text: text_of_row says what is wrong
            yield Piece(text_of_row(row, text_column))


# ---- PDF
def read_pdf(path, text_column: str, separator: str):
    """The text of a .pdf file as one document. Raises what pypdf does, or ValueError if there
    is no text."""
    import pypdf
    work_left = PDF_WORK                        # pypdf limits each stream, this limits the file

    def count_work(operator, operands, *rest):
        nonlocal work_left
        texts = [operand for operand in operands if isinstance(operand, str | bytes | list)]
        work_left -= 1 + sum(len(text) for text in texts)
        if work_left < 0:
            raise ValueError('it inflates without end')

    with open(path, 'rb') as f:
        pages = [page.extract_text(visitor_operand_before=count_work)
                 for page in pypdf.PdfReader(f).pages]
    text = clean_pdf(pages)
    if not text:
        raise ValueError('it has no text; is it a scan?')
    yield Piece(text)


def clean_pdf(pages: list[str]) -> str:
    """Join the text of pages: no running heads and page numbers, whole words, whole paragraphs."""
    pages = [[clean_line(line) for line in page.strip().split('\n')] for page in pages]
    text = '\n'.join('\n'.join(page).strip() for page in without_running_heads(pages))
    text = re.sub(r'(\w)-\n(\w)', join_hyphenated, text)
    return re.sub(r'\n{3,}', '\n\n', join_paragraphs(text)).strip()


def clean_line(line: str) -> str:
    """A line with its encoding repaired, control characters as spaces, and ligatures as letters."""
    import ftfy
    table = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], ' ')
    table |= {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl'}
    return ftfy.fix_encoding(line).translate(table).strip()


def without_running_heads(pages: list[list[str]]) -> list[list[str]]:
    """The lines of pages without those, of the outer two at either end, that are on many pages.

    They may differ in their digits, and left pages may have others than right ones."""
    def pattern(line):
        return re.sub(r'\d+', '#', line)

    outer_lines = [{pattern(line) for line in page[:2] + page[-2:]} for page in pages]
    counts = Counter(line for lines in outer_lines for line in lines)
    often = max(1, len(pages) / 3)
    return [[line for i, line in enumerate(page)
             if 2 <= i < len(page) - 2 or counts[pattern(line)] <= often] for page in pages]


def join_hyphenated(match: re.Match) -> str:
    """The letters around a hyphen at a line's end, without it if both are lower case."""
    letters = match[1] + match[2]
    return letters if letters.islower() else match[0]


def join_paragraphs(text: str) -> str:
    """Lines joined to paragraphs. A line that is much shorter than most is a heading, or ends a
    paragraph."""
    lines = text.split('\n')
    lengths = sorted(len(line) for line in lines if line) or [0]
    long = 0.7 * lengths[int(0.75 * (len(lengths) - 1))]
    text = lines[0]
    for last, line in zip(lines, lines[1:]):
        continues = last and line and (len(last) > long or line[0].islower())
        text += (' ' if continues else '\n') + line
    return text


# ---- where documents come from
READERS = {
    '.txt': read_text,
    '.md': read_markdown,
    '.pdf': read_pdf,
    '.jsonl': read_jsonl,
    '.parquet': read_parquet,
}


def find_files(patterns: str) -> list[Path]:
    """The files with a reader that files, folders and globs (with commas between them) name, in
    order."""
    found = []
    for pattern in [part.strip() for part in patterns.split(',') if part.strip()] or [patterns]:
        path = Path(pattern)
        if path.is_dir():
            paths = path.rglob('*')           # follows no links to folders, which could be circular
        elif path.exists():
            paths = [path]
        else:
            root = Path(path.anchor)
            paths = root.glob(str(path.relative_to(root)))
        files = sorted(path for path in paths if path.suffix.lower() in READERS and path.is_file())
        require(files, f'--input={pattern}: there is no {" ".join(READERS)} file')
        found += files
    return found


def read_files(files: list[Path], text_column: str, separator: str):
    """The documents of files. A PDF that cannot be read is named and left out, another file is
    an Error."""
    for path in files:
        read = READERS[path.suffix.lower()]
        try:
            yield from read(path, text_column, separator)
        except Exception as e:                  # damaged files make libraries raise any exception
            if path.suffix.lower() != '.pdf':
                raise Error(f'{path} cannot be read: {e}') from e
            print(f'warning: {path} is left out: {e or type(e).__name__}', file=sys.stderr)


def read_dataset(source: str, text_column: str) -> tuple[dict, str | None]:
    """({split: its documents}, licence) of a Hugging Face dataset, a name or a folder.

    The splits are val and train, or '' for all if it has no validation split. A folder is read
    in place."""
    from datasets import load_dataset

    def read(split):
        try:
            yield from read_arrow(split.with_format('arrow').iter(1000), text_column)
        except Exception as e:
            reason = f'{type(e).__name__}: {str(e)[:200]}'
            raise Error(f'dataset {source} cannot be read ({reason})') from e

    try:
        splits = load_dataset(source, streaming=Path(source).exists())
    except Exception as e:
        reason = f'{type(e).__name__}: {str(e)[:200]}'
        raise Error(f'dataset {source} cannot be opened ({reason})') from e
    require('train' in splits and splits['train'].info.builder_name != 'text',
            f'dataset {source} has no split train, or holds text files, for which there is --input')
    licence = splits['train'].info.license or None
    names = [name for name in ('validation', 'valid', 'val', 'dev', 'test') if name in splits]
    if not names:
        return {'': read(splits['train'])}, licence
    # val is read first: a document that is in both is kept there
    return {'val': read(splits[names[0]]), 'train': read(splits['train'])}, licence
