"""`invoke select`: every command that it gives is for a build that the tables have."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from labrig import compat, matrix, selector, spec
from labrig.errors import HostError, UsageError
from labrig.selector import select

ROOT = Path(__file__).parents[2]
TABLE = spec.read(ROOT / "images" / spec.TABLE)
CASES = [
    (system, package, build.variant, build.torch)
    for system, platform in selector.SYSTEMS.items()
    for package in selector.PACKAGES
    if (system, package) != ("mac", "docker")
    for build in selector._candidates(platform, package)
]


def test_there_is_a_command_for_every_build_of_the_tables() -> None:
    for torch in matrix.releases():
        for build in matrix.variants(torch):
            for system, platform in selector.SYSTEMS.items():
                if build.kind in ("cpu", "cuda") and platform in build.platforms:
                    variant = "mps" if system == "mac" else build.name
                    assert (system, "pip", variant, torch) in CASES


@pytest.mark.parametrize("package", ["pip", "uv"])
def test_pip_and_uv_commands_are_exact_and_take_the_build_from_where_it_is(package: str) -> None:
    for system, _, compute, torch in (case for case in CASES if case[1] == package):
        found = select(TABLE, system=system, package=package, compute=compute, torch=torch)
        words = shlex.split(found.command)
        start = 4 if package == "pip" else 3
        stop = words.index("--index-url") if "--index-url" in words else len(words)
        pins = {Requirement(word).name: word.partition("==")[2] for word in words[start:stop]}
        release = matrix.release(torch)
        assert release is not None
        assert pins["torch"] == torch and pins["torchvision"] == release.torchvision
        platform = selector.SYSTEMS[system]
        assert found.python in matrix.pythons(torch, platform)
        for name in set(pins) - {"torch"}:
            assert found.python in matrix.companion_pythons(name, pins[name], platform), found.command
        name = "cpu" if compute == "mps" else compute
        plain = matrix.default_variant(torch, platform) == name
        assert ("--index-url" in words) != plain
        if not plain:
            assert words[-1] == f"{selector.index_root(TABLE)}/{name}"


def test_conda_commands_name_the_build_and_its_cuda() -> None:
    checked = 0
    for system, _, compute, torch in (case for case in CASES if case[1] == "conda"):
        found = select(TABLE, system=system, package="conda", compute=compute, torch=torch)
        words = shlex.split(found.command)
        made = matrix.conda_build(torch, compute, selector.SYSTEMS[system])
        assert made is not None
        assert f"pytorch={torch}={made.build}" in words
        assert (f"cuda-version={made.cuda}" in words) == (made.cuda is not None)
        checked += 1
    assert checked >= 6


def test_docker_commands_are_for_an_image_of_that_processor() -> None:
    found = select(TABLE, system="linux", package="docker", compute="cu130", torch="2.13.0")
    assert found.command == "docker run --rm -it --gpus all pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime"
    assert any("Container Toolkit" in note for note in found.notes)
    arm = select(TABLE, system="linux-arm", package="docker")
    assert "--gpus" not in arm.command
    with pytest.raises(UsageError, match="container"):
        select(TABLE, system="mac", package="docker")
    with pytest.raises(UsageError, match="no build for compute platform 'cpu'"):
        select(TABLE, system="linux", package="docker", compute="cpu")


def test_a_machine_gets_what_it_runs_best() -> None:
    for words, compute in (
        ("GTX 1080", "cu126"),
        ("RTX 5090", "cu132"),
        ("M2", "mps"),
        ("linux x86_64", "cpu"),
        ("T4", "cu132"),
    ):
        found = select(TABLE, machine=words)
        assert found.compute == compute, words
        assert found.verdict is not None and found.verdict.verdict == compat.RUNS
    card = matrix.gpu("6.1")
    assert card and select(TABLE, machine="GTX 1080").torch == card.torch_last
    old = select(TABLE, machine="Tesla K80")
    assert (old.torch, old.compute) == ("2.7.1", "cu118"), "driver R470 is enough for cu118 alone"
    none = select(TABLE, machine="linux x86_64 driver=450.80.02 gpu=12.0")
    assert none.compute == "cpu"


def test_what_cannot_be_installed_is_no_command() -> None:
    for words in ("linux libc=musl", "linux glibc=2.17"):
        with pytest.raises(HostError) as error:
            select(TABLE, machine=words)
        assert error.value.code == 3 and error.value.fix


def test_a_gpu_that_the_command_leaves_unused_is_said_with_the_fix() -> None:
    for words, says in (("linux driver=595 gpu=6.1", "R580"), ("linux driver=none gpu=8.6", "install NVIDIA driver")):
        found = select(TABLE, machine=words)
        assert found.compute == "cpu"
        told = "\n".join(selector.explain(found))
        assert "its GPU is not used" in told and says in told


def test_where_no_build_for_a_gpu_is_offered_the_cpus_is_given() -> None:
    found = select(TABLE, machine="linux aarch64 gpu=9.0", package="docker")
    assert (found.compute, "--gpus" in found.command) == ("cpu", False)


def test_the_machines_own_python_is_taken_if_it_will_do() -> None:
    assert select(TABLE, machine="linux python=3.12 gpu=8.6").python == "3.12"
    assert any("py -3." in line for line in selector.explain(select(TABLE, system="windows")))


def test_what_was_named_is_taken_and_judged() -> None:
    found = select(TABLE, machine="GTX 1080", compute="cu130")
    assert found.verdict is not None and found.verdict.verdict == compat.FAILS
    assert any("installs but fails" in line for line in selector.explain(found))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"system": "beos"}, "linux-arm"),
        ({"package": "apt"}, "conda"),
        ({"system": "linux", "compute": "cu99"}, "cu130"),
        ({"system": "linux", "torch": "1.0.0"}, "2.14.1"),
        ({"system": "linux", "machine": "M2"}, "name one of them"),
        ({"system": "linux", "package": "conda", "torch": "2.4.0"}, "2.13.0"),
        ({"machine": "darwin x86_64"}, "conda-forge"),
        ({"machine": "linux riscv64"}, "systems: "),
        ({"system": "mac", "compute": "cu130"}, "mps"),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(words: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as error:
        select(TABLE, **words)
    assert says in str(error.value) and error.value.fix


def test_the_python_is_one_or_two_behind_the_newest_stable() -> None:
    stable = [row.minor for row in matrix.stable_pythons()]
    assert select(TABLE, system="linux").python in stable[1:3]
    assert select(TABLE, system="linux", torch="2.4.0").python == "3.12", "the newest it has wheels for"
    rule = selector.python_rule(TABLE)
    assert [row[0] for row in rule] == stable
    assert [row[0] for row in rule if "take one" in row[1]] == stable[1:3]
    for name, target in TABLE.targets.items():
        assert f"`{name}`" in next(row[-1] for row in rule if row[0] == target.python)


def test_a_table_without_a_pytorch_index_is_told_so() -> None:
    bare = spec.Table(TABLE.path, TABLE.targets, {"mirror": "https://mirror.example/simple"})
    with pytest.raises(UsageError, match="names no PyTorch index"):
        select(bare, system="linux", compute="cpu", torch="2.13.0")
    assert "--index-url" not in select(bare, system="linux", compute="cu130", torch="2.13.0").command


def test_as_a_command_the_result_alone_is_on_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "select", "--os=linux", "--compute=cu126"], cwd=ROOT, capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("python -m pip install torch==")
    assert "NVIDIA driver" in done.stderr and "sources:" in done.stderr


def test_the_page_holds_every_command() -> None:
    page = (ROOT / "docs" / "select.md").read_text(encoding="utf-8")
    rows = selector.commands(TABLE)
    assert len(rows) >= 15
    assert all(row[-1] in page for row in rows)
