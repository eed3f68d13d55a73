"""Real package indexes on 127.0.0.1, well-behaved and not, for tests of fetching."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

CHUNK = 16 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Manners:
    """How a server behaves; a test may change it between requests."""

    ranges: bool = True
    hashes: bool = True  # in the index pages
    json: bool = False  # pages as JSON, with hashes and sizes
    drop_after: int | None = None  # bytes of a body, then the connection is cut ...
    drops: int = 1_000_000  # ... for so many requests
    failures: int = 0  # so many answers of 503 first
    hang: bool = False  # take the connection, never answer
    hang_files: bool = False  # the same, for wheels only
    credentials: str | None = None  # "user:password", else 401
    pause: float = 0.0  # seconds after each CHUNK
    status: int | None = None  # of every page
    stated: dict[str, str] = field(default_factory=dict)  # file -> SHA-256 that the pages state


class IndexServer:
    """A simple index (``url``) and a page of links (``links``) over ``files``: name -> content.

    Also answers as a plain HTTP proxy for any host: only the path counts.
    """

    def __init__(self, files: Mapping[str, bytes], manners: Manners | None = None, tls: Path | None = None) -> None:
        self.files = dict(files)
        self.manners = manners or Manners()
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.base = f"{'https' if tls else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self.base}/simple"

    @property
    def links(self) -> str:
        return f"{self.base}/links"

    def with_credentials(self, credentials: str) -> str:
        return self.url.replace("://", f"://{credentials}@")

    def downloads(self) -> list[Request]:
        """The requests for files so far."""
        return [request for request in self.requests if request.path.startswith("/files/")]

    def __enter__(self) -> IndexServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are what is tested."""


def _handler(index: IndexServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            manners = index.manners
            path = unquote(urlsplit(self.path).path)
            index.requests.append(Request(self.command, path, dict(self.headers)))
            if manners.hang or (manners.hang_files and path.startswith("/files/")):
                index.closing.wait()
                self.close_connection = True
                return
            if manners.credentials:
                expected = "Basic " + base64.b64encode(manners.credentials.encode()).decode()
                if self.headers.get("Authorization") != expected:
                    self._reply(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
                    return
            if manners.failures:
                manners.failures -= 1
                self._reply(503, b"busy")
                return
            if path.startswith("/files/"):
                self._file(path.removeprefix("/files/"))
            elif manners.status:
                self._reply(manners.status, b"")
            elif path.startswith("/simple/"):
                self._page([file for file in index.files if _project(file) == path.split("/")[2]])
            elif path == "/links":
                self._page(list(index.files))
            else:
                self._reply(404, b"")

        def _page(self, files: list[str]) -> None:
            if not files:
                self._reply(404, b"")
                return
            digests = {
                file: index.manners.stated.get(file, hashlib.sha256(index.files[file]).hexdigest()) for file in files
            }
            if index.manners.json:
                listed = [
                    {"filename": f, "url": f"/files/{quote(f)}", "hashes": {"sha256": digests[f]}, "yanked": "old"}
                    for f in files
                ]
                body = json.dumps({"meta": {"api-version": "1.1"}, "files": listed}).encode()
                self._reply(200, body, {"Content-Type": "application/vnd.pypi.simple.v1+json"})
                return
            anchors = (
                f'<a href="/files/{quote(f)}{f"#sha256={digests[f]}" if index.manners.hashes else ""}">{f}</a>'
                for f in files
            )
            page = f"<!DOCTYPE html><html><body>{''.join(anchors)}</body></html>"
            self._reply(200, page.encode(), {"Content-Type": "text/html"})

        def _file(self, file: str) -> None:
            body = index.files.get(file)
            if body is None:
                self._reply(404, b"")
                return
            wanted = self.headers.get("Range")
            if wanted and index.manners.ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self._reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                else:
                    self._reply(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
                return
            self._reply(200, body)

        def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            manners = index.manners
            cut = manners.drop_after if manners.drops > 0 and status in (200, 206) and "/files/" in self.path else None
            if cut is not None and cut < len(body):
                manners.drops -= 1
                body = body[:cut]
                self.close_connection = True
            for start in range(0, len(body), CHUNK):
                self.wfile.write(body[start : start + CHUNK])
                if manners.pause and index.closing.wait(manners.pause):
                    return

    return Handler


def _project(file: str) -> str:
    return file.split("-")[0].lower().replace("_", "-")
