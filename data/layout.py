"""From the lines of pages to running text: no running heads, whole words, whole paragraphs.

A page shows where its lines are, and says nothing of paragraphs. So these rules look at places: a
paragraph goes on in the next line if that is just below and its first word had no room above."""
import re
import statistics
import unicodedata
from collections import Counter
from typing import NamedTuple

HYPHEN = '\ufffe'               # ends a line whose last word goes on in the next
LEADER = re.compile(r'\s*(?:[.·…_]\s?){4,}\s*(\d+|[ivxlc]+)?\s*$|\s*(?:[.·…]\s?){4,}')
NUMBER = re.compile(r'\W*(?:page )?(?:\d+|[ivxlc]+)(?:(?: of | ?/ ?)\d+)?\W*', re.I)
LIST = re.compile(r'[•◦▪‣●○■–—*-] |[(\[]?(?:\d{1,3}|[a-zA-Z])[)\]] |\d+\.(?:\d+\.?)* |\[\w+\] ')
ACCENT = re.compile(r'([¨´ˆ˜ˇ˘˚¯¸˝]) ?([^\W\d_])')
ACCENTS = dict(zip('¨´ˆ˜ˇ˘˚¯¸˝', '\u0308\u0301\u0302\u0303\u030c\u0306\u030a\u0304\u0327\u030b'))
LETTERS = {0xfb00: 'ff', 0xfb01: 'fi', 0xfb02: 'fl', 0xfb03: 'ffi', 0xfb04: 'ffl', 0xf0b7: '•'}
NOT_TEXT = [*range(9), *range(11, 32), *range(127, 160), 0xad, *range(0xe000, 0xf900)]
REPAIRS = dict.fromkeys(NOT_TEXT, ' ') | LETTERS


class Line(NamedTuple):
    """A line of a page and its place, in points from the page's lower left corner."""
    text: str
    left: float
    right: float
    bottom: float
    height: float               # of its letters, from the lowest to the highest
    code: bool = False          # whether it is set like code, all letters of the same width


def text_of_pages(pages: list[list[Line]]) -> str:
    pages = [join_rows([clean(line) for line in page]) for page in pages]
    lines = [line for page in without_running_heads(pages) for line in page]
    return join_words(join_lines(lines)).strip()


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
    """The lines of a page, those in one of the same height side by side being one."""
    joined = []
    for line in lines:
        last = joined[-1] if joined else None
        if (last and abs(last.bottom - line.bottom) < 0.4 * max(last.height, line.height)
                and line.left > last.right - 1):
            bigger = max(last, line, key=lambda part: part.height)
            joined[-1] = Line(f'{last.text} {line.text}', last.left, line.right, bigger.bottom,
                              bigger.height, last.code and line.code)
        elif line.text:
            joined.append(line)
    return joined


# ---- pages
def without_running_heads(pages: list[list[Line]]) -> list[list[Line]]:
    """The lines of pages without page numbers, and without what stands above or below the text.

    That is, of the outer two lines at either end, what is on many pages or has the page's number,
    and of the outermost what is on the next or next but one. They may differ in their digits."""
    def pattern(line):
        return re.sub(r'\d+', '#', line.text)

    ordered = [sorted(page, key=lambda line: -line.bottom) for page in pages]
    outer = [{*page[:2], *page[-2:]} for page in ordered]
    outermost = [{*page[:1], *page[-1:]} for page in ordered]
    counts = Counter(text for lines in outer for text in {pattern(line) for line in lines})
    often = max(1, len(pages) / 3)
    offsets = Counter(n - i for i, lines in enumerate(outer) for n in outer_numbers(lines))
    offset, found = max(offsets.items(), key=lambda item: item[1], default=(0, 0))
    kept = []
    for i, page in enumerate(pages):
        near = {pattern(line) for k in (i - 2, i - 1, i + 1, i + 2) if 0 <= k < len(pages)
                for line in outermost[k]}
        unwanted = {line for line in outer[i] if counts[pattern(line)] > often}
        unwanted |= {line for line in outermost[i] if pattern(line) in near}
        unwanted |= {line for line in outer[i] if NUMBER.fullmatch(line.text)
                     or found > 2 and i + offset in outer_numbers([line])}
        kept.append([line for line in page if line not in unwanted])
    return kept


def outer_numbers(lines) -> set[int]:
    """The numbers with which lines begin or end."""
    found = (re.findall(r'^\d{1,4}(?=\s|$)|(?<=\s)\d{1,4}$', line.text) for line in lines)
    return {int(number) for numbers in found for number in numbers}


# ---- paragraphs
def join_lines(lines: list[Line]) -> str:
    """Lines joined to paragraphs. Between these is a line break, or an empty line where the page
    has a gap. A word that is divided has HYPHEN in it."""
    steps = [(a.bottom - b.bottom) / a.height for a, b in zip(lines, lines[1:])
             if a.height and a.bottom > b.bottom]
    spacing = statistics.median_low(round(step, 1) for step in steps) if steps else 1
    blocks = divide(lines, 1.25 * spacing)
    text = ''
    last, last_edge, left = None, 0, 0
    for block in blocks:
        edge = max(line.right for line in block)
        lefts = [line.left for line in block]
        left = min([left, *lefts] if last and last.code and block[0].code else lefts)
        for i, line in enumerate(block):
            if last and (goes_on(last, line, last_edge) if i else
                         goes_over(last, line, last_edge)):
                text += ('' if last.text[-1] in f'{HYPHEN}/_—' else ' ') + line.text
            else:
                width = (line.right - line.left) / len(line.text)
                indent = round((line.left - left) / width) if line.code and width > 0 else 0
                text += ('\n' if i else '\n\n') + ' ' * indent + LEADER.sub('', line.text)
            last, last_edge = line, edge
    return text


def divide(lines: list[Line], limit: float) -> list[list[Line]]:
    """Blocks of lines of the same height, each below the last one by at most `limit` heights."""
    blocks = []
    for last, line in zip([None, *lines], lines):
        if (last and 0 < last.bottom - line.bottom <= limit * last.height
                and same_height(last, line)):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def same_height(a: Line, b: Line) -> bool:
    return abs(a.height - b.height) <= 0.15 * max(a.height, b.height)


def stands_alone(last: Line, line: Line) -> bool:
    """Whether a line begins something new whatever its place: code, a list, a table of contents."""
    both_end_in_numbers = all(re.search(r'\s\d+$', each.text) for each in (last, line))
    return bool((last.code and line.code) or LIST.match(line.text) or both_end_in_numbers
                or LEADER.search(last.text) or LEADER.search(line.text))


def goes_on(last: Line, line: Line, edge: float) -> bool:
    """Whether a paragraph goes on in a line just below."""
    if stands_alone(last, line):
        return False
    if last.text.endswith(HYPHEN):
        return True
    if line.left > last.left + 0.5 * line.height and not LIST.match(last.text):
        return False                            # it is indented
    word = len(line.text.split(' ')[0]) + 1     # with the space before it
    return last.right + word * (line.right - line.left) / len(line.text) > edge - line.height


def goes_over(last: Line, line: Line, edge: float) -> bool:
    """Whether a paragraph goes on in a line of the next page or column."""
    if not same_height(last, line) or line.bottom < last.bottom or stands_alone(last, line):
        return False
    if last.text.endswith(HYPHEN):
        return True
    return last.text[-1] not in '.:!?' and line.text[0].islower() and last.right > edge - 20


# ---- words
def join_words(text: str) -> str:
    """The text with its divided words whole. Their hyphen stays where it has to: beside a capital
    or a digit, or if the text has the word with a hyphen elsewhere, and nowhere without."""
    words = Counter(re.findall(r'\w+(?:-\w+)*', text))

    def join(match):
        whole, hyphenated = match[1] + match[2], f'{match[1]}-{match[2]}'
        if not whole.islower() or words[hyphenated] > words[whole]:
            return hyphenated
        return whole

    text = re.sub(rf'(\w+){HYPHEN}(\w+)', join, text)
    return text.replace(HYPHEN, '-')


def glued(text: str) -> float:
    """The share of the characters that stands in words so long that spaces must be missing."""
    long = re.findall('[A-Za-z\u00c0-\u024f\u0370-\u052f]{18,}', text)
    return sum(map(len, long)) / max(1, len(text))
