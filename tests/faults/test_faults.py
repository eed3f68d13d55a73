"""Faults around a real environment: a checkout that cannot be written, Ctrl-C and kill -9 while labs run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labrig import environment, home
from labrig.engines import Environment

ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]


@pytest.fixture(scope="session")
def made() -> Environment:
    """The native environment of the target that fits this host."""
    return environment.build(ROOT, engine="venv")


@pytest.fixture
def cache(made: Environment, tmp_path: Path) -> Path:
    """A cache folder of our own with the environments that are there."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "envs").symlink_to(home.environments())
    return folder


# --- a checkout that cannot be written --------------------------------------------------------------------------

WAYS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


@pytest.mark.skipif(sys.platform != "linux", reason="mounts the checkout read-only with Linux's unshare")
def test_a_read_only_checkout_builds_runs_labs_and_verifies(made: Environment, cache: Path, tmp_path: Path) -> None:
    way = next((w for w in WAYS if subprocess.run([*w, "true"], capture_output=True, timeout=10).returncode == 0), None)
    if way is None:
        pytest.skip("this container allows neither mounts nor user namespaces: nothing can be mounted read-only")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("tasks.py", "pyproject.toml", "images", "templates", "labrig", "labs", "tests"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(checkout / name)], check=True, timeout=60)
    script = (
        'mount --bind "$0" "$0"\nmount -o remount,ro,bind "$0"\ncd "$0"\n'
        '! touch written 2>/dev/null || exit 99\n"$@" build $TARGET\n"$@" labs $TARGET --quick --lab=01\n'
        '"$@" verify $TARGET --json >"$OUT"\n'
    )
    done = subprocess.run(
        [*way, "sh", "-ec", script, str(checkout), *INVOKE],
        capture_output=True, text=True, timeout=300,
        env={
            **os.environ, "LABRIG_CACHE": str(cache), "OUT": str(tmp_path / "verify.json"),
            "TARGET": f"--target={made.target.name} --engine=venv",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = cache / "results" / f"{made.target.name}-venv-quick"
    environment_line, report_line = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert Path(environment_line).resolve() == Path(made.reference).resolve()
    assert report_line.endswith(str(results / "report.html"))
    assert (results / "report.html").exists()
    assert f"results go to {results}" in done.stderr
    assert "Traceback" not in done.stderr
    verified = json.loads((tmp_path / "verify.json").read_text())
    assert verified["failed"] == 0
    assert verified["passed"] > 0


# --- labs that are stopped --------------------------------------------------------------------------------------


def processes_of(out: Path) -> list[int]:
    """Processes that were given this results folder."""
    table = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=1) for line in table.splitlines())
    return [int(row[0]) for row in rows if len(row) > 1 and str(out) in row[1]]


@contextlib.contextmanager
def labs(made: Environment, out: Path, log: Path, *size: str) -> Iterator[subprocess.Popen[bytes]]:
    """`invoke labs`, in a process group of its own."""
    command = [*INVOKE, "labs", f"--target={made.target.name}", "--engine=venv", f"--out={out}", *size]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_labs(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a lab has started, and a little on."""
    until = time.monotonic() + 60
    while log.read_text().count(" started") < 1:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    time.sleep(1)


def test_labs_stop_with_ctrl_c_and_with_a_killed_invoke_and_go_on_with_the_next_run(
    made: Environment, tmp_path: Path
) -> None:
    out, log = tmp_path / "results", tmp_path / "log"

    with labs(made, out, log, "--jobs=1") as process:  # all, at full size: they would go on for half a minute
        wait_for_labs(log, process)
        assert processes_of(out)
        process.kill()  # invoke alone: nothing could tell the labs
        process.wait()
        killed = time.monotonic()
        while processes_of(out):
            assert time.monotonic() - killed < 6, "labs without anyone who waits for them"
            time.sleep(0.1)

    with labs(made, out, log, "--quick", "--lab=01", "--lab=06") as process:
        wait_for_labs(log, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130, log.read_text()
        assert not processes_of(out)
    said = log.read_text()
    assert "labrig: interrupted" in said
    assert "Traceback" not in said

    with labs(made, out, log, "--quick", "--lab=01", "--lab=06") as process:
        assert process.wait(timeout=120) == 0, log.read_text()
    ended = {file.parent.name: json.loads(file.read_text())["status"] for file in out.glob("*/metrics.json")}
    assert len(ended) == 2
    assert set(ended.values()) == {"passed"}
    assert (out / "report.html").exists()
    assert log.read_text().splitlines()[-1].endswith(str(out / "report.html"))
