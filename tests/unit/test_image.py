"""An image: what it is made of, its build context, how its build is shown, and what is lacking to build one."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples

from labrig import buildkit, home, image
from labrig.base import Base
from labrig.buildkit import Recipe
from labrig.errors import UsageError

BASE = Base("labrig-base:stable-0123456789ab", "labrig-base:stable", f"sha256:{'ab' * 32}")
BUILT = """\
#0 building with "default" instance using docker driver

#1 [internal] load build definition from Dockerfile
#1 DONE 0.0s

#4 [stage-0 1/4] FROM labrig-base:stable-0123456789ab
#4 CACHED

#5 [internal] load build context
#5 transferring context: 219.93MB 1.3s done
#5 DONE 1.4s

#6 [stage-0 2/4] COPY --chown=0:0 images/cpu/requirements-linux_x86_64.txt /opt/labrig/requirements.txt
#6 ...

#7 [linux/amd64 3/4] RUN --network=none --mount=type=tmpfs,target=/tmp     python3 -m venv /opt/venv
#7 0.512 DONE is a word that a step may say
#7 ...

#6 [stage-0 2/4] COPY --chown=0:0 images/cpu/requirements-linux_x86_64.txt /opt/labrig/requirements.txt
#6 DONE 0.1s

#7 [linux/amd64 3/4] RUN --network=none --mount=type=tmpfs,target=/tmp     python3 -m venv /opt/venv
#7 DONE 31.4s

#8 [4/4] COPY labs /opt/labrig/labs
#8 DONE 0.0s

#9 exporting to image
#9 exporting layers 3.1s done
#9 writing image sha256:0000 done
#9 DONE 3.2s
"""
FAILED = """\
#5 [1/2] FROM labrig-base:stable-0123456789ab
#5 CACHED

#6 [2/2] RUN --network=none pip install
#6 0.170 ERROR: No matching distribution found for torch
#6 ERROR: process "/bin/sh -c pip install" did not complete successfully: exit code: 1
------
 > [2/2] RUN --network=none pip install:
------
ERROR: failed to solve: process "/bin/sh -c pip install" did not complete successfully: exit code: 1
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with labs, and a cache of its own."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    files = {"__main__.py": b"main", "01_tensors.py": b"one", "data/points.csv": b"1,2"}
    caches = {"__pycache__/a.pyc": b"", "data/__pycache__/b.pyc": b"", ".hidden": b"", ".git/config": b""}
    for name, data in {**files, **caches}.items():
        (tmp_path / "labs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labs" / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def recipe(root: Path) -> Recipe:
    for name in ("one", "two"):
        samples.make_wheel(root / "wheels", name)
    lock = samples.lock_of(root / "wheels")
    return Recipe(samples.target("tiny"), lock, BASE, "FROM scratch\n", "one==1.0\n", image.read_labs(root / "labs"))


# --- progress ---------------------------------------------------------------------------------------------------------


def test_a_build_is_a_line_a_step_as_it_ends_and_everything_said_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert buildkit.show(io.StringIO(BUILT)) == BUILT.splitlines()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "  step 1 of 4: FROM labrig-base:stable-0123456789ab: there already",
        "  the wheels go to the engine: 1.4s",
        "  step 2 of 4: COPY images/cpu/requirements-linux_x86_64.txt /opt/labrig/requireme...: 0.1s",
        "  step 3 of 4: RUN python3 -m venv /opt/venv: 31.4s",
        "  step 4 of 4: COPY labs /opt/labrig/labs: 0.0s",
        "  the image's layers are written: 3.2s",
    ]


def test_a_step_that_failed_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert buildkit.show(io.StringIO(FAILED)) == FAILED.splitlines()
    assert capsys.readouterr().err == "  step 1 of 2: FROM labrig-base:stable-0123456789ab: there already\n"


def test_a_step_that_takes_long_is_said_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buildkit, "BEAT", 0.02)

    def slowly() -> Iterator[str]:
        yield "#5 [1/2] RUN --network=none one\n"
        yield "#6 [2/2] RUN two\n"
        for line in ("#5 DONE 0.2s\n", "#6 DONE 0.4s\n"):
            time.sleep(0.2)
            yield line

    buildkit.show(slowly())  # type: ignore[arg-type]  # lines of a pipe
    said = re.sub(r"\(\d s so far\)", "...", capsys.readouterr().err).splitlines()
    assert list(dict.fromkeys(said)) == [
        "  still step 1 of 2: RUN one ...", "  step 1 of 2: RUN one: 0.2s",
        "  still step 2 of 2: RUN two ...", "  step 2 of 2: RUN two: 0.4s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "short"),
    [
        ("RUN --network=none --mount=type=bind,source=a,target=/b   c  && d", "RUN c && d"),
        ("COPY labs /opt", "COPY labs /opt"),
        ("R" * 70, "R" * 70),
        ("R" * 71, "R" * 67 + "..."),
        ("", ""),
    ],
)
def test_an_instruction_is_shown_without_its_flags_on_one_short_line(instruction: str, short: str) -> None:
    assert buildkit._short(instruction) == short


# --- what goes in -----------------------------------------------------------------------------------------------------


def test_labs_are_their_files_without_caches_and_hidden_ones(root: Path) -> None:
    assert list(image.read_labs(root / "labs")) == ["01_tensors.py", "__main__.py", "data/points.csv"]
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # printf one | sha256sum
    assert image.read_labs(root / "labs")["01_tensors.py"] == digest


def test_a_reference_changes_with_each_thing_that_goes_in_and_with_nothing_else(recipe: Recipe, root: Path) -> None:
    def but(**keys: Any) -> Recipe:
        return dataclasses.replace(recipe, **keys)

    (root / "labs" / "01_tensors.py").write_bytes(b"One")
    others = [
        but(dockerfile="FROM scratch\nUSER 1\n"),
        but(lock=dataclasses.replace(recipe.lock, wheels=recipe.lock.wheels[:1])),
        but(base=dataclasses.replace(BASE, digest=f"sha256:{'ac' * 32}")),
        but(labs=image.read_labs(root / "labs")),
        but(labs={**recipe.labs, "02.py": "0" * 64}),
        but(labs={("02.py" if file == "01_tensors.py" else file): sha for file, sha in recipe.labs.items()}),
    ]
    assert len({one.inputs for one in [recipe, *others]}) == len({one.reference for one in [recipe, *others]}) == 7
    same = [
        but(base=Base("elsewhere", "another name", BASE.digest)),
        but(target=dataclasses.replace(recipe.target, why="another reason")),
        but(labs=dict(reversed(list(recipe.labs.items())))),
    ]
    assert {one.reference for one in same} == {recipe.reference}
    assert re.fullmatch(rf"labrig/tiny:{re.escape(samples.TORCH)}-{recipe.inputs[:12]}", recipe.reference)
    assert re.fullmatch("[0-9a-f]{64}", recipe.inputs)


def test_a_context_holds_what_it_should_for_everyone_to_read_whatever_the_umask(recipe: Recipe, root: Path) -> None:
    (root / "labs" / "01_tensors.py").chmod(0o700)
    old = os.umask(0o077)
    try:
        store = samples.fetching(recipe.lock, root / "wheels")()
        place = buildkit.stage(recipe, root, store)
        (place / "labs" / "old.py").touch()
        (place / "gone" / "inner").mkdir(parents=True)
        (place / "stray").touch()
        fewer = dataclasses.replace(recipe, lock=dataclasses.replace(recipe.lock, wheels=recipe.lock.wheels[1:]))
        wheels = {file.name for file in (place / "wheels").iterdir()}
        assert buildkit.stage(fewer, root, store) == place == home.contexts() / "tiny"
    finally:
        os.umask(old)
    kept = recipe.lock.wheels[1].file
    assert wheels == {wheel.file for wheel in recipe.lock.wheels} and len(wheels) == 2
    found = {file.relative_to(place).as_posix(): file for file in place.rglob("*")}
    assert {name for name, file in found.items() if file.is_file()} == {
        "Dockerfile", "images/tiny/requirements-linux_x86_64.txt", "labrig/bytecode.py", f"wheels/{kept}",
        "labs/__main__.py", "labs/01_tensors.py", "labs/data/points.csv",
    }  # fmt: skip
    assert found["Dockerfile"].read_text() == recipe.dockerfile
    assert found["images/tiny/requirements-linux_x86_64.txt"].read_text() == recipe.requirements
    assert found["labs/01_tensors.py"].read_bytes() == b"one"
    assert found[f"wheels/{kept}"].samefile(root / "wheels" / kept)
    for name, file in found.items():
        if not name.startswith("wheels"):  # these are mounted, and in no layer
            assert stat.S_IMODE(file.stat().st_mode) == (0o755 if file.is_dir() else 0o644), name


def test_a_lab_whose_name_is_no_text_is_a_mistake_that_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"na\xefve.py")).write_text("")
    with pytest.raises(UsageError, match="a name that is no text") as caught:
        image.read_labs(tmp_path)
    assert "na\\udcefve.py" in caught.value.found


def test_a_revision_is_the_commit_and_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "checkout"
    folder.mkdir()

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@a.example", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(folder), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert image.revision(folder) == "unknown"
    git("init", "-q")
    assert image.revision(folder) == "unknown"
    (folder / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert image.revision(folder) == git("rev-parse", "HEAD")
    (folder / "new").touch()
    assert image.revision(folder) == f"{git('rev-parse', 'HEAD')}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert image.revision(folder) == "unknown"


def test_what_is_lacking_is_said_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert buildkit.lacking() == "no docker program on PATH"
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho \"docker: 'buildx' is not a docker command.\" >&2; exit 1\n")
    docker.chmod(0o755)
    assert buildkit.lacking() == "docker has no buildx (docker: 'buildx' is not a docker command.)"
    docker.write_text('#!/bin/sh\n[ "$*" = "buildx version" ] && echo buildx 0.13.1\n')
    assert buildkit.lacking() == ""
    docker.write_text("#!/no/such/interpreter\n")
    assert buildkit.lacking().startswith("docker buildx cannot be run: ")
