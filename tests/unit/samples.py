"""Wheels of a kilobyte that are valid in every respect; and targets, locks and real environments made of them.

python samples.py WHEELS_FOLDER    build all wheels of that folder with the venv engine, as `invoke build` would
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from labrig import cli, home, spec, wheelhouse
from labrig.engines import Environment, venv
from labrig.indexes import Sources
from labrig.lock import Lock, Wheel, load
from labrig.published import Entry
from labrig.spec import Target

ROOT = Path(__file__).parents[2]
SHIPPED = spec.read(ROOT / "images" / spec.TABLE)
TORCH = SHIPPED.targets["cuda"].torch
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
INDEX = "tiny"


def published(target: str, **changed: Any) -> Entry:
    """An entry of images/published.toml for a shipped target, of its lock for its first platform."""
    row = SHIPPED.targets[target]
    entry = Entry(
        target=target,
        platform=row.platforms[0],
        reference=f"registry.example.org/lab/{target}@sha256:{'0' * 64}",
        tag=f"{row.torch}-{row.variant}-py{row.python}-01234567-20260101",
        image=f"labrig/{target}:{row.torch}-0123456789ab",
        config=f"sha256:{'2' * 64}",
        size=1_000_000,
        torch=row.torch,
        variant=row.variant,
        python=row.python,
        cuda=row.cuda or "none",
        min_driver=row.min_driver or "none",
        capabilities=row.capabilities,
        lock=load(row, row.platforms[0], ROOT / "images").digest,
        labs=f"sha256:{'1' * 64}",
        date="2026-01-01",
        verified="21 passed",
    )
    return replace(entry, **changed)


def wheel(
    name: str,
    version: str,
    tag: str = "py3-none-any",
    *,
    requires: Iterable[str] = (),
    code: str = "",
    files: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """File name -> content of one wheel: a package of that name with ``code`` in its __init__, or else ``files``."""
    package = name.replace("-", "_")
    stem = f"{package}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        **(files or {f"{package}/__init__.py": f"__version__ = {version!r}\n{code}".encode()}),
        f"{stem}.dist-info/METADATA": (metadata + "".join(f"Requires-Dist: {one}\n" for one in requires)).encode(),
        f"{stem}.dist-info/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
        ),
    }
    record = f"{stem}.dist-info/RECORD"
    lines = "".join(f"{path},sha256={_recorded(data)},{len(data)}\n" for path, data in contents.items())
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for path, data in {**contents, record: f"{lines}{record},,\n".encode()}.items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return {f"{stem}-{tag}.whl": body.getvalue()}


def _recorded(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def sdist(name: str, version: str) -> dict[str, bytes]:
    """File name -> content of one source distribution."""
    body = io.BytesIO()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        entry = tarfile.TarInfo(f"{name}-{version}/PKG-INFO")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return {f"{name}-{version}.tar.gz": body.getvalue()}


def torch_wheel(
    version: str = TORCH, python: str = PYTHON, platform: str = "manylinux_2_28_x86_64", *, cuda: str | None = None
) -> dict[str, bytes]:
    """A torch that says its version and that of its CUDA, and needs the package ``beta``."""
    interpreter = f"cp{python.replace('.', '')}"
    code = f"class version:\n    cuda = {cuda!r}\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    return wheel("torch", version, f"{interpreter}-{interpreter}-{platform}", requires=["beta>=1"], code=code)


def row(**keys: Any) -> dict[str, Any]:
    """A row of the pin table: torch for the CPU from the index ``tiny``; keys set, or left out where None."""
    usual = {"torch": TORCH, "variant": "cpu", "python": PYTHON, "index": INDEX, "packages": ["alpha"], "why": "a test"}
    return {key: value for key, value in {**usual, **keys}.items() if value is not None}


def target(name: str = "here", **keys: Any) -> Target:
    """The target of :func:`row`, validated as from a file."""
    data = {
        "defaults": {"engines": ["venv"]},
        "indexes": {INDEX: "https://index.example/"},
        "targets": {name: row(**keys)},
    }
    return spec.parse(data, Path(spec.TABLE)).targets[name]


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Put files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_wheel(folder: Path, name: str, version: str = "1.0", files: Mapping[str, bytes] | None = None) -> Wheel:
    """Write a wheel of ``files`` (a module of its name that says its ``version``) and give its entry in a lock."""
    files = files or {f"{name}.py": f"version = {version!r}\n".encode()}
    made = wheel(name, version, files=files)
    write(made, folder)
    return read_wheel(folder / next(iter(made)))


def read_wheel(path: Path) -> Wheel:
    """The lock's entry for a wheel on disk."""
    data = path.read_bytes()
    name, version, *_ = path.name.split("-")
    return Wheel(name, version, path.name, hashlib.sha256(data).hexdigest(), len(data))


def lock_of(folder: Path) -> Lock:
    """The lock of the target ``tiny`` that names every wheel of a folder."""
    return Lock("tiny", "linux_x86_64", PYTHON, "0" * 64, tuple(map(read_wheel, sorted(folder.glob("*.whl")))))


def fetching(lock: Lock, folder: Path) -> Callable[[], Path]:
    """What an engine calls when it needs wheels: the real wheelhouse over a folder of wheels."""

    def fetch() -> Path:
        wheelhouse.fetch(lock.wheels, Sources(default=None, find_links=(str(folder),)), pinned={}, store=home.wheels())
        return home.wheels()

    return fetch


def build(folder: Path) -> Environment:
    """Build the environment of all wheels in a folder with the venv engine."""
    lock = lock_of(folder)
    return venv.build(target("tiny"), lock, fetching(lock, folder), offline=True)


@cli.door
def main() -> None:
    print(build(Path(sys.argv[1])).reference)


if __name__ == "__main__":
    from invoke.exceptions import Exit

    try:
        main()
    except Exit as error:
        sys.stdout.flush()
        os._exit(error.code)
