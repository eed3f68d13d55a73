"""Sessions in containers: the streams of a command over a socket, who it runs as, and where images can be made."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig import container
from labrig.engines import docker
from labrig.errors import BuildError, HostError, UsageError
from labrig.host import Host

NO_CONTAINER: Any = None  # it is asked only for what Ctrl-C needs
# Keeps the limits of what is sent, so that a test decides what arrives at once.
PIECES = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to others")


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@contextlib.contextmanager
def standard_input(data: bytes | None) -> Iterator[None]:
    """Descriptor 0 is a pipe with these bytes and its end, or, with None, one that stays silent."""
    kept, (reading, writing) = os.dup(0), os.pipe()
    os.write(writing, data or b"")
    silent = [] if data is not None else [os.dup(writing)]
    os.close(writing)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, reading, *silent):
            os.close(descriptor)


@contextlib.contextmanager
def engine(play: Callable[[socket.socket], None], kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """Our end of a connection; the engine's is in the hands of ``play``, and no more comes when that ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.settimeout(10)

    def run() -> None:
        with theirs:
            play(theirs)
            theirs.shutdown(socket.SHUT_WR)
            receive(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with ours:
            yield ours
    finally:
        thread.join()


def receive(connection: socket.socket) -> bytes:
    """Everything until the other end is closed for writing."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def pump(play: Callable[[socket.socket], None], stdin: bytes | None, kind: int = socket.SOCK_STREAM) -> list[bytes]:
    """Carry a command's streams; gives what came out of it on stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with standard_input(stdin), engine(play, kind) as connection:
            container._pump(NO_CONTAINER, connection, "", {1: out.fileno(), 2: err.fileno()})
        return [os.pread(file.fileno(), 1 << 20, 0) for file in (out, err)]


FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=12)), max_size=8)


@given(FRAMES, st.binary(max_size=3), st.integers(0, 5), st.lists(st.integers(1, 300), max_size=40))
@settings(deadline=None)
def test_frames_reach_their_stream_wherever_they_are_cut(
    frames: list[tuple[int, bytes]], glued: bytes, split: int, cuts: list[int]
) -> None:
    """The first line of stdout is the number of the process, which is nobody's output."""
    number = b"4242\n"
    frames = [(1, number[:split]), (2, b"early"), (1, number[split:] + glued), *frames]
    wire = b"".join(frame(*one) for one in frames)
    edges = sorted({0, *(cut for cut in cuts if cut < len(wire)), len(wire)})

    def play(connection: socket.socket) -> None:
        for begin, end in itertools.pairwise(edges):
            connection.sendall(wire[begin:end])

    said = {stream: b"".join(data for to, data in frames if to == stream) for stream in (1, 2)}
    assert pump(play, b"", PIECES) == [said[1].removeprefix(number), said[2]]


def test_stdin_goes_in_and_its_end_is_a_half_close_after_which_answers_still_come() -> None:
    got = []

    def play(connection: socket.socket) -> None:
        got.append(receive(connection))
        connection.sendall(frame(1, b"7\nanswer"))

    data = bytes(range(256)) * 100
    assert pump(play, data) == [b"answer", b""]
    assert got == [b"\n" + data], "a line that lets the command begin, then stdin"


def test_a_stdin_that_stays_silent_does_not_keep_a_command_that_ends() -> None:
    assert pump(lambda connection: connection.sendall(frame(2, b"error")), None) == [b"", b"error"]


def test_ctrl_c_is_handed_on_to_the_command_and_its_last_words_are_awaited(tmp_path: Path) -> None:
    killed, handed_on, said = [], threading.Event(), tmp_path / "said"

    def exec_run(argv: list[str], user: str) -> None:
        killed.append((argv, user))
        handed_on.set()

    def play(connection: socket.socket) -> None:
        connection.sendall(frame(1, b"4242\nworking; "))
        while not said.stat().st_size:
            time.sleep(0.01)
        time.sleep(0.05)  # more is awaited
        os.kill(os.getpid(), signal.SIGINT)
        assert handed_on.wait(10)
        connection.sendall(frame(1, b"saved"))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner of tests may have its own
    running: Any = SimpleNamespace(exec_run=exec_run)
    try:
        with pytest.raises(KeyboardInterrupt), said.open("wb") as out, standard_input(None), engine(play) as ours:
            container._pump(running, ours, "7:8", {1: out.fileno()})
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.read_bytes() == b"working; saved"
    assert killed == [(["/bin/sh", "-c", "kill -INT -4242"], "7:8")]


def test_a_command_begins_when_told_says_its_number_first_and_gets_the_rest_of_stdin() -> None:
    """What is asked of the shell in an image, asked of the one here."""
    command = ["/bin/sh", "-c", container.BEGIN, "sh", "sh", "-c", 'echo "$$ $1"; cat', "inner", "a  b"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(b"\nfirst\nsecond", timeout=20)
    assert out.decode() == f"{process.pid}\n{process.pid} a  b\nfirst\nsecond"


def test_a_program_that_is_not_there_is_told_from_one_that_ends_with_127() -> None:
    command = ["/bin/sh", "-c", container.BEGIN, "sh", "no-such-program"]
    done = subprocess.run(command, input=b"\n", capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (127, b"absent\n")


def run(code: int | None, asked: dict[str, Any], first: bytes = b"4242\n") -> int:
    """Run a command in a container, by an engine that says this exit code."""
    with standard_input(b""), engine(lambda end: end.sendall(frame(1, first))) as connection:

        def create(identity: str, argv: list[str], **options: Any) -> dict[str, str]:
            asked.update(options, container=identity, argv=argv)
            return {"Id": "exec"}

        api = SimpleNamespace(exec_create=create, exec_start=lambda *_, **__: connection)
        api.exec_inspect = lambda _: {"ExitCode": code}
        started: Any = SimpleNamespace(id="abc", client=SimpleNamespace(api=api))
        try:
            return container.run(started, ["prog", "-x"], cwd=Path("/w"), environment={"A": "1"}, user="7:8", stdout=1)
        finally:
            assert connection.fileno() == -1, "it is closed whatever came"


def test_a_command_is_run_as_asked_and_its_exit_code_is_the_result() -> None:
    asked: dict[str, Any] = {}
    assert [run(code, asked) for code in (0, 1, 5, 125, 130, 137)] == [0, 1, 5, 125, 130, 137]
    assert asked == {
        "container": "abc", "argv": ["/bin/sh", "-c", container.BEGIN, "sh", "prog", "-x"],
        "stdin": True, "tty": False, "user": "7:8", "workdir": "/w", "environment": {"A": "1"},
    }  # fmt: skip


def test_a_program_that_is_not_there_and_a_container_that_ended_are_told_apart() -> None:
    assert [run(code, {}) for code in (126, 127)] == [126, 127], "a command's own exit codes, whatever they are"
    with pytest.raises(BuildError, match="no program 'prog' in the image") as caught:
        run(127, {}, b"absent\n")
    assert caught.value.code == 4
    with pytest.raises(HostError, match="no Docker engine") as gone:
        run(None, {})
    assert gone.value.found == "the container ended while a command ran in it"


@pytest.mark.parametrize(
    ("system", "arch", "platform"),
    [
        ("linux", "x86_64", "linux_x86_64"), ("linux", "aarch64", "linux_aarch64"), ("macos", "arm64", "linux_aarch64"),
        ("macos", "x86_64", "linux_x86_64"), ("windows", "x86_64", "linux_x86_64"), ("linux", "riscv64", None),
    ],
)  # fmt: skip
def test_images_are_for_linux_of_the_machines_own_kind(system: str, arch: str, platform: str | None) -> None:
    for one in ("linux_x86_64", "linux_aarch64"):
        reason = docker.check(samples.target(platforms=[one]), Host(system, arch))
        here = platform or f"{system} {arch}"
        expected = f"target here is for {one}; containers on this machine are {here}"
        assert reason == (None if one == platform else expected)


def test_who_is_in_a_container_is_who_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 5678)
    assert docker.user_of([tmp_path]) == docker.user_of([]) == "1234:5678"
    before = tmp_path.stat()
    docker._hand_over([tmp_path], "1:1")  # a person's folders are theirs already
    assert tmp_path.stat() == before


@root_only
def test_called_by_root_it_is_the_first_other_owner_above_the_folders(tmp_path: Path) -> None:
    top, inner = tmp_path / "checkout", tmp_path / "checkout" / "results" / "cpu"
    inner.mkdir(parents=True)
    assert docker.user_of([Path("/")]) == docker.user_of([]) == ""
    os.chown(top, 1234, 5678)
    assert docker.user_of([inner]) == docker.user_of([Path("/"), inner]) == "1234:5678"
    os.chown(inner, 4321, 8765)
    assert docker.user_of([inner]) == "4321:8765"


@root_only
def test_called_by_root_a_folder_for_results_is_handed_over_and_another_one_never(tmp_path: Path) -> None:
    new, results, foreign, theirs = (tmp_path / name for name in ("new", "results", "foreign", "theirs"))
    for file in (results / "01" / "plot.png", results / "run.json", foreign / "thesis.tex", theirs / "kept"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    new.mkdir()
    (results / "link").symlink_to(foreign / "thesis.tex")
    os.chown(theirs, 1234, 5678)
    docker._hand_over([new, results, theirs], "1234:5678")
    for place in (new, results, *results.rglob("*")):
        assert (place.lstat().st_uid, place.lstat().st_gid) == (1234, 5678), place
    with pytest.raises(UsageError, match="belongs to root and holds other things"):
        docker._hand_over([foreign], "1234:5678")
    assert {place.stat().st_uid for place in (foreign, foreign / "thesis.tex", theirs / "kept")} == {0}
