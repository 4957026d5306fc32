"""The text of a PDF file. pypdfium2 reads it in a process of its own, which may use only so much
memory and time: a file that is damaged or means harm ends that process and nothing else.

python -m data.pdf FILE prints the text of a file."""
import contextlib
import ctypes
import importlib.util
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

from config import ROOT, require
from data.layout import HYPHEN, Line, text_of_pages

MEMORY = 1 << 30                # bytes that the process may use, where the system can limit that
SECONDS = 120                   # how long it may take
CHARACTERS = 50_000_000         # that a file may hold
MONOSPACED = re.compile(r'mono(?!type)|courier|typewriter|consol|menlo|fixed|code|tt\d', re.I)


def read_pdf_file(path) -> str:
    """The text of a PDF file. Raises ValueError, with the reason, if it cannot be read."""
    require(importlib.util.find_spec('pypdfium2'),
            f'{path} needs pypdfium2, which is not installed: pip install pypdfium2')
    command = [sys.executable, '-m', 'data.pdf', str(Path(path).resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f'reading it takes more than {SECONDS} s') from None
    if done.returncode == 1:
        raise ValueError(done.stderr.decode(errors='replace').split('\n')[0])
    if done.returncode:                         # a signal ended the process
        raise ValueError(f'it crashes its reader, or needs more than {MEMORY >> 20} MB of memory')
    return done.stdout.decode()


# ---- what runs in the other process
def main(path):
    try:
        limit_memory()
        text = text_of_pages(read_pages(path))
    except Exception as e:                      # whatever it is, it concerns this file alone
        sys.exit(' '.join(str(e).split()) or type(e).__name__)
    sys.stdout.buffer.write(text.encode(errors='replace'))


def limit_memory():
    with contextlib.suppress(ImportError, ValueError, OSError):     # Windows and macOS lack it
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def read_pages(path) -> list[list[Line]]:
    """The lines of each page, in the order in which the file has them."""
    import pypdfium2
    pages, size = [], 0
    with pypdfium2.PdfDocument(path) as document:
        for number in range(len(document)):
            page = document[number]
            pages.append(read_lines(page.get_textpage()))
            page.close()                        # this frees its memory
            size += sum(len(line.text) for line in pages[-1])
            if size > CHARACTERS:
                raise ValueError(f'it has more than {CHARACTERS:,} characters')
    return pages


def read_lines(page) -> list[Line]:
    """The lines of a page's text. pypdfium2 ends a line with a line break, or with HYPHEN."""
    from pypdfium2 import raw
    text = page.get_text_range()
    places = [0, *accumulate(1 + (letter > '\uffff') for letter in text)]   # in UTF-16
    lines = []
    for match in re.finditer(rf'[^\s{HYPHEN}][^\r\n{HYPHEN}]*{HYPHEN}?', text):
        found = match[0].rstrip()
        end = match.start() + len(found.rstrip(HYPHEN))
        letters = [raw.FPDFText_GetCharIndexFromTextIndex(page, place)
                   for place in places[match.start():end]]
        boxes = [page.get_charbox(letter, loose=True) for letter in letters]
        _, bottom, _, top = max(boxes[0], boxes[-1], key=lambda box: box[3] - box[1])
        left, right = boxes[0][0], boxes[-1][2]
        first_word = re.match(rf'[^\s{HYPHEN}]+', found)[0]
        word = boxes[len(first_word) - 1][2] - left
        code = all(MONOSPACED.search(font_of(page, letter)) for letter in (letters[0], letters[-1]))
        lines.append(Line(mend_spaces(found, boxes), left, right, bottom, top - bottom, word, code))
    return lines


def font_of(page, letter: int) -> str:
    from pypdfium2 import raw
    name = ctypes.create_string_buffer(100)
    raw.FPDFText_GetFontInfo(page, letter, name, len(name), ctypes.c_int())
    return name.value.decode(errors='replace')


def mend_spaces(text: str, boxes: list) -> str:
    """The text with a space in each gap between letters, and without spaces that the next letter
    covers: groff leaves both. boxes has (left, bottom, right, top) of each letter."""
    mended = text[0]
    for before, letter, last_box, box in zip(text, text[1:], boxes, boxes[1:]):
        gap, width = box[0] - last_box[2], last_box[2] - last_box[0]
        wide = gap > 0.2 * (last_box[3] - last_box[1])
        if before == ' ' and gap < -0.7 * width < 0:
            mended = mended[:-1]
        elif wide and re.match(r'([^\W\d_]|[.,;:!?)’”])[^\W\d_]', before + letter):
            mended += ' '
        mended += letter
    return mended + text[len(boxes):]


if __name__ == '__main__':
    main(sys.argv[1])
