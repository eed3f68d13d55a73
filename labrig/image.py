"""The image of a target: what it is made of, its name and labels, and building it through BuildKit.

An image is known by its *inputs*: the digest of the rendered Dockerfile, the lock, the base and the labs. It stands in
the tag, so that an image that is there need not be built, and a lab edit never touches the image in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from labrig import base, daemon, home, program
from labrig.base import Base
from labrig.engines import Fetch
from labrig.errors import BuildError, HostError
from labrig.files import digest
from labrig.lock import Lock
from labrig.spec import Target

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

LABS = Path("/opt/labrig")  # in the image: the folder that holds labs/
PYTHON = "/opt/venv/bin/python"
HOME = "/home/student"
UID = GID = 1000
BYTECODE = Path(__file__).with_name("bytecode.py")
TIMEOUT = 3600  # seconds
PACE = 10e6  # bytes of wheels a second, what a first build takes on two cores (docs/measured.md)
BEAT = 15.0  # seconds after which a step that goes on is said again
LOCK, INPUTS, REVISION = "labrig.lock", "labrig.inputs", "org.opencontainers.image.revision"
LAST_WITHOUT_RUN_NETWORK = (20, 10)  # RUN --network came into BuildKit's own frontend with Docker 23


@dataclass(frozen=True)
class Recipe:
    """Everything an image is made of, decided before anything is built."""

    target: Target
    lock: Lock
    base: Base
    dockerfile: str
    requirements: str
    labs: Mapping[str, str]  # file under labs/ -> SHA-256

    @property
    def inputs(self) -> str:
        """SHA-256 over all that goes in."""
        parts = [
            self.dockerfile,
            BYTECODE.read_text(encoding="utf-8"),
            self.lock.digest,
            self.base.digest,
            *sorted(f"{k} {v}" for k, v in self.labs.items()),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def reference(self) -> str:
        """``labrig/<target>:<torch>-<12 digits of the inputs>``."""
        return f"{name(self.target)}:{self.target.torch}-{self.inputs[:12]}"


def name(target: Target) -> str:
    """What the engine calls the images of a target."""
    return f"labrig/{target.name}"


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


def read_labs(folder: Path) -> dict[str, str]:
    """The files of labs/ that belong into an image, as path under it -> SHA-256; caches are no labs."""
    found = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
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


def build(client: DockerClient, recipe: Recipe, root: Path, fetch: Fetch) -> str:
    """Build the image of a recipe, or find it built; gives its reference. ``fetch`` is called only if it is built.

    One build of a target runs at a time; a second one waits and finds it built. A tag is given by BuildKit in its last
    step, so a build that is stopped leaves none.

    Raises:
        HostError: no buildx; the engine stopped answering.
        BuildError: a step failed, or the engine's disk is full.
    """
    repository = name(recipe.target)
    if image := find(client, recipe.reference):
        image.tag(repository, "latest")
        return recipe.reference
    if reason := lacking():
        raise HostError(
            "images are built with docker buildx, which is not here",
            found=reason,
            fix="install it (Debian, Ubuntu: apt install docker-cli docker-buildx; docs.docker.com/go/buildx); "
            f"{daemon.WITHOUT}",
        )
    with _alone(recipe.target) as guard:
        if not find(client, recipe.reference):  # by the build that this one waited for
            context = stage(recipe, root, fetch())
            about = max(10, 5 * round(recipe.lock.size / PACE / 5))
            print(
                f"building {recipe.reference}: {len(recipe.lock.wheels)} wheels, {recipe.lock.size / 1e6:.0f} MB; "
                f"about {about} s unless most of it is there",
                file=sys.stderr,
                flush=True,
            )
            _run_buildx(client, recipe, context, root, guard)
    image = find(client, recipe.reference)
    if image is None:
        raise BuildError(f"buildx ended well, and the engine has no image {recipe.reference}", fix="run it again")
    image.tag(repository, "latest")
    return recipe.reference


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


def stage(recipe: Recipe, root: Path, store: Path) -> Path:
    """Lay out the build context as the top of a checkout is laid out, with the wheels of this lock and no others.

    Its place is the same for every build of a target: BuildKit sends what changed there since the last one.
    """
    from labrig import wheelhouse

    place = home.contexts() / recipe.target.name
    place.mkdir(parents=True, exist_ok=True)
    for left in place.iterdir():
        if left.name != "wheels":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    wheels = wheelhouse.link_folder(recipe.lock.wheels, store, place / "wheels")
    for stray in set(wheels.iterdir()) - {wheels / wheel.file for wheel in recipe.lock.wheels}:
        stray.unlink()
    files = {f"labs/{file}": root / "labs" / file for file in recipe.labs}
    files["labrig/bytecode.py"] = BYTECODE
    for inner, source in files.items():
        _place(place / inner, source.read_bytes())
    requirements = place / "images" / recipe.target.name / f"requirements-{recipe.lock.platform}.txt"
    _place(requirements, recipe.requirements.encode())
    _place(place / "Dockerfile", recipe.dockerfile.encode())
    return place


def _place(file: Path, data: bytes) -> None:
    """A file that everyone may read, whatever the umask, and of one time: both go into the image's layer."""
    for folder in reversed([file.parent, *file.parent.parents]):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)
    file.write_bytes(data)
    file.chmod(0o644)
    os.utime(file, (int(base.EPOCH), int(base.EPOCH)))


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


# --- buildx -----------------------------------------------------------------------------------------------------------


def lacking() -> str:
    """What is missing to build images with, or an empty text: the `docker` program and its buildx."""
    docker = shutil.which("docker")
    if docker is None:
        return "no docker program on PATH"
    try:
        done = subprocess.run(
            [docker, "buildx", "version"], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"docker buildx cannot be run: {error}"
    return f"docker has no buildx ({done.stderr.strip()[:200]})" if done.returncode else ""


def _run_buildx(client: DockerClient, recipe: Recipe, context: Path, root: Path, guard: int) -> None:
    command = [
        "docker", "buildx", "build", "--builder", "default", "--progress", "plain",
        "--tag", recipe.reference, "--build-arg", f"BASE={recipe.base.reference}",
        "--build-arg", f"PLATFORM={recipe.lock.platform}",
        "--label", f"{LOCK}={recipe.lock.digest}",  # the Dockerfile has that of the first platform
        "--label", f"{INPUTS}={recipe.inputs}", "--label", f"{REVISION}={revision(root)}",
        "--label", f"org.opencontainers.image.base.name={recipe.base.name}",
        "--label", f"org.opencontainers.image.base.digest={recipe.base.digest}",
    ]  # fmt: skip
    engine = daemon.numbers(client.version()["Version"])
    if engine <= LAST_WITHOUT_RUN_NETWORK:
        if recipe.target.base == "registry":
            raise HostError(
                f"Docker {'.'.join(map(str, engine))} cannot switch the network off for one step of a build",
                found='base = "registry" needs it on for another step',
                fix='update Docker to 23 or newer, or base = "bootstrap" in the row',
            )
        file = context / "Dockerfile"
        file.write_text(file.read_text(encoding="utf-8").replace("RUN --network=none ", "RUN "), encoding="utf-8")
        command += ["--network", "none"]
    print(f"$ {' '.join(command)} {context}", file=sys.stderr, flush=True)
    # No attestations: they would make an index of what is one image (buildx >= 0.10).
    variables = {**daemon.environment(), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    code, said = program.follow([*command, str(context)], show, environment=variables, seconds=TIMEOUT, keep=(guard,))
    if code == 0:
        return
    text = "\n".join(said)
    if daemon.is_full(text):
        raise daemon.full(next(line for line in said if daemon.is_full(line)))
    if why := daemon.ask().why_not:
        raise daemon.absent(f"it stopped answering while the image was built ({why})")
    if code == -signal.SIGKILL:
        raise BuildError(
            f"the build took more than {TIMEOUT} s and was stopped", fix="look at the engine, run it again"
        )
    raise BuildError(
        f"the image of target {recipe.target.name} could not be built; nothing was tagged",
        found="\n         ".join(line for line in said[-14:] if line.strip()) or f"buildx ended with {code}",
        fix="read the step that failed (above), then run it again: what was finished is kept",
    )


STEP = re.compile(r"#(\d+) \[(?:[^\]]*? )?(\d+)/(\d+)\] (.*)")


def show(lines: IO[str]) -> list[str]:
    """Show how far a build is, a line a step with its time, from BuildKit's plain progress; gives all that it said."""
    said: list[str] = []
    steps: dict[str, tuple[str, float]] = {}  # those that run: their words, when they began
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            for words, began in list(steps.values())[:1]:
                print(f"  still {words} ({time.monotonic() - began:.0f} s so far)", file=sys.stderr, flush=True)

    threading.Thread(target=beat, daemon=True).start()
    try:
        for line in lines:
            text = line.rstrip()
            said.append(text)
            number, _, rest = text.partition(" ")
            if step := STEP.fullmatch(text):
                steps.setdefault(number, (f"step {step[2]} of {step[3]}: {_short(step[4])}", time.monotonic()))
            elif rest in ("exporting to image", "[internal] load build context"):
                words = "the image's layers are written" if rest[0] == "e" else "the wheels go to the engine"
                steps.setdefault(number, (words, time.monotonic()))
            elif number in steps and (rest == "CACHED" or rest.startswith("DONE ")):
                took = "there already" if rest == "CACHED" else rest.removeprefix("DONE ")
                print(f"  {steps.pop(number)[0]}: {took}", file=sys.stderr, flush=True)
    finally:
        ended.set()
    return said


def _short(instruction: str) -> str:
    """An instruction of a Dockerfile without its flags, on one line."""
    text = " ".join(re.sub(r" --[a-z-]+=\S+", "", instruction).split())
    return text if len(text) <= 70 else f"{text[:67]}..."


@contextlib.contextmanager
def _alone(target: Target) -> Iterator[int]:
    """Hold the lock on building a target; buildx inherits the descriptor, so a kill -9 of labrig frees it only when
    buildx, too, has ended."""
    folder = home.contexts()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{target.name}.building").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another build of target {target.name} is running; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
