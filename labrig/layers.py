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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from labrig.tarball import FOLDER, STORED, Writer, stored
from labrig.wheel import LOCAL, Entry, File, Places

VERSION = "1"  # of the layout: another one where the same wheels would become other bytes
LARGE = 4_000_000  # bytes: a wheel of this size has a layer of its own
SHARED = 8  # layers for all others
MOST = 64  # layers of large wheels; an engine stacks 127 at most (overlay2), and others come on top
WHOLE = 16 * CHUNK  # bytes that a file may become to be inflated at once
LAST = "torch"  # above all other large wheels: an engine without a store of blobs pulls anew what lies above a change


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
            groups.append(Group(f"{len(small)} small packages, {small[0].name} and others", tuple(small)))
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
            made = _make_all(todo, keys, folder, places, progress)
        _say_overlaps(lock, folder, places, made)
        found |= {one: layer for one, (layer, _) in made.items()}
    return [layer for layer in found.values() if layer is not None]


def _key(one: Group, places: Places) -> str:
    return blobs.key("wheels", VERSION, places.prefix, places.python, *(wheel.sha256 for wheel in one.wheels))


Files = list[tuple[Wheel, list[File]]]


def _make_all(
    todo: list[Group], keys: Mapping[Group, str], folder: Path, places: Places, progress: Progress
) -> dict[Group, tuple[Layer, Files]]:
    crew = Crew(os.cpu_count() or 1)

    def make(one: Group) -> tuple[Layer, Files]:
        read = [(each, wheel.read(wheelhouse.find(each, folder), places)) for each in one.wheels]

        def write(writer: Writer) -> None:
            sources = [(wheelhouse.find(each, folder), files, each.size) for each, files in read]
            write_files(writer, sources, crew.check, progress)

        return blobs.make(keys[one], one.title, write), read

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
                write_folders(writer, file.path, folders)
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


def write_folders(writer: Writer, path: str, folders: set[str]) -> None:
    """The folders above a path that are not in the tar yet."""
    above = path.rpartition("/")[0]
    if above and above not in folders:
        write_folders(writer, above, folders)
        folders.add(above)
        writer.start(above, mode=0o755, kind=FOLDER)


def _copy(archive: BinaryIO, entry: Entry, writer: Writer, check: Callable[[], None]) -> None:
    """Copy the stream of an entry, inflating it to hash what comes out.

    Raises:
        ValueError: it is not what the archive's directory says.
        IsalError: it is no deflate stream.
    """
    descriptor = archive.fileno()
    name = entry.name.encode()
    start = os.pread(descriptor, LOCAL + len(name) + 64 + min(entry.packed, CHUNK), entry.offset)
    if start[:4] != b"PK\3\4" or start[LOCAL : LOCAL + len(name)] not in (name, entry.name.encode("cp437", "ignore")):
        raise ValueError("its own header is another file's")
    begin = LOCAL + int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little")
    if not entry.stored and entry.packed <= CHUNK and entry.size <= WHOLE:
        packed = start[begin : begin + entry.packed]
        if len(packed) < entry.packed:
            packed = os.pread(descriptor, entry.packed, entry.offset + begin)
        inflate = isal_zlib.decompressobj(-15)
        plain = inflate.decompress(packed, entry.size + 1)
        _prove(entry, inflate.eof and not inflate.unused_data, len(plain), isal_zlib.crc32(plain))
        if plain:
            writer.whole(packed, plain, entry.crc)
        return
    if entry.size:
        writer.begin()
    pieces = _stored if entry.stored else _deflated
    size = crc = 0
    for packed, plain in pieces(descriptor, entry, entry.offset + begin):
        check()
        crc = isal_zlib.crc32(plain, crc)
        size += len(plain)
        if size > entry.size:
            raise ValueError(f"more than the {entry.size} bytes that the directory says")
        if entry.size:
            writer.stream(packed, plain)
    _prove(entry, True, size, crc)
    if entry.size:
        writer.end(crc, size)


def _deflated(descriptor: int, entry: Entry, at: int) -> Iterable[tuple[bytes, bytes]]:
    inflate = isal_zlib.decompressobj(-15)
    left = entry.packed
    while left:
        packed = os.pread(descriptor, min(left, CHUNK), at)
        if not packed:
            raise ValueError("the archive ends in it")
        at += len(packed)
        left -= len(packed)
        plain = inflate.decompress(packed, CHUNK)
        yield packed, plain
        while inflate.unconsumed_tail:
            yield b"", inflate.decompress(inflate.unconsumed_tail, CHUNK)
    while not inflate.eof and (plain := inflate.decompress(b"", CHUNK)):
        yield b"", plain
    if not inflate.eof or inflate.unused_data:
        raise ValueError("its stream does not end where the directory says")


def _stored(descriptor: int, entry: Entry, at: int) -> Iterable[tuple[bytes, bytes]]:
    left = entry.size
    while left:
        plain = os.pread(descriptor, min(left, STORED), at)
        if not plain:
            raise ValueError("the archive ends in it")
        at += len(plain)
        left -= len(plain)
        yield stored(plain, last=left == 0), plain


def _prove(entry: Entry, whole: bool, size: int, crc: int) -> None:
    if not whole or size != entry.size:
        raise ValueError(
            f"it inflates to {'' if whole else 'other than '}{size} bytes, the directory says {entry.size}"
        )
    if crc != entry.crc:
        raise ValueError(f"its CRC-32 is {crc:08x}, the directory says {entry.crc:08x}")


def _say_overlaps(lock: Lock, folder: Path, places: Places, made: Mapping[Group, tuple[Layer, Files]]) -> None:
    """Say on stderr where two wheels bring another file for one path; whoever installs them one by one has the last."""
    known: dict[str, tuple[Wheel, object]] = {}
    at_hand = {each: files for _, read in made.values() for each, files in read}
    for one in (each for layer in group(lock.wheels) for each in layer.wheels):
        files = at_hand.get(one) or wheel.read(wheelhouse.find(one, folder), places)
        for file in files:
            what = file.content if isinstance(file.content, bytes) else (file.content.crc, file.content.size)
            other = known.setdefault(file.path, (one, what))
            if other[1] != what:
                print(f"/{file.path} is in {other[0].name} and, different, in {one.name}", file=sys.stderr)
