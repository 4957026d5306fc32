"""Terminal output: line wrapping, warnings, progress bars."""
import shutil
import sys
import textwrap

from tqdm import tqdm


def fit(text: str, indent: str = '', hang: str = '') -> str:
    """Wrap a line to the width of the terminal: `indent` starts the first line, `hang` the others.
    If stdout is a file or a pipe, the line is not wrapped, so that grep works."""
    if not sys.stdout.isatty():
        return indent + text
    width = shutil.get_terminal_size().columns - 1
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=hang,
                         break_long_words=False, break_on_hyphens=False)


def warn(text: str):
    """Print a warning on stderr, above any progress bar."""
    tqdm.write(f'warning: {text}', file=sys.stderr)


def show_progress(items, what: str):
    """Yield the items, with a progress bar if stderr is a terminal."""
    return tqdm(items, what, unit=' pieces', disable=None, leave=False, dynamic_ncols=True)
