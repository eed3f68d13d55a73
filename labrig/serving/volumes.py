"""A student's volume in the engine, which is theirs from the first second on."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from labrig import image
from labrig.serving import state

if TYPE_CHECKING:
    from docker import APIClient


def prepare(client: APIClient, name: str, reference: str, user: str) -> None:
    """Make a named volume, unless it is there, and give it to the image's student.

    An engine makes volumes root's where the image has no such folder. Nothing runs to change that: a folder that is put
    into a container by the archive API keeps the owner that the tar says (docs.docker.com/reference/api/engine,
    PutContainerArchive), also where the folder is a volume, and the container is never started.
    """
    client.create_volume(name, labels={state.MARK: state.mark(), state.USER: user})
    work = PurePosixPath(image.WORK)
    host = client.create_host_config(binds={name: {"bind": str(work), "mode": "rw"}}, network_mode="none")
    box = client.create_container(reference, ["true"], host_config=host, labels={state.MARK: state.mark()})["Id"]
    try:
        client.put_archive(box, str(work.parent), _folder(work.name))
    finally:
        client.remove_container(box, force=True)


def _folder(name: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
        entry.uid, entry.gid = image.UID, image.GID
        tar.addfile(entry)
    return made.getvalue()
