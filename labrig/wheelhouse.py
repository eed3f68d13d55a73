"""The wheelhouse: every locked wheel once, content-addressed by SHA-256, shared by all targets.

``<store>/<first two digits>/<sha256>/<file>`` holds only verified wheels: a file gets there by a rename after its
digest was checked, or as a hard link to a file of that digest. ``<store>/partial/<sha256>`` holds what is unfinished.

``fetch`` brings wheels in and says what it did (``Fetched``): what is there is hashed again, the rest is looked for
(labrig/search.py), linked from folders or downloaded (labrig/download.py). ``find`` and ``missing`` tell what is there;
``link_folder`` lays wheels out for uv.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from labrig.crew import Crew
from labrig.download import Transfer, download, is_whole
from labrig.errors import FetchError, Interrupted
from labrig.files import copy_proven, digest
from labrig.indexes import Sources, open_client
from labrig.lock import Wheel
from labrig.progress import Progress, megabytes
from labrig.search import bind, locate

if TYPE_CHECKING:
    from unearth.fetchers import PyPIClient


@dataclass(frozen=True)
class Fetched:
    """What a fetch did, in wheels and bytes. ``received`` counts the bytes that came over the network in this run."""

    reused: int = 0
    reused_bytes: int = 0
    linked: int = 0
    linked_bytes: int = 0
    downloaded: int = 0
    downloaded_bytes: int = 0
    received: int = 0
    corrupt: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"wheels: {self.reused} reused ({megabytes(self.reused_bytes)}), "
            f"{self.linked} from folders ({megabytes(self.linked_bytes)}), "
            f"{self.downloaded} downloaded ({megabytes(self.downloaded_bytes)})"
        )


def find(wheel: Wheel, store: Path) -> Path:
    """Where ``wheel`` lies in ``store``, or will lie."""
    return store / wheel.sha256[:2] / wheel.sha256 / wheel.file


def missing(wheels: Iterable[Wheel], store: Path) -> list[Wheel]:
    """The wheels that are not in ``store``, judged by presence and size."""
    return [wheel for wheel in wheels if not is_whole(find(wheel, store), wheel.size)]


def keep(wheel: Wheel, source: BinaryIO, store: Path) -> bool:
    """Put a wheel that somebody handed over into ``store``, proven; False: it is there already, and right.

    Raises FetchError (it is another one than the lock's; the disk is full or read-only).
    """
    place = find(wheel, store)
    try:
        if place.exists():
            with place.open("rb") as file:
                if digest(file, lambda: None) == wheel.sha256:
                    return False
        place.parent.mkdir(parents=True, exist_ok=True)
        if not copy_proven(source, place, wheel.sha256, wheel.size):
            raise FetchError(f"{wheel.file} is not the wheel that the lock names", fix="ask for it again")
    except OSError as error:
        raise _disk_error(error, store, wheel.size) from error
    return True


def fetch(
    wheels: Sequence[Wheel],
    sources: Sources,
    *,
    pinned: Mapping[str, str | None],
    store: Path,
    offline: bool = False,
    jobs: int = 8,
    progress: Progress | None = None,
) -> Fetched:
    """Bring every wheel into ``store``, verified, and say what was done.

    ``pinned`` maps package names to the name of the index that they must come from; they are looked for before
    anything else, so that an index that cannot be reached stops the run within seconds. ``offline`` opens no
    connection: only places on this machine are searched. ``progress`` is made on stderr when not given.

    Raises FetchError (a wheel cannot be had or has a wrong digest; the disk is full or read-only) and Interrupted.
    """
    crew = Crew(jobs)
    with progress or Progress("fetch") as shown:
        try:
            return _bring(list(dict.fromkeys(wheels)), sources, pinned, store, offline, crew, shown)
        except KeyboardInterrupt:
            raise Interrupted(
                "the fetch was interrupted", fix="run the same command again: it goes on where it stopped"
            ) from None
        except OSError as error:
            raise _disk_error(error, store) from error


def link_folder(wheels: Iterable[Wheel], store: Path, folder: Path) -> Path:
    """A flat folder of the wheels by file name, for ``uv pip sync --no-index --find-links``; returns ``folder``.

    Entries are hard links, else symbolic links, else copies. Raises FetchError when a wheel is not in ``store``.
    """
    wheels = list(wheels)
    if absent := missing(wheels, store):
        raise FetchError(
            f"not in the wheelhouse: {len(absent)} of {len(wheels)} wheels",
            found=", ".join(wheel.file for wheel in absent[:5]),
            fix="run `invoke fetch`",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            source, entry = find(wheel, store).absolute(), folder / wheel.file
            if entry.exists() and entry.samefile(source):
                continue
            temporary = folder / f".{wheel.file}.{os.getpid()}"
            temporary.unlink(missing_ok=True)
            for make in (os.link, os.symlink, shutil.copyfile):
                try:
                    make(source, temporary)
                    break
                except OSError:
                    if make is shutil.copyfile:
                        temporary.unlink(missing_ok=True)
                        raise
            temporary.replace(entry)
    except OSError as error:
        raise _disk_error(error, folder) from error
    return folder


def _bring(
    wheels: list[Wheel],
    sources: Sources,
    pinned: Mapping[str, str | None],
    store: Path,
    offline: bool,
    crew: Crew,
    progress: Progress,
) -> Fetched:
    corrupt = _remove_corrupt(wheels, store, crew, progress)
    todo = missing(wheels, store)
    absent = set(todo)
    kept = [wheel for wheel in wheels if wheel not in absent]
    if not todo:
        return Fetched(reused=len(kept), reused_bytes=_bytes(kept), corrupt=corrupt)

    bound = bind(todo, pinned, sources)
    with _connected(sources, crew) as client:
        links = locate(todo, sources, bound, client=client, crew=crew, offline=offline, say=progress.say)
        (store / "partial").mkdir(parents=True, exist_ok=True)
        local = [wheel for wheel, link in links.items() if link.is_file]
        linked = {wheel for wheel in local if _hard_link(links[wheel].file_path, find(wheel, store))}
        todo = sorted(set(links) - linked, key=lambda one: (one not in bound, -one.size))  # the longest first
        transfers = {one: _transfer(one, links[one].url_without_fragment, store) for one in todo}
        received = _download_all(transfers, store, client, crew, progress)
    remote = [wheel for wheel, link in links.items() if not link.is_file]
    done = Fetched(
        reused=len(kept),
        reused_bytes=_bytes(kept),
        linked=len(local),
        linked_bytes=_bytes(local),
        downloaded=len(remote),
        downloaded_bytes=_bytes(remote),
        received=sum(received[wheel] for wheel in remote),
        corrupt=corrupt,
    )
    progress.say(f"fetch: {done}")
    return done


@contextlib.contextmanager
def _connected(sources: Sources, crew: Crew) -> Iterator[PyPIClient]:
    """A client, closed at the end unless a thread still hangs in a connection: the end of the process does it then."""
    client = open_client(sources)
    try:
        yield client
    finally:
        if not crew.is_working():
            client.close()


def _remove_corrupt(wheels: list[Wheel], store: Path, crew: Crew, progress: Progress) -> tuple[str, ...]:
    """Hash what is there; say and remove what is not what it should be. Returns the names of those files."""

    def check(wheel: Wheel) -> str | None:
        path = find(wheel, store)
        with path.open("rb") as file:
            found = digest(file, crew.check)
            if found == wheel.sha256:
                return None
            # Another process may have put a good file in its place since we opened this one.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    path.unlink()
        progress.say(f"fetch: {path} is corrupt (sha256 {found}, the lock says {wheel.sha256}): removed, fetched again")
        return wheel.file

    present = [wheel for wheel in wheels if find(wheel, store).exists()]
    return tuple(file for file in crew.each(check, present).values() if file)


def _transfer(wheel: Wheel, url: str, store: Path) -> Transfer:
    partial = store / "partial" / wheel.sha256
    left = 0
    with contextlib.suppress(FileNotFoundError):
        left = partial.stat().st_size
    return Transfer(wheel.file, wheel.sha256, wheel.size, url, partial, find(wheel, store), left)


def _download_all(
    transfers: Mapping[Wheel, Transfer], store: Path, client: PyPIClient, crew: Crew, progress: Progress
) -> dict[Wheel, int]:
    """The bytes received for each wheel. Raises FetchError when there is too little room, before the first byte."""
    needed = sum(max(0, one.size - one.left) for one in transfers.values())
    try:
        free = shutil.disk_usage(store).free
        if free < needed:
            raise FetchError(
                f"not enough room in {store}",
                found=f"{megabytes(free)} free, {megabytes(needed)} needed",
                fix="free some space, or set LABRIG_CACHE to a folder on a larger disk",
            )
        if transfers:
            progress.start(_bytes(transfers), done=sum(one.left for one in transfers.values()))
        return crew.each(lambda one: download(transfers[one], client, crew, progress), list(transfers))
    except OSError as error:
        raise _disk_error(error, store, needed) from error


def _bytes(wheels: Iterable[Wheel]) -> int:
    return sum(wheel.size for wheel in wheels)


def _hard_link(source: Path, entry: Path) -> bool:
    """Whether ``entry`` is now the same file as ``source``; False where links cannot be made (another disk, rights)."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), entry)  # resolved: link(2) would link a symbolic link itself
    except FileExistsError:
        # Another process brought it, or a file of a wrong size lies there and has to be replaced.
        return entry.samefile(source)
    except OSError:
        return False
    return True


def _disk_error(error: OSError, folder: Path, needed: int = 0) -> FetchError:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    with contextlib.suppress(OSError):
        free = megabytes(shutil.disk_usage(there).free)
        where = error.filename or folder
        return FetchError(
            f"the wheelhouse cannot be used: {where}",
            found=f"{error.strerror or error}; {free} free, {megabytes(needed)} needed in {folder}",
            fix="make room or make it writable, or set LABRIG_CACHE to another folder",
        )
    return FetchError(f"the wheelhouse cannot be used: {folder}", found=str(error), fix="set LABRIG_CACHE")
