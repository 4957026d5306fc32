"""Drop running heads and page numbers, which are not part of a PDF's text."""
import re
import statistics
from collections import Counter
from itertools import pairwise

from text.lines import Line

PAGE_NUMBER = re.compile(r'\W*(page )?(\d+|[ivxlc]+)(( of | ?/ ?)\d+)?\W*', re.I)
HEADING = re.compile(r'[^\W\d]+ (\d+|[ivxlc]+)\W?', re.I)       # Chapter 1


def drop_running_heads(pages: list[list[Line]], gap: float) -> list[list[Line]]:
    """Remove page numbers and running heads from pages. They are set apart from the text by at
    least `gap` times their height, and either contain the page number or repeat at the same
    position on one of the two pages before or after."""
    outer = [outer_lines(page, gap) for page in pages]
    patterns = [[pattern(line) for line in page] for page in pages]
    # A page's number is its index in the file plus an offset that most pages share.
    offsets = Counter(number - i for i, lines in enumerate(outer) for line in lines
                      if not HEADING.fullmatch(line.text) for number in outer_numbers(line))
    offset, n_pages = max(offsets.items(), key=lambda item: item[1], default=(0, 0))
    kept = []
    for i, page in enumerate(pages):
        numbers = {line for line in outer[i] if PAGE_NUMBER.fullmatch(line.text)}
        titled = {line for line in outer[i] if n_pages > 2 and i + offset in outer_numbers(line)}
        if numbers:                             # then a heading's number is not the page's
            titled = {line for line in titled if not HEADING.fullmatch(line.text)}
        # A duplicate of this page says nothing about which lines are heads.
        near = [line for j in range(max(0, i - 2), min(len(pages), i + 3))
                if patterns[j] != patterns[i] for line in outer[j]]
        repeated = {line for line in outer[i] if any(is_repeated(line, other) for other in near)}
        heads = numbers | titled | repeated
        if len(repeated - numbers - titled) >= len({*page} - heads) > 0:
            heads = numbers | titled            # repeated lines are most of the page: a refrain
        kept.append([line for line in page if line not in heads])
    return kept


def outer_lines(page: list[Line], gap: float) -> list[Line]:
    """Up to two lines that are set apart at the top and at the bottom, and all lines whose
    direction differs from that of most lines."""
    usual = statistics.mode([line.turns for line in page] or [0])
    found = [line for line in page if line.turns != usual]
    lines = sorted((line for line in page if line.turns == usual), key=lambda line: -line.bottom)
    if len(lines) == 1:
        return found + lines
    apart = [above.bottom - line.bottom > gap * max(above.height, line.height)
             for above, line in pairwise(lines)]
    for n in range(1, min(3, len(lines))):
        if apart[n - 1]:
            found += lines[:n]
        if apart[-n]:
            found += lines[-n:]
    return found


def outer_numbers(line: Line) -> list[int]:
    """The numbers at the start and at the end of a line."""
    return [int(number) for number in re.findall(r'^\d{1,4}(?!\S)|(?<!\S)\d{1,4}$', line.text)]


def is_repeated(line: Line, other: Line) -> bool:
    """Whether lines of two pages have the same position, and the same text apart from digits."""
    is_same = line.text == other.text or not HEADING.fullmatch(line.text)
    return (is_same and pattern(line) == pattern(other)
            and abs(line.bottom - other.bottom) <= line.height / 2)


def pattern(line: Line) -> str:
    return re.sub(r'\d+', '#', line.text)
