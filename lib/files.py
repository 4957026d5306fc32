"""Atomic writes, locks against a second run, and checksums."""
import contextlib
import errno
import os
import re
import sys
import zlib
from functools import lru_cache
from pathlib import Path

from lib.settings import Error
from lib.terminal import warn

HELD = []                       # locks that this process holds until it exits


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path, which replaces `path` on success. After an error `path` is unchanged.

    Raises Error if the file cannot be written."""
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
        is_full_disk = re.search('inline_container|iostream', str(e))     # torch.save's wording
        if isinstance(e, OSError) or is_full_disk:
            raise Error(f'cannot write {path}: {e}; the previous file is intact') from e
        raise


def sync(path):
    """Flush a file, or a folder's entries, to disk. Some network shares cannot: warn once."""
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except OSError:
        if is_folder:                                       # Windows cannot open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        warn_unsynced(str(Path(path).parent))
    finally:
        os.close(descriptor)


@lru_cache
def warn_unsynced(folder: str):
    warn(f'{folder} is on a file system without fsync: after a power failure its newest files may '
         'be damaged')


def checksum(file, size: int = sys.maxsize) -> str:
    """CRC-32, as 8 hex digits, of up to `size` bytes of a file: a path, or an open file's rest."""
    crc = 0
    with contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb') as f:
        while block := f.read(min(size, 1 << 20)):
            crc = zlib.crc32(block, crc)
            size -= len(block)
    return f'{crc:08x}'


def acquire_lock(folder: Path):
    """Lock a folder until this process exits, however it exits, or until the returned context
    manager releases it. Raises Error if another process holds the lock."""
    from filelock import FileLock, Timeout
    path = folder / '.lock'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as e:
        raise Error(f'cannot write to {folder}: {e.strerror}; use a different folder') from e
    if not can_lock(path):
        return contextlib.nullcontext()
    try:
        HELD.append(FileLock(path, is_singleton=True))      # this process may take it again
        return HELD[-1].acquire(timeout=0)
    except Timeout as e:
        raise Error(f'{folder} is in use by another run; wait, or use a different folder') from e


def can_lock(path: Path) -> bool:
    """Whether a file's file system supports locks; some cluster file systems do not."""
    try:
        import fcntl
    except ImportError:                                     # Windows has a different kind of lock
        return True
    with open(path, 'rb') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(f, fcntl.LOCK_UN)
        except BlockingIOError:                             # held by another process
            return True
        except OSError:
            return False
    return True

