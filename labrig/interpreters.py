"""Python interpreters of this host, found by running them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from labrig import network
from labrig.errors import HostError

# Name and file prove nothing: a pyenv shim on PATH may exit 127, a Debian python3 may lack venv, a free-threaded
# build takes other wheels, and an Intel Python on a Mac runs under Rosetta and finds no wheel at all.
_ASK = (
    "import json, os, sys, sysconfig; print(json.dumps(['%d.%d' % sys.version_info[:2], "
    "bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sys.platform, os.uname().machine, sys.executable]))"
)
ANSWER_TIMEOUT = 20  # seconds
INSTALL_TIMEOUT = 600  # seconds


def find(minor: str, *, offline: bool = False) -> Path:
    """An interpreter of that minor version that really runs here, natively; uv fetches one if this host has none.

    Raises:
        HostError: none here, and uv could not fetch one (or must not: ``offline``).
    """
    tried = []
    for candidate in _candidates(minor):
        if working := _ask(candidate, minor):
            return working
        tried.append(str(candidate))
    if not offline and (fetched := _fetch(minor)):
        return fetched
    found = (
        f"tried {', '.join(tried)}; none is a working{' native' * (sys.platform == 'darwin')} Python {minor}"
        if tried
        else "none on PATH or in pyenv"
    )
    raise HostError(
        f"no Python {minor} on this machine" + ("" if offline else ", and uv could not fetch one"),
        found=found,
        fix=f"install it (your system's packages, python.org, pyenv install {minor}, or, with a mirror, "
        f"UV_PYTHON_INSTALL_MIRROR=URL) and run the command again",
    )


def _candidates(minor: str) -> Iterator[Path]:
    seen: set[Path] = set()
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    with contextlib.suppress(OSError):  # another user's folder, named by an inherited PYENV_ROOT
        places += sorted(pyenv.glob(f"{minor}.*/bin"), key=_patch, reverse=True)
    for candidate in (Path(sys.executable), *(place / f"python{minor}" for place in places)):
        if os.access(candidate, os.X_OK) and candidate.absolute() not in seen:
            seen.add(candidate.absolute())
            yield candidate


def _patch(folder: Path) -> int:
    digits = folder.parent.name.rsplit(".", 1)[-1]
    return int(digits) if digits.isdigit() else -1


def _ask(python: Path, minor: str) -> Path | None:
    """Where that interpreter really is, or None if it does not run or is another kind than the locks are for."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_TIMEOUT, check=True,
        )  # fmt: skip
        version, free_threaded, system, machine, executable = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None
    translated = system == "darwin" and machine != "arm64"
    return Path(executable) if version == minor and not free_threaded and not translated else None


def request(minor: str, system: str = sys.platform) -> str:
    """What uv is asked for. On a Mac the chip is named, as a uv under Rosetta would take an Intel Python."""
    return f"cpython-{minor}-macos-aarch64-none" if system == "darwin" else minor


def _fetch(minor: str) -> Path | None:
    uv = [sys.executable, "-m", "uv", "python"]
    print(f"no Python {minor} here; asking uv for one", file=sys.stderr)
    wanted = request(minor)
    try:
        subprocess.run(
            [*uv, "install", "--quiet", wanted], env={**os.environ, **network.variables()}, capture_output=True,
            timeout=INSTALL_TIMEOUT, check=True,
        )  # fmt: skip
        done = subprocess.run(
            [*uv, "find", "--managed-python", wanted], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _ask(Path(done.stdout.strip()), minor)
