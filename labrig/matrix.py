"""The compatibility matrix: the tables in labrig/data, read (their README explains every column).

A torch release, a CUDA toolkit, a GPU is a row there and never a line here. ``unconfirmed`` in a table means "not
found out"; it comes out of here as None (or is absent from a list), never as yes or no.

A table that cannot be read, or that holds a value outside its column, raises UsageError naming file, line and column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from .errors import UsageError

PLATFORMS = ("linux_x86_64", "linux_aarch64", "macos_arm64", "windows_amd64")
DATA = Path(__file__).parent / "data"

SETTLED_BEHIND = 2  # so many releases behind the newest stable, a Python may still be recommended
NO_LSE = "no LSE atomics"  # defects.tsv: wheels that die at import on a processor without them

_NONE = "-"  # does not apply, or there is none
_UNCONFIRMED = "unconfirmed"
_CONFIDENCE = ("measured", "high", "medium", _UNCONFIRMED)
# Jetson chips before Thor: NVIDIA does not promise that they run code compiled for the desktop parts.
_JETSON_BEFORE_THOR = frozenset({"5.3", "6.2", "7.2", "8.7"})

Row = Mapping[str, str]
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Release:
    """One torch release (releases.tsv)."""

    torch: str
    torchvision: str | None  # the matching version; None = none exists
    torchaudio: str | None
    glibc: Mapping[str, str | None]  # Linux platform -> lowest glibc by wheel tag; None = unconfirmed
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One build of one torch release (cuda_variants.tsv); removed ones are listed with no platforms."""

    torch: str
    name: str  # "cpu", "cu130", "rocm7.2", "xpu"
    kind: str  # "cpu", "cuda", "rocm", "xpu"
    cuda: str | None  # full toolkit version, "13.0.3"; as on Linux where the platforms differ
    platforms: tuple[str, ...]  # where a wheel is known to exist
    unconfirmed: tuple[str, ...]  # where nobody has seen whether there is one
    default_on: tuple[str, ...]  # where a plain install from the default index gives this build
    index_path: str  # on the PyTorch wheel index
    note: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class MacFloor:
    """Lowest macOS for one torch release, Apple silicon (macos.tsv)."""

    install: str  # by the wheel's tag
    mps: str  # with a working MPS device
    sources: tuple[str, ...]


@dataclass(frozen=True)
class CondaBuild:
    """One build of torch on conda-forge for one platform (conda.tsv); the package there is called pytorch."""

    build: str  # the pattern of its build string, "cpu_*", "cuda130_*"
    cuda: str | None  # toolkit, "13.0"
    glibc: str | None  # lowest glibc, which the solver knows as __glibc
    archs: tuple[str, ...]  # compute capabilities with native code; () without CUDA
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """One compute capability (gpus.tsv)."""

    capability: str
    family: str
    cards: tuple[str, ...]
    jetson: bool
    platform: str  # of the wheels that were looked at for it
    driver_last: str | None  # last driver branch, "R580", or "JetPack"; None = still supported by new branches
    driver_floor: str | None  # lowest Linux driver that knows the card, where that is above the variant's own floor
    driver_floor_windows: str | None  # the same for the Windows driver, which is also the one that WSL2 uses
    torch_last: str | None  # newest torch with code for it; None = no official wheel is known to have any
    torch_last_variants: tuple[str, ...]
    advice: str
    confidence: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Python:
    """One Python minor release (python.tsv); free-threaded builds ("3.14t") are rows of their own."""

    minor: str
    released: str  # date
    end: str  # of support: date or month
    status: str
    torch_first: str | None  # releases with wheels on all platforms
    torch_last: str | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """One official image that brings torch (images.tsv)."""

    name: str
    pattern: str  # of its tags, with <torch> and <X.Y> of CUDA
    platforms: tuple[str, ...]  # Docker's words: amd64, arm64
    contains: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class ColabRuntime:
    """One published runtime of Google Colab (colab.tsv)."""

    name: str  # "latest (2026-08-19)", "2026.07"
    python: str | None  # None = unconfirmed, as below
    torch: str | None
    cuda: str | None
    os: str | None
    confidence: str
    note: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where facts were read (sources.tsv)."""

    id: str
    name: str
    where: str
    read: str  # date
    kind: str  # measured, primary, secondary


# --- versions ---------------------------------------------------------------------------------------------------------


def numbers(version: str) -> tuple[int, ...]:
    """The dotted numbers of a version, for ordering: "2.10.0" is (2, 10, 0). UsageError if it is anything else."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", version):
        raise UsageError("not a dotted version", found=repr(version), fix="write numbers and dots, such as 580.65.06")
    return tuple(int(part) for part in version.split("."))


def at_least(version: str, floor: str) -> bool:
    """Whether a dotted version reaches a floor, number by number; missing numbers are zero ("580" equals "580.0")."""
    have, need = numbers(version), numbers(floor)
    width = max(len(have), len(need))
    return have + (0,) * (width - len(have)) >= need + (0,) * (width - len(need))


# --- reading ----------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[Row, ...]:
    """The rows of one TSV file: a header line, no quoting, no empty field.

    Raises UsageError naming the file and line when a row has another number of fields, an empty field, or when the file
    cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the table {path.name}", found=str(error), fix="restore the file") from error
    if not lines:
        raise UsageError(f"{path.name}: no header line", found="an empty file", fix="restore the file")
    header, rows = lines[0], []
    for line, fields in enumerate(lines[1:], start=2):
        if len(fields) != len(header):
            raise UsageError(
                f"{path.name}, line {line}: wrong number of fields",
                found=f"{len(fields)}, the header names {len(header)}",
                fix="separate fields by one tab; write - for none, unconfirmed for unknown",
            )
        row = dict(zip(header, fields, strict=True))
        if empty := [column for column, value in row.items() if not value.strip()]:
            raise _wrong(path.name, line, empty[0], "", "a value, - for none, or unconfirmed")
        rows.append(row)
    return tuple(rows)


def _wrong(file: str, line: int, column: str, found: str, allowed: str) -> UsageError:
    return UsageError(f"{file}, line {line}: column {column} is wrong", found=repr(found), fix=f"write {allowed}")


@dataclass(frozen=True)
class _Line:
    """One row while it is turned into a record: knows where it stands, so that errors can say it."""

    file: str
    number: int
    row: Row

    def text(self, column: str) -> str:
        if column not in self.row:
            raise UsageError(
                f"{self.file}: no column {column}", found=", ".join(self.row), fix="restore the header line"
            )
        return self.row[column]

    def version(self, column: str) -> str:
        if (value := self.known_version(column)) is None:
            raise self.wrong(column, "a version")
        return value

    def known_version(self, column: str) -> str | None:
        """A version, or None for - and unconfirmed. A remark may follow in brackets: "13.2.2 (Linux)"."""
        value = self.text(column)
        if value in (_NONE, _UNCONFIRMED):
            return None
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)*)(?: \([^)]*\))?", value)
        if match is None:
            raise self.wrong(column, "a version such as 2.13.0, - for none, or unconfirmed")
        return match[1]

    def words(self, column: str, pattern: str = r"\S+") -> tuple[str, ...]:
        """A list separated by single spaces; () for - and for unconfirmed."""
        value = self.text(column)
        if value in (_NONE, _UNCONFIRMED):
            return ()
        if not all(re.fullmatch(pattern, word) for word in value.split(" ")):
            raise self.wrong(column, f"words that match {pattern}, separated by one space")
        return tuple(value.split(" "))

    def one_of(self, column: str, allowed: Sequence[str]) -> str:
        if (value := self.text(column)) not in allowed:
            raise self.wrong(column, " or ".join(allowed))
        return value

    def wrong(self, column: str, allowed: str) -> UsageError:
        return _wrong(self.file, self.number, column, self.text(column), allowed)


def _records(
    name: str, build: Callable[[_Line], _Record], key: Callable[[_Record], tuple[str, ...]]
) -> Iterable[tuple[tuple[str, ...], _Record]]:
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(read_table(DATA / f"{name}.tsv"), start=2):
        record = build(_Line(f"{name}.tsv", number, row))
        if key(record) in seen:
            raise UsageError(
                f"{name}.tsv, line {number}: a second row for {' '.join(key(record))}",
                found="two rows that can disagree",
                fix="remove one",
            )
        seen.add(key(record))
        yield key(record), record


_SOURCE = r"S[0-9]{2,}"
_PYTHON = r"3\.[0-9]+t?|py3"
_CAPABILITY = r"[0-9]+\.[0-9]"


@cache
def _sources() -> Mapping[str, Source]:
    def build(line: _Line) -> Source:
        if not re.fullmatch(_SOURCE, line.text("id")):
            raise line.wrong("id", "S and a number")
        kind = line.one_of("kind", ("measured", "primary", "secondary"))
        return Source(line.text("id"), line.text("name"), line.text("where"), line.text("read"), kind)

    return {key[0]: record for key, record in _records("sources", build, lambda record: (record.id,))}


@cache
def _releases() -> Mapping[str, Release]:
    def build(line: _Line) -> Release:
        return Release(
            torch=line.version("torch"),
            torchvision=line.known_version("torchvision"),
            torchaudio=line.known_version("torchaudio"),
            glibc=MappingProxyType(
                {f"linux_{arch}": line.known_version(f"glibc_{arch}") for arch in ("x86_64", "aarch64")}
            ),
            sources=line.words("src", _SOURCE),
        )

    found = {key[0]: record for key, record in _records("releases", build, lambda record: (record.torch,))}
    return dict(sorted(found.items(), key=lambda item: numbers(item[0])))


@cache
def _variants() -> Mapping[tuple[str, ...], Variant]:
    def build(line: _Line) -> Variant:
        there = {name: line.one_of(name, ("yes", "no", _UNCONFIRMED)) for name in PLATFORMS}
        if stray := set(line.words("pypi_default_on")) - set(PLATFORMS):
            raise line.wrong("pypi_default_on", f"platforms of {', '.join(PLATFORMS)}, not {', '.join(sorted(stray))}")
        return Variant(
            torch=line.version("torch"),
            name=line.text("variant"),
            kind=line.one_of("kind", ("cpu", "cuda", "rocm", "xpu")),
            cuda=line.known_version("cuda"),
            platforms=tuple(name for name, value in there.items() if value == "yes"),
            unconfirmed=tuple(name for name, value in there.items() if value == _UNCONFIRMED),
            default_on=line.words("pypi_default_on"),
            index_path=line.text("index_path"),
            note="" if line.text("note") == _NONE else line.text("note"),
            sources=line.words("src", _SOURCE),
        )

    return dict(_records("cuda_variants", build, lambda record: (record.torch, record.name)))


@dataclass(frozen=True)
class _Wheel:
    package: str
    version: str
    torch: str
    platform: str
    tag: str
    pythons: tuple[str, ...]
    sources: tuple[str, ...]


@cache
def _wheels() -> Mapping[tuple[str, ...], _Wheel]:
    def build(line: _Line) -> _Wheel:
        return _Wheel(
            package=line.one_of("package", ("torch", "torchvision", "torchaudio")),
            version=line.version("version"),
            torch=line.version("torch"),
            platform=line.one_of("platform", (*PLATFORMS, "macos_x86_64")),
            tag=line.text("wheel_tag"),
            pythons=line.words("python", _PYTHON),
            sources=line.words("src", _SOURCE),
        )

    return dict(_records("wheels", build, lambda record: (record.package, record.version, record.platform)))


@dataclass(frozen=True)
class _Archs:
    key: tuple[str, ...]  # torch, variant, platform
    list: tuple[str, ...] | None  # None = unconfirmed
    sources: tuple[str, ...]


@cache
def _archs() -> Mapping[tuple[str, ...], _Archs]:
    def build(line: _Line) -> _Archs:
        # A list that is only guessed (conf unconfirmed) is as unknown as one that is absent.
        sure = line.one_of("conf", _CONFIDENCE) != _UNCONFIRMED
        capabilities = line.words("archs", _CAPABILITY)
        key = (line.version("torch"), line.text("variant"), line.one_of("platform", PLATFORMS))
        return _Archs(key, capabilities if sure and capabilities else None, line.words("src", _SOURCE))

    return dict(_records("gpu_arch", build, lambda record: record.key))


@dataclass(frozen=True)
class _Driver:
    variant: str
    toolkit: str
    floors: Mapping[str, str | None]  # os -> lowest driver
    shipped: str | None  # the Linux driver that came with the toolkit
    sources: tuple[str, ...]


@cache
def _drivers() -> Mapping[tuple[str, ...], _Driver]:
    def build(line: _Line) -> _Driver:
        floors = {system: line.known_version(f"min_{system}") for system in ("linux", "windows")}
        shipped = None if " " in line.text("shipped_linux") else line.known_version("shipped_linux")
        return _Driver(line.text("variant"), line.text("toolkit"), floors, shipped, line.words("src", _SOURCE))

    return dict(_records("drivers", build, lambda record: (record.variant, record.toolkit)))


@cache
def _gpus() -> Mapping[str, Gpu]:
    def build(line: _Line) -> Gpu:
        if not re.fullmatch(_CAPABILITY, line.text("cc")):
            raise line.wrong("cc", "a compute capability such as 8.6")
        last = line.text("driver_last")
        return Gpu(
            capability=line.text("cc"),
            family=line.text("family"),
            cards=tuple(line.text("cards").split(", ")),
            jetson=line.one_of("class", ("desktop", "datacenter", "jetson")) == "jetson",
            platform=line.one_of("platform", PLATFORMS),
            driver_last=None if last in ("ongoing", _UNCONFIRMED) else last,
            driver_floor=line.known_version("driver_floor_linux"),
            driver_floor_windows=line.known_version("driver_floor_windows"),
            torch_last=line.known_version("torch_last"),
            torch_last_variants=line.words("torch_last_variants"),
            advice=line.text("advice"),
            confidence=line.one_of("conf", _CONFIDENCE),
            sources=line.words("src", _SOURCE),
        )

    return {key[0]: record for key, record in _records("gpus", build, lambda record: (record.capability,))}


@cache
def _macs() -> Mapping[tuple[str, ...], tuple[str, MacFloor | None]]:
    @dataclass(frozen=True)
    class Mac:
        key: tuple[str, ...]
        tag: str
        floor: MacFloor | None

    def build(line: _Line) -> Mac:
        key = (line.version("torch"), line.one_of("arch", ("arm64", "x86_64")))
        install, mps = line.known_version("macos_install_min"), line.known_version("macos_mps_min")
        sources = line.words("src", _SOURCE)
        return Mac(key, line.text("wheel_tag"), MacFloor(install, mps, sources) if install and mps else None)

    return {key: (record.tag, record.floor) for key, record in _records("macos", build, lambda record: record.key)}


# conda's own names for the platforms (conda's docs call them subdirs).
SUBDIRS = MappingProxyType({"linux_x86_64": "linux-64", "linux_aarch64": "linux-aarch64", "macos_arm64": "osx-arm64"})
_OTHER_SUBDIRS = ("win-64", "osx-64")  # in the table, and no platform of a target


@cache
def _conda_builds() -> Mapping[tuple[str, ...], CondaBuild]:
    @dataclass(frozen=True)
    class Build:
        key: tuple[str, ...]
        build: CondaBuild

    def build(line: _Line) -> Build:
        subdir = line.one_of("subdir", (*SUBDIRS.values(), *_OTHER_SUBDIRS))
        kind, cuda = line.one_of("kind", ("cpu", "cuda", "cpu+mps")), line.known_version("cuda")
        pattern = line.text("build")
        if not re.fullmatch(r"[a-z0-9_]+\*", pattern):
            raise line.wrong("build", "the pattern of a build string, such as cpu_*")
        archs, sources = line.words("archs", _CAPABILITY), line.words("src", _SOURCE)
        if (kind == "cuda") != (cuda is not None):
            raise line.wrong("cuda", "a version for kind cuda, - for the others")
        return Build(
            (line.version("torch"), cuda or kind, subdir),
            CondaBuild(pattern, cuda, line.known_version("glibc_min"), archs, sources),
        )

    return {key: record.build for key, record in _records("conda", build, lambda record: record.key)}


@cache
def _pythons() -> Mapping[str, Python]:
    def build(line: _Line) -> Python:
        if not re.fullmatch(_PYTHON, line.text("python")):
            raise line.wrong("python", "a minor version such as 3.13 or 3.13t")
        return Python(
            minor=line.text("python"),
            released=line.text("released"),
            end=line.text("end_of_support"),
            status=line.text("status"),
            torch_first=line.known_version("torch_first_all_platforms"),
            torch_last=line.known_version("torch_last_all_platforms"),
            sources=line.words("src", _SOURCE),
        )

    return {key[0]: record for key, record in _records("python", build, lambda record: (record.minor,))}


@dataclass(frozen=True)
class _Defect:
    key: tuple[str, ...]  # defect, platform
    first: str
    last: str
    sources: tuple[str, ...]


@cache
def _defects() -> Mapping[tuple[str, ...], _Defect]:
    def build(line: _Line) -> _Defect:
        key = (line.one_of("defect", (NO_LSE,)), line.one_of("platform", PLATFORMS))
        return _Defect(key, line.version("torch_first"), line.version("torch_last"), line.words("src", _SOURCE))

    return dict(_records("defects", build, lambda record: record.key))


@cache
def _images() -> Mapping[tuple[str, ...], Image]:
    def build(line: _Line) -> Image:
        return Image(
            line.text("image"), line.text("tag_pattern"), line.words("platforms"), line.text("contains"),
            line.words("src", _SOURCE),
        )  # fmt: skip

    return dict(_records("images", build, lambda record: (record.name, record.pattern)))


@cache
def _colab_runtimes() -> Mapping[tuple[str, ...], ColabRuntime]:
    def build(line: _Line) -> ColabRuntime:
        return ColabRuntime(
            name=line.text("runtime"),
            python=line.known_version("python"),
            torch=line.known_version("torch"),
            cuda=line.known_version("cuda"),
            os=None if line.text("os") == _UNCONFIRMED else line.text("os"),
            confidence=line.one_of("conf", _CONFIDENCE),
            note=line.text("note"),
            sources=line.words("src", _SOURCE),
        )

    return dict(_records("colab", build, lambda record: (record.name,)))


# --- questions --------------------------------------------------------------------------------------------------------


def releases() -> tuple[str, ...]:
    """The torch versions in the tables, oldest first."""
    return tuple(_releases())


def release(torch: str) -> Release | None:
    """One torch release; None if the tables do not have it."""
    return _releases().get(torch)


def variants(torch: str) -> tuple[Variant, ...]:
    """All builds of a torch release, in the table's order, removed ones included (they have no platforms)."""
    return tuple(record for record in _variants().values() if record.torch == torch)


def variant(torch: str, name: str) -> Variant | None:
    """One build of a torch release; None if the tables do not have it."""
    return _variants().get((torch, name))


def default_variant(torch: str, platform: str) -> str | None:
    """The build that a plain install from the default index gives: "cu130", "cpu"; the Mac wheel (MPS too) is "cpu"."""
    return next((record.name for record in variants(torch) if platform in record.default_on), None)


def pythons(torch: str, platform: str) -> tuple[str, ...]:
    """The Pythons ("3.13", "3.14t") that torch has wheels for on a platform; () if there are none."""
    return companion_pythons("torch", torch, platform)


def companion_pythons(package: str, version: str, platform: str) -> tuple[str, ...]:
    """The Pythons that a torchvision or torchaudio version has wheels for on a platform; () if there are none.

    A wheel for any Python 3 (tag py3) goes as far as the torch release that it belongs to.
    """
    wheel = _wheels().get((package, version, platform))
    if wheel is None:
        return ()
    return pythons(wheel.torch, platform) if wheel.pythons == ("py3",) else wheel.pythons


def archs(torch: str, variant: str, platform: str) -> tuple[str, ...] | None:
    """The compute capabilities with native code in a build. None = unconfirmed, or no such CUDA build."""
    known = _archs().get((torch, variant, platform))
    return known.list if known else None


def conda_build(torch: str, variant: str, platform: str) -> CondaBuild | None:
    """conda-forge's build of torch for a platform, by the variant's name ("cpu", "cu130", "mps"); None = none is known.

    Of a CUDA variant the toolkit must be the same in its first two numbers. MPS is in the build for the CPU.
    """
    kind = {"cpu": "cpu", "mps": "cpu+mps"}.get(variant)
    if kind is None:
        known = _variants().get((torch, variant))
        kind = ".".join((known.cuda or "").split(".")[:2]) if known else ""
    return _conda_builds().get((torch, kind, SUBDIRS.get(platform, "")))


def driver_floor(variant: str, toolkit: str | None = None, os: str = "linux") -> str | None:
    """The lowest NVIDIA driver for a variant ("525.60.13", "580"), under CUDA's minor-version compatibility.

    With a toolkit ("13.0.3") the row for exactly that one; without, the strictest of the variant's rows. None = unknown
    or not CUDA. `os` is "linux" or "windows"; WSL2 runs on the Windows driver.
    """
    if os not in ("linux", "windows"):
        raise UsageError("driver_floor: no such system", found=repr(os), fix="linux or windows")
    rows = [row for row in _drivers().values() if row.variant == variant and toolkit in (None, row.toolkit)]
    floors = [floor for row in rows if (floor := row.floors[os]) is not None]
    return max(floors, key=numbers) if floors and len(floors) == len(rows) else None


def macos_floor(torch: str, python: str | None = None) -> MacFloor | None:
    """The lowest macOS for torch on Apple silicon. None = unknown, or no wheel.

    Some releases tag the wheels of a few Pythons for a newer macOS than the others; name the Python to get its own.
    """
    tag, floor = _macs().get((torch, "arm64"), ("", None))
    if floor is None or python is None:
        return floor
    for major, minor, listed in re.findall(r"macosx_([0-9]+)_([0-9]+)_arm64 \(([^)]*)\)", tag):
        if python in listed.split(" "):
            return MacFloor(f"{major}.{minor}", floor.mps, floor.sources)
    return floor


def intel_mac_last() -> str | None:
    """The newest torch with wheels for Intel Macs."""
    found = [torch for torch, arch in _macs() if arch == "x86_64"]
    return max(found, key=numbers) if found else None


def gpu(cc: str) -> Gpu | None:
    """What is known about a compute capability; None if the tables do not have it."""
    return _gpus().get(cc)


def gpus() -> tuple[Gpu, ...]:
    """All compute capabilities, in the table's order."""
    return tuple(_gpus().values())


def find_card(name: str) -> tuple[str, Gpu] | None:
    """The card of the tables that a name means, and its row: "NVIDIA GeForce GTX 1080", "gtx1080".

    Makers' words, sizes and forms are passed over, and "SUPER", "Ti", "Laptop" where the table has only the plain card.
    """
    cards = {_plain(card): (card, gpu) for gpu in gpus() for card in gpu.cards}
    wanted = _plain(name)
    for form in (wanted, re.sub(r"(super|max-q|laptop|mobile|sff)+$", "", wanted)):
        for shorter in (form, re.sub(r"(ti)?(super)?$", "", form)):
            if shorter in cards:
                return cards[shorter]
    return None


def _plain(name: str) -> str:
    text = re.sub(r"\((?!maxwell|pascal)[^)]*\)", " ", name.lower())
    text = re.sub(r"[-\s](sxm\d?|pcie?|nvl|hbm\d?e?|fhhl|\d+\s*gb)\b.*$", " ", text)
    text = re.sub(r"-\d+[abcq]\b", " ", text)  # a share of a card: GRID T4-4Q
    text = re.sub(r"nvidia|geforce|tesla|grid", " ", text)
    text = re.sub(r"\b(gpu|graphics|card|generation|with|design|workstation|server|edition)\b", " ", text)
    return re.sub(r"[\s_()]+", "", text)


def newest_driver() -> str:
    """The newest Linux driver that came with a CUDA toolkit in the tables."""
    return max((row.shipped for row in _drivers().values() if row.shipped), key=numbers)


def python(minor: str) -> Python | None:
    """What is known about a Python minor release; None if the tables do not have it."""
    return _pythons().get(minor)


def stable_pythons() -> tuple[Python, ...]:
    """The ordinary Pythons (not free-threaded) in the table, newest first: the first one is the newest stable."""
    ordinary = [row for row in _pythons().values() if not row.minor.endswith("t")]
    return tuple(sorted(ordinary, key=lambda row: numbers(row.minor), reverse=True))


def settled_python(pythons: Sequence[str]) -> str | None:
    """Of these Pythons the newest that is one or two releases behind the newest stable, else the newest ordinary one.

    By then what a course needs has wheels for it, and security fixes go on for years.
    """
    stable = [row.minor for row in stable_pythons()]
    behind = [minor for minor in stable[1 : SETTLED_BEHIND + 1] if minor in pythons]
    return next(iter((*behind, *(minor for minor in stable if minor in pythons))), None)


def images() -> tuple[Image, ...]:
    """Official images that bring torch."""
    return tuple(_images().values())


def colab_runtimes() -> tuple[ColabRuntime, ...]:
    """The published runtimes of Google Colab, the newest first."""
    return tuple(_colab_runtimes().values())


def has_defect(defect: str, torch: str, platform: str) -> bool:
    """Whether the wheels of a torch release have a defect of defects.tsv, from its first to its last release."""
    row = _defects().get((defect, platform))
    return row is not None and at_least(torch, row.first) and at_least(row.last, torch)


def conda_torch(subdir: str) -> tuple[str, ...]:
    """The torch releases that the table has on conda-forge for one of conda's platforms, such as osx-64."""
    return tuple(dict.fromkeys(key[0] for key in _conda_builds() if key[2] == subdir))


def cite(table: str, *key: str) -> tuple[str, ...]:
    """The ids of the sources of one row: cite("gpu_arch", "2.13.0", "cu130", "linux_x86_64"); () if there is no row."""
    rows: Mapping[Any, Any] = _CITED[table]()
    row = rows.get(key[0] if len(key) == 1 else key)
    return tuple(row.sources) if row else ()


_CITED: Mapping[str, Callable[[], Mapping[Any, Any]]] = MappingProxyType(
    {
        "releases": _releases,
        "wheels": _wheels,
        "cuda_variants": _variants,
        "gpu_arch": _archs,
        "drivers": _drivers,
        "gpus": _gpus,
        "python": _pythons,
        "defects": _defects,
    }
)


def runs_on(archs: Sequence[str], cc: str) -> bool:
    """Whether a GPU of capability `cc` runs a wheel with native code for `archs`.

    X.y runs code for X.z with z <= y and the same X. Jetson chips before Thor need an exact entry. PTX does not count:
    none of the wheels that were opened helps a newer GPU by it.
    """
    if cc in archs:
        return True
    if cc in _JETSON_BEFORE_THOR:
        return False
    major, minor = _capability(cc)
    return any(m == major and n <= minor for m, n in map(_capability, archs))


def _capability(text: str) -> tuple[int, int]:
    if not re.fullmatch(_CAPABILITY, text):
        raise UsageError("not a compute capability", found=repr(text), fix="write it as 8.6")
    major, minor = text.split(".")
    return int(major), int(minor)


def source(id: str) -> Source | None:
    """Where a fact comes from."""
    return _sources().get(id)
