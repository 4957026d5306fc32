"""The lines of a PDF page: spaces between letters, cells of a row, columns."""
import re
import statistics
from itertools import pairwise
from typing import NamedTuple

RIGHT_TO_LEFT = re.compile('[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]')      # Hebrew, Arabic
WORDS = re.compile(r'([^\W\d_]|[.,;:!?)’”])[^\W\d_]')     # end of a word, start of the next


class Letter(NamedTuple):
    """A letter and its box in points, rotated or mirrored so that its line reads left to right."""
    text: str
    left: float
    bottom: float
    right: float
    top: float
    turns: int                  # quarter turns
    index: int                  # in the page's text


class Line(NamedTuple):
    """A line and its box in points, rotated or mirrored so that it reads left to right."""
    text: str
    left: float
    right: float
    bottom: float
    height: float               # of its letters, including ascenders and descenders
    word: float                 # width of its first word
    code: bool = False          # in a monospaced font
    turns: int = 0              # quarter turns
    mirrored: bool = False      # in a script that runs from right to left
    edge: float = 0             # where it would end if it were full


# ---- spaces
def find_cells(letters: list[Letter]) -> list[tuple[str, list[Letter]]]:
    """Split a line at gaps wider than its height: the text and the letters of each part."""
    if any(RIGHT_TO_LEFT.match(letter.text) for letter in letters):
        return [(mend_spaces(letters, both_ways=True), letters)]
    drawn = [letter for letter in letters if letter.text != ' ' or letter.right > letter.left]
    spacing = letter_spacing(drawn)
    if spacing:
        letters = drawn                         # drop the spaces that PDFium guessed
    height = letters[0].top - letters[0].bottom
    cells = []
    start = last = 0
    for i, letter in enumerate(letters):
        gap = max(letter.left - letters[last].right, letters[last].left - letter.right)
        if letter.text.isspace():
            continue
        if gap > spacing + height:
            cells.append(letters[start:last + 1])
            start = i
        last = i
    cells.append(letters[start:last + 1])
    return [(mend_spaces(cell, spacing), cell) for cell in cells if not cell[-1].text.isspace()]


def letter_spacing(letters: list[Letter]) -> float:
    """The usual gap between the letters of a letterspaced title; 0 in other text."""
    gaps = [b.left - a.right for a, b in pairwise(letters) if (a.text + b.text).isalpha()]
    spacing = statistics.median(gaps) if len(gaps) > 4 else 0
    height = letters[0].top - letters[0].bottom
    return spacing if 0.1 * height < spacing < 0.6 * height else 0


def mend_spaces(letters: list[Letter], spacing: float = 0, both_ways: bool = False) -> str:
    """The text, adding a space in each wide gap between letters and dropping spaces that the next
    letter covers: groff produces both. In a right-to-left script, digits run the other way."""
    text = letters[0].text
    for last, letter in pairwise(letters):
        gap, width = letter.left - last.right, last.right - last.left
        if both_ways:
            gap = max(gap, last.left - letter.right)
        is_wide = gap > spacing + 0.2 * (last.top - last.bottom)
        if last.text == ' ' and gap < -0.7 * width < 0:
            text = text[:-1]
        elif is_wide and (spacing or WORDS.match(last.text + letter.text)):
            text += ' '
        text += letter.text
    return text


# ---- rows and columns
def join_rows(cells: list[Line]) -> list[Line]:
    """The lines of a page: the cells of a row become one line, but columns of prose drawn row by
    row are read one after the other."""
    rows = []
    for cell in cells:
        if rows and is_beside(rows[-1], cell):
            rows[-1].append(cell)
        else:
            rows.append([cell])
    lines = []
    while rows:
        columns, n_rows = find_columns(rows)
        if len(columns) > 1 and all(map(is_prose, columns)):
            lines += [line for column in columns for line in join_rows(column)]
            rows = rows[n_rows:]
        else:
            lines.append(join_row(rows.pop(0)))
    return lines


def sort_by_place(lines: list[Line]) -> list[Line]:
    """Sort lines from top to bottom and, at the same height, from left to right."""
    rows = []
    for line in sorted(lines, key=lambda line: -line.bottom):
        if rows and rows[-1][0].bottom - line.bottom < line.height / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.left)]


def is_beside(row: list[Line], cell: Line) -> bool:
    """Whether a cell is to the right of a row and overlaps half of the smaller one's height."""
    last = row[-1]
    if (cell.turns, cell.mirrored) != (last.turns, last.mirrored):
        return False
    is_outside = cell.left > max(each.right for each in row) - 1
    if cell.turns or cell.mirrored:             # PDFium may list these in any order
        is_outside |= cell.right < min(each.left for each in row) + 1
    top = min(last.bottom + last.height, cell.bottom + cell.height)
    shared = top - max(last.bottom, cell.bottom)
    return is_outside and shared >= 0.5 * min(last.height, cell.height)


def join_row(row: list[Line]) -> Line:
    row = sorted(row, key=lambda cell: cell.left)
    text = row[0].text
    for last, cell in pairwise(row):
        is_apart = cell.left - last.right > 0.15 * cell.height
        text += ' ' + cell.text if is_apart else cell.text
    higher = max(row, key=lambda cell: cell.height)
    return row[0]._replace(text=text, right=row[-1].right, bottom=higher.bottom,
                           height=higher.height, code=all(cell.code for cell in row))


def find_columns(rows: list[list[Line]]) -> tuple[list[list[Line]], int]:
    """The columns that start in the first row, and how many rows stay within them."""
    columns = [[cell] for cell in rows[0]]
    for n_rows, row in enumerate(rows[1:], 1):
        found = [[column for column in columns if is_in_column(cell, column)] for cell in row]
        if any(len(each) != 1 for each in found):
            return columns, n_rows
        for cell, (column,) in zip(row, found):
            column.append(cell)
    return columns, len(rows)


def is_in_column(cell: Line, column: list[Line]) -> bool:
    return (cell.left < max(each.right for each in column)
            and cell.right > min(each.left for each in column))


def is_prose(column: list[Line]) -> bool:
    """Whether a column has at least three lines, most of them full, with several words each."""
    if len(column) < 3 or any(line.code for line in column):
        return False
    edge = max(line.right for line in column)
    n_full = sum(is_full(line._replace(edge=edge), below) for line, below in pairwise(column))
    n_words = sum(len(line.text.split()) for line in column)
    return n_words >= 3 * len(column) and n_full >= 0.6 * (len(column) - 1)


def is_full(line: Line, below: Line) -> bool:
    """Whether a line has no room for the first word of the line below it."""
    return line.right + below.word > line.edge - line.height
