"""The text of a PDF file, read by pypdfium2 in a subprocess with limited memory and time: a damaged
or hostile file can crash that process only.

python -m text.pdf FILE prints the text of a file."""
import contextlib
import ctypes
import importlib.util
import math
import re
import statistics
import subprocess
import sys
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from lib.settings import ROOT, require
from lib.terminal import warn
from text.layout import HYPHEN, Line, text_of_pages

MAX_MEMORY = 1 << 30            # bytes, where the system can limit a process
MAX_SECONDS = 120
MAX_CHARACTERS = 50_000_000
MAX_LOST = 0.01                 # warn if a larger share of the letters is lost
MONOSPACED = re.compile(r'mono(?!type)|courier|typewriter|consol|menlo|fixed|code|tt\d', re.I)
RIGHT_TO_LEFT = re.compile('[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]')      # Hebrew, Arabic


def read_pdf_file(path) -> str:
    """The text of a PDF file. Warns if it lacks letters of the file.

    Raises ValueError with the reason if the file is unreadable, Error without pypdfium2."""
    require(importlib.util.find_spec('pypdfium2'),
            f'{path} needs pypdfium2, which is not installed: pip install pypdfium2')
    command = [sys.executable, '-m', 'text.pdf', str(Path(path).resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f'reading it takes more than {MAX_SECONDS} s') from None
    messages = done.stderr.decode(errors='replace').splitlines()
    if done.returncode == 1:
        raise ValueError(messages[0])
    if done.returncode:                         # killed by a signal
        raise ValueError(f'it crashes its reader or needs more than {MAX_MEMORY >> 20} MB of memory')
    for message in messages:
        if message.startswith('warning: '):
            warn(f'{path}: ' + message.removeprefix('warning: '))
    return done.stdout.decode()


# ---- in the subprocess
def main(path):
    try:
        limit_memory()
        pages, lost = read_pages(path)
        text = text_of_pages(pages)
    except Exception as e:                      # a damaged file makes libraries raise anything
        sys.exit(' '.join(str(e).split()) or type(e).__name__)
    if lost > MAX_LOST:
        warn(f'{lost:.0%} of its letters cannot be read')
    sys.stdout.buffer.write(text.encode(errors='replace'))


def limit_memory():
    with contextlib.suppress(ImportError, ValueError, OSError):     # not on Windows and macOS
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def read_pages(path) -> tuple[list[list[Line]], float]:
    """The lines of each page in reading order, and the share of the letters that are lost."""
    import pypdfium2
    pages, letters, lost = [], 0, 0
    with pypdfium2.PdfDocument(path) as document:
        document.init_forms()
        for number in range(len(document)):
            page = document[number]
            if document.formenv:                # turn the values of form fields into text
                page.flatten()
                page.close()
                page = document[number]
            textpage = page.get_textpage()
            lines = read_lines(textpage)
            upward = sum(a.bottom < b.bottom for a, b in pairwise(lines))
            if document.formenv or upward > len(lines) / 2:     # not in reading order
                lines.sort(key=lambda line: (-round(line.bottom + line.height / 2), line.left))
            pages.append(lines)
            letters += textpage.count_chars()
            lost += count_lost(page, textpage)
            page.close()                        # frees its memory
            if letters > MAX_CHARACTERS:
                raise ValueError(f'it has more than {MAX_CHARACTERS:,} characters')
    return pages, lost / max(1, letters + lost)


def count_lost(page, textpage) -> float:
    """How many letters are without Unicode or missing. PDFium drops text without width, such as
    vertical Japanese in a font that is not embedded: there, estimate one letter per em."""
    from pypdfium2 import raw
    lost = sum(raw.FPDFText_HasUnicodeMapError(textpage, i) == 1
               for i in range(textpage.count_chars()))
    for text in page.get_objects(filter=[raw.FPDF_PAGEOBJ_TEXT]):
        left, bottom, right, top = text.get_bounds()
        if right - left < 0.01:
            matrix = text.get_matrix()
            em = text.get_font_size() * math.hypot(matrix.c, matrix.d)
            lost += (top - bottom) / max(1, em)
    return lost


# ---- lines
class Letter(NamedTuple):
    """A letter and its box in points, turned or mirrored so that its line reads to the right."""
    text: str
    left: float
    bottom: float
    right: float
    top: float
    turns: int                  # quarter turns
    index: int                  # in the page's text


def read_lines(textpage) -> list[Line]:
    """The lines of a page, cut where their direction changes and at wide gaps."""
    text = textpage.get_text_range()
    places = [0, *accumulate(1 + (letter > '\uffff') for letter in text)]   # in UTF-16
    lines = []
    # PDFium ends a line with a line break, or inside a word with HYPHEN.
    for match in re.finditer(rf'[^\s{HYPHEN}][^\r\n{HYPHEN}]*{HYPHEN}?', text):
        found = match[0].rstrip()
        mirrored = 2 * len(RIGHT_TO_LEFT.findall(found)) > sum(map(str.isalpha, found))
        letters = read_letters(textpage, found.rstrip(HYPHEN), places[match.start():], mirrored)
        for _, run in groupby(letters, key=lambda letter: letter.turns):
            for text_of_cell, cell in find_cells(list(run)):
                lines.append(make_line(textpage, text_of_cell, cell, mirrored))
        if found.endswith(HYPHEN):
            lines[-1] = lines[-1]._replace(text=lines[-1].text + HYPHEN)
    return lines


def read_letters(textpage, text: str, places: list[int], mirrored: bool) -> list[Letter]:
    """The letters of a line; `places` are their indices in the UTF-16 text of the page."""
    from pypdfium2 import raw
    letters = []
    for character, place in zip(text, places):
        index = raw.FPDFText_GetCharIndexFromTextIndex(textpage, place)
        turns = round(raw.FPDFText_GetCharAngle(textpage, index) / (math.pi / 2)) % 4
        if character == ' ' and letters:        # a space that PDFium adds has no angle
            turns = letters[-1].turns
        left, bottom, right, top = textpage.get_charbox(index, loose=True)
        for _ in range(turns):
            left, bottom, right, top = -top, left, -bottom, right
        if mirrored:
            left, right = -right, -left
        letters.append(Letter(character, left, bottom, right, top, turns, index))
    return letters


def make_line(textpage, text: str, letters: list[Letter], mirrored: bool) -> Line:
    first_word = letters[:len(text.split()[0])]
    higher = max(letters[0], letters[-1], key=lambda letter: letter.top - letter.bottom)
    left, right = (min(letter.left for letter in letters), max(letter.right for letter in letters))
    word = max(letter.right for letter in first_word) - min(letter.left for letter in first_word)
    code = is_monospaced(textpage, letters[0]) and is_monospaced(textpage, letters[-1])
    return Line(text, left, right, higher.bottom, higher.top - higher.bottom, word, code,
                letters[0].turns, mirrored)


def is_monospaced(textpage, letter: Letter) -> bool:
    from pypdfium2 import raw
    name = ctypes.create_string_buffer(100)
    raw.FPDFText_GetFontInfo(textpage, letter.index, name, len(name), ctypes.c_int())
    return bool(MONOSPACED.search(name.value.decode(errors='replace')))


# ---- spaces
def find_cells(letters: list[Letter]) -> list[tuple[str, list[Letter]]]:
    """The parts of a line between gaps as wide as it is high: their text and letters."""
    if any(RIGHT_TO_LEFT.match(letter.text) for letter in letters):
        return [(''.join(letter.text for letter in letters), letters)]
    spacing = letter_spacing(letters)
    cells = []
    start = last = 0
    for i, letter in enumerate(letters):
        gap = max(letter.left - letters[last].right, letters[last].left - letter.right)
        if letter.text == ' ':
            continue
        if gap > spacing + letter.top - letter.bottom:
            cells.append(letters[start:last + 1])
            start = i
        last = i
    cells.append(letters[start:])
    return [(mend_spaces(cell, spacing), cell) for cell in cells]


def letter_spacing(letters: list[Letter]) -> float:
    """The usual gap between the letters of a letterspaced title; 0 in other text."""
    drawn = [letter for letter in letters if not is_guess(letter)]
    gaps = [b.left - a.right for a, b in pairwise(drawn) if (a.text + b.text).isalpha()]
    spacing = statistics.median(gaps) if len(gaps) > 4 else 0
    height = letters[0].top - letters[0].bottom
    return spacing if 0.1 * height < spacing < 0.6 * height else 0


def is_guess(letter: Letter) -> bool:
    """Whether PDFium added this space, where it saw a gap."""
    return letter.text == ' ' and letter.left == letter.right


def mend_spaces(letters: list[Letter], spacing: float = 0) -> str:
    """The text with a space in each wide gap, and without spaces that the next letter covers:
    groff leaves both. In letterspaced text, a space that PDFium added may be wrong, too."""
    drawn = [i for i, letter in enumerate(letters) if not is_guess(letter)]
    text = letters[0].text
    for i, j in pairwise(drawn):
        last, letter = letters[i], letters[j]
        gap = letter.left - last.right
        is_wide = gap > spacing + 0.2 * (last.top - last.bottom)
        if last.text == ' ' and gap < -0.7 * (last.right - last.left):
            text = text[:-1]
        elif j > i + 1 and (is_wide or not spacing):
            text += ' '
        elif is_wide and re.match(r'([^\W\d_]|[.,;:!?)’”])[^\W\d_]', last.text + letter.text):
            text += ' '
        text += letter.text
    return text


if __name__ == '__main__':
    main(sys.argv[1])
