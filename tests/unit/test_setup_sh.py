"""The rendered setup.sh, run for real: pip, venv and signals, over wheels of a kilobyte."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import samples
from packaging.utils import parse_wheel_filename
from samples import INDEX, PYTHON, TORCH
from servers import IndexServer

from labrig import lock, matrix, render, spec
from labrig.lock import Lock, Wheel
from labrig.spec import Table, Target

TEMPLATES = Path(__file__).parents[2] / "templates"
PLATFORM = "linux_x86_64"  # what the fake uname says; the wheels are for any platform
MAC_PLATFORM = "macos_arm64"
VARIABLE = f"LABRIG_INDEX_{INDEX.upper()}"
BASE = sys._base_executable  # type: ignore[attr-defined]  # not the venv's own: as a student's

ALPHA, BETA = samples.wheel("alpha", "1.0"), samples.wheel("beta", "1.0")


def torch_wheel(cuda: str | None = None) -> dict[str, bytes]:
    ((_, content),) = samples.torch_wheel(TORCH, cuda=cuda).items()
    return {f"torch-{TORCH}-py3-none-any.whl": content}


class World:
    """A student's machine: a folder with setup.sh, a folder of wheels, and what is found on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels, self.programs, self.home = root / "wheels", root / "programs", root / "home"
        for folder in (self.wheels, self.programs, self.home):
            folder.mkdir()
        self.folder = root / "images" / "here"
        self.requirements = self.folder / f"requirements-{PLATFORM}.txt"
        self.place = root / "my own lab"
        self.old = root / "my own lab.labrig-old"
        self.system("Linux", "x86_64")
        self.environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(self.home),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_CACHE_DIR": "1",
            VARIABLE: "none",
            "PYTHON": str(self.program("quick-python", quick_venv())),
        }

    def program(self, name: str, script: str) -> Path:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def system(self, kernel: str, machine: str) -> None:
        self.program("uname", f'[ "$1" = -s ] && echo {kernel} || echo {machine}')

    def render(self, target: Target, *wheels: dict[str, bytes], platform: str = PLATFORM) -> None:
        """Publish the wheels, lock exactly them for the target, and render its setup.sh."""
        files = {name: content for one in wheels for name, content in one.items()}
        samples.write(files, self.wheels)
        entries = sorted(
            (
                Wheel(name, str(version), file, hashlib.sha256(content).hexdigest(), len(content))
                for file, content in files.items()
                for name, version, *_ in [parse_wheel_filename(file)]
            ),
            key=lambda wheel: wheel.name,
        )
        images = self.folder.parent
        locked = Lock(target.name, platform, target.python, lock.inputs_digest(target, platform), tuple(entries))
        lock.write(locked, images)
        table = Table(images / spec.TABLE, {target.name: target}, {INDEX: "http://127.0.0.1:9/simple"})
        render.write(render.render(table, target, TEMPLATES))

    def command(self) -> list[str]:
        return ["sh", str(self.folder / "setup.sh"), str(self.place)]

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(), env=self.environment | environment, cwd=self.root, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start it as the leader of a group of processes, as a terminal does."""
        return subprocess.Popen(
            self.command(), env=self.environment | environment, cwd=self.root, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def python(self, code: str) -> str:
        """What Python says inside the environment, entered as the script's output says."""
        command = f'. "{self.place}/bin/activate" && python -c {shlex.quote(code)}'
        return subprocess.run(
            ["sh", "-c", command], env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    def pretend_older(self) -> dict[str, bytes]:
        """An environment that an older setup.sh made, as far as this one looks at it."""
        (self.place / "bin").mkdir(parents=True)
        (self.place / "bin" / "python").symlink_to(BASE)
        (self.place / "labrig-requirements.txt").write_text("alpha==0.9\n")
        (self.place / "pyvenv.cfg").write_text("home = /somewhere\n")
        return self.content()

    def content(self) -> dict[str, bytes]:
        return {str(f.relative_to(self.place)): f.read_bytes() for f in self.place.rglob("*") if f.is_file()}

    def is_clean(self) -> bool:
        """Nothing half-made is left anywhere."""
        return {f.name for f in self.root.iterdir()} <= {"wheels", "programs", "home", "images"}

    def without_python(self) -> None:
        """Every name under which setup.sh looks for a Python fails, as a shim does."""
        self.environment["PYTHON"] = ""
        for name in (f"python{PYTHON}", "python3", "python"):
            self.program(name, "exit 127")

    def uv(self, *, there: bool = False, install: str = "", brings: str = "") -> Path:
        """A uv that notes what it is asked, and finds its Python (``brings``, a script) if that is ``there`` or once
        it has installed it. Its own Python alone is no program on PATH."""
        managed, mark, asked = (
            self.root / "home" / "managed",
            self.root / "home" / "installed",
            self.root / "home" / "asked",
        )
        managed.write_text(f"#!/bin/sh\n{brings or quick_venv('x86_64')}\n")
        managed.chmod(0o755)
        if there:
            mark.touch()
        self.program(
            "uv",
            f'echo "${{UV_PYTHON_PREFERENCE:-}} $*" >>"{asked}"\n'
            f'case "$1 $2" in\n"python find") [ -e "{mark}" ] && echo "{managed}" ;;\n'
            f'"python install") {install or "true"} && touch "{mark}" ;;\n*) exit 2 ;;\nesac',
        )
        return asked


def quick_venv(machine: str = "") -> str:
    """An interpreter whose venvs borrow the toolkit's pip (unpacking one takes four seconds).

    With a ``machine`` it says that it is made for that one, and that it has whatever version is asked for.
    """
    found = importlib.util.find_spec("pip")
    assert found and found.origin, "the toolkit's environment has pip (make setup)"
    pip = shlex.quote(str(Path(found.origin).parent))
    python = shlex.quote(BASE)
    lies = f'case "${{2:-}}" in *platform.machine*) echo {machine}; exit ;; *version_info*) exit ;; esac\n'
    return (
        f'{lies if machine else ""}if [ "$1" = -m ] && [ "$2" = venv ]; then\n'
        f'    {python} -m venv --without-pip "$3" && ln -s {pip} "$3/lib/python{PYTHON}/site-packages/pip"\n'
        f'else exec {python} "$@"; fi'
    )


@pytest.fixture
def empty(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def world(empty: World) -> World:
    empty.render(samples.target(), torch_wheel(), ALPHA, BETA)
    return empty


@pytest.fixture
def stuck(world: World) -> Iterator[IndexServer]:
    """An index that takes requests for wheels and never answers them."""
    files = {file.name: file.read_bytes() for file in world.wheels.iterdir()}
    with IndexServer(files) as index:
        index.manners.hang_files = True
        world.environment[VARIABLE] = index.url
        world.environment["PIP_FIND_LINKS"] = ""
        world.environment.pop("PIP_NO_INDEX")
        yield index


def interrupt(world: World, index: IndexServer, sent: signal.Signals) -> tuple[int, str, str]:
    """Start it, wait until pip fetches a wheel, send the signal to all its processes."""
    running = world.start()
    deadline = time.monotonic() + 60
    while not index.downloads():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.02)
    os.killpg(running.pid, sent)
    out, err = running.communicate(timeout=30)
    index.requests.clear()
    return running.returncode, out, err


# --- it works -----------------------------------------------------------------------------------------------------


def test_with_only_python_and_pip_it_makes_the_environment(world: World) -> None:
    """A true venv with a pip of its own, in a folder with spaces; then it is found made."""
    first = world.run(PYTHON=BASE)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f'. "{world.place}/bin/activate"\n'
    assert f"torch {TORCH} on the CPU" in first.stderr
    assert world.python("import torch, alpha, beta; print(torch.__version__, alpha.__version__)") == f"{TORCH} 1.0"
    assert not world.old.exists()
    left = {f.name for f in world.place.iterdir()}
    assert "labrig-requirements.txt" in left
    assert not left & {"labrig-unfinished", "torch.txt", "rest.txt"}
    assert (world.place / "labrig-requirements.txt").read_bytes() == world.requirements.read_bytes()

    # The wheels are not needed any more, nor is anything touched.
    shutil.rmtree(world.wheels)
    before = {f: f.lstat().st_mtime_ns for f in world.place.rglob("*") if "__pycache__" not in f.parts}
    second = world.run(PYTHON=BASE)
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert "already the environment of target here" in second.stderr
    assert {f: f.lstat().st_mtime_ns for f in before} == before

    # An interpreter that went away (a Python updated under it) is no environment.
    (world.place / "bin" / "python").unlink()
    assert world.run().returncode == 4
    assert world.place.exists()  # as it was


def test_a_row_without_an_index_takes_all_from_pips_own(empty: World) -> None:
    variant = matrix.default_variant(TORCH, PLATFORM)
    target = samples.target(variant=variant, index=None)
    empty.render(target, torch_wheel(cuda=target.cuda), ALPHA, BETA)
    empty.place.mkdir()  # an empty folder is nobody's
    empty.environment["PYTHON"] = ""
    empty.environment["HOME"] = "/nonexistent"
    # A shim that fails, as pyenv's do, is passed over.
    empty.program(f"python{PYTHON}", "echo 'pyenv: command not found' >&2; exit 127")
    empty.program("python3", quick_venv())
    done = empty.run()
    assert done.returncode == 0, done.stderr
    assert "torch.cuda.is_available() = False" in done.stderr
    assert empty.python("import torch; print(torch.version.cuda)") == target.cuda


def test_torch_comes_from_the_rows_index_and_the_rest_does_not(world: World) -> None:
    world.environment.pop("PIP_NO_INDEX")
    with IndexServer(torch_wheel()) as index, IndexServer(ALPHA | BETA) as rest:
        done = world.run(**{VARIABLE: index.url, "PIP_INDEX_URL": rest.url, "PIP_FIND_LINKS": ""})
        assert done.returncode == 0, done.stderr
        assert [r.path.rsplit("/")[-1] for r in index.downloads()] == list(torch_wheel())
        assert [r.path.rsplit("/")[-1] for r in rest.downloads()] == [*ALPHA, *BETA]
        assert not any("torch" in r.path for r in rest.requests)


# --- it does not --------------------------------------------------------------------------------------------------


def test_a_wheel_of_another_digest_is_refused_and_nothing_is_kept(world: World) -> None:
    (world.wheels / next(iter(ALPHA))).write_bytes(next(iter(samples.wheel("alpha", "1.0", code="evil = 1").values())))
    done = world.run()
    assert done.returncode == 4
    assert "HASH" in done.stderr.upper()
    assert "nothing half-made was kept" in done.stderr
    assert done.stdout.count("activate") == 0
    assert world.is_clean()


def test_a_torch_of_another_build_is_refused_and_nothing_is_kept(empty: World) -> None:
    empty.render(samples.target(), torch_wheel(cuda="1.0"), ALPHA, BETA)
    done = empty.run()
    assert done.returncode == 6
    assert f"expected torch {TORCH} for CUDA None, found {TORCH} for CUDA 1.0" in done.stderr
    assert "not what it should be" in done.stderr
    assert empty.is_clean()


def test_an_index_that_cannot_be_reached_is_told_with_the_way_out(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}/simple"
    world.environment.pop("PIP_NO_INDEX")
    began = time.monotonic()
    done = world.run(**{VARIABLE: gone, "PIP_FIND_LINKS": ""})
    assert time.monotonic() - began < 20
    assert done.returncode == 4
    assert f"{VARIABLE}=URL" in done.stderr and "PIP_FIND_LINKS=FOLDER" in done.stderr
    assert world.is_clean()


@pytest.mark.parametrize(
    ("kernel", "machine", "words"),
    [
        ("Darwin", "x86_64", f"is for {PLATFORM}; this machine is Darwin x86_64"),
        ("Darwin", "arm64", "this machine is Darwin arm64"),
        ("Linux", "aarch64", "this machine is Linux aarch64"),
        ("MINGW64_NT-10.0", "x86_64", "WSL2"),
    ],
)
def test_another_machine_is_told_which_it_is_for(world: World, kernel: str, machine: str, words: str) -> None:
    world.system(kernel, machine)
    done = world.run()
    assert done.returncode == 3
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert world.is_clean()


def test_no_python_is_told_with_what_to_install(empty: World) -> None:
    target = dataclasses.replace(samples.target(), python="3.99")
    empty.render(target, torch_wheel(), ALPHA)
    done = empty.run(PYTHON="")
    assert done.returncode == 3
    assert "No working Python 3.99" in done.stderr and "python3.99-venv" in done.stderr
    assert empty.is_clean()


NOWHERE = "3.99"  # a Python that no machine has, in /usr/bin or elsewhere


@pytest.fixture
def bare(empty: World) -> World:
    """A machine without a Python of the row's minor."""
    empty.render(dataclasses.replace(samples.target(), python=NOWHERE), torch_wheel(), ALPHA, BETA)
    empty.without_python()
    return empty


# --- with uv --------------------------------------------------------------------------------------------------------


def test_with_only_uv_its_python_is_fetched_once_and_found_again(bare: World) -> None:
    asked = bare.uv()
    first = bare.run()
    assert first.returncode == 0, first.stderr
    assert f"No Python {NOWHERE} was found; asking uv for one." in first.stderr
    assert bare.python("import torch; print(torch.__version__)") == TORCH
    find = f"only-managed python find --no-project --system {NOWHERE}"
    assert asked.read_text().splitlines() == [find, f" python install {NOWHERE}", find]
    second = bare.run()
    assert second.returncode == 0 and "already" in second.stderr
    assert "asking uv" not in second.stderr


def test_a_python_that_is_here_is_taken_before_uvs(bare: World) -> None:
    bare.program("python3", quick_venv("x86_64"))
    asked = bare.uv(there=True)
    assert bare.run().returncode == 0
    assert not asked.exists()


def test_a_named_python_that_does_not_do_is_not_replaced_by_uvs(bare: World) -> None:
    asked = bare.uv(there=True)
    assert bare.run(PYTHON=str(bare.root / "none")).returncode == 3
    assert not asked.exists()


@pytest.mark.parametrize(
    ("install", "brings", "words"),
    [
        ("{ echo 'error: error sending request' >&2; false; }", "", "uv could not install"),
        ("", "exit 1", f"uv has no working Python {NOWHERE}: "),
    ],
)
def test_a_uv_that_brings_no_working_python_ends_with_the_fix(
    bare: World, install: str, brings: str, words: str
) -> None:
    bare.uv(install=install, brings=brings)
    done = bare.run()
    assert done.returncode == 3
    assert words in done.stderr
    fix = done.stderr.splitlines()[-1]
    assert "UV_PYTHON_INSTALL_MIRROR=URL" in fix if install else "uv python install --reinstall" in fix
    if install:
        assert "error sending request" in done.stderr, "uv's own words are kept"
    assert bare.is_clean()


# --- on a Mac -------------------------------------------------------------------------------------------------------

APART = next(  # a torch whose wheel installs on a macOS where MPS does not work yet
    (torch, floor)
    for torch in reversed(matrix.releases())
    if PYTHON in matrix.pythons(torch, MAC_PLATFORM)
    and (floor := matrix.macos_floor(torch, PYTHON))
    and not matrix.at_least(floor.install, floor.mps)
)


class MacWorld(World):
    """A student's Mac, faked: what its programs say, and a torch whose MPS computes, is absent or allocates nothing."""

    def __init__(self, root: Path, torch: str, mps: str = "computes", python: str = PYTHON) -> None:
        super().__init__(root)
        self.torch = torch
        self.system("Darwin", "arm64")
        self.macos("99.0")
        self.sysctl()
        self.program("find", "exit 0")  # nobody of this name owns the console
        self.environment["PYTHON"] = str(self.program("arm-python", quick_venv("arm64")))
        target = samples.target(torch=torch, variant="mps", index=None, platforms=[MAC_PLATFORM])
        target = dataclasses.replace(target, python=python)
        self.render(target, self.wheel(mps), ALPHA, platform=MAC_PLATFORM)

    def wheel(self, mps: str) -> dict[str, bytes]:
        code = (
            "class version:\n    cuda = None\n"
            "class backends:\n    class mps:\n"
            f"        is_available = staticmethod(lambda: {mps != 'absent'})\n"
            "class ones:\n"
            "    def __init__(self, n, device):\n"
            f"        if device == 'mps' and {mps == 'allocates nothing'}:\n"
            "            raise RuntimeError('MPS backend out of memory')\n"
            "        self.n = n\n"
            "    def sum(self): return self\n"
            "    def item(self): return float(self.n)\n"
        )
        return samples.wheel("torch", self.torch, code=code)

    def macos(self, version: str) -> None:
        self.program("sw_vers", f'[ "$1" = -productVersion ] && echo {version}')

    def sysctl(self, *, apple: int = 1, virtual: int = 0) -> None:
        answers = f"hw.optional.arm64) echo {apple} ;; kern.hv_vmm_present) echo {virtual} ;;"
        self.program("sysctl", f'[ "$1" = -n ] || exit 1; case "$2" in {answers} *) exit 1 ;; esac')


def test_on_a_mac_it_makes_the_environment_and_computes_on_mps(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mac = MacWorld(tmp_path, TORCH)
    done = mac.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'. "{mac.place}/bin/activate"\n'
    assert f"torch {TORCH}, torch.backends.mps.is_available() = True" in done.stderr
    assert "GPU is not used" not in done.stderr and "macOS" not in done.stderr
    assert mac.python("import torch; print(torch.__version__)") == TORCH
    assert "already" in mac.run().stderr
    record_property("proves", "mps venv setup")


@pytest.mark.parametrize(
    ("apple", "words", "fix"),
    [
        (1, "runs under Rosetta", "arch -arm64 sh setup.sh"),
        (0, f"This is an Intel Mac: torch {matrix.intel_mac_last()} was the last", "Use an Apple silicon Mac"),
    ],
)
def test_rosetta_is_told_apart_from_an_intel_mac(tmp_path: Path, apple: int, words: str, fix: str) -> None:
    mac = MacWorld(tmp_path, TORCH)
    mac.system("Darwin", "x86_64")
    mac.sysctl(apple=apple)
    done = mac.run()
    assert done.returncode == 3
    why, what_to_do = done.stderr.splitlines()
    assert words in why and fix in what_to_do
    assert mac.is_clean()


def test_a_macos_below_what_the_wheel_needs_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    torch, floor = APART
    mac = MacWorld(tmp_path, torch)
    for version in (f"{matrix.numbers(floor.install)[0] - 1}.9.1", "9", "10.16"):
        mac.macos(version)
        done = mac.run()
        assert done.returncode == 3
        assert f"macOS {version} is older than {floor.install}, which the wheel" in done.stderr
        assert f"Update macOS to {floor.mps} or newer." in done.stderr
        assert mac.is_clean()


@pytest.mark.parametrize("version", ["{}.0", "{}", "{}.9.1"])
def test_a_macos_between_installing_and_mps_goes_on_with_a_warning(tmp_path: Path, version: str) -> None:
    torch, floor = APART
    mac = MacWorld(tmp_path, torch, "absent")
    version = version.format(matrix.numbers(floor.install)[0])
    mac.macos(version)
    done = mac.run()
    assert done.returncode == 0, done.stderr
    assert f"macOS {version} is older than {floor.mps}, which MPS needs in torch {torch}: torch will" in done.stderr
    assert f"update macOS to {floor.mps} or newer" in done.stderr
    assert done.stderr.splitlines()[-1] == f"macOS {version} is older than {floor.mps}, which MPS needs. Update macOS."
    assert "is_available() = False" in done.stderr
    assert done.stdout == f'. "{mac.place}/bin/activate"\n'
    mac.macos(floor.mps)
    assert "older" not in mac.run().stderr


def test_a_macos_that_cannot_be_asked_is_said_and_tried(tmp_path: Path) -> None:
    mac = MacWorld(tmp_path, TORCH)
    mac.program("sw_vers", "exit 1")
    done = mac.run()
    assert done.returncode == 0, done.stderr
    assert "could not be read (sw_vers)" in done.stderr


SSH = "192.0.2.1 50000 192.0.2.2 22"
ABSENT = {
    "virtual": ("allocates nothing", 1, "", "exit 0", "virtual machine (actions/runner-images#9918)"),
    "virtual without Metal": ("absent", 1, SSH, "exit 0", "virtual machine"),
    "over ssh": ("absent", 0, SSH, "exit 0", "over ssh, while you are not logged in at the Mac's screen"),
    "over ssh, at the screen as well": ("absent", 0, SSH, "echo /dev/console", "a reason that cannot be told"),
    "sandboxed": ("absent", 0, "", "exit 0", "a reason that cannot be told; a sandbox is one"),
}


@pytest.mark.parametrize(("mps", "virtual", "ssh", "find", "words"), ABSENT.values(), ids=ABSENT)
def test_an_environment_without_mps_is_made_all_the_same_and_says_why(
    tmp_path: Path, mps: str, virtual: int, ssh: str, find: str, words: str
) -> None:
    mac = MacWorld(tmp_path, TORCH, mps)
    mac.sysctl(virtual=virtual)
    mac.program("find", find)
    done = mac.run(SSH_CONNECTION=ssh)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'. "{mac.place}/bin/activate"\n'
    head, why = done.stderr.splitlines()[-2:]
    assert head == "The GPU is not used here:"
    assert words in why and why.count(".") >= 2, "the reason, and what to do"
    if mps == "allocates nothing":
        assert (
            "is_available() = True" in done.stderr and "MPS does not compute: MPS backend out of memory" in done.stderr
        )
    assert not (mac.place / "labrig-unfinished").exists()


def test_a_torch_of_another_version_is_refused_on_a_mac_too(tmp_path: Path) -> None:
    mac = MacWorld(tmp_path, TORCH)
    mac.torch = "0.1"
    wheel = mac.wheel("computes")
    content = next(iter(wheel.values()))
    target = samples.target(torch=TORCH, variant="mps", index=None, platforms=[MAC_PLATFORM])
    shutil.rmtree(mac.wheels)
    mac.render(target, {"torch-0.1-py3-none-any.whl": content}, ALPHA, platform=MAC_PLATFORM)
    done = mac.run()
    assert done.returncode == 6
    assert f"expected torch {TORCH} for CUDA None, found 0.1" in done.stderr
    assert mac.is_clean()


def test_an_intel_python_is_passed_over_and_named_if_there_is_no_other(tmp_path: Path) -> None:
    mac = MacWorld(tmp_path, TORCH, python=NOWHERE)
    mac.without_python()
    mac.program("python3", quick_venv("x86_64"))
    for named in ("", str(mac.programs / "python3")):
        done = mac.run(PYTHON=named)
        assert done.returncode == 3
        why, fix = done.stderr.splitlines()
        assert why.startswith("Made for Intel") and why.endswith("python3")
        assert f"Install a Python {NOWHERE} for Apple silicon" in fix
        assert mac.is_clean()
    mac.program("python", quick_venv("arm64"))
    assert mac.run().returncode == 0


def test_on_a_mac_uv_is_asked_for_a_native_python_by_name(tmp_path: Path) -> None:
    mac = MacWorld(tmp_path, TORCH, python=NOWHERE)
    mac.without_python()
    mac.program("python3", quick_venv("x86_64"))
    asked = mac.uv(brings=quick_venv("x86_64"))
    done = mac.run()
    assert done.returncode == 3 and "uv has no working Python" in done.stderr
    mac.uv(there=True, brings=quick_venv("arm64"))
    assert mac.run().returncode == 0
    requests = {line.split()[-1] for line in asked.read_text().splitlines()}
    assert requests == {f"cpython-{NOWHERE}-macos-aarch64-none"}


def test_only_scripts_for_a_mac_speak_of_one() -> None:
    for target in samples.SHIPPED.targets.values():
        text = (TEMPLATES.parent / "images" / target.name / "setup.sh").read_text()
        for word in ("sw_vers", "Rosetta", "hv_vmm_present", "arm64 "):
            assert (word in text) == (MAC_PLATFORM in target.platforms), (target.name, word)


@pytest.mark.parametrize("script", ["exit 127", 'case "$2" in *version_info*) exit 1 ;; esac'])
def test_a_named_python_that_does_not_do_is_not_replaced_by_another(world: World, script: str) -> None:
    world.program("python3", quick_venv())
    for named in (str(world.program("named", script)), str(world.root / "none")):
        done = world.run(PYTHON=named)
        assert done.returncode == 3
        assert f"tried: {named}" in done.stderr
    assert world.is_clean()


def test_requirements_that_are_not_beside_it(world: World) -> None:
    world.requirements.unlink()
    done = world.run()
    assert done.returncode == 4
    assert f"{world.requirements} is missing" in done.stderr


def test_a_folder_with_other_files_is_left_as_it_is(world: World) -> None:
    world.place.mkdir()
    (world.place / "thesis.txt").write_text("three years of work")
    (world.place / "bin").mkdir()
    before = world.content()
    done = world.run()
    assert done.returncode == 2
    assert "is no environment of labrig" in done.stderr and "sh setup.sh FOLDER" in done.stderr
    assert world.content() == before and (world.place / "bin").is_dir()

    world.place.joinpath("thesis.txt").unlink()
    shutil.rmtree(world.place)
    world.place.write_text("a file")
    assert world.run().returncode == 2
    assert world.place.read_text() == "a file"


@pytest.mark.parametrize("name", ["lab.ipynb", ".secret", "my notes"])
def test_a_students_file_inside_an_older_environment_is_not_lost(world: World, name: str) -> None:
    world.pretend_older()
    (world.place / name).write_text("homework")
    before = world.content()
    done = world.run()
    assert done.returncode == 2
    assert f"{world.place}/{name} is not the environment's" in done.stderr
    assert world.content() == before
    assert not world.old.exists()


def test_a_folder_that_cannot_be_made(world: World) -> None:
    world.place = world.root / "wheels" / next(iter(ALPHA)) / "lab"  # below a file
    done = world.run()
    assert done.returncode == 4
    assert "cannot be made" in done.stderr


# --- in the middle ------------------------------------------------------------------------------------------------


def test_ctrl_c_while_pip_fetches_leaves_nothing(world: World, stuck: IndexServer) -> None:
    code, out, _ = interrupt(world, stuck, signal.SIGINT)
    assert code == 130
    assert out == "" or "activate" not in out
    assert world.is_clean()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_it_is_updated_leaves_the_old_environment(
    world: World, stuck: IndexServer, sent: signal.Signals, code: int
) -> None:
    before = world.pretend_older()
    assert interrupt(world, stuck, sent)[0] == code
    assert world.content() == before
    assert not world.old.exists()


def test_a_failed_update_leaves_the_old_environment(world: World) -> None:
    before = world.pretend_older()
    (world.wheels / next(iter(torch_wheel()))).unlink()
    assert world.run().returncode == 4
    assert world.content() == before
    assert not world.old.exists()


def test_kill_9_and_the_next_run_continues(world: World, stuck: IndexServer) -> None:
    before = world.pretend_older()
    assert interrupt(world, stuck, signal.SIGKILL)[0] == -signal.SIGKILL
    assert (world.place / "labrig-unfinished").exists() and world.old.exists()
    # A run that fails puts the old one back, a run that succeeds replaces it.
    here = {VARIABLE: "none", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(world.wheels)}
    assert world.run(**here | {"PIP_FIND_LINKS": str(world.root)}).returncode == 4
    assert world.content() == before and not world.old.exists()
    assert interrupt(world, stuck, signal.SIGKILL)[0] == -signal.SIGKILL
    done = world.run(**here)
    assert done.returncode == 0, done.stderr
    assert world.python("import torch; print(torch.__version__)") == TORCH
    assert not world.old.exists() and not (world.place / "labrig-unfinished").exists()

    # Killed after the new one was proven: it stays, what is left of the old one goes.
    world.old.mkdir()
    assert "already" in world.run().stderr
    assert not world.old.exists()
