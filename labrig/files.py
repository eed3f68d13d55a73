"""Files: writing them so that a killed command leaves the old content or the new, never a half; hashing them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20  # bytes read at once
FICLONE = 0x40049409  # linux/fs.h
EPOCH = "1735689600"  # 2025-01-01: the one time of what goes into images (reproducible-builds.org/specs)


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace ``path`` by a file that holds ``text`` (UTF-8): a temporary name in the same folder, then a rename.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def copy_proven(
    source: BinaryIO, to: Path, sha256: str, size: int, *, advance: Callable[[int], None] = lambda amount: None
) -> bool:
    """Put what ``source`` holds at ``to``, if it is of that digest and size (bytes); False, and nothing there, if not.

    It is a copy in any case, sharing its blocks with the source where the file system can (FICLONE, ioctl_ficlone(2)):
    who writes into the one leaves the other as it is. ``advance`` is told of bytes that were read.

    Raises:
        OSError: it cannot be read or written; ``to`` is then as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{to.name[:40]}.", dir=to.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            cloned = _clone(source, file)
            hashed, left = hashlib.sha256(), size
            # One byte too many is read, and no more.
            while chunk := (file if cloned else source).read(min(CHUNK, left + 1)):
                hashed.update(chunk)
                left -= len(chunk)
                if not cloned:
                    file.write(chunk)
                advance(len(chunk))
            if left or hashed.hexdigest() != sha256:
                return False
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # FAT knows no modes
            Path(name).chmod(0o644)
        Path(name).replace(to)
        return True
    finally:
        Path(name).unlink(missing_ok=True)


def _clone(source: BinaryIO, to: BinaryIO) -> bool:
    """Whether ``to`` has got the blocks of the file ``source``; most file systems cannot."""
    try:
        fcntl.ioctl(to.fileno(), FICLONE, source.fileno())
    except (OSError, ValueError, AttributeError):  # the last two: it is in memory, or in a tar
        return False
    return True


def digest(file: BinaryIO, check: Callable[[], None]) -> str:
    """SHA-256 of an open file's content; ``check`` is called between chunks and may raise to end it."""
    sha256 = hashlib.sha256()
    while chunk := file.read(CHUNK):
        check()
        sha256.update(chunk)
    return sha256.hexdigest()


@contextlib.contextmanager
def alone(lock: Path, waiting: str) -> Iterator[int]:
    """Hold the lock on a file; where somebody else holds it, say ``waiting`` on stderr and wait. Gives its descriptor,
    for a process that holds the lock on."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
