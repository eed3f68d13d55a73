"""Offline kits of a kilobyte: written, carried, damaged, read back; the script on them is run as a student runs it."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import samples

from labrig import base, blobs, environment, home, interpreters, kit, lock, oci, spec, stick, wheelhouse
from labrig.errors import BuildError, HostError, LockError, UsageError
from labrig.lock import Lock

PLATFORM = "linux_x86_64"
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
PYTHON = samples.PYTHON if samples.PYTHON in SUITES else "3.11"
TABLE = f"""
[defaults]
packages = ["alpha"]
engines = ["docker", "venv"]
base = "bootstrap"
builder = "layers"
[suites.{SUITES[PYTHON]}]
python = "{PYTHON}"
image = "debian:{SUITES[PYTHON]}-slim"
[indexes]
tiny = "http://127.0.0.1:9/simple"
[targets.here]
torch = "{samples.TORCH}"
variant = "cpu"
index = "tiny"
python = "{PYTHON}"
platforms = ["{PLATFORM}"]
why = "a test"
"""
LABS = {"__init__.py": "", "__main__.py": "print('labs')\n", "01_ä lab.py": "print(1)\n", "data/a.txt": "data\n"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout of one tiny target with everything in a cache of its own."""
    root = tmp_path_factory.mktemp("kit") / "checkout"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABRIG_CACHE", str(root.parent / "cache"))
        (root / "images").mkdir(parents=True)
        (root / "images" / spec.TABLE).write_text(TABLE)
        shutil.copytree(samples.ROOT / "templates", root / "templates")
        for name, text in LABS.items():
            (root / "labs" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "labs" / name).write_text(text)
        target = spec.read(root / "images" / spec.TABLE).targets["here"]
        code = "class version:\n    cuda = None\n"
        made = {
            **samples.wheel("torch", samples.TORCH, code=code), **samples.wheel("alpha", "1.0"),
        }  # fmt: skip
        wheels = samples.write(made, root.parent / "wheels")
        entries = sorted(map(samples.read_wheel, wheels.iterdir()), key=lambda one: one.name)
        locked = Lock("here", PLATFORM, PYTHON, lock.inputs_digest(target, PLATFORM), tuple(entries))
        lock.write(locked, root / "images")
        samples.fetching(locked, wheels)()
        keep_base(target)
        yield root


def keep_base(target: spec.Target) -> None:
    """A base of a few files, kept as one that was made here."""
    python = f"python{PYTHON}"
    files = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n", f"usr/bin/{python}": "no program",
        f"usr/lib/{python}/venv/__init__.py": "", "var/lib/dpkg/status": f"Package: {python}\nVersion: {PYTHON}.1-1\n",
    }  # fmt: skip
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, python
        archive.addfile(link)
        for name, text in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(text)
            archive.addfile(one, io.BytesIO(text.encode()))
    digest = hashlib.sha256(body.getvalue()).hexdigest()
    home.bases().mkdir(parents=True)
    (home.bases() / f"{digest}.tar").write_bytes(body.getvalue())
    note = {"suite": SUITES[PYTHON], "python": PYTHON, "digest": f"sha256:{digest}"}
    (home.bases() / f"{SUITES[PYTHON]}-{PLATFORM}.json").write_text(json.dumps(note))
    base.require_kept(target, PLATFORM)


def export(checkout: Path, place: Path, **how: Any) -> kit.Written:
    return kit.export(checkout, ["here"], place, platform=PLATFORM, offline=True, **how)


@pytest.fixture(scope="module")
def whole(checkout: Path) -> tuple[Path, kit.Written]:
    """A kit, which no test changes."""
    place = checkout.parent / "whole" / "kit"
    return place, export(checkout, place)


@pytest.fixture
def copied(whole: tuple[Path, kit.Written], tmp_path: Path) -> Path:
    """A copy of the kit, to be harmed, under a name that scripts stumble over."""
    place = tmp_path / "a stick, größer" / "my kit"
    shutil.copytree(whole[0], place)
    return place


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another machine's cache, in which nothing is, and no folder of wheels."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "empty"


def script(place: Path, *arguments: str, python: str = sys.executable, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the script on a kit, run from elsewhere."""
    done = subprocess.run(
        [python, "-I", "-S", str(place / "kit.py"), *arguments], cwd=place.parent, capture_output=True, text=True,
        timeout=120, env={**os.environ, **variables},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def flip(file: Path, at: int = -1) -> None:
    """Another bit in a file of the same size and time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(one.relative_to(folder)): (one.stat().st_mode, one.stat().st_mtime_ns, one.read_bytes())
        for one in folder.rglob("*")
        if one.is_file()
    }


def nothing_in(cache: Path) -> bool:
    """Whether no wheel, layer or base is in a cache."""
    return not [one for one in cache.rglob("*") if one.is_file() and one.name[0] != "."]


def tarred(place: Path, to: Path, top: str = "") -> Path:
    """A kit's folder as somebody's own tar."""
    with tarfile.open(to, "w") as archive:
        archive.add(place, top or ".")
    return to


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_kit_holds_what_its_page_says(whole: tuple[Path, kit.Written], checkout: Path) -> None:
    place, written = whole
    names = set(stick.files_of(place))
    locked = lock.read(checkout / "images" / "here" / f"{PLATFORM}.lock")
    assert {f"wheels/{one.file}" for one in locked.wheels} < names
    assert {f"labs/{name}" for name in LABS} < names
    assert {"README.txt", "kit.py", "kit.json", "checksums", "image/index.json", "image/oci-layout"} < names
    assert (place / f"targets/here/{PLATFORM}.lock").read_text() == lock.serialize(locked)
    assert {name.partition("/")[0] for name in names} == set(kit.TOP)
    assert written.digest == hashlib.sha256((place / "checksums").read_bytes()).hexdigest()
    assert written.size == sum(one.stat().st_size for one in place.rglob("*") if one.is_file())
    entry = oci.find_image(place / "image", "")
    assert entry["digest"] == written.targets[0]["image"]["digest"]
    assert written.to_json()["digest"] == f"sha256:{written.digest}"


def test_checksums_are_what_sha256sum_reads_and_cover_everything(whole: tuple[Path, kit.Written]) -> None:
    done = subprocess.run(["sha256sum", "-c", "checksums"], cwd=whole[0], capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(stick.files_of(whole[0])) - 1


def test_no_file_of_a_kit_is_a_link_into_the_cache(whole: tuple[Path, kit.Written]) -> None:
    for one in whole[0].rglob("*"):
        assert not one.is_file() or one.stat().st_nlink == 1, one


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_others_can_read_a_kit_whoever_wrote_it(checkout: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        export(checkout, tmp_path / "kit")
    finally:
        os.umask(before)
    modes = {one.stat().st_mode & 0o777 for one in (tmp_path / "kit", *(tmp_path / "kit").rglob("*"))}
    assert modes == {0o755, 0o644}


def test_the_same_kit_is_the_same_digest_and_keeps_the_files_that_are_right(checkout: Path, tmp_path: Path) -> None:
    one, two = export(checkout, tmp_path / "one"), export(checkout, tmp_path / "two")
    assert one.digest == two.digest
    before = {name: (tmp_path / "one" / name).stat().st_ino for name in stick.files_of(tmp_path / "one")}
    flip(tmp_path / "one" / "labs" / "__main__.py")
    assert export(checkout, tmp_path / "one").digest == one.digest
    after = {name: (tmp_path / "one" / name).stat().st_ino for name in stick.files_of(tmp_path / "one")}
    assert {name for name in before if before[name] != after[name]} <= {"labs/__main__.py", "checksums"}
    assert script(tmp_path / "one", "verify")[0] == 0
    assert not (tmp_path / "one.partial").exists()


def test_what_a_killed_export_left_is_no_kit_and_the_next_one_finishes_it(
    checkout: Path, whole: tuple[Path, kit.Written], tmp_path: Path
) -> None:
    partial = tmp_path / "kit.partial"
    shutil.copytree(whole[0], partial)
    (partial / "checksums").unlink()
    wheel = next((partial / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:100])
    (partial / "wheels" / ".x.whl.abc").write_text("half")
    (partial / "labs" / "old.py").write_text("of an older kit")
    code, _, said = script(partial, "verify")
    assert code == 4 and "checksums is missing" in said
    with pytest.raises(BuildError, match="no whole kit"), kit.open_kit(partial):
        pass
    assert export(checkout, tmp_path / "kit").digest == whole[1].digest
    assert script(tmp_path / "kit", "verify")[0] == 0
    assert not partial.exists()


def test_an_export_that_is_killed_can_be_run_again(checkout: Path, tmp_path: Path) -> None:
    """Really killed, as soon as something is there."""
    place = tmp_path / "kit"
    code = f"from labrig import kit; from pathlib import Path; kit.export(Path({str(checkout)!r}), ['here'], " \
           f"Path({str(place)!r}), platform={PLATFORM!r}, offline=True)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("kit.partial/*")):
            pass
        process.kill()
    if not place.exists():
        assert not (tmp_path / "kit.partial" / "checksums").exists()
    export(checkout, place)
    assert script(place, "verify")[0] == 0


@pytest.mark.parametrize("name", ["mine.txt", "labs/mine.py"])
def test_a_folder_with_something_else_is_left_alone(checkout: Path, copied: Path, name: str) -> None:
    (copied / name).write_text("mine")
    before = state(copied)
    with pytest.raises(UsageError, match="no kit and not empty"):
        export(checkout, copied)
    assert state(copied) == before


def test_places_that_cannot_be_meant_are_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other.tar").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "mine").write_text("mine")
    for name in ("file", "other.tar", "folder"):
        with pytest.raises(UsageError):
            export(checkout, tmp_path / name)
    for disk in ("/proc", "/"):
        with pytest.raises(UsageError, match="whole disk"):
            export(checkout, Path(disk))
    with pytest.raises(UsageError, match="no platform"):
        kit.export(checkout, ["here"], tmp_path / "kit", platform="macos_arm64")
    with pytest.raises(UsageError, match="is none"):
        export(checkout, tmp_path / "kit", with_image=False, with_wheels=False)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder", "folder.partial", "other.tar"]


def test_a_disk_that_is_full_is_said_before_anything_is_written(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(kit.shutil, "disk_usage", lambda place: real._replace(free=1000))
    for name in ("kit", "kit.tar"):
        with pytest.raises(BuildError, match="not enough room"):
            export(checkout, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_wheel_that_was_damaged_in_the_cache_never_gets_into_a_kit(
    checkout: Path, tmp_path: Path, empty: Path
) -> None:
    shutil.copytree(checkout.parent / "cache", empty)
    export(checkout, tmp_path / "first")  # the layers are there
    locked = lock.read(checkout / "images" / "here" / f"{PLATFORM}.lock")
    blob = blobs.path(json.loads((tmp_path / "first/kit.json").read_text())["targets"][0]["image"]["digest"])
    assert not blob.exists(), "documents are not kept"
    layer = max((home.layers() / "blobs" / "sha256").iterdir(), key=lambda one: one.stat().st_size)
    flip(layer)
    with pytest.raises(BuildError, match=layer.name):
        export(checkout, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    flip(wheelhouse.find(locked.wheels[0], home.wheels()))
    with pytest.raises(BuildError, match="not in the wheelhouse"):
        export(checkout, tmp_path / "third", with_image=False)


def test_parts_can_be_left_out(checkout: Path, tmp_path: Path) -> None:
    export(checkout, tmp_path / "wheels", with_image=False)
    export(checkout, tmp_path / "image", with_wheels=False)
    assert not (tmp_path / "wheels" / "image").exists() and not (tmp_path / "image" / "wheels").exists()
    assert script(tmp_path / "wheels", "load")[0] == 3
    assert script(tmp_path / "image", "native")[0] == 3
    for name in ("wheels", "image"):
        assert script(tmp_path / name, "verify")[0] == 0


def test_targets_of_a_kit_share_what_is_the_same_and_each_has_its_image(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    row = TABLE.partition("[targets.here]")[2]
    (root / "images" / spec.TABLE).write_text(f"{TABLE}[targets.there]{row}")
    target = spec.read(root / "images" / spec.TABLE).targets["there"]
    one = lock.read(root / "images" / "here" / f"{PLATFORM}.lock")
    lock.write(replace(one, target="there", inputs=lock.inputs_digest(target, PLATFORM)), root / "images")
    place = tmp_path / "kit"
    written = kit.export(root, ["here", "there", "here"], place, platform=PLATFORM, offline=True)
    assert [each["name"] for each in written.targets] == ["here", "there"]
    assert len(list((place / "wheels").iterdir())) == 2
    digests = {each["image"]["digest"] for each in written.targets}
    assert len(digests) == 2
    assert {each["digest"] for each in json.loads((place / "image/index.json").read_text())["manifests"]} >= digests
    assert script(place, "verify")[0] == 0
    for word in ("native", "load"):
        code, _, said = script(place, word)
        assert code == 2 and "here, there" in said
    # This checkout knows one of them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABRIG_CACHE", str(tmp_path / "empty"))
        assert [each.target for each in kit.import_kit(checkout, place)] == ["here"]
        assert [each.target for each in kit.import_kit(root, place)] == ["here", "there"]


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_is_python_3_8_of_the_standard_library() -> None:
    tree = ast.parse(Path(stick.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    modules = {one.module for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)}
    modules |= {alias.name for one in ast.walk(tree) if isinstance(one, ast.Import) for alias in one.names}
    assert {str(one).partition(".")[0] for one in modules} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("minor", ["3.8", "3.9", "3.12", "3.13"])
def test_other_pythons_run_the_script(whole: tuple[Path, kit.Written], tmp_path: Path, minor: str) -> None:
    try:
        python = str(interpreters.find(minor, offline=True))
    except HostError:
        pytest.skip(f"no Python {minor} here")
    code, out, said = script(whole[0], "verify", python=python)
    assert (code, out) == (0, f"sha256:{whole[1].digest}\n"), said
    assert script(whole[0], python=python)[0] == 0
    if (minor, samples.PYTHON) == ("3.8", PYTHON):  # the oldest one makes the environment with another Python
        arguments = ["native", "--to", str(tmp_path / "lab"), "--python", sys.executable]
        assert script(whole[0], *arguments, python=python)[0] == 0


def test_without_an_argument_it_says_what_it_is(copied: Path) -> None:
    code, out, _ = script(copied, DOCKER_HOST="unix:///nowhere")
    assert code == 0
    assert f"target here: torch {samples.TORCH} (cpu), Python {PYTHON}" in out
    assert "not on this machine: docker does not answer" in out


@pytest.mark.parametrize("arguments", [["burn"], ["native", "--from"], ["load", "--target", "there"]])
def test_what_cannot_be_meant_is_exit_2(whole: tuple[Path, kit.Written], arguments: list[str]) -> None:
    assert script(whole[0], *arguments)[0] == 2


def kinds(place: Path) -> dict[str, str]:
    """One file of each kind."""
    about = json.loads((place / "kit.json").read_text())["targets"][0]
    manifest = json.loads((place / "image" / oci.inner(about["image"]["digest"])).read_text())
    return {
        "wheel": f"wheels/{about['wheels'][0]}", "lab": "labs/__main__.py", "data": "labs/data/a.txt",
        "lock": about["lock"], "requirements": about["requirements"], "about": "kit.json", "readme": "README.txt",
        "index": "image/index.json", "manifest": f"image/{oci.inner(about['image']['digest'])}",
        "config": f"image/{oci.inner(about['image']['config'])}",
        "layer": f"image/{oci.inner(manifest['layers'][-1]['digest'])}", "script": "kit.py", "checksums": "checksums",
    }  # fmt: skip


ALL = ("wheel", "lab", "data", "lock", "requirements", "about", "readme", "index", "manifest", "config", "layer")


@pytest.mark.parametrize("kind", [*ALL, "script", "checksums"])
def test_a_bit_that_flipped_is_found_and_named_and_nothing_is_taken(
    copied: Path, checkout: Path, empty: Path, kind: str, tmp_path: Path
) -> None:
    name = kinds(copied)[kind]
    at = (copied / name).read_bytes().index(b"no network") if kind == "script" else -1
    flip(copied / name, at if kind != "checksums" else 3)
    first = sorted(stick.files_of(copied))[0] if kind == "checksums" else name
    code, _, said = script(copied, "verify")
    assert code == 4
    assert first in said and "Copy the kit again" in said
    for place in (copied, tarred(copied, tmp_path / "kit.tar", "x")):
        with pytest.raises(BuildError, match="no whole kit") as caught:
            kit.import_kit(checkout, place)
        assert first in caught.value.found
    assert nothing_in(empty)


@pytest.mark.parametrize("kind", [*ALL, "script", "checksums"])
@pytest.mark.parametrize("harm", ["missing", "half", "link"])
def test_a_kit_that_was_half_copied_is_found(copied: Path, checkout: Path, empty: Path, kind: str, harm: str) -> None:
    name = kinds(copied)[kind]
    file = copied / name
    runs = shutil.copytree(copied, copied.with_name("another")) if kind == "script" else copied
    content = file.read_bytes()
    file.unlink()
    if harm == "half":
        file.write_bytes(content[: len(content) // 2])
    if harm == "link":
        (copied.parent / "target").write_bytes(content)
        file.symlink_to(copied.parent / "target")
    if runs == copied:
        code, _, said = script(copied, "verify")
        assert code == 4, said
        assert name in said or kind == "checksums"
    with pytest.raises(BuildError, match="no whole kit"):
        kit.import_kit(checkout, copied)
    assert nothing_in(empty)


def test_a_file_too_many_is_found_and_what_a_desktop_leaves_is_not(copied: Path, checkout: Path, empty: Path) -> None:
    for name in (".DS_Store", "wheels/._x.whl", "labs/Thumbs.db"):
        (copied / name).write_text("litter")
    assert script(copied, "verify")[0] == 0
    (copied / "wheels" / "evil\x1b[2J-1.0-py3-none-any.whl").write_text("x")
    code, _, said = script(copied, "verify")
    assert code == 4 and "wheels/evil?[2J-1.0-py3-none-any.whl" in said
    with pytest.raises(BuildError, match="no whole kit"):
        kit.import_kit(checkout, copied)
    assert nothing_in(empty)


@pytest.mark.parametrize(
    "line", ["0 x", f"{'0' * 64}  ../x", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  a\\b", f"{'0' * 64}  C:x",
             f"{'0' * 64}  checksums", f"{'0' * 64}  labs//x", f"{'0' * 64}  ./x", f"{'A' * 64}  x"],
)  # fmt: skip
def test_checksums_that_lead_elsewhere_are_refused(copied: Path, checkout: Path, empty: Path, line: str) -> None:
    with (copied / "checksums").open("a") as file:
        file.write(line + "\n")
    assert script(copied, "verify")[0] == 4
    with pytest.raises(BuildError):
        kit.import_kit(checkout, copied)


needs_same_python = pytest.mark.skipif(samples.PYTHON != PYTHON, reason="the tiny target's Python is another one")


def native(place: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    return script(place, "native", "--python", sys.executable, *arguments, **variables)


@needs_same_python
def test_native_makes_an_environment_and_never_writes_on_the_stick(copied: Path, tmp_path: Path) -> None:
    before = state(copied)
    place = tmp_path / "my läb"
    code, out, said = native(
        copied, "--to", str(place), PIP_INDEX_URL="http://127.0.0.1:9/", PIP_FIND_LINKS="/nowhere", PIP_USER="1"
    )
    assert code == 0, said
    commands = out.splitlines()
    assert len(commands) == 2
    ran = subprocess.run(
        ["sh", "-ec", "\n".join(commands)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert ran.stdout == "labs\n", ran.stderr
    assert {name: (place / "labs" / name).read_text() for name in LABS} == LABS
    assert sorted(one.name for one in place.iterdir()) == ["labs", "venv"]
    assert not [one for one in (place / "venv").iterdir() if one.name in ("tmp", stick.UNFINISHED)]
    assert state(copied) == before
    # Once more: nothing is made again, and what was edited stays.
    (place / "labs" / "__main__.py").write_text("print('mine')\n")
    code, again, said = native(copied, "--to", str(place))
    assert (code, again) == (0, out)
    assert "already the environment" in said and "labs/__main__.py" in said
    assert (place / "labs" / "__main__.py").read_text() == "print('mine')\n"


@needs_same_python
def test_native_goes_on_after_it_was_killed_and_leaves_what_is_not_its_own(copied: Path, tmp_path: Path) -> None:
    place = tmp_path / "lab"
    (place / "venv" / "bin").mkdir(parents=True)
    (place / "venv" / "bin" / "mine").write_text("mine")
    code, _, said = native(copied, "--to", str(place))
    assert code == 2 and "is there already" in said
    assert (place / "venv" / "bin" / "mine").read_text() == "mine"
    (place / "venv" / stick.UNFINISHED).touch()
    code, _, said = native(copied, "--to", str(place))
    assert code == 0 and "interrupted" in said, said
    assert not (place / "venv" / "bin" / "mine").exists()
    assert (place / "venv" / stick.MARK).is_file()
    assert native(copied, "--to", str(copied / "lab"))[0] == 2


@needs_same_python
@pytest.mark.parametrize("kind", ["wheel", "lab", "data", "requirements"])
def test_nothing_is_installed_from_a_damaged_kit(copied: Path, tmp_path: Path, kind: str) -> None:
    flip(copied / kinds(copied)[kind])
    code, out, said = native(copied, "--to", str(tmp_path / "lab"))
    assert (code, out) == (4, "")
    assert f"{kinds(copied)[kind]} is damaged" in said
    assert not (tmp_path / "lab").exists()


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_without_a_python_that_makes_environments_it_says_what_to_install(copied: Path, tmp_path: Path) -> None:
    shim = program(tmp_path / "bin", "shim", "exit 127")
    code, _, said = script(copied, "native", "--python", str(shim))
    assert code == 3 and f"no working Python {PYTHON}" in said
    answer = json.dumps([PYTHON, False, False, f"{PYTHON}.9"])
    bare = program(tmp_path / "bin", "bare", f"echo '{answer}'")
    code, _, said = script(copied, "native", "--python", str(bare))
    assert code == 3 and f"apt install python{PYTHON}-venv" in said


def resealed(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A kit whose kit.json says something else, with checksums that fit."""
    about = json.loads((place / "kit.json").read_text())
    change(about)
    (place / "kit.json").write_text(json.dumps(about))
    seal(place)


def seal(place: Path) -> None:
    names = sorted(set(stick.files_of(place)) - {"checksums"})
    lines = [f"{hashlib.sha256((place / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (place / "checksums").write_text("".join(lines))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("platform", "linux_riscv64", "linux_riscv64"), ("glibc", "9.9", "need glibc 9.9"),
     ("platform", "macos_arm64", "macos_arm64")],
)  # fmt: skip
def test_a_machine_that_the_wheels_are_not_for_is_exit_3(copied: Path, key: str, value: str, word: str) -> None:
    resealed(copied, lambda about: about["targets"][0].update({key: value}))
    code, _, said = script(copied, "native")
    assert code == 3 and word in said


# --- what an engine is given ------------------------------------------------------------------------------------------


def stream(place: Path) -> tuple[bytes, str]:
    """What an engine would get, and why it breaks off."""
    opened = stick.Kit(place)
    image = opened.targets[0]["image"]
    sent = b""
    try:
        manifest = json.loads(opened.read(stick._blob(image["digest"])))
        for piece in stick.archive(opened, image, manifest):
            sent += piece
    except stick.Stop as stop:
        return sent, str(stop)
    return sent, ""


def test_an_engine_is_given_what_labrig_itself_would_give(whole: tuple[Path, kit.Written], checkout: Path) -> None:
    sent, why = stream(whole[0])
    assert not why
    image = whole[1].targets[0]["image"]
    with kit.open_kit(whole[0]) as opened:
        plans, _, _ = kit._plans(opened, spec.read(checkout / "images" / spec.TABLE))
        made = plans[0][2]
    assert made
    assert b"".join(oci.archive(made, [image["reference"]])) == sent


@pytest.mark.parametrize("number", [0, 1, -1])
def test_an_engine_never_gets_the_end_of_a_damaged_layer(copied: Path, number: int) -> None:
    """Where the stream breaks off is inside of the layer, so that no reader of tars takes it for the end."""
    image = stick.Kit(copied).targets[0]["image"]
    manifest = json.loads((copied / "image" / oci.inner(image["digest"])).read_text())
    layer = manifest["layers"][number]["digest"]
    flip(copied / "image" / oci.inner(layer))
    sent, why = stream(copied)
    assert f"image/{oci.inner(layer)} is damaged" in why
    with pytest.raises(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(sent)) as archive:
        archive.getmembers()


# --- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "tar", "own tar", "own tar with a top"])
def test_a_kit_is_all_that_another_machine_needs(
    form: str, whole: tuple[Path, kit.Written], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = whole[0]
    if form == "tar":
        place = tmp_path / "kit.tar"
        assert export(checkout, place).digest == whole[1].digest
        with tarfile.open(place) as archive:
            assert {name.partition("/")[0] for name in archive.getnames()} == {"kit"}
            archive.extractall(tmp_path / "out", filter="data")
        assert script(tmp_path / "out" / "kit", "verify")[1] == f"sha256:{whole[1].digest}\n"
    elif form.startswith("own"):
        place = tarred(place, tmp_path / "own.tar", "a/b" if "top" in form else "")
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    [found] = kit.import_kit(checkout, place)
    assert (found.target, found.wheels, found.loaded) == ("here", 2, False)
    locked = lock.read(checkout / "images" / "here" / f"{PLATFORM}.lock")
    for one in locked.wheels:
        content = wheelhouse.find(one, home.wheels()).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.sha256
    with (place if place.is_dir() else whole[0]).joinpath("image/index.json").open() as file:
        assert json.load(file)["manifests"]
    # The same image can be made, and an environment, with no connection.
    made = environment.export(checkout, "here", platform=PLATFORM, output=tmp_path / "layout", offline=True)
    assert made.image.digest == whole[1].targets[0]["image"]["digest"]
    assert blobs.stale(one.sha256 for one in locked.wheels) == []
    for one in made.image.layers:
        assert blobs.is_untouched(blobs.path(one.digest), one.size)


def test_importing_again_brings_nothing_new_and_mends(
    whole: tuple[Path, kit.Written], checkout: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit.import_kit(checkout, whole[0])
    assert "2 of them new" in capsys.readouterr().err
    locked = lock.read(checkout / "images" / "here" / f"{PLATFORM}.lock")
    flip(wheelhouse.find(locked.wheels[0], home.wheels()))
    kit.import_kit(checkout, whole[0])
    assert "1 of them new" in capsys.readouterr().err
    kit.import_kit(checkout, whole[0])
    assert "0 of them new" in capsys.readouterr().err


def test_a_kit_of_another_lock_is_refused_with_what_it_is_for(
    whole: tuple[Path, kit.Written], checkout: Path, empty: Path, tmp_path: Path
) -> None:
    other = tmp_path / "checkout"
    shutil.copytree(checkout, other)
    file = other / "images" / "here" / f"{PLATFORM}.lock"
    locked = lock.read(file)
    lock.write(Lock("here", PLATFORM, PYTHON, locked.inputs, locked.wheels[:1]), other / "images")
    with pytest.raises(LockError, match="for another checkout") as caught:
        kit.import_kit(other, whole[0])
    assert locked.digest[:12] in caught.value.found and lock.read(file).digest[:12] in caught.value.found
    assert "kit.py" in caught.value.fix
    assert nothing_in(empty)
    (other / "images" / spec.TABLE).write_text(TABLE.replace("targets.here", "targets.there"))
    with pytest.raises(LockError, match="for another checkout"):
        kit.import_kit(other, whole[0])


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.type, one.linkname = kind, link
    return one


@pytest.mark.parametrize(
    "evil",
    [
        member("kit/../../x"), member("/etc/x"), member("kit/labs/x", tarfile.SYMTYPE, "/etc/passwd"),
        member("kit/labs/x", tarfile.LNKTYPE, "kit/README.txt"), member("kit/labs/x", tarfile.CHRTYPE),
        member("kit/labs/x", tarfile.FIFOTYPE), member("kit/README.txt"), member("beside"), member("kit/a\\..\\b"),
        member("kit/labs", tarfile.SYMTYPE, "/"), member("kit/C:x"), member("../kit", tarfile.DIRTYPE),
    ],
    ids=lambda one: f"{one.name} {one.type!r}",
)  # fmt: skip
def test_a_tar_that_leads_out_of_the_kit_is_refused(
    whole: tuple[Path, kit.Written], checkout: Path, empty: Path, tmp_path: Path, evil: tarfile.TarInfo
) -> None:
    place = tarred(whole[0], tmp_path / "kit.tar", "kit")
    with tarfile.open(place, "a") as archive:
        archive.addfile(evil, io.BytesIO())
    with pytest.raises(BuildError, match="no whole kit"):
        kit.import_kit(checkout, place)
    assert nothing_in(empty)


@pytest.mark.parametrize("cut", [100, 5000, 0.5, 0.8])
def test_a_tar_that_is_cut_off_is_refused(
    checkout: Path, empty: Path, tmp_path: Path, cut: float, whole: tuple[Path, kit.Written]
) -> None:
    place = tarred(whole[0], tmp_path / "kit.tar", "kit")
    content = place.read_bytes()
    place.write_bytes(content[: int(cut if cut > 1 else cut * len(content))])
    with pytest.raises(BuildError, match="no whole kit"):
        kit.import_kit(checkout, place)
    place.write_bytes(b"PK\x03\x04 no tar")
    with pytest.raises(BuildError, match="no whole kit"):
        kit.import_kit(checkout, place)
    with pytest.raises(UsageError, match="there is no"):
        kit.import_kit(checkout, tmp_path / "absent")
    assert nothing_in(empty)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(format=99),
        lambda about: about.pop("targets"),
        lambda about: about.update(targets=5),
        lambda about: about["targets"][0].update(lock="../../../etc/passwd"),
        lambda about: about["targets"][0].update(image={"digest": "sha256:" + "0" * 64}),
        lambda about: about["targets"][0].update(image={"digest": "sha256:../../../../kit.json"}),
        lambda about: about["targets"][0].update(image={"digest": about["targets"][0]["image"]["config"]}),
        lambda about: about["targets"][0].update(image=[1]),
        lambda about: about["targets"][0].pop("name"),
    ],
)
def test_a_kit_that_lies_with_right_checksums_gets_nothing_in(
    copied: Path, checkout: Path, empty: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    resealed(copied, change)
    with pytest.raises(BuildError):
        kit.import_kit(checkout, copied)
    assert nothing_in(empty)


def test_a_wheel_that_is_not_the_locks_never_gets_in_whatever_the_checksums_say(
    copied: Path, checkout: Path, empty: Path
) -> None:
    wheel = copied / kinds(copied)["wheel"]
    flip(wheel)
    seal(copied)
    assert script(copied, "verify")[0] == 0, "whoever writes the checksums decides; the digest is to be compared"
    with pytest.raises(BuildError, match=r"\.whl is not the wheel that the lock names"):
        kit.import_kit(checkout, copied)
    assert not list((empty / "wheels").rglob("*.whl"))
    if samples.PYTHON == PYTHON:
        code, _, said = native(copied, "--to", str(copied.parent / "lab"))
        assert "DO NOT MATCH THE HASHES" in said
        assert code == 4, "pip has the lock's digests"
        assert not (copied.parent / "lab" / "venv").exists()


def test_a_layer_that_is_another_one_never_gets_in_whatever_the_checksums_say(
    copied: Path, checkout: Path, empty: Path
) -> None:
    layer = copied / kinds(copied)["layer"]
    flip(layer)
    seal(copied)
    with pytest.raises(BuildError, match="not what its digest says"):
        kit.import_kit(checkout, copied)
    assert not (home.layers() / "blobs" / "sha256" / layer.name).exists()


# --- the doors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["export"], 2), (["import"], 2), (["import", "/nowhere/kit"], 2), (["import", "--kit=/nowhere"], 2),
        (["export", "--output=/nowhere/kit", "--target=none"], 2),
        (["export", "--output=/nowhere/kit", "--no-image", "--no-wheels"], 2),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_at_the_doors_is_exit_2(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *arguments], cwd=samples.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
