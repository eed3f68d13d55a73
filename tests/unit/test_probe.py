"""The probe where there is no torch: what cannot be had is a fact too, and stdout is the document alone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

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
