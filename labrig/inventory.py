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
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from labrig import description
from labrig.description import Machine
from labrig.errors import UsageError

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
    password: str = field(default="", repr=False)  # a reference; :func:`secret` reads it
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
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot read the inventory {path}", found=reason, fix="name a file") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a number or nesting too deep for Python
        raise UsageError(f"{path.name} is not valid TOML", found=str(error)[:300], fix=f"edit {path}") from None
    shared = _shared(data, path.name)
    hosts = parse(data, path.name, _lines(text))
    named = shared.get("known_hosts")
    known = path.parent / Path(named).expanduser() if named else path.with_suffix(".known_hosts")
    return Room(path, hosts, shared.get("cache", ""), known)


def local(folder: str = "", engine: str = AUTO, target: str = AUTO) -> Room:
    """A room of one machine: the one you sit at."""
    entry = Entry(
        "local", None, target, "", "", LOCAL, engine=engine, install=(), folder=folder or str(Path.home() / ".labrig")
    )
    return Room(Path(), (entry,), "", Path())


def secret(entry: Entry) -> str:
    """The password that an entry refers to; empty where it has none.

    Raises:
        UsageError: there is no such variable or file, or it is empty.
    """
    kind, _, where = entry.password.partition(":")
    if not kind:
        return ""
    if kind == "env":
        value, place = os.environ.get(where, ""), f"the variable {where}"
    else:
        place = f"the file {where}"
        try:
            value = Path(where).expanduser().read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError) as error:
            raise UsageError(f"host {entry.name}: cannot read {place}", found=type(error).__name__) from None
    if not value:
        raise UsageError(f"host {entry.name}: {place} holds no password", fix="set it, or use a key and an agent")
    return value


def parse(data: Mapping[str, Any], file: str, lines: tuple[int, ...] = ()) -> tuple[Entry, ...]:
    """The machines of an inventory that is already parsed; ``lines`` says where each [[host]] begins."""
    if stray := sorted(set(data) - {"host", "room"}):
        raise UsageError(
            f"{file}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200],
            fix="write [[host]] tables, and one [room]",
        )  # fmt: skip
    shared = {key: value for key, value in _shared(data, file).items() if key in SHARED}
    hosts = data.get("host")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, dict) for host in hosts):
        raise UsageError(
            f"{file} has no machines", found="no [[host]] table", fix="write [[host]], a table for each machine"
        )
    if len(hosts) > MAX_HOSTS:
        raise UsageError(
            f"{file}: too many machines", found=str(len(hosts)), fix=f"at most {MAX_HOSTS}; split the file"
        )
    entries: dict[str, Entry] = {}
    dialled: dict[tuple[str, int, str], str] = {}
    for number, host in enumerate(hosts):
        line = lines[number] if number < len(lines) == len(hosts) else 0
        at = f", line {line}" if line else ""
        entry = _entry({**shared, **host}, f"{file}{at}: [[host]] {number + 1}", line)
        if entry.name in entries:
            raise UsageError(f"{file}{at}: a second host {entry.name!r}", found="two that can differ", fix="rename one")
        entries[entry.name] = entry
        way = (entry.address.lower(), entry.port, entry.jump)
        if entry.address and way in dialled:
            raise UsageError(
                f"{file}{at}: host {entry.name} is at the address of {dialled[way]}",
                found=f"{entry.address}, port {entry.port}", fix="one machine has one [[host]]",
            )  # fmt: skip
        dialled[way] = entry.name
    return tuple(entries.values())


def _lines(text: str) -> tuple[int, ...]:
    return tuple(n for n, line in enumerate(text.splitlines(), start=1) if re.match(r"\s*\[\[\s*host\s*\]\]", line))


def _shared(data: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The [room] table."""
    found = data.get("room", {})
    where = f"{file}: [room]"
    if not isinstance(found, dict):
        raise UsageError(f"{where} is wrong", found=repr(found)[:200], fix="write a [room] table")
    _require_keys(found, ROOM_KEYS, where)
    if "cache" in found and not CACHE.fullmatch(found["cache"]):
        raise UsageError(f"{where}: cache is wrong", found=repr(found["cache"])[:200], fix="HOST:PORT of a registry")
    return found


def _require_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if stray := sorted(set(table) - set(known)):
        raise UsageError(
            f"{where}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200], fix=f"use {', '.join(known)}"
        )
    for key, value in table.items():
        if key == "port":
            if type(value) is not int or not 0 < value < 65536:
                raise UsageError(f"{where}: port is wrong", found=repr(value)[:200], fix="a number from 1 to 65535")
        elif key == "install":
            if not isinstance(value, list) or not all(one in INSTALL for one in value):
                raise UsageError(f"{where}: install is wrong", found=repr(value)[:200], fix=f"some of {list(INSTALL)}")
        elif not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where}: {key} is wrong", found=repr(value)[:200], fix="write text in quotes")


def _entry(host: Mapping[str, Any], where: str, line: int) -> Entry:
    _require_keys(host, KEYS, where)
    if "name" not in host:
        raise UsageError(f"{where}: no name", found=f"keys: {', '.join(host) or 'none'}", fix="write name = ...")
    if not NAME.fullmatch(host["name"]):
        fix = "letters, digits, dots, - and _, at most 64"
        raise UsageError(f"{where}: name is wrong", found=repr(host["name"])[:200], fix=fix)
    where = f"{where} ({host['name']})"
    if "machine" not in host and "address" not in host:
        found = f"keys: {', '.join(host) or 'none'}"
        raise UsageError(f"{where}: neither address nor machine", found=found, fix="write address = ... for ssh")
    shapes = {
        "user": (USER, "a user's name"),
        "jump": (JUMP, "USER@HOST:PORT"),
        "folder": (REMOTE, "an absolute path of letters, digits, . _ - and /"),
        "password": (re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+"), "a reference: env:NAME or file:PATH"),
    }
    for key, (shape, meant) in shapes.items():
        if key in host and not shape.fullmatch(host[key]):
            # A password is never shown, also where it stands by mistake.
            found = "no reference" if key == "password" else repr(host[key])[:200]
            raise UsageError(f"{where}: {key} is wrong", found=found, fix=meant)
    if ".." in PurePosixPath(host.get("folder", FOLDER)).parts or host.get("folder", FOLDER).strip("/") == "":
        raise UsageError(f"{where}: folder is wrong", found=repr(host["folder"]), fix="a folder of its own")
    if "address" in host and not _is_address(host["address"]):
        raise UsageError(
            f"{where}: address is wrong", found=repr(host["address"])[:200],
            fix=f"a host's name, an IP address, or {LOCAL}; the port has a key of its own",
        )  # fmt: skip
    if host.get("engine", AUTO) not in ENGINES:
        raise UsageError(
            f"{where}: engine is wrong", found=repr(host["engine"])[:200], fix=f"one of {', '.join(ENGINES)}"
        )
    return Entry(
        name=host["name"],
        machine=description.parse(host["machine"], where) if "machine" in host else None,
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
        line=line,
    )


def _is_address(text: str) -> bool:
    if text == LOCAL:
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # What looks like a number is an address that is wrong: "10.0.0.300", "2222".
        return bool(ADDRESS.fullmatch(text)) and len(text) <= 253 and not re.fullmatch(r"[0-9.]+", text)
    return re.fullmatch(r"[A-Za-z0-9._-]*", text.partition("%")[2]) is not None  # the zone of fe80::1%eth0
