"""From a target's name to its environment: choose, check, fetch, build."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labrig import doctor, engines, home, lock, spec
from labrig.engines import Environment
from labrig.errors import HostError, UsageError
from labrig.host import Host, read_host
from labrig.lock import Lock
from labrig.spec import Table, Target

if TYPE_CHECKING:
    from labrig.indexes import Sources
    from labrig.wheelhouse import Fetched


@dataclass(frozen=True)
class Plan:
    """What is to be built here, decided before anything is fetched."""

    table: Table
    target: Target
    engine: str
    lock: Lock
    host: Host


def plan(root: Path, name: str | None = None, engine: str | None = None) -> Plan:
    """Choose target and engine and read the lock; nothing is fetched or written.

    Raises:
        SpecError, UsageError: the table, or a name.
        HostError: this host cannot make the target, or no target fits it.
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
        raise HostError(reason, fix="invoke doctor says which targets this machine can run")
    if host.platform is None:
        raise HostError(f"labrig knows no platform for {host.os} {host.arch}", fix="invoke doctor")
    return Plan(table, target, engine, lock.load(target, host.platform, root / "images"), host)


def pick_best(table: Table, host: Host) -> Target:
    """The target that fits this host best.

    Raises:
        HostError: none does; the message has the reason for each.
    """
    targets = list(table.targets.values())
    best = doctor.best(targets, host)
    if best is None:
        findings = [doctor.judge(target, host) for target in targets]
        raise HostError(
            "no target runs on this machine",
            found="; ".join(f"{finding.name}: {finding.reason}" for finding in findings),
            fix=next((finding.fix for finding in findings if finding.fix), "invoke doctor"),
        )
    return table.targets[best]


def build(
    root: Path,
    name: str | None = None,
    engine: str | None = None,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
) -> Environment:
    """Make the environment of a target, or find it made. Raises what :func:`plan`, fetch and the engine raise."""
    return make(plan(root, name, engine), overrides=overrides, offline=offline)


def make(todo: Plan, *, overrides: Sequence[str] = (), offline: bool = False) -> Environment:
    """Carry out a plan; wheels are fetched only if the environment is not there yet.

    Raises:
        UsageError: an override that cannot be meant, whether it comes to be needed or not.
    """
    from labrig import indexes

    indexes.name_indexes(todo.table.indexes, overrides, os.environ)

    def fetch_wheels() -> Path:
        fetch(todo.table, todo.target, todo.lock, overrides=overrides, offline=offline)
        return home.wheels()

    return engines.load(todo.engine).build(todo.target, todo.lock, fetch_wheels, offline=offline)


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
    if platform is None:
        todo = plan(root, name)
        table, target, locked = todo.table, todo.target, todo.lock
    else:
        table = spec.read(root / "images" / spec.TABLE)
        target = table.pick(name) if name else pick_best(table, read_host())
        if platform not in target.platforms:
            raise UsageError(
                f"target {target.name} has no platform {platform!r}",
                found=f"its platforms: {', '.join(target.platforms)}",
                fix="name one of these with --platform",
            )
        locked = lock.load(target, platform, root / "images")
    fetch(table, target, locked, overrides=overrides, offline=offline)
    return home.wheels()


def enter(root: Path, name: str | None, engine: str | None, command: str, *, offline: bool = False) -> None:
    """Open a shell in an environment, or run one command line there; the process ends with its exit code."""
    made = build(root, name, engine, offline=offline)
    shell = os.environ.get("SHELL") or "/bin/sh"
    argv = ["/bin/sh", "-c", command] if command else [shell, "-i"]
    if not command:
        print(f"target {made.target.name} ({made.reference}); leave with exit", file=sys.stderr)
    with engines.load(made.engine).session(made) as session:
        code = session.run(argv)
    raise SystemExit(code)


def read_sources(table: Table, overrides: Sequence[str]) -> Sources:
    """The sources in force; an override in use is said on stderr."""
    from labrig import indexes

    sources = indexes.read_sources(table.indexes, overrides)
    for line in sources.overrides:
        print(line, file=sys.stderr)
    return sources
