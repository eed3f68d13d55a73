"""Copies of this checkout that take conda packages from a local channel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from labrig import spec

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout whose table pins the Python that is here, and a channel to take packages from."""

    root: Path
    address: str
    variables: dict[str, str]

    def invoke(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "invoke", *arguments], cwd=self.root, env={**self.variables, **variables},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def table(self) -> spec.Table:
        return spec.read(self.root / "images" / spec.TABLE)


def copy_checkout(folder: Path, address: str, program: Path, pythons: dict[str, str] | None = None) -> Checkout:
    """The checkout's files, with the exact Pythons of [conda.python] replaced."""
    root = folder / "checkout"
    for name in (
        "tasks.py",
        "pyproject.toml",
        "images",
        "templates",
        "labrig",
        "labs",
        "tests",
        "README.md",
        ".github",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.conda.lock"))
        else:
            root.mkdir(exist_ok=True)
            shutil.copy(source, root)
    table = root / "images" / spec.TABLE
    text = table.read_text(encoding="utf-8")
    for minor, exact in (pythons or {}).items():
        found = next(line for line in text.splitlines() if line.startswith(f'"{minor}" = '))
        text = text.replace(found, f'"{minor}" = "{exact}"')
    table.write_text(text, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONDA_", "MAMBA_"))}
    variables = {
        **kept, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}", "LABRIG_CONDA_CHANNEL": address,
        "LABRIG_CACHE": str(folder / "cache"), "RATTLER_CACHE_DIR": str(folder / "packages"),
    }  # fmt: skip
    return Checkout(root, address, variables)


def error_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that ended with that code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr[done.stderr.index("labrig: ") :]
