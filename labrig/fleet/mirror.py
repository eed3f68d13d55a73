"""The room's cache as files: its own configuration, how to run it, and what the engines of the hosts need to use it.

Formats: Distribution's config.yml (distribution.github.io/distribution/about/configuration), Docker's daemon.json
(docs.docker.com/reference/cli/dockerd), containerd's hosts.toml (containerd's docs/hosts.md).
"""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path

from labrig import inventory, published, render
from labrig.errors import UsageError
from labrig.files import write_atomically
from labrig.fleet import cache
from labrig.inventory import Room

HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
HUB_URL = "https://registry-1.docker.io"  # what Docker Hub answers as
UPSTREAM = re.compile(r"https?://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
SETTINGS = "/etc/labrig-cache"
STORAGE = "/var/lib/labrig-cache"
FILES = {  # file -> its template; daemon.json has none
    "config.yml": "config.yml",
    "compose.yaml": "compose.yaml",
    "labrig-cache.service": "service",
    "hosts.toml": "hosts.toml",
    "README.md": "README.md",
}


def write(root: Path, path: Path, output: Path, *, upstream: str = "", tls: bool = False) -> list[Path]:
    """Write the configuration of a room's cache and of its hosts into a folder; gives the files.

    Raises:
        UsageError: the inventory or its cache; or it is not known, or not one, what the cache stands in front of.
    """
    room = inventory.read(path)
    files = rendered(root, room, upstream or upstream_of(root), tls=tls)
    for name, text in files.items():
        write_atomically(output / name, text)
    return [output / name for name in files]


def rendered(
    root: Path, room: Room, upstream: str, *, tls: bool = False, storage: str = STORAGE, settings: str = SETTINGS
) -> dict[str, str]:
    """File -> text. ``upstream`` is the URL of the registry behind the cache.

    Raises:
        UsageError: the room has no cache, or the URL cannot be meant.
    """
    cache.require_cache(room)
    if not UPSTREAM.fullmatch(upstream):
        raise UsageError(
            "the registry behind the cache cannot be meant", found=re.sub(r"//.*@", "//...@", upstream)[:200],
            fix="https://HOST or https://HOST:PORT; user and password are variables of the cache, see config.yml",
        )  # fmt: skip
    host = upstream.partition("://")[2]
    daemon = docker_settings(room, upstream, tls=tls)
    given = {
        "cache": room.cache, "upstream": upstream, "tls": tls, "listen": _listen(room.cache), "storage": storage,
        "settings": settings, "debug": _debug_port(room.cache), "scheme": "https" if tls else "http",
        "containerd": f"/etc/containerd/certs.d/{'docker.io' if upstream == HUB_URL else host}",
        "settings_of_docker": bool(daemon), "mirrors": "registry-mirrors" in daemon, "inventory": room.path.name,
    }  # fmt: skip
    jinja = render.jinja(root / "templates" / "room")
    files = {name: jinja.get_template(f"{template}.j2").render(given) for name, template in FILES.items()}
    return {**files, "daemon.json": json.dumps(daemon, indent=2) + "\n"}


def docker_settings(room: Room, upstream: str, *, tls: bool = False) -> dict[str, list[str]]:
    """What daemon.json of a host needs: the cache named where it has no TLS, and as a mirror where it is the Hub's."""
    settings = {} if tls else {"insecure-registries": [room.cache]}
    if upstream == HUB_URL:
        settings["registry-mirrors"] = [f"{'https' if tls else 'http'}://{room.cache}"]
    return settings


def upstream_of(root: Path) -> str:
    """The URL of the registry that images were published to.

    Raises:
        UsageError: none was, or to several: a cache stands in front of one.
    """
    hosts = sorted({one.reference.partition("/")[0] for one in published.read(root / "images")})
    if len(hosts) != 1:
        raise UsageError(
            "a cache stands in front of one registry",
            found=f"images/{published.FILE} names {', '.join(hosts) or 'none'}",
            fix="name it: --upstream=https://HOST",
        )
    return HUB_URL if hosts[0] in HUB else f"https://{hosts[0]}"


def _listen(address: str) -> str:
    """What the cache binds to: the very address that the inventory has; all where that is a name."""
    host, port = _split(address)
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f":{port}"
    return f"{host}:{port}"


def _debug_port(address: str) -> int:
    port = int(_split(address)[1])
    return port + 1 if port < 65535 else port - 1


def _split(address: str) -> tuple[str, str]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError("the room's cache has no port", found=address, fix='write cache = "HOST:PORT", such as :5000')
    return host, port
