"""What a host lacks of what it should have, and why one is refused; nothing is changed here.

A host is compared by digests: of its packages' files with what the lock's wheels say, of its labs with the checkout's,
of its image with the published one. So what was done by hand, or broken off, shows as well as what is old.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import compat, image, lock, matrix, spec
from labrig.compat import Finding
from labrig.errors import Interrupted, LabrigError, LockError, UsageError
from labrig.fleet import wanted as wanting
from labrig.fleet.facts import Facts, tree
from labrig.fleet.wanted import Wanted
from labrig.inventory import AUTO, Entry, Room
from labrig.lock import Lock
from labrig.progress import megabytes
from labrig.published import Entry as Published
from labrig.pulling import is_it
from labrig.spec import Table, Target
from labrig.stick import is_safe

if TYPE_CHECKING:
    from labrig.oci import Image

# In the order in which they are carried out.
KINDS = (
    "docker",
    "nvidia",
    "python",
    "folder",
    "rights",
    "image",
    "besides",
    "wheels",
    "environment",
    "labs",
    "start",
    "note",
)
SCHEMA = "labrig-applied/1"
# Distributions whose packages we install, and the Python that each release brings (packages.debian.org,
# packages.ubuntu.com).
PYTHONS = {
    ("debian", "11"): "3.9", ("debian", "12"): "3.11", ("debian", "13"): "3.13",
    ("ubuntu", "20.04"): "3.8", ("ubuntu", "22.04"): "3.10", ("ubuntu", "24.04"): "3.12",
}  # fmt: skip
INSTALLABLE = ("debian", "ubuntu")
BROUGHT = ("pip", "setuptools")  # what venv puts into an environment, without being asked
ZSTD_ENGINE = "23.0"  # Docker from here on unpacks layers that zstd compressed; 20.10 ends with "unexpected EOF"
OLD_DOCKERS = {("debian", "11"): "20.10.5", ("debian", "12"): "20.10.24"}  # docker.io; others have a newer one
UNPACKED = 3  # an image takes about so many times the bytes of its layers
SPARE = 200_000_000  # bytes that stay free on a disk
GPU_FIX = 'write install = ["nvidia"] for it, or engine = "venv"'


@dataclass(frozen=True)
class Step:
    """One thing to change on a host. ``size``: bytes that go there; ``names``: what it is about (files, packages)."""

    kind: str
    what: str
    size: int = 0
    sudo: bool = False
    names: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()  # files that are removed


@dataclass(frozen=True)
class Plan:
    """A host, what it is and should have, and what is to be done. ``refused`` says why nothing can be done, ``fix``
    what a person does about it."""

    entry: Entry
    facts: Facts
    wanted: Wanted | None
    steps: tuple[Step, ...]
    refused: str = ""
    fix: str = ""

    @property
    def size(self) -> int:
        """Bytes that go to the host."""
        return sum(step.size for step in self.steps)


class Refused(Exception):
    """Why nothing can be done on a host, and what a person does about it."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


class Lacking(Exception):
    """The wheels of a lock have to be fetched before a host can be compared, or get them."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(f"wheels of {wanted.target.name} for {wanted.platform}")
        self.wanted = wanted


@dataclass(frozen=True)
class Course:
    """What the checkout says that the hosts of a room should have."""

    root: Path
    room: Room
    table: Table
    locks: Mapping[tuple[str, str], Lock | LockError]  # by target and platform
    published: Mapping[tuple[str, str], Published]
    labs: Mapping[str, str]
    known: dict[tuple[str, str, str], Wanted] = field(default_factory=dict, repr=False, compare=False)
    looked: dict[str, Image | LabrigError] = field(default_factory=dict, repr=False, compare=False)  # by Wanted.pull
    lost: dict[str, LabrigError] = field(default_factory=dict, repr=False, compare=False)  # wheels, by environment

    def request(self, entry: Entry, *, torch: bool = False, deep: bool = False) -> dict[str, Any]:
        """What a host is asked: see the agent."""
        names = [entry.target] if entry.target != AUTO else list(self.table.targets)
        locks = [found for (target, _), found in self.locks.items() if target in names and isinstance(found, Lock)]
        images = [one for (target, _), one in self.published.items() if target in names]
        return {
            "folder": entry.folder,
            "environments": [wanting.environment_name(one) for one in locks] if entry.engine != "docker" else [],
            "images": [one.image for one in images] if entry.engine != "venv" else [],
            "torch": torch,
            "deep": deep,
        }

    def wanted(self, target: Target, platform: str, engine: str) -> Wanted:
        """What hosts of that kind should have. Raises Refused: nothing was locked, or published, for the platform."""
        key = (target.name, platform, engine)
        if key not in self.known:
            self.known[key] = self._wanted(target, platform, engine)
        return self.known[key]

    def forget(self) -> None:
        """Look again: wheels have come into the wheelhouse."""
        self.known.clear()

    def look(self, wanted: Wanted) -> Image | LabrigError:
        """The published image with its layers, read once through the room's cache; or why it cannot be had."""
        from labrig import blobs, home, registry

        if wanted.pull not in self.looked:
            try:
                self.looked[wanted.pull] = registry.look(wanted.pull, wanted.platform, plain=bool(self.room.cache))
            except Interrupted:
                raise
            except LabrigError as error:
                self.looked[wanted.pull] = error
            except OSError as error:
                self.looked[wanted.pull] = blobs.unwritable(error, home.layers())
        return self.looked[wanted.pull]

    def _wanted(self, target: Target, platform: str, engine: str) -> Wanted:
        found = self.locks.get((target.name, platform))
        if not isinstance(found, Lock):
            if found:
                raise Refused(*words_of(found))
            raise Refused(f"target {target.name} is not for {platform}", f"it is for {', '.join(target.platforms)}")
        templates = self.root / "templates"
        if engine == "venv":
            return wanting.native(target, found, self.labs, templates)
        entry = self.published.get((target.name, platform))
        if entry is None:
            why = f"no image of target {target.name} for {platform} was published"
            raise Refused(why, f'invoke publish --target={target.name}, or engine = "venv"')
        return wanting.contained(target, found, entry, self.room.cache, templates)


def prepare(root: Path, room: Room) -> Course:
    """What the hosts of a room should have, and be asked.

    Raises:
        UsageError: an entry names a target that there is not.
        SpecError, LockError: the checkout's own files are wrong.
    """
    images = root / "images"
    table = spec.read(images / spec.TABLE)
    for entry in room.hosts:
        if entry.target != AUTO and entry.target not in table.targets:
            raise UsageError(
                f"line {entry.line} of {room.path.name}: host {entry.name} has no target {entry.target!r}",
                found=f"targets: {', '.join(table.targets)}", fix=f'write one of these, or "{AUTO}"',
            )  # fmt: skip
    asked = {entry.target for entry in room.hosts}
    targets = table.targets.values() if AUTO in asked else [table.targets[name] for name in sorted(asked)]
    locks = {(one.name, platform): _lock(one, platform, images) for one in targets for platform in one.platforms}
    labs = image.read_labs(root / "labs")
    return Course(root, room, table, locks, wanting.find_published(images), labs)


def _lock(target: Target, platform: str, images: Path) -> Lock | LockError:
    try:
        return lock.load(target, platform, images)
    except LockError as error:
        return error


def words_of(error: LabrigError) -> tuple[str, str]:
    """An error as a row has it: why, and what mends it."""
    return ": ".join(filter(None, [error.what, error.found])), error.fix


def compare(course: Course, entry: Entry, facts: Facts) -> Plan:
    """What is to be done on a host that said these facts.

    Raises:
        Lacking: it has an environment, and what is in it cannot be judged without the lock's wheels.
    """
    wanted = None
    try:
        target, engine, platform = choose(course, entry, facts)
        wanted = course.wanted(target, platform, engine)
        steps = _steps(course, entry, facts, wanted)
        _require_room(entry, facts, wanted, steps)
        _require_sudo(entry, facts, steps)
    except Refused as refused:
        return Plan(entry, facts, wanted, (), refused.why, refused.fix)
    return Plan(entry, facts, wanted, steps)


# --- target and engine ------------------------------------------------------------------------------------------------


def choose(course: Course, entry: Entry, facts: Facts) -> tuple[Target, str, str]:
    """The target, the engine and the platform for a host. Raises Refused."""
    engine = "" if entry.engine == AUTO else entry.engine
    targets = course.table.targets
    fitting = [one for one in targets.values() if not engine or engine in one.engines]
    builds = [compat.of_target(one, engine or None) for one in fitting]
    if entry.target != AUTO:
        target = targets[entry.target]
    else:
        best = compat.best(builds, facts.host)
        if best is None or best.target is None:
            nearest = compat.judge(builds[0], facts.host, builds)
            raise Refused(f"no target runs there; {nearest.name}: {nearest.reason}", nearest.fix)
        target = best.target
    engine = engine or _engine(course, entry, facts, target)
    if engine not in target.engines:
        raise Refused(f"target {target.name} is not made by the engine {engine}", f"its engines: {target.engines}")
    finding = compat.judge(compat.of_target(target, engine), facts.host, builds)
    if why := _against(target, finding):
        raise Refused(why, finding.fix)
    platform = facts.host.container_platform if engine == "docker" else facts.host.platform
    if platform is None:
        raise Refused(f"labrig knows no platform for {facts.host.os} {facts.host.arch}", "use another machine")
    return target, engine, platform


def _engine(course: Course, entry: Entry, facts: Facts, target: Target) -> str:
    """docker where an engine answers, or is to be installed, and there is an image for it."""
    there = facts.host.docker is not None or "docker" in entry.install
    has_image = (target.name, facts.host.container_platform) in course.published
    return "docker" if there and has_image and "docker" in target.engines else "venv"


def _against(target: Target, finding: Finding) -> str:
    """Why a verdict speaks against a target there; a host that would leave its GPU unused is told so beforehand."""
    if finding.verdict in (compat.NO_INSTALL, compat.FAILS):
        return f"{target.name} {finding.verdict}: {finding.reason}"
    if finding.verdict == compat.CPU_ONLY and target.device == "cuda":
        return f"{target.name} would not use a GPU there: {finding.reason}"
    if finding.verdict == compat.UNKNOWN and target.device == "cpu":
        return f"whether {target.name} runs there is not known: {finding.reason}"
    return ""


# --- steps ------------------------------------------------------------------------------------------------------------


def _steps(course: Course, entry: Entry, facts: Facts, wanted: Wanted) -> tuple[Step, ...]:
    made = [*_docker(entry, facts, wanted)] if wanted.engine == "docker" else [*_python(facts, wanted)]
    if facts.folder == "theirs":
        mine = f"sudo chown -R {shlex.quote(facts.user)} {entry.folder}"
        raise Refused(
            f"{entry.folder} is there and is not {facts.user}'s", f"name another folder = ...; or there: {mine}"
        )
    if facts.folder != "ours":
        made.append(Step("folder", entry.folder, sudo=facts.folder == ""))
    if facts.loose and facts.folder == "ours":
        made.append(
            Step("rights", f"{facts.user}'s alone, and open to students: {_few(facts.loose)}", names=facts.loose)
        )
    made += _image(course, facts, wanted) if wanted.engine == "docker" else _environment(facts, wanted)
    made += _labs(course, facts, wanted)
    if facts.start != wanting.start_digest(wanted):
        made.append(Step("start", "the start command", len(wanted.start.encode())))
    if made or facts.unfinished or not is_noted(facts.applied, wanted):
        what = "an apply has not ended" if facts.unfinished else "what was applied"
        made.append(Step("note", what))
    return tuple(sorted(made, key=lambda step: KINDS.index(step.kind)))


def _docker(entry: Entry, facts: Facts, wanted: Wanted) -> Sequence[Step]:
    """An engine that answers, and that hands out GPUs where the target computes on them."""
    steps = []
    if facts.host.docker is None:
        if "docker" not in entry.install:
            why = f"no Docker engine answers: {facts.host.docker_error or 'none is there'}"
            raise Refused(why, 'write install = ["docker"] for it, or engine = "venv"')
        _require_packages(facts, "Docker", "docs.docker.com/engine/install")
        joins = "" if facts.user == "root" else f"; {facts.user} joins the group docker, which is as good as root"
        steps.append(
            Step("docker", f"docker.io, from the distribution's packages, where no Docker is{joins}", sudo=True)
        )
    if wanted.target.device == "cuda" and facts.host.gpus and not facts.host.docker_gpus:
        if "nvidia" not in entry.install:
            raise Refused("containers there get no GPU: Docker has no NVIDIA runtime and no CDI device", GPU_FIX)
        _require_packages(facts, "the NVIDIA Container Toolkit", "docs.nvidia.com/datacenter/cloud-native")
        steps.append(Step("nvidia", "NVIDIA Container Toolkit; restarts Docker, which ends what runs in it", sudo=True))
    return steps


def _require_packages(facts: Facts, what: str, page: str) -> None:
    if facts.system not in INSTALLABLE:
        here = f"{facts.system or facts.host.os} {facts.release}".strip()
        raise Refused(f"{what} is installed by us on Debian and Ubuntu only; this is {here}", f"install it: {page}")


def _number(version: str) -> str:
    """The numbers that a version begins with: "20.10.24" of "20.10.24+dfsg1"."""
    kept = version.split("+")[0].split("-")[0].split(".")
    return ".".join(part for part in kept if part.isdecimal()) or "0"


def _python(facts: Facts, wanted: Wanted) -> Sequence[Step]:
    minor = wanted.target.python
    if facts.pythons.get(minor):
        return []
    if wanted.environment in facts.environments and not _differing(facts, wanted):
        return []  # it was made there, and needs no other
    lacks = "no module venv" if minor in facts.pythons else "none is there"
    if PYTHONS.get((facts.system, facts.release)) == minor:
        return [Step("python", f"python{minor} with venv ({lacks}), from the distribution's packages", sudo=True)]
    here = f"{facts.system or facts.host.os} {facts.release}".strip()
    image = ', or engine = "docker"' if "docker" in wanted.target.engines else ""
    raise Refused(
        f"target {wanted.target.name} needs Python {minor}: {lacks}, and {here} has no package of it",
        f"install Python {minor} there (python.org, pyenv, brew){image}",
    )


def _image(course: Course, facts: Facts, wanted: Wanted) -> Sequence[Step]:
    entry = wanted.image
    assert entry is not None  # noqa: S101 - the engine is docker
    if all(is_it(facts.images.get(name), entry) for name in wanting.names_of(entry)):
        return []
    if any(is_it(found, entry) for found in facts.images.values()):
        return [Step("image", f"{entry.image}, its names", names=(wanted.pull,))]
    _require_readable(course, facts, wanted)
    return [Step("image", entry.image, _lacking(course, facts, wanted, entry.size), names=(wanted.pull,))]


def _require_readable(course: Course, facts: Facts, wanted: Wanted) -> None:
    """Raises Refused where the engine, or that which the distribution would bring, cannot unpack the image's layers."""
    engine = facts.host.docker or OLD_DOCKERS.get((facts.system, facts.release), ZSTD_ENGINE)
    if matrix.at_least(_number(engine), ZSTD_ENGINE):
        return
    named = f"Docker {engine}" if facts.host.docker else f"Docker {engine} of {facts.system} {facts.release}"
    bring = f"bring Docker {ZSTD_ENGINE} or newer there (docs.docker.com/engine/install)"
    found = course.look(wanted)
    if isinstance(found, LabrigError):
        what, fix = words_of(found)
        why = f"{named} may be too old for the image, which cannot be looked at: {what}"
        raise Refused(why, "; or ".join(filter(None, [fix, bring])))
    if any("zstd" in layer.media_type for layer in found.layers):
        why = f"{named} cannot unpack the image's layers, which zstd compressed"
        raise Refused(why, f"{bring}, or publish with gzip (invoke publish)")


def _lacking(course: Course, facts: Facts, wanted: Wanted, size: int) -> int:
    """Bytes that a host has to pull: an engine takes a layer that it has, if it has all below it, too. All of them
    (``size``) where it has none, or the image cannot be looked at."""
    found = course.look(wanted) if facts.layers else None
    if found is None or isinstance(found, LabrigError):
        return size
    above = dropwhile(lambda one: one.diff_id in facts.layers, found.layers)
    return len(found.config.content) + sum(one.size for one in above)


def _environment(facts: Facts, wanted: Wanted) -> Sequence[Step]:
    """The whole environment, or the packages that are not what their wheels say; with the wheels that they need. What
    is there besides goes: a package shadows another, and a file in site-packages runs in every lab."""
    sizes = {one.name: one for one in wanted.lock.wheels}
    names = tuple(sizes)
    steps: list[Step] = []
    if wanted.environment in facts.environments:
        differing = _differing(facts, wanted)
        # Where an apply was broken off, pip itself may be half there: all is made anew.
        names = tuple(sizes) if differing and facts.unfinished else differing
        if len(names) < len(sizes):
            steps += _besides(facts, wanted)
        # Programs, the interpreter's link and pyvenv.cfg are in no wheel: they are held against what the last apply
        # left. A package besides has programs, too, which go with it.
        before = facts.applied.get("scaffold")
        if not names and not steps and before and before != facts.scaffolds.get(wanted.environment):
            names = tuple(sizes)
    if not names:
        return steps
    files = tuple(sizes[name].file for name in names if facts.wheels.get(sizes[name].file) != sizes[name].size)
    size = sum(one.size for one in wanted.lock.wheels if one.file in files)
    whole = len(names) == len(sizes)
    if files:
        steps.append(Step("wheels", f"{len(files)} wheels", size, names=files))
    what = wanted.environment if whole else _few(names)
    return [*steps, Step("environment", what, names=() if whole else names)]


def _besides(facts: Facts, wanted: Wanted) -> Sequence[Step]:
    """What is in an environment and not in its lock: packages, files of none."""
    packages = tuple(sorted(set(facts.environments[wanted.environment]) - set(wanted.packages) - set(BROUGHT)))
    strays = facts.strays.get(wanted.environment, ())
    if not packages and not strays:
        return []
    what = [f"besides the lock: {_few(packages)}"] if packages else []
    what += [f"of no package: {_few(strays)}"] if strays else []
    return [Step("besides", "; ".join(what), names=packages, gone=strays)]


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def _differing(facts: Facts, wanted: Wanted) -> tuple[str, ...]:
    """The packages that are not there, or not as their wheels have them."""
    if wanting.lacking(wanted):
        raise Lacking(wanted)
    there = facts.environments[wanted.environment]
    # The digest decides: METADATA, which has the version, is among the files.
    has = {name: package.digest for name, package in there.items()}
    return tuple(name for name, package in wanted.packages.items() if has.get(name) != package.digest)


def _labs(course: Course, facts: Facts, wanted: Wanted) -> Sequence[Step]:
    """The labs are the course's own copy: students work in copies of theirs.

    What an earlier apply put there and the course has no more goes, unless somebody changed it; what others added
    stays.
    """
    changed = tuple(path for path, sha256 in wanted.labs.items() if facts.labs.get(path) != sha256)
    before = facts.applied.get("files")
    ours = before if isinstance(before, dict) else {}
    # The note is the host's, and may say anything: what goes is a file of labs/, as it was put there.
    gone = tuple(
        path for path, sha256 in sorted(facts.labs.items())
        if path not in wanted.labs and ours.get(path) == sha256 and is_safe(path)
    )  # fmt: skip
    if not changed and not gone:
        return []
    words = [f"{len(changed)} of {len(wanted.labs)} files"] if changed else []
    words += [f"{len(gone)} removed"] if gone else []
    size = sum((course.root / "labs" / path).stat().st_size for path in changed)
    return [Step("labs", ", ".join(words), size, names=changed, gone=gone)]


def note(wanted: Wanted) -> dict[str, Any]:
    """What a host notes when an apply has ended, but for the date and its environment's scaffold."""
    return {
        "schema": SCHEMA,
        "target": wanted.target.name,
        "engine": wanted.engine,
        "lock": wanted.lock.digest,
        "image": wanted.image.reference if wanted.image else "",
        "labs": tree(wanted.labs) if wanted.labs else "",
        "start": wanting.start_digest(wanted),
        "files": dict(wanted.labs),
    }


def is_noted(applied: Mapping[str, Any], wanted: Wanted) -> bool:
    """Whether a host has noted that this was applied."""
    return {key: value for key, value in applied.items() if key not in ("date", "scaffold")} == note(wanted)


# --- what a host has to give ------------------------------------------------------------------------------------------


def _require_room(entry: Entry, facts: Facts, wanted: Wanted, steps: Sequence[Step]) -> None:
    """Raises Refused where a disk is too small for what is missing."""
    free, where = facts.free, f"the disk of {entry.folder}"
    sizes = {step.kind: step.size for step in steps if step.kind != "environment" or not step.names}
    if pulled := sizes.get("image", 0):
        needed = UNPACKED * pulled + SPARE
        if facts.docker_free is not None:
            free, where = facts.docker_free, "Docker's disk"
    elif "environment" in sizes:
        needed = sizes.get("wheels", 0) + wanted.room + SPARE
    else:
        return
    if free < needed:
        raise Refused(
            f"{where} has {megabytes(free)} free, about {megabytes(needed)} are needed",
            "make room there, or name another disk with folder = ...",
        )


def _require_sudo(entry: Entry, facts: Facts, steps: Sequence[Step]) -> None:
    """Raises Refused where something needs root and the user may not become it."""
    needing = [step for step in steps if step.sudo]
    if not needing or facts.sudo or facts.user == "root":
        return
    if [step.kind for step in needing] == ["folder"]:
        make = f"sudo install -d -o {shlex.quote(facts.user)} {entry.folder}"
        fix = f"there, once: {make}; or name a folder of {facts.user}'s own"
        raise Refused(f"{entry.folder} cannot be made: sudo asks {facts.user} for a password", fix)
    kinds = ", ".join(step.kind for step in needing)
    raise Refused(
        f"{kinds}: needs root, and sudo asks {facts.user} for a password",
        f"let {facts.user} use sudo without one for the time, or install that there by hand",
    )
