"""The text of a PDF file. pypdfium2 reads it in a process of its own, which may use only so much
memory and time: a file that is damaged or means harm ends that process and nothing else.

python -m data.pdf FILE prints the text of a file."""
import ctypes
import importlib.util
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

from config import ROOT, require
from data.layout import Line, text_of_pages

MEMORY = 2 << 30                # bytes that the process may use, where the system can limit that
SECONDS = 120                   # how long it may take
CHARACTERS = 50_000_000         # that a file may hold
MONOSPACED = re.compile('mono|cour|typewriter|consol|menlo|cmtt|sftt|cmsltt|fixed|code', re.I)


def read_pdf_file(path) -> str:
    """The text of a PDF file. Raises ValueError, with the reason, if it cannot be read."""
    require(importlib.util.find_spec('pypdfium2'),
            f'{path} is a PDF, which needs pypdfium2: pip install pypdfium2')
    command = [sys.executable, '-m', 'data.pdf', str(Path(path).resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f'reading it takes more than {SECONDS} s') from None
    said = done.stderr.decode(errors='replace').split('\n')
    if done.returncode == 1:
        raise ValueError(said[0] or 'it cannot be read')
    if done.returncode:                         # a signal ended the process
        raise ValueError(f'it crashes its reader, or needs more than {MEMORY >> 30} GB of memory')
    return done.stdout.decode()


# ---- what runs in the other process
def limit_memory():
    try:
        import resource
    except ImportError:                         # Windows has no such limits
        return
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            limit = min(limit, most)
        try:
            resource.setrlimit(kind, (limit, most))
        except (ValueError, OSError):           # macOS refuses some limits
            pass


def read_pages(path) -> list[list[Line]]:
    """The lines of each page, in the order in which the file has them."""
    import pypdfium2
    pages, size = [], 0
    with pypdfium2.PdfDocument(path) as document:
        for number in range(len(document)):
            page = document[number]
            lines = read_lines(page.get_textpage())
            page.close()                        # closes its text too, and frees the memory
            pages.append(lines)
            size += sum(len(line.text) for line in lines)
            if size > CHARACTERS:
                raise ValueError(f'it has more than {CHARACTERS:,} characters')
    return pages


def read_lines(page) -> list[Line]:
    """The lines of a page's text, each with its place."""
    from pypdfium2 import raw
    text = page.get_text_range()
    # A letter beyond U+FFFF counts as two.
    places = [0, *accumulate(1 + (letter > '\uffff') for letter in text)]
    lines = []
    # A line ends with a line break, or with a hyphen, which pypdfium2 marks as U+FFFE.
    for match in re.finditer('[^\r\n\ufffe]+\ufffe?', text):
        found = match[0].strip()
        if not found.strip('\ufffe'):
            continue
        start = match.start() + match[0].index(found[0])
        end = start + len(found.rstrip('\ufffe'))
        letters = [raw.FPDFText_GetCharIndexFromTextIndex(page, place)
                   for place in places[start:end]]
        boxes = [page.get_charbox(letter, loose=True) for letter in letters]
        _, bottom, _, top = max(boxes[0], boxes[-1], key=lambda box: box[3] - box[1])
        code = all(MONOSPACED.search(font_of(page, index)) for index in (letters[0], letters[-1]))
        left, right = boxes[0][0], boxes[-1][2]
        word = boxes[len(re.match(r'\S+', found)[0].rstrip('\ufffe')) - 1][2] - left
        lines.append(Line(mend_spaces(found, boxes), left, right, bottom, top - bottom, word, code))
    return lines


def mend_spaces(text: str, boxes: list) -> str:
    """The text with a space in each gap between letters, and without those that the next letter
    covers. boxes has (left, bottom, right, top) of each letter."""
    mended = ''
    for letter, following, box, next_box in zip(text, text[1:], boxes, boxes[1:]):
        gap = next_box[0] - box[2]
        if letter == ' ' and gap < -0.7 * (box[2] - box[0]) < 0:
            continue
        mended += letter
        if (gap > 0.2 * (box[3] - box[1]) and following.isalpha()
                and (letter.isalpha() or letter in '.,;:!?)’”')):
            mended += ' '
    return mended + text[max(0, min(len(text), len(boxes)) - 1):]


def font_of(page, index: int) -> str:
    """The name of the font of a character."""
    from pypdfium2 import raw
    name = ctypes.create_string_buffer(100)
    raw.FPDFText_GetFontInfo(page, index, name, len(name), ctypes.c_int())
    return name.value.decode(errors='replace')


def main(path):
    try:
        limit_memory()
        text = text_of_pages(read_pages(path))
    except Exception as e:                      # whatever it is, it concerns this file alone
        sys.exit(' '.join(str(e).split()) or type(e).__name__)
    sys.stdout.buffer.write(text.encode(errors='replace'))


if __name__ == '__main__':
    main(sys.argv[1])
