"""Text that fits the screen: lines break between words; without a terminal at 80 columns."""
import re
import shutil
import sys
import textwrap

from tqdm import tqdm


def columns() -> int:
    """The width of the terminal that stdout is, or else 80."""
    return shutil.get_terminal_size((80, 24)).columns


def fit(text: str, indent: str = '', hang: str = '') -> str:
    """Break a text into lines that fit. `indent` begins its first line, `hang` the others."""
    return textwrap.fill(text, columns() - 1, initial_indent=indent, subsequent_indent=hang,
                         break_long_words=False, break_on_hyphens=False)


def warn(text: str):
    """Print a warning on stderr; a progress bar stays whole."""
    tqdm.write(fit(f'warning: {text}'), file=sys.stderr)


def show_progress(items, what: str):
    """Yield the items and show a progress bar if stderr is a terminal."""
    return tqdm(items, what, unit=' pieces', disable=None, leave=False, dynamic_ncols=True)


class Screen:
    """Writes text to stdout as it comes; on a terminal a word that does not fit begins a line."""

    def __init__(self):
        self.column = 0
        self.word = ''                          # not written yet, as it may go on

    def write(self, text: str):
        *words, self.word = re.split(r'(?<=\s)', self.word + text)
        if not sys.stdout.isatty():
            words, self.word = [*words, self.word], ''
        for word in words:
            self.write_word(word)
        sys.stdout.flush()

    def write_word(self, word: str):
        """Write a word with the white space behind it."""
        if sys.stdout.isatty() and 0 < self.column >= columns() - len(word.rstrip()):
            sys.stdout.write('\n')
            self.column = 0
        sys.stdout.write(word)
        self.column = 0 if word.endswith('\n') else self.column + len(word)

    def end_line(self):
        self.write_word(self.word + '\n')
        self.word = ''
