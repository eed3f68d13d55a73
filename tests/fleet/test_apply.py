"""`invoke provision` against real machines: containers with an sshd each, and a lock of tiny wheels.

Every run is a process of its own, as gevent patches the one that it runs in.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import courses
import pytest
import registries
import rooms
import samples

from labrig import home, published

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
MOST_CPU = 2.0  # seconds of the controller for the second apply of four hosts
MOST_BYTES = 1_000_000  # that a lab edit costs a host


@dataclass(frozen=True)
class Ran:
    """A run: exit code, rows by host, what went to stderr, seconds, and CPU seconds of it and all it started."""

    code: int
    rows: dict[str, dict[str, Any]]
    said: str
    seconds: float
    cpu: float

    def states(self) -> dict[str, str]:
        return {name: row["state"] for name, row in self.rows.items()}

    def kinds(self, host: str) -> list[str]:
        return [change.partition(":")[0] for change in self.rows[host]["changes"]]


def command(inventory: Path | str, *flags: str) -> list[str]:
    named = inventory if isinstance(inventory, str) else f"--inventory={inventory}"
    return [sys.executable, "-m", "invoke", "provision", named, "--json", *flags]


def environment(checkout: courses.Checkout, **more: str) -> dict[str, str]:
    return {**os.environ, "LABRIG_CACHE": str(checkout.cache), **more}


def provision(
    checkout: courses.Checkout, inventory: Path | str, *flags: str, timeout: float = 300, **variables: str
) -> Ran:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command(inventory, *flags), cwd=checkout.root, env=environment(checkout, **variables), capture_output=True,
        text=True, timeout=timeout,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = {row["host"]: row for row in json.loads(done.stdout)}
    return Ran(done.returncode, rows, done.stderr, time.monotonic() - begun, cpu)


@dataclass(frozen=True)
class World:
    room: rooms.Room
    checkout: courses.Checkout
    inventory: Path
    first: Ran

    def run(self, *flags: str) -> Ran:
        return provision(self.checkout, self.inventory, *flags)

    def spoil(self, script: str, host: str = "pc01") -> None:
        self.room[host].sh(f"cd /opt/labrig; {script}", user="admin")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Four machines after their first apply."""
    folder = tmp_path_factory.mktemp("world")
    checkout = courses.make(folder)
    with rooms.hosts(4) as room:
        inventory = room.write(folder, target="cpu", engine="venv")
        plan = provision(checkout, inventory, "--plan")
        assert plan.code == 8, (plan.rows, plan.said)
        assert plan.kinds("pc01") == ["folder (sudo)", "wheels", "environment", "labs", "start"]
        assert room["pc01"].sh("ls /opt").split() == [], "a plan changes nothing"
        first = provision(checkout, inventory)
        assert first.code == 0, (first.rows, first.said)
        yield World(room, checkout, inventory, first)


def test_first_apply_brings_everything(world: World) -> None:
    assert set(world.first.states().values()) == {"OK"} and len(world.first.rows) == 4
    for host in world.room.hosts:
        name = host.sh("ls /opt/labrig/envs").strip()
        python = f"/opt/labrig/envs/{name}/bin/python"
        assert (
            host.sh(f"{python} -c 'import torch, beta; print(torch.__version__)'", user="guest").strip() == "2.13.0+cpu"
        )
        assert "serve --to" in host.sh("LABRIG_PORT=9000 /opt/labrig/start", user="guest")
        listed = host.sh("ls -A /opt/labrig").split()
        assert "applied.json" in listed and "applying.json" not in listed and "wheels" not in listed
        assert not host.sh("find /opt/labrig/labs -name colab").strip()


def test_second_apply_changes_nothing_and_costs_little(world: World) -> None:
    again = world.run()
    assert again.code == 0 and all(row["changes"] == [] for row in again.rows.values()), again.rows
    assert again.cpu <= MOST_CPU, f"{again.cpu:.2f} s of CPU for {len(again.rows)} hosts"
    print(f"second apply: {again.cpu:.2f} s CPU, {again.seconds:.1f} s")


# As pip would: a distribution with its RECORD, and a file that runs when Python starts.
INSTALL = r"""for one in envs/*; do cd $one/lib/python3.11/site-packages
at=gamma-1.dist-info; mkdir -p $at; touch gamma.py; echo pip >$at/INSTALLER; echo 'import random' >zz.pth
printf 'Name: gamma\nVersion: 1\n' >$at/METADATA
printf '%s,,\n' gamma.py $at/METADATA $at/INSTALLER $at/RECORD >$at/RECORD
done"""
SPOILT = {
    "edited lab": ("echo 'print(2)' >labs/01_one.py", ["labs"], "1 of 4 files"),
    "deleted lab": ("rm labs/data/digits.txt", ["labs"], "1 of 4 files"),
    "edited start": ("echo '# mine' >>start", ["start"], "start command"),
    "removed package": ("rm -r envs/*/lib/python3.11/site-packages/beta*", ["wheels", "environment"], "beta"),
    "edited package": ("echo 'x = 1' >>envs/*/lib/python3.11/site-packages/alpha/__init__.py",
                       ["wheels", "environment"], "alpha"),
    "added file": ("for one in envs/*; do touch $one/lib/python3.11/site-packages/alpha/more.py; done", ["besides"],
                   "of no package: lib/python3.11/site-packages/alpha/more.py"),
    "installed package": (INSTALL, ["besides"], "besides the lock: gamma"),
    "edited program": ("for one in envs/*/bin/activate; do echo '# mine' >>$one; done", ["wheels", "environment"],
                       "cpu-"),
    "start that others may write": ("chmod 777 start", ["rights"], "start"),
    "labs that others cannot read": ("chmod 700 labs", ["rights"], "labs"),
    "note lost": ("rm applied.json", ["note"], "what was applied"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_drift_is_found_and_repaired_alone(world: World, what: str) -> None:
    script, kinds, words = SPOILT[what]
    if what == "edited package":
        script = "for one in envs/*/lib/python3.11/site-packages/alpha/__init__.py; do echo 'x = 1' >>$one; done"
    inode = world.room["pc01"].sh("stat -c %i /opt/labrig/envs/*/bin/pip")
    world.spoil(script)
    plan = world.run("--plan")
    assert plan.code == 8 and plan.states() == {"pc01": "DRIFT", **{f"pc0{n}": "OK" for n in (2, 3, 4)}}
    assert plan.kinds("pc01") == kinds and words in "".join(plan.rows["pc01"]["changes"])
    assert all(not row["changes"] for name, row in plan.rows.items() if name != "pc01")
    repaired = world.run("--limit=pc01")
    assert repaired.code == 0 and repaired.kinds("pc01") == kinds, repaired.rows
    assert world.run("--plan").code == 0
    if what != "edited program":
        assert world.room["pc01"].sh("stat -c %i /opt/labrig/envs/*/bin/pip") == inode, "no new environment for that"


def test_what_cannot_be_mended_is_said_and_costs_no_other(world: World) -> None:
    world.spoil("rm start && mkdir start", "pc02")
    world.spoil("mkfifo labs/pipe", "pc03")
    ran = world.run()
    assert ran.states() == {"pc01": "OK", "pc02": "FAILED", "pc03": "OK", "pc04": "OK"}, ran.rows
    assert "start" in ran.rows["pc02"]["why"] and ran.seconds < 60
    world.spoil("rmdir start", "pc02")
    world.spoil("rm labs/pipe", "pc03")
    assert world.run().code == 0


def test_two_at_once_wait_for_each_other(world: World) -> None:
    world.spoil("rm -r envs labs start")
    both = [
        subprocess.Popen(
            command(world.inventory, "--limit=pc01"), cwd=world.checkout.root, env=environment(world.checkout),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert sum("waiting for it" in error for _, error in said) == 1
    assert sorted(bool(json.loads(out)[0]["changes"]) for out, _ in said) == [False, True]


def test_a_terminal_has_a_live_table_of_as_many_hosts_as_it_has_lines_for(world: World) -> None:
    world.spoil("rm start")
    main, other = pty.openpty()
    more = {"TERM": "xterm", "COLUMNS": "100", "LINES": "5"}
    with subprocess.Popen(
        command(world.inventory), cwd=world.checkout.root, env=environment(world.checkout, **more),
        stdout=subprocess.PIPE, stderr=other, text=True,
    ) as process:  # fmt: skip
        os.close(other)
        seen = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(main, 4096):
                seen += part
        rows = json.loads(process.communicate(timeout=60)[0])
    os.close(main)
    assert process.returncode == 0 and len(rows) == 4, seen
    drawn = seen.decode().split("1 of 4 hosts are not shown")
    assert len(drawn) > 2 and "\x1b[?25h" in drawn[-1], "drawn more than at its end, and the cursor is back"
    assert any("pc01" in one and "start" in one for one in drawn[:-1]), "what is done there"
    assert all(one.count("pc0") == 3 for one in drawn[:-1]), drawn
    assert drawn[-2].count("OK") == 3, "the last one says how it ended"


def test_what_an_admin_put_beside_the_labs_stays_and_a_dropped_lab_goes(world: World) -> None:
    world.spoil("echo mine >labs/mine.py")
    extra = world.checkout.root / "labs" / "09_extra.py"
    extra.write_text("print(9)\n")
    assert world.run().code == 0
    assert world.room["pc02"].sh("cat /opt/labrig/labs/09_extra.py") == "print(9)\n"
    extra.unlink()
    assert world.run("--plan").kinds("pc02") == ["labs"]
    assert world.run().code == 0
    assert world.room["pc01"].sh("cd /opt/labrig/labs; ls *.py").split() == [
        "01_one.py", "__init__.py", "__main__.py", "mine.py",
    ]  # fmt: skip
    world.spoil("rm labs/mine.py")


def test_a_killed_apply_shows_and_the_next_one_finishes(world: World) -> None:
    world.spoil("rm -r envs", "pc03")
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(
        command(world.inventory, "--limit=pc03"), cwd=world.checkout.root, env=environment(world.checkout),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            said.write(line)
            if line.startswith("pc03: environment:"):
                process.send_signal(signal.SIGKILL)
                break
        else:
            said.seek(0)
            raise AssertionError(said.read())
    assert "applying.json" in world.room["pc03"].sh("ls /opt/labrig")
    plan = world.run("--plan", "--limit=pc03")
    assert plan.code == 8 and plan.rows["pc03"]["state"] == "DRIFT"
    assert "has not ended" in plan.rows["pc03"]["why"]
    finished = world.run("--limit=pc03")
    assert finished.code == 0, finished.rows
    assert world.run("--plan").code == 0
    assert "applying.json" not in world.room["pc03"].sh("ls /opt/labrig")


def interrupted_after(process: subprocess.Popen[str], *words: str) -> str:
    """All that it says on stderr; Ctrl-C comes once it has said these."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if all(one in seen for one in words):
            process.send_signal(signal.SIGINT)
            break
    return seen + process.stderr.read()


def test_ctrl_c_keeps_what_was_finished(world: World) -> None:
    world.spoil("rm start", "pc01")
    world.spoil("rm -r envs", "pc02")
    with subprocess.Popen(
        command(world.inventory, "--limit=pc01,pc02"), cwd=world.checkout.root, env=environment(world.checkout),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        seen = interrupted_after(process, "pc01: OK", "pc02: environment:")
    assert process.returncode == 130 and "Traceback" not in seen, seen
    assert world.run("--plan").states()["pc01"] == "OK"
    again = world.run("--limit=@failed")
    assert again.code == 0 and again.states() == {"pc02": "OK"}, again.rows
    assert world.run("--plan").code == 0


def test_a_frozen_host_costs_its_row_and_is_tried_again_alone(world: World) -> None:
    assert world.run().code == 0
    world.room["pc04"].freeze()
    try:
        stuck = world.run("--budget=15", "--retries=1")
    finally:
        world.room["pc04"].thaw()
    assert stuck.code == 7 and stuck.states() == {"pc01": "OK", "pc02": "OK", "pc03": "OK", "pc04": "TIMEOUT"}
    assert "tried again" in stuck.said and "--limit=pc04" in stuck.rows["pc04"]["fix"]
    again = world.run("--limit=@failed")
    assert again.code == 0 and again.states() == {"pc04": "OK"}


def test_no_more_hosts_are_begun_once_too_many_have_failed(world: World) -> None:
    world.spoil("rm start", "pc02")
    world.room["pc01"].freeze()
    try:
        ran = world.run("--max-fail=0", "--parallel=1", "--budget=15")
    finally:
        world.room["pc01"].thaw()
    assert ran.code == 7
    assert "not tried" in ran.rows["pc04"]["why"] and ran.rows["pc02"]["changes"] == [], ran.rows
    assert world.run().code == 0


def test_all_good_hosts_finish_whatever_the_others_do(tmp_path: Path) -> None:
    """Four good machines beside one that refuses, one that is frozen, one that babbles, one that freezes at work."""
    checkout, budget = courses.make(tmp_path), 45
    with rooms.hosts(4, refused=1, frozen=1, garbage=1, freezing=1, freezes_after=8) as room:
        inventory = room.write(tmp_path, target="cpu", engine="venv")
        ran = provision(checkout, inventory, f"--budget={budget}")
        assert ran.code == 7 and ran.states() == {
            "pc01": "OK", "pc02": "OK", "pc03": "OK", "pc04": "OK", "refused1": "UNREACHABLE", "frozen1": "TIMEOUT",
            "garbage1": "FAILED", "freezing1": "TIMEOUT",
        }, ran.rows  # fmt: skip
        assert ran.seconds <= budget + 2, f"{ran.seconds:.1f} s"
        assert all(row["why"] and row["fix"] for row in ran.rows.values() if row["state"] != "OK")
        assert ran.rows["freezing1"]["changes"], "it froze after something was done there"
        again = provision(checkout, inventory, "--limit=pc01,pc02,pc03,pc04")
        assert again.code == 0 and all(row["changes"] == [] for row in again.rows.values())


def test_a_lab_edit_reaches_eight_hosts_with_little(tmp_path: Path) -> None:
    checkout = courses.make(tmp_path)
    with rooms.hosts(8) as room:
        inventory = room.write(tmp_path, target="cpu", engine="venv")
        assert provision(checkout, inventory).code == 0
        received = {host.name: int(host.sh("cat /sys/class/net/eth0/statistics/rx_bytes")) for host in room.hosts}
        (checkout.root / "labs" / "01_one.py").write_text("print(11)\n")
        ran = provision(checkout, inventory)
        assert ran.code == 0 and all(ran.kinds(host.name) == ["labs"] for host in room.hosts)
        for host in room.hosts:
            now = int(host.sh("cat /sys/class/net/eth0/statistics/rx_bytes"))
            assert now - received[host.name] <= MOST_BYTES
            print(f"{host.name}: {now - received[host.name]} bytes")
            assert host.sh("cat /opt/labrig/labs/01_one.py") == "print(11)\n"


def test_wheels_that_the_wheelhouse_lacks_are_fetched_for_those_who_need_them(tmp_path: Path) -> None:
    checkout = courses.make(tmp_path, in_wheelhouse=False)
    offline = {"PIP_FIND_LINKS": str(checkout.wheels), "PIP_NO_INDEX": "1", "LABRIG_INDEX_PYTORCH_CPU": "none"}
    with rooms.hosts(1) as room:
        inventory = room.write(tmp_path, target="cpu", engine="venv")
        ran = provision(checkout, inventory, **offline)
        assert ran.code == 0, (ran.rows, ran.said)
        assert provision(checkout, inventory, "--plan", **offline).code == 0


def test_the_machine_you_sit_at(tmp_path: Path) -> None:
    if not shutil.which("python3.11"):
        pytest.skip("no Python 3.11 here")
    checkout = courses.make(tmp_path)
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home"), "LABRIG_HOST": ""}
    first = local(checkout, **home)
    assert first.code == 0 and first.states() == {"local": "OK"}, (first.rows, first.said)
    assert (tmp_path / "home" / ".labrig" / "start").exists()
    again = local(checkout, **home)
    assert again.code == 0 and again.rows["local"]["changes"] == []


def local(checkout: courses.Checkout, **variables: str) -> Ran:
    return provision(checkout, "--host=@local", **variables)


# As a controller that was killed may leave a host: dpkg killed in one package (its own child does that, once), another
# unpacked without what it depends on.
BROKEN_OFF = r"""
apt-get purge -y -qq python3-venv python3.11-venv >/dev/null 2>&1
cd "$(mktemp -d)"
mkdir -p killed/DEBIAN late/DEBIAN
printf '%s\n' Version:\ 1 Architecture:\ all Maintainer:\ a@example.org Description:\ a >common
{ echo Package: killed; cat common; } >killed/DEBIAN/control
{ echo Package: late; echo Depends: python3-venv; cat common; } >late/DEBIAN/control
printf '#!/bin/sh\nmkdir /broken-off 2>/dev/null && kill -9 $PPID || :\n' >killed/DEBIAN/postinst
chmod 755 killed/DEBIAN/postinst
for one in killed late; do dpkg-deb --build $one >/dev/null; done
dpkg --unpack late.deb >/dev/null
! dpkg --install killed.deb >/dev/null 2>&1
apt-get install -y python3.11-venv 2>&1 | grep 'dpkg was interrupted'
"""
# And its apt goes on: it has the locks until somebody waits, and then for seconds, one after the other.
HOLD = """
import fcntl, subprocess, time
files = [open(name, "w") for name in ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock")]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
while subprocess.run(["pgrep", "-f", "configure -a"], stdout=subprocess.DEVNULL).returncode:
    time.sleep(0.1)
for file in files:
    time.sleep(2)
    file.close()
"""


def test_a_python_that_makes_no_environments_is_completed(tmp_path: Path) -> None:
    """Also where packages were broken off, and apt is busy."""
    checkout = courses.make(tmp_path)
    with rooms.hosts(1) as room, busy(room["pc01"]) as holder:
        inventory = room.write(tmp_path, target="cpu", engine="venv")
        plan = provision(checkout, inventory, "--plan")
        assert plan.kinds("pc01")[:2] == ["python (sudo)", "folder (sudo)"], plan.rows
        ran = provision(checkout, inventory)
        assert ran.code == 0 and ran.states() == {"pc01": "OK"}, (ran.rows, ran.said)
        assert holder.wait(30) == 0 and not room["pc01"].sh("dpkg --audit; ls /var/lib/dpkg/updates")
        assert room["pc01"].sh("dpkg-query -W -f '${db:Status-Abbrev}' killed late").split() == ["ii", "ii"]


@contextmanager
def busy(host: rooms.Host) -> Iterator[subprocess.Popen[str]]:
    """The host as it was left, and what holds its locks."""
    assert "dpkg was interrupted" in host.sh(BROKEN_OFF)
    holding = ["docker", "exec", host.container, "python3", "-c", HOLD]
    with subprocess.Popen(holding, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder


def test_the_real_torch_arrives_whole(tmp_path: Path) -> None:
    """The shipped target cpu, from the wheelhouse of whoever runs this; bytes of the first apply are the plan's."""
    with rooms.hosts(1) as room:
        inventory = room.write(tmp_path, target="cpu", engine="venv")
        real = courses.Checkout(courses.ROOT, home.root(), tmp_path, samples.lock_of(tmp_path))
        plan = provision(real, inventory, "--plan", timeout=600)
        first = provision(real, inventory, "--budget=1100", timeout=1150)
        assert first.code == 0, (first.rows, first.said)
        assert first.rows["pc01"]["size"] == plan.rows["pc01"]["size"] > 200_000_000
        again = provision(real, inventory)
        assert again.code == 0 and again.rows["pc01"]["changes"] == []
        python = room["pc01"].sh("ls -d /opt/labrig/envs/*").strip() + "/bin/python"
        said = room["pc01"].sh(f"{python} -c 'import torch; print(torch.ones(2).sum().item())'", user="guest")
        assert said.strip() == "2.0"
        print(f"first apply: {first.seconds:.0f} s, {first.cpu:.1f} s CPU here; second {again.seconds:.1f} s")


# --- Docker -----------------------------------------------------------------------------------------------------------


@contextmanager
def cache_of(upstream: str, folder: Path) -> Iterator[str]:
    """A pull-through cache of a registry, on 127.0.0.1."""
    port = registries.free_port()
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "cached")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "proxy": {"remoteurl": f"http://{upstream}"},
    }
    config = folder / "through" / "config.yml"
    config.parent.mkdir()
    config.write_text(json.dumps(settings))
    with registries.run(config, port):
        yield f"127.0.0.1:{port}"


def docker(*words: str, given: str = "") -> str:
    done = subprocess.run(["docker", *words], input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def publish(checkout: courses.Checkout, registry: str) -> None:
    """Push an image of a few bytes as target cpu's, and note it as published."""
    name = f"{registry}/lab/cpu:apply"
    docker("build", "--quiet", "--tag", name, "-", given="FROM scratch\nLABEL labrig.target=cpu\nWORKDIR /apply\n")
    try:
        docker("push", "--quiet", name)
        reference = docker("inspect", "--format", "{{index .RepoDigests 0}}", name)
        config = docker("inspect", "--format", "{{.Id}}", name)
    finally:
        docker("rmi", name)
    published.keep(
        checkout.root / "images",
        samples.published("cpu", reference=reference, config=config, size=1000, image="labrig/cpu:2.13.0-0123456789ab"),
    )


def test_an_image_comes_by_digest_through_the_rooms_cache(tmp_path: Path) -> None:
    checkout = courses.make(tmp_path)
    with registries.serve(tmp_path) as origin, cache_of(origin, tmp_path) as cache, rooms.hosts(0, docker=1) as room:
        publish(checkout, origin)
        inventory = room.write(tmp_path, cache=cache, target="cpu")
        (host,) = room.hosts
        plan = provision(checkout, inventory, "--plan")
        assert plan.code == 8 and plan.kinds(host.name) == ["folder (sudo)", "image", "start"], plan.rows
        first = provision(checkout, inventory, "--cold")
        assert first.code == 0 and first.rows[host.name]["engine"] == "docker", first.rows
        assert "labrig/cpu:latest" in host.sh("docker images --format '{{.Repository}}:{{.Tag}}'")
        assert registries.blobs(tmp_path) and list((tmp_path / "cached").rglob("data")), "it came through the cache"
        again = provision(checkout, inventory)
        assert again.code == 0 and again.rows[host.name]["changes"] == []
        assert "you may not use Docker" in host.sh("/opt/labrig/start 2>&1 || :", user="guest")
        host.sh("docker rmi labrig/cpu:latest")
        drift = provision(checkout, inventory, "--plan")
        assert drift.kinds(host.name) == ["image"] and drift.rows[host.name]["size"] == 0
        assert provision(checkout, inventory).code == 0
        assert provision(checkout, inventory, "--plan").code == 0


FREEZE = """#!/bin/sh
[ "$1" != pull ] || { sudo -n pkill -STOP -x sshd; exec sleep 600; }
exec /usr/bin/docker "$@"
"""


def test_a_host_that_freezes_while_it_pulls_holds_up_no_other(tmp_path: Path) -> None:
    """Two pull at once: the third does as soon as the second has ended, whatever becomes of the first."""
    checkout = courses.make(tmp_path)
    with registries.serve(tmp_path) as origin, rooms.hosts(0, docker=3) as room:
        publish(checkout, origin)
        inventory = room.write(tmp_path, target="cpu")
        place = "/usr/local/bin/docker"
        room["docker1"].sh(f"cat >{place} <<'END'\n{FREEZE}END\nchmod 755 {place}")
        with subprocess.Popen(
            command(inventory, "--wave=2", "--budget=100"), cwd=checkout.root, env=environment(checkout),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            seen = interrupted_after(process, "docker2: OK", "docker3: OK")
        assert process.returncode == 130 and "docker1: TIMEOUT" not in seen, seen
        assert seen.index("images: 3 hosts, 3.0 kB, 2 at once") < seen.index("docker1: image:"), seen


def test_an_engine_is_installed_where_that_is_asked_for(tmp_path: Path) -> None:
    """Debian's packages, really; no init starts it in this machine, which has to be said and not taken for success."""
    checkout = courses.make(tmp_path)
    with registries.serve(tmp_path) as origin, cache_of(origin, tmp_path) as cache, rooms.hosts(1) as room:
        publish(checkout, origin)
        inventory = room.write(tmp_path, cache=cache, target="cpu", engine="docker")
        refused = provision(checkout, inventory, "--plan")
        assert refused.code == 7 and "no Docker engine" in refused.rows["pc01"]["why"]
        assert 'install = ["docker"]' in refused.rows["pc01"]["fix"]
        inventory = room.write(tmp_path, cache=cache, target="cpu", engine="docker", install=["docker"])
        plan = provision(checkout, inventory, "--plan")
        assert plan.code == 8 and plan.kinds("pc01")[0] == "docker (sudo)"
        assert "group docker, which is as good as root" in plan.rows["pc01"]["changes"][0]
        ran = provision(checkout, inventory, "--cold", timeout=600)
        assert ran.code == 7 and "installed and still does not answer" in ran.rows["pc01"]["why"], ran.rows
        assert "docker" in room["pc01"].sh("id -nG admin; command -v dockerd").split()
        # An engine that is there, from wherever, is not installed again: only its user joins the group.
        room["pc01"].sh("gpasswd -d admin docker; mv /usr/bin/apt-get /usr/bin/apt-get.away")
        again = provision(checkout, inventory, "--cold", timeout=600)
        assert "installed and still does not answer" in again.rows["pc01"]["why"], again.rows
        assert "docker" in room["pc01"].sh("id -nG admin").split()
