"""The clock of the benchmarks: ways to do a thing, run in turn, with wall and CPU seconds."""

from __future__ import annotations

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


def measure(ways: dict[str, Callable[[], None]], runs: int) -> list[Timing]:
    """Run the ways in turn, ``runs`` times each."""
    timings = {name: Timing(name, [], []) for name in ways}
    for number in range(runs):
        for name, way in ways.items():
            print(f"  {number + 1}/{runs} {name}", file=sys.stderr, flush=True)
            before, began = _cpu_seconds(), time.perf_counter()
            way()
            timings[name].wall.append(time.perf_counter() - began)
            timings[name].cpu.append(_cpu_seconds() - before)
    return list(timings.values())


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command quietly; a failure ends the benchmark with what it printed."""
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
