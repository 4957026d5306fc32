"""The text of a PDF file, read by pypdfium2 in a subprocess with limited memory and time, so that a
corrupted or hostile file can crash only that process.

python -m text.pdf FILE prints the text of a file."""
import contextlib
import ctypes
import importlib.util
import math
import re
import statistics
import subprocess
import sys
from itertools import accumulate, groupby
from pathlib import Path

from lib.errors import require
from lib.settings import ROOT
from lib.terminal import warn
from text.layout import HYPHEN, glued, text_of_pages
from text.letters import RIGHT_TO_LEFT, Letter, find_cells, read_letters
from text.lines import Line, sort_by_place

MAX_MEMORY = 1 << 30            # bytes, where the system can limit a process
MAX_SECONDS = 120
MAX_LOST = 0.01                 # warn if a larger share of the letters is lost
MAX_GLUED = 0.02                # warn if a larger share of the text is in glued words
MONOSPACED = re.compile(r'mono(?!type)|courier|typewriter|consol|menlo|fixed|code|tt\d', re.I)


def read_pdf_file(path) -> str:
    """The text of a PDF file. Warns if letters or spaces are missing.

    Raises ValueError with the reason if it is unreadable, and Error if pypdfium2 is missing."""
    require(importlib.util.find_spec('pypdfium2'),
            f'{path} needs pypdfium2, which is not installed: pip install pypdfium2')
    command = [sys.executable, '-m', 'text.pdf', str(Path(path).resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f'reading it took more than {MAX_SECONDS} s') from None
    messages = done.stderr.decode(errors='replace').splitlines()
    if done.returncode == 1:
        raise ValueError(messages[0])
    if done.returncode:                         # killed by a signal
        raise ValueError(f'reading it crashed, or needed more than {MAX_MEMORY >> 20} MB of memory')
    for message in messages:
        if message.startswith('warning: '):
            warn(f'{path}: ' + message.removeprefix('warning: '))
    return done.stdout.decode()


# ---- in the subprocess
def main(path):
    with contextlib.suppress(ImportError, ValueError, OSError):     # not on Windows or macOS
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        pages, lost = read_pages(path)
        text = text_of_pages(pages)
    except Exception as e:                      # a corrupted file makes libraries raise anything
        sys.exit(' '.join(str(e).split()) or type(e).__name__)
    if lost > MAX_LOST:
        warn(f'{lost:.0%} of its letters cannot be read')
    if glued(text) > MAX_GLUED:
        warn(f'{glued(text):.1%} of its text is in words of 18 letters or more; '
             'spaces seem to be missing')
    sys.stdout.buffer.write(text.encode(errors='replace'))


def read_pages(path) -> tuple[list[list[Line]], float]:
    """The lines of each page in reading order, and the fraction of letters lost."""
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
            turns = statistics.mode([line.turns for line in lines] or [0])
            if document.formenv or (turns + page.get_rotation() // 90) % 4:     # out of order
                lines = sort_by_place(lines)
            pages.append(lines)
            letters += textpage.count_chars()
            lost += count_lost(page, textpage)
            page.close()                        # frees its memory
    return pages, lost / max(1, letters + lost)


def count_lost(page, textpage) -> float:
    """How many letters are missing or have no Unicode value. PDFium drops text of zero width, e.g.
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


def read_lines(textpage) -> list[Line]:
    """The lines of a page, split at wide gaps and where the direction changes."""
    text = textpage.get_text_range()
    places = [0, *accumulate(1 + (letter > '\uffff') for letter in text)]   # in UTF-16
    lines = []
    # PDFium ends a line with a line break or, within a word, with HYPHEN.
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


def make_line(textpage, text: str, letters: list[Letter], mirrored: bool) -> Line:
    first, last = letters[0], letters[-1]
    if text[1:2] == ' ' and first.top - first.bottom > 1.3 * (last.top - last.bottom):
        first = last                            # a large bullet
    higher = max(first, last, key=lambda letter: letter.top - letter.bottom)
    left, right = min(letter.left for letter in letters), max(letter.right for letter in letters)
    word = abs(letters[len(text.split()[0]) - 1].right - letters[0].left)
    code = is_monospaced(textpage, letters[0]) and is_monospaced(textpage, letters[-1])
    return Line(text, left, right, higher.bottom, higher.top - higher.bottom, word, code,
                letters[0].turns, mirrored)


def is_monospaced(textpage, letter: Letter) -> bool:
    from pypdfium2 import raw
    name = ctypes.create_string_buffer(100)
    raw.FPDFText_GetFontInfo(textpage, letter.index, name, len(name), ctypes.c_int())
    return bool(MONOSPACED.search(name.value.decode(errors='replace')))


if __name__ == '__main__':
    main(sys.argv[1])
