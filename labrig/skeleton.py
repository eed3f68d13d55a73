"""What stands between the base and the wheels: an empty environment and the student who works in it.

`python3 -m venv` and `useradd` write these files in a Dockerfile; here they are made from the base's own files, so that
nothing of the base has to run. A test compares every one of them with what those programs write.
"""

from __future__ import annotations

import re
import shlex
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from labrig import blobs, files, image
from labrig.blobs import Layer
from labrig.errors import BuildError
from labrig.files import CHUNK
from labrig.layers import write_folders
from labrig.tarball import FOLDER, SYMLINK, Writer
from labrig.wheel import Places

VERSION = "1"  # of what is written: another one where the same base would get other files
ACCOUNTS = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
DAY = int(files.EPOCH) // 86400  # what shadow(5) counts in
FIRST_SUBORDINATE, SUBORDINATES = 100000, 65536  # useradd's, from login.defs(5)
SHELL = "/bin/bash"
NAME = "student"


@dataclass(frozen=True)
class Found:
    """A file of the base, with mode and owner."""

    mode: int
    owner: tuple[int, int]
    content: bytes
    link: str = ""


def layer(under: Iterable[Layer], python: str, places: Places) -> Layer:
    """The layer of the environment and the student on a base, found or made.

    Raises:
        BuildError: the base has no such Python, or no accounts.
    """
    under = tuple(under)
    key = blobs.key("skeleton", VERSION, image.HOME, places.prefix, python, *(one.digest for one in under))
    if found := blobs.find(key):
        return found
    files = read_files(under, python)
    return blobs.make(key, "an empty environment, and the user", lambda writer: _write(writer, files, python, places))


def read_files(under: Iterable[Layer], python: str) -> dict[str, Found]:
    """The files of a base that the layer is made from, by path; from the topmost layer that has them."""
    wanted = re.compile(
        rf"etc/({'|'.join(ACCOUNTS)}|skel/.*)|var/lib/dpkg/status|usr/bin/python3|usr(/local)?/bin/python{re.escape(python)}"
        rf"|usr(/local)?/lib/python{re.escape(python)}/venv/(__init__\.py|scripts/(common|posix)/[^/]+)"
        rf"|usr/local/include/python{re.escape(python)}/patchlevel\.h"
    )
    found: dict[str, Found] = {}
    gone: set[str] = set()
    for one in reversed(tuple(under)):
        here: dict[str, Found] = {}
        whiteouts: set[str] = set()
        for archive, member in _members(one):
            path = PurePosixPath("/" + member.name).relative_to("/").as_posix().removeprefix("./")
            folder, _, name = path.rpartition("/")
            if name.startswith(".wh."):  # OCI image-spec, layer.md: what lower layers have there is gone
                whiteouts.add(folder if name == ".wh..wh..opq" else f"{folder}/{name.removeprefix('.wh.')}")
            if not wanted.fullmatch(path) or path in found or any(path == f or path.startswith(f"{f}/") for f in gone):
                continue
            file = archive.extractfile(member) if member.isfile() else None
            content = b"" if file is None or "/bin/" in path else file.read()
            if file is not None or member.issym():
                here[path] = Found(member.mode & 0o7777, (member.uid, member.gid), content, member.linkname)
        found |= here
        gone |= whiteouts
    return found


def _members(one: Layer) -> Iterable[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a layer's tar, each of which can be read before the next one is asked for."""
    from isal import igzip

    place = blobs.path(one.digest)
    try:
        with place.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        # tarfile's own stream of gzip knows one member only.
        opened = cast("IO[bytes]", igzip.open(place) if packed else place.open("rb"))  # type: ignore[no-untyped-call]
        with opened, tarfile.open(fileobj=opened, mode="r|", bufsize=CHUNK) as archive:
            for member in archive:
                yield archive, member
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BuildError(
            f"a layer of the base cannot be read: {one.digest[:19]}",
            found=f"{error} ({one.media_type})",
            fix="a base has to have layers of tar or gzip; docker buildx writes such, with compression=gzip",
        ) from error


def _write(writer: Writer, files: Mapping[str, Found], python: str, places: Places) -> None:
    folders: set[str] = set()

    def put(
        path: str, content: bytes = b"", mode: int = 0o644, link: str = "", owner: tuple[int, int] = (0, 0)
    ) -> None:
        write_folders(writer, path, folders)
        writer.start(path, len(content), 0o777 if link else mode, SYMLINK if link else b"0", link, owner)
        if content:
            writer.data(content)

    def folder(path: str, owner: tuple[int, int] = (0, 0)) -> None:
        write_folders(writer, path, folders)
        folders.add(path)
        writer.start(path, mode=0o755, kind=FOLDER, owner=owner)

    for name, added in _accounts().items():
        if account := files.get(f"etc/{name}"):
            text = account.content + (b"" if account.content.endswith(b"\n") or not account.content else b"\n")
            put(f"etc/{name}", text + added.encode(), account.mode, owner=account.owner)
        elif name in ("passwd", "group"):
            raise BuildError("the base has no accounts", found=f"no /etc/{name} in it", fix="name another base")
    home = image.HOME.lstrip("/")
    owner = (image.UID, image.GID)
    folder(home, owner)
    for path in sorted(path for path in files if path.startswith("etc/skel/")):
        put(f"{home}/{path.removeprefix('etc/skel/')}", files[path].content, files[path].mode, owner=owner)
    for path, link, content, mode in environment(files, python, places):
        put(path, content, mode, link)
    prefix = places.prefix.lstrip("/")
    folder(f"{prefix}/include/python{python}")
    folder(places.site_packages.lstrip("/"))
    folder(str(image.LABS).lstrip("/"))


def _accounts() -> dict[str, str]:
    """The line of the student in each file of accounts, as groupadd(8) and useradd(8) write them."""
    subordinate = f"{NAME}:{FIRST_SUBORDINATE}:{SUBORDINATES}\n"
    return {
        "passwd": f"{NAME}:x:{image.UID}:{image.GID}::{image.HOME}:{SHELL}\n",
        "group": f"{NAME}:x:{image.GID}:\n",
        "shadow": f"{NAME}:!:{DAY}:0:99999:7:::\n",
        "gshadow": f"{NAME}:!::\n",
        "subuid": subordinate,
        "subgid": subordinate,
    }


def environment(files: Mapping[str, Found], python: str, places: Places) -> Iterable[tuple[str, str, bytes, int]]:
    """Path, link, content and mode of what `python3 -m venv --without-pip` writes (CPython, Lib/venv/__init__.py).

    Raises:
        BuildError: the base has no such Python, or it lacks venv.
    """
    local = f"usr/local/bin/python{python}" in files
    usr = "usr/local" if local else "usr"
    library = f"{usr}/lib/python{python}/venv"
    is_default = local or files.get("usr/bin/python3", Found(0, (0, 0), b"")).link == f"python{python}"
    if f"{usr}/bin/python{python}" not in files or f"{library}/__init__.py" not in files or not is_default:
        raise BuildError(
            f"the base has no Python {python} that makes environments",
            found=f"no /{usr}/bin/python3 that is python{python}, or no /{library}",
            fix="take another base, or let a Dockerfile install it: --builder=dockerfile",
        )
    venv = files[f"{library}/__init__.py"].content.decode()
    prefix = places.prefix.lstrip("/")
    version = _version(files, python, local=local)
    settings = (
        f"home = /{usr}/bin\ninclude-system-site-packages = false\nversion = {version}\n"
        f"executable = /{usr}/bin/python{python}\ncommand = /{usr}/bin/python3 -m venv --without-pip {places.prefix}\n"
    )
    yield f"{prefix}/pyvenv.cfg", "", settings.encode(), 0o644
    yield f"{prefix}/bin/python", "python3", b"", 0
    yield f"{prefix}/bin/python3", f"/{usr}/bin/python3", b"", 0
    yield f"{prefix}/bin/python{python}", "python3", b"", 0
    yield f"{prefix}/lib64", "lib", b"", 0
    if "scm_ignore_files" in venv:  # Python 3.13 and newer
        ignore = b"# Created by venv; see https://docs.python.org/3/library/venv.html\n*\n"
        yield f"{prefix}/.gitignore", "", ignore, 0o644
    prompt = PurePosixPath(places.prefix).name
    values = {
        "__VENV_DIR__": places.prefix,
        "__VENV_NAME__": prompt,
        "__VENV_PROMPT__": f"({prompt}) " if "'(%s) ' %" in venv else prompt,
        "__VENV_BIN_NAME__": "bin",
        "__VENV_PYTHON__": f"{places.prefix}/bin/python3",
    }
    quotes = "gh-124651" in venv  # since then values are quoted (CVE-2024-9287), and Debian has it in older ones, too
    for path in sorted(path for path in files if path.startswith(f"{library}/scripts/")):
        text = files[path].content.decode()
        for key, value in values.items():
            quoted = f"'{value}'" if path.endswith(".ps1") else shlex.quote(value)
            text = text.replace(key, quoted if quotes else value)
        yield f"{prefix}/bin/{Path(path).name}", "", text.encode(), files[path].mode


def _version(files: Mapping[str, Found], python: str, *, local: bool) -> str:
    """The full version of the base's Python: of Debian's package, or, under /usr/local, as its headers say."""
    if local:
        header = files.get(f"usr/local/include/python{python}/patchlevel.h", Found(0, (0, 0), b""))
        found = re.search(rb'#define\s+PY_VERSION\s+"([0-9.]+)', header.content)
        text = found[1].decode() if found else ""
    else:
        status = files.get("var/lib/dpkg/status", Found(0, (0, 0), b"")).content.decode(errors="replace")
        named = re.search(
            rf"^Package: python{re.escape(python)}(?:-minimal)?\n(?:\S.*\n| .*\n)*?Version: ([0-9.]+)", status, re.M
        )
        text = named[1] if named else ""
    if not text.startswith(f"{python}."):
        raise BuildError(
            f"the full version of the base's Python {python} is not known", found=text or "nothing says it"
        )
    return text
