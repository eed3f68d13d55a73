"""Labs at full size: every gate holds, in the native environment and in the image, with the same numbers.

In every run: natively, all but the four that take half a minute each. By hand (`pytest -m full`): all of them, in both;
docs/measured.md keeps the last result. At --quick the two are compared in every run: test_labs.py.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from records import LABS, LONG, ROOT, assert_equal_numbers, record

from labs import check

pytestmark = pytest.mark.timeout(2400)  # seconds: up to twenty labs in one command
IDS = tuple(path.stem for path in sorted(LABS.glob("[0-9][0-9]_*.py")))
SHORT = tuple(lab for lab in IDS if lab not in LONG)
RUNS = [
    pytest.param("venv", SHORT, id="venv-short"),
    pytest.param("venv", IDS, id="venv", marks=pytest.mark.full),
    pytest.param("docker", IDS, id="docker", marks=(pytest.mark.docker, pytest.mark.full)),
]

Run = Callable[[str, tuple[str, ...]], tuple[subprocess.CompletedProcess[str], Path]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`invoke labs` with one engine, once per session for the same labs."""

    @functools.cache
    def labs(engine: str, which: tuple[str, ...]) -> tuple[subprocess.CompletedProcess[str], Path]:
        out = tmp_path_factory.mktemp(f"full-{engine}") / "run"
        command = [sys.executable, "-m", "invoke", "labs", "--target=cpu", f"--engine={engine}", "--device=cpu"]
        chosen = [] if which == IDS else [f"--lab={lab}" for lab in which]
        done = subprocess.run(
            [*command, *chosen, f"--out={out}", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=1800,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done, out

    return labs


@pytest.mark.parametrize(("engine", "which"), RUNS)
def test_every_lab_passes_and_its_record_is_believed(engine: str, which: tuple[str, ...], run: Run) -> None:
    done, out = run(engine, which)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert tuple(result["lab"] for result in results) == which
    assert {result["status"] for result in results} == {"passed"}
    assert not any(result["reused"] for result in results)
    for lab in which:
        found = record(out / lab)
        assert check.problems(out / lab) == []
        assert all(gate["checked"] and gate["passed"] for gate in found["gates"]), lab
        assert found["args"]["device"] == "cpu" and found["args"]["quick"] is False
        assert 50 < found["memory"]["peak_rss_mib"] <= 1024, lab
        assert found["plots"] and found["honest"]


@pytest.mark.parametrize(("engine", "which"), RUNS)
def test_the_report_is_one_small_file(engine: str, which: tuple[str, ...], run: Run) -> None:
    page = run(engine, which)[1] / "report.html"
    assert 500_000 < page.stat().st_size <= 5_000_000
    assert f"{len(which)} passed" in page.read_text(encoding="utf-8")


@pytest.mark.docker
@pytest.mark.full
@pytest.mark.parametrize("lab", IDS)
def test_equal_seeds_give_equal_numbers_in_the_image(lab: str, run: Run) -> None:
    assert_equal_numbers(*(record(run(engine, IDS)[1] / lab) for engine in ("venv", "docker")))


@pytest.mark.docker
@pytest.mark.full
def test_in_the_image_lab_19_says_that_there_is_no_compiler(run: Run) -> None:
    found = record(run("docker", IDS)[1] / "19_speed")
    assert [told["op"] for told in found["fallbacks"] if "no C++ compiler" in told["why"]] == ["torch.compile"]
