"""The document that the agent prints on a host, checked key by key: a host may be broken, or say anything at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labrig import host as hosts
from labrig.errors import UsageError
from labrig.host import Host

SCHEMA = "labrig-host/1"
LARGEST = 1 << 63  # a number from there on is none of a machine's, and nothing here reckons with it
LOOSE = 20
MOST = 4 << 20  # bytes of a document; one of a host with all labs and 200 packages has 40 kB


class Unreadable(Exception):
    """What a host printed is no document of facts; says what it was."""


@dataclass(frozen=True)
class Package:
    """An installed distribution: its version, and the digest over its files as they are (wanted.tree says how)."""

    version: str
    digest: str


@dataclass(frozen=True)
class Seen:
    """torch as it sees itself on the host, in its environment or image; ``error``: it could not be asked, and why."""

    version: str = ""
    cuda: str | None = None
    device: str = ""  # cpu, cuda or mps: the best that it computes on, proven by a kernel
    name: str = ""  # of the GPU
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """What a host is and has. Sizes are bytes, times are seconds."""

    host: Host
    time: float  # its clock, since the epoch
    machine_id: str  # hashed; empty where it has none
    user: str
    sudo: bool  # without a password
    system: str  # ID of os-release: debian, ubuntu; "macos"
    release: str  # VERSION_ID
    pythons: Mapping[
        str, bool
    ]  # minor of an interpreter that is there -> whether it makes environments (venv, ensurepip)
    free: int  # in the folder's file system
    total: int
    folder: str  # "" = not there and cannot be made without sudo; "absent" = can be made; "ours"; "theirs" = no access
    docker_free: int | None  # where the engine keeps images
    images: Mapping[str, str]  # names of labrig's images -> the engine's id
    labs: Mapping[str, str]  # path under the folder's labs/ -> SHA-256
    environments: Mapping[str, Mapping[str, Package]]  # of those that were asked about, those that are there
    wheels: Mapping[str, int]  # file name -> bytes, of wheels that lie ready
    start: str  # SHA-256 of the start command; empty where there is none
    applied: Mapping[str, Any]  # what the last apply noted when it had ended; empty where none has
    unfinished: bool  # an apply began and has not ended
    torch: Mapping[str, Seen]  # by environment or image that was asked about and is there; empty where none was asked
    # Files of an environment that no package of it has, by their paths from there.
    strays: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # By environment: the digest over bin/* and pyvenv.cfg, which the installer makes there (agent.read_scaffold).
    scaffolds: Mapping[str, str] = field(default_factory=dict)
    # Of the images that the engine pulled: the diff ids of their layers.
    layers: tuple[str, ...] = ()
    # Paths from the folder (itself is "."), 20 at most, that are not the user's own, that others may write, or that
    # students may not enter.
    loose: tuple[str, ...] = ()


def parse(printed: bytes) -> Facts:
    """Read what the agent printed. Raises Unreadable."""
    if len(printed) > MOST:
        raise Unreadable(f"{len(printed)} bytes")
    try:
        data = json.loads(printed)
    except (ValueError, RecursionError):
        raise Unreadable(_shown(printed)) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise Unreadable(_shown(printed))
    try:
        return _read(data)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
        raise Unreadable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]) from None


def tree(files: Mapping[str, str]) -> str:
    """The digest of a tree: SHA-256 over ``<sha256>  <path>`` lines in order of path, as sha256sum writes them."""
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read(data: Mapping[str, Any]) -> Facts:
    return Facts(
        host=hosts.from_json(_clean(data["host"]), "host"),
        time=_time(data["time"]),
        machine_id=_text(data["machine_id"]),
        user=_text(data["user"]),
        sudo=_flag(data["sudo"]),
        system=_text(data["system"]),
        release=_text(data["release"]),
        pythons={_text(key): _flag(value) for key, value in data["pythons"].items()},
        free=_count(data["free"]),
        total=_count(data["total"]),
        folder=_text(data["folder"]),
        docker_free=None if data["docker_free"] is None else _count(data["docker_free"]),
        images=_texts(data["images"]),
        labs=_texts(data["labs"]),
        environments={_text(name): _packages(one) for name, one in data["environments"].items()},
        wheels={_text(name): _count(size) for name, size in data["wheels"].items()},
        start=_text(data["start"]),
        applied=_clean(dict(data["applied"])),
        unfinished=_flag(data["unfinished"]),
        torch={_text(name): _seen(one) for name, one in data["torch"].items()},
        strays={_text(name): tuple(map(_text, one)) for name, one in data["strays"].items()},
        scaffolds=_texts(data["scaffolds"]),
        layers=tuple(map(_text, data["layers"])),
        loose=tuple(map(_text, data["loose"][:LOOSE])),
    )


def _packages(data: Mapping[str, Any]) -> dict[str, Package]:
    return {_text(name): Package(_text(one["version"]), _text(one["digest"])) for name, one in data.items()}


def _seen(data: Mapping[str, Any]) -> Seen:
    cuda = None if data["cuda"] is None else _text(data["cuda"])
    return Seen(_text(data["version"]), cuda, _text(data["device"]), _text(data["name"]), _text(data["error"]))


def _text(value: object) -> str:
    """Text that can stand in a table: no control characters, no page of it."""
    if not isinstance(value, str):
        raise TypeError(f"text expected, found {type(value).__name__}")
    return "".join(one if one.isprintable() else "?" for one in value[:500])


def _clean(value: Any) -> Any:
    """The same document with text that can stand in a table, and numbers that can be reckoned with."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float) and not abs(value) < LARGEST:  # nor is NaN
        raise ValueError("a number that is too large")
    if isinstance(value, dict):
        return {_text(key): _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError("a time that is none")
    return float(value)


def _texts(value: Mapping[str, object]) -> dict[str, str]:
    return {_text(key): _text(one) for key, one in value.items()}


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST:
        raise ValueError("a number that is no count")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"true or false expected, found {type(value).__name__}")
    return value


def _shown(printed: bytes) -> str:
    text = printed[:80].decode(errors="replace")
    return repr("".join(one if one.isprintable() else "?" for one in text)) if printed.strip() else "nothing"
