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
from installer.utils import SCHEME_NAMES, Scheme, construct_record_file, fix_shebang

from labrig.errors import BuildError

if TYPE_CHECKING:
    from installer.scripts import ScriptSection

INSTALLER = b"labrig\n"
SHEBANG = b"#!python"  # what stands for the environment's interpreter in a wheel's scripts
LOCAL = 30  # bytes of a local header before the name (APPNOTE.TXT 4.3.7)
LARGEST_TEXT = 64_000_000  # bytes of a file under .dist-info
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
            "headers": f"{self.prefix}/include/site/python{self.python}/{distribution}",
        }[name]


def read(path: Path, places: Places) -> list[File]:
    """The files that a wheel installs, in order of their paths.

    Raises:
        BuildError: it is no wheel that can be installed; the message names wheel and entry.
    """
    with opened(path) as archive:
        entries = read_entries(archive, path.stat().st_size)
        source = _Source(archive, entries)
        destination = _Destination(places, source.distribution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # bytecode that a wheel brings is left out, as it says
            install(source, destination, {"INSTALLER": INSTALLER})
        return destination.files


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel's archive; whatever is wrong with it becomes a BuildError that names the wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile, InstallerError, InvalidRecordEntry, configparser.Error, csv.Error, zlib.error, struct.error,
        ValueError, KeyError, IndexError, AssertionError, NotImplementedError, EOFError, OverflowError, RuntimeError,
    ) as error:  # fmt: skip
        said = error.args[0] if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
        raise refuse(path, said) from error


def refuse(path: Path, why: str, entry: str = "") -> BuildError:
    """The error for a wheel that cannot be installed."""
    return BuildError(
        f"{path.name} is not a wheel that can be installed",
        found=f"{printable(entry)}: {why}" if entry else why,
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


class _Source(WheelFile):
    """A wheel that hands out its entries instead of their content."""

    def __init__(self, archive: zipfile.ZipFile, entries: dict[str, Entry]) -> None:
        super().__init__(archive)
        self._entries = entries
        self._archive = archive

    @property
    def dist_info_filenames(self) -> list[str]:
        start = f"{self.dist_info_dir}/"
        return [name.removeprefix(start) for name in self._entries if name.startswith(start)]

    def read_dist_info(self, filename: str) -> str:
        name = f"{self.dist_info_dir}/{filename}"
        if name in self._entries and self._entries[name].size > LARGEST_TEXT:
            raise Refused(name, f"{self._entries[name].size} bytes of text")
        return super().read_dist_info(filename)

    def get_contents(self) -> Iterator[WheelContentElement]:
        lines = self.read_dist_info("RECORD").splitlines()
        rows: dict[str, tuple[str, str]] = {}
        for row in csv.reader(lines):
            if len(row) != 3:
                raise Refused(f"{self.dist_info_dir}/RECORD", f"a row of {len(row)} columns")
            rows[row[0]] = (row[1], row[2])
        data = f"{self.data_dir}/"
        for info in self._archive.infolist():
            name = info.filename
            if name[-1] == "/":
                continue
            if f"{name}/".startswith(data) and name.count("/") < 2:
                raise Refused(name, "it belongs to none of an installation's schemes")
            mode = info.external_attr >> 16
            content = _Content(self._archive, self._entries[name], *rows.get(name, ("", "")))
            yield (name, "", ""), cast(BinaryIO, content), bool(stat.S_ISREG(mode) and mode & 0o111)


@dataclass(slots=True)
class _Content:
    """What stands for a file's content while its place is being decided."""

    archive: zipfile.ZipFile
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

    @property
    def files(self) -> list[File]:
        """What was noted, in order of the paths."""
        return sorted(self._files.values(), key=lambda file: file.path)

    def write_script(self, name: str, module: str, attr: str, section: ScriptSection) -> RecordEntry:
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise Refused("entry_points.txt", f"a script cannot be named {name!r}")
        _, content = Script(name, module, attr, section).generate(self._places.interpreter, "posix")
        return self._note(Scheme("scripts"), name, content, executable=True)

    def write_file(self, scheme: Scheme, path: str | os.PathLike[str], stream: BinaryIO,
                   is_executable: bool) -> RecordEntry:  # fmt: skip
        name = str(path)
        if not isinstance(stream, _Content):  # INSTALLER
            return self._note(scheme, name, stream.read(), executable=False)
        if scheme == "scripts" and stream.entry.size <= LARGEST_TEXT:
            with stream.archive.open(stream.entry.name) as opened:
                if opened.read(len(SHEBANG)) == SHEBANG:
                    with fix_shebang(
                        io.BytesIO(stream.archive.read(stream.entry.name)), self._places.interpreter
                    ) as it:
                        return self._note(scheme, name, it.read(), is_executable)
        self._add(scheme, name, stream.entry, is_executable)
        return stream.record(name)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        root = self._roots[scheme]
        above = {name: f"{os.path.relpath(place, root)}/" for name, place in self._roots.items() if place != root}
        with construct_record_file(records, lambda name: above.get(name)) as made:
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
        if path in self._files:
            raise Refused(name, f"a second file for /{path}")
        self._files[path] = File(path, executable, content)
