"""Layers of an image, made from wheels, from bytecode and from the labs, without a daemon; docs/layers.md.

A wheel's files go into a tar as they are compressed in the wheel (labrig/tarball.py); each is inflated once, to hash
the tar and to prove the wheel's own CRC-32. The same wheels give the same bytes everywhere, so a layer is kept by the
digests of its wheels and shared by all targets of one Python.

Large wheels have a layer each. Small ones share a few, and a package's name alone decides which one: a package that is
added later changes one of these and no other layer.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib
from isal.igzip_lib import IsalError

from labrig import blobs, wheel, wheelhouse
from labrig.blobs import Layer
from labrig.crew import Crew
from labrig.errors import Interrupted
from labrig.files import CHUNK
from labrig.lock import Lock, Wheel
from labrig.progress import Progress
from labrig.tarball import FOLDER, Writer
from labrig.wheel import Entry, File, Places

VERSION = "1"  # of the layout: another one where the same wheels would become other bytes
LARGE = 4_000_000  # bytes: a wheel of this size has a layer of its own
SHARED = 8  # layers for all others
MOST = 64  # layers of large wheels; an engine stacks 127 at most (overlay2), and others come on top
THREADS = 4  # each takes a few megabytes, and half of the work holds the interpreter's lock
LAST = "torch"  # above all other large wheels: an engine without a store of blobs pulls anew what lies above a change


Contents = dict[str, int]  # path -> what its content is known by


@dataclass(frozen=True)
class Group:
    """Wheels that make a layer."""

    title: str
    wheels: tuple[Wheel, ...]


def group(wheels: Sequence[Wheel], sizes: Mapping[Wheel, int] | None = None) -> list[Group]:
    """Which wheels make which layer, lowest layer first."""
    size = sizes or {one: one.size for one in wheels}
    limit = LARGE
    while sum(size[one] >= limit for one in wheels) > MOST:
        limit *= 2
    large = sorted((one for one in wheels if size[one] >= limit), key=lambda one: (one.name == LAST, one.name))
    groups = [Group(f"{one.name} {one.version}", (one,)) for one in large]
    for number in range(SHARED):
        small = sorted((one for one in wheels if size[one] < limit and share(one.name) == number), key=_by_name)
        if small:
            more = f" and {len(small) - 1} other small ones" if small[1:] else ""
            groups.append(Group(f"{small[0].name} {small[0].version}{more}", tuple(small)))
    return groups


def _by_name(one: Wheel) -> str:
    return one.name


def share(name: str) -> int:
    """The number of the shared layer that a small package belongs to: by its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % SHARED


def of_wheels(lock: Lock, store: Callable[[], Path], places: Places, *, quiet: bool = False) -> list[Layer]:
    """The layers of all wheels of a lock, found or made; ``store`` gives the wheelhouse and is called if one is made.

    Raises:
        BuildError: a wheel is not one; the disk is full. What was finished before is kept.
        Interrupted: Ctrl-C.
    """
    groups = group(lock.wheels)
    keys = {one: _key(one, places) for one in groups}
    found = {one: blobs.find(keys[one]) for one in groups}
    if todo := [one for one in groups if found[one] is None]:
        folder = store()
        with Progress("layers", quiet=quiet) as progress:
            progress.start(sum(one.size for each in todo for one in each.wheels))
            known: dict[Wheel, Contents] = {}
            found |= _make_all(todo, keys, folder, places, progress, known)
        _say_overlaps(lock, folder, places, known)
    return [layer for layer in found.values() if layer is not None]


def _key(one: Group, places: Places) -> str:
    return blobs.key("wheels", VERSION, places.prefix, places.python, *(wheel.sha256 for wheel in one.wheels))


def _make_all(
    todo: list[Group],
    keys: Mapping[Group, str],
    folder: Path,
    places: Places,
    progress: Progress,
    known: dict[Wheel, Contents],
) -> dict[Group, Layer]:
    """Make layers side by side, and note in ``known`` what the wheels bring."""
    crew = Crew(min(os.cpu_count() or 1, THREADS))

    def make(one: Group) -> Layer:
        read = [(each, wheel.read(wheelhouse.find(each, folder), places)) for each in one.wheels]

        def write(writer: Writer) -> None:
            sources = [(wheelhouse.find(each, folder), files, each.size) for each, files in read]
            write_files(writer, sources, crew.check, progress)

        layer = blobs.make(keys[one], one.title, write, [each.sha256 for each in one.wheels])
        known.update({each: _contents(files) for each, files in read})
        return layer

    largest_first = sorted(todo, key=lambda one: -sum(each.size for each in one.wheels))
    try:
        return crew.each(make, largest_first)
    except KeyboardInterrupt:
        raise Interrupted("the build was interrupted", fix="run it again: layers that were finished are kept") from None


def write_files(
    writer: Writer,
    sources: Iterable[tuple[Path, list[File], int]],
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> None:
    """Put the files of archives into a tar, in order of their paths, the folders above them first.

    A path that two archives bring is written once, from the first; see :func:`_say_overlaps`.

    Raises:
        BuildError: an entry is not what its archive's directory says.
    """
    folders: set[str] = set()
    done: set[str] = set()
    for path, files, size in sources:
        told = 0
        with path.open("rb") as archive:
            for file in files:
                check()
                if file.path in done:
                    continue
                done.add(file.path)
                if file.path in folders or not write_folders(writer, file.path, folders, done):
                    raise wheel.refuse(
                        path, "a file where another wheel has a folder, or a folder for a file", file.path
                    )
                mode = 0o755 if file.executable else 0o644
                if isinstance(file.content, bytes):
                    writer.start(file.path, len(file.content), mode)
                    writer.data(file.content)
                    continue
                writer.start(file.path, file.content.size, mode)
                try:
                    _copy(archive, file.content, writer, check)
                except (ValueError, IsalError) as error:  # type: ignore[misc]  # the stub says it is a value
                    raise wheel.refuse(path, str(error), file.content.name) from error
                told += file.content.packed
                if progress and told > CHUNK:
                    progress.advance(told)
                    size -= told
                    told = 0
        if progress:
            progress.advance(size)


def write_folders(writer: Writer, path: str, folders: set[str], files: Collection[str] = ()) -> bool:
    """Put the folders above a path into the tar, unless they are there; False if one is among ``files``."""
    above = path.rpartition("/")[0]
    if above and above not in folders:
        if above in files or not write_folders(writer, above, folders, files):
            return False
        folders.add(above)
        writer.start(above, mode=0o755, kind=FOLDER)
    return True


def _copy(archive: BinaryIO, entry: Entry, writer: Writer, check: Callable[[], None]) -> None:
    """Copy the stream of an entry. Raises what :func:`labrig.wheel.content` raises."""
    pieces = wheel.content(archive, entry)
    if entry.size == 0:
        for _ in pieces:  # nothing to write, yet to prove
            check()
        return
    writer.begin()
    for packed, plain in pieces:
        check()
        writer.stream(packed, plain)
    writer.end(entry.crc, entry.size)


def _contents(files: Iterable[File]) -> Contents:
    """What two wheels are compared by: for each path a number that is the same for the same content."""
    return {
        file.path: isal_zlib.crc32(file.content) | len(file.content) << 32
        if isinstance(file.content, bytes)
        else file.content.crc | file.content.size << 32
        for file in files
    }


def _say_overlaps(lock: Lock, folder: Path, places: Places, known: Mapping[Wheel, Contents]) -> None:
    """Say on stderr where two wheels bring another file for one path; whoever installs them one by one has the last."""
    owners: dict[str, tuple[Wheel, int]] = {}
    folders: set[str] = set()
    for one in (each for layer in group(lock.wheels) for each in layer.wheels):
        contents = known.get(one) or _contents(wheel.read(wheelhouse.find(one, folder), places))
        for path, content in contents.items():
            other, there = owners.setdefault(path, (one, content))
            if there != content:
                print(f"/{wheel.printable(path)} is in {other.name} and, different, in {one.name}", file=sys.stderr)
            above = path.rpartition("/")[0]
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
    for path in sorted(folders & owners.keys()):
        name = wheel.printable(path)
        print(f"/{name} is a file in {owners[path][0].name}, a folder in another wheel", file=sys.stderr)
