"""`invoke lock`: resolve targets anew, for wheels or for conda, and render what follows from their locks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from labrig import base, conda, condatool, daemon, engines, environment, lock, render, resolver, spec
from labrig.errors import LockError, UsageError
from labrig.indexes import Sources
from labrig.lock import Lock
from labrig.spec import Target


def lock_all(
    root: Path,
    name: str | None,
    platform: str | None,
    *,
    engine: str | None,
    base: bool,
    upgrade: bool,
    overrides: Sequence[str],
) -> list[Path]:
    """What `invoke lock` does: the wheels' locks, or instead conda's, or the bases' digests; gives what changed.

    Raises:
        UsageError: no such engine, or flags that exclude each other.
        and what :func:`relock`, :func:`lock_conda` and :func:`lock_bases` raise.
    """
    if engine:
        engines.load(engine)
    if base and engine not in (None, "docker"):
        raise UsageError("--base is for the engine docker", found=f"--engine={engine}", fix="leave one of them out")
    if base:
        return lock_bases(root, name)
    if engine == "conda":
        return lock_conda(root, name, platform, upgrade=upgrade)
    return relock(root, name, platform, upgrade=upgrade, overrides=overrides)


def relock(
    root: Path,
    name: str | None = None,
    platform: str | None = None,
    *,
    upgrade: bool = False,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Lock one target or all, for one platform or all that can be locked; gives the files that changed.

    Raises:
        SpecError, UsageError: the table, or a name.
        LockError: no solution; the locks of that target are untouched, the other targets are locked all the same.
    """
    table = spec.read(root / "images" / spec.TABLE)
    images = table.path.parent
    targets = [table.pick(name)] if name else list(table.targets.values())
    chosen = {target.name: _platforms(target, platform) for target in targets}
    if not any(chosen.values()) and platform is not None:
        raise _no_platform(platform, targets)
    sources = environment.read_sources(table, overrides)
    changed: list[Path] = []
    failures: list[LockError] = []
    for target in targets:
        if not chosen[target.name]:
            continue
        try:
            new = _solve(target, chosen[target.name], sources, images, upgrade)
        except LockError as error:
            failures.append(error)
            continue
        changed += [lock.write(one, images) for one in new]
        changed += render.write(render.render(table, target, root / "templates"))
    pages = render.render_readme(table) | render.render_colab(table)
    changed += render.write(pages | render.render_notebooks(table, root / "templates"))
    _raise_first(failures, changed, root)
    return changed


def lock_bases(root: Path, name: str | None = None) -> list[Path]:
    """Write the digests of the bases that come from a registry, and render what follows; gives the files that changed.

    Raises:
        UsageError: no row's base comes from a registry.
        HostError: no Docker engine, which asks the registry.
        LockError: the registry does not answer, or has no such image.
    """
    table = spec.read(root / "images" / spec.TABLE)
    images = table.path.parent
    targets = [table.pick(name)] if name else [one for one in table.targets.values() if one.base == "registry"]
    if not targets or targets[0].base != "registry":
        raise UsageError(
            f"there is no base to lock for {name or 'any target'}",
            found='base = "bootstrap": the base is made here',
            fix='base = "registry" in the row in images/targets.toml, then the same command',
        )
    changed = []
    with daemon.connect() as client:
        for target in targets:
            changed += base.lock(client, target, images)
            changed += render.write(render.render(table, target, root / "templates"))
    return changed


def lock_conda(
    root: Path, name: str | None = None, platform: str | None = None, *, upgrade: bool = False
) -> list[Path]:
    """Make the exact conda lock of one target or all, for one platform or all; gives the files that changed.

    A lock that is current is left alone unless ``upgrade`` asks for newer packages beside the pinned ones.

    Raises:
        UsageError: no target has that platform, or the target is not made by conda.
        HostError: no program here can solve.
        LockError: no solution, or the channel is not reached; the old lock is untouched, others are made all the same.
    """
    table = spec.read(root / "images" / spec.TABLE)
    images = table.path.parent
    targets = [table.pick(name)] if name else [target for target in table.targets.values() if target.conda]
    for target in targets:
        conda.channel(target)  # is it made by conda at all
    chosen = [(target, p) for target in targets for p in target.platforms if platform in (None, p)]
    if not chosen:
        raise _no_platform(platform, targets)
    tool = condatool.find()
    changed: list[Path] = []
    failures: list[LockError] = []
    for target, where in chosen:
        locked = conda.versions(target, where, images)
        try:
            if not upgrade and conda.load(target, locked, images):
                print(f"{target.name} for {where}: current", file=sys.stderr)
                continue
        except LockError as error:
            print(error.what, file=sys.stderr)
        print(f"solving {target.name} for {where} with {tool.name} {tool.version}", file=sys.stderr, flush=True)
        asked = render.render_environment_yml(target, locked, root / "templates", conda.channel(target))
        try:
            packages = condatool.solve(tool, asked, where, conda.virtual_packages(target, where))
            if wrong := conda.uncovered(packages, conda.pins(target, locked)):
                raise LockError(
                    f"{tool.name} chose what the pins of target {target.name} do not allow",
                    found=wrong,
                    fix=f"look at {tool.path} and its settings; the old lock is untouched",
                )
        except LockError as error:
            failures.append(error)
            continue
        new = conda.CondaLock(target.name, where, conda.inputs_digest(target, locked), packages)
        print(f"  {len(packages)} packages, {sum(one.size for one in packages) / 1e6:.0f} MB", file=sys.stderr)
        file = conda.path(images, target.name, where)
        if not file.exists() or file.read_text(encoding="utf-8") != conda.serialize(new):
            changed.append(conda.write(new, images))
    _raise_first(failures, changed, root)
    return changed


def _no_platform(platform: str | None, targets: Sequence[Target]) -> UsageError:
    return UsageError(
        f"no such platform: {platform!r}",
        found="; ".join(f"{target.name} is for {', '.join(target.platforms)}" for target in targets),
        fix="name one of these with --platform",
    )


def _raise_first(failures: Sequence[LockError], changed: Sequence[Path], root: Path) -> None:
    """One index that is down does not keep the other targets from being locked; what changed is said all the same."""
    if failures:
        for file in changed:
            print(f"changed {file.relative_to(root)}", file=sys.stderr)
        for failure in failures[1:]:
            print(failure, file=sys.stderr)
        raise failures[0]


def _solve(target: Target, platforms: Sequence[str], sources: Sources, images: Path, upgrade: bool) -> list[Lock]:
    """The locks of one target that differ from the old ones, all solved before any is written."""
    changed = []
    for platform in platforms:
        print(f"resolving {target.name} for {platform}", file=sys.stderr, flush=True)
        old = _read_old(lock.path(images, target.name, platform))
        new = resolver.solve(target, platform, sources, old=None if upgrade else old)
        print(f"  {_difference(old, new)}", file=sys.stderr)
        changed += [new] if new != old else []
    return changed


def _platforms(target: Target, platform: str | None) -> tuple[str, ...]:
    if platform is None:
        for declared, reason in target.unlocked.items():
            print(f"not locking {target.name} for {declared}: {reason}", file=sys.stderr)
        return tuple(p for p in target.platforms if p not in target.unlocked)
    return (platform,) if platform in target.platforms else ()


def _read_old(file: Path) -> Lock | None:
    """The old lock, or None where there is none or where it is damaged: then the resolver starts afresh."""
    try:
        return lock.read(file) if file.exists() else None
    except LockError as error:
        print(f"{error}", file=sys.stderr)
        return None


def _difference(old: Lock | None, new: Lock) -> str:
    size = f"{len(new.wheels)} wheels, {new.size / 1e6:.0f} MB"
    if old is None:
        return f"locked: {size}"
    before, after = ({wheel.name: wheel.version for wheel in one.wheels} for one in (old, new))
    changes = [f"{n} {before.get(n, 'new')} -> {after.get(n, 'gone')}" for n in sorted(before | after)
               if before.get(n) != after.get(n)]  # fmt: skip
    if changes:
        return f"{size}; {', '.join(changes)}"
    return f"{size}; no version changed" if new != old else f"{size}; unchanged"
