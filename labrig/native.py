"""Native environments, of the engines venv and conda: their folders, and sessions in them.

A folder is named by the digest of what is in it, so a new lock never touches the environment in use; a mark is written
last, so a build that was killed leaves a folder without it, which the next one removes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from labrig import network
from labrig.engines import Environment, Session
from labrig.errors import BuildError
from labrig.files import alone, write_atomically
from labrig.host import Host
from labrig.spec import Target

GUARD = ".building"  # beside an environment, locked while it is built; empty, and left there
MARK = "labrig.json"  # written last: an environment without it is unfinished and is made anew
GRACE = 15.0  # seconds that a command in a session has after Ctrl-C; labs take up to 10 to save their state


def check(target: Target, host: Host) -> str | None:
    """Why no native environment of this target can be made here: another platform. None: it can, given its programs."""
    if host.platform not in target.platforms:
        here = host.platform or f"{host.os} {host.arch}"
        return f"target {target.name} is for {', '.join(target.platforms)}; this machine is {here}"
    return None


def is_made(place: Path) -> bool:
    """True if a build came to its end there, and the interpreter that it links to has not gone since."""
    return (place / MARK).is_file() and python(prefix(place)).exists()


def prefix(place: Path) -> Path:
    """Where in the folder of a made environment its bin/ is: there, unless the mark says that it is deeper."""
    return place / str(json.loads((place / MARK).read_text(encoding="utf-8")).get("prefix", "."))


def python(prefix: Path) -> Path:
    """The interpreter of the environment at ``prefix``."""
    return prefix / "bin" / "python"


def make(place: Path, about: Mapping[str, str], fill: Callable[[int], None]) -> None:
    """Fill the folder of an environment, unless it is made; ``about`` goes into its mark.

    One build of one environment runs at a time; a second waits and finds it made. ``fill`` gets the descriptor of the
    file that is locked meanwhile, for the programs it starts: a kill -9 of labrig then frees it only when they, too,
    have stopped writing there. What ``fill`` raises leaves nothing behind.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place) as guard:
        if is_made(place):  # by the build this one waited for
            return
        if place.exists():
            print(f"removing {place}: a build was interrupted there, or its interpreter is gone", file=sys.stderr)
            shutil.rmtree(place)
        try:
            fill(guard)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        note = {**about, "made": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(place / MARK, json.dumps(note, indent=2) + "\n")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[int]:
    """Hold the lock on building ``place``."""
    with alone(
        place.with_name(place.name + GUARD), "another build of this environment is running; waiting for it"
    ) as held:
        yield held


def enter(environment: Environment, inner: Mapping[str, str]) -> Session:
    """A session in a native environment with the environment variables ``inner``.

    Every folder of this machine is there anyway, and all purposes are alike.
    """

    def run(
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> int:
        program = shutil.which(argv[0], path=inner["PATH"]) or argv[0]
        try:
            variables = {**inner, **(env or {})}
            with subprocess.Popen([program, *argv[1:]], cwd=cwd, env=variables, stdout=stdout) as process:
                return _wait(process)
        except FileNotFoundError:
            raise BuildError(
                f"no program {argv[0]!r} in the environment of target {environment.target.name}",
                found=environment.reference,
                fix=f"invoke clean --target={environment.target.name}, then build again",
            ) from None

    return Session(environment, run, "local://", str(python(Path(environment.reference))))


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. Ctrl-C reaches the command as well: it gets time to save its state, unless there is a second."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()
        raise


def inherited(outer: Mapping[str, str]) -> dict[str, str]:
    """What a session takes over of the caller's variables: nothing that belongs to another Python or environment."""
    # PYTHONDONTWRITEBYTECODE would make every start compile torch anew: 12 s instead of 4. uv does not compile, since
    # that takes longer than all the rest of an installation, and most files are never imported.
    dropped = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    kept = {k: v for k, v in outer.items() if k not in dropped and not k.startswith("CONDA_")}
    kept["PYTHONNOUSERSITE"] = "1"  # a package in ~/.local must not shadow a locked one
    return kept | network.variables(outer)
