"""The pin table: images/targets.toml, read, validated and completed from the compatibility data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from labrig import matrix
from labrig.errors import SpecError

TABLE = "targets.toml"
NAME = re.compile(r"[a-z0-9-]{1,40}")
EXACT = re.compile(r"\d+\.\d+\.\d+")
MINOR = re.compile(r"3\.\d+")
# What RFC 3986 lets stand in an address, without the characters that mean something inside quotes to sh or TOML.
ADDRESS = re.compile(r"(https?|file)://[A-Za-z0-9._~:/?#\[\]@!&()*+,;=%-]+")
ENGINES = ("docker", "venv", "conda")
BASES = ("bootstrap", "registry")
BUILDERS = ("layers", "dockerfile")
# A reference without tag or digest mistaken for one another: [HOST[:PORT]/]PATH[:TAG] (distribution/reference).
IMAGE = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")
# A target's name becomes a part of its image's (distribution/reference: path-component).
IMAGE_PART = re.compile(r"[a-z0-9]+(-+[a-z0-9]+)*")
# GitHub's owner/name, and a branch that is one step of an address.
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
PLATFORMS = ("linux_x86_64", "linux_aarch64", "macos_arm64")  # Windows users run the Linux targets in WSL2
MPS = "mps"


@dataclass(frozen=True)
class Suite:
    """A Debian release that images stand on, by its code name, with the Python it brings."""

    name: str
    python: str  # minor, "3.11"
    image: str  # what a registry calls it, "debian:bookworm-slim"


@dataclass(frozen=True)
class Conda:
    """What a target is on conda: the channel, the exact Python, and the build of torch there."""

    channel: str  # "conda-forge"
    address: str  # where the packages of an exact lock are fetched from
    python: str  # exact, "3.11.15"
    build: str  # pattern of torch's build string, "cpu_*"
    cuda: str | None  # for the package cuda-version, "13.0"
    archs: Mapping[str, tuple[str, ...]]  # platform -> compute capabilities with native code


@dataclass(frozen=True)
class Target:
    """One fully pinned row. Platform names are those of labrig/data: linux_x86_64, linux_aarch64, macos_arm64."""

    name: str
    torch: str  # exact, "2.13.0"
    variant: str  # "cpu", "cu130", ...; "mps" for the macOS wheel
    python: str  # minor, "3.11"
    device: str  # what torch computes on: "cpu", "cuda", "mps"
    engines: tuple[str, ...]
    platforms: tuple[str, ...]
    packages: tuple[str, ...]
    companions: tuple[str, ...]  # "torchvision==0.28.0", versions from the data
    index: str | None  # name in [indexes] that torch and companions come from; None = the default index
    unlocked: Mapping[str, str]  # platform -> why no lock can be made for it
    why: str
    base: str  # where the image under the wheels comes from: "bootstrap" or "registry"
    builder: str  # what makes its image: "layers" or "dockerfile"
    size_mb: int | None  # budget of its image, compressed, in 10^6 bytes; None: none
    suite: Suite | None  # the Debian release whose Python is the row's; None: no image can be made
    conda: Conda | None  # None: the engine conda is not among the row's
    # derived from labrig/data
    cuda: str | None  # "13.0"
    min_driver: str | None  # lowest NVIDIA driver on Linux
    archs: Mapping[str, tuple[str, ...]]  # platform -> compute capabilities with native code
    glibc: str | None  # lowest glibc on the first platform; None on macOS and where it is unconfirmed
    macos: str | None  # lowest macOS on which the device works

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities with native code on the first platform; empty where no GPU code is compiled in."""
        return self.archs.get(self.platforms[0], ())

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the packages that come from ``index``: torch and its companions."""
        return ("torch", *(companion.partition("==")[0] for companion in self.companions))


@dataclass(frozen=True)
class Project:
    """Where this checkout is published on GitHub, for addresses in rendered files; OWNER until somebody sets it."""

    repository: str = "OWNER/labrig"
    branch: str = "main"


@dataclass(frozen=True)
class Table:
    """images/targets.toml as a whole."""

    path: Path
    targets: Mapping[str, Target]
    indexes: Mapping[str, str]
    project: Project = Project()

    def pick(self, name: str) -> Target:
        """The target of that name.

        Raises:
            SpecError: there is none; the message lists those there are.
        """
        if name not in self.targets:
            raise SpecError(
                f"no target {name!r} in {self.path.name}",
                found=f"targets: {', '.join(self.targets)}",
                fix="name one of these with --target, or add a row",
            )
        return self.targets[name]


def read(path: Path) -> Table:
    """Read and validate the pin table.

    Raises:
        SpecError: naming row, key, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"no pin table at {path}", fix="run from a labrig checkout") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}", found=str(error), fix="make it a readable UTF-8 file") from None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; a number or a nesting too deep for Python
        raise SpecError(f"{path.name} is not valid TOML", found=str(error), fix=f"edit {path}") from None
    return parse(data, path)


def parse(data: Mapping[str, Any], path: Path) -> Table:
    """Validate an already parsed table; see :func:`read`."""
    top = _Row(path.name, "the top level", data, {"conda", "defaults", "indexes", "project", "suites", "targets"})
    defaults = _Row(path.name, "[defaults]", top.table("defaults"), {"packages", "engines", "base", "builder"})
    indexes_row = _Row(path.name, "[indexes]", top.table("indexes"), None)
    indexes = {name: indexes_row.index_url(name) for name in indexes_row.data}
    suites = [_suite(name, path.name, top) for name in top.table("suites")]
    conda = _Row(path.name, "[conda]", top.table("conda"), {"channel", "address", "python"})
    rows = top.table("targets")
    if not rows:
        top.fail("targets", "no rows", "at least one [targets.NAME] table")
    targets: dict[str, Target] = {}
    for name in rows:
        if not NAME.fullmatch(name):
            raise SpecError(
                f"{path.name}: {name!r} cannot be a target's name",
                found=_shown(name),
                fix="1 to 40 of a-z, 0-9 and -, as in [targets.cuda-legacy]",
            )
        row = _Row(path.name, f"[targets.{name}]", top.nested("targets", name), _KEYS)
        targets[name] = _target(name, row, defaults, indexes, suites, conda)
    project = _project(_Row(path.name, "[project]", top.table("project"), {"repository", "branch"}))
    return Table(path, MappingProxyType(targets), MappingProxyType(indexes), project)


_DERIVED = ("cuda", "min_driver", "capabilities", "glibc", "macos")
_KEYS = frozenset(
    {"torch", "variant", "python", "index", "platforms", "packages", "companions", "engines", "unlocked", "why"}
    | {"base", "builder", "size_mb", "suite"}
    | set(_DERIVED)
)


def _project(row: _Row) -> Project:
    given = {}
    if "repository" in row.data:
        given["repository"] = row.matching("repository", REPOSITORY, 'owner/name on GitHub, such as "OWNER/labrig"')
    if "branch" in row.data:
        given["branch"] = row.matching("branch", BRANCH, 'the name of a branch without /, such as "main"')
    return Project(**given)


def _suite(name: str, file: str, top: _Row) -> Suite:
    if not IMAGE_PART.fullmatch(name):
        top.fail("suites", _shown(name), "Debian's code names, as in [suites.trixie]")
    row = _Row(file, f"[suites.{name}]", top.nested("suites", name), {"python", "image"})
    python = row.matching("python", MINOR, 'the Python of that Debian release, such as "3.13"')
    return Suite(name, python, row.matching("image", IMAGE, f'the name of its image, such as "debian:{name}-slim"'))


def _target(
    name: str, row: _Row, defaults: _Row, indexes: Mapping[str, str], suites: Iterable[Suite], conda: _Row
) -> Target:
    torch = row.matching("torch", EXACT, 'an exact version in quotes, such as "2.13.0"')
    release = matrix.release(torch)
    if release is None:
        row.fail("torch", torch, f"a release known to labrig/data/releases.tsv: {', '.join(matrix.releases())}")
    python = row.matching("python", MINOR, 'a minor version in quotes, such as "3.13"')
    variant = row.word("variant", _variants(torch))
    device = "cuda" if variant.startswith("cu") else variant
    platforms = _platforms(row, torch, variant)
    _check_wheels(row, torch, python, platforms)
    index = _index(row, torch, variant, platforms, indexes)
    engines = (row if "engines" in row.data else defaults).words("engines", ENGINES)
    if device == MPS and "docker" in engines:
        row.fail(
            "engines", "docker", "venv or conda: a container on a Mac cannot reach the GPU (pytorch/pytorch#81224)"
        )
    suite = _suite_of(row, python, suites)
    base = BASES[0]
    if "docker" in engines or "base" in row.data:
        base = (row if "base" in row.data else defaults).word("base", BASES)
    builder = BUILDERS[0]
    if "builder" in {**defaults.data, **row.data}:
        builder = (row if "builder" in row.data else defaults).word("builder", BUILDERS)
    if "docker" in engines:
        _check_image(name, row, python, suite, suites)
    unlocked = row.table("unlocked")
    for platform, reason in unlocked.items():
        if platform not in platforms:
            row.fail("unlocked", _shown(platform), f"platforms of this row: {', '.join(platforms)}")
        if not isinstance(reason, str) or not reason.strip():
            row.fail(f"unlocked.{platform}", _shown(reason), "the reason, as text")
    build = matrix.variant(torch, "cpu" if variant == MPS else variant)
    cuda = build.cuda if build and build.cuda and variant.startswith("cu") else None
    mac = matrix.macos_floor(torch, python) if device == MPS else None
    target = Target(
        name=name,
        torch=torch,
        variant=variant,
        python=python,
        device=device,
        engines=engines,
        platforms=platforms,
        packages=_packages(row if "packages" in row.data else defaults),
        companions=_companions(row, release, python, platforms),
        index=index,
        unlocked=MappingProxyType(dict(unlocked)),
        why=row.text("why"),
        base=base,
        builder=builder,
        size_mb=row.count("size_mb") if "size_mb" in row.data else None,
        suite=suite,
        conda=_conda(row, conda, torch, variant, python, platforms) if "conda" in engines else None,
        cuda=".".join(cuda.split(".")[:2]) if cuda else None,
        min_driver=matrix.driver_floor(variant, cuda) if cuda else None,
        archs=MappingProxyType({p: a for p in platforms if cuda and (a := matrix.archs(torch, variant, p))}),
        glibc=release.glibc.get(platforms[0]),
        macos=max((mac.install, mac.mps), key=matrix.numbers) if mac else None,
    )
    _cross_check(row, target)
    return target


def _suite_of(row: _Row, python: str, suites: Iterable[Suite]) -> Suite | None:
    """The suite that the row names, or the one whose Python is the row's: the two change together."""
    fitting = {suite.name: suite for suite in suites if suite.python == python}
    if "suite" in row.data:
        return fitting[row.word("suite", tuple(fitting))]
    return next(iter(fitting.values()), None)


def _check_image(name: str, row: _Row, python: str, suite: Suite | None, suites: Iterable[Suite]) -> None:
    if suite is None:
        have = ", ".join(f"{one.python} ({one.name})" for one in suites) or "none: there is no [suites]"
        row.fail("python", python, f'for the engine docker, a Python that a Debian suite brings: {have}; else '
                 'engines = ["venv"]')  # fmt: skip
    if not IMAGE_PART.fullmatch(name):
        raise SpecError(
            f"{row.file}: {name!r} cannot be the name of an image, which the engine docker makes",
            found=_shown(name),
            fix='a name that begins and ends with a letter or a digit; or engines = ["venv"]',
        )


def _conda(row: _Row, conda: _Row, torch: str, variant: str, python: str, platforms: Iterable[str]) -> Conda:
    builds = {platform: matrix.conda_build(torch, variant, platform) for platform in platforms}
    for platform, build in builds.items():
        if build is None:
            row.fail("engines", "conda", f"engines without conda: labrig/data/conda.tsv has no build of torch {torch} "
                     f"{variant} for {platform}")  # fmt: skip
    known = [build for build in builds.values() if build]
    if len({(build.build, build.cuda) for build in known}) > 1:
        row.fail("platforms", ", ".join(platforms), "platforms with one build on conda-forge, or engines without conda")
    pythons = _Row(conda.file, "[conda.python]", conda.table("python"), None)
    exact = pythons.matching(python, EXACT, f'for a row with Python {python}, an exact version, such as "{python}.1"')
    if not exact.startswith(f"{python}."):
        pythons.fail(python, exact, f"a patch release of Python {python}")
    return Conda(
        channel=conda.matching("channel", NAME, 'the name of a channel, "conda-forge"'),
        address=conda.matching("address", ADDRESS, "an https, http or file address in quotes"),
        python=exact,
        build=known[0].build,
        cuda=known[0].cuda,
        archs=MappingProxyType({platform: build.archs for platform, build in builds.items() if build}),
    )


def _variants(torch: str) -> tuple[str, ...]:
    """Variant words a row may use for this torch: cpu, cuNNN, and mps where a macOS wheel exists."""
    known = tuple(v.name for v in matrix.variants(torch) if v.kind in ("cpu", "cuda") and v.platforms)
    return (*known, MPS) if matrix.pythons(torch, "macos_arm64") else known


def _platforms(row: _Row, torch: str, variant: str) -> tuple[str, ...]:
    if variant == MPS:
        allowed: tuple[str, ...] = ("macos_arm64",)
    else:
        build = matrix.variant(torch, variant)
        # The macOS wheel always carries MPS, so it is the mps variant and never the cpu one.
        allowed = tuple(p for p in PLATFORMS if build and p in build.platforms and p != "macos_arm64")
    if not allowed:
        have = ", ".join(build.platforms) if build else "none"
        row.fail("variant", variant, f"a variant with a wheel for {' or '.join(PLATFORMS[:2])}; this one is on {have}")
    if "platforms" not in row.data:
        return allowed[:1]
    platforms = row.words("platforms", None)
    for platform in platforms:
        if platform not in allowed:
            hint = "; Windows users run the Linux targets in WSL2" if platform.startswith("windows") else ""
            row.fail(
                "platforms", _shown(platform), f"{', '.join(allowed)} (where torch {torch} {variant} has a wheel){hint}"
            )
    return platforms


def _check_wheels(row: _Row, torch: str, python: str, platforms: Iterable[str]) -> None:
    for platform in platforms:
        pythons = matrix.pythons(torch, platform)
        if python not in pythons:
            have = " ".join(pythons) or "none"
            row.fail("python", python, f"a Python that torch {torch} has a wheel for on {platform}: {have}")


def _index(row: _Row, torch: str, variant: str, platforms: Iterable[str], indexes: Mapping[str, str]) -> str | None:
    if "index" in row.data:
        return row.word("index", tuple(indexes))
    wanted = "cpu" if variant == MPS else variant
    for platform in platforms:
        plain = matrix.default_variant(torch, platform)
        if plain != wanted:
            row.fail(
                "index",
                f"none, and a plain install of torch {torch} on {platform} gives {plain or 'an unknown build'}",
                f"the name of an index that has {variant} builds, from [indexes]: {', '.join(indexes) or 'none yet'}",
            )
    return None


def _packages(row: _Row) -> tuple[str, ...]:
    packages = []
    for text in row.words("packages", None):
        try:
            requirement = Requirement(text)
        except (InvalidRequirement, RecursionError):
            row.fail("packages", _shown(text), "a package's name, with versions if wanted, as in numpy>=2,<3")
        if requirement.url or requirement.marker:
            row.fail("packages", _shown(text), "a package's name, with versions if wanted; no address and no marker")
        if canonicalize_name(requirement.name) in ("torch", "torchvision", "torchaudio"):
            row.fail(
                "packages", _shown(text), "torch is the row's own key; torchvision and torchaudio go into companions"
            )
        packages.append(str(requirement))  # in one line, however it was written
    return tuple(packages)


def _companions(row: _Row, release: matrix.Release, python: str, platforms: Iterable[str]) -> tuple[str, ...]:
    if "companions" not in row.data:
        return ()
    pins = []
    for name in row.words("companions", ("torchvision", "torchaudio")):
        version = release.torchvision if name == "torchvision" else release.torchaudio
        if version is None:
            row.fail("companions", name, f"only companions that torch {release.torch} has")
        for platform in platforms:
            pythons = matrix.companion_pythons(name, version, platform)
            if python not in pythons:
                have = " ".join(pythons) or "none"
                row.fail("companions", name, f"{name} {version} on {platform} has wheels for Python {have}")
        pins.append(f"{name}=={version}")
    return tuple(pins)


def _cross_check(row: _Row, target: Target) -> None:
    derived = {
        "cuda": target.cuda,
        "min_driver": target.min_driver,
        "capabilities": list(target.capabilities) or None,
        "glibc": target.glibc,
        "macos": target.macos,
    }
    for key in _DERIVED:
        if key in row.data and row.data[key] != derived[key]:
            fact = "nothing (it has none)" if derived[key] is None else repr(derived[key])
            row.fail(key, _shown(row.data[key]), f"{fact}, by labrig/data for torch {target.torch} {target.variant}")


class _Row:
    """One TOML table with the words for its errors: which file, which row, which key."""

    def __init__(self, file: str, title: str, data: Mapping[str, Any], keys: Iterable[str] | None) -> None:
        self.file, self.title, self.data = file, title, data
        if keys is not None:
            for key in data:
                if key not in (allowed := sorted(keys)):
                    raise SpecError(
                        f"{file}: {title} has an unknown key",
                        found=_shown(key),
                        fix=f"allowed: {', '.join(allowed)}",
                    )

    def fail(self, key: str, found: str, allowed: str) -> NoReturn:
        raise SpecError(f"{self.file}: {self.title} key {key!r} is wrong", found=found, fix=f"allowed: {allowed}")

    def text(self, key: str) -> str:
        return str(self._get(key, lambda v: isinstance(v, str) and bool(v.strip()), "text in quotes"))

    def matching(self, key: str, pattern: re.Pattern[str], allowed: str) -> str:
        return str(self._get(key, lambda v: isinstance(v, str) and bool(pattern.fullmatch(v)), allowed))

    def word(self, key: str, allowed: tuple[str, ...]) -> str:
        return str(
            self._get(key, lambda v: isinstance(v, str) and v in allowed, f"one of {', '.join(allowed) or 'none'}")
        )

    def words(self, key: str, allowed: tuple[str, ...] | None) -> tuple[str, ...]:
        shown = f"a list of {', '.join(allowed)}" if allowed else "a list of texts"
        value: list[str] = self._get(
            key,
            lambda v: (
                isinstance(v, list)
                and bool(v)
                and all(isinstance(w, str) and (allowed is None or w in allowed) for w in v)
                and len(set(v)) == len(v)
            ),
            f"{shown}, at least one, each once",
        )
        return tuple(value)

    def count(self, key: str) -> int:
        return int(self._get(key, lambda v: type(v) is int and 0 < v < 10**6, "a whole number from 1 to 999999"))

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, _shown(value), "a table")
        return value

    def nested(self, key: str, name: str) -> Mapping[str, Any]:
        value = self.data[key][name]
        if not isinstance(value, dict):
            self.fail(f"{key}.{name}", _shown(value), "a table")
        return value

    def index_url(self, name: str) -> str:
        if not NAME.fullmatch(name):
            self.fail(name, _shown(name), "names of 1 to 40 of a-z, 0-9 and -")
        return self.matching(name, ADDRESS, "an https, http or file address in quotes")

    def _get(self, key: str, good: Callable[[Any], bool], allowed: str) -> Any:
        if key not in self.data:
            self.fail(key, "nothing", allowed)
        value = self.data[key]
        if not good(value):
            self.fail(key, _shown(value) + ("" if isinstance(value, str) else f" ({_toml_type(value)})"), allowed)
        return value


def _shown(value: object) -> str:
    """A value of the table, for an error: in quotes if it is text, cut if it is long."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a table nested as deep
        return "something far too long"
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _toml_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    return {int: "a number", float: "a number", list: "a list", dict: "a table"}.get(type(value), "a date or time")
