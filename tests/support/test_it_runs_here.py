"""What the support table calls "run here" is run here: built, labs run in it, every check passed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from records import LABS, assert_equal_numbers, record

from labrig import checks, environment, labs, support, verify
from labrig.engines import Environment

ROOT = Path(__file__).parents[2]
IDS = [path.stem for path in sorted(LABS.glob("[0-9][0-9]_*.py"))]
PROVEN = [
    pytest.param(target, engine, id=f"{target}-{engine}", marks=pytest.mark.docker if engine == "docker" else ())
    for target, engine in sorted(support.PROVEN)
]
Run = Callable[[str, str], tuple[Environment, Path]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An environment, and what all labs left that ran in it with --quick, once per session."""

    @functools.cache
    def quick(target: str, engine: str) -> tuple[Environment, Path]:
        made, out = environment.build(ROOT, target, engine), tmp_path_factory.mktemp(f"{target}-{engine}") / "out"
        with Path(os.devnull).open("w") as nowhere:
            labs.run(ROOT, made, out=out, device="cpu", quick=True, stdout=nowhere.fileno())
        return made, out

    return quick


@pytest.mark.parametrize(("target", "engine"), PROVEN)
def test_it_is_built_used_and_proven(
    target: str,
    engine: str,
    run: Run,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    if engine == "docker":
        request.getfixturevalue("docker_engine")
    made, out = run(target, engine)
    results = json.loads((out / labs.RESULTS).read_text())
    assert [lab["lab"] for lab in results] == IDS
    assert {lab["status"] for lab in results} == {"passed"}
    verified = verify.verify(made)
    assert [result for result in verified.checks if result.status in (checks.FAILED, checks.SKIPPED)] == []
    record_property("proves", f"{target} {engine} run")


@pytest.mark.docker
@pytest.mark.parametrize("lab", IDS)
def test_equal_seeds_give_equal_numbers_natively_and_in_the_image(lab: str, run: Run, docker_engine: None) -> None:
    assert_equal_numbers(*(record(run("cpu", engine)[1] / lab) for engine in ("venv", "docker")))
