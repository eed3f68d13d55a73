"""docs/scale.md: its arithmetic, its files and its commands, held against the checkout."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hubs
import pytest

from bench import rest, student
from labrig import daemon, environment, published, sizes
from labrig.serving import settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
PEOPLE, NODES, LINK = 30, 10, 100e6 / 8  # the link: bytes a second
PLATFORM = "linux_x86_64"


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[number]


def row(begin: str) -> list[str]:
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {begin} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def size_of(target: str) -> int:
    return sum(one.bytes for one in sizes.read(ROOT / "images") if (one.target, one.platform) == (target, PLATFORM))


def warmed() -> float:
    """How many times its size `invoke warm` took an image from the registry, as it was measured."""
    found = re.search(r"^\| invoke warm itself \| [^|]+ \| ([0-9.]+) \|", MEASURED, re.MULTILINE)
    assert found
    return float(found[1])


def test_the_bytes_on_the_wire_are_those_of_the_images() -> None:
    cells = row("pulled for 30 people, `cpu` / `cuda`")
    both = [size_of("cpu"), size_of("cuda")]
    once = " / ".join(f"{size / 1e9:.2f}" for size in both) + " GB"
    each = " / ".join(f"{size * PEOPLE / 1e9:.2f}" for size in both) + " GB"
    cached = " / ".join(f"{size * warmed() / 1e9:.2f}" for size in both) + " GB"
    nodes = " / ".join(f"{size * NODES / 1e9:.2f}" for size in both) + " GB"
    campus = f"once a node: {nodes} for {NODES} nodes"
    assert cells == [once, f"{each}, through a cache {cached}", f"{once}, once", campus]


def test_the_minutes_are_those_bytes_over_the_link() -> None:
    cells = row("the same at 100 Mbit/s")
    both = [size_of("cpu"), size_of("cuda")]
    once, each, nodes, cached = (
        " / ".join(f"{size * times / LINK / 60:.1f}" for size in both) + " min"
        for times in (1, PEOPLE, NODES, warmed())
    )
    campus = f"{once} where each node has such a link, {nodes} for {NODES} nodes through one"
    assert cells == [once, f"{each}, through a cache {cached}", once, campus]


@pytest.mark.parametrize("number", [0, 1])
def test_the_settings_are_settings(number: int) -> None:
    text = block("toml", number)
    found = settings.parse(tomllib.loads(text), Path("serve.toml"), text)
    assert found.login.users == ("ada", "grace")


def test_the_limits_are_the_defaults() -> None:
    default = settings.Student()
    assert default.memory == settings.UNITS["G"] * int(re.search(r"`\[student\] memory`, (\d)G", TEXT)[1])  # type: ignore[index]
    assert default.shm == settings.UNITS["G"] * int(re.search(r"and /dev/shm into (\d)G", TEXT)[1])  # type: ignore[index]
    assert f"`cpu = {default.cpu}`" in TEXT and f"`idle = {default.idle}`" in TEXT


def test_every_lab_has_run_within_the_limit() -> None:
    table = re.search(r"<!-- hub: begin -->(.*?)<!-- hub: end -->", MEASURED, re.DOTALL)
    assert table
    found = re.findall(r"^\| `(\d\d_\w+)` \| (\d+) \| (\d+) \| (\w+)", table[1], re.MULTILINE)
    default = settings.Student()
    assert {name for name, *_ in found} == {one.stem for one in (ROOT / "labs" / "notebooks").glob("[0-9]*.ipynb")}
    for name, most, shared, ran in found:
        assert ran == "yes" and int(most) << 20 < default.memory and int(shared) << 20 < default.shm, name


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "labrig-hub.service"
    # systemd looks whether the program is there: this checkout's, instead of /opt/labrig's.
    unit.write_text(block("ini").replace("/opt/labrig", str(ROOT)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and str(unit.name) not in done.stderr, done.stderr
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=5\nRestartSek=5"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "RestartSek" in done.stderr, "systemd-analyze found nothing wrong with a misspelt key"


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_a_backup_comes_back(tmp_path: Path) -> None:
    reference = environment.build(ROOT, "cpu", "docker").reference
    names = [f"labrig-docs-scale-{tmp_path.name}-{which}" for which in ("old", "new")]
    backup, restore, remove = next(
        lines for lines in map(str.splitlines, re.findall(r"^```sh[^\n]*\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
        if "tar.gz" in lines[0]
    )  # fmt: skip

    def sh(command: str, volume: str) -> str:
        command = (
            command.replace("VOLUME.tar.gz", "backup.tar.gz").replace("VOLUME", volume).replace("IMAGE", reference)
        )
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with daemon.connect() as client:
        try:
            for name in names:
                client.volumes.create(name)
                sh("docker run --rm --user=0 -v VOLUME:/at IMAGE chown 1000:1000 /at", name)
            sh(
                "docker run --rm --user=1000:1000 -v VOLUME:/at IMAGE sh -c 'mkdir /at/a && echo mine > /at/a/b'",
                names[0],
            )
            sh(backup, names[0])
            sh(restore, names[1])
            assert sh("docker run --rm -v VOLUME:/at:ro IMAGE cat /at/a/b", names[1]) == "mine\n"
            sh(remove, names[0])
            assert names[0] not in [volume.name for volume in client.volumes.list()]
        finally:
            for volume in client.volumes.list():
                if volume.name in names:
                    volume.remove()


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_a_service_that_is_restarted_takes_new_images_and_leaves_students_alone(tmp_path: Path) -> None:
    """As systemd does it: a service of its own, ended by a SIGTERM to each of its processes."""
    with hubs.prepared(tmp_path) as made, daemon.connect() as client:
        old = published.find(made.checkout / "images", hubs.TARGET, PLATFORM)
        assert old
        with service(made):
            ada = student.log_in(made.url, "ada", made.secret())
            student.spawn(ada)
        name = f"labrig-hub-{hubs.mark(made)}-ada"
        container = client.containers.get(name)
        box = client.containers.create(old.config, ["true"])
        new = box.commit(f"labrig/{hubs.TARGET}", "docs-scale")
        box.remove()
        try:
            published.keep(made.checkout / "images", replace(old, image=new.tags[0], config=str(new.id)))
            with service(made):
                assert student.execute(ada, "print(6 * 7)") == "42\n"
                assert client.containers.get(name).id == container.id
                student.stop(ada)
                student.spawn(ada)
                assert client.containers.get(name).attrs["Image"] == new.id
        finally:
            made.invoke("serve", "--down")
            client.images.remove(new.tags[0], force=True)


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_a_kernel_over_the_limit_dies_alone(tmp_path: Path) -> None:
    with hubs.serve(tmp_path, '[student]\nmemory = "512M"\nshm = "64M"') as made:
        ada = student.log_in(made.url, "ada", made.secret())
        student.spawn(ada)
        student.api(ada, "PUT", "/api/contents/mine.txt", {"type": "file", "format": "text", "content": "mine"})
        with pytest.raises(RuntimeError, match="the kernel died"):
            student.execute(ada, "held = b'x' * (1 << 30)")
        assert student.api(ada, "GET", "/api/contents/mine.txt")["content"] == "mine"
        assert student.execute(ada, "print(6 * 7)") == "42\n"


@contextmanager
def service(made: hubs.Hub) -> Iterator[None]:
    """`invoke serve --hub --foreground`, until it answers; ended as systemd ends it (KillMode=control-group)."""
    command = [*hubs.INVOKE, "serve", "--hub", f"--config={made.config}", "--foreground"]
    with (made.checkout.parent / "said").open("wb") as said, subprocess.Popen(
        command, cwd=made.checkout, env={**os.environ, **made.variables}, stdout=said, stderr=said
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: process.poll() is not None or made.status()["state"] == "running", "the hub is up")
            assert process.poll() is None, (made.checkout.parent / "said").read_text()
            yield
        finally:
            keeper = int((made.place / "pid").read_text())
            numbers = [process.pid, keeper, *rest.descendants(keeper)]
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
            wait_until(lambda: process.poll() is not None and not is_there(keeper), "all of it has ended")


def is_there(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + hubs.PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {hubs.PATIENCE} s: {what}"
        time.sleep(0.2)
