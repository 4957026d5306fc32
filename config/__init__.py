"""What the scripts share: errors and knobs.

The defaults of knobs are in the scripts. Files that begin with _ are helpers, whose first lines
say what they do. All others are recipes for train.py."""
import ast
import contextlib
import difflib
import importlib
import os
import re
import sys
import textwrap
from pathlib import Path

from config._source import ROOT, print_help, read_fields

RENAMED = {                     # knobs of other projects, most of nanoGPT: what replaces them here
    'gradient_accumulation_steps': 'micro_batch_size', 'eval_iters': 'eval_tokens',
    'decay_lr': 'schedule', 'lr_decay_iters': 'max_iters', 'lr': 'learning_rate',
    'wandb_log': 'wandb_project', 'backend': 'device', 'prompt': 'start'}


# ---- errors
class Error(Exception):
    """An error the user can fix. Printed as one line on stderr; the exit status is 2."""


def require(condition, message: str):
    """Raise Error(message) if the condition is false."""
    if not condition:
        raise Error(message)


def print_error(kind, error, trace):
    """The excepthook of the scripts: one line for what the user can fix, a traceback for a bug."""
    message = str(error)
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    if issubclass(kind, BrokenPipeError) and 'RANK' not in os.environ:
        drop_output()                   # the reader of the output, such as head, has ended
        sys.exit(141)                   # as the shell reports a SIGPIPE
    if issubclass(kind, MemoryError) or re.search("out of memory|can't allocate memory", message):
        message = ('out of memory: use a smaller model, fewer samples or, in training, a smaller '
                   'micro_batch_size (0 = as large as fits)')
    elif re.search('gloo/transport|NCCL', message):
        message = ('another process of this run was lost; continue with --init_from=resume '
                   f'({message[:160]})')
    elif not issubclass(kind, Error):
        return sys.__excepthook__(kind, error, trace)
    # An Error is the same in all processes of a machine: the first one prints it.
    if not issubclass(kind, Error) or os.environ.get('LOCAL_RANK', '0') == '0':
        print('error:', ' '.join(message.split()), file=sys.__stderr__)
    if 'RANK' in os.environ:            # one of several: leaving their group in order can hang
        sys.stdout.flush()
        os._exit(2)
    sys.exit(2)


def brief(error: Exception) -> str:
    """The beginning of an error's message; those of libraries can be pages long."""
    return textwrap.shorten(str(error), 200, placeholder=' ...') or type(error).__name__


def drop_output():
    """Send stdout to os.devnull from now on, with what its buffer still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def extra(name: str, needed_by: str = ''):
    """The module extras/NAME.py. If it is missing: None, or an Error if something needs it."""
    try:
        return importlib.import_module(f'extras.{name}')
    except ModuleNotFoundError as e:
        folder, _, file = e.name.partition('.')
        if folder != 'extras':
            raise Error(f'{needed_by or name} needs {e.name}: pip install {e.name}') from e
        require(not needed_by, f'{needed_by} needs extras/{file or name}.py, which is not there')
        return None


# ---- knobs
class Config(dict):
    """The knobs of a script by name; `given` holds the names that a config file or an argument
    has set."""

    def __init__(self, defaults: dict):
        super().__init__(defaults)
        self.given = set()

    def adopt(self, saved: dict):
        """Take the values of a saved Config for the knobs that are not given."""
        for name in (self.keys() & saved.keys()) - self.given:
            self[name] = check_type(name, saved[name], self, 'checkpoint')


def configure(knobs: dict, argv: list[str] | None = None,
              dataclass: tuple[str, str] | None = None) -> Config:
    """Set a script's knobs, its public scalar globals, from config files and --key=value
    arguments, in order.

    `knobs` is the caller's globals(): it is updated in place, and the knobs are returned as a
    Config. The arguments are those of the command line if the script is __main__, else `argv`.
    The fields of a `dataclass`, named as (file, class), are knobs too, unless the script sets
    others. A config file is Python and sees the knobs. Raises Error for an unknown knob and for
    a value of the wrong type."""
    if knobs['__name__'] == '__main__':
        sys.excepthook = print_error
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):              # what it cannot encode becomes a ?
                stream.reconfigure(errors='replace')
        argv = sys.argv[1:] if argv is None else argv
    fields = read_fields(*dataclass) if dataclass else {}
    own = {name: value for name, value in knobs.items()
           if not name.startswith('_') and type(value) in (bool, int, float, str)}
    defaults = {**own, **{name: value for name, value in fields.items() if name not in own}}
    config = Config(defaults)
    for argument in argv or []:
        if argument in ('-h', '--help'):
            print_help(knobs, defaults, dataclass)
            sys.exit(0)
        if argument.startswith('-'):
            settings = parse_option(argument, defaults)
        else:
            settings = run_config_file(argument, config)
        for name, value in settings.items():
            config[name] = check_type(name, value, defaults, argument)
            config.given.add(name)
    knobs.update(config)
    return config


def parse_option(argument: str, defaults: dict) -> dict:
    """{name: value} of an argument --name=value; the type of the knob's default decides how it
    is read."""
    name, equals, text = argument.removeprefix('--').partition('=')
    require(equals and argument.startswith('--'),
            f'{argument}: expected --key=value or a config file')
    default = defaults.get(name)
    value = text
    if type(default) is bool or default == 'auto':
        value = {'True': True, 'False': False}.get(text, text)
    elif type(default) in (int, float):
        with contextlib.suppress(ValueError):               # check_type says what is expected
            value = type(default)(text)
    return {name: value}


def check_type(name: str, value, defaults: dict, where: str):
    """The value, an int as a float where a float belongs. Raises Error if the knob or the type
    is wrong."""
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, 1)
        hint = f'did you mean {near[0]}?' if near else '--help lists them'
        if RENAMED.get(name) in defaults:
            hint = f'use {RENAMED[name]} instead'
        raise Error(f'{where}: unknown knob {name!r}: {hint}')
    default = defaults[name]
    if type(default) is float and type(value) is int:
        value = float(value)
    kinds = (str, bool) if default == 'auto' else (type(default),)
    expected = ' or '.join('True or False' if kind is bool else kind.__name__ for kind in kinds)
    require(type(value) in kinds,
            f'{where}: {name} expects {expected}, like {default!r}; got {value!r}')
    is_sensible = type(value) not in (int, float) or abs(value) < 2 ** 63      # false for nan, too
    require(is_sensible, f'{where}: {name} expects {expected}; {value!r} is out of range')
    return value


def run_config_file(name: str, config: dict) -> dict:
    """{name: value} of the variables that a config file assigns, but for those that begin with
    _."""
    path = next((path for path in (Path(name), ROOT / name) if os.path.isfile(path)), None)
    if path is None:
        recipes = [f'config/{path.name}' for path in (ROOT / 'config').glob('[!_]*.py')]
        near = difflib.get_close_matches(name, recipes, 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        if 'input' in config and os.path.exists(name):
            hint = f'; did you mean --input={name}?'
        raise Error(f'{name}: there is no such config file{hint}')
    if path.suffix != '.py':
        hint = f'; did you mean --input={name}?' if 'input' in config else ''
        raise Error(f'{name} is not a config file: their names end in .py{hint}')
    namespace = {**config, '__file__': str(path)}
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        exec(compile(tree, str(path), 'exec'), namespace)
    except Exception as e:
        raise Error(f'{name}: {type(e).__name__}: {e}') from e
    assigned = [node.id for node in ast.walk(tree)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return {name: namespace[name] for name in assigned
            if name in namespace and not name.startswith('_')}
