"""The store of layers: blobs by digest, and what each was made from.

``<store>/blobs/sha256/<digest>`` is laid out as in an OCI image layout, so that a layout on the same disk is a handful
of hard links. ``<store>/keys/<key>.json`` says which layer came out of which input. Both get there by a rename when
they are whole, the blob first: a build that is killed, or whose disk is full, leaves at most a temporary file, and two
builds that make the same layer at once put the same bytes in the same place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from labrig import home
from labrig.errors import BuildError
from labrig.files import CHUNK, EPOCH, copy_proven, write_atomically
from labrig.progress import megabytes
from labrig.tarball import Writer

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ABANDONED = ".making-"  # the prefix of a temporary file's name


@dataclass(frozen=True)
class Layer:
    """A layer. ``digest`` is that of the blob, ``diff_id`` that of the tar in it; sizes are in bytes."""

    title: str
    digest: str
    diff_id: str
    size: int
    plain_size: int
    media_type: str = GZIP


def path(digest: str) -> Path:
    """Where the blob of that digest lies, or will lie."""
    return home.layers() / "blobs" / "sha256" / digest.removeprefix("sha256:")


def key(*parts: str) -> str:
    """The key of a layer: SHA-256 over all that decides its bytes."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def find(of: str) -> Layer | None:
    """The layer of that key, if it is known and its blob is as it was made.

    That is told by size and time: whoever writes into a blob, perhaps through a link, changes its time. Its digest is
    not proven again: it was when the blob got its name, and whoever is given it (an engine, a registry) proves it.
    """
    try:
        layer = Layer(**json.loads(_note(of).read_text(encoding="utf-8"))["layer"])
        return layer if is_untouched(path(layer.digest), layer.size) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def make(of: str, title: str, write: Callable[[Writer], None], wheels: Sequence[str] = ()) -> Layer:
    """The layer of that key, found or made: ``write`` puts all files into a tar, or packs one.

    ``wheels`` are the digests of what it is made from; see :func:`stale`.

    Raises:
        BuildError: the disk is full or cannot be written; and what ``write`` raises. Nothing of it is kept.
    """
    if found := find(of):
        return found
    folder = home.layers() / "blobs" / "sha256"
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=ABANDONED, dir=folder)
        temporary = Path(name)
        with os.fdopen(handle, "wb", buffering=CHUNK) as file:
            writer = Writer(file)
            write(writer)
            if not writer.digest:
                writer.close()
        layer = Layer(title, writer.digest, writer.diff_id, writer.size, writer.plain_size)
        seal(temporary)
        temporary.replace(path(layer.digest))
        _write_note(of, {"title": title, "layer": asdict(layer), "blobs": [layer.digest], "wheels": list(wheels)})
    except OSError as error:
        raise unwritable(error, folder) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return layer


def keep(digest: str, size: int, source: BinaryIO) -> bool:
    """Put a blob that somebody handed over into the store, proven; False: it is there already.

    Raises:
        BuildError: it is not what its digest says; the disk is full or cannot be written.
    """
    to = path(digest)
    if is_untouched(to, size):
        return False
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if not copy_proven(source, to, digest.removeprefix("sha256:"), size):
            raise BuildError("a layer is not what its digest says", found=digest)
        seal(to)
    except OSError as error:
        raise unwritable(error, to.parent) from error
    return True


def seal(blob: Path) -> None:
    """Close a blob that is whole: nobody is to write into it, and its time says that nobody did."""
    blob.chmod(0o444)
    os.utime(blob, (int(EPOCH), int(EPOCH)))


def is_untouched(blob: Path, size: int) -> bool:
    """Whether a blob is there as it was sealed."""
    try:
        found = blob.stat()
    except OSError:
        return False
    return found.st_size == size and found.st_mtime_ns == int(EPOCH) * 10**9


def link(digest: str, to: Path) -> None:
    """Put a blob at ``to``: a hard link where that can be, else a copy; whole or not at all."""
    if is_untouched(to, path(digest).stat().st_size):
        return
    temporary = to.with_name(f"{ABANDONED}{uuid4().hex}")
    try:
        try:
            os.link(path(digest), temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
            shutil.copyfile(path(digest), temporary)
            seal(temporary)
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(
    error: OSError, folder: Path, *, what: str = "layers", otherwise: str = "set LABRIG_CACHE to another folder"
) -> BuildError:
    """The error for a store, or a layout, that cannot be written."""
    free = ""
    with contextlib.suppress(OSError):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = f"; {megabytes(shutil.disk_usage(there).free)} free"
    return BuildError(
        f"{what} cannot be written: {error.filename or folder}",
        found=f"{error.strerror or error}{free}",
        fix=f"make room or make it writable, or {otherwise}",
    )


def remember(title: str, digests: Sequence[str]) -> None:
    """Note that blobs which were not made here belong together, so that `invoke clean` leaves them."""
    _write_note(key("remembered", title), {"title": title, "blobs": list(digests), "wheels": []})


def stale(wheels: Iterable[str]) -> list[Path]:
    """What can go: layers and bytecode of a wheel that is not among the digests ``wheels``, of what is not made from
    wheels all but the newest of a title, and what was never finished."""
    known = set(wheels)
    notes = _entries(home.layers() / "keys")
    newest: dict[str, Path] = {}
    kept: dict[Path, list[str]] = {}
    for note in sorted(notes, key=lambda one: one.stat().st_mtime):
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
            title, digests, of = str(said["title"]), list(said["blobs"]), set(said["wheels"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        if not of:
            kept.pop(newest.get(title, note), None)
            newest[title] = note
        if of <= known:
            kept[note] = digests
    blobs = {digest.removeprefix("sha256:") for digests in kept.values() for digest in digests}
    found = [one for one in notes if one not in kept]
    found += [one for one in _entries(home.layers() / "blobs" / "sha256") if one.name not in blobs]
    return found + [one for one in _entries(home.layers() / "bytecode") if one.name.partition("-")[0] not in known]


def _write_note(of: str, said: dict[str, object]) -> None:
    write_atomically(_note(of), json.dumps(said) + "\n")


def _note(of: str) -> Path:
    return home.layers() / "keys" / f"{of}.json"


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
