"""Files that are read and written whole: `writing` puts a complete file in the place of the old one, or leaves that.

The new content is written to a temporary file in the same folder, whose name tells the name of the file that it is
for. Whoever writes one holds a lock on it. A process that is killed holds none any more: what it left is removed when
the same name is written again. On file systems without locks, and on Windows, such files stay.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["reading", "writing"]

#: Flags for opening files by themselves: binary on Windows, and never waiting for the other end of a pipe.
FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def reading(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises
    ------
    OSError
        If it is not a regular file, or cannot be read.
    """
    _regular(path)
    return open(path, "rb")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of `path` when the block is done and it is complete on disk.

    If the block raises, or the machine stops, the old file stays. A symbolic link stays too: the file that it points
    to is replaced. Of a file that is replaced, mode, owner and group are kept as far as the system permits; its other
    hard links go on naming the old content.

    Raises
    ------
    OSError
        If there is something else than a regular file at `path`, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    old = _regular(target)
    # Short, whatever the name: that may be as long as the file system allows.
    prefix = f".multiopt-{blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}-"
    temporary = None
    try:
        _remove_strays(target.parent, prefix)
        file, temporary = _create(target.parent, prefix, 0o666 if old is None else 0o600)
        with file:
            yield file
            file.flush()
            if old is not None:
                _become(file, old)
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file; elsewhere its lock is held until it has its name
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is not None and (error.filename is None or prefix in str(error.filename)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _regular(path: Path) -> os.stat_result | None:
    """What the system says of a regular file; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a pipe or a socket"
        raise OSError(errno.EINVAL, f"expected a regular file, got {kind}", str(path))
    return found


def _create(folder: Path, prefix: str, mode: int) -> tuple[BinaryIO, Path]:
    """A new temporary file, with its lock."""
    while True:
        path = folder / f"{prefix}{secrets.token_hex(8)}"
        number = os.open(path, FLAGS | os.O_CREAT | os.O_EXCL, mode)
        # Before it had its lock, another process may have taken it for a stray.
        if _lock(number) is not False and os.fstat(number).st_nlink:
            return open(number, "wb"), path
        os.close(number)


def _lock(number: int) -> bool | None:
    """Lock an open file: False if someone else has its lock, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_strays(folder: Path, prefix: str) -> None:
    """Remove temporary files that nobody holds the lock of; what cannot be looked at or removed stays."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(prefix):
                with suppress(OSError):
                    number = os.open(folder / name, FLAGS)
                    try:
                        if stat.S_ISREG(os.fstat(number).st_mode) and _lock(number):
                            os.unlink(folder / name)
                    finally:
                        os.close(number)


def _become(file: BinaryIO, old: os.stat_result) -> None:
    """Give a file the owner, the group and the mode of another."""
    if not hasattr(os, "fchown"):  # Windows
        return
    mode = stat.S_IMODE(old.st_mode)
    try:
        os.fchown(file.fileno(), old.st_uid, old.st_gid)
    except OSError:
        try:
            os.fchown(file.fileno(), -1, old.st_gid)
        except OSError:
            mode = mode & ~0o070 | (mode & 0o007) << 3  # another group gets what everybody has
    os.fchmod(file.fileno(), mode)


def _sync_folder(folder: Path) -> None:
    """See to it that a new name is on disk, where folders can be opened and synced."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)
