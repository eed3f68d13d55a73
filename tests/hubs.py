"""A real hub on 127.0.0.1: of a copy of the checkout, with a folder, a network, volumes and a port of its own.

The copy's images/published.toml notes the image that the engine has, as if it had been published and pulled: a hub asks
the engine for the image that is noted there, and no registry.
"""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certificates
import registries

ROOT = Path(__file__).parents[1]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
PATIENCE = 120  # seconds for a student's server, on a machine that others use as well


@dataclass
class Hub:
    """A checkout with a hub's settings; ``invoke`` runs labrig there."""

    checkout: Path
    cache: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)  # where its hubs have answered students' servers
    ca: Path | None = None  # who has signed its certificate; None: it speaks http
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.host}:{self.port}/"

    @property
    def place(self) -> Path:
        """Where the hub keeps what it knows."""
        return self.cache / "hub"

    @property
    def config(self) -> Path:
        return self.checkout / "serve.toml"

    def secret(self, name: str = "password") -> str:
        return (self.place / name).read_text().strip()

    def invoke(self, *words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of labrig, which ends as expected, and never with a traceback."""
        done = subprocess.run(
            [*INVOKE, *words], cwd=self.checkout, capture_output=True, text=True, timeout=300,
            env={**os.environ, **self.variables, **variables},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        return done

    def up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.invoke("serve", "--hub", f"--config={self.config}", **variables)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.invoke("serve", "--status", "--json").stdout)
        return found

    def log(self) -> str:
        file = self.place / "log"
        return file.read_text() if file.exists() else ""

    def process(self, name: str) -> int:
        """The number of the proxy or the hub that was started last, as the keeper's log says it."""
        return int(re.findall(rf"the {name} is started as process (\d+)", self.log())[-1])


@contextmanager
def prepared(
    folder: Path, settings: str = "", *, hub: str = "", tls: bool = False, name: str = "", **variables: str
) -> Iterator[Hub]:
    """A checkout whose hub can be started; all that it starts is taken away at the end, its volumes too.

    ``settings`` are tables of serve.toml; ``hub`` more keys of its table [hub]; with ``tls`` a CA of its own has signed
    for it and, with ``name``, for each host below that.
    """
    # Of a length and with letters that a socket's path may not have.
    made = Hub(copy_of_checkout(folder / "labrig"), folder / "Cache of a hub" / ("x" * 90), registries.free_port())
    made.variables = {"LABRIG_CACHE": str(made.cache), **variables}
    if name:
        made.host = name
        hub += f'\nname = "{name}"'
    if tls:
        made.ca, _ = certificates.make(folder, f"DNS:{name},DNS:*.{name}" if name else "IP:127.0.0.1")
        hub += f'\ncertificate = "{folder / "leaf.crt"}"\nkey = "{folder / "leaf.key"}"'
    made.config.write_text(f"[hub]\nport = {made.port}\n{hub}\n{settings}\n")
    note_image(made.checkout)
    try:
        yield made
    finally:
        made.invoke("serve", "--down")
        remove_volumes(made)


@contextmanager
def serve(folder: Path, settings: str = "", **more: Any) -> Iterator[Hub]:
    """The same, up."""
    with prepared(folder, settings, **more) as made:
        made.up()
        yield made


def copy_of_checkout(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "tests", "bench"))
    return to


def note_image(checkout: Path) -> None:
    """Note the image of this checkout, which the engine gets from the shared cache, as published."""
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    try:
        import samples
    finally:
        sys.path.pop(0)
    from labrig import daemon, environment, published

    made = environment.build(ROOT, TARGET, "docker")
    with daemon.connect() as client:
        identity = str(client.images.get(made.reference).id)
    entry = samples.published(TARGET, image=made.reference, config=identity)
    (checkout / "images" / published.FILE).unlink(missing_ok=True)
    published.keep(checkout / "images", entry)


def remove_volumes(made: Hub) -> None:
    from labrig import daemon

    with daemon.connect() as client:
        for one in client.volumes.list(filters={"name": f"labrig-hub-{mark(made)}-"}):
            one.remove(force=True)


def mark(made: Hub) -> str:
    """What ends the names of all that this hub has in the engine."""
    import hashlib

    return hashlib.sha256(str(made.place).encode()).hexdigest()[:8]


class Student:
    """Somebody who has logged in, as a browser without a screen; ``ask`` gives status, address and text of a page."""

    def __init__(self, made: Hub, name: str, password: str | None = None) -> None:
        self.made, self.name = made, name
        self.cookies = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=made.ca)),
        )  # fmt: skip
        self.ask("hub/login")
        self.answer = self.ask(
            "hub/login", {"username": name, "password": made.secret() if password is None else password}
        )

    @property
    def is_in(self) -> bool:
        return any(cookie.name == "jupyterhub-session-id" for cookie in self.cookies) and self.answer[0] == 200

    def ask(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
        """A page, with its redirections; with ``form`` as a browser sends it."""
        if form is not None:
            xsrf = next((one.value for one in self.cookies if one.name == "_xsrf" and one.path == "/hub/"), "") or ""
            form = {"_xsrf": xsrf, **form}
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        try:
            with self.opener.open(self.made.url + path, data, timeout=60) as answer:
                return answer.status, answer.url, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.url, error.read().decode(errors="replace")
