"""Reaching hosts: pyinfra as a library, one greenlet and one budget of time a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from labrig.fleet import Connection
from labrig.inventory import Entry, Room

T = TypeVar("T")
PARALLEL = 60  # hosts at once


class Failure(Exception):
    """Why the work on a host ended: the row's state, the reason, and the command that mends it."""

    def __init__(self, state: str, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.state, self.why, self.fix = state, why, fix


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How the work on one host ended: its value, or a state with a reason; after how many seconds."""

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
    parallel: int = PARALLEL,
    ended: Callable[[Entry, Ended[T]], None] = lambda entry, how: None,
) -> dict[str, Ended[T]]:
    """Do the work on every host, side by side; nothing that one host does, or does not, costs another its row.

    ``budget`` is in seconds for a host, from the moment it gets its turn; ``ended`` is told of each when it is through.
    The result has every entry, by name, whatever happened. Connections are closed.

    Raises:
        HostError: the extra labrig[fleet] is not installed.
        Interrupted: Ctrl-C, after connections were closed.
    """
    raise NotImplementedError
