"""Images of targets: their names, labels and settings, whoever builds them, and the images that an engine has.

An image is known by its *inputs*: the digest of all that it is made of. It stands in the tag, so that an image that is
there need not be built, and a lab edit never touches the image in use.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import base, files, home
from labrig.errors import UsageError
from labrig.files import digest
from labrig.lock import Lock
from labrig.spec import Target

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

LABS = Path("/opt/labrig")  # in the image: the folder that holds labs/
ENVIRONMENT = "/opt/venv"
PYTHON = f"{ENVIRONMENT}/bin/python"
HOME = "/home/student"
UID = GID = 1000
COLAB = "notebooks/colab"  # under labs/, and in no image
WORK = f"{HOME}/work"  # a student's folder, inside
FOLDER = "labrig-work"  # the same in their own home: not labrig, which is what a clone of this repository is called
SERVE = ("python", "-m", "labs", "serve", "--to", WORK)  # from the folder LABS: JupyterLab with the labs in it
PIDS = 4096  # processes and threads of a student's container: a lab's workers on a large machine take hundreds
LOCK, INPUTS, REVISION = "labrig.lock", "labrig.inputs", "org.opencontainers.image.revision"
BASE_NAME, BASE_DIGEST = "org.opencontainers.image.base.name", "org.opencontainers.image.base.digest"
# What Linux looks programs up in where nobody says (BuildKit's own default for a base that says nothing).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def name(target: Target) -> str:
    """What the engine calls the images of a target."""
    return name_of(target.name)


def name_of(target: str) -> str:
    """The same, by the target's name."""
    return f"labrig/{target}"


def labels(target: Target, lock: Lock) -> dict[str, str]:
    """What an image says of itself, in its labels; `verify` compares every one with the row and the lock."""
    return {
        "labrig.target": target.name,
        "labrig.torch": target.torch,
        "labrig.variant": target.variant,
        "labrig.python": target.python,
        "labrig.cuda": target.cuda or "none",
        "labrig.min-driver": target.min_driver or "none",
        "labrig.capabilities": " ".join(target.capabilities) or "none",
        LOCK: lock.digest,
    }


def tag(target: Target, inputs: str) -> str:
    """``labrig/<target>:<torch>-<12 digits of the inputs>``."""
    return f"{name(target)}:{target.torch}-{inputs[:12]}"


def settings(target: Target, lock: Lock, path: str = DEFAULT_PATH) -> dict[str, Any]:
    """The config of an image without the labels of one build (OCI image-spec, config.md); the Dockerfile says the same.

    ``path`` is what the base says of PATH.
    """
    variables = {
        "PATH": f"{ENVIRONMENT}/bin:{path}",
        "VIRTUAL_ENV": ENVIRONMENT,
        "PYTHONNOUSERSITE": "1",
        "LANG": "C.UTF-8",
        "HOME": HOME,
        "USER": "student",
    }
    if target.cuda:
        variables |= {
            "NVIDIA_VISIBLE_DEVICES": "all",
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            "NVIDIA_REQUIRE_CUDA": f"driver>={target.min_driver}",
        }
    return {
        "User": f"{UID}:{GID}",
        "Env": [f"{key}={value}" for key, value in variables.items()],
        "Cmd": ["bash"],
        "WorkingDir": HOME,
        "Labels": {
            "org.opencontainers.image.title": name(target),
            "org.opencontainers.image.description": "PyTorch lab environment: "
            f"torch {target.torch} ({target.variant}), Python {target.python}",
            "org.opencontainers.image.version": target.torch,
            **labels(target, lock),
        },
    }


def read_labs(folder: Path) -> dict[str, str]:
    """The files of labs/ that belong into an image, as path under it -> SHA-256; caches are no labs."""
    found = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if "\udc80" <= max(str(inner)) <= "\udcff":
            raise UsageError("a file of labs/ has a name that is no text", found=ascii(str(inner)), fix="rename it")
        if inner.is_relative_to(COLAB):  # which has no use for an image, and in it nobody for them
            continue
        if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inner.parts):
            with file.open("rb") as opened:
                found[inner.as_posix()] = digest(opened, lambda: None)
    return found


def find(client: DockerClient, reference: str) -> Image | None:
    """The image of that name in the engine."""
    from docker.errors import ImageNotFound

    try:
        return client.images.get(reference)
    except ImageNotFound:
        return None


def stale(client: DockerClient, kept: Collection[str], target: str | None, *, everything: bool) -> list[str]:
    """The images of ours that can go: made from a lock that is not among the digests ``kept``, or older than the
    latest of their lock, and bases that were made anew; with ``target`` every image of that one, with ``everything``
    all."""
    found = []
    for one in client.images.list(filters={"label": LOCK}):
        # Whoever builds FROM an image of ours inherits its labels: only tags of our own name are ours.
        of = one.labels.get("labrig.target")
        tags = [tag for tag in one.tags if tag.startswith(f"labrig/{of}:")]
        current = one.labels.get(LOCK) in kept and f"labrig/{of}:latest" in tags
        wanted = everything or (of == target if target else not current)
        found += tags if wanted else []
    _, is_former = base.former()
    bases = [tag for one in client.images.list(base.REPOSITORY) for tag in one.tags]
    found += [tag for tag in bases if everything or (target is None and is_former(tag))]
    return sorted(found)


def remove(client: DockerClient, references: Iterable[str]) -> list[str]:
    """Remove images; gives those that went. One that a container uses stays, which is said on stderr."""
    from docker.errors import APIError, ImageNotFound

    gone = []
    for reference in references:
        try:
            client.images.remove(reference)
        except ImageNotFound:
            continue
        except APIError as error:
            print(f"{reference} stays: {error.explanation or error}", file=sys.stderr)
            continue
        gone.append(reference)
    return gone


def revision(root: Path) -> str:
    """The checkout's commit, with ``-dirty`` behind it if files differ from it; ``unknown`` outside of git."""
    try:
        asked = [
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=20,
                check=True,
            )
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked[0].stdout.strip() + ("-dirty" if asked[1].stdout.strip() else "")


@contextlib.contextmanager
def alone(target: Target) -> Iterator[int]:
    """Hold the lock on building a target; buildx inherits the descriptor, so a kill -9 of labrig frees it only when
    buildx, too, has ended."""
    folder = home.contexts()
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(
        folder / f".{target.name}.building", f"another build of target {target.name} is running; waiting for it"
    ) as held:
        yield held
