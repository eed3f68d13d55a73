"""Engines: what turns a lock into an environment that can be entered.

An engine is a module with three functions (:class:`Engine`); there is no base class. Adding one is a module beside
these and its name in :data:`MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from labrig.errors import UsageError

if TYPE_CHECKING:
    from labrig.host import Host
    from labrig.lock import Lock
    from labrig.spec import Target

MODULES = {name: f"labrig.engines.{name}" for name in ("docker", "venv", "conda")}

PROBE = Path(__file__).parents[1] / "probe.py"
Purpose = Literal["labs", "shell", "verify"]  # what a session is for: a container is opened no further than it needs
Fetch = Callable[[], Path]  # makes sure every wheel of the lock is in the store and verified; gives the store


@dataclass(frozen=True)
class Wish:
    """How an image is to be made, which only the docker engine is asked. ``builder`` and ``base`` replace the row's."""

    builder: str = ""
    base: str = ""
    bytecode: bool = True


@dataclass(frozen=True)
class Environment:
    """What an engine made. ``reference`` is how people name it: a folder, or an image by digest.

    ``forced`` says why its verdict was against it, where it was built all the same.
    """

    target: Target
    engine: str
    reference: str
    lock: Lock
    forced: str = ""


ANY = Wish()


class Run(Protocol):
    """Run a command inside a session; ``stdout`` is a file descriptor of this process, its own stdout without it."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> int: ...


@dataclass(frozen=True)
class Session:
    """An entered environment.

    ``run`` runs a command inside with this process's standard streams and returns its exit code; ``hostspec`` is the
    same place for testinfra (``local://``, ``docker://ID``); ``python`` the interpreter's name in there, ``probe`` the
    probe's. ``labs`` is the folder in there that holds the environment's own labs/, None where it has none and a
    checkout's are run. ``facts`` is what the engine itself can tell `verify` (an image's labels), ``identity`` what it
    knows an image by, its digest.
    """

    environment: Environment
    run: Run
    hostspec: str
    python: str
    labs: Path | None = None
    probe: str = str(PROBE)
    facts: Callable[[], dict[str, Any]] = dict
    identity: str = ""


class Engine(Protocol):
    """The three functions of an engine module."""

    def check(self, target: Target, host: Host) -> str | None:
        """Why this engine cannot make this target on this host, or None."""

    def build(
        self, target: Target, lock: Lock, fetch: Fetch, *, root: Path, offline: bool = False, wish: Wish = ANY
    ) -> Environment:
        """Make the environment from a checkout at ``root``, or find it made; ``fetch`` is called only if wheels are
        needed."""

    def session(
        self, environment: Environment, purpose: Purpose = "shell", folders: Sequence[Path] = ()
    ) -> AbstractContextManager[Session]:
        """Enter an environment; whatever that starts is ended when the context is left. ``folders`` of this machine
        are there under their own paths, and what is written there stays."""


def load(name: str) -> Engine:
    """The engine module of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in MODULES:
        raise UsageError(f"no engine {name!r}", found=f"engines: {', '.join(MODULES)}", fix="name one with --engine")
    return cast(Engine, importlib.import_module(MODULES[name]))
