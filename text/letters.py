"""The letters of a line of a PDF page: their order, the spaces between them, cells of a row."""
import math
import re
import statistics
from itertools import groupby, pairwise
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


def read_letters(textpage, text: str, places: list[int], mirrored: bool) -> list[Letter]:
    """The letters of a line; `places` are their indices in the UTF-16 text of the page."""
    from pypdfium2 import raw
    indices = [raw.FPDFText_GetCharIndexFromTextIndex(textpage, place)
               for place in places[:len(text)]]
    boxes = [textpage.get_charbox(index, loose=True) for index in indices]
    turns = [round(raw.FPDFText_GetCharAngle(textpage, index) / (math.pi / 2)) % 4
             for index in indices]
    visible = [box for letter, box in zip(text, boxes) if letter != ' ']
    goes_down = [above[1] > below[3] - 1 for above, below in pairwise(visible)]
    if goes_down and all(goes_down):            # vertical Japanese
        turns = [1] * len(text)
    letters = []
    for i, (left, bottom, right, top) in enumerate(boxes):
        # Ignore the angle of spaces that PDFium added, and of single letters, e.g. XeTeX's logo.
        if i and turns[i] not in turns[i + 1:i + 2]:
            turns[i] = turns[i - 1]
        for _ in range(turns[i]):
            left, bottom, right, top = -top, left, -bottom, right
        if mirrored:
            left, right = -right, -left
        letters.append(Letter(text[i], left, bottom, right, top, turns[i], indices[i]))
    return in_reading_order(letters) if mirrored else letters


def in_reading_order(letters: list[Letter]) -> list[Letter]:
    """The letters of a mirrored line. PDFium turns right-to-left text around even if the file has
    its letters in reading order: turn its words, and the letters in each, back."""
    words = [list(word) for _, word in groupby(letters, key=lambda letter: letter.text.isspace())]
    if words[0][0].left > words[-1][0].left:
        words.reverse()
    for word in words:
        text = ''.join(letter.text for letter in word)
        is_backward = RIGHT_TO_LEFT.search(text) and word[0].left > word[-1].left
        if is_backward and not re.search('[a-zA-Z0-9]', text):
            word.sort(key=lambda letter: letter.left)
    return [letter for word in words for letter in word]


def find_cells(letters: list[Letter]) -> list[tuple[str, list[Letter]]]:
    """Split a line at gaps wider than its height: the text and the letters of each part."""
    if any(RIGHT_TO_LEFT.match(letter.text) for letter in letters):
        return [(mend_spaces(letters), letters)]
    height = letters[0].top - letters[0].bottom
    drawn = [letter for letter in letters if letter.text != ' ' or letter.right > letter.left]
    gaps = gaps_in_words(drawn)
    spacing = statistics.median(gaps) if len(gaps) > 4 else 0
    if 0.1 * height < spacing < 0.6 * height:
        letters = drawn                         # letterspaced: drop the spaces that PDFium guessed
    else:
        spacing = 0
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


def gaps_in_words(letters: list[Letter]) -> list[float]:
    """The gaps between neighboring letters of the alphabet."""
    return [b.left - a.right for a, b in pairwise(letters) if (a.text + b.text).isalpha()]


def mend_spaces(letters: list[Letter], spacing: float = 0) -> str:
    """The text, with a space in each wide gap between words and without spaces that a letter
    covers: groff and MuPDF produce both. spacing: the usual gap in a letterspaced title."""
    is_right_to_left = any(RIGHT_TO_LEFT.match(letter.text) for letter in letters)
    text = letters[0].text
    last, space = letters[0], None
    for i, letter in enumerate(letters[1:], 1):
        if letter.text.isspace():
            space = letter
            continue
        # In a right-to-left script, digits run the other way, and spaces may be anywhere.
        gap = max(letter.left - last.right, last.left - letter.right)
        height = last.top - last.bottom
        if space and is_right_to_left:
            is_apart = gap > 0.075 * height
        elif space:
            width = space.right - space.left
            is_apart = width <= 0 or letter.left >= space.left + 0.3 * width
        else:
            # In a letterspaced word, the gaps beside this one are as wide.
            beside = gaps_in_words(letters[max(0, i - 2):i + 2])
            usual = max(spacing, min(beside)) if len(beside) > 1 else spacing
            is_word = spacing or WORDS.match(last.text + letter.text)
            is_apart = is_word and gap > usual + 0.2 * height
        text += ' ' + letter.text if is_apart else letter.text
        last, space = letter, None
    return text
