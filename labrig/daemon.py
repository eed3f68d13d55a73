"""The Docker engine's daemon: reaching it, and its failures in our words.

The address is the one that the `docker` program uses: DOCKER_HOST, else the current context of the Docker CLI.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labrig.errors import BuildError, HostError, LabrigError

if TYPE_CHECKING:
    from docker import DockerClient

OLDEST = (20, 10)  # the oldest engine that we have run everything on; docs/design.md says with which results
ANSWER_TIMEOUT = 3  # seconds, to learn whether there is an engine at all
TIMEOUT = 120  # seconds for one request
WITHOUT = "without Docker: --engine=venv makes a native environment of the same target"


@dataclass(frozen=True)
class Engine:
    """What a Docker engine says of itself; ``version`` is None where none answers, ``why_not`` then says why."""

    version: str | None
    why_not: str = ""
    gpus: bool | None = None  # whether it can hand NVIDIA GPUs to a container; None = it does not say


def ask() -> Engine:
    """What the Docker engine is, or why none answers."""
    from docker.errors import DockerException

    try:
        with closing(_open(ANSWER_TIMEOUT)) as client:
            version = str(client.version()["Version"])
            try:
                return Engine(version, "", _hands_out_gpus(client.info()))
            except (DockerException, OSError, ValueError, KeyError):
                return Engine(version)  # it stands behind a proxy that lets no more than the version through
    except (DockerException, OSError, KeyError, TypeError, ValueError) as error:
        return Engine(None, _why_not(error))


def _hands_out_gpus(about: Mapping[str, Any]) -> bool | None:
    """Whether --gpus works: the runtime is registered, CDI has found devices, or the hook is where the engine looks.

    Docker looks for nvidia-container-runtime-hook on its PATH (moby daemon/nvidia_linux.go); that is ours only if it
    runs on this machine.
    """
    if "nvidia" in (about.get("Runtimes") or {}):
        return True
    devices = about.get("DiscoveredDevices") or []
    if any("nvidia.com/gpu" in str(device.get("ID", "")) for device in devices if isinstance(device, dict)):
        return True
    if not is_local() or "Docker Desktop" in str(about.get("OperatingSystem", "")):
        return None
    return shutil.which("nvidia-container-runtime-hook") is not None


@contextmanager
def connect() -> Iterator[DockerClient]:
    """A client of the engine; what the engine refuses or cannot do inside becomes labrig's error.

    Raises:
        HostError: no engine answers, it stopped answering, or it is too old.
        BuildError: the engine refused a request.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = _open(TIMEOUT)
        version = str(client.version()["Version"])
    except (DockerException, OSError, KeyError, TypeError, ValueError) as error:
        raise absent(_why_not(error)) from None
    with closing(client):
        if numbers(version) < OLDEST:
            raise HostError(
                f"this Docker engine is too old: {version}",
                found=f"labrig is tried on {'.'.join(map(str, OLDEST))} and newer",
                fix=f"update Docker; {WITHOUT}",
            )
        try:
            yield client
        except (DockerException, RequestException) as error:
            raise failure(error) from error


def absent(reason: str) -> HostError:
    """The error for a host on which no Docker engine answers, and what helps there."""
    if reason.startswith("permission denied"):
        cure = "let this user in (sudo usermod -aG docker $USER, then log in again)"
    elif reason == "not installed":
        cure = "install Docker (docs.docker.com/engine/install; Debian: apt install docker.io)"
    elif os.environ.get("DOCKER_HOST"):
        cure = f"make it answer at DOCKER_HOST={os.environ['DOCKER_HOST']}, or unset that"
    else:
        cure = "start it (sudo systemctl start docker, or Docker Desktop)"
    return HostError("no Docker engine answers here", found=reason, fix=f"{cure}; {WITHOUT}")


def failure(error: Exception) -> LabrigError:
    """What the engine or the connection to it said, as labrig's error."""
    from docker.errors import APIError, DockerException

    said = error.explanation if isinstance(error, APIError) and error.explanation else error
    text = " ".join(str(said).split())
    if "could not select device driver" in text:  # the engine's words for --gpus without NVIDIA's hook
        return HostError(
            "the Docker engine cannot hand the GPU to a container",
            found=text,
            fix="install the NVIDIA Container Toolkit on this host, then: sudo nvidia-ctk runtime configure "
            "--runtime=docker && sudo systemctl restart docker",
        )
    if "unsatisfied condition" in text:  # libnvidia-container's words for NVIDIA_REQUIRE_CUDA
        return HostError(
            "this host's NVIDIA driver is too old for the image", found=text, fix="invoke doctor says which target fits"
        )
    if is_full(text):
        return full(text)
    if not isinstance(error, DockerException) or not isinstance(error, APIError):
        return absent(f"it stopped answering: {text[:300]}")
    return BuildError(f"the Docker engine refused: {text}", fix="docker info and the engine's log say more")


def is_full(text: str) -> bool:
    """Whether an engine's words mean that its disk is full."""
    words = text.lower()
    return "no space left on device" in words or "disk quota exceeded" in words


def full(text: str) -> BuildError:
    """The error for an engine whose disk is full."""
    return BuildError(
        "the disk of the Docker engine is full; nothing half-made was tagged",
        found=text,
        fix="make room (docker system df shows what takes it; invoke clean, docker buildx prune), then run it again",
    )


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of an engine's version: (26, 1) of ``26.1.5+dfsg1``."""
    parts = []
    for part in version.split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def address() -> str:
    """Where the engine is: DOCKER_HOST, or the current context's; empty: the default socket."""
    from docker.context import ContextAPI
    from docker.context.config import get_current_context_name
    from docker.errors import DockerException

    if host := os.environ.get("DOCKER_HOST"):
        return host
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    if name != "default" and ContextAPI.get_context(name) is None:
        # The SDK would take the default engine instead; the `docker` program says this.
        raise DockerException(f"the docker context {name!r} does not exist (docker context ls)")
    return str(ContextAPI.kwargs_from_context().get("base_url", ""))


def is_local() -> bool:
    """Whether the engine is on this machine, so that it can mount this machine's folders."""
    return address().partition("://")[0] in ("", "unix", "npipe", "http+unix")


def require_local() -> None:
    """Raises HostError where the engine is another machine's."""
    if not is_local():
        raise HostError(
            "containers are run on this machine's own engine only: folders of this machine are mounted",
            found=f"DOCKER_HOST or the docker context names {address()}",
            fix=f"unset DOCKER_HOST, docker context use default; {WITHOUT}",
        )


def environment() -> dict[str, str]:
    """The environment variables for the `docker` program, so that it talks to the same engine as the SDK."""
    variables = {k: v for k, v in os.environ.items() if k not in ("DOCKER_CONTEXT", "BUILDX_BUILDER")}
    where = address()
    if where:
        variables["DOCKER_HOST"] = where.replace("http+unix://", "unix://")
    return variables


def _open(timeout: int) -> DockerClient:
    """A client of an engine that has answered. Raises what the SDK and the socket raise."""
    import docker
    from docker.context import ContextAPI

    where = address()
    if where.startswith("unix://"):
        # The SDK wraps the reason of a failed connection three times, and leaves its socket open.
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(ANSWER_TIMEOUT)
            knock.connect("/" + where.removeprefix("unix://").lstrip("/"))
    settings: dict[str, Any] = {} if os.environ.get("DOCKER_HOST") else {**ContextAPI.kwargs_from_context()}
    client = docker.DockerClient(**settings, timeout=timeout) if settings else docker.from_env(timeout=timeout)
    try:
        client.ping()
    except BaseException:
        client.close()
        raise
    return client


def _why_not(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied: this user may not talk to the Docker engine"
    if isinstance(error, ConnectionRefusedError):
        return "not running: the connection is refused"
    if isinstance(error, FileNotFoundError):
        there = shutil.which("dockerd") or shutil.which("docker")
        return "not running: there is a docker program, but no engine's socket" if there else "not installed"
    text = str(error).partition("\n")[0] or type(error).__name__
    return f"not running: the connection to {address()} is refused" if "Connection refused" in text else text
