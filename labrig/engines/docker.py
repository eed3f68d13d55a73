"""The docker engine: an image, built through BuildKit from the wheelhouse, and sessions in containers of it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import assembly, base, buildkit, container, daemon, home, image, loading, network, render
from labrig.container import Settings
from labrig.engines import ANY, Environment, Fetch, Purpose, Session, Wish
from labrig.errors import BuildError, UsageError
from labrig.files import write_atomically
from labrig.host import Host, read_host
from labrig.lock import Lock
from labrig.probe import CONFINED
from labrig.spec import Target

if TYPE_CHECKING:
    from docker import DockerClient

PROBE = "/opt/labrig/probe.py"  # in a container, for verify: ours, not one that an image may bring
# What an image cannot do without: a folder of this machine that is mounted there hides it.
TAKEN = tuple(map(Path, ("/opt/venv", "/opt/labrig", "/usr", "/bin", "/lib", "/etc", "/proc", "/sys", "/dev")))
SHM_SHARE = 2  # the part of memory that /dev/shm may take: a half, as Linux itself sets where nobody does


def check(target: Target, host: Host) -> str | None:
    """Why no image of this target can be made here. None: it can, as far as can be told without the engine."""
    if host.container_platform not in target.platforms:
        here = host.container_platform or f"{host.os} {host.arch}"
        return f"target {target.name} is for {', '.join(target.platforms)}; containers on this machine are {here}"
    return None


def build(
    target: Target, lock: Lock, fetch: Fetch, *, root: Path, offline: bool = False, wish: Wish = ANY
) -> Environment:
    """Build the image of a lock and a checkout's labs, or find it built; its reference holds the digest of both.

    Raises:
        UsageError: no such builder, or no such base.
        HostError: no engine; no mmdebstrap; for the builder dockerfile, no buildx.
        FetchError: from ``fetch``.
        BuildError: a step failed; nothing is tagged.
    """
    fetch = functools.cache(fetch)
    with daemon.connect() as client:
        builder = wish.builder or target.builder
        absent = ""
        if builder == "dockerfile" or (target.base == "bootstrap" and not wish.base):
            absent = base.absent(client, target, lock.platform, root / "images")
        if absent and offline:
            raise BuildError(
                f"the base of target {target.name} cannot be had offline", found=absent, fix="build online"
            )
        if absent and not base.lacking(target, lock.platform):
            fetch()  # before half a minute is spent on a base: a torch that cannot be had is known within seconds
        if builder == "dockerfile":
            reference = _by_dockerfile(client, target, lock, fetch, root, wish)
        else:
            reference = _by_layers(client, target, lock, fetch, root, wish, offline=offline)
        return Environment(target, "docker", reference, lock)


def _by_dockerfile(client: DockerClient, target: Target, lock: Lock, fetch: Fetch, root: Path, wish: Wish) -> str:
    if wish.base or not wish.bytecode:
        raise UsageError(
            "the builder dockerfile takes the base and the steps of images/NAME/Dockerfile",
            fix="--builder=layers, or docker buildx build --build-arg BASE=IMAGE with that file",
        )
    images = root / "images"
    recipe = buildkit.Recipe(
        target,
        lock,
        base.ensure(client, target, lock.platform, images),
        render.render_dockerfile(target, lock, root / "templates", images),
        render.render_requirements(target, lock, root / "templates"),
        image.read_labs(root / "labs"),
    )
    return buildkit.build(client, recipe, root, fetch)


def _by_layers(
    client: DockerClient, target: Target, lock: Lock, fetch: Fetch, root: Path, wish: Wish, *, offline: bool
) -> str:
    recipe = assembly.plan(target, lock, root, wish, offline=offline)
    found = image.find(client, recipe.reference)
    if found is None:
        with image.alone(target):
            if not image.find(client, recipe.reference):  # by the build that this one waited for
                loading.load(client, assembly.build(recipe, fetch), recipe.reference)
        found = image.find(client, recipe.reference)
    if found is None:
        raise BuildError(f"the engine took {recipe.reference}, and has it not", fix="look at its log, run it again")
    found.tag(image.name(target), "latest")
    return recipe.reference


@contextlib.contextmanager
def session(environment: Environment, purpose: Purpose = "shell", folders: Sequence[Path] = ()) -> Iterator[Session]:
    """A container of the image: no root, no capability, no privilege to gain; the network only for a shell.

    ``folders`` are those of this machine that are there under their own paths, writable. Whoever is in the container
    writes as the user who called, or, called by root, as the folder's owner; see :func:`user_of`.

    Raises:
        HostError: no engine; it is another machine's; it cannot hand in the GPU.
    """
    with daemon.connect() as client:
        daemon.require_local()
        found = client.images.get(environment.reference)
        owner = found.attrs["Config"].get("User") or ""
        if purpose == "labs":
            _make(folders)
        user = "" if purpose == "verify" else user_of(folders)
        if purpose == "shell" and not user:
            print(f"you are root; in there you are student ({image.UID}), who reads the checkout only", file=sys.stderr)
        trusted, variables = network.inside() if purpose == "shell" else ({}, {})
        if purpose == "labs":
            _hand_over(folders, user or f"{image.UID}:{image.GID}")
        settings = Settings(
            environment.reference,
            user=user,
            network=purpose == "shell",
            gpus=environment.target.device == "cuda" and bool(read_host().gpus),
            shm_size=int(client.info()["MemTotal"]) // SHM_SHARE,
            mounts={str(folder): (folder, True) for folder in folders}
            | ({PROBE: (_probe(), False)} if purpose == "verify" else {})
            | trusted,
            tmpfs={image.HOME: owned(user)} if user else {},
            environment={"LABRIG_IMAGE_ID": str(found.id), **variables},  # the first for the labs' records
        )
        known = re.fullmatch(r"\d+:\d+", owner)
        memory = {"/tmp": "rw,nosuid,nodev,mode=1777", image.HOME: owned(owner if known else "0:0")}  # noqa: S108
        shut = replace(settings, read_only=True, tmpfs=memory)
        as_root = replace(settings, read_only=True, user="0:0", capabilities=("DAC_READ_SEARCH",))
        with container.start(client, settings) as started:

            def run(
                argv: Sequence[str],
                *,
                cwd: Path | None = None,
                env: Mapping[str, str] | None = None,
                stdout: int | None = None,
            ) -> int:
                return container.run(started, argv, cwd=cwd, environment=env, user=user, stdout=stdout)

            def facts() -> dict[str, Any]:
                return {
                    "image": {
                        "tags": found.tags,
                        "labels": found.labels,
                        "user": owner,
                    },
                    "confined": _look(client, shut, CONFINED),
                    # By root without any other privilege: some folders are closed to others.
                    **_look(client, as_root, ["system"]),
                }

            yield Session(
                environment, run, f"docker://{started.id}", image.PYTHON, labs=image.LABS, probe=PROBE, facts=facts,
                identity=str(found.id),
            )  # fmt: skip


def _probe() -> Path:
    """The probe, where it can be read by whoever is in the container, whatever the mode of the checkout's files."""
    text = (Path(__file__).parents[1] / "probe.py").read_text(encoding="utf-8")
    place = home.contexts() / f".probe-{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
    if not place.exists():
        write_atomically(place, text)
    return place


def _make(folders: Sequence[Path]) -> None:
    """Make the folders for results.

    Raises:
        UsageError: one cannot be made, or would hide what the image has there.
    """
    for folder in folders:
        for taken in TAKEN:
            if folder.is_relative_to(taken) or taken.is_relative_to(folder):
                raise UsageError(
                    f"--out {folder} cannot be used in a container", found=f"the image has its own {taken}",
                    fix="name a folder elsewhere, or --engine=venv",
                )  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--out {folder} cannot be made", found=error.strerror or str(error), fix="name another folder"
            ) from None


def _look(client: DockerClient, settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """What the probe says of these facts in a container of its own."""
    facts: dict[str, Any] = {}
    with container.start(client, settings) as started:
        code, (out, said) = container.ask(started, [image.PYTHON, "-I", "-S", PROBE, *names])
    with contextlib.suppress(ValueError):  # what is no line of the probe's is the engine's word that it did not run
        for line in out.splitlines():
            name, facts[name], _ = json.loads(line)
    if missing := [name for name in names if name not in facts]:
        why = f"{out} {said}".strip()[-300:] if not facts else said.strip()[-300:]
        facts[missing[0]] = {"error": f"its process ended with exit code {code}: {why}"}
    return facts


def owned(user: str) -> str:
    """Options of a file system in memory that is ``UID:GID``'s: the home of a user whom the image does not know."""
    uid, _, gid = user.partition(":")
    return f"rw,exec,nosuid,nodev,mode=0700,uid={uid},gid={gid}"


def user_of(folders: Sequence[Path]) -> str:
    """``UID:GID`` for a container that writes to folders of this machine; empty: the image's own user.

    A person is themselves. Root is never root in a container, but the first other owner above the folders, so that
    what `sudo invoke` writes into someone's checkout is theirs.
    """
    if os.getuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    for place in (place for folder in folders for place in (folder, *folder.parents)):
        owner = place.stat()
        if owner.st_uid != 0:
            return f"{owner.st_uid}:{owner.st_gid}"
    return ""


def _hand_over(folders: Sequence[Path], user: str) -> None:
    """Called by root: give the folders for results to the container's user, who could not write there otherwise.

    Raises:
        UsageError: a folder holds something else than results of labs; nothing of it is changed.
    """
    if os.getuid() != 0:
        return
    uid, gid = map(int, user.split(":"))
    for folder in folders:
        if folder.stat().st_uid == uid:
            continue
        if any(folder.iterdir()) and not (folder / "run.json").is_file():
            raise UsageError(
                f"{folder} belongs to root and holds other things than results of labs",
                found="containers do not run as root, so nothing could be written there",
                fix="name an empty or a new folder with --out",
            )
        for place in (folder, *folder.rglob("*")):
            os.chown(place, uid, gid, follow_symlinks=False)
