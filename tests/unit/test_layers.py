"""Groups of wheels become layers: the same everywhere, made once, made again when they are gone."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from samples import PYTHON, make_wheel

from labrig import blobs, home, layers, oci, wheelhouse
from labrig.blobs import ABANDONED, Layer
from labrig.errors import BuildError
from labrig.layers import LARGE, MOST, SHARED, Group, group, share
from labrig.lock import Lock, Wheel
from labrig.tarball import Writer
from labrig.wheel import Places

PLACES = Places("/x/venv", PYTHON)
SITE = f"x/venv/lib/python{PYTHON}/site-packages"


def named(name: str, size: int = 1000, version: str = "1.0") -> Wheel:
    """A wheel that is only a name."""
    return Wheel(name, version, f"{name}-{version}-py3-none-any.whl", hashlib.sha256(name.encode()).hexdigest(), size)


def names_of(number: int, count: int) -> list[str]:
    """Names of packages that share a layer."""
    return list(itertools.islice((f"p{n}" for n in itertools.count() if share(f"p{n}") == number), count))


def noise(size: int, seed: str = "") -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)  # noqa: S311


def lock_of(wheels: Sequence[Wheel]) -> Lock:
    return Lock("tiny", "linux_x86_64", PYTHON, "0" * 64, tuple(wheels))


def house(folder: Path, wheels: Sequence[Wheel]) -> None:
    """Put wheels of a folder into the wheelhouse."""
    for one in wheels:
        place = wheelhouse.find(one, home.wheels())
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / one.file, place)


def make(wheels: Sequence[Wheel], places: Places = PLACES) -> list[Layer]:
    return layers.of_wheels(lock_of(wheels), home.wheels, places, quiet=True)


def nowhere() -> Path:
    raise AssertionError("the wheelhouse was asked for")


def kept(wheels: Sequence[Wheel]) -> list[Layer]:
    """The layers, none of which may be made."""
    return layers.of_wheels(lock_of(wheels), nowhere, PLACES, quiet=True)


def state() -> dict[str, tuple[int, int, int]]:
    """Every file of the store: which it is, when it was written, how long it is."""
    return {
        str(place.relative_to(home.layers())): (place.stat().st_ino, place.stat().st_mtime_ns, place.stat().st_size)
        for place in home.layers().rglob("*")
        if place.is_file()
    }


def names_in(layer: Layer) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blobs.path(layer.digest).read_bytes()))) as tar:
        return tar.getnames()


def content_of(layer: Layer, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blobs.path(layer.digest).read_bytes()))) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path, cache: Path) -> list[Wheel]:
    """A large wheel, torch, and two small ones that share a layer with a third elsewhere; in the wheelhouse."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    made = [
        make_wheel(folder, "zlarge", files={"zlarge.bin": noise(LARGE + 1000)}),
        make_wheel(folder, "torch", files={"torch.bin": noise(LARGE + 1000, "torch")}),
        *(make_wheel(folder, name) for name in names_of(0, 2)),
        make_wheel(folder, names_of(1, 1)[0], files={"ünï/日本.py": b"x", "m.py": b"y" * 3000}),
    ]
    house(folder, made)
    return made


# --- which wheels make which layer ------------------------------------------------------------------------------


def test_a_large_wheel_is_alone_and_torch_is_above_all_other_large_ones() -> None:
    wheels = [named("torch", 10**9), named("zeta", LARGE), named("alpha", LARGE + 1), named("small", LARGE - 1)]
    groups = group(wheels)
    assert [[one.name for one in each.wheels] for each in groups] == [["alpha"], ["zeta"], ["torch"], ["small"]]
    assert [each.title for each in groups[:3]] == ["alpha 1.0", "zeta 1.0", "torch 1.0"]
    assert "small" in groups[3].title


def test_a_torch_that_is_small_is_a_small_package() -> None:
    assert [len(each.wheels) for each in group([named("torch", 5), named("alpha", LARGE)])] == [1, 1]
    assert group([named("torch", 5), named("alpha", LARGE)])[0].wheels[0].name == "alpha"


def test_nothing_makes_no_layer() -> None:
    assert group([]) == []
    assert make([]) == []


def test_every_wheel_is_in_one_group() -> None:
    wheels = [named(f"n{number}", number * 100_000) for number in range(1, 200)]
    groups = group(wheels)
    assert sorted(one.name for each in groups for one in each.wheels) == sorted(one.name for one in wheels)
    assert len(groups) <= MOST + SHARED
    assert all(len({share(one.name) for one in each.wheels}) == 1 for each in groups if len(each.wheels) > 1)
    for each in groups:
        assert [one.name for one in each.wheels] == sorted(one.name for one in each.wheels)


def test_the_order_of_the_lock_does_not_matter() -> None:
    wheels = [named(f"n{number}", number * 300_000) for number in range(1, 40)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(wheels, len(wheels))  # noqa: S311
        assert group(shuffled) == group(wheels)


@pytest.mark.parametrize("number", range(20))
def test_a_small_package_that_is_added_changes_one_layer(number: int) -> None:
    before = group([named(f"n{at}", at * 300_000) for at in range(1, 40)])
    for present in (before, group([named("large", LARGE)])):
        wheels = [one for each in present for one in each.wheels]
        after = group([named(f"new{number}"), *wheels])
        changed = [each for each in after if each not in present]
        gone = [each for each in present if each not in after]
        assert len(changed) == 1
        assert len(gone) <= 1
        assert {one.name for one in changed[0].wheels} - {one.name for each in gone for one in each.wheels} == {
            f"new{number}"
        }


def test_a_large_package_that_is_added_adds_a_layer_and_changes_none() -> None:
    wheels = [named(f"n{at}", at * 300_000) for at in range(1, 40)]
    before, after = group(wheels), group([*wheels, named("new", LARGE)])
    assert [each for each in after if each not in before] == [Group("new 1.0", (named("new", LARGE),))]
    assert [each for each in after if each in before] == before


def test_a_small_package_in_another_version_stays_in_its_layer() -> None:
    one, two = named("some-package"), named("some-package", version="2.0")
    others = [named(f"n{at}") for at in range(40)]
    before, after = group([one, *others]), group([two, *others])
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("size", [LARGE, LARGE * 2, 10**9])
@pytest.mark.parametrize("count", [MOST - 1, MOST, MOST + 1, 300])
def test_there_are_never_too_many_layers(size: int, count: int) -> None:
    for spread in (0, 1000, size // 10):
        groups = group([named(f"n{at}", size + at * spread) for at in range(count)])
        assert len(groups) <= MOST + SHARED
        assert sum(len(each.wheels) for each in groups) == count
        if count <= MOST:
            assert len(groups) == count


def test_sizes_from_elsewhere_decide() -> None:
    wheels = [named("a", 10), named("b", 10)]
    groups = group(wheels, {wheels[0]: 10, wheels[1]: LARGE})
    assert [len(each.wheels) for each in groups] == [1, 1]
    assert groups[0].title == "b 1.0"


# --- the same everywhere ----------------------------------------------------------------------------------------

SCRIPT = f"""
import os, sys
from pathlib import Path
os.umask(int(sys.argv[3], 8))
sys.path.insert(0, sys.argv[1])
import {Path(__file__).stem} as tests
from samples import read_wheel
folder = Path(sys.argv[2])
wheels = [read_wheel(folder / name) for name in sys.argv[4:]]
tests.house(folder, wheels)
print(*(layer.digest for layer in tests.make(wheels)))
"""


@pytest.mark.parametrize(
    ("umask", "variables", "backwards"),
    [
        ("022", {}, False),
        ("077", {}, False),
        ("000", {"TZ": "Pacific/Kiritimati"}, True),
        ("027", {"TZ": "America/New_York", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, False),
        ("022", {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1", "HOME": "/nonexistent"}, True),
    ],
)
def test_the_same_wheels_are_the_same_layers_everywhere(
    tmp_path: Path, wheels: list[Wheel], umask: str, variables: Mapping[str, str], backwards: bool
) -> None:
    here = [layer.digest for layer in make(wheels)]
    there = tmp_path / "there"
    (there / "work").mkdir(parents=True)
    shutil.copytree(tmp_path / "wheels", there / "wheels")
    for file in (there / "wheels").iterdir():
        os.utime(file, (1, 1))
    files = [one.file for one in wheels][:: -1 if backwards else 1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, Path(__file__).parent, there / "wheels", umask, *files],
        capture_output=True, text=True, check=False, cwd=there / "work",
        env={**os.environ, "LABRIG_CACHE": str(there / "cache"), **variables},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == here
    assert list((there / "work").iterdir()) == []
    for digest in here:
        blob = there / "cache" / "layers" / "blobs" / "sha256" / digest.removeprefix("sha256:")
        assert blob.read_bytes() == blobs.path(digest).read_bytes()
        assert blob.stat().st_mode & 0o777 == 0o444


def test_another_place_or_python_is_another_layer(wheels: list[Wheel]) -> None:
    digests = {
        layer.digest
        for places in (PLACES, Places("/y/venv", PYTHON), Places("/x/venv", "3.99"))
        for layer in make(wheels[2:], places)
    }
    assert len(digests) == 6


# --- made once --------------------------------------------------------------------------------------------------


def test_layers_are_made_once_and_then_found(wheels: list[Wheel]) -> None:
    made = make(wheels)
    assert [layer.title.split()[0] for layer in made[:2]] == ["zlarge", "torch"]
    assert len(made) == 4
    before = state()
    assert len(before) == 8, "a blob and a key for each layer, and nothing else"
    assert kept(wheels) == made
    assert kept(list(reversed(wheels))) == made
    assert state() == before


def test_a_wheel_that_changes_makes_its_own_layer_anew_and_no_other(tmp_path: Path, wheels: list[Wheel]) -> None:
    made = make(wheels)
    before = state()
    folder = tmp_path / "newer"
    folder.mkdir()
    newer = make_wheel(folder, wheels[2].name, "2.0")
    house(folder, [newer])
    again = make([*wheels[:2], newer, *wheels[3:]])
    assert sum(one not in made for one in again) == 1
    assert {name: value for name, value in state().items() if name in before} == before


def test_only_the_wheels_of_a_layer_that_is_made_are_read(
    wheels: list[Wheel], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(wheels)
    blobs.path(made[0].digest).unlink()
    before = state()
    assert make(wheels) == made
    assert {name: value for name, value in state().items() if name in before and "keys" not in name} == {
        name: value for name, value in before.items() if "keys" not in name
    }
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("harm", ["removed", "cut", "longer", "empty"])
def test_a_blob_that_is_gone_or_has_another_size_is_made_again(wheels: list[Wheel], harm: str) -> None:
    made = make(wheels)
    blob = blobs.path(made[-1].digest)
    content = blob.read_bytes()
    blob.chmod(0o644)
    if harm == "removed":
        blob.unlink()
    else:
        blob.write_bytes({"cut": content[:-1], "longer": content + b"x", "empty": b""}[harm])
    assert make(wheels) == made
    assert blob.read_bytes() == content
    assert len(state()) == 8


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b'{"title": "x"}',
        b"[" * 100_000,
        "without size",
        "more",
        "digest 5",
        "digest null",
        "digest elsewhere",
        "size null",
    ],
    ids=range(16),
)
def test_a_key_that_is_damaged_is_made_again(wheels: list[Wheel], text: bytes | str) -> None:
    made = make(wheels)
    before = state()
    [note] = [
        place
        for place in (home.layers() / "keys").iterdir()
        if json.loads(place.read_bytes())["layer"]["digest"] == made[-1].digest
    ]
    said = json.loads(note.read_bytes())
    if text == "without size":
        del said["layer"]["size"]
    elif text == "more":
        said["layer"]["more"] = 1
    elif isinstance(text, str):
        key, value = text.split()
        said["layer"][key] = {"5": 5, "null": None, "elsewhere": "sha256:" + "0" * 64}[value]
    note.write_bytes(text if isinstance(text, bytes) else json.dumps(said).encode())
    assert make(wheels) == made
    assert json.loads(note.read_bytes())["layer"]["digest"] == made[-1].digest
    assert state().keys() == before.keys()
    assert kept(wheels) == made


def test_a_blob_that_was_written_into_is_made_again_in_the_store_and_in_a_layout(
    tmp_path: Path, wheels: list[Wheel]
) -> None:
    made = make(wheels)
    image = oci.assemble("linux_x86_64", made, {}, {})
    oci.write_layout(image, tmp_path / "image", "1")
    inner = tmp_path / "image" / "blobs" / "sha256" / blobs.path(made[-1].digest).name
    content = inner.read_bytes()
    inner.chmod(0o644)
    with inner.open("r+b") as file:  # the same size; through a hard link into the store as well
        file.write(b"xx")
    assert blobs.path(made[-1].digest).read_bytes() != content
    assert make(wheels) == made
    assert blobs.path(made[-1].digest).read_bytes() == content
    oci.write_layout(image, tmp_path / "image", "1")
    assert inner.read_bytes() == content
    assert inner.stat().st_mode & 0o777 == 0o444


def test_layers_of_wheels_that_no_lock_names_and_what_was_not_finished_can_go(wheels: list[Wheel]) -> None:
    made = make(wheels)
    (home.layers() / "blobs" / "sha256" / f"{ABANDONED}x").write_bytes(b"half")
    assert [place.name for place in blobs.stale(one.sha256 for one in wheels)] == [f"{ABANDONED}x"]
    # One wheel less: its layer goes, with what is noted of it.
    gone = next(one for one in made if one.title.startswith(f"{wheels[0].name} "))
    found = {place.name for place in blobs.stale(one.sha256 for one in wheels[1:])}
    assert {f"{ABANDONED}x", blobs.path(gone.digest).name} < found and len(found) == 3
    assert len(blobs.stale([])) == 1 + 2 * len(made)


def test_of_what_is_not_made_from_wheels_the_newest_of_a_title_is_kept() -> None:
    def of(text: bytes) -> blobs.Layer:
        def write(writer: Writer) -> None:
            writer.start("file", len(text))
            writer.data(text)

        return blobs.make(blobs.key(text.decode()), "the labs", write)

    older, newer = of(b"older"), of(b"newer")
    for layer, seconds in ((older, 1000), (newer, 2000)):
        for note in (home.layers() / "keys").iterdir():
            if json.loads(note.read_bytes())["layer"]["digest"] == layer.digest:
                os.utime(note, (seconds, seconds))
    assert blobs.path(older.digest) in blobs.stale([])
    assert blobs.path(newer.digest) not in blobs.stale([])
    blobs.remember("base: x", [older.digest])
    assert blobs.path(older.digest) not in blobs.stale([])


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_wheel_that_is_none_stops_the_build_and_keeps_whole_layers_only(tmp_path: Path, wheels: list[Wheel]) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = make_wheel(folder, names_of(2, 1)[0])
    content = (folder / bad.file).read_bytes()
    (folder / bad.file).write_bytes(content[: len(content) // 2])
    house(folder, [bad])
    with pytest.raises(BuildError, match=bad.file):
        make([*wheels, bad])
    found = state()
    assert not any(ABANDONED in name for name in found)
    assert len([name for name in found if name.startswith("keys/")]) == len(found) / 2
    assert len(make(wheels)) == 4


def test_a_store_that_cannot_be_written_is_one_error(wheels: list[Wheel]) -> None:
    home.layers().parent.mkdir(exist_ok=True)
    home.layers().write_bytes(b"a file")
    with pytest.raises(BuildError, match="cannot be written"):
        make(wheels)


def test_two_builds_at_once_make_the_same(tmp_path: Path, wheels: list[Wheel]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "wheels"), "022"]
    command += [one.file for one in wheels]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "abc"]
    said = [one.communicate() for one in running]
    assert {error for _, error in said} == {""}
    assert len({text for text, _ in said}) == 1
    assert said[0][0].split() == [layer.digest for layer in kept(wheels)]
    assert len(state()) == 8


# --- paths that two wheels bring --------------------------------------------------------------------------------


def two_wheels(folder: Path, apart: bool, one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[Wheel]:
    """Wheels of these files, in one layer or in two."""
    folder.mkdir()
    names = [names_of(0, 1)[0], names_of(1, 1)[0]] if apart else names_of(0, 2)
    made = [make_wheel(folder, name, files=files) for name, files in zip(names, (one, other), strict=True)]
    house(folder, made)
    return made


@pytest.mark.parametrize("apart", [False, True], ids=["one layer", "two layers"])
def test_a_path_that_two_wheels_fill_otherwise_is_said(
    tmp_path: Path, apart: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = two_wheels(tmp_path / "w", apart, {"tests/x.py": b"1", "a.py": b""}, {"tests/x.py": b"2", "b.py": b""})
    made = make(wheels)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"/{SITE}/tests/x.py is in {wheels[0].name} and, different, in {wheels[1].name}"
    ]
    assert len(made) == (2 if apart else 1)
    assert content_of(made[0], f"{SITE}/tests/x.py") == b"1"
    assert all(names_in(layer).count(f"{SITE}/tests/x.py") == 1 for layer in made)


@pytest.mark.parametrize("apart", [False, True], ids=["one layer", "two layers"])
def test_a_path_that_two_wheels_fill_alike_is_not_said(
    tmp_path: Path, apart: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"tests/__init__.py": b"", "tests/x.py": b"same"}
    made = make(two_wheels(tmp_path / "w", apart, {**same, "a.py": b"1"}, {**same, "b.py": b"2"}))
    assert capsys.readouterr().err == ""
    for layer in made:
        assert len(set(names_in(layer))) == len(names_in(layer))
        assert content_of(layer, f"{SITE}/tests/x.py") == b"same"


def test_an_overlap_with_a_layer_that_was_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheels = two_wheels(tmp_path / "w", True, {"x.py": b"1"}, {"x.py": b"2"})
    make(wheels[:1])
    assert capsys.readouterr().err == ""
    make(wheels)
    assert f"/{SITE}/x.py is in" in capsys.readouterr().err


def test_an_overlap_is_said_without_what_moves_a_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(two_wheels(tmp_path / "w", False, {"\x1b[2Jx.py": b"1"}, {"\x1b[2Jx.py": b"2"}))
    assert "x.py is in" in (printed := capsys.readouterr().err)
    assert "\x1b" not in printed


@pytest.mark.parametrize("apart", [False, True], ids=["one layer", "two layers"])
@pytest.mark.parametrize("file_first", [True, False], ids=["file first", "folder first"])
def test_a_file_of_one_wheel_where_another_has_a_folder_is_said_or_refused(
    tmp_path: Path, apart: bool, file_first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = [{"thing": b"1"}, {"thing/x.py": b"2"}]
    wheels = two_wheels(tmp_path / "w", apart, *(contents if file_first else reversed(contents)))
    try:
        make(wheels)
    except BuildError as error:
        assert "thing" in str(error)
    else:
        assert f"/{SITE}/thing" in capsys.readouterr().err


def test_a_locked_size_that_is_wrong_does_not_change_a_layer(wheels: list[Wheel]) -> None:
    """Sizes decide who is large; below that they are for the progress alone."""
    assert make([replace(wheels[2], size=1)]) == make([wheels[2]])
