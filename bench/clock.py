"""The clock of the benchmarks: ways to do a thing, run in turn, with wall and CPU seconds."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
INVOKE = Path(sys.executable).with_name("invoke")


@dataclass(frozen=True)
class Timing:
    """Wall and CPU seconds of one way to do a thing, run by run."""

    name: str
    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall)


def measure(ways: dict[str, Callable[[], None]], runs: int, *, everything: bool = False) -> list[Timing]:
    """Run the ways in turn, ``runs`` times each; ``everything`` counts the CPU seconds of the whole machine, daemons
    included, and not only those of this process and its children."""
    clock = _machine_seconds if everything else _cpu_seconds
    timings = {name: Timing(name, [], []) for name in ways}
    for number in range(runs):
        for name, way in ways.items():
            print(f"  {number + 1}/{runs} {name}", file=sys.stderr, flush=True)
            before, began = clock(), time.perf_counter()
            way()
            timings[name].wall.append(time.perf_counter() - began)
            timings[name].cpu.append(clock() - before)
    return list(timings.values())


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def _machine_seconds() -> float:
    """CPU seconds that all processes have used: user, nice, system and interrupts of proc(5), stat."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def forget() -> None:
    """As after a start of the machine: Linux is asked to forget what it has read (proc(5), drop_caches; needs root)."""
    with contextlib.suppress(OSError):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run a command quietly, and give what it says on stdout; a failure ends the benchmark with what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
