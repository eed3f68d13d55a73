"""`python -m labs serve --to FOLDER`: copy the labs into a student's folder and open JupyterLab there.

With ``--hub`` a JupyterHub has started it, and says where to listen and whom to let in.

It runs inside an image or a native environment, with the standard library only, until JupyterLab takes its place.

What is copied lies in FOLDER/labs. A file that is missing is copied, one whose content is any that was copied there
before is brought up to date, and one that somebody edited is never touched. FOLDER/.labrig-labs.json remembers, for
each file, the digests that were copied; a digest is noted before its file is written, so that a copy that is killed
goes on later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from labs.harness import LabStop, say
from labs.page import LABS

RECORD = ".labrig-labs.json"
SCHEMA = "labrig-labs/1"
FOLDER = "labs"  # under the student's folder
PORT = 8888
# Where Docker and Podman say that this is a container; an Apptainer container has neither, and the host's network.
IN_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))
# What is not Jupyter's usual: it asks nobody for news or updates, and shows Markdown as a page.
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}},
}
# Settings of a person's or a machine's other Jupyter, which could switch off the token or load something else.
FOREIGN = ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH", "JUPYTERLAB_DIR", "JUPYTERLAB_SETTINGS_DIR",
           "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_SERVER_ALLOW_UNAUTHENTICATED_ACCESS")  # fmt: skip


class NotPlain(Exception):
    """Something else than a file that can be read has this name: a link, a folder, a pipe."""


@dataclass(frozen=True)
class Copied:
    """What a copy did, as paths under FOLDER."""

    new: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()  # edited, or something else of that name: left as they are


def serve(to: Path, *, port: int = PORT, ip: str = "", only_copy: bool = False, hub: bool = False) -> int:
    """Copy the labs and become JupyterLab, with `hub` a JupyterHub's; comes back only with `only_copy`.

    Raises LabStop 3 for root, 2 for an address or a token that cannot be taken or for a hub that is not there, 4 for a
    folder that cannot be written.
    """
    if os.getuid() == 0:
        raise LabStop(3, "JupyterLab does not run as root: in a container leave out --user=0 or name another user "
                         "(--user 1000:1000), elsewhere log in as yourself")  # fmt: skip
    if hub and not os.environ.get("JUPYTERHUB_SERVICE_URL"):
        raise LabStop(2, "--hub is for a JupyterHub, which says where to listen in JUPYTERHUB_SERVICE_URL; "
                         "without one leave --hub out")  # fmt: skip
    address = own_address() if not ip else checked_address(ip)
    token = "" if hub else read_token()
    to = to.absolute()
    try:
        to.mkdir(parents=True, exist_ok=True)
        tell(copy(LABS, to))
    except OSError as error:
        raise LabStop(4, f"the labs cannot be copied into {to} by user {os.getuid()}: {error.strerror} "
                         f"({error.filename or 'a file'}); what is there is whole") from None  # fmt: skip
    if not only_copy:
        become_jupyter(to, hub_command(to) if hub else jupyter_command(to, address, port), token)
    return 0


def become_jupyter(to: Path, command: list[str], token: str) -> NoReturn:
    """Put JupyterLab into the place of this process."""
    variables = jupyter_variables(state_folder())
    for name in (*FOREIGN, "JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE"):
        os.environ.pop(name, None)
    os.environ.update(variables | ({"JUPYTER_TOKEN": token} if token else {}))
    os.chdir(to)
    os.execv(command[0], command)  # noqa: S606 - no shell on purpose


# ------------------------------------------------------------------------------------------------ the labs


def copy(source: Path, to: Path) -> Copied:
    """Bring the labs of `source` into `to`/labs; a link that leads elsewhere is never followed, below `to`.

    Raises OSError where `to` cannot be written; every file is then whole, the old one or the new.
    """
    if (to / FOLDER).is_dir() and (to / FOLDER).samefile(source):
        return Copied()  # a checkout is served as it is
    top = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # not every file system of a network knows locks
            fcntl.flock(top, fcntl.LOCK_EX)
        files = {f"{FOLDER}/{inner}": source / inner for inner in lab_files(source)}
        digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        known = read_record(top)
        noted = {name: [*known.get(name, []), *([new] if new not in known.get(name, []) else [])]
                 for name, new in digests.items()}  # fmt: skip
        if {**known, **noted} != known:
            write(top, RECORD, json.dumps({"schema": SCHEMA, "files": {**known, **noted}}, indent=1).encode() + b"\n")
        done: dict[str, list[str]] = {"new": [], "updated": [], "kept": []}
        for name, file in files.items():
            if did := bring(top, name, file, digests[name], noted[name]):
                done[did].append(name)
        return Copied(*(tuple(names) for names in done.values()))
    finally:
        os.close(top)


def lab_files(source: Path) -> list[str]:
    """The files that belong to the labs, as paths under `source`: no caches, nothing hidden."""
    found = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
    return [one.as_posix() for one in found if not any(p == "__pycache__" or p.startswith(".") for p in one.parts)]


def bring(top: int, name: str, file: Path, digest: str, ours: list[str]) -> str:
    """Bring one file: "new", "updated", "kept", or "" where it is there as it should be."""
    path = PurePosixPath(name)
    with folder_of(top, path) as parent:
        if parent is None:
            return "kept"
        there = digest_at(parent, path.name)
        if there == digest:
            return ""
        if there is not None and there not in ours:
            return "kept"
        write(parent, path.name, file.read_bytes())
        return "new" if there is None else "updated"


@contextlib.contextmanager
def folder_of(top: int, path: PurePosixPath) -> Iterator[int | None]:
    """The folder that a file belongs into, open and made if need be; None where something else has its name."""
    with contextlib.ExitStack() as stack:
        folder = top
        for part in path.parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            try:
                folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                yield None
                return
            stack.callback(os.close, folder)
        yield folder


def digest_at(folder: int, name: str) -> str | None:
    """The digest of a file, "" of what is no plain file or cannot be read, None where nothing is."""
    try:
        content = content_at(folder, name)
    except NotPlain:
        return ""
    return None if content is None else hashlib.sha256(content).hexdigest()


def content_at(folder: int, name: str) -> bytes | None:
    """What a plain file holds, None where nothing is. Raises NotPlain for anything else, and what cannot be read."""
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)  # a pipe would wait
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EACCES, errno.ENXIO, errno.EOPNOTSUPP):  # links, closed, sockets
            raise
        raise NotPlain from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise NotPlain
    with os.fdopen(opened, "rb") as file:
        return file.read()


def write(folder: int, name: str, content: bytes) -> None:
    """Write a file under another name and rename it; whatever a killed copy left of that name goes first."""
    other = f".{name}.labrig-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(other, dir_fd=folder)
    opened = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(opened)
        os.rename(other, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(other, dir_fd=folder)
        raise


def read_record(top: int) -> dict[str, list[str]]:
    """The digests that were copied, by file; none where the record is damaged, so that nothing is overwritten."""
    try:
        record = json.loads(content_at(top, RECORD) or b"{}")
        return {str(name): [str(one) for one in digests] for name, digests in record.get("files", {}).items()}
    except (ValueError, AttributeError, TypeError, NotPlain):
        say(f"{RECORD} is damaged, so every file that differs from the labs of this environment counts as edited")
        return {}


def tell(copied: Copied) -> None:
    """One line on stderr of what was copied, and one of what was not, and how to get it."""
    if copied.new or copied.updated:
        say(f"labs: {len(copied.new)} copied, {len(copied.updated)} brought up to date")
    if copied.kept:
        names = ", ".join(copied.kept[:3]) + (f" and {len(copied.kept) - 3} more" if len(copied.kept) > 3 else "")
        say(f"kept as edited: {names}; to get one anew, delete or rename it and start again")


# ------------------------------------------------------------------------------------------------ JupyterLab


def jupyter_command(to: Path, address: str, port: int) -> list[str]:
    """JupyterLab, closed as far as it works: what is said here holds against any configuration file."""
    settings = {
        "ServerApp.ip": address,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,  # a port is published or printed before it starts, so another one helps nobody
        "ServerApp.open_browser": False,
        "ServerApp.answer_yes": True,  # one Ctrl-C ends it
        "ServerApp.allow_remote_access": False,  # only as localhost or 127.0.0.1: no page rebinds a name to it
        "ServerApp.custom_display_url": f"http://127.0.0.1:{port}/",
        "PasswordIdentityProvider.allow_password_change": False,
        "LabApp.default_url": first_page(to),
        **settings_of_both(to),
    }
    return command_of("jupyterlab", settings)


def hub_command(to: Path) -> list[str]:
    """The same for a JupyterHub: its own extension of Jupyter Server listens where the hub says, and asks the hub who
    somebody is (jupyterhub, singleuser/extension.py)."""
    return command_of("jupyterhub.singleuser", {"ServerApp.default_url": first_page(to), **settings_of_both(to)})


def settings_of_both(to: Path) -> dict[str, object]:
    """What holds for JupyterLab whoever has started it."""
    return {
        "ServerApp.root_dir": to,
        "ServerApp.allow_root": False,
        "ServerApp.allow_unauthenticated_access": False,
        "LabApp.extension_manager": "readonly",  # the other kind asks PyPI
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": "None",
    }


def command_of(module: str, settings: dict[str, object]) -> list[str]:
    """A module of this environment. -P: a student's folder may hold a random.py, and is the current one."""
    return [sys.executable, "-P", "-m", module, *(f"--{name}={value}" for name, value in settings.items())]


def first_page(to: Path) -> str:
    """Where JupyterLab opens: the first notebook of the labs, else what there is to read."""
    labs = to / FOLDER
    found = [*sorted(labs.glob("notebooks/[0-9]*.ipynb")), labs / "README.md"]
    return next((f"/lab/tree/{page.relative_to(to).as_posix()}" for page in found if page.is_file()), "/lab")


def state_folder() -> Path:
    """A folder of our own for what Jupyter writes beside the work; in memory where the home cannot be written."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    folder = home / "labrig" / "jupyter"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="labrig-jupyter-"))


def jupyter_variables(state: Path) -> dict[str, str]:
    """Where Jupyter, IPython and matplotlib write; the settings that differ from Jupyter's usual are put there."""
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
              "IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib"}  # fmt: skip
    for inner in (*places.values(), "config/labconfig"):
        (state / inner).mkdir(mode=0o700, parents=True, exist_ok=True)
    # jupyterlab_server, settings_utils.py: _get_overrides reads this file of a config folder.
    (state / "config/labconfig/default_setting_overrides.json").write_text(json.dumps(OVERRIDES), encoding="utf-8")
    return {name: str(state / inner) for name, inner in places.items()}


def read_token() -> str:
    """The token of JUPYTER_TOKEN_FILE or JUPYTER_TOKEN; empty where neither is set, and Jupyter then makes one.

    Jupyter itself would take an empty one as "no token needed". Raises LabStop 2 for a token that cannot be used.
    """
    token, where = os.environ.get("JUPYTER_TOKEN", "").strip(), "JUPYTER_TOKEN"
    if not token and (file := os.environ.get("JUPYTER_TOKEN_FILE")):
        where = f"JUPYTER_TOKEN_FILE ({file})"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LabStop(2, f"{where} cannot be read: {getattr(error, 'strerror', error)}") from None
        if not token:
            raise LabStop(2, f"{where} is empty, and JupyterLab would be open to everybody")
    if token and not re.fullmatch(r"[A-Za-z0-9._~-]{16,}", token):
        raise LabStop(2, f"{where} is no good token: 16 or more of the letters, digits and ._~- are")
    return token


def checked_address(ip: str) -> str:
    """An address of this machine, and not all of them. Raises LabStop 2."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        raise LabStop(2, f"--ip {ip} is no address; 127.0.0.1 is this machine's own") from None
    if address.is_unspecified:
        raise LabStop(2, f"--ip {ip} is every network that this machine is in; name one address, or leave --ip out")
    return ip


def own_address() -> str:
    """What to listen at: 127.0.0.1, or in a container the address that its ports are published to.

    A container that shares the host's network sees the host's interfaces; there 127.0.0.1 is right again.
    """
    shared = any(name.startswith(("docker", "podman", "br-")) for _, name in socket.if_nameindex())
    if shared or not any(mark.exists() for mark in IN_CONTAINER):
        return "127.0.0.1"
    try:
        return socket.gethostbyname(socket.gethostname())  # the engine writes it into /etc/hosts
    except OSError:
        return "127.0.0.1"  # a container without a network
