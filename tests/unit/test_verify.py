"""From outcomes to the record that people and programs read; and the whole suite against environments with no torch."""

from __future__ import annotations

import json
import os
import venv
from pathlib import Path

import pytest

from labrig import checks, lock, spec, verify
from labrig.checks import FAILED, NOT_APPLICABLE, PASSED, SKIPPED
from labrig.engines import Environment
from labrig.errors import VerifyError

IMAGES = Path(__file__).parents[2] / "images"


def environment(reference: str = "nowhere", name: str = "cpu", engine: str = "venv") -> Environment:
    target = spec.read(IMAGES / spec.TABLE).pick(name)
    platform = lock.locked_platforms(target, IMAGES)[0]
    return Environment(target, engine, reference, lock.load(target, platform, IMAGES))


def record(*statuses: str) -> verify.Record:
    results = (verify.Result(f"c{i}", f"says {i}", s, "this", "that", f"why {i}") for i, s in enumerate(statuses))
    return verify.Record("cpu", "venv", "place", tuple(results))


def test_the_record_in_json_is_the_form_that_others_build_on() -> None:
    document = record(PASSED, FAILED, SKIPPED, NOT_APPLICABLE, PASSED).to_json()
    assert list(document) == ["target", "engine", "reference", "passed", "failed", "skipped", "forced", "checks"]
    assert (document["passed"], document["failed"], document["skipped"]) == (2, 1, 1)
    assert isinstance(document["checks"], list)
    assert {"id", "status", "expected", "found", "reason"} <= set(document["checks"][0])
    assert json.loads(json.dumps(document)) == document


def test_what_did_not_run_is_counted_apart_from_what_passed() -> None:
    assert verify.tally(record(PASSED, SKIPPED, NOT_APPLICABLE, FAILED, PASSED)) == (
        "2 passed, 1 failed, 1 skipped, 1 not applicable"
    )
    assert verify.tally(record(PASSED)) == "1 passed"


def test_rows_show_every_check_with_its_reason() -> None:
    shown = verify.rows(record(PASSED, SKIPPED, FAILED))
    assert shown == [
        ("c0", PASSED, "says 0", "why 0"),
        ("c1", SKIPPED, "says 1", "why 1"),
        ("c2", FAILED, "says 2", "that; expected this (why 2)"),
    ]
    assert len(verify.COLUMNS) == len(shown[0])


def test_one_failure_is_exit_6_and_names_the_check_with_the_fix() -> None:
    record(PASSED, SKIPPED, NOT_APPLICABLE).raise_for_failures()
    with pytest.raises(VerifyError) as caught:
        record(PASSED, FAILED, SKIPPED).raise_for_failures()
    assert caught.value.code == 6
    assert "1 of 3 checks failed for target cpu" in caught.value.what
    assert "c1: expected this, found that (why 1)" in caught.value.found
    assert "invoke clean --target=cpu" in caught.value.fix


@pytest.mark.parametrize(("name", "engine"), [("cpu", "venv"), ("mps", "conda")])
def test_a_declared_check_without_an_outcome_is_a_failure_unless_it_is_not_for_this_environment(
    name: str, engine: str
) -> None:
    made = environment(name=name, engine=engine)
    for check in checks.CHECKS:
        result = verify._result(check, made, {})
        assert result.reason
        assert result.status == (FAILED if check.applies(engine, made.lock.platform) else NOT_APPLICABLE)


def by_id(record: verify.Record) -> dict[str, verify.Result]:
    return {result.id: result for result in record.checks}


def test_the_whole_suite_on_an_environment_without_anything_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe reads what is there, every check is judged, and nobody's pytest settings leave one out."""
    venv.create(tmp_path / "empty", symlinks=True)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing -x")
    done = verify.verify(environment(str(tmp_path / "empty")))
    found = by_id(done)
    assert list(found) == [check.id for check in checks.CHECKS]
    assert {id for id, result in found.items() if result.status == PASSED} >= {"extra", "network"}
    for id in ("torch", "cuda", "archs", "device", "libraries", "dataloader"):
        assert found[id].status == FAILED
        assert "No module named 'torch'" in found[id].reason
    assert f"{len(environment().lock.wheels)} differ from the lock" in found["packages"].reason
    assert found["files"].status == FAILED
    with pytest.raises(VerifyError):
        done.raise_for_failures()


@pytest.mark.parametrize("python", [None, "#!/bin/sh\necho 'not JSON'; exit 9\n"])
def test_an_environment_whose_python_does_not_work_fails_every_check_with_that_reason(
    tmp_path: Path, python: str | None
) -> None:
    if python:
        program = tmp_path / "bin" / "python"
        program.parent.mkdir()
        program.write_text(python)
        program.chmod(0o755)
    done = verify.verify(environment(str(tmp_path)))
    ours = [result for result in done.checks if result.status != NOT_APPLICABLE]
    assert {result.id for result in ours} == {c.id for c in checks.CHECKS if c.applies("venv", "linux_x86_64")}
    assert {result.status for result in ours} == {FAILED}
    assert all("the probe ended with exit code" in result.reason for result in ours)
    assert os.fspath(tmp_path) == done.reference
