"""Faults while layers are made: kill -9, Ctrl-C, a full disk, a read-only cache, builders beside each other.

Whatever happens, the store holds whole layers and nothing that is taken for one; the next run finds or makes the same.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labrig import blobs
from labrig.blobs import ABANDONED, Layer
from labrig.files import write_atomically
from labrig.layers import LARGE
from labrig.oci import INDEX, MANIFEST, TAG

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills, mounts and looks for processes as on Linux")
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("layers_once.py")
WAIT = 120  # seconds that a run may take at most; it takes one
MOMENTS = 12
WHAT = ("wheels", "bytecode")
# Wheel -> megabytes; those above 4 have a layer of their own.
SIZES = {"alpha": 6, "beta": 4.5, "gamma": 4.2, "delta": 2, "epsilon": 1.5, "zeta": 1, "eta": 1, "theta": 1}
MODULES, FUNCTIONS = 8, 70  # of each wheel, of each module


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run gives, where, and how many seconds it takes after "ready"."""

    layers: list[dict[str, Any]]
    seconds: float
    cache: Path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse of wheels with data and modules, the same in every session."""
    store = tmp_path_factory.mktemp("wheels")
    chance = random.Random(1)  # noqa: S311
    sixteen = bytes(range(97, 113)) * 16  # four bits of eight: deflate takes half of it
    for name, megabytes in SIZES.items():
        files = {f"{name}/__init__.py": b"", f"{name}/small.txt": b"small\n" * 100}
        left = int(megabytes * 1e6 * 1.78)
        while left > 0:
            size = min(left, chance.choice((30_000, 300_000, 2_500_000)))
            files[f"{name}/data/{len(files)}.bin"] = chance.randbytes(size).translate(sixteen)
            left -= size
        put_wheel(store, name, {**files, **modules(name, MODULES, FUNCTIONS, chance)})
    return store


def modules(name: str, count: int, functions: int, chance: random.Random) -> dict[str, bytes]:
    """Modules that take their time to compile."""
    return {
        f"{name}/m{module}.py": "".join(
            f"def f{number}(a, b={chance.random()}):\n    c = [a * x for x in range({number}) if x != b]\n"
            f"    return {{'{chance.random()}': c, 'b': b}}\n\n"
            for number in range(functions)
        ).encode()
        for module in range(count)
    }


def put_wheel(store: Path, name: str, files: Mapping[str, bytes]) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    from samples import wheel

    sys.path.pop(0)
    for file, content in wheel(name, "1.0", files=files).items():
        sha256 = hashlib.sha256(content).hexdigest()
        (store / sha256[:2] / sha256).mkdir(parents=True)
        (store / sha256[:2] / sha256 / file).write_bytes(content)


@pytest.fixture(scope="session")
def references(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """For the wheels and for their bytecode."""
    found = {}
    for what in WHAT:
        cache = tmp_path_factory.mktemp(f"reference-{what}")
        with started(cache, what, wheels) as run:
            run.go()
            begun = time.monotonic()
            found[what] = Reference(run.layers(), time.monotonic() - begun, cache)
        right(cache)
    assert sum(one["size"] >= LARGE for one in found["wheels"].layers) == 3
    assert len(found["wheels"].layers) > 4
    assert found["bytecode"].layers
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, gone after the test: pytest would keep gigabytes."""
    folder = tmp_path / "cache"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


# --- a run ------------------------------------------------------------------------------------------------------------


class Run:
    """A process of layers_once.py that has started and, from :meth:`go` on, does what it was asked."""

    def __init__(self, cache: Path, *arguments: object, **variables: str) -> None:
        self.temporary = cache.with_name(f"{cache.name}-tmp")
        self.temporary.mkdir(exist_ok=True)
        self._is_ready = self._gone = False
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)], cwd=ROOT, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "LABRIG_CACHE": str(cache), "TMPDIR": str(self.temporary), **variables},
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until all is imported."""
        assert self.process.stdout is not None
        if not self._is_ready:
            assert self.process.stdout.readline() == "ready\n"
            self._is_ready = True

    def go(self) -> None:
        """Let it begin, once it is ready."""
        assert self.process.stdin is not None
        self.ready()
        if not self._gone:
            self._gone = True
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def end(self) -> tuple[int, str, str]:
        """Its exit code, stdout and stderr; no error is a traceback."""
        self.go()
        out, said = self.process.communicate(timeout=WAIT)
        assert "Traceback" not in said, said
        return self.process.returncode, out, said

    def layers(self) -> list[dict[str, Any]]:
        """What a run gives that succeeds."""
        code, out, said = self.end()
        assert (code, said) == (0, "")
        made = json.loads(out)
        assert isinstance(made, list)
        return made

    def refused(self) -> str:
        """The one error, of three lines at most, of a run whose layers cannot be made."""
        code, out, said = self.end()
        assert (code, out) == (4, ""), said
        assert said.startswith("labrig: ")
        assert said.count("labrig: ") == 1, said
        return said


@contextlib.contextmanager
def started(cache: Path, *arguments: object, **variables: str) -> Iterator[Run]:
    """A run in a session of its own, of which nothing stays."""
    run = Run(cache, *arguments, **variables)
    with run.process:
        try:
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)


def compilers(cache: Path) -> list[int]:
    """The processes that compile for this cache."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables, words = ((process / name).read_bytes() for name in ("environ", "cmdline"))
            if f"LABRIG_CACHE={cache}\0".encode() in variables and b"compiler.py" in words:
                found.append(int(process.name))
    return found


def wait_for_the_end_of_compilers(cache: Path) -> None:
    until = time.monotonic() + 5
    while compilers(cache):
        assert time.monotonic() < until, "a compiler that nobody waits for"
        time.sleep(0.02)


# --- what has to hold -------------------------------------------------------------------------------------------------

PLAIN: dict[str, tuple[str, int]] = {}  # digest of a blob -> digest and size of what it inflates to


def right(cache: Path, *, left: bool = False) -> None:
    """Every blob is what its name says, every key names one; temporary files may be ``left`` by who was killed."""
    store = cache / "layers"
    for place in files(store / "blobs" / "sha256"):
        if place.name.startswith(ABANDONED):
            assert left, f"{place} was left"
            continue
        content = place.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert place.name == digest
        if digest not in PLAIN:
            plain = gzip.decompress(content)
            PLAIN[digest] = f"sha256:{hashlib.sha256(plain).hexdigest()}", len(plain)
    for note in files(store / "keys"):
        if note.suffix != ".json" or note.name.startswith("."):
            assert left, f"{note} was left"
            continue
        layer = Layer(**json.loads(note.read_text())["layer"])
        blob = store / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
        assert blob.stat().st_size == layer.size
        assert PLAIN[blob.name] == (layer.diff_id, layer.plain_size)
    for place in files(store / "bytecode"):
        if place.name.startswith(ABANDONED):
            assert left, f"{place} was left"
            continue
        assert place.suffix == ".zip"
        with zipfile.ZipFile(place) as archive:
            assert archive.testzip() is None


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def temporaries(cache: Path) -> list[Path]:
    return [place for place in (cache / "layers").rglob("*") if place.name.startswith(ABANDONED)]


def next_run_is_right(cache: Path, what: str, wheels: Path, references: dict[str, Reference]) -> None:
    """The next run gives what an undisturbed one gives in an empty cache."""
    with started(cache, what, wheels) as run:
        assert run.layers() == references[what].layers
    right(cache, left=True)


# --- kill -9 and Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("what", WHAT)
def test_kill_9_leaves_whole_layers_and_the_next_run_makes_the_same(
    what: str, moment: int, wheels: Path, references: dict[str, Reference], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(cache, what, wheels) as run, started(cache, what, wheels) as following:
        following.ready()
        run.go()
        time.sleep(references[what].seconds * (moment + 0.5) / MOMENTS)
        run.process.kill()  # it alone: nobody tells its compilers
        run.process.wait()
        wait_for_the_end_of_compilers(cache)
        right(cache, left=True)
        assert following.layers() == references[what].layers
    right(cache, left=True)
    monkeypatch.setenv("LABRIG_CACHE", str(cache))
    can_go = blobs.stale(path.parent.name for path in wheels.glob("*/*/*.whl"))
    assert set(can_go) == set(temporaries(cache))


def test_what_a_killed_compiler_left_is_among_what_can_go(
    wheels: Path, references: dict[str, Reference], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(cache, "bytecode", wheels) as run:
        run.go()
        wait_for_a_temporary(cache)
        run.process.kill()
        run.process.wait()
        wait_for_the_end_of_compilers(cache)
    monkeypatch.setenv("LABRIG_CACHE", str(cache))
    assert temporaries(cache)
    assert set(temporaries(cache)) <= set(blobs.stale([]))


@pytest.mark.parametrize("part", [0, 0.2, 0.4])
@pytest.mark.parametrize("what", WHAT)
def test_ctrl_c_is_130_and_keeps_nothing_that_is_not_whole(
    what: str, part: float, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    for divisor in (1, 2, 4):  # on a busy machine it may be over before it is interrupted
        with started(cache, what, wheels) as run:
            run.go()
            wait_for_a_temporary(cache)
            time.sleep(references[what].seconds * part / divisor)
            interrupt(run)
            code, out, said = run.end()
        if code:
            break
        shutil.rmtree(cache / "layers")
    assert (code, out) == (130, ""), said
    assert said.startswith("labrig: ")
    assert "interrupted" in said
    wait_for_the_end_of_compilers(cache)
    right(cache)
    assert files(run.temporary) == []
    next_run_is_right(cache, what, wheels, references)


def test_ctrl_c_in_a_wheel_that_takes_long_to_compile_ends_at_once_and_leaves_nothing(
    cache: Path, tmp_path: Path
) -> None:
    put_wheel(tmp_path / "wheels", "slow", modules("slow", 60, 500, random.Random(1)))  # noqa: S311
    with started(cache, "bytecode", tmp_path / "wheels") as run:
        run.go()
        until = time.monotonic() + 20
        while not compilers(cache):
            assert time.monotonic() < until
        time.sleep(0.3)  # the compiler has read what it is to do
        begun = time.monotonic()
        interrupt(run)
        code, out, said = run.end()
        assert time.monotonic() - begun < 4
        assert (code, out) == (130, ""), said
        wait_for_the_end_of_compilers(cache)
    assert temporaries(cache) + files(run.temporary) == []


def interrupt(run: Run) -> None:
    os.killpg(run.process.pid, signal.SIGINT)


def wait_for_a_temporary(cache: Path) -> None:
    """Until something is being written."""
    until = time.monotonic() + 20
    while not temporaries(cache):
        assert time.monotonic() < until
        time.sleep(0.001)


# --- a full disk, a read-only one -------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at a folder. Root that may not mount is a failure."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "labrig", str(folder)], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, timeout=20)


FULL = [
    ("wheels", "size=3m"), ("wheels", "size=12m"), ("wheels", "size=200m,nr_inodes=8"),
    ("bytecode", "size=64k"), ("bytecode", "size=300k"), ("bytecode", "size=200m,nr_inodes=5"),
    ("bytecode", "size=200m,nr_inodes=13"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "options"), FULL)
def test_a_full_disk_is_one_error_and_with_room_the_same_run_succeeds(
    what: str, options: str, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    with mounted(cache, options):
        with started(cache, what, wheels) as run:
            said = run.refused()
        assert "No space left on device" in said
        assert len(said.splitlines()) <= 3, said
        right(cache)
        remount(cache, "size=200m,nr_inodes=0" if "inodes" not in options else "size=200m,nr_inodes=1000")
        next_run_is_right(cache, what, wheels, references)
        right(cache)


@pytest.mark.parametrize(("what", "limit"), [("wheels", 1000), ("wheels", 3_000_000), ("bytecode", 30_000)])
def test_a_limit_of_file_size_is_one_error_and_without_it_the_same_run_succeeds(
    what: str, limit: int, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    with started(cache, what, wheels, LIMIT=str(limit)) as run:
        said = run.refused()
    assert "File too large" in said
    assert len(said.splitlines()) <= 3, said
    right(cache)
    next_run_is_right(cache, what, wheels, references)


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("what", WHAT)
def test_a_read_only_cache_is_one_error_unless_all_is_there(
    what: str, is_empty: bool, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    with mounted(cache, "size=200m"):
        if not is_empty:
            for name in ("blobs/sha256", "keys", "bytecode"):
                (cache / "layers" / name).mkdir(parents=True)
        remount(cache, "ro")
        with started(cache, what, wheels) as run:
            said = run.refused()
        assert "Read-only file system" in said
        assert len(said.splitlines()) <= 3, said
        right(cache)
        remount(cache, "rw")
        next_run_is_right(cache, what, wheels, references)
        remount(cache, "ro")
        next_run_is_right(cache, what, wheels, references)


# --- builders beside each other ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "builders", "rounds"), [(what, count, 2) for what in WHAT for count in (2, 4)])
def test_builders_that_share_a_cache_make_the_same(
    what: str, builders: int, rounds: int, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(started(cache, what, wheels)) for _ in range(builders)]
            for run in runs:
                run.ready()
            for run in runs:
                run.go()
            for run in runs:
                assert run.layers() == references[what].layers
        right(cache)
        shutil.rmtree(cache / "layers")


@pytest.mark.parametrize("part", [0.3, 0.8])
@pytest.mark.parametrize("what", WHAT)
def test_a_builder_beside_one_that_is_killed_makes_the_same(
    what: str, part: float, wheels: Path, references: dict[str, Reference], cache: Path
) -> None:
    with started(cache, what, wheels) as killed, started(cache, what, wheels) as other:
        other.ready()
        killed.go()
        other.go()
        time.sleep(references[what].seconds * part)
        killed.process.kill()
        assert other.layers() == references[what].layers
    right(cache, left=True)
    next_run_is_right(cache, what, wheels, references)


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layouts:
    """A cache of layers; two images of them, of one tag; a layout with the first of them and one of another tag."""

    cache: Path
    jobs: tuple[Path, Path]
    folder: Path
    tags: tuple[dict[str, str], dict[str, str]]  # tag -> digest, before and after


@pytest.fixture
def layouts(references: dict[str, Reference], tmp_path: Path) -> Layouts:
    cache, made = references["wheels"].cache, references["wheels"].layers
    folder = tmp_path / "layout"
    other = job(tmp_path / "other", folder, made[1:3], "kept")
    jobs = job(tmp_path / "first", folder, made[:4]), job(tmp_path / "second", folder, made[2:])
    for one in (other, jobs[1]):
        written(cache, one)
    after = whole(folder)
    shutil.rmtree(folder)
    for one in (other, jobs[0]):
        written(cache, one)
    before = whole(folder)
    assert before["kept"] == after["kept"]
    assert before["tag"] != after["tag"]
    return Layouts(cache, jobs, folder, (before, after))


def job(place: Path, folder: Path, layers: list[dict[str, Any]], tag: str = "tag") -> Path:
    write_atomically(
        place, json.dumps({"folder": str(folder), "layers": layers, "tag": tag, "sbom": f'{{"of":"{place.name}"}}'})
    )
    return place


def written(cache: Path, what: Path) -> None:
    with started(cache, "layout", what) as run:
        assert run.layers() == []


def whole(folder: Path) -> dict[str, str]:
    """Tag -> digest, in a layout that has all that it names."""
    assert json.loads((folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    listed = json.loads((folder / "index.json").read_text())["manifests"]
    todo = list(listed)
    while todo:
        one = todo.pop()
        content = (folder / "blobs" / "sha256" / one["digest"].removeprefix("sha256:")).read_bytes()
        assert len(content) == one["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == one["digest"]
        if one["mediaType"] in (MANIFEST, INDEX):
            inner = json.loads(content)
            todo += [*inner.get("manifests", []), *inner.get("layers", []), *([inner["config"]] * ("config" in inner))]
    subjects = [one for one in listed if one.get("artifactType")]
    tags = {one["annotations"][TAG]: str(one["digest"]) for one in listed if not one.get("artifactType")}
    assert len(subjects) == len(tags) == len(listed) / 2
    return tags


def named(folder: Path) -> set[str]:
    return {place.name for place in (folder / "blobs" / "sha256").iterdir()}


def test_the_writer_of_a_layout_killed_at_any_step_leaves_the_old_image_or_the_new(
    layouts: Layouts, tmp_path: Path
) -> None:
    steps = die_everywhere(layouts, layouts.jobs[1], tmp_path / "copies")
    seen = []
    for step in steps:
        place = tmp_path / "copies" / str(step["step"])
        found = whole(place / "killed")
        assert found in layouts.tags, step
        seen.append(layouts.tags.index(found))
        assert step["next"] == 0, step
        assert whole(place / "after") == layouts.tags[1], step
    assert seen == sorted(seen), "first the old one, then the new one"
    assert set(seen) == {0, 1}


def test_the_first_writer_of_a_layout_killed_at_any_step_is_followed_by_one_that_succeeds(
    layouts: Layouts, tmp_path: Path
) -> None:
    shutil.rmtree(layouts.folder)
    for step in die_everywhere(layouts, layouts.jobs[0], tmp_path / "copies"):
        place = tmp_path / "copies" / str(step["step"])
        if (place / "killed" / "index.json").exists():
            assert whole(place / "killed")["tag"] == layouts.tags[0]["tag"], step
        assert step["next"] == 0, step
        assert whole(place / "after" if (place / "after").exists() else place / "killed")["tag"]


def die_everywhere(layouts: Layouts, what: Path, copies: Path) -> list[dict[str, int]]:
    with started(layouts.cache, "dying", what, copies) as run:
        code, out, said = run.end()
    print(said)
    assert code == 0, said
    steps = [json.loads(line) for line in out.splitlines()]
    assert len(steps) > 10
    assert {one["code"] for one in steps} == {-signal.SIGKILL, 0}
    return steps


@pytest.mark.parametrize("part", [0.1, 0.4, 0.7])
def test_the_writer_of_a_layout_on_another_disk_killed_at_any_time_leaves_the_old_image_or_the_new(
    part: float, layouts: Layouts
) -> None:
    """There blobs are copied, which takes its time."""
    held = layouts.folder.with_name("held")
    layouts.folder.rename(held)
    layouts.folder.mkdir()
    with mounted(layouts.folder, "size=200m"):
        shutil.copytree(held, layouts.folder, dirs_exist_ok=True)
        with started(layouts.cache, "layout", layouts.jobs[1]) as run:
            run.go()
            time.sleep(0.05 * part)
            run.process.kill()
            run.process.wait()
        assert whole(layouts.folder) in layouts.tags
        written(layouts.cache, layouts.jobs[1])
        assert whole(layouts.folder) == layouts.tags[1]


def test_a_layout_on_a_full_disk_stays_as_it_was(layouts: Layouts) -> None:
    held = layouts.folder.with_name("held")
    layouts.folder.rename(held)
    layouts.folder.mkdir()
    with mounted(layouts.folder, "size=200m"):
        shutil.copytree(held, layouts.folder, dirs_exist_ok=True)
        used = shutil.disk_usage(layouts.folder).used
        remount(layouts.folder, f"size={used // 1024 + 2000}k")
        with started(layouts.cache, "layout", layouts.jobs[1]) as run:
            said = run.refused()
        assert "No space left on device" in said
        assert whole(layouts.folder) == layouts.tags[0]
        assert not [name for name in named(layouts.folder) if name.startswith(".")]
        remount(layouts.folder, "size=200m")
        written(layouts.cache, layouts.jobs[1])
        assert whole(layouts.folder) == layouts.tags[1]


def test_a_blob_that_a_killed_process_of_the_same_number_left_half_linked_does_not_matter(layouts: Layouts) -> None:
    """In a container the next run often has the number of the last one."""
    new = json.loads(layouts.jobs[1].read_text())["layers"][-1]["digest"].removeprefix("sha256:")
    with started(layouts.cache, "layout", layouts.jobs[1]) as run:
        (layouts.folder / "blobs" / "sha256" / f"{ABANDONED}{run.process.pid}-{new}").write_bytes(b"half")
        assert run.layers() == []
    assert whole(layouts.folder) == layouts.tags[1]


def test_two_writers_of_one_layout_at_once_both_have_their_image_in_it(layouts: Layouts, tmp_path: Path) -> None:
    made = json.loads(layouts.jobs[0].read_text())["layers"]
    for round_ in range(4):
        folder = tmp_path / f"shared-{round_}"
        written(layouts.cache, job(tmp_path / "there", folder, made[:2], "there"))
        jobs = [job(tmp_path / tag, folder, made[at : at + 2], tag) for at, tag in enumerate(("one", "two"), 1)]
        with started(layouts.cache, "layout", jobs[0]) as one, started(layouts.cache, "layout", jobs[1]) as two:
            for run in (one, two):
                run.ready()
            for run in (one, two):
                run.go()
            for run in (one, two):
                assert run.layers() == []
        assert set(whole(folder)) == {"there", "one", "two"}
