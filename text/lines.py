"""The lines of a PDF page: spaces between letters, cells of a row, columns."""
import re
import statistics
from itertools import pairwise
from typing import NamedTuple

RIGHT_TO_LEFT = re.compile('[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]')      # Hebrew, Arabic


class Letter(NamedTuple):
    """A letter and its box in points, turned or mirrored so that its line reads to the right."""
    text: str
    left: float
    bottom: float
    right: float
    top: float
    turns: int                  # quarter turns
    index: int                  # in the page's text


class Line(NamedTuple):
    """A line and its box in points, turned or mirrored so that it reads to the right."""
    text: str
    left: float
    right: float
    bottom: float
    height: float               # of its letters, with ascenders and descenders
    word: float                 # width of its first word
    code: bool = False          # in a monospaced font
    turns: int = 0              # quarter turns
    mirrored: bool = False      # in a script that runs from right to left
    edge: float = 0             # where it would end if it were full


# ---- spaces
def find_cells(letters: list[Letter]) -> list[tuple[str, list[Letter]]]:
    """The parts of a line between gaps as wide as it is high: their text and letters."""
    if any(RIGHT_TO_LEFT.match(letter.text) for letter in letters):
        return [(''.join(letter.text for letter in letters), letters)]
    spacing = letter_spacing(letters)
    cells = [letters[:1]]
    for last, letter in pairwise(letters):
        gap = max(letter.left - last.right, last.left - letter.right)
        if gap > spacing + last.top - last.bottom:
            cells.append([])
        cells[-1].append(letter)
    return [(mend_spaces(cell, spacing), cell) for cell in cells]


def letter_spacing(letters: list[Letter]) -> float:
    """The usual gap between the letters of a letterspaced title; 0 in other text."""
    gaps = [b.left - a.right for a, b in pairwise(letters) if (a.text + b.text).isalpha()]
    spacing = statistics.median(gaps) if len(gaps) > 4 else 0
    height = letters[0].top - letters[0].bottom
    return spacing if spacing > 0.1 * height else 0


def mend_spaces(letters: list[Letter], spacing: float = 0) -> str:
    """The text with a space in each wide gap between letters, and without spaces that the next
    letter covers: groff leaves both."""
    text = letters[0].text
    for last, letter in pairwise(letters):
        gap, width = letter.left - last.right, last.right - last.left
        is_wide = gap > spacing + 0.2 * (last.top - last.bottom)
        if last.text == ' ' and gap < -0.7 * width < 0:
            text = text[:-1]
        elif is_wide and re.match(r'([^\W\d_]|[.,;:!?)’”])[^\W\d_]', last.text + letter.text):
            text += ' '
        text += letter.text
    return text
