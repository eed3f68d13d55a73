"""`make bench`: labrig against what a user would do instead, in one run, alternating, with medians and ratios.

Other work on the machine moves absolute times; the ratios hold because both sides run in turn (A B A B ...).

    python -m bench [environments | layers | labs | doctor | publishing | start | fleet | hub] [--runs 3] [--write]

--write puts the tables into docs/measured.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import fleet, hub, images, labs, layers, publishing, start
from bench.clock import INVOKE, ROOT, Timing, forget, measure, run
from labrig import daemon, environment, home, interpreters, wheelhouse
from labrig.engines import venv
from labrig.files import write_atomically

PARTS = (
    "environments",
    "layers",
    "labs",
    "doctor",
    "publishing",
    "start",
    "fleet",
    "hub",
)  # each between its marks in docs/measured.md


def bench_environment(runs: int) -> list[Timing]:
    """A native environment from wheels at hand: labrig twice (wheels unpacked before or not), pip in a venv once."""
    todo = environment.plan(ROOT, engine="venv")
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

        def build() -> None:
            here = ["--target", todo.target.name, "--engine", "venv", "--offline"]
            run(INVOKE, "build", *here, LABRIG_CACHE=str(scratch))

        def labrig_unpacking() -> None:
            shutil.rmtree(scratch / "uv", ignore_errors=True)
            shutil.rmtree(made, ignore_errors=True)
            build()

        def labrig_unpacked() -> None:
            shutil.rmtree(made)
            build()

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
    run(INVOKE, "build", "--engine=venv")
    return measure(
        {
            "invoke build --engine=venv, nothing changed": lambda: run(INVOKE, "build", "--engine=venv"),
            "invoke list": lambda: run(INVOKE, "list"),
            "invoke --list (Invoke itself)": lambda: run(INVOKE, "--list"),
        },
        runs,
    )


def bench_doctor(runs: int) -> str:
    """Verdicts, against the start of Python and of Invoke alone, in Markdown."""
    timings = measure(
        {
            "invoke doctor": lambda: run(INVOKE, "doctor"),
            "invoke doctor, nothing in the disk cache": cold_doctor,
            'invoke doctor --for="GTX 1080"': lambda: run(INVOKE, "doctor", "--for=GTX 1080"),
            "invoke select": lambda: run(INVOKE, "select"),
            "invoke --list (Invoke itself)": lambda: run(INVOKE, "--list"),
        },
        max(5, runs),
    )
    return "\n".join(["| what | wall s, median (min-max) | CPU s |", "|---|---|---|", *map(_row, timings)])


def cold_doctor() -> None:
    """As after a start of the machine."""
    forget()
    run(INVOKE, "doctor")


def table(environments: list[Timing], commands: list[Timing]) -> str:
    """The figures in Markdown; ratios are against the last way of ``environments``."""
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


def bench_environments(runs: int) -> str:
    """Environments and images, in Markdown."""
    text = table(bench_environment(runs), bench_commands(max(5, runs)))
    engine = daemon.ask()
    if not engine.version:
        return f"{text}\n\nImages were not measured: {engine.why_not}."
    builds, sizes = images.bench_builds(runs)
    text += f"\n\nDocker {engine.version}; the same base, wheels and lock on both sides\n\n"
    text += table(builds, images.bench_work(runs))
    own, plain = sizes.values()
    return f"{text}\n\nImage sizes, unpacked: labrig's {own / 1e9:.2f} GB, the plain one {plain / 1e9:.2f} GB."


def main() -> None:
    """Measure, print, and with --write keep the figures."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part alone; without it all")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way; medians are of these (default 3)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/measured.md")
    options = parser.parse_args()
    todo = environment.plan(ROOT, engine="venv")
    measured = {
        "environments": bench_environments,
        "layers": layers.bench_layers,
        "labs": labs.bench_labs,
        "doctor": bench_doctor,
        "publishing": publishing.bench_publishing,
        "start": start.bench_start,
        "fleet": fleet.bench_fleet,
        "hub": hub.bench_hub,
    }
    for part in [options.part] if options.part else PARTS:
        # A room's machines get an environment of their own, which the part describes.
        applied = (
            f"target {todo.target.name} ({len(todo.lock.wheels)} wheels, {todo.lock.size / 1e6:.0f} MB), "
            if part != "fleet"
            else "3 tiny wheels and 4 lab files on each host, "
        )
        where = (
            f"{datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {applied}"
            f"{options.runs} run{'s' * (options.runs > 1)} each in turn"
        )
        text = f"{where}\n\n{measured[part](options.runs)}"
        print(f"{text}\n")
        if options.write:
            keep(part, text)


def keep(part: str, text: str) -> None:
    """Put it between the part's marks in docs/measured.md."""
    page = ROOT / "docs" / "measured.md"
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    old = page.read_text(encoding="utf-8")
    write_atomically(page, f"{old[: old.index(begin)]}{begin}\n{text}\n{old[old.index(end) :]}")


if __name__ == "__main__":
    main()
