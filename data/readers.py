"""From files and datasets to documents: one reader for each kind of file.

A reader yields a Piece for each document; a document too long for memory comes in several, the
last of which ends it. A new kind of file needs a function read_KIND and its line in READERS."""
import codecs
import json
import math
import re
import string
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from config import Error, brief, require
from config._terminal import warn
from data.layout import glued
from data.pdf import read_pdf_file

BLOCK = 1 << 20                 # characters of a text file that are read at once
LONGEST_LINE = 1 << 26          # bytes of a line in a .jsonl file, at most
MOST_GLUED = 0.02               # of the characters of a PDF in glued words, or it is named
MARKS = {codecs.BOM_UTF8: 'utf-8-sig', codecs.BOM_UTF32_LE: 'utf-32',
         codecs.BOM_UTF32_BE: 'utf-32', codecs.BOM_UTF16_LE: 'utf-16',
         codecs.BOM_UTF16_BE: 'utf-16'}         # the longer ones before their beginnings
ASCII = bytes(range(128))
LETTERS = string.ascii_letters.encode()
QUOTE_IN_WORD = re.compile(rb'[a-zA-Z][\x82\x84\x91\x93-\x95][a-zA-Z]')
# What is common in the languages of Western Europe; the same bytes are other letters elsewhere.
SMALL = 'àâäáãåæçèéêëìíîïñòóôöõøœùúûüÿ'
ACCENTED = (SMALL + SMALL.upper() + 'ß').encode('cp1252')
SIGNS = '“”‘’„‚–—…•€£§°©®™«»¡¿·ªº²½\xa0'.encode('cp1252')


class Piece(NamedTuple):
    """A document, or a part of one. nats is -ln of its probability where that is known."""
    text: str
    ends: bool = True           # whether the document ends with this piece
    nats: float = math.nan


# ---- text
def encoding_of(path) -> str:
    """The encoding of a text file: the one that its first bytes name, UTF-8 if most of it fits, or
    Windows-1252 where that is sure. Any other file is named, and read as UTF-8."""
    with open(path, 'rb') as f:
        start = f.read(4)
        f.seek(0)
        for mark, encoding in MARKS.items():
            if start.startswith(mark):
                return encoding
        block = f.read(BLOCK)
        f.seek(0)
        # In UTF-16 most characters of European languages have one byte that is 0.
        zeros, even, odd = block.count(0), block[::2].count(0), block[1::2].count(0)
        if zeros > 0.35 * len(block) and min(even, odd) < 0.05 * zeros:
            return 'utf-16-le' if odd > even else 'utf-16-be'
        decode = codecs.getincrementaldecoder('utf-8')('replace').decode
        valid = invalid = 0                     # characters that are not ASCII
        block = start
        while block:
            block = f.read(BLOCK)
            text = decode(block, final=not block)
            if not text.isascii():
                errors = text.count('\ufffd') - block.count('\ufffd'.encode())
                invalid += errors
                valid += len(text) - len(text.encode('ascii', 'ignore')) - errors
    if invalid <= valid:
        return 'utf-8'
    if is_western(path):
        return 'cp1252'
    warn(f'{path} is not UTF-8, and its encoding is not clear: what is not UTF-8 in it becomes '
         'U+FFFD; save it as UTF-8, or remove it')
    return 'utf-8'


def is_western(path) -> bool:
    """Whether a file is surely Windows-1252 (or Latin-1, which is a part of it): it has no bytes
    that are rare there, no quotes within words, and few letters with accents."""
    accented = letters = 0
    with open(path, 'rb') as f:
        while block := f.read(BLOCK):
            others = block.translate(None, ASCII + SIGNS)
            if others.translate(None, ACCENTED) or QUOTE_IN_WORD.search(block) or b'\0' in block:
                return False
            accented += len(others)
            letters += len(block) - len(block.translate(None, LETTERS))
    return accented <= 0.1 * letters


def read_text(path, text_column: str, separator: str):
    """A .txt file, its documents divided by `separator` ('' = it is one document)."""
    with open(path, encoding=encoding_of(path), errors='replace') as f:
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
        number = 0
        while line := f.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise ValueError(f'line {number} is longer than {LONGEST_LINE} bytes')
            if line.strip():
                try:
                    row = json.loads(line.decode('utf-8-sig', 'replace'))
                except ValueError as e:
                    reason = str(e).partition(': line ')[0]     # json calls each line its line 1
                    raise ValueError(
                        f'line {number} is not JSON ({reason}): mend or remove it') from e
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
    """A .pdf file, which is one document. Raises ValueError if it cannot be read."""
    text = read_pdf_file(path)
    if not text:
        raise ValueError('it has no text; is it a scan?')
    if glued(text) > MOST_GLUED:
        warn(f'{path}: {glued(text):.1%} of its text is in words of 18 letters or more; '
             'spaces seem to be missing')
    yield Piece(text)


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
    order. What else a folder holds is counted and printed."""
    found, others = [], Counter()
    for pattern in [part.strip() for part in patterns.split(',') if part.strip()] or [patterns]:
        path = Path(pattern)
        if path.is_dir():
            paths = list(path.rglob('*'))     # follows no links to folders, which could be circular
            others.update(other.suffix.lower() or 'without a suffix' for other in paths
                          if is_left_out(other.relative_to(path)) and other.is_file())
        elif path.exists():
            paths = [path]
        else:
            root = Path(path.anchor)
            paths = list(root.glob(str(path.relative_to(root))))
            require(paths, f'--input={pattern}: there is no such file or folder')
        files = sorted(path for path in paths if path.suffix.lower() in READERS and path.is_file())
        require(files, f'--input={pattern}: nothing there can be read; the kinds of files that '
                       f'can are {" ".join(READERS)}')
        found += files
    if others:
        order = sorted(others, key=lambda kind: (-others[kind], kind))
        kinds = ', '.join(f'{others[kind]:,} {kind}' for kind in order[:10])
        print(f'left out   {kinds}' + (', ...' if len(others) > 10 else ''))
    return found


def is_left_out(path: Path) -> bool:
    """Whether a file has no reader, and is not hidden."""
    return path.suffix.lower() not in READERS and not any(part[0] == '.' for part in path.parts)


def read_files(files: list[Path], text_column: str, separator: str):
    """The documents of files. A PDF that cannot be read is named and left out, another file is
    an Error."""
    with tqdm(files, 'file', position=1, disable=None, leave=False) as bar:
        for path in bar:
            bar.set_postfix_str(path.name[-40:])
            try:
                yield from READERS[path.suffix.lower()](path, text_column, separator)
            except Error:
                raise
            except Exception as e:              # damaged files make libraries raise any exception
                if path.suffix.lower() != '.pdf':
                    raise Error(f'{path} cannot be read: {e}') from e
                warn(f'{path} is left out: {e or type(e).__name__}')


def read_dataset(source: str, text_column: str) -> tuple[dict, str | None]:
    """({split: its documents}, licence) of a Hugging Face dataset, a name or a folder.

    The splits are val and train, or '' for all if it has no validation split. A folder is read
    in place."""
    from datasets import load_dataset

    def read(split):
        try:
            yield from read_arrow(split.with_format('arrow').iter(1000), text_column)
        except Exception as e:
            reason = f'{type(e).__name__}: {brief(e)}'
            raise Error(f'dataset {source} cannot be read ({reason})') from e

    try:
        splits = load_dataset(source, streaming=Path(source).exists())
    except Exception as e:
        reason = f'{type(e).__name__}: {brief(e)}'
        raise Error(f'dataset {source} cannot be opened ({reason})') from e
    require('train' in splits and splits['train'].info.builder_name != 'text',
            f'dataset {source} has no split train, or holds text files, for which there is --input')
    licence = splits['train'].info.license or None
    names = [name for name in ('validation', 'valid', 'val', 'dev', 'test') if name in splits]
    if not names:
        return {'': read(splits['train'])}, licence
    # val is read first: a document that is in both is kept there
    return {'val': read(splits[names[0]]), 'train': read(splits['train'])}, licence
