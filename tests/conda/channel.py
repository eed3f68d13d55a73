"""A local conda channel: packages made of wheels and of an interpreter of this machine, and small ones that must lose.

A package is what conda's docs describe under "Conda package specification": info/index.json, info/paths.json, for
noarch Python packages info/link.json, and the files. py-rattler indexes it, as a channel's server would.
"""

from __future__ import annotations

import asyncio
import configparser
import hashlib
import io
import json
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import Parser
from pathlib import Path
from typing import Any

from conda_package_streaming.create import conda_builder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from rattler.index import index_fs

from labrig import conda
from labrig.lock import Wheel
from labrig.matrix import SUBDIRS
from labrig.spec import Target

NAME = "conda-forge"  # a folder of this name, as mirrors are called
PLACEHOLDER = "/opt/placeholder" + "_" * 239  # 255 characters: what conda packages hold instead of their prefix
SUBDIR = SUBDIRS["linux_x86_64"]
MODE_PLAIN, MODE_PROGRAM = 0o644, 0o755
ACTIVATED = "LABRIG_TEST_ACTIVATED"  # set by a script that the interpreter's package brings

Content = bytes | Path | str  # a file's bytes, a file to read, or what a symbolic link points to


def write_package(
    channel: Path,
    name: str,
    version: str,
    build: str = "0",
    *,
    number: int = 0,
    subdir: str = SUBDIR,
    depends: Iterable[str] = (),
    constrains: Iterable[str] = (),
    files: Mapping[str, tuple[Content, int]] | None = None,
    entry_points: Iterable[str] = (),
) -> Path:
    """Write one .conda file: ``files`` maps paths to content and mode; a text that holds PLACEHOLDER is relocated."""
    folder = channel / subdir
    folder.mkdir(parents=True, exist_ok=True)
    noarch = {"noarch": "python"} if subdir == "noarch" else {}
    index = {
        "name": name, "version": version, "build": build, "build_number": number, "subdir": subdir, **noarch,
        "depends": sorted(depends), "constrains": sorted(constrains), "timestamp": 1735689600000,
    }  # fmt: skip
    paths = []
    stem = f"{name}-{version}-{build}"
    (folder / f"{stem}.conda").unlink(missing_ok=True)  # two targets may name the same one
    with conda_builder(stem, folder, compression_level=1) as archive:
        for path, (content, mode) in sorted((files or {}).items()):
            paths.append(_add(archive, path, content, mode))
        info: dict[str, Any] = {"index.json": index, "paths.json": {"paths": paths, "paths_version": 1}}
        if noarch:
            link = {"noarch": {"type": "python", "entry_points": list(entry_points)}, "package_metadata_version": 1}
            info["link.json"] = link
        for file, document in info.items():
            _add(archive, f"info/{file}", json.dumps(document).encode(), MODE_PLAIN)
    return folder / f"{stem}.conda"


def _add(archive: tarfile.TarFile, path: str, content: Content, mode: int) -> dict[str, Any]:
    member = tarfile.TarInfo(path)
    if isinstance(content, str):
        member.type, member.linkname = tarfile.SYMTYPE, content
        archive.addfile(member)
        return {"_path": path, "path_type": "softlink", "sha256": hashlib.sha256(b"").hexdigest(), "size_in_bytes": 0}
    data = content if isinstance(content, bytes) else content.read_bytes()
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))
    entry = {
        "_path": path, "path_type": "hardlink", "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)
    }  # fmt: skip
    if PLACEHOLDER.encode() in data[:4096]:
        entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
    return entry


def index(channel: Path) -> str:
    """Index the channel; gives its address."""
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    asyncio.run(index_fs(channel))
    return channel.as_uri()


def python_package(channel: Path, version: str) -> None:
    """This interpreter, labelled ``version``: its programs and its library, without tests and installed packages."""
    minor = sysconfig.get_python_version()
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "__pycache__", "site-packages", "idle_test", "idlelib", "turtledemo", "ensurepip"}
    files: dict[str, tuple[Content, int]] = {
        f"lib/python{minor}/{file.relative_to(library)}": (file, file.stat().st_mode & 0o777)
        for file in library.rglob("*")
        if file.is_file() and not left_out & set(file.relative_to(library).parts) and not file.name.endswith(".a")
    }
    files[f"lib/python{minor}/site-packages/README.txt"] = (b"packages\n", MODE_PLAIN)
    files[f"bin/python{minor}"] = (Path(sys.executable).resolve(), MODE_PROGRAM)
    files["bin/python"] = files["bin/python3"] = (f"python{minor}", MODE_PROGRAM)
    script = f"export {ACTIVATED}=$CONDA_PREFIX\n".encode()
    files["etc/conda/activate.d/python.sh"] = (script, MODE_PLAIN)
    write_package(channel, "python", version, "0_cpython", files=files)


def of_wheel(channel: Path, wheel: Wheel, file: Path, python: str) -> None:
    """A wheel as a conda package by conda-forge's name: noarch where it is pure, with what it requires as depends."""
    name = conda.NAMES.get(wheel.name, wheel.name)
    version = wheel.version.partition("+")[0]
    pure = all(tag.abi == "none" and tag.platform == "any" for tag in parse_wheel_filename(wheel.file)[3])
    site = "site-packages" if pure else f"lib/python{python}/site-packages"
    files: dict[str, tuple[Content, int]] = {}
    entry_points: list[str] = []
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        info = next(path.partition("/")[0] for path in names if path.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        for path in names:
            if path.endswith("/"):
                continue
            data = archive.read(path)
            if wheel.name == "torch" and path == "torch/version.py":
                data = data.replace(wheel.version.encode(), version.encode())  # as conda-forge's reads
            if path == f"{info}/RECORD" or path == f"{info}/entry_points.txt":
                if path.endswith("entry_points.txt"):
                    entry_points = _console_scripts(data.decode())
                elif wheel.name == "torch":
                    continue  # it names the digest of version.py as it was
            files[_place(path, site, metadata["Name"], pure)] = (data, _mode(archive.getinfo(path)))
    build = f"cpu_generic_py{python.replace('.', '')}_0" if wheel.name == "torch" else "pyh0" if pure else "py0"
    if not pure:
        for entry in entry_points:
            files |= _program(entry, python)
    write_package(
        channel, name, version, build, subdir="noarch" if pure else SUBDIR, files=files, entry_points=entry_points,
        depends=["python" if pure else f"python {python}.*", *depends(metadata.get_all("Requires-Dist") or [], set())],
    )  # fmt: skip


def _place(path: str, site: str, name: str, pure: bool) -> str:
    """Where a wheel's file goes (binary distribution format, "The .data directory")."""
    top, _, rest = path.partition("/")
    if not top.endswith(".data"):
        return f"{site}/{path}"
    kind, _, inner = rest.partition("/")
    if kind in ("purelib", "platlib"):
        return f"{site}/{inner}"
    if kind == "scripts":
        return f"{'python-scripts' if pure else 'bin'}/{inner}"
    return inner if kind == "data" else f"include/{name}/{inner}"


def _mode(member: zipfile.ZipInfo) -> int:
    return MODE_PROGRAM if member.external_attr >> 16 & 0o111 else MODE_PLAIN


def _console_scripts(text: str) -> list[str]:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    section = parser["console_scripts"] if parser.has_section("console_scripts") else {}
    return [f"{name} = {place.partition('[')[0].strip()}" for name, place in section.items()]


def _program(entry: str, python: str) -> dict[str, tuple[Content, int]]:
    name, _, place = (part.strip() for part in entry.partition("="))
    module, _, function = place.partition(":")
    text = f"#!{PLACEHOLDER}/bin/python{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    return {f"bin/{name}": (text.encode(), MODE_PROGRAM)}


def depends(requires: Iterable[str], extras: set[str]) -> list[str]:
    """Requirements of a wheel that hold for this interpreter, as conda writes them; names are conda-forge's."""
    found = []
    for text in requires:
        requirement = Requirement(text)
        holds = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})
        )
        if holds:
            name = canonicalize_name(requirement.name)
            found.append(f"{conda.NAMES.get(name, name)} {str(requirement.specifier).replace(' ', '')}".strip())
    return sorted(set(found))


def decoys(channel: Path, subdir: str, torch: str) -> None:
    """Packages that a pin must keep out: newer ones, and torch's other builds."""
    for name, version, build in (
        ("pytorch", "99.0.0", "cpu_generic_0"), ("pytorch", torch, "rocm_generic_9"), ("python", "99.0.0", "0_cpython"),
        ("numpy", "99.0.0", "py0"), ("cuda-version", "99.0", "0"),
    ):  # fmt: skip
        write_package(channel, name, version, build, subdir=subdir)


def empty_packages(channel: Path, target: Target, images: Path) -> None:
    """All that a target's pins name, as packages without files, with torch in both builds and as it is on conda-forge:
    the one for CUDA wants a driver, the one for the Mac a macOS."""
    assert target.conda
    for platform in target.platforms:
        subdir = SUBDIRS[platform]
        locked = conda.versions(target, platform, images)
        for pin in conda.pins(target, locked):
            if pin.name != "pytorch":
                write_package(channel, pin.name, pin.version, "h0", subdir=subdir)
        system = [f"__osx >={target.macos}"] if target.macos else [f"__glibc >={target.glibc},<3.0.a0"]
        write_package(channel, "pytorch", target.torch, "cpu_generic_0", subdir=subdir, depends=["python", *system])
        if subdir == SUBDIR:
            needs = ["__cuda", "cuda-version >=13.0,<14", "python", *system]
            write_package(channel, "pytorch", target.torch, "cuda130_generic_0", subdir=subdir, depends=needs)
        decoys(channel, subdir, target.torch)
