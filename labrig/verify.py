"""Verify an environment: testinfra runs the declared checks over the facts of one probe run inside it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labrig import checks, engines, verified
from labrig.engines import Environment, Session
from labrig.errors import LabrigError, VerifyError

SUITE = Path(__file__).parent.parent / "tests" / "environment"  # nothing else may stand there: all of it is run
TIMEOUT = 900  # seconds


@dataclass(frozen=True)
class Result:
    """One declared check and what came of it."""

    id: str
    says: str
    status: str
    expected: str
    found: str
    reason: str


@dataclass(frozen=True)
class Record:
    """All checks of one environment."""

    target: str
    engine: str
    reference: str
    checks: tuple[Result, ...]
    forced: str = ""  # why its verdict was against it, where it was built all the same

    def count(self, status: str) -> int:
        """How many checks ended so."""
        return sum(result.status == status for result in self.checks)

    def to_json(self) -> dict[str, object]:
        """The form of ``invoke verify --json``."""
        return {
            "target": self.target,
            "engine": self.engine,
            "reference": self.reference,
            "passed": self.count(checks.PASSED),
            "failed": self.count(checks.FAILED),
            "skipped": self.count(checks.SKIPPED),
            "forced": self.forced or None,
            "checks": [asdict(result) for result in self.checks],
        }

    def raise_for_failures(self) -> None:
        """Raise if a check failed.

        Raises:
            VerifyError: naming each failed check with what was expected and found.
        """
        failed = [result for result in self.checks if result.status == checks.FAILED]
        if failed:
            raise VerifyError(
                f"{len(failed)} of {len(self.checks)} checks failed for target {self.target} ({self.engine})",
                found="; ".join(f"{r.id}: expected {r.expected}, found {r.found} ({r.reason})" for r in failed),
                fix="invoke doctor says what this host can run"
                if {result.id for result in failed} == {"device"}
                else f"invoke clean --target={self.target}, then "
                f"invoke build --target={self.target} --engine={self.engine}",
            )


COLUMNS = ("check", "status", "holds when", "found")
WRAPPED = COLUMNS[-2:]


def rows(record: Record) -> list[tuple[str, ...]]:
    """The record for people, a line a check."""
    return [(r.id, r.status, r.says, _seen(r)) for r in record.checks]


def _seen(result: Result) -> str:
    if result.status == checks.FAILED:
        return f"{result.found}; expected {result.expected} ({result.reason})"
    return result.reason or result.found


def tally(record: Record) -> str:
    """How many checks ended how, in one line; what did not run is not hidden."""
    counts = ((record.count(status), status) for status in checks.STATUSES)
    words = ", ".join(f"{count} {status}" for count, status in counts if count)
    return f"{words}; built by force in spite of: {record.forced}" if record.forced else words


def verify(environment: Environment, *, require_device: bool = False) -> Record:
    """Run every declared check of an environment; what is found of an image is kept for `publish`.

    Raises:
        LabrigError: the suite itself could not run (a bug, or an environment that cannot be entered).
    """
    with engines.load(environment.engine).session(environment, "verify") as session:
        record = examine(session, require_device=require_device)
    if session.identity:
        verified.note(session.identity, environment.lock, record.to_json())
    return record


def examine(session: Session, *, require_device: bool = False, timeout: float = TIMEOUT) -> Record:
    """Run every declared check in a session, wherever that is, within ``timeout`` seconds. Raises as verify."""
    environment = session.environment
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        context = Path(folder, "context.json")
        context.write_text(json.dumps(write_context(session, results, require_device)), encoding="utf-8")
        outcomes = _run_suite(session, context, results, timeout)
    return Record(
        environment.target.name,
        environment.engine,
        environment.reference,
        tuple(_result(check, environment, outcomes) for check in checks.CHECKS),
        environment.forced,
    )


def write_context(session: Session, results: Path | None, require_device: bool) -> dict[str, object]:
    """What the suite under tests/environment has to know, as JSON."""
    environment = session.environment
    return {
        "target": environment.target.name,
        "platform": environment.lock.platform,
        "engine": environment.engine,
        "reference": environment.reference,
        "python": session.python,
        "probe": session.probe,
        "facts": session.facts(),
        "require_device": require_device,
        "results": str(results) if results else None,
    }


def read_facts(host: Any, context: Mapping[str, Any]) -> dict[str, Any]:
    """What the probe says inside the environment, asked through testinfra's ``host``, and what its engine knows."""
    words = ["image"] if context["engine"] == "docker" else []
    # -I: the environment's own Python, not the variables of the toolkit that runs this. -S: what is installed there
    # starts only in the processes that the probe watches.
    done = host.run(shlex.join([context["python"], "-I", "-S", context["probe"], *words]))
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {"error": f"the probe ended with exit code {done.rc}: {done.stderr.strip()[-500:]}"}
    return {**found, **context["facts"]}


def _run_suite(session: Session, context: Path, results: Path, timeout: float) -> dict[str, checks.Outcome]:
    command = [
        sys.executable, "-m", "pytest", str(SUITE), "--hosts", session.hostspec, "--verify-context", str(context),
        "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "--rootdir", str(SUITE.parent.parent),
    ]  # fmt: skip
    # What someone has set for pytest is meant for their tests: -k or -x there would leave checks out.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=SUITE.parent.parent, env=environment
        )
    except subprocess.TimeoutExpired:
        raise VerifyError(
            f"the checks of target {session.environment.target.name} took more than {timeout:g} s",
            fix="look at what the machine is doing, then run it again",
        ) from None
    if not results.exists():
        raise LabrigError(
            "the checks did not run",
            found=(done.stdout + done.stderr).strip()[-2000:],
            fix="this is a bug of labrig, or its .venv is damaged: make setup",
        )
    return {id: checks.Outcome(**outcome) for id, outcome in json.loads(results.read_text(encoding="utf-8")).items()}


def _result(check: checks.Check, environment: Environment, outcomes: dict[str, checks.Outcome]) -> Result:
    if check.id in outcomes:
        outcome = outcomes[check.id]
    elif check.applies(environment.engine, environment.lock.platform):
        # Declared, for this environment, and yet no outcome: that is a failure, whatever pytest said.
        outcome = checks.Outcome(checks.FAILED, check.says, "no outcome", "the check was declared but did not run")
    else:
        outcome = checks.not_applicable(check)
    return Result(check.id, check.says, outcome.status, outcome.expected, outcome.found, outcome.reason)
