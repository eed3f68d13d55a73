"""The workflow that runs the real thing on a Mac and against conda-forge: nobody here can run it, so all of it that can
be read is checked."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml
from invoke.collection import Collection
from invoke.loader import FilesystemLoader

from labrig import render

ROOT = Path(__file__).parents[2]
FILE = ROOT / ".github" / "workflows" / "native.yml"
TEXT = FILE.read_text(encoding="utf-8")
MACS = [target for target in samples.SHIPPED.targets.values() if target.device == "mps"]
CONDA = [target for target in samples.SHIPPED.targets.values() if target.conda and target.device != "cuda"]
RUN = re.compile(r"^(?P<indent> +)run: \|\n(?P<script>(?:(?P=indent)  .*\n|\n)+)", re.MULTILINE)


def scripts(text: str) -> list[str]:
    """Every script of a workflow, as the runner's shell gets it."""
    found = []
    for match in RUN.finditer(text):
        inner = len(match["indent"]) + 2
        found.append("".join(line[inner:] or "\n" for line in match["script"].splitlines(keepends=True)))
    return found


def jobs(text: str) -> dict[str, str]:
    """The text of every job."""
    _, _, body = text.partition("\njobs:\n")
    parts = re.split(r"^  ([a-z0-9-]+):\n", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def calls(text: str) -> list[list[str]]:
    """Every call of an Invoke task, as words."""
    lines = (line for script in scripts(text) for line in script.splitlines())
    found = (re.search(r"\.venv/bin/invoke ([^>|]*)", line) for line in lines)
    return [shlex.split(match[1]) for match in found if match]


def test_no_script_goes_unread() -> None:
    assert len(scripts(TEXT)) == len(re.findall(r"\brun:", TEXT)) > 0
    assert len(calls(TEXT)) == TEXT.count("bin/invoke") > 0


def test_every_target_for_macs_is_made_in_every_way() -> None:
    assert MACS
    assert list(jobs(TEXT)) == [
        *(f"{target.name}-{way}" for target in MACS for way in ("with-only-python", "with-only-uv", "with-labrig")),
        *(f"{target.name}-with-conda" for target in CONDA),
    ]
    for target in CONDA:
        job = jobs(TEXT)[f"{target.name}-with-conda"]
        assert [call[0] for call in calls(job)] == ["doctor", "lock", "build", "labs", "verify"]
        assert all("--engine=conda" in call for call in calls(job)[1:])
        assert "setup-micromamba@" in job
    for target in MACS:
        for way in ("with-only-python", "with-only-uv"):
            job = jobs(TEXT)[f"{target.name}-{way}"]
            assert f"sh images/{target.name}/setup.sh" in job and (ROOT / "images" / target.name / "setup.sh").exists()
            assert f'torch.__version__ == "{target.torch}"' in job
            assert "torch.backends.mps.is_available()" in job
        assert "setup-python" not in jobs(TEXT)[f"{target.name}-with-only-uv"]
        assert "uv" not in jobs(TEXT)[f"{target.name}-with-only-python"]
        done = [call[0] for call in calls(jobs(TEXT)[f"{target.name}-with-labrig"])]
        assert done == ["doctor", "build", "labs", "verify", "labs"]


def test_every_task_that_it_calls_exists_with_those_flags() -> None:
    module, _ = FilesystemLoader(start=str(ROOT)).load("tasks")
    tasks = Collection.from_module(module).tasks
    for name, *flags in calls(TEXT):
        known = {"--" + argument.name.replace("_", "-"): argument for argument in tasks[name].get_arguments()}
        for flag in flags:
            flag, _, value = flag.partition("=")
            assert flag in known, f"invoke {name} {flag}"
            assert bool(value) == known[flag].takes_value, f"invoke {name} {flag}"
            if flag == "--target":
                assert samples.SHIPPED.targets[value] in (*MACS, *CONDA)
            if flag == "--engine":
                assert value == "conda"


def test_every_job_says_which_machine_it_is_on_and_ends_by_itself() -> None:
    for name, job in jobs(TEXT).items():
        of_mac = any(name.startswith(f"{target.name}-") for target in MACS)
        runner = render.RUNNER if of_mac else render.LINUX_RUNNER
        assert re.findall(r"^    runs-on: (.*)$", job, re.MULTILINE) == [runner], name
        assert len(re.findall(r"^    timeout-minutes: \d+$", job, re.MULTILINE)) == 1, name
        assert "sw_vers" in job or "conda" in name, name
        assert "actions/checkout@" in job, name


def test_it_may_only_read_and_its_actions_are_of_one_major_version() -> None:
    assert "\npermissions:\n  contents: read\n\n" in TEXT
    assert "secrets" not in TEXT and "write" not in TEXT
    used = re.findall(r"uses: (\S+)", TEXT)
    assert {action.partition("@")[0] for action in used} == {
        "actions/checkout", "actions/setup-python", "actions/upload-artifact", "astral-sh/setup-uv",
        "mamba-org/setup-micromamba",
    }  # fmt: skip
    assert all(re.fullmatch(r"[a-z-]+/[a-z-]+@v\d+", action) for action in used)


def test_it_says_that_nobody_here_ran_it_and_why_the_device_may_fail() -> None:
    head = TEXT.partition("\nname:")[0]
    assert "Never run by the authors: they had no hosted Mac and did not reach conda-forge." in head
    assert "actions/runner-images#9918" in head
    assert head.startswith("# Generated by `invoke render`")


@pytest.mark.parametrize("script", sorted(set(scripts(TEXT))))
def test_its_scripts_are_sound_shell(script: str) -> None:
    require_sound(script)


def require_sound(script: str) -> None:
    """By ShellCheck, which has nothing to say of it."""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--shell=bash", "-"], input=script, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}"


def test_its_python_compiles() -> None:
    lines = [
        shlex.split(line) for script in scripts(TEXT) for line in script.splitlines() if line.startswith("python -c")
    ]
    assert len(lines) == 3 * len(MACS) + sum(target in MACS for target in CONDA)
    for _, _, code in lines:
        compile(code, "workflow", "exec")


@pytest.mark.parametrize(
    ("failed", "passes"), [([], True), (["device"], True), (["device", "torch"], False), (["float64"], False)]
)
def test_only_the_device_may_fail_on_a_hosted_mac(tmp_path: Path, failed: list[str], passes: bool) -> None:
    """The verify step itself, with an invoke that answers as told."""
    script = next(script for script in scripts(TEXT) if "invoke verify" in script)
    document = json.dumps({"passed": 9, "checks": [{"id": id, "status": "failed"} for id in failed]})
    (tmp_path / "results").mkdir()
    invoke = tmp_path / ".venv" / "bin" / "invoke"
    invoke.parent.mkdir(parents=True)
    invoke.write_text(f"#!/bin/sh\necho '{document}'\nexit {6 if failed else 0}\n")
    invoke.chmod(0o755)

    def run() -> int:
        command = ["bash", "-e", "-c", script]
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        return subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, timeout=60, check=False).returncode

    assert (run() == 0) is passes
    invoke.write_text(f"#!/bin/sh\necho '{document}'\nexit 3\n")
    assert run() != 0, "another error than a failed check"


# --- as YAML ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workflow() -> dict[str, Any]:
    document = yaml.safe_load(TEXT)
    assert isinstance(document, dict)
    return document


def test_it_starts_by_hand_every_week_and_when_images_change(workflow: dict[str, Any]) -> None:
    on = workflow.pop(True)  # YAML 1.1 reads the word `on` so; GitHub does not
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
    assert parsed == [script.rstrip() + "\n" for script in scripts(TEXT)]
