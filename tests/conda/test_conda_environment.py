"""A conda environment for real: torch and all it needs from a local channel, created, used, verified, and broken."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import channel
import pytest
from checkouts import Checkout, copy_checkout, error_line

from labrig import conda, environment, home, native, spec

ROOT = Path(__file__).parents[2]
TARGET = spec.read(ROOT / "images" / spec.TABLE).pick("cpu")
HERE = [f"--target={TARGET.name}", "--engine=conda"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Iterator[Checkout]:
    """A checkout and a channel that has every package of the target, made of its wheels and of this interpreter."""
    assert sys.version.startswith(f"{TARGET.python}."), "the target of this test is the one whose Python runs it"
    folder = tmp_path_factory.mktemp("conda")
    environment.fetch_by_name(ROOT, TARGET.name, "linux_x86_64")
    place = folder / channel.NAME
    locked = conda.versions(TARGET, "linux_x86_64", ROOT / "images")
    channel.python_package(place, platform.python_version())
    for wheel in locked.wheels:
        (file,) = home.wheels().rglob(f"{wheel.sha256}/{wheel.file}")
        channel.of_wheel(place, wheel, file, TARGET.python)
    channel.decoys(place, channel.SUBDIR, TARGET.torch)
    yield copy_checkout(folder, channel.index(place), program, {TARGET.python: platform.python_version()})
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made(checkout: Checkout) -> Path:
    done = checkout.invoke("build", *HERE)
    assert done.returncode == 0, done.stderr
    assert "no exact conda lock" in done.stderr
    return Path(done.stdout.strip())


def test_build_makes_it_once_and_says_where(checkout: Checkout, made: Path) -> None:
    assert (made / "bin" / "python").exists()
    assert made.parent == Path(checkout.variables["LABRIG_CACHE"], "envs", TARGET.name)
    before = (made / native.MARK).stat().st_mtime_ns
    again = checkout.invoke("build", *HERE, "--json")
    assert json.loads(again.stdout)["reference"] == str(made)
    assert (made / native.MARK).stat().st_mtime_ns == before
    assert again.stderr == ""


def test_labs_run_in_it_and_every_check_passes(
    checkout: Checkout, made: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    some = ["--lab=01", "--lab=06", "--lab=09", "--lab=15", "--lab=20"]  # what they import differs most
    labs = checkout.invoke("labs", *HERE, *some, "--quick", f"--out={tmp_path}", "--json")
    assert labs.returncode == 0, labs.stderr
    results = json.loads(labs.stdout)
    assert len(results) == len(some)
    assert {lab["status"] for lab in results} == {"passed"}
    done = checkout.invoke("verify", *HERE, "--json", "--require-device")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["engine"], record["reference"]) == ("conda", str(made))
    assert (record["failed"], record["skipped"]) == (0, 0)
    found = {check["id"]: check for check in record["checks"]}
    assert found["torch"]["found"] == TARGET.torch, "without a local part"
    assert "cpu_generic" in found["packages"]["found"]
    assert found["channel"]["status"] == found["extra"]["status"] == found["files"]["status"] == "passed"
    assert found["libraries"]["status"] == "passed"
    record_property("proves", f"{TARGET.name} conda created")


def test_a_shell_is_activated(checkout: Checkout, made: Path) -> None:
    command = f"echo ${channel.ACTIVATED}; command -v jupyter-lab; python -c 'import torch; print(torch.__version__)'"
    done = checkout.invoke("shell", *HERE, f"--command={command}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(made), str(made / "bin" / "jupyter-lab"), TARGET.torch]
    program = (made / "bin" / "jupyter-lab").read_text()
    assert program.startswith(f"#!{made}/bin/python"), "the prefix was written into what holds it"
    assert checkout.invoke("shell", *HERE, "--command=exit 7").returncode == 7


def test_an_exact_lock_makes_an_environment_of_its_own(checkout: Checkout, made: Path) -> None:
    file = checkout.root / "images" / TARGET.name / "linux_x86_64.conda.lock"
    try:
        locked = checkout.invoke("lock", "--engine=conda", f"--target={TARGET.name}", "--platform=linux_x86_64")
        assert locked.returncode == 0, locked.stderr
        done = checkout.invoke("build", *HERE)
        assert done.returncode == 0, done.stderr
        exact = Path(done.stdout.strip())
        assert exact != made
        assert "no exact conda lock" not in done.stderr
        record = json.loads(checkout.invoke("verify", *HERE, "--json").stdout)
        packages = next(check for check in record["checks"] if check["id"] == "packages")
        count = len(conda.read(file).packages)
        assert (packages["status"], packages["expected"]) == ("passed", f"{count} packages as locked")
        assert packages["found"].startswith(f"{count} of {count}, ")
        assert record["failed"] == 0

        # A package of the channel that is another one than the lock's is not installed.
        shutil.rmtree(exact)
        package = next(package for package in conda.read(file).packages if package.name == "anyio")
        place = Path(checkout.address.removeprefix("file://"), package.subdir, package.file)
        before = place.read_bytes()
        place.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        said = error_line(checkout.invoke("build", *HERE), 4)
        place.write_bytes(before)
        assert "anyio" in said
        assert not exact.exists()
    finally:
        file.unlink(missing_ok=True)


def test_clean_keeps_the_present_one_and_takes_the_others(checkout: Checkout, made: Path) -> None:
    other = made.with_name("conda-000000000000")
    (other / "bin").mkdir(parents=True)
    done = checkout.invoke("clean")
    assert done.returncode == 0, done.stderr
    assert not other.exists()
    assert made.exists()


def test_a_build_that_is_interrupted_leaves_nothing_and_the_next_one_makes_it(
    checkout: Checkout, tmp_path: Path
) -> None:
    variables = {**checkout.variables, "LABRIG_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "invoke", "build", *HERE]
    with subprocess.Popen(
        command, cwd=checkout.root, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").glob("envs/*/*/conda-meta")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    left = [place for place in (tmp_path / "cache" / "envs" / TARGET.name).iterdir() if place.suffix != native.GUARD]
    assert left == []
    done = checkout.invoke("build", *HERE, LABRIG_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


# --- broken ones ------------------------------------------------------------------------------------------------------


def site(made: Path) -> Path:
    return made / "lib" / f"python{TARGET.python}" / "site-packages"


def edit_a_file(made: Path) -> None:
    file = site(made) / "numpy" / "version.py"
    text = file.read_text()
    file.unlink()  # it may be a hard link to the package cache
    file.write_text(text + "\n# edited\n")


def lose_a_file(made: Path) -> None:
    (site(made) / "numpy" / "py.typed").unlink()


def install_by_pip(made: Path) -> None:
    info = site(made) / "left_pad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: left-pad\nVersion: 1.0\n")
    (info / "RECORD").write_text("")


def record_of(made: Path, name: str) -> Path:
    return next(
        file for file in (made / "conda-meta").glob(f"{name}-*.json") if json.loads(file.read_text())["name"] == name
    )


def change_record(made: Path, name: str, **keys: str) -> None:
    file = record_of(made, name)
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def of_another_channel(made: Path) -> None:
    url = "https://repo.example/pkgs/main"
    change_record(made, "numpy", channel=url, url=f"{url}/linux-64/numpy-1-0.conda")


def another_build_of_torch(made: Path) -> None:
    change_record(made, "pytorch", build="cuda130_generic_0")


def another_version(made: Path) -> None:
    change_record(made, "scikit-learn", version="0.1")


def pips_torch(made: Path) -> None:
    file = site(made) / "torch" / "version.py"
    data = file.read_text().replace(f"'{TARGET.torch}'", f"'{TARGET.torch}+cpu'")
    file.unlink()
    file.write_text(data)
    entry_file = record_of(made, "pytorch")
    record = json.loads(entry_file.read_text())
    for entry in record["paths_data"]["paths"]:
        if entry["_path"].endswith("torch/version.py"):
            digest = hashlib.sha256(data.encode()).hexdigest()
            entry |= {"sha256": digest, "sha256_in_prefix": digest, "size_in_bytes": len(data)}
    entry_file.write_text(json.dumps(record))


BROKEN: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "an edited file": (edit_a_file, {"files"}),
    "a lost file": (lose_a_file, {"files"}),
    "a package by pip": (install_by_pip, {"extra"}),
    "a package of another channel": (of_another_channel, {"channel"}),
    "torch for CUDA under a CPU row": (another_build_of_torch, {"packages"}),
    "another version": (another_version, {"packages"}),
    "pip's torch in conda's place": (pips_torch, {"torch"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_caught_by_its_check_and_by_no_other(checkout: Checkout, made: Path, name: str) -> None:
    """Broken in place, in files that are then put back: a copy would have another prefix written into it."""
    break_it, caught = BROKEN[name]
    watched = [
        site(made) / "numpy" / "version.py",
        site(made) / "numpy" / "py.typed",
        site(made) / "torch" / "version.py",
    ]
    watched += [record_of(made, one) for one in ("numpy", "pytorch", "scikit-learn")]
    before = {file: file.read_bytes() for file in watched}
    try:
        break_it(made)
        done = checkout.invoke("verify", *HERE, "--json")
    finally:
        for file, data in before.items():
            file.unlink(missing_ok=True)
            file.write_bytes(data)
        shutil.rmtree(site(made) / "left_pad-1.0.dist-info", ignore_errors=True)
    assert done.returncode == 6, done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {check["id"] for check in checks if check["status"] == "failed"} == caught


def test_verify_without_the_program_that_lists_it_is_exit_3(checkout: Checkout, made: Path) -> None:
    said = error_line(checkout.invoke("verify", *HERE, "--json", PATH="/usr/bin:/bin"), 3)
    assert "install micromamba" in said
    assert "clean" not in said, "the environment is good"
