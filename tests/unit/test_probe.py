"""The probe where there is no torch: what cannot be had is a fact too, and stdout is the document alone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import types
import venv
from pathlib import Path
from typing import Any

import macs
import pytest

from labrig import probe as probe_module
from labrig.engines import PROBE

NOWHERE = "192.0.2.1"  # RFC 5737: an address for documentation, nobody has it


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    place = tmp_path / "environment"
    venv.create(place, symlinks=True)
    return place


def packages_of(environment: Path) -> Path:
    return next(environment.glob("lib/python3.*/site-packages"))


def add_package(environment: Path, name: str, version: str, code: str = "", record: str = "") -> None:
    site = packages_of(environment)
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(record)


def probe(environment: Path, **variables: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [environment / "bin" / "python", "-S", PROBE],
        capture_output=True, text=True, timeout=60, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document, done.stderr


def test_without_torch_everything_else_is_still_read(environment: Path) -> None:
    add_package(environment, "Some_Package", "1.2")
    facts, _ = probe(environment)
    assert facts["python"]["minor"] == "{}.{}".format(*sys.version_info[:2])
    assert facts["python"]["prefix"] == str(environment)
    assert facts["packages"] == {"some-package": "1.2"}
    assert facts["connections"] == []
    for name in ("torch", "device", "libraries", "dataloader"):
        assert "No module named 'torch'" in facts[name]["error"]


def test_files_are_measured_against_their_record(environment: Path) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).rstrip(b"=").decode()
    add_package(environment, "one", "1", "x = 1\n", f"one.py,sha256={digest},6\none-1.dist-info/RECORD,,\n")
    assert probe(environment)[0]["files"] == {"count": 1, "wrong": []}
    file = packages_of(environment) / "one.py"
    for change, said in (("x = 2\n", "other content"), ("x = 100\n", "8 bytes, recorded 6"), (None, "absent")):
        file.unlink() if change is None else file.write_text(change)
        facts, _ = probe(environment)
        assert facts["files"]["count"] == 1
        assert [wrong for wrong in facts["files"]["wrong"] if "one.py" in wrong and said in wrong]


def test_a_torch_that_prints_and_one_that_dies_do_not_spoil_the_document(environment: Path) -> None:
    loud = "import os\nprint('hello')\nos.system('echo from a child')\nraise ImportError('half a torch')\n"
    add_package(environment, "torch", "1", loud)
    facts, stderr = probe(environment)
    assert "half a torch" in facts["torch"]["error"]
    assert "hello" in stderr
    assert "from a child" in stderr

    (packages_of(environment) / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGBUS)\n")
    facts, _ = probe(environment)
    for name in ("torch", "device", "libraries", "dataloader"):
        assert "SIGBUS" in facts[name]["error"]
    assert facts["packages"] == {"torch": "1"}, "and the facts that need no torch are there"
    assert "error" not in facts["files"]


def test_workers_that_are_waited_for_for_ever_cost_their_own_fact_only(environment: Path, tmp_path: Path) -> None:
    """As by a lock that nobody gives back, with the limit of this copy at a second."""
    loader = (
        "import threading\nclass DataLoader:\n    def __init__(self, *_, **__): pass\n"
        "    def __iter__(self): held = threading.Lock(); held.acquire(); held.acquire()\n"
    )
    for name, code in {"__init__": "", "utils/__init__": "", "utils/data": loader}.items():
        file = packages_of(environment) / "torch" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    hasty = tmp_path / "probe.py"
    hasty.write_text(PROBE.read_text().replace('"dataloader": 150', '"dataloader": 1'))
    done = subprocess.run([environment / "bin" / "python", "-S", hasty], capture_output=True, text=True, timeout=60)
    facts = json.loads(done.stdout)
    assert "the process that read it heard nothing from its workers in time" in facts["dataloader"]["error"]
    assert "error" not in facts["files"]


CONNECT = {
    "connect": f"import socket; socket.create_connection(('{NOWHERE}', 9), timeout=5)",
    "look-up": "import socket; socket.getaddrinfo('labrig.invalid', 80)",
    "old look-up": "import socket; socket.gethostbyname('labrig.invalid')",
    "datagram": f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{NOWHERE}', 9))",
}


@pytest.mark.parametrize("code", CONNECT.values(), ids=CONNECT)
def test_a_package_that_reaches_for_the_network_is_caught_and_stopped(environment: Path, code: str) -> None:
    add_package(environment, "torch", "1", code)
    facts, _ = probe(environment)
    assert any(NOWHERE in attempt or "labrig.invalid" in attempt for attempt in facts["connections"])
    assert "lets nothing reach the network" in facts["torch"]["error"]


@pytest.mark.parametrize("file", ["sitecustomize.py", "sneaky.pth"])
def test_what_installs_itself_at_startup_is_watched_as_well(environment: Path, file: str) -> None:
    (packages_of(environment) / file).write_text(CONNECT["connect"] + "\n")
    facts, _ = probe(environment)
    assert set(facts["connections"]) == {f"socket.getaddrinfo {NOWHERE}"}


def test_this_machine_itself_is_not_the_network(environment: Path) -> None:
    add_package(environment, "torch", "1", "import socket; socket.socket().connect_ex(('127.0.0.1', 9))")
    assert probe(environment)[0]["connections"] == []


def test_the_callers_python_settings_do_not_leak_in(environment: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "leak-1.dist-info").mkdir(parents=True)
    (elsewhere / "leak-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leak\nVersion: 1\n")
    facts, _ = probe(environment, PYTHONPATH=str(elsewhere))
    assert facts["packages"] == {}


def test_two_versions_side_by_side_are_both_said(environment: Path) -> None:
    add_package(environment, "torch", "1.0")
    add_package(environment, "torch", "2.0")
    assert probe(environment)[0]["packages"] == {"torch": "1.0 and 2.0"}


# --- a Mac, with a torch that is a fake -------------------------------------------------------------------------------

PROGRAMS = {
    "sysctl": 'case "$2" in kern.hv_vmm_present) echo 0;; machdep.cpu.brand_string) echo "Apple M2";; *) exit 1;; esac',
    "sw_vers": '[ "$1" = -productVersion ] && echo 15.5',
}


@pytest.fixture
def mac(environment: Path) -> Path:
    """An environment with the fake torch, and the programs of a Mac before others on its PATH."""
    add_package(environment, "torch", "0", (Path(__file__).parent / "fake_torch.py").read_text())
    for name, script in PROGRAMS.items():
        (environment / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (environment / "bin" / name).chmod(0o755)
    return environment


def read(mac: Path, kind: str, **variables: str) -> dict[str, Any]:
    """The facts of device and mps, read by the real probe in a process of its own, as on a Mac."""
    path = f"{mac / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"}
    done = subprocess.run(
        [mac / "bin" / "python", "-I", "-S", PROBE, "device", "mps"],
        capture_output=True, text=True, timeout=60, env={**kept, "PATH": path, "FAKE_MPS": kind, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: fact for name, fact, _ in map(json.loads, done.stdout.splitlines())}


def test_a_mac_whose_metal_computes_is_read_as_the_facts_written_by_hand_say(mac: Path) -> None:
    assert read(mac, "computes") == macs.MAC


def test_a_mac_without_metal_is_read_so(mac: Path) -> None:
    assert read(mac, "absent") == macs.absent()
    assert read(mac, "not-built") == macs.absent(built=False)


def test_a_virtual_mac_that_allocates_nothing_is_read_so(mac: Path) -> None:
    program = mac / "bin" / "sysctl"
    program.write_text(program.read_text().replace("echo 0", "echo 1").replace("Apple M2", "Apple M1 (Virtual)"))
    facts = read(mac, "no-memory")
    assert facts["mps"] == macs.VIRTUAL_THAT_ALLOCATES_NOTHING["mps"], "float64 is refused before memory is asked for"
    assert facts["device"]["mps"]["names"] == ["Apple M1 (Virtual)"]
    assert facts["device"]["mps"]["kernel"].startswith("RuntimeError: MPS backend out of memory")


def test_a_metal_that_computes_something_else_than_the_cpu_is_caught(mac: Path) -> None:
    facts = read(mac, "wrong")["device"]
    assert facts["mps"]["kernel"] == "AssertionError: Tensor-likes are not close!"
    assert facts["cpu"]["kernel"] == "ok"


def test_an_mps_that_takes_float64_is_said_to(mac: Path) -> None:
    assert read(mac, "float64") == macs.FLOAT64_ACCEPTED | {"device": macs.MAC["device"]}


def test_a_mac_that_cannot_be_asked_is_no_reason_to_fail(mac: Path) -> None:
    for name in PROGRAMS:
        (mac / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    facts = read(mac, "computes")
    assert facts["mps"] == macs.MAC["mps"] | {"macos": ""}
    assert facts["device"]["mps"] == {"names": [""], "kernel": "ok"}


@pytest.mark.parametrize(("ssh", "other", "remote"), [("a 1 b 22", 1, True), ("a 1 b 22", 0, False), ("", 1, False)])
def test_over_ssh_the_owner_of_the_console_tells_who_is_at_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh: str, other: int, remote: bool
) -> None:
    mps = types.SimpleNamespace(is_built=lambda: True, is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(backends=types.SimpleNamespace(mps=mps)))
    monkeypatch.setattr(probe_module, "CONSOLE", str(tmp_path))
    own = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: own + other)
    monkeypatch.setenv("SSH_CONNECTION", ssh)
    facts = probe_module.read_mps()
    assert isinstance(facts, dict)
    assert facts["remote"] is remote


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_mps_is_asked_for_on_a_mac_only(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "argv", ["probe.py"])
    monkeypatch.setattr(probe_module, "read_all", lambda names: asked.append(names) or {})
    probe_module.main()
    assert ("mps" in asked[0]) == (system == "darwin")
    assert set(probe_module.READERS) <= set(asked[0]) and "system" not in asked[0]
