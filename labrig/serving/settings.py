"""serve.toml: what a course decides about its hub, and its cluster. Everything has a default; without a file too.

[course]
targets = ["cpu"]                  # which published images students may choose; without it all
students = 24                      # how many are expected: for GPUs, for the cluster's size

[hub]
address = "127.0.0.1"              # where it listens; another address needs TLS, or plain = true
port = 8000
name = "lab.example.edu"           # what students type; a certificate has to be for it
certificate = "/etc/ssl/lab.pem"
key = "/etc/ssl/lab.key"
plain = false                      # true: passwords cross the network unencrypted, and you know it
subdomains = false                 # true: each student's server at a host of its own (docs/scale.md, TLS)

[student]
memory = "2G"                      # of the container; what a lab needs at most is in docs/scale.md
cpu = 1.0                          # cores
shm = "1G"                         # /dev/shm, through which DataLoader workers hand batches on; counts as memory
idle = 60                          # minutes without a request or output of a kernel until a server ends; 0 = never

[login]
authenticator = "shared-password"  # or "pam", or a class: "oauthenticator.github.GitHubOAuthenticator"
password = "file:/etc/labrig/password"   # for shared-password, by reference; without it one is made
users = ["ada", "grace"]           # who may come in; without it everybody who knows the shared password, or has an
                                   # account here (pam); a class needs it, or an allow_... of its own in settings
admins = ["teacher"]

[login.settings]                   # of the authenticator's class, for both hub and cluster; secrets by reference
client_id = "..."
client_secret = "env:GITHUB_SECRET"

[cluster]
namespace = "labrig"
host = "hub.example.edu"
storage = "5Gi"                    # of each student
storage_class = ""                 # the cluster's default
results = "labrig-results"         # the claim that documents of a Job go to; many nodes write to it
"""

from __future__ import annotations

import ipaddress
import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labrig import secret, tables
from labrig.errors import UsageError
from labrig.tables import Table, lines_of

SHARED = "shared-password"
PAM = "pam"
CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
TRAIT = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# JupyterHub takes any text as a name; these are what a volume's and a pod's name can be made of without surprises.
USER = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 label, what Kubernetes calls names
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
SIZE = re.compile(r"([1-9][0-9]{0,5})([MG])")
QUANTITY = re.compile(r"[1-9][0-9]{0,5}(Mi|Gi|Ti)")  # of storage, as Kubernetes writes it
UNITS = {
    "M": 1 << 20,
    "G": 1 << 30,
}  # what JupyterHub's and Docker's M and G are (jupyterhub, traitlets.ByteSpecification)


@dataclass(frozen=True)
class Hub:
    """Where a hub on this machine listens."""

    address: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    certificate: Path | None = None
    key: Path | None = None
    plain: bool = False
    subdomains: bool = False


@dataclass(frozen=True)
class Student:
    """What one student gets: ``memory`` and ``shm`` in bytes, ``cpu`` in cores, ``idle`` in minutes (0: never)."""

    memory: int = 2 * UNITS["G"]
    cpu: float = 1.0
    shm: int = UNITS["G"]
    idle: int = 60


@dataclass(frozen=True)
class Login:
    """Who comes in, and how it is proven. ``settings`` are traits of the authenticator's class; what is a reference
    (``env:``, ``file:``) is read when it is used, and written nowhere."""

    authenticator: str = SHARED
    password: str = field(default="", repr=False)  # a reference
    users: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def own_lists(self) -> tuple[str, ...]:
        """The authenticator's own traits that say who comes in, such as members of an organization: every trait that
        begins with allow, as JupyterHub takes them (auth.py: any_allow_config), or has such a key inside."""
        return tuple(trait for trait, value in self.settings.items() if _allows(trait, value))

    @property
    def is_open(self) -> bool:
        """Whether everybody comes in whom the authenticator knows. Beside JupyterHub's ``allow_all``, which says so,
        no list counts for anything."""
        return self.settings.get("allow_all", not self.users and not self.own_lists) is True


def _allows(key: str, value: Any) -> bool:
    """``allow_existing_users`` lets in nobody who has not come in by a list."""
    inner = isinstance(value, dict) and any(_allows(*one) for one in value.items())
    return (key.startswith("allow") and key != "allow_existing_users") or inner


def is_list(trait: str) -> bool:
    """Whether a trait of an authenticator lists people, so that it counts for nothing beside ``allow_all``; CILogon's
    allowed_idps says whose people everybody is."""
    return trait.startswith("allowed_") and trait != "allowed_idps"


@dataclass(frozen=True)
class Cluster:
    """What a cluster is told besides."""

    namespace: str = "labrig"
    host: str = ""
    storage: str = "5Gi"
    storage_class: str = ""
    results: str = "labrig-results"


@dataclass(frozen=True)
class Settings:
    """serve.toml. ``targets`` empty: all that are published. ``students`` 0: not said."""

    path: Path | None = None
    targets: tuple[str, ...] = ()
    students: int = 0
    hub: Hub = Hub()
    student: Student = Student()
    login: Login = Login()
    cluster: Cluster = Cluster()


def read(path: Path | None) -> Settings:
    """A settings file; the defaults where there is none.

    Raises:
        UsageError: the file, or a key in it: with its line, what was found, and what is allowed.
    """
    if path is None:
        return Settings()
    text, data = tables.read(path, "the settings", "name a file (docs/scale.md)")
    return parse(data, path, text)


def parse(data: Mapping[str, Any], path: Path, text: str = "") -> Settings:
    """Settings that are already TOML; ``text`` is what they were, for lines in errors. Raises as :func:`read`."""
    if stray := sorted(set(data) - set(TABLES)):
        raise UsageError(
            f"{path.name}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200],
            fix=f"use the tables {', '.join(f'[{one}]' for one in TABLES)}",
        )  # fmt: skip
    found = {name: _table(data, name, path.name, text) for name in TABLES}
    hub, course, login = found["hub"], found["course"], found["login"]
    settings = Settings(
        path=path,
        targets=tuple(dict.fromkeys(course.get("targets", ()))),
        students=course.get("students", 0),
        hub=Hub(**{**hub, **{key: _file(hub[key], key, _where("hub", path.name, text))
                          for key in ("certificate", "key") if key in hub}}),
        student=Student(**{key: _size(value) if key in ("memory", "shm") else value
                           for key, value in found["student"].items()}),
        login=Login(**{**login, **{key: tuple(login[key]) for key in ("users", "admins") if key in login}}),
        cluster=Cluster(**found["cluster"]),
    )  # fmt: skip
    _require_sense(settings, {name: _where(name, path.name, text) for name in TABLES})
    return settings


def _text(shape: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and shape.fullmatch(value) is not None


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _list(shape: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(_text(shape)(one) for one in value)


def _address(value: Any) -> bool:
    try:
        return isinstance(value, str) and "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _class(value: Any) -> bool:
    return _text(CLASS)(value) and not any(map(keyword.iskeyword, value.split(".")))


def _plain(value: Any) -> bool:
    """What a trait of an authenticator can be: texts, numbers, yes and no, and lists and tables of them."""
    if isinstance(value, dict):
        return all(_plain(one) for one in value.values())
    return all(_plain(one) for one in value) if isinstance(value, list) else isinstance(value, str | int | float)


# For each key: what makes a value right, and what to write instead of one that is not.
TABLES: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "course": {
        "targets": (_list(NAME), 'names of targets: ["cpu"]'),
        "students": (_whole(1, 100_000), "a number from 1 to 100000"),
    },
    "hub": {
        "address": (_address, "an IP address of this machine; 127.0.0.1 is its own"),
        "port": (_whole(1, 65535), "a number from 1 to 65535"),
        "name": (_text(HOST), "the host's name, as students type it"),
        "certificate": (_text(re.compile(r".+")), "the path of a PEM file"),
        "key": (_text(re.compile(r".+")), "the path of a PEM file"),
        "plain": (lambda value: isinstance(value, bool), "true or false"),
        "subdomains": (lambda value: isinstance(value, bool), "true or false"),
    },
    "student": {
        "memory": (_text(SIZE), 'a size such as "2G" or "1500M"'),
        "cpu": (lambda value: type(value) in (int, float) and 0.1 <= value <= 1024, "a number of cores, at least 0.1"),
        "shm": (_text(SIZE), 'a size such as "1G" or "512M"'),
        "idle": (_whole(0, 100_000), "minutes, 0 for never"),
    },
    "login": {
        "authenticator": (lambda value: value in (SHARED, PAM) or _class(value),
                          f'"{SHARED}", "{PAM}", or a class: "oauthenticator.github.GitHubOAuthenticator"'),
        "password": (secret.is_reference, secret.MEANT),
        "users": (_list(USER), "names in small letters, digits and . _ @ -"),
        "admins": (_list(USER), "names in small letters, digits and . _ @ -"),
        "settings": (lambda value: isinstance(value, dict) and _plain(value), "a table [login.settings] of traits"),
    },
    "cluster": {
        "namespace": (_text(NAME), "small letters, digits and -"),
        "host": (_text(HOST), "a host's name"),
        "storage": (_text(QUANTITY), 'a quantity such as "5Gi"'),
        "storage_class": (_text(re.compile(rf"({NAME.pattern}(\.{NAME.pattern})*)?")), "a storage class, or empty"),
        "results": (_text(NAME), "small letters, digits and -"),
    },
}  # fmt: skip


def where(settings: Settings, name: str) -> Table:
    """Where a table of the file stands, for errors about its keys that show later."""
    path = settings.path
    try:
        return _where(name, path.name, path.read_text(encoding="utf-8")) if path else _where(name, "serve.toml", "")
    except (OSError, ValueError):
        return _where(name, path.name if path else "serve.toml", "")


def _where(name: str, file: str, text: str) -> Table:
    return Table(file, f"[{name}]", next(iter(lines_of(text, name)), {}))


def _table(data: Mapping[str, Any], name: str, file: str, text: str) -> Mapping[str, Any]:
    """A table of the file, with known keys and values that can be."""
    found, table, known = data.get(name, {}), _where(name, file, text), TABLES[name]
    if not isinstance(found, dict):
        raise UsageError(f"{file}: {name} is wrong", found=type(found).__name__, fix=f"write a table [{name}]")
    if stray := sorted(set(found) - set(known)):
        raise UsageError(
            f"{table.at(stray[0])}: unknown key {stray[0][:60]!r}", found=", ".join(stray)[:200],
            fix=f"use {', '.join(known)}",
        )  # fmt: skip
    for key, value in found.items():
        right, meant = known[key]
        if not right(value):
            # A secret is never shown, also where it stands by mistake.
            shown = "no reference" if key == "password" else type(value).__name__ if key == "settings" else repr(value)
            raise UsageError(f"{table.at(key)}: {key} is wrong", found=shown[:200], fix=meant)
    if name == "login":
        _require_traits(found.get("settings", {}), _where("login.settings", file, text))
    return found


def _require_traits(given: Mapping[str, Any], table: Table) -> None:
    """Raises UsageError for a key that is no name of Python: it becomes one in the hub's configuration."""
    for key in given:
        if not TRAIT.fullmatch(key) or keyword.iskeyword(key):
            raise UsageError(
                f"{table.at(key)}: {key[:60]!r} is no trait's name", found="no name of Python",
                fix="write letters, digits and _, as the authenticator's class has them",
            )  # fmt: skip


def _file(value: str, key: str, table: Table) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~nosuchuser
        raise UsageError(
            f"{table.at(key)}: {key} is wrong", found=str(error)[:200], fix="write the whole path"
        ) from None


def _size(text: str) -> int:
    number, unit = SIZE.fullmatch(text).groups()  # type: ignore[union-attr] # TABLES has looked
    return int(number) * UNITS[unit]


def _require_sense(settings: Settings, tables: Mapping[str, Table]) -> None:
    """Raises UsageError for keys that are right alone, and wrong together."""
    hub, student, login = settings.hub, settings.student, settings.login
    if bool(hub.certificate) != bool(hub.key):
        raise UsageError(
            f"{tables['hub'].at('certificate' if hub.certificate else 'key')}: certificate and key go together",
            found="one of them", fix="name both files",
        )  # fmt: skip
    if not is_own(hub.address) and not hub.certificate and not hub.plain:
        raise UsageError(
            f"{tables['hub'].at('address')}: passwords would cross the network unencrypted",
            found=f"address {hub.address} and no certificate",
            fix="name certificate and key, or write plain = true where nobody else is on the network",
        )
    if hub.subdomains and not (hub.certificate and hub.name and not _address(hub.name)):
        raise UsageError(
            f"{tables['hub'].at('subdomains')}: students' hosts need a name to stand under, and a certificate for them",
            found=f"name {hub.name!r}" if hub.certificate else "no certificate",
            fix='name = "lab.example.edu", with certificate and key for it and for *.lab.example.edu',
        )
    if student.shm > student.memory:
        raise UsageError(
            f"{tables['student'].at('shm')}: /dev/shm is part of the container's memory, and larger than it",
            found=f"shm {student.shm >> 20} MiB, memory {student.memory >> 20} MiB", fix="make shm smaller",
        )  # fmt: skip
    if login.password and login.authenticator != SHARED:
        raise UsageError(
            f"{tables['login'].at('password')}: only {SHARED} has a password", found=login.authenticator,
            fix="put what the authenticator needs into [login.settings]",
        )  # fmt: skip


def url(hub: Hub) -> str:
    """What students type."""
    name = hub.name or hub.address
    return f"{'https' if hub.certificate else 'http'}://{f'[{name}]' if ':' in name else name}:{hub.port}/"


def is_own(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address).is_loopback
