"""The builder `dockerfile`: the image of a target through BuildKit, from the Dockerfile beside its lock.

It makes what the builder `layers` makes (labrig/assembly.py), as everybody knows it, and slower.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from labrig import daemon, home, image, network, program
from labrig.base import Base
from labrig.engines import Fetch
from labrig.errors import BuildError, HostError
from labrig.files import EPOCH
from labrig.lock import Lock
from labrig.spec import Target

if TYPE_CHECKING:
    from docker import DockerClient

BYTECODE = Path(__file__).with_name("bytecode.py")
TIMEOUT = 3600  # seconds
PACE = 10e6  # bytes of wheels a second, what a first build takes on two cores (docs/measured.md)
BEAT = 15.0  # seconds after which a step that goes on is said again
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
        """What the engine calls the image."""
        return image.tag(self.target, self.inputs)


def build(client: DockerClient, recipe: Recipe, root: Path, fetch: Fetch) -> str:
    """Build the image of a recipe, or find it built; gives its reference. ``fetch`` is called only if it is built.

    One build of a target runs at a time; a second one waits and finds it built. A tag is given by BuildKit in its last
    step, so a build that is stopped leaves none.

    Raises:
        HostError: no buildx; the engine stopped answering.
        BuildError: a step failed, or the engine's disk is full.
    """
    repository = image.name(recipe.target)
    if found := image.find(client, recipe.reference):
        found.tag(repository, "latest")
        return recipe.reference
    if reason := lacking():
        raise HostError(
            "the builder dockerfile needs docker buildx, which is not here",
            found=reason,
            fix="install it (Debian, Ubuntu: apt install docker-cli docker-buildx; docs.docker.com/go/buildx), "
            "or --builder=layers, which needs no other program",
        )
    with image.alone(recipe.target) as guard:
        if not image.find(client, recipe.reference):  # by the build that this one waited for
            context = stage(recipe, root, fetch())
            about = max(10, 5 * round(recipe.lock.size / PACE / 5))
            print(
                f"building {recipe.reference}: {len(recipe.lock.wheels)} wheels, {recipe.lock.size / 1e6:.0f} MB; "
                f"about {about} s unless most of it is there",
                file=sys.stderr,
                flush=True,
            )
            _run_buildx(client, recipe, context, root, guard)
    found = image.find(client, recipe.reference)
    if found is None:
        raise BuildError(f"buildx ended well, and the engine has no image {recipe.reference}", fix="run it again")
    found.tag(repository, "latest")
    return recipe.reference


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
    os.utime(file, (int(EPOCH), int(EPOCH)))


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
        "--label", f"{image.LOCK}={recipe.lock.digest}",  # the Dockerfile has that of the first platform
        "--label", f"{image.INPUTS}={recipe.inputs}", "--label", f"{image.REVISION}={image.revision(root)}",
        "--label", f"{image.BASE_NAME}={recipe.base.name}",
        "--label", f"{image.BASE_DIGEST}={recipe.base.digest}",
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
    online = recipe.target.base == "registry"  # a step that has a network
    inner = network.inside()[1] if online else {}
    # Predefined arguments without a value: buildx takes it from its variables, BuildKit keeps it out of the image's
    # history and of its cache's keys (Dockerfile reference, "Predefined ARGs").
    command += [word for name in sorted(inner) if name.lower().endswith("_proxy") for word in ("--build-arg", name)]
    print(f"$ {' '.join(command)} {context}", file=sys.stderr, flush=True)
    # No attestations: they would make an index of what is one image (buildx >= 0.10).
    variables = {**daemon.environment(), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    variables |= network.variables() if online else {}
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
