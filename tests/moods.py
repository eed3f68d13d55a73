"""A registry with moods: it stands between a client and Debian's docker-registry, and misbehaves as asked.

Every request goes to the real registry and back, unless a mood says otherwise.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import registries

PIECE = 1 << 16
# A mood sees a request, its number and its body, and says what becomes of it: None, the registry answers.
Mood = Callable[["Request"], "Answer | None"]


@dataclass(frozen=True)
class Answer:
    """What is said instead of the registry's answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    number: int
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Moody:
    """The address, what was asked, and the mood. ``cut``: of a blob so many bytes come, and the line is dead.
    ``flip``: a byte of each large blob is another one. ``gone``: nobody answers any more."""

    address: str
    asked: list[Request] = field(default_factory=list)
    mood: Mood = lambda _: None
    cut: int | None = None
    cut_upload: int | None = None
    flip: bool = False
    gone: bool = False
    sent: int = 0  # bytes of blobs that went out

    def count(self, method: str, part: str) -> int:
        """How many requests of that method had this in their path."""
        return sum(one.method == method and part in one.path for one in self.asked)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Moody]:
    """A registry that keeps its data in a folder, behind one that has moods."""
    with registries.serve(folder) as address:
        real = address.rpartition(":")[2]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with lock:
                    request = Request(len(moody.asked), self.command, self.path, dict(self.headers))
                    moody.asked.append(request)
                if moody.gone:
                    self.close_connection = True
                    return
                answer = moody.mood(request)
                if answer:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(answer.body)
                    return
                self.forward()

            def forward(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                if moody.cut_upload is not None and self.command == "PATCH" and size > moody.cut_upload:
                    self.rfile.read(moody.cut_upload)
                    moody.gone = self.close_connection = True
                    return
                body = self.rfile.read(size)
                # A header may come several times, such as Accept (RFC 9110, section 5.3).
                headers = {
                    name: ", ".join(self.headers.get_all(name, ())) for name in self.headers if name != "Connection"
                }
                upstream = http.client.HTTPConnection("127.0.0.1", int(real), timeout=60)
                try:
                    upstream.request(self.command, self.path, body, headers)
                    reply = upstream.getresponse()
                    self.send_response(reply.status)
                    for name, value in reply.getheaders():
                        if name not in ("Date", "Server", "Transfer-Encoding", "Connection"):
                            self.send_header(name, value)
                    self.end_headers()
                    is_blob = self.command == "GET" and "/blobs/" in self.path and reply.status in (200, 206)
                    self.copy(reply, is_blob=is_blob)
                finally:
                    upstream.close()

            def copy(self, reply: http.client.HTTPResponse, *, is_blob: bool) -> None:
                done = 0
                while piece := reply.read(PIECE):
                    if is_blob and moody.flip and not done and len(piece) == PIECE:
                        piece = piece[:-1] + bytes([piece[-1] ^ 1])
                    if is_blob and moody.cut is not None and done + len(piece) > moody.cut:
                        piece = piece[: moody.cut - done]
                        self.close_connection = True
                    self.wfile.write(piece)
                    done += len(piece)
                    if is_blob:
                        with lock:
                            moody.sent += len(piece)
                    if self.close_connection:
                        return

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # who asked has gone
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        lock = threading.Lock()
        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        moody = Moody(f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield moody
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Tokens:
    """A mood: every request needs a token, which is given for reading or for writing, to whom has the password, and
    serves ``uses`` requests (distribution-spec's token authentication, as Docker Hub and GitHub have it)."""

    def __init__(self, moody: Moody, credentials: str, uses: int = 10**9) -> None:
        self.moody, self.credentials, self.uses = moody, credentials, uses
        self.given: dict[str, tuple[set[str], int]] = {}
        self.lock = threading.Lock()

    def __call__(self, request: Request) -> Answer | None:
        """What a registry with tokens says first; None: the request may go on."""
        place = urllib.parse.urlsplit(request.path)
        if place.path == "/token":
            return self.give(request, urllib.parse.parse_qs(place.query))
        needs = {"pull"} if request.method in ("GET", "HEAD") else {"pull", "push"}
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.lock:
            rights, left = self.given.get(token, (set(), 0))
            if needs <= rights and left > 0:
                self.given[token] = (rights, left - 1)
                return None
        name = place.path.removeprefix("/v2/").partition("/blobs/")[0].partition("/manifests/")[0]
        says = f'Bearer realm="http://{self.moody.address}/token",service="lab"'
        if name:
            says += f',scope="repository:{name}:{",".join(sorted(needs))}"'
        return Answer(401, {"WWW-Authenticate": says}, b'{"errors":[{"code":"UNAUTHORIZED"}]}')

    def give(self, request: Request, asked: dict[str, list[str]]) -> Answer:
        """A token for what is asked, to whom has the password."""
        import json

        if request.headers.get("Authorization") != f"Basic {self.credentials}":
            return Answer(401, {}, b"no")
        token = secrets.token_hex(8)
        rights = set(asked.get("scope", ["::"])[0].rpartition(":")[2].split(","))
        with self.lock:
            self.given[token] = (rights, self.uses)
        return Answer(200, {"Content-Type": "application/json"}, json.dumps({"token": token}).encode())
