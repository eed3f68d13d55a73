"""`labs run --index-from`: one lab of many by a variable, and the document that it leaves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Runner = Callable[..., subprocess.CompletedProcess[str]]
LABS = ("01_tensors", "02_autograd")


def run(python: Runner, tmp_path: Path, *more: object, **env: str) -> subprocess.CompletedProcess[str]:
    flags = ("--out", tmp_path / "run", "--device=cpu", "--quick", "--documents", tmp_path / "documents")
    return python("-m", "labs", "run", *LABS, "--index-from=MY_INDEX", *flags, *more, **env)


def test_the_lab_at_the_index_leaves_its_document(python: Runner, tmp_path: Path) -> None:
    done = run(python, tmp_path, MY_INDEX="1", LABRIG_IMAGE="example.org/x@sha256:0")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "documents").iterdir()] == ["01-02_autograd.json"]
    document = json.loads((tmp_path / "documents" / "01-02_autograd.json").read_text())
    assert document["schema"] == "lab-document/1"
    assert (document["index"], document["image"]) == (1, "example.org/x@sha256:0")
    assert document["result"] == json.loads((tmp_path / "run" / "results.json").read_text())[0]
    assert document["result"]["status"] == "passed"


def test_a_lab_that_cannot_start_leaves_one_too(python: Runner, tmp_path: Path) -> None:
    done = run(python, tmp_path, "--device=mps", MY_INDEX="0")
    assert done.returncode == 3
    document = json.loads((tmp_path / "documents" / "00-01_tensors.json").read_text())
    assert (document["result"]["status"], document["result"]["exit"]) == ("error", 3)
    assert "mps is absent" in document["result"]["reason"]


@pytest.mark.parametrize("value", ["", "2", "-1", "one", "1 ", "١"])
def test_an_index_that_is_none_is_said(python: Runner, tmp_path: Path, value: str) -> None:
    done = run(python, tmp_path, MY_INDEX=value)
    assert done.returncode == 2
    assert "an index from 0 to 1 is needed" in done.stderr
    assert not (tmp_path / "documents").exists()


def test_documents_are_of_one_lab(python: Runner, tmp_path: Path) -> None:
    done = python("-m", "labs", "run", *LABS, "--documents", tmp_path)
    assert done.returncode == 2
    assert "--index-from" in done.stderr
