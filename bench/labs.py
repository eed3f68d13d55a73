"""The labs against their limits, and against other ways of using two cores: `python -m bench labs [--write]`.

Every figure is of one run of the runner in the native environment; the ways of running them take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.clock import ROOT, Timing, measure
from labrig import environment
from labs import check

# Issue 5: what every lab, and the whole set, must hold on two cores of a CPU.
LAB_CPU_S, LAB_MIB, SET_CPU_MIN, QUICK_S, IMPORT_MS, REPORT_MB = 60, 1024, 8, 90, 50, 5
MISSED = "**no**"
SOME = ("04", "05", "10", "14")  # for the comparison of ways: of middling length, of all kinds of work
IMPORT = (
    "import sys, time; sys.path.insert(0, 'labs'); began = time.process_time(); import harness; "
    "print(1e3 * (time.process_time() - began))"
)


def bench_labs(runs: int) -> str:
    """The figures in Markdown."""
    python = Path(environment.build(ROOT, engine="venv").reference, "bin", "python")
    with tempfile.TemporaryDirectory(prefix="labrig-bench-") as folder:
        full, full_s = run_set(python, Path(folder, "full"))
        _, quick_s = run_set(python, Path(folder, "quick"), "--quick")
        report_mb = Path(folder, "full", "report.html").stat().st_size / 1e6
        records = {lab["lab"]: check.read_record(Path(folder, "full", lab["lab"])) for lab in full}
        memory = {lab["lab"]: max(lab["peak_mib"], records[lab["lab"]]["memory"]["peak_rss_mib"]) for lab in full}
        ways = bench_ways(python, Path(folder, "ways"), runs)
    imports = [float(subprocess.check_output([python, "-c", IMPORT], cwd=ROOT, text=True)) for _ in range(10)]
    cpu_min = sum(record["time"]["cpu_s"] for record in records.values()) / 60
    lines = [
        "| lab | CPU s | wall s | MiB | nearest gate |", "|---|---|---|---|---|",
        *(lab_row(name, record, memory[name]) for name, record in records.items()), "",
        "| limit | held | figure |", "|---|---|---|",
        limit(f"each lab at most {LAB_CPU_S} CPU s", max(r["time"]["cpu_s"] for r in records.values()), LAB_CPU_S, "s"),
        limit(f"each lab at most {LAB_MIB} MiB, with the processes it starts", max(memory.values()), LAB_MIB, "MiB"),
        limit(f"the whole set at most {SET_CPU_MIN} CPU minutes", cpu_min, SET_CPU_MIN, f"min, {full_s:.0f} s of wall"),
        limit(f"the whole set with `--quick` under {QUICK_S} s", quick_s, QUICK_S, "s of wall"),
        limit(f"import of harness.py at most {IMPORT_MS} ms", statistics.median(imports), IMPORT_MS, "CPU ms, median"),
        limit(f"report at most {REPORT_MB} MB", report_mb, REPORT_MB, "MB"), "",
        f"| labs {', '.join(SOME)} with | wall s, median (min-max) | times faster |", "|---|---|---|",
        *(f"| {way.name} | {way.median:.0f} ({min(way.wall):.0f}-{max(way.wall):.0f}) | "
          f"{ways[-1].median / way.median:.1f} |" for way in ways),
    ]  # fmt: skip
    return "\n".join(lines)


def run_set(python: Path, out: Path, *flags: str) -> tuple[list[dict[str, Any]], float]:
    """`python -m labs run`: the results, and the seconds on the wall. Fails if a lab does."""
    command = [python, "-m", "labs", "run", "--device", "cpu", "--out", out, "--json", "--progress", "off", *flags]
    began = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    return json.loads(done.stdout), time.perf_counter() - began


def bench_ways(python: Path, folder: Path, runs: int) -> list[Timing]:
    """Two cores can run two labs of one thread each, or one lab of two threads, which is torch's own default."""
    count = 0

    def way(*flags: str) -> None:
        nonlocal count
        count += 1  # a folder of its own each time, so that nothing is reused
        run_set(python, folder / str(count), *SOME, *flags)

    return measure(
        {
            "two labs at a time, one thread each (the default)": lambda: way("--jobs", "2", "--threads", "1"),
            "one lab at a time, one thread": lambda: way("--jobs", "1", "--threads", "1"),
            "one lab at a time, two threads": lambda: way("--jobs", "1", "--threads", "2"),
        },
        runs,
    )


def lab_row(name: str, record: dict[str, Any], mib: float) -> str:
    """The gate with the least room, counted in the distance between its baseline, or 0, and its limit."""

    def room(gate: dict[str, Any]) -> float:
        entry = record["baselines"].get(gate["baseline"] or "", {"value": 0.0})
        scale = abs(gate["limit"] - entry["value"]) or abs(gate["limit"]) or 1.0
        return float(gate["margin"] / scale)

    gates = [gate for gate in record["gates"] if not gate["exact"]] or record["gates"]
    gate = min(gates, key=room)
    text = f"`{gate['id']}`: {gate['value']:.4g} {gate['op']} {gate['limit']:.4g}"
    return (f"| `{name}` | {record['time']['cpu_s']:.0f} | {record['time']['wall_s']:.0f} | "
            f"{mib:.0f} | {text} |")  # fmt: skip


def limit(text: str, value: float, bound: float, unit: str, *, least: bool = False) -> str:
    """A row of "limit | held | figure"; ``bound`` is the most that is held, or the least."""
    held = value >= bound if least else value <= bound
    return f"| {text} | {'yes' if held else MISSED} | {value:.3g} {unit} |"
