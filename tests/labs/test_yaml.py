"""The workflow for Macs is YAML of the right shape: an environment has a parser (JupyterLab's), the toolkit none."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from records import ROOT

FILE = ROOT / ".github" / "workflows" / "native.yml"
READ = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1], encoding='utf-8')), sys.stdout)"


@pytest.fixture(scope="module")
def workflow(python: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = python("-c", READ, FILE)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_it_starts_by_hand_every_week_and_when_images_change(workflow: dict[str, Any]) -> None:
    on = workflow.pop("true")  # YAML 1.1 reads the word `on` so; GitHub does not
    assert set(on) == {"workflow_dispatch", "schedule", "pull_request"}
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", on["schedule"][0]["cron"])
    assert "images/**" in on["pull_request"]["paths"]
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow) == {"name", "permissions", "jobs"}


def test_its_jobs_are_steps_of_one_kind_each(workflow: dict[str, Any]) -> None:
    assert workflow["jobs"]
    for name, job in workflow["jobs"].items():
        assert set(job) == {"runs-on", "timeout-minutes", "steps"}, name
        assert isinstance(job["timeout-minutes"], int)
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert set(step) <= {"name", "run", "uses", "with", "if", "continue-on-error"}, step
            for value in (step.get("with") or {}).values():
                assert isinstance(value, str | bool), f"{value!r}: a version in quotes, or YAML makes 3.1 of 3.10"


def test_its_scripts_are_those_that_the_unit_tests_read(workflow: dict[str, Any]) -> None:
    """They read the blocks after `run: |`, so that a script in another form would go unchecked."""
    parsed = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    text = FILE.read_text(encoding="utf-8")
    assert len(parsed) == text.count(" run: |\n") > 0
    for script in parsed:
        assert "".join(f"          {line}" for line in script.splitlines(keepends=True)) in text
