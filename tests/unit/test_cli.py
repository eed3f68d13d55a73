"""The tasks as a person runs them: exit codes, a few clear lines, and no traceback whatever happens to the machine."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import samples
from invoke import Collection, Task
from samples import INDEX, PYTHON, TORCH
from servers import IndexServer, Manners

from labrig import catalogue, spec, support

ROOT = Path(__file__).parents[2]
INVOKE = Path(sys.executable).with_name("invoke")
OTHER = "mps" if sys.platform == "linux" else "cuda"  # a target that is for another system than this
DOCTOR_KEYS = {"host", "assumed", "best", "cuda", "targets", "sources"}

TABLE = f"""
[defaults]
packages = ["alpha"]
engines = ["venv"]
[indexes]
{INDEX} = "http://127.0.0.1:9/simple"
[targets.here]
torch = "{TORCH}"
variant = "cpu"
index = "{INDEX}"
python = "{PYTHON}"
platforms = ["linux_x86_64"]
why = "a test"
"""


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(INVOKE), *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception" not in done.stderr, done.stderr
    return done


class Checkout:
    """The files of this checkout that the tasks need, over a table of one tiny target and a folder of its wheels."""

    def __init__(self, root: Path) -> None:
        self.root, self.wheels = root / "checkout", root / "wheels"
        self.images = self.root / "images"
        self.images.mkdir(parents=True)
        shutil.copy(ROOT / "tasks.py", self.root)
        for folder in ("labrig", "templates"):
            shutil.copytree(ROOT / folder, self.root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (self.images / spec.TABLE).write_text(TABLE)
        self.publish("1.0")
        samples.write(samples.wheel("beta", "1.0") | samples.torch_wheel(f"{TORCH}+cpu"), self.wheels)
        self.environment = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            f"LABRIG_INDEX_{INDEX.upper()}": "none",
            "LABRIG_CACHE": str(root / "cache"),
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(root / "uv"),
        }

    def publish(self, version: str) -> None:
        samples.write(samples.wheel("alpha", version), self.wheels)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, cwd=self.root, **self.environment | environment)

    def content(self) -> dict[str, bytes]:
        return {str(f.relative_to(self.images)): f.read_bytes() for f in self.images.rglob("*") if f.is_file()}

    def run_where(self, prepare: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it in a mount namespace of its own, after ``prepare``, a line of shell in the checkout's folder."""
        script = f"set -e; {prepare}\nexec {shlex.quote(str(INVOKE))} {shlex.join(arguments)}"
        unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        done = subprocess.run(
            [*unshare, "sh", "-c", script], cwd=self.root, env={**os.environ, **self.environment}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "unshare:" not in done.stderr and "mount:" not in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `invoke lock` makes of the table."""
    checkout = Checkout(tmp_path_factory.mktemp("once"))
    done = checkout.run("lock")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "images/here/linux_x86_64.lock", "images/here/requirements-linux_x86_64.txt", "images/here/setup.sh"
    ]  # fmt: skip
    return checkout.images


@pytest.fixture
def locked(tmp_path: Path, images: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    shutil.copytree(images, checkout.images, dirs_exist_ok=True)
    return checkout


# --- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("list --no-such-flag", 2, "--no-such-flag"),
        ("--no-such-flag", 2, "--no-such-flag"),
        ("no-such-task", 2, "no-such-task"),
        ("list extra", 2, "extra"),
        ("--help=nonsense", 2, "nonsense"),
        ("--list=nonsense", 2, "nonsense"),
        ("build --target", 2, "needed value"),
        ("labs --jobs=many", 2, "--jobs takes a number"),
        ("build --target=nosuch", 2, "targets: cpu, cuda"),
        ("build --target=cpu --engine=podman", 2, "engines: "),
        ("lock --platform=nosuch", 2, "no such platform: 'nosuch'"),
        ("lock --target=cpu --index=nosuch=none", 2, "names allowed: pytorch-cpu"),
        ("fetch --target=cpu --platform=macos_arm64", 2, "its platforms: linux_x86_64"),
        ("fetch --target=cpu --platform=linux_aarch64", 4, "has no lock for linux_aarch64"),
    ],
)
def test_a_mistake_ends_with_its_code_and_a_few_lines(arguments: str, code: int, words: str) -> None:
    done = run(*arguments.split())
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    said = done.stderr[done.stderr.index("labrig: ") :].splitlines()
    assert 2 <= len(said) <= 3
    assert said[-1].startswith("  fix:   ") or "found" in said[-1]
    assert done.stdout == ""


@pytest.mark.parametrize("task", ["build", "verify", "labs"])
def test_a_target_of_another_machine_is_one_line(task: str) -> None:
    """Nothing is broken, so there is nothing found and nothing to mend; `build --target=mps` on Linux says this."""
    done = run(task, f"--target={OTHER}")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"labrig: target {OTHER} is for ")
    assert "this machine is" in done.stderr and "`invoke doctor`" in done.stderr


OLD = {
    # a recorded machine of the right kind, target, what is wrong with it, the fix
    "macOS": (
        {"os": "macos", "arch": "arm64", "os_version": "10.15"}, "mps", "macOS 10.15 is older", "update macOS to",
    ),
    "Rosetta": (
        {"os": "macos", "arch": "arm64", "os_version": "99.0", "translated": True}, "mps", "under Rosetta",
        "a native arm64 Python",
    ),
    "glibc": ({"os": "linux", "arch": "x86_64", "libc": "glibc 2.17"}, "cuda", "glibc 2.17 is older", "distribution"),
}  # fmt: skip


@pytest.mark.parametrize(("machine", "target", "reason", "fix"), OLD.values(), ids=OLD)
def test_a_machine_that_is_too_old_hears_so_before_anything_is_fetched(
    tmp_path: Path, machine: dict[str, object], target: str, reason: str, fix: str
) -> None:
    recorded = tmp_path / "host.json"
    recorded.write_text(json.dumps(machine))
    done = run("build", f"--target={target}", "--engine=venv", LABRIG_HOST=str(recorded), LABRIG_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    what, found, way_out = done.stderr.splitlines()
    assert what == f"labrig: target {target} cannot work on this machine: it does not install"
    assert reason in found and fix in way_out and "--force" in way_out
    assert [file.name for file in tmp_path.iterdir()] == ["host.json"]


GTX_1080 = {
    "os": "linux", "arch": "x86_64", "libc": "glibc 2.36", "driver": "580.65.06",
    "gpus": [{"name": "NVIDIA GeForce GTX 1080", "capability": "6.1"}],
}  # fmt: skip


@pytest.mark.parametrize("task", ["build", "labs", "up"])
@pytest.mark.parametrize("engine", ["venv", "docker"])
def test_what_cannot_work_here_is_refused_before_any_download_unless_it_is_forced(
    tmp_path: Path, task: str, engine: str
) -> None:
    recorded = tmp_path / "host.json"
    recorded.write_text(json.dumps(GTX_1080))
    # No index and no folder of wheels: what goes on fails at its first download.
    nowhere = {
        "LABRIG_HOST": str(recorded), "LABRIG_CACHE": str(tmp_path / "cache"), "PIP_FIND_LINKS": "",
        "UV_FIND_LINKS": "", "DOCKER_HOST": f"unix://{tmp_path}/no-engine",
    }  # fmt: skip
    flags = [task, "--target=cuda", *([] if task == "up" else [f"--engine={engine}"]), "--offline"]
    done = run(*flags, **nowhere)
    assert (done.returncode, done.stdout) == (3, "")
    assert "target cuda cannot work on this machine: it installs but fails" in done.stderr
    assert "GTX 1080 (6.1)" in done.stderr and "use target `cuda-legacy`" in done.stderr and "--force" in done.stderr
    assert not (tmp_path / "cache").exists()
    forced = run(*flags, "--force", **nowhere)
    assert forced.returncode in (3, 4), "no engine answers, or no wheel is there"
    assert "cannot work on this machine" not in forced.stderr
    assert "installs but fails" in forced.stderr
    assert "Traceback" not in forced.stderr


@pytest.mark.parametrize(
    ("file", "content", "task", "code", "words"),
    [
        ("targets.toml", b"[targets", "list", 2, "not valid TOML"),
        ("targets.toml", None, "list", 2, "no pin table"),
        ("targets.toml", TABLE.replace(f'"{TORCH}"', "2.13").encode(), "render", 2, "2.13 (a number)"),
        ("targets.toml", TABLE.replace('"alpha"', '"alpha", "beta"').encode(), "render", 4, "is stale"),
        ("here/linux_x86_64.lock", b"<<<<<<< HEAD\n", "list", 4, "not a lock labrig can read"),
        ("here/setup.sh", b"\xff", "render --check", 8, "images/here/setup.sh differs"),
        ("here/Dockerfile", b"FROM scratch", "render --check", 8, "images/here/Dockerfile belongs to no target"),
    ],
)
def test_a_damaged_file_is_named(
    locked: Checkout, file: str, content: bytes | None, task: str, code: int, words: str
) -> None:
    if content is None:
        (locked.images / file).unlink()
    else:
        (locked.images / file).write_bytes(content)
    done = locked.run(*task.split())
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_render_says_what_it_wrote_and_then_nothing(locked: Checkout) -> None:
    (locked.images / "here" / "setup.sh").unlink()
    assert locked.run("render").stdout.split() == ["images/here/setup.sh"]
    again = locked.run("render")
    assert (again.returncode, again.stdout) == (0, "")
    check = locked.run("render", "--check")
    assert (check.returncode, check.stdout) == (0, "")
    assert "2 rendered files are current" in check.stderr


def test_a_cache_that_cannot_be_is_named(locked: Checkout) -> None:
    done = locked.run("fetch", "--target=here", "--platform=linux_x86_64", LABRIG_CACHE="/dev/null/cache")
    assert done.returncode == 4
    assert "/dev/null/cache" in done.stderr
    assert "LABRIG_CACHE" in done.stderr


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:  # type: ignore[type-arg]
    found = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert found and found.loader
    module: ModuleType = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    collection = Collection.from_module(module)
    return {name: collection[name] for name in collection.task_names}


def test_every_task_and_every_flag_has_help(tasks: dict[str, Task]) -> None:  # type: ignore[type-arg]
    promised = {"list", "doctor", "lock", "render", "fetch", "build", "labs", "verify", "shell", "clean", "up"}
    assert promised <= set(tasks)
    for name, task in tasks.items():
        assert (task.__doc__ or "").strip(), name
        flags = {flag for flag in inspect.signature(task.body).parameters if flag != "c"}
        helped = {argument.name: argument.help for argument in task.get_arguments()}
        assert flags == set(helped), name
        for flag, text in helped.items():
            assert text and text.strip(), f"{name} --{flag}"


def test_every_task_is_listed_with_its_help(tasks: dict[str, Task]) -> None:  # type: ignore[type-arg]
    done = run("--list")
    assert done.returncode == 0
    listed = " ".join(done.stdout.split())  # Invoke wraps the lines
    for name, task in tasks.items():
        assert f"{name} {(task.__doc__ or '').strip().splitlines()[0]}" in listed


@pytest.mark.parametrize("words", [("export", "--help"), ("import", "-h"), ("start", "--help"), ("--help", "export")])
def test_help_is_help_also_where_a_task_takes_words(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 0 and "Usage:" in done.stdout and "Options:" in done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["target", "json"])
def test_a_default_has_the_type_of_its_flag(tasks: dict[str, Task], flag: str) -> None:  # type: ignore[type-arg]
    kinds = {
        argument.kind for task in tasks.values() for argument in task.get_arguments() if argument.name == flag
    }  # fmt: skip
    assert kinds - {list} == {{"target": str, "json": bool}[flag]}  # a list: repeatable


# --- results --------------------------------------------------------------------------------------------------------


def test_list_json_is_what_is_documented() -> None:
    done = run("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == catalogue.entries(samples.SHIPPED)


def test_list_shows_each_target_in_a_line() -> None:
    done = run("list")
    assert (done.returncode, done.stderr) == (0, "")
    pinned, _, known = done.stdout.partition(support.TITLE)
    lines = {line.split()[0]: line for line in pinned.splitlines() if line.split()}
    pairs = [tuple(line.split()[:2]) for line in known.splitlines() if line.split()]
    assert all((line.target, line.engine) in pairs for line in support.lines(samples.SHIPPED))
    for name, target in samples.SHIPPED.targets.items():
        assert f" {target.torch} " in lines[name]
        assert f" {target.variant} " in lines[name]


def test_doctor_json_is_what_is_documented() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert set(report) == DOCTOR_KEYS
    assert [set(entry) >= {"name", "verdict", "reason", "fix"} for entry in report["targets"]] == [True] * len(
        samples.SHIPPED.targets
    )


@pytest.mark.parametrize(
    ("arguments", "allowed"), [("list --json", set()), ("list", {"rich"}), ("render --check", {"jinja2"})]
)
def test_nothing_heavy_is_imported_to_answer(arguments: str, allowed: set[str]) -> None:
    code = (
        "import sys; from invoke.main import program\n"
        f"program.run(['invoke', *{arguments.split()!r}], exit=False)\n"
        "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    modules = set(done.stderr.partition("MODULES ")[2].split())
    assert {"labrig", "invoke"} <= modules
    heavy = {"rich", "torch", "numpy", "docker", "httpx2", "unearth", "jinja2", "uv", "pytest", "testinfra"}
    assert modules & heavy <= allowed


# --- a machine that does not play along -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["list", "list --json", "doctor", "--list"])
def test_a_reader_that_has_gone_is_no_error(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [INVOKE, *arguments.split()],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("arguments", ["list", "list --json"])
def test_a_closed_stdout_is_no_error(arguments: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" {arguments} >&-', INVOKE], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [INVOKE, "list", "--json"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 4
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


STOPPED = {
    "tasks": """
from invoke import task
from labrig import cli

@task
@cli.door
def stop(c):
    exec("raise KeyboardInterrupt")
""",
    "labs_stop": """
import sys
from labs import __main__ as labs

def stop(*_):
    exec("raise KeyboardInterrupt")

labs.list_labs, sys.argv = stop, ["labs", "list"]
sys.exit(labs.main())
""",
}


@pytest.mark.parametrize(("name", "command"), [("tasks", ["invoke", "stop"]), ("labs_stop", ["labs_stop"])])
def test_ctrl_c_in_an_exec_of_text_ends_with_130_too(tmp_path: Path, name: str, command: list[str]) -> None:
    """As while dataclasses and named tuples are made, in an import. CPython remembers those and dies of SIGINT."""
    (tmp_path / f"{name}.py").write_text(STOPPED[name])
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "interrupted" in done.stderr
    assert done.returncode == 130, done.stderr


def test_ctrl_c_while_locking_ends_with_130_and_leaves_the_old_lock(locked: Checkout) -> None:
    before = locked.content()
    locked.publish("2.0")
    with IndexServer({"x-1.0-py3-none-any.whl": b"x"}, Manners(hang=True)) as index:
        running = subprocess.Popen(
            [INVOKE, "lock", "--upgrade", f"--index={INDEX}={index.url}"], cwd=locked.root, start_new_session=True,
            env={**os.environ, **locked.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not index.requests:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in err
    assert "labrig: interrupted" in err
    assert out == ""
    assert locked.content() == before


linux = pytest.mark.skipif(sys.platform != "linux", reason="read-only and full file systems are made with Linux mounts")
READ_ONLY = 'mount --bind "$PWD" "$PWD"; mount -o remount,ro,bind "$PWD"; cd "$PWD"; ! touch images/x 2>/dev/null'


@linux
def test_a_read_only_checkout_answers_while_there_is_nothing_to_write(locked: Checkout) -> None:
    tasks = "; ".join(f"{shlex.quote(str(INVOKE))} {task}" for task in ("list", "doctor", "render --check", "render"))
    done = locked.run_where(f"{READ_ONLY}; {tasks}", "lock")
    assert done.returncode == 0, done.stderr
    assert " here " in done.stdout and TORCH in done.stdout
    assert "unchanged" in done.stderr


@linux
@pytest.mark.parametrize("arguments", ["lock --upgrade", "render"])
def test_a_read_only_checkout_is_told_when_something_is_to_be_written(locked: Checkout, arguments: str) -> None:
    locked.publish("2.0")
    if arguments == "render":
        (locked.images / "here" / "setup.sh").write_text("old")
    before = locked.content()
    done = locked.run_where(READ_ONLY, *arguments.split())
    assert done.returncode == 4
    said = done.stderr[done.stderr.index("labrig: ") :].splitlines()
    assert len(said) == 3
    assert "cannot write" in said[0] and "images/here" in said[0] and "read-only" in said[0]
    assert done.stdout == ""
    assert locked.content() == before


@linux
def test_a_full_disk_leaves_the_old_lock(locked: Checkout) -> None:
    locked.publish("2.0")
    saved = locked.root.parent / "saved"
    shutil.copytree(locked.images, saved)
    seen = locked.root.parent / "seen"
    full = (
        f"mount -t tmpfs -o size=64k none images; cp -a {shlex.quote(str(saved))}/. images/; "
        "dd if=/dev/zero of=images/.fill bs=1k 2>/dev/null || :; "
        # What is on the small disk can be seen from inside only.
        f"trap 'cp -a images {shlex.quote(str(seen))}' EXIT; "
        f"{shlex.quote(str(INVOKE))} lock --upgrade || exit $?"
    )
    done = locked.run_where(full, "--version")
    assert done.returncode == 4
    assert "cannot write" in done.stderr and "the disk is full" in done.stderr
    assert "alpha 1.0 -> 2.0" in done.stderr
    left = {str(f.relative_to(seen)): f.read_bytes() for f in seen.rglob("*") if f.is_file()}
    left.pop(".fill")
    assert left == {str(f.relative_to(saved)): f.read_bytes() for f in saved.rglob("*") if f.is_file()}
