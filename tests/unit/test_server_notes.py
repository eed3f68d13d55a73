"""A student's server: what is noted of it, its port, its state, and a native one's life."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labrig import daemon, home, server, server_in_docker, server_native
from labrig.errors import BuildError, SpecError, UsageError
from labrig.server import Server

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def jupyter() -> Iterator[int]:
    """The port of what answers as Jupyter does: to the token, and 403 without."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.headers.get("Authorization") == f"token {TOKEN}" and self.path == "/api/status"
            self.send_response(200 if right else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found.server_address[1]
        found.shutdown()
        thread.join()


def note(port: int, *, target: str = "cpu", engine: str = "venv", up: bool = True) -> Server:
    one = Server(target, engine, "/env", "/work", port, "2026-01-02T03:04:05+00:00", up)
    one.place.mkdir(parents=True)
    (one.place / server.TOKEN).write_text(TOKEN)
    server._note(one)
    return one


def hold(one: Server) -> subprocess.Popen[bytes]:
    """A process that lives as the native server does: it holds the lock, and has noted its number."""
    with (one.place / server_native.ALIVE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = "import signal, sys; print(flush=True); signal.pause()"
        held = subprocess.Popen([sys.executable, "-c", code], pass_fds=(file.fileno(),), stdout=subprocess.PIPE)
    assert held.stdout
    held.stdout.readline()
    held.stdout.close()
    (one.place / server_native.PID).write_text(f"{held.pid}\n")
    return held


def test_it_answers_to_its_token_and_no_proxy_is_asked(jupyter: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert server.answers(jupyter, TOKEN)
    assert not server.answers(jupyter, "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not server.answers(free.getsockname()[1], TOKEN)


def test_a_port_that_is_taken_is_seen_and_a_free_one_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as everywhere:
        for taken in (one, everywhere):
            assert not server.is_free(taken.getsockname()[1])
        port = one.getsockname()[1]
        error = server._taken(port)
    assert error.what == f"port {port} is taken on this machine"
    free = next(server.free_ports())
    assert free >= server.FIRST_PORT
    assert f"--port={free}" in error.fix


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused_at_once(port: int) -> None:
    with pytest.raises(UsageError, match="is no port"):
        server.start(ROOT, "cpu", "docker", port=port)


def test_the_checkout_is_no_students_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ROOT)
    for folder in (ROOT, tmp_path / "link"):
        with pytest.raises(UsageError, match="own checkout"):
            server.start(ROOT, "cpu", "docker", folder=folder)


def test_the_state_of_a_native_one_is_what_its_lock_and_its_answer_say(jupyter: int) -> None:
    one = note(jupyter)
    assert server._state(one) == server.ENDED
    with hold(one) as held:
        assert server._state(one) == server.RUNNING
        silent = Server(**{**one.__dict__, "port": 1})
        assert server._state(silent) == server.SILENT
        assert server.status() == [(one, server.RUNNING)]
        assert server.rows(server.status()) == [["cpu", "venv", "running", one.since, "/work"]]
        assert one.to_json()["url"] == one.url == f"http://127.0.0.1:{jupyter}/?token={TOKEN}"
        assert server._standing("cpu", None, None, 0) == one
        assert server._standing("cpu", "venv", Path("/work"), jupyter) == one
        with pytest.raises(UsageError, match=r"started with --folder=/work --port=\d+"):
            server._standing("cpu", None, Path("/other"), jupyter + 1)
        assert server.stop(ROOT, "cpu") == [one]
        held.wait(timeout=20)
    assert not one.place.exists()
    assert server.stop(ROOT) == []


def test_a_process_that_has_another_ones_number_is_left_alone() -> None:
    one = note(1)
    with subprocess.Popen(["sleep", "60"]) as other:
        (one.place / server_native.ALIVE).touch()
        (one.place / server_native.PID).write_text(str(other.pid))
        server.stop(ROOT, "cpu")
        assert other.poll() is None
        other.kill()


def test_one_that_does_not_listen_to_the_first_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_native, "GRACE", 0.3)
    one = note(1)
    with (one.place / server_native.ALIVE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
        held = subprocess.Popen([sys.executable, "-c", code], pass_fds=(file.fileno(),), stdout=subprocess.PIPE)
    with held:
        assert held.stdout
        held.stdout.readline()
        (one.place / server_native.PID).write_text(str(held.pid))
        server_native.stop("cpu", one.place)
        assert held.wait(timeout=20) == -9


def test_one_that_has_not_noted_its_number_yet_is_ended_once_it_has() -> None:
    """As after a Ctrl-C in its first moments; not killed after all of the time that it has to end by itself."""
    one = note(1)
    with (one.place / server_native.ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        noting = (
            f"import os, time; time.sleep(1); open({str(one.place / server_native.PID)!r}, 'w').write(str(os.getpid()))"
        )
        process = subprocess.Popen([sys.executable, "-c", f"{noting}; time.sleep(60)"], pass_fds=(alive.fileno(),))
    server_native.stop("cpu", one.place)
    assert process.wait(10) == -signal.SIGTERM


def test_what_a_killed_start_left_is_removed_and_a_damaged_note_is_said() -> None:
    one = note(1, up=False)
    assert server.status() == [(one, server.LEFT)]
    with server._alone("cpu"):
        assert server.status() == [(one, server.STARTING)]
        assert server._standing("cpu", None, None, 0) is None
    assert not one.place.exists()
    one.place.mkdir()
    (one.place / server.TOKEN).write_text(TOKEN)
    assert server.status() == [] == server.stop(ROOT, "cpu"), (
        "a start that has not noted anything yet is left to itself"
    )
    assert (one.place / server.TOKEN).exists()
    (one.place / server.TOKEN).unlink()
    one.place.rmdir()
    note(1)
    (one.place / server.NOTE).write_text('{"target": "cpu"}')
    with pytest.raises(BuildError, match="is damaged") as caught:
        server.status()
    assert str(one.place) in caught.value.fix


def test_where_the_engine_has_gone_its_server_is_unknown_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "ask", lambda: daemon.Engine(None, "not running"))
    one = note(1, engine="docker")
    assert server.status() == [(one, server.UNKNOWN)]
    assert server.stop(ROOT, "cpu") == [one]


def test_logs_need_a_name_where_several_run_and_names_are_the_tables() -> None:
    with pytest.raises(UsageError, match="no such server"):
        list(server.logs(ROOT))
    one = note(1)
    (one.place / server_native.LOG).write_text("one\n\ntwo\n")
    assert b"".join(server.logs(ROOT)) == b"".join(server.logs(ROOT, "cpu", follow=True)) == b"one\n\ntwo\n"
    assert server_native.tail("cpu", one.place, 1) == ["two"]
    note(1, target="cuda")
    with pytest.raises(UsageError, match="several") as caught:
        list(server.logs(ROOT))
    assert caught.value.found == "cpu, cuda"
    for ask in (lambda: list(server.logs(ROOT, "nope")), lambda: server.stop(ROOT, "nope")):
        with pytest.raises(SpecError):
            ask()


def test_only_its_owner_reads_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)))
    with server._alone("cpu"):
        one = note(1)
    server.open_browser(one)
    assert home.servers().stat().st_mode & 0o777 == 0o700
    page = one.place / server.PAGE
    assert {path.stat().st_mode & 0o777 for path in (one.place / server.NOTE, page)} == {0o600}
    assert opened == [page.as_uri()], "the token is on no command line"
    assert one.url in page.read_text()
    assert TOKEN not in json.dumps(json.loads((one.place / server.NOTE).read_text()))


def test_a_containers_name_is_one_persons_and_one_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {server_in_docker.name_of("cpu"), server_in_docker.name_of("cuda")}
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    names.add(server_in_docker.name_of("cpu"))
    monkeypatch.setenv("LABRIG_CACHE", "/elsewhere")
    names.add(server_in_docker.name_of("cpu"))
    assert len(names) == 4


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for prepare in (server_native.prepare, server_in_docker.prepare):
        with pytest.raises(UsageError, match="cannot be made"):
            prepare(tmp_path / "file" / "under")
        with pytest.raises(UsageError, match="cannot be made"):
            prepare(tmp_path / "file")
