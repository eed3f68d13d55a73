"""What the support table calls "run here" is run here: built, labs run in it, every check passed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from labrig import checks, environment, labs, support, verify

ROOT = Path(__file__).parents[2]
PROVEN = [
    pytest.param(target, engine, id=f"{target}-{engine}", marks=pytest.mark.docker if engine == "docker" else ())
    for target, engine in sorted(support.PROVEN)
]


@pytest.mark.parametrize(("target", "engine"), PROVEN)
def test_it_is_built_used_and_proven(
    target: str,
    engine: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    if engine == "docker":
        request.getfixturevalue("docker_engine")
    made = environment.build(ROOT, target, engine)
    with Path(os.devnull).open("w") as nowhere:
        labs.run(ROOT, made, out=tmp_path / "out", quick=True, stdout=nowhere.fileno())
    results = json.loads((tmp_path / "out" / labs.RESULTS).read_text())
    assert len(results) >= 3
    assert {lab["status"] for lab in results} == {"passed"}
    record = verify.verify(made)
    assert [result for result in record.checks if result.status in (checks.FAILED, checks.SKIPPED)] == []
    record_property("proves", f"{target} {engine} run")
