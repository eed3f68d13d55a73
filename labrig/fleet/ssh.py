"""Reaching hosts: pyinfra as a library, one greenlet and one budget of time a host.

Of pyinfra its connectors and operations are used, not its runner: there hosts go in step, one exception costs all of
them their results, and a time limit does not hold before a channel is open. pyinfra leaves it to its command line to
make sockets and subprocesses gevent's (monkey-patching), so that is done here, the first time that hosts are reached.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Generic, TypeVar

from labrig import inventory
from labrig.errors import HostError, Interrupted, UsageError
from labrig.fleet import FAILED, TIMEOUT, UNREACHABLE, Answer, Connection, facts
from labrig.fleet.facts import Facts
from labrig.inventory import LOCAL, Entry, Room

T = TypeVar("T")
PARALLEL = 60  # hosts at once
PORT = 22
USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")  # keys in ~/.ssh that are tried where none is named
GRACE = 5.0  # seconds after which the agent ends itself on a host that was given up
_CHUNK = 1 << 16
_MOST_ERROR = 1 << 16  # bytes that are kept of what a command says on stderr


class Failure(Exception):
    """Why the work on a host ended: the row's state, the reason, and the command that mends it."""

    def __init__(self, state: str, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.state, self.why, self.fix = state, why, fix


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How the work on one host ended: its value and no state, or a state with a reason; after how many seconds."""

    value: T | None
    state: str = ""
    why: str = ""
    fix: str = ""
    seconds: float = 0.0


def each(
    room: Room,
    entries: Sequence[Entry],
    work: Callable[[Connection, Entry], T],
    *,
    budget: float,
    reach: float = 0.0,
    silence: float = 0.0,
    parallel: int = PARALLEL,
    ended: Callable[[Entry, Ended[T]], None] = lambda entry, how: None,
) -> dict[str, Ended[T]]:
    """Do the work on every host, side by side; nothing that one host does, or does not, costs another its row.

    ``budget`` is in seconds for a host, from the moment it gets its turn; ``reach`` is how many of them the login
    may take (0: all). ``silence``: one whose sshd answers nothing for so many seconds is given up then, also one
    that is at work (0: it is not asked). ``ended`` is told of each when it is through.
    The result has every entry, by name, whatever happened: what the work gave, or a state and why there is nothing.
    Connections are closed.

    Raises:
        HostError: the extra labrig[fleet] is not installed.
        UsageError: the password that an entry refers to cannot be had.
        Interrupted: Ctrl-C, after connections were closed.
    """
    become_cooperative()
    passwords = {entry.name: inventory.password_of(entry) for entry in entries}
    hosts = _hosts(room, entries, passwords, reach or budget)

    def one(entry: Entry, jumps: _Jumps) -> T:
        return _worked(entry, hosts[entry.name], jumps, work, budget, reach, silence)

    try:
        return _side_by_side(room, entries, one, budget, reach or budget, parallel, ended)
    finally:
        for host in hosts.values():
            _hang_up(host)


def _side_by_side(
    room: Room,
    entries: Sequence[Entry],
    work: Callable[[Entry, _Jumps], T],
    budget: float,
    reach: float,
    parallel: int,
    ended: Callable[[Entry, Ended[T]], None],
) -> dict[str, Ended[T]]:
    """A greenlet for every host, so many at once; see ``each``."""
    from gevent.pool import Pool

    jumps = _Jumps(room, reach)
    found: dict[str, Ended[T]] = {}
    pool = Pool(max(1, min(parallel, len(entries))))

    def one(entry: Entry) -> tuple[Entry, Ended[T]]:
        begun = time.monotonic()
        how: Ended[T]
        try:
            with _within(budget):
                how = Ended(work(entry, jumps))
        except Failure as failure:
            how = Ended(None, failure.state, _line(failure.why), failure.fix)
        except Exception as error:  # noqa: BLE001 - a host may make anything fail; the others go on
            named = _failure(room, entry, error)
            how = Ended(None, named.state, _line(named.why), named.fix)
        return entry, replace(how, seconds=round(time.monotonic() - begun, 3))

    try:
        with _interruptible():
            for entry, how in pool.imap_unordered(one, entries):
                found[entry.name] = how
                ended(entry, how)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted after {len(found)} of {len(entries)} hosts; the same command goes on") from None
    finally:
        pool.kill(timeout=1)
        jumps.close()
    return {entry.name: found[entry.name] for entry in entries}


def ask(
    room: Room,
    entries: Sequence[Entry],
    request: Callable[[Entry], Mapping[str, Any]],
    *,
    budget: float,
    parallel: int = PARALLEL,
    ended: Callable[[Entry, Ended[Facts]], None] = lambda entry, how: None,
) -> dict[str, Ended[Facts]]:
    """The facts of every host, in one round trip each; ``request`` says what the agent is asked. Raises as ``each``."""

    def work(connection: Connection, entry: Entry) -> Facts:
        printed = connection.probe(request(entry))
        try:
            return facts.parse(printed)
        except facts.Unreadable as error:
            why = f"printed no facts: {error}"
            raise Failure(FAILED, why, f"{command(entry)} true, which should print nothing") from None

    return each(room, entries, work, budget=budget, parallel=parallel, ended=ended)


@dataclass(frozen=True)
class HostKey:
    """The key that a host proves itself with. ``place`` is the host as known_hosts names it."""

    place: str
    kind: str  # "ssh-ed25519"
    base64: str
    fingerprint: str  # "SHA256:..."


def scan(
    room: Room, entries: Sequence[Entry], known: Callable[[str], Sequence[str]], *, budget: float
) -> dict[str, Ended[HostKey]]:
    """Every host's key, without a login. ``known`` gives the kinds of key that a place is known by: these are asked for
    first.

    Raises as ``each``.
    """
    become_cooperative()
    return _side_by_side(
        room, entries, lambda entry, jumps: _key(entry, jumps, known, budget), budget, budget, PARALLEL,
        lambda entry, how: None,
    )  # fmt: skip


def _key(entry: Entry, jumps: _Jumps, known: Callable[[str], Sequence[str]], budget: float) -> HostKey:
    from paramiko import Transport
    from pyinfra.connectors.sshuserclient.client import SSHClient

    _require_place(entry)
    # ~/.ssh/config may say another name, port or way.
    own = {"timeout": budget, **({"port": entry.port} if entry.port != PORT else {})}
    address, config, *_ = SSHClient().parse_config(entry.address, own, strict_host_key_checking="yes")
    port = own.get("port", config["port"])
    way = jumps.channel(entry) if entry.jump else config.get("sock")
    with closing(Transport(way or socket.create_connection((address, port), budget))) as transport:
        transport.banner_timeout = budget
        place = address if port == PORT else f"[{address}]:{port}"
        options = transport.get_security_options()
        first = [kind for kind in known(place) if kind in options.key_types]
        options.key_types = (*first, *(kind for kind in options.key_types if kind not in first))
        transport.start_client(timeout=budget)
        key = transport.get_remote_server_key()
        return HostKey(place, key.get_name(), key.get_base64(), key.fingerprint)


def command(entry: Entry) -> str:
    """How a person reaches that host by hand."""
    words = ["ssh"]
    words += ["-i", str(entry.key)] if entry.key else []
    words += ["-o", f"ProxyCommand={through(entry)}"] if entry.jump and entry.key else []
    words += ["-J", entry.jump] if entry.jump and not entry.key else []
    words += ["-p", str(entry.port)] if entry.port != PORT else []
    return shlex.join([*words, f"{entry.user}@{entry.address}" if entry.user else entry.address])


def through(entry: Entry, *options: str) -> str:
    """ssh's ProxyCommand through the machine on the way, with its key: ProxyJump hands neither keys nor options on."""
    user, address, port = jump(entry)
    words = ["ssh", *options]
    words += ["-i", str(entry.key)] if entry.key else []
    words += ["-p", str(port)] if port != PORT else []
    words.append(f"{user}@{address}" if user else address)
    return f"{shlex.join(words).replace('%', '%%')} -W '[%h]:%p'"


def quoted(path: Path) -> str:
    """A path as ssh_config(5) has it: there is no way to write a quote that all versions read, nor ``${``.

    Raises:
        UsageError: a path that cannot be written there.
    """
    text = str(path)
    if not text.isprintable() or any(mark in text for mark in ('"', "\\", "${")):
        found, fix = repr(text)[:200], 'name it without quotes, line ends, \\ and "${"'
        raise UsageError("a path that cannot stand in ssh's configuration", found=found, fix=fix)
    return '"' + text.replace("%", "%%") + '"'


def configured(address: str) -> Mapping[str, Any]:
    """What ~/.ssh/config says of an address: ssh_config(5)'s keys in small letters, those of key files with a list."""
    from pyinfra.connectors.sshuserclient import client

    own = client.get_ssh_config()
    return own.lookup(address) if own else {}


def place_of(entry: Entry) -> str:
    """Where a host is reached, in words, as the inventory and ~/.ssh/config say it together."""
    from paramiko.ssh_exception import SSHException

    own: Mapping[str, Any] = {}
    with suppress(OSError, ValueError, SSHException):  # one that cannot be read is said where it is needed
        own = configured(entry.address)
    name = str(own.get("hostname", entry.address))
    also = f" ({name})" if name != entry.address else ""
    port = entry.port if entry.port != PORT else own.get("port", PORT)
    way = entry.jump or own.get("proxyjump") or own.get("proxycommand", "")
    return f"{entry.address}{also}, port {port}" + (f", by way of {way}" if way else "")


def _require_place(entry: Entry) -> None:
    """Raise Failure where ~/.ssh/config sends an IP address of the inventory to another machine."""
    for address in filter(_is_ip, (entry.address, jump(entry)[1])):
        other = str(configured(address).get("hostname", address))
        if other != address:
            why = f"~/.ssh/config sends {address} to another machine: HostName {other}"
            raise Failure(FAILED, why, "take that HostName out there, or write in the inventory what is meant")


def _is_ip(text: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return False


def become_cooperative() -> None:
    """Make this process's sockets, subprocesses and threads gevent's, once.

    Raises:
        HostError: the extra labrig[fleet] is not installed.
    """
    try:
        import gevent.monkey

        if not gevent.monkey.is_module_patched("socket"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gevent.monkey.MonkeyPatchWarning)
                gevent.monkey.patch_all(ssl=False)  # ssl was used before, and nothing here needs it
        import pyinfra.connectors.util
        from pyinfra.connectors.sshuserclient import client
    except ImportError as error:
        raise HostError("rooms need the extra labrig[fleet]", found=str(error), fix="make fleet") from None
    for name in ("pyinfra", "paramiko"):  # what they say belongs to a host's row; see _note
        logger = logging.getLogger(name)
        logger.propagate = False
        if _note not in logger.filters:
            logger.addFilter(_note)
            logger.addHandler(logging.NullHandler())
    sys.unraisablehook = _say_unraisable
    # Nobody is asked anything: not for sudo's password, and not whether an unknown machine on the way is the right one.
    setattr(pyinfra.connectors.util, "getpass", _no_password)  # noqa: B010 - types forbid what is meant here
    setattr(client, "AskPolicy", client.StrictPolicy)  # noqa: B010


def _say_unraisable(unraisable: Any) -> None:
    """Python's own words about an error in __del__, but for one: files of hosts that were given up are let go of in
    gevent's loop, where paramiko's cannot wait for the lock of a channel that is closed in any case."""
    from gevent.exceptions import BlockingSwitchOutError

    if not isinstance(unraisable.exc_value, BlockingSwitchOutError):
        sys.__unraisablehook__(unraisable)


def _note(record: logging.LogRecord) -> bool:
    """Keep pyinfra's words about a host for its row, and let nothing be printed."""
    from pyinfra.context import ctx_host

    host = ctx_host.get()
    if host is not None and record.levelno >= logging.WARNING:
        host.connector_data.setdefault("labrig_said", []).append(record.getMessage())
    return False


def _no_password(prompt: str = "") -> str:
    raise Failure(FAILED, "sudo asks for a password there", "let that user run sudo without one (NOPASSWD in sudoers)")


def _hosts(room: Room, entries: Sequence[Entry], passwords: Mapping[str, str], budget: float) -> dict[str, Any]:
    """pyinfra's hosts by our names; nothing else is in its inventory, so nothing else is ever dialled."""
    from pyinfra.api.config import Config
    from pyinfra.api.inventory import Inventory
    from pyinfra.api.state import State
    from pyinfra.connectors.sshuserclient import client
    from pyinfra.context import ctx_state

    client.get_host_keys.cache.clear()  # it keeps what files held when they were first read
    client.get_ssh_config.cache.clear()
    names = [
        (LOCAL, {}) if entry.address == LOCAL else (entry.name, _data(room, entry, passwords[entry.name], budget))
        for entry in entries
    ]
    state = State(Inventory((names, {})), Config(CONNECT_TIMEOUT=budget), check_for_changes=False)
    state.is_executing = True  # an operation is then carried out where it is called
    # A greenlet has a context of its own for its host; the state is one for all. No host is ever activated: a fact that
    # fails then raises, because no hosts are left, in the greenlet of the host that it is about.
    ctx_state.set(state)
    return {entry.name: state.inventory.get_host(LOCAL if entry.address == LOCAL else entry.name) for entry in entries}


def _data(room: Room, entry: Entry, password: str, budget: float) -> dict[str, Any]:
    """What pyinfra's connector is told. What is left out, ~/.ssh/config may say."""
    own_key = entry.key is not None and not _has_passphrase(entry.key)
    data: dict[str, Any] = {
        "ssh_hostname": entry.address,
        "ssh_known_hosts_file": str(room.known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_forward_agent": False,
        "ssh_look_for_keys": entry.key is None,
        "ssh_paramiko_connect_kwargs": _patience(budget),
    }
    more = {
        "ssh_port": entry.port if entry.port != PORT else None,
        "ssh_user": entry.user,
        "ssh_key": str(entry.key) if own_key else None,  # with a passphrase: the agent has to have it
        "ssh_password": password,
    }
    return data | {key: value for key, value in more.items() if value}


def _patience(budget: float) -> dict[str, float]:
    """paramiko's own limits (15 s for a banner, an hour for a channel) give way to the budget."""
    return {"timeout": budget, "banner_timeout": budget, "auth_timeout": budget, "channel_timeout": budget}


def _has_passphrase(key: Path) -> bool:
    from pyinfra.connectors.ssh_util import load_key_with_certificate

    try:
        load_key_with_certificate(str(key), allow_prompt=False)
    except Exception as error:  # noqa: BLE001 - unreadable in some other way: pyinfra says so in the host's row
        return "is encrypted" in str(error)
    return False


class _Jumps:
    """Connections to the machines that hosts are reached through: one for all hosts behind one, and nothing that those
    behind another wait for."""

    def __init__(self, room: Room, budget: float) -> None:
        self._room, self._budget = room, budget
        self._locks, self._clients = dict[str, Any](), dict[str, Any]()

    def channel(self, entry: Entry) -> Any:
        """A channel to the host's sshd, to be used as its socket."""
        from gevent.lock import RLock

        _, address, port = jump(entry)
        with self._locks.setdefault(entry.jump, RLock()):
            client = self._clients.get(entry.jump)
            if client is None or not client.get_transport() or not client.get_transport().is_active():
                self._clients[entry.jump] = client = self._connect(entry)
        return client.gateway(address, port, entry.address, entry.port, timeout=self._budget)

    def _connect(self, entry: Entry) -> Any:
        from pyinfra.connectors.sshuserclient.client import SSHClient

        user, address, port = jump(entry)
        login: dict[str, Any] = {"username": user} if user else {}
        login |= {"port": port} if port != PORT else {}
        if entry.key and not _has_passphrase(entry.key):
            login["key_filename"] = str(entry.key)
        client = SSHClient()
        try:
            client.connect(
                address,
                _pyinfra_ssh_forward_agent=False,
                _pyinfra_ssh_known_hosts_file=str(self._room.known_hosts),
                _pyinfra_ssh_strict_host_key_checking="yes",
                _pyinfra_ssh_paramiko_connect_kwargs=_patience(self._budget),
                **login,
            )
        except BaseException:  # also a limit of time; a connection without a login is for nobody else
            client.close()
            raise
        return client

    def close(self) -> None:
        for client in self._clients.values():
            with suppress(Exception):
                client.close()


def jump(entry: Entry) -> tuple[str, str, int]:
    """User (may be empty), address and port of the machine that a host is reached through."""
    user, _, place = entry.jump.rpartition("@")
    address, _, port = place.partition(":")
    return user, address, int(port or PORT)


def _worked(
    entry: Entry,
    host: Any,
    jumps: _Jumps,
    work: Callable[[Connection, Entry], T],
    budget: float,
    reach: float,
    silence: float,
) -> T:
    """The work on one host, from the first packet to the last."""
    from pyinfra.context import ctx_host

    if not entry.address:  # pyinfra would dial its name
        raise Failure(UNREACHABLE, "it has no address", f"write address = ... at line {entry.line} of the inventory")
    ctx_host.set(host)
    try:
        with _within(reach):
            _require_place(entry)
            if entry.jump:
                through = {**host.data.ssh_paramiko_connect_kwargs, "sock": jumps.channel(entry)}
                host.data.ssh_paramiko_connect_kwargs = through
            host.connect(show_errors=False, raise_exceptions=True)
        if entry.address == LOCAL:
            return work(_Reached(entry, host, partial(_talk_here, host), budget), entry)
        with _heard(host.connector.client.get_transport(), silence):
            return work(_Reached(entry, host, partial(_talk, host), budget), entry)
    finally:
        _hang_up(host)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the waiting for all hosts. As Python has it, it would end the greenlet that happens to run then."""
    import gevent

    waiting, loop = gevent.getcurrent(), gevent.get_hub().loop

    def interrupt(number: int, frame: object) -> None:
        loop.run_callback_threadsafe(waiting.throw, KeyboardInterrupt)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # somebody else's, or ignored (nohup)
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _within(seconds: float, what: str = "") -> Iterator[None]:
    """A limit of time for a block; 0: none. gevent's is no Exception, so nothing on the way takes it for a failure."""
    import gevent

    limit = gevent.Timeout.start_new(seconds or None)
    try:
        yield
    except gevent.Timeout as over:
        if over is not limit:
            raise
        why = f"no answer within {seconds:g} s" + (f": {what}" if what else "")
        raise Failure(TIMEOUT, why, "look at that machine") from None
    finally:
        limit.close()


@contextmanager
def _heard(transport: Any, silence: float) -> Iterator[None]:
    """End a block that talks with a host once that answers nothing any more: what it waits for then breaks off."""
    import gevent

    gone = threading.Event()

    def listen() -> None:
        while transport.is_active():
            gevent.sleep(silence / 2)
            # Every sshd answers it, if only that it does not know it.
            with gevent.Timeout(silence, exception=False):
                transport.global_request("keepalive@openssh.com")
                continue
            gone.set()
            transport.close()

    listener = gevent.spawn(listen) if silence else None
    try:
        yield
    except Exception:
        if gone.is_set():
            why = f"it stopped answering, for {silence:g} s: frozen, off, or without a network"
            raise Failure(TIMEOUT, why, "look at that machine") from None
        raise
    finally:
        if listener:
            listener.kill(block=False)


def _hang_up(host: Any) -> None:
    """Close a connection without waiting for the other side, which may be frozen."""
    client = getattr(host.connector, "client", None)
    if client is not None:
        with suppress(Exception):
            client.close()
    for process in host.connector_data.pop("labrig_processes", ()):
        with suppress(OSError):
            os.killpg(process.pid, 9)


class _Reached:
    """A host that was reached; see the Protocol."""

    def __init__(
        self, entry: Entry, host: Any, talk: Callable[[str, bytes | mmap, int], tuple[int, bytes, bytes]], budget: float
    ) -> None:
        self.name, self.budget = entry.name, budget
        self._entry, self._host, self._talk = entry, host, talk

    def probe(self, request: Mapping[str, Any], *, timeout: float = 0.0) -> bytes:
        import json

        source = Path(__file__).with_name("agent.py").read_bytes()
        asked = {"seconds": (timeout or self.budget) + GRACE, **request}
        stdin = b"%d\n%b%b" % (len(source), source, json.dumps(asked).encode())
        script = FIND_PYTHON.replace("@FOLDER@", shlex.quote(self._entry.folder))
        with _within(timeout, "the agent"):
            _, out, error = self._talk(script, stdin, facts.MOST + 1)
        if not out.strip():
            said = error.decode(errors="replace").strip()
            raise Failure(FAILED, f"printed no facts: {said[-200:] or 'nothing'}", f"{command(self._entry)} uname")
        return out

    def run(self, script: str, *, stdin: bytes | mmap = b"", sudo: bool = False, timeout: float = 60.0) -> Answer:
        asked = f"exec sudo -n -- sh -c {shlex.quote(script)}" if sudo else script
        with _within(timeout, script.strip().partition("\n")[0][:80]):
            code, out, error = self._talk(asked, stdin, facts.MOST)
        answer = Answer(code, out.decode(errors="replace"), error.decode(errors="replace"))
        if sudo and code and answer.error.startswith(("sudo: a password", "sudo-rs: interactive", "sudo: a terminal")):
            _no_password()
        return answer

    def send(self, source: Path | bytes, to: str, *, mode: int = 0o644, timeout: float = 600.0) -> None:
        if isinstance(source, Path):  # not read into memory: a room gets a wheel of gigabytes side by side
            with source.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                self._send(content, to, mode, timeout)
        else:
            self._send(source, to, mode, timeout)

    def _send(self, content: bytes | mmap, to: str, mode: int, timeout: float) -> None:
        folder, _, name = to.rpartition("/")
        part, place = shlex.quote(f"{folder}/.{name}.part"), shlex.quote(to)
        # The size is compared there: a connection that breaks off looks like the end of the file.
        script = (
            f"umask 077; cat >{part} && test $(wc -c <{part}) -eq {len(content)} && chmod {mode:o} {part}"
            f" && if [ -d {place} ]; then rm -f {part}; echo 'a folder has its name' >&2; false;"
            f" else mv -f {part} {place}; fi"
        )
        answer = self.run(script, stdin=content, timeout=timeout)
        if answer.code:
            raise Failure(FAILED, f"cannot write {to}: {answer.error.strip() or 'it did not arrive whole'}")

    def operate(self, operation: Any, *, timeout: float, sudo: bool = False, **arguments: Any) -> bool:
        from pyinfra.api.exceptions import PyinfraError

        said: list[str] = []
        self._host.connector_data["labrig_said"] = said
        self._host.in_op = False  # an operation that was cut off leaves it set
        name = f"{operation.__module__.rpartition('.')[2]}.{operation.__name__}"
        try:
            # pyinfra's own limit ends the command's reading; ours whatever comes before, a little later.
            with _within(timeout + 1, name):
                done = operation(**arguments, _timeout=int(timeout), _sudo=sudo)
        except PyinfraError as error:
            words = " ".join(" ".join(said).replace(self._host.print_prefix, " ").split())
            state = TIMEOUT if "Command timed out" in words else FAILED
            raise Failure(state, f"{name}: {words[-300:] or error}") from None
        return bool(done.did_change())


def _talk(host: Any, script: str, stdin: bytes | mmap, most: int) -> tuple[int, bytes, bytes]:
    """Run a shell script over ssh: its exit code, at most so many bytes of stdout, and the end of stderr.

    Not through pyinfra's run_shell_command: that makes lines of text of what goes in and comes out.
    """
    import gevent

    transport = host.connector.client.get_transport()
    with closing(transport.open_session()) as channel:
        channel.exec_command(f"exec sh -c {shlex.quote(script)}")
        feeder, errors = gevent.spawn(_feed, channel, stdin), gevent.spawn(_tail, channel.recv_stderr)
        try:
            out = _read(channel.recv, most)
            if len(out) >= most:  # it may go on for ever
                return -1, out, b""
            error = errors.get()
            code = channel.recv_exit_status()
        finally:
            gevent.killall([feeder, errors], block=False)
        if code == -1 and not transport.is_active():
            raise Failure(UNREACHABLE, "the connection broke off", "look at that machine")
        return code, out, error


def _feed(channel: Any, stdin: bytes | mmap) -> None:
    with suppress(OSError, EOFError):  # whoever does not read to the end has a reason, and says it
        for at in range(0, len(stdin), _CHUNK):  # sendall copies what is left once a packet: minutes for a torch
            channel.sendall(stdin[at : at + _CHUNK])
        channel.shutdown_write()


def _read(receive: Callable[[int], bytes], most: int) -> bytes:
    parts, size = [], 0
    while size < most and (part := receive(min(_CHUNK, most - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _tail(receive: Callable[[int], bytes]) -> bytes:
    """Read to the end, so that nothing has to wait, and keep the last part."""
    kept = b""
    while part := receive(_CHUNK):
        kept = (kept + part)[-_MOST_ERROR:]
    return kept


def _talk_here(host: Any, script: str, stdin: bytes | mmap, most: int) -> tuple[int, bytes, bytes]:
    """The same on the machine you sit at."""
    import subprocess

    import gevent

    pipe = subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
    )
    host.connector_data.setdefault("labrig_processes", []).append(process)
    assert process.stdin and process.stdout and process.stderr  # noqa: S101 for the type checker
    errors = gevent.spawn(_tail, process.stderr.read)
    feeder = gevent.spawn(_feed_here, process.stdin, stdin)
    try:
        out = _read(process.stdout.read, most)
        if len(out) < most:
            error, code = errors.get(), process.wait()
            host.connector_data["labrig_processes"].remove(process)
            return code, out, error
        return -1, out, b""
    finally:
        gevent.killall([feeder, errors], block=False)
        if process.poll() is None:
            with suppress(OSError):
                os.killpg(process.pid, 9)
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):
                stream.close()


def _feed_here(stream: Any, stdin: bytes | mmap) -> None:
    with suppress(OSError):
        at = 0
        while at < len(stdin):
            at += stream.write(stdin[at : at + _CHUNK])
        stream.close()


def _line(text: str) -> str:
    """Words of others as one line of a table."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:400]


def _failure(room: Room, entry: Entry, error: Exception) -> Failure:
    """What went wrong with a host, in our words. pyinfra wraps what was raised; its cause says which it was."""
    from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, SSHException

    cause = error.__context__ if type(error).__name__ == "ConnectError" and error.__context__ else error
    where = place_of(entry)
    keys = f"invoke keys --inventory={shlex.quote(str(room.path))}"
    if isinstance(cause, BadHostKeyException):
        have, known = cause.key.fingerprint, cause.expected_key.fingerprint
        return Failure(
            UNREACHABLE, f"its host key changed: {have}, known is {known}",
            f"find out why first: it may be another machine; then {keys} --replace={shlex.quote(entry.name)}",
        )  # fmt: skip
    if "No host key for" in str(cause):
        return Failure(UNREACHABLE, "its host key is not known", keys)
    if isinstance(cause, AuthenticationException) or "No authentication methods" in str(cause):
        return Failure(UNREACHABLE, f"login refused for {_user(entry)}: {_tried(entry)}", f"{command(entry)} shows why")
    if "private key file" in str(cause).lower():
        return Failure(UNREACHABLE, f"cannot use the key {entry.key}: {cause}", "write key = ... of a private key")
    if isinstance(cause, socket.gaierror):
        return Failure(UNREACHABLE, f"no such name: {entry.address}", "correct address in the inventory")
    if isinstance(cause, OSError):
        errors = getattr(cause, "errors", None)  # paramiko tries every address that a name has
        number = next(iter(errors.values())).errno if errors else cause.errno
        if number == errno.ECONNREFUSED:
            return Failure(UNREACHABLE, f"refused the connection: {where}", "start sshd there, or correct port")
        if number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL):
            return Failure(UNREACHABLE, f"no route to {where}", "switch it on, or correct address")
        if number == errno.ETIMEDOUT or isinstance(cause, TimeoutError):
            return Failure(TIMEOUT, f"no answer from {where}", "switch it on, or correct address")
    if isinstance(cause, SSHException | EOFError | OSError):
        why = f"no ssh with {where}, or it broke off: {str(cause) or type(cause).__name__}"
        return Failure(UNREACHABLE, why, f"{command(entry)} shows why")
    return Failure(FAILED, f"{type(cause).__name__}: {cause}")


def _user(entry: Entry) -> str:
    import getpass

    return entry.user or getpass.getuser()


def _tried(entry: Entry) -> str:
    """The ways of proving who one is that there were, none of them in full."""
    ways = []
    if entry.key:
        ways.append(f"the key {entry.key}" + (" (has a passphrase: ssh-add it)" if _has_passphrase(entry.key) else ""))
    else:
        ways += [f"~/.ssh/{file}" for file in USUAL if (Path.home() / ".ssh" / file).exists()]
    if not entry.key or _has_passphrase(entry.key):
        ways.append("the agent's keys" if os.environ.get("SSH_AUTH_SOCK") else "no agent")
    if entry.password:
        ways.append("the password of the inventory")
    return ", ".join(ways)


# Finds a Python that runs, and gives it the agent; where there is none, sh itself prints a document that says so.
FIND_PYTHON = r"""
PATH=$PATH:/usr/local/bin:/opt/homebrew/bin; LC_ALL=C; export PATH LC_ALL
for name in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
    at=$(command -v $name) || continue
    # A Mac without the command line tools has a python3 that opens a dialog.
    if [ "$at" = /usr/bin/python3 ] && [ "$(uname -s)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; then
        continue
    fi
    "$at" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' </dev/null >/dev/null 2>&1 || continue
    # The alarm is for a connection that is gone before everything came; the agent then sets its own.
    exec "$at" -I -S -c 'import signal, sys; signal.alarm(600); b = sys.stdin.buffer
exec(compile(b.read(int(b.readline())), "agent", "exec"))'
done
clean() { printf %s "$1" | tr -cd 'A-Za-z0-9 ._/()+-'; }
ID= VERSION_ID= PRETTY_NAME= folder= can=false
if [ -r /etc/os-release ]; then . /etc/os-release; fi
case $(uname -s) in
    Darwin) system=macos ID=macos VERSION_ID=$(sw_vers -productVersion) PRETTY_NAME=$VERSION_ID ;;
    *) system=linux ;;
esac
if [ -d @FOLDER@ ]; then
    if [ -w @FOLDER@ ]; then folder=ours; else folder=theirs; fi
elif [ ! -e @FOLDER@ ] && [ -w "$(dirname @FOLDER@)" ]; then folder=absent
fi
if [ "$(id -u)" = 0 ] || sudo -n true </dev/null >/dev/null 2>&1; then can=true; fi
set -- $(df -Pk / | tail -n 1)
printf '{"schema": "labrig-host/1", "host": {"os": "%s", "arch": "%s", "os_version": "%s", "docker_error": "%s"},' \
    $system "$(clean "$(uname -m)")" "$(clean "$PRETTY_NAME")" "not asked, as there is no Python 3.8 or newer"
printf '"time": %s, "machine_id": "", "user": "%s", "sudo": %s, "system": "%s", "release": "%s", "pythons": {},' \
    "$(date +%s)" "$(clean "$(id -un)")" $can "$(clean "$ID")" "$(clean "$VERSION_ID")"
printf '"free": %s, "total": %s, "folder": "%s", "docker_free": null, "images": {}, "labs": {}, "environments": {},' \
    "$(($4 * 1024))" "$(($2 * 1024))" "$folder"
printf '"strays": {}, "scaffolds": {}, "loose": [], "layers": [], "wheels": {}, "start": "", "applied": {},'
printf '"unfinished": false, "torch": {}}\n'
"""
