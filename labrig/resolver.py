"""The resolver: uv, asked for the wheels of a target on a platform, from any host for any platform."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name, parse_wheel_filename

from labrig import network
from labrig.download import size_asker
from labrig.errors import LockError
from labrig.indexes import CONNECT_TIMEOUT, Sources, redact
from labrig.lock import Lock, Wheel, inputs, inputs_digest, oldest_macos, quoted, uv_platform
from labrig.spec import Target

RESOLVE_TIMEOUT = 600  # seconds
# uv waits 10 s for a connection and tries three times more: that an index is down would be known after 11 to 50 s.
PATIENCE = {"UV_HTTP_RETRIES": "1", "UV_HTTP_CONNECT_TIMEOUT": str(round(CONNECT_TIMEOUT))}
UNREACHABLE = "Failed to fetch"  # uv's words when an index does not answer, other than for a row without solution


def solve(target: Target, platform: str, sources: Sources, *, old: Lock | None = None) -> Lock:
    """Resolve a target for a platform with uv; versions of ``old`` are kept where they still fit.

    Raises:
        LockError: no solution (with the resolver's reason), or the resolver took a build that the row does not name.
    """
    with tempfile.TemporaryDirectory(prefix="labrig-lock-") as folder, size_asker(sources) as ask_size:
        project, out = Path(folder, "pyproject.toml"), Path(folder, "pylock.toml")
        project.write_text(inputs(target, platform) + _index_tables(target, sources), encoding="utf-8")
        if old is None or not _keep_all(target, platform, project, out, sources, old):
            _run_uv(target, platform, project, out, sources)
        packages = tomllib.loads(out.read_text(encoding="utf-8")).get("packages", [])
        wheels = tuple(sorted((_wheel(target, package, ask_size) for package in packages), key=lambda w: w.name))
    lock = Lock(target.name, platform, target.python, inputs_digest(target, platform), wheels)
    _check_builds(target, lock)
    return lock


def _keep_all(target: Target, platform: str, project: Path, out: Path, sources: Sources, old: Lock) -> bool:
    """Try to keep every old version; if they cannot all stand, leave them to uv as what to prefer.

    Preferences alone would do, but with more than one index uv may pass over a preferred version whose wheel for this
    platform is on the second of them, and lock an older one.
    """
    constraints = project.with_name("constraints.txt")
    free = {canonicalize_name(name) for name in target.pinned}
    constraints.write_text("".join(f"{w.name}=={w.version}\n" for w in old.wheels if w.name not in free))
    try:
        _run_uv(target, platform, project, out, sources, "--constraint", str(constraints))
    except LockError as error:
        if UNREACHABLE in error.found:
            raise  # a second try would only take as long again
        out.write_text(_preferences(old), encoding="utf-8")
        return False
    return True


def _run_uv(target: Target, platform: str, project: Path, out: Path, sources: Sources, *more: str) -> None:
    command = [
        sys.executable, "-m", "uv", "pip", "compile", str(project), "--quiet",
        "--format", "pylock.toml", "--output-file", str(out), "--generate-hashes", "--no-header",
        # Another interpreter on PATH may be broken (a pyenv shim); this one runs, and only wheels are taken,
        # so nothing of the target's Python has to run here.
        "--python", sys.executable, "--python-version", target.python, "--no-python-downloads",
        "--python-platform", uv_platform(target, platform), "--only-binary", ":all:",
        # As pip does: an extra index or a mirror adds candidates, it does not shadow the others.
        "--index-strategy", "unsafe-best-match", *more,
    ]  # fmt: skip
    environment = {**PATIENCE, **os.environ, **network.variables(), **sources.uv_environment()}
    if macos := oldest_macos(target):
        environment["MACOSX_DEPLOYMENT_TARGET"] = macos
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT, cwd=project.parent
        )
    except subprocess.TimeoutExpired:
        raise LockError(
            f"resolving target {target.name} for {platform} took more than {RESOLVE_TIMEOUT} s",
            fix="look at the network or the mirror, then run it again; the old lock is untouched",
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip().replace(str(project.parent), "").removeprefix("error: ")
        what = f"no lock for target {target.name} on {platform}; the old one is untouched"
        found = redact(reason).replace("\n", "\n         ")
        if UNREACHABLE not in reason:
            row = f"[targets.{target.name}] in images/targets.toml"
            raise LockError(what, found=found, fix=f"change the row {row} so that its packages can stand together")
        fix = "if an index cannot be reached from here, name a mirror (index-url in pip's settings, UV_DEFAULT_INDEX)"
        if target.index:
            fix += (
                f"; the index {target.index} may be switched off for a folder of wheels: "
                f"PIP_FIND_LINKS=FOLDER invoke lock --target={target.name} --index {target.index}=none"
            )
        raise LockError(what, found=found, fix=network.cure(found, fix))


def _index_tables(target: Target, sources: Sources) -> str:
    """uv's settings that bind torch and its companions, and nothing else, to the row's index."""
    url = sources.named.get(target.index) if target.index else None
    if url is None:
        return ""
    bound = "".join(f'{name} = {{ index = "{target.index}" }}\n' for name in target.pinned)
    return (
        f'[[tool.uv.index]]\nname = "{target.index}"\nurl = {quoted(url)}\nexplicit = true\n[tool.uv.sources]\n{bound}'
    )


def _preferences(old: Lock) -> str:
    """The old lock in the form uv reads as versions to keep."""
    return 'lock-version = "1.0"\ncreated-by = "labrig"\n' + "".join(
        f'[[packages]]\nname = "{w.name}"\nversion = "{w.version}"\n' for w in old.wheels
    )


def _wheel(target: Target, package: Mapping[str, Any], ask_size: Callable[[str], int]) -> Wheel:
    files = package.get("wheels", [])
    if not files:
        raise LockError(
            f"target {target.name}: the resolver gave no wheel for {package.get('name')} {package.get('version')}",
            fix="name packages that publish wheels for this platform",
        )
    entry = files[0]  # for one platform uv writes the one wheel it would install
    place = str(entry.get("url") or entry.get("path"))
    file = unquote(urlsplit(place).path).rsplit("/", 1)[-1]
    name, version, *_ = parse_wheel_filename(file)
    sha256 = entry.get("hashes", {}).get("sha256")
    if sha256 is None:
        raise LockError(
            f"target {target.name}: no SHA-256 of {file} can be had",
            found=f"digests: {', '.join(entry.get('hashes', {})) or 'none'}",
            fix="use an index that states SHA-256",
        )
    return Wheel(name, str(version), file, sha256, int(entry.get("size") or _size(place, ask_size)))


def _size(place: str, ask_size: Callable[[str], int]) -> int:
    """Bytes of a wheel whose index does not tell: of the file, or of the answer to a HEAD request."""
    parts = urlsplit(place)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path)).stat().st_size
    return ask_size(place)


def _check_builds(target: Target, lock: Lock) -> None:
    for name, version in (("torch", target.torch), *(pin.split("==") for pin in target.companions)):
        wheel = lock.wheel(name)
        allowed = {version, f"{version}+{target.variant}"}
        if wheel is None or wheel.version not in allowed:
            raise LockError(
                f"target {target.name}: the resolver took another build of {name} than the row's",
                found=f"{name} {wheel.version if wheel else 'none'}; the row allows {' or '.join(sorted(allowed))}",
                fix="look at the folders of wheels in use (pip config list), or name the index the build comes from",
            )
