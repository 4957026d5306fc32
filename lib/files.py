"""Atomic writes, locks against concurrent runs, and checksums."""
import contextlib
import errno
import os
import re
import sys
import zlib
from pathlib import Path

from lib.errors import Error

HELD = []                       # keeps a reference: a garbage-collected FileLock is released


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
            reason = 'the disk may be full' if is_full_disk else e
            raise Error(f'cannot write {path}: {reason}; no file was changed') from e
        raise


def sync(path):
    """Flush a file, or a folder's entries, to disk, if the file system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except OSError:                                         # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def checksum(file, size: int = sys.maxsize) -> str:
    """CRC-32, as 8 hex digits, of up to `size` bytes of a file given as a path, or of the rest of
    an open file."""
    crc = 0
    with contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb') as f:
        while block := f.read(min(size, 1 << 20)):
            crc = zlib.crc32(block, crc)
            size -= len(block)
    return f'{crc:08x}'


def acquire_lock(folder: Path):
    """Create a folder and lock it until this process exits, however it exits, or until the returned
    context manager exits. Raises Error if another process holds the lock."""
    from filelock import FileLock, Timeout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / '.lock').touch()
    except OSError as e:
        raise Error(f'cannot write to {folder}: {e.strerror}; use a different folder') from e
    try:                                                    # a singleton is reentrant
        HELD.append(FileLock(folder / '.lock', is_singleton=True, fallback_to_soft=False))
        return HELD[-1].acquire(timeout=0)
    except Timeout as e:
        raise Error(f'{folder} is in use by another run; wait, or use a different folder') from e
    except OSError:                                         # some file systems do not support locks
        return contextlib.nullcontext()
