"""From the lines of pages to running text: no running heads, whole words, whole paragraphs.

A page shows where its lines are, and says nothing of paragraphs. So these rules look at places: a
paragraph goes on in the next line if that is just below, and its first word had no room above."""
import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from typing import NamedTuple

HYPHEN = '\ufffe'               # ends a line whose last word goes on in the next
# After a line that ends like this, or in Chinese or Japanese, follows no space.
NO_SPACE = re.compile(rf'({HYPHEN}|[/_—\u3000-\u9fff\uff00-\uffef]|\S-)$')
LEADERS = re.compile(r'\s*([.·…_]\s?){4,}\s*([\divxlc]+\s*$)?')
NUMBER = re.compile(r'\W*(page )?(\d+|[ivxlc]+)(( of | ?/ ?)\d+)?\W*', re.I)
BULLET, LABEL = '[•◦▪‣●○■–—*-]', r'[(\[]?(\d{1,3}|[a-zA-Z])[)\]]'
LIST = re.compile(rf'({BULLET}|{LABEL}|\d+\.(\d+\.?)*|\[\w+\]) ')
ACCENT = re.compile(r'([¨´ˆ˜ˇ˘˚¯¸˝])([^\W\d_])')
COMBINING = '\u0308\u0301\u0302\u0303\u030c\u0306\u030a\u0304\u0327\u030b'
ACCENTS = dict(zip('¨´ˆ˜ˇ˘˚¯¸˝', COMBINING))
NOT_TEXT = [*range(9), *range(11, 32), *range(127, 160), 0xad, *range(0xe000, 0xf900)]
REPAIRS = dict.fromkeys(NOT_TEXT, ' ') | {0xf0b7: '•'}
REPAIRS |= {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl'}


class Line(NamedTuple):
    """A line of a page and its place, in points from the page's lower left corner."""
    text: str
    left: float
    right: float
    bottom: float
    height: float               # of its letters, from the lowest to the highest
    word: float                 # width of its first word
    code: bool = False          # whether its letters have the same width, as in code
    edge: float = 0             # where it would end if it were full


def text_of_pages(pages: list[list[Line]]) -> str:
    pages = [join_rows([clean(line) for line in page]) for page in pages]
    pages = without_running_heads(pages)
    spacing = usual_spacing(pages)
    blocks = [block for page in pages for block in with_edges(divide(page, 1.25 * spacing))]
    return join_words(join_blocks(blocks)).strip()


# ---- lines
def clean(line: Line) -> Line:
    """A line with its encoding, ligatures and accents repaired, and without what is not text."""
    import ftfy
    text = ftfy.fix_encoding(line.text).translate(REPAIRS)
    text = unicodedata.normalize('NFC', ACCENT.sub(put_accent, text))
    return line._replace(text=' '.join(text.split()))


def put_accent(match: re.Match) -> str:
    """The letter with the accent that stands before it, if there is such a letter."""
    letter = {'ı': 'i', 'ȷ': 'j'}.get(match[2], match[2])
    accented = unicodedata.normalize('NFC', letter + ACCENTS[match[1]])
    return accented if len(accented) == 1 else match[0]


def join_rows(lines: list[Line]) -> list[Line]:
    """The lines of a page, those side by side being one, as in tables and formulas."""
    rows = []
    for line in lines:
        last = rows[-1] if rows else None
        if last and beside(last, line):
            space = ' ' if line.left - last.right > 0.15 * line.height else ''
            higher = max(last, line, key=lambda part: part.height)
            rows[-1] = last._replace(text=last.text + space + line.text, right=line.right,
                                     bottom=higher.bottom, height=higher.height,
                                     code=last.code and line.code)
        elif line.text:
            rows.append(line)
    return rows


def beside(last: Line, line: Line) -> bool:
    """Whether a line is right of another, and at its height by half of the smaller one or more."""
    top = min(last.bottom + last.height, line.bottom + line.height)
    shared = top - max(last.bottom, line.bottom)
    return line.left > last.right - 1 and shared >= 0.5 * min(last.height, line.height)


# ---- pages
def without_running_heads(pages: list[list[Line]]) -> list[list[Line]]:
    """The pages without those of their outer two lines, at either end, that are on the next page
    or the next but one with other digits at most, or begin or end with the page's number."""
    orders = [sorted(page, key=lambda line: -line.bottom) for page in pages]
    outer = [{*page[:2], *page[-2:]} for page in orders]
    patterns = [{re.sub(r'\d+', '#', line.text) for line in lines} for lines in outer]
    # A page's number is its place in the file plus an offset, which most pages share.
    offsets = Counter(number - i for i, lines in enumerate(outer)
                      for line in lines for number in outer_numbers(line))
    offset, pages_with_it = max(offsets.items(), key=lambda item: item[1], default=(0, 0))
    kept = []
    for i, page in enumerate(pages):
        near = set().union(*patterns[max(0, i - 2):i], *patterns[i + 1:i + 3])
        heads = {line for line in outer[i]
                 if re.sub(r'\d+', '#', line.text) in near or NUMBER.fullmatch(line.text)
                 or pages_with_it > 2 and i + offset in outer_numbers(line)}
        kept.append([line for line in page if line not in heads])
    return kept


def outer_numbers(line: Line) -> list[int]:
    """The numbers with which a line begins and ends."""
    return [int(number) for number in re.findall(r'^\d{1,4}(?!\S)|(?<!\S)\d{1,4}$', line.text)]


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


def with_edges(blocks: list[list[Line]]) -> list[list[Line]]:
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
        indented = line.left > last.left + 0.5 * line.height and not LIST.match(last.text)
        return not indented and is_full(last, line)
    in_sentence = last.text[-1] not in '.:!?' and line.text[0].islower()
    return in_sentence and is_full(last, line)


def stands_alone(last: Line, line: Line) -> bool:
    """Whether a line is new whatever its place: code, a list, a table of contents or of numbers."""
    numbers = all(re.search(r'\s[\d.,]*\d$', each.text) for each in (last, line))
    leaders = LEADERS.search(last.text) or LEADERS.search(line.text)
    return bool(last.code and line.code or LIST.match(line.text) or numbers or leaders)


# ---- words
def join_words(text: str) -> str:
    """The text with its divided words whole. Their hyphen stays before a capital or a digit, after
    capitals, and where the text has the word more often with a hyphen than without."""
    words = Counter(re.findall(r'\w+(?:-\w+)*', text))

    def join(match):
        whole, hyphenated = match[1] + match[2], f'{match[1]}-{match[2]}'
        stays = not match[2][0].islower() or match[1].isupper() or words[hyphenated] > words[whole]
        return hyphenated if stays else whole

    return re.sub(rf'(\w+){HYPHEN}(\w+)', join, text).replace(HYPHEN, '-')


def glued(text: str) -> float:
    """The share of the characters that is in words so long that spaces must be missing."""
    long = re.findall('[A-Za-z\u00c0-\u024f\u0370-\u052f]{18,}', text)
    return sum(map(len, long)) / max(1, len(text))
