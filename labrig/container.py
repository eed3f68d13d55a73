"""A container that a session runs in: started, entered through the Docker SDK, and gone with us, even by kill -9.

Its first process reads a pipe that only this process holds open, and the engine removes the container when that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import daemon
from labrig.errors import BuildError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

MARK = "labrig.session"  # label of every container that we start
# Waits until our end of its stdin is closed. The shell takes Ctrl-C as nothing and collects what others leave behind.
WAIT = ["/bin/sh", "-c", "trap '' INT; cat >/dev/null"]
# Says its own number, so that it can be sent a signal, once we listen: an answer that comes with the HTTP headers of
# `exec start` would be lost in the SDK's buffer.
BEGIN = 'read -r _; command -v "$1" >/dev/null || { echo absent; exit 127; }; echo $$; exec "$@"'
BEGIN_TTY = 'read -r _; exec "$@"'
AHEAD = 1 << 16  # bytes of stdin that are read before the command takes them

GRACE = 15.0  # seconds that a command has after Ctrl-C; labs take up to 10 to save their state


class Absent(Exception):
    """The command's program is not in the container."""


@dataclass(frozen=True)
class Settings:
    """How a container is started. ``mounts`` maps a path inside to (path on this machine, writable)."""

    image: str
    user: str = ""  # "UID:GID"; empty: the image's own
    network: bool = False
    gpus: bool = False
    read_only: bool = False
    shm_size: int = 0  # bytes; 0: the engine's default, 64 MB
    capabilities: tuple[str, ...] = ()  # all others are dropped
    mounts: Mapping[str, tuple[Path, bool]] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)  # path -> options
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def start(client: DockerClient, settings: Settings) -> Iterator[Container]:
    """A running container; it is removed when the context is left, and by the engine when this process is gone.

    Raises what the engine refuses, as the SDK's errors (see ``daemon.connect``).
    """
    from docker.errors import APIError
    from docker.types import DeviceRequest, Mount
    from requests.exceptions import RequestException

    mounts = [
        Mount(inside, str(place.absolute()), type="bind", read_only=not writable)
        for inside, (place, writable) in settings.mounts.items()
    ]
    host: dict[str, Any] = client.api.create_host_config(
        auto_remove=True,
        cap_drop=["ALL"],
        cap_add=list(settings.capabilities),
        security_opt=["no-new-privileges"],
        network_mode="default" if settings.network else "none",
        read_only=settings.read_only,
        shm_size=settings.shm_size or None,
        mounts=mounts,
        tmpfs=dict(settings.tmpfs),
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if settings.gpus else None,
    )
    sweep(client)
    name = f"labrig-{uuid.uuid4().hex[:16]}"  # known before it is there, so that it can be removed whatever happens
    try:
        client.api.create_container(
            settings.image,
            WAIT,
            name=name,
            user=settings.user or None,
            stdin_open=True,  # and, as we attach, closed for good when we are gone (StdinOnce)
            environment=dict(settings.environment),
            labels={MARK: str(os.getpid())},
            host_config=host,
        )
        container = client.containers.get(name)
        lifeline = client.api.attach_socket(name, params={"stdin": 1, "stream": 1})
        try:
            container.start()
            yield container
        finally:
            _close(lifeline)
    finally:
        with contextlib.suppress(APIError, RequestException, OSError):
            client.api.remove_container(name, force=True)


def sweep(client: DockerClient) -> None:
    """Remove containers that were made and never started, because their process was killed between the two: the
    engine removes by itself only what has run."""
    from docker.errors import APIError

    found = client.containers.list(all=True, filters={"label": MARK, "status": "created"}, ignore_removed=True)
    for one in found:
        try:
            os.kill(int(one.labels[MARK]), 0)
        except ProcessLookupError:
            with contextlib.suppress(APIError):
                one.remove(force=True)
        except (PermissionError, ValueError):
            continue


def run(
    container: Container,
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    user: str = "",
    stdout: int | None = None,
) -> int:
    """Run a command in a container with this process's standard streams; gives its exit code.

    On a terminal it gets a terminal of its own, so that a shell works in it. Ctrl-C is handed on as SIGINT.
    """
    terminal = stdout is None and all(os.isatty(descriptor) for descriptor in (0, 1))
    api = container.client.api  # type: ignore[union-attr]
    made = api.exec_create(
        container.id,
        ["/bin/sh", "-c", BEGIN_TTY if terminal else BEGIN, "sh", *argv],
        stdin=True,
        tty=terminal,
        user=user,
        workdir=str(cwd) if cwd else None,
        environment={**({"TERM": os.environ.get("TERM", "xterm")} if terminal else {}), **(environment or {})},
    )
    answer = api.exec_start(made["Id"], tty=terminal, socket=True)
    try:
        if terminal:
            _talk(_socket(answer), lambda: api.exec_resize(made["Id"], *_size()))
        else:
            _pump(container, _socket(answer), user, {1: 1 if stdout is None else stdout, 2: 2})
    except Absent:
        raise BuildError(f"no program {argv[0]!r} in the image", fix="invoke verify says more") from None
    finally:
        _close(answer)
    code = api.exec_inspect(made["Id"])["ExitCode"]
    if code is None:
        raise daemon.absent("the container ended while a command ran in it")
    return int(code)


def ask(container: Container, argv: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Run a command in a container with no input; gives its exit code and what it said on stdout and stderr."""
    code, output = container.exec_run(list(argv), demux=True)
    out, said = ((part or b"").decode(errors="replace") for part in output)  # type: ignore[union-attr]
    return int(code or 0), (out, said)


def _socket(answer: Any) -> socket.socket:
    """The socket under what the SDK gives."""
    found: socket.socket = getattr(answer, "_sock", answer)
    return found


def _close(answer: Any) -> None:
    """Close what the SDK gives, and the socket under it, which would stay open."""
    _socket(answer).close()
    answer.close()


def _pump(container: Container, connection: socket.socket, user: str, outputs: Mapping[int, int]) -> None:
    """Carry stdin in and the two outputs out until the command ends (frames: Docker Engine API, "Stream format").

    Neither waits for the other: a command may write while it reads, and may end without having read everything.
    """
    buffer, number, began = b"", b"", False
    waiting = b"\n"  # to be sent; the first line starts the command
    more, half_closed = True, False  # whether stdin may still give something, whether the command was told that not
    interrupted = 0.0
    while True:
        try:
            sources: list[Any] = [connection, *([0] if more and len(waiting) < AHEAD else [])]
            ready, writable, _ = select.select(sources, [connection] if waiting else [], [], 1.0)
            if interrupted and time.monotonic() - interrupted > GRACE:
                raise KeyboardInterrupt
            if 0 in ready:
                data = os.read(0, AHEAD)
                waiting += data
                more = bool(data)
            if writable:
                waiting = _send(connection, waiting)
            if not more and not waiting and not half_closed:
                half_closed = True
                with contextlib.suppress(OSError):  # the command has ended
                    connection.shutdown(socket.SHUT_WR)
            if connection not in ready:
                continue
            data = _receive(connection)
            if not data:
                break
            buffer += data
            while len(buffer) >= 8 and len(buffer) >= 8 + (size := int.from_bytes(buffer[4:8], "big")):
                stream, text, buffer = buffer[0], buffer[8 : 8 + size], buffer[8 + size :]
                if stream == 1 and not began:
                    number += text
                    if b"\n" not in number:
                        continue
                    number, _, text = number.partition(b"\n")
                    if number == b"absent":
                        raise Absent
                    began = True
                _write(outputs.get(stream, 2), text)
        except KeyboardInterrupt:
            # The command is in no process group of this terminal. A second Ctrl-C, and it is left to its end.
            if interrupted or not began:
                raise
            interrupted = time.monotonic()
            container.exec_run(["/bin/sh", "-c", f"kill -INT -{int(number)}"], user=user)
    if interrupted:
        raise KeyboardInterrupt


def _send(connection: socket.socket, data: bytes) -> bytes:
    """Send what goes at once; gives the rest. Nothing is left to send to a command that has ended."""
    try:
        return data[connection.send(data, socket.MSG_DONTWAIT) :]
    except BlockingIOError:
        return data
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:  # the command has ended without having read all of its stdin
        return b""


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _talk(connection: socket.socket, resize: Any) -> None:
    """Join this terminal with the container's: every key goes in as it is, every change of size is handed on."""
    import termios
    import tty

    sys.stdout.flush()
    places: list[Any] = [connection, 0]
    before = termios.tcgetattr(0)
    handler = signal.signal(signal.SIGWINCH, lambda *_: resize())
    try:
        tty.setraw(0)
        resize()
        connection.sendall(b"\n")
        while True:
            ready, _, _ = select.select(places, [], [])
            if 0 in ready:
                keys = os.read(0, 4096)
                if not keys:  # the terminal has gone
                    return
                connection.sendall(keys)
            if connection in ready:
                data = connection.recv(65536)
                if not data:
                    return
                _write(1, data)
    finally:
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _size() -> tuple[int, int]:
    """Lines and columns of this terminal."""
    size = os.get_terminal_size(0)
    return size.lines, size.columns
