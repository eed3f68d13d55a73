"""The engine's daemon: where it is, reached or not, its failures in our words, and what is taken instead of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import samples
from docker.errors import APIError, DockerException
from requests.exceptions import ConnectionError, ReadTimeout

from labrig import base, daemon, environment, published
from labrig.errors import BuildError, HostError
from labrig.host import Host

ROOT = Path(__file__).parents[2]
LINUX = Host(os="linux", arch="x86_64", libc="glibc 2.40", docker_error="not running: refused")

# --- reaching it ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """As much of the Docker engine's API as it takes to be one; it refuses all else, and hangs up on info."""

    version = ""

    def do_GET(self) -> None:
        if self.path.endswith("/info"):
            return
        known = {"_ping": b"OK", "version": json.dumps({"ApiVersion": "1.40", "Version": self.version}).encode()}
        body = known.get(self.path.rpartition("/")[2])
        self.send_response(200 if body else 500)
        body = body or b'{"message": "write /x: No Space left on Device"}'
        self.send_header("Content-Type", "text/plain" if body == b"OK" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def engine(version: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp())  # a socket's path may have about 100 characters only
    handler = type("Versioned", (Handler,), {"version": version})
    with socketserver.ThreadingUnixStreamServer(str(folder / "s"), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{folder / 's'}")
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    shutil.rmtree(folder)


def test_without_an_engine_the_error_is_exit_3_and_names_the_way_without_docker() -> None:
    with pytest.raises(HostError, match="no Docker engine answers here") as caught, daemon.connect():
        pass
    assert caught.value.code == 3
    assert "--engine=venv" in caught.value.fix


def test_an_engine_that_is_too_old_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine("19.03.1", monkeypatch):
        with pytest.raises(HostError, match=r"too old: 19\.03\.1") as caught, daemon.connect():
            pass
        assert daemon.ask() == daemon.Engine("19.03.1")
    assert caught.value.code == 3
    assert "20.10" in caught.value.found
    assert "--engine=venv" in caught.value.fix


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "29.0.0"])
def test_what_an_engine_refuses_inside_is_labrigs_error(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(version, monkeypatch):
        with pytest.raises(BuildError, match="disk of the Docker engine is full"), daemon.connect() as client:
            client.images.get("labrig/cpu")
        with pytest.raises(ZeroDivisionError), daemon.connect():
            raise ZeroDivisionError  # ours stays ours


def test_an_engine_that_goes_away_inside_stopped_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine("26.1.5", monkeypatch), pytest.raises(HostError, match="no Docker engine") as caught:  # noqa: SIM117
        with daemon.connect() as client:
            client.info()
    assert caught.value.found.startswith("it stopped answering: ")


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("26.1.5+dfsg1", (26, 1)), ("20.10.24", (20, 10)), ("19.03.1", (19, 3)), ("v28.0.0-rc.1", (28, 0)),
        ("29", (29,)), ("dev", (0,)), ("", (0,)),
    ],
)  # fmt: skip
def test_the_numbers_of_a_version(version: str, numbers: tuple[int, ...]) -> None:
    assert daemon.numbers(version) == numbers


@pytest.mark.parametrize(
    ("reason", "host", "cure"),
    [
        ("permission denied: this user may", "", "usermod"), ("permission denied: this", "unix:///x", "usermod"),
        ("not installed", "", "install Docker"), ("not installed", "unix:///x", "install Docker"),
        ("not running", "", "systemctl start"), ("not running", "tcp://a.example:1", "DOCKER_HOST=tcp://a.example:1"),
        ("anything else", "", "systemctl start"),
    ],
)  # fmt: skip
def test_each_reason_has_its_cure(monkeypatch: pytest.MonkeyPatch, reason: str, host: str, cure: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    error = daemon.absent(reason)
    assert (error.code, error.found) == (3, reason)
    assert cure in error.fix
    assert error.fix.endswith(daemon.WITHOUT)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', 3, "NVIDIA Container Toolkit"),
        ("nvidia-container-cli: requirement error: unsatisfied condition: driver>=580", 3, "driver is too old"),
        ("write /x: no space left on device", 4, "disk of the Docker engine is full"),
        ("write /x: No Space Left On Device", 4, "disk of the Docker engine is full"),
        ("mkdir /x: Disk quota exceeded", 4, "disk of the Docker engine is full"),
        ("invalid\n  reference format", 4, "the Docker engine refused: invalid reference format"),
    ],
)
def test_what_the_engine_says_becomes_an_error_with_a_fix(said: str, code: int, words: str) -> None:
    for error in (APIError("500 Server Error", explanation=said), APIError(said)):
        made = daemon.failure(error)
        assert made.code == code
        assert words in str(made)
        assert " ".join(said.split()) in str(made)
        assert made.fix


@pytest.mark.parametrize("error", [ConnectionError("Connection aborted."), ReadTimeout("timed out"), DockerException])
def test_a_connection_that_breaks_is_an_engine_that_stopped_answering(error: Any) -> None:
    made = daemon.failure(error if isinstance(error, Exception) else error("TLS"))
    assert isinstance(made, HostError)
    assert made.found.startswith("it stopped answering: ")


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:///run/engine.sock", True), ("http+unix:///run/engine.sock", True),
        ("npipe:////./pipe/docker_engine", True), ("tcp://127.0.0.1:2375", False), ("ssh://me@a.example", False),
    ],
)  # fmt: skip
def test_an_engine_behind_a_socket_of_this_machine_is_local(
    monkeypatch: pytest.MonkeyPatch, address: str, local: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    for name in ("DOCKER_CONTEXT", "BUILDX_BUILDER"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("KEPT", "1")
    assert (daemon.address(), daemon.is_local()) == (address, local)
    variables = daemon.environment()
    assert not {"DOCKER_CONTEXT", "BUILDX_BUILDER"} & set(variables)
    assert variables["DOCKER_HOST"] == address.replace("http+unix", "unix")
    assert variables["KEPT"] == "1"


@pytest.mark.parametrize(("host", "local"), [("unix:///somewhere/docker.sock", True), ("tcp://a.example:2375", False)])
def test_without_docker_host_the_current_context_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, local: bool
) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
    meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))
    assert (daemon.address(), daemon.is_local()) == (host, local)
    # The same engine for the `docker` program, even under another context of its own.
    assert daemon.environment()["DOCKER_HOST"] == host


# --- what is taken instead --------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the real table, on a Linux machine whose engine answers and can make images."""
    monkeypatch.setattr(environment, "read_host", lambda: replace(LINUX, docker="26.1.5", docker_error=""))
    monkeypatch.setattr(base, "lacking", lambda *_: "")
    shutil.copytree(ROOT / "images", tmp_path / "images")
    (tmp_path / "images" / published.FILE).unlink(missing_ok=True)  # a fork has one
    return tmp_path


def test_a_rows_first_engine_is_taken_where_it_is_usable(root: Path) -> None:
    assert environment.usable_engine(root, "cpu") == ("docker", "")


def test_docker_is_passed_over_where_no_engine_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "read_host", lambda: LINUX)
    assert environment.usable_engine(root, "cpu") == ("venv", "docker cannot be used here: not running: refused")
    assert environment.usable_engine(root)[0] == "venv"


def test_docker_is_passed_over_where_no_image_can_be_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "lacking", lambda *_: "a tool is missing")
    monkeypatch.setattr(environment, "_in_engine", lambda *_: "")
    monkeypatch.setattr(daemon, "connect", contextlib.nullcontext)
    assert environment.usable_engine(root, "cpu") == ("venv", "docker cannot be used here: a tool is missing")


def test_docker_is_usable_where_no_image_can_be_made_and_one_of_the_lock_is_there_or_was_published(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "lacking", lambda *_: "a tool is missing")
    monkeypatch.setattr(daemon, "connect", contextlib.nullcontext)
    monkeypatch.setattr(environment, "_in_engine", lambda *_: "labrig/cpu:2.13.0-0123456789ab")
    assert environment.usable_engine(root, "cpu") == ("docker", "")
    monkeypatch.setattr(environment, "_in_engine", lambda *_: "")
    entry = samples.published("cpu")
    published.keep(root / "images", entry)
    assert environment.usable_engine(root, "cpu") == ("docker", "")
    published.keep(root / "images", replace(entry, lock="another"))
    assert environment.usable_engine(root, "cpu")[0] == "venv"


def test_where_no_engine_of_a_row_is_usable_the_first_is_given_without_a_word(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "read_host", lambda: LINUX)
    table = root / "images" / "targets.toml"
    table.write_text(table.read_text().replace('engines = ["docker", "venv", "conda"]', 'engines = ["docker"]', 1))
    assert environment.usable_engine(root, "cpu") == ("docker", "")


@pytest.mark.parametrize(
    ("about", "hook", "expected"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, False, True),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, False, True),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": None}, True, True),
        ({"Runtimes": {"runc": {}}}, False, False),
        ({"Runtimes": None, "OperatingSystem": "Docker Desktop"}, False, None),
    ],
)
def test_whether_an_engine_hands_out_gpus(
    about: dict[str, object], hook: bool, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `docker info` says it, or, on this machine, as Docker itself looks for the hook."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "unix:///var/run/docker.sock")
    if hook:
        (tmp_path / "nvidia-container-runtime-hook").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-container-runtime-hook").chmod(0o755)
    assert daemon._hands_out_gpus(about) is expected
    if expected is False:
        monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
        assert daemon._hands_out_gpus(about) is None, "another machine's PATH is not ours to look at"
