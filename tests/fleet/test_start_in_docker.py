"""The start command of a machine with Docker, run by a student against a real engine and the real image."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import courses
import pytest
import samples

from labrig.fleet import wanted

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
SOCKET = Path("/var/run/docker.sock")
STUDENT = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="labrig-start-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    (folder / "home").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def status(url: str, until: float) -> int:
    """What it answers, once it does: the port is published before the server listens."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - of 127.0.0.1
                return int(answer.status)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def test_a_student_gets_jupyterlab_at_this_machine_only(place: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "invoke", "build", "--target=cpu", "--engine=docker"], cwd=courses.ROOT, check=True,
        capture_output=True, text=True, timeout=1000,
    )  # fmt: skip
    row = samples.SHIPPED.targets["cpu"]
    entry = samples.published("cpu", image=made.stdout.strip())
    start = place / "start"
    start.write_text(wanted.contained(row, samples.lock_of(place), entry, "", courses.ROOT / "templates").start)
    start.chmod(0o755)
    # Whoever is root here starts it as somebody else, who may use the engine; others start it as themselves.
    who = {"user": STUDENT, "group": STUDENT, "extra_groups": [SOCKET.stat().st_gid]} if os.getuid() == 0 else {}
    with subprocess.Popen(
        [str(start)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(place / "home")}, start_new_session=True, **who,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen, address = "", None
        for line in process.stdout:
            seen += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/\S*\?token=(\w+)", line):
                address = found
                break
        try:
            assert address, seen
            url = f"http://127.0.0.1:{address[1]}/api/status?token={address[2]}"
            assert status(url, time.monotonic() + 60) == 200, seen
            assert (place / "home" / "labrig-work" / "labs").is_dir()
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=60)
