"""A room in one TOML file: a [[host]] table for each machine.

[[host]]
name = "pc01"
machine = "linux x86_64 driver=550.54.14 gpu=8.6"   # the words of `doctor --for`, or a card's name
target = "cuda"                                     # or "auto", which is also what leaving it out means
room = "E1.07"
notes = "next to the window"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import description
from labrig.description import Machine
from labrig.errors import UsageError

AUTO = "auto"
KEYS = ("name", "machine", "target", "room", "notes")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")  # a host's name as in RFC 1123, with _ and dots
MAX_HOSTS = 10_000


@dataclass(frozen=True)
class Entry:
    """One machine of a room."""

    name: str
    machine: Machine
    target: str  # a target's name, or AUTO
    room: str
    notes: str


def read(path: Path) -> tuple[Entry, ...]:
    """The machines of an inventory file, in its order.

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
    return parse(data, path.name, _lines(text))


def parse(data: Mapping[str, Any], file: str, lines: tuple[int, ...] = ()) -> tuple[Entry, ...]:
    """The machines of an inventory that is already parsed; ``lines`` says where each [[host]] begins."""
    if stray := sorted(set(data) - {"host"}):
        raise UsageError(
            f"{file}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200], fix="write [[host]] tables"
        )
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
    for number, host in enumerate(hosts):
        at = f", line {lines[number]}" if number < len(lines) == len(hosts) else ""
        entry = _entry(host, f"{file}{at}: [[host]] {number + 1}")
        if entry.name in entries:
            raise UsageError(f"{file}{at}: a second host {entry.name!r}", found="two that can differ", fix="rename one")
        entries[entry.name] = entry
    return tuple(entries.values())


def _lines(text: str) -> tuple[int, ...]:
    return tuple(n for n, line in enumerate(text.splitlines(), start=1) if re.match(r"\s*\[\[\s*host\s*\]\]", line))


def _entry(host: Mapping[str, Any], where: str) -> Entry:
    if stray := sorted(set(host) - set(KEYS)):
        raise UsageError(
            f"{where}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200], fix=f"use {', '.join(KEYS)}"
        )
    for key, value in host.items():
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where}: {key} is wrong", found=repr(value)[:200], fix="write text in quotes")
    for key in ("name", "machine"):
        if key not in host:
            raise UsageError(f"{where}: no {key}", found=f"keys: {', '.join(host) or 'none'}", fix=f"write {key} = ...")
    if not NAME.fullmatch(host["name"]):
        fix = "letters, digits, dots, - and _, at most 64"
        raise UsageError(f"{where}: name is wrong", found=repr(host["name"])[:200], fix=fix)
    machine = description.parse(host["machine"], f"{where} ({host['name']})")
    return Entry(host["name"], machine, host.get("target", AUTO), host.get("room", ""), host.get("notes", ""))
