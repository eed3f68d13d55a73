"""A Docker engine of the tests' own, beside the one that is there, which may be killed and may run out of disk.

It stands in a network of its own (a second engine would take the first one's bridge away) and keeps its images in
memory. Needs root, as every engine does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START = 60  # seconds


@dataclass
class SecondEngine:
    """Its folder, its address, and, while it runs, its process."""

    folder: Path
    environment: dict[str, str] = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.folder / 'socket'}"}

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        command = [
            "unshare", "--net", "dockerd", "--data-root", str(self.folder / "data"), "--exec-root",
            str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"), "--host",
            self.environment["DOCKER_HOST"], "--bridge=none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        until = time.monotonic() + START
        while self.docker("version").returncode:
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", *arguments], env=self.environment, capture_output=True, text=True, timeout=120)

    def said(self, *arguments: str) -> list[str]:
        """The lines of an answer; the engine must give one."""
        done = self.docker(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    def kill(self) -> None:
        """End the engine at once, with its containerd."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None
        found = subprocess.run(
            ["pgrep", "-f", str(self.folder)], capture_output=True, text=True, timeout=20
        ).stdout.split()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def second_engine(megabytes: int) -> Iterator[SecondEngine]:
    """A running engine with so much room; everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="labrig-"))  # a socket's path may have about 100 characters only
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "labrig", str(folder)], check=True, timeout=20)
    engine = SecondEngine(folder)
    try:
        engine.start()
        yield engine
    finally:
        if engine.process:
            engine.process.terminate()  # it ends its containerd, and takes its mounts away
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.process.wait(20)
        engine.kill()
        time.sleep(0.2)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(folder))), reverse=True):
            subprocess.run(["umount", "--lazy", mount], timeout=20, check=False)
        shutil.rmtree(folder, ignore_errors=True)
