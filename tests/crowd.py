"""A room of many machines without the machines: what an agent prints is made up for each, and `verify` does the rest.

python crowd.py CHECKOUT COUNT    prints how many hosts every form of the report has
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from labrig.fleet import FAILED, TIMEOUT, audit, facts, plan, report, ssh, wanted
from labrig.fleet.ssh import Ended
from labrig.host import Host
from labrig.inventory import Entry, Room

DEBIAN = Host("linux", "x86_64", os_version="Debian GNU/Linux 12", libc="glibc 2.36", python="3.11.2")
STATES = ("OK", "DRIFT", "FAILED", "TIMEOUT")  # of the first host, the second, ...
BEGIN = 'import sys; b = sys.stdin.buffer; exec(compile(b.read(int(b.readline())), "agent", "exec"))'


def rows_of(root: Path, count: int) -> list[report.Row]:
    """The rows of so many hosts, in turn whole, with an edited lab, babbling, and frozen."""
    entries = [
        Entry(f"pc{one:04}", None, "cpu", "", "", address=f"10.0.{one >> 8}.{one & 255}", engine="venv", user="admin")
        for one in range(count)
    ]
    room = Room(Path("room.toml"), tuple(entries), "", Path("known"))
    document = _document(root, room)

    def ask(
        room: Room, entries: Sequence[Entry], request: Callable[[Entry], Mapping[str, Any]], *, budget: float
    ) -> dict[str, Ended[facts.Facts]]:
        return {entry.name: _answer(document, number) for number, entry in enumerate(entries) if request(entry)}

    with patch.object(ssh, "ask", ask):
        return audit.ask(root, room, entries, budget=60)[0]


def _document(root: Path, room: Room) -> dict[str, Any]:
    """What the agent prints here of an empty folder, with a machine and a folder that has everything in their place."""
    source = Path(facts.__file__).with_name("agent.py").read_bytes()
    stdin = b"%d\n%b%b" % (len(source), source, json.dumps({"folder": "/nonexistent"}).encode())
    printed = subprocess.run([sys.executable, "-I", "-S", "-c", BEGIN], input=stdin, stdout=subprocess.PIPE, check=True)
    course = plan.prepare(root, room)
    want = course.wanted(course.table.targets["cpu"], "linux_x86_64", "venv")
    noted = {**plan.note(want), "date": "2026-01-01"}
    torch = {"version": report.wanted_torch(want), "cuda": None, "device": "cpu", "name": "", "error": ""}
    found: dict[str, Any] = json.loads(printed.stdout) | {
        "host": DEBIAN.to_json(), "system": "debian", "release": "12", "pythons": {"3.11": True}, "folder": "ours",
        "environments": {want.environment: {name: asdict(one) for name, one in want.packages.items()}},
        "labs": dict(want.labs), "start": wanted.start_digest(want), "applied": noted,
        "torch": {want.environment: torch},
    }  # fmt: skip
    return found


def _answer(document: dict[str, Any], number: int) -> Ended[facts.Facts]:
    how = STATES[number % len(STATES)]
    if how == "TIMEOUT":
        return Ended(None, TIMEOUT, "no answer within 60 s", seconds=60.0)
    own: dict[str, Any] = {"machine_id": f"m{number}"}
    if how == "DRIFT":
        own["labs"] = {**document["labs"], "01_one.py": "0" * 64}
    printed = json.dumps(document | own).encode()
    try:
        return Ended(facts.parse(printed[: len(printed) // 2] if how == "FAILED" else printed), seconds=1.0)
    except facts.Unreadable as error:
        return Ended(None, FAILED, f"printed no facts: {error}", seconds=1.0)


def forms(rows: Sequence[report.Row], root: Path) -> dict[str, str]:
    """The rows as the table, the page, JSON and JUnit's XML."""
    made = report.Report("room.toml", datetime.now(UTC), 1.0, tuple(rows))
    return {
        "text": report.text(rows), "html": report.html(made, root / "templates"), "json": json.dumps(made.to_json()),
        "xml": report.junit(made),
    }  # fmt: skip


def main() -> None:
    root = Path(sys.argv[1])
    rows = rows_of(root, int(sys.argv[2]))
    shown = forms(rows, root)
    print(min(sum(row.host in text for row in rows) for text in shown.values()))


if __name__ == "__main__":
    main()
