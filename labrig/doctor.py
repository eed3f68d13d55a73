"""Which targets run on a host, why the others do not, and what to do about it: decided before a byte is downloaded.

`judge` is pure: a Target, a Host and the tables of labrig.compat. What is not known stays "unknown". "runs" means that
the host meets every known condition; no verdict here has touched a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from . import compat
from .host import Gpu, Host
from .spec import Target

Verdict = Literal["runs", "runs on CPU only", "installs but fails", "does not install", "unknown"]
RUNS: Verdict = "runs"
CPU_ONLY: Verdict = "runs on CPU only"
FAILS: Verdict = "installs but fails"
NO_INSTALL: Verdict = "does not install"
UNKNOWN: Verdict = "unknown"

# Where it was reported; checks.py and setup.sh point there, too.
VIRTUAL_ISSUE = "(actions/runner-images#9918)"
REMOTE_ISSUE = "(huggingface/candle#3449)"

# Of several GPUs the best one counts, in this order: one card that runs is enough.
_BEST_CARD = (RUNS, UNKNOWN, FAILS, CPU_ONLY)


@dataclass(frozen=True)
class Finding:
    """The verdict for one target: `reason` says why, `fix` is one line, empty where nothing needs to be done."""

    name: str
    verdict: Verdict
    reason: str
    fix: str


def judge(target: Target, host: Host, others: Sequence[Target] = ()) -> Finding:
    """What happens when `target` is built and used on `host`; the fix may name one of the `others` that does better."""
    verdict, reason, fix = _cannot_install(target, host) or _compute(target, host, others)
    others = [other for other in others if other.name != target.name]
    no_gpu = verdict == CPU_ONLY and not host.gpus
    if (verdict in (NO_INSTALL, UNKNOWN) or no_gpu) and (instead := _best_running(others, host)):
        fix = f"{fix}; or use target `{instead}`" if fix else f"use target `{instead}`"
    elif verdict == NO_INSTALL and not fix:
        made_for = [other.name for other in others if host.platform in other.platforms]
        fix = f"make target `{made_for[0]}` run here first" if made_for else f"use a machine with {_needs(target)}"
    elif verdict == UNKNOWN and not fix:
        fix = f"find out by trying: `invoke build --target={target.name}`, then `invoke verify --target={target.name}`"
    return Finding(target.name, verdict, reason, fix)


def best(targets: Iterable[Target], host: Host) -> str | None:
    """The target to use on this host: of those that run one for a GPU, then one for the CPU, newest torch first.

    Where none runs, one that computes on the CPU at least; None where not even that is known.
    """
    targets = list(targets)
    slow = [
        target for target in targets if judge(target, host).verdict == CPU_ONLY or _only_metal_is_in_doubt(target, host)
    ]
    return _best_running(targets, host) or (_newest(slow).name if slow else None)


def _only_metal_is_in_doubt(target: Target, host: Host) -> bool:
    """Whether the target installs and computes on the CPU at least; a Mac has no other to take instead."""
    return target.device == "mps" and (host.virtual or host.remote) and _cannot_install(target, host) is None


def _best_running(targets: Iterable[Target], host: Host) -> str | None:
    runs = [target for target in targets if judge(target, host).verdict == RUNS]
    for device in ("cuda", "mps", "cpu"):
        if fitting := [target for target in runs if target.device == device]:
            return _newest(fitting).name
    return None


def report(targets: Sequence[Target], host: Host) -> dict[str, Any]:
    """The answer of `doctor --json`: {"host", "best", "targets": [{"name", "verdict", "reason", "fix"}]}."""
    return {
        "host": host.to_json(),
        "best": best(targets, host),
        "targets": [asdict(judge(target, host, targets)) for target in targets],
    }


def _newest(targets: Sequence[Target]) -> Target:
    return max(targets, key=lambda target: compat.numbers(target.torch))  # the first of equals


# --- does it install --------------------------------------------------------------------------------------------------

_Outcome = tuple[Verdict, str, str]


def _cannot_install(target: Target, host: Host) -> _Outcome | None:
    """Why the wheels cannot be installed, or None if nothing known speaks against it."""
    if host.os == "windows":
        return (
            NO_INSTALL,
            "Windows: targets are for Linux and macOS",
            "use WSL2: `wsl --install`, then labrig inside it",
        )
    if host.os == "macos" and host.arch != "arm64":
        last = compat.intel_mac_last()
        return (
            NO_INSTALL,
            f"Intel Mac: torch {last} was the last with wheels for it",
            "use Linux or an Apple silicon Mac",
        )
    if host.os != "macos" and target.device == "mps":
        if host.container:
            return (
                NO_INSTALL,
                "MPS cannot be reached from a container",
                "run labrig in macOS itself, not in a container",
            )
        return NO_INSTALL, f"MPS is for Apple silicon Macs; this is {_words(host)}", ""
    if host.platform not in target.platforms:
        return NO_INSTALL, f"for {_needs(target)}; this is {_words(host)}", ""
    if host.translated:
        fix = "run labrig with a native arm64 Python (`uname -m` in its terminal must say arm64)"
        return NO_INSTALL, "this Python is an Intel one under Rosetta, and there are no Intel wheels", fix
    return _old_macos(target, host) if host.os == "macos" else _old_libc(target, host)


def _needs(target: Target) -> str:
    return " or ".join(platform.replace("_", " ", 1) for platform in target.platforms)


def _words(host: Host) -> str:
    return f"{host.os} {host.arch}"


def _old_libc(target: Target, host: Host) -> _Outcome | None:
    name, _, found = (host.libc or "").partition(" ")
    if name == "musl":
        return NO_INSTALL, "musl libc: torch wheels are for glibc", "use a glibc distribution (Debian, Ubuntu, Fedora)"
    floor, sure = _glibc_floor(target.torch, host.platform or "")
    have = _version(found)
    if name != "glibc" or have is None or floor is None:
        return UNKNOWN, f"the C library of this host or of the wheel is not known ({host.libc or 'none found'})", ""
    if compat.at_least(have, floor):
        return None
    if not sure:
        return UNKNOWN, f"glibc {have}: the lowest glibc for torch {target.torch} is unconfirmed", ""
    fix = f"use a distribution with glibc {floor} or newer (Debian 10, Ubuntu 20.04, RHEL 8 and newer)"
    return NO_INSTALL, f"glibc {have} is older than {floor}, which the wheel needs", fix


def _glibc_floor(torch: str, platform: str) -> tuple[str | None, bool]:
    """The lowest glibc, and whether it is known; where it is unconfirmed, the highest floor of any release.

    Floors only ever rose from release to release, so a host that meets the highest one meets the unconfirmed one too.
    """
    floors = {name: release.glibc.get(platform) for name in compat.releases() if (release := compat.release(name))}
    if known := floors.get(torch):
        return known, True
    return max((floor for floor in floors.values() if floor), key=compat.numbers, default=None), False


def _old_macos(target: Target, host: Host) -> _Outcome | None:
    floor, have = compat.macos_floor(target.torch, target.python), _version(host.os_version)
    if floor is None or have is None:
        return UNKNOWN, "the macOS version of this host, or the lowest one for the wheel, is not known", ""
    if not compat.at_least(have, floor.install):
        reason = f"macOS {have} is older than {floor.install}, which the wheel needs"
        return NO_INSTALL, reason, f"update macOS to {floor.install} or newer"
    return None


def _version(text: str) -> str | None:
    found = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return found[0] if found else None


# --- what it computes on ----------------------------------------------------------------------------------------------


def _compute(target: Target, host: Host, others: Sequence[Target]) -> _Outcome:
    if target.device == "cpu":
        return RUNS, "needs no GPU", ""
    if target.device == "mps":
        return _mps(target, host)
    if target.device == "cuda":
        return _cuda(target, host, others)
    return UNKNOWN, f"no rule for device {target.device}", ""


def _mps(target: Target, host: Host) -> _Outcome:
    have = _version(host.os_version)
    if target.macos is None or have is None:
        return UNKNOWN, "the lowest macOS for MPS is not known", ""
    if not compat.at_least(have, target.macos):
        reason = f"macOS {have} is older than {target.macos}, which MPS needs in torch {target.torch}"
        return CPU_ONLY, reason, f"update macOS to {target.macos} or newer"
    found = f"{host.chip or 'Apple silicon'}, macOS {have}"
    # Reports differ about both (docs/mac.md), and doctor starts no torch to find out.
    try_it = f"find out by `invoke verify --target={target.name} --require-device`"
    if host.virtual:
        reason = f"{found} in a virtual machine, where MPS may seem available and allocate nothing {VIRTUAL_ISSUE}"
        return (
            UNKNOWN,
            reason,
            f"{try_it}; if it does not compute, use macOS on the Mac itself, or labs with --device=cpu",
        )
    if host.remote:
        reason = (
            f"{found} over ssh, while you are not logged in at its screen: macOS may give you no Metal {REMOTE_ISSUE}"
        )
        return UNKNOWN, reason, f"{try_it}; if it is absent, log in at the Mac's screen, or share it, and run it there"
    return RUNS, found, ""


def _cuda(target: Target, host: Host, others: Sequence[Target]) -> _Outcome:
    floor = _variant_floor(target, host)
    if floor is None:
        return UNKNOWN, f"the lowest driver for {target.variant} is not known", ""
    if host.driver is None:
        return _no_driver(host, floor)
    if not host.gpus:
        if host.gpu_error:
            return UNKNOWN, f"the GPUs are not known: {host.gpu_error}", _repair(host)
        fix = "start the container with --gpus all" if host.container else "check that the GPU is seated and enabled"
        return CPU_ONLY, f"driver {host.driver} shows no GPU", fix

    cards = [(gpu, *_card(target, gpu, host, floor)) for gpu in host.gpus]
    gpu, verdict, reason = min(cards, key=lambda card: _BEST_CARD.index(card[1]))
    _, worst, worst_reason = max(cards, key=lambda card: _BEST_CARD.index(card[1]))
    if verdict == RUNS:
        reason = f"{reason}, driver {host.driver}"
    if worst != verdict:
        reason = f"{reason}; but {worst_reason}"
    if verdict == RUNS:
        usable = ",".join(str(index) for index, card in enumerate(cards) if card[1] == RUNS)
        hide = f"hide the others: export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={usable}"
        return RUNS, reason, hide if worst != RUNS else ""
    return verdict, reason, _cuda_fix(target, gpu, host, others)


def _variant_floor(target: Target, host: Host) -> str | None:
    """The lowest driver for a target's CUDA; nvidia-smi in WSL2 tells the version of the Windows driver."""
    if not host.wsl:
        return target.min_driver
    build = compat.variant(target.torch, target.variant)
    return compat.driver_floor(target.variant, build.cuda, os="windows") if build and build.cuda else None


def _no_driver(host: Host, floor: str) -> _Outcome:
    if host.gpu_error and host.wsl:  # no kernel file tells the driver here, so nothing is known
        return UNKNOWN, f"the driver is not known: {host.gpu_error}", _repair(host)
    if host.gpu_error:
        return CPU_ONLY, f"no NVIDIA driver is loaded: {host.gpu_error}", _repair(host)
    fix = f"if there is an NVIDIA GPU, install driver {floor} or newer{' on Windows' if host.wsl else ''}"
    if host.container:
        fix = f"on a host with driver {floor} or newer, start the container with --gpus all"
    return CPU_ONLY, "no NVIDIA driver", fix


def _repair(host: Host) -> str:
    if host.wsl:
        return "make `nvidia-smi` answer: update the NVIDIA driver on Windows, then `wsl --shutdown`"
    if host.container:
        return "make `nvidia-smi` answer: start the container with --gpus all (NVIDIA Container Toolkit)"
    return "make `nvidia-smi` answer: reboot after a driver update, or reinstall the driver with its tools"


def _card(target: Target, gpu: Gpu, host: Host, floor: str) -> tuple[Verdict, str]:
    name = f"{gpu.name} ({gpu.capability or 'capability unknown'})"
    driver, code = host.driver or "", target.archs.get(host.platform or "")
    missing = bool(code and gpu.capability and not compat.runs_on(code, gpu.capability))
    no_code = f"torch {target.torch} {target.variant} has no code for it, only for {' '.join(code or ())}"
    if not compat.at_least(driver, floor):
        reason = f"{name}: driver {driver} is older than {floor}, which CUDA {target.cuda} needs"
        return CPU_ONLY, f"{reason}; and {no_code}" if missing else reason
    if gpu.capability is None:
        return UNKNOWN, f"{name}: the driver does not tell its compute capability"
    if (own := _card_floor(gpu, host)) and not compat.at_least(driver, own):
        return CPU_ONLY, f"{name}: driver {driver} is older than {own}, which this card needs"
    if code is None:
        return UNKNOWN, f"{name}: which cards torch {target.torch} {target.variant} has code for is unconfirmed"
    if not missing:
        return RUNS, name
    known = compat.gpu(gpu.capability)
    if known and known.confidence == "unconfirmed":
        return UNKNOWN, f"{name}: whether it runs the code of this wheel is unconfirmed"
    return FAILS, f"{name}: {no_code}"


def _card_floor(gpu: Gpu, host: Host) -> str | None:
    # A floor that is unconfirmed does not stop a card: the driver that names it knows it.
    known = compat.gpu(gpu.capability) if gpu.capability else None
    return (known.driver_floor_windows if host.wsl else known.driver_floor) if known else None


def _cuda_fix(target: Target, gpu: Gpu, host: Host, others: Sequence[Target]) -> str:
    """One line that gets this card to work: another target, a newer driver that still supports the card, or neither."""
    if gpu.capability is None and host.gpu_error:
        return _repair(host)
    if gpu.capability is None:
        return "find its compute capability in NVIDIA's list, and compare it with `invoke list`"
    known = compat.gpu(gpu.capability)
    last = known.driver_last if known else None
    newest_branch = last[1:] if last and re.fullmatch(r"R[0-9]+", last) else None
    needs: dict[str, str] = {}
    for each in (target, *(other for other in others if other.name != target.name)):
        code, floor = each.archs.get(host.platform or ""), _variant_floor(each, host)
        if each.device != "cuda" or not code or floor is None or _cannot_install(each, host):
            continue
        need = max(filter(None, (floor, _card_floor(gpu, host))), key=compat.numbers)
        reachable = newest_branch is None or compat.numbers(need)[0] <= int(newest_branch)
        if compat.runs_on(code, gpu.capability) and reachable:
            needs[each.name] = need
    fitting = [each for each in (target, *others) if each.name in needs]
    now = [each for each in fitting if compat.at_least(host.driver or "0", needs[each.name])]
    instead = f"use target `{_newest(now).name}`" if now else ""
    where = " on Windows" if host.wsl else ""
    limit = f", but not past branch {last}, the last for this card" if newest_branch else ""
    if target.name in needs:
        install = f"install NVIDIA driver {needs[target.name]} or newer{where}{limit}"
        return f"{install}; or {instead}" if instead else install
    if instead:
        return instead
    if fitting:
        goal = _newest(fitting).name
        return f"install NVIDIA driver {needs[goal]} or newer{where}{limit}, then use target `{goal}`"
    on_cpu = _best_running([other for other in others if other.device == "cpu"], host)
    advice = f"no target is known to have code for this card{f' ({known.advice})' if known else ''}"
    return f"{advice}; use target `{on_cpu}` on the CPU" if on_cpu else advice


_MARKS = {
    "container": "container",
    "wsl": "WSL2",
    "translated": "Rosetta",
    "virtual": "virtual machine",
    "remote": "ssh, not logged in at the screen",
}

# --- for people -------------------------------------------------------------------------------------------------------


def render(report: Mapping[str, Any], *, width: int = 100) -> str:
    """A report as text: what was found, which target is best, and a table of verdicts with reasons and fixes."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    host = report["host"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['capability'] or 'capability unknown'})" for gpu in host["gpus"])
    marks = [name for key, name in _MARKS.items() if host[key]]
    found = {
        "system": ", ".join(filter(None, [f"{host['os']} {host['os_version']}".strip(), host["arch"], *marks])),
        "C library": host["libc"],
        "Python": host["python"],
        "Docker": host["docker"] or f"none ({host['docker_error'] or 'not asked'})",
        "NVIDIA driver": host["driver"] or "none",
        "GPUs": gpus or host["gpu_error"] or "none",
        "chip": host["chip"],
        "found by": None if host["found_by"] == "queries" else host["found_by"],
        "best target": report["best"] or "none: see below",
    }
    buffer = StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False)
    facts = Table.grid(padding=(0, 2))
    for label, value in found.items():
        if value:
            facts.add_row(label, Text(value))
    console.print(facts)
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in ("target", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("why, and what to do")
    for finding in report["targets"]:
        lines = [finding["reason"], *([f"fix: {finding['fix']}"] if finding["fix"] else [])]
        table.add_row(finding["name"], finding["verdict"], Text("\n".join(lines)))
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
