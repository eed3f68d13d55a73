"""A room of machines: reached over ssh, compared with what they should have, and brought there; docs/rooms.md.

    inventory   which machines (labrig.inventory)
    ssh         pyinfra as a library: a greenlet and a budget of time a host, so that it costs its own row only
    agent       runs on a host, standard library only: one JSON document of facts
    facts       that document, checked: a host may say anything
    wanted      what a host should have
    plan        what is missing: steps, bytes, refusals
    steps       the pyinfra operations that carry a step out
    apply       all hosts: retries, the record of the last run, the live table
    report      rows: text, JSON, JUnit, HTML
    keys        host keys, and machines that are clones
    cache       the room's registry cache: warmed, asked, and how many hosts pull at once
    mirror      its configuration, and what engines need to use it
    ansible     Ansible's inventories, taken over
    playbook    a room as an Ansible inventory and a playbook

pyinfra, paramiko and gevent are the extra `labrig[fleet]` and are imported where they are used: by ssh and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# What a row's state can be.
OK, DRIFT, FAILED, UNREACHABLE, TIMEOUT = "OK", "DRIFT", "FAILED", "UNREACHABLE", "TIMEOUT"
STATES = (OK, DRIFT, FAILED, UNREACHABLE, TIMEOUT)


@dataclass(frozen=True)
class Answer:
    """What a command on a host said."""

    code: int
    out: str
    error: str


class Connection(Protocol):
    """A host that was reached; it is used in its own greenlet only, by the work that was given it.

    A method raises ``ssh.Failure`` where the host refuses or breaks off; the budget ends whatever hangs.
    """

    name: str
    budget: float  # seconds that all of the work has

    def probe(self, request: Mapping[str, Any], *, timeout: float = 0.0) -> bytes:
        """Run the agent there, in one round trip: what it printed, not yet read (facts.parse does that).

        Within so many seconds; 0: the budget alone ends it."""

    def run(self, script: str, *, stdin: bytes = b"", sudo: bool = False, timeout: float = 60.0) -> Answer:
        """Run a shell script (its text goes to ``sh``, nothing secret belongs in it), as root with ``sudo``."""

    def send(self, source: Path | bytes, to: str, *, mode: int = 0o644, timeout: float = 600.0) -> None:
        """Put a file there under its final name when it is whole; the user's own files, no sudo."""

    def operate(self, operation: Any, *, timeout: float, sudo: bool = False, **arguments: Any) -> bool:
        """Carry out a pyinfra operation; whether it changed anything. Raises Failure with what it said."""


@dataclass(frozen=True)
class Row:
    """One host in the table of plan, apply and verify; what is not known is empty."""

    host: str
    room: str = ""
    target: str = ""
    state: str = ""
    torch_want: str = ""
    torch_have: str = ""
    device: str = ""
    image: str = ""
    labs: str = ""
    disk: str = ""
    why: str = ""
    fix: str = ""  # the command that mends it
    seconds: float = 0.0
    changes: tuple[str, ...] = ()  # what was or would be changed there
    size: int = 0  # bytes that go to it
    engine: str = ""
