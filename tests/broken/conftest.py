"""Copies of a real environment, each with one thing broken, and what the probe says in each."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from copies import Copy, copy_of

from labrig import environment
from labrig.engines import PROBE, Environment

ROOT = Path(__file__).parents[2]


def probe(copy: Copy) -> dict[str, Any]:
    """All facts, as `invoke verify` reads them."""
    document = json.loads(_run_probe(copy))
    assert isinstance(document, dict)
    return document


def probe_metadata(copy: Copy) -> dict[str, Any]:
    """The facts that need no torch."""
    lines = _run_probe(copy, "python", "packages", "files").splitlines()
    return {name: fact for name, fact, _ in map(json.loads, lines)}


def _run_probe(copy: Copy, *names: str) -> str:
    done = subprocess.run(
        [copy.place / "bin" / "python", "-I", "-S", PROBE, *names],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def made() -> Environment:
    """The native environment of the target that fits this host."""
    return environment.build(ROOT, engine="venv")


@pytest.fixture(scope="session")
def facts(made: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the probe says in every broken copy: one run each, two at a time, for a run takes seconds.

    Where only the metadata of packages was changed, what torch says is taken from the copy with nothing broken.
    """
    from test_broken import BROKEN

    folder = tmp_path_factory.mktemp("broken")

    def look(name: str) -> dict[str, Any]:
        copy = copy_of(made, folder / name.replace(" ", "-"))
        break_it, expected = BROKEN[name]
        break_it(copy)
        return probe_metadata(copy) if expected and expected <= {"packages", "extra"} else probe(copy)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(BROKEN, pool.map(look, BROKEN), strict=True))
    return {name: {**found["nothing"], **facts} for name, facts in found.items()}
