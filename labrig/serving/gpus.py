"""The pool of a hub's GPUs: one id for one student. DockerSpawner would give every container the same (its issue 331).

Which ids are in use is asked of the engine, whose running containers carry them in a label, so a hub that was killed
knows it again. What the engine cannot show yet, spawns under way, is reserved here, by a single process: the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LABEL = "labrig.hub.gpu"  # of a student's container: the id of its GPU


@dataclass
class Pool:
    """Who has a GPU from us: the names of containers, each with its id."""

    reserved: dict[str, str] = field(default_factory=dict)

    def held(self) -> frozenset[str]:
        """The ids that are reserved now; ask before the engine is asked, and hand it to :meth:`take`."""
        return frozenset(self.reserved.values())

    def take(self, who: str, ids: Sequence[str], running: Mapping[str, str], held: frozenset[str]) -> str | None:
        """Reserve one of ``ids`` for the container ``who``; None where none is free.

        ``running`` is what the engine says: the names of running containers with a GPU, each with its id. That answer
        took time: ``held`` is what was reserved when it was asked for, so that neither a container which started
        meanwhile nor one whose reservation went meanwhile is missed. What ``who`` itself has left behind is its own
        again: a container of that name is removed before the new one is made.
        """
        if (mine := self.reserved.get(who)) in ids:
            return mine
        others = {gpu for name, gpu in running.items() if name != who}
        free = [gpu for gpu in ids if gpu not in others | held | self.held()]
        if not free:
            return None
        gpu = running[who] if running.get(who) in free else free[0]
        self.reserved[who] = gpu
        return gpu

    def give_back(self, who: str) -> None:
        """The server of ``who`` has ended, or never started. Where its container runs all the same, the engine
        shows it, and its id stays in use."""
        self.reserved.pop(who, None)
