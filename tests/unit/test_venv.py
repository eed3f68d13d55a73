"""The venv engine with tiny wheels: real uv, real processes that are killed, a really full disk; no network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import samples

from labrig import home, native, wheelhouse
from labrig.engines import Environment, load, venv
from labrig.errors import BuildError, FetchError, HostError, UsageError
from labrig.host import Host

MANY = {f"slow/m{number}.py": b"x = 1\n" for number in range(3000)}  # keeps uv busy for a while


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with two wheels."""
    folder = tmp_path / "wheels"
    samples.make_wheel(folder, "one")
    samples.make_wheel(folder, "two", "2.0")
    return folder


def run_in(environment: Environment, code: str, **options: str) -> str:
    """What Python code prints inside a session."""
    out = Path(home.root(), "printed")
    with venv.session(environment) as session:
        script = f"import sys; sys.stdout = open({str(out)!r}, 'w')\n{code}"
        assert session.run(["python", "-c", script], cwd=home.root(), env=options) == 0
    return out.read_text().strip()


def refuse() -> Path:
    raise AssertionError("no wheel is needed")


@contextlib.contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group that builds from ``folder``."""
    with subprocess.Popen(
        [sys.executable, samples.__file__, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=samples.ROOT,
        env={**os.environ, "PYTHONPATH": str(samples.ROOT)},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: object, process: subprocess.Popen[str], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, f"ended with {process.returncode} before: {process.communicate()}"
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.005)


# --- the plain case ---------------------------------------------------------------------------------------------


def test_a_build_makes_an_environment_of_exactly_the_lock(wheels: Path, cache: Path) -> None:
    made = samples.build(wheels)
    place = Path(made.reference)
    assert place.is_relative_to(cache)
    code = "import json, importlib.metadata as m, one, two, sys\n"
    code += "json.dump([sys.prefix, two.version, {d.name: d.version for d in m.distributions()}], sys.stdout)"
    assert json.loads(run_in(made, code)) == [str(place), "2.0", {"one": "1.0", "two": "2.0"}]
    note = json.loads((place / native.MARK).read_text())
    assert (note["target"], note["engine"], note["lock"]) == ("tiny", "venv", made.lock.digest)


def test_files_are_hard_links_and_not_copies(wheels: Path) -> None:
    made = samples.build(wheels)
    assert next(Path(made.reference).glob("lib/*/site-packages/one.py")).stat().st_nlink > 1


def test_a_second_build_does_nothing(wheels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = samples.build(wheels)
    before = {file: file.lstat().st_mtime_ns for file in home.root().rglob("*")}
    capfd.readouterr()
    again = venv.build(made.target, made.lock, refuse, offline=True)
    assert again == made
    assert {file: file.lstat().st_mtime_ns for file in home.root().rglob("*")} == before
    assert capfd.readouterr() == ("", "")


def test_the_mark_is_written_last(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(path: Path, text: str) -> None:
        seen.append((path.name, sorted(file.name for file in path.parent.glob("lib/*/site-packages/*.py"))))

    monkeypatch.setattr(native, "write_atomically", note)
    samples.build(wheels)
    assert seen == [(native.MARK, ["one.py", "two.py"])]


def test_a_new_lock_leaves_the_environment_in_use_alone(wheels: Path) -> None:
    old = samples.build(wheels)
    before = {file: (file.lstat().st_ino, file.lstat().st_mtime_ns) for file in Path(old.reference).rglob("*")}
    (wheels / "two-2.0-py3-none-any.whl").unlink()
    samples.make_wheel(wheels, "two", "2.1")
    new = samples.build(wheels)
    assert new.reference != old.reference
    assert run_in(new, "import two; print(two.version)") == "2.1"
    assert run_in(old, "import two; print(two.version)") == "2.0"
    kept = {f: s for f, s in before.items() if "__pycache__" not in f.parts}
    assert {f: (f.lstat().st_ino, f.lstat().st_mtime_ns) for f in kept if f.suffix == ".py"} == {
        f: s for f, s in kept.items() if f.suffix == ".py"
    }


def test_another_platform_is_refused_with_the_reason() -> None:
    target = samples.target("tiny")
    here = Host(os="macos", arch="arm64")
    assert "this machine is macos_arm64" in (venv.check(target, here) or "")
    assert venv.check(dataclasses.replace(target, platforms=("macos_arm64",)), here) is None


def test_an_engine_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no engine 'podman'"):
        load("podman")


def test_without_an_interpreter_nothing_is_fetched(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(wheels))
    target = dataclasses.replace(samples.target("tiny"), python="3.77")
    with pytest.raises(HostError):
        venv.build(target, samples.lock_of(wheels), refuse, offline=True)


# --- nothing unverified is installed ----------------------------------------------------------------------------


def test_a_corrupt_wheel_in_the_store_is_fetched_again_before_it_is_used(
    wheels: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = samples.lock_of(wheels)
    samples.fetching(lock, wheels)()
    stored = wheelhouse.find(lock.wheels[0], home.wheels())
    data = bytearray(stored.read_bytes())
    data[40] ^= 1
    stored.unlink()
    stored.write_bytes(data)
    assert run_in(samples.build(wheels), "import one; print(one.version)") == "1.0"
    assert "is corrupt" in capfd.readouterr().err


def test_a_corrupt_wheel_that_cannot_be_had_again_is_never_installed(wheels: Path, cache: Path) -> None:
    lock = samples.lock_of(wheels)
    samples.fetching(lock, wheels)()
    stored = wheelhouse.find(lock.wheels[0], home.wheels())
    data = stored.read_bytes()
    stored.unlink()
    stored.write_bytes(data[:-1] + b"!")
    (wheels / lock.wheels[0].file).unlink()
    with pytest.raises(FetchError, match=r"one 1\.0"):
        venv.build(samples.target("tiny"), lock, samples.fetching(lock, wheels), offline=True)
    assert not venv.folder(lock).exists()


def test_uv_is_the_last_to_compare_digests(wheels: Path) -> None:
    """A store that lies behind the fetch's back: another content under the right name and size."""
    lock = samples.lock_of(wheels)

    def lie() -> Path:
        store = samples.fetching(lock, wheels)()
        stored = wheelhouse.find(lock.wheels[0], store)
        size = stored.stat().st_size
        stored.unlink()
        samples.make_wheel(stored.parent, "one", files={"one.py": b"version = '6.6'\n"})
        stored.write_bytes(stored.read_bytes()[:size].ljust(size, b"\0"))
        return store

    with pytest.raises(BuildError) as caught:
        venv.build(samples.target("tiny"), lock, lie, offline=True)
    assert "one" in caught.value.found
    assert "GB" not in caught.value.fix, "the disk is not to blame"
    assert not venv.folder(lock).exists()


def test_what_was_written_into_one_environment_does_not_reach_the_next(
    wheels: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Environments share files with uv's cache by hard links: an edit in one is an edit of the cache."""
    first = samples.build(wheels)
    file = next(Path(first.reference).glob("lib/*/site-packages/one.py"))
    file.write_text("version = 'mine'\n")  # through the link
    samples.make_wheel(wheels, "three")
    second = samples.build(wheels)
    assert second.reference != first.reference
    assert run_in(second, "import one, three; print(one.version)") == "1.0"
    assert "damaged" in capfd.readouterr().err


# --- killed, interrupted, two at once ---------------------------------------------------------------------------


@pytest.fixture
def slow(wheels: Path) -> Path:
    samples.make_wheel(wheels, "slow", files=MANY)
    return wheels


def in_the_middle(lock_folder: Path) -> object:
    place = venv.folder(samples.lock_of(lock_folder))
    return lambda: next(place.glob("lib/*/site-packages/slow/*.py"), None)


def test_after_kill_9_in_the_middle_the_next_run_removes_the_rest_and_finishes(
    slow: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with driver(slow) as process:
        wait_for(in_the_middle(slow), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    place = venv.folder(samples.lock_of(slow))
    assert place.exists()
    assert not native.is_made(place)
    (place / "left-over").touch()
    made = samples.build(slow)
    assert "a build was interrupted there" in capfd.readouterr().err
    assert not (place / "left-over").exists()
    assert run_in(made, "import slow.m2999, one, two; print('all')") == "all"


def test_after_kill_9_of_labrig_alone_the_next_run_waits_for_its_uv(
    slow: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with driver(slow) as process:
        wait_for(in_the_middle(slow), process)
        process.kill()
        made = samples.build(slow)  # while uv may still be writing
        assert run_in(made, "import slow.m2999, one, two; print('all')") == "all"
        assert "another build of this environment is running" in capfd.readouterr().err


def test_ctrl_c_in_the_middle_is_exit_130_and_leaves_nothing_half_made(slow: Path) -> None:
    with driver(slow) as process:
        wait_for(in_the_middle(slow), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not venv.folder(samples.lock_of(slow)).exists()
    assert native.is_made(Path(samples.build(slow).reference))


def test_of_two_builds_at_once_one_builds_and_the_other_finds_it(slow: Path) -> None:
    with driver(slow) as first, driver(slow) as second:
        answers = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert answers[0][0] == answers[1][0] == f"{venv.folder(samples.lock_of(slow))}\n"
    said = sorted(err for _, err in answers)
    assert sum("installing 3 wheels" in err for err in said) == 1
    assert sum("waiting for it" in err for err in said) == 1


# --- disk and permissions ---------------------------------------------------------------------------------------

WAYS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


def on_small_disk(folder: Path, size: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a disk of that size mounted on ``folder`` ($0), for it alone."""
    way = next((w for w in WAYS if subprocess.run([*w, "true"], capture_output=True, timeout=10).returncode == 0), None)
    if way is None:
        pytest.skip("this container allows neither mounts nor user namespaces: no small disk can be made")
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={size} tmpfs "$0"\n{script}'
    return subprocess.run(
        [*way, "sh", "-ec", script, str(folder), *arguments],
        capture_output=True, text=True, timeout=60, cwd=samples.ROOT,
        env={**os.environ, "PYTHONPATH": str(samples.ROOT)},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk with Linux's unshare")
def test_a_full_disk_is_exit_4_with_the_numbers_and_the_old_environment_stands(
    wheels: Path, tmp_path: Path, cache: Path
) -> None:
    big = tmp_path / "big"
    samples.make_wheel(big, "big", files={"big/zeros.bin": bytes(8_000_000)})  # packs to 8 kB: the wheel itself fits
    build = f'"{sys.executable}" "{samples.__file__}"'
    done = on_small_disk(
        cache,
        "4m",
        f'old=$({build} "$1")\ncode=0; {build} "$2" || code=$?\n'
        'echo "code $code"; ls "$0/envs/tiny"; "$old/bin/python" -c "import one, two; print(\'old one works\')"\n'
        f'{build} "$1"',
        str(wheels),
        str(big),
    )
    assert done.returncode == 0, done.stderr
    lock, needed = samples.lock_of(big), venv.folder(samples.lock_of(big))
    assert "code 4" in done.stdout
    assert "old one works" in done.stdout
    assert needed.name not in done.stdout.replace(f"{needed.name}{native.GUARD}", ""), "nothing half-made"
    assert "labrig: the environment of target tiny could not be made" in done.stderr
    assert "No space left" in done.stderr
    assert " are free in " in done.stderr
    assert f"needs about {venv.megabytes(venv.UNPACKED * lock.size)}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk with Linux's unshare")
def test_a_read_only_cache_serves_what_is_made_and_says_so_of_what_is_not(
    wheels: Path, tmp_path: Path, cache: Path
) -> None:
    samples.make_wheel(tmp_path / "other", "other")
    build = f'"{sys.executable}" "{samples.__file__}"'
    done = on_small_disk(
        cache,
        "16m",
        f'{build} "$1" >&2\nmount -o remount,ro "$0"\n{build} "$1"\ncode=0; {build} "$2" || code=$?; echo "code $code"',
        str(wheels),
        str(tmp_path / "other"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{venv.folder(samples.lock_of(wheels))}\ncode 4\n"
    assert "read-only" in done.stderr.lower()
    assert "LABRIG_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


# --- the session ------------------------------------------------------------------------------------------------


def test_nothing_of_the_callers_python_leaks_into_a_session(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = samples.build(wheels)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one.py").write_text("version = 'mine'\n")
    user = tmp_path / "user" / "lib" / f"python{samples.PYTHON}" / "site-packages"
    user.mkdir(parents=True)
    (user / "two.py").write_text("version = 'mine'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    monkeypatch.setenv("CONDA_PREFIX", "/elsewhere")
    code = "import json, os, shutil, one, two\nseen = {n: os.environ.get(n) for n in ('PYTHONPATH', 'PYTHONHOME', "
    code += "'CONDA_PREFIX', 'VIRTUAL_ENV', 'PATH')}\n"
    code += "json.dump([one.version, two.version, shutil.which('python'), seen], sys.stdout)"
    one, two, python, seen = json.loads(run_in(made, code))
    assert (one, two) == ("1.0", "2.0")
    assert python == f"{made.reference}/bin/python"
    assert seen["PATH"] == f"{made.reference}/bin{os.pathsep}{os.environ['PATH']}"
    assert seen["VIRTUAL_ENV"] == made.reference
    assert seen["PYTHONPATH"] is seen["PYTHONHOME"] is seen["CONDA_PREFIX"] is None


def test_a_session_gives_back_the_exit_code_and_takes_more_variables(wheels: Path) -> None:
    made = samples.build(wheels)
    with venv.session(made) as session:
        assert session.run(["python", "-c", "raise SystemExit(7)"]) == 7
        assert session.run(["sh", "-c", "exit $CODE"], env={"CODE": "5"}) == 5
        assert (session.hostspec, session.python) == ("local://", f"{made.reference}/bin/python")
        with pytest.raises(BuildError, match="no program 'no-such-program'"):
            session.run(["no-such-program"])


def test_ctrl_c_lets_the_command_in_a_session_save_what_it_has(wheels: Path, tmp_path: Path) -> None:
    made = samples.build(wheels)
    script = tmp_path / "work.py"
    script.write_text(
        "import pathlib, sys, time\nhere = pathlib.Path(sys.argv[1])\ntry:\n    (here / 'started').touch()\n"
        "    time.sleep(60)\nexcept KeyboardInterrupt:\n    time.sleep(1)\n    (here / 'saved').touch()\n"
    )
    outer = (
        "import json, sys\nfrom pathlib import Path\nimport samples\nfrom labrig.engines import venv\n"
        "with venv.session(samples.build(Path(sys.argv[1]))) as session:\n"
        "    session.run(['python', sys.argv[2], sys.argv[3]])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", outer, str(wheels), str(script), str(tmp_path)],
        stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=samples.ROOT,
        env={**os.environ, "PYTHONPATH": f"{samples.ROOT}:{Path(samples.__file__).parent}"},
    ) as process:  # fmt: skip
        wait_for((tmp_path / "started").exists, process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert process.returncode == -signal.SIGINT
    assert (tmp_path / "saved").exists()
    assert made.reference


def test_an_environment_whose_interpreter_is_gone_is_not_made(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    (place / native.MARK).write_text("{}")
    (place / "bin" / "python").symlink_to(sys.executable)
    assert native.is_made(place)
    (place / "bin" / "python").unlink()
    (place / "bin" / "python").symlink_to(tmp_path / "gone")
    assert not native.is_made(place)
