"""Cleaning takes what no lock names, and nothing else; a dry run takes nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from labrig import cleaning, home, lock, native, spec
from labrig.engines import conda, venv
from labrig.errors import BuildError, LockError, SpecError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout: the real table and locks."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    for file in (ROOT / "images").rglob("*"):
        if file.suffix in (".toml", ".lock"):
            copy = tmp_path / "checkout" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    shutil.copytree(ROOT / "templates", tmp_path / "checkout" / "templates")
    return tmp_path / "checkout"


def locks(root: Path) -> list[lock.Lock]:
    table = spec.read(root / "images" / spec.TABLE)
    return [
        lock.load(target, platform, root / "images")
        for target in table.targets.values()
        for platform in lock.locked_platforms(target, root / "images")
    ]


def environment(place: Path, size: int = 1000) -> Path:
    (place / "lib").mkdir(parents=True)
    (place / "lib" / "file").write_bytes(bytes(size))
    (place / native.MARK).write_text("{}")
    place.with_name(place.name + native.GUARD).touch()
    return place


@pytest.fixture
def current(root: Path) -> list[Path]:
    """An environment for every lock."""
    made = [environment(venv.folder(locked)) for locked in locks(root)]
    targets = spec.read(root / "images" / spec.TABLE).targets
    of_conda = [locked for locked in locks(root) if targets[locked.target].conda]
    made += [environment(conda.folder(targets[locked.target], locked, root)) for locked in of_conda]
    assert len(made) == len(set(made)) >= 7
    return made


@pytest.fixture
def old(root: Path) -> list[Path]:
    """Environments of an older lock, of older pins, of an unfinished build, and of a target that is no more."""
    unfinished = environment(home.environments() / "cpu" / "111111111111")
    (unfinished / native.MARK).unlink()
    return [
        unfinished,
        environment(home.environments() / "cpu" / "000000000000"),
        environment(home.environments() / "gone" / "222222222222"),
    ]


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def wheel_in_store() -> Path:
    file = home.wheels() / "ab" / "abc" / "one.whl"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(50))
    return file


def partial() -> Path:
    file = home.wheels() / "partial" / "abc"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(500_000))
    return file


def test_only_what_no_lock_names_goes(root: Path, current: list[Path], old: list[Path]) -> None:
    wheel, half = wheel_in_store(), partial()
    gone = cleaning.clean(root)
    assert set(gone) == {*old, half}
    assert not any(place.exists() for place in gone)
    assert all((place / "lib" / "file").exists() for place in current)
    assert wheel.exists()
    assert cleaning.clean(root) == []


def test_a_dry_run_says_the_same_and_touches_nothing(
    root: Path, current: list[Path], old: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    partial()
    for options in ({}, {"everything": True}, {"name": "cpu"}):
        before = tree(home.root())
        would = cleaning.clean(root, dry_run=True, **options)  # type: ignore[arg-type]
        assert would
        assert "would" in capsys.readouterr().err
        assert tree(home.root()) == before
    said = cleaning.clean(root, dry_run=True)
    assert cleaning.clean(root) == said


def test_a_target_by_name_goes_with_its_current_environment_and_no_other_target(
    root: Path, current: list[Path], old: list[Path]
) -> None:
    wheel = wheel_in_store()
    home.uv_cache().mkdir()
    gone = cleaning.clean(root, "cpu")
    assert {place for place in [*current, *old] if not place.exists()} == {
        place for place in [*current, *old] if place.parent.name == "cpu"
    }
    assert home.uv_cache() in gone, "a file edited in an environment is edited there, too"
    assert wheel.exists()


def test_a_name_that_is_no_target_removes_nothing(root: Path, current: list[Path], old: list[Path]) -> None:
    before = tree(home.root())
    for name in ("gone", "..", "cpu/000000000000"):
        with pytest.raises(SpecError):
            cleaning.clean(root, name)
    assert tree(home.root()) == before


def test_everything_is_what_labrig_made_and_not_what_lies_beside_it(
    root: Path, current: list[Path], old: list[Path]
) -> None:
    wheel_in_store()
    for place in (home.uv_cache(), home.links()):
        place.mkdir()
    results = home.root() / "results" / "cpu-venv" / "report.html"
    results.parent.mkdir(parents=True)
    results.write_text("a student's work")
    foreign = home.root() / "thesis.tex"
    foreign.write_text("someone named a folder of theirs with LABRIG_CACHE")
    cleaning.clean(root, everything=True)
    assert {path for path in tree(home.root()) if path.is_file()} == {results, foreign}


def test_an_environment_that_is_being_built_is_left_alone(root: Path, old: list[Path]) -> None:
    building = old[0]
    half = partial()
    with building.with_name(building.name + native.GUARD).open("w") as file, half.open("rb") as download:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(download, fcntl.LOCK_EX)
        assert set(cleaning.clean(root)) == set(old[1:])
        assert building.exists()
        assert half.exists()
        for options in ({"everything": True}, {"name": "cuda"}):
            before = tree(home.root())
            with pytest.raises(BuildError, match="being built"):
                cleaning.clean(root, **options)  # type: ignore[arg-type]
            assert tree(home.root()) == before
    assert building in cleaning.clean(root)


def test_the_file_that_builders_lock_stays(root: Path, old: list[Path]) -> None:
    """If it went while a build waits for it, a third build would lock another file and both would write."""
    cleaning.clean(root)
    assert all(place.with_name(place.name + native.GUARD).exists() for place in old)


def test_a_damaged_lock_stops_cleaning_because_what_it_names_is_not_known(
    root: Path, current: list[Path], old: list[Path]
) -> None:
    next(root.rglob("*.lock")).write_text("???")
    before = tree(home.root())
    with pytest.raises(LockError):
        cleaning.clean(root)
    assert tree(home.root()) == before


def test_a_stale_lock_keeps_its_environment(root: Path, current: list[Path]) -> None:
    table = root / "images" / spec.TABLE
    table.write_text(table.read_text().replace('"jupyterlab"]', '"jupyterlab", "requests"]'))
    assert cleaning.clean(root) == []


def test_nothing_there_is_nothing_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ({}, {"everything": True}, {"name": "cpu"}):
        assert cleaning.clean(root, **options) == []  # type: ignore[arg-type]
        assert "nothing to remove" in capsys.readouterr().err


def test_freed_bytes_count_a_file_once_and_only_if_its_last_link_goes(
    root: Path, old: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    environment(home.environments() / "cpu" / "333333333333", 9_000_000)
    shared = home.uv_cache() / "file"
    shared.parent.mkdir()
    shared.write_bytes(bytes(5_000_000))
    os.link(shared, old[0] / "lib" / "linked")
    cleaning.clean(root, dry_run=True)
    assert "about 9 MB" in capsys.readouterr().err
    cleaning.clean(root, everything=True, dry_run=True)
    assert "about 14 MB" in capsys.readouterr().err


def test_a_link_is_removed_and_not_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    place = home.environments() / "cpu" / "444444444444"
    place.parent.mkdir(parents=True)
    place.symlink_to(precious)
    assert cleaning.clean(root) == [place]
    assert not place.is_symlink()
    assert (precious / "file").exists()
