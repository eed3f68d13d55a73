"""Negative proof: real environments with one thing broken, each caught by the checks named here and by no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from copies import Copy, copy_of

from labrig import checks, lock, native, spec
from labrig.checks import FAILED, PASSED, SKIPPED, Expectation
from labrig.engines import Environment, venv

ROOT = Path(__file__).parents[2]
NEEDS_TORCH = {"torch", "cuda", "archs", "device", "libraries", "dataloader"}


def nothing(copy: Copy) -> None:
    """A copy is as good as what it was made from, so what is caught elsewhere is the break and not the copying."""


def other_version(copy: Copy) -> None:
    metadata = copy.info("numpy") / "METADATA"
    lines = [b"Version: 0.0.1" if line.startswith(b"Version:") else line for line in metadata.read_bytes().splitlines()]
    copy.replace(metadata, b"\n".join(lines), recorded=True)


def no_package(copy: Copy) -> None:
    copy.remove("contourpy")


def extra_package(copy: Copy) -> None:
    info = copy.site / "left_pad-1.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: left-pad\nVersion: 1.3\n")


def two_versions(copy: Copy) -> None:
    """What an install that was cut off leaves: the metadata of another numpy beside the one that is there."""
    info = copy.site / "numpy-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")


def other_torch(copy: Copy) -> None:
    copy.append(copy.site / "torch" / "version.py", "\n__version__ = '2.0.0+cu118'\n")


def gpu_torch(copy: Copy) -> None:
    copy.append(copy.site / "torch" / "version.py", "\ncuda = '11.8'\n")


def edited_module(copy: Copy) -> None:
    """One letter, the size stays."""
    module = copy.site / "torch" / "functional.py"
    data = module.read_bytes()
    copy.replace(module, data.replace(b"Splits the tensor", b"Splitz the tensor", 1))


def library_of(copy: Copy) -> Path:
    """A library that another one needs, torch does without, and no other package brings under the same name."""
    brought = {file.name for file in copy.site.glob("numpy.libs/*")}
    return next(file for file in copy.site.glob("scipy.libs/libquadmath*.so*") if file.name not in brought)


def no_library(copy: Copy) -> None:
    copy.unlink(library_of(copy))


def cut_library(copy: Copy) -> None:
    copy.truncate(library_of(copy))


def cut_torch(copy: Copy) -> None:
    """Whoever loads it dies of SIGBUS; what needs no torch is told all the same."""
    copy.truncate(copy.site / "torch" / "lib" / "libtorch_cpu.so")


def wrong_kernel(copy: Copy) -> None:
    copy.append(
        copy.site / "torch" / "__init__.py",
        "\n_relu = Tensor.relu\nTensor.relu = lambda x: _relu(x) * (1.01 if x.dtype == float32 else 1.0)\n",
    )


def dead_workers(copy: Copy) -> None:
    copy.append(
        copy.site / "torch" / "utils" / "data" / "_utils" / "worker.py",
        "\ndef _worker_loop(*_):\n    raise SystemExit('no shared memory')\n",
    )


def phones_home(copy: Copy) -> None:
    """192.0.2.1 is an address for documentation (RFC 5737)."""
    (copy.site / "sneaky.pth").write_text("import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)\n")


BROKEN: dict[str, tuple[Callable[[Copy], None], set[str]]] = {
    "nothing": (nothing, set()),
    "another version of a package": (other_version, {"packages"}),
    "a package missing": (no_package, {"packages"}),
    "a package too many": (extra_package, {"extra"}),
    "two versions of a package": (two_versions, {"packages"}),
    "another torch": (other_torch, {"torch"}),
    "a torch for another CUDA": (gpu_torch, {"cuda"}),
    "an edited module": (edited_module, {"files"}),
    "a library missing": (no_library, {"files", "libraries"}),
    "a library cut short": (cut_library, {"files", "libraries"}),
    "torch's library cut short": (cut_torch, {"files"} | NEEDS_TORCH),
    "a kernel that is 1 % off": (wrong_kernel, {"device"}),
    "workers that die": (dead_workers, {"dataloader"}),
    "a package that phones home": (phones_home, {"network"}),
}


def judge(made: Environment, facts: dict[str, Any], target: spec.Target | None = None) -> dict[str, checks.Outcome]:
    target = target or made.target
    locked = lock.load(target, made.lock.platform, ROOT / "images")
    expectation = Expectation(target, locked, "venv", require_device=False)
    return {check.id: checks.judge(check, expectation, facts) for check in checks.CHECKS}


def ended(outcomes: dict[str, checks.Outcome], status: str) -> set[str]:
    return {id for id, outcome in outcomes.items() if outcome.status == status}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_caught_by_its_check_and_by_no_other(
    name: str, made: Environment, facts: dict[str, dict[str, Any]]
) -> None:
    outcomes = judge(made, facts[name])
    failed = {id: outcome for id, outcome in outcomes.items() if outcome.status == FAILED}
    assert set(failed) == BROKEN[name][1], failed
    assert all(outcome.reason for outcome in failed.values())


def test_every_check_is_tripped_by_some_broken_environment(made: Environment) -> None:
    tripped = set().union(*(expected for _, expected in BROKEN.values()))
    native = {check.id for check in checks.CHECKS if check.applies("venv", made.lock.platform)}
    # The first: see the rows of other targets below. The other is a Mac's, and judged from written facts (tests/unit).
    assert tripped == native - {"python", "float64"}


@pytest.mark.parametrize("name", spec.read(ROOT / "images" / spec.TABLE).targets)
def test_an_environment_under_another_row_is_caught(
    name: str, made: Environment, facts: dict[str, dict[str, Any]]
) -> None:
    target = spec.read(ROOT / "images" / spec.TABLE).pick(name)
    if made.lock.platform not in lock.locked_platforms(target, ROOT / "images"):
        return  # another machine's row: verify refuses it before any check
    outcomes = judge(made, facts["nothing"], target)
    if name == made.target.name:
        assert ended(outcomes, FAILED) == set()
        return
    expected = {"packages"}
    expected |= {"python"} if target.python != made.target.python else set()
    expected |= {"torch"} if (target.torch, target.variant) != (made.target.torch, made.target.variant) else set()
    expected |= {"cuda"} if target.cuda != made.target.cuda else set()
    expected |= {"archs"} if target.archs != made.target.archs else set()
    assert ended(outcomes, FAILED) - {"extra"} == expected
    if target.device not in facts["nothing"]["device"]:
        assert ended(outcomes, SKIPPED) == {"device"}


def test_what_needs_no_torch_is_still_read_where_torch_kills_its_process(facts: dict[str, dict[str, Any]]) -> None:
    found = facts["torch's library cut short"]
    assert "was killed by SIG" in found["torch"]["error"]
    assert found["packages"] == facts["nothing"]["packages"]
    assert found["python"]["minor"] == facts["nothing"]["python"]["minor"]
    assert [wrong for wrong in found["files"]["wrong"] if "libtorch_cpu.so" in wrong]


def test_the_command_says_it_with_exit_6_and_its_fix_removes_the_damage(made: Environment, tmp_path: Path) -> None:
    """`invoke verify` from end to end, on a copy that stands where the lock's environment would."""

    cache = tmp_path / "cache"
    copy = copy_of(made, cache / "envs" / made.target.name / venv.folder(made.lock).name)
    cut_torch(copy)
    done = invoke(cache, "verify", f"--target={made.target.name}", "--engine=venv", "--json")
    assert done.returncode == 6, done.stderr
    document = json.loads(done.stdout)
    status = {check["id"]: check["status"] for check in document["checks"]}
    assert {id for id, said in status.items() if said == FAILED} == BROKEN["torch's library cut short"][1]
    assert document["failed"] == len(BROKEN["torch's library cut short"][1])
    assert document["passed"] == sum(said == PASSED for said in status.values())
    assert "labrig: " in done.stderr
    assert f"invoke clean --target={made.target.name}" in done.stderr
    assert "Traceback" not in done.stderr

    gone = invoke(cache, "clean", f"--target={made.target.name}")
    assert gone.returncode == 0, gone.stderr
    assert not copy.place.exists()
    assert Path(made.reference, native.MARK).exists(), "what the copy was linked from is untouched"


def invoke(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A task with a cache of its own and no Docker engine: `clean` would take away the images of one that runs."""
    variables = {"LABRIG_CACHE": str(cache), "DOCKER_HOST": f"unix://{cache / 'no-engine'}"}
    return subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, **variables},
    )  # fmt: skip
