"""The command that a student runs on a machine of a room: for shells of all kinds, and really run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import courses
import pytest
import samples

from labrig import lock
from labrig.fleet import wanted

TEMPLATES = courses.ROOT / "templates"
IS_ROOT = os.getuid() == 0
NOBODY = 65534
PYTHON = "/usr/bin/python3" if IS_ROOT else sys.executable  # one that everybody may run


def text(engine: str, target: str = "cpu") -> str:
    row = samples.SHIPPED.targets[target]
    locked = lock.load(row, courses.PLATFORM, courses.ROOT / "images")
    if engine == "venv":
        return wanted.native(row, locked, {}, TEMPLATES).start
    return wanted.contained(row, locked, samples.published(target), "", TEMPLATES).start


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", ["venv", "docker"])
def test_the_command_is_plain_shell(engine: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "start"
    file.write_text(text(engine, target))
    for command in ([Path(sys.executable).with_name("shellcheck"), "--shell=sh"], ["dash", "-n"], ["sh", "-n"]):
        if command[0] == "dash" and not shutil.which("dash"):
            continue  # a Mac has none; its sh is asked, and shellcheck knows the rules
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A machine's folder after an apply: labs that say how they were called, an environment, and start."""
    folder = Path(tempfile.mkdtemp(prefix="labrig-start-"))
    try:
        folder.chmod(0o755)
        for name, content in courses.LABS.items():
            (folder / "labs" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "labs" / name).write_text(content)
        (folder / "labs" / "__main__.py").write_text(
            "import os, sys\nprint(*sys.argv[1:], os.getcwd(), os.environ['PATH'].split(':')[0], sep='\\n')\n"
        )
        row = samples.SHIPPED.targets["cpu"]
        name = wanted.environment_name(lock.load(row, courses.PLATFORM, courses.ROOT / "images"))
        python = folder / "envs" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
        python.chmod(0o755)
        (folder / "start").write_text(text("venv"))
        (folder / "start").chmod(0o755)
        (folder / "home").mkdir()
        (folder / "home").chmod(0o777)
        yield folder
    finally:
        shutil.rmtree(folder)


def start(place: Path, *words: str, root: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if IS_ROOT and not root else {}
    return subprocess.run(
        [str(place / "start"), *words], cwd="/", capture_output=True, text=True, timeout=60,
        env={"PATH": os.defpath, "HOME": str(place / "home"), **variables}, **who,
    )  # fmt: skip


def test_it_serves_the_labs_from_the_folder_into_the_students_own(place: Path) -> None:
    done = start(place)
    assert done.returncode == 0, done.stderr
    serve, to, work, port, number, cwd, first = done.stdout.splitlines()
    assert [serve, to, port] == ["serve", "--to", "--port"] and work == str(place.resolve() / "home" / "labrig-work")
    assert 8888 <= int(number) < 8988 and cwd == str(place.resolve())
    assert first == str(next((place.resolve() / "envs").iterdir()) / "bin")
    assert (place / "home" / "labrig-work").is_dir()


def test_a_port_that_is_taken_is_not_chosen_and_a_named_one_is_taken(place: Path) -> None:
    usual = start(place).stdout.splitlines()[4]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(usual)))
        taken.listen()
        assert int(start(place).stdout.splitlines()[4]) > int(usual)
    assert start(place, LABRIG_PORT="9876").stdout.splitlines()[4] == "9876"


def test_another_folder_can_be_named(place: Path) -> None:
    folder = place / "home" / "my work"
    assert start(place, str(folder)).stdout.splitlines()[2] == str(folder.resolve())


@pytest.mark.parametrize("port", ["80 80", "x", "8888;id"])
def test_what_is_no_port_is_refused(place: Path, port: str) -> None:
    done = start(place, LABRIG_PORT=port)
    assert done.returncode == 2 and f"LABRIG_PORT={port} is no port" in done.stderr


def test_what_is_missing_is_said_in_words(place: Path) -> None:
    shutil.rmtree(next((place / "envs").iterdir()))
    done = start(place)
    assert done.returncode == 3 and "ask an admin to run invoke provision" in done.stderr


def test_a_machine_without_docker_is_told_so(place: Path) -> None:
    (place / "start").write_text(text("docker"))
    (place / "bin").mkdir()
    for program in ("id", "mkdir", "dirname"):
        (place / "bin" / program).symlink_to(shutil.which(program) or "")
    done = start(place, PATH=str(place / "bin"))
    assert done.returncode == 3 and "there is no docker here" in done.stderr


@pytest.mark.skipif(not IS_ROOT, reason="only root can be refused as root")
def test_root_is_refused_in_words(place: Path) -> None:
    done = start(place, root=True)
    assert done.returncode == 3 and "does not run as root" in done.stderr
