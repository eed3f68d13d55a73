"""All labs at full size: every gate holds, in the native environment and in the image, with the same numbers.

The image's part runs by hand (`pytest -m full`); docs/measured.md keeps its last result. At --quick the same comparison
is part of every run: tests/support.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from records import LABS, ROOT, assert_equal_numbers, record

from labs import check

IDS = [path.stem for path in sorted(LABS.glob("[0-9][0-9]_*.py"))]
pytestmark = pytest.mark.timeout(2400)  # seconds: twenty labs in one command
IN_THE_IMAGE = (pytest.mark.docker, pytest.mark.full)
ENGINES = ["venv", pytest.param("docker", marks=IN_THE_IMAGE)]

Run = Callable[[str], tuple[subprocess.CompletedProcess[str], Path]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`invoke labs` with one engine, once per session."""

    @functools.cache
    def labs(engine: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        out = tmp_path_factory.mktemp(f"full-{engine}") / "run"
        command = [sys.executable, "-m", "invoke", "labs", "--target=cpu", f"--engine={engine}", "--device=cpu"]
        done = subprocess.run(
            [*command, f"--out={out}", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done, out

    return labs


@pytest.mark.parametrize("engine", ENGINES)
def test_every_lab_passes(engine: str, run: Run) -> None:
    done, _ = run(engine)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert [result["lab"] for result in results] == IDS
    assert {result["status"] for result in results} == {"passed"}
    assert not any(result["reused"] for result in results)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lab", IDS)
def test_its_record_is_believed_and_within_its_memory(lab: str, engine: str, run: Run) -> None:
    out = run(engine)[1]
    found = record(out / lab)
    assert check.problems(out / lab) == []
    assert all(gate["checked"] and gate["passed"] for gate in found["gates"])
    assert found["args"]["device"] == "cpu" and found["args"]["quick"] is False
    assert 50 < found["memory"]["peak_rss_mib"] <= 1024
    assert found["plots"] and found["honest"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_report_is_one_small_file(engine: str, run: Run) -> None:
    page = run(engine)[1] / "report.html"
    assert 500_000 < page.stat().st_size <= 5_000_000
    assert f"{len(IDS)} passed" in page.read_text(encoding="utf-8")


@pytest.mark.docker
@pytest.mark.full
@pytest.mark.parametrize("lab", IDS)
def test_equal_seeds_give_equal_numbers_in_the_image(lab: str, run: Run) -> None:
    assert_equal_numbers(*(record(run(engine)[1] / lab) for engine in ("venv", "docker")))


@pytest.mark.docker
@pytest.mark.full
def test_in_the_image_lab_19_says_that_there_is_no_compiler(run: Run) -> None:
    found = record(run("docker")[1] / "19_speed")
    assert [told["op"] for told in found["fallbacks"] if "no C++ compiler" in told["why"]] == ["torch.compile"]
