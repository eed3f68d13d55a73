"""A Docker engine of a test's own with networks, which may be stopped under a hub, and which has GPUs for the asking.

It stands in a network namespace of its own, where it can have a bridge and rules without touching the first one's. This
process goes there, too, so that 127.0.0.1 is the engine's. Needs root, as every engine does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START = 60  # seconds
NETWORK = 0x40000000  # CLONE_NEWNET, sched.h
# An engine hands out GPUs once this program is on its PATH, and runs it before a container starts (moby,
# daemon/nvidia_linux.go). NVIDIA's puts the devices in; this one nothing, so what is seen is which id was asked for.
HOOK = "nvidia-container-runtime-hook"
# What this host asks for its GPUs.
SMI = """#!/bin/sh
case "$*" in
  *--query-gpu*) for one in {ids}; do echo "Tesla T4, 7.5, 15360"; done ;;
  *) echo "no such question: $*" >&2; exit 1 ;;
esac
"""


@dataclass
class Engine:
    """Its folder, the name of its network, and its process while it runs."""

    folder: Path
    network: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.folder / 'socket'}"

    def docker(self, *words: str) -> str:
        done = subprocess.run(["docker", "--host", self.address, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        (self.folder / "pid").unlink(missing_ok=True)
        command = [
            "dockerd", "--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec"),
            "--pidfile", str(self.folder / "pid"), "--host", self.address,
        ]  # fmt: skip
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PATH": path},
            )  # fmt: skip
        until = time.monotonic() + START
        while True:
            with contextlib.suppress(AssertionError):
                self.docker("version")
                return
            assert time.monotonic() < until and self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """As an administrator stops it: its containers end with it."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.process = None


@contextlib.contextmanager
def engine(folder: Path, image: str) -> Iterator[Engine]:
    """A running engine that has an image of the first one; everything of it is gone afterwards."""
    folder.mkdir()
    (folder / "bin").mkdir()
    (folder / "bin" / HOOK).write_text("#!/bin/sh\nexit 0\n")
    (folder / "bin" / HOOK).chmod(0o755)
    made = Engine(folder, f"labrig-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", made.network], check=True, timeout=20)
    try:
        with within(made.network):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
            made.start()
            with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
                loaded = ["docker", "--host", made.address, "load", "--quiet"]
                subprocess.run(loaded, stdin=saved.stdout, check=True, timeout=600, stdout=subprocess.DEVNULL)
            yield made
    finally:
        if made.process:
            made.stop()
        subprocess.run(["ip", "netns", "delete", made.network], check=True, timeout=20)
        for mount in sorted(_mounts(folder), reverse=True):
            subprocess.run(["umount", "--lazy", mount], timeout=20, check=False)


@contextlib.contextmanager
def within(network: str) -> Iterator[None]:
    """This thread, and what it starts, in a network namespace (setns(2)); Python has it from 3.12 on."""
    with Path("/proc/thread-self/ns/net").open() as before, Path("/run/netns", network).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


def _mounts(folder: Path) -> list[str]:
    found = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [one for one in found if one.startswith(str(folder))]
