"""Terminal output: line wrapping, warnings, progress bars."""
import re
import shutil
import sys
import textwrap

from tqdm import tqdm


def columns() -> int:
    """The width of the terminal; unlimited if stdout is a file or a pipe, so that grep works."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 10_000


def fit(text: str, indent: str = '', hang: str = '') -> str:
    """Wrap text to the width of the terminal. `indent` starts the first line, `hang` the others."""
    return textwrap.fill(text, columns() - 1, initial_indent=indent, subsequent_indent=hang,
                         break_long_words=False, break_on_hyphens=False)


def warn(text: str):
    """Print a warning on stderr, above any progress bar."""
    tqdm.write(f'warning: {text}', file=sys.stderr)


def show_progress(items, what: str):
    """Yield the items, with a progress bar if stderr is a terminal."""
    return tqdm(items, what, unit=' pieces', disable=None, leave=False, dynamic_ncols=True)


class Screen:
    """Streams text to stdout. On a terminal, a word that does not fit on the line moves to the
    next."""

    def __init__(self):
        self.column = 0
        self.word = ''                          # an unfinished word, held back

    def write(self, text: str):
        *words, self.word = re.split(r'(?<=\s)', self.word + text)
        if not sys.stdout.isatty():
            words, self.word = [*words, self.word], ''
        for word in words:
            self.write_word(word)
        sys.stdout.flush()

    def write_word(self, word: str):
        """Write a word and the whitespace after it."""
        if sys.stdout.isatty() and 0 < self.column >= columns() - len(word.rstrip()):
            sys.stdout.write('\n')
            self.column = 0
        sys.stdout.write(word)
        self.column = 0 if word.endswith('\n') else self.column + len(word)

    def end_line(self):
        self.write_word(self.word + '\n')
        self.word = ''
