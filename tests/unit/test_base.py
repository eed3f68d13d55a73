"""The base under an image: locked, or made by a mmdebstrap that is a script of ours."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
from docker.errors import ImageNotFound
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig import base, daemon, files, home, relock
from labrig.errors import BuildError, HostError, LockError, UsageError
from labrig.spec import Suite

ROOT = Path(__file__).parents[2]
SUITE = Suite("stable", "3.11", "debian:stable-slim")
MADE_HERE = replace(samples.target("tiny"), suite=SUITE, base="bootstrap")
REGISTRY = replace(MADE_HERE, base="registry")
DIGEST = f"sha256:{'ab' * 32}"
LOCKED = f'image = "{SUITE.image}"\ndigest = "{DIGEST}"\n'
PLATFORM = "linux_x86_64"


class Engine:
    """As much of the SDK's client as is asked about images: what it holds, and what it was told to do."""

    def __init__(self, answer: str = '{"status": "ok"}\n') -> None:
        self.images = self.api = self
        self.answer, self.all, self.told = answer, set[str](), list[str]()

    def get(self, reference: str) -> Any:
        if reference not in self.all:
            raise ImageNotFound("404")
        return SimpleNamespace(tag=lambda repository, tag: self.told.append(f"tag {repository}:{tag}"))

    def pull(self, reference: str) -> None:
        self.told.append(f"pull {reference}")
        self.all.add(reference)

    def import_image_from_stream(self, pieces: Iterable[bytes], repository: str, tag: str, changes: list[str]) -> str:
        sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
        self.told.append(f"import {sha256} {repository}:{tag} {changes[0]}")
        self.all.add(f"{repository}:{tag}")
        return self.answer


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no program on PATH but those of a test."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def write_lock(images: Path, data: str | bytes) -> None:
    file = images / REGISTRY.name / base.LOCK
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())


def root_file_system(path: Path, python: str = "python3.11", name: str = "./usr/bin/python3") -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("./usr/bin/python"))
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, python
        archive.addfile(link)
    return path


@pytest.fixture
def mmdebstrap(tmp_path: Path) -> Callable[..., None]:
    """Puts a mmdebstrap on PATH: it notes what it got, says and does this, and makes that tar in the last argument."""

    def put(script: str = "", python: str = "python3.11") -> None:
        tar = root_file_system(tmp_path / "made.tar", python)
        program = tmp_path / "bin" / "mmdebstrap"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nPATH=/usr/bin:/bin\nprintf "%s\\n" "$SOURCE_DATE_EPOCH" "$@" > "{tmp_path}/got"\n'
            f'for last; do :; done\ncp "{tar}" "$last"\n{script}\n'
        )
        program.chmod(0o755)

    return put


# --- from a registry --------------------------------------------------------------------------------------------------


def test_a_dockerfile_starts_from_the_base_made_here_or_from_a_digest_that_is_locked(tmp_path: Path) -> None:
    assert base.default(MADE_HERE, tmp_path) == "labrig-base:stable"
    assert base.default(REGISTRY, tmp_path) == ""
    write_lock(tmp_path, LOCKED)
    assert base.default(REGISTRY, tmp_path) == f"{SUITE.image}@{DIGEST}"
    with pytest.raises(UsageError, match="has no Debian suite"):
        base.default(replace(MADE_HERE, suite=None), tmp_path)


@pytest.mark.parametrize(
    "text",
    [LOCKED.replace("stable-slim", "old-slim"), LOCKED.replace("ab", "zz"), LOCKED.replace("sha256", "md5")],
)
def test_a_digest_of_another_image_or_none_at_all_counts_as_not_locked(tmp_path: Path, text: str) -> None:
    write_lock(tmp_path, text)
    assert base.default(REGISTRY, tmp_path) == ""


@pytest.mark.parametrize("value", ["1", "0x" + 5000 * "f", 100_000 * "["])
def test_a_lock_that_makes_no_sense_is_said_with_what_makes_it_anew(tmp_path: Path, value: str) -> None:
    write_lock(tmp_path, LOCKED.replace(f'"{DIGEST}"', value))
    with pytest.raises(LockError, match="not a lock labrig can read") as caught:
        base.default(REGISTRY, tmp_path)
    assert "invoke lock --base" in caught.value.fix


VALUES = st.sampled_from([DIGEST, SUITE.image, "", "ü\n", f"{DIGEST}\n", True, 1.5, [DIGEST]]) | st.integers()
LOCKS = st.dictionaries(st.sampled_from(["image", "digest", "other"]), VALUES).map(
    lambda keys: "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
)


@given(st.binary() | LOCKS | LOCKS.map(lambda text: text.encode("utf-16")))
@settings(deadline=None)
def test_whatever_stands_in_the_lock_it_is_a_reference_or_nothing_or_a_lock_error(
    tmp_path_factory: pytest.TempPathFactory, data: str | bytes
) -> None:
    images = tmp_path_factory.getbasetemp()
    write_lock(images, data)
    try:
        found = base._locked(REGISTRY, images)
    except LockError as error:
        assert error.code == 4
        assert "invoke lock --base --target=tiny" in error.fix
        return
    assert found in ("", f"{SUITE.image}@{DIGEST}")


def test_a_registrys_base_is_pulled_once_and_never_without_a_digest(tmp_path: Path) -> None:
    client: Any = Engine()
    with pytest.raises(UsageError, match="no digest of it is locked") as caught:
        base.ensure(client, REGISTRY, PLATFORM, tmp_path)
    assert caught.value.code == 2
    assert caught.value.fix.startswith("invoke lock --base --target=tiny")
    assert base.lacking(REGISTRY, PLATFORM) == "", "that is a mistake in the row, and no reason to go native"
    write_lock(tmp_path, LOCKED)
    found = [base.ensure(client, REGISTRY, PLATFORM, tmp_path) for _ in range(2)]
    assert found == [base.Base(f"{SUITE.image}@{DIGEST}", SUITE.image, DIGEST)] * 2
    assert client.told == [f"pull {SUITE.image}@{DIGEST}"]


def test_without_a_row_that_takes_its_base_from_a_registry_there_is_nothing_to_lock(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    for name in (None, "mps"):
        with pytest.raises(UsageError, match=f"no base to lock for {name or 'any target'}") as caught:
            relock.lock_bases(tmp_path, name)
        assert caught.value.code == 2
        assert 'base = "registry"' in caught.value.fix


# --- made here --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./usr/bin/python3", "usr/bin/python3", "/usr/bin/python3"])
def test_the_python_of_a_root_file_system_is_where_its_link_leads(tmp_path: Path, name: str) -> None:
    assert base._python_of(root_file_system(tmp_path / "a.tar", "python3.13", name)) == "3.13"
    assert base._python_of(root_file_system(tmp_path / "b.tar", "python3.13", "./opt/usr/bin/python3")) == "none"


def test_without_mmdebstrap_the_error_is_exit_3_with_each_way_out() -> None:
    assert base.lacking(MADE_HERE, PLATFORM) == "mmdebstrap, which makes the base, is not installed"
    with pytest.raises(HostError, match="mmdebstrap") as caught:
        base._bootstrap(SUITE, PLATFORM)
    assert caught.value.code == 3
    for way in ("apt install mmdebstrap", 'base = "registry"', daemon.WITHOUT):
        assert way in caught.value.fix


def test_a_base_is_made_once_kept_by_its_digest_and_imported(
    tmp_path: Path, mmdebstrap: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    mmdebstrap('echo "I: running apt-get update..." >&2\necho "I: success" >&2')
    assert base.lacking(MADE_HERE, PLATFORM) == ""
    client: Any = Engine()
    assert "making one fetches packages" in base.absent(client, MADE_HERE, PLATFORM, tmp_path)
    found = base.ensure(client, MADE_HERE, PLATFORM, tmp_path)
    sha256 = hashlib.sha256((tmp_path / "made.tar").read_bytes()).hexdigest()
    reference = f"labrig-base:stable-{sha256[:12]}"
    assert found == base.Base(reference, "labrig-base:stable", f"sha256:{sha256}")
    assert client.told == [f'import {sha256} {reference} CMD ["bash"]', "tag labrig-base:stable"]
    assert {file.name for file in home.bases().iterdir() if file.name[0] != "."} == {
        f"{sha256}.tar", f"stable-{PLATFORM}.json",
    }  # fmt: skip
    epoch, *arguments = (tmp_path / "got").read_text().splitlines()
    assert epoch == files.EPOCH
    assert {"--variant=minbase", "--architectures=amd64", f"--include={base.PACKAGES}"} < set(arguments)
    assert arguments[-2] == "stable"
    said = capsys.readouterr()
    assert said.out == ""
    assert "  running apt-get update...\n" in said.err and "success" not in said.err
    (tmp_path / "got").unlink()
    assert base.absent(client, MADE_HERE, PLATFORM, tmp_path) == ""
    assert base.ensure(client, MADE_HERE, PLATFORM, tmp_path) == found
    assert client.told[2:] == ["tag labrig-base:stable"]
    assert not (tmp_path / "got").exists()
    assert base.ensure(client, MADE_HERE, PLATFORM, tmp_path, fresh=True) == found
    assert (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("script", "python", "what", "words"),
    [
        ("", "python3.13", "the suite stable brings Python 3.13, not 3.11", "[suites.stable]"),
        ('echo "I: x" >&2; echo "E: no such suite" >&2; exit 25', "python3.11", "mmdebstrap could not make the base",
         "E: no such suite"),
        ("echo only words >&2; exit 1", "python3.11", "mmdebstrap could not make the base", "only words"),
        ('echo "E: write: No space left on device" >&2; exit 1', "python3.11", "the disk is full while the base is",
         "E: write: No space left on device"),
    ],
)  # fmt: skip
def test_a_base_that_could_not_be_made_leaves_nothing(
    mmdebstrap: Callable[..., None], script: str, python: str, what: str, words: str
) -> None:
    mmdebstrap(script, python)
    with pytest.raises(BuildError, match=re.escape(what)) as caught:
        base._bootstrap(SUITE, PLATFORM)
    assert caught.value.code == 4
    assert caught.value.found.startswith(words)
    assert caught.value.fix
    assert list(home.bases().iterdir()) == []


@pytest.mark.parametrize(
    ("said", "words"),
    [("archive/tar: invalid header", "the engine refused the base: archive"), ("no space left on device", "is full")],
)
def test_a_base_that_the_engine_does_not_take_is_an_error(
    tmp_path: Path, mmdebstrap: Callable[..., None], said: str, words: str
) -> None:
    mmdebstrap()
    client: Any = Engine(json.dumps({"status": "ok"}) + "\nno JSON\n" + json.dumps({"error": said}))
    with pytest.raises(BuildError, match=words):
        base.ensure(client, MADE_HERE, PLATFORM, tmp_path)
