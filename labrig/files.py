"""Files: writing them so that a killed command leaves the old content or the new, never a half; hashing them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20  # bytes read at once
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


def digest(file: BinaryIO, check: Callable[[], None]) -> str:
    """SHA-256 of an open file's content; ``check`` is called between chunks and may raise to end it."""
    sha256 = hashlib.sha256()
    while chunk := file.read(CHUNK):
        check()
        sha256.update(chunk)
    return sha256.hexdigest()
