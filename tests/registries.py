"""A registry on 127.0.0.1: Debian's docker-registry."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER, PASSWORD = "student", "geheim"
HASH = "$2b$12$IKthwlOON7q5czcLgIOi7u8fETiuYYu6BnpYaVpdUD.R3gD4zXjha"  # bcrypt of the password


@contextmanager
def serve(folder: Path, *, closed: bool = False, tls: Path | None = None) -> Iterator[str]:
    """Start one that keeps its data in a folder, and give its address.

    ``closed``: for the user with the password. ``tls``: a file with the certificate and the key that it has.
    """
    port = free_port()
    settings: dict[str, Any] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if tls:
        settings["http"]["tls"] = {"certificate": str(tls), "key": str(tls)}
    if closed:
        (folder / "users").write_text(f"{USER}:{HASH}\n")
        settings["auth"] = {"htpasswd": {"realm": "lab", "path": str(folder / "users")}}
    (folder / "config.yml").write_text(json.dumps(settings))  # YAML, too
    with run(folder / "config.yml", port):
        yield f"127.0.0.1:{port}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def free_pair() -> int:
    """A port that is free, as the next one is; below those that connections get (ip_local_port_range, ip(7))."""
    for _ in range(1000):
        port = secrets.randbelow(10_000) + 20_000
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two free ports")


@contextmanager
def run(config: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """docker-registry with a configuration, once it answers at a port; what it says is in the file log beside that."""
    with (
        (config.parent / "log").open("ab") as log,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log, env={**os.environ, **variables}
        ) as process,
    ):
        try:
            until = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < until and process.poll() is None, (config.parent / "log").read_text()
                    time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def blobs(folder: Path) -> dict[str, int]:
    """Digest and size of every blob that the registry of a folder keeps."""
    return {
        f"sha256:{file.parent.name}": file.stat().st_size
        for file in (folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256").glob("*/*/data")
    }
