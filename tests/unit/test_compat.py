"""Verdicts over recorded machines. Targets are built here from the tables, so that no test depends on today's rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from labrig import compat, matrix
from labrig.compat import CPU_ONLY, FAILS, NO_INSTALL, RUNS, UNKNOWN, Finding
from labrig.doctor import render, report
from labrig.host import Gpu, Host, from_json
from labrig.spec import Target


def judge(target: Target, host: Host, others: Sequence[Target] = ()) -> Finding:
    return compat.judge(compat.of_target(target), host, [compat.of_target(other) for other in others])


def best(targets: Sequence[Target], host: Host) -> str | None:
    found = compat.best([compat.of_target(target) for target in targets], host)
    return found.name if found else None


# --- targets, with facts from the tables ------------------------------------------------------------------------------


def target(name: str, torch: str, variant: str, platforms: tuple[str, ...] = ("linux_x86_64",)) -> Target:
    build = matrix.variant(torch, "cpu" if variant == "mps" else variant)
    release = matrix.release(torch)
    mac = matrix.macos_floor(torch) if variant == "mps" else None
    assert build
    assert release
    return Target(
        name=name,
        torch=torch,
        variant=variant,
        python=matrix.pythons(torch, platforms[0])[0],
        device="cuda" if build.kind == "cuda" else variant,
        engines=("venv",),
        platforms=platforms,
        packages=(),
        companions=(),
        index=None,
        unlocked={},
        why="a test",
        base="bootstrap",
        builder="layers",
        size_mb=None,
        suite=None,
        conda=None,
        cuda=build.cuda and ".".join(build.cuda.split(".")[:2]),
        min_driver=matrix.driver_floor(build.name, build.cuda) if build.cuda else None,
        archs={platform: code for platform in platforms if (code := matrix.archs(torch, variant, platform))},
        glibc=None if mac else release.glibc[platforms[0]],
        macos=mac.mps if mac else None,
    )


def newest_with(variant: str, cc: str, platform: str = "linux_x86_64") -> str:
    """The newest torch whose build of that variant has code for a capability."""
    return next(
        torch
        for torch in reversed(matrix.releases())
        if (code := matrix.archs(torch, variant, platform)) and matrix.runs_on(code, cc)
    )


MODERN = newest_with("cu130", "12.0")
OLDER = next(torch for torch in matrix.releases() if matrix.default_variant(torch, "linux_x86_64") == "cu126")
LINUX = ("linux_x86_64", "linux_aarch64")

CPU = target("cpu", MODERN, "cpu", LINUX)
CUDA = target("cuda", MODERN, "cu130")
LEGACY = target("cuda-legacy", OLDER, "cu126")
MPS = target("mps", MODERN, "mps", ("macos_arm64",))
TARGETS = (CPU, CUDA, LEGACY, MPS)

# --- recorded machines ------------------------------------------------------------------------------------------------

DEBIAN: dict[str, Any] = {"os": "linux", "arch": "x86_64", "os_version": "Debian 12", "libc": "glibc 2.36"}
MAC: dict[str, Any] = {"os": "macos", "arch": "arm64"}


def gpu(name: str, capability: str | None, memory: int | None = None) -> dict[str, Any]:
    return {"name": name, "capability": capability, "memory_mib": memory}


RTX_4090 = gpu("NVIDIA GeForce RTX 4090", "8.9", 24564)
RTX_5090 = gpu("NVIDIA GeForce RTX 5090", "12.0", 32607)
GTX_1080_TI = gpu("NVIDIA GeForce GTX 1080 Ti", "6.1", 11264)

MACHINES: dict[str, dict[str, Any]] = {
    "this box": {**DEBIAN, "container": True},
    "workstation": {**DEBIAN, "driver": "580.65.06", "gpus": [RTX_4090]},
    "workstation with an older driver": {**DEBIAN, "driver": "550.54.14", "gpus": [RTX_4090]},
    "GTX 1080 Ti": {**DEBIAN, "driver": "580.65.06", "gpus": [GTX_1080_TI]},
    "GTX 1080 Ti with a very old driver": {**DEBIAN, "driver": "470.223.02", "gpus": [GTX_1080_TI]},
    "RTX 5090 with an old driver": {**DEBIAN, "driver": "560.35.03", "gpus": [RTX_5090]},
    "RTX 5090": {**DEBIAN, "driver": "580.95.05", "gpus": [RTX_5090]},
    "V100": {**DEBIAN, "driver": "535.183.01", "gpus": [gpu("Tesla V100-SXM2-32GB", "7.0", 32768)] * 4},
    "K80": {**DEBIAN, "driver": "470.223.02", "gpus": [gpu("Tesla K80", "3.7", 11441)]},
    "Alpine": {
        **DEBIAN,
        "os_version": "Alpine Linux v3.20",
        "libc": "musl 1.2.5",
        "driver": "580.65.06",
        "gpus": [RTX_4090],
    },
    "CentOS 7": {
        **DEBIAN,
        "os_version": "CentOS Linux 7",
        "libc": "glibc 2.17",
        "driver": "580.65.06",
        "gpus": [RTX_4090],
    },
    "libc not found": {**DEBIAN, "libc": None},
    "M2": {**MAC, "os_version": "15.1", "chip": "Apple M2"},
    "M2 in a virtual machine": {**MAC, "os_version": "15.5", "chip": "Apple M2 (Virtual)", "virtual": True},
    "M2 over ssh": {**MAC, "os_version": "15.5", "chip": "Apple M2", "remote": True},
    "M1 on macOS 13 in a virtual machine": {**MAC, "os_version": "13.6.7", "chip": "Apple M1", "virtual": True},
    "M1 on macOS 13": {**MAC, "os_version": "13.6.7", "chip": "Apple M1"},
    "M1 under Rosetta": {**MAC, "os_version": "15.1", "chip": "Apple M1", "translated": True},
    "Mac of no version": {**MAC, "os_version": ""},
    "Intel Mac": {"os": "macos", "arch": "x86_64", "os_version": "13.6.7", "chip": "Intel(R) Core(TM) i7"},
    "Windows": {"os": "windows", "arch": "x86_64", "os_version": "10.0.22631", "driver": "566.36", "gpus": [RTX_4090]},
    "WSL2": {**DEBIAN, "wsl": True, "driver": "581.15", "gpus": [RTX_4090]},
    "WSL2 with an old driver": {**DEBIAN, "wsl": True, "driver": "527.41", "gpus": [RTX_4090]},
    "Jetson Orin": {**DEBIAN, "arch": "aarch64", "driver": "580.00", "gpus": [gpu("Orin (nvgpu)", "8.7")]},
    "mixed": {**DEBIAN, "driver": "580.65.06", "gpus": [GTX_1080_TI, RTX_4090]},
    "broken nvidia-smi": {**DEBIAN, "gpu_error": "nvidia-smi ends with 9: NVIDIA-SMI has failed"},
    "driver and library differ": {**DEBIAN, "driver": "580.65.06", "gpu_error": "nvidia-smi ends with 18: mismatch"},
    "no nvidia-smi": {
        **DEBIAN,
        "driver": "580.65.06",
        "gpus": [gpu("NVIDIA GeForce RTX 3060", None)],
        "gpu_error": "the NVIDIA driver is loaded, but nvidia-smi is not on PATH",
    },
    "capability not told": {**DEBIAN, "driver": "580.65.06", "gpus": [gpu("NVIDIA Something", None)]},
    "driver without a card": {**DEBIAN, "driver": "580.65.06"},
    "broken WSL2": {**DEBIAN, "wsl": True, "gpu_error": "nvidia-smi did not answer within 10 s"},
    "RISC-V": {**DEBIAN, "arch": "riscv64"},
}


def host(name: str) -> Host:
    return from_json(json.loads(json.dumps(MACHINES[name])), name)


def verdicts(name: str) -> dict[str, str]:
    return {finding["name"]: finding["verdict"] for finding in report(TARGETS, host(name))["targets"]}


def finding(name: str, of: Target) -> Finding:
    return judge(of, host(name), TARGETS)


EXPECTED = {
    # machine: verdicts for cpu, cuda, cuda-legacy, mps; the best
    "this box": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "workstation": (RUNS, RUNS, RUNS, NO_INSTALL, "cuda"),
    "workstation with an older driver": (RUNS, CPU_ONLY, RUNS, NO_INSTALL, "cuda-legacy"),
    "GTX 1080 Ti": (RUNS, FAILS, RUNS, NO_INSTALL, "cuda-legacy"),
    "GTX 1080 Ti with a very old driver": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "RTX 5090 with an old driver": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "RTX 5090": (RUNS, RUNS, FAILS, NO_INSTALL, "cuda"),
    "V100": (RUNS, CPU_ONLY, RUNS, NO_INSTALL, "cuda-legacy"),
    "K80": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "Alpine": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "CentOS 7": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "libc not found": (UNKNOWN, UNKNOWN, UNKNOWN, NO_INSTALL, None),
    "M2": (NO_INSTALL, NO_INSTALL, NO_INSTALL, RUNS, "mps"),
    "M2 in a virtual machine": (NO_INSTALL, NO_INSTALL, NO_INSTALL, UNKNOWN, "mps"),
    "M2 over ssh": (NO_INSTALL, NO_INSTALL, NO_INSTALL, UNKNOWN, "mps"),
    "M1 on macOS 13 in a virtual machine": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "M1 on macOS 13": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "M1 under Rosetta": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "Mac of no version": (NO_INSTALL, NO_INSTALL, NO_INSTALL, UNKNOWN, None),
    "Intel Mac": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "Windows": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
    "WSL2": (RUNS, RUNS, RUNS, NO_INSTALL, "cuda"),
    "WSL2 with an old driver": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "Jetson Orin": (RUNS, NO_INSTALL, NO_INSTALL, NO_INSTALL, "cpu"),
    "mixed": (RUNS, RUNS, RUNS, NO_INSTALL, "cuda"),
    "broken nvidia-smi": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "driver and library differ": (RUNS, UNKNOWN, UNKNOWN, NO_INSTALL, "cpu"),
    "no nvidia-smi": (RUNS, RUNS, RUNS, NO_INSTALL, "cuda"),
    "capability not told": (RUNS, UNKNOWN, UNKNOWN, NO_INSTALL, "cpu"),
    "driver without a card": (RUNS, CPU_ONLY, CPU_ONLY, NO_INSTALL, "cpu"),
    "broken WSL2": (RUNS, UNKNOWN, UNKNOWN, NO_INSTALL, "cpu"),
    "RISC-V": (NO_INSTALL, NO_INSTALL, NO_INSTALL, NO_INSTALL, None),
}


def test_every_machine_has_an_expectation() -> None:
    assert set(EXPECTED) == set(MACHINES)


@pytest.mark.parametrize("machine", EXPECTED)
def test_verdicts(machine: str) -> None:
    *words, wanted = EXPECTED[machine]
    assert verdicts(machine) == dict(zip((each.name for each in TARGETS), words, strict=True))
    assert best(TARGETS, host(machine)) == wanted


@pytest.mark.parametrize("machine", EXPECTED)
def test_every_verdict_says_why_and_every_failure_says_what_to_do(machine: str) -> None:
    for found in report(TARGETS, host(machine))["targets"]:
        assert found["reason"], found
        if found["verdict"] != RUNS:
            assert found["fix"], found
        assert "\n" not in found["reason"] + found["fix"]
        assert f"`{found['name']}`" not in found["fix"], "a target is not its own way out"


@pytest.mark.parametrize("machine", EXPECTED)
@pytest.mark.parametrize("absent", [None, *TARGETS], ids=lambda absent: f"without {absent.name}" if absent else "all")
def test_a_fix_sends_nobody_to_a_target_that_does_not_run(machine: str, absent: Target | None) -> None:
    present = [each for each in TARGETS if each is not absent]
    for found in report(present, host(machine))["targets"]:
        for named in TARGETS:
            if f"use target `{named.name}`" in found["fix"] and "then use" not in found["fix"]:
                assert named in present
                assert verdicts(machine)[named.name] == RUNS, found


# --- the reasons and fixes that matter --------------------------------------------------------------------------------


def test_a_card_without_code_gets_the_target_that_has_it() -> None:
    found = finding("GTX 1080 Ti", CUDA)
    assert "GTX 1080 Ti (6.1)" in found.reason
    assert " ".join(CUDA.archs["linux_x86_64"]) in found.reason
    assert found.fix == "use target `cuda-legacy`"


def test_an_old_driver_gets_the_driver_needed_or_the_target_that_fits() -> None:
    found = finding("workstation with an older driver", CUDA)
    assert f"older than {CUDA.min_driver}" in found.reason
    assert found.fix == f"install NVIDIA driver {CUDA.min_driver} or newer; or use target `cuda-legacy`"
    assert judge(CUDA, host("workstation with an older driver")).fix.endswith(f"driver {CUDA.min_driver} or newer")


def test_no_driver_is_advised_that_ends_a_card_s_support() -> None:
    card = matrix.gpu("6.1")
    assert card
    for of in (CUDA, LEGACY):
        fix = finding("GTX 1080 Ti with a very old driver", of).fix
        assert f"{LEGACY.min_driver} or newer, but not past branch {card.driver_last}" in fix
    assert finding("GTX 1080 Ti with a very old driver", CUDA).fix.endswith("then use target `cuda-legacy`")
    for of in (CUDA, LEGACY):
        fix = finding("K80", of).fix
        assert "install NVIDIA driver" not in fix
        assert fix.endswith("use target `cpu` on the CPU")


def test_a_new_card_needs_a_newer_driver_than_the_target_does() -> None:
    card = matrix.gpu("12.0")
    assert card
    found = finding("RTX 5090 with an old driver", LEGACY)
    assert f"older than {card.driver_floor}, which this card needs" in found.reason
    assert found.fix == f"install NVIDIA driver {CUDA.min_driver} or newer, then use target `cuda`"


def test_volta_with_an_older_driver_is_sent_to_legacy_and_not_to_a_new_driver() -> None:
    found = finding("V100", CUDA)
    assert f"older than {CUDA.min_driver}" in found.reason
    assert "has no code for it" in found.reason
    assert found.fix == "use target `cuda-legacy`"


def test_of_several_cards_the_best_counts_and_the_worst_is_told() -> None:
    found = finding("mixed", CUDA)
    assert "RTX 4090 (8.9)" in found.reason
    assert "but NVIDIA GeForce GTX 1080 Ti (6.1)" in found.reason
    assert found.fix.endswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1")
    assert finding("mixed", LEGACY).fix == ""


@pytest.mark.parametrize("order", list(itertools.permutations([GTX_1080_TI, RTX_4090, gpu("unknown", None)])))
def test_the_order_of_cards_does_not_change_a_verdict(order: tuple[dict[str, Any], ...]) -> None:
    machine = from_json({**MACHINES["mixed"], "gpus": list(order)}, "mixed")
    assert judge(CUDA, machine).verdict == RUNS
    assert judge(CUDA, replace(machine, gpus=machine.gpus[:1])).verdict in (RUNS, FAILS, UNKNOWN)


def test_a_card_that_the_driver_does_not_know_is_not_numbered() -> None:
    """R595 leaves the Pascal card out by itself: hiding index 0 would hide the only one."""
    machine = from_json({**MACHINES["mixed"], "driver": "595.58.03"}, "mixed")
    found = judge(CUDA, machine)
    assert (found.verdict, found.fix) == (RUNS, "")
    assert "no longer knows this card" in found.reason


def test_a_capability_in_no_table_is_unknown() -> None:
    for capability in ("2.1", "13.0", "99.9"):
        odd = from_json({**MACHINES["workstation"], "gpus": [gpu("NVIDIA Odd", capability)]}, "odd")
        assert judge(CUDA, odd).verdict == UNKNOWN


def test_a_gpu_on_another_platform_is_told_what_runs_on_it() -> None:
    grace = Host("linux", "aarch64", libc="glibc 2.39", driver="580.95.05", gpus=(Gpu("GH200", "9.0"),))
    found = judge(CUDA, grace, TARGETS)
    assert found.verdict == NO_INSTALL
    assert f"on its GPU torch {CUDA.torch}+" in found.fix and "use target `cpu`" in found.fix
    nano = Host("linux", "aarch64", gpus=(Gpu("Jetson Nano", "5.3"),))
    assert "vendor builds" in judge(CUDA, nano, TARGETS).fix


def test_wsl2_is_measured_by_the_windows_driver() -> None:
    windows = matrix.driver_floor(LEGACY.variant, os="windows")
    assert windows
    found = finding("WSL2 with an old driver", LEGACY)
    assert f"older than {windows}" in found.reason
    assert f"{windows} or newer on Windows" in found.fix
    assert judge(LEGACY, replace(host("WSL2 with an old driver"), wsl=False)).verdict == RUNS


def test_windows_is_sent_to_wsl2() -> None:
    assert all("WSL2" in judge(each, host("Windows"), TARGETS).fix for each in TARGETS)


def test_jetson_orin_stays_unknown_for_desktop_code() -> None:
    aarch64 = target("cuda", MODERN, "cu130", LINUX)
    found = judge(aarch64, host("Jetson Orin"), TARGETS)
    assert found.verdict == UNKNOWN
    assert "unconfirmed" in found.reason
    assert best([aarch64, CPU], host("Jetson Orin")) == "cpu"


def test_older_jetson_fails_without_an_exact_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    aarch64 = target("cuda", MODERN, "cu130", LINUX)
    xavier = replace(host("Jetson Orin"), gpus=(Gpu("Xavier", "7.2"),))
    monkeypatch.setattr(matrix, "archs", lambda *_: ("7.0", "8.0"))
    assert judge(aarch64, xavier).verdict == FAILS
    monkeypatch.setattr(matrix, "archs", lambda *_: ("7.2",))
    assert judge(aarch64, xavier).verdict == RUNS


def test_an_unconfirmed_list_of_capabilities_stays_unknown() -> None:
    torch, variant = next(
        (torch, build.name)
        for torch in matrix.releases()
        for build in matrix.variants(torch)
        if build.kind == "cuda" and "linux_aarch64" in build.platforms
        if matrix.archs(torch, build.name, "linux_aarch64") is None
    )
    unclear = target("unclear", torch, variant, ("linux_aarch64",))
    grace = Host("linux", "aarch64", libc="glibc 2.39", driver="580.65.06", gpus=(Gpu("GH200", "9.0"),))
    found = judge(unclear, grace)
    assert (found.verdict, "unconfirmed" in found.reason) == (UNKNOWN, True)


def test_an_unconfirmed_glibc_is_judged_by_the_highest_floor_there_is() -> None:
    torch, known = None, []
    for each in matrix.releases():
        release = matrix.release(each)
        assert release
        floor = release.glibc["linux_x86_64"]
        torch = each if floor is None else torch
        known += [floor] if floor else []
    assert torch
    highest = max(known, key=matrix.numbers)
    old = target("old", torch, "cpu")
    assert judge(old, replace(host("this box"), libc=f"glibc {highest}")).verdict == RUNS
    assert judge(old, replace(host("this box"), libc="glibc 2.17")).verdict == UNKNOWN


def test_glibc_is_named_with_what_is_needed() -> None:
    found = finding("CentOS 7", CPU)
    assert found.reason == f"glibc 2.17 is older than {CPU.glibc}, which the wheel needs"
    assert judge(CPU, replace(host("CentOS 7"), libc=f"glibc {CPU.glibc}")).verdict == RUNS
    assert "musl" in finding("Alpine", CPU).reason


def test_macos_for_installing_and_for_mps_are_two_things() -> None:
    torch, floor = next(
        (torch, floor)
        for torch in matrix.releases()
        if (floor := matrix.macos_floor(torch)) and not matrix.at_least(floor.install, floor.mps)
    )
    apart = target("mps", torch, "mps", ("macos_arm64",))
    m1 = host("M1 on macOS 13")
    assert judge(apart, replace(m1, os_version=floor.mps)).verdict == RUNS
    assert judge(apart, replace(m1, os_version=floor.install)).verdict == CPU_ONLY
    assert judge(apart, replace(m1, os_version="10.15")).verdict == NO_INSTALL
    assert best([apart], replace(m1, os_version=floor.install)) == "mps", "slow, but the only one"


def test_a_mac_without_a_screen_of_its_own_is_not_promised_metal() -> None:
    virtual, remote = finding("M2 in a virtual machine", MPS), finding("M2 over ssh", MPS)
    assert "virtual machine" in virtual.reason and "actions/runner-images#9918" in virtual.reason
    assert "over ssh" in remote.reason and "huggingface/candle#3449" in remote.reason
    for found in (virtual, remote):
        assert found.fix.startswith("find out by `invoke verify --target=mps --require-device`; if it")
        assert host("M2 over ssh").os_version in found.reason
    assert "on the Mac itself" in virtual.fix and "--device=cpu" in virtual.fix
    assert "log in at the Mac's screen" in remote.fix
    both = replace(host("M2 over ssh"), virtual=True)
    assert "virtual" in judge(MPS, both).reason, "what cannot be mended by logging in is told first"


def test_metal_in_doubt_is_still_the_target_of_that_mac_but_of_no_other_machine() -> None:
    for machine in ("M2 in a virtual machine", "M2 over ssh"):
        assert best(TARGETS, host(machine)) == "mps"
    assert best([MPS], host("Mac of no version")) is None
    assert best([MPS], replace(host("Mac of no version"), virtual=True)) is None
    assert best([CUDA], replace(host("driver and library differ"), virtual=True)) is None


def test_render_marks_what_a_mac_is() -> None:
    for machine, mark in (("M2 in a virtual machine", "virtual machine"), ("M2 over ssh", "ssh, not logged in")):
        first = render(report(TARGETS, host(machine)), width=100).splitlines()[0]
        assert mark in first
    assert render(report(TARGETS, host("M2"))).splitlines()[0].split(maxsplit=1)[1] == "macos 15.1, arm64"


def test_a_mac_too_old_hears_which_macos() -> None:
    assert "update macOS to" in finding("M1 on macOS 13", MPS).fix
    assert "native arm64 Python" in finding("M1 under Rosetta", MPS).fix
    assert matrix.intel_mac_last() in finding("Intel Mac", MPS).reason  # type: ignore[operator]


def test_mps_in_a_container_is_told_apart_from_mps_on_linux() -> None:
    assert "container" in finding("this box", MPS).reason
    assert "container" not in finding("workstation", MPS).reason


def test_a_broken_nvidia_smi_is_told_apart_from_none() -> None:
    assert (
        finding("broken nvidia-smi", CUDA).reason
        == "no NVIDIA driver is loaded: " + host("broken nvidia-smi").gpu_error
    )
    assert finding("this box", CUDA).reason == "no NVIDIA driver"
    assert "--gpus all" in finding("this box", CUDA).fix
    assert "not on PATH" not in finding("capability not told", CUDA).fix


def test_a_variant_without_a_known_driver_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "driver_floor", lambda *_, **__: None)
    assert judge(CUDA, host("workstation")).verdict == UNKNOWN


# --- best, report, render ---------------------------------------------------------------------------------------------


def test_best_takes_the_newest_torch_of_those_that_run_and_does_not_depend_on_the_order() -> None:
    for order in itertools.permutations(TARGETS):
        assert best(order, host("workstation")) == "cuda"
        assert best(order, host("GTX 1080 Ti")) == "cuda-legacy"
    assert best([], host("workstation")) is None
    assert best([CUDA], host("this box")) == "cuda", "on the CPU only, for want of another"
    assert best([CUDA, LEGACY], host("driver and library differ")) is None, "unknown is never chosen"


def test_the_report_is_what_doctor_json_promises() -> None:
    found = json.loads(json.dumps(report(TARGETS, host("mixed"))))
    assert list(found) == ["host", "assumed", "best", "cuda", "targets", "sources"]
    keys = ["name", "verdict", "reason", "fix", "cause", "sources"]
    assert [list(each) for each in found["targets"]] == [keys] * len(TARGETS)
    assert {each for one in found["targets"] for each in one["sources"]} == set(found["sources"])
    assert found["host"]["platform"] == "linux_x86_64"
    assert from_json(found["host"], "again").gpus == host("mixed").gpus


@pytest.mark.parametrize("machine", EXPECTED)
@pytest.mark.parametrize("width", [80, 100])
def test_render_shows_everything_and_keeps_its_width(machine: str, width: int) -> None:
    found = report(TARGETS, host(machine))
    text = render(found, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = "".join(text.split())
    for each in found["targets"]:
        for part in (each["name"], each["verdict"]):
            assert "".join(part.split()) in flat
        for word in f"{each['reason']} {each['fix']}".split():
            assert word in text
    assert (found["best"] or "none") in text


def test_markup_in_a_name_is_not_markup() -> None:
    odd = from_json({**MACHINES["workstation"], "gpus": [gpu("[bold]GPU[/bold] [/]", "8.9")]}, "odd")
    assert "[bold]GPU[/bold] [/]" in render(report(TARGETS, odd), width=200)
