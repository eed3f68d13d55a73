"""One file, a wheel or a layer, into its partial file, and from there, verified, to its place.

``Transfer`` says which one, from where, to where; ``download`` does it. After Ctrl-C or ``kill -9`` the next run
asks for the rest (HTTP ranges). The known SHA-256 says whether the rest fits, which is stronger than If-Range and lets
another mirror finish the file: when the digest is wrong after a resume, the file is fetched once from its beginning.
``flock`` on the partial file keeps two processes from writing the same file.

``is_whole`` tells what needs no download; ``size_asker`` learns a file's size without one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from labrig import network
from labrig.crew import Crew
from labrig.errors import FetchError
from labrig.files import CHUNK
from labrig.indexes import Sources, open_client, reason, redact
from labrig.progress import Progress

if TYPE_CHECKING:
    from httpx2 import Client

TRIES = 5  # in a row that bring no byte
LONGEST_WAIT = 60  # seconds that a server may ask for; it is tried sooner where it asks for more


@dataclass(frozen=True)
class Transfer:
    """A file to bring from ``url`` to ``final`` by way of ``partial``, where ``left`` bytes of it lay at the start.

    ``said_by`` is what knows its digest and its ``size`` in bytes.
    """

    file: str
    sha256: str
    size: int
    url: str
    partial: Path
    final: Path
    left: int
    said_by: str = "the lock"


class _Again(Exception):
    """A transfer that may succeed when tried again, ``after`` so many seconds where the server says it."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


def is_whole(path: Path, size: int) -> bool:
    """Whether ``path`` is a file of that size."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@contextlib.contextmanager
def size_asker(sources: Sources) -> Iterator[Callable[[str], int]]:
    """A function that asks for the bytes of the file at a URL; one client, made for the first question, serves all.

    The function raises FetchError when the size cannot be learnt.
    """
    with contextlib.ExitStack() as stack:
        client = functools.cache(lambda: stack.enter_context(open_client(sources)))
        yield lambda url: _ask_size(url, client())


def _ask_size(url: str, client: Client) -> int:
    import httpx2

    try:
        answer = client.head(url, headers={"Accept-Encoding": "identity"})
        found = f"HTTP {answer.status_code} {answer.reason_phrase}"
        size = answer.headers.get("Content-Length", "")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        found, size = reason(error), ""
    if not found.startswith("HTTP 200") or not size.isdigit():
        raise FetchError(
            f"the size of {redact(url)} cannot be learnt",
            found=found,
            fix=network.cure(found, "check the index settings (`pip config list`)"),
        )
    return int(size)


def download(transfer: Transfer, client: Client, crew: Crew, progress: Progress) -> int:
    """Bring one file to its place, unless another process does; returns the bytes received.

    Raises FetchError (it cannot be had, or has a wrong digest), OSError (the disk) and Stopped.
    """
    with _claimed(transfer, crew, progress) as file:
        if file is None:
            progress.advance(transfer.size - transfer.left)
            return 0
        partial = _Partial(file, progress)
        partial.read(crew)
        progress.advance(partial.length - transfer.left)  # another process may have gone on
        earlier = partial.length > 0  # bytes that nothing vouches for
        if partial.length > transfer.size:
            partial.restart()
        received = 0
        while True:
            received += _complete(transfer, partial, client, crew, progress)
            if partial.sha256 == transfer.sha256 and partial.length == transfer.size:
                break
            if not earlier:
                transfer.partial.unlink()
                longer = partial.length > transfer.size  # what followed was not read
                raise FetchError(
                    f"{transfer.file} is not what {transfer.said_by} says",
                    found=f"sha256 {partial.sha256} ({'the first ' * longer}{partial.length} bytes) from "
                    f"{redact(transfer.url)}; expected: sha256 {transfer.sha256} ({transfer.size} bytes)",
                    fix="nothing was kept; if the source is right and the lock is not, run `invoke lock --upgrade`",
                )
            progress.say(f"fetch: what was left of {transfer.file} does not fit: fetched from its beginning")
            earlier = False
            partial.restart()
        transfer.final.parent.mkdir(parents=True, exist_ok=True)
        transfer.partial.replace(transfer.final)
    return received


@contextlib.contextmanager
def _claimed(transfer: Transfer, crew: Crew, progress: Progress) -> Iterator[BinaryIO | None]:
    """The partial file, for this process alone; None when another process has finished it meanwhile."""
    path = transfer.partial
    told = False
    while True:
        with path.open("a+b", buffering=0) as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        progress.say(f"fetch: waiting for another process that fetches {transfer.file}")
                        told = True
                    crew.wait(0.1)
            if is_whole(transfer.final, transfer.size):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                        path.unlink()  # made by this very open
                yield None
                return
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    yield file
                    return
        # The file was moved or removed by its former owner: take the new one.


def _complete(transfer: Transfer, partial: _Partial, client: Client, crew: Crew, progress: Progress) -> int:
    """Receive what is missing, with repetitions; returns the bytes received."""
    import httpx2

    received = failures = 0
    while partial.length < transfer.size:
        before = partial.received
        try:
            _receive(transfer, partial, client, crew)
            received += partial.received - before
            break  # the server says that this is all
        except (_Again, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            received += partial.received - before
            failures = 1 if partial.received > before else failures + 1
            tries = TRIES
            if isinstance(error, httpx2.ConnectError):  # refused, unresolvable, untrusted: it would be so again
                tries = 1
            elif isinstance(error, httpx2.TimeoutException):  # people wait as well
                tries = 2
            if failures >= tries:
                why = str(error) if isinstance(error, _Again) else reason(error)
                raise FetchError(
                    f"{transfer.file} cannot be downloaded",
                    found=f"{redact(transfer.url)}: {why}; {partial.length} of {transfer.size} bytes are here",
                    fix=network.cure(why, "run it again: it goes on where it stopped"),
                ) from error
            if isinstance(error, _Again) and error.after:
                progress.say(f"{transfer.file}: the server asks to wait {error.after:.0f} s")
                crew.wait(error.after)
                continue
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchError(
                f"{transfer.file} cannot be downloaded",
                found=f"{redact(transfer.url)}: {reason(error)}",
                fix=network.cure(reason(error), "check the index and proxy settings (`pip config list`)"),
            ) from error
        crew.back_off(failures)
    return received


def _receive(transfer: Transfer, partial: _Partial, client: Client, crew: Crew) -> None:
    """One request for the rest of the file. Raises _Again when the server may do better next time."""
    headers = {"Accept-Encoding": "identity"}
    if partial.length:
        headers["Range"] = f"bytes={partial.length}-"
    with client.stream("GET", transfer.url, headers=headers) as response:
        status = response.status_code
        if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {partial.length}-"):
            pass
        elif status == 200:
            partial.restart()  # a server without ranges sends everything
        elif partial.length and status in (206, 416):
            partial.restart()
            raise _Again(f"HTTP {status} for a range")
        elif status >= 500 or status in (408, 429):
            raise _Again(f"HTTP {status} {response.reason_phrase}", _asked_to_wait(response.headers))
        else:
            raise FetchError(
                f"{transfer.file} cannot be downloaded",
                found=f"{redact(transfer.url)}: HTTP {status} {response.reason_phrase}",
                fix="check the index, its credentials and the proxy (`pip config list`)",
            )
        for chunk in response.iter_bytes():
            crew.check()
            partial.append(chunk)
            if partial.length > transfer.size:
                return
        if partial.length < transfer.size and "Content-Length" not in response.headers:
            raise _Again("the connection was closed early")


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks for (RFC 9110, section 10.2.3), where that is no longer than people wait, else 0."""
    said = headers.get("Retry-After", "")
    return float(said) if said.isdigit() and int(said) <= LONGEST_WAIT else 0.0


class _Partial:
    """An unfinished file, claimed: its length, the digest of what it holds, and the bytes appended by this run."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self.file, self.progress = file, progress
        self.length = self.received = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, crew: Crew) -> None:
        """Take what an earlier run left into account."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK):
            crew.check()
            self._count(chunk)

    def append(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:  # unbuffered: a full disk shows here and not at close
            rest = rest[self.file.write(rest) :]
        self.received += len(chunk)
        self._count(chunk)
        self.progress.advance(len(chunk))

    def restart(self) -> None:
        self.file.truncate(0)
        self.progress.advance(-self.length)
        self.length = 0
        self._digest = hashlib.sha256()

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.length += len(chunk)
