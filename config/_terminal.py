"""Text that fits the screen: lines break between words; without a terminal at 80 columns."""
import re
import shutil
import sys
import textwrap


def columns() -> int:
    """The width of the terminal that stdout is, or else 80."""
    return shutil.get_terminal_size((80, 24)).columns


def fit(text: str, indent: str = '', hang: str = '') -> str:
    """Break a text into lines that fit. `indent` begins its first line, `hang` the others."""
    return textwrap.fill(text, columns() - 1, initial_indent=indent, subsequent_indent=hang,
                         break_long_words=False, break_on_hyphens=False)


def fit_stream(pieces):
    """Yield the same text, with line ends before words that do not fit; as it is if stdout is not a
    terminal."""
    if not sys.stdout.isatty():
        yield from pieces
        return
    at, word = 0, ''                            # the column, and a word that may go on
    for piece in pieces:
        *whole, word = re.split(r'(?<=\s)', word + piece)
        for part in whole:
            if at and at + len(part.rstrip()) >= columns():
                yield '\n'
                at = 0
            yield part
            at = 0 if part.endswith('\n') else at + len(part)
    if at and at + len(word) >= columns():
        yield '\n'
    yield word
