"""Text on the terminal: lines that break between words, warnings, progress bars."""
import re
import shutil
import sys
import textwrap

from tqdm import tqdm


def columns() -> int:
    """The width of the terminal; unlimited if stdout is a file or a pipe, so that grep works."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 10_000


def fit(text: str, indent: str = '', hang: str = '') -> str:
    """Break a text into lines that fit. `indent` begins the first line, `hang` the others."""
    return textwrap.fill(text, columns() - 1, initial_indent=indent, subsequent_indent=hang,
                         break_long_words=False, break_on_hyphens=False)


def warn(text: str):
    """Print a warning on stderr, above any progress bar."""
    tqdm.write(f'warning: {text}', file=sys.stderr)


def show_progress(items, what: str):
    """Yield the items, with a progress bar if stderr is a terminal."""
    return tqdm(items, what, unit=' pieces', disable=None, leave=False, dynamic_ncols=True)


class Screen:
    """Writes text to stdout as it comes. On a terminal, a word that does not fit the line starts
    the next one."""

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
