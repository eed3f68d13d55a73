"""The wheelhouse: every locked wheel once, content-addressed by SHA-256, shared by all targets.

``<store>/<first two digits>/<sha256>/<file>`` holds only verified wheels: a file gets there by a rename after its
digest was checked. ``<store>/partial/<sha256>`` holds what is unfinished; after Ctrl-C or ``kill -9`` the next run
asks for the rest (HTTP ranges). The lock's SHA-256 says whether the rest fits, which is stronger than If-Range and lets
another mirror finish the file: when the digest is wrong after a resume, the file is fetched once from its beginning.
``flock`` on the partial file keeps two processes from writing the same wheel.

A wheel is looked for in the find-links places first, then on the index that its row names, or on the extra indexes and
the default one. Whatever is found has to have the locked digest, so no other build is ever taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import posixpath
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from labrig.errors import FetchError, Interrupted
from labrig.indexes import Sources, as_url, local_path, open_client, redact
from labrig.lock import Wheel
from labrig.progress import Progress, megabytes

if TYPE_CHECKING:
    from unearth.collector import IndexPage
    from unearth.fetchers import Fetcher, PyPIClient
    from unearth.link import Link

LOOKUP_TRIES = 3  # of an index page
DOWNLOAD_TRIES = 5  # in a row that bring no byte
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
LONGEST_WAIT = 8.0  # seconds
STOP_WITHIN = 0.5  # seconds that threads get to end; one that hangs in a socket is left behind (they are daemons)
_CHUNK = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    return [wheel for wheel in wheels if not _is_whole(find(wheel, store), wheel)]


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
    with progress or Progress("fetch") as shown:
        run = _Run(sources, pinned, store, offline, jobs, shown)
        try:
            return run.fetch(list(dict.fromkeys(wheels)))
        except KeyboardInterrupt:
            raise Interrupted(
                "the fetch was interrupted", fix="run the same command again: it goes on where it stopped"
            ) from None
        except OSError as error:
            raise _disk_error(error, store, run.needed) from error
        finally:
            run.close()


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
        raise _disk_error(error, folder, 0) from error
    return folder


def ask_size(url: str, sources: Sources) -> int:
    """Bytes of the file at ``url``, asked with a HEAD request. Raises FetchError when that cannot be learnt."""
    import httpx2

    with open_client(sources) as client:
        try:
            answer = client.head(url, headers={"Accept-Encoding": "identity"})
            found = f"HTTP {answer.status_code} {answer.reason_phrase}"
            size = answer.headers.get("Content-Length", "")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            found, size = _reason(error), ""
    if not found.startswith("HTTP 200") or not size.isdigit():
        raise FetchError(
            f"the size of {redact(url)} cannot be learnt",
            found=found,
            fix="check the index settings (`pip config list`)",
        )
    return int(size)


@dataclass(frozen=True, repr=False)
class _Place:
    """One place to look in. ``name`` is that of a named index."""

    kind: str  # "find-links" or "index"
    url: str
    name: str = ""

    def __str__(self) -> str:
        return f"index {self.name} ({redact(self.url)})" if self.name else f"{self.kind} {redact(self.url)}"


class _Unreachable(Exception):
    """A place that cannot be searched, and why."""


class _Again(Exception):
    """A transfer that may succeed when tried again."""


class _Stopped(Exception):
    """The run ends; this thread has to end as well."""


class _Run:
    """One fetch: what its threads share."""

    def __init__(
        self,
        sources: Sources,
        pinned: Mapping[str, str | None],
        store: Path,
        offline: bool,
        jobs: int,
        progress: Progress,
    ) -> None:
        self.sources, self.store, self.offline, self.progress = sources, store, offline, progress
        self.pinned = {_normal(name): index for name, index in pinned.items()}
        self.jobs = max(1, jobs)
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.needed = 0  # bytes still to be written
        self._client: PyPIClient | None = None  # made when something is missing
        self._pages: dict[str, list[Link]] = {}  # of find-links places
        self._down: dict[str, str] = {}  # place -> why it cannot be searched
        self._left: dict[Wheel, int] = {}  # bytes that an earlier run left of a wheel
        self._told: set[str] = set()

    def fetch(self, wheels: list[Wheel]) -> Fetched:
        corrupt = self._remove_corrupt([wheel for wheel in wheels if find(wheel, self.store).exists()])
        todo = missing(wheels, self.store)
        absent = set(todo)
        kept = [wheel for wheel in wheels if wheel not in absent]
        if not todo:
            return Fetched(reused=len(kept), reused_bytes=_bytes(kept), corrupt=corrupt)

        logging.getLogger("unearth").setLevel(logging.CRITICAL)  # we say ourselves what it would warn of
        self._client = open_client(self.sources)
        links: dict[Wheel, Link] = {}
        # Those that an index is named for first: it is their index that tends to be out of reach.
        for group in ([w for w in todo if self._index_of(w)], [w for w in todo if not self._index_of(w)]):
            found = self._each(self._find, group)
            if lost := [(wheel, reasons) for wheel, (link, reasons) in found.items() if link is None]:
                raise self._cannot_be_had(lost)
            links |= {wheel: link for wheel, (link, _) in found.items() if link is not None}

        (self.store / "partial").mkdir(parents=True, exist_ok=True)
        local = {wheel: link for wheel, link in links.items() if link.is_file}
        unlinked = [wheel for wheel, link in local.items() if not _hard_link(link.file_path, find(wheel, self.store))]
        transfers = [wheel for wheel in links if wheel not in local or wheel in unlinked]
        transfers.sort(key=lambda wheel: (not self._index_of(wheel), -wheel.size))  # the longest first
        for wheel in transfers:
            with contextlib.suppress(FileNotFoundError):
                self._left[wheel] = self._partial(wheel).stat().st_size
        self._check_space(transfers)
        if transfers:
            self.progress.start(_bytes(transfers), done=sum(self._left.values()))
        received = self._each(lambda wheel: self._transfer(wheel, links[wheel]), transfers)
        remote = [wheel for wheel in links if wheel not in local]
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
        self.progress.say(f"fetch: {done}")
        return done

    def close(self) -> None:
        """Close connections, unless a thread still hangs in one: the end of the process does it then."""
        if self._client is not None and not any(thread.is_alive() for thread in self.threads):
            self._client.close()

    @property
    def client(self) -> PyPIClient:
        assert self._client is not None  # noqa: S101  # fetch() made it
        return self._client

    def _index_of(self, wheel: Wheel) -> str | None:
        """The name of the index in force that ``wheel`` must come from."""
        name = self.pinned.get(_normal(wheel.name))
        return name if name and self.sources.named.get(name) else None

    def _remove_corrupt(self, present: list[Wheel]) -> tuple[str, ...]:
        """Hash what is there; say and remove what is not what it should be."""

        def check(wheel: Wheel) -> str | None:
            path = find(wheel, self.store)
            with path.open("rb") as file:
                found = self._digest(file)
                if found == wheel.sha256:
                    return None
                # Another process may have put a good file in its place since we opened this one.
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                        path.unlink()
            self.progress.say(
                f"fetch: {path} is corrupt (sha256 {found}, the lock says {wheel.sha256}): removed, fetched again"
            )
            return wheel.file

        return tuple(file for file in self._each(check, present).values() if file)

    # --- looking for a wheel ------------------------------------------------------------------------------------

    def _places(self, wheel: Wheel) -> list[_Place]:
        places = [_Place("find-links", link) for link in self.sources.find_links]
        if name := self._index_of(wheel):
            places.append(_Place("index", self.sources.named[name] or "", name))
        else:
            default = [self.sources.default] if self.sources.default else []
            places += [_Place("index", url) for url in (*self.sources.extra, *default)]
        if self.offline:
            places = [place for place in places if local_path(place.url) is not None]
        return places

    def _find(self, wheel: Wheel) -> tuple[Link | None, list[str]]:
        """The first link to the very file that is locked; else a reason for each place."""
        from unearth.collector import LinkCollectError

        reasons = []
        unreachable = []
        for place in self._places(wheel):
            try:
                links = self._links(place, wheel)
            except LinkCollectError as error:
                # One page refused says nothing about the others: object stores answer 403 for what is absent.
                reasons.append(f"{place}: {redact(str(error))}")
                continue
            except _Unreachable as error:
                reasons.append(f"{place}: {error}")
                unreachable.append((place, str(error)))
                continue
            stated = [(link, (link.hash_option or {}).get("sha256", [""])[0]) for link in links]
            offered = [(link, sha) for link, sha in stated if sha == wheel.sha256 or link.filename == wheel.file]
            for link, sha in offered:
                if reason := self._unfit(wheel, link, sha):
                    reasons.append(f"{place}: {reason}")
                    continue
                for passed, why in unreachable:
                    self._tell_once(f"fetch: {passed} {why}; going on without it")
                return link, reasons
            if not offered:
                reasons.append(f"{place}: not there")
        return None, reasons or ["no place to look in"]

    def _unfit(self, wheel: Wheel, link: Link, sha: str) -> str | None:
        """Why ``link`` is not the locked wheel, as far as one can tell without a download."""
        if sha and sha != wheel.sha256:
            return f"has {wheel.file} with sha256 {sha}, the lock says {wheel.sha256}"
        if not link.is_file:
            return f"leads to the network ({redact(link.url_without_fragment)})" if self.offline else None
        try:
            with link.file_path.open("rb") as file:
                found = self._digest(file)
        except OSError as error:
            return f"{wheel.file} cannot be read: {error.strerror or error}"
        return None if found == wheel.sha256 else f"has {wheel.file} with sha256 {found}, the lock says {wheel.sha256}"

    def _links(self, place: _Place, wheel: Wheel) -> list[Link]:
        if place.url in self._down:
            raise _Unreachable(self._down[place.url])
        try:
            if place.kind == "index":
                return self._index_links(place, wheel)
            if place.url not in self._pages:  # two threads may both read it, to the same end
                self._pages[place.url] = self._find_links(place)
            return self._pages[place.url]
        except _Unreachable as error:
            self._down[place.url] = str(error)
            raise

    def _index_links(self, place: _Place, wheel: Wheel) -> list[Link]:
        from unearth.collector import LinkCollectError
        from unearth.link import Link

        url = posixpath.join(place.url, _normal(wheel.name)) + "/"
        if (folder := local_path(place.url)) is not None:
            if not folder.is_dir():
                raise _Unreachable("no such folder")
            if not (folder / _normal(wheel.name) / "index.html").is_file():
                return []
            url += "index.html"
        try:
            return self._page_links(Link(url))
        except LinkCollectError as error:
            if "(404)" in str(error):
                return []
            raise

    def _find_links(self, place: _Place) -> list[Link]:
        from unearth.collector import LinkCollectError, collect_links_from_location
        from unearth.link import Link

        link = Link(as_url(place.url))
        if (path := local_path(place.url)) is not None:
            if not path.exists():
                raise _Unreachable("no such folder")
            try:
                return list(collect_links_from_location(cast("Fetcher", self.client), link, expand=True))
            except OSError as error:
                raise _Unreachable(error.strerror or str(error)) from error
        if link.is_wheel:
            return [link]
        try:
            return self._page_links(link)
        except LinkCollectError as error:
            raise _Unreachable(redact(str(error))) from error

    def _page_links(self, link: Link) -> list[Link]:
        """The links of a page, HTML or JSON. Raises LinkCollectError for 4xx, _Unreachable for the rest."""
        from unearth.collector import parse_html_page, parse_json_response

        page = self._page(link)
        json = page.content_type.lower().startswith("application/vnd.pypi.simple.v1+json")
        try:
            return list(parse_json_response(page) if json else parse_html_page(page))
        except (ValueError, AttributeError, TypeError) as error:
            raise _Unreachable(f"the page cannot be read: {redact(str(error))}") from error

    def _page(self, link: Link) -> IndexPage:
        import httpx2
        from unearth.collector import LinkCollectError, fetch_page

        for attempt in range(1, LOOKUP_TRIES + 1):
            self._check_stop()
            try:
                return fetch_page(cast("Fetcher", self.client), link)
            except LinkCollectError as error:
                if "Server Error" not in str(error):
                    raise
                reason, last = str(error), attempt == LOOKUP_TRIES
            except httpx2.ConnectError as error:  # refused, unresolvable, untrusted: the next try would end the same
                reason, last = f"cannot be reached: {error}", True
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                # One repetition of a wait for an answer, not more: people wait as well.
                reason, last = f"gives no answer: {_reason(error)}", attempt >= 2
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                reason, last = f"cannot be used: {_reason(error)}", True
            if last:
                raise _Unreachable(redact(reason))
            self._pause(attempt)
        raise AssertionError("unreachable")

    def _cannot_be_had(self, lost: list[tuple[Wheel, list[str]]]) -> FetchError:
        size = megabytes(_bytes(wheel for wheel, _ in lost))
        folder = "name a folder that holds it in PIP_FIND_LINKS or UV_FIND_LINKS"
        if self.offline:
            names = ", ".join(f"{wheel.name} {wheel.version} ({megabytes(wheel.size)})" for wheel, _ in lost)
            return FetchError(
                f"offline, and not in the wheelhouse nor in a folder: {len(lost)} of the wheels, {size}",
                found=f"missing: {names}; {'; '.join(lost[0][1])}",
                fix=f"fetch once without --offline, or {folder}",
            )
        wheel, reasons = lost[0]
        what = f"{wheel.name} {wheel.version} ({wheel.file}, sha256 {wheel.sha256}) cannot be had"
        if len(lost) > 1:
            others = ", ".join(f"{other.name} {other.version}" for other, _ in lost[1:])
            what += f", nor can {others}: {size} in all"
        if name := self._index_of(wheel):
            variable = "LABRIG_INDEX_" + name.upper().replace("-", "_")
            fix = f"{folder}, or a mirror by --index {name}=URL or {variable}=URL; no other build is taken"
        else:
            fix = f"{folder}, or an index that has it (UV_DEFAULT_INDEX or pip's settings, see `pip config list`)"
        return FetchError(what, found="; ".join(reasons), fix=fix)

    # --- transfer -----------------------------------------------------------------------------------------------

    def _check_space(self, wheels: list[Wheel]) -> None:
        self.needed = sum(max(0, wheel.size - self._left.get(wheel, 0)) for wheel in wheels)
        free = shutil.disk_usage(self.store).free
        if free < self.needed:
            raise FetchError(
                f"not enough room in {self.store}",
                found=f"{megabytes(free)} free, {megabytes(self.needed)} needed",
                fix="free some space, or set LABRIG_CACHE to a folder on a larger disk",
            )

    def _partial(self, wheel: Wheel) -> Path:
        return self.store / "partial" / wheel.sha256

    def _transfer(self, wheel: Wheel, link: Link) -> int:
        """Bring one wheel into the store; returns the bytes received."""
        path, final = self._partial(wheel), find(wheel, self.store)
        with self._claimed(path, wheel) as file:
            if file is None:
                self.progress.advance(wheel.size - self._left.get(wheel, 0))
                return 0
            partial = _Partial(file, self.progress)
            partial.read(self._check_stop)
            self.progress.advance(partial.length - self._left.get(wheel, 0))  # another process may have gone on
            earlier = partial.length > 0  # bytes that nothing vouches for
            if partial.length > wheel.size:
                partial.restart()
            received = 0
            while True:
                received += self._complete(wheel, link, partial)
                if partial.sha256 == wheel.sha256 and partial.length == wheel.size:
                    break
                if not earlier:
                    path.unlink()
                    raise FetchError(
                        f"{wheel.file} is not what the lock says",
                        found=f"sha256 {partial.sha256} ({partial.length} bytes) from "
                        f"{redact(link.url_without_fragment)}; locked: sha256 {wheel.sha256} ({wheel.size} bytes)",
                        fix="nothing was kept; if the source is right and the lock is not, run `invoke lock --upgrade`",
                    )
                self.progress.say(f"fetch: what was left of {wheel.file} does not fit: fetched from its beginning")
                earlier = False
                partial.restart()
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
        return received

    def _complete(self, wheel: Wheel, link: Link, partial: _Partial) -> int:
        """Receive what is missing, with repetitions; returns the bytes received."""
        import httpx2

        received = failures = 0
        while partial.length < wheel.size:
            before = partial.received
            try:
                self._receive(wheel, link, partial)
                received += partial.received - before
                break  # the server says that this is all
            except (_Again, httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                received += partial.received - before
                failures = 1 if partial.received > before else failures + 1
                tries = DOWNLOAD_TRIES
                if isinstance(error, httpx2.ConnectError):  # refused, unresolvable, untrusted: it would be so again
                    tries = 1
                elif isinstance(error, httpx2.TimeoutException):  # people wait as well
                    tries = 2
                if failures >= tries:
                    raise FetchError(
                        f"{wheel.file} cannot be downloaded",
                        found=f"{redact(link.url_without_fragment)}: {_reason(error)}; "
                        f"{partial.length} of {wheel.size} bytes are here",
                        fix="run it again: it goes on where it stopped",
                    ) from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise FetchError(
                    f"{wheel.file} cannot be downloaded",
                    found=f"{redact(link.url_without_fragment)}: {_reason(error)}",
                    fix="check the index and proxy settings (`pip config list`)",
                ) from error
            self._pause(failures)
        return received

    def _receive(self, wheel: Wheel, link: Link, partial: _Partial) -> None:
        """One request for the rest of the file. Raises _Again when the server may do better next time."""
        headers = {"Accept-Encoding": "identity"}
        if partial.length:
            headers["Range"] = f"bytes={partial.length}-"
        with self.client.stream("GET", link.url_without_fragment, headers=headers) as response:
            status = response.status_code
            if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {partial.length}-"):
                pass
            elif status == 200:
                partial.restart()  # a server without ranges sends everything
            elif partial.length and status in (206, 416):
                partial.restart()
                raise _Again(f"HTTP {status} for a range")
            elif status >= 500 or status in (408, 429):
                raise _Again(f"HTTP {status} {response.reason_phrase}")
            else:
                raise FetchError(
                    f"{wheel.file} cannot be downloaded",
                    found=f"{redact(link.url_without_fragment)}: HTTP {status} {response.reason_phrase}",
                    fix="check the index, its credentials and the proxy (`pip config list`)",
                )
            for chunk in response.iter_bytes():
                self._check_stop()
                partial.append(chunk)
                if partial.length > wheel.size:
                    return
            if partial.length < wheel.size and "Content-Length" not in response.headers:
                raise _Again("the connection was closed early")

    @contextlib.contextmanager
    def _claimed(self, path: Path, wheel: Wheel) -> Iterator[BinaryIO | None]:
        """The partial file, for this process alone; None when another process has finished the wheel meanwhile."""
        while True:
            with path.open("a+b", buffering=0) as file:
                while True:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        self._tell_once(f"fetch: waiting for another process that fetches {wheel.file}")
                        self.stop.wait(0.1)
                        self._check_stop()
                if _is_whole(find(wheel, self.store), wheel):
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

    # --- threads ------------------------------------------------------------------------------------------------

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> dict[Item, Result]:
        """``work`` for every item in threads. The first error, or Ctrl-C, stops the others and is raised.

        The threads are daemons: a pool's would be waited for at exit, for as long as one hangs in a socket.
        """
        todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Item, Result] | BaseException] = queue.SimpleQueue()
        for item in items:
            todo.put(item)

        def labour() -> None:
            while not self.stop.is_set():
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((item, work(item)))
                except BaseException as error:  # noqa: BLE001  # raised again in the main thread
                    done.put(error)
                    return

        threads = [threading.Thread(target=labour, daemon=True) for _ in range(min(self.jobs, len(items)))]
        self.threads += threads
        results: dict[Item, Result] = {}
        try:
            for thread in threads:
                thread.start()
            for _ in items:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                results[outcome[0]] = outcome[1]
            for thread in threads:
                thread.join()  # all work is done
        except BaseException:
            self.stop.set()
            deadline = time.monotonic() + STOP_WITHIN
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, deadline - time.monotonic()))
            raise
        return {item: results[item] for item in items}

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _Stopped

    def _pause(self, attempt: int) -> None:
        self.stop.wait(min(BACKOFF * 2 ** (attempt - 1), LONGEST_WAIT))
        self._check_stop()

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.progress.say(line)

    def _digest(self, file: BinaryIO) -> str:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            self._check_stop()
            digest.update(chunk)
        return digest.hexdigest()


class _Partial:
    """An unfinished file, claimed: its length, the digest of what it holds, and the bytes appended by this run."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self.file, self.progress = file, progress
        self.length = self.received = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, check_stop: Callable[[], None]) -> None:
        """Take what an earlier run left into account."""
        self.file.seek(0)
        while chunk := self.file.read(_CHUNK):
            check_stop()
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


def _is_whole(path: Path, wheel: Wheel) -> bool:
    try:
        return path.stat().st_size == wheel.size
    except OSError:
        return False


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


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _reason(error: Exception) -> str:
    """An error of the network in a few words, without credentials."""
    text = redact(str(error))
    return text if isinstance(error, _Again) else f"{type(error).__name__}{': ' if text else ''}{text}"


def _disk_error(error: OSError, folder: Path, needed: int) -> FetchError:
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
