"""`make bench`: labrig against what a user would do instead, in one run, alternating, with medians and ratios.

Other work on the machine moves absolute times; the ratios hold because both sides run in turn (A B A B ...).

    python -m bench [--runs 3] [--write]      --write puts the table into docs/measured.md
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labrig import environment, home, interpreters, wheelhouse
from labrig.engines import venv
from labrig.files import write_atomically

ROOT = Path(__file__).parents[1]
INVOKE = Path(sys.executable).with_name("invoke")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


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


def run(*command: str | Path, **variables: str) -> None:
    """Run a command quietly; a failure ends the benchmark with what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def bench_environment(runs: int) -> list[Timing]:
    """A native environment from wheels at hand: labrig twice (wheels unpacked before or not), pip in a venv once."""
    todo = environment.plan(ROOT)
    environment.fetch(todo.table, todo.target, todo.lock)
    python = interpreters.find(todo.target.python)
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder:
        links, scratch = Path(folder, "links"), Path(folder, "cache")
        wheelhouse.link_folder(todo.lock.wheels, home.wheels(), links)
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(venv.requirements_text(todo.lock), encoding="utf-8")
        scratch.mkdir()
        # The same wheelhouse for the labrig runs, but unpacked copies and environments of their own.
        (scratch / "wheels").symlink_to(home.wheels())
        made = scratch / "envs"

        def labrig_unpacking() -> None:
            shutil.rmtree(scratch / "uv", ignore_errors=True)
            shutil.rmtree(made, ignore_errors=True)
            run(INVOKE, "build", "--target", todo.target.name, "--offline", LABRIG_CACHE=str(scratch))

        def labrig_unpacked() -> None:
            shutil.rmtree(made)
            run(INVOKE, "build", "--target", todo.target.name, "--offline", LABRIG_CACHE=str(scratch))

        def pip(*flags: str) -> None:
            place = Path(folder, "pip")
            shutil.rmtree(place, ignore_errors=True)
            run(python, "-m", "venv", place)
            run(
                place / "bin" / "pip", "install", "--no-deps", "--no-index", "--find-links", links,
                "--require-hashes", "--only-binary", ":all:", "-r", requirements, *flags,
            )  # fmt: skip

        return measure(
            {
                "labrig build, wheels at hand, unpacked once before": _after(labrig_unpacking, labrig_unpacked),
                "labrig build, wheels at hand, never unpacked": labrig_unpacking,
                "python -m venv + pip install --no-compile, the same wheels": lambda: pip("--no-compile"),
                "python -m venv + pip install, the same wheels": pip,
            },
            runs,
        )


def _after(first: Callable[[], None], then: Callable[[], None]) -> Callable[[], None]:
    """``then``, with ``first`` done once before, outside the clock."""
    first()
    return then


def bench_commands(runs: int) -> list[Timing]:
    """What a person waits for when nothing is to be done."""
    run(INVOKE, "build")
    return measure(
        {
            "invoke build, nothing changed": lambda: run(INVOKE, "build"),
            "invoke list": lambda: run(INVOKE, "list"),
            "invoke --list (Invoke itself)": lambda: run(INVOKE, "--list"),
        },
        runs,
    )


def table(environments: list[Timing], commands: list[Timing]) -> str:
    """The figures in Markdown."""
    reference = environments[-1].median
    lines = ["| what | wall s, median (min-max) | CPU s | times faster |", "|---|---|---|---|"]
    for timing in environments:
        ratio = f"{reference / timing.median:.1f}" if timing is not environments[-1] else "1"
        lines.append(f"{_row(timing)} {ratio} |")
    lines += [f"{_row(timing)} - |" for timing in commands]
    return "\n".join(lines)


def _row(timing: Timing) -> str:
    spread = f"{timing.median:.2f} ({min(timing.wall):.2f}-{max(timing.wall):.2f})"
    return f"| {timing.name} | {spread} | {statistics.median(timing.cpu):.1f} |"


def main() -> None:
    """Measure, print, and with --write keep the figures."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each way; medians are of these (default 3)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    options = parser.parse_args()
    text = table(bench_environment(options.runs), bench_commands(max(5, options.runs)))
    target = environment.plan(ROOT)
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"target {target.target.name} ({len(target.lock.wheels)} wheels, {target.lock.size / 1e6:.0f} MB), "
        f"{options.runs} runs each in turn"
    )
    print(f"{where}\n\n{text}")
    if options.write:
        page = ROOT / "docs" / "measured.md"
        old = page.read_text(encoding="utf-8")
        head, tail = old[: old.index(BEGIN)], old[old.index(END) :]
        write_atomically(page, f"{head}{BEGIN}\n{where}\n\n{text}\n{tail}")


if __name__ == "__main__":
    main()
