"""A lab can fail: spoil its source in one place, and the gate that should notice is missed, with exit code 5.

mutations.toml holds them: labels shuffled, learning rates of zero, wrong formulas, leaks. Each names the gate that must
be missed, and whether the exact gates of --quick are enough; the others train at full size, as a student would.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from records import LABS, LONG, record

MUTATIONS: dict[str, list[dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("mutations.toml").read_text(encoding="utf-8")
)


def marks(lab: str, case: dict[str, Any]) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.full,) if lab in LONG and not case["quick"] else ()


CASES = [pytest.param(lab, case, id=f"{lab}-{case['gate']}-{i}", marks=marks(lab, case))
         for lab, cases in MUTATIONS.items() for i, case in enumerate(cases)]  # fmt: skip


def test_every_lab_has_one_that_the_full_size_notices_and_one_more() -> None:
    assert set(MUTATIONS) == {path.stem for path in LABS.glob("[0-9][0-9]_*.py")}
    for lab, cases in MUTATIONS.items():
        assert len(cases) >= 2, lab


@pytest.mark.parametrize(("lab", "case"), CASES)
def test_a_spoilt_lab_misses_its_gate(lab: str, case: dict[str, Any], labs_python: str, tmp_path: Path) -> None:
    source = (LABS / f"{lab}.py").read_text(encoding="utf-8")
    assert source.count(case["old"]) == 1, "the place to spoil is there, once"
    labs = tmp_path / "labs"
    labs.mkdir()
    for name in ("harness.py", "data"):
        (labs / name).symlink_to(LABS / name)
    (labs / f"{lab}.py").write_text(source.replace(case["old"], case["new"]), encoding="utf-8")
    command = [labs_python, str(labs / f"{lab}.py"), "--device", "cpu", "--no-plots", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, *["--quick"] * case["quick"]], capture_output=True, text=True, timeout=400, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 5, done.stdout[-2000:] + done.stderr[-2000:]
    found = record(tmp_path / lab)
    missed = {gate["id"] for gate in found["gates"] if gate["passed"] is False}
    assert case["gate"] in missed
    assert found["status"] == "failed" and case["gate"] in found["reason"]
