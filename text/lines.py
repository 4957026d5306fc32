"""The lines of a PDF page: cells of a row, columns."""
from itertools import pairwise
from typing import NamedTuple


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
    tabs: frozenset = frozenset()       # where the second and later cells of its row begin


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
    is_apart = cell.left > max(each.right for each in row) - 1
    if cell.turns or cell.mirrored or len(cell.text) == 1:      # any order; a bullet or drop cap
        is_apart |= cell.right < min(each.left for each in row) + 1
    top = min(last.bottom + last.height, cell.bottom + cell.height)
    shared = top - max(last.bottom, cell.bottom)
    return (is_apart and shared >= 0.5 * min(last.height, cell.height)
            and (cell.turns, cell.mirrored) == (last.turns, last.mirrored))


def join_row(row: list[Line]) -> Line:
    """The line of a row's cells. Its height is that of the highest, except a drop cap or bullet."""
    row = sorted(row, key=lambda cell: cell.left)
    text = row[0].text
    for last, cell in pairwise(row):
        is_apart = cell.left - last.right > 0.15 * max(last.height, cell.height)
        text += ' ' + cell.text if is_apart else cell.text
    body = row
    if len(row) > 1 and len(row[0].text) == 1 and row[0].height > 1.3 * row[1].height:
        body = row[1:]
    higher = max(body, key=lambda cell: cell.height)
    tabs = frozenset(round(cell.left) for cell in row[1:])
    return body[0]._replace(text=text, right=row[-1].right, bottom=higher.bottom, tabs=tabs,
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
    edge = max(line.right for line in column)
    n_full = sum(is_full(line._replace(edge=edge), below) for line, below in pairwise(column))
    n_words = sum(len(line.text.split()) for line in column)
    return (len(column) > 2 and n_words >= 3 * len(column) and n_full >= 0.6 * (len(column) - 1)
            and not any(line.code for line in column))


def is_full(line: Line, below: Line) -> bool:
    """Whether a line has no room for the first word of the line below it."""
    return line.right + below.word > line.edge - line.height
