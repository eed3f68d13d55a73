"""What every target and engine is known to do: run by our tests, checked as far as that goes here, or neither.

One table, in the README and in `invoke list`. It is not taken on trust: a whole run of the tests fails if it proved
anything else than what stands here (tests/proofs.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from labrig import engines
from labrig.spec import Table, Target

RUN, CHECKED, CANNOT = "run here", "checked, not run", "cannot"
COLUMNS = ("target", "engine", "status", "why")
WRAPPED = COLUMNS[-1:]
TITLE = "What our tests did with each (on your machine: invoke doctor)"

# Built, labs run in it, every check passed: by the tests, at every change, on linux_x86_64.
PROVEN = {("cpu", "docker"), ("cpu", "venv")}
NO_GPU, NO_MAC, NO_CHANNEL = "no GPU was at hand", "no Mac was at hand", "conda-forge itself was never reached"
# Device, engine: what the tests prove instead of running it, and what that is in words, with what was lacking.
CHECKS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("cpu", "docker"): (("locked", "rendered"), "locked, Dockerfile rendered"),
    ("cpu", "venv"): (("locked",), "locked, every wheel fits the platform"),
    ("cpu", "conda"): (
        ("solved", "created"),
        f"solved, created, labs run and verified from a local channel; {NO_CHANNEL}",
    ),
    ("cuda", "docker"): (
        ("locked", "rendered"),
        f"locked; built, labs run on its CPU and all but the device verified by hand; {NO_GPU}",
    ),
    ("cuda", "venv"): (("locked",), f"locked, every wheel fits the platform; {NO_GPU}"),
    ("cuda", "conda"): (("solved",), f"solved from a local channel; {NO_GPU}, {NO_CHANNEL}"),
    ("mps", "venv"): (
        ("locked", "setup", "facts"),
        f"locked for what a Mac accepts, setup.sh run on a faked one, checks on facts written by hand; {NO_MAC}",
    ),
    ("mps", "conda"): (("solved",), f"solved for osx-arm64 from a local channel; {NO_MAC}, {NO_CHANNEL}"),
}


@dataclass(frozen=True)
class Line:
    """One line of the table; ``proofs`` is what a whole run of the tests has to prove for it: "run", or less."""

    target: str
    engine: str
    status: str
    why: str
    proofs: tuple[str, ...] = ()


def lines(table: Table) -> tuple[Line, ...]:
    """Every target of the table with every engine there is, in their orders."""
    return tuple(line(target, engine) for target in table.targets.values() for engine in engines.MODULES)


def line(target: Target, engine: str) -> Line:
    """What one target and engine is known to do."""
    if engine not in target.engines:
        return Line(target.name, engine, CANNOT, _lacking(target, engine))
    if (target.name, engine) in PROVEN:
        why = "on linux_x86_64: built, labs run, all checks passed"
        others = "; ".join(f"{platform} cannot be locked here" for platform in target.unlocked)
        return Line(target.name, engine, RUN, f"{why}; {others}" if others else why, ("run",))
    proofs, why = CHECKS[target.device, engine]
    return Line(target.name, engine, CHECKED, why, proofs)


def _lacking(target: Target, engine: str) -> str:
    if engine == "docker" and target.device == "mps":
        return "a container on a Mac cannot reach the GPU (pytorch/pytorch#81224)"
    if engine == "docker" and target.suite is None:
        return f"no Debian suite of the table brings Python {target.python}"
    if engine == "conda" and not target.conda:
        from labrig import matrix

        if any(matrix.conda_build(target.torch, target.variant, platform) is None for platform in target.platforms):
            return f"no build of torch {target.torch} {target.variant} on conda-forge is known (labrig/data/conda.tsv)"
    return "left out of the row's engines"
