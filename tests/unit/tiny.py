"""Wheels of a few bytes, and what is locked, fetched and built from them, so that real builds take a second.

python tiny.py WHEELS_FOLDER    build the lock over that folder with the venv engine, as `invoke build` would
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from labrig import cli, home, spec, wheelhouse
from labrig.engines import Environment, venv
from labrig.indexes import Sources
from labrig.lock import Lock, Wheel
from labrig.progress import Progress

ROOT = Path(__file__).parents[2]
MINOR = "{}.{}".format(*sys.version_info[:2])


def make_wheel(folder: Path, name: str, version: str = "1.0", files: Mapping[str, bytes] | None = None) -> Wheel:
    """Write a wheel with the given files (by default a module of its name) and give its entry in a lock."""
    info = f"{name}-{version}.dist-info"
    content = dict(files or {f"{name}.py": f"version = {version!r}\n".encode()})
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{file},sha256={_digest(data)},{len(data)}\n" for file, data in content.items())
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in content.items():
            archive.writestr(zipfile.ZipInfo(file), data, zipfile.ZIP_DEFLATED)
    return read_wheel(path)


def read_wheel(path: Path) -> Wheel:
    """The lock's entry for a wheel on disk."""
    data = path.read_bytes()
    name, version, *_ = path.name.split("-")
    return Wheel(name, version, path.name, hashlib.sha256(data).hexdigest(), len(data))


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def lock_of(folder: Path) -> Lock:
    """The lock that names every wheel of a folder."""
    return Lock("tiny", "linux_x86_64", MINOR, "0" * 64, tuple(map(read_wheel, sorted(folder.glob("*.whl")))))


def target() -> spec.Target:
    """The CPU row under the name tiny, for the Python that runs this."""
    row = spec.read(ROOT / "images" / spec.TABLE).pick("cpu")
    return dataclasses.replace(row, name="tiny", python=MINOR)


def fetching(lock: Lock, folder: Path) -> Callable[[], Path]:
    """What an engine calls when it needs wheels: the real wheelhouse over a folder of wheels."""

    def fetch() -> Path:
        sources = Sources(default=None, find_links=(str(folder),))
        wheelhouse.fetch(lock.wheels, sources, pinned={}, store=home.wheels(), progress=Progress())
        return home.wheels()

    return fetch


def build(folder: Path) -> Environment:
    """Build the environment of all wheels in a folder with the venv engine."""
    lock = lock_of(folder)
    return venv.build(target(), lock, fetching(lock, folder), offline=True)


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
