"""A registry on 127.0.0.1: Debian's docker-registry."""

from __future__ import annotations

import json
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
    with subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def blobs(folder: Path) -> dict[str, int]:
    """Digest and size of every blob that the registry of a folder keeps."""
    return {
        f"sha256:{file.parent.name}": file.stat().st_size
        for file in (folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256").glob("*/*/data")
    }
