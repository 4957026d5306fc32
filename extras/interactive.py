"""A talk with a model at the keyboard, for --interactive=True"""
import contextlib
import difflib
import re
import sys

from config import ROOT, Error, check_type, parse_option, require
from config._terminal import Screen, fit

WELCOME = 'Write the beginning of a text and press Enter. /help shows more; an empty line ends.'


def talk(lm, knobs: dict):
    """Continue each line that is typed, until an empty line, Ctrl-C or Ctrl-D.

    `knobs` are those of a text, {name: value}; a line such as /temperature 0.5 sets one. Ctrl-C
    while a text is written ends only this text."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):              # Windows has no readline
            import readline  # noqa: F401                   # with it, input() edits and remembers
    print(fit(WELCOME))
    while line := read_line():
        try:
            if line == '/help':
                show_help(knobs)
            elif line.startswith('/'):
                set_knob(lm, knobs, line)
            else:
                write(lm, knobs, line)
        except KeyboardInterrupt:
            print()
        except Error as e:                  # such as a character that the model does not know
            print(f'error: {e}', file=sys.stderr)


def read_line() -> str:
    """The next line; '' at the end of the input, and for Ctrl-C."""
    try:
        return input('> ')
    except (EOFError, KeyboardInterrupt):
        print()                             # what the shell writes next begins a line
        return ''
    except UnicodeDecodeError as e:
        raise Error(f'the input is not {e.encoding} text') from e


def write(lm, knobs: dict, prompt: str):
    """Show the continuation of a prompt as it comes."""
    screen = Screen()
    for text in lm.stream(prompt, **knobs):
        screen.write(text)
    screen.end_line()


def show_help(knobs: dict):
    """Print each knob with its value and its comment in sample.py."""
    source = (ROOT / 'sample.py').read_text(encoding='utf-8')
    comments = dict(re.findall(r'^(\w+) = .*?  # (.*)$', source, re.M))
    for name, value in knobs.items():
        knob = f'/{name} {value}'.ljust(26) + ' '
        print(fit(comments.get(name, ''), indent=knob, hang=' ' * len(knob)))
    print(fit('Such a line sets a knob. A text that begins with / needs a space before it.'))


def set_knob(lm, knobs: dict, line: str):
    """Set the knob of a line such as /temperature 0.5. Raises Error if it cannot be that."""
    name, text = re.fullmatch(r'/(\w*)[ =]*(.*)', line).groups()
    near = difflib.get_close_matches(name, knobs, 1, cutoff=0.4)
    hint = f'; did you mean /{near[0]}?' if near else '; /help lists what is'
    require(name in knobs, f'/{name} is not known{hint}')
    option = parse_option(f'--{name}={text.strip()}', knobs)
    value = check_type(name, option[name], knobs, line)
    lm.ids('', **{**knobs, name: value})    # draws nothing, but raises Error if it is out of range
    knobs[name] = value
    print(f'{name} is {value} now')
