"""The verdict: what happens when a build of torch is installed and used on a machine, decided before any download.

Pure functions over a Build, a Host and the tables of labrig.matrix; no network, file or GPU is asked. What is not known
stays "unknown". "runs" means that the machine meets every known condition; no verdict here has touched a GPU. A build
is a target, or any torch release and variant of the tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from labrig import matrix
from labrig.errors import UsageError
from labrig.host import Gpu, Host
from labrig.spec import MPS, Target

Verdict = Literal["runs", "runs on CPU only", "installs but fails", "does not install", "unknown"]
RUNS: Verdict = "runs"
CPU_ONLY: Verdict = "runs on CPU only"
FAILS: Verdict = "installs but fails"
NO_INSTALL: Verdict = "does not install"
UNKNOWN: Verdict = "unknown"
VERDICTS = (RUNS, CPU_ONLY, FAILS, NO_INSTALL, UNKNOWN)

# Why torch.cuda.is_available() is False, or a kernel dies: doctor's words for it (docs/doctor.md explains each).
Cause = Literal[
    "", "no GPU", "no driver", "driver does not answer", "driver too old", "driver too new", "no code for the GPU",
    "no --gpus", "no NVIDIA Container Toolkit", "hidden by CUDA_VISIBLE_DEVICES", "CPU wheel",
]  # fmt: skip

# Where it was reported; checks.py and setup.sh point there, too.
VIRTUAL_ISSUE = "(actions/runner-images#9918)"
REMOTE_ISSUE = "(huggingface/candle#3449)"

# Of several GPUs the best one counts, in this order: one card that runs is enough.
_BEST_CARD = (RUNS, UNKNOWN, FAILS, CPU_ONLY)


@dataclass(frozen=True)
class Build:
    """What is to be installed: a torch release in one of its variants, from wheels or in an image.

    ``target`` is the row that pins it, None for a bare release. ``engine`` is the one that is to make it; without it
    whatever can. A bare release is installed by pip into the machine's own Python.
    """

    torch: str  # "2.13.0"
    variant: str  # "cpu", "cu130", "mps"
    platforms: tuple[str, ...]
    target: Target | None = None
    engine: str | None = None

    @property
    def name(self) -> str:
        """A target's name, or a release as pip writes it: "2.13.0+cu130"."""
        return self.target.name if self.target else f"{self.torch}+{self.variant}"

    @property
    def words(self) -> str:
        """What a fix calls it."""
        return f"target `{self.name}`" if self.target else f"torch {self.name}"

    @property
    def device(self) -> str:
        """What torch computes on: cpu, cuda, mps; rocm and xpu are known by name only."""
        if self.variant == MPS:
            return MPS
        known = matrix.variant(self.torch, self.variant)
        return known.kind if known else "unknown"

    @cached_property
    def cuda(self) -> str | None:
        """The full version of its CUDA, "13.0.3"."""
        known = matrix.variant(self.torch, self.variant)
        return known.cuda if known else None

    def floor(self, host: Host) -> str | None:
        """The lowest driver for its CUDA; nvidia-smi in WSL2 tells the version of the Windows driver."""
        system = "windows" if host.wsl or host.os == "windows" else "linux"
        return matrix.driver_floor(self.variant, self.cuda, os=system) if self.cuda else None

    def archs(self, host: Host) -> tuple[str, ...] | None:
        """The compute capabilities with native code on that machine's platform; None = unconfirmed."""
        if self.engine == "conda":
            made = matrix.conda_build(self.torch, self.variant, host.platform or "")
            return made.archs if made else None
        return matrix.archs(self.torch, self.variant, host.platform or "")

    def in_image(self, host: Host) -> bool:
        """Whether it comes in an image, with a C library and a Python of its own."""
        if self.target is None or self.engine not in (None, "docker"):
            return False
        return self.engine == "docker" or ("docker" in self.target.engines and host.docker is not None)


def of_target(target: Target, engine: str | None = None) -> Build:
    """The build that a target pins."""
    return Build(target.torch, target.variant, target.platforms, target, engine)


def of_release(text: str, host: Host) -> Build:
    """The build that "2.13.0+cu130" names, or with "2.13.0" what a plain install gives on that machine.

    Raises:
        UsageError: the tables have no such release, or none of that variant.
    """
    torch, _, variant = text.partition("+")
    if matrix.release(torch) is None:
        raise UsageError(
            f"no torch {torch!r} in the compatibility tables",
            found=f"known: {', '.join(matrix.releases())}",
            fix="name a release such as 2.13.0, or a release and a variant such as 2.13.0+cu130",
        )
    platform = host.platform or ""
    if not variant:
        plain = matrix.default_variant(torch, platform)
        variant = MPS if host.os == "macos" else plain or "cpu"
    known = matrix.variant(torch, "cpu" if variant == MPS else variant)
    if known is None:
        raise UsageError(
            f"torch {torch} has no variant {variant!r}",
            found=f"variants: {' '.join(each.name for each in matrix.variants(torch))} mps",
            fix="name one of these after a +, as in 2.13.0+cu130",
        )
    mac = "macos_arm64"
    platforms = (mac,) if variant == MPS else tuple(each for each in known.platforms if each != mac)
    return Build(torch, variant, platforms)


@dataclass(frozen=True)
class Finding:
    """The verdict for one build.

    ``reason`` says why; ``fix`` is one line, empty where nothing needs to be done; ``cause`` is why its GPU cannot be
    used, in one of a few words; ``sources`` are ids of labrig/data/sources.tsv, for the facts that decided.
    """

    name: str
    verdict: Verdict
    reason: str
    fix: str
    cause: Cause = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Outcome:
    verdict: Verdict
    reason: str
    fix: str = ""
    cause: Cause = ""
    sources: tuple[str, ...] = ()


def judge(build: Build, host: Host, others: Sequence[Build] = ()) -> Finding:
    """What happens when `build` is installed and used on `host`. The fix may name one of the `others`."""
    host = _inside(build, replace(host, gpus=tuple(map(_known, host.gpus))))
    outcome = _cannot_install(build, host) or _compute(build, host, others)
    others = [other for other in others if other.name != build.name]
    verdict, fix = outcome.verdict, outcome.fix
    if verdict == NO_INSTALL and build.device == "cuda" and host.gpus and host.platform == "linux_aarch64":
        fix = _on_its_gpu(build, host)
    no_gpu = verdict == CPU_ONLY and not host.gpus
    if (verdict in (NO_INSTALL, UNKNOWN) or no_gpu) and (instead := _best_running(others, host)):
        fix = f"{fix}; or use {instead.words}" if fix else f"use {instead.words}"
    elif verdict == NO_INSTALL and not fix:
        made_for = [other.words for other in others if host.platform in other.platforms]
        fix = f"make {made_for[0]} run here first" if made_for else f"use a machine with {_needs(build)}"
    elif verdict == UNKNOWN and not fix:
        fix = (
            f"find out by trying: `invoke build --target={build.name}`, then `invoke verify --target={build.name}`"
            if build.target
            else "find out by trying"
        )
    return Finding(build.name, verdict, outcome.reason, fix, outcome.cause, outcome.sources)


def _on_its_gpu(build: Build, host: Host) -> str:
    """What runs on a machine's GPU where a build is for another platform; empty where nothing is known."""
    gpu = host.gpus[0]
    known = matrix.gpu(gpu.capability) if gpu.capability else None
    if near := nearest(build, host, gpu):
        return f"on its GPU torch {near.name} runs (`invoke select`)"
    return f"on its GPU: {known.advice}" if known else ""


def _inside(build: Build, host: Host) -> Host:
    """The machine as an image sees it: on a Mac, Docker runs Linux of the same architecture, and no GPU is in there."""
    if build.engine != "docker" or host.os != "macos":
        return host
    arch = (host.container_platform or "").removeprefix("linux_") or host.arch
    return replace(host, os="linux", arch=arch, container=True, translated=False)


def _known(gpu: Gpu) -> Gpu:
    """The GPU with its capability, from its name where its driver does not tell it (up to R470, or no nvidia-smi)."""
    found = None if gpu.capability else matrix.find_card(gpu.name)
    return replace(gpu, capability=found[1].capability) if found else gpu


def best(builds: Iterable[Build], host: Host) -> Build | None:
    """The build to use on this machine: of those that run one for a GPU, then one for the CPU, newest torch first.

    Where none runs, one that computes on the CPU at least; None where not even that is known.
    """
    builds = list(builds)
    slow = [build for build in builds if judge(build, host).verdict == CPU_ONLY or _only_metal_is_in_doubt(build, host)]
    return _best_running(builds, host) or (_newest(slow) if slow else None)


def _only_metal_is_in_doubt(build: Build, host: Host) -> bool:
    """Whether it installs and computes on the CPU at least; a Mac has no other to take instead."""
    return build.device == MPS and (host.virtual or host.remote) and _cannot_install(build, host) is None


def _best_running(builds: Iterable[Build], host: Host) -> Build | None:
    runs = [build for build in builds if judge(build, host).verdict == RUNS]
    for device in ("cuda", "mps", "cpu"):
        if fitting := [build for build in runs if build.device == device]:
            return _newest(fitting)
    return None


def _newest(builds: Sequence[Build]) -> Build:
    return max(builds, key=lambda build: matrix.numbers(build.torch))  # the first of equals


# --- does it install --------------------------------------------------------------------------------------------------


def _cannot_install(build: Build, host: Host) -> _Outcome | None:
    """Why it cannot be installed, or None if nothing known speaks against it."""
    if host.os == "windows" and build.target:
        fix = "use WSL2: `wsl --install`, then labrig inside it"
        return _Outcome(NO_INSTALL, "Windows: targets are for Linux and macOS", fix)
    if host.os == "macos" and host.arch != "arm64":
        last, conda = matrix.intel_mac_last(), matrix.conda_torch("osx-64")
        fix = "use Linux or an Apple silicon Mac"
        if conda:
            fix = f"{fix}; conda-forge has torch {conda[-1]} for the CPU of Intel Macs"
        reason = f"Intel Mac: torch {last} was the last with wheels for it"
        return _Outcome(NO_INSTALL, reason, fix, sources=("S01", "S40"))
    if host.os != "macos" and build.device == MPS:
        if host.container:
            reason = "MPS cannot be reached from a container (pytorch/pytorch#81224)"
            return _Outcome(NO_INSTALL, reason, "run labrig in macOS itself, not in a container")
        return _Outcome(NO_INSTALL, f"MPS is for Apple silicon Macs; this is {_words(host)}")
    if host.platform not in build.platforms:
        return _other_platform(build, host)
    if host.translated:
        fix = "run labrig with a native arm64 Python (`uname -m` in its terminal must say arm64)"
        return _Outcome(NO_INSTALL, "this Python is an Intel one under Rosetta, and there are no Intel wheels", fix)
    if not build.target and (outcome := _other_python(build, host)):
        return outcome
    if build.in_image(host):
        return None
    return _old_macos(build, host) if host.os == "macos" else _old_libc(build, host)


def _other_platform(build: Build, host: Host) -> _Outcome:
    known = matrix.variant(build.torch, build.variant)
    sources = matrix.cite("cuda_variants", build.torch, build.variant)
    if not build.target and known and host.platform in known.unconfirmed:
        reason = f"whether torch {build.torch} has a {build.variant} wheel for {_words(host)} is unconfirmed"
        return _Outcome(UNKNOWN, reason, sources=sources)
    if not build.target:
        where = f"only for {_needs(build)}" if build.platforms else "for nothing any more"
        note = f" ({known.note})" if known and known.note and not build.platforms else ""
        reason = f"torch {build.torch} has {build.variant} wheels {where}{note}; this is {_words(host)}"
        return _Outcome(NO_INSTALL, reason, sources=sources)
    return _Outcome(NO_INSTALL, f"for {_needs(build)}; this is {_words(host)}")


def _other_python(build: Build, host: Host) -> _Outcome | None:
    """A bare release takes the machine's Python, and its wheels decide, not what it declares to require."""
    minor = ".".join(host.python.split(".")[:2])
    have = matrix.pythons(build.torch, host.platform or "")
    if not minor or minor in have:
        return None
    sources = matrix.cite("wheels", "torch", build.torch, host.platform or "")
    if not have:
        return _Outcome(UNKNOWN, f"the Pythons that torch {build.torch} has wheels for here are unconfirmed")
    return _Outcome(
        NO_INSTALL,
        f"torch {build.torch} has no wheel for Python {minor} here, only for {' '.join(have)}",
        f"make the environment with Python {matrix.settled_python(have) or have[0]}",
        sources=sources,
    )


def _needs(build: Build) -> str:
    return " or ".join(platform.replace("_", " ", 1) for platform in build.platforms)


def _words(host: Host) -> str:
    return f"{host.os} {host.arch}"


def _old_libc(build: Build, host: Host) -> _Outcome | None:
    if host.os == "windows":
        return None
    name, _, found = (host.libc or "").partition(" ")
    image = "use the image, which brings its own (install Docker)" if _has_image(build) else ""
    if name == "musl":
        fix = "use a glibc distribution (Debian, Ubuntu, Fedora)"
        reason = "musl libc: torch wheels are for glibc"
        return _Outcome(NO_INSTALL, reason, f"{image}, or {fix}" if image else fix, sources=("S01",))
    floor, sure = _glibc_floor(build, host.platform or "")
    have, sources = _version(found), matrix.cite("releases", build.torch)
    if name != "glibc" or have is None or floor is None:
        reason = f"the C library of this host or of the wheel is not known ({host.libc or 'none found'})"
        return _Outcome(UNKNOWN, reason)
    if matrix.at_least(have, floor):
        return None
    if not sure:
        reason = f"glibc {have}: the lowest glibc for torch {build.torch} is unconfirmed"
        return _Outcome(UNKNOWN, reason, sources=sources)
    fix = f"use a distribution with glibc {floor} or newer (Debian 10, Ubuntu 20.04, RHEL 8 and newer)"
    reason = f"glibc {have} is older than {floor}, which the wheel needs"
    return _Outcome(NO_INSTALL, reason, f"{image}, or {fix}" if image else fix, sources=sources)


def _has_image(build: Build) -> bool:
    return build.target is not None and build.engine is None and "docker" in build.target.engines


def _glibc_floor(build: Build, platform: str) -> tuple[str | None, bool]:
    """The lowest glibc, and whether it is known; where it is unconfirmed, the highest floor of any release.

    Floors only ever rose from release to release, so a host that meets the highest one meets the unconfirmed one too.
    """
    floors = {name: release.glibc.get(platform) for name in matrix.releases() if (release := matrix.release(name))}
    made = matrix.conda_build(build.torch, build.variant, platform) if build.engine == "conda" else None
    if known := made.glibc if made else floors.get(build.torch):
        return known, True
    return max((floor for floor in floors.values() if floor), key=matrix.numbers, default=None), False


def _old_macos(build: Build, host: Host) -> _Outcome | None:
    python = build.target.python if build.target else ".".join(host.python.split(".")[:2])
    floor, have = matrix.macos_floor(build.torch, python or None), _version(host.os_version)
    if floor is None or have is None:
        return _Outcome(UNKNOWN, "the macOS version of this host, or the lowest one for the wheel, is not known")
    if matrix.at_least(have, floor.install):
        return None
    reason = f"macOS {have} is older than {floor.install}, which the wheel needs"
    return _Outcome(NO_INSTALL, reason, f"update macOS to {floor.install} or newer", sources=floor.sources)


def _version(text: str) -> str | None:
    found = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return found[0] if found else None


# --- what it computes on ----------------------------------------------------------------------------------------------


def _compute(build: Build, host: Host, others: Sequence[Build]) -> _Outcome:
    platform = host.platform or ""
    if host.lse is False and matrix.has_defect(matrix.NO_LSE, build.torch, platform):
        reason = (
            f"this processor has no LSE atomics, and torch {build.torch} dies with an illegal instruction without them"
        )
        sources = matrix.cite("defects", matrix.NO_LSE, platform)
        return _Outcome(FAILS, reason, "use a torch of another release", sources=sources)
    if build.device == "cpu":
        return _Outcome(RUNS, "needs no GPU")
    if build.device == MPS:
        return _mps(build, host)
    if build.device == "cuda":
        return _cuda(build, host, others)
    return _Outcome(UNKNOWN, f"labrig has no rules for {build.device}")


def _mps(build: Build, host: Host) -> _Outcome:
    have, floor = _version(host.os_version), matrix.macos_floor(build.torch)
    if floor is None or have is None:
        return _Outcome(UNKNOWN, "the lowest macOS for MPS is not known")
    if not matrix.at_least(have, floor.mps):
        reason = f"macOS {have} is older than {floor.mps}, which MPS needs in torch {build.torch}"
        return _Outcome(CPU_ONLY, reason, f"update macOS to {floor.mps} or newer", sources=floor.sources)
    found = f"{host.chip or 'Apple silicon'}, macOS {have}"
    # Reports differ about both (docs/mac.md), and doctor starts no torch to find out.
    try_it = (
        f"find out by `invoke verify --target={build.name} --require-device`"
        if build.target
        else "find out by `python -c \"import torch; torch.ones(1, device='mps')\"`"
    )
    if host.virtual:
        reason = f"{found} in a virtual machine, where MPS may seem available and allocate nothing {VIRTUAL_ISSUE}"
        return _Outcome(
            UNKNOWN,
            reason,
            f"{try_it}; if it does not compute, use macOS on the Mac itself, or labs with --device=cpu",
        )
    if host.remote:
        reason = (
            f"{found} over ssh, while you are not logged in at its screen: macOS may give you no Metal {REMOTE_ISSUE}"
        )
        return _Outcome(
            UNKNOWN,
            reason,
            f"{try_it}; if it is absent, log in at the Mac's screen, or share it, and run it there",
        )
    return _Outcome(RUNS, found, sources=floor.sources)


def _cuda(build: Build, host: Host, others: Sequence[Build]) -> _Outcome:
    floor = build.floor(host)
    if floor is None:
        return _Outcome(UNKNOWN, f"the lowest driver for {build.variant} is not known")
    if host.driver is None:
        return _no_driver(build, host, floor, others)
    if host.container and host.gpu_nodes is False and (host.gpu_error or not host.gpus):
        reason = f"the host has NVIDIA driver {host.driver}, but this container was started without its GPU"
        return _Outcome(CPU_ONLY, reason, "start the container with --gpus all", "no --gpus")
    if not host.gpus:
        if host.gpu_error:
            reason = f"the GPUs are not known: {host.gpu_error}"
            return _Outcome(UNKNOWN, reason, repair(host), "driver does not answer")
        if host.container:
            fix = "start the container with --gpus all"
            return _Outcome(CPU_ONLY, f"driver {host.driver} shows no GPU in this container", fix, "no --gpus")
        fix = "check that the GPU is seated and enabled"
        return _Outcome(CPU_ONLY, f"driver {host.driver} shows no GPU", fix, "no GPU")

    cards = [(gpu, _card(build, gpu, host, floor)) for gpu in host.gpus]
    gpu, good = min(cards, key=lambda card: _BEST_CARD.index(card[1].verdict))
    _, bad = max(cards, key=lambda card: _BEST_CARD.index(card[1].verdict))
    reason = f"{good.reason}, driver {host.driver}" if good.verdict == RUNS else good.reason
    if bad.verdict != good.verdict:
        reason = f"{reason}; but {bad.reason}"
    if good.verdict == RUNS:
        # CUDA numbers the cards that the driver knows; one that it does not know is left out by itself.
        numbered = [card.verdict for _, card in cards if card.verdict != CPU_ONLY]
        usable = ",".join(str(index) for index, verdict in enumerate(numbered) if verdict == RUNS)
        hide = f"hide the others: export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={usable}"
        return replace(good, reason=reason, fix=hide if set(numbered) != {RUNS} else "")
    return replace(good, reason=reason, fix=good.fix or _cuda_fix(build, gpu, host, others))


def _no_driver(build: Build, host: Host, floor: str, others: Sequence[Build]) -> _Outcome:
    if host.gpus and not host.gpu_error:
        gpu = host.gpus[0]
        name, known = f"{gpu.name} ({gpu.capability or 'capability unknown'})", matrix.gpu(gpu.capability or "")
        if known and known.driver_last == "JetPack":
            return _Outcome(
                UNKNOWN, f"{name}: its driver comes with JetPack, which the tables do not have", known.advice
            )
        fix = _cuda_fix(build, gpu, host, others)
        return _Outcome(CPU_ONLY, f"{name}: no NVIDIA driver", fix, "no driver", known.sources if known else ())
    if host.gpu_error and host.wsl:  # no kernel file tells the driver here, so nothing is known
        return _Outcome(UNKNOWN, f"the driver is not known: {host.gpu_error}", repair(host), "driver does not answer")
    if host.gpu_error:
        reason = f"no NVIDIA driver is loaded: {host.gpu_error}"
        return _Outcome(CPU_ONLY, reason, repair(host), "driver does not answer")
    if host.pci_nvidia == 0:
        return _Outcome(CPU_ONLY, "this machine shows no NVIDIA GPU", "", "no GPU")
    if host.container:
        fix = f"on a host with driver {floor} or newer, start the container with --gpus all"
        return _Outcome(CPU_ONLY, "no NVIDIA driver", fix, "no driver")
    if host.pci_nvidia:
        fix = f"install driver {floor} or newer{_ends()}, then reboot"
        return _Outcome(CPU_ONLY, "there is an NVIDIA GPU, but no driver is loaded", fix, "no driver")
    where = " on Windows" if host.wsl else ""
    fix = f"if there is an NVIDIA GPU, install driver {floor} or newer{where}{_ends()}"
    return _Outcome(CPU_ONLY, "no NVIDIA driver", fix, "no driver")


def _ends() -> str:
    """What to heed where the card is not known: the branches that were the last ones for some families."""
    last: dict[str, list[str]] = {}
    for known in matrix.gpus():
        if known.driver_last and known.driver_last.startswith("R"):
            last.setdefault(known.driver_last, []).append(known.family)
    words = [f"{'/'.join(dict.fromkeys(families))} not past {branch}" for branch, families in last.items()]
    return f" ({', '.join(words)})" if words else ""


def repair(host: Host) -> str:
    """What makes an NVIDIA driver answer that is there and does not."""
    if host.wsl:
        return "make `nvidia-smi` answer: update the NVIDIA driver on Windows, then `wsl --shutdown`"
    if host.container:
        return "make `nvidia-smi` answer: start the container with --gpus all (NVIDIA Container Toolkit)"
    return "make `nvidia-smi` answer: reboot after a driver update, or reinstall the driver with its tools"


def _card(build: Build, gpu: Gpu, host: Host, floor: str) -> _Outcome:
    name = f"{gpu.name} ({gpu.capability or 'capability unknown'})"
    driver, code = host.driver or "", build.archs(host)
    missing = bool(code and gpu.capability and not matrix.runs_on(code, gpu.capability))
    no_code = f"torch {build.torch} {build.variant} has no code for it, only for {' '.join(code or ())}"
    of_driver = matrix.cite("drivers", build.variant, build.cuda or "")
    of_code = matrix.cite("gpu_arch", build.torch, build.variant, host.platform or "")
    of_gpu = matrix.cite("gpus", gpu.capability) if gpu.capability else ()
    if gpu.capability and matrix.gpu(gpu.capability) is None:
        return _Outcome(UNKNOWN, f"{name}: the tables know no card of this capability")
    last = last_branch(gpu)
    if last and not _in_reach(driver, last):
        reason = f"{name}: driver {driver} no longer knows this card, R{last} was the last branch for it"
        return _Outcome(CPU_ONLY, reason, "", "driver too new", of_gpu)
    if not matrix.at_least(driver, floor):
        cuda = ".".join((build.cuda or "").split(".")[:2])
        reason = f"{name}: driver {driver} is older than {floor}, which CUDA {cuda} needs"
        reason = f"{reason}; and {no_code}" if missing else reason
        return _Outcome(CPU_ONLY, reason, "", "driver too old", _union(of_driver, of_code if missing else ()))
    if gpu.capability is None:
        return _Outcome(UNKNOWN, f"{name}: the driver does not tell its compute capability")
    if (own := _card_floor(gpu, host)) and not matrix.at_least(driver, own):
        reason = f"{name}: driver {driver} is older than {own}, which this card needs"
        return _Outcome(CPU_ONLY, reason, "", "driver too old", of_gpu)
    if code is None:
        reason = f"{name}: which cards torch {build.torch} {build.variant} has code for is unconfirmed"
        return _Outcome(UNKNOWN, reason, sources=of_code)
    if not missing:
        return _Outcome(RUNS, name, sources=_union(of_driver, of_code))
    known = matrix.gpu(gpu.capability)
    if known and known.confidence == "unconfirmed":
        reason = f"{name}: whether it runs the code of this wheel is unconfirmed"
        return _Outcome(UNKNOWN, reason, sources=_union(of_code, of_gpu))
    return _Outcome(FAILS, f"{name}: {no_code}", "", "no code for the GPU", of_code)


def _union(*lists: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({each for one in lists for each in one}))


def _card_floor(gpu: Gpu, host: Host) -> str | None:
    # A floor that is unconfirmed does not stop a card: the driver that names it knows it.
    known = matrix.gpu(gpu.capability) if gpu.capability else None
    if known is None:
        return None
    return known.driver_floor_windows if host.wsl or host.os == "windows" else known.driver_floor


def last_branch(gpu: Gpu) -> int | None:
    """The last driver branch for a card, 580 for Pascal; None while new branches support it, or not known."""
    known = matrix.gpu(gpu.capability) if gpu.capability else None
    found = re.fullmatch(r"R([0-9]+)", known.driver_last or "") if known else None
    return int(found[1]) if found else None


def _in_reach(driver: str, last: int) -> bool:
    """Whether a driver is of a card's last branch or an older one; R580 is 580 on Linux, 580 to 582 on Windows."""
    return matrix.numbers(driver)[0] < last + 10


def _need(build: Build, gpu: Gpu, host: Host) -> str | None:
    """The lowest driver with which a build runs on a card, None if no driver makes it run there."""
    code, floor, last = build.archs(host), build.floor(host), last_branch(gpu)
    if build.device != "cuda" or not code or floor is None or gpu.capability is None:
        return None
    if _cannot_install(build, host) or not matrix.runs_on(code, gpu.capability):
        return None
    need = max(filter(None, (floor, _card_floor(gpu, host))), key=matrix.numbers)
    return need if last is None or _in_reach(need, last) else None


def _cuda_fix(build: Build, gpu: Gpu, host: Host, others: Sequence[Build]) -> str:
    """One line that gets this card to work: another build, a driver that supports the card, or neither."""
    if gpu.capability is None and host.gpu_error:
        return repair(host)
    if gpu.capability is None:
        return "find its compute capability in NVIDIA's list, and compare it with `invoke list`"
    known, last = matrix.gpu(gpu.capability), last_branch(gpu)
    every = (build, *(other for other in others if other.name != build.name))
    needs = {each.name: need for each in every if (need := _need(each, gpu, host))}
    fitting = [each for each in every if each.name in needs]
    where = " on Windows" if host.wsl else ""
    limit = f", but not past branch R{last}, the last for this card" if last else ""
    if last and not _in_reach(host.driver or "0", last):
        back = f"install NVIDIA driver branch R{last}{where} instead, the last for this card"
        if not fitting or build.name in needs:
            return back
        return f"{back}, then use {_newest(fitting).words}"
    now = [each for each in fitting if matrix.at_least(host.driver or "0", needs[each.name])]
    instead = f"use {_newest(now).words}" if now else ""
    if build.name in needs:
        install = f"install NVIDIA driver {needs[build.name]} or newer{where}{limit}"
        return f"{install}; or {instead}" if instead else install
    if instead:
        return instead
    if fitting:
        goal = _newest(fitting)
        return f"install NVIDIA driver {needs[goal.name]} or newer{where}{limit}, then use {goal.words}"
    on_cpu = _best_running([other for other in others if other.device == "cpu"], host)
    slow = f"use {on_cpu.words} on the CPU" if on_cpu else ""
    if any_ := nearest(build, host, gpu):
        row = f'add a row to images/targets.toml with torch = "{any_.torch}", variant = "{any_.variant}"'
        row = row if build.target else f"install torch {any_.name}"
        need = _need(any_, gpu, host) or ""
        driver = "this driver" if matrix.at_least(host.driver or "0", need) else f"driver {need} or newer{where}{limit}"
        return f"{row}, which runs on this card with {driver}{slow and f'; or {slow}'}"
    advice = f"no build is known to have code for this card{f' ({known.advice})' if known else ''}"
    return f"{advice}{slow and f'; {slow}'}"


def nearest(build: Build, host: Host, gpu: Gpu) -> Build | None:
    """The CUDA build of the tables that runs on a card, with its driver if any does: of the same torch, else newest."""
    found: list[Build] = []
    later: list[Build] = []  # with a newer driver
    for torch in matrix.releases():
        for variant in matrix.variants(torch):
            candidate = Build(torch, variant.name, tuple(p for p in variant.platforms if p != "macos_arm64"))
            need = _need(candidate, gpu, host) if variant.kind == "cuda" else None
            if need:
                (found if matrix.at_least(host.driver or "0", need) else later).append(candidate)
    found = found or later
    same = [each for each in found if each.torch == build.torch]
    older = [each for each in found if not matrix.at_least(each.torch, build.torch)]
    pool = same or older or found
    return max(pool, key=lambda each: (matrix.numbers(each.torch), each.variant)) if pool else None
