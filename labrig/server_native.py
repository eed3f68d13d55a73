"""A student's JupyterLab as a process of this machine, in a native environment, that outlives the command.

It holds a lock on a file as long as it lives, so that whether it lives, and whose the noted number is, needs no
guess: numbers of processes are used again, locks go with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from labrig import native
from labrig.engines import Environment, conda, venv
from labrig.errors import BuildError, UsageError

LOG, PID, ALIVE = "log", "pid", "alive"
GRACE = 15.0  # seconds to end its kernels
# The process notes its own number, so that there is no moment in which it runs and nobody knows it.
BEGIN = 'echo $$ >"$0" && exec "$@"'


def prepare(folder: Path) -> tuple[int, int]:
    """Make the student's folder; gives the user and the group that it is for: whoever calls.

    Raises:
        UsageError: it cannot be made or written.
    """
    make(folder)
    require_writable(folder)
    return os.getuid(), os.getgid()


def make(folder: Path) -> None:
    """Make the student's folder. Raises UsageError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--folder {folder} cannot be made", found=error.strerror or str(error)) from None


def require_writable(folder: Path) -> None:
    """Raises UsageError where whoever calls cannot write into a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--folder {folder} cannot be written", found=error.strerror or str(error), fix="name a folder of your own"
        ) from None


def launch(
    name: str, made: Environment, place: Path, root: Path, folder: Path, port: int, owner: tuple[int, int]
) -> bool:
    """Start it, in a session of its own; it has the port to itself or ends, which is seen by who waits for it."""
    enter = venv.entered if made.engine == "venv" else conda.activated
    variables = {**enter(os.environ, Path(made.reference)), "JUPYTER_TOKEN_FILE": str(place / "token")}
    variables.pop("JUPYTER_TOKEN", None)
    python = native.python(Path(made.reference))
    command = [str(python), "-m", "labs", "serve", "--to", str(folder), "--port", str(port), "--ip", "127.0.0.1"]
    opened = os.open(place / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(opened, "ab") as log, (place / ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        subprocess.Popen(  # not waited for: it stays
            ["/bin/sh", "-c", BEGIN, str(place / PID), *command], cwd=root, env=variables, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, pass_fds=(alive.fileno(),),
        )  # fmt: skip
    return True


def is_alive(name: str, place: Path) -> bool:
    """Whether its process lives."""
    try:
        with (place / ALIVE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def stop(name: str, place: Path) -> None:
    """End it; its kernels end with it.

    Raises:
        BuildError: it cannot be ended.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + GRACE
        _send(name, place, number, until)
        if _ended(name, place, until):
            return
    raise BuildError("the server cannot be ended", fix=f"look at the process whose number is in {place / PID}")


def _send(name: str, place: Path, number: signal.Signals, until: float) -> None:
    """Send it a signal, as soon as it has noted its own number."""
    while is_alive(name, place) and time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(int((place / PID).read_text(encoding="ascii")), number)
            return
        time.sleep(0.05)


def _ended(name: str, place: Path, until: float) -> bool:
    while is_alive(name, place):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def tail(name: str, place: Path, lines: int) -> list[str]:
    """The last lines of its log."""
    text = (place / LOG).read_text(encoding="utf-8", errors="replace") if (place / LOG).exists() else ""
    return [line for line in text.splitlines() if line.strip()][-lines:]


def logs(name: str, place: Path, *, follow: bool) -> Iterator[bytes]:
    """Its log; with ``follow`` what it goes on to say, until it ends."""
    with (place / LOG).open("rb") as file:
        while True:
            alive = is_alive(name, place)  # asked first: what it said at its end is read all the same
            if file.tell() > os.fstat(file.fileno()).st_size:  # it was copied away, and begins anew
                file.seek(0)
            while piece := file.read(1 << 16):
                yield piece
            if not (follow and alive):
                return
            time.sleep(0.2)
