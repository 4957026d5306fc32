"""From the lines of pages to running text, without running heads, with words and paragraphs whole.

A page says where its lines are, but nothing of paragraphs, so these rules go by position: a line
continues a paragraph if it is just below the last one, whose end had no room for its first word."""
import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from typing import NamedTuple

HYPHEN = '\ufffe'               # inside a word: it was divided here
# No space follows a line that ends like this, or is Chinese or Japanese.
NO_SPACE = re.compile(rf'({HYPHEN}|[/_—\u3000-\u9fff\uff00-\uffef]|\S-)$')
LEADERS = re.compile(r'\s*([.·…_]\s?){4,}\s*([\divxlc]+\s*$)?')
PAGE_NUMBER = re.compile(r'\W*(page )?(\d+|[ivxlc]+)(( of | ?/ ?)\d+)?\W*', re.I)
HEADING = re.compile(r'[^\W\d]+ (\d+|[ivxlc]+)\W?', re.I)       # Chapter 1
BULLET, LABEL = '[•◦▪‣●○■–—*-]', r'[(\[]?(\d{1,3}|[a-zA-Z])[)\]]'
LIST_ITEM = re.compile(rf'({BULLET}|{LABEL}|\d+\.(\d+\.?)*|\[\w+\]) ')
SPACING_ACCENT = re.compile(r'([¨´ˆ˜ˇ˘˚¯¸˝])([^\W\d_])')
COMBINING = dict(zip('¨´ˆ˜ˇ˘˚¯¸˝',
                     '\u0308\u0301\u0302\u0303\u030c\u0306\u030a\u0304\u0327\u030b'))
NOT_TEXT = [*range(9), *range(11, 32), *range(127, 160), *range(0xe000, 0xf900)]
REPAIRS = dict.fromkeys(NOT_TEXT, ' ') | {0xad: HYPHEN, 0xf0b7: '•'}    # 0xad is a soft hyphen
REPAIRS |= {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl'}


class Line(NamedTuple):
    """A line of a page and its position in points, turned so that it reads from left to right."""
    text: str
    left: float
    right: float
    bottom: float
    height: float               # of its letters, with ascenders and descenders
    word: float                 # width of its first word
    code: bool = False          # in a monospaced font
    turns: int = 0              # quarter turns that made it upright
    mirrored: bool = False      # in a script that runs from right to left
    edge: float = 0             # where it would end if it were full


def text_of_pages(pages: list[list[Line]]) -> str:
    pages = [[clean(line) for line in page] for page in pages]
    pages = [join_rows([line for line in page if line.text]) for page in pages]
    spacing = usual_spacing(pages)
    pages = drop_running_heads(pages, 1.25 * spacing)
    blocks = [block for page in pages for block in add_edges(divide(page, 1.25 * spacing))]
    return join_words(join_blocks(blocks)).strip()


# ---- lines
def clean(line: Line) -> Line:
    """A line with mojibake, ligatures and accents repaired, and without control characters."""
    import ftfy
    text = ftfy.fix_encoding(line.text).translate(REPAIRS)
    text = unicodedata.normalize('NFC', SPACING_ACCENT.sub(put_accent, text))
    return line._replace(text=' '.join(text.split()))


def put_accent(match: re.Match) -> str:
    """The letter with the accent before it, if there is such a letter."""
    letter = {'ı': 'i', 'ȷ': 'j'}.get(match[2], match[2])
    accented = unicodedata.normalize('NFC', letter + COMBINING[match[1]])
    return accented if len(accented) == 1 else match[0]


# ---- rows and columns
def join_rows(cells: list[Line]) -> list[Line]:
    """The lines of a page. Cells of a row become one line, as in tables and formulas, but columns
    of prose that were drawn row by row follow each other."""
    rows = []
    for cell in cells:
        if rows and beside(rows[-1], cell):
            rows[-1].append(cell)
        else:
            rows.append([cell])
    lines = []
    while rows:
        columns = find_columns(rows)
        if len(columns) > 1 and all(map(is_prose, columns)):
            cells_used = sum(map(len, columns))
            lines += [line for column in columns for line in join_rows(column)]
            while cells_used:
                cells_used -= len(rows.pop(0))
        else:
            lines.append(join_row(rows.pop(0)))
    return lines


def beside(row: list[Line], cell: Line) -> bool:
    """Whether a cell is left or right of a row, and half of the lower one beside the higher one."""
    if (cell.turns, cell.mirrored) != (row[0].turns, row[0].mirrored):
        return False
    left, right = min(each.left for each in row), max(each.right for each in row)
    last = row[-1]
    top = min(last.bottom + last.height, cell.bottom + cell.height)
    shared = top - max(last.bottom, cell.bottom)
    is_outside = cell.left > right - 1
    if cell.turns or cell.mirrored:             # PDFium may give their cells in any order
        is_outside = is_outside or cell.right < left + 1
    return is_outside and shared >= 0.5 * min(last.height, cell.height)


def join_row(row: list[Line]) -> Line:
    row = sorted(row, key=lambda cell: cell.left)
    text = row[0].text
    for last, cell in pairwise(row):
        text += (' ' if cell.left - last.right > 0.15 * cell.height else '') + cell.text
    higher = max(row, key=lambda cell: cell.height)
    return row[0]._replace(text=text, right=row[-1].right, bottom=higher.bottom,
                           height=higher.height, code=all(cell.code for cell in row))


def find_columns(rows: list[list[Line]]) -> list[list[Line]]:
    """The cells of the rows that divide into the same columns as the first row."""
    columns = [[cell] for cell in sorted(rows[0], key=lambda cell: cell.left)]
    for row in rows[1:]:
        found = [[column for column in columns if overlap(column, cell)] for cell in row]
        if any(len(each) != 1 for each in found):
            break
        for cell, (column,) in zip(row, found):
            column.append(cell)
    return columns


def overlap(column: list[Line], cell: Line) -> bool:
    """Whether a cell is above or below a column."""
    return (cell.left < max(each.right for each in column)
            and cell.right > min(each.left for each in column))


def is_prose(column: list[Line]) -> bool:
    """Whether a column has at least three lines, of words enough to fill most of them."""
    edge = max(line.right for line in column)
    full = sum(is_full(line._replace(edge=edge), below) for line, below in pairwise(column))
    words = sum(len(line.text.split()) for line in column)
    if any(line.code for line in column):
        return False
    return len(column) > 2 and words >= 3 * len(column) and full >= 0.6 * (len(column) - 1)


# ---- pages
def drop_running_heads(pages: list[list[Line]], limit: float) -> list[list[Line]]:
    """The pages without page numbers and running heads: lines apart from the text which begin or
    end with the page's number, or are also on one of the two pages before and after."""
    outer = [outer_lines(page, limit) for page in pages]
    # A page's number is its place in the file plus an offset, which most pages share.
    offsets = Counter(number - i for i, lines in enumerate(outer)
                      for line in lines for number in outer_numbers(line))
    offset, pages_with_it = max(offsets.items(), key=lambda item: item[1], default=(0, 0))
    kept = []
    for i, page in enumerate(pages):
        near = [line for j in range(max(0, i - 2), min(len(pages), i + 3))
                if not same_text(page, pages[j]) for line in outer[j]]
        numbers = {line for line in outer[i] if PAGE_NUMBER.fullmatch(line.text)
                   or pages_with_it > 2 and i + offset in outer_numbers(line)}
        heads = {line for line in outer[i] if any(is_repeated(line, other) for other in near)}
        if len(heads - numbers) >= len(set(page) - heads - numbers) > 0:
            heads = set()                       # a refrain may be most of a page, a head is not
        kept.append([line for line in page if line not in heads | numbers])
    return kept


def outer_lines(page: list[Line], limit: float) -> list[Line]:
    """The lines that a gap divides from the text: up to two at the top and two at the bottom, and
    all that are turned."""
    turns = Counter(line.turns for line in page).most_common(1)
    upright = [line for line in page if line.turns == turns[0][0]]
    found = [line for line in page if line.turns != turns[0][0]]
    upright.sort(key=lambda line: -line.bottom)
    gaps = [above.bottom - line.bottom > limit * max(above.height, line.height)
            for above, line in pairwise(upright)]
    for order, gaps in (upright, gaps), (upright[::-1], gaps[::-1]):
        ends = [i + 1 for i, is_gap in enumerate(gaps[:2]) if is_gap]
        found += order[:max(ends, default=len(order) == 1)]
    return found


def outer_numbers(line: Line) -> list[int]:
    """The numbers with which a line begins and ends, unless it is a heading such as Chapter 1."""
    if HEADING.fullmatch(line.text):
        return []
    return [int(number) for number in re.findall(r'^\d{1,4}(?!\S)|(?<!\S)\d{1,4}$', line.text)]


def same_text(page: list[Line], other: list[Line]) -> bool:
    """Whether a page is the other one once more, its number aside."""
    return [pattern(line) for line in page] == [pattern(line) for line in other]


def pattern(line: Line) -> str:
    return re.sub(r'\d+', '#', line.text)


def is_repeated(line: Line, other: Line) -> bool:
    """Whether two lines of different pages have the same place and text, except for digits."""
    if abs(line.bottom - other.bottom) > line.height / 2:
        return False
    if HEADING.fullmatch(line.text):
        return line.text == other.text
    return pattern(line) == pattern(other)


# ---- blocks
def usual_spacing(pages: list[list[Line]]) -> float:
    """The distance of a line from the next one, in heights of its letters."""
    steps = [round((line.bottom - below.bottom) / line.height, 1)
             for page in pages for line, below in zip(page, page[1:])
             if line.height and line.bottom > below.bottom]
    return statistics.median_low(steps) if steps else 1


def divide(page: list[Line], limit: float) -> list[list[Line]]:
    """Blocks of lines of the same height, each below the last one by at most `limit` heights."""
    blocks = []
    for last, line in zip([None, *page], page):
        if last and same_height(last, line) and 0 < last.bottom - line.bottom < limit * last.height:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def same_height(a: Line, b: Line) -> bool:
    return abs(a.height - b.height) <= 0.15 * max(a.height, b.height)


def add_edges(blocks: list[list[Line]]) -> list[list[Line]]:
    """The blocks of a page, each line with its edge: where the longer lines end that begin like
    it, or its block ends. A block where few lines are full is a list or a table, without edge."""
    ends = defaultdict(list)
    for line in [line for block in blocks for line in block]:
        ends[round(line.left), round(line.height)].append(line.right)
    found = []
    for block in blocks:
        widest = max(line.right for line in block)
        for i, line in enumerate(block):
            rights = sorted(ends[round(line.left), round(line.height)])
            block[i] = line._replace(edge=max(widest, rights[int(0.7 * len(rights))]))
        full = sum(is_full(line, below) for line, below in zip(block, block[1:]))
        if full < (len(block) - 1) / 3:
            block = [line._replace(edge=math.inf) for line in block]
        found.append(block)
    return found


def is_full(line: Line, below: Line) -> bool:
    """Whether a line has no room for the first word of the line below it."""
    return line.right + below.word > line.edge - line.height


# ---- paragraphs
def join_blocks(blocks: list[list[Line]]) -> str:
    """Lines joined to paragraphs. Between these is a line break, or an empty line where the page
    has a gap. A word that is divided has HYPHEN in it."""
    text, last, left = '', None, 0
    for block in blocks:
        code_goes_on = last and last.code and block[0].code
        left = min([left] * bool(code_goes_on) + [line.left for line in block])
        for i, line in enumerate(block):
            if last and goes_on(last, line, below=i > 0):
                text += ('' if NO_SPACE.search(last.text) else ' ') + line.text
            else:
                width = (line.right - line.left) / len(line.text)
                indent = round((line.left - left) / width) if line.code and width > 0 else 0
                text += ('\n' if i else '\n\n') + ' ' * indent + LEADERS.sub(' ', line.text).strip()
            last = line
    return text


def goes_on(last: Line, line: Line, below: bool) -> bool:
    """Whether a paragraph goes on in a line, which is just below or on another page or column."""
    after_gap = not below and line.bottom < last.bottom
    if after_gap or stands_alone(last, line) or not same_height(last, line):
        return False
    if last.text.endswith(HYPHEN):
        return True
    if below:
        indented = line.left > last.left + 0.5 * line.height and not LIST_ITEM.match(last.text)
        return not indented and is_full(last, line)
    in_sentence = last.text[-1] not in '.:!?' and line.text[0].islower()
    return in_sentence and is_full(last, line)


def stands_alone(last: Line, line: Line) -> bool:
    """Whether a line is new whatever its place: code, a list, a table of contents or of numbers."""
    numbers = all(re.search(r'\s[\d.,]*\d$', each.text) for each in (last, line))
    leaders = LEADERS.search(last.text) or LEADERS.search(line.text)
    return bool(last.code and line.code or LIST_ITEM.match(line.text) or numbers or leaders)


# ---- words
def join_words(text: str) -> str:
    """The text with its divided words whole. Their hyphen stays before a capital or a digit, after
    capitals, and where the text has the word more often with a hyphen than without."""
    words = Counter(re.findall(r'\w+(?:-\w+)*', text))

    def join(match):
        word, *parts = match[0].split(HYPHEN)
        for part in parts:
            whole, hyphenated = word + part, f'{word}-{part}'
            stays = not part[0].islower() or word.isupper() or words[hyphenated] > words[whole]
            word = hyphenated if stays else whole
        return word

    return re.sub(rf'\w+({HYPHEN}\w+)+', join, text).replace(HYPHEN, '-')


def glued(text: str) -> float:
    """The share of the characters that is in words so long that spaces must be missing."""
    long = re.findall('[A-Za-z\u00c0-\u024f\u0370-\u052f]{18,}', text)
    return sum(map(len, long)) / max(1, len(text))
