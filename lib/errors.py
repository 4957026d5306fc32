"""An error that the user can fix is printed as one line, with exit status 2. A bug keeps its
traceback."""
import errno
import importlib
import os
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / 'requirements.txt'


class Error(Exception):
    """An error that the user can fix."""


def require(condition, message: str):
    """Raise Error(message) if the condition is false."""
    if not condition:
        raise Error(message)


def brief(error: BaseException) -> str:
    """The start of an error's message; library messages can be pages long."""
    return textwrap.shorten(str(error), 200, placeholder=' ...') or type(error).__name__


def extra(name: str, needed_by: str = ''):
    """The module extras/NAME.py; None if it is missing. Raises Error instead if something needs
    it, or if a package that it imports is missing."""
    try:
        return importlib.import_module(f'extras.{name}')
    except ModuleNotFoundError as e:
        package, _, file = e.name.partition('.')
        if package != 'extras':
            raise Error(f'{needed_by or name} needs {package}: pip install {package}') from e
        require(not needed_by, f'{needed_by} needs extras/{file or name}.py, which is missing')
        return None


def print_error(kind, error, trace):
    """The scripts' sys.excepthook."""
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    if issubclass(kind, BrokenPipeError) and 'RANK' not in os.environ:
        drop_output()                       # whatever was reading our output has exited, e.g. head
        sys.exit(141)                       # as the shell reports SIGPIPE
    message = message_of(kind, error)
    if message is None:
        return sys.__excepthook__(kind, error, trace)
    if is_first_to_report():
        print('error:', ' '.join(message.split()), file=sys.__stderr__ or sys.stderr)
    if 'RANK' in os.environ:                # shutting down the process group could hang
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    sys.exit(2)


def message_of(kind, error) -> str | None:
    """What to tell the user about an exception; None for a bug."""
    text = str(error)
    if issubclass(kind, Error) or getattr(error, 'errno', 0) in (errno.EACCES, errno.ENOSPC):
        return text
    if issubclass(kind, ModuleNotFoundError):
        package = (error.name or '').partition('.')[0]
        if re.search(rf'^{re.escape(package)}==', REQUIREMENTS.read_text(encoding='utf-8'), re.M):
            return (f'{package} is not installed: activate the environment (source '
                    '.venv/bin/activate), or pip install -r requirements.txt')
    is_out_of_memory = issubclass(kind, MemoryError) or kind.__name__ == 'OutOfMemoryError'
    if is_out_of_memory or text.startswith('[enforce fail at alloc_cpu.cpp'):
        return ('out of memory: use a smaller model, fewer samples or, in training, a smaller '
                'micro_batch_size (0 = as many sequences as fit)')
    is_network = kind.__name__ in ('DistBackendError', 'DistNetworkError', 'DistStoreError')
    if is_network or 'gloo/transport' in text:
        return ('lost the connection to another process; continue with --init_from=resume '
                f'({text[:160]})')
    return None


def is_first_to_report() -> bool:
    """Whether this process should print its error. Under torchrun multiple processes often raise
    the same one: the first on each machine prints it."""
    if 'RANK' not in os.environ:
        return True
    run = f'{os.getppid()}_{os.environ.get("MASTER_PORT")}'                # one per torchrun
    marker = Path(tempfile.gettempdir(), f'slm_error_{run}')
    try:
        marker.touch(exist_ok=False)
        return True
    except FileExistsError:
        return time.time() - marker.stat().st_mtime > 60    # torchrun has restarted the run


def drop_output():
    """Redirect stdout to os.devnull, including what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
