"""From a target's name to its environment: choose, check, fetch, build."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labrig import compat, conda, engines, forced, home, lock, spec
from labrig.compat import Finding
from labrig.engines import Environment, Wish
from labrig.errors import HostError, LockError, UsageError
from labrig.host import Host, read_host
from labrig.lock import Lock
from labrig.spec import Table, Target

if TYPE_CHECKING:
    from docker import DockerClient

    from labrig.assembly import Recipe
    from labrig.indexes import Sources
    from labrig.oci import Image
    from labrig.wheelhouse import Fetched


@dataclass(frozen=True)
class Plan:
    """What is to be built here, decided before anything is fetched."""

    table: Table
    target: Target
    engine: str
    lock: Lock
    host: Host
    finding: Finding  # the verdict for it here
    forced: str  # why the verdict is against it, where it is to be built all the same


def plan(root: Path, name: str | None = None, engine: str | None = None, *, force: bool = False) -> Plan:
    """Choose target and engine and read the lock; nothing is fetched or written.

    Without ``engine`` the first of the row's is taken. With ``force`` a verdict that it cannot work here is no end.

    Raises:
        SpecError, UsageError: the table, or a name.
        HostError: this host cannot make the target, it cannot work here, or no target fits it.
        LockError: the lock is missing or stale.
    """
    table = spec.read(root / "images" / spec.TABLE)
    host = read_host()
    target = table.pick(name) if name else pick_best(table, host)
    engine = engine or target.engines[0]
    module = engines.load(engine)
    if engine not in target.engines:
        raise UsageError(
            f"target {target.name} is not made by the engine {engine}",
            found=f"its engines: {', '.join(target.engines)}",
            fix="name one of these with --engine",
        )
    if reason := module.check(target, host):
        # In one line: this is no accident to look into, only the wrong machine.
        raise HostError(f"{reason}; `invoke doctor` says which targets it can run")
    others = [compat.of_target(other) for other in table.targets.values()]
    finding = compat.judge(compat.of_target(target, engine), host, others)
    platform, images = engine_platform(engine, host), root / "images"
    locked = conda.versions(target, platform, images) if engine == "conda" else lock.load(target, platform, images)
    why = _against(target, engine, locked, finding, force)
    return Plan(table, target, engine, locked, host, finding, why)


def _against(target: Target, engine: str, locked: Lock, finding: Finding, force: bool) -> str:
    """Why the verdict is against what is to be built all the same, now or earlier; empty where it is not against it.

    Raises:
        HostError: it is, and nobody forces it.
    """
    if finding.verdict not in (compat.NO_INSTALL, compat.FAILS):
        return ""
    if not force and not forced.noted(target.name, engine, locked.digest):
        raise HostError(
            f"target {target.name} cannot work on this machine: it {finding.verdict}",
            found=finding.reason,
            fix=f"{finding.fix}; or all the same: `invoke build --target={target.name} --engine={engine} --force`",
        )
    return f"{finding.verdict}: {finding.reason}"


def engine_platform(engine: str, host: Host) -> str:
    """The platform of what an engine makes on a host: containers are Linux everywhere.

    Raises:
        HostError: labrig has no name for it.
    """
    platform = host.container_platform if engine == "docker" else host.platform
    if platform is None:
        raise HostError(f"labrig knows no platform for {host.os} {host.arch}", fix="invoke doctor")
    return platform


def usable_engine(root: Path, name: str | None = None) -> tuple[str, str]:
    """The first of a target's engines that this host can use, and why each one before it cannot be.

    Docker is usable where its engine answers and the base can be had, conda where one of its programs is. Where none
    is, the first one is given, and whoever goes on with it is told what is wrong.
    """
    table = spec.read(root / "images" / spec.TABLE)
    host = read_host()
    target = table.pick(name) if name else pick_best(table, host)
    passed_over: list[str] = []
    for engine in target.engines:
        reason = engines.load(engine).check(target, host)
        if not reason and engine == "docker":
            if host.docker is None:
                reason = host.docker_error or "no engine"
            elif (lacking := _no_image(target, host)) and not _pullable(root, target, host):
                reason = lacking
        if not reason and engine == "conda":
            from labrig import condatool

            reason = condatool.lacking()
        if not reason:
            return engine, "; ".join(passed_over)
        passed_over.append(f"{engine} cannot be used here: {reason}")
    return target.engines[0], ""


def _no_image(target: Target, host: Host) -> str:
    from labrig import base

    return base.lacking(target, engine_platform("docker", host))


def _pullable(root: Path, target: Target, host: Host) -> bool:
    """Whether an image of the checkout's lock is in the engine, or was published, so that none need be made here."""
    from labrig import daemon, published

    try:
        locked = lock.load(target, engine_platform("docker", host), root / "images")
    except LockError:
        return False
    entry = published.find(root / "images", target.name, locked.platform)
    if entry and entry.lock == locked.digest:
        return True
    with daemon.connect() as client:
        return bool(_in_engine(client, target, locked))


def _in_engine(client: DockerClient, target: Target, locked: Lock, labs: str = "") -> str:
    """The image of a lock that was built, pulled or imported last; empty where there is none, or where its highest
    layer is not ``labs``, a diff_id."""
    from labrig import image

    found = image.find(client, f"{image.name(target)}:latest")
    if not found or found.labels.get(image.LOCK) != locked.digest:
        return ""
    if labs and (found.attrs.get("RootFS") or {}).get("Layers", [])[-1:] != [labs]:
        return ""
    return next((tag for tag in found.tags if tag.startswith(f"{image.name(target)}:{target.torch}-")), "")


def _labs(todo: Plan, root: Path) -> str:
    """The diff_id of the layer with this checkout's labs."""
    from labrig import assembly, image, render

    requirements = render.render_requirements(todo.target, todo.lock, root / "templates")
    return assembly.labs(root, image.read_labs(root / "labs"), requirements)[1].diff_id


def take(todo: Plan, *, overrides: Sequence[str] = (), offline: bool = False) -> Environment:
    """Carry out a plan. A host that has made no base yet takes an image that is just what it would make, but for the
    base, and one that cannot make any takes one of its lock: from its engine, or the published one.

    Raises what :func:`make` and ``pulling.pull`` raise.
    """
    build = _builder(todo, overrides, offline=offline)
    return _carry_out(todo, lambda: _find_or_pull(todo, offline=offline) or build())


def _find_or_pull(todo: Plan, *, offline: bool) -> Environment | None:
    """What :func:`take` takes instead of building; None: nothing."""
    from labrig import base, daemon, published, pulling

    root, target = todo.table.path.parents[1], todo.target
    if todo.engine != "docker" or base.is_at_hand(target, todo.lock.platform):
        return None
    lacking, labs = _no_image(target, todo.host), _labs(todo, root)
    with daemon.connect() as client:
        reference = _in_engine(client, target, todo.lock, labs)
        former = _in_engine(client, target, todo.lock) if lacking else ""
    entry = published.find(root / "images", target.name, todo.lock.platform)
    fits = entry is not None and entry.lock == todo.lock.digest and (bool(lacking) or entry.labs == labs)
    if not reference and entry and fits and not offline:
        print(f"taking the published image: {lacking or 'no base was made here yet'}", file=sys.stderr)
        reference = pulling.pull(root, target.name, force=bool(todo.forced)).entry.image
    if not reference and former:
        print(f"taking {former}, whose labs are others than this checkout's: {lacking}", file=sys.stderr)
        reference = former
    return Environment(target, "docker", reference, todo.lock) if reference else None


def pick_best(table: Table, host: Host) -> Target:
    """The target that fits this host best.

    Raises:
        HostError: none does; the message has the reason for each.
    """
    builds = [compat.of_target(target) for target in table.targets.values()]
    best = compat.best(builds, host)
    if best is None:
        findings = [compat.judge(build, host) for build in builds]
        raise HostError(
            "no target runs on this machine",
            found="; ".join(f"{finding.name}: {finding.reason}" for finding in findings),
            fix=next((finding.fix for finding in findings if finding.fix), "invoke doctor"),
        )
    return table.targets[best.name]


def build(
    root: Path,
    name: str | None = None,
    engine: str | None = None,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
    force: bool = False,
    wish: Wish = engines.ANY,
) -> Environment:
    """Make the environment of a target, or find it made. Raises what :func:`plan`, fetch and the engine raise."""
    return make(plan(root, name, engine, force=force), overrides=overrides, offline=offline, wish=wish)


def make(todo: Plan, *, overrides: Sequence[str] = (), offline: bool = False, wish: Wish = engines.ANY) -> Environment:
    """Carry out a plan; wheels are fetched only if the environment is not there yet.

    Raises:
        UsageError: an override that cannot be meant, whether it comes to be needed or not; a wish that only images
            can have, and another engine.
    """
    return _carry_out(todo, _builder(todo, overrides, offline=offline, wish=wish))


def _builder(
    todo: Plan, overrides: Sequence[str], *, offline: bool, wish: Wish = engines.ANY
) -> Callable[[], Environment]:
    """What builds the environment of a plan. Raises UsageError for what cannot be meant, needed or not."""
    check_wish(wish, todo.engine)
    fetch_wheels = _fetcher(todo.table, todo.target, todo.lock, overrides, offline=offline)
    root = todo.table.path.parents[1]
    return lambda: engines.load(todo.engine).build(
        todo.target, todo.lock, fetch_wheels, root=root, offline=offline, wish=wish
    )


def _carry_out(todo: Plan, bring: Callable[[], Environment]) -> Environment:
    """Say what speaks against it, bring the environment, and note that it was forced."""
    if todo.forced:
        print(f"forced in spite of: {todo.forced}", file=sys.stderr)
    elif todo.finding.verdict == compat.CPU_ONLY:
        print(f"target {todo.target.name} {todo.finding.verdict} here: {todo.finding.reason}", file=sys.stderr)
    made = bring()
    if todo.forced:
        made = replace(made, forced=todo.forced)
        forced.note(made, todo.forced)
    return made


def check_wish(wish: Wish, engine: str) -> None:
    """Raises UsageError for a builder that there is not, or a wish that the engine cannot be asked."""
    if wish.builder not in ("", *spec.BUILDERS):
        raise UsageError(f"no builder {wish.builder!r}", found=f"builders: {', '.join(spec.BUILDERS)}")
    if wish != engines.ANY and engine != "docker":
        raise UsageError(
            f"the engine {engine} makes no images", found="--builder, --base or --no-bytecode", fix="--engine=docker"
        )


def _fetcher(table: Table, target: Target, locked: Lock, overrides: Sequence[str], *, offline: bool) -> engines.Fetch:
    """What brings the wheels of a lock; an override that cannot be meant is refused now, needed or not."""
    from labrig import indexes

    indexes.name_indexes(table.indexes, overrides, os.environ)

    def fetch_wheels() -> Path:
        fetch(table, target, locked, overrides=overrides, offline=offline)
        return home.wheels()

    return fetch_wheels


@dataclass(frozen=True)
class Exported:
    """An image that was made without an engine, and where it went: ``oci:FOLDER:TAG``, ``HOST/NAME@DIGEST``."""

    target: Target
    lock: Lock
    image: Image
    places: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return {
            "target": self.target.name,
            "platform": self.lock.platform,
            "lock": self.lock.digest,
            "digest": self.image.digest,
            "references": list(self.places),
            "layers": [
                {"title": one.title, "digest": one.digest, "diff_id": one.diff_id, "size": one.size}
                for one in self.image.layers
            ],
        }


def export(
    root: Path,
    name: str | None,
    engine: str = "docker",
    *,
    platform: str = "",
    output: Path | None = None,
    push: str = "",
    overrides: Sequence[str] = (),
    offline: bool = False,
    wish: Wish = engines.ANY,
) -> Exported:
    """Make the image of a target, for this machine or any other, without an engine, and write it to an OCI layout,
    send it to a registry, or both.

    Raises:
        UsageError: a name, a platform, a place or a wish that cannot be meant.
        LockError, FetchError, HostError, BuildError: it cannot be made.
        DistributeError: the registry cannot be reached, or refuses.
    """
    from labrig import oci, registry

    if engine != "docker":
        raise UsageError("--output, --push and --platform are for images", found=f"--engine={engine}")
    if not (output or push):
        raise UsageError("--platform is for an image that goes elsewhere", fix="name --output or --push as well")
    if push and offline:
        raise UsageError("--push opens a connection, and --offline forbids that", fix="leave out one of them")
    if push:
        registry.require_tag(push)
    drafted = draft(root, name, platform=platform, overrides=overrides, offline=offline, wish=wish)
    target = drafted.recipe.target
    made = drafted.build()
    places = []
    if output:
        tag = f"{target.name}-{target.torch}"
        named = oci.write_layout(made, output, tag)
        places.append(f"oci:{output}:{tag}")
        print(f"{places[0]}: {named.digest}", file=sys.stderr)
    if push:
        places.append(registry.push(made, push))
    return Exported(target, drafted.recipe.lock, made, tuple(places))


@dataclass(frozen=True)
class Draft:
    """An image that is to be made without an engine; ``fetch`` brings the wheels when they are needed."""

    recipe: Recipe
    fetch: engines.Fetch

    def build(self) -> Image:
        """Put it together, with its bill of materials. Raises what ``assembly.build`` raises."""
        from labrig import assembly

        return assembly.build(self.recipe, self.fetch, with_sbom=True)


def draft(
    root: Path,
    name: str | None,
    *,
    platform: str = "",
    overrides: Sequence[str] = (),
    offline: bool = False,
    wish: Wish = engines.ANY,
) -> Draft:
    """Decide what the image of a target is made of, for this machine or any other; no engine is asked.

    Raises:
        UsageError: a name, a platform or a wish that cannot be meant.
        LockError, HostError, BuildError, DistributeError: no lock, or no base.
    """
    from labrig import assembly

    table = spec.read(root / "images" / spec.TABLE)
    host = read_host()
    target = table.pick(name) if name else pick_best(table, host)
    platform = platform or engine_platform("docker", host)
    check_wish(wish, "docker")
    if (wish.builder or target.builder) != "layers":
        raise UsageError("only the builder layers makes an image without an engine", fix="--builder=layers")
    if "docker" not in target.engines or platform not in target.platforms:
        raise UsageError(
            f"target {target.name} has no image for {platform}",
            found=f"platforms: {', '.join(target.platforms)}; engines: {', '.join(target.engines)}",
        )
    locked = lock.load(target, platform, root / "images")
    fetch_wheels = _fetcher(table, target, locked, overrides, offline=offline)
    return Draft(assembly.plan(target, locked, root, wish, offline=offline), fetch_wheels)


def make_base(root: Path, name: str | None = None, *, fresh: bool = False) -> str:
    """Make the base of a target's image, or find it made; gives its reference.

    Raises:
        HostError: no engine, no mmdebstrap, or this host is for another target.
        UsageError: the row's base comes from a registry and is not locked.
        BuildError: it could not be made.
    """
    from labrig import base, daemon

    todo = plan(root, name, "docker")
    with daemon.connect() as client:
        return base.ensure(client, todo.target, todo.lock.platform, root / "images", fresh=fresh).reference


def use(
    root: Path, name: str | None = None, engine: str | None = None, *, offline: bool = False, force: bool = False
) -> Environment:
    """The environment that labs, shell and verify enter: built if need be, by ``engine`` or by the first usable one.

    Which one was taken instead of the row's first is said on stderr. A host that cannot make an image takes one that is
    in the engine, or the published one, if that is of the checkout's lock. Raises what :func:`build` raises.
    """
    if engine is None:
        engine, why = usable_engine(root, name)
        if why:
            print(f"engine {engine}: {why}", file=sys.stderr)
    return take(plan(root, name, engine, force=force), offline=offline)


def find_image(root: Path, name: str | None, reference: str) -> Environment:
    """An image that is in the engine, whoever made it, as an environment of a target: to verify what was pulled.

    Raises:
        HostError: no engine, no such image, or no target fits.
    """
    from docker.errors import ImageNotFound

    from labrig import daemon

    todo = plan(root, name, "docker", force=True)  # nothing is built, and looking does no harm
    with daemon.connect() as client:
        try:
            client.images.get(reference)
        except ImageNotFound:
            raise HostError(
                f"the Docker engine has no image {reference}",
                fix="docker images lists those it has; docker pull brings one",
            ) from None
    return Environment(todo.target, "docker", reference, todo.lock)


def fetch(
    table: Table, target: Target, locked: Lock, *, overrides: Sequence[str] = (), offline: bool = False
) -> Fetched:
    """Bring every wheel of a lock into the wheelhouse, verified.

    Raises:
        FetchError: a wheel cannot be had or is another one than the lock's.
    """
    from labrig import wheelhouse
    from labrig.progress import Progress

    sources = read_sources(table, overrides)
    pinned = dict.fromkeys(target.pinned, target.index) if target.index else {}
    with Progress() as progress:
        return wheelhouse.fetch(
            locked.wheels, sources, pinned=pinned, store=home.wheels(), offline=offline, progress=progress
        )


def fetch_by_name(
    root: Path,
    name: str | None,
    platform: str | None,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
) -> Path:
    """Fetch a target's wheels, for this host or for another platform; gives the wheelhouse.

    Raises what :func:`plan` and :func:`fetch` raise.
    """
    table = spec.read(root / "images" / spec.TABLE)
    host = read_host()
    target = table.pick(name) if name else pick_best(table, host)
    platform = platform or _platform_here(target, host)
    if platform not in target.platforms:
        raise UsageError(
            f"target {target.name} has no platform {platform!r}",
            found=f"its platforms: {', '.join(target.platforms)}",
            fix="name one of these with --platform",
        )
    locked = lock.load(target, platform, root / "images")
    fetch(table, target, locked, overrides=overrides, offline=offline)
    return home.wheels()


def _platform_here(target: Target, host: Host) -> str:
    """The platform that some engine of a target makes here; whether Docker answers does not matter for its wheels."""
    reasons = []
    for engine in target.engines:
        if not (reason := engines.load(engine).check(target, host)):
            return engine_platform(engine, host)
        reasons.append(reason)
    raise HostError(reasons[0], fix="--platform fetches for another machine; invoke doctor says what fits this one")


def enter(root: Path, name: str | None, engine: str | None, command: str, *, offline: bool = False) -> None:
    """Open a shell in an environment, or run one command line there; the process ends with its exit code."""
    made = use(root, name, engine, offline=offline)
    if not command:
        print(f"target {made.target.name} ({made.reference}); leave with exit", file=sys.stderr)
    here = Path.cwd() if Path.cwd().is_relative_to(root) else root
    with engines.load(made.engine).session(made, "shell", [root]) as session:
        inside = session.labs is not None  # a container: this machine's shell and other folders are not there
        shell = "/bin/bash" if inside else os.environ.get("SHELL") or "/bin/sh"
        argv = ["/bin/sh", "-c", command] if command else [shell, "-i"]
        code = session.run(argv, cwd=here if inside else None)
    raise SystemExit(code)


def read_sources(table: Table, overrides: Sequence[str]) -> Sources:
    """The sources in force; an override in use is said on stderr."""
    from labrig import indexes

    sources = indexes.read_sources(table.indexes, overrides)
    for line in sources.overrides:
        print(line, file=sys.stderr)
    return sources
