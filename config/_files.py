"""Safe files: never half written, locked against a second run, and sealed by a checksum."""
import contextlib
import os
import re
import sys
import zipfile
import zlib
from pathlib import Path

from config import Error, require

HELD = []                       # the locks of this process
SEAL = b'slm:'                  # a sealed file ends with this and the CRC-32 of what is before it


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`, which it replaces in the end; after an error it is
    removed, and `path` is as before."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        is_full_disk = re.search('inline_container|iostream', str(e))     # as torch.save reports it
        if isinstance(e, OSError) or is_full_disk:
            raise Error(f'cannot write {path}: {e}; what was there before is intact') from e
        raise


def sync(path):
    """Make the system write a file, or a folder's list of names, to the disk now."""
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
    except OSError:
        if not is_folder:                                   # Windows opens no folders
            raise


def checksum(file, size: int = sys.maxsize) -> str:
    """CRC-32, as 8 hex digits, of a file, by its path or open for reading, or of its next bytes."""
    crc = 0
    with contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb') as f:
        while block := f.read(min(size, 1 << 20)):
            crc = zlib.crc32(block, crc)
            size -= len(block)
    return f'{crc:08x}'


def acquire_lock(path):
    """Lock the file `path` until this process ends, however it ends, or until the context manager
    that is returned releases it. Raises Error if another process holds it."""
    from filelock import FileLock, Timeout
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as e:
        raise Error(f'cannot write to {path.parent}: {e.strerror}; use a different one') from e
    try:
        HELD.append(FileLock(path, is_singleton=True))      # this process may take it again
        return HELD[-1].acquire(timeout=0)
    except Timeout as e:
        raise Error(f'{path.parent} is in use by another run; wait, or use a different one') from e
    except OSError:
        return contextlib.nullcontext()                     # this file system has no locks


# ---- files of torch.save: torch.load verifies no checksum, so these end with one
def save_sealed(path, content: dict):
    """Write plain types and tensors to path atomically. Raises Error if that fails."""
    import torch
    with atomic(path) as temporary:
        torch.save(content, temporary)
        seal = SEAL + checksum(temporary).encode()
        with open(temporary, 'ab') as f:
            f.write(seal)


def load_sealed(path) -> tuple[dict, int]:
    """What save_sealed wrote, onto the CPU, and the bytes of it. No code in the file can run.

    Raises Error, or whatever torch.load raises, if the file is damaged."""
    import torch
    with open(path, 'rb') as f:                             # opened once: a run may replace it
        size = f.seek(-len(SEAL) - 8, os.SEEK_END)
        f.seek(0)
        seal = SEAL + checksum(f, size).encode()
        require(f.read() == seal, 'it is damaged, or not of this project')
        inflated = sum(entry.file_size for entry in zipfile.ZipFile(f).infolist())
        require(inflated <= size, 'its content inflates')
        f.seek(0)
        return torch.load(f, map_location='cpu', weights_only=True), size
