"""Copies of a native environment in which one thing is broken."""

from __future__ import annotations

import base64
import csv
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from labrig.engines import Environment


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
