"""`python -m labrig.serving.keeper FOLDER`: holds the proxy and the hub, and starts either again when it dies.

The proxy is not the hub's child, so that students keep their connection to their servers while the hub is down. Both
end with this process, even by kill -9. It holds a lock as long as it lives, which whoever has started it has handed on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labrig import daemon, program, server_native
from labrig.errors import LabrigError
from labrig.files import write_atomically
from labrig.serving import state

LOOK = 0.2  # seconds between two looks at the children
DEATHS, SPAN = 5, 60.0  # so many deaths of one child within so many seconds, and it gives up
FIRST_WAIT = 0.5  # seconds until a child is started again; doubled at each death within SPAN
GRACE = 10.0  # seconds for a child to end; less than whoever ends the keeper gives it
LARGEST = 20 << 20  # bytes of the log; what is older is kept once beside it
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")  # of the proxy, which writes them also into a file (logform, colorize.js)
TOKEN = "CONFIGPROXY_AUTH_TOKEN"  # noqa: S105 - a variable's name; JupyterHub and the proxy both read it


@dataclass
class Child:
    """The proxy or the hub: its command, its process, and when it died lately (seconds of the monotonic clock)."""

    name: str
    command: Sequence[str]
    folder: Path
    socket: Path | None = None  # where it listens, relative to this process's folder; left over where it was killed
    colours: bool = False
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)

    def is_due(self, now: float) -> bool:
        """Whether it is time to start it: at once the first time, later and later after deaths."""
        return not self.deaths or now >= self.deaths[-1] + FIRST_WAIT * 2 ** (len(self.deaths) - 1)


def children(note: state.Note, place: Path) -> tuple[Child, Child]:
    """The proxy and the hub of a note."""
    hub = f"http://{note.hub_address}:{note.hub_port}/hub"
    proxy = [note.proxy, "--ip", note.address, "--port", str(note.port),
             "--api-socket", state.PROXY_SOCKET, "--error-target", f"{hub}/error", "--log-level", "warn"]  # fmt: skip
    if note.certificate:
        proxy += ["--ssl-cert", note.certificate, "--ssl-key", note.key]
    if note.subdomains:
        proxy.append("--host-routing")
    return (
        Child("proxy", proxy, place, Path(state.PROXY_SOCKET), colours=True),
        Child("hub", [sys.executable, "-m", "jupyterhub", "-f", str(place / state.CONFIG)], Path(note.checkout)),
    )


def keep(place: Path) -> int:
    """Hold both until SIGTERM or SIGINT; gives the exit code: 0, or 4 where one of them does not stay."""
    note = state.read()
    if note is None:
        return 2
    proxy, hub = children(note, place)
    environment = {**daemon.environment(), TOKEN: (place / state.PROXY_TOKEN).read_text(encoding="ascii").strip()}
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, frame: stopped.append(caught))
    try:
        while not stopped:
            for child in (proxy, hub):
                # A hub that finds no proxy ends; the other way round the proxy waits.
                if child is hub and not _listens(state.PROXY_SOCKET):
                    continue
                if reason := _look_after(child, environment):
                    _say(reason)
                    write_atomically(place / state.REASON, reason + "\n", mode=0o600)
                    return 4
            rotate(place / server_native.LOG)
            time.sleep(LOOK)
        _say(f"{signal.Signals(stopped[0]).name}: ending")
        return 0
    finally:
        for child in (hub, proxy):
            _end(child)


def rotate(log: Path) -> None:
    """Begin a log anew that is too large; the hub has it open for appending, so it is copied away, not renamed."""
    with contextlib.suppress(OSError):  # a full disk, where room is what is needed; or somebody has removed it
        if log.stat().st_size <= LARGEST:
            return
        try:
            shutil.copyfile(log, log.with_suffix(".1"))
        finally:
            os.truncate(log, 0)


def _look_after(child: Child, environment: dict[str, str]) -> str:
    """Start a child that is not there; gives the reason where that has happened too often."""
    now = time.monotonic()
    if child.process is not None and (code := child.process.poll()) is not None:
        child.process = None
        child.deaths = [*(one for one in child.deaths if one > now - SPAN), now]
        _say(f"the {child.name} has ended ({_words(code)})")
        if len(child.deaths) >= DEATHS:
            return f"the {child.name} ended {DEATHS} times within a minute, the last time with {_words(code)}"
    if child.process is None and child.is_due(now):
        if child.socket:
            child.socket.unlink(missing_ok=True)
        child.process = subprocess.Popen(
            list(child.command), cwd=child.folder, env=environment, stdin=subprocess.DEVNULL,
            preexec_fn=program.die_with_parent, stdout=subprocess.PIPE if child.colours else None,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        if child.colours:
            threading.Thread(target=_pass_on, args=(child.process,), daemon=True).start()
        _say(f"the {child.name} is started as process {child.process.pid}")
    return ""


def _pass_on(process: subprocess.Popen[bytes]) -> None:
    """Write what a child says into the log, without colours."""
    assert process.stdout is not None  # noqa: S101 - a pipe
    with process.stdout as said:
        for line in said:
            with contextlib.suppress(OSError):  # a full disk takes no log, and ends nobody
                os.write(sys.stdout.fileno(), COLOURS.sub(b"", line))


def _end(child: Child) -> None:
    if child.process is None:
        return
    child.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(GRACE)
    child.process.kill()
    child.process.wait()


def _listens(path: str) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as knock:
        knock.settimeout(1)
        return knock.connect_ex(path) == 0


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _say(text: str) -> None:
    print(f"[keeper {time.strftime('%Y-%m-%d %H:%M:%S')}] {text}", flush=True)


def main() -> None:
    """Note the own number and keep; what is written is nobody else's to read."""
    place = Path(sys.argv[1])
    os.umask(0o077)
    os.chdir(place)  # its socket has a short name from here
    write_atomically(place / server_native.PID, f"{os.getpid()}\n", mode=0o600)
    try:
        sys.exit(keep(place))
    except (LabrigError, OSError) as error:
        _say(str(error))
        write_atomically(place / state.REASON, f"{error}\n", mode=0o600)
        sys.exit(4)


if __name__ == "__main__":
    main()
