"""Run the labs inside an environment and read what they left. The labs themselves never import labrig."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labrig import engines, home
from labrig.engines import Environment
from labrig.errors import BuildError, HostError, LabError, LabrigError, UsageError

GOOD = ("passed", "skipped")
RESULTS = "results.json"


def run(
    root: Path,
    environment: Environment,
    labs: Sequence[str] = (),
    *,
    paradigms: Sequence[str] = (),
    out: Path | None = None,
    device: str = "auto",
    quick: bool = False,
    jobs: int = 0,
    as_json: bool = False,
    stdout: int | None = None,
) -> Path:
    """Run labs (all, unless some or paradigms are named), write results and report; gives the results' folder.

    The runner prints its table, or with ``as_json`` its document, to stdout or to the descriptor ``stdout``. A lab
    whose script, data, arguments and torch are those of its stored result is not run again. ``jobs`` of 0 leaves the
    number of labs side by side to the runner, which knows the CPU quota.

    Raises:
        LabError: a gate was missed or a lab failed.
        HostError: a named device is absent.
        UsageError: no such lab or paradigm.
    """
    out = out or results_folder(root, environment, quick=quick)
    command = ["-m", "labs", "run", *labs, "--out", str(out), "--device", device]
    command += [f"--paradigm={name}" for name in paradigms]
    command += ["--jobs", str(jobs)] if jobs else []
    command += ["--quick"] * quick + ["--json"] * as_json
    with engines.load(environment.engine).session(environment, "labs", [out]) as session, _lifeline():
        code = session.run(
            [session.python, *command], cwd=session.labs or root, env={"LAB_PARENT_ON_STDIN": "1"}, stdout=stdout
        )
    raise_for(code, environment, out)
    if not (out / RESULTS).is_file():
        raise LabrigError(
            f"the labs' runner on target {environment.target.name} ended well and left no results",
            found=f"no {out / RESULTS}",
            fix=f"invoke clean --target={environment.target.name}, then run it again",
        )
    return out


@contextlib.contextmanager
def _lifeline() -> Iterator[None]:
    """Make stdin a pipe that only this process holds open: it ends with us, even by kill -9, and the labs with it."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    try:
        os.dup2(reading, 0)
        yield
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, reading, writing):
            os.close(descriptor)


def raise_for(code: int, environment: Environment, out: Path) -> None:
    """Turn the runner's exit code into labrig's error of the same code."""
    name = environment.target.name
    if code == LabError.code:
        missed = [lab["lab"] for lab in read_results(out) if lab["status"] not in GOOD]
        raise LabError(
            f"labs failed on target {name}: {', '.join(missed) or 'see above'}",
            fix=f"open {out / 'report.html'}; one lab alone: invoke labs --target={name} --lab={(missed or ['NN'])[0]}",
        )
    if code == HostError.code:
        raise HostError(
            f"the labs of target {name} cannot run on this machine (the reason is above)",
            fix=f"--device=auto if a device is absent; else invoke verify --target={name}",
        )
    if code == UsageError.code:
        raise UsageError("the labs' runner did not take what was asked", fix="see above; invoke labs --help")
    if code == BuildError.code:
        raise BuildError(
            "the labs' files are not what they should be, or results cannot be written (above)",
            fix="git status labs; room and permission in the folder of --out",
        )
    if code == 130 or code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code != 0:
        crashed = [lab["lab"] for lab in read_results(out) if lab["status"] not in GOOD]
        raise LabrigError(
            f"labs crashed on target {name}: {', '.join(crashed) or f'the runner, with exit code {code}'}",
            fix=f"read {out / (crashed or ['*'])[0] / 'error.txt'}",
        )


def read_results(out: Path) -> list[dict[str, Any]]:
    """The last run's result of every lab it was asked for, as ``invoke labs --json`` prints them."""
    try:
        results: list[dict[str, Any]] = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return results


def results_folder(root: Path, environment: Environment, *, quick: bool = False) -> Path:
    """``results/<target>-<engine>`` in the checkout, or in labrig's own folder where the checkout cannot be written.

    Quick runs have a folder of their own: their report would otherwise stand in the place of the full one.
    """
    name = f"{environment.target.name}-{environment.engine}{'-quick' * quick}"
    folder = root / "results" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        elsewhere = home.root() / "results" / name
        print(f"{root / 'results'} cannot be written ({error.strerror}): results go to {elsewhere}", file=sys.stderr)
        return elsewhere
    return folder
