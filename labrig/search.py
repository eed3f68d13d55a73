"""Where a locked wheel is.

``locate`` looks in the find-links places first, then on the index that the wheel is bound to, or on the extra indexes
and the default one. Whatever is found has to have the locked digest, so no other build is ever taken. ``bind`` says
which wheels are bound to an index; ``Place`` is one place to look in, ``Pages`` what the places list.
"""

from __future__ import annotations

import functools
import logging
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from packaging.utils import canonicalize_name

from labrig import network
from labrig.crew import Crew
from labrig.errors import FetchError
from labrig.files import digest
from labrig.indexes import Sources, as_url, local_path, reason, redact
from labrig.lock import Wheel
from labrig.progress import megabytes

if TYPE_CHECKING:
    from unearth.collector import IndexPage
    from unearth.fetchers import Fetcher, PyPIClient
    from unearth.link import Link

TRIES = 3  # of a page


@dataclass(frozen=True, repr=False)
class Place:
    """One place to look in. ``kind`` is "find-links" or "index", ``name`` that of a named index."""

    kind: str
    url: str
    name: str = ""

    def __str__(self) -> str:
        return f"index {self.name} ({redact(self.url)})" if self.name else f"{self.kind} {redact(self.url)}"


class Unreachable(Exception):
    """A place that cannot be searched, and why."""


def bind(wheels: Iterable[Wheel], pinned: Mapping[str, str | None], sources: Sources) -> dict[Wheel, str]:
    """The wheels that must come from a named index in force, each with that index's name.

    ``pinned`` maps package names to names of indexes; one that is switched off binds nothing.
    """
    indexes = {canonicalize_name(name): index for name, index in pinned.items() if index and sources.named.get(index)}
    names = {wheel: canonicalize_name(wheel.name) for wheel in wheels}
    return {wheel: indexes[name] for wheel, name in names.items() if name in indexes}


def locate(
    wheels: Sequence[Wheel],
    sources: Sources,
    bound: Mapping[Wheel, str],
    *,
    client: PyPIClient,
    crew: Crew,
    offline: bool,
    say: Callable[[str], None],
) -> dict[Wheel, Link]:
    """A link to the very file that is locked, for every wheel.

    The ``bound`` ones are looked for before anything else. ``offline``: in places on this machine only. ``say`` is
    told, once each, of places that could not be searched and were not needed.

    Raises FetchError: a wheel cannot be had, with a reason for each place.
    """
    logging.getLogger("unearth").setLevel(logging.CRITICAL)  # we say ourselves what it would warn of
    pages = Pages(client, crew)
    say_once = functools.cache(say)

    def look(wheel: Wheel) -> Link | list[str]:
        return _look(wheel, _places(sources, bound.get(wheel), offline), pages, crew, offline, say_once)

    links: dict[Wheel, Link] = {}
    # Those that an index is named for first: it is their index that tends to be out of reach.
    for group in ([w for w in wheels if w in bound], [w for w in wheels if w not in bound]):
        found = crew.each(look, group)
        if lost := {wheel: answer for wheel, answer in found.items() if isinstance(answer, list)}:
            raise _cannot_be_had(lost, bound, offline)
        links |= {wheel: answer for wheel, answer in found.items() if not isinstance(answer, list)}
    return links


def _places(sources: Sources, index: str | None, offline: bool) -> list[Place]:
    places = [Place("find-links", link) for link in sources.find_links]
    if index:
        places.append(Place("index", sources.named[index] or "", index))
    else:
        default = [sources.default] if sources.default else []
        places += [Place("index", url) for url in (*sources.extra, *default)]
    if offline:
        places = [place for place in places if local_path(place.url) is not None]
    return places


def _look(
    wheel: Wheel, places: list[Place], pages: Pages, crew: Crew, offline: bool, say: Callable[[str], None]
) -> Link | list[str]:
    """The first link to the very file that is locked; else a reason for each place."""
    from unearth.collector import LinkCollectError

    reasons = []
    unreachable = []
    for place in places:
        try:
            links = pages.links(place, wheel.name)
        except LinkCollectError as error:
            # One page refused says nothing about the others: object stores answer 403 for what is absent.
            reasons.append(f"{place}: {redact(str(error))}")
            continue
        except Unreachable as error:
            reasons.append(f"{place}: {error}")
            unreachable.append(f"{place} {error}")
            continue
        stated = [(link, (link.hash_option or {}).get("sha256", [""])[0]) for link in links]
        offered = [(link, sha) for link, sha in stated if sha == wheel.sha256 or link.filename == wheel.file]
        for link, sha in offered:
            if unfit := _unfit(wheel, link, sha, crew, offline):
                reasons.append(f"{place}: {unfit}")
                continue
            for passed in unreachable:
                say(f"fetch: {passed}; going on without it")
            return link
        if not offered:
            reasons.append(f"{place}: not there")
    return reasons or ["no place to look in"]


def _unfit(wheel: Wheel, link: Link, sha: str, crew: Crew, offline: bool) -> str | None:
    """Why ``link`` is not the locked wheel, as far as one can tell without a download."""
    if link.is_file and sha in ("", wheel.sha256):
        try:
            with link.file_path.open("rb") as file:
                sha = digest(file, crew.check)
        except OSError as error:
            return f"{wheel.file} cannot be read: {error.strerror or error}"
    if sha and sha != wheel.sha256:
        return f"has {wheel.file} with sha256 {sha}, the lock says {wheel.sha256}"
    if offline and not link.is_file:
        return f"leads to the network ({redact(link.url_without_fragment)})"
    return None


def _cannot_be_had(lost: Mapping[Wheel, list[str]], bound: Mapping[Wheel, str], offline: bool) -> FetchError:
    size = megabytes(sum(wheel.size for wheel in lost))
    folder = "name a folder that holds it in PIP_FIND_LINKS or UV_FIND_LINKS"
    wheel, *others = lost
    if offline:
        names = _few([f"{one.name} {one.version} ({megabytes(one.size)})" for one in lost])
        return FetchError(
            f"offline, and not in the wheelhouse nor in a folder: {len(lost)} of the wheels, {size}",
            found=f"missing: {names}; {'; '.join(lost[wheel])}",
            fix=f"fetch once without --offline, or {folder}",
        )
    what = f"{wheel.name} {wheel.version} ({wheel.file}, sha256 {wheel.sha256}) cannot be had"
    if others:
        what += f", nor can {_few([f'{other.name} {other.version}' for other in others])}: {size} in all"
    if name := bound.get(wheel):
        variable = "LABRIG_INDEX_" + name.upper().replace("-", "_")
        fix = f"{folder}, or a mirror by --index {name}=URL or {variable}=URL; no other build is taken"
    else:
        fix = f"{folder}, or an index that has it (UV_DEFAULT_INDEX or pip's settings, see `pip config list`)"
    found = "; ".join(lost[wheel])
    return FetchError(what, found=found, fix=network.cure(found, fix))


def _few(names: list[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Pages:
    """What places list, for several threads: a page of links is read once, a place out of reach is not asked again."""

    def __init__(self, client: PyPIClient, crew: Crew) -> None:
        self._client, self._crew = client, crew
        self._read: dict[str, list[Link]] = {}  # of find-links places
        self._down: dict[str, str] = {}  # place -> why it cannot be searched

    def links(self, place: Place, name: str) -> list[Link]:
        """The links that ``place`` has for a package, and perhaps others.

        Raises Unreachable (the place cannot be searched) and unearth's LinkCollectError (this page cannot be had).
        """
        if place.url in self._down:
            raise Unreachable(self._down[place.url])
        try:
            if place.kind == "index":
                return self._of_index(place, canonicalize_name(name))
            if place.url not in self._read:  # two threads may both read it, to the same end
                self._read[place.url] = self._of_find_links(place)
            return self._read[place.url]
        except Unreachable as error:
            self._down[place.url] = str(error)
            raise

    def _of_index(self, place: Place, name: str) -> list[Link]:
        from unearth.collector import LinkCollectError
        from unearth.link import Link

        url = posixpath.join(place.url, name) + "/"
        if (folder := local_path(place.url)) is not None:
            if not folder.is_dir():
                raise Unreachable("no such folder")
            if not (folder / name / "index.html").is_file():
                return []
            url += "index.html"
        try:
            return self._of_page(Link(url))
        except LinkCollectError as error:
            if "(404)" in str(error):
                return []
            raise

    def _of_find_links(self, place: Place) -> list[Link]:
        from unearth.collector import LinkCollectError, collect_links_from_location
        from unearth.link import Link

        link = Link(as_url(place.url))
        if (path := local_path(place.url)) is not None:
            if not path.exists():
                raise Unreachable("no such folder")
            try:
                return list(collect_links_from_location(cast("Fetcher", self._client), link, expand=True))
            except OSError as error:
                raise Unreachable(error.strerror or str(error)) from error
        if link.is_wheel:
            return [link]
        try:
            return self._of_page(link)
        except LinkCollectError as error:
            raise Unreachable(redact(str(error))) from error

    def _of_page(self, link: Link) -> list[Link]:
        """The links of a page, HTML or JSON. Raises LinkCollectError for 4xx, Unreachable for the rest."""
        from unearth.collector import parse_html_page, parse_json_response

        page = self._page(link)
        json = page.content_type.lower().startswith("application/vnd.pypi.simple.v1+json")
        try:
            return list(parse_json_response(page) if json else parse_html_page(page))
        except (ValueError, AttributeError, TypeError) as error:
            raise Unreachable(f"the page cannot be read: {redact(str(error))}") from error

    def _page(self, link: Link) -> IndexPage:
        import httpx2
        from unearth.collector import LinkCollectError, fetch_page

        for attempt in range(1, TRIES + 1):
            self._crew.check()
            try:
                return fetch_page(cast("Fetcher", self._client), link)
            except LinkCollectError as error:
                if "Server Error" not in str(error):
                    raise
                why, last = str(error), attempt == TRIES
            except httpx2.ConnectError as error:  # refused, unresolvable, untrusted: the next try would end the same
                why, last = f"cannot be reached: {error}", True
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                # One repetition of a wait for an answer, not more: people wait as well.
                why, last = f"gives no answer: {reason(error)}", attempt >= 2
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                why, last = f"cannot be used: {reason(error)}", True
            if last:
                raise Unreachable(redact(why))
            self._crew.back_off(attempt)
        raise AssertionError("unreachable")
