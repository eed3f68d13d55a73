"""A hub on this machine: brought up, looked at, ended.

All that is known of it lies in one folder, see ``state``. The note is written before anything starts; whether the hub
lives is told by a lock that its keeper holds, so that no process number is trusted. Students' servers are containers,
which go on while the hub is away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from labrig import cli, daemon, published, server_native
from labrig.errors import BuildError, HostError, UsageError
from labrig.files import alone, write_atomically
from labrig.serving import configuration, keeper, proofs, state
from labrig.serving import settings as files
from labrig.serving.settings import Settings

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

KEEPER = "hub"  # what server_native calls it
PATIENCE = 60.0  # seconds until the hub has to answer; it takes two, on a busy machine ten
ANSWER = 5.0  # seconds for one answer of it
LINES = 25  # of its log, in an error
GRACE = 15  # seconds for a student's server to end its kernels
COLUMNS = ("student", "target", "since", "container")
RUNNING, SILENT, ENDED, NONE = "running", "not answering", "ended", "not started"


@dataclass(frozen=True)
class Server:
    """A student's server, as the engine has it."""

    user: str
    target: str
    container: str
    since: str


@dataclass(frozen=True)
class Status:
    """How the hub is. ``why``: the reason, where the keeper has given up; ``engine``: why it could not be asked;
    ``full``: the folders on disks without room, with what is free."""

    state: str
    url: str
    since: str
    why: str
    servers: tuple[Server, ...]
    engine: str = ""
    full: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return asdict(self)


def up(root: Path, config: Path | None = None, *, own: bool = False) -> state.Note:
    """Bring the hub up and wait until it answers, or find it running, or bring back what is missing.

    ``own``: one that runs already is an error, since whoever asks will end it.

    Raises:
        UsageError: a key of serve.toml; it runs with other settings.
        HostError: a program, the engine or an image is missing; see ``proofs``.
        BuildError: it does not start, with the end of its log; what was started is ended then.
    """
    settings = files.read(config)
    with _alone():
        asked = _asked(root, settings)
        before = state.read()
        if before and server_native.is_alive(KEEPER, state.place()):
            if own:
                raise UsageError(
                    "a hub is running already, in the background", found=before.url,
                    fix="invoke serve --down, then start it again",
                )  # fmt: skip
            return _standing(before, asked)
        proven = proofs.prove(root, settings, state.place())
        proofs.require_port(settings)
        for notice in proven.notices:
            print(notice, file=sys.stderr)
        return _launch(root, settings, proven, before, asked)


def foreground(root: Path, config: Path | None = None) -> Iterator[bytes]:
    """The same, and what it says until it ends or Ctrl-C; students' servers go on after it, see :func:`down`.

    Raises:
        as :func:`up`; BuildError where it ended by itself.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # systemd's way of ending it
    note = up(root, config, own=True)
    caught: list[int] = []

    def end(number: int, frame: object) -> None:
        caught.append(number)
        server_native.stop(KEEPER, state.place())  # then its log ends, with its last words

    print(f"{note.url}\nCtrl-C ends it; students' servers go on until invoke serve --down", file=sys.stderr)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        yield from logs(follow=True)
    finally:
        server_native.stop(KEEPER, state.place())
    if signal.SIGINT in caught:
        raise KeyboardInterrupt
    if caught:
        return
    raise BuildError("the hub has ended", found=_why() or "somebody has stopped it", fix="invoke serve --logs")


def _standing(note: state.Note, asked: str) -> state.Note:
    """The hub that runs, if it runs as it is asked for."""
    if note.asked != asked:
        raise UsageError(
            "a hub is running already, started with other settings or images", found=note.url,
            fix="invoke serve --down ends it and students' servers; then invoke serve --hub takes the new ones",
        )  # fmt: skip
    _wait(note)
    print("the hub is running already", file=sys.stderr)
    return note


def _launch(root: Path, settings: Settings, proven: proofs.Proven, before: state.Note | None, asked: str) -> state.Note:
    """Start it and wait; what was there before, students' servers among it, stays also where that fails."""
    place = state.place()
    with daemon.connect() as client:
        standing = bool(_containers(client))
    try:
        with daemon.connect() as client:
            gateway = _network(client)
        note = _note(root, settings, proven, before if standing else None, gateway, asked)
        own = configuration.own_passwords(settings)
        for name, size in {state.PROXY_TOKEN: 32, state.COOKIES: 32, **own}.items():
            state.secret_file(name, size)
        text = configuration.text(settings, proven.images, proven.gpus, note, root / "templates")
        write_atomically(place / state.CONFIG, text, mode=0o600)
        state.write(note)
        (place / state.REASON).unlink(missing_ok=True)
        _start_keeper(place, root)
        _tell(settings)
        _wait(note)
        return note
    except BaseException:
        server_native.stop(KEEPER, place)
        if not standing:
            _forget()
        raise


def _note(
    root: Path, settings: Settings, proven: proofs.Proven, before: state.Note | None, gateway: str, asked: str
) -> state.Note:
    """Where it will listen. ``before``: of the hub that running servers know; they have to find this one there."""
    hub = settings.hub
    if not proofs.is_here(gateway):
        raise HostError(
            "the students' network is not on this machine, so that their servers could not ask the hub who somebody is",
            found=f"its address {gateway} cannot be listened at",
            fix="run the hub where the engine runs: on Linux, not in Docker Desktop, not rootless",
        )
    if before and before.hub_address == gateway:
        try:
            hub_port = proofs.bind(gateway, before.hub_port)
        except OSError as error:
            raise HostError(
                "students' servers are running, and know the hub at a port that somebody has taken meanwhile",
                found=f"{gateway}:{before.hub_port}: {error.strerror}",
                fix="free it (ss -ltnp says whose it is), or invoke serve --down ends those servers",
            ) from None
    else:
        hub_port = proofs.free_port(gateway)
    return state.Note(
        url=files.url(hub),
        address=hub.address,
        port=hub.port,
        hub_address=gateway,
        hub_port=hub_port,
        proxy=proven.proxy,
        certificate=str(hub.certificate.absolute()) if hub.certificate else "",
        key=str(hub.key.absolute()) if hub.key else "",
        asked=asked,
        checkout=str(root),
        since=datetime.now(UTC).isoformat("T", "seconds"),
        subdomains=hub.subdomains,
    )


def _start_keeper(place: Path, root: Path) -> None:
    """In a session of its own, with the lock, which it holds as long as it lives."""
    log = place / server_native.LOG
    if log.exists():
        log.replace(log.with_suffix(".1"))
    (place / server_native.PID).unlink(missing_ok=True)  # of one that has ended: it may be anybody's by now
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(opened, "ab") as file, (place / server_native.ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        subprocess.Popen(  # not waited for: it stays
            [sys.executable, "-m", keeper.__name__, str(place)], cwd=root, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, start_new_session=True, pass_fds=(alive.fileno(),),
        )  # fmt: skip


def _tell(settings: Settings) -> None:
    """Where the passwords lie that were made; never the passwords."""
    whose = {state.PASSWORD: "students'", state.ADMIN_PASSWORD: "admins'"}
    for name in configuration.own_passwords(settings):
        print(f"the {whose[name]} password is in {state.place() / name}", file=sys.stderr)


def _wait(note: state.Note) -> None:
    """Until it answers. Raises BuildError with the end of its log."""
    place, until = state.place(), time.monotonic() + PATIENCE
    while not answers(note):
        if not (alive := server_native.is_alive(KEEPER, place)) or time.monotonic() > until:
            said = server_native.tail(KEEPER, place, LINES)
            what = f"did not answer within {PATIENCE:.0f} s" if alive else "ended while it started"
            raise BuildError(
                f"the hub {what}",
                found="\n         ".join([*filter(None, [_why()]), *said]) or "it said nothing",
                fix="mend what it says (invoke serve --logs has all of it), then start it again",
            )
        time.sleep(0.1)


def answers(note: state.Note) -> bool:
    """Whether the hub answers, and then whether it does through its proxy, which would log each attempt before."""
    host = urlsplit(note.url).netloc  # by which the proxy routes where students have hosts of their own
    if not _answers(http.client.HTTPConnection(note.hub_address, note.hub_port, timeout=ANSWER), host):
        return False
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(note.address, note.address)  # noqa: S104
    connection = (
        http.client.HTTPSConnection(address, note.port, timeout=ANSWER, context=ssl._create_unverified_context())  # noqa: S323 - its name may be another one
        if note.certificate
        else http.client.HTTPConnection(address, note.port, timeout=ANSWER)
    )
    return _answers(connection, host)


def _answers(connection: http.client.HTTPConnection, host: str) -> bool:
    """Whether a hub's API is there; the proxy alone has no JSON there."""
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/hub/api/", headers={"Host": host})
            answer = connection.getresponse()
            return answer.status == http.client.OK and "version" in json.load(answer)
        except (OSError, http.client.HTTPException, ValueError, TypeError):
            return False


# --- status, logs, down -------------------------------------------------------------------------------------------


def status() -> Status:
    """How the hub is, which servers of students run, and whether a disk has less room than a start asks for."""
    note, reason = state.read(), _why()
    if note is None:
        how = NONE
    elif not server_native.is_alive(KEEPER, state.place()):
        how = ENDED
    else:
        how = RUNNING if answers(note) else SILENT
    servers: tuple[Server, ...] = ()
    engine, full = "", [proofs.lacks(state.place(), proofs.ROOM)] if state.place().exists() else []
    try:
        with daemon.connect() as client:
            servers = tuple(_server(one) for one in _containers(client))
            if folder := proofs.engine_folder(client):
                full.append(proofs.lacks(folder, proofs.ENGINE_ROOM))
    except HostError as error:
        engine = error.found or error.what
    url, since = (note.url, note.since) if note else ("", "")
    return Status(how, url, since, reason, servers, engine, tuple(filter(None, full)))


def tell(found: Status) -> None:
    """Print the same for a person."""
    print(" ".join(filter(None, ["hub:", found.state, found.url, found.since and f"since {found.since}"])))
    unknown = found.engine and f"the engine does not say which servers run: {found.engine}"
    full = [f"the disk is full: {one}: {proofs.MORE_ROOM}" for one in found.full]
    for line in filter(None, [found.why, unknown, *full]):
        print(line, file=sys.stderr)
    if found.servers:
        cli.print_table(COLUMNS, [[one.user, one.target, one.since, one.container] for one in found.servers])


def logs(*, follow: bool = False) -> Iterator[bytes]:
    """What the proxy and the hub have said; with ``follow`` until they end.

    Raises:
        UsageError: no hub was ever started.
    """
    if not (state.place() / server_native.LOG).exists():
        raise UsageError("no hub was started here", fix="invoke serve --hub")
    yield from server_native.logs(KEEPER, state.place(), follow=follow)


def down() -> list[str]:
    """End the hub and students' servers; gives lines of what was ended. Volumes, users and passwords stay.

    Raises:
        HostError: the engine does not answer; the hub itself has ended then.
        BuildError: it cannot be ended.
    """
    with _alone():
        was = server_native.is_alive(KEEPER, state.place()) or (state.place() / state.NOTE).exists()
        server_native.stop(KEEPER, state.place())
        with daemon.connect() as client:
            found = _containers(client)
            mine = f"{state.MARK}={state.mark()}"  # also what holds a volume and does not run
            for one in client.containers.list(all=True, filters={"label": mine}, ignore_removed=True):
                _remove(one)
        _forget()
    lines = ["ended the hub"] if was else []
    if found:
        names = ", ".join(sorted(_server(one).user for one in found))
        lines.append(f"ended the servers of {names}; their files stay, in the volumes {state.name()}-NAME")
    if not lines:
        print("nothing runs here", file=sys.stderr)
    return lines


def _forget() -> None:
    """Remove the network and the note."""
    from docker.errors import NotFound

    with daemon.connect() as client, contextlib.suppress(NotFound):
        client.networks.get(state.name()).remove()
    for name in (state.NOTE, state.REASON, state.CONFIG):
        (state.place() / name).unlink(missing_ok=True)


def _remove(container: Container) -> None:
    from docker.errors import APIError, NotFound

    with contextlib.suppress(NotFound):
        container.stop(timeout=GRACE)
        try:
            container.remove(force=True)
        except APIError as error:
            if error.status_code != http.client.CONFLICT:  # the engine removes it by itself
                raise


def _why() -> str:
    file = state.place() / state.REASON
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


# --- in the engine ------------------------------------------------------------------------------------------------


def _containers(client: DockerClient) -> list[Container]:
    """Students' containers of this hub that run."""
    found: list[Container] = client.containers.list(filters={"label": [f"{state.MARK}={state.mark()}", state.USER]})
    return found


def _server(container: Container) -> Server:
    labels: dict[str, str] = container.labels
    since = f"{str(container.attrs['Created'])[:19]}+00:00"  # as the hub's: it is UTC, with nanoseconds
    return Server(labels.get(state.USER, ""), labels.get("labrig.target", ""), str(container.name), since)


def _network(client: DockerClient) -> str:
    """The students' network, made where it is not there; gives this machine's address on it.

    Students cannot reach each other's containers on it (enable_icc, docs.docker.com/engine/network/drivers/bridge).
    """
    found = client.networks.list(names=[state.name()])
    network = next((one for one in found if one.name == state.name()), None) or client.networks.create(
        state.name(),
        driver="bridge",
        # Its name on this machine is always the same, for the lines of a firewall; 15 characters are the most.
        options={
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.name": f"labrig-{state.mark()}",
        },
        labels={state.MARK: state.mark()},
    )
    network.reload()
    return str(network.attrs["IPAM"]["Config"][0]["Gateway"])


def _asked(root: Path, settings: Settings) -> str:
    """A digest of all that a hub follows from."""
    images = root / "images" / published.FILE
    told = json.dumps(asdict(settings), default=str, sort_keys=True) + (images.read_text() if images.exists() else "")
    return hashlib.sha256(told.encode()).hexdigest()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock on starting and ending the hub; its folder is made for nobody else.

    Raises:
        HostError: the folder is somebody else's.
    """
    place = state.place()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (owner := place.stat().st_uid) != os.getuid():
        raise HostError(
            "the hub's folder is somebody else's, who could read its secrets", found=f"{place} is user {owner}'s",
            fix="run it as that user, or name another folder with LABRIG_CACHE",
        )  # fmt: skip
    place.chmod(0o700)
    with alone(place / ".lock", "the hub is being started or ended elsewhere; waiting"):
        yield
