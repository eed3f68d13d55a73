"""What is known of the hub of this machine: one folder, for its owner only, and the note of what was started."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from labrig import home
from labrig.errors import BuildError
from labrig.files import write_atomically

NOTE = "hub.json"
CONFIG = "jupyterhub_config.py"
DATABASE = "jupyterhub.sqlite"
COOKIES, PROXY_TOKEN, PASSWORD, ADMIN_PASSWORD = "cookie-secret", "proxy-token", "password", "admin-password"
PROXY_SOCKET = "proxy-api"  # where the hub tells the proxy its routes: a port would be anybody's while it is down
REASON = "gave-up"  # why the keeper has ended by itself
MARK = "labrig.hub"  # label of everything in the engine that belongs to a hub: which one
USER, TARGET = "labrig.hub.user", "labrig.hub.target"  # labels of a student's container


@dataclass(frozen=True)
class Note:
    """A hub that was started: where it listens, and what it was told."""

    url: str  # what students type
    address: str
    port: int
    hub_address: str  # of this machine on the students' network: where their servers ask the hub
    hub_port: int
    proxy: str  # the proxy program
    certificate: str
    key: str
    asked: str  # digest of the settings and the published images
    checkout: str
    since: str  # UTC, ISO 8601
    subdomains: bool = False  # each student's server at a host of its own


def place() -> Path:
    """The folder; two hubs of one engine differ by it."""
    return home.root() / "hub"


def mark() -> str:
    """Eight digits that follow from the folder: the end of each name that this hub has in the engine."""
    return hashlib.sha256(str(place()).encode()).hexdigest()[:8]


def name() -> str:
    """What begins the names of its network, volumes and containers."""
    return f"labrig-hub-{mark()}"


def read() -> Note | None:
    """The note; None where no hub was started.

    Raises:
        BuildError: it is damaged.
    """
    file = place() / NOTE
    try:
        known = {one.name for one in fields(Note)}  # an older labrig has noted more
        note = Note(**{key: value for key, value in dict(json.loads(file.read_text("utf-8"))).items() if key in known})
        for one in fields(note):
            if type(value := getattr(note, one.name)).__name__ != one.type:
                raise TypeError(f"{one.name} is {value!r}, which is no {one.type}")
        return note
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BuildError(
            "what is known of the hub is damaged", found=f"{file}: {error}",
            fix=f"remove {file}; the hub's database and students' volumes are not in it",
        ) from None  # fmt: skip


def write(note: Note) -> None:
    """Keep a note."""
    write_atomically(place() / NOTE, json.dumps(asdict(note), indent=2) + "\n", mode=0o600)


def secret_file(name: str, size: int) -> Path:
    """A file with a secret of ``size`` random bytes as hexadecimal digits, made where there is none yet."""
    file = place() / name
    if not file.exists() or not file.read_text(encoding="utf-8").strip():  # empty: a disk was full
        write_atomically(file, secrets.token_hex(size) + "\n", mode=0o600)
    return file
