"""`invoke doctor`: why CUDA is not available, rooms, descriptions, and that it answers fast, offline, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from labrig import compat, doctor, matrix, spec
from labrig.compat import CPU_ONLY, RUNS
from labrig.description import parse
from labrig.errors import UsageError
from labrig.host import Host, Torch

ROOT = Path(__file__).parents[2]
TABLE = spec.read(ROOT / "images" / spec.TABLE)
BUILDS = [compat.of_target(target) for target in TABLE.targets.values()]
GOOD = parse("linux x86_64 glibc=2.36 driver=580.65.06 gpu=8.9 docker=27.0").host


def causes(host: Host) -> list[str]:
    return [each.cause for each in doctor.obstacles(BUILDS, host)]


# --- why CUDA is not available ----------------------------------------------------------------------------------------


def change(**values: object) -> Callable[[Host], Host]:
    return lambda host: replace(host, **values)  # type: ignore[arg-type]


CPU_TORCH = Torch("2.13.0+cpu", None, "/home/me/venv")
NEW_TORCH = Torch("2.13.0+cu130", "13.0", "/home/me/venv")
NIGHTLY = Torch("2.17.0.dev20261101+cu134", "13.4", "/home/me/venv")


@pytest.mark.parametrize(
    ("words", "changed", "expected", "fix"),
    [
        ("driver=580.65.06 gpu=8.9", change(), [], ""),
        ("", change(), ["no driver"], "if there is an NVIDIA GPU, install driver 5"),
        ("", change(pci_nvidia=1), ["no driver"], "install driver 5"),
        ("", change(pci_nvidia=0), ["no GPU"], "use target `cpu`"),
        ("container", change(pci_nvidia=0), ["no GPU"], "use target `cpu`"),
        ("container", change(), ["no driver"], "--gpus all"),
        ("driver=580.65.06 container", change(gpu_nodes=False), ["no --gpus"], "--gpus all"),
        ("driver=580 gpu=8.9 container", change(gpu_nodes=False, gpu_error="no nvidia-smi"), ["no --gpus"], "--gpus"),
        ("driver=595.71.05 gpu=6.1 container", change(gpu_nodes=False), ["driver too new"], "branch R580"),
        ("driver=390.157 gpu=3.7", change(), ["driver too old"], "driver 450.80.02 or newer, but not past branch R470"),
        ("driver=none gpu=6.1", change(pci_nvidia=1), ["no driver"], "525.60.13 or newer, but not past branch R580"),
        ("driver=none gpu=12.0", change(pci_nvidia=1), ["no driver"], "install NVIDIA driver 580 or newer"),
        ("", change(pci_nvidia=2), ["no driver"], "Maxwell/Pascal/Volta not past R580"),
        ("driver=580.65.06", change(), ["no GPU"], "seated"),
        ("driver=580.65.06", change(gpu_error="nvidia-smi did not answer"), ["driver does not answer"], "nvidia-smi"),
        ("driver=470.256.02 gpu=8.9", change(), ["driver too old"], "install NVIDIA driver"),
        ("driver=595.58.03 gpu=6.1", change(), ["driver too new"], "install NVIDIA driver branch R580 instead"),
        (
            "driver=470.256.02 gpu=3.7",
            change(),
            ["driver too old"],
            'with torch = "2.7.1", variant = "cu118"',
        ),
        ("driver=580.65.06 gpu=8.9", change(visible_devices=""), ["hidden by CUDA_VISIBLE_DEVICES"], "unset"),
        ("driver=580.65.06 gpu=8.9", change(visible_devices="-1"), ["hidden by CUDA_VISIBLE_DEVICES"], "unset"),
        ("driver=580.65.06 gpu=8.9", change(visible_devices="1"), ["hidden by CUDA_VISIBLE_DEVICES"], "unset"),
        ("driver=580.65.06 gpu=8.9", change(visible_devices="0"), [], ""),
        ("driver=580.65.06 gpu=8.9,8.9", change(visible_devices="1,7"), [], ""),
        ("driver=580.65.06 gpu=8.9", change(visible_devices="GPU-8932f937"), [], ""),
        ("driver=580.65.06 gpu=8.9", change(torch=CPU_TORCH), ["CPU wheel"], "use target `cuda`"),
        ("driver=580.65.06 gpu=8.9", change(torch=NEW_TORCH), [], ""),
        ("driver=580.65.06 gpu=6.1", change(torch=NEW_TORCH), ["no code for the GPU"], "use target `cuda-legacy`"),
        ("driver=550.54.14 gpu=8.9", change(torch=NEW_TORCH), ["driver too old"], "use target `cuda-legacy`"),
        ("driver=580.65.06 gpu=8.9", change(torch=NIGHTLY), [], ""),
        (
            "driver=580.65.06 gpu=8.9 docker=27",
            change(docker_gpus=False),
            ["no NVIDIA Container Toolkit"],
            "nvidia-ctk",
        ),
        ("driver=580.65.06 gpu=8.9 docker=27", change(docker_gpus=True), [], ""),
        ("driver=580.65.06 gpu=8.9 docker=27", change(docker_gpus=None), [], ""),
    ],
)
def test_each_cause_is_told_apart_and_has_a_fix(
    words: str, changed: Callable[[Host], Host], expected: list[str], fix: str
) -> None:
    host = changed(parse(f"linux x86_64 glibc=2.36 {words}").host)
    found = doctor.obstacles(BUILDS, host)
    assert [each.cause for each in found] == expected
    assert all(each.reason and each.fix for each in found)
    assert not fix or any(fix in each.fix for each in found)


def test_several_causes_are_all_told_the_most_basic_first() -> None:
    host = replace(GOOD, driver="470.256.02", visible_devices="-1", torch=CPU_TORCH, docker_gpus=False)
    assert causes(host) == [
        "driver too old", "hidden by CUDA_VISIBLE_DEVICES", "CPU wheel", "no NVIDIA Container Toolkit",
    ]  # fmt: skip


def test_a_mac_is_not_told_about_cuda() -> None:
    assert causes(parse("M2").host) == []


# --- other machines ---------------------------------------------------------------------------------------------------


def test_a_card_by_name() -> None:
    found = doctor.examine(TABLE, "GTX 1080")
    verdicts = {each["name"]: each for each in found["targets"]}
    assert found["best"] == "cuda-legacy"
    assert verdicts["cuda"]["verdict"] == compat.FAILS
    assert verdicts["cuda"]["fix"] == "use target `cuda-legacy`"
    assert "GTX 1080 (6.1)" in verdicts["cuda"]["reason"]
    assert any("the last branch for it" in each for each in found["assumed"])
    assert found["host"]["found_by"] == "description"


def test_a_release_instead_of_the_targets() -> None:
    found = doctor.examine(
        TABLE, "linux x86_64 driver=580 gpu=6.1 python=3.12", ["2.13.0+cu130", "2.13.0", "2.14.1+cu126"]
    )
    assert [each["name"] for each in found["targets"]] == ["2.13.0+cu130", "2.13.0+cu130", "2.14.1+cu126"]
    assert [each["verdict"] for each in found["targets"]] == [compat.FAILS, compat.FAILS, RUNS]
    assert found["targets"][0]["fix"] == "use torch 2.14.1+cu126"
    alone = doctor.examine(TABLE, "linux x86_64 driver=580 gpu=6.1 python=3.12", ["2.13.0+cu130"])["targets"][0]
    assert alone["fix"] == "use target `cuda-legacy`"
    old = doctor.examine(TABLE, "linux x86_64 python=3.9", ["2.13.0+cpu"])["targets"][0]
    assert (old["verdict"], old["fix"]) == (
        compat.NO_INSTALL,
        "make the environment with Python 3.14; or use target `cpu`",
    )


@pytest.mark.parametrize("text", ["2.13", "9.9.9", "2.13.0+cu99", "2.13.0+", "+cu130", "latest"])
def test_a_release_that_there_is_not(text: str) -> None:
    if text == "2.13.0+":
        assert doctor.examine(TABLE, "T4", [text])["targets"][0]["name"] == "2.13.0+cu130"
        return
    with pytest.raises(UsageError) as error:
        doctor.examine(TABLE, "T4", [text])
    assert error.value.found and error.value.fix


def test_never_is_a_driver_advised_that_no_longer_knows_the_card() -> None:
    for gpu in matrix.gpus():
        last = compat.last_branch(compat.Gpu("card", gpu.capability))
        for driver in ("450.80.02", "535.183.01", "580.65.06", "610.43.02"):
            host = parse(f"linux x86_64 driver={driver} gpu={gpu.capability}").host
            for build in BUILDS:
                fix = compat.judge(build, host, BUILDS).fix
                if last and "install NVIDIA driver" in fix and "branch R" not in fix.partition("install")[2][:30]:
                    assert f"but not past branch R{last}" in fix, (gpu.capability, driver, fix)


# --- rooms ------------------------------------------------------------------------------------------------------------

ROOM = """
[[host]]
name = "new"
machine = "linux x86_64 driver=580.95.05 gpu=8.9"
room = "E1"
[[host]]
name = "old-driver"
machine = "linux x86_64 driver=470.256.02 gpu=8.6"
[[host]]
name = "old-card"
machine = "linux x86_64 driver=580.95.05 gpu=6.1"
target = "cuda"
[[host]]
name = "mac"
machine = "darwin arm64 macos=15.1"
[[host]]
name = "plain"
machine = "linux x86_64"
[[host]]
name = "intel-mac"
machine = "darwin x86_64 macos=13.6"
"""


def test_a_room_is_judged_machine_by_machine(tmp_path: Path) -> None:
    file = tmp_path / "room.toml"
    file.write_text(ROOM)
    rows = {row["host"]: row for row in doctor.examine_room(TABLE, file)}
    told = {name: (row["target"], row["verdict"]) for name, row in rows.items()}
    assert told == {
        "new": ("cuda", RUNS),
        "old-driver": ("cpu", RUNS),
        "old-card": ("cuda", compat.FAILS),
        "mac": ("mps", RUNS),
        "plain": ("cpu", RUNS),
        "intel-mac": ("cpu", compat.NO_INSTALL),
    }
    assert (
        "its GPU is not used" in rows["old-driver"]["reason"] and "install NVIDIA driver" in rows["old-driver"]["fix"]
    )
    assert rows["old-card"]["fix"] == "use target `cuda-legacy`"
    assert rows["new"]["room"] == "E1"
    tally = doctor.tally(list(rows.values()))
    assert (
        tally == "6 machines: 4 runs, 1 installs but fails, 1 does not install; 1 of those with a GPU that is not used"
    )
    assert [row[0] for row in doctor.room_rows(rows.values())] == list(rows)


def test_a_room_with_an_unknown_target(tmp_path: Path) -> None:
    file = tmp_path / "room.toml"
    file.write_text(ROOM.replace('target = "cuda"', 'target = "rocm"'))
    with pytest.raises(UsageError, match="old-card: no target 'rocm'"):
        doctor.examine_room(TABLE, file)
    with pytest.raises(UsageError, match="neither"):
        doctor.examine_room(TABLE, file, alone=False)


# --- as a command -----------------------------------------------------------------------------------------------------


def invoke(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", "doctor", *arguments], cwd=ROOT, env={**os.environ, **env}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_answers_without_torch_and_without_network(tmp_path: Path) -> None:
    """The network is not only unused: a process that opens a connection other than to a local socket dies."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, sys\n"
        "real = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    if self.family != socket.AF_UNIX: raise SystemExit(f'a connection to {address}')\n"
        "    return real(self, address)\n"
        "socket.socket.connect = connect\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'numpy', 'unearth', 'httpx2'): raise SystemExit(f'imports {name}')\n"
        "sys.meta_path.insert(0, Nothing())\n"
    )
    for arguments in ([], ["--for=GTX 1080"], ["--json"]):
        done = invoke(*arguments, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "runs" in done.stdout
    json.loads(done.stdout)


def test_a_wrong_description_is_exit_2_without_a_traceback() -> None:
    for flag in ("--for=RTX 5091", "--for=", "--build=1", "--inventory=absent.toml"):
        done = invoke(flag)
        if flag == "--for=":
            assert done.returncode == 0, "as if it were not there"
            continue
        assert done.returncode == 2, done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr and "fix:" in done.stderr


def test_a_hung_nvidia_smi_does_not_hang_the_doctor(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nsleep 600\n")
    program.chmod(0o755)
    began = time.monotonic()
    done = invoke("--json", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0 and time.monotonic() - began < 30
    assert "did not answer" in json.loads(done.stdout)["host"]["gpu_error"]


def test_colours_only_for_a_terminal() -> None:
    report = doctor.examine(TABLE, "GTX 1080")
    assert "\x1b" not in doctor.render(report)
    colored = doctor.render(report, color=True)
    assert "\x1b[31minstalls but fails" in colored and "\x1b[32mruns" in colored


def test_what_a_gpu_that_is_not_used_costs_is_said_of_the_best() -> None:
    host = parse("linux x86_64 driver=470.256.02 gpu=8.6").host
    found = doctor.report(list(TABLE.targets.values()), host)
    assert found["best"] == "cpu"
    assert found["cuda"][0]["cause"] == "driver too old"
    assert found["targets"][1]["verdict"] == CPU_ONLY


def test_the_document_of_one_machine_is_a_machine_on_another(tmp_path: Path) -> None:
    file = tmp_path / "pc07.json"
    file.write_text(json.dumps(doctor.examine(TABLE, "linux x86_64 driver=580.95.05 gpu=6.1 python=3.12")))
    done = invoke("--json", LABRIG_HOST=str(file))
    found = json.loads(done.stdout)
    assert found["best"] == "cuda-legacy"
    assert found["host"]["driver"] == "580.95.05" and found["host"]["found_by"].startswith("LABRIG_HOST")
