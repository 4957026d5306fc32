"""What the four scripts share: knobs, errors, device and precision, atomic writing. No defaults live here."""
import contextlib
import difflib
import os
import re
import runpy
import sys
import types
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOVED = {'gradient_accumulation_steps': 'micro_batch_size', 'eval_iters': 'eval_tokens',
         'decay_lr': 'schedule', 'lr_decay_iters': 'max_iters',
         'wandb_log': 'wandb_project', 'backend': 'device'}    # of nanoGPT


class Error(Exception):
    """What the user can mend: shown as one line that says what is wrong and what to do, exit status 2."""


def require(good, text: str):
    """Raise Error with this text unless what it says is good."""
    if not good:
        raise Error(text)


def _show(kind, error, trace):
    text = str(error)
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    if issubclass(kind, MemoryError) or re.search("out of memory|can't allocate memory", text):
        text = 'out of memory: lower micro_batch_size, which does not change the training, or the model'
    elif re.search('gloo/transport|NCCL', text):
        text = f'another process of this run was lost; go on with --init_from=resume ({text[:160]})'
    elif not issubclass(kind, Error):
        return sys.__excepthook__(kind, error, trace)
    if not issubclass(kind, Error) or os.environ.get('LOCAL_RANK', '0') == '0':     # one line per machine
        print('error: ' + ' '.join(text.split()), file=sys.__stderr__)  # torchrun swallows sys.stderr
    if 'RANK' in os.environ:                # one of several: to leave their group in order may hang, or abort
        sys.stdout.flush()
        os._exit(2)
    sys.exit(2)


def configure(knobs: dict, argv: list[str] | None = None, below: dict | None = None) -> dict:
    """Override a script's knobs, its public scalar globals, in place and return them as a dict.

    Arguments apply in order: a path is a config file (Python, sees the knobs), `--key=value` sets one knob.
    argv is the command line where the script is __main__, else nothing; `below`, a checkpoint's knobs, ranks
    between it and the defaults. Raises Error on an unknown knob or a value of the wrong type."""
    defaults = knobs.setdefault('_defaults', {k: v for k, v in knobs.items() if not k.startswith('_')
                                              and type(v) in (bool, int, float, str)})
    if knobs['__name__'] == '__main__':
        sys.excepthook = _show
        argv = sys.argv[1:] if argv is None else argv

    def override(key, value, where):
        if key not in defaults:
            near = difflib.get_close_matches(MOVED.get(key, key), defaults, 1)
            hint = f'did you mean {near[0]}?' if near else '--help lists them'
            raise Error(f'{where}: unknown knob {key!r}: {hint}')
        kinds = (str, bool) if defaults[key] == 'auto' else (type(defaults[key]),)
        sane = type(value) not in (int, float) or abs(value) < 1 << 63      # nan is not
        if kinds == (float,) and type(value) is int and sane:
            value = float(value)
        require(type(value) in kinds and sane,
                f'{where}: {key} expects {kinds[0].__name__}, like {defaults[key]!r}; got {value!r}')
        knobs[key] = value

    for key, value in {**defaults, **(below or {})}.items():
        override(key, value, 'checkpoint')
    for arg in argv or []:
        if arg in ('-h', '--help'):
            _help(knobs, defaults)
        elif not arg.startswith('-'):
            for key, value in _run_file(arg, {k: knobs[k] for k in defaults}).items():
                if not (key.startswith('_') or callable(value) or isinstance(value, types.ModuleType)):
                    override(key, value, arg)
        else:
            key, equals, value = arg.removeprefix('--').partition('=')
            require(equals and arg.startswith('--'), f'{arg}: expected --key=value or a config file')
            kind = type(defaults.get(key))
            if kind is bool or defaults.get(key) == 'auto':
                value = {'True': True, 'False': False}.get(value, value)
            elif kind in (int, float):
                with contextlib.suppress(ValueError):                   # override says what it should be
                    value = kind(value)
            override(key, value, arg)
    return {k: knobs[k] for k in defaults}


def _run_file(name, knobs):
    path = next((p for p in (Path(name), ROOT / name) if os.path.isfile(p)), None)
    if path is None:
        recipes = [f'config/{p.name}' for p in (ROOT / 'config').glob('[!_]*.py')]
        near = difflib.get_close_matches(name, recipes, 1)
        raise Error(f'{name}: no such config file' + (f', did you mean {near[0]}?' if near else ''))
    try:
        return runpy.run_path(str(path), init_globals=knobs)
    except Exception as e:
        raise Error(f'{name}: {type(e).__name__}: {e}') from e


def _help(knobs, defaults):
    print(knobs['__doc__'].strip() + '\n\nknobs, as --key=value or in a config file:')
    source = Path(knobs['__file__']).read_text(encoding='utf-8')
    comments = dict(re.findall(r'^(\w+) = .*?  # (.*)$', source, re.M))
    for key, value in defaults.items():
        print(f'  --{key}={value!r}'.ljust(32), comments.get(key, ''))
    sys.exit(0)


def setup(device: str, dtype: str, seed: int):
    """Resolve 'auto', seed torch; return (torch.device, torch.dtype of matrix products, autocast maker).

    bf16 only where the hardware has it natively: is_bf16_supported() also says yes where it is emulated."""
    import torch
    if device == 'auto':
        mps = torch.backends.mps.is_available()
        device = 'cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu'
    try:
        kind = torch.empty(0, device=device).device.type
        torch.autocast(kind)                                        # knows no device that does not compute
    except Exception as e:
        raise Error(f'device={device} is not available here; try --device=cpu') from e
    if dtype == 'auto':
        dtype = 'float32'
        if kind == 'cuda':
            dtype = 'bfloat16' if torch.cuda.get_device_capability(device)[0] >= 8 else 'float16'
        elif kind == 'cpu' and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            dtype = 'bfloat16'
    require(dtype in ('float32', 'bfloat16') or (dtype, kind) == ('float16', 'cuda'),
            f'dtype={dtype} does not work on {kind}: auto, float32, bfloat16; float16 on cuda')
    if kind == 'cuda':
        torch.set_float32_matmul_precision('high')                  # TF32 for what stays in fp32
    if kind == 'cpu' and sys.platform == 'linux':
        # glibc would give back the memory of each large tensor, and every step would fault it in anew.
        import ctypes
        for parameter, value in ((-3, 1 << 25), (-1, 1 << 30)):     # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)
    torch.manual_seed(seed)
    number = getattr(torch, dtype)
    return torch.device(device), number, lambda: torch.autocast(kind, number, enabled=dtype != 'float32')


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over it, else removed."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):                              # the rename, too; Windows cannot
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) or re.search('inline_container|iostream', str(e)):    # torch's full disk
            raise Error(f'cannot write {path}: {e}; what was there before is intact') from e
        raise


def checksum(source, size: int = sys.maxsize) -> str:
    """CRC-32, as 8 hex digits, of a file (its path, or open) or of its next `size` bytes."""
    crc = 0
    with contextlib.nullcontext(source) if hasattr(source, 'read') else open(source, 'rb') as f:
        while piece := f.read(min(size, 1 << 20)):
            crc, size = zlib.crc32(piece, crc), size - len(piece)
    return f'{crc:08x}'


def lock(path):
    """Hold the file `path` until this process ends, however it ends; Error if another process holds it."""
    from filelock import FileLock, Timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as e:
        raise Error(f'cannot write to {path.parent}: {e.strerror}; choose another') from e
    held = FileLock(path, is_singleton=True)                            # which this process may take again
    try:
        held.acquire(timeout=0)
    except Timeout as e:
        raise Error(f'{path.parent} is in use by another run; choose another, or wait for its end') from e
    except OSError:
        pass                                                            # a file system that knows no locks
    return held
