"""Reflow the lines of PDF pages into paragraphs: drop running heads, rejoin split words.

A PDF stores where lines are, not which belong together. So these rules go by position: a line
continues a paragraph if it is just below a full line, one without room for another word."""
import math
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import chain, pairwise

from text.heads import drop_running_heads
from text.lines import Line, is_full, join_rows

HYPHEN = '\ufffe'               # a hyphen that may only be there because the line ended
# No space follows these at the end of a line, or Chinese and Japanese text.
NO_SPACE = re.compile(rf'({HYPHEN}|[/_—\u3000-\u9fff\uff00-\uffef]|\S-)$')
LEADERS = re.compile(r'\s*([.·…_]\s?){4,}\s*([\divxlc]+\s*$)?')
BULLET, LABEL = '[•◦▪‣●○■–—*-]', r'[(\[]?(\d{1,3}|[a-zA-Z])[)\]]'
LIST_ITEM = re.compile(rf'({BULLET}|{LABEL}|\d+\.(\d+\.?)*|\[\w+\]) ')
COMBINING = dict(zip('¨´ˆ˜ˇ˘˚¯¸˝',
                     '\u0308\u0301\u0302\u0303\u030c\u0306\u030a\u0304\u0327\u030b'))
SPACING_ACCENT = re.compile(rf'([{"".join(COMBINING)}])([^\W\d_])')
NOT_TEXT = [*range(9), *range(11, 32), *range(127, 160), *range(0xe000, 0xf900)]
REPAIRS = dict.fromkeys(NOT_TEXT, ' ') | {0xad: HYPHEN, 0xf0b7: '•'}    # 0xad is a soft hyphen
REPAIRS |= {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl'}


def text_of_pages(pages: list[list[Line]]) -> str:
    """The text of pages, given the lines of each in reading order."""
    pages = [[clean(line) for line in page] for page in pages]
    pages = [join_rows([line for line in page if line.text]) for page in pages]
    pages = drop_running_heads(pages, gap=1.25 * line_step(pages, 0.25))
    limit = 1.25 * line_step(pages, 0.5)
    blocks = [block for page in pages for block in add_edges(divide(page, limit))]
    return join_words(join_blocks(blocks)).strip()


def clean(line: Line) -> Line:
    """Repair mojibake, ligatures and accents in a line, and remove control characters."""
    import ftfy
    text = ftfy.fix_encoding(line.text).translate(REPAIRS)
    text = unicodedata.normalize('NFC', SPACING_ACCENT.sub(put_accent, text))
    return line._replace(text=' '.join(text.split()))


def put_accent(match: re.Match) -> str:
    """Combine an accent with the letter after it, if that character exists."""
    letter = {'ı': 'i', 'ȷ': 'j'}.get(match[2], match[2])
    accented = unicodedata.normalize('NFC', letter + COMBINING[match[1]])
    return accented if len(accented) == 1 else match[0]


# ---- blocks
def line_step(pages: list[list[Line]], quantile: float) -> float:
    """A quantile of the distances between consecutive lines, in line heights."""
    steps = [round((line.bottom - below.bottom) / line.height, 1)
             for page in pages for line, below in pairwise(page)
             if line.height and line.bottom > below.bottom]
    return sorted(steps)[int(quantile * (len(steps) - 1))] if steps else 1


def divide(page: list[Line], limit: float) -> list[list[Line]]:
    """Split a page into blocks of lines of equal height, at most `limit` heights apart."""
    blocks = []
    for line in page:
        last = blocks[-1][-1] if blocks else None
        if last and same_height(last, line) and 0 < last.bottom - line.bottom < limit * last.height:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def same_height(a: Line, b: Line) -> bool:
    """Whether two lines have about the same height and direction."""
    return ((a.turns, a.mirrored) == (b.turns, b.mirrored)
            and abs(a.height - b.height) <= 0.15 * max(a.height, b.height))


def add_edges(blocks: list[list[Line]]) -> list[list[Line]]:
    """The blocks of a page, each line with its right edge: the end of its block, or of most lines
    with the same start and height if that is further right. In a list or a table, where few lines
    are full, the edge is infinite, so that none is."""
    ends = defaultdict(list)
    for line in chain.from_iterable(blocks):
        ends[round(line.left), round(line.height)].append(line.right)
    found = []
    for block in blocks:
        widest = max(line.right for line in block)
        lines = []
        for line in block:
            rights = sorted(ends[round(line.left), round(line.height)])
            lines.append(line._replace(edge=max(widest, rights[int(0.7 * len(rights))])))
        n_full = sum(is_full(line, below) for line, below in pairwise(lines))
        if n_full < (len(lines) - 1) / 3:
            lines = [line._replace(edge=math.inf) for line in lines]
        found.append(lines)
    return found


# ---- paragraphs
def join_blocks(blocks: list[list[Line]]) -> str:
    """Join lines into paragraphs, with a line break between those of a block and a blank line
    between blocks. Code keeps its indentation. HYPHEN still marks split words."""
    text, last, left = '', None, 0
    for block in blocks:
        block_left = min(line.left for line in block)
        code_continues = last and last.code and block[0].code
        left = min(left, block_left) if code_continues else block_left
        if re.search(r'[^\W\d_]-\Z', text[-2:]):
            text = text[:-1] + HYPHEN           # PDFium does not look beyond the page
        for i, line in enumerate(block):
            if last and continues(last, line, below=i > 0):
                text += ('' if NO_SPACE.search(last.text) else ' ') + line.text
            else:
                width = (line.right - line.left) / len(line.text)
                indent = round((line.left - left) / width) if line.code and width > 0 else 0
                text += ('\n' if i else '\n\n') + ' ' * indent + LEADERS.sub(' ', line.text).strip()
            last = line
    return text


def continues(last: Line, line: Line, below: bool) -> bool:
    """Whether a line continues the paragraph of the last one. below: it is directly below
    that; otherwise it may be at the top of the next column or page."""
    ends_in_numbers = all(re.search(r'\s[\d.,]*\d$', each.text) for each in (last, line))
    has_leaders = LEADERS.search(last.text) or LEADERS.search(line.text)
    is_row = ends_in_numbers or has_leaders or last.tabs & line.tabs or last.code and line.code
    after_gap = not below and line.bottom < last.bottom
    if is_row or after_gap or LIST_ITEM.match(line.text) or not same_height(last, line):
        return False
    if last.text.endswith(HYPHEN):
        return True
    if below:
        indented = line.left > last.left + 0.5 * line.height and not LIST_ITEM.match(last.text)
        return not indented and is_full(last, line)
    in_sentence = last.text[-1] not in '.:!?' and line.text[0].islower()
    return in_sentence and is_full(last, line)


# ---- words
def join_words(text: str) -> str:
    """Rejoin split words. The hyphen stays before a capital or a digit, after capitals, and if
    the word occurs more often with a hyphen than without."""
    words = Counter(re.findall(r'\w+(?:-\w+)*', text))

    def join(match):
        word, *parts = re.split(f'{HYPHEN}+', match[0])
        for part in parts:
            whole, hyphenated = word + part, f'{word}-{part}'
            stays = not part[0].islower() or word.isupper() or words[hyphenated] > words[whole]
            word = hyphenated if stays else whole
        return word

    return re.sub(rf'\w+({HYPHEN}+\w+)+', join, text).replace(HYPHEN, '-')


def glued(text: str) -> float:
    """The share of characters in words of 18 letters or more: many are words run together."""
    long = re.findall('[A-Za-z\u00c0-\u024f\u0370-\u052f]{18,}', text)
    return sum(map(len, long)) / max(1, len(text))
