"""Documents from files: one reader per kind of file.

A reader yields a Piece for each document. To add a kind of file, write a function read_KIND with
the same arguments and add its suffix to READERS."""
import csv
import json
import math
import re
import textwrap
from typing import NamedTuple

from lib.terminal import warn
from text.encodings import BLOCK, blocks, open_text
from text.pdf import read_pdf_file

ROWS = 16                       # rows to read at once; a row may be megabytes long
LONGEST_LINE = 1 << 26          # maximum characters in a line of .jsonl, or a field of .csv


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
    mark = re.escape(separator)
    breaks = rf'(?:(?!{mark})\n)*'              # but not the one that begins the next separator
    border = re.compile(mark + breaks)
    rest = ''                                   # read but not yet yielded
    dropped = 0
    with open_text(path) as file:
        for block in blocks(file):
            text = block.replace('\0', '').replace('\ufeff', '')
            dropped += len(block) - len(text)
            if not separator:
                yield Piece(text, ends=False)
                continue
            if not rest:                        # the last block ended with a separator
                text = re.sub(rf'\A{breaks}', '', text)
            *documents, rest = border.split(rest + text)
            for document in documents:
                yield Piece(document.rstrip('\n'))
            if len(rest) > BLOCK:               # keep what may be the start of a separator
                end = len(rest[:-len(separator)].rstrip('\n'))
                yield Piece(rest[:end], ends=False)
                rest = rest[end:]
        yield Piece(rest)
    if dropped:
        warn(f'{path}: dropped {dropped:,} NUL characters and byte order marks inside the text')


def read_markdown(path, text_column: str, separator: str):
    """A .md file, which is one document."""
    yield from read_text(path, text_column, separator='')


def read_pdf(path, text_column: str, separator: str):
    """A .pdf file, which is one document."""
    text = read_pdf_file(path)
    if not text:
        raise ValueError('it has no text; is it a scan?')
    yield Piece(text)


# ---- rows
def text_of_row(row, text_column: str, where: str) -> str:
    """The text of a row, '' for None. Raises ValueError if there is none. where: `line 5`."""
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
        raise ValueError(f'{where} has {kind} in column {text_column}, not text; set --text_column')
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
    with open_text(path) as file:
        header = file.readline()
        file.seek(0)
        # strict: an open quote would otherwise swallow all rows after it
        rows = csv.DictReader(file, delimiter=max(',;\t', key=header.count),
                              skipinitialspace=True, strict=True)
        try:
            if (rows.fieldnames or []).count(text_column) > 1:
                raise ValueError(f'it has two columns {text_column}: rename or remove one')
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


# ---- all kinds
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
