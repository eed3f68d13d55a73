"""The support table: every target and engine once, each with a reason, and what is held against it when tests end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import proofs
import pytest
import samples

from labrig import engines, support
from labrig.support import CANNOT, CHECKED, RUN, Line

LINES = support.lines(samples.SHIPPED)


def test_every_target_and_engine_has_one_line_with_a_reason() -> None:
    pairs = [(line.target, line.engine) for line in LINES]
    assert pairs == [(target, engine) for target in samples.SHIPPED.targets for engine in engines.MODULES]
    assert all(line.why and line.status in (RUN, CHECKED, CANNOT) for line in LINES)
    for line in LINES:
        assert (line.status == CANNOT) == (line.engine not in samples.SHIPPED.targets[line.target].engines)
        assert bool(line.proofs) == (line.status != CANNOT)
    assert {(line.target, line.engine) for line in LINES if "run" in line.proofs} == support.PROVEN


def test_what_was_lacking_is_in_the_reason() -> None:
    for line in LINES:
        target = samples.SHIPPED.targets[line.target]
        if line.status == CHECKED:
            assert (support.NO_GPU in line.why) == (target.device == "cuda")
            assert (support.NO_MAC in line.why) == (target.device == "mps")
            assert (support.NO_CHANNEL in line.why) == (line.engine == "conda")


SMALL = [
    Line("a", "venv", RUN, "x", ("run",)),
    Line("a", "conda", CHECKED, "x", ("solved", "created")),
    Line("a", "docker", CANNOT, "x"),
]
GOOD = {"a venv run", "a venv locked", "a conda solved", "a conda created"}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (GOOD, []),
        (GOOD - {"a venv run"}, ["a venv: the table says run here, and no test proved it (run)"]),
        (GOOD - {"a conda created"}, ["a conda: the table says checked, not run, and no test proved it (created)"]),
        (GOOD | {"a conda run"}, ["a conda: it was run, and the table says checked, not run"]),
        (GOOD | {"a docker run"}, ["a docker: the table says cannot, and a test did"]),
        (GOOD | {"a docker locked"}, ["a docker: the table says cannot, and a test did"]),
        (GOOD | {"b venv run"}, ["b venv run: there is no such line"]),
    ],
)
def test_the_table_must_say_what_was_proved_no_more_and_no_less(found: set[str], says: list[str]) -> None:
    assert proofs.differences(SMALL, found) == says


def test_an_engine_that_is_not_here_is_not_held_against_the_table() -> None:
    assert proofs.differences(SMALL, GOOD - {"a venv run"}, without=["venv"]) == []


SUITE = """
def test_one(record_property):
    record_property("proves", "cpu venv run")
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_whole_run_that_proves_something_else_fails_and_a_part_of_it_does_not(
    tmp_path: Path, workers: list[str]
) -> None:
    """A suite of one test with this suite's own conftest: it proves one line of many."""
    root = Path(__file__).parents[2]
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "proofs.py"):
        (tmp_path / "tests" / name).write_text((root / "tests" / name).read_text())
    (tmp_path / "images").symlink_to(root / "images")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    (tmp_path / "tests" / "test_one.py").write_text(SUITE)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *arguments], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    whole = run()
    assert whole.returncode == 1, whole.stdout
    assert "cuda venv: the table says checked, not run, and no test proved it (locked)" in whole.stdout
    assert "cpu venv: the table says" not in whole.stdout
    for part in (["tests/test_one.py"], ["-k", "one"]):
        done = run(*part)
        assert done.returncode == 0, done.stdout
        assert "support table" not in done.stdout
