"""What containers and processes hold in memory, and how much CPU they have used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker.models.containers import Container

MIB = 1 << 20
EVERY = 0.2  # seconds between two looks for a peak


@dataclass(frozen=True)
class Memory:
    """Bytes of a container, by its cgroup: ``own`` cannot be taken back, ``shared`` is the part of it in /dev/shm and
    other tmpfs, ``files`` is page cache, which Linux drops when it needs the room."""

    own: int
    shared: int
    files: int


def memory(container: Container) -> Memory:
    """What it holds now: the lists of memory.stat, which are the same in both kinds of cgroup (kernel,
    cgroup-v1/memory.rst and cgroup-v2.rst); tmpfs and /dev/shm are on the anonymous ones."""
    held = container.stats(stream=False, one_shot=True)["memory_stats"]["stats"]

    def of(kind: str) -> int:
        return sum(int(held.get(f"total_{one}_{kind}", held[f"{one}_{kind}"])) for one in ("active", "inactive"))

    private = int(held["anon"] if "anon" in held else held["total_rss"])
    return Memory(of("anon"), max(0, of("anon") - private), of("file"))


def cpu_seconds(container: Container) -> float:
    """CPU seconds since it started."""
    return float(container.stats(stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9


@contextmanager
def watched(container: Container) -> Iterator[list[Memory]]:
    """Look every now and then at what it holds; the list is all that was seen."""
    seen, over = [memory(container)], threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            seen.append(memory(container))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def proportional(number: int) -> int | None:
    """PSS of a process in bytes: its own memory, and its share of what it shares (proc(5), smaps_rollup); None where
    only root may look."""
    try:
        text = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def resident(number: int) -> int:
    """RSS of a process, in bytes."""
    return int(Path(f"/proc/{number}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def used(number: int) -> float:
    """CPU seconds of a process, its children not counted (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(number: int) -> dict[int, str]:
    """All processes below one, with their command lines."""
    found: dict[int, str] = {}
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
                said = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            parents[int(place.name)] = (int(fields[1]), said)
    fresh = {number}
    while fresh:
        fresh = {one for one, (parent, _) in parents.items() if parent in fresh}
        found |= {one: parents[one][1] for one in fresh}
    return found
