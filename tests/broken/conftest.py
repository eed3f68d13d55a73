"""Copies of a real environment, each with one thing broken, and what the probe says in each."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labrig import environment, verify
from labrig.engines import Environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Copy:
    """A copy of an environment made of links into it: only what is changed is there itself, nothing is written through
    a link."""

    place: Path

    @property
    def site(self) -> Path:
        return next(self.place.glob("lib/python3.*/site-packages"))

    def info(self, package: str) -> Path:
        return next(self.site.glob(f"{package.replace('-', '_')}-*.dist-info"))

    def replace(self, file: Path, data: bytes, *, recorded: bool = False) -> None:
        """Give a file other content; ``recorded``: also in its package's RECORD, as another build would have it."""
        self.own(file.parent)
        file.unlink()
        file.write_bytes(data)
        if recorded:
            self._record(file, data)

    def own(self, folder: Path) -> None:
        """Turn a link to a folder, and those above it, into folders of links."""
        if folder != self.place:
            self.own(folder.parent)
        if folder.is_symlink():
            source = folder.readlink()
            folder.unlink()
            _link_entries(source, folder)

    def append(self, file: Path, code: str) -> None:
        """Change a module as another build would."""
        self.replace(file, file.read_bytes() + code.encode(), recorded=True)

    def truncate(self, file: Path) -> None:
        self.replace(file, file.read_bytes()[: file.stat().st_size // 2])

    def remove(self, package: str) -> None:
        """Remove a package wholly, as `pip uninstall` does."""
        info = self.info(package)
        for row in csv.reader((info / "RECORD").read_text().splitlines()):
            self.unlink(self.site / row[0])
        shutil.rmtree(info)

    def unlink(self, file: Path) -> None:
        if file.exists():
            self.own(file.parent)
            file.unlink()

    def _record(self, file: Path, data: bytes) -> None:
        name = str(file.relative_to(self.site))
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for record in self.site.glob("*.dist-info/RECORD"):
            lines = record.read_text().splitlines()
            found = [i for i, line in enumerate(lines) if next(csv.reader([line]))[0] == name]
            if found:
                lines[found[0]] = f"{name},sha256={digest},{len(data)}"
                self.replace(record, ("\n".join(lines) + "\n").encode())
                return
        raise AssertionError(f"no package owns {name}")


def _link_entries(source: Path, folder: Path) -> None:
    folder.mkdir()
    for entry in source.iterdir():
        if entry.name != "__pycache__":  # a changed module is compiled anew, here
            (folder / entry.name).symlink_to(entry)


def copy_of(made: Environment, place: Path) -> Copy:
    """A copy of a native environment at ``place``; `bin` and `site-packages` stand there themselves."""
    source = Path(made.reference)
    place.parent.mkdir(parents=True, exist_ok=True)
    _link_entries(source, place)
    copy = Copy(place)
    copy.own(place / "bin")
    copy.own(copy.site)
    return copy


def probe(copy: Copy) -> dict[str, Any]:
    """All facts, as `invoke verify` reads them."""
    document = json.loads(_run_probe(copy))
    assert isinstance(document, dict)
    return document


def probe_metadata(copy: Copy) -> dict[str, Any]:
    """The facts that need no torch."""
    lines = _run_probe(copy, "python", "packages", "files").splitlines()
    return {name: fact for name, fact, _ in map(json.loads, lines)}


def _run_probe(copy: Copy, *names: str) -> str:
    done = subprocess.run(
        [copy.place / "bin" / "python", "-I", "-S", verify.PROBE, *names],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def made() -> Environment:
    """The native environment of the target that fits this host."""
    return environment.build(ROOT, engine="venv")


@pytest.fixture(scope="session")
def facts(made: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the probe says in every broken copy: one run each, two at a time, for a run takes seconds.

    Where only the metadata of packages was changed, what torch says is taken from the copy with nothing broken.
    """
    from test_broken import BROKEN

    folder = tmp_path_factory.mktemp("broken")

    def look(name: str) -> dict[str, Any]:
        copy = copy_of(made, folder / name.replace(" ", "-"))
        break_it, expected = BROKEN[name]
        break_it(copy)
        return probe_metadata(copy) if expected and expected <= {"packages", "extra"} else probe(copy)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(BROKEN, pool.map(look, BROKEN), strict=True))
    return {name: {**found["nothing"], **facts} for name, facts in found.items()}
