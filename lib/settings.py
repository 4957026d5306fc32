"""The settings of every script and command.

The public scalar globals at the top of a script are its settings. One call, configure(globals()),
sets them from config files and --key=value arguments."""
import ast
import difflib
import os
import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path

from lib.errors import Error, print_error, require

ROOT = Path(__file__).resolve().parent.parent
PER_START = ('init_from', 'out_dir', 'overwrite', 'max_minutes')    # not taken from a checkpoint


class Settings(dict):
    """A script's settings by name. `given` holds the names set by a config file or an argument,
    `model` the dataclass fields set that way; is_resumed: whether the others come from a
    checkpoint."""

    def __init__(self, values: dict):
        super().__init__(values)
        self.given = set()
        self.model = {}
        self.is_resumed = False


def configure(script: dict, dataclass: str = '', resume: bool = False,
              argv: list[str] | None = None) -> Settings:
    """Set the settings of a script, given its globals(), and return them.

    Later values win, in this order: defaults, the settings saved in the checkpoint that init_from
    resumes (with resume=True), then config files and --key=value arguments, in order. The command
    line is read only if the script is __main__; `argv` replaces it. With a dataclass 'FILE:CLASS',
    its fields are settings too, and those that were set are in `.model`.

    Raises Error for an unknown setting or a value of the wrong type."""
    if argv is None:
        argv = command_line(script, resume)
    settings = Settings({name: value for name, value in script.items()
                         if not name.startswith('_') and type(value) in (bool, int, float, str)})
    fields = read_fields(dataclass) if dataclass else {}
    defaults = {**fields, **settings}
    if '-h' in argv or '--help' in argv:
        print_help(script, settings, fields, dataclass)
        sys.exit(0)

    given = {}
    for argument in argv:
        if argument.startswith('-'):
            found = parse_option(argument, defaults)
        else:
            found = run_config_file(argument, {**defaults, **given})
        for name, value in found.items():
            given[name] = check_type(name, value, defaults, argument)
    saved = saved_settings({**settings, **given}) if resume else {}
    for name in saved.keys() - given.keys():
        where = f'the checkpoint (--{name}=... overrides it)'
        settings[name] = check_type(name, saved[name], defaults, where)
    for name, value in given.items():
        if name in settings:
            settings[name] = value
        else:
            settings.model[name] = value
    settings.given, settings.is_resumed = set(given), bool(saved)
    script.update(settings)
    return settings


def command_line(script: dict, resume: bool) -> list[str]:
    """The arguments of a script; [] if it is imported."""
    if script['__name__'] != '__main__':
        return []
    set_up_process(is_training=resume)
    return sys.argv[1:]


def set_up_process(is_training: bool):
    """Print an Error as one line, and replace characters that the terminal cannot encode."""
    sys.excepthook = print_error
    if is_training:
        # Until train.py handles signals itself, Ctrl-C kills it, even during imports.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Make OpenMP threads spin only briefly before they sleep. By default they spin for so long
        # that training on two cores shared with another program runs at a third of its speed.
        os.environ.setdefault('GOMP_SPINCOUNT', '2000')         # read when torch is imported
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):              # replace unencodable characters with ?
            stream.reconfigure(errors='replace')


def parse_option(argument: str, defaults: dict) -> dict:
    """{name: value} of an argument --name=value, parsed as the setting's type."""
    name, equals, text = argument.removeprefix('--').partition('=')
    example = f'--{name}=...' if name in defaults else '--key=value'
    require(argument.startswith('--') and equals, f'{argument}: expected {example}')
    kind = type(defaults.get(name, ''))
    value = text
    if kind is bool and text in ('True', 'False'):
        value = text == 'True'
    elif kind in (int, float):
        try:
            value = kind(text)
        except ValueError:                              # check_type reports it
            pass
    return {name: value}


def check_type(name: str, value, defaults: dict, where: str):
    """Return the value, converted to the setting's type if that is lossless. Raises Error for
    an unknown setting or a value of the wrong type."""
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, 1)
        hint = f'did you mean {near[0]}?' if near else '--help lists all settings'
        raise Error(f'{where}: unknown setting {name!r}: {hint}')
    default = defaults[name]
    if type(default) is float and type(value) is int:
        value = float(value)
    if default == 'auto' and type(value) is bool:       # compile = True in a config file
        value = str(value)
    require(type(value) is type(default),
            f'{where}: {name} expects {type(default).__name__}, like {default!r}; got {value!r}')
    is_in_range = type(value) not in (int, float) or abs(value) < 2 ** 63      # nan fails, too
    require(is_in_range, f'{where}: {name}={value!r} is out of range')
    return value


def run_config_file(name: str, namespace: dict) -> dict:
    """Run a config file and return {name: value} of its assignments. It can read the settings
    assigned so far; names that start with _ stay private."""
    path = Path(name).expanduser()
    if not path.is_file():
        path = ROOT / name
    if not path.is_file():
        recipes = [f'config/{recipe.name}' for recipe in (ROOT / 'config').glob('*.py')]
        near = difflib.get_close_matches(name, recipes, 1)
        hint = f'did you mean {near[0]}?' if near else 'pass settings as --key=value'
        raise Error(f'{name}: no such config file; {hint}')
    require(path.suffix == '.py', f'{name} is not a config file: its name must end in .py; pass '
                                  'settings as --key=value')
    namespace = {**namespace, '__file__': str(path)}
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        exec(compile(tree, str(path), 'exec'), namespace)
    except Exception as e:
        raise Error(f'{name}: {type(e).__name__}: {e}') from e
    return {assigned: namespace[assigned] for assigned in assigned_names(tree)
            if assigned in namespace and not assigned.startswith('_')}


def assigned_names(tree: ast.AST) -> list[str]:
    """The names assigned outside functions and classes. Loop variables are not included."""
    names = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            continue
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [part.id for target in targets for part in ast.walk(target)
                      if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
        names += assigned_names(node)
    return names


def read_fields(dataclass: str) -> dict:
    """{field: default} of a dataclass 'FILE:CLASS'. The file is parsed, not imported: importing
    torch takes seconds, and --help should be instant."""
    file, _, name = dataclass.partition(':')
    tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
    body = next(node.body for node in tree.body
                if isinstance(node, ast.ClassDef) and node.name == name)
    return {field.target.id: ast.literal_eval(field.value) for field in body
            if isinstance(field, ast.AnnAssign) and field.value is not None}


def saved_settings(settings: dict) -> dict:
    """The settings saved in the checkpoint that this run resumes; {} for a new run."""
    path = Path(settings['out_dir'], 'ckpt.pt').expanduser()
    is_resumed = settings['init_from'] == 'resume' or (
        settings['init_from'] == 'auto' and path.exists())
    if not is_resumed:
        return {}
    from lib.checkpoint import read_settings  # imported late: torch takes seconds to load

    return {name: value for name, value in read_settings(path).items()
            if name in settings and name not in PER_START}


def print_help(script: dict, settings: dict, fields: dict, dataclass: str):
    """Print the script's docstring and each setting with its default and comment."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000

    def show(values, path):
        source = Path(path).read_text(encoding='utf-8')
        found = re.findall(r'^ *(\w+)(?:: [^=\n]+)? = .*?  # (.*)$', source, re.M)
        comments = dict(reversed(found))            # the first match for each name wins
        for name, value in values.items():
            line = f'  --{name}={value!r}'.ljust(32) + ' ' + comments.get(name, '')
            print(textwrap.fill(line, width, subsequent_indent=' ' * 33))

    for line in script['__doc__'].splitlines():
        print(textwrap.fill(line, width))
    print('\nsettings, as --key=value or in a config file:')
    show(settings, script['__file__'])
    if fields:
        print('\nmodel config:')
        show(fields, ROOT / dataclass.partition(':')[0])
