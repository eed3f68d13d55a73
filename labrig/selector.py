"""The install selector of pytorch.org, offline: system, package and compute platform -> the exact pinned command.

Everything comes from the tables: which builds there are, the matching torchvision and torchaudio, the Pythons that all
of them have wheels for, drivers and capabilities. What the tables do not know is no command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from labrig import compat, matrix
from labrig.compat import Build, Finding
from labrig.description import parse as describe
from labrig.errors import HostError, UsageError
from labrig.host import Host, read_host
from labrig.indexes import build_root
from labrig.spec import MPS, Table

SYSTEMS = {
    "linux": "linux_x86_64", "linux-arm": "linux_aarch64", "mac": "macos_arm64", "windows": "windows_amd64",
    "wsl2": "linux_x86_64",
}  # fmt: skip
PACKAGES = ("pip", "uv", "conda", "docker")
AUTO = "auto"
_SHOWN = 5  # builds looked at for one line of the table: those of the newest two releases


@dataclass(frozen=True)
class Selection:
    """One way to install torch, and what has to be known about it."""

    command: str
    system: str
    package: str
    compute: str  # the variant: "cpu", "cu130", "mps"
    torch: str
    torchvision: str | None
    torchaudio: str | None
    pythons: tuple[str, ...]  # with wheels of all that the command installs
    python: str | None  # the one to take; None where the command brings its own
    min_driver: str | None
    capabilities: tuple[str, ...] | None  # with native code; None where unknown, or without CUDA
    verdict: Finding | None  # for the machine that was asked about
    notes: tuple[str, ...]
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The form of ``invoke select --json``."""
        return {**asdict(self), "sources": {id: asdict(s) for id in self.sources if (s := matrix.source(id))}}


def select(
    table: Table, *, system: str = "", package: str = "pip", compute: str = AUTO, torch: str = "", machine: str = ""
) -> Selection:
    """The command for a system ("linux", "mac", ...), a package manager and a compute platform.

    Without ``system`` it is for this machine, or for the described ``machine``, and ``compute`` "auto" is then what
    that machine runs best; with a ``system`` alone it is what a plain install gives there. ``torch`` is the newest
    release for which the tables have it all, unless it is named.

    Raises:
        UsageError: a word that is not known, or a combination that there is not; it lists those there are.
    """
    if package not in PACKAGES:
        _fail(f"no package {package!r}", PACKAGES, "--package")
    if system and system not in SYSTEMS:
        _fail(f"no system {system!r}", SYSTEMS, "--os")
    if system and machine:
        raise UsageError("--os and --for both name a machine", fix="name one of them")
    host = None if system else (describe(machine).host if machine else read_host())
    system = system or _system_of(host)
    platform = SYSTEMS[system]
    if system == "mac" and package == "docker":
        raise UsageError(
            "MPS cannot be reached from a container (pytorch/pytorch#81224)", fix="use --package=pip or conda"
        )
    builds = _candidates(platform, package, torch)
    if not builds:
        what = f"torch {torch}" if torch else "torch"
        _fail(f"the tables have no {what} for {system} by {package}", _releases(platform, package), "--torch")
    if compute == AUTO:
        build = _auto(builds, host)
    else:
        fitting = [build for build in builds if build.variant == compute]
        if not fitting:
            _fail(f"no build for compute platform {compute!r}", _computes(builds), "--compute")
        build = fitting[0]
    finding = compat.judge(build, host, builds) if host else None
    if finding and finding.verdict == compat.NO_INSTALL:
        raise HostError(f"torch {build.name} cannot be installed there", found=finding.reason, fix=finding.fix)
    found = _selection(table, build, system, package, finding, host.python if host else "")
    for_gpu = next((each for each in builds if each.device == "cuda"), None)
    if compute == AUTO and host and host.gpus and build.device == "cpu" and for_gpu:
        unused = compat.judge(for_gpu, host, builds)
        found = replace(found, notes=(*found.notes, f"its GPU is not used: {unused.reason}", f"fix: {unused.fix}"))
    return found


def _fail(what: str, allowed: Sequence[str] | dict[str, Any], flag: str) -> NoReturn:
    raise UsageError(what, found=f"there are: {', '.join(allowed) or 'none'}", fix=f"name one of these with {flag}")


def _system_of(host: Host | None) -> str:
    if host is not None and host.wsl:
        return "wsl2"
    found = next((name for name, platform in SYSTEMS.items() if host and platform == host.platform), None)
    if found is None:
        raise UsageError(
            f"there are no wheels of torch for {host.os if host else ''} {host.arch if host else ''}",
            found=f"systems: {', '.join(SYSTEMS)}",
            fix="name another one with --os; an Intel Mac has torch on conda-forge only",
        )
    return found


def _candidates(platform: str, package: str, torch: str = "") -> list[Build]:
    """What the tables know to be there, newest torch first, and of one torch the plain install first."""
    found: list[Build] = []
    for release in reversed(matrix.releases()):
        if torch not in ("", release):
            continue
        plain = matrix.default_variant(release, platform)
        rows = sorted(matrix.variants(release), key=lambda row: row.name != plain)
        for row in rows:
            variant = MPS if platform == "macos_arm64" else row.name
            build = Build(release, variant, (platform,))
            if row.kind in ("cpu", "cuda") and platform in row.platforms and _offered(build, platform, package):
                found.append(build)
    return found


def _offered(build: Build, platform: str, package: str) -> bool:
    if package == "conda":
        return matrix.conda_build(build.torch, build.variant, platform) is not None
    if package == "docker":
        return _image(build, platform) is not None
    return bool(matrix.pythons(build.torch, platform))


def _releases(platform: str, package: str) -> list[str]:
    return list(dict.fromkeys(build.torch for build in _candidates(platform, package)))


def _computes(builds: Sequence[Build]) -> list[str]:
    return list(dict.fromkeys(build.variant for build in builds))


def _auto(builds: Sequence[Build], host: Host | None) -> Build:
    """For a machine the newest release that runs there, on its GPU if it has one; else what a plain install gives."""
    if host is None:
        return builds[0]
    for wanted in ("cuda", MPS, "cpu"):
        for build in builds:
            if build.device == wanted and compat.judge(build, host).verdict == compat.RUNS:
                return build
    return next((build for build in builds if build.variant in ("cpu", MPS)), builds[0])


# --- commands ---------------------------------------------------------------------------------------------------------


def _selection(
    table: Table, build: Build, system: str, package: str, finding: Finding | None, own: str = ""
) -> Selection:
    platform = SYSTEMS[system]
    release = matrix.release(build.torch)
    assert release is not None  # noqa: S101 for the type checker: candidates are releases
    vision, audio = release.torchvision, release.torchaudio
    pythons, notes = matrix.pythons(build.torch, platform), []
    with_all = [p for p in pythons if vision and p in matrix.companion_pythons("torchvision", vision, platform)]
    have = ".".join(own.split(".")[:2])  # the machine's own, if it will do
    python = have if have in with_all else matrix.settled_python(with_all or list(pythons))
    if audio and python not in matrix.companion_pythons("torchaudio", audio, platform):
        notes.append(f"torchaudio {audio} has no wheel for Python {python}: left out")
        audio = None
    if package in ("pip", "uv"):
        command = _pip(table, build, platform, package, vision, audio)
    elif package == "conda":
        command, vision, audio = _conda(table, build, platform, python), None, None
        notes.append(
            "torchvision and torchaudio: conda-forge has its own releases of them, which the tables do not list"
        )
    else:
        command, vision, audio, python = f"docker run {_image_words(build, platform)}", None, None, None
    if package == "docker":
        notes.append("the tag follows the published pattern; nobody looked it up")
    if package == "docker" and build.device == "cuda":
        notes.append("--gpus needs the NVIDIA Container Toolkit on the host")
    floor = matrix.driver_floor(build.variant, build.cuda, "windows" if system in ("windows", "wsl2") else "linux")
    archs = matrix.archs(build.torch, build.variant, platform)
    if package == "conda" and (made := matrix.conda_build(build.torch, build.variant, platform)):
        archs = made.archs or None
    mac = matrix.macos_floor(build.torch, python) if build.variant == MPS else None
    if mac:
        notes.append(f"macOS {mac.install} or newer to install, {mac.mps} or newer for MPS; an arm64 Python")
    return Selection(
        command=command,
        system=system,
        package=package,
        compute=build.variant,
        torch=build.torch,
        torchvision=vision,
        torchaudio=audio,
        pythons=tuple(with_all) or pythons,
        python=python,
        min_driver=floor if build.device == "cuda" else None,
        capabilities=archs if build.device == "cuda" else None,
        verdict=finding,
        notes=tuple(notes),
        sources=_sources(build, platform, package),
    )


def _pip(table: Table, build: Build, platform: str, tool: str, vision: str | None, audio: str | None) -> str:
    wanted = [f"torch=={build.torch}"]
    wanted += [f"torchvision=={vision}"] if vision else []
    wanted += [f"torchaudio=={audio}"] if audio else []
    name = "cpu" if build.variant == MPS else build.variant
    words = ["uv", "pip", "install", *wanted] if tool == "uv" else ["python", "-m", "pip", "install", *wanted]
    if matrix.default_variant(build.torch, platform) != name:
        words += ["--index-url", f"{index_root(table)}/{_variant(build).index_path.removeprefix('whl/')}"]
    return " ".join(words)


def _variant(build: Build) -> matrix.Variant:
    found = matrix.variant(build.torch, "cpu" if build.variant == MPS else build.variant)
    assert found is not None  # noqa: S101 for the type checker: candidates are builds of the tables
    return found


def index_root(table: Table) -> str:
    """Where the PyTorch index keeps its builds, from the address that the pin table has for one of them.

    Raises:
        UsageError: the pin table has none.
    """
    for address in table.indexes.values():
        if root := build_root(address):
            return root
    raise UsageError(
        f"{table.path.name} names no PyTorch index",
        found=f"[indexes]: {', '.join(table.indexes) or 'none'}",
        fix="add one whose address ends with /cpu or /cu130",
    )


def _conda(table: Table, build: Build, platform: str, python: str | None) -> str:
    made = matrix.conda_build(build.torch, build.variant, platform)
    assert made is not None  # noqa: S101 for the type checker: candidates are builds of the tables
    channel = next((target.conda.channel for target in table.targets.values() if target.conda), "conda-forge")
    words = [f"conda create --name torch --override-channels --channel {channel} python={python}"]
    words += [f'"pytorch={build.torch}={made.build}"']
    words += [f'"cuda-version={made.cuda}"'] if made.cuda else []
    return " ".join(words)


def _image(build: Build, platform: str) -> tuple[matrix.Image, str] | None:
    """The official image that runs such a build without a compiler, and its tag; None if no row says so."""
    arch = {"linux_x86_64": "amd64", "linux_aarch64": "arm64"}.get(platform)
    cuda = ".".join((build.cuda or "").split(".")[:2])
    for image in matrix.images():
        for_cuda = "<X.Y>" in image.pattern
        if arch in image.platforms and "runtime" in image.pattern and for_cuda == (build.device == "cuda"):
            return image, image.pattern.replace("<torch>", build.torch).replace("<X.Y>", cuda)
    return None


def _image_words(build: Build, platform: str) -> str:
    found = _image(build, platform)
    assert found is not None  # noqa: S101 for the type checker: candidates are images of the tables
    image, tag = found
    return f"--rm -it {'--gpus all ' if build.device == 'cuda' else ''}{image.name}:{tag}"


def _sources(build: Build, platform: str, package: str) -> tuple[str, ...]:
    ids = {*matrix.cite("cuda_variants", build.torch, _variant(build).name), *matrix.cite("releases", build.torch)}
    if build.cuda:
        ids |= {*matrix.cite("drivers", build.variant, build.cuda)}
        ids |= {*matrix.cite("gpu_arch", build.torch, build.variant, platform)}
    if package == "conda" and (made := matrix.conda_build(build.torch, build.variant, platform)):
        ids |= set(made.sources)
    if package == "docker" and (image := _image(build, platform)):
        ids |= set(image[0].sources)
    return tuple(sorted(ids))


# --- Python -----------------------------------------------------------------------------------------------------------


def python_rule(table: Table) -> list[tuple[str, ...]]:
    """Python by Python, newest first: how far behind the newest stable, until when supported, torch, targets."""
    rows: list[tuple[str, ...]] = []
    stable = matrix.stable_pythons()
    for behind, row in enumerate(stable):
        used = [f"`{name}`" for name, target in table.targets.items() if target.python == row.minor]
        place = "newest stable" if behind == 0 else f"{behind} behind"
        rows.append(
            (
                row.minor,
                place + (": take one of these" if 1 <= behind <= matrix.SETTLED_BEHIND else ""),
                f"{row.status}, until {row.end}",
                f"{row.torch_first} to {row.torch_last}",
                " ".join(used) or "-",
            )
        )
    return rows


PYTHON_COLUMNS = ("Python", "place", "support", "torch with wheels everywhere", "targets")


def explain(selection: Selection) -> list[str]:
    """What a person should know beside the command, a line each."""
    lines = list(selection.notes)
    if selection.min_driver:
        where = " on Windows" if selection.system in ("windows", "wsl2") else ""
        lines.append(f"NVIDIA driver {selection.min_driver} or newer{where}")
        known = " ".join(selection.capabilities or ()) or "unconfirmed"
        lines.append(f"native code for compute capabilities {known}")
    if selection.python:
        row = matrix.python(selection.python)
        newest = matrix.stable_pythons()[0]
        support = f", supported until {row.end}" if row else ""
        wheels = " ".join(selection.pythons)
        lines.append(f"Python {selection.python}{support} (newest stable: {newest.minor}); wheels for {wheels}")
        if selection.package == "pip":
            windows = selection.system == "windows"
            python = f"py -{selection.python}" if windows else f"python{selection.python}"
            activate = r".venv\Scripts\activate" if windows else ". .venv/bin/activate"
            lines.append(f"in an environment of its own: {python} -m venv .venv, then {activate}")
    if selection.verdict:
        lines.append(f"on that machine: {selection.verdict.verdict} ({selection.verdict.reason})")
        lines += [f"fix: {selection.verdict.fix}"] if selection.verdict.fix else []
    return [*lines, f"sources: {'; '.join(_cited(selection.sources))}"]


def _cited(ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(source.name for id in ids if (source := matrix.source(id))))


def commands(table: Table) -> list[tuple[str, ...]]:
    """The selector as a table: system, package, compute platform, and the command, for the newest torch that has it."""
    rows: list[tuple[str, ...]] = []
    for system in ("linux", "linux-arm", "mac", "windows"):  # WSL2 takes Linux's
        for package in ("pip", "conda", "docker"):  # uv takes pip's words
            builds = _candidates(SYSTEMS[system], package) if (system, package) != ("mac", "docker") else []
            # Every variant of the newest release, and a CUDA line that it no longer has with the last one that did.
            for variant in _computes(builds[:_SHOWN]):
                found = select(table, system=system, package=package, compute=variant)
                rows.append((system, package, variant, f"`{found.command}`"))
    return rows


COMMAND_COLUMNS = ("system", "package", "compute", "command")
