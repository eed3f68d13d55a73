"""What the pins ask for is what a real solver chooses, on every platform, and an exact lock says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import channel
import pytest
from checkouts import Checkout, error_line

from labrig import conda, spec
from labrig.matrix import SUBDIRS

ROOT = Path(__file__).parents[2]
TARGETS = [target for target in spec.read(ROOT / "images" / spec.TABLE).targets.values() if target.conda]


def test_every_target_is_locked_for_every_platform_from_here(
    small: Checkout, record_property: Callable[[str, object], None]
) -> None:
    done = small.invoke("lock", "--engine=conda")
    assert done.returncode == 0, done.stderr
    images = small.root / "images"
    files = [conda.path(images, target.name, platform) for target in TARGETS for platform in target.platforms]
    assert done.stdout.split() == [str(file.relative_to(small.root)) for file in files]
    for target in TARGETS:
        for platform in target.platforms:
            locked = conda.versions(target, platform, images)
            exact = conda.load(target, locked, images)
            assert exact
            chosen = {package.name: package for package in exact.packages}
            pins = conda.pins(target, locked)
            assert set(chosen) == {pin.name for pin in pins}
            for pin in pins:
                package = chosen[pin.name]
                assert package.version == pin.version
                assert fnmatchcase(package.build, pin.build or "*")
                assert package.subdir == SUBDIRS[platform]
                file = Path(small.address.removeprefix("file://"), package.subdir, package.file)
                assert package.size == file.stat().st_size
    again = small.invoke("lock", "--engine=conda")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.count(": current") == len(files)
    assert small.invoke("render", "--check").returncode == 0, "an exact lock belongs to its target"
    for target in TARGETS:
        record_property("proves", f"{target.name} conda solved")


def test_a_lock_is_made_anew_when_pins_change_and_for_newer_packages_when_asked(small: Checkout) -> None:
    only = ("lock", "--engine=conda", "--target=cpu", "--platform=linux_x86_64")
    assert small.invoke(*only).returncode == 0
    file = small.root / "images" / "cpu" / "linux_x86_64.conda.lock"
    first = file.read_text()

    folder = Path(small.address.removeprefix("file://"))
    locked = conda.versions(small.table().pick("cpu"), "linux_x86_64", small.root / "images")
    version = next(pin.version for pin in conda.pins(small.table().pick("cpu"), locked) if pin.name == "numpy")
    channel.write_package(folder, "libnew", "1.0", "0")
    channel.write_package(
        folder, "numpy", version, "h1", number=1, depends=["libnew"]
    )  # a newer build of the pinned version
    channel.index(folder)
    assert small.invoke(*only).stdout == ""
    assert file.read_text() == first
    upgraded = small.invoke(*only, "--upgrade")
    assert upgraded.stdout.split() == ["images/cpu/linux_x86_64.conda.lock"], upgraded.stderr
    assert file.read_text() != first

    table = small.root / "images" / spec.TABLE
    table.write_text(table.read_text().replace('"3.11" = "', '"3.11" = "3.11.1"  # was "', 1))
    stale = error_line(small.invoke("build", "--target=cpu", "--engine=conda"), 4)
    assert "conda lock of target cpu for linux_x86_64 is stale" in stale
    assert "invoke lock --engine=conda --target=cpu" in stale


def test_no_solution_is_exit_4_with_the_solvers_words_and_the_old_lock_stays(small: Checkout) -> None:
    only = ("lock", "--engine=conda", "--target=cpu", "--platform=linux_x86_64")
    assert small.invoke(*only).returncode == 0
    file = small.root / "images" / "cpu" / "linux_x86_64.conda.lock"
    before = file.read_text()
    folder = Path(small.address.removeprefix("file://"), "linux-64")
    for package in folder.glob("numpy-*"):
        package.unlink()
    channel.index(folder.parent)
    said = error_line(small.invoke(*only, "--upgrade"), 4)
    assert "no conda lock for linux_x86_64; the old one is untouched" in said
    assert "numpy" in said
    assert "LABRIG_CONDA_CHANNEL" in said
    assert file.read_text() == before
    built = small.invoke("build", "--target=cpu", "--engine=conda", LABRIG_CONDA_CHANNEL="file:///nowhere/conda-forge")
    assert "micromamba could not make the environment" in error_line(built, 4)


def test_one_target_without_solution_does_not_keep_the_others_from_being_locked(small: Checkout) -> None:
    for package in Path(small.address.removeprefix("file://"), "osx-arm64").glob("pytorch-*"):
        package.unlink()
    channel.index(Path(small.address.removeprefix("file://")))
    done = small.invoke("lock", "--engine=conda")
    assert done.returncode == 4
    assert "changed images/cpu/linux_x86_64.conda.lock" in done.stderr
    assert (small.root / "images" / "cuda" / "linux_x86_64.conda.lock").exists()
    assert not (small.root / "images" / "mps" / "macos_arm64.conda.lock").exists()
    assert "no conda lock for macos_arm64" in done.stderr


def test_cuda_is_made_on_a_machine_without_a_driver_and_not_against_the_callers_word(small: Checkout) -> None:
    done = small.invoke("build", "--target=cuda", "--engine=conda")
    assert "left no Python in the environment" in error_line(done, 4), "the packages are empty"
    assert not any(Path(small.variables["LABRIG_CACHE"], "envs").rglob("conda-meta")), "nothing half-made is kept"
    solved = Path(small.variables["RATTLER_CACHE_DIR"])
    assert any(solved.rglob("pytorch-*-cuda130_*")), "and yet torch for CUDA was chosen and installed"
    refused = small.invoke("build", "--target=cuda", "--engine=conda", CONDA_OVERRIDE_CUDA="")
    assert refused.returncode == 4
    assert "__cuda" in refused.stderr
    assert "CONDA_OVERRIDE_CUDA must not be lower than what the row needs: unset it" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("lock", "--engine=conda", "--target=cuda-legacy"), 2, "not made by the engine conda"),
        (("lock", "--engine=conda", "--platform=win-64"), 2, "no such platform"),
        (("lock", "--engine=nix"), 2, "no engine 'nix'"),
        (("lock", "--engine=conda", "--base"), 2, "--base is for the engine docker"),
        (("build", "--target=cuda-legacy", "--engine=conda"), 2, "not made by the engine conda"),
        (("build", "--target=mps", "--engine=conda"), 3, "target mps is for macos_arm64"),
    ],
)
def test_what_cannot_be_is_said(small: Checkout, arguments: tuple[str, ...], code: int, says: str) -> None:
    assert says in error_line(small.invoke(*arguments), code)


def test_without_a_program_lock_and_build_are_exit_3(small: Checkout) -> None:
    path = "/usr/bin:/bin"
    for arguments in (("lock", "--engine=conda"), ("build", "--target=cpu", "--engine=conda")):
        said = error_line(small.invoke(*arguments, PATH=path), 3)
        assert "install micromamba" in said


def test_the_lock_is_for_the_lowest_machine_whatever_this_one_is(small: Checkout) -> None:
    """The caller's overrides describe this machine; a lock that they changed would not be the same from any host."""
    done = small.invoke("lock", "--engine=conda", "--target=cuda", CONDA_OVERRIDE_CUDA="", CONDA_OVERRIDE_GLIBC="2.1")
    assert done.returncode == 0, done.stderr
    locked = json.dumps((small.root / "images" / "cuda" / "linux_x86_64.conda.lock").read_text())
    assert "cuda130_generic_0" in locked
