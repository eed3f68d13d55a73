"""The labs on every host of a room, quickly, and what they measured there side by side.

A host runs the labs' own runner in its environment or image, in a folder that is removed; its JSON (labs/README.md)
comes back over ssh. What a lab measures is the same everywhere but for rounding, so a host whose number lies apart
from the room's median has something wrong that no digest shows: memory, a driver, a clocked-up card.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labrig import image
from labrig.fleet.facts import Unreadable
from labrig.fleet.report import clean
from labrig.fleet.wanted import Wanted
from labrig.inventory import Entry

COLUMNS = ("host", "lab", "metric", "value", "room's median")
LARGEST = 1e100
MOST = 4 << 20  # bytes of results
RELATIVE, ABSOLUTE = 0.10, 0.02  # how far from the median a value may be: training amplifies how a CPU rounds
GRACE = 5  # seconds before the host's budget ends in which the runner is stopped there
# Units of what differs from machine to machine: speeds and times, and ratios of them (labs/*.py).
OF_THE_MACHINE = ("ms", "seconds", "times", "GB/s", "GFLOP/s", "MiB")
GOOD = ("passed", "skipped")


@dataclass(frozen=True)
class Lesson:
    """How a lab ended on a host. ``metrics`` are those that can be compared."""

    status: str
    reason: str
    seconds: float
    metrics: Mapping[str, float]
    missed: tuple[str, ...]  # exact gates


@dataclass(frozen=True)
class Outlier:
    """A number that is not the room's."""

    host: str
    lab: str
    metric: str
    value: float
    median: float


@dataclass(frozen=True)
class Comparison:
    """What the labs of a room said. ``hosts`` holds a host's labs by their ids."""

    hosts: Mapping[str, Mapping[str, Lesson]]
    outliers: tuple[Outlier, ...]

    def to_json(self) -> dict[str, Any]:
        """``labs`` in the document of `verify --inventory --labs=quick`; what is no number is null."""
        outliers = [asdict(one) | {"value": one.value if math.isfinite(one.value) else None} for one in self.outliers]
        return {
            "hosts": {
                name: {"seconds": round(sum(one.seconds for one in labs.values()), 1),
                       **{lab: one.status for lab, one in labs.items()}}
                for name, labs in self.hosts.items()
            },
            "outliers": outliers,
        }  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The outliers for people; see COLUMNS."""
        return [(one.host, one.lab, one.metric, f"{one.value:.6g}", f"{one.median:.6g}") for one in self.outliers]

    def tally(self) -> str:
        """What was compared, in a line."""
        count = sum(len(labs) for labs in self.hosts.values())
        apart = len({one.host for one in self.outliers})
        words = f"{apart} of them with numbers that are not the room's" if apart else "all with the room's numbers"
        return f"labs: {count} runs on {len(self.hosts)} hosts, {words}"


def script(entry: Entry, wanted: Wanted, seconds: float) -> str:
    """What a host runs: the labs quickly, results on stdout, nothing left behind.

    The runner gets an alarm that outlives its exec, so that it ends in time also when nobody listens any more; its
    labs end with it.
    """
    alarm = (
        "import os,signal,sys; signal.alarm(int(sys.argv[1])); os.execv(sys.executable,[sys.executable,*sys.argv[2:]])"
    )
    limit = str(max(1, int(seconds) - GRACE))
    run = ["-c", alarm, limit, "-m", "labs", "run", "--quick", "--progress", "off", "--json", "--out"]
    if wanted.image:
        gpus = ["--gpus", "all"] if wanted.target.device == "cuda" else []
        command = ["docker", "run", "--rm", "--init", "--network", "none", "--shm-size", "1g", *gpus,
                   "--workdir", str(image.LABS), wanted.image.image, image.PYTHON, *run, "/tmp/out"]  # noqa: S108 # fmt: skip
        return f"exec {shlex.join(command)}\n"
    python = f"{entry.folder}/envs/{wanted.environment}/bin/python"
    return (
        "set -u\n"
        "out=$(mktemp -d) || exit 1\ntrap 'rm -rf \"$out\"' EXIT\ntrap 'exit 130' HUP INT TERM\n"
        f'mkdir "$out/tmp" && cd {shlex.quote(entry.folder)} || exit 1\n'
        # What torch compiles goes to the temporary folder as well.
        f'TMPDIR="$out/tmp" PYTHONDONTWRITEBYTECODE=1 {shlex.join([python, *run])} "$out/labs" </dev/null\n'
    )


def read(printed: str) -> dict[str, Lesson]:
    """What the runner printed. Raises Unreadable."""
    if len(printed) > MOST:
        raise Unreadable(f"{len(printed)} characters")
    try:
        labs = json.loads(printed)
        if not isinstance(labs, list) or not labs:
            raise ValueError("no list of labs")
        return {clean(one["lab"], 40): _lesson(one) for one in labs}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unreadable(clean(repr(printed[:80]))) from None


def _lesson(data: Mapping[str, Any]) -> Lesson:
    metrics = {
        clean(name, 60): _number(one["value"])
        for name, one in data["metrics"].items()
        if not str(one["unit"]).startswith(OF_THE_MACHINE)
    }
    missed = tuple(clean(gate["id"], 60) for gate in data["gates"] if gate["exact"] is True and not gate["passed"])
    seconds = _number(data["seconds"])
    if not seconds >= 0:
        raise ValueError("a time that is none")
    return Lesson(clean(data["status"], 20), clean(data["reason"] or ""), seconds, metrics, missed)


def _number(value: Any) -> float:
    """NaN for whatever JSON has no number for, and for what is too large to reckon with."""
    if value is None:
        return math.nan
    return float(value) if abs(value) < LARGEST else math.nan


def failed(why: str) -> dict[str, Lesson]:
    """What is known of a host where the runner itself did not end well."""
    return {"all": Lesson("error", clean(why) or "no results", 0.0, {}, ())}


def compare(hosts: Mapping[str, Mapping[str, Lesson]]) -> Comparison:
    """Name every number that lies apart from the room's median, by host, lab and metric; it takes two hosts."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for host, labs in hosts.items():
        for lab, lesson in labs.items():
            for metric, value in lesson.metrics.items():
                values.setdefault((lab, metric), {})[host] = value
    outliers = []
    for (lab, metric), found in values.items():
        numbers = [value for value in found.values() if math.isfinite(value)]
        if len(found) < 2 or not numbers:
            continue
        middle = statistics.median(numbers)
        allowed = max(ABSOLUTE, RELATIVE * abs(middle))
        outliers += [
            Outlier(host, lab, metric, value, middle)
            for host, value in found.items()
            if not abs(value - middle) <= allowed  # nan is no number of the room's either
        ]
    return Comparison(hosts, tuple(sorted(outliers, key=lambda one: (one.host, one.lab, one.metric))))


def complaint(labs: Mapping[str, Lesson]) -> str:
    """Which labs of a host did not end well, and why; empty where all did."""
    words = []
    for lab, lesson in labs.items():
        if lesson.status not in GOOD:
            why = f"missed {', '.join(lesson.missed)}" if lesson.missed else lesson.reason or lesson.status
            words.append(f"{lab}: {why}")
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return f"labs: {'; '.join(words[:3])}{more}" if words else ""


def apart(outliers: Sequence[Outlier], host: str) -> str:
    """The first number of a host that is not the room's, in words; empty where there is none."""
    own = [one for one in outliers if one.host == host]
    if not own:
        return ""
    more = f" and {len(own) - 1} more" if len(own) > 1 else ""
    return f"{own[0].lab} {own[0].metric} is {own[0].value:.4g}, the room's median {own[0].median:.4g}{more}"
