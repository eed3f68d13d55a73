"""The venv engine: a native environment, made by uv from the wheelhouse with no network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labrig import home, interpreters, native
from labrig.engines import ANY, PROBE, Environment, Fetch, Purpose, Session, Wish
from labrig.errors import BuildError
from labrig.lock import Lock
from labrig.native import check as check
from labrig.progress import megabytes
from labrig.spec import Target

INSTALL_TIMEOUT = 1800  # seconds
UNPACKED = 4  # an environment takes about so many times the bytes of its wheels


def build(
    target: Target, lock: Lock, fetch: Fetch, *, root: Path | None = None, offline: bool = False, wish: Wish = ANY
) -> Environment:
    """Make the environment of a lock, or find it made; nothing of a checkout goes into it.

    It stands in a folder named by the lock's digest.

    Raises:
        HostError: no interpreter of the target's Python minor.
        FetchError: from ``fetch``.
        BuildError: the install failed; nothing half-made is kept.
    """
    place = folder(lock)
    environment = Environment(target, "venv", str(place), lock)
    if native.is_made(place):
        return environment

    def fill(guard: int) -> None:
        python = interpreters.find(target.python, offline=offline)
        _install(python, lock, fetch(), place, guard)

    native.make(place, {"target": target.name, "engine": "venv", "lock": lock.digest}, fill)
    return environment


@contextlib.contextmanager
def session(environment: Environment, purpose: Purpose = "shell", folders: Sequence[Path] = ()) -> Iterator[Session]:
    """Enter a native environment: its programs first on PATH, nothing of the caller's Python leaking in."""
    yield native.enter(environment, entered(os.environ, Path(environment.reference)))


def entered(outer: Mapping[str, str], place: Path) -> dict[str, str]:
    """The environment variables of a session in the environment at ``place``."""
    path = os.pathsep.join([str(place / "bin"), outer.get("PATH", os.defpath)])
    return {**native.inherited(outer), "VIRTUAL_ENV": str(place), "PATH": path}


def folder(lock: Lock) -> Path:
    """Where the environment of a lock stands, made or not."""
    return home.environments() / lock.target / lock.digest[:12]


def _install(python: Path, lock: Lock, store: Path, place: Path, guard: int) -> None:
    """Install the lock at ``place``, and anew with an empty uv cache if files came out of that cache damaged.

    uv verifies a wheel when it unpacks it into its cache and links from there ever after; who edits a file of an
    environment edits the cache.
    """
    print(f"installing {len(lock.wheels)} wheels with Python {lock.python} into {place}", file=sys.stderr)
    _sync(python, lock, store, place, guard)
    if wrong := _damaged(place):
        print(f"uv's cache holds damaged files ({wrong[0]}): removed, installing anew", file=sys.stderr)
        _run_uv(["cache", "clean"], lock, guard)  # waits for other uv processes that use it
        shutil.rmtree(place)
        _sync(python, lock, store, place, guard)
        if wrong := _damaged(place):
            raise BuildError(
                f"the environment of target {lock.target} came out damaged twice",
                found="; ".join(wrong[:5]),
                fix=f"look at the disk that holds {home.root()}, or name another with LABRIG_CACHE",
            )


def _sync(python: Path, lock: Lock, store: Path, place: Path, guard: int) -> None:
    from labrig import wheelhouse

    try:
        # One folder for all locks: uv knows by a wheel's path and time that it has unpacked it already.
        links = wheelhouse.link_folder(lock.wheels, store, home.links())
        _run_uv(["venv", "--python", str(python), str(place)], lock, guard)
        _run_uv(
            [
                "pip", "sync", "--python", str(place / "bin" / "python"), "--offline", "--no-index",
                "--find-links", str(links), "--require-hashes", "--no-build", "--strict", "-",
            ],
            lock,
            guard,
            requirements_text(lock),
        )  # fmt: skip
    except OSError as error:
        raise _failure(lock, str(error)) from error


def _damaged(place: Path) -> list[str]:
    """Installed files that are not what their package's RECORD states, as the probe finds them."""
    command = [str(place / "bin" / "python"), "-I", str(PROBE), "files"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    if done.returncode != 0:
        return [f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}"]
    _, fact, _ = json.loads(done.stdout)
    return [fact["error"]] if "error" in fact else list(fact["wrong"])


def requirements_text(lock: Lock) -> str:
    """The lock in pip's form: one exact, hashed requirement a line."""
    return "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in lock.wheels)


def _run_uv(arguments: list[str], lock: Lock, guard: int, given: str = "") -> None:
    # uv's own settings are cut off: at this point every wheel is at hand and proven, nothing is to be found elsewhere.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "VIRTUAL_ENV", "PIP_"))}
    environment |= {"UV_CACHE_DIR": str(home.uv_cache()), "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    command = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    try:
        done = subprocess.run(
            command, env=environment, input=given, capture_output=True, text=True, timeout=INSTALL_TIMEOUT,
            pass_fds=(guard,),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"uv {arguments[0]} took more than {INSTALL_TIMEOUT} s", fix="look at the disk, then run it again"
        ) from None
    if done.returncode != 0:
        raise _failure(lock, done.stderr.strip().removeprefix("error: "))


def _failure(lock: Lock, reason: str) -> BuildError:
    fix = "run it again; if it fails again, invoke clean --all and then build"
    if any(word in reason for word in ("No space left", "os error 28", "quota")):
        free = megabytes(shutil.disk_usage(home.root()).free)
        fix = (
            f"{free} are free in {home.root()}, the environment needs about {megabytes(UNPACKED * lock.size)}; "
            "make room, or name another place with LABRIG_CACHE, then run it again"
        )
    return BuildError(
        f"the environment of target {lock.target} could not be made",
        found=reason.replace("\n", "\n         "),
        fix=fix,
    )
