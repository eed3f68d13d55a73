"""A student of a hub, over HTTP as a browser does it: cookies, the form's `_xsrf`, redirects, progress, a kernel."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Any

from bench import kernel

FIELD = re.compile(r'name="_xsrf"\s+value="([^"]+)"')


@dataclass(frozen=True)
class Student:
    """``address`` is the hub's, without a slash at its end."""

    address: str
    name: str
    jar: CookieJar

    @property
    def server(self) -> str:
        """The address of the student's own server, behind the proxy."""
        return f"{self.address}/user/{urllib.parse.quote(self.name)}"


def log_in(address: str, name: str, password: str) -> Student:
    """Fill in the login form. Raises RuntimeError where the hub does not let the student in."""
    student = Student(address.rstrip("/"), name, CookieJar())
    page, _ = _fetch(student, f"{student.address}/hub/login")
    form = {"_xsrf": _match(FIELD, page, "the login form"), "username": name, "password": password}
    page, place = _fetch(student, f"{student.address}/hub/login?next=%2Fhub%2Fhome", form)
    if "/hub/login" in place:
        raise RuntimeError(f"{name} was not let in: {place}")
    return student


def spawn(student: Student, options: Mapping[str, str] | None = None) -> None:
    """Ask for a server and follow its progress until it is ready; ``options`` is what the form of images is given,
    where the hub has one."""
    page, place = _fetch(student, f"{student.address}/hub/spawn")
    if options and urllib.parse.urlsplit(place).path == "/hub/spawn":
        _fetch(student, place, {"_xsrf": _match(FIELD, page, "the form of images"), **options})
    follow(student)
    _fetch(student, f"{student.server}/lab")  # where the browser goes next: OAuth's redirects, and its cookies


def follow(student: Student) -> None:
    """Read the events of a spawn, one line of JSON each, until it is ready. Raises RuntimeError where it failed."""
    query = urllib.parse.urlencode({"_xsrf": _cookie(student, "/hub/")})
    url = f"{student.address}/hub/api/users/{urllib.parse.quote(student.name)}/server/progress?{query}"
    with contextlib.closing(_open(student, url)) as events:
        for line in events:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if event.get("failed"):
                    raise RuntimeError(f"the server of {student.name} failed: {event.get('message')}")
                if event.get("ready"):
                    return
    raise RuntimeError(f"the server of {student.name} said nothing more")


def execute(student: Student, code: str) -> str:
    """Run code in a new kernel of the student's server; gives what it printed."""
    with session(student) as connection:
        return kernel.converse(connection, code)


@contextmanager
def session(student: Student, folder: str = "") -> Iterator[Any]:
    """A new kernel's websocket, over the proxy; the kernel works in a folder of the server, and ends with this."""
    import websocket

    number = api(student, "POST", "/api/kernels", {"name": "python3", "path": folder})["id"]
    place = urllib.parse.urlsplit(student.server)
    scheme = "wss" if place.scheme == "https" else "ws"
    cookies = "; ".join(f"{one.name}={one.value}" for one in _sent(student, f"{place.path}/"))
    query = urllib.parse.urlencode({"_xsrf": _cookie(student, f"{place.path}/")})
    connection = websocket.create_connection(
        f"{scheme}://{place.netloc}{place.path}/api/kernels/{number}/channels?{query}", cookie=cookies,
        timeout=kernel.PATIENCE, http_no_proxy=["127.0.0.1"], origin=student.address,
    )  # fmt: skip
    try:
        with contextlib.closing(connection):
            yield connection
    finally:
        _end(student, number)


def _end(student: Student, number: str) -> None:
    """End a kernel; one that has just died is started again by Jupyter Server, and cannot be ended in between."""
    deadline = time.monotonic() + kernel.PATIENCE
    while any(one["id"] == number for one in api(student, "GET", "/api/kernels")):
        try:
            api(student, "DELETE", f"/api/kernels/{number}")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def api(student: Student, method: str, path: str, body: Any = None) -> Any:
    """One request to the student's Jupyter Server; gives the document that it answers."""
    token = _cookie(student, urllib.parse.urlsplit(student.server).path + "/")
    request = urllib.request.Request(  # noqa: S310 - the address of our own hub
        student.server + path, json.dumps(body).encode() if body is not None else None,
        {"X-XSRFToken": token, "Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    with contextlib.closing(_open(student, request)) as answer:
        said = answer.read()
    return json.loads(said) if said else None


def stop(student: Student) -> None:
    """Stop the server, as the button on the hub's page does, and wait until it has ended."""
    user = f"{student.address}/hub/api/users/{urllib.parse.quote(student.name)}"
    headers = {"X-XSRFToken": _cookie(student, "/hub/"), "Referer": f"{student.address}/hub/home"}

    def ask(method: str, url: str) -> bytes:
        request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 - our own hub
        with contextlib.closing(_open(student, request)) as answer:
            return bytes(answer.read())

    ask("DELETE", f"{user}/server")
    deadline = time.monotonic() + kernel.PATIENCE
    while json.loads(ask("GET", user))["pending"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server of {student.name} does not stop")
        time.sleep(0.1)


def _fetch(student: Student, url: str, form: dict[str, str] | None = None) -> tuple[str, str]:
    """A page, and where it was found after redirects."""
    data = urllib.parse.urlencode(form).encode() if form else None
    with contextlib.closing(_open(student, urllib.request.Request(url, data))) as answer:  # noqa: S310
        return answer.read().decode(errors="replace"), answer.geturl()


def _open(student: Student, request: Any) -> Any:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(student.jar)
    )
    try:
        return opener.open(request, timeout=kernel.PATIENCE)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")[:300]
        raise RuntimeError(f"{error.url}: {error.code} {said}") from None


def _sent(student: Student, path: str) -> list[Any]:
    """The cookies that a browser sends to a path, the longest path of their own first (RFC 6265, 5.4)."""
    return sorted((one for one in student.jar if path.startswith(one.path)), key=lambda one: -len(one.path))


def _cookie(student: Student, path: str) -> str:
    found = next((one.value for one in _sent(student, path) if one.name == "_xsrf"), None)
    if found is None:
        raise RuntimeError(f"there is no _xsrf cookie for {path}")
    return str(found)


def _match(pattern: re.Pattern[str], page: str, what: str) -> str:
    if not (found := pattern.search(page)):
        raise RuntimeError(f"{what} has no {pattern.pattern}: {page[:300]}")
    return found[1]
