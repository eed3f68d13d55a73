"""A room in one TOML file: a [[host]] table for each machine, and a [room] table with what holds for all of them.

[room]
user = "admin"                    # every key of a host but name, address, machine and notes may stand here
cache = "10.0.7.1:5000"           # the room's registry cache; images come through it

[[host]]
name = "pc01"
address = "10.0.7.11"             # what ssh dials; "@local" is the machine you sit at
machine = "linux x86_64 driver=550.54.14 gpu=8.6"   # for doctor: the words of `doctor --for`, or a card's name
target = "cuda"                   # or "auto", which is also what leaving it out means
engine = "docker"                 # docker, venv, or "auto": docker where an engine answers and an image was published
install = ["docker", "nvidia"]    # what may be installed with sudo where it is missing; without it neither is
port = 22
key = "~/.ssh/lab"                # the file of a private key; without it the agent's and the usual ones
password = "env:ROOM_PASSWORD"    # by reference only: env:NAME or file:PATH
jump = "admin@gateway:22"         # through this machine
folder = "/opt/labrig"            # where labrig keeps its things there
room = "E1.07"
notes = "next to the window"
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from labrig import description, secret, tables
from labrig.description import Machine
from labrig.errors import UsageError
from labrig.tables import Table, lines_of

AUTO = "auto"
LOCAL = "@local"
ENGINES = (AUTO, "docker", "venv")
INSTALL = ("docker", "nvidia")
OWN = ("name", "address", "machine", "notes")  # what is one machine's, never a room's
SHARED = ("target", "engine", "install", "user", "port", "key", "password", "jump", "folder", "room")
KEYS = (*OWN, *SHARED)
ROOM_KEYS = (*SHARED, "cache", "known_hosts")
FOLDER = "/opt/labrig"
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")  # a host's name as in RFC 1123, with _ and dots
ADDRESS = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?)*\.?"
)
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?")
JUMP = re.compile(rf"({USER.pattern}@)?{ADDRESS.pattern}(:[0-9]{{1,5}})?")
CACHE = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
REMOTE = re.compile(r"/[A-Za-z0-9._/-]+")  # a folder there: it stands in commands and scripts
SHAPES = {  # of values, and what is meant
    "name": (NAME, "letters, digits, dots, - and _, at most 64"),
    "user": (USER, "a user's name"),
    "jump": (JUMP, "USER@HOST:PORT"),
    "password": (secret.REFERENCE, secret.MEANT),
}
MAX_HOSTS = 10_000


@dataclass(frozen=True)
class Entry:
    """One machine of a room. ``machine`` is None where only its address is known, ``address`` is empty where it is only
    described."""

    name: str
    machine: Machine | None
    target: str  # a target's name, or AUTO
    room: str
    notes: str
    address: str = ""
    engine: str = AUTO
    install: tuple[str, ...] = ()
    user: str = ""
    port: int = 22
    key: Path | None = None
    password: str = field(default="", repr=False)  # a reference; :func:`password_of` reads it
    jump: str = ""
    folder: str = FOLDER
    line: int = 0


@dataclass(frozen=True)
class Room:
    """An inventory file. ``known_hosts`` is where `invoke keys` keeps the host keys."""

    path: Path
    hosts: tuple[Entry, ...]
    cache: str
    known_hosts: Path


def described(entry: Entry) -> Machine:
    """What an entry says of its machine. Raises UsageError where it says nothing."""
    if entry.machine is None:
        raise UsageError(
            f"line {entry.line} of the inventory: host {entry.name} has no machine",
            found="no key machine",
            fix="write machine = ..., or ask the machine itself: invoke provision --plan",
        )
    return entry.machine


def read(path: Path) -> Room:
    """An inventory file.

    Raises:
        UsageError: the file, or an entry in it: which one (with its line), what was found, what is allowed.
    """
    text, data = tables.read(path, "the inventory", "name a file")
    hosts = parse(data, path.name, text)
    shared = data.get("room", {})
    named = shared.get("known_hosts")
    known = path.parent / Path(named).expanduser() if named else path.with_suffix(".known_hosts")
    return Room(path, hosts, shared.get("cache", ""), known)


def local(folder: str = "", engine: str = AUTO, target: str = AUTO) -> Room:
    """A room of one machine: the one you sit at."""
    entry = Entry(
        "local", None, target, "", "", LOCAL, engine=engine, install=(), folder=folder or str(Path.home() / ".labrig")
    )
    return Room(Path(), (entry,), "", Path())


def password_of(entry: Entry) -> str:
    """The password that an entry refers to; empty where it has none.

    Raises:
        UsageError: there is no such variable or file, or it is empty.
    """
    return secret.read(entry.password, f"host {entry.name}")


def parse(data: Mapping[str, Any], file: str, text: str = "") -> tuple[Entry, ...]:
    """The machines of an inventory that is already parsed; ``text`` is what it was parsed from, for lines in errors."""
    if stray := sorted(set(data) - {"host", "room"}):
        raise UsageError(
            f"{file}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200],
            fix="write [[host]] tables, and one [room]",
        )  # fmt: skip
    shared = {key: value for key, value in _shared(data, file, text).items() if key in SHARED}
    hosts = data.get("host")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, dict) for host in hosts):
        raise UsageError(
            f"{file} has no machines", found="no [[host]] table", fix="write [[host]], a table for each machine"
        )
    lines = lines_of(text, "host")
    if len(hosts) > MAX_HOSTS:
        over = Table(file, f"[[host]] {MAX_HOSTS + 1}", lines[MAX_HOSTS] if len(lines) == len(hosts) else {})
        raise UsageError(
            f"{over.at()}: too many machines", found=str(len(hosts)), fix=f"at most {MAX_HOSTS}; split the file"
        )
    entries: dict[str, Entry] = {}
    named: dict[str, Table] = {}
    dialled: dict[tuple[str, int, str], str] = {}
    for number, host in enumerate(hosts):
        title = f"[[host]] {number + 1}" + (f" ({host['name']})" if _is_name(host.get("name")) else "")
        table = Table(file, title, lines[number] if len(lines) == len(hosts) else {})
        entry = _entry(host, shared, table)
        if entry.name in entries:
            raise UsageError(
                f"{table.at('name')}: a second host {entry.name!r}",
                found=f"the first is {_place(named[entry.name], 'name')}", fix="rename one",
            )  # fmt: skip
        entries[entry.name], named[entry.name] = entry, table
        way = (entry.address.lower(), entry.port, entry.jump)
        if entry.address and way in dialled:
            first = dialled[way]
            raise UsageError(
                f"{table.at('address')}: at the address of {first}",
                found=f"{entry.address}, port {entry.port}; {first} is {_place(named[first], 'address')}",
                fix="one machine has one [[host]]",
            )
        dialled[way] = entry.name
    return tuple(entries.values())


def _place(table: Table, key: str) -> str:
    line = table.line(key)
    return f"in line {line}" if line else table.name


def _shared(data: Mapping[str, Any], file: str, text: str) -> dict[str, Any]:
    """The [room] table."""
    found = data.get("room", {})
    table = Table(file, "[room]", next(iter(lines_of(text, "room")), {}))
    if not isinstance(found, dict):  # what it is may hold a password
        raise UsageError(f"{table.at()} is wrong", found=type(found).__name__, fix="write a [room] table")
    _require_keys(found, ROOM_KEYS, table)
    if "cache" in found and not CACHE.fullmatch(found["cache"]):
        raise UsageError(
            f"{table.at('cache')}: cache is wrong", found=repr(found["cache"])[:200], fix="HOST:PORT of a registry"
        )
    return found


def _require_keys(values: Mapping[str, Any], known: tuple[str, ...], table: Table) -> None:
    """Raises UsageError where a key is not known, or its value cannot be."""
    if stray := sorted(set(values) - set(known)):
        raise UsageError(
            f"{table.at(stray[0])}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200],
            fix=f"use {', '.join(known)}",
        )  # fmt: skip
    for key, value in values.items():
        if meant := _meant(key, value):
            # A password is never shown, also where it stands by mistake.
            found = "no reference" if key == "password" else repr(value)[:200]
            raise UsageError(f"{table.at(key)}: {key} is wrong", found=found, fix=meant)


def _meant(key: str, value: Any) -> str:
    """What should stand there instead of a value that cannot be; empty where it can."""
    if key == "port":
        return "" if type(value) is int and 0 < value < 65536 else "a number from 1 to 65535"
    if key == "install":
        right = isinstance(value, list) and all(one in INSTALL for one in value)
        return "" if right else f"some of {list(INSTALL)}"
    if key in SHAPES:
        shape, meant = SHAPES[key]
        return "" if isinstance(value, str) and shape.fullmatch(value) else meant
    if not isinstance(value, str) or not value.strip():
        return "write text in quotes"
    if key == "folder" and not _is_folder(value):
        return "an absolute path of letters, digits, . _ - and /, to a folder of its own"
    if key == "address" and not _is_address(value):
        return f"a host's name, an IP address, or {LOCAL}; the port has a key of its own"
    if key == "engine" and value not in ENGINES:
        return f"one of {', '.join(ENGINES)}"
    return ""


def _entry(own: Mapping[str, Any], shared: Mapping[str, Any], table: Table) -> Entry:
    """A machine, by its own keys and what holds for the room."""
    _require_keys(own, KEYS, table)
    keys = f"keys: {', '.join(own) or 'none'}"
    if "name" not in own:
        raise UsageError(f"{table.at()}: no name", found=keys, fix="write name = ...")
    if "machine" not in own and "address" not in own:
        raise UsageError(f"{table.at()}: neither address nor machine", found=keys, fix="write address = ... for ssh")
    host = {**shared, **own}
    return Entry(
        name=host["name"],
        machine=description.parse(host["machine"], table.at("machine")) if "machine" in host else None,
        target=host.get("target", AUTO),
        room=host.get("room", ""),
        notes=host.get("notes", ""),
        address=host.get("address", ""),
        engine=host.get("engine", AUTO),
        install=tuple(dict.fromkeys(host.get("install", ()))),
        user=host.get("user", ""),
        port=host.get("port", 22),
        key=Path(host["key"]).expanduser() if "key" in host else None,
        password=host.get("password", ""),
        jump=host.get("jump", ""),
        folder=host.get("folder", FOLDER).rstrip("/"),
        line=table.line(),
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _is_folder(text: str) -> bool:
    return bool(REMOTE.fullmatch(text)) and ".." not in PurePosixPath(text).parts and text.strip("/") != ""


def _is_address(text: str) -> bool:
    if text == LOCAL:
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # What looks like a number is an address that is wrong: "10.0.0.300", "2222".
        return bool(ADDRESS.fullmatch(text)) and len(text) <= 253 and not re.fullmatch(r"[0-9.]+", text)
    return re.fullmatch(r"[A-Za-z0-9._-]*", text.partition("%")[2]) is not None  # the zone of fe80::1%eth0
