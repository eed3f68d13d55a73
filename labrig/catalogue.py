"""`invoke list`: every target with what is pinned and what follows from the pins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labrig import engines, lock, support
from labrig.spec import Table

COLUMNS = ("target", "torch", "Python", "engines", "needs", "locked for")
WRAPPED = COLUMNS[-2:]
NOTE = "On Windows: the Linux targets, inside WSL2. `invoke doctor` says which of these this machine can run, and why."


def entries(table: Table) -> list[dict[str, Any]]:
    """One dictionary a target, in the order of the table; the form of ``invoke list --json``."""
    images = table.path.parent
    return [
        {
            "name": target.name,
            "torch": target.torch,
            "variant": target.variant,
            "cuda": target.cuda,
            "python": target.python,
            "device": target.device,
            "engines": list(target.engines),
            "platforms": list(target.platforms),
            "min_driver": target.min_driver,
            "capabilities": list(target.capabilities),
            "locked": list(lock.locked_platforms(target, images)),
            "support": {
                one.engine: {"status": one.status, "why": one.why}
                for one in (support.line(target, engine) for engine in engines.MODULES)
            },
        }
        for target in table.targets.values()
    ]


def rows(table: Table) -> list[tuple[str, ...]]:
    """The same for people; a platform whose lock is stale or missing is shown as such."""
    images = table.path.parent
    words = {"locked": "{}", "stale": "({}: stale)"}
    return [
        (
            entry["name"],
            f"{entry['torch']} {entry['variant']}",
            entry["python"],
            " ".join(entry["engines"]),
            _needs(entry),
            " ".join(words.get(lock.status(target, p, images), "({}: not locked)").format(p) for p in target.platforms),
        )
        for target, entry in zip(table.targets.values(), entries(table), strict=True)
    ]


def support_rows(table: Table) -> list[tuple[str, ...]]:
    """What each target and engine is known to do, a line each."""
    return [(line.target, line.engine, line.status, line.why) for line in support.lines(table)]


def _needs(entry: Mapping[str, Any]) -> str:
    if not entry["cuda"]:
        return "Apple Silicon" if entry["device"] == "mps" else "no GPU"
    return f"driver >= {entry['min_driver']} for CUDA {entry['cuda']}; GPU of {' '.join(entry['capabilities'])}"
