"""What a student waits for: from `invoke start` to a JupyterLab that answers, and to a first cell that uses torch."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import kernel
from bench.clock import INVOKE, ROOT, forget, run
from bench.images import TENSOR, target
from labrig import daemon, environment, home


def bench_start(runs: int) -> str:
    """Medians, warm and cold, of each engine that can serve here, in Markdown."""
    name, engine = target().name, daemon.ask()
    said, engines = [], []
    if engine.version:
        engines.append("docker")
    else:
        said.append(f"In an image it was not measured: {engine.why_not}.")
    if os.getuid():
        engines.append("venv")
    else:
        said.append("A native one was not measured: root gets none.")
    for one in engines:
        environment.build(ROOT, name, one)
    with tempfile.TemporaryDirectory(prefix="labrig-bench-") as folder:
        cache, work = Path(folder, "cache"), Path(folder, "work")
        cache.mkdir()
        for part in home.root().iterdir():  # all but the servers, of which a person may have one running
            if part.name != home.servers().name:
                (cache / part.name).symlink_to(part)

        def fresh() -> None:
            shutil.rmtree(work, ignore_errors=True)
            forget()

        ways = {
            (one, words): prepare
            for one in engines
            for words, prepare in (
                ("the labs are there", lambda: None),
                ("a new folder, nothing in the disk cache", fresh),
            )
        }
        for one in engines:
            _seconds(cache, work, name, one)  # so that the first run of "there" is one
        found = _measure(ways, lambda one: _seconds(cache, work, name, one), runs)
    lines = ["| `invoke start` | until it answers, s | until the first cell has run, s |", "|---|---|---|"]
    lines += [
        f"| {one}, {words} | {_spread([a for a, _ in times])} | {_spread([b for _, b in times])} |"
        for (one, words), times in found.items()
    ]
    return "\n".join([*lines, "", *said]) if said else "\n".join(lines)


def _measure(
    ways: dict[tuple[str, str], Callable[[], None]], way: Callable[[str], tuple[float, float]], runs: int
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in ways}
    for number in range(runs):
        for (engine, words), prepare in ways.items():
            print(f"  {number + 1}/{runs} invoke start, {engine}, {words}", file=sys.stderr, flush=True)
            prepare()
            found[engine, words].append(way(engine))
    return found


def _seconds(cache: Path, work: Path, name: str, engine: str) -> tuple[float, float]:
    """Seconds until `invoke start` has printed its address, and until a cell has run; it is stopped afterwards."""
    variables = {"LABRIG_CACHE": str(cache)}
    command = [str(INVOKE), "start", f"--target={name}", f"--engine={engine}", f"--folder={work}", "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )
    answered = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    try:
        kernel.execute(json.loads(done.stdout)["url"], TENSOR)
        return answered, time.perf_counter() - began
    finally:
        run(INVOKE, "stop", **variables)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
