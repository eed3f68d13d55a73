"""A program that is followed ends with its children: at its time limit, at Ctrl-C, and when we are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labrig import program

FOLLOW = (
    "import os, sys; from labrig import program; program.follow(sys.argv[1:], list, environment=os.environ, seconds=60)"
)


def test_what_it_says_and_its_exit_code_come_back() -> None:
    command = ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]
    assert program.follow(command, list, environment=os.environ, seconds=10) == (7, ["out\n", "err\n"])


def test_the_time_limit_holds_for_children_that_keep_its_output_open() -> None:
    began = time.monotonic()
    command = ["/bin/sh", "-c", "echo a; sleep 30 & wait"]
    code, said = program.follow(command, list, environment=os.environ, seconds=0.5)
    assert time.monotonic() - began < 5
    assert (code, said) == (-signal.SIGKILL, ["a\n"])


def test_a_failure_while_its_lines_are_read_ends_it(tmp_path: Path) -> None:
    def read(lines: object) -> list[str]:
        raise KeyboardInterrupt

    mark = tmp_path / "interrupted"
    command = ["/bin/sh", "-c", f"trap 'touch {mark}; exit 1' INT; echo ready; sleep 30 & wait"]
    with pytest.raises(KeyboardInterrupt):
        program.follow(command, lambda lines: [next(iter(lines)), *read(lines)], environment=os.environ, seconds=60)
    assert mark.exists(), "it was told to stop, and had time to clean up"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
def test_it_is_told_when_we_are_killed(tmp_path: Path) -> None:
    mark = tmp_path / "told"
    script = f"trap 'touch {mark}; exit 0' TERM; echo ready > {tmp_path / 'ready'}; while :; do sleep 0.1; done"
    with subprocess.Popen([sys.executable, "-c", FOLLOW, "/bin/sh", "-c", script]) as process:
        until = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
    until = time.monotonic() + 10
    while not mark.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
