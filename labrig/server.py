"""JupyterLab for a student: started in the environment of a target, found again, stopped.

One server a target. What is known of it lies in :func:`home.servers`: ``server.json``, the token, and of a native one
its log. The note is written before anything is started, so that what a killed start left is found and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import http.client
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from labrig import daemon, environment, home, image, server_in_docker, server_native, spec
from labrig.engines import Environment
from labrig.errors import BuildError, HostError, UsageError
from labrig.files import write_atomically
from labrig.host import read_host
from labrig.spec import Target

FIRST_PORT, PORTS = 8888, 100  # Jupyter's usual port, and how many from there on are tried
PATIENCE = 180.0  # seconds until JupyterLab has to answer; the first start from a slow disk takes a minute
ANSWER = 5.0  # seconds for one answer of it
LINES = 15  # of its log, in an error
NOTE, TOKEN, PAGE = "server.json", "token", "open.html"
MANY = 1000  # lines of a log that is minutes old at most
KEPT = ("kept as edited", ".labrig-labs.json")  # what labs/serve.py says that a student has to know
RUNNING, SILENT, ENDED, UNKNOWN = "running", "not answering", "ended", "no engine"
STARTING, LEFT = "starting", "left by a start that was killed"
COLUMNS = ("target", "engine", "state", "since", "folder")


@dataclass(frozen=True)
class Server:
    """A JupyterLab that was started, as its note has it; ``up`` once it has answered."""

    target: str
    engine: str
    reference: str  # the image or the environment
    folder: str
    port: int
    since: str  # UTC, ISO 8601
    up: bool = False

    @property
    def place(self) -> Path:
        """Where all that is known of it lies."""
        return home.servers() / self.target

    @property
    def url(self) -> str:
        """What a browser opens; the token is in it."""
        return f"http://127.0.0.1:{self.port}/?token={(self.place / TOKEN).read_text(encoding='ascii')}"

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return {
            "target": self.target,
            "engine": self.engine,
            "reference": self.reference,
            "url": self.url,
            "port": self.port,
            "folder": self.folder,
            "since": self.since,
        }


def start(
    root: Path,
    name: str | None = None,
    engine: str | None = None,
    *,
    folder: Path | None = None,
    port: int = 0,
    offline: bool = False,
    force: bool = False,
) -> Server:
    """Start JupyterLab for a target and wait until it answers, or find it running.

    ``folder`` is the student's (``~/labrig-work`` without it), ``port`` that of 127.0.0.1 (without it the first free
    one from 8888 on).

    Raises:
        UsageError: a folder or a port that cannot be taken; it is running with another one.
        HostError: this host cannot, or root asks for a native server.
        BuildError: it ended while it started, with the end of its log; nothing is left of it then.
    """
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port {port} is no port", fix="name one from 1024 to 65535, or none")
    target = _target(root, name)
    with _alone(target.name):
        if found := _standing(target.name, engine, folder, port):
            return found
        work = (folder or Path.home() / image.FOLDER).absolute()
        if work.exists() and work.samefile(root):
            raise UsageError(
                f"--folder {work} is labrig's own checkout", fix="name another folder, so that what is edited is yours"
            )
        if port and not is_free(port):
            raise _taken(port)
        made = _environment(root, target.name, engine, offline=offline, force=force)
        owner = server_in_docker.prepare(work) if made.engine == "docker" else server_native.prepare(work)
        server = Server(
            target.name, made.engine, made.reference, str(work), 0, datetime.now(UTC).isoformat("T", "seconds")
        )
        return _launch(server, made, root, owner, port)


def _environment(root: Path, name: str, engine: str | None, *, offline: bool, force: bool) -> Environment:
    """The environment to start in; what cannot be served from is refused before it is built."""
    if engine is None:
        engine, why = environment.usable_engine(root, name)
        if why:
            print(f"engine {engine}: {why}", file=sys.stderr)
    if engine != "docker" and os.getuid() == 0:
        raise HostError(
            "JupyterLab does not run as root, and without a container there is nobody else",
            found=f"engine {engine}",
            fix="run it as a normal user, or --engine=docker, where it is a student's",
        )
    if engine == "docker":
        daemon.require_local()
    return environment.take(environment.plan(root, name, engine, force=force), offline=offline)


def _launch(server: Server, made: Environment, root: Path, owner: tuple[int, int], port: int) -> Server:
    """Start it, on the next port where somebody is faster, and wait until it answers; or leave nothing of it."""
    module = _module(server)
    try:
        shutil.rmtree(server.place, ignore_errors=True)  # of a start that was killed before it started anything
        server.place.mkdir(mode=0o700)
        token = secrets.token_hex(24)
        write_atomically(server.place / TOKEN, token, mode=0o600)
        os.chown(server.place / TOKEN, *owner)  # who starts it may be root, who reads it in a container is not
        for one in [port] if port else free_ports():
            server = replace(server, port=one)
            _note(server)
            if module.launch(server.target, made, server.place, root, Path(server.folder), one, owner):
                break
        else:
            raise _taken(port)
        print(
            f"JupyterLab of target {server.target} starts on port {server.port}; the work is in {server.folder}",
            file=sys.stderr,
        )
        _wait(server, token)
        for line in module.tail(server.target, server.place, MANY):
            if line.startswith(KEPT):
                print(line, file=sys.stderr)
        server = replace(server, up=True)
        _note(server)
        return server
    except BaseException:
        _remove(server)
        raise


def _standing(name: str, engine: str | None, folder: Path | None, port: int) -> Server | None:
    """The server of that target, if it runs as it is asked for; what is left of one that does not is removed."""
    server = _read(name)
    if server is None:
        return None
    state = _state(server) if server.up else LEFT
    if state in (ENDED, UNKNOWN, LEFT):
        if server.up:
            print(f"the JupyterLab of target {name} had ended; starting it anew", file=sys.stderr)
        _remove(server)
        return None
    asked = {"engine": engine, "folder": str(folder.absolute()) if folder else None, "port": port or None}
    other = [
        f"--{key}={getattr(server, key)}" for key, value in asked.items() if value not in (None, getattr(server, key))
    ]
    if other:
        raise UsageError(
            f"JupyterLab of target {name} is running already, started with {' '.join(other)}",
            fix=f"invoke stop --target={name}, then start it again",
        )
    if state == SILENT:
        raise BuildError(
            f"JupyterLab of target {name} is running and does not answer",
            fix=f"invoke logs --target={name} may say why; invoke stop --target={name} ends it",
        )
    print(f"JupyterLab of target {name} is running already", file=sys.stderr)
    return server


def _wait(server: Server, token: str) -> None:
    until = time.monotonic() + PATIENCE
    while not answers(server.port, token):
        if not (alive := _module(server).is_alive(server.target, server.place)) or time.monotonic() > until:
            said = _module(server).tail(server.target, server.place, LINES)
            raise BuildError(
                f"JupyterLab of target {server.target} "
                + (f"did not answer within {PATIENCE:.0f} s" if alive else "ended while it started"),
                found="\n         ".join(said) or "it said nothing",
                fix="mend what it says (its log ends there), then start it again",
            )
        time.sleep(0.1)
    if answers(server.port, ""):
        raise BuildError(
            f"JupyterLab of target {server.target} answers to everybody, without the token; it was stopped",
            fix="look for a configuration of Jupyter on this machine: jupyter --paths",
        )


def answers(port: int, token: str) -> bool:
    """Whether a JupyterLab with this token answers on 127.0.0.1; no proxy is asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"token {token}"} if token else {})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as knock:
        knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        try:
            knock.bind(("127.0.0.1", port))
        except PermissionError:
            return True  # below 1024: a matter of rights, and the engine may have them
        except OSError:
            return False
    return True


def free_ports() -> Iterator[int]:
    """The ports that a server may take, the usual one first."""
    return (port for port in range(FIRST_PORT, FIRST_PORT + PORTS) if is_free(port))


def _taken(port: int) -> UsageError:
    free = list(itertools.islice(free_ports(), 1))
    which = f"port {port} is" if port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
    return UsageError(
        f"{which} taken on this machine",
        fix=f"port {free[0]} is free: --port={free[0]}, or leave --port out" if free else "name a free one with --port",
    )


# --- stop, status, logs -------------------------------------------------------------------------------------------


def stop(root: Path, name: str | None = None) -> list[Server]:
    """Stop the server of a target, or all; gives those that there were. What students wrote stays where it is.

    Raises:
        UsageError: no target of that name.
    """
    servers = []
    for one in [name] if name else _names():
        if name and not (home.servers() / name).is_dir():
            _target(root, name)
            continue
        with _alone(one):
            if server := _read(one):
                _remove(server)
                servers.append(server)
    return servers


def status() -> list[tuple[Server, str]]:
    """Every server that was started and not stopped, and how it is."""
    servers = [server for name in _names() if (server := _read(name))]
    return [(server, _state(server)) for server in servers]


def rows(found: list[tuple[Server, str]]) -> list[list[str]]:
    """The table of :func:`status`."""
    return [[one.target, one.engine, state, one.since, one.folder] for one, state in found]


def logs(root: Path, name: str | None = None, *, follow: bool = False) -> Iterator[bytes]:
    """What the server of a target has said, in pieces as they come; with ``follow`` until it ends.

    Raises:
        UsageError: it was not started, or several were and none is named.
    """
    names = [name] if name else _names()
    if len(names) > 1:
        raise UsageError("several servers were started", found=", ".join(names), fix="name one with --target")
    server = _read(names[0]) if names else None
    if server is None:
        if name:
            _target(root, name)
        raise UsageError("no such server was started, or it was stopped", fix="invoke status lists them; invoke start")
    yield from _module(server).logs(server.target, server.place, follow=follow)


def open_browser(server: Server) -> None:
    """Open the server in a browser, through a page that only its owner reads: `ps` shows every command line."""
    import webbrowser

    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(server.url)}">\n'
    write_atomically(server.place / PAGE, page, mode=0o600)
    if not webbrowser.open((server.place / PAGE).as_uri()):
        print("no browser was found here; open the address above yourself", file=sys.stderr)


# --- what is known of a server ------------------------------------------------------------------------------------


def _target(root: Path, name: str | None) -> Target:
    table = spec.read(root / "images" / spec.TABLE)
    return table.pick(name) if name else environment.pick_best(table, read_host())


def _module(server: Server) -> ModuleType:
    return server_in_docker if server.engine == "docker" else server_native


def _state(server: Server) -> str:
    if not server.up:
        return STARTING if _is_locked(server.target) else LEFT
    if server.engine == "docker" and not daemon.ask().version:
        return UNKNOWN
    if not _module(server).is_alive(server.target, server.place):
        return ENDED
    return RUNNING if answers(server.port, (server.place / TOKEN).read_text(encoding="ascii")) else SILENT


def _remove(server: Server) -> None:
    """End it and forget it. Where its engine does not answer, its container has ended, or is removed by name later."""
    if server.engine != "docker" or daemon.ask().version:
        _module(server).stop(server.target, server.place)
    shutil.rmtree(server.place, ignore_errors=True)


def _names() -> list[str]:
    folder = home.servers()
    return sorted(place.name for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []


def _note(server: Server) -> None:
    write_atomically(server.place / NOTE, json.dumps(asdict(server), indent=2) + "\n", mode=0o600)


def _read(name: str) -> Server | None:
    """The server of that target; a folder without a note is of a start that has not started anything yet."""
    place = home.servers() / name
    try:
        return Server(**json.loads((place / NOTE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BuildError(
            f"what is known of the server of target {name} is damaged", found=f"{place / NOTE}: {error}",
            fix=f"end its container (docker ps) or process yourself, then remove {place}",
        ) from None  # fmt: skip


def _is_locked(name: str) -> bool:
    """Whether somebody starts or stops the server of that target now."""
    with (home.servers() / f".{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold the lock on starting and stopping the server of a target."""
    home.servers().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home.servers() / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"JupyterLab of target {name} is being started or stopped elsewhere; waiting", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
