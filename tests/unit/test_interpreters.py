"""Interpreters are found by running them: fake programs of every bad kind on PATH, and good ones behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import samples

from labrig import interpreters
from labrig.errors import HostError

TOOLKIT = sys.executable
MINOR = "3.77"  # no machine has it, so only the fakes can be found


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def answer(
    path: Path | str = "/bin/sh", minor: str = MINOR, *, free_threaded: bool = False, kind: str = "linux x86_64"
) -> str:
    """A line of shell that answers as an interpreter does; ``kind`` is its system and its machine."""
    return f"echo '{json.dumps([minor, free_threaded, *kind.split(), str(path)])}'"


def answering(path: Path, minor: str = MINOR, *, free_threaded: bool = False, kind: str = "linux x86_64") -> Path:
    return program(path, answer(path, minor, free_threaded=free_threaded, kind=kind))


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No interpreter but the toolkit's own, which is a program that writes down what it was called with."""
    calls = tmp_path / "calls"
    own = program(tmp_path / "own" / "python", f'echo "$*" >> "{calls}"; exit 1')
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setattr(interpreters, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return calls


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), "/usr/bin", "/bin"]))


BAD = {
    "a shim that is not selected": "echo 'pyenv: python3.77: command not found' >&2; exit 127",
    "one that crashes": "kill -SEGV $$",
    "one that hangs": "sleep 60",
    "one that waits for input": "read line",
    "one that says nothing": "true",
    "one that prints prose": "echo hello",
    "one that prints a number": "echo 42",
    "one that prints an empty list": "echo '[]'",
    "one that prints bytes": "printf '\\377\\376'",
    "one that answers and then fails": f"{answer()}; exit 3",
    "another minor": answer(minor="3.9"),
    "a free-threaded build": answer(free_threaded=True),
    "an Intel one on a Mac, under Rosetta": answer(kind="darwin x86_64"),
}


@pytest.mark.parametrize("script", BAD.values(), ids=BAD)
def test_a_bad_one_is_passed_over_and_the_good_one_behind_it_is_found(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "first" / f"python{MINOR}", script)
    good = answering(tmp_path / "second" / f"python{MINOR}")
    on_path(monkeypatch, tmp_path / "first", tmp_path / "second")
    started = time.monotonic()
    assert interpreters.find(MINOR, offline=True) == good
    assert time.monotonic() - started < 10


def test_one_that_cannot_be_run_at_all_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in enumerate([b"", b"\x7fELF", b"#!/no/such/program\n"]):
        file = tmp_path / str(number) / f"python{MINOR}"
        file.parent.mkdir()
        file.write_bytes(content)
        file.chmod(0o755)
    closed = answering(tmp_path / "closed" / f"python{MINOR}")
    closed.chmod(0o644)
    (tmp_path / "folder" / f"python{MINOR}").mkdir(parents=True)
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / f"python{MINOR}").symlink_to(tmp_path / "gone")
    good = answering(tmp_path / "good" / f"python{MINOR}")
    on_path(monkeypatch, *(tmp_path / name for name in ("0", "1", "2", "closed", "folder", "dangling", "good")))
    assert interpreters.find(MINOR, offline=True) == good


def test_the_first_good_one_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answering(tmp_path / "a" / f"python{MINOR}")
    answering(tmp_path / "b" / f"python{MINOR}")
    on_path(monkeypatch, tmp_path / "a", tmp_path / "b")
    assert interpreters.find(MINOR, offline=True) == first


def test_pyenv_versions_are_found_behind_their_broken_shim_the_newest_patch_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "shims" / f"python{MINOR}", BAD["a shim that is not selected"])
    on_path(monkeypatch, tmp_path / "shims")
    versions = tmp_path / "pyenv" / "versions"
    answering(versions / f"{MINOR}.9" / "bin" / f"python{MINOR}")
    newest = answering(versions / f"{MINOR}.10" / "bin" / f"python{MINOR}")
    answering(versions / f"{MINOR}.11t" / "bin" / f"python{MINOR}", free_threaded=True)
    answering(versions / "3.7.7" / "bin" / f"python{MINOR}", "3.7")
    assert interpreters.find(MINOR, offline=True) == newest


def test_what_python_says_of_itself_is_taken_not_the_name_it_was_called_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / f"python{MINOR}", answer("/the/real/one"))
    on_path(monkeypatch, tmp_path / "bin")
    assert interpreters.find(MINOR, offline=True) == Path("/the/real/one")


def test_none_is_exit_3_with_what_was_tried_and_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = program(tmp_path / "shims" / f"python{MINOR}", BAD["a shim that is not selected"])
    on_path(monkeypatch, tmp_path / "shims")
    with pytest.raises(HostError) as caught:
        interpreters.find(MINOR, offline=True)
    assert caught.value.code == 3
    assert f"no Python {MINOR}" in caught.value.what
    assert str(shim) in caught.value.found
    assert f"pyenv install {MINOR}" in caught.value.fix


def test_offline_never_asks_uv(bare_machine: Path) -> None:
    with pytest.raises(HostError) as caught:
        interpreters.find(MINOR, offline=True)
    assert "uv" not in bare_machine.read_text()
    assert "uv could not" not in caught.value.what


def test_uv_is_asked_last_and_what_it_brings_is_run_before_it_is_trusted(
    bare_machine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HostError, match="uv could not fetch one"):
        interpreters.find(MINOR)
    assert "-m uv python install" in bare_machine.read_text()
    assert "asking uv" in capfd.readouterr().err

    brought = answering(tmp_path / "managed" / f"python{MINOR}")
    program(Path(sys.executable), f'case "$*" in *"python find"*) echo "{brought}";; -I*) exit 1;; esac')
    assert interpreters.find(MINOR) == brought

    answering(brought, "3.9")
    with pytest.raises(HostError):
        interpreters.find(MINOR)


def test_a_native_one_on_a_mac_is_taken_and_uv_is_asked_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(tmp_path / "intel" / f"python{MINOR}", kind="darwin x86_64")
    native = answering(tmp_path / "native" / f"python{MINOR}", kind="darwin arm64")
    on_path(monkeypatch, tmp_path / "intel", tmp_path / "native")
    assert interpreters.find(MINOR, offline=True) == native
    assert interpreters.request(MINOR, "linux") == MINOR
    assert "macos-aarch64" in interpreters.request(MINOR, "darwin")


def test_what_uv_is_asked_for_on_a_mac_is_a_download_it_has() -> None:
    """Its own list, which needs no network; under another name uv would find nothing, on a Mac only."""
    for target in samples.SHIPPED.targets.values():
        if target.device == "mps":
            request = interpreters.request(target.python, "darwin")
            command = [TOOLKIT, "-m", "uv", "python", "list", "--all-platforms", "--only-downloads", request]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout.startswith(f"cpython-{target.python}.") and "macos-aarch64" in done.stdout


def test_a_real_interpreter_is_found_by_its_own_minor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.fail("run the toolkit with an interpreter that has the GIL")
    minor = "{}.{}".format(*sys.version_info[:2])
    assert interpreters.find(minor, offline=True) == Path(sys.executable)
