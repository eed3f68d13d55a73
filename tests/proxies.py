"""A forwarding proxy on 127.0.0.1: CONNECT and plain http, whatever name is asked for leads to one server of ours."""

from __future__ import annotations

import base64
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """``seen`` are the methods and addresses that were asked for; ``credentials`` are "user:password", else 407."""

    port: int
    credentials: str
    seen: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{f'{self.credentials}@' if self.credentials else ''}127.0.0.1:{self.port}"


@contextmanager
def forward(port: int, *, credentials: str = "", host: str = "127.0.0.1") -> Iterator[Proxy]:
    """Start one, all of whose names are the server on 127.0.0.1 at ``port``."""
    server = _Server((host, 0), BaseHTTPRequestHandler)
    proxy = Proxy(server.server_port, credentials)
    server.RequestHandlerClass = _handler(proxy, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are their own affair."""


def _handler(proxy: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    expected = "Basic " + base64.b64encode(proxy.credentials.encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def _may_not(self) -> bool:
            proxy.seen.append(f"{self.command} {self.path}")
            if not proxy.credentials or self.headers.get("Proxy-Authorization") == expected:
                return False
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

        def do_CONNECT(self) -> None:
            if self._may_not():
                return
            with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
                self.send_response(200)
                self.end_headers()
                _carry(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            if self._may_not():
                return
            parts = urlsplit(self.path)
            there = HTTPConnection("127.0.0.1", port, timeout=10)
            kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            there.request(self.command, parts._replace(scheme="", netloc="").geturl(), headers=kept)
            answer = there.getresponse()
            body = answer.read()
            there.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        do_HEAD = do_GET

    return Handler


def _carry(one: socket.socket, other: socket.socket) -> None:
    """Bytes both ways until either side ends."""
    to = {one: other, other: one}
    with suppress(OSError):
        while True:
            for source in select.select([one, other], [], [], 30)[0] or [None]:
                data = source.recv(65536) if source else b""
                if not data:
                    return
                to[source].sendall(data)
