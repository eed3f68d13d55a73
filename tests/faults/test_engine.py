"""Faults around a Docker engine: none, one that refuses, dies or is full, builds that are stopped, two at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from second import SecondEngine, second_engine

from labrig import image, spec

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
BUILD = [*INVOKE, "build", f"--target={TARGET}", "--engine=docker"]
NAME = image.name(spec.read(ROOT / "images" / spec.TABLE).pick(TARGET))
# Builder -> when this line is there, the longest part has begun: installing the wheels, handing over the layers.
LONG = {"dockerfile": "step 2 of", "layers": "loading "}
# Seconds into that part. An engine that has been given all layers finishes what it loads, whoever is gone: the image is
# whole then, and this is about one that is not.
INTO = {"dockerfile": 1, "layers": 0.1}
builders = pytest.mark.parametrize("builder", spec.BUILDERS)


@pytest.fixture(scope="module")
def engine() -> Iterator[SecondEngine]:
    """An engine with room for one image and what its build needs."""
    with second_engine(6000) as engine:
        yield engine


@contextlib.contextmanager
def started(engine: SecondEngine, log: Path, builder: str) -> Iterator[subprocess.Popen[bytes]]:
    """A build, in a process group of its own."""
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [*BUILD, f"--builder={builder}"],
            stdout=file,
            stderr=file,
            cwd=ROOT,
            env=engine.environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(words: str, log: Path, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def nothing_is_left(engine: SecondEngine) -> None:
    """No tag, no container, and within a few seconds no process of a build."""
    assert engine.said("images", "--format={{.Repository}}", NAME) == []
    assert engine.said("ps", "--all", "--quiet") == []
    until = time.monotonic() + 10
    while processes(engine) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(engine) == []


def processes(engine: SecondEngine) -> list[str]:
    """The command lines of builds that talk to this engine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables, words = ((process / name).read_bytes() for name in ("environ", "cmdline"))
            if engine.environment["DOCKER_HOST"].encode() in variables and b"buildx\0build" in words:
                found.append(words.replace(b"\0", b" ").decode())
    return found


@builders
def test_ctrl_c_in_the_middle_of_a_build_leaves_nothing(engine: SecondEngine, tmp_path: Path, builder: str) -> None:
    log = tmp_path / "log"
    with started(engine, log, builder) as process:
        wait_for(LONG[builder], log, process)
        time.sleep(INTO[builder])
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130, log.read_text()
    assert "interrupted" in log.read_text()
    assert "Traceback" not in log.read_text()
    nothing_is_left(engine)


@builders
def test_kill_9_in_the_middle_of_a_build_leaves_nothing(engine: SecondEngine, tmp_path: Path, builder: str) -> None:
    log = tmp_path / "log"
    with started(engine, log, builder) as process:
        wait_for(LONG[builder], log, process)
        time.sleep(INTO[builder])
        process.kill()  # labrig alone: nobody tells buildx
        process.wait()
        nothing_is_left(engine)


@builders
def test_an_engine_that_dies_in_the_middle_of_a_build_is_exit_3_and_the_next_run_goes_on(
    engine: SecondEngine, tmp_path: Path, builder: str
) -> None:
    log = tmp_path / "log"
    with started(engine, log, builder) as process:
        wait_for(LONG[builder], log, process)
        time.sleep(INTO[builder])
        engine.kill()
        assert process.wait(timeout=60) == 3, log.read_text()
    said = log.read_text()
    assert "it stopped answering" in said
    assert "--engine=venv" in said
    assert "Traceback" not in said
    engine.start()
    nothing_is_left(engine)


@builders
def test_two_builds_at_once_make_one_image(engine: SecondEngine, tmp_path: Path, builder: str) -> None:
    logs = tmp_path / "first", tmp_path / "second"
    engine.docker("rmi", *engine.said("images", "--format={{.Repository}}:{{.Tag}}", NAME))  # of the other builder
    with started(engine, logs[0], builder) as first:
        wait_for("building" if builder == "dockerfile" else "loading", logs[0], first)
        with started(engine, logs[1], builder) as second:
            wait_for("another build of target", logs[1], second)
            assert first.wait(timeout=300) == 0, logs[0].read_text()
            assert second.wait(timeout=300) == 0, logs[1].read_text()
    references = {log.read_text().splitlines()[-1] for log in logs}
    assert len(references) == 1
    assert LONG[builder] not in logs[1].read_text()
    tags = engine.said("images", "--format={{.Repository}}:{{.Tag}}", NAME)
    assert set(tags) == {*references, f"{NAME}:latest"}
    assert engine.said("ps", "--all", "--quiet") == []


def test_a_session_dies_with_whoever_opened_it(engine: SecondEngine, tmp_path: Path) -> None:
    command = [*INVOKE, "shell", f"--target={TARGET}", "--engine=docker", "--command=sleep 600"]
    with subprocess.Popen(command, cwd=ROOT, env=engine.environment, start_new_session=True) as process:
        until = time.monotonic() + 60
        while "sleep 600" not in "".join(engine.said("ps", "--quiet") and _top(engine)):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
    until = time.monotonic() + 10
    while engine.said("ps", "--all", "--quiet"):
        assert time.monotonic() < until, "a container that nobody is in"
        time.sleep(0.1)


def _top(engine: SecondEngine) -> list[str]:
    (container, *_) = engine.said("ps", "--quiet")
    return engine.docker("top", container).stdout.splitlines()


@builders
def test_a_full_disk_is_exit_4_and_says_how_to_make_room(tmp_path: Path, builder: str) -> None:
    log = tmp_path / "log"
    with second_engine(900) as small, started(small, log, builder) as process:
        assert process.wait(timeout=300) == 4, log.read_text()
        said = log.read_text()
        assert "the disk of the Docker engine is full" in said
        assert "docker system df" in said
        assert "Traceback" not in said
        nothing_is_left(small)


def test_no_engine_is_exit_3_and_names_the_way_without_docker(tmp_path: Path) -> None:
    done = run(*BUILD, DOCKER_HOST=f"unix://{tmp_path / 'none'}")
    assert done.returncode == 3
    assert "no Docker engine answers here" in done.stderr
    assert "--engine=venv" in done.stderr
    assert done.stdout == ""


def test_an_engine_that_does_not_let_this_user_in_is_exit_3(engine: SecondEngine) -> None:
    """Root without its privileges is refused like anybody else."""
    socket = engine.folder / "socket"
    before = socket.stat()
    os.chown(socket, 54321, 54321)
    socket.chmod(0o600)
    try:
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        done = run(*drop, *BUILD, DOCKER_HOST=engine.environment["DOCKER_HOST"])
    finally:
        os.chown(socket, before.st_uid, before.st_gid)
        socket.chmod(before.st_mode & 0o777)
    assert done.returncode == 3, done.stderr
    assert "permission denied" in done.stderr
    assert "usermod -aG docker" in done.stderr
    assert "--engine=venv" in done.stderr


def test_without_buildx_is_exit_3_and_says_how_to_get_it(engine: SecondEngine, tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho \"docker: 'buildx' is not a docker command.\" >&2\nexit 1\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    engine.docker("rmi", *engine.said("images", "--format={{.Repository}}:{{.Tag}}", NAME))
    done = run(*BUILD, "--builder=dockerfile", DOCKER_HOST=engine.environment["DOCKER_HOST"], PATH=path)
    assert done.returncode == 3, done.stderr
    assert "docker buildx" in done.stderr
    assert "apt install" in done.stderr


def test_without_mmdebstrap_is_exit_3_with_the_line_that_installs_it(engine: SecondEngine, tmp_path: Path) -> None:
    """Only where no base is kept: the cache here is empty but for the wheels."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "wheels").symlink_to(wheels())
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "git", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    done = run(*BUILD, DOCKER_HOST=engine.environment["DOCKER_HOST"], PATH=str(programs), LABRIG_CACHE=str(cache))
    assert done.returncode == 3, done.stderr
    assert "apt install mmdebstrap" in done.stderr
    assert 'base = "registry"' in done.stderr


def wheels() -> Path:
    from labrig import home

    return home.wheels()


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
