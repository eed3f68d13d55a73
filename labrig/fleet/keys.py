"""Host keys: collected once, kept beside the inventory, never overwritten unasked; and machines that are clones.

The file is OpenSSH's known_hosts (sshd(8)), so `ssh -o UserKnownHostsFile=room.known_hosts` reads it as well.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labrig import files, inventory
from labrig.errors import DistributeError, UsageError
from labrig.fleet import ssh
from labrig.fleet.facts import Facts
from labrig.fleet.ssh import Ended, HostKey
from labrig.inventory import LOCAL, Entry, Room

BUDGET = 20.0  # seconds for a host
COLUMNS = ("host", "address", "key", "fingerprint", "state", "why", "fix")
WRAPPED = ("why", "fix")
NEW, KNOWN, CHANGED, REPLACED = "new", "known", "CHANGED", "replaced"
NEW_KEYS = "sudo rm /etc/ssh/ssh_host_*; sudo ssh-keygen -A; sudo systemctl restart ssh"
NEW_ID = "sudo rm /etc/machine-id /var/lib/dbus/machine-id; sudo systemd-machine-id-setup"


@dataclass(frozen=True)
class Row:
    """A host's key and what became of it."""

    host: str
    address: str
    kind: str = ""
    fingerprint: str = ""
    state: str = ""  # new, known, CHANGED, replaced; or why there is no key: UNREACHABLE, TIMEOUT
    why: str = ""
    fix: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the host is known now, by the key that it has."""
        return self.state in (NEW, KNOWN, REPLACED)

    def cells(self) -> tuple[str, ...]:
        """The row of a table; see COLUMNS."""
        return self.host, self.address, self.kind, self.fingerprint, self.state, self.why, self.fix

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return vars(self)


def collect(room: Room, *, replacing: Sequence[str] = (), budget: float = BUDGET) -> list[Row]:
    """Ask every host for its key, and note the new ones; ``replacing`` names hosts whose key may be another than known.

    Where a login works hosts are also asked for their machine-ids, which clones share.

    Raises:
        UsageError: ``replacing`` names no host of the inventory.
        HostError: the extra labrig[fleet] is not installed.
        Interrupted: Ctrl-C; nothing was written.
    """
    there = [entry for entry in room.hosts if entry.address not in ("", LOCAL)]
    jumps = _jumps(there)
    if stray := sorted(set(replacing) - {entry.name for entry in (*jumps, *there)}):
        raise UsageError(
            f"no host {stray[0]} to replace the key of", found=", ".join(stray), fix=f"name a host of {room.path.name}"
        )
    # Machines on the way come first: what is behind them is reached only when they are known.
    rows = [row for entries in (jumps, there) if entries for row in _collected(room, entries, replacing, budget)]
    good = {row.host for row in rows if row.is_good}
    login = [entry for entry in there if entry.name in good]
    asked = ssh.ask(room, login, lambda entry: {"folder": entry.folder}, budget=budget) if login else {}
    by_id = clones({name: how.value for name, how in asked.items() if how.value})
    return [_with_copies(room, row, _same_key(row, rows), by_id.get(row.host, ())) for row in rows]


def require_known(rows: Sequence[Row]) -> None:
    """Raise DistributeError where a host is not known by the key that it has, or has not said one."""
    bad = [row.host for row in rows if not row.is_good]
    if bad:
        raise DistributeError(
            f"not known by a key: {len(bad)} of {len(rows)}", found=", ".join(bad)[:200],
            fix="what the table says; the same command goes on",
        )  # fmt: skip


def clones(facts: Mapping[str, Facts]) -> dict[str, tuple[str, ...]]:
    """Hosts that have one machine-id, each with the others: copies of one disk (or one machine with two names)."""
    owners: dict[str, list[str]] = {}
    for name, one in facts.items():
        if one.machine_id:
            owners.setdefault(one.machine_id, []).append(name)
    return {
        name: tuple(other for other in names if other != name)
        for names in owners.values()
        if len(names) > 1
        for name in names
    }


def _jumps(entries: Sequence[Entry]) -> list[Entry]:
    """The machines that hosts are reached through, named as the inventory names them."""
    found = {}
    for entry in entries:
        if entry.jump:
            user, address, port = ssh.jump(entry)
            found[entry.jump] = replace(entry, name=entry.jump, address=address, port=port, user=user, jump="")
    return list(found.values())


def _collected(room: Room, entries: Sequence[Entry], replacing: Sequence[str], budget: float) -> list[Row]:
    lines = _read(room)
    known = {place: dict(kept) for place, kept in _places(lines).items()}
    scanned = ssh.scan(room, entries, lambda place: list(known.get(place, {})), budget=budget)
    rows = [_row(room, entry, scanned[entry.name], known, replacing) for entry in entries]
    for row in rows:
        found = scanned[row.host].value
        if found and row.state == REPLACED:
            lines = [line for line in (_without(line, found.place) for line in lines) if line is not None]
        if found and row.state in (NEW, REPLACED):
            lines.append(f"{found.place} {found.kind} {found.base64}")
    if any(row.state in (NEW, REPLACED) for row in rows):
        files.write_atomically(room.known_hosts, "".join(f"{line}\n" for line in dict.fromkeys(lines)))
    return rows


def _row(
    room: Room,
    entry: Entry,
    how: Ended[HostKey],
    known: Mapping[str, Mapping[str, str]],
    replacing: Sequence[str],
) -> Row:
    row = Row(entry.name, f"{entry.address}:{entry.port}")
    if how.value is None:
        return replace(row, state=how.state, why=how.why, fix=how.fix)
    found = how.value
    row = replace(row, kind=found.kind, fingerprint=found.fingerprint)
    kept = known.get(found.place)
    if kept is None:
        return replace(row, state=NEW)
    if kept.get(found.kind) == found.base64:
        return replace(row, state=KNOWN)
    if entry.name in replacing:
        return replace(row, state=REPLACED)
    return replace(
        row, state=CHANGED, why="another key is known: it was installed anew, or this is another machine",
        fix=f"find out which first; then {_replacing(room, entry.name)}",
    )  # fmt: skip


def _replacing(room: Room, name: str) -> str:
    """The command that takes a host's other key."""
    return f"invoke keys --inventory={shlex.quote(str(room.path))} --replace={shlex.quote(name)}"


def _same_key(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Hosts at other addresses that prove themselves with the same key."""
    return tuple(
        other.host
        for other in rows
        if row.fingerprint and other.fingerprint == row.fingerprint and other.address != row.address
    )


def _with_copies(room: Room, row: Row, by_key: Sequence[str], by_id: Sequence[str]) -> Row:
    """The row with a word on its clones."""
    if not by_key and not by_id:
        return row
    shared = " and ".join(["host key"] * bool(by_key) + ["machine-id"] * bool(by_id))
    why = f"has the {shared} of {', '.join(dict.fromkeys((*by_key, *by_id)))}: clones"
    fix = "there: " + "; ".join([NEW_KEYS] * bool(by_key) + [NEW_ID] * bool(by_id))
    if by_key:  # its new key is not the one that is known by then
        fix += f"; then here: {_replacing(room, row.host)}"
    return replace(row, why="; ".join(filter(None, (row.why, why))), fix="; ".join(filter(None, (row.fix, fix))))


def _read(room: Room) -> list[str]:
    try:
        return room.known_hosts.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(
            f"cannot read the host keys {room.known_hosts}", found=reason, fix="make it a file of yours, or remove it"
        ) from None


def _places(lines: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The keys by place; comments, marked lines and hashed names are left as they are, and are not ours."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(("#", "@", "|")):
            for place in words[0].split(","):
                found.setdefault(place, []).append((words[1], words[2]))
    return found


def _without(line: str, place: str) -> str | None:
    """The line without that place; None where nothing is left."""
    names, _, rest = line.partition(" ")
    if line.startswith(("#", "@", "|")) or place not in names.split(","):
        return line
    left = [name for name in names.split(",") if name != place]
    return f"{','.join(left)} {rest}" if left else None


def addressed(path: str) -> Room:
    """The room of an inventory file, of which at least one machine has an address.

    Raises:
        UsageError: the file is wrong, or no machine has one.
    """
    room = inventory.read(Path(path))
    if not any(entry.address not in ("", LOCAL) for entry in room.hosts):
        raise UsageError(f"{path}: no machine has an address", found="only descriptions", fix="write address = ...")
    return room
