"""Wheels as an installer sees them: where their files go, as pip puts them; and wheels that mean harm."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import os
import random
import re
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import PYTHON, read_wheel

from labrig import blobs, home, layers, wheel, wheelhouse
from labrig.blobs import Layer
from labrig.errors import BuildError
from labrig.lock import Lock
from labrig.tarball import stored
from labrig.wheel import Entry, File, Places

PLACES = Places("/x/venv", PYTHON)
SITE = f"x/venv/lib/python{PYTHON}/site-packages"
NAME = "demo-1.0-py3-none-any.whl"
INFO = "demo-1.0.dist-info"
DATA = "demo-1.0.data"
METADATA = b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"
WHEEL = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
MODULE = {"demo.py": b"def main():\n    return 0\n"}
REGULAR = stat.S_IFREG
MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)  # noqa: S311


def sha256_of(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def whole(files: Mapping[str, bytes], entry_points: str = "", info: str = INFO) -> dict[str, bytes]:
    """The files of a wheel with those that make it one."""
    found = {**files, f"{info}/METADATA": METADATA, f"{info}/WHEEL": WHEEL}
    if entry_points:
        found[f"{info}/entry_points.txt"] = entry_points.encode()
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerows((name, sha256_of(content), len(content)) for name, content in found.items())
    writer.writerow((f"{info}/RECORD", "", ""))
    return {**found, f"{info}/RECORD": rows.getvalue().encode()}


def write(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    entry_points: str = "",
    modes: Mapping[str, int] | None = None,
    name: str = NAME,
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """An honest wheel, made by zipfile."""
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in whole(files, entry_points).items():
            info = zipfile.ZipInfo(inner)
            info.external_attr = (modes or {}).get(inner, REGULAR | 0o644) << 16
            archive.writestr(info, content, method)
    return path


def make(path: Path) -> Layer:
    """The layer of one wheel, made as for an image."""
    [made] = make_all(path)
    return made


def make_all(*paths: Path) -> list[Layer]:
    wheels = tuple(read_wheel(path) for path in paths)
    for one, path in zip(wheels, paths, strict=True):
        place = wheelhouse.find(one, home.wheels())
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return layers.of_wheels(Lock("tiny", "linux_x86_64", PYTHON, "0" * 64, wheels), home.wheels, PLACES, quiet=True)


def unpacked(layer: Layer) -> dict[str, tuple[bytes, bool]]:
    """Path -> content and whether it is executable, of each file; folders are proven to come before what is in them."""
    found: dict[str, tuple[bytes, bool]] = {}
    folders = {""}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blobs.path(layer.digest).read_bytes()))) as tar:
        for info in tar:
            assert os.path.dirname(info.name) in folders  # noqa: PTH120
            assert info.name not in folders | found.keys()
            if info.isdir():
                folders.add(info.name)
                assert info.mode == 0o755
                continue
            assert info.isreg()
            assert info.mode in (0o644, 0o755)
            file = tar.extractfile(info)
            assert file is not None
            found[info.name] = (file.read(), info.mode == 0o755)
    return found


def seen(path: Path) -> dict[str, File]:
    return {file.path: file for file in wheel.read(path, PLACES)}


def rows_of(record: bytes) -> dict[str, tuple[str, str]]:
    """RECORD: absolute path -> hash and size."""
    rows = list(csv.reader(record.decode().splitlines()))
    found = {os.path.normpath(f"{SITE}/{path}"): (hashed, size) for path, hashed, size in rows}
    assert len(found) == len(rows), "no path is there twice"
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- where files go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("demo.py", f"{SITE}/demo.py"),
        ("demo/deep/er/x.so", f"{SITE}/demo/deep/er/x.so"),
        (f"{INFO}/licenses/LICENSE", f"{SITE}/{INFO}/licenses/LICENSE"),
        (f"{DATA}/purelib/pure.py", f"{SITE}/pure.py"),
        (f"{DATA}/platlib/plat/x.so", f"{SITE}/plat/x.so"),
        (f"{DATA}/scripts/run", "x/venv/bin/run"),
        (f"{DATA}/data/share/man/man1/demo.1", "x/venv/share/man/man1/demo.1"),
        (f"{DATA}/data/top.txt", "x/venv/top.txt"),
        (f"{DATA}/data/lib64/x.so", "x/venv/lib/x.so"),
        (f"{DATA}/data/lib64/python{PYTHON}/site-packages/y.py", f"{SITE}/y.py"),
        (f"{DATA}/data/lib/z", "x/venv/lib/z"),
        (f"{DATA}/headers/demo.h", f"x/venv/include/site/python{PYTHON}/demo/demo.h"),
        (f"{DATA}/headers/inner/demo.h", f"x/venv/include/site/python{PYTHON}/demo/inner/demo.h"),
        ("other-1.0.data/scripts/x", f"{SITE}/other-1.0.data/scripts/x"),
        ("ünï/日本.py", f"{SITE}/ünï/日本.py"),
        ("with space/a,b\"c'.py", f"{SITE}/with space/a,b\"c'.py"),
        ("-rf", f"{SITE}/-rf"),
        ("a" * 101, f"{SITE}/{'a' * 101}"),
        ("/".join(["d" * 30] * 12), f"{SITE}/{'/'.join(['d' * 30] * 12)}"),
    ],
)
def test_a_file_of_a_wheel_goes_where_its_scheme_says(tmp_path: Path, inside: str, outside: str) -> None:
    path = write(tmp_path, {inside: b"content"})
    assert unpacked(make(path))[outside] == (b"content", False)
    files = wheel.read(path, PLACES)
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert len(files) == 5  # with METADATA, WHEEL, RECORD and INSTALLER


def test_a_wheel_that_is_not_pure_goes_to_the_same_folder(tmp_path: Path) -> None:
    files = {**whole(MODULE), f"{INFO}/WHEEL": WHEEL.replace(b"true", b"false")}
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert unpacked(make(path)).keys() == unpacked(make(write(tmp_path, MODULE))).keys()


@pytest.mark.parametrize("spelled", ["demo_pkg", "Demo_Pkg", "demo.pkg"])
def test_the_name_in_a_wheel_may_be_spelled_otherwise_than_that_of_its_file(tmp_path: Path, spelled: str) -> None:
    """As long as it is the same package: pip and uv put its data folder's files in the same places."""
    files = {
        f"{spelled}-1.0.data/scripts/run": b"#!/bin/sh\n",
        f"{spelled}-1.0.data/data/share/x": b"1",
        f"{spelled}-1.0.data/purelib/pure.py": b"2",
    }
    path = tmp_path / "demo_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in whole(files, info=f"{spelled}-1.0.dist-info").items():
            archive.writestr(name, content)
    found = {place for place in seen(path) if ".dist-info/" not in place}
    assert found == {"x/venv/bin/run", "x/venv/share/x", f"{SITE}/pure.py"}


@pytest.mark.parametrize("stem", ["demo-1.0", "demo_pkg-1.0"])
def test_headers_are_in_a_folder_of_the_packages_name_as_pip_and_uv_write_it(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in whole({f"{stem}.data/headers/x.h": b"1"}, info=f"{stem}.dist-info").items():
            archive.writestr(name, content)
    [header] = [place for place in seen(path) if place.endswith("x.h")]
    package = stem.partition("-")[0].replace("_", "-")
    assert header == f"x/venv/include/site/python{PYTHON}/{package}/x.h"


def test_scripts_start_with_the_interpreter_and_keep_the_rest(tmp_path: Path) -> None:
    bodies = {
        "plain": b"#!python\nprint(1)\n",
        "windowed": b"#!pythonw\r\nprint(1)\r\n",
        "flags": b"#!python -E\nprint(1)\n",
        "only": b"#!python",
        "sh": b"#!/bin/sh\necho 1\n",
        "binary": b"\x7fELF" + noise(3000),
        "empty": b"",
        "short": b"#!pyth",
        "not first": b"\n#!python\n",
    }
    modes = {f"{DATA}/scripts/{name}": REGULAR | 0o755 for name in bodies if name != "sh"}
    path = write(tmp_path, {f"{DATA}/scripts/{name}": body for name, body in bodies.items()}, modes=modes)
    found = unpacked(make(path))
    here = {name: found[f"x/venv/bin/{name}"] for name in bodies}
    start = b"#!/x/venv/bin/python\n"
    assert here == {
        "plain": (start + b"print(1)\n", True),
        "windowed": (start + b"print(1)\r\n", True),
        "flags": (start + b"print(1)\n", True),
        "only": (start, True),
        **{name: (bodies[name], name != "sh") for name in ("sh", "binary", "empty", "short", "not first")},
    }
    rows = rows_of(found[f"{SITE}/{INFO}/RECORD"][0])
    for name, (content, _) in here.items():
        assert rows[f"x/venv/bin/{name}"] == (sha256_of(content), str(len(content)))


def test_a_shebang_outside_of_scripts_is_content(tmp_path: Path) -> None:
    files = {"tool.py": b"#!python\n", f"{DATA}/data/bin/tool": b"#!python\n", f"{DATA}/purelib/t.py": b"#!python\n"}
    found = unpacked(make(write(tmp_path, files)))
    for place in (f"{SITE}/tool.py", "x/venv/bin/tool", f"{SITE}/t.py"):
        assert found[place] == (b"#!python\n", False)


def test_entry_points_become_scripts_that_import_what_they_name(tmp_path: Path) -> None:
    text = """
[console_scripts]
demo = demo:main
demo-deep.er = demo.cli : Main.run [extra]

[gui_scripts]
Demo_GUI = demo:gui

[demo.plugins]
not-a-script = demo:main
% = whatever %(x)s
"""
    found = unpacked(make(write(tmp_path, MODULE, entry_points=text)))
    scripts = {path.removeprefix("x/venv/bin/"): it for path, it in found.items() if path.startswith("x/venv/bin/")}
    assert scripts.keys() == {"demo", "demo-deep.er", "Demo_GUI"}
    for (content, executable), module, name, call in zip(
        (scripts["demo"], scripts["demo-deep.er"], scripts["Demo_GUI"]),
        ("demo", "demo.cli", "demo"), ("main", "Main", "gui"), ("main()", "Main.run()", "gui()"), strict=True,
    ):  # fmt: skip
        assert executable
        assert content.startswith(b"#!/x/venv/bin/python\n")
        compile(content, "script", "exec")
        assert f"from {module} import {name}\n".encode() in content
        assert f"sys.exit({call})".encode() in content
    assert found[f"{SITE}/{INFO}/entry_points.txt"] == (text.encode(), False)


def test_a_prefix_that_a_shebang_cannot_hold_makes_a_script_that_sh_starts(tmp_path: Path) -> None:
    path = write(tmp_path, MODULE, entry_points="[console_scripts]\ndemo = demo:main\n")
    files = {file.path: file for file in wheel.read(path, Places("/with space/venv", PYTHON))}
    content = files["with space/venv/bin/demo"].content
    assert isinstance(content, bytes)
    assert content.startswith(b"#!/bin/sh\n'''exec' '/with space/venv/bin/python' ")


@pytest.mark.parametrize(
    ("mode", "executable"),
    [
        (0, False),
        (REGULAR | 0o644, False),
        (REGULAR | 0o755, True),
        (REGULAR | 0o100, True),
        (REGULAR | 0o010, True),
        (REGULAR | 0o001, True),
        (REGULAR | 0o4755, True),
        (REGULAR | 0o600, False),
        (0o755, False),  # pip asks for a regular file as well
    ],
)
def test_the_bits_for_execution_come_from_the_archive_alone(tmp_path: Path, mode: int, executable: bool) -> None:
    names = {"demo.sh": f"{SITE}/demo.sh", f"{DATA}/scripts/run": "x/venv/bin/run", f"{DATA}/data/d/e": "x/venv/d/e"}
    path = write(tmp_path, dict.fromkeys(names, b"#!/bin/sh\n"), modes=dict.fromkeys(names, mode))
    found = unpacked(make(path))
    assert {found[place][1] for place in names.values()} == {executable}


def test_record_has_a_row_for_each_file_that_is_installed(tmp_path: Path) -> None:
    files = {
        **MODULE,
        "demo,comma/a.py": b"x",
        "empty.py": b"",
        "ünï.py": b"u",
        "demo/__pycache__/x.cpython-311.pyc": b"left out",
        f"{DATA}/scripts/run": b"#!python\n",
        f"{DATA}/scripts/other": b"#!/bin/sh\n",
        f"{DATA}/data/share/x": b"1",
        f"{DATA}/data/lib64/y": b"2",
        f"{DATA}/headers/x.h": b"3",
        f"{DATA}/purelib/p.py": b"4",
        f"{DATA}/platlib/q.py": b"5",
    }
    found = unpacked(make(write(tmp_path, files, entry_points="[console_scripts]\nrun2 = demo:main\n")))
    record = found.pop(f"{SITE}/{INFO}/RECORD")[0]
    rows = {path.replace("x/venv/lib64/", "x/venv/lib/"): row for path, row in rows_of(record).items()}
    assert rows.pop(f"{SITE}/{INFO}/RECORD") == ("", "")
    assert rows == {path: (sha256_of(content), str(len(content))) for path, (content, _) in found.items()}
    assert not any("__pycache__" in path for path in found)
    lines = record.decode().splitlines()
    assert not any(line.startswith(("/", '"/')) for line in lines), "relative to the folder that has .dist-info"
    assert "demo.py" in {line.split(",")[0] for line in lines}
    assert "../../../bin/run" in {line.split(",")[0] for line in lines}
    assert b"\r" not in record


def test_the_installer_says_its_name(tmp_path: Path) -> None:
    assert unpacked(make(write(tmp_path, MODULE)))[f"{SITE}/{INFO}/INSTALLER"] == (b"labrig\n", False)


def test_an_installer_file_of_the_wheel_is_not_there_twice(tmp_path: Path) -> None:
    """An INSTALLER in a wheel is what a careless packer leaves there; pip overwrites it."""
    found = unpacked(make(write(tmp_path, {**MODULE, f"{INFO}/INSTALLER": b"pip\n"})))
    assert found[f"{SITE}/{INFO}/INSTALLER"][0] == b"labrig\n"


def test_bytecode_in_a_wheel_is_left_out(tmp_path: Path) -> None:
    files = {
        **MODULE,
        "__pycache__/demo.cpython-311.pyc": b"x",
        "demo/deep/__pycache__/y.pyc": b"x",
        f"{DATA}/purelib/__pycache__/z.pyc": b"x",
        "not__pycache__/kept.py": b"kept",
        "demo/old.pyc": b"kept",
    }
    found = unpacked(make(write(tmp_path, files)))
    assert f"{SITE}/not__pycache__/kept.py" in found
    assert f"{SITE}/demo/old.pyc" in found
    assert not any("/__pycache__/" in path for path in found)


def test_entries_for_folders_are_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, {**MODULE, "demo_folder/x.py": b"x"})
    plain = unpacked(make(path))
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("demo_folder/", f"{INFO}/", "lonely/"):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
            archive.writestr(info, b"")
    assert unpacked(make(path)) == plain


def test_contents_stay_in_the_archive(tmp_path: Path) -> None:
    found = seen(write(tmp_path, MODULE, entry_points="[console_scripts]\ndemo = demo:main\n"))
    written_by_installer = {path for path, file in found.items() if isinstance(file.content, bytes)}
    assert written_by_installer == {"x/venv/bin/demo", f"{SITE}/{INFO}/RECORD", f"{SITE}/{INFO}/INSTALLER"}
    entry = found[f"{SITE}/demo.py"].content
    assert isinstance(entry, Entry)
    assert (entry.name, entry.size, entry.crc) == ("demo.py", len(MODULE["demo.py"]), zlib.crc32(MODULE["demo.py"]))


# --- good ones that are unusual ---------------------------------------------------------------------------------


SIZES = [0, 1, 100, 65535, 65536, 200_000, MIB - 1, MIB, MIB + 1, 3 * MIB + 5]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_files_of_every_size_come_back(tmp_path: Path, method: int) -> None:
    files = {f"noise-{size}": noise(size) for size in SIZES} | {f"zeros-{size}": bytes(size) for size in SIZES}
    found = unpacked(make(write(tmp_path, files, method=method)))
    assert {name: found[f"{SITE}/{name}"][0] for name in files} == files


@pytest.mark.parametrize("size", [16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 40_000_000])
@pytest.mark.parametrize("kind", ["zeros", "text"])
def test_a_file_that_packs_well_comes_back(tmp_path: Path, kind: str, size: int) -> None:
    content = bytes(size) if kind == "zeros" else (b"a line of text that repeats itself %d\n" * (size // 38 + 1))[:size]
    found = unpacked(make(write(tmp_path, {"large.txt": content})))
    assert found[f"{SITE}/large.txt"][0] == content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_an_archive_written_to_a_pipe_is_read(tmp_path: Path, method: int) -> None:
    """Its sizes and sums come after the contents, and its local headers have none."""

    class Pipe(io.RawIOBase):
        def __init__(self, file: io.BufferedWriter) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return self.file.write(data)

    files = whole({**MODULE, "large": noise(2 * MIB), "zeros": bytes(2 * MIB), "empty": b"", "ünï": b"x"})
    path = tmp_path / NAME
    with path.open("wb") as file, zipfile.ZipFile(Pipe(file), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content, method)
    with zipfile.ZipFile(path) as archive:
        assert all(info.flag_bits & 8 for info in archive.infolist())
    assert_all_there(files, unpacked(make(path)))


def assert_all_there(files: Mapping[str, bytes], found: Mapping[str, tuple[bytes, bool]]) -> None:
    for name, content in files.items():
        if name != f"{INFO}/RECORD":
            assert found[f"{SITE}/{name}"][0] == content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_extra_fields_for_large_archives_are_passed_over(tmp_path: Path, method: int) -> None:
    files = whole({**MODULE, "large": noise(2 * MIB), "empty": b"", "ünï": b"x"})
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=True) as file:
                file.write(content)
    assert_all_there(files, unpacked(make(path)))


def test_extra_fields_and_comments_of_any_length_are_passed_over(tmp_path: Path) -> None:
    files = whole({**MODULE, "large": noise(2 * MIB), "x": b"x"})
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, content) in enumerate(files.items()):
            info = zipfile.ZipInfo(name)
            length = (0, 9, 60, 1000, 65000)[number % 5]
            info.extra = struct.pack("<HH", 0xCAFE, length) + bytes(length)
            info.comment = b"comment " * number
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        archive.comment = b"a comment at the end"
    assert_all_there(files, unpacked(make(path)))


def test_an_archive_with_something_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, MODULE)
    plain = unpacked(make(path))
    path.write_bytes(b"#!/bin/sh\n# extracts itself\n" + path.read_bytes())
    assert unpacked(make(path)) == plain


def test_levels_of_compression_do_not_matter(tmp_path: Path) -> None:
    content = b"some text, " * 200_000 + noise(50_000)
    for level in (1, 6, 9):
        with zipfile.ZipFile(tmp_path / NAME, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
            for name, data in whole({**MODULE, "x": content}).items():
                archive.writestr(name, data)
        assert unpacked(make(tmp_path / NAME))[f"{SITE}/x"][0] == content


# --- archives by hand -------------------------------------------------------------------------------------------


@dataclass
class Raw:
    """An entry of an archive; whatever is not said is what is honest."""

    name: str | bytes
    content: bytes = b""
    mode: int = REGULAR | 0o644
    packed: bytes | None = None  # its stream
    method: int = zipfile.ZIP_DEFLATED
    flags: int = 0x800
    says: Mapping[str, int] = field(default_factory=dict)  # crc, packed, size, offset: what the directory says instead
    local_name: str | bytes | None = None
    local_extra: bytes = b""


def encoded(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


def deflated(content: bytes, level: int = 6) -> bytes:
    pressing = zlib.compressobj(level, wbits=-15)
    return pressing.compress(content) + pressing.flush()


def zip_of(raws: Sequence[Raw]) -> bytes:
    body = b""
    directory = b""
    for raw in raws:
        packed = raw.packed
        if packed is None:
            packed = raw.content if raw.method == zipfile.ZIP_STORED else deflated(raw.content)
        honest = {"crc": zlib.crc32(raw.content), "packed": len(packed), "size": len(raw.content), "offset": len(body)}
        said = {**honest, **raw.says}
        local = encoded(raw.name if raw.local_name is None else raw.local_name)
        common = struct.pack(
            "<HHHHHIII", 20, raw.flags, raw.method, 0, 33, said["crc"], said["packed"], said["size"]
        )  # fmt: skip
        body += b"PK\3\4" + common + struct.pack("<HH", len(local), len(raw.local_extra)) + local + raw.local_extra
        body += packed
        name = encoded(raw.name)
        directory += b"PK\1\2" + struct.pack("<H", 0x314) + common
        directory += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, raw.mode << 16, said["offset"]) + name
    end = struct.pack("<HHHHIIH", 0, 0, len(raws), len(raws), len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def raw_wheel(*more: Raw, without: Sequence[str] = (), instead: Mapping[str, bytes] | None = None) -> bytes:
    """A wheel with these entries besides the honest ones."""
    honest = {**whole(MODULE), **(instead or {})}
    return zip_of([Raw(name, content) for name, content in honest.items() if name not in without] + list(more))


def refused(folder: Path, content: bytes, *named: str, name: str = NAME) -> str:
    """That no layer is made of it, which is one error that names the wheel and these, and that nothing is left."""
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(BuildError) as caught:
        make(path)
    text = str(caught.value)
    assert type(caught.value) is BuildError
    assert text.splitlines()[0] == f"{name} is not a wheel that can be installed"
    assert len(text.splitlines()) == 3, text
    assert text.isprintable() or all(line.isprintable() for line in text.splitlines())
    for one in named:
        assert one in text
    left = [place for place in home.layers().rglob("*") if place.is_file()] if home.layers().exists() else []
    assert left == []
    return text


def test_an_archive_by_hand_is_read_as_any_other(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(raw_wheel(Raw("x/y", b"z"), Raw("s", noise(100), method=0)))
    found = unpacked(make(tmp_path / NAME))
    assert found[f"{SITE}/x/y"][0] == b"z"
    assert found[f"{SITE}/s"][0] == noise(100)


def test_a_name_in_the_alphabet_of_dos_is_read_as_zipfile_reads_it(tmp_path: Path) -> None:
    raw = Raw("ünï.py".encode("cp437", "replace"), b"x", flags=0)
    (tmp_path / NAME).write_bytes(raw_wheel(raw))
    with zipfile.ZipFile(tmp_path / NAME) as archive:
        [name] = [name for name in archive.namelist() if name.startswith("ün")]
    assert unpacked(make(tmp_path / NAME))[f"{SITE}/{name}"][0] == b"x"


def test_an_extra_field_in_the_local_header_alone_is_passed_over(tmp_path: Path) -> None:
    for size in (1, 2 * MIB):
        raw = Raw("x", noise(size), local_extra=bytes(60_000))
        (tmp_path / NAME).write_bytes(raw_wheel(raw))
        assert unpacked(make(tmp_path / NAME))[f"{SITE}/x"][0] == noise(size)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("../x", "../x"),
        ("a/../../x", "a/../../x"),
        ("a/..", "a/.."),
        ("..", ".."),
        ("../", "../"),
        ("/etc/x", "/etc/x"),
        ("/", "/"),
        ("//x", "//x"),
        ("a\\b", "a\\\\b"),
        ("..\\x", "..\\\\x"),
        ("C:\\x", "C:\\\\x"),
        ("a\0b", "a\\x00b"),
        ("\0", "\\x00"),
        ("a//b", "a//b"),
        (".", "."),
        ("./x", "./x"),
        ("a/./b", "a/./b"),
        ("a/.", "a/."),
        ("", ""),
        (f"{DATA}/data/../../../etc/x", f"{DATA}/data/../../../etc/x"),
        (f"{DATA}/scripts/../x", f"{DATA}/scripts/../x"),
        (f"{INFO}/../x", f"{INFO}/../x"),
        ("a/" * 2500 + "x", "a/a/a/"),
        ("\x1b[2J/../x", "\\x1b[2J/../x"),
    ],
)
def test_a_path_that_leads_elsewhere_or_is_none_is_refused(tmp_path: Path, path: str, named: str) -> None:
    refused(tmp_path, raw_wheel(Raw(path, b"evil")), f"found: {named}")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_link_or_another_special_file_is_refused(tmp_path: Path, kind: int) -> None:
    refused(tmp_path, raw_wheel(Raw("pkg/link", b"/etc/passwd", kind | 0o777)), "pkg/link")
    refused(tmp_path, raw_wheel(Raw(f"{DATA}/scripts/link", b"/bin/sh", kind | 0o777)), f"{DATA}/scripts/link")


def test_a_folder_that_is_a_file_or_a_link_is_refused(tmp_path: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFREG):
        refused(tmp_path, raw_wheel(Raw("folder/", b"", kind | 0o755)), "folder/")


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, raw_wheel(Raw("x.py", b"1"), Raw("x.py", b"2")), "x.py")
    refused(tmp_path, raw_wheel(Raw("x.py", b"1"), Raw("x.py", b"1")), "x.py")
    refused(tmp_path, raw_wheel(Raw(f"{INFO}/RECORD", b"")), f"{INFO}/RECORD")


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("a", "a/"), ("d/a", "d/a/b"), ("a", "a b", "a/b")]
)
def test_a_file_and_a_folder_at_once_are_refused(tmp_path: Path, names: Sequence[str]) -> None:
    raws = [Raw(name, b"", stat.S_IFDIR | 0o755 if name.endswith("/") else REGULAR | 0o644) for name in names]
    refused(tmp_path, raw_wheel(*raws), min(names, key=len).strip("/"))


def test_two_entries_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, raw_wheel(Raw(f"{DATA}/purelib/demo.py", b"2")), "demo.py")
    refused(tmp_path, raw_wheel(Raw(f"{DATA}/data/lib/x"), Raw(f"{DATA}/data/lib64/x")), "lib64/x")
    refused(tmp_path, raw_wheel(Raw(f"{DATA}/purelib/p.py"), Raw(f"{DATA}/platlib/p.py")), "p.py")


@pytest.mark.parametrize(
    ("file", "below"),
    [
        ("a", f"{DATA}/purelib/a/b"),
        (f"{DATA}/platlib/a", "a/b"),
        (f"{DATA}/scripts/a", f"{DATA}/data/bin/a/b"),
        (f"{DATA}/data/lib", "x.py"),
        (f"{DATA}/data/lib64/a", f"{DATA}/data/lib/a/b"),
        (f"{DATA}/data/lib/python{PYTHON}/site-packages/{INFO}", "x.py"),
    ],
)
def test_a_file_of_one_scheme_where_another_has_a_folder_is_refused(tmp_path: Path, file: str, below: str) -> None:
    refused(tmp_path, raw_wheel(Raw(file, b"1"), Raw(below, b"2")))


CONTENTS = {"small": b"some content " * 30, "large": noise(3 * MIB), "packs well": bytes(20 * MIB)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_wrong_sum_is_found(tmp_path: Path, content: bytes, method: int) -> None:
    for crc in (zlib.crc32(content) ^ 1, 0):
        refused(tmp_path, raw_wheel(Raw("x.py", content, method=method, says={"crc": crc})), "x.py", f"{crc:08x}")


@pytest.mark.parametrize("more", [-300, -1, 1, 300, 1000])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_wrong_size_is_found(tmp_path: Path, content: bytes, method: int, more: int) -> None:
    says = {"size": len(content) + more}
    refused(tmp_path, raw_wheel(Raw("x.py", content, method=method, says=says)), "x.py", str(len(content) + more))


def test_a_file_that_says_it_is_empty_and_is_not_is_found(tmp_path: Path) -> None:
    for content in CONTENTS.values():
        refused(tmp_path, raw_wheel(Raw("x.py", content, says={"size": 0, "crc": 0})), "x.py")


def test_a_stored_file_whose_two_sizes_are_wrong_is_found(tmp_path: Path) -> None:
    for content in (CONTENTS["small"], CONTENTS["large"]):
        for size in (len(content) - 1, len(content) + 1):
            raw = Raw("x.py", content, method=0, says={"size": size, "packed": size})
            refused(tmp_path, raw_wheel(raw, Raw("y.py", b"after")), "x.py" if size < len(content) else "")


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_stream_that_ends_too_early_is_found(tmp_path: Path, content: bytes) -> None:
    packed = deflated(content)
    for cut in (1, len(packed) // 2, len(packed)):
        refused(tmp_path, raw_wheel(Raw("x.py", content, packed=packed[:-cut])), "x.py")
    refused(tmp_path, raw_wheel(Raw("x.py", content, says={"packed": len(packed) - 1})), "x.py")


@pytest.mark.parametrize("content", [b"", *CONTENTS.values()], ids=["empty", *CONTENTS])
def test_something_behind_the_end_of_a_stream_is_found(tmp_path: Path, content: bytes) -> None:
    for more in (b"x", b"\0", b"\3\0", deflated(b"more"), noise(2 * MIB)):
        refused(tmp_path, raw_wheel(Raw("x.py", content, packed=deflated(content) + more)), "x.py")


@pytest.mark.parametrize("packed", [b"\xff" * 100, b"\x07", noise(500), noise(2 * MIB), b"x\x9c\x03\0\0\0\0\1"])
def test_what_is_no_deflate_stream_is_found(tmp_path: Path, packed: bytes) -> None:
    refused(tmp_path, raw_wheel(Raw("x.py", b"content", packed=packed)), "x.py")


def many_zeros(mebibytes: int) -> bytes:
    """A deflate stream of that many, made without making them."""
    pressing = zlib.compressobj(9, wbits=-15)
    piece = pressing.compress(bytes(MIB)) + pressing.flush(zlib.Z_FULL_FLUSH)
    return piece * mebibytes + deflated(b"")


def test_a_bomb_that_says_what_it_is_is_refused(tmp_path: Path) -> None:
    packed = many_zeros(2048)
    assert len(packed) < 3_000_000
    refused(tmp_path, raw_wheel(Raw("bomb", packed=packed, says={"size": 2048 * MIB})))
    many = [Raw(f"bomb-{number}", packed=many_zeros(64), says={"size": 64 * MIB}) for number in range(16)]
    refused(tmp_path, raw_wheel(*many))


# VmHWM, for ru_maxrss of a process begins with what its parent had in use (Linux, fs/exec.c: setmax_mm_hiwater_rss).
MEASURED = """
import sys
from pathlib import Path
from labrig.errors import BuildError
sys.path.insert(0, sys.argv[2])
import test_wheel
try:
    test_wheel.make(Path(sys.argv[1]))
except BuildError as error:
    print(error)
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) // 1024)
"""
BOMBS = {
    "at once": Raw("bomb.txt", packed=many_zeros(800), says={"size": 1000}),
    "by pieces": Raw("bomb.txt", packed=many_zeros(1500), says={"size": 1000}),
    "says nothing": Raw("bomb.txt", packed=many_zeros(1500), says={"size": 0}),
}


def behind(start: bytes) -> bytes:
    """A deflate stream that begins so and becomes 1.5 GB."""
    return stored(start, last=False) + many_zeros(1500)


@pytest.mark.parametrize(
    "bomb",
    [
        *BOMBS,
        f"{INFO}/METADATA",
        f"{INFO}/WHEEL",
        f"{INFO}/RECORD",
        f"{INFO}/entry_points.txt",
        f"{DATA}/scripts/run",
        "demo.py",
    ],
)
def test_a_bomb_that_says_it_is_small_takes_no_memory(tmp_path: Path, bomb: str) -> None:
    """Nor is it taken for what it says: what is behind its declared end is in no file."""
    if bomb in BOMBS:
        content = raw_wheel(BOMBS[bomb])
    else:
        start = whole(MODULE).get(bomb, b"#!python\n" if "scripts" in bomb else b"[console_scripts]\n")
        raw = Raw(bomb, packed=behind(start), says={"size": len(start), "crc": zlib.crc32(start)})
        content = raw_wheel(raw, without=[bomb])
    path = tmp_path / NAME
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, path, Path(__file__).parent], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    *text, used = done.stdout.splitlines()
    assert int(used) < 300, f"{used} MiB"
    assert text, "it was made into a layer"
    assert text[0] == f"{NAME} is not a wheel that can be installed"
    assert bomb not in BOMBS or "bomb.txt" in text[1]


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    first = Raw("a.py", noise(1000))
    inner = zip_of([Raw("b.py", b"inner")])
    inner = inner[: inner.index(b"PK\1\2")]
    outer = Raw("outer", inner, method=0)
    honest = raw_wheel(first)
    at = honest.index(b"a.py") - 30
    refused(tmp_path, raw_wheel(first, Raw("b.py", noise(1000), says={"offset": at})), "overlap")
    start = raw_wheel(outer).index(inner)
    refused(tmp_path, raw_wheel(outer, Raw("b.py", b"inner", says={"offset": start})), "b.py", "overlap")
    reaches = Raw("a.py", noise(1000), says={"packed": len(deflated(noise(1000))) + 10})
    refused(tmp_path, raw_wheel(reaches, Raw("b.py", b"x")), "overlap")


@pytest.mark.parametrize("offset", [10**6, 2**32 - 2, 5])
def test_an_entry_that_lies_nowhere_is_refused(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, raw_wheel(Raw("b.py", b"x", says={"offset": offset})))


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, raw_wheel(Raw("x.py", b"x", flags=0x801)), "x.py", "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 9, 93, 99])
def test_another_compression_is_refused(tmp_path: Path, method: int) -> None:
    refused(tmp_path, raw_wheel(Raw("x.py", b"x", method=method)), "x.py", str(method))


@pytest.mark.parametrize("local", ["y.py", "x.p", "x.pyy", ""])
def test_a_local_header_with_another_name_is_refused(tmp_path: Path, local: str) -> None:
    refused(tmp_path, raw_wheel(Raw("x.py", b"x", local_name=local)), "x.py")


@pytest.mark.parametrize("name", [DATA, f"{DATA}/scripts", f"{DATA}/strange", f"{DATA}/strange/x", f"{DATA}/x.txt"])
def test_a_file_of_no_scheme_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, raw_wheel(Raw(name, b"x")), name)


# --- what makes it a wheel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["WHEEL", "RECORD"])
def test_a_wheel_that_lacks_what_makes_it_one_is_refused(tmp_path: Path, missing: str) -> None:
    refused(tmp_path, raw_wheel(without=[f"{INFO}/{missing}"]), f"{INFO}/{missing}")


def test_the_folder_that_describes_it_has_to_be_there_once_and_be_its_own(tmp_path: Path) -> None:
    refused(tmp_path, zip_of([Raw("demo.py", b"x")]), ".dist-info")
    refused(tmp_path, raw_wheel(Raw("more-1.0.dist-info/METADATA", METADATA)), ".dist-info")
    other = whole(MODULE, info="other-1.0.dist-info")
    refused(tmp_path, zip_of([Raw(name, content) for name, content in other.items()]), ".dist-info")
    refused(tmp_path, zip_of([*(Raw(name, content) for name, content in MODULE.items()), Raw(INFO, b"x")]), INFO)


@pytest.mark.parametrize(
    "text", [b"", b"Wheel-Version: 2.0\n", WHEEL.replace(b"1.0", b"2.0"), b"\xff\xfe", b"nonsense", WHEEL[20:]]
)
def test_another_version_of_the_format_is_refused(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, raw_wheel(instead={f"{INFO}/WHEEL": text}))


@pytest.mark.parametrize("text", [b"demo.py,x\n", b"a,b,c,d\n", b"\xff\xfe,,\n", b'"' + b"x" * 200_000 + b'",,\n'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, raw_wheel(instead={f"{INFO}/RECORD": text}))


@pytest.mark.parametrize("name", ["../../bin/evil", "/etc/evil", "a/b", "..", ".", "a/../b"])
def test_an_entry_point_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    for section in ("console_scripts", "gui_scripts"):
        text = f"[{section}]\n{name} = demo:main\n".encode()
        refused(tmp_path, raw_wheel(Raw(f"{INFO}/entry_points.txt", text)), "entry_points.txt", name)


@pytest.mark.parametrize(
    "text",
    [
        b"no section\n",
        b"[console_scripts]\nno value\n",
        b"[console_scripts]\ndemo = \n",
        b"[console_scripts]\ndemo = demo\n",
        b"[console_scripts]\ndemo = demo:main; import os\n",
        b"[console_scripts]\ndemo = demo:main()\n",
        b"[console_scripts]\ndemo = demo:main\ndemo = demo:other\n",
        b"[console_scripts]\ndemo = %(x)s\n",
        b"[console_scripts\ndemo = demo:main\n",
        b"\xff\xfe",
    ],
)
def test_entry_points_that_are_none_are_refused(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, raw_wheel(Raw(f"{INFO}/entry_points.txt", text)), "entry_points.txt")


def test_a_script_and_an_entry_point_of_one_name_are_one_script_as_pip_has_it(tmp_path: Path) -> None:
    """Old wheels hold the wrappers that their entry points describe; pip leaves those out."""
    path = write(
        tmp_path,
        {**MODULE, f"{DATA}/scripts/demo": b"#!python\nold wrapper\n"},
        entry_points="[console_scripts]\ndemo = demo:main\n",
    )
    assert b"from demo import main" in unpacked(make(path))["x/venv/bin/demo"][0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"no archive",
        noise(100_000),
        zip_of([]),
        raw_wheel()[:-1],
        raw_wheel()[:-30],
        raw_wheel()[: len(raw_wheel()) // 2],
        raw_wheel()[10:],
        gzip.compress(raw_wheel()),
    ],
    ids=range(10),
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content)


@pytest.mark.parametrize("seed", range(6))
def test_a_spoilt_archive_is_a_layer_or_an_error_that_names_it(tmp_path: Path, seed: int) -> None:
    """Bytes flipped, cut out and doubled at random: never a traceback, nothing left of what failed."""
    text = "[console_scripts]\ndemo = demo:main\n"
    honest = write(tmp_path, {**MODULE, "x.txt": b"text " * 50, f"{DATA}/scripts/s": b"#!python\n"}, entry_points=text)
    content = honest.read_bytes()
    chance = random.Random(seed)  # noqa: S311
    directory = content.index(b"PK\1\2")
    for number in range(150):
        spoilt = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(directory if number % 2 else 0, len(spoilt))
            match chance.randrange(4):
                case 0:
                    spoilt[at] ^= 1 << chance.randrange(8)
                case 1:
                    spoilt[at] = chance.choice((0, 255, 47, 46))
                case 2:
                    del spoilt[at : at + chance.randrange(1, 20)]
                case 3:
                    spoilt[at:at] = spoilt[at : at + chance.randrange(1, 20)]
        honest.write_bytes(spoilt)
        before = {place for place in home.layers().rglob("*") if place.is_file()}
        try:
            unpacked(make(honest))
        except BuildError as error:
            assert NAME in str(error)
            assert {place for place in home.layers().rglob("*") if place.is_file()} == before


# --- as pip installs it -----------------------------------------------------------------------------------------

FOLDERS = st.text("abcABC_ü-.0", min_size=1, max_size=6).filter(lambda name: name.strip(".") and not name.endswith("."))
LEAVES = st.tuples(st.text("abcxyz_é0 ", min_size=1, max_size=8), st.sampled_from([".py", ".txt", ".so", ".h"])).map(
    "".join
)
PATHS = st.tuples(st.lists(FOLDERS.map(lambda name: f"{name}~"), max_size=4), LEAVES).map(
    lambda it: "/".join((*it[0], it[1]))
)
BODIES = st.one_of(
    st.binary(max_size=300), st.integers(0, 200_000).map(noise), st.integers(0, 3_000_000).map(bytes)
)  # fmt: skip
SCRIPTS = st.one_of(
    st.sampled_from([b"#!python\nprint(1)\n", b"#!pythonw\nprint(1)\n", b"#!/bin/sh\n", b"", b"#!python"]),
    st.binary(max_size=100),
)
MODES = st.sampled_from([0, 0o644, 0o755, REGULAR | 0o644, REGULAR | 0o755, REGULAR | 0o600, REGULAR | 0o555])
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
WORD = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)


@st.composite
def wheels(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, int], str]:
    """Files, their modes, entry points."""
    files = dict(MODULE)
    for scheme in ("", f"{DATA}/purelib/pure/", f"{DATA}/platlib/plat/", f"{DATA}/data/share/", f"{DATA}/headers/"):
        files |= {scheme + path: body for path, body in draw(st.dictionaries(PATHS, BODIES, max_size=4)).items()}
    names = draw(st.dictionaries(WORD.map(lambda name: f"s-{name}"), SCRIPTS, max_size=3))
    files |= {f"{DATA}/scripts/{name}": body for name, body in names.items()}
    points = draw(
        st.dictionaries(WORD.map(lambda name: f"e-{name}"), st.sampled_from(["main", "Main.run"]), max_size=3)
    )
    text = "".join(f"{name} = demo:{attr}\n" for name, attr in points.items())
    kind = draw(st.sampled_from(["console_scripts", "gui_scripts"]))
    return files, {name: draw(MODES) for name in files}, f"[{kind}]\n{text}" if text else ""


def tree(folder: Path) -> dict[str, tuple[bytes, bool]]:
    return {
        str(place.relative_to(folder)): (place.read_bytes(), bool(place.stat().st_mode & 0o100))
        for place in folder.rglob("*")
        if place.is_file()
    }


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(wheels(), METHODS)
def test_a_layer_holds_what_pip_installs(made: tuple[dict[str, bytes], dict[str, int], str], method: int) -> None:
    files, modes, entry_points = made
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder, files, entry_points=entry_points, modes=modes, method=method)
        layer = make(path)
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blobs.path(layer.digest).read_bytes()))) as tar:
            tar.extractall(folder / "ours", filter="data")
        subprocess.run(
            [
                sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "-q", "--no-deps",
                "--no-compile", "--no-index", "--no-warn-script-location", "--ignore-installed",
                "--root", folder / "theirs", "--prefix", PLACES.prefix, path,
            ],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        ours, theirs = tree(folder / "ours"), tree(folder / "theirs")
    own = {f"{SITE}/{INFO}/{name}" for name in ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")}
    assert ours.keys() - own == theirs.keys() - own
    for place in ours.keys() - own:
        (content, executable), (their_content, their_executable) = ours[place], theirs[place]
        assert executable == their_executable, place
        if place.startswith("x/venv/bin/e-"):
            imported = re.compile(rb"^from (\S+) import (\S+)$", re.MULTILINE)
            assert imported.findall(content) == imported.findall(their_content) != []
            called = re.compile(rb"sys\.exit\((.+)\)$", re.MULTILINE)
            assert called.findall(content) == called.findall(their_content) != []
        elif place.startswith("x/venv/bin/") and content != their_content:
            ours_first, _, ours_rest = content.partition(b"\n")
            theirs_first, _, theirs_rest = their_content.partition(b"\n")
            assert (ours_first, ours_rest) == (b"#!/x/venv/bin/python", theirs_rest)
            assert theirs_first == f"#!{sys.executable}".encode()
        else:
            assert content == their_content, place
    mine, other = (rows_of(found[f"{SITE}/{INFO}/RECORD"][0]) for found in (ours, theirs))
    shared = {place for place in mine if not place.startswith("x/venv/bin/")} - own
    assert {place: mine[place] for place in shared} == {place: other[place] for place in shared}
