"""`invoke lock`: from a row of the table to its lock and its rendered files, and nothing changed where that fails."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import samples
from samples import INDEX, PYTHON, TORCH
from servers import IndexServer, Manners

from labrig import indexes, lock, matrix, render, spec
from labrig.errors import LabrigError, LockError, UsageError
from labrig.relock import relock

ROOT = Path(__file__).parents[2]
LINUX, ARM = "linux_x86_64", "linux_aarch64"
CUDA = matrix.default_variant(TORCH, LINUX)

TABLE = f"""
[defaults]
packages = ["alpha"]
engines = ["venv"]

[indexes]
{INDEX} = "http://127.0.0.1:9/"

[targets.small]
torch = "{TORCH}"
variant = "cpu"
index = "{INDEX}"
python = "{PYTHON}"
platforms = ["{LINUX}", "{ARM}"]
why = "a test"

[targets.plain]
torch = "{TORCH}"
variant = "{CUDA}"
python = "{PYTHON}"
platforms = ["{LINUX}"]
why = "a test"
"""
ROW = """
[targets.added]
torch = "{torch}"
variant = "{variant}"
python = "{python}"
why = "appended by hand"
"""


class Checkout:
    """A checkout of nothing but a pin table and the templates, and the folder that its wheels come from."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root, self.wheels = root, wheels
        self.images = root / "images"
        self.table = self.images / spec.TABLE

    def append(self, text: str) -> None:
        self.table.write_text(self.table.read_text() + text)

    def publish(self, *wheels: dict[str, bytes]) -> None:
        for files in wheels:
            samples.write(files, self.wheels)

    def edit(self, before: str, after: str) -> None:
        text = self.table.read_text()
        assert before in text
        self.table.write_text(text.replace(before, after))

    def lock(self, name: str | None = None, platform: str | None = None, *, upgrade: bool = False) -> set[str]:
        """Run it; gives the names of the changed files."""
        changed = relock(self.root, name, platform, upgrade=upgrade, overrides=[f"{INDEX}=none"])
        assert len(changed) == len(set(changed))
        return {str(file.relative_to(self.images)) for file in changed}

    def content(self) -> dict[str, bytes]:
        return {str(f.relative_to(self.images)): f.read_bytes() for f in self.images.rglob("*") if f.is_file()}

    def versions(self, target: str, platform: str = LINUX) -> dict[str, str]:
        return {wheel.name: wheel.version for wheel in lock.read(lock.path(self.images, target, platform)).wheels}

    def is_current(self) -> bool:
        table = spec.read(self.table)
        render.check(table, render.render_all(table, self.root / "templates"))
        return True


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_", "LABRIG_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(indexes, "_pip_settings", lambda _: ({"no-index": "1"}, ""))  # asking pip takes half a second
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    root = tmp_path / "checkout"
    (root / "images").mkdir(parents=True)
    (root / "images" / spec.TABLE).write_text(TABLE)
    shutil.copytree(ROOT / "templates", root / "templates")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    made = Checkout(root, tmp_path / "wheels")
    made.publish(
        samples.wheel("alpha", "1.0"),
        samples.wheel("beta", "1.0"),
        samples.torch_wheel(f"{TORCH}+cpu"),
        samples.torch_wheel(f"{TORCH}+cpu", platform="manylinux_2_28_aarch64"),
        samples.torch_wheel(TORCH),
    )
    return made


def refusal(checkout: Checkout, name: str | None = None, platform: str | None = None) -> LabrigError:
    with pytest.raises(LabrigError) as caught:
        checkout.lock(name, platform)
    return caught.value


def test_all_targets_on_all_platforms_then_nothing_to_do(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = checkout.lock()
    assert changed == {
        f"small/{LINUX}.lock", f"small/{ARM}.lock", f"plain/{LINUX}.lock",
        f"small/requirements-{LINUX}.txt", f"small/requirements-{ARM}.txt", f"plain/requirements-{LINUX}.txt",
        "small/setup.sh", "plain/setup.sh",
    }  # fmt: skip
    assert checkout.is_current()
    said = capsys.readouterr()
    assert said.out == ""
    assert f"resolving small for {ARM}" in said.err
    assert f"index {INDEX} = none (from --index)" in said.err
    before = checkout.content()
    assert checkout.lock() == set()
    assert checkout.content() == before
    assert "unchanged" in capsys.readouterr().err


@pytest.mark.parametrize("torch", [matrix.releases()[0], next(reversed(matrix.releases()))])
def test_a_row_appended_by_hand_simply_works(checkout: Checkout, torch: str) -> None:
    """The oldest release that the data knows, and the newest: no code knows either."""
    python = [p for p in matrix.pythons(torch, LINUX) if not p.endswith("t")][-1]
    variant = matrix.default_variant(torch, LINUX)
    checkout.publish(samples.torch_wheel(torch, python))
    checkout.append(ROW.format(torch=torch, variant=variant, python=python))
    assert checkout.lock("added") == {f"added/{LINUX}.lock", f"added/requirements-{LINUX}.txt", "added/setup.sh"}
    assert checkout.versions("added") == {"alpha": "1.0", "beta": "1.0", "torch": torch}
    assert f'expected, found = "{torch}"' in (checkout.images / "added" / "setup.sh").read_text()


def test_the_notebooks_that_name_a_targets_torch_follow(checkout: Checkout) -> None:
    labs = checkout.root / "labs"
    labs.mkdir()
    (labs / "harness.py").write_text("")
    (labs / "01_small.py").write_text("# %% [markdown]\n# Small\n# %%\nimport harness\n")
    changed = relock(checkout.root, None, None, upgrade=False, overrides=[f"{INDEX}=none"])
    book = labs / "notebooks" / "colab" / "01_small.ipynb"
    assert book in changed and TORCH in book.read_text()
    assert checkout.is_current()


def test_versions_are_kept_until_upgrade(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.lock("plain")
    checkout.publish(samples.wheel("alpha", "2.0"), samples.wheel("beta", "1.1"))
    assert checkout.lock("plain") == set()
    assert checkout.lock("plain", upgrade=True) == {f"plain/{LINUX}.lock", f"plain/requirements-{LINUX}.txt"}
    assert checkout.versions("plain") == {"alpha": "2.0", "beta": "1.1", "torch": TORCH}
    assert "alpha 1.0 -> 2.0, beta 1.0 -> 1.1" in capsys.readouterr().err


def test_a_changed_row_keeps_what_still_fits(checkout: Checkout) -> None:
    checkout.lock("plain")
    checkout.publish(
        samples.wheel("alpha", "2.0"),
        samples.wheel("beta", "1.1"),
        samples.wheel("gamma", "1.0", requires=["beta>=1.1"]),
    )
    checkout.edit('packages = ["alpha"]', 'packages = ["alpha", "gamma"]')
    assert f"plain/{LINUX}.lock" in checkout.lock("plain")
    assert checkout.versions("plain") == {"alpha": "1.0", "beta": "1.1", "gamma": "1.0", "torch": TORCH}


def test_one_platform_can_be_locked_and_a_declared_one_is_left_out(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.append(f'\n[targets.small.unlocked]\n{ARM} = "its index is far away"\n')
    assert f"small/{ARM}.lock" not in checkout.lock("small")
    assert f"not locking small for {ARM}: its index is far away" in capsys.readouterr().err
    # Where it can be reached, it is named.
    assert checkout.lock("small", ARM) == {f"small/{ARM}.lock", f"small/requirements-{ARM}.txt", "small/setup.sh"}
    # Without a target, those that have no such platform are let be.
    checkout.publish(samples.wheel("alpha", "2.0"))
    assert checkout.lock(None, ARM, upgrade=True) == {f"small/{ARM}.lock", f"small/requirements-{ARM}.txt"}


def test_a_platform_locked_before_the_others_is_kept(checkout: Checkout) -> None:
    """Rendered files need them all, so that is said; the lock that was made stands."""
    error = refusal(checkout, "small", ARM)
    assert f"small has no lock for {LINUX}" in error.what
    assert set(checkout.content()) == {spec.TABLE, f"small/{ARM}.lock"}


def test_a_platform_that_no_target_has(checkout: Checkout) -> None:
    for name, platform in (("plain", ARM), ("plain", "windows_amd64"), (None, "windows_amd64")):
        error = refusal(checkout, name, platform)
        assert isinstance(error, UsageError) and error.code == 2
        assert platform in error.what
        assert LINUX in error.found
    assert set(checkout.content()) == {spec.TABLE}


def test_an_unknown_target(checkout: Checkout) -> None:
    error = refusal(checkout, "smal")
    assert error.code == 2
    assert "small, plain" in error.found


def test_a_row_without_solution_leaves_everything_as_it_was(checkout: Checkout) -> None:
    checkout.lock()
    before = checkout.content()
    checkout.edit('packages = ["alpha"]', 'packages = ["alpha>=7"]')
    before[spec.TABLE] = checkout.table.read_bytes()
    error = refusal(checkout)
    assert isinstance(error, LockError) and error.code == 4
    assert "alpha>=7" in error.found
    assert "untouched" in error.what
    assert checkout.content() == before


def test_a_row_without_solution_does_not_keep_the_others_from_being_locked(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.edit("[targets.small]\n", '[targets.small]\npackages = ["absent"]\n')
    error = refusal(checkout)
    assert (error.code, "target small" in error.what) == (4, True)
    assert {file.parent.name for file in checkout.images.glob("*/*.lock")} == {"plain"}
    assert "changed images/" in capsys.readouterr().err


def test_a_second_platform_without_solution_leaves_the_first_as_it_was(checkout: Checkout) -> None:
    checkout.lock("small")
    checkout.publish(samples.wheel("alpha", "2.0", "py3-none-manylinux_2_28_x86_64"))
    checkout.edit('packages = ["alpha"]', 'packages = ["alpha>=2"]')
    before = checkout.content()
    error = refusal(checkout, "small")
    assert ARM in error.what
    assert checkout.content() == before


def test_an_unreachable_index_leaves_everything_as_it_was(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.lock("small")
    before = checkout.content()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(LockError) as caught:
        relock(checkout.root, "small", overrides=[f"{INDEX}={gone}"])
    assert f"--index {INDEX}=none" in caught.value.fix
    assert checkout.content() == before


def test_from_an_index_the_lock_is_the_same(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.lock("small")
    before = checkout.content()
    for file in (checkout.images / "small").iterdir():
        file.unlink()
    files = {file.name: file.read_bytes() for file in checkout.wheels.iterdir()}
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setattr(indexes, "_pip_settings", lambda _: ({}, ""))
    with IndexServer(files, Manners(ranges=False)) as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
        monkeypatch.setenv(f"LABRIG_INDEX_{INDEX.upper()}", index.url)
        relock(checkout.root, "small")
        assert index.requests
    assert checkout.content() == before


def test_a_damaged_lock_is_made_anew(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.lock("plain")
    before = checkout.content()
    file = lock.path(checkout.images, "plain", LINUX)
    file.write_text(re.sub('sha256 = "....', 'sha256 = "', file.read_text()))
    assert checkout.lock("plain") == {f"plain/{LINUX}.lock"}
    assert "is not a lock labrig can read" in capsys.readouterr().err
    assert checkout.content() == before
