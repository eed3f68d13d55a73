"""labs/data: the manifest is complete, every lab notices one changed byte, and the loader reads what it should."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import LABS, record

DATA = LABS / "data"
SOURCES = sorted(LABS.glob("[0-9][0-9]_*.py"))
NOT_DATA = {"README.md", "build.py", "manifest.json"}
USES = {path.stem: re.findall(r'lab\.read\("([^"]+)"\)', path.read_text(encoding="utf-8")) for path in SOURCES}
READERS = [(lab, name) for lab, names in USES.items() for name in dict.fromkeys(names)]


def manifest() -> dict[str, Any]:
    return json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"]


def test_every_file_is_in_the_manifest_and_is_what_it_says() -> None:
    files = {path.name: path for path in DATA.iterdir() if path.is_file() and path.name not in NOT_DATA}
    assert set(files) == set(manifest())
    for name, about in manifest().items():
        content = files[name].read_bytes()
        assert hashlib.sha256(content).hexdigest() == about["sha256"], name
        assert len(content) == about["bytes"]
        assert about["rows"] > 0 and about["attribution"] and about["source"] and about["transformation"]
        assert (DATA / about["licence_text"]).stat().st_size > 500


def test_all_of_it_is_small_and_used() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 8_000_000
    assert {name for _, name in READERS} == set(manifest()), "a file that no lab reads, or a lab that reads another"


def test_what_nobody_could_read_again_is_marked() -> None:
    """The three tables that R packages took from UCI, and two whose origin states no terms here."""
    open_questions = {name for name, about in manifest().items() if about["unverified"]}
    assert {"spambase.csv.gz", "shuttle.npz", "votes.csv.gz", "credit.csv.gz"} <= open_questions
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for name, about in manifest().items():
        assert f"## {name}\n" in readme and about["attribution"] in readme
    assert readme.count("**Not verified**") == len(open_questions)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder labs, to be spoiled."""
    return shutil.copytree(LABS, tmp_path / "labs", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize(("lab", "name"), READERS, ids=[f"{lab}-{name}" for lab, name in READERS])
def test_one_changed_byte_is_exit_4(lab: str, name: str, copied: Path, python) -> None:
    content = bytearray((copied / "data" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "data" / name).write_bytes(content)
    ended = python(copied / f"{lab}.py", "--device", "cpu", "--no-plots", "--out", copied / "out")
    assert ended.returncode == 4, ended.stderr
    assert f"{name} is not the file this lab was measured on" in ended.stderr
    assert "Traceback" not in ended.stderr
    found = record(copied / "out" / lab)
    assert found["status"] == "error" and name in found["reason"]


def test_an_absent_file_and_a_broken_manifest_are_exit_4(copied: Path, python) -> None:
    lab, name = READERS[0]
    (copied / "data" / name).unlink()
    ended = python(copied / f"{lab}.py", "--device", "cpu", "--out", copied / "out")
    assert ended.returncode == 4
    assert f"{name} cannot be read (No such file or directory)" in ended.stderr and "Traceback" not in ended.stderr
    run = python("-m", "labs", "run", lab, "--device", "cpu", "--out", copied / "run", cwd=copied.parent)
    assert run.returncode == 4
    for broken in ("{", "{}", '{"files": {}}', "[]"):
        (copied / "data" / "manifest.json").write_text(broken)
        ended = python(copied / f"{lab}.py", "--device", "cpu", "--out", copied / "out")
        assert ended.returncode == 4, ended.stderr
        assert "cannot be read" in ended.stderr and "Traceback" not in ended.stderr


def test_columns_of_numbers_are_numbers_and_empty_cells_are_nan(checkout, python) -> None:
    body = (
        "import json, numpy\n"
        "credit, words = lab.read('credit.csv.gz'), lab.read('wordnet_glosses.tsv.gz')\n"
        "text = lab.read('austen.txt.xz')\n"
        "print(json.dumps([credit['Income'].dtype.str, int(numpy.isnan(credit['Income']).sum()), credit['Home'][0],\n"
        "                  len(words['definition']), '\\t' in ''.join(words['definition']), text.count('\\f')]))\n"
        "raise SystemExit\n"
    )
    root = checkout(_90_reads=body)
    shutil.copytree(DATA, root / "labs" / "data")
    ended = python(root / "labs" / "90_reads.py", "--out", root / "out")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == ["<f8", 381, "rent", 14400, False, 6]


@pytest.mark.rebuild
def test_the_files_are_rebuilt_byte_by_byte() -> None:
    """On Debian 12, with apt and a package index: `pytest -m rebuild`. rdata is no package of the toolkit."""
    command = [sys.executable, "-m", "uv", "run", "--no-project", "--with", "rdata==1.1.0", "--with", "pip", "python"]
    done = subprocess.run([*command, str(DATA / "build.py"), "--check"], capture_output=True, text=True, timeout=600,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as it was") == len(done.stdout.splitlines()) > 15
