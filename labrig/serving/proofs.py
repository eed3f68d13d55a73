"""What is looked at before a hub starts: whatever can be known to go wrong is said now, with what to do."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from labrig import compat, daemon, image, network, spec
from labrig.errors import BuildError, HostError, UsageError
from labrig.host import Host, read_host
from labrig.serving import Offer, logins, offers, state
from labrig.serving import settings as files
from labrig.serving.settings import PAM, SHARED, Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from docker import DockerClient

PROXY = "configurable-http-proxy"
PROXY_LEAST = (5, 2)  # the first with --api-socket
INSTALL = f"sudo apt install nodejs npm && sudo npm install --global {PROXY}@{PROXY_LEAST[0]}"
ROOM = 64 << 20  # bytes that the hub's folder needs: its database, its log
ENGINE_ROOM = 1 << 30  # bytes that the engine needs for students' volumes and logs
MORE_ROOM = "make room there (docker system df; invoke clean), or name another folder with LABRIG_CACHE"
METADATA = ("169.254.169.254", 80)  # where clouds tell a virtual machine its keys, and whoever asks from it
CLOUDS = re.compile("amazon|google|microsoft|digitalocean|openstack|hetzner|alibaba|oracle|scaleway|vultr", re.I)
SOON = timedelta(days=14)  # a certificate that ends sooner is said


@dataclass(frozen=True)
class Proven:
    """What was found: the images by offer, the ids of the GPUs that each target for one runs on, the proxy program,
    and what the admin should know besides."""

    images: Mapping[Offer, str]
    gpus: Mapping[str, tuple[str, ...]]
    proxy: str
    notices: tuple[str, ...]


def prove(root: Path, settings: Settings, place: Path) -> Proven:
    """Look at everything but ports; they are taken while the hub runs.

    Raises:
        UsageError: a key of serve.toml, with its line.
        HostError: a program, a package, an engine or an image is missing.
        BuildError: a disk is full.
    """
    logins.prove(settings)
    notices = [*require_certificate(settings, datetime.now(UTC))]
    proxy = require_proxy()
    require_database(place / state.DATABASE)
    require_room(place, ROOM, "the hub's database and log")
    daemon.require_local()
    host = read_host()
    found = offers.read(root, host.container_platform or "", settings.targets)
    targets = spec.read(root / "images" / spec.TABLE).targets
    with daemon.connect() as client:
        kept, said = find_images(client, found, settings, host, targets)
        docker_root = engine_folder(client)
    if docker_root:
        require_room(docker_root, ENGINE_ROOM, "the engine's volumes of students")
    notices += said
    gpus = {one.target: cards(targets[one.target], host) for one in kept if one.device == "cuda"}
    notices += about_gpus(kept, len(set().union(*gpus.values())), settings.students)
    notices += about_login(settings, os.getuid())
    notices += about_private_proxy()
    notices += about_metadata(Path("/sys/class/dmi/id"))
    return Proven(kept, gpus, proxy, tuple(notices))


def require_proxy() -> str:
    """The path of the proxy program, which was run. Raises HostError."""
    path = shutil.which(PROXY)
    if path is None:
        raise HostError(f"{PROXY} is not installed, and every request goes through it", fix=INSTALL)
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{PROXY} does not run", found=f"{path}: {str(error)[:200]}", fix=INSTALL) from None
    version = re.search(r"(\d+)\.(\d+)\.\d+", done.stdout)
    if done.returncode or not version:
        said = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0][:200]
        raise HostError(f"{PROXY} does not run", found=f"{path}: {said}", fix=INSTALL)
    if (int(version[1]), int(version[2])) < PROXY_LEAST:
        least = ".".join(map(str, PROXY_LEAST))
        raise HostError(f"{PROXY} is too old", found=f"{version[0]}, needed is {least}", fix=INSTALL)
    return str(Path(path).absolute())


def engine_folder(client: DockerClient) -> Path | None:
    """Where the engine keeps students' volumes; None where that is not to be seen from here."""
    folder = Path(str(client.info().get("DockerRootDir", "/")))
    return folder if folder.exists() else None


def require_room(folder: Path, least: int, what: str) -> None:
    """Raises BuildError where a disk has less than ``least`` bytes left."""
    if found := lacks(folder, least):
        raise BuildError(f"the disk is full: there is no room for {what}", found=found, fix=MORE_ROOM)


def lacks(folder: Path, least: int) -> str:
    """What is free of a disk that has less than ``least`` bytes left; empty: it has more."""
    free = shutil.disk_usage(folder).free
    return f"{folder}: {free >> 20} MiB free, {least >> 20} MiB needed" if free < least else ""


def require_database(file: Path) -> None:
    """Raises BuildError where the hub's database is none (sqlite.org/fileformat.html, 1.3); empty is one."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except FileNotFoundError:
        return
    if head and head != b"SQLite format 3\0":
        raise BuildError(
            "the hub's database is damaged", found=f"{file} is not a database of SQLite",
            fix=f"mv {file} {file}.damaged; the hub begins a new one: everybody logs in anew, files stay",
        )  # fmt: skip


# --- images -------------------------------------------------------------------------------------------------------


def find_images(
    client: DockerClient,
    found: tuple[Offer, ...],
    settings: Settings,
    host: Host,
    targets: Mapping[str, spec.Target],
) -> tuple[dict[Offer, str], list[str]]:
    """The offers that this engine can start, by the identity of their image, and a line for each other one.

    Raises:
        HostError: none can be, or one that the settings name cannot.
    """
    kept: dict[Offer, str] = {}
    missing: dict[str, tuple[str, str]] = {}  # target -> why not, and what to do
    for offer in found:
        identity = _identity(client, offer)
        if why := _cannot_join(offer):
            missing[offer.target] = (why, f"publish it anew: invoke publish --target={offer.target}")
        elif offer.device == "cuda" and (why := _no_gpus(targets[offer.target], host)):
            missing[offer.target] = (why, "invoke doctor says what is missing, targets in [course] what is offered")
        elif not identity:
            missing[offer.target] = ("its image is not in the engine", f"invoke pull --target={offer.target}")
        else:
            kept[offer] = identity
    if missing and (settings.targets or not kept):
        raise HostError(
            "what students should choose from is not here"
            if kept
            else "there is no image that students could be given",
            found="; ".join(f"{target}: {why}" for target, (why, _) in missing.items()),
            fix="; ".join(dict.fromkeys(fix for _, fix in missing.values())),
        )
    return kept, [f"{target} is not offered: {why} ({fix})" for target, (why, fix) in missing.items()]


def _identity(client: DockerClient, offer: Offer) -> str:
    """What the engine calls the published image of an offer; empty where it has none, or another of that name."""
    digest = offer.reference.partition("@")[2]
    for name in (offer.config, digest, offer.image, offer.reference):
        there = image.find(client, name)
        if there is not None and there.id in (offer.config, digest):
            return str(there.id)
    return ""


def _cannot_join(offer: Offer) -> str:
    """Why a hub of the installed jupyterhub cannot start an image; empty: it can."""
    import jupyterhub

    ours = jupyterhub.__version__
    if not offer.hub:
        return "no jupyterhub is in its image"
    if offer.hub.partition(".")[0] != ours.partition(".")[0]:
        return f"its image has jupyterhub {offer.hub}, this hub is {ours}"
    return ""


def cards(target: spec.Target, host: Host) -> tuple[str, ...]:
    """The ids, as nvidia-smi counts, of the GPUs that a target runs on, each judged alone as doctor does."""
    build = compat.of_target(target, "docker")
    each = [compat.judge(build, replace(host, gpus=(gpu,))) for gpu in host.gpus]
    return tuple(str(number) for number, finding in enumerate(each) if finding.verdict == compat.RUNS)


def _no_gpus(target: spec.Target, host: Host) -> str:
    """Why this machine hands out no GPU that a target is known to run on; empty: it does."""
    if not host.gpus:
        return "it needs a GPU, and this machine has none"
    if host.docker_gpus is False:
        return "it needs a GPU, and the engine hands none out"
    return "" if cards(target, host) else compat.judge(compat.of_target(target, "docker"), host).reason


# --- what the admin should know -----------------------------------------------------------------------------------


def about_gpus(kept: Mapping[Offer, str], gpus: int, students: int) -> Iterator[str]:
    """A plain word where there are fewer GPUs than students."""
    if not any(offer.device == "cuda" for offer in kept):
        return
    if gpus < students:
        yield (f"{gpus} GPU{'s' if gpus > 1 else ''} for {students} students: a GPU is one student's at a time, "
               f"so {students - gpus} of them have to wait or take an image for the processor")  # fmt: skip
    elif not students:
        yield f"{gpus} GPU{'s' if gpus > 1 else ''}: one student's each, so many students at once and no more"


def about_login(settings: Settings, user: int) -> Iterator[str]:
    """What is true of the way in, and easily overlooked."""
    login = settings.login
    if login.authenticator == SHARED:
        name = "any name of the list" if login.users else "anybody's name"
        yield (f"one password for all: whoever knows it can come in under {name}, and open their files. For a first "
               'hour in a room; then authenticator = "pam" or a class, in [login] of serve.toml')  # fmt: skip
    elif login.is_open:
        whom = (
            "every account of this machine" if login.authenticator == PAM else "everybody whom the authenticator knows"
        )
        yield f"{whom} may come in: users in [login] names those who do"
    if login.authenticator == PAM and user != 0:
        yield f"PAM as user {user}, who is not root, may prove nobody's password but their own"
    if settings.hub.plain:
        yield "plain = true: passwords cross the network unencrypted"


def about_private_proxy() -> Iterator[str]:
    """A word where students' servers are not given the login of a proxy that needs one."""
    if network.has_login():
        yield (f"students' servers are told the proxy of {network.PROXY} without its user and password, which "
               "students could read: if it lets nobody through without, docs/network.md says what to do")  # fmt: skip


def about_metadata(dmi: Path) -> Iterator[str]:
    """A word where this is a cloud's machine, whose metadata service answers: it would answer students, too."""
    made_by = [
        file.read_text(errors="replace") for name in ("sys_vendor", "product_name") if (file := dmi / name).exists()
    ]
    if not CLOUDS.search(" ".join(made_by)):
        return
    try:
        socket.create_connection(METADATA, timeout=1).close()
    except OSError:
        return
    yield (f"the cloud's metadata service answers at {METADATA[0]}, for students' servers as well, and may give out "
           "this machine's keys: docs/scale.md (Firewall) has the line that refuses it")  # fmt: skip


# --- ports --------------------------------------------------------------------------------------------------------


def require_port(settings: Settings) -> None:
    """Raises UsageError where somebody else has the hub's port, HostError where this user may not take it."""
    hub, at = settings.hub, files.where(settings, "hub")
    try:
        bind(hub.address, hub.port)
    except PermissionError:
        raise HostError(
            f"{at.at('port')}: this user may not listen on port {hub.port}", found="ports below 1024 are root's",
            fix="port = 8443 in [hub] of serve.toml, or run it as root (systemd can: docs/scale.md)",
        ) from None  # fmt: skip
    except OSError as error:
        if not is_here(hub.address):
            raise UsageError(
                f"{at.at('address')}: {hub.address} is no address of this machine", found=error.strerror or str(error),
                fix="ip address lists them; 127.0.0.1 is this machine alone",
            ) from None  # fmt: skip
        free = free_port(hub.address)
        raise UsageError(
            f"{at.at('port')}: port {hub.port} is taken on this machine", found=error.strerror or str(error),
            fix=f"port {free} is free: port = {free} in [hub] of serve.toml; "
            f"ss -ltnp says whose it is",
        ) from None  # fmt: skip


def bind(address: str, port: int) -> int:
    """Listen for a moment, and give the port: a free one for port 0. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.socket(family)) as knock:
        knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        knock.bind((address, port))
        knock.listen()
        return int(knock.getsockname()[1])


def is_here(address: str) -> bool:
    """Whether an address is one of this machine."""
    try:
        bind(address, 0)
    except OSError:
        return False
    return True


def free_port(address: str) -> int:
    """A port of an address that nobody listens on now."""
    return bind(address, 0)


# --- the certificate ----------------------------------------------------------------------------------------------


def require_certificate(settings: Settings, now: datetime) -> Iterator[str]:
    """Look at certificate and key as the proxy and a browser will; a line where it ends soon.

    Raises:
        UsageError: a file is not to be read or not PEM, the key is another one's, it is over, or for another name.
    """
    hub, at = settings.hub, files.where(settings, "hub")
    if not hub.certificate or not hub.key:
        return
    certificate = _certificate(hub.certificate, at.at("certificate"))
    _require_key(certificate, hub.key, at.at("key"))
    until, since = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if not since <= now <= until:
        raise UsageError(
            f"{at.at('certificate')}: the certificate is not valid today",
            found=f"{hub.certificate}: from {since:%Y-%m-%d} to {until:%Y-%m-%d}; here it is {now:%Y-%m-%d}",
            fix="renew it where it came from",
        )
    wanted = {"name" if hub.name else "certificate": hub.name or hub.address}
    if hub.subdomains:
        wanted["subdomains"] = f"*.{hub.name}"
    names = names_of(certificate)
    for key, host in wanted.items():
        if not any(_is_for(name, host) for name in names):
            raise UsageError(
                f"{at.at(key)}: the certificate is not for {host}",
                found=f"{hub.certificate} is for {', '.join(names)[:200] or 'no name at all'}",
                fix="write in name what students type and the certificate is for, or get one for that name",
            )
    if until - now < SOON:
        yield f"the certificate ends on {until:%Y-%m-%d}: renew it, then invoke serve --down and --hub"


def _certificate(path: Path, at: str) -> Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read(path, at))
    except ValueError:
        raise UsageError(
            f"{at}: {path} is no certificate in PEM", found="nothing that begins with -----BEGIN CERTIFICATE-----",
            fix=f"of the other form PEM is made by: openssl x509 -inform der -in {path}",
        ) from None  # fmt: skip


def _require_key(certificate: Certificate, path: Path, at: str) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    content = _read(path, at)
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise UsageError(
            f"{at}: {path} needs a pass phrase", found="an encrypted key, and nobody is there to type it",
            fix=f"openssl pkey -in {path} -out FILE takes it off; chmod 600 FILE",
        ) from None  # fmt: skip
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{at}: {path} is no private key in PEM", found="nothing that begins with -----BEGIN PRIVATE KEY-----",
            fix="name the file that was made together with the certificate",
        ) from None  # fmt: skip
    public = [one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
              for one in (key.public_key(), certificate.public_key())]  # fmt: skip
    if public[0] != public[1]:
        raise UsageError(
            f"{at}: {path} is the key of another certificate", found="its public half is not the certificate's",
            fix="name the file that was made together with the certificate",
        )  # fmt: skip


def names_of(certificate: Certificate) -> list[str]:
    """What a certificate is for: subjectAltName alone, as browsers look (RFC 9110, 4.3.4)."""
    from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        return []
    return [*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress))]


def _is_for(name: str, wanted: str) -> bool:
    """Whether a name of a certificate covers a host: ``*.`` stands for one label (RFC 6125, 6.4.3)."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(wanted)
    except ValueError:
        name, wanted = name.lower(), wanted.lower()
    return name == wanted or (name.startswith("*.") and name[1:] == f".{wanted.partition('.')[2]}")


def _read(path: Path, at: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{at}: {path} cannot be read", found=error.strerror or str(error),
            fix="correct the path, or let this user read it",
        ) from None  # fmt: skip
