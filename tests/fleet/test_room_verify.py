"""`invoke verify --inventory` over real machines: containers with sshd, and torch and the labs in them.

The machines are made from the image that `invoke build` makes, so they have a native environment of the lock's very
wheels without minutes of installing. It is theirs to be proven: by digests, as any other.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import courses
import pytest
import rooms

from labrig import home, lock, spec
from labrig.fleet import DRIFT, FAILED, OK, TIMEOUT, UNREACHABLE, lessons
from labrig.fleet.wanted import Wanted
from labrig.inventory import Entry

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
TARGET = spec.read(ROOT / "images" / spec.TABLE).targets["cpu"]
NAME = f"cpu-{lock.load(TARGET, 'linux_x86_64', ROOT / 'images').digest[:12]}"
PLACE = f"/opt/labrig/envs/{NAME}"
PACKAGES = f"{PLACE}/lib/python{TARGET.python}/site-packages"
GOOD = ["pc01", "pc02", "pc03", "pc04"]
BUDGET = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these tests' own, with the wheels that are there."""
    folder = tmp_path_factory.mktemp("cache")
    if home.wheels().is_dir():
        (folder / "wheels").symlink_to(home.wheels())
    return folder


@pytest.fixture(scope="module")
def built() -> str:
    command = [sys.executable, "-m", "invoke", "build", "--target=cpu", "--engine=docker"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=900)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def room(built: str) -> Iterator[rooms.Room]:
    then = f"chown -R admin: /opt/labrig && mkdir /opt/labrig/envs && ln -s /opt/venv {PLACE}"
    with rooms.hosts(4, refused=1, frozen=1, garbage=1, base=built, then=then) as room:
        yield room


@pytest.fixture(scope="module")
def good(room: rooms.Room, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inventory of the good machines, which are provisioned."""
    path = room.write(tmp_path_factory.mktemp("good"), room.of("good"), target="cpu", engine="venv")
    done = invoke(cache, "provision", f"--inventory={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def everything(room: rooms.Room, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return room.write(tmp_path_factory.mktemp("room"), target="cpu", engine="venv")


def invoke(cache: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "LABRIG_CACHE": str(cache)},
    )  # fmt: skip


def verify(cache: Path, inventory: Path, *flags: str, code: int = 0, timeout: float = 600) -> dict[str, Any]:
    """The document that verify prints, with its rows by host; it ends with ``code``."""
    done = invoke(cache, "verify", f"--inventory={inventory}", "--json", *flags, timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    document["rows"] = {row["host"]: row for row in document["rows"]}
    return document  # type: ignore[no-any-return]


def test_good_hosts_are_ok_by_their_digests_and_by_torch_itself(cache: Path, good: Path) -> None:
    document = verify(cache, good)
    assert list(document["rows"]) == GOOD and document["tally"][OK] == 4
    for row in document["rows"].values():
        assert (row["state"], row["target"], row["device"], row["image"]) == (OK, "cpu", "cpu", NAME)
        assert row["torch_have"].startswith(TARGET.torch) and row["torch_want"].startswith(TARGET.torch)
        assert row["labs"].startswith("all ") and row["why"] == "" and row["changes"] == []


def test_every_bad_row_is_right_and_costs_no_other(cache: Path, everything: Path, tmp_path: Path) -> None:
    junit, html = tmp_path / "room.xml", tmp_path / "room.html"
    flags = [f"--budget={BUDGET}", f"--junit={junit}", f"--html={html}"]
    document = verify(cache, everything, *flags, code=7)
    rows = document["rows"]
    assert {name: row["state"] for name, row in rows.items()} == {
        **dict.fromkeys(GOOD, OK), "frozen1": TIMEOUT, "garbage1": FAILED, "refused1": UNREACHABLE,
    }  # fmt: skip
    assert document["seconds"] <= BUDGET + 2
    assert "printed no facts" in rows["garbage1"]["why"]
    assert all(rows[name]["why"] and rows[name]["fix"] for name in ("frozen1", "garbage1", "refused1"))
    assert f"invoke verify --inventory={everything} --limit=frozen1 --budget={2 * BUDGET}" in rows["frozen1"]["fix"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", json.dumps(rows, ensure_ascii=False))
    top = ElementTree.fromstring(junit.read_bytes())  # noqa: S314 - our own
    assert [case.attrib["name"] for case in top.iter("testcase")] == list(rows)
    assert {case.attrib["name"] for case in top.iter("testcase") if case.find("failure") is not None} == {
        "frozen1", "garbage1", "refused1",
    }  # fmt: skip
    page = html.read_text()
    assert all(name in page for name in rows) and page.count("<tr data-state") == 7


def test_only_bad_shows_those_alone_and_limit_takes_the_last_runs(cache: Path, everything: Path) -> None:
    verify(cache, everything, "--limit=pc01,refused1", code=7)
    document = verify(cache, everything, "--limit=@failed", "--budget=10", code=7)
    assert "refused1" in document["rows"] and "pc01" not in document["rows"]
    done = invoke(cache, "verify", f"--inventory={everything}", "--limit=pc01,refused1", "--only-bad")
    assert done.returncode == 7
    assert "refused1" in done.stdout and "pc01" not in done.stdout
    assert re.search(r"^1 OK, 1 UNREACHABLE of 2 in [\d.]+ s$", done.stdout, re.MULTILINE)


def test_drift_is_found_named_and_mended_by_the_command_that_the_row_names(
    cache: Path, room: rooms.Room, good: Path
) -> None:
    room["pc02"].sh("echo '# seen' >>/opt/labrig/labs/06_images.py")
    room["pc03"].sh(f"mv {PACKAGES}/packaging/version.py /root/kept")
    rows = verify(cache, good, code=8)["rows"]
    room["pc03"].sh(f"cp -p /root/kept {PACKAGES}/packaging/version.py")
    assert {name: row["state"] for name, row in rows.items()} == {
        "pc01": OK, "pc02": DRIFT, "pc03": DRIFT, "pc04": OK,
    }  # fmt: skip
    assert "06_images.py" in rows["pc02"]["why"] and "packaging" in rows["pc03"]["why"]
    assert rows["pc02"]["fix"] == f"invoke provision --inventory={good} --limit=pc02"
    mended = invoke(cache, *shlex.split(rows["pc02"]["fix"])[1:])
    assert mended.returncode == 0, mended.stderr
    assert verify(cache, good)["tally"][OK] == 4


def test_a_torch_that_cannot_be_imported_is_a_failure(cache: Path, room: rooms.Room, good: Path) -> None:
    room["pc04"].sh(f"mv {PACKAGES}/torch/lib/libc10.so /root/kept.so")
    row = verify(cache, good, "--limit=pc04", code=7)["rows"]["pc04"]
    room["pc04"].sh(f"mv /root/kept.so {PACKAGES}/torch/lib/libc10.so")
    assert row["state"] == FAILED and "torch cannot be asked: ImportError: libc10.so" in row["why"]
    assert row["torch_have"] == "" and "environment: torch" in row["why"] and row["fix"].endswith("--limit=pc04")


def test_a_machine_that_is_a_copy_is_noted(cache: Path, room: rooms.Room, good: Path) -> None:
    before = room["pc02"].sh("cat /etc/machine-id")
    room["pc02"].sh(f"echo {room['pc01'].sh('cat /etc/machine-id').strip()} >/etc/machine-id")
    rows = verify(cache, good, "--only-bad")["rows"]
    room["pc02"].sh(f"echo {before.strip()} >/etc/machine-id")
    assert {name: (row["state"], row["why"]) for name, row in rows.items()} == {
        "pc01": (OK, "a clone: the machine-id is that of pc02"),
        "pc02": (OK, "a clone: the machine-id is that of pc01"),
    }


def test_the_machine_you_sit_at_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = invoke(home.root(), "verify", "--host=@local", "--json")
    document = json.loads(done.stdout)
    [row] = document["rows"]
    assert done.returncode == 8 and document["inventory"] == "@local", done.stderr
    assert (row["host"], row["state"], row["why"]) == ("local", DRIFT, "nothing was applied yet")
    assert row["fix"] == "invoke provision --host=@local" and not any(tmp_path.iterdir())


def test_watching_a_log_gets_changes_and_ends_well_with_the_last_table(
    cache: Path, room: rooms.Room, everything: Path
) -> None:
    command = [sys.executable, "-u", "-m", "invoke", "verify", f"--inventory={everything}", "--limit=pc01,refused1",
               "--watch=0.5"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "LABRIG_CACHE": str(cache)},
    ) as watching:  # fmt: skip
        assert watching.stdout and watching.stderr
        assert re.match(r"\d\d:\d\d:\d\d refused1: UNREACHABLE ", watching.stdout.readline())
        room["pc01"].sh("mv /opt/labrig/start /opt/labrig/away")
        assert " pc01: OK -> DRIFT start" in watching.stdout.readline()
        room["pc01"].sh("mv /opt/labrig/away /opt/labrig/start")
        assert " pc01: DRIFT -> OK" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        rest, errors = watching.communicate(timeout=60)
        assert watching.returncode == 0, errors
    assert rest.splitlines()[-1].startswith("1 OK, 1 UNREACHABLE of 2")


def test_watching_on_a_terminal_draws_on_a_screen_of_its_own(cache: Path, everything: Path) -> None:
    main, other = pty.openpty()
    command = [sys.executable, "-m", "invoke", "verify", f"--inventory={everything}", "--limit=refused1", "--watch=1"]
    environment = {**os.environ, "LABRIG_CACHE": str(cache), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(command, cwd=ROOT, stdout=other, stderr=subprocess.PIPE, env=environment) as watching:
        os.close(other)
        seen = b""
        while seen.count(b"\x1b[2J") < 2:
            seen += os.read(main, 4096)
        watching.send_signal(signal.SIGINT)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                seen += os.read(main, 4096)
            except OSError:  # the other end is closed
                break
        watching.wait(60)
    os.close(main)
    assert watching.returncode == 0
    drawn, _, last = seen.decode().partition("\x1b[?1049l")
    assert drawn.startswith("\x1b[?1049h") and "refused1" in last and "1 UNREACHABLE of 1" in last


def test_flags_that_do_not_go_together(cache: Path, good: Path, tmp_path: Path) -> None:
    for flags in (
        [f"--inventory={good}", "--target=cpu"],
        [f"--inventory={good}", "--engine=venv"],
        [f"--inventory={good}", "--image=x"],
        [f"--inventory={good}", "--labs=full"],
        [f"--inventory={good}", "--deep=some"],
        [f"--inventory={good}", "--watch=soon"],
        [f"--inventory={good}", "--watch", "--json"],
        [f"--inventory={good}", "--budget=-1"],
        [f"--inventory={good}", "--limit=nobody"],
        [f"--inventory={tmp_path / 'none.toml'}"],
        ["--only-bad"],
        ["--watch"],
    ):
        done = invoke(cache, "verify", *flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout, (flags, done.stderr)


def test_the_declared_checks_run_over_ssh(cache: Path, room: rooms.Room, good: Path, tmp_path: Path) -> None:
    """Also through a machine on the way, which takes the inventory's key as well."""
    document = verify(cache, good, "--deep")
    assert list(document["suites"]) == ["pc01"]  # one of its kind
    record = document["suites"]["pc01"]
    assert record["failed"] == 0 and record["passed"] >= 8, record
    assert not room["pc01"].sh("ls -d /tmp/labrig-* 2>/dev/null || :")
    extra = f"{PACKAGES}/extra-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\\nName: extra\\nVersion: 1.0\\n"
    room["pc02"].sh(f"mkdir {extra} && printf '{metadata}' >{extra}/METADATA")
    address = room["pc02"].sh("hostname -I").split()[0]
    own = {"address": address, "port": 22, "jump": f"admin@127.0.0.1:{room['pc01'].port}"}
    behind = room.write(tmp_path, [room["pc02"]], each={"pc02": own}, target="cpu", engine="venv")
    keys = [*room["pc01"].keys, *(f"{address} {line.partition(' ')[2]}" for line in room["pc02"].keys)]
    behind.with_suffix(".known_hosts").write_text("".join(f"{line}\n" for line in keys))
    document = verify(cache, behind, "--deep=all", code=7)
    room["pc02"].sh(f"rm -r {extra}")
    row, record = document["rows"]["pc02"], document["suites"]["pc02"]
    assert row["state"] == FAILED and "extra" in row["why"]
    assert record["failed"] == 1 and record["passed"] >= 7, record


def test_labs_are_run_on_every_host_and_numbers_apart_are_named(
    cache: Path, room: rooms.Room, good: Path, tmp_path: Path
) -> None:
    """Three real labs on three machines; on one of them a lab says another number, on one an exact gate is missed."""
    labs = "/opt/labrig/labs"
    keep = "02_autograd.py 12_rules.py 13_topics.py"
    for name in GOOD[:3]:
        room[name].sh(
            f"cp -a {labs} /root/labs; cd {labs}; for one in [0-9]*.py; do"
            f' case " {keep} " in *" $one "*) ;; *) rm "$one" ;; esac; done'
        )
    wrong = {"pc02": ("rules", "12_rules.py"), "pc03": ("engine_error", "02_autograd.py")}
    for name, (metric, lab) in wrong.items():
        room[name].sh(f'sed -i \'s/lab.metric("{metric}", /lab.metric("{metric}", 1000 + /\' {labs}/{lab}')
    document = verify(cache, good, "--labs=quick", "--limit=pc01,pc02,pc03", code=7)
    left = [room[name].sh("ls -d /tmp/tmp.* /tmp/torch* 2>/dev/null || :") for name in GOOD[:3]]
    for name in GOOD[:3]:
        room[name].sh(f"rm -r {labs} && mv /root/labs {labs}")
    rows, outliers = document["rows"], document["labs"]["outliers"]
    assert {name: row["state"] for name, row in rows.items()} == {"pc01": DRIFT, "pc02": DRIFT, "pc03": FAILED}
    assert {(one["host"], one["lab"], one["metric"]) for one in outliers} == {
        ("pc02", "12_rules", "rules"), ("pc03", "02_autograd", "engine_error"),
    }  # fmt: skip
    assert "12_rules rules is" in rows["pc02"]["why"] and "02_autograd: missed" in rows["pc03"]["why"]
    assert f"invoke verify --inventory={good} --limit=pc02 --labs=quick" in rows["pc02"]["fix"]
    for ended in document["labs"]["hosts"].values():
        assert set(ended) == {"seconds", "02_autograd", "12_rules", "13_topics"}
    assert not any(left)


def test_the_labs_of_an_image_run_as_the_script_has_it(built: str) -> None:
    """In the engine here, as on a host with one; the labs are listed, which takes no minute."""
    locked = lock.load(TARGET, "linux_x86_64", ROOT / "images")
    image = courses.samples.published("cpu", image=built)
    wanted = Wanted(TARGET, "docker", "linux_x86_64", locked, "", {}, image, "", {}, "")
    words = lessons.script(Entry("here", None, "cpu", "", ""), wanted, 60)
    assert " run --quick --progress off --json --out /tmp/out" in words
    words = words.replace(" run --quick --progress off --json --out /tmp/out", " list --json")
    done = subprocess.run(["sh"], input=words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "06_images" in [one["id"] for one in json.loads(done.stdout)]
