"""A program that takes long: its lines as they come, a limit of time, and nothing left of it when we are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

GRACE = 15.0  # seconds that a program gets to clean up after Ctrl-C, which is handed on to it


def follow(
    command: Sequence[str],
    read: Callable[[IO[str]], Iterable[str]],
    *,
    environment: Mapping[str, str],
    seconds: float,
    keep: Sequence[int] = (),
) -> tuple[int, list[str]]:
    """Run a program to its end; gives its exit code and the lines that ``read`` gave of stdout and stderr together.

    ``keep`` are descriptors that it inherits. After ``seconds`` it is killed, and the exit code is that of SIGKILL. It
    gets SIGTERM when this process dies, even by kill -9 (on Linux).
    """
    with subprocess.Popen(
        list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", pass_fds=keep, preexec_fn=die_with_parent,
        process_group=0,  # its children, which may hold its output open, end with it
    ) as process:  # fmt: skip
        assert process.stdout is not None  # noqa: S101 for the type checker
        late = threading.Timer(seconds, _signal, (process, signal.SIGKILL))
        late.start()
        try:
            said = list(read(process.stdout))
            return process.wait(), said
        except BaseException:
            _signal(process, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            _signal(process, signal.SIGKILL)
            raise
        finally:
            late.cancel()


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def die_with_parent() -> None:
    """In the child: PR_SET_PDEATHSIG of prctl(2)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
