"""The base: the image under the wheels, a Debian with the row's Python.

``bootstrap`` makes it here from Debian's packages with mmdebstrap, the same bytes from the same packages
(SOURCE_DATE_EPOCH), and keeps it in labrig's cache by its digest. ``registry`` takes the suite's own image, by the
digest that ``invoke lock --base`` wrote beside the locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tarfile
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from labrig import daemon, home, network, program
from labrig.errors import BuildError, HostError, LockError, UsageError
from labrig.files import CHUNK, EPOCH, digest, write_atomically
from labrig.progress import megabytes
from labrig.spec import Suite, Target

if TYPE_CHECKING:
    from docker import DockerClient

REPOSITORY = "labrig-base"  # bases of ours in the engine: labrig-base:<suite>-<12 digits of the digest>
LOCK = "base.lock"  # beside a target's locks
TIMEOUT = 1800  # seconds
LARGEST = 2_000_000_000  # bytes of a base's root file system; ours have 130 million
ARCHITECTURES = {"linux_x86_64": "amd64", "linux_aarch64": "arm64"}  # Debian's names
PACKAGES = "ca-certificates,python3,python3-venv,usr-is-merged"  # the last one instead of usrmerge, which needs perl
# As in Debian's own slim images: pages that nobody reads in a container.
EXCLUDED = ("man", "info", "lintian", "locale", "doc")
# Nothing in a lab changes its user: no program may run as another one than who starts it.
STRIP = 'chroot "$1" find / -xdev -perm /6000 -type f -exec chmod a-s {} +'
# What Debian's own tool leaves of its having run: one of six bases differed in it, and in nothing else. Backups and
# logs of accounts: to remove them in a later layer would write the time of the removal there.
FORGET = (
    'rm -rf "$1"/usr/share/python3/debpython/__pycache__ "$1"/var/log/lastlog "$1"/var/log/faillog; '
    'for name in passwd shadow group gshadow subuid subgid; do rm -f "$1/etc/$name-"; done'
)
# mmdebstrap copies the first two from this machine, whose base would then be another one. An engine mounts its own over
# all three; one that is not there it makes and removes at each step of a build, and /etc has the time of that.
MOUNTED = (
    'for name in hostname resolv.conf hosts; do rm -f "$1/etc/$name"; install -m 644 /dev/null "$1/etc/$name"; done'
)
INSTALL = "apt install mmdebstrap (Debian, Ubuntu)"


@dataclass(frozen=True)
class Base:
    """An image that a build can start FROM, and what its label says of it (OCI annotations: base.name, base.digest)."""

    reference: str
    name: str
    digest: str  # "sha256:...": of the tar that was imported, or of the registry's manifest


def lacking(target: Target, platform: str) -> str:
    """Why the base of a target cannot be had here, or an empty text; nothing is made or fetched to find out."""
    suite = _suite(target)
    if target.base == "registry":
        return ""  # one that is not locked is a mistake in the row, not something that this host lacks
    if _kept(suite, platform) or shutil.which("mmdebstrap"):
        return ""
    return "mmdebstrap, which makes the base, is not installed"


def ensure(client: DockerClient, target: Target, platform: str, images: Path, *, fresh: bool = False) -> Base:
    """The base of a target, in the engine; made first if need be (``fresh``: made anew), which is said on stderr.

    Raises:
        UsageError: the row says "registry", and no digest is locked.
        HostError: no mmdebstrap.
        BuildError: mmdebstrap failed, or the suite brings another Python than the row's.
    """
    suite = _suite(target)
    if target.base == "registry":
        return _from_registry(client, target, images)
    made = bootstrap(target, platform, fresh=fresh)
    with _alone(suite, platform):
        if not _has(client, made.reference):
            _import(client, tar(made), made.reference)
    # The committed Dockerfile's own default, for a build by hand.
    client.images.get(made.reference).tag(REPOSITORY, suite.name)
    return made


def bootstrap(target: Target, platform: str, *, fresh: bool = False) -> Base:
    """The base that is made here, found or made, without an engine; its root file system is :func:`tar`.

    Raises:
        HostError: no mmdebstrap.
        BuildError: mmdebstrap failed, or the suite brings another Python than the row's.
    """
    suite = _suite(target)
    with _alone(suite, platform):
        note = None if fresh else _kept(suite, platform)
        note = note or _bootstrap(suite, platform)
    short = note["digest"].removeprefix("sha256:")[:12]
    return Base(f"{REPOSITORY}:{suite.name}-{short}", f"{REPOSITORY}:{suite.name}", note["digest"])


def is_at_hand(target: Target, platform: str) -> bool:
    """Whether a build needs to make no base first: it was made here before, or comes from a registry."""
    return target.base == "registry" or _kept(_suite(target), platform) is not None


def require_kept(target: Target, platform: str) -> None:
    """Raises BuildError where the base is not here yet: making one needs the network."""
    if not _kept(_suite(target), platform):
        raise BuildError(f"the base of target {target.name} cannot be had offline", fix="build online, once")


def tar(made: Base) -> Path:
    """The root file system of a base that was made here."""
    return _tar(made.digest)


def keep(target: Target, platform: str, sha256: str, layer: BinaryIO) -> bool:
    """Keep the base that an image stands on, from its gzip'd layer; False: one of the suite is kept here.

    Raises:
        BuildError: it is not of that digest, larger than any base, or of another Python than the suite's.
    """
    suite = _suite(target)
    with _alone(suite, platform):
        if target.base != "bootstrap" or _kept(suite, platform):
            return False
        made = home.bases() / f".{suite.name}-{platform}.tar"
        hashed, left = hashlib.sha256(), LARGEST
        try:
            with gzip.open(layer) as plain, made.open("wb") as file:
                while left > 0 and (chunk := plain.read(CHUNK)):
                    hashed.update(chunk)
                    file.write(chunk)
                    left -= len(chunk)
            if f"sha256:{hashed.hexdigest()}" != sha256 or _python_of(made) != suite.python:
                raise BuildError("a base is not what the image on it says", found=sha256)
            made.replace(_tar(sha256))
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise BuildError("a base is no gzip'd tar", found=f"{sha256}: {error}") from None
        finally:
            made.unlink(missing_ok=True)
        note = {"suite": suite.name, "python": suite.python, "digest": sha256}
        write_atomically(_note(suite, platform), json.dumps(note) + "\n")
    return True


def former() -> tuple[list[Path], Callable[[str], bool]]:
    """Root file systems that were made anew since, and whether a reference is to the base of such a one."""
    notes = [note for file in home.bases().glob("*.json") if (note := _read_note(file))]
    tars = sorted(set(home.bases().glob("[0-9a-f]*.tar")) - {_tar(note["digest"]) for note in notes})

    def is_former(reference: str) -> bool:
        suite, _, short = reference.removeprefix(f"{REPOSITORY}:").rpartition("-")
        kept = [note["digest"] for note in notes if note["suite"] == suite]
        return bool(kept) and not any(sha256.startswith(f"sha256:{short}") for sha256 in kept)

    return tars, is_former


def absent(client: DockerClient, target: Target, platform: str, images: Path) -> str:
    """Why a base has to be made or pulled first, or an empty text where it is at hand."""
    suite = _suite(target)
    if target.base == "registry":
        reference = _locked(target, images)
        return f"{reference} is not in the engine" if reference and not _has(client, reference) else ""
    return "" if _kept(suite, platform) else f"no base {suite.name} is kept here, and making one fetches packages"


def lock(client: DockerClient, target: Target, images: Path) -> list[Path]:
    """Ask the registry for the digest of the suite's image, through the engine, and write it beside the locks; gives
    the file if it changed.

    Raises:
        LockError: the registry does not answer, or has no such image.
    """
    from docker.errors import APIError

    suite = _suite(target)
    try:
        found = str(client.images.get_registry_data(suite.image).id)
    except APIError as error:
        raise LockError(
            f"the digest of {suite.image} cannot be had",
            found=" ".join(str(error.explanation or error).split()),
            fix="look at the network, docker login, or the image's name in [suites] of images/targets.toml",
        ) from None
    file = images / target.name / LOCK
    text = f"# Generated by `invoke lock --base --target={target.name}`; do not edit.\n"
    text += f'image = "{suite.image}"\ndigest = "{found}"\n'
    if file.exists() and file.read_bytes() == text.encode():
        return []
    write_atomically(file, text)
    return [file]


def default(target: Target, images: Path) -> str:
    """What a committed Dockerfile starts FROM when nothing else is said; empty where no digest is locked yet."""
    suite = _suite(target)
    return _locked(target, images) if target.base == "registry" else f"{REPOSITORY}:{suite.name}"


def _suite(target: Target) -> Suite:
    if target.suite is None:
        raise UsageError(f"target {target.name} has no Debian suite", fix="see [suites] in images/targets.toml")
    return target.suite


# --- from a registry --------------------------------------------------------------------------------------------------


def _locked(target: Target, images: Path) -> str:
    """``image@digest``, or an empty text where none is locked for the suite's image."""
    file = images / target.name / LOCK
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        image, found = data["image"], data["digest"]
        if not isinstance(image, str) or not isinstance(found, str):
            raise ValueError("image and digest have to be text")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise LockError(
            f"images/{target.name}/{LOCK} is not a lock labrig can read",
            found=f"{type(error).__name__}: {error}",
            fix=f"restore it with git, or make it anew: invoke lock --base --target={target.name}",
        ) from None
    if image != _suite(target).image or not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        return ""
    return f"{image}@{found}"


def locked(target: Target, images: Path) -> str:
    """``image@digest`` of a base from a registry.

    Raises:
        UsageError: none is locked.
    """
    reference = _locked(target, images)
    if not reference:
        raise UsageError(
            f"the base of target {target.name} comes from a registry, and no digest of it is locked",
            found=f"no digest of {_suite(target).image} in images/{target.name}/{LOCK}",
            fix=f"invoke lock --base --target={target.name}, and commit what it writes",
        )
    return reference


def _from_registry(client: DockerClient, target: Target, images: Path) -> Base:
    suite = _suite(target)
    reference = locked(target, images)
    if not _has(client, reference):
        print(f"pulling {reference}", file=sys.stderr, flush=True)
        client.images.pull(reference)
    return Base(reference, suite.image, reference.partition("@")[2])


# --- made here --------------------------------------------------------------------------------------------------------


def _bootstrap(suite: Suite, platform: str) -> dict[str, str]:
    """Make a base; its tar stands in the cache under its digest. Gives the note that is kept of it."""
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise HostError(
            "mmdebstrap, which makes the image under the wheels, is not installed here",
            found="not on PATH",
            fix=f'{INSTALL}; or base = "registry" in the row; {daemon.WITHOUT}',
        )
    folder = home.bases()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{suite.name}-{platform}.tar"
    print(f"making the base {suite.name} with mmdebstrap: about half a minute, kept for all targets", file=sys.stderr)
    command = [mmdebstrap, "--variant=minbase", f"--architectures={ARCHITECTURES[platform]}", f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command += [
        "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr",
        f"--customize-hook={STRIP}",
        f"--customize-hook={FORGET}",
        f"--customize-hook={MOUNTED}",
    ]
    command += _trusting(network.ca())
    variables = {"SOURCE_DATE_EPOCH": EPOCH, **os.environ, **network.variables()}
    try:
        _run([*command, suite.name, str(made)], variables)
        found = _python_of(made)
        if found != suite.python:
            raise BuildError(
                f"the suite {suite.name} brings Python {found}, not {suite.python}",
                found=f"[suites.{suite.name}] in images/targets.toml",
                fix="write the Python there that the suite brings; suite and Python change together",
            )
        with made.open("rb") as file:
            sha256 = f"sha256:{digest(file, lambda: None)}"
        made.replace(_tar(sha256))
    finally:
        made.unlink(missing_ok=True)
    note = {"suite": suite.name, "python": suite.python, "digest": sha256}
    write_atomically(_note(suite, platform), json.dumps(note) + "\n")
    print(f"base {suite.name}: {sha256[:19]}, {megabytes(_tar(sha256).stat().st_size)}", file=sys.stderr)
    return note


def _trusting(bundle: Path | None) -> list[str]:
    """Hooks by which apt trusts a bundle while the base is made. Nothing of it is left there: the base is the same.

    `upload` reads the file as who called: inside mmdebstrap's user namespace a person's home may be closed.
    """
    if bundle is None:
        return []
    settings = (
        'printf "Acquire::https::CAInfo \\"%s\\";\\n" "$1/etc/apt/labrig-ca.pem" > "$1/etc/apt/apt.conf.d/00labrig-ca"'
    )
    return [
        f"--setup-hook=upload {shlex.quote(str(bundle))} /etc/apt/labrig-ca.pem",
        f"--setup-hook={settings}",
        '--customize-hook=rm "$1/etc/apt/labrig-ca.pem" "$1/etc/apt/apt.conf.d/00labrig-ca"',
    ]


def _run(command: list[str], variables: dict[str, str]) -> None:
    """Run mmdebstrap, its steps on stderr; it removes its own folder when it is stopped."""
    code, said = program.follow(command, _show, environment=variables, seconds=TIMEOUT)
    if code == 0:
        return
    wrong = [line for line in said if line.startswith(("E: ", "W: "))] or said
    text = "\n         ".join(wrong[-6:])
    if daemon.is_full(text):
        raise BuildError("the disk is full while the base is made", found=text, fix="make room, then run it again")
    raise BuildError(
        "mmdebstrap could not make the base" + (f" within {TIMEOUT} s" if code == -signal.SIGKILL else ""),
        found=text,
        fix=network.cure(
            text,
            "look at the suite's name in images/targets.toml, the network, apt's settings (apt update); run it again",
        ),
    )


def _show(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("I: ") and "..." in line:
            print(f"  {line[3:].rstrip()}", file=sys.stderr, flush=True)
        yield line.rstrip()


def _python_of(tar: Path) -> str:
    """The minor version that /usr/bin/python3 of a root file system is, by where its link leads."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.lstrip("./") == "usr/bin/python3":
                return member.linkname.removeprefix("python")
    return "none"


def _import(client: DockerClient, tar: Path, reference: str) -> None:
    print(f"importing {reference} into the Docker engine", file=sys.stderr, flush=True)
    repository, _, tag = reference.partition(":")
    with tar.open("rb") as file:
        # Pieces of one size: an open file would be sent line by line, which binary files have none of.
        pieces = iter(lambda: file.read(CHUNK), b"")
        answer = client.api.import_image_from_stream(pieces, repository, tag, changes=['CMD ["bash"]'])
    for line in answer.splitlines():
        with contextlib.suppress(ValueError):
            if error := json.loads(line).get("error"):
                raise (
                    daemon.full(error) if daemon.is_full(error) else BuildError(f"the engine refused the base: {error}")
                )


def _kept(suite: Suite, platform: str) -> dict[str, str] | None:
    note = _read_note(_note(suite, platform))
    fits = note and note["python"] == suite.python and _tar(note["digest"]).is_file()
    return note if fits else None


def _read_note(file: Path) -> dict[str, str] | None:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return {key: str(note[key]) for key in ("suite", "python", "digest")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(suite: Suite, platform: str) -> Path:
    return home.bases() / f"{suite.name}-{platform}.json"


def _tar(sha256: str) -> Path:
    return home.bases() / f"{sha256.removeprefix('sha256:')}.tar"


def _has(client: DockerClient, reference: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(reference)
    except ImageNotFound:
        return False
    return True


@contextlib.contextmanager
def _alone(suite: Suite, platform: str) -> Iterator[None]:
    """One process at a time makes the base of a suite; another waits and finds it made."""
    folder = home.bases()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{suite.name}-{platform}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
