"""A student's JupyterLab in a container that outlives the command: nobody's root, shut in, reached from here only."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import daemon, home, image, network, server_native
from labrig.engines import Environment, docker
from labrig.errors import UsageError
from labrig.host import read_host

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

TOKEN = "/run/labrig-token"  # noqa: S105 - a file's name
MARK = "labrig.server"  # label of every such container: its target
PORT = 8888  # inside
GRACE = 15  # seconds to end its kernels
LOG_SIZE = "10m"  # of two files, in the engine's own words
MEMORY = "rw,exec,nosuid,nodev,mode=1777"  # of /tmp; exec, because torch.compile loads there what it has built
# The words of an engine that publishes a port which somebody else has (moby, libnetwork/portallocator; bind(2)).
TAKEN = ("port is already allocated", "address already in use", "ports are not available")


def prepare(folder: Path) -> tuple[int, int]:
    """Make the student's folder; gives the user and the group that it is for, who are never root.

    Raises:
        UsageError: it cannot be made, or is root's and holds other things than labs.
    """
    new = not folder.exists()
    server_native.make(folder)
    uid, gid = map(int, (docker.user_of([folder]) or f"{image.UID}:{image.GID}").split(":"))
    if os.getuid() == 0 and folder.stat().st_uid != uid:
        if not new and any(folder.iterdir()):
            raise UsageError(
                f"--folder {folder} belongs to root and is not empty",
                found="containers do not run as root, so nothing could be written there",
                fix="name a new folder, or one that belongs to a student",
            )
        os.chown(folder, uid, gid)
    elif os.getuid() != 0:
        server_native.require_writable(folder)
    return uid, gid


def name_of(target: str) -> str:
    """The container's name: one for each target, person and cache folder that an engine knows."""
    cache = hashlib.sha256(str(home.root()).encode()).hexdigest()[:8]
    return f"labrig-{target}-{os.getuid()}-{cache}"


def launch(
    target: str, made: Environment, place: Path, root: Path, folder: Path, port: int, owner: tuple[int, int]
) -> bool:
    """Start it; False where somebody else has taken the port.

    Raises what the engine refuses, see ``daemon.connect``.
    """
    from docker.errors import APIError

    with daemon.connect() as client:
        _remove(client, target)
        _create(client, target, made, place, folder, port, owner)
        try:
            client.api.start(name_of(target))
        except APIError as error:
            if any(words in str(error) for words in TAKEN):
                return False
            raise
    return True


def _create(
    client: DockerClient, target: str, made: Environment, place: Path, folder: Path, port: int, owner: tuple[int, int]
) -> None:
    from docker.types import DeviceRequest, LogConfig, Mount

    found = client.images.get(made.reference)
    user = f"{owner[0]}:{owner[1]}"
    trusted, variables = network.inside()
    mounts = {image.WORK: (folder, True), TOKEN: (place / "token", False), **trusted}
    gpus = made.target.device == "cuda" and bool(read_host().gpus)
    host: dict[str, Any] = client.api.create_host_config(
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        init=True,  # ends what kernels leave behind, and hands signals on
        pids_limit=image.PIDS,
        shm_size=int(client.info()["MemTotal"]) // docker.SHM_SHARE,
        port_bindings={PORT: ("127.0.0.1", port)},
        mounts=[Mount(at, str(path), type="bind", read_only=not writable) for at, (path, writable) in mounts.items()],
        tmpfs={image.HOME: docker.owned(user), "/tmp": MEMORY},  # noqa: S108
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if gpus else None,
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": LOG_SIZE, "max-file": "2"}),
    )
    client.api.create_container(
        made.reference,
        list(image.SERVE),
        name=name_of(target),
        user=user,
        working_dir=str(image.LABS),
        ports=[PORT],
        environment={"JUPYTER_TOKEN_FILE": TOKEN, "LABRIG_IMAGE_ID": str(found.id), **variables},
        labels={MARK: target},
        host_config=host,
    )


def is_alive(target: str, place: Path) -> bool:
    """Whether its container runs."""
    with daemon.connect() as client:
        found = _find(client, target)
        return found is not None and found.status == "running"


def stop(target: str, place: Path) -> None:
    """End and remove it; its kernels end with it."""
    with daemon.connect() as client:
        _remove(client, target)


def tail(target: str, place: Path, lines: int) -> list[str]:
    """The last lines of its log."""
    with daemon.connect() as client:
        found = _find(client, target)
        said = found.logs(tail=4 * lines) if found else b""
    return [line for line in said.decode(errors="replace").splitlines() if line.strip()][-lines:]


def logs(target: str, place: Path, *, follow: bool) -> Iterator[bytes]:
    """Its log; with ``follow`` what it goes on to say, until it ends."""
    with daemon.connect() as client:
        found = _find(client, target)
        if found is None:
            return
        if not follow:
            yield found.logs()
            return
        with contextlib.closing(found.logs(stream=True, follow=True)) as pieces:
            yield from pieces


def _find(client: DockerClient, target: str) -> Container | None:
    from docker.errors import NotFound

    try:
        return client.containers.get(name_of(target))
    except NotFound:
        return None


def _remove(client: DockerClient, target: str) -> None:
    from docker.errors import NotFound

    if (found := _find(client, target)) is None:
        return
    with contextlib.suppress(NotFound):
        if found.status == "running":
            found.stop(timeout=GRACE)
        found.remove(force=True)
