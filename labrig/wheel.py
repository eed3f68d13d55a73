"""A wheel as an installer sees it: where each of its files goes, and where its bytes lie in the archive.

The rules are those of PyPA's `installer` (the binary distribution format of packaging.python.org), which is run
against a destination that only takes notes. Nothing is unpacked: a file's content stays an :class:`Entry`, except for
what an installer writes itself (scripts, RECORD, INSTALLER).

What no honest wheel holds is an error that names wheel and entry: paths that leave the environment, links, the same
name twice, entries that overlap, are encrypted or inflate beyond all measure.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from installer import install
from installer.destinations import WheelDestination
from installer.exceptions import InstallerError
from installer.records import Hash, InvalidRecordEntry, RecordEntry
from installer.scripts import Script
from installer.sources import WheelContentElement, WheelFile
from installer.utils import SCHEME_NAMES, Scheme, construct_record_file, fix_shebang, parse_entrypoints
from isal import isal_zlib
from isal.igzip_lib import IsalError
from packaging.utils import canonicalize_name

from labrig.errors import BuildError
from labrig.files import CHUNK
from labrig.tarball import STORED, stored

if TYPE_CHECKING:
    from installer.scripts import ScriptSection

INSTALLER = b"labrig\n"
SHEBANG = b"#!python"  # what stands for the environment's interpreter in a wheel's scripts
LOCAL = 30  # bytes of a local header before the name (APPNOTE.TXT 4.3.7)
LARGEST_TEXT = 64_000_000  # bytes of a file under .dist-info, or of a script
WHOLE = CHUNK  # bytes that a file may become to be inflated at once
PIECE = CHUNK // 4  # bytes of a stream that are read at once
# A wheel that inflates to more than the larger of these is a bomb: a hundred times its size (the wheels of the targets:
# 1.2 to 13 times), or so little that it does not matter.
RATIO, HARMLESS = 100, 256_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a zip archive: where it lies, how many bytes it takes there and inflated, and its CRC-32."""

    name: str
    offset: int  # of its local header
    packed: int
    size: int
    crc: int
    stored: bool  # not compressed


@dataclass(frozen=True, slots=True)
class File:
    """A file of an environment. ``path`` is absolute, without the leading slash."""

    path: str
    executable: bool
    content: Entry | bytes


@dataclass(frozen=True)
class Places:
    """Where an environment has what wheels bring; every path is absolute."""

    prefix: str
    python: str  # the minor version

    @property
    def site_packages(self) -> str:
        """The folder that is imported from."""
        return f"{self.prefix}/lib/python{self.python}/site-packages"

    @property
    def interpreter(self) -> str:
        """What scripts start with."""
        return f"{self.prefix}/bin/python"

    def scheme(self, name: str, distribution: str) -> str:
        """The folder of one of the schemes of a wheel (sysconfig's names)."""
        return {
            "purelib": self.site_packages,
            "platlib": self.site_packages,
            "scripts": f"{self.prefix}/bin",
            "data": self.prefix,
            "headers": f"{self.prefix}/include/site/python{self.python}/{canonicalize_name(distribution)}",
        }[name]


def read(path: Path, places: Places) -> list[File]:
    """The files that a wheel installs, in order of their paths.

    Raises:
        BuildError: it is no wheel that can be installed; the message names wheel and entry.
    """
    with opened(path) as (archive, file):
        source = _Source(archive, file, read_entries(archive, path.stat().st_size))
        source.check_scripts()
        destination = _Destination(places, source.distribution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # bytecode that a wheel brings is left out, as it says
            install(source, destination, {"INSTALLER": INSTALLER})
        destination.check_folders()
        return destination.files


@contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, BinaryIO]]:
    """A wheel's archive and its file; whatever is wrong with it becomes a BuildError that names the wheel."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive, file
    except (
        zipfile.BadZipFile, InstallerError, InvalidRecordEntry, configparser.Error, csv.Error, zlib.error, struct.error,
        ValueError, KeyError, IndexError, AssertionError, NotImplementedError, EOFError, OverflowError, RuntimeError,
    ) as error:  # fmt: skip
        said = error.args[0] if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
        raise refuse(path, str(said)) from error


def refuse(path: Path, why: str, entry: str = "") -> BuildError:
    """The error for a wheel that cannot be installed."""
    return BuildError(
        f"{path.name} is not a wheel that can be installed",
        found=f"{printable(entry)}: {why}" if entry else " ".join(why.split()),
        fix="lock another version of it (invoke lock --upgrade), or tell its authors",
    )


def printable(name: str) -> str:
    """A name out of an archive, for a message: short, and nothing that moves a terminal's cursor."""
    return ascii(name)[1:-1][:200]


def read_entries(archive: zipfile.ZipFile, size: int) -> dict[str, Entry]:
    """The files of an archive of ``size`` bytes, by name.

    Raises:
        Refused: one that could write elsewhere, or is not what the directory says.
    """
    found: dict[str, Entry] = {}
    folders: set[str] = set()
    total = 0
    for info in archive.infolist():
        name = info.filename
        if info.orig_filename != name or "\\" in name:
            raise Refused(info.orig_filename, "a name with a NUL or a backslash")
        is_folder = name.endswith("/")
        parts = name.rstrip("/").split("/")
        if name.startswith("/") or "" in parts or ".." in parts or "." in parts or len(name.encode()) > 4000:
            raise Refused(name, "a path that leads out of the environment, or is no path")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
            raise Refused(name, "a link or a special file, which a wheel cannot hold")
        if info.flag_bits & 0x1:
            raise Refused(name, "it is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(name, f"compressed by method {info.compress_type}; wheels are deflated or stored")
        if is_folder:
            folders.add("/".join(parts))
            continue
        if name in found:
            raise Refused(name, "it is there twice")
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.compress_size != info.file_size:
            raise Refused(name, f"{info.compress_size} bytes stored, the directory says {info.file_size}")
        found[name] = Entry(name, info.header_offset, info.compress_size, info.file_size, info.CRC, stored)
        total += info.file_size
        folders.update("/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    if both := folders & found.keys():
        raise Refused(min(both), "a file and a folder at once")
    if total > max(HARMLESS, RATIO * size):
        raise Refused("", f"{size} bytes that would become {total}")
    end = 0
    for entry in sorted(found.values(), key=lambda entry: entry.offset):
        if entry.offset < end:
            raise Refused(entry.name, "it overlaps with another entry")
        end = entry.offset + LOCAL + len(entry.name) + entry.packed
    return found


class Refused(ValueError):
    """What is wrong with an entry of an archive."""

    def __init__(self, entry: str, why: str) -> None:
        super().__init__(f"{printable(entry)}: {why}" if entry else why)


def content(archive: BinaryIO, entry: Entry) -> Iterator[tuple[bytes, bytes]]:
    """The deflate stream of an entry and what it inflates to, piece by piece, proven with the last one.

    A stored entry gives stored blocks. Whatever an entry claims to be, no piece is larger than :data:`WHOLE`.

    Raises:
        ValueError: it is not what the archive's directory says.
        IsalError: it is no deflate stream.
    """
    descriptor = archive.fileno()
    start = os.pread(descriptor, LOCAL + 4 * len(entry.name) + 64 + min(entry.packed, CHUNK), entry.offset)
    length = int.from_bytes(start[26:28], "little")
    begin = LOCAL + length + int.from_bytes(start[28:30], "little")
    alphabet = "utf-8" if start[7:8] and start[7] & 0x08 else "cp437"  # bit 11 of the flags
    if start[:4] != b"PK\3\4" or start[LOCAL : LOCAL + length].decode(alphabet) != entry.name:
        raise ValueError("its own header is another file's")
    if not entry.stored and entry.packed <= CHUNK and entry.size <= WHOLE:
        packed = start[begin : begin + entry.packed]
        if len(packed) < entry.packed:
            packed = os.pread(descriptor, entry.packed, entry.offset + begin)
        inflate = isal_zlib.decompressobj(-15)
        plain = inflate.decompress(packed, entry.size + 1)
        _prove(entry, inflate.eof and not inflate.unused_data, len(plain), isal_zlib.crc32(plain))
        yield packed, plain
        return
    size = crc = 0
    for packed, plain in (_stored if entry.stored else _deflated)(descriptor, entry, entry.offset + begin):
        crc = isal_zlib.crc32(plain, crc)
        size += len(plain)
        if size > entry.size:
            raise ValueError(f"more than the {entry.size} bytes that the directory says")
        yield packed, plain
    _prove(entry, True, size, crc)


def read_text(archive: BinaryIO, entry: Entry) -> bytes:
    """A small file of an archive.

    Raises:
        Refused: it is not small, or not what the archive's directory says.
    """
    if entry.size > LARGEST_TEXT:
        raise Refused(entry.name, f"{entry.size} bytes, too many for a text")
    try:
        return b"".join(plain for _, plain in content(archive, entry))
    except (ValueError, IsalError) as error:  # type: ignore[misc]  # the stub says it is a value
        raise Refused(entry.name, str(error)) from error


def _deflated(descriptor: int, entry: Entry, at: int) -> Iterator[tuple[bytes, bytes]]:
    inflate = isal_zlib.decompressobj(-15)
    left = entry.packed
    while left:
        packed = os.pread(descriptor, min(left, PIECE), at)
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


def _stored(descriptor: int, entry: Entry, at: int) -> Iterator[tuple[bytes, bytes]]:
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


def _script(script: _Content, interpreter: str) -> bytes | None:
    """A script with the environment's interpreter in it; None for a program that needs none."""
    if script.entry.size > LARGEST_TEXT:
        return None
    text = read_text(script.file, script.entry)
    if not text.startswith(SHEBANG):
        return None
    with fix_shebang(io.BytesIO(text), interpreter) as fixed:
        return fixed.read()


class _Source(WheelFile):
    """A wheel that hands out its entries instead of their content."""

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO, entries: dict[str, Entry]) -> None:
        super().__init__(archive)
        self._entries = entries
        self._archive = archive
        self._file = file

    @property
    def data_dir(self) -> str:
        """Spelled as the other folder, whatever the file is called."""
        return f"{self.dist_info_dir.removesuffix('.dist-info')}.data"

    @property
    def dist_info_filenames(self) -> list[str]:
        start = f"{self.dist_info_dir}/"
        return [name.removeprefix(start) for name in self._entries if name.startswith(start)]

    def read_dist_info(self, filename: str) -> str:
        name = f"{self.dist_info_dir}/{filename}"
        if name not in self._entries:
            raise Refused(name, "it is missing")
        return read_text(self._file, self._entries[name]).decode()

    def check_scripts(self) -> None:
        """Raises Refused for entry points that cannot be read; the error would not say where it was."""
        if "entry_points.txt" not in self.dist_info_filenames:
            return
        try:
            list(parse_entrypoints(self.read_dist_info("entry_points.txt")))
        except (configparser.Error, AssertionError, ValueError) as error:
            why = " ".join(printable(str(error)).split()) or "a script without module:callable"
            raise Refused(f"{self.dist_info_dir}/entry_points.txt", why) from error

    def get_contents(self) -> Iterator[WheelContentElement]:
        rows: dict[str, tuple[str, str]] = {}
        for row in csv.reader(self.read_dist_info("RECORD").splitlines()):
            if len(row) != 3:
                raise Refused(f"{self.dist_info_dir}/RECORD", f"a row of {len(row)} columns")
            rows[row[0]] = (row[1], row[2])
        data, ours = f"{self.data_dir}/", f"{self.dist_info_dir}/INSTALLER"
        for info in self._archive.infolist():
            name = info.filename
            if name[-1] == "/" or name == ours:
                continue
            if f"{name}/".startswith(data) and name.count("/") < 2:
                raise Refused(name, "it belongs to none of an installation's schemes")
            mode = info.external_attr >> 16
            content = _Content(self._file, self._entries[name], *rows.get(name, ("", "")))
            yield (name, "", ""), cast(BinaryIO, content), bool(stat.S_ISREG(mode) and mode & 0o111)


@dataclass(slots=True)
class _Content:
    """What stands for a file's content while its place is being decided."""

    file: BinaryIO
    entry: Entry
    hash: str  # these two as RECORD has them
    size: str

    def record(self, path: str) -> RecordEntry:
        """Its row; a wheel's own hash is kept, as its digest, which the lock holds, covers both."""
        name, _, value = self.hash.partition("=")
        return RecordEntry(path, Hash(name, value) if value else None, int(self.size) if self.size.isdigit() else None)


class _Destination(WheelDestination):
    """Notes what would be written where."""

    def __init__(self, places: Places, distribution: str) -> None:
        self._places = places
        self._roots = {name: places.scheme(name, distribution) for name in SCHEME_NAMES}
        self._files: dict[str, File] = {}
        self._scripts: dict[str, RecordEntry] = {}

    @property
    def files(self) -> list[File]:
        """What was noted, in order of the paths."""
        return sorted(self._files.values(), key=lambda file: file.path)

    def write_script(self, name: str, module: str, attr: str, section: ScriptSection) -> RecordEntry:
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise Refused("entry_points.txt", f"a script cannot be named {name!r}")
        _, content = Script(name, module, attr, section).generate(self._places.interpreter, "posix")
        self._scripts[name] = self._note(Scheme("scripts"), name, content, executable=True)
        return self._scripts[name]

    def check_folders(self) -> None:
        """Raises Refused where a file stands in the way of another one's folder."""
        folders = {path.rpartition("/")[0] for path in self._files}
        for folder in folders:
            while folder:
                if folder in self._files:
                    raise Refused(folder, "a file and a folder at once")
                folder = folder.rpartition("/")[0]

    def write_file(self, scheme: Scheme, path: str | os.PathLike[str], stream: BinaryIO,
                   is_executable: bool) -> RecordEntry:  # fmt: skip
        name = str(path)
        if not isinstance(stream, _Content):  # INSTALLER
            return self._note(scheme, name, stream.read(), executable=False)
        if scheme == "scripts":
            if name in self._scripts:  # an entry point of the same name holds, as with pip
                return self._scripts[name]
            if (content := _script(stream, self._places.interpreter)) is not None:
                return self._note(scheme, name, content, is_executable)
        self._add(scheme, name, stream.entry, is_executable)
        return stream.record(name)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        root = self._roots[scheme]
        above = {name: f"{os.path.relpath(place, root)}/" for name, place in self._roots.items() if place != root}
        once = {(name, record.path): (name, record) for name, record in records}.values()
        with construct_record_file(once, lambda name: above.get(name)) as made:
            self._note(scheme, record_file_path, made.read(), executable=False)

    def _note(self, scheme: Scheme, name: str, content: bytes, executable: bool) -> RecordEntry:
        self._add(scheme, name, content, executable)
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        return RecordEntry(name, Hash("sha256", sha256), len(content))

    def _add(self, scheme: Scheme, name: str, content: Entry | bytes, executable: bool) -> None:
        path = f"{self._roots[scheme]}/{name}"
        if path.startswith(f"{self._places.prefix}/lib64/"):  # in an environment a link to lib
            path = f"{self._places.prefix}/lib/{path.removeprefix(f'{self._places.prefix}/lib64/')}"
        path = path.lstrip("/")
        if path in self._files or path == f"{self._places.prefix}/lib64".lstrip("/"):
            raise Refused(name, f"a second file for /{path}")
        self._files[path] = File(path, executable, content)
