"""Settings and errors, shared by every script and command.

The public scalar globals at the top of a script are its settings. One call, configure(globals()),
sets them from config files and --key=value arguments."""
import sys

if sys.version_info < (3, 11):  # noqa: UP036       # first, because older versions fail below
    sys.stderr.write('error: Python 3.11 or later is needed; this is ' + sys.version[:4] + '\n')
    sys.exit(2)

import ast
import difflib
import importlib
import os
import re
import shutil
import tempfile
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RENAMED = {                     # name in nanoGPT and elsewhere -> name here
    'gradient_accumulation_steps': 'micro_batch_size', 'eval_iters': 'eval_tokens',
    'decay_lr': 'schedule', 'lr_decay_iters': 'max_iters', 'lr': 'learning_rate',
    'wandb_log': 'wandb_project', 'backend': 'device', 'prompt': 'start',
    'head_gain': 'output_lr_scale', 'decay_power': 'schedule'}


# ---- settings
class Settings(dict):
    """A script's settings by name. `given` holds the names set by a config file or an argument,
    `shape` the dataclass fields set that way."""

    def __init__(self, values: dict):
        super().__init__(values)
        self.given = set()
        self.shape = {}


def configure(script: dict, dataclass: str = '', resume: bool = False,
              argv: list[str] | None = None) -> Settings:
    """Set the settings of a script, given its globals(), and return them.

    Later values win, in this order: defaults, the settings saved in the checkpoint that init_from
    resumes (with resume=True), then config files and --key=value arguments as given. The command
    line is read only if the script is __main__; `argv` replaces it. With a dataclass 'FILE:CLASS',
    its fields are settings too, and those that were set are in `.shape`.

    Raises Error for an unknown setting or a value of the wrong type."""
    is_main = script['__name__'] == '__main__'
    if is_main:
        sys.excepthook = print_error
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):          # replace unencodable characters with ?
                stream.reconfigure(errors='replace')
    if argv is None:
        argv = sys.argv[1:] if is_main else []
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
    settings.given = set(given)
    if resume:
        saved = saved_settings({**settings, **given})
        settings.update({name: check_type(name, value, defaults, 'the checkpoint')
                         for name, value in saved.items() if name not in given})
    settings.update({name: given[name] for name in settings.keys() & given.keys()})
    settings.shape = {name: given[name] for name in fields.keys() & given.keys()}
    script.update(settings)
    return settings


def parse_option(argument: str, defaults: dict) -> dict:
    """{name: value} of an argument --name=value, parsed as the setting's type."""
    name, equals, text = argument.removeprefix('--').partition('=')
    example = f'--{name}=...' if name in defaults else '--key=value'
    require(argument.startswith('--') and equals, f'{argument}: write {example}')
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
    """Return the value, converted to the setting's type where that loses nothing. Raises Error for
    an unknown setting or a value of the wrong type."""
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, 1)
        hint = f'did you mean {near[0]}?' if near else '--help lists all settings'
        if RENAMED.get(name) in defaults:
            hint = f'use {RENAMED[name]}'
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
    """Run a config file and return {name: value} of its assignments. It can read the settings so
    far; names that start with _ stay private."""
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

    of_this_start = ('init_from', 'out_dir', 'overwrite', 'max_minutes')
    return {name: value for name, value in read_settings(path).items()
            if name in settings and name not in of_this_start}


def print_help(script: dict, settings: dict, fields: dict, dataclass: str):
    """Print the script's docstring and each setting with its default and comment."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000

    def show(values, path):
        source = Path(path).read_text(encoding='utf-8')
        comments = dict(re.findall(r'^ *(\w+)(?:: [^=\n]+)? = .*?  # (.*)$', source, re.M))
        for name, value in values.items():
            line = f'  --{name}={value!r}'.ljust(32) + ' ' + comments.get(name, '')
            print(textwrap.fill(line, width, subsequent_indent=' ' * 33))

    for line in script['__doc__'].splitlines():
        print(textwrap.fill(line, width))
    print('\nsettings, as --key=value or in a config file:')
    show(settings, script['__file__'])
    if fields:
        print('\nmodel shape:')
        show(fields, ROOT / dataclass.partition(':')[0])


# ---- errors
class Error(Exception):
    """An error that the user can fix: printed as one line, exit status 2."""


def require(condition, message: str):
    """Raise Error(message) if the condition is false."""
    if not condition:
        raise Error(message)


def brief(error: BaseException) -> str:
    """The start of an error's message; library messages can be pages long."""
    return textwrap.shorten(str(error), 200, placeholder=' ...') or type(error).__name__


def extra(name: str, needed_by: str = ''):
    """The module extras/NAME.py; None if it is missing, or Error if something needs it."""
    try:
        return importlib.import_module(f'extras.{name}')
    except ModuleNotFoundError as e:
        package, _, file = e.name.partition('.')
        if package != 'extras':
            raise Error(f'{needed_by or name} needs {package}: pip install {package}') from e
        require(not needed_by, f'{needed_by} needs extras/{file or name}.py, which is missing')
        return None


def print_error(kind, error, trace):
    """The scripts' excepthook: one line for what the user can fix, a traceback for a bug."""
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    if issubclass(kind, BrokenPipeError) and 'RANK' not in os.environ:
        drop_output()       # whatever was reading our output has exited, e.g. head
        sys.exit(141)                       # as the shell reports SIGPIPE
    message = message_of(kind, error)
    if message is None:
        return sys.__excepthook__(kind, error, trace)
    if is_first_to_report():
        print('error:', ' '.join(message.split()), file=sys.__stderr__)
    if 'RANK' in os.environ:                # shutting down the process group cleanly could hang
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    sys.exit(2)


def message_of(kind, error) -> str | None:
    """What to tell the user about an exception; None for a bug."""
    text = str(error)
    if issubclass(kind, Error):
        return text
    if issubclass(kind, ModuleNotFoundError):
        package = (error.name or '').partition('.')[0]
        required = (ROOT / 'requirements.txt').read_text(encoding='utf-8')
        if re.search(rf'^{re.escape(package)}==', required, re.M):
            return (f'{package} is not installed: activate the environment (source '
                    '.venv/bin/activate), or pip install -r requirements.txt')
    is_out_of_memory = issubclass(kind, MemoryError) or kind.__name__ == 'OutOfMemoryError'
    if is_out_of_memory or text.startswith('[enforce fail at alloc_cpu.cpp'):
        return ('out of memory: use a smaller model, fewer samples or, in training, a smaller '
                'micro_batch_size (0 = as many sequences as fit)')
    is_network = kind.__name__ in ('DistBackendError', 'DistNetworkError', 'DistStoreError')
    if is_network or 'gloo/transport' in text:
        return ('another process of this run was lost; continue with --init_from=resume '
                f'({text[:160]})')
    return None


def is_first_to_report() -> bool:
    """Whether no other process of this run on this machine has reported an error in the last
    minute. Under torchrun, often several processes raise the same Error, or just one does."""
    if 'RANK' not in os.environ:
        return True
    run = '_'.join([str(os.getppid()), os.environ.get('MASTER_PORT', ''),
                    os.environ.get('TORCHELASTIC_RESTART_COUNT', '')])
    marker = Path(tempfile.gettempdir(), f'slm_error_{run}')
    try:
        marker.touch(exist_ok=False)
        return True
    except FileExistsError:
        return time.time() - marker.stat().st_mtime > 60
    except OSError:
        return True


def drop_output():
    """Redirect stdout to os.devnull, including what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
