"""`invoke lock`: resolve targets anew and render what follows from their locks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from labrig import base, daemon, environment, lock, render, resolver, spec
from labrig.errors import LockError, UsageError
from labrig.indexes import Sources
from labrig.lock import Lock
from labrig.spec import Target


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
        raise UsageError(
            f"no such platform: {platform!r}",
            found="; ".join(f"{target.name} is for {', '.join(target.platforms)}" for target in targets),
            fix="name one of these with --platform",
        )
    sources = environment.read_sources(table, overrides)
    changed: list[Path] = []
    failures: list[LockError] = []
    for target in targets:
        if not chosen[target.name]:
            continue
        try:
            new = _solve(target, chosen[target.name], sources, images, upgrade)
        except LockError as error:
            # One index that is down does not keep the other targets from being locked.
            failures.append(error)
            continue
        changed += [lock.write(one, images) for one in new]
        changed += render.write(render.render(table, target, root / "templates"))
    changed += render.write(render.render_readme(table))
    if failures:
        for file in changed:
            print(f"changed {file.relative_to(root)}", file=sys.stderr)
        for failure in failures[1:]:
            print(failure, file=sys.stderr)
        raise failures[0]
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
