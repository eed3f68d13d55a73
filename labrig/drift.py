"""What has changed since the tables were read: new torch releases, CUDA lines that end, Pythons that lose their wheels.

``read_index`` asks the package index that pip uses, and the PyTorch index where it answers; ``compare`` is pure;
``propose`` writes what the index itself proves into labrig/data and a row to try into images/targets.toml. What was not
read from a wheel or an index is written as unconfirmed.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from labrig import matrix
from labrig.errors import FetchError, PendingError, UsageError
from labrig.files import write_atomically
from labrig.spec import Table

if TYPE_CHECKING:
    from unearth.fetchers import PyPIClient
    from unearth.link import Link

PACKAGES = ("torch", "torchvision")
_PLATFORM_TAGS = {
    r"(manylinux|linux).*_x86_64": "linux_x86_64",
    r"(manylinux|linux).*_aarch64": "linux_aarch64",
    r"macosx_.*_arm64": "macos_arm64",
    r"win_amd64": "windows_amd64",
}


@dataclass(frozen=True)
class File:
    """One wheel that an index lists, as its name says (binary distribution format, PyPA)."""

    name: str
    version: str  # without what follows a +
    local: str  # what follows it: "cu130"; empty on the default index
    python: str  # "3.13", "3.13t"; "py3" for any
    platform: str  # as in labrig/data
    tag: str  # the platform tag
    yanked: bool = False
    requires_python: str = ""
    uploaded: str = ""  # date


@dataclass(frozen=True)
class Index:
    """What the indexes list: files by package; the torch files of each variant of the PyTorch index; what failed."""

    files: Mapping[str, tuple[File, ...]]
    variants: Mapping[str, tuple[File, ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)  # file name -> METADATA of the wheels of new releases
    unreachable: str = ""  # why the PyTorch index could not be read


@dataclass(frozen=True)
class Drift:
    """One difference between the tables and the world."""

    kind: str
    what: str
    known: str
    found: str


COLUMNS = ("kind", "what", "in the tables", "found")


def rows(drifts: Iterable[Drift]) -> list[tuple[str, ...]]:
    """Drifts as rows of :data:`COLUMNS`."""
    return [(drift.kind, drift.what, drift.known, drift.found) for drift in drifts]


def to_json(drifts: Iterable[Drift], index: Index) -> dict[str, Any]:
    """The form of ``invoke update --json``."""
    return {"changed": [asdict(drift) for drift in drifts], "not compared": index.unreachable or None}


# --- reading ----------------------------------------------------------------------------------------------------------


def parse(name: str) -> File | None:
    """What a file's name says; None for what is no wheel, or none for a platform and Python of the tables."""
    try:
        _, version, _, tags = parse_wheel_filename(name)
    except (InvalidWheelFilename, ValueError):
        return None
    for tag in sorted(tags, key=str):
        known = (found for pattern, found in _PLATFORM_TAGS.items() if re.fullmatch(pattern, tag.platform))
        platform = next(known, "any" if tag.platform == "any" else "")
        python = re.fullmatch(r"cp3(\d+)", tag.interpreter)
        if platform and python and tag.abi in (f"cp3{python[1]}", f"cp3{python[1]}t", "none"):  # none: older Macs'
            minor = f"3.{python[1]}{'t' if tag.abi.endswith('t') else ''}"
            return File(name, version.public, version.local or "", minor, platform, tag.platform)
        if platform and tag.interpreter == "py3":
            return File(name, version.public, version.local or "", "py3", platform, tag.platform)
    return None


def read_index(table: Table, overrides: Sequence[str] = (), *, check: bool = True, write: bool = False) -> Index:
    """Ask the default package index, and the PyTorch index build by build, to ``check`` or to ``write``, not both.

    Raises:
        UsageError: neither of them, or both; or there is no index.
        FetchError: the default index cannot be read, or lists no torch.
    """
    if check == write:
        raise UsageError("update does one thing at a time", fix="invoke update --check, then invoke update --write")
    from unearth.collector import LinkCollectError

    from labrig import indexes
    from labrig.crew import Crew
    from labrig.search import Pages, Place

    sources = indexes.read_sources(table.indexes, overrides)
    if sources.default is None:
        raise UsageError("no package index to compare with", found="pip's no-index is on", fix="unset PIP_NO_INDEX")
    with indexes.open_client(sources) as client:
        pages, place = Pages(client, Crew(1)), Place("index", sources.default)
        links = {package: _links(pages, place, package) for package in PACKAGES}
        files = {package: tuple(filter(None, map(_file, links[package]))) for package in PACKAGES}
        if not files["torch"]:
            raise FetchError(
                f"{place} lists no wheel of torch", fix="name another with PIP_INDEX_URL, and run it again"
            )
        wanted = _one_each(link for link in links["torch"] if _is_new(_file(link)))
        wanted += _one_each(link for link in links["torchvision"] if wanted and _is_new_companion(_file(link)))
        metadata = {link.filename: text for link in wanted if (text := _metadata(client, link))}
        variants: dict[str, tuple[File, ...]] = {}
        why = ""
        roots = ((name, indexes.build_root(url)) for name, url in sources.named.items() if url)
        named, root = next(((name, root) for name, root in roots if root), ("", ""))
        if not root:
            why = "it is switched off, or no index of images/targets.toml has an address that ends in a build (/cpu)"
        for variant in _live_variants() if root else ():
            try:
                found = _links(pages, Place("index", f"{root}/{variant}", named), "torch")
            except FetchError as error:
                if isinstance(error.__cause__, LinkCollectError) and any(variants.values()):
                    found = []  # object stores answer 403 for a folder that is not there; the others are
                else:
                    why = error.found or error.what
                    break
            variants[variant] = tuple(filter(None, map(_file, found)))
    return Index(files, variants if not why else {}, metadata, why)


def _links(pages: Any, place: Any, package: str) -> list[Link]:
    from unearth.collector import LinkCollectError

    from labrig.indexes import redact
    from labrig.search import Unreachable

    try:
        found: list[Link] = pages.links(place, package)
    except (LinkCollectError, Unreachable, LookupError, RecursionError) as error:  # no such charset; endless JSON
        raise FetchError(
            f"{place} cannot be read",
            found=redact(str(error)),
            fix="look at the network, or name a mirror with PIP_INDEX_URL",
        ) from error
    return found


def _file(link: Link) -> File | None:
    found = parse(link.filename)
    if found is None:
        return None
    uploaded = link.upload_time.date().isoformat() if link.upload_time else ""
    return File(
        found.name, found.version, found.local, found.python, found.platform, found.tag, link.yank_reason is not None,
        link.requires_python or "", uploaded,
    )  # fmt: skip


def _one_each(links: Iterable[Link]) -> list[Link]:
    """One wheel for each version and Linux platform: the others of the same build demand the same."""
    found: dict[tuple[str, str], Link] = {}
    for link in links:
        file = _file(link)
        if file and file.platform.startswith("linux"):
            found.setdefault((file.version, file.platform), link)
    return list(found.values())


def _is_new(file: File | None) -> bool:
    return file is not None and file.version in _new_versions([file])


def _is_new_companion(file: File | None) -> bool:
    """A torchvision newer than those in the table: one of its wheels says which torch it is for."""
    if file is None or file.yanked or Version(file.version).is_prerelease:
        return False
    known = [release.torchvision for each in matrix.releases() if (release := matrix.release(each))]
    newest = max(Version(version) for version in known if version)
    return file.platform == "linux_x86_64" and Version(file.version) > newest


def _new_versions(files: Iterable[File]) -> list[str]:
    """Versions of torch that the tables do not have: final ones, not withdrawn, newer than the tables' oldest."""
    oldest = Version(matrix.releases()[0])
    found = {Version(file.version) for file in files if not file.yanked and file.platform in matrix.PLATFORMS}
    new = [each for each in found if not each.is_prerelease and each > oldest and str(each) not in matrix.releases()]
    return [str(each) for each in sorted(new) if re.fullmatch(r"\d+\.\d+\.\d+", str(each))]


def _metadata(client: PyPIClient, link: Link) -> str:
    """A wheel's METADATA: apart where the index gives it so (PEP 658), else from the end of the wheel, by ranges.

    Empty where neither can be had.
    """
    import httpx2

    try:
        if link.dist_info_link is not None:
            answer = client.get(link.dist_info_link.url)
            if answer.status_code == 200 and answer.text:
                return answer.text
        with zipfile.ZipFile(io.BufferedReader(_Remote(client, link.url_without_fragment), 1 << 16)) as wheel:
            (name,) = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            return wheel.read(name).decode("utf-8")
    except (httpx2.HTTPError, OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return ""


class _Remote(io.RawIOBase):
    """A file on a server that is read piece by piece (RFC 9110, range requests)."""

    def __init__(self, client: PyPIClient, url: str) -> None:
        self._client, self._url, self._at = client, url, 0
        # Not read before it is known to be a range: a server without ranges answers with the whole wheel.
        with client.stream("GET", url, headers={"Range": "bytes=0-0"}) as answer:
            total = re.fullmatch(r"bytes 0-0/(\d+)", answer.headers.get("content-range", ""))
            if answer.status_code != 206 or total is None:
                raise OSError(f"{url} gives no ranges")
        self._size = int(total[1])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        answer = self._client.get(self._url, headers={"Range": f"bytes={self._at}-{end - 1}"})
        if answer.status_code != 206 or len(answer.content) != end - self._at:
            raise OSError(f"{self._url} gives another range than it was asked for")
        buffer[: len(answer.content)] = answer.content
        self._at = end
        return len(answer.content)


def _live_variants() -> list[str]:
    """The CUDA builds, and the CPU's, that the newest three releases of the tables have or may have; the CPU's first.

    If that one cannot be had the index is out of reach; of any other, a refusal means that there is no such folder.
    """
    known = [build for torch in matrix.releases()[-3:] for build in matrix.variants(torch)]
    names = (b.name for b in known if b.kind in ("cpu", "cuda") and (b.platforms or b.unconfirmed))
    return list(dict.fromkeys(("cpu", *names)))


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(index: Index, table: Table, today: date) -> list[Drift]:
    """Every difference, the most important kind first."""
    torch = index.files["torch"]
    new = _new_versions(torch)
    found = [
        Drift("new release", f"torch {version}", f"newest {matrix.releases()[-1]}", _describe(version, index))
        for version in new
    ]
    for version in new:
        found += _lost_pythons(version, torch)
    found += _cuda_lines(index, [*matrix.releases(), *new])
    for version in matrix.releases():
        found += _known_release(version, torch)
    for name, target in table.targets.items():
        row = matrix.python(target.python)
        if row and _ended(row.end, today):
            found.append(Drift("Python out of support", f"target {name}", target.python, f"since {row.end}"))
    return found


def _describe(version: str, index: Index) -> str:
    files = [file for file in index.files["torch"] if file.version == version and not file.yanked]
    pythons = sorted({file.python for file in files}, key=_order)
    cuda = cuda_of(version, "linux_x86_64", index)
    default = f"; default on Linux x86_64: {cuda[0]}" if cuda else ""
    return f"Python {' '.join(pythons)}{default}"


def _lost_pythons(version: str, files: Sequence[File]) -> list[Drift]:
    """Pythons that the release before had on a platform and this one has no wheel for."""
    before = max((each for each in matrix.releases() if Version(each) < Version(version)), key=Version, default=None)
    lost = []
    for platform in matrix.PLATFORMS if before else ():
        have = _pythons(files, version, platform)
        if gone := [python for python in matrix.pythons(before or "", platform) if python not in have]:
            lost.append(
                Drift("Python lost wheels", f"torch {version} on {platform}", f"{before}: {' '.join(gone)}", "no wheel")
            )
    return lost


def _known_release(version: str, files: Sequence[File]) -> list[Drift]:
    """A release of the tables that was withdrawn, or whose wheels are others now."""
    if not any(file.version == version and not file.yanked for file in files):
        return [Drift("release withdrawn", f"torch {version}", "there", "no wheel, or yanked")]
    found = []
    for platform in matrix.PLATFORMS:
        known, have = set(matrix.pythons(version, platform)), _pythons(files, version, platform)
        if gone := sorted(known - have, key=_order):
            found.append(
                Drift("Python lost wheels", f"torch {version} on {platform}", " ".join(gone), "no wheel any more")
            )
        if more := sorted(have - known, key=_order):
            found.append(Drift("wheels added", f"torch {version} on {platform}", "none", " ".join(more)))
    return found


def _cuda_lines(index: Index, releases: Sequence[str]) -> list[Drift]:
    """Builds of the PyTorch index that no longer get the newest torch, and builds that the tables do not know."""
    found = []
    newest = max(releases, key=Version)
    for variant, files in index.variants.items():
        there = sorted({file.version for file in files if not Version(file.version).is_prerelease}, key=Version)
        rows_ = {torch: row for torch in matrix.releases() if (row := matrix.variant(torch, variant))}
        known = [torch for torch, row in rows_.items() if row.platforms]
        if not there:
            if known:
                found.append(Drift("CUDA line stopped", variant, "has torch", "lists none any more"))
            continue
        row = rows_.get(matrix.releases()[-1])
        maybe = row is not None and not row.platforms and bool(row.unconfirmed)
        if maybe and Version(there[-1]) < Version(matrix.releases()[-1]):
            known_ = f"unconfirmed of {matrix.releases()[-1]}"
            found.append(Drift("CUDA line stopped", variant, known_, f"newest {there[-1]}, of {newest}"))
        elif Version(there[-1]) < Version(newest) and known and known[-1] != there[-1]:
            found.append(Drift("CUDA line stopped", variant, f"newest {known[-1]}", f"newest {there[-1]}, of {newest}"))
        elif Version(there[-1]) < Version(newest) and newest not in matrix.releases() and known:
            found.append(Drift("CUDA line stopped", variant, f"newest {known[-1]}", f"no {newest}"))
        for version in there:
            row = matrix.variant(version, variant)
            if version in matrix.releases() and (row is None or not row.platforms):
                found.append(Drift("build added", f"torch {version}+{variant}", "none", "there"))
    return found


def _pythons(files: Iterable[File], version: str, platform: str) -> set[str]:
    return {f.python for f in files if f.version == version and f.platform == platform and not f.yanked}


def _order(python: str) -> tuple[int, str]:
    digits = re.sub(r"\D", "", python.partition(".")[2])
    return int(digits or 0), python


def _ended(end: str, today: date) -> bool:
    """Whether support ended: a day, or a month whose last day has passed."""
    parts = [int(part) for part in end.split("-")] if re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", end) else []
    return bool(parts) and tuple(parts) < (today.year, today.month, today.day)[: len(parts)]


def cuda_of(version: str, platform: str, index: Index) -> tuple[str, str] | None:
    """The variant and the CUDA version that a plain install gives, by the wheel's METADATA: ("cu132", "13.2.2"), or
    ("cpu", "-"); None where the index does not give it."""
    named = [
        file.name
        for file in index.files["torch"]
        if (file.version, file.platform) == (version, platform) and file.name in index.metadata
    ]
    if not named:
        return None
    text = index.metadata[named[0]]
    pins = dict(re.findall(r"^Requires-Dist: *([A-Za-z0-9_.-]+)(?:\[[^\]]*\])? *\(?==([0-9.]+)", text, re.MULTILINE))
    toolkit = pins.get("cuda-toolkit") or next(
        (v for n, v in pins.items() if n.startswith("nvidia-cuda-runtime")), None
    )
    if toolkit is None:
        return ("cpu", "-") if not any(name.startswith("nvidia-") for name in pins) else None
    major, minor = toolkit.split(".")[:2]
    return f"cu{major}{minor}", toolkit


def require_none(drifts: Sequence[Drift]) -> None:
    """Raise if anything changed.

    Raises:
        PendingError: saying how much.
    """
    if drifts:
        raise PendingError(
            f"{len(drifts)} differences between the tables and the index",
            fix="invoke update --write adds new releases, as far as the index proves them; the rest is yours",
        )


# --- proposing --------------------------------------------------------------------------------------------------------


def propose(index: Index, table: Table, today: date, data: Path = matrix.DATA) -> list[Path]:
    """Write new releases into the tables, and a row for the newest into the pin table; gives the files that changed.

    Raises:
        OSError: a file cannot be written; each file is written whole or not at all, the pin table last.
    """
    new = _new_versions(index.files["torch"])
    if not new:
        return []
    source = f"S{1 + max(int(row['id'][1:]) for row in matrix.read_table(data / 'sources.tsv')):02d}"
    added: dict[str, list[dict[str, str]]] = {"sources": [_source_row(source, new, today)]}
    for version in new:
        for name, rows_ in _rows(version, index, source).items():
            added.setdefault(name, []).extend(rows_)
    # The releases last: a release that is in that table is no longer new, so a run that was cut off is done again.
    order = sorted(added, key=lambda name: name == "releases")
    changed = [_append(data / f"{name}.tsv", added[name]) for name in order]
    if text := _target_row(new[-1], index, table, today):
        before = table.path.read_text(encoding="utf-8")
        write_atomically(table.path, f"{before.rstrip()}\n\n{text}")
        changed.append(table.path)
    return changed


_KEY = frozenset({"id", "torch", "package", "version", "platform", "variant", "arch"})


def _append(path: Path, rows_: Sequence[Mapping[str, str]]) -> Path:
    text = path.read_text(encoding="utf-8")
    header = text.split("\n", 1)[0].split("\t")
    # What a run that was cut off has already written stays: two rows of one key cannot be read.
    key = [column for column in header if column in _KEY]
    there = {tuple(row[column] for column in key) for row in matrix.read_table(path)}
    rows_ = [row for row in rows_ if tuple(row[column] for column in key) not in there]
    lines = ["\t".join(row.get(column, "unconfirmed") for column in header) for row in rows_]
    write_atomically(path, text.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in lines))
    return path


def _source_row(source: str, new: Sequence[str], today: date) -> dict[str, str]:
    return {
        "id": source,
        "name": "package index",
        "where": f"file names and METADATA of torch {' '.join(new)}, read by invoke update",
        "read": today.isoformat(),
        "kind": "measured",
    }


def _rows(version: str, index: Index, source: str) -> dict[str, list[dict[str, str]]]:
    """What an index proves of one release, as rows of the tables; what a row leaves out is unconfirmed there."""
    torch = [file for file in index.files["torch"] if file.version == version and not file.yanked]
    by_platform = {p: sorted(_pythons(torch, version, p), key=_order) for p in matrix.PLATFORMS}
    everywhere = [
        python for python in by_platform["linux_x86_64"] if all(python in by_platform[p] for p in by_platform)
    ]
    some = sorted({python for pythons in by_platform.values() for python in pythons} - set(everywhere), key=_order)
    vision = _companion(version, index)
    defaults = {platform: cuda_of(version, platform, index) for platform in ("linux_x86_64", "linux_aarch64")}
    common = {"torch": version, "src": source}
    released = min((file.uploaded for file in torch if file.uploaded), default="unconfirmed")
    default = defaults["linux_x86_64"]
    release = {
        **common, "released": released, "pypi_cuda": default[0] if default else "unconfirmed",
        "requires_python": next((file.requires_python for file in torch if file.requires_python), "unconfirmed"),
        "torchvision": vision or "unconfirmed",
        "python_all": " ".join(everywhere) or "-", "python_some": " ".join(some) or "-", "conf": "measured",
        "glibc_x86_64": _glibc(torch, "linux_x86_64"), "glibc_aarch64": _glibc(torch, "linux_aarch64"), "note": "-",
    }  # fmt: skip
    wheels = [
        {
            **common, "package": package, "version": number, "platform": platform, "build": "see torch",
            "wheel_tag": _tag(files, platform), "python": " ".join(pythons), "conf": "measured",
        }
        for package, number, files in (
            ("torch", version, torch),
            ("torchvision", vision, [f for f in index.files["torchvision"] if f.version == vision and not f.yanked]),
        )
        if number
        for platform in matrix.PLATFORMS
        if (pythons := sorted(_pythons(files, number, platform), key=_order))
    ]  # fmt: skip
    for wheel in wheels:
        if wheel["package"] == "torch":
            found = defaults.get(wheel["platform"])
            wheel["build"] = found[0] if found else "cpu+mps" if wheel["platform"] == "macos_arm64" else "cpu"
    builds = _build_rows(common, defaults, by_platform)
    archs = [
        {**common, "variant": variant, "platform": platform, "conf": "unconfirmed", "note": "-"}
        for platform, found in defaults.items()
        if found and (variant := found[0]) != "cpu"
    ]
    mac = _tag(torch, "macos_arm64")
    macos = re.fullmatch(r"macosx_(\d+)_(\d+)_arm64", mac)
    macs = [{**common, "arch": "arm64", "wheel_tag": mac, "conf": "measured", "note": "-",
             "macos_install_min": f"{macos[1]}.{macos[2]}"}] if macos else []  # fmt: skip
    return {"releases": [release], "wheels": wheels, "cuda_variants": builds, "gpu_arch": archs, "macos": macs}


def _build_rows(
    common: Mapping[str, str], defaults: Mapping[str, tuple[str, str] | None], by_platform: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    """The builds that a plain install gives; of others nothing is known."""
    cpu_on = [platform for platform, found in defaults.items() if found and found[0] == "cpu"]
    cpu_on += [platform for platform in ("windows_amd64", "macos_arm64") if by_platform[platform]]
    found: list[tuple[str, str, list[str]]] = [("cpu", "-", cpu_on)]
    for platform, default in defaults.items():
        if default and default[0] != "cpu":
            same = [each for each in found if each[0] == default[0]]
            if same:
                same[0][2].append(platform)
            else:
                found.append((*default, [platform]))
    return [
        {
            **common, "variant": name, "kind": "cpu" if name == "cpu" else "cuda", "cuda": cuda,
            **{platform: "yes" if platform in on else "unconfirmed" for platform in matrix.PLATFORMS},
            **({} if name == "cpu" else {"macos_arm64": "no"}), "pypi_default_on": " ".join(on) or "-",
            "index_path": f"whl/{name}", "conf": "high" if name == "cpu" else "measured",
            "note": "Windows and macOS as in every release before; not opened" if name == "cpu" else "-",
        }
        for name, cuda, on in found
    ]  # fmt: skip


def _companion(version: str, index: Index) -> str | None:
    """The newest torchvision that is made for this torch: one that demands it, else one that takes it."""
    taken: dict[bool, list[str]] = {True: [], False: []}
    for file in index.files["torchvision"]:
        needs = re.search(r"^Requires-Dist: *(torch\b[^a-zA-Z\n;]*)", index.metadata.get(file.name, ""), re.MULTILINE)
        try:
            specifier = Requirement(needs[1]).specifier if needs else None
        except InvalidRequirement:
            continue
        if specifier and specifier.contains(version):
            taken[f"=={version}" in str(specifier)].append(file.version)
    return max(taken[True] or taken[False], key=Version, default=None)


def _tag(files: Sequence[File], platform: str) -> str:
    """The platform tag that most of the wheels have, ordinary Pythons first."""
    tags = [file.tag for file in files if file.platform == platform and not file.python.endswith("t")]
    return max(sorted(set(tags)), key=tags.count) if tags else "unconfirmed"


def _glibc(files: Sequence[File], platform: str) -> str:
    found = re.match(r"manylinux_(\d+)_(\d+)_", _tag(files, platform))
    return f"{found[1]}.{found[2]}" if found else "unconfirmed"


def _target_row(version: str, index: Index, table: Table, today: date) -> str:
    """A row of the pin table for a release on Linux x86_64; empty where the index does not tell its build."""
    default = cuda_of(version, "linux_x86_64", index)
    pythons = _pythons(index.files["torch"], version, "linux_x86_64")
    suites = {target.suite.python for target in table.targets.values() if target.suite}
    fitting = [row.minor for row in matrix.stable_pythons()[1:] if row.minor in pythons and row.minor in suites]
    if default is None or not fitting:
        return ""
    kind = "cpu" if default[0] == "cpu" else "cuda"
    name = f"{kind}-{version.replace('.', '-')}"
    if name in table.targets:
        return ""
    return (
        f"[targets.{name}]\n"
        f'torch = "{version}"\nvariant = "{default[0]}"\npython = "{fitting[0]}"\nplatforms = ["linux_x86_64"]\n'
        f'engines = ["docker", "venv"]\n'
        f'why = "Proposed by invoke update on {today.isoformat()}: the newest torch, as a plain install gives it."\n'
    )


def now() -> date:
    """Today, in UTC."""
    return datetime.now(UTC).date()
