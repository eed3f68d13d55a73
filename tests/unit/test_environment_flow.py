"""What is decided before anything is fetched, what is fetched when, and the exit codes of the doors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import samples

from labrig import compat, engines, environment, forced, home, labs, lock, spec, verify, wheelhouse
from labrig.engines import Environment
from labrig.errors import BuildError, FetchError, HostError, LabError, LabrigError, LockError, SpecError, UsageError
from labrig.host import Gpu, Host

ROOT = Path(__file__).parents[2]
LINUX = Host(os="linux", arch="x86_64", libc="glibc 2.40")
MAC = Host(os="macos", arch="arm64", os_version="15.1", chip="Apple M3")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the real table and locks, a cache of its own, and a known Linux machine."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "read_host", lambda: LINUX)
    shutil.copytree(ROOT / "images", tmp_path / "checkout" / "images")
    return tmp_path / "checkout"


# --- plan -------------------------------------------------------------------------------------------------------


def test_a_plan_holds_the_row_its_first_engine_and_the_current_lock_and_writes_nothing(root: Path) -> None:
    todo = environment.plan(root, "cpu")
    assert (todo.target.name, todo.engine) == ("cpu", todo.target.engines[0])
    assert todo.lock == lock.load(todo.target, "linux_x86_64", root / "images")
    assert not home.root().exists()


def test_without_a_name_the_target_that_fits_the_host_is_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.plan(root).target.device == "cpu"
    monkeypatch.setattr(environment, "read_host", lambda: MAC)
    assert environment.plan(root).target.device == "mps"


def test_names_that_are_wrong_are_exit_2_and_list_what_there_is(root: Path) -> None:
    with pytest.raises(SpecError) as caught:
        environment.plan(root, "gpu")
    assert caught.value.code == 2
    assert "cpu, cuda" in caught.value.found
    with pytest.raises(UsageError, match="no engine 'podman'"):
        environment.plan(root, "cpu", "podman")
    with pytest.raises(UsageError, match="no platform 'windows'"):
        environment.fetch_by_name(root, "cpu", "windows")


def test_an_engine_that_the_row_does_not_name_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.MODULES, "spare", "labrig.engines.venv")
    with pytest.raises(UsageError, match="not made by the engine spare"):
        environment.plan(root, "cpu", "spare")


@pytest.mark.parametrize(
    ("name", "host"), [("mps", LINUX), ("cpu", MAC), ("cpu", dataclasses.replace(LINUX, arch="riscv64"))]
)
def test_a_target_for_another_machine_is_exit_3(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, host: Host
) -> None:
    monkeypatch.setattr(environment, "read_host", lambda: host)
    with pytest.raises(HostError) as caught:
        environment.plan(root, name, "venv")
    assert caught.value.code == 3
    assert f"target {name} is for" in caught.value.what
    assert [file for file in root.parent.rglob("*") if "cache" in file.parts] == []


def test_a_host_that_no_target_fits_is_told_why_for_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "read_host", lambda: dataclasses.replace(LINUX, arch="riscv64"))
    with pytest.raises(HostError) as caught:
        environment.plan(root)
    for name in spec.read(root / "images" / spec.TABLE).targets:
        assert f"{name}: " in caught.value.found


def test_missing_stale_and_damaged_locks_are_told_apart_before_anything_is_fetched(root: Path) -> None:
    table, file = root / "images" / spec.TABLE, lock.path(root / "images", "cpu", "linux_x86_64")
    text = table.read_text()
    table.write_text(text.replace('"jupyterhub"]', '"jupyterhub", "requests"]'))
    with pytest.raises(LockError, match="is stale"):
        environment.build(root, "cpu")
    table.write_text(text)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(LockError, match="not a lock labrig can read"):
        environment.build(root, "cpu")
    file.unlink()
    with pytest.raises(LockError, match="has no lock for linux_x86_64") as caught:
        environment.build(root, "cpu")
    assert caught.value.code == 4
    assert "invoke lock --target=cpu" in caught.value.fix


# --- fetch and build --------------------------------------------------------------------------------------------


@pytest.fixture
def plan(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> environment.Plan:
    """A plan for tiny wheels, which lie in the folder that PIP_FIND_LINKS names."""
    folder = tmp_path / "wheels"
    samples.make_wheel(folder, "one")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    table = spec.read(root / "images" / spec.TABLE)
    fine = compat.Finding("tiny", compat.RUNS, "needs no GPU", "")
    return environment.Plan(table, samples.target("tiny"), "venv", samples.lock_of(folder), LINUX, fine, "")


def test_wheels_are_fetched_once_and_then_the_environment_is_only_found(
    plan: environment.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = environment.make(plan, offline=True)
    assert Path(made.reference, "bin", "python").exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("everything is there")

    monkeypatch.setattr(environment, "fetch", refuse)
    assert environment.make(plan) == made


def test_what_was_forced_is_noted_and_goes_on_without_the_flag_from_then_on(
    plan: environment.Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    why = "installs but fails: GTX 1080 (6.1): no code for it"
    made = environment.make(dataclasses.replace(plan, forced=why), offline=True)
    assert made.forced == why
    assert f"forced in spite of: {why}" in capfd.readouterr().err
    assert forced.noted("tiny", "venv", plan.lock.digest) == why
    assert forced.noted("tiny", "docker", plan.lock.digest) == ""
    record = verify.Record("tiny", "venv", made.reference, (), made.forced)
    assert record.to_json()["forced"] == why and why in verify.tally(record)
    forced.place().write_text("[")
    assert forced.noted("tiny", "venv", plan.lock.digest) == "", "damaged: the flag is asked for once more"
    environment.make(dataclasses.replace(plan, forced=why), offline=True)
    assert forced.noted("tiny", "venv", plan.lock.digest) == why


def test_a_target_that_cannot_work_is_refused_until_it_was_forced_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dataclasses.replace(LINUX, driver="580.65.06", gpus=(Gpu("GTX 1080", "6.1"),))
    monkeypatch.setattr(environment, "read_host", lambda: old)
    with pytest.raises(HostError, match="cannot work on this machine: it installs but fails") as caught:
        environment.plan(root, "cuda", "venv")
    assert "use target `cuda-legacy`; or all the same: `invoke build --target=cuda" in caught.value.fix
    assert environment.plan(root, "cuda-legacy", "venv").forced == ""
    todo = environment.plan(root, "cuda", "venv", force=True)
    assert todo.forced.startswith("installs but fails: ")
    forced.note(Environment(todo.target, "venv", "somewhere", todo.lock), todo.forced)
    assert environment.plan(root, "cuda", "venv").forced == todo.forced


def test_a_build_for_a_gpu_that_is_not_here_is_allowed_and_said(
    plan: environment.Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = compat.Finding("tiny", compat.CPU_ONLY, "no NVIDIA driver", "")
    assert environment.make(dataclasses.replace(plan, finding=slow), offline=True).forced == ""
    assert "target tiny runs on CPU only here: no NVIDIA driver" in capfd.readouterr().err


def test_an_override_in_use_is_said(plan: environment.Plan, capfd: pytest.CaptureFixture[str]) -> None:
    environment.make(plan, overrides=["pytorch-cpu=none"], offline=True)
    out, err = capfd.readouterr()
    assert "pytorch-cpu" in err
    assert out == ""


def test_wheels_that_cannot_be_had_are_exit_4_and_leave_no_environment(
    plan: environment.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(FetchError, match=r"^offline") as caught:
        environment.make(plan, offline=True)
    assert caught.value.code == 4
    assert "PIP_FIND_LINKS" in caught.value.fix
    assert [file for file in home.environments().rglob("*") if file.is_file() and file.stat().st_size] == []
    assert not wheelhouse.missing([], home.wheels())


# --- labs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> engines.Environment:
    """An environment without torch; the labs here are stand-ins."""
    folder = tmp_path_factory.mktemp("made")
    samples.make_wheel(folder / "wheels", "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABRIG_CACHE", str(folder / "cache"))
        return samples.build(folder / "wheels")


RESULTS = (
    "import pathlib, sys\n"
    "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
    "out.mkdir(exist_ok=True)\n"
    "(out / 'results.json').write_text('[]')\n"
)


def test_the_labs_run_in_the_environments_python_whatever_is_on_path(
    made: engines.Environment, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "impostor").mkdir()
    for name in ("python", "python3"):
        (tmp_path / "impostor" / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / "impostor" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'impostor'}{os.pathsep}{os.environ['PATH']}")
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text(f"{RESULTS}(out / 'prefix').write_text(sys.prefix)")
    out = labs.run(root, made, out=tmp_path / "out")
    assert (out / "prefix").read_text() == made.reference
    gone = dataclasses.replace(made, reference=str(tmp_path / "gone"))
    with pytest.raises(BuildError, match="no program"):
        labs.run(root, gone, out=tmp_path / "out")


def test_a_runner_that_ends_well_and_leaves_no_results_is_an_error(
    made: engines.Environment, root: Path, tmp_path: Path
) -> None:
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text("")
    with pytest.raises(LabrigError, match="left no results"):
        labs.run(root, made, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "error"),
    [(1, LabrigError), (2, UsageError), (3, HostError), (4, BuildError), (5, LabError), (130, KeyboardInterrupt)],
)
def test_the_runners_exit_code_is_the_commands(
    made: engines.Environment, root: Path, tmp_path: Path, code: int, error: type[BaseException]
) -> None:
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text(f"raise SystemExit({code})")
    with pytest.raises(error) as caught:
        labs.run(root, made, out=tmp_path / "out")
    if isinstance(caught.value, LabrigError):
        assert caught.value.code == code
        assert caught.value.fix


def test_a_runner_that_the_system_kills_is_no_interruption(
    made: engines.Environment, root: Path, tmp_path: Path
) -> None:
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(LabrigError, match="-9"):
        labs.run(root, made, out=tmp_path / "out")


def test_what_is_asked_of_labs_reaches_the_runner(made: engines.Environment, root: Path, tmp_path: Path) -> None:
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text(
        f"{RESULTS}import json, os\njson.dump([sys.argv[1:], os.getcwd()], open({str(tmp_path / 'asked')!r}, 'w'))"
    )
    out = tmp_path / "out"
    assert labs.run(root, made, ["01", "06"], out=out, device="cpu", quick=True, jobs=1, as_json=True) == out
    asked, folder = json.loads((tmp_path / "asked").read_text())
    assert asked == f"run 01 06 --out {out} --device cpu --jobs 1 --quick --json".split()
    assert folder == str(root)


def test_stdin_is_given_back_after_the_labs(made: engines.Environment, root: Path, tmp_path: Path) -> None:
    (root / "labs").mkdir()
    (root / "labs" / "__main__.py").write_text(RESULTS)
    before = os.fstat(0)
    descriptors = len(os.listdir("/dev/fd"))  # noqa: PTH208
    labs.run(root, made, out=tmp_path / "out")
    assert os.path.sameopenfile(0, 0)
    assert (os.fstat(0).st_dev, os.fstat(0).st_ino) == (before.st_dev, before.st_ino)
    assert len(os.listdir("/dev/fd")) == descriptors  # noqa: PTH208


def test_results_stand_in_the_checkout_and_elsewhere_only_with_a_word(
    made: engines.Environment, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert labs.results_folder(root, made) == root / "results" / "tiny-venv"
    assert labs.results_folder(root, made, quick=True) == root / "results" / "tiny-venv-quick"
    assert capsys.readouterr().err == ""
    shutil.rmtree(root / "results")
    (root / "results").write_text("a file in the way")
    elsewhere = home.root() / "results" / "tiny-venv"
    assert labs.results_folder(root, made) == elsewhere
    assert str(elsewhere) in capsys.readouterr().err


# --- the doors --------------------------------------------------------------------------------------------------


def invoke(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited: Mapping[str, str] = {
        k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "LABRIG_", "PYTEST_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**inherited, **variables},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("build --target=gpu", 2),
        ("build --target=cpu --engine=podman", 2),
        ("build --no-such-flag", 2),
        ("clean --target=..", 2),
        ("fetch --target=cpu --platform=windows", 2),
    ],
)
def test_a_wrong_word_is_its_exit_code_and_a_fix_and_no_traceback(arguments: str, code: int, tmp_path: Path) -> None:
    done = invoke(*arguments.split(), LABRIG_CACHE=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_with_no_index_and_no_folder_a_build_stops_within_seconds_with_the_fix(tmp_path: Path) -> None:
    """The index is down: nothing listens there. No other build of torch is ever taken instead."""
    table = spec.read(ROOT / "images" / spec.TABLE)
    target = next((t for t in table.targets.values() if t.index and t.python == samples.PYTHON), None)
    if target is None or target.index is None:
        pytest.skip(f"no target from a named index is for Python {samples.PYTHON}")
    variable = f"LABRIG_INDEX_{target.index.upper().replace('-', '_')}"
    down = "http://127.0.0.1:9/simple"
    started = time.monotonic()
    done = invoke(
        "build",
        f"--target={target.name}",
        "--engine=venv",
        LABRIG_CACHE=str(tmp_path),
        PIP_CONFIG_FILE=os.devnull,
        UV_DEFAULT_INDEX=down,
        **{variable: down},
    )
    assert time.monotonic() - started < 15
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert f"torch {target.torch}" in done.stderr
    assert "cannot be reached" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.whl")) == []
    assert list(tmp_path.rglob("pyvenv.cfg")) == []
