"""What a host lacks of what it should have, and why one is refused; nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass

from labrig.fleet.facts import Facts
from labrig.fleet.wanted import Wanted
from labrig.inventory import Entry

# In the order in which they are carried out.
KINDS = ("docker", "nvidia", "python", "folder", "image", "wheels", "environment", "labs", "start", "note")


@dataclass(frozen=True)
class Step:
    """One thing to change on a host. ``size``: bytes that go there; ``names``: what it is about (files, packages)."""

    kind: str
    what: str
    size: int = 0
    sudo: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A host, what it is and should have, and what is to be done. ``refused`` says why nothing can be done, ``fix``
    what a person does about it."""

    entry: Entry
    facts: Facts
    wanted: Wanted | None
    steps: tuple[Step, ...]
    refused: str = ""
    fix: str = ""

    @property
    def size(self) -> int:
        """Bytes that go to the host."""
        return sum(step.size for step in self.steps)
