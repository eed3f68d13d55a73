"""The conda engine: a native environment from conda-forge, made by the conda program that is on PATH.

It is made from the exact lock where one is committed, else from the pins of environment.yml, which a solver completes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labrig import conda, condatool, home, native, render
from labrig.conda import CondaLock
from labrig.condatool import Tool
from labrig.engines import ANY, Environment, Fetch, Purpose, Session, Wish
from labrig.errors import BuildError
from labrig.lock import Lock
from labrig.native import check as check
from labrig.spec import Target

SCRIPTS = "etc/conda/activate.d"  # what packages want to be sourced in an activated environment (conda docs)
# $0 is a Python: env -0 is not everywhere.
SOURCE = (
    f'for script in "$CONDA_PREFIX"/{SCRIPTS}/*.sh; do . "$script" >&2; done; '
    'exec "$0" -I -c "import json, os, sys; json.dump(dict(os.environ), sys.stdout)"'
)
SHELLS_OWN = ("_", "PWD", "OLDPWD", "SHLVL")  # variables that the shell that sources them adds
SOURCE_TIMEOUT = 60  # seconds
CUDA = "CONDA_OVERRIDE_CUDA"


def build(
    target: Target, lock: Lock, fetch: Fetch, *, root: Path, offline: bool = False, wish: Wish = ANY
) -> Environment:
    """Make the environment, or find it made; ``lock`` says the versions, and nothing of the wheelhouse is used.

    It stands in a folder named by the digest of all that was asked for.

    Raises:
        HostError: no program that makes conda environments.
        LockError: the exact lock is stale or damaged.
        BuildError: no solution, or the installation failed; nothing half-made is kept.
    """
    asked = _ask(target, lock, root)
    if not native.is_made(asked.place):
        tool = condatool.find()
        if asked.exact is None:
            print(
                f"target {target.name} has no exact conda lock for {lock.platform}: {tool.name} completes the pins, "
                "and another day may give other packages beside them (invoke lock --engine=conda)",
                file=sys.stderr,
            )
        # The machine is judged by doctor, not by the solver: a shared folder is made on any machine.
        variables = {k: v for k, v in conda.virtual_packages(target, lock.platform).items() if k == CUDA}

        def fill(guard: int) -> None:
            text = conda.explicit(asked.exact, asked.address, tool.digest) if asked.exact else asked.pinned
            condatool.create(
                tool, asked.place, text, conda.pins(target, lock), channel=asked.channel, platform=lock.platform,
                variables=variables, offline=offline, keep=(guard,),
            )  # fmt: skip
            if not native.python(asked.place / tool.prefix).exists():
                raise BuildError(
                    f"{tool.name} ended well and left no Python in the environment of target {target.name}",
                    found=f"no {native.python(asked.place / tool.prefix)}",
                    fix="look at the channel that the packages came from (above), then run it again",
                )

        about = {"target": target.name, "engine": "conda", "tool": f"{tool.name} {tool.version}", "prefix": tool.prefix}
        native.make(asked.place, about, fill)
    return Environment(target, "conda", str(native.prefix(asked.place)), lock)


@dataclass(frozen=True)
class _Asked:
    """What an environment is made of: the exact lock, or without one the pins, an environment.yml."""

    exact: CondaLock | None
    pinned: str
    channel: str
    address: str
    place: Path


def _ask(target: Target, lock: Lock, root: Path) -> _Asked:
    channel, address = conda.channel(target), conda.address(target)
    exact = conda.load(target, lock, root / "images")
    pinned = render.render_environment_yml(target, lock, root / "templates", channel)
    whole = f"{address}\n{conda.serialize(exact)}" if exact else pinned
    name = f"conda-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return _Asked(exact, pinned, channel, address, home.environments() / target.name / name)


def folder(target: Target, lock: Lock, root: Path) -> Path:
    """Where the environment of the present pins or exact lock stands, made or not.

    Raises:
        LockError: the exact lock is stale or damaged.
    """
    return _ask(target, lock, root).place


@contextlib.contextmanager
def session(environment: Environment, purpose: Purpose = "shell", folders: Sequence[Path] = ()) -> Iterator[Session]:
    """Enter the environment, activated as conda would do it: PATH, CONDA_PREFIX, the scripts of its packages.

    Raises:
        HostError: to verify it, and no program here can list it.
    """
    prefix = Path(environment.reference)
    entered = native.enter(environment, activated(os.environ, prefix))
    if purpose == "verify":
        tool = condatool.find()
        entered = replace(entered, facts=lambda: _facts(tool, prefix))
    yield entered


def activated(outer: Mapping[str, str], prefix: Path) -> dict[str, str]:
    """The environment variables of a session (conda docs, "Managing environments": activation).

    Raises:
        BuildError: a script of a package failed.
    """
    inner = native.inherited(outer) | {
        "PATH": os.pathsep.join([str(prefix / "bin"), outer.get("PATH", os.defpath)]),
        "CONDA_PREFIX": str(prefix),
        "CONDA_DEFAULT_ENV": str(prefix),
        "CONDA_SHLVL": "1",
    }
    if not any((prefix / SCRIPTS).glob("*.sh")):
        return inner
    shell = shutil.which("bash") or "/bin/sh"  # conda itself is used in bash mostly, and some scripts count on it
    try:
        done = subprocess.run(
            [shell, "-c", SOURCE, sys.executable], env=inner, stdin=subprocess.DEVNULL, capture_output=True, check=True,
            timeout=SOURCE_TIMEOUT,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise BuildError(
            f"the environment cannot be activated: a script in {prefix / SCRIPTS} failed",
            found=said.decode(errors="replace").strip()[-500:],
            fix="invoke clean --target=NAME, then build it again",
        ) from None
    found: dict[str, str] = json.loads(done.stdout)
    return {name: value for name, value in found.items() if name in inner or name not in SHELLS_OWN}


def _facts(tool: Tool, prefix: Path) -> dict[str, Any]:
    """What the conda program lists; where it does not, the checks that need it fail with its reason."""
    try:
        return {"listed": condatool.read_list(tool, prefix)}
    except BuildError as error:
        return {"listed": {"error": " ".join(str(error).split())}}
