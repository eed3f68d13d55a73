"""The main job, `make up`: lock check, fetch, build, labs, verify for the target that fits this host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import checks, environment, labs
from labrig.engines import Environment
from labrig.errors import LabrigError
from labrig.verify import Record, tally, verify


@dataclass(frozen=True)
class Summary:
    """What came of it; ``failure`` is the first error that did not stop the rest."""

    environment: Environment
    labs: list[dict[str, Any]]
    record: Record
    report: Path
    quick: bool
    failure: LabrigError | None

    def row(self) -> tuple[str, ...]:
        """The one line of the closing table."""
        target = self.environment.target
        good = sum(lab["status"] in labs.GOOD for lab in self.labs)
        record = self.record
        device = next((r for r in record.checks if r.id == "device"), None)
        seen = target.device if device and device.status == checks.PASSED else f"cpu ({target.device} absent)"
        torch = next((r.found for r in record.checks if r.id == "torch"), "")
        return (
            target.name,
            self.environment.engine,
            torch,
            seen,
            f"{good} of {len(self.labs)} passed{', quick' * self.quick}",
            tally(record),
        )

    def to_json(self) -> dict[str, object]:
        """The form of ``invoke up --json``."""
        return {"labs": self.labs, "verify": self.record.to_json(), "report": str(self.report)}


COLUMNS = ("target", "engine", "torch", "device", "labs", "checks")


def up(
    root: Path,
    name: str | None = None,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
    quick: bool = False,
    force: bool = False,
) -> Summary:
    """Do all of it, saying each step on stderr. A missed gate does not hide what verify has to say.

    Raises:
        LabrigError: whatever stopped it before the environment stood.
    """
    engine, why = environment.usable_engine(root, name)
    todo = environment.plan(root, name, engine, force=force)
    _say(f"target {todo.target.name}: {todo.finding.verdict} here ({todo.finding.reason})")
    _say(f"engine {todo.engine}: {why or _why_first(todo)}")
    amount = "" if todo.engine == "conda" else f", {len(todo.lock.wheels)} wheels, {todo.lock.size / 1e6:.0f} MB"
    _say(f"lock   {todo.lock.platform}: current{amount}")
    made = environment.take(todo, overrides=overrides, offline=offline)
    _say(f"built  {made.reference}")
    failure: LabrigError | None = None
    out = labs.results_folder(root, made, quick=quick)
    try:
        labs.run(root, made, out=out, quick=quick, stdout=sys.stderr.fileno())
    except LabrigError as error:
        failure = error
    _say("verify the environment")
    record = verify(made)
    try:
        record.raise_for_failures()
    except LabrigError as error:
        failure = failure or error
    return Summary(made, labs.read_results(out), record, out / "report.html", quick, failure)


def _why_first(todo: environment.Plan) -> str:
    if todo.engine == "docker":
        return f"Docker {todo.host.docker} answers, and the image can be had"
    return f"the first of this target's ({', '.join(todo.target.engines)})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
