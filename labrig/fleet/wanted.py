"""What a host should have, and by which digests it is recognised."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labrig import home, image, published, wheelhouse
from labrig.errors import BuildError
from labrig.files import write_atomically
from labrig.fleet.facts import Package, tree
from labrig.lock import Lock, Wheel
from labrig.published import Entry as Published
from labrig.spec import Target

NOTES = "recorded"  # folder of the cache: what wheels say of their files, by the wheel's digest
UNKNOWN = 4  # an environment takes about so many times the bytes of its wheels, where they cannot be asked
BYTECODE = 1.4  # an installer compiles what it unpacks
# Files that an installer writes itself (PyPA: Recording installed projects), or that signatures are in.
WRITTEN = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "RECORD.jws", "RECORD.p7s")
ELSEWHERE = ("../../../bin/", "../../../include/")  # scripts get the interpreter's path, headers a folder of their own


@dataclass(frozen=True)
class Wanted:
    """What one kind of host should have: all hosts of a target, platform and engine want the same.

    ``packages`` are those of the lock, each with the tree digest that its wheel says its files have (facts.tree over
    the files of the wheel's RECORD, by their paths from site-packages as an installed RECORD has them: what goes to
    purelib, platlib and data; not scripts and headers, which an installer writes anew, nor the RECORD itself). None
    are known while a wheel is not in the wheelhouse: see :func:`lacking`.
    """

    target: Target
    engine: str  # docker, venv
    platform: str
    lock: Lock
    environment: str  # its name under the folder's envs/: "cpu-0123456789ab"; empty for docker
    packages: Mapping[str, Package]
    image: Published | None  # docker
    pull: str  # the image by digest as that host pulls it, through the room's cache
    labs: Mapping[str, str]  # path -> SHA-256; empty for docker, whose image holds them
    start: str  # the text of the start command
    room: int = 0  # bytes that an environment takes on a host's disk, about


def wanted_torch(wanted: Wanted) -> str:
    """The version that torch should say it has."""
    wheel = wanted.lock.wheel("torch")
    return wheel.version if wheel else wanted.target.torch


def start_digest(wanted: Wanted) -> str:
    """SHA-256 of the start command."""
    return hashlib.sha256(wanted.start.encode()).hexdigest()


def environment_name(lock: Lock) -> str:
    """What the environment of a lock is called under a host's envs/."""
    return f"{lock.target}-{lock.digest[:12]}"


def native(target: Target, lock: Lock, labs: Mapping[str, str], templates: Path) -> Wanted:
    """What a host without Docker should have."""
    packages, size = _packages(lock)
    environment = environment_name(lock)
    start = _start(templates, target=target, engine="venv", environment=environment, reference="")
    return Wanted(target, "venv", lock.platform, lock, environment, packages, None, "", dict(labs), start, size)


def contained(target: Target, lock: Lock, entry: Published, cache: str, templates: Path) -> Wanted:
    """What a host with Docker should have: the published image."""
    pull = f"{cache}/{entry.reference.partition('/')[2]}" if cache else entry.reference
    start = _start(templates, target=target, engine="docker", environment="", reference=entry.image)
    return Wanted(target, "docker", entry.platform, lock, "", {}, entry, pull, {}, start)


def lacking(wanted: Wanted) -> bool:
    """Whether what an environment should have is not known, as wheels have to be fetched first."""
    return wanted.engine == "venv" and not wanted.packages


def names_of(entry: Published) -> tuple[str, str]:
    """What an engine should call a published image: the name of its torch and inputs, and the target's latest."""
    return entry.image, f"{image.name_of(entry.target)}:latest"


def _start(templates: Path, **about: object) -> str:
    from labrig.render import jinja

    given = {
        "serve": image.SERVE, "labs": image.LABS, "home": image.HOME, "work": image.WORK, "folder": image.FOLDER,
        "pids": image.PIDS, **about,
    }  # fmt: skip
    return jinja(templates).get_template("room/start.sh.j2").render(given)


def _packages(lock: Lock) -> tuple[dict[str, Package], int]:
    """The lock's packages as their wheels have them, and the bytes that they take; none where a wheel is not there."""
    store = home.wheels()
    if wheelhouse.missing(lock.wheels, store):
        return {}, UNKNOWN * lock.size
    found = {one.name: recorded(one, wheelhouse.find(one, store)) for one in lock.wheels}
    versions = {one.name: one.version for one in lock.wheels}
    packages = {name: Package(versions[name], digest) for name, (digest, _) in found.items()}
    return packages, int(BYTECODE * sum(size for _, size in found.values()))


def recorded(wheel: Wheel, file: Path) -> tuple[str, int]:
    """The tree digest of what a wheel installs, as its RECORD says, and the bytes of it.

    It is noted by the wheel's digest: reading the RECORDs of all wheels of a lock takes seconds.

    Raises:
        BuildError: it has no RECORD that can be read.
    """
    note = home.root() / NOTES / wheel.sha256[:2] / f"{wheel.sha256}.json"
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
        return str(said["tree"]), int(said["size"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    files, size = read_record(file)
    digest = tree(files)
    write_atomically(note, json.dumps({"file": wheel.file, "tree": digest, "size": size}) + "\n")
    return digest, size


def read_record(file: Path) -> tuple[dict[str, str], int]:
    """Path from site-packages -> SHA-256 of what a wheel installs there (PyPA: Binary distribution format), and the
    bytes of all. Raises BuildError."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = [
                name for name in archive.namelist() if name.endswith(".dist-info/RECORD") and name.count("/") == 1
            ]
            lines = archive.read(records[0]).decode("utf-8").splitlines()
        rows = [row for row in csv.reader(lines) if row]
        found, size = {}, 0
        for path, sha256, length, *_ in rows:
            if place := _place(path):
                found[place] = _hexadecimal(sha256)
                size += int(length or 0)
    except (OSError, zipfile.BadZipFile, IndexError, ValueError) as error:
        raise BuildError(
            f"{file.name} has no RECORD that can be read", found=f"{type(error).__name__}: {error}",
            fix="invoke clean --all, then fetch it again",
        ) from None  # fmt: skip
    return found, size


def _place(path: str) -> str:
    """Where an entry of a wheel's RECORD comes to lie, from site-packages; empty where that says nothing of it."""
    first, _, rest = path.partition("/")
    if (first.endswith(".dist-info") and rest in WRITTEN) or path.endswith(".pyc"):
        return ""
    if not first.endswith(".data"):
        return path
    scheme, _, inner = rest.partition("/")
    if scheme in ("purelib", "platlib"):
        return inner
    place = f"../../../{inner}"
    return place if scheme == "data" and not place.startswith(ELSEWHERE) else ""


def _hexadecimal(said: str) -> str:
    """``sha256=<base64 without padding>`` as hexadecimal digits. Raises ValueError."""
    kind, _, text = said.partition("=")
    if kind != "sha256":
        raise ValueError(f"a digest that is no SHA-256: {said[:40]!r}")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()


def find_published(images: Path) -> dict[tuple[str, str], Published]:
    """The published images, by target and platform."""
    return {(one.target, one.platform): one for one in published.read(images)}
