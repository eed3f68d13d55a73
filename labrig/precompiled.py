"""Layers of bytecode: what Python would compile anew at every start, as a student cannot write to the environment.

Bytecode is compiled once for each wheel by an interpreter of this host, and kept under that interpreter's full version.
It is not part of what is promised to be the same everywhere, and has layers of its own, so what it stands on is.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from labrig import blobs, home, interpreters, layers, program, wheel, wheelhouse
from labrig.blobs import Layer
from labrig.crew import Crew
from labrig.errors import BuildError, HostError, Interrupted
from labrig.layers import Group
from labrig.lock import Lock, Wheel
from labrig.progress import Progress
from labrig.wheel import Entry, File, Places

COMPILER = Path(__file__).with_name("compiler.py")
VERSION = "1"  # of what is compiled: another one where LEFT_OUT or the compiler changes
TIMEOUT = 900  # seconds for one wheel
# Folders that neither the labs nor JupyterLab import anything of at their start, or hardly anything, and that cost most
# to compile (docs/measured.md). Python compiles them when somebody does import them, as it does without bytecode.
LEFT_OUT = (
    "debugpy/", "fontTools/", "isympy.py", "jedi/", "mpmath/", "networkx/", "nvidia/", "pkg_resources/", "setuptools/",
    "sympy/", "triton/", "numpy/distutils/", "scipy/signal/", "torch/_dynamo/", "torch/_inductor/", "torch/_vendor/",
    "torch/distributed/", "torch/onnx/", "torch/testing/",
)  # fmt: skip
TESTS = ("/tests/", "/test/", "/testing/")


def interpreter(minor: str) -> tuple[Path, str] | None:
    """An interpreter of this host for a Python's minor version, and its full version; None, with the reason said on
    stderr, where there is none."""
    try:
        python = interpreters.find(minor, offline=True)
        asked = [str(python), "-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=interpreters.ANSWER_TIMEOUT, check=True)
        return python, said.stdout.strip()
    except HostError as error:
        why = error.found or error.what
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
    print(f"no bytecode: no Python {minor} on this machine compiles it ({why}); containers start slower",
          file=sys.stderr)  # fmt: skip
    return None


def of_wheels(
    lock: Lock, store: Callable[[], Path], places: Places, python: tuple[Path, str], *, quiet: bool = False
) -> list[Layer]:
    """The layers of bytecode of a lock's wheels, found or made.

    Raises:
        BuildError: a wheel is not one, or the disk is full.
        Interrupted: Ctrl-C.
    """
    archives = {one: _archive(one, places, python[1]) for one in lock.wheels}
    if missing := [one for one in lock.wheels if not zipfile.is_zipfile(archives[one])]:
        _compile(missing, store(), places, python[0], archives, quiet=quiet)
    groups = layers.group(lock.wheels, {one: archive.stat().st_size for one, archive in archives.items()})
    return [layer for one in groups if (layer := _make(one, archives, places)) is not None]


def _archive(one: Wheel, places: Places, version: str) -> Path:
    """Where the bytecode of a wheel is kept."""
    key = blobs.key("bytecode", VERSION, _compiler(), places.prefix, version, one.sha256)
    return home.layers() / "bytecode" / f"{one.sha256}-{key[:16]}.zip"


@functools.cache
def _compiler() -> str:
    return COMPILER.read_text(encoding="utf-8")


def _compile(
    missing: Sequence[Wheel], folder: Path, places: Places, python: Path, archives: Mapping[Wheel, Path], *, quiet: bool
) -> None:
    batches = layers.group(missing)
    crew = Crew(os.cpu_count() or 1)
    with Progress("bytecode", quiet=quiet) as progress:
        progress.start(sum(one.size for one in missing))

        def compile_batch(batch: Group) -> None:
            jobs = []
            for one in batch.wheels:
                path = wheelhouse.find(one, folder)
                files = [file for file in wheel.read(path, places) if _earns(file, places)]
                modules = {file.content.name: f"/{file.path}" for file in files if isinstance(file.content, Entry)}
                jobs.append(json.dumps({"wheel": str(path), "out": str(archives[one]), "modules": modules}) + "\n")
            handle, name = tempfile.mkstemp(prefix=blobs.ABANDONED, dir=archives[missing[0]].parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(jobs)
            command = [str(python), "-I", "-S", str(COMPILER), name]  # which removes the file when it has read it
            code, said = program.follow(command, list, environment=os.environ, seconds=TIMEOUT)
            if code:
                raise BuildError(
                    f"{python} could not compile {batch.title}",
                    found=" ".join("".join(said).split())[-500:] or f"exit code {code}",
                    fix="make room where it says so, or build with --no-bytecode",
                )  # fmt: skip
            progress.advance(sum(one.size for one in batch.wheels))

        try:
            archives[missing[0]].parent.mkdir(parents=True, exist_ok=True)
            crew.each(compile_batch, sorted(batches, key=lambda one: -sum(each.size for each in one.wheels)))
        except KeyboardInterrupt:
            raise Interrupted("compiling was interrupted", fix="run it again: what was finished is kept") from None
        except OSError as error:
            raise blobs.unwritable(error, home.layers()) from error


def _earns(file: File, places: Places) -> bool:
    """Whether a file is a module that is worth its bytecode."""
    inner = file.path.removeprefix(f"{places.site_packages.lstrip('/')}/")
    if inner == file.path or not inner.endswith(".py"):
        return False
    return not inner.startswith(LEFT_OUT) and not any(part in inner for part in TESTS)


def _make(one: Group, archives: Mapping[Wheel, Path], places: Places) -> Layer | None:
    """The layer of a group's bytecode; None where it has none."""
    key = blobs.key("bytecode", layers.VERSION, *(archives[each].stem for each in one.wheels))
    if found := blobs.find(key):
        return found
    sources = []
    for each in one.wheels:
        with wheel.opened(archives[each]) as (archive, _):
            entries = wheel.read_entries(archive, archives[each].stat().st_size)
        sources.append((archives[each], [File(name, False, entry) for name, entry in sorted(entries.items())], 0))
    if not any(files for _, files, _ in sources):
        return None
    digests = [each.sha256 for each in one.wheels]
    return blobs.make(key, f"bytecode: {one.title}", lambda writer: layers.write_files(writer, sources), digests)
