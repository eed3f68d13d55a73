"""The tables against reality: what the torch wheels of the locks say of themselves, read from their files.

The wheel of `cpu` is here in every run; those for CUDA are 1.3 GB and read by hand: `pytest -m cuda_wheels`.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from pathlib import Path

import pytest

from labrig import environment, home, lock, matrix, spec, wheelhouse

ROOT = Path(__file__).parents[2]
TABLE = spec.read(ROOT / "images" / spec.TABLE)
PLATFORM = "linux_x86_64"
LINUX = [
    pytest.param(target, marks=pytest.mark.cuda_wheels if target.device == "cuda" else (), id=name)
    for name, target in TABLE.targets.items()
    if PLATFORM in target.platforms
]
FLAGS = re.compile(rb"sm_\d+a?(?: (?:sm|compute)_\d+a?)+")  # torch/csrc/cuda/Module.cpp compiles them in as one string


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest) -> zipfile.ZipFile:
    """The torch wheel of a target's lock, fetched if it is not in the wheelhouse, and verified."""
    target: spec.Target = request.param
    locked = lock.load(target, PLATFORM, ROOT / "images")
    alone = dataclasses.replace(locked, wheels=tuple(one for one in locked.wheels if one.name == "torch"))
    environment.fetch(TABLE, target, alone)
    opened = zipfile.ZipFile(wheelhouse.find(alone.wheels[0], home.wheels()))
    request.addfinalizer(opened.close)
    return opened


def text(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = [name for name in wheel.namelist() if name.endswith(ending)]
    return wheel.read(name).decode("utf-8")


def both(function: object) -> object:
    return pytest.mark.parametrize(("wheel", "target"), [pytest.param(*p.values, *p.values, marks=p.marks, id=p.id)
                                                        for p in LINUX], indirect=["wheel"])(function)  # fmt: skip


@both
def test_its_version_and_cuda_are_the_rows(wheel: zipfile.ZipFile, target: spec.Target) -> None:
    said = text(wheel, "torch/version.py")
    version = re.search(r"__version__ = '([^']+)'", said)
    cuda = re.search(r"^cuda: [^=]*= '([^']+)'", said, re.MULTILINE)
    assert version and version[1] == f"{target.torch}+{target.variant}"
    known = matrix.variant(target.torch, target.variant)
    assert known is not None
    assert (cuda[1] if cuda else None) == (".".join(known.cuda.split(".")[:2]) if known.cuda else None) == target.cuda


@both
def test_its_capabilities_are_the_rows(wheel: zipfile.ZipFile, target: spec.Target) -> None:
    """What torch._C._cuda_getArchFlags() answers without a GPU is a string of libtorch_python.so."""
    (name,) = [name for name in wheel.namelist() if name.endswith("torch/lib/libtorch_python.so")]
    found = set(FLAGS.findall(wheel.read(name)))
    known = matrix.archs(target.torch, target.variant, PLATFORM)
    if known is None:
        assert found == set()
        return
    (flags,) = found
    assert b"compute_" not in flags, "no PTX"
    listed = {word.removeprefix("sm_").rstrip("a") for word in flags.decode().split()}
    assert sorted(listed) == sorted(each.replace(".", "") for each in known)


@both
def test_its_libraries_are_the_rows(wheel: zipfile.ZipFile, target: spec.Target) -> None:
    """cuDNN and NCCL as the wheel demands them; the full version of the toolkit where it names it."""
    needs = dict(
        re.findall(
            r"^Requires-Dist: ([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?[ (]*==([0-9.]+)", text(wheel, "METADATA"), re.MULTILINE
        )
    )
    row = next(
        row
        for row in matrix.read_table(matrix.DATA / "cuda_variants.tsv")
        if (row["torch"], row["variant"]) == (target.torch, target.variant)
    )
    found = {name: version for name, version in needs.items() if name.startswith(("nvidia-", "cuda-"))}
    if target.device != "cuda":
        assert found == {}
        return
    for package, column in (("nvidia-cudnn-cu", "cudnn"), ("nvidia-nccl-cu", "nccl")):
        (version,) = [version for name, version in found.items() if name.startswith(package)]
        assert row[column] == version, package
    toolkit = found.get("cuda-toolkit") or next(v for n, v in found.items() if n.startswith("nvidia-cuda-runtime-cu"))
    assert toolkit.split(".")[:2] == row["cuda"].split(".")[:2]


@both
def test_its_tags_are_the_rows(wheel: zipfile.ZipFile, target: spec.Target) -> None:
    python = f"cp{target.python.replace('.', '')}"
    tags = re.findall(r"^Tag: (\S+)", text(wheel, "dist-info/WHEEL"), re.MULTILINE)
    release = matrix.release(target.torch)
    assert release is not None and release.glibc[PLATFORM]
    floor = release.glibc[PLATFORM].replace(".", "_")  # type: ignore[union-attr]
    assert tags == [f"{python}-{python}-manylinux_{floor}_x86_64"]
    assert target.python in matrix.pythons(target.torch, PLATFORM)
    declared = re.search(r"^Requires-Python: (\S+)", text(wheel, "METADATA"), re.MULTILINE)
    row = next(row for row in matrix.read_table(matrix.DATA / "releases.tsv") if row["torch"] == target.torch)
    assert declared and declared[1] == row["requires_python"]
