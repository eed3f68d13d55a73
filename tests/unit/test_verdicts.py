"""Verdicts in bulk: the golden file, the same by rules written another way, and what really happened to people."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import golden
import pytest
from test_matrix import raw

from labrig import compat, description, spec

LINES = [line.split("\t") for line in golden.FILE.read_text(encoding="utf-8").splitlines()[1:]]
TARGETS = spec.read(golden.ROOT / "images" / spec.TABLE).targets
REPORTS = tomllib.loads(Path(__file__).with_name("reports.toml").read_text(encoding="utf-8"))["report"]


def test_the_golden_file_is_what_the_rules_say_today() -> None:
    """A difference is a decision: read it, then `python tests/unit/golden.py` and commit it with its reason."""
    assert golden.FILE.read_text(encoding="utf-8").splitlines() == golden.lines()


def test_it_holds_every_verdict_word_and_every_side_of_the_rules() -> None:
    assert len(LINES) >= 500
    assert {line[2] for line in LINES} == set(compat.VERDICTS)
    causes = Counter(line[3] for line in LINES)
    for cause in ("driver too old", "driver too new", "no code for the GPU", "no driver", "no GPU", "no --gpus"):
        assert causes[cause], cause


# --- the same by other means: raw rows, one question after the other -------------------------------------------------

ROWS = {name: raw(name) for name in ("cuda_variants", "drivers", "gpu_arch", "gpus", "macos", "wheels", "releases")}


def one(table: str, **where: str) -> dict[str, str]:
    (row,) = [row for row in ROWS[table] if all(row[key] == value for key, value in where.items())]
    return row


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def by_rule_cuda(system: str, arch: str, driver: str, capability: str, torch: str, variant: str) -> str:
    """README of labrig/data, "Reading `archs`"; design.md, the two-sided verdict."""
    toolkit = one("cuda_variants", torch=torch, variant=variant)["cuda"]
    side = "windows" if system in ("windows", "wsl2") else "linux"
    card = one("gpus", cc=capability)
    if card["driver_last"].startswith("R") and version(driver)[0] >= int(card["driver_last"][1:]) + 10:
        return "runs on CPU only"
    if version(driver) < version(one("drivers", variant=variant, toolkit=toolkit)[f"min_{side}"]):
        return "runs on CPU only"
    if (own := card[f"driver_floor_{side}"]) not in ("-", "unconfirmed") and version(driver) < version(own):
        return "runs on CPU only"
    platform = "windows_amd64" if system == "windows" else f"linux_{arch}"
    code = one("gpu_arch", torch=torch, variant=variant, platform=platform)
    if code["archs"] == "unconfirmed" or code["conf"] == "unconfirmed":
        return "unknown"
    majors = {version(each)[0]: [] for each in code["archs"].split()}
    for each in code["archs"].split():
        majors[version(each)[0]].append(version(each)[1])
    major, minor = version(capability)
    fits = capability in code["archs"].split() or (
        capability not in ("5.3", "6.2", "7.2", "8.7") and min(majors.get(major, [99])) <= minor
    )
    return "runs" if fits else "unknown" if card["conf"] == "unconfirmed" else "installs but fails"


@pytest.mark.parametrize("build", sorted({line[1] for line in LINES if "+cu" in line[1] or line[1].startswith("cuda")}))
def test_cuda_verdicts_follow_the_rule(build: str) -> None:
    checked = 0
    for machine, name, verdict, _ in LINES:
        words = machine.split()
        pairs = dict(word.split("=") for word in words if "=" in word)
        if name != build or "driver" not in pairs or "," in pairs.get("gpu", ",") or pairs["driver"] == "none":
            continue
        if "container" in words or (words[0] == "linux" and words[1] not in ("x86_64", "aarch64")):
            continue
        torch, _, variant = build.partition("+")
        if target := TARGETS.get(build):
            torch, variant = target.torch, target.variant
            if words[0] == "windows":
                assert verdict == "does not install"
                continue
        arch = {"amd64": "x86_64"}.get(words[1], words[1])
        platform = "windows_amd64" if words[0] == "windows" else f"linux_{arch}"
        there = one("cuda_variants", torch=torch, variant=variant)[platform]
        if there != "yes":
            assert verdict == ("does not install" if there == "no" else "unknown"), machine
            continue
        assert verdict == by_rule_cuda(words[0], arch, pairs["driver"], pairs["gpu"], torch, variant), (machine, build)
        checked += 1
    assert checked > 15


def test_pythons_macos_and_libc_follow_the_rule() -> None:
    checked = Counter[str]()
    for machine, build, verdict, _ in LINES:
        words = machine.split()
        pairs = dict(word.split("=") for word in words if "=" in word)
        torch, _, variant = build.partition("+")
        if variant not in ("cpu", "mps"):
            continue
        platform = "macos_arm64" if variant == "mps" else f"linux_{words[1]}"
        expected = "runs"
        wheel = one("wheels", package="torch", version=torch, platform=platform)
        if variant == "mps":
            mac = one("macos", torch=torch, arch="arm64")
            if version(pairs["macos"]) < version(mac["macos_mps_min"]):
                expected = "runs on CPU only"
            tagged = mac["wheel_tag"].split("; ")
            own = [tag for tag in tagged if pairs.get("python", "-") in tag.partition("(")[2].strip(")").split(" ")]
            floor = version(own[0].split("_")[1] if own else mac["macos_install_min"])
            if version(pairs["macos"]) < floor:
                expected = "does not install"
        else:
            floor = one("releases", torch=torch)[f"glibc_{words[1]}"]
            if pairs.get("libc") == "musl":
                expected = "does not install"
            elif floor == "unconfirmed" and version(pairs["glibc"]) < (2, 28):
                expected = "unknown"
            elif floor != "unconfirmed" and version(pairs["glibc"]) < version(floor):
                expected = "does not install"
            elif "no-lse" in words and version(torch) < (2, 11):
                expected = "installs but fails"
            if one("cuda_variants", torch=torch, variant="cpu")[platform] == "unconfirmed":
                expected = "unknown"
        if "python" in pairs and pairs["python"] not in wheel["python"].split() and expected != "unknown":
            expected = "does not install"
        assert verdict == expected, (machine, build)
        checked[variant] += 1
    assert min(checked.values()) > 150


# --- what really happened ---------------------------------------------------------------------------------------------


def identify(report: dict[str, str]) -> str:
    return f"{report['source']} {report['machine']} {report['build']}"


@pytest.mark.parametrize("report", REPORTS, ids=identify)
def test_a_report(report: dict[str, str]) -> None:
    """labrig says what the person saw; where it does not, the file says what it says instead, and why."""
    host = description.parse(report["machine"]).host
    finding = compat.judge(compat.of_release(report["build"], host), host)
    assert finding.verdict == report.get("labrig", report["verdict"])
    assert ("labrig" in report) == ("differs" in report)
    assert report.get("labrig") != report["verdict"]
    if finding.verdict != compat.RUNS:
        assert finding.fix


def test_there_are_enough_of_them_and_few_differ() -> None:
    assert len(REPORTS) >= 40 and len({report["source"] for report in REPORTS}) >= 40
    assert all("#" in report["source"] or report["source"].startswith("https://") for report in REPORTS)
    wrong = [report for report in REPORTS if report.get("labrig") not in (None, "unknown")]
    assert len(wrong) <= 5, "a verdict that reality contradicts, other than unknown"
    assert {report["verdict"] for report in REPORTS} >= set(compat.VERDICTS) - {"unknown"}


def test_the_page_says_how_many() -> None:
    page = " ".join((golden.ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").split())
    unknown = sum(report.get("labrig") == "unknown" for report in REPORTS)
    assert f"{len(LINES):,} verdicts in a golden file" in page
    assert f"{len(REPORTS)} reports of what happened to people" in page and f"calls {unknown} unknown" in page
