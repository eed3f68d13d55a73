"""The agent, run here as it runs on a host, and what is read of its document. The hosts are in tests/fleet."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.fleet import facts, keys
from labrig.fleet.facts import Facts, Package, Unreadable

AGENT = Path(facts.__file__).with_name("agent.py")
BIG = (4 << 20) + 1
NAME = "cpu-0123456789ab"


def interpreters() -> Iterator[str]:
    """This Python, and others of this machine that run: hosts have older and newer ones."""
    yield sys.executable
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for minor in range(8, 16):
        found = sorted(versions.glob(f"3.{minor}.*/bin/python3"))
        for candidate in (*map(str, found[-1:]), f"python3.{minor}"):
            try:
                ask = [candidate, "-I", "-S", "-c", "import sys; print(sys.version_info[1])"]
                said = subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.strip()
            except OSError:
                continue
            if said == str(minor) != str(sys.version_info[1]):
                yield candidate
                break


def run(
    folder: Path, python: str = sys.executable, path: str = "", limit: float = 120, **request: Any
) -> subprocess.CompletedProcess[bytes]:
    """As ssh.py does it: the agent's length and source, and the request behind them."""
    source = AGENT.read_bytes()
    begin = 'import sys; b = sys.stdin.buffer; exec(compile(b.read(int(b.readline())), "agent", "exec"))'
    stdin = b"%d\n%b%b" % (len(source), source, json.dumps({"folder": str(folder), **request}).encode())
    variables = {**os.environ, "PATH": f"{path}:/usr/bin:/bin"}  # a machine's own may hold slow shims
    command = [python, "-I", "-S", "-c", begin]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=limit, env=variables)


def look(folder: Path, python: str = sys.executable, **request: Any) -> Facts:
    done = run(folder, python, **request)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert done.stdout.count(b"\n") == 1
    return facts.parse(done.stdout)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as an apply leaves it."""
    root = tmp_path / "labrig"
    site = root / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    files = {
        "torch/__init__.py": b"import nothing\n",
        "torch/lib/libbig.so": b"\x7f" * BIG,
        "Torch_Like-2.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: Torch.Like\nVersion: 2.0+cpu\n",
        "Torch_Like-2.0.dist-info/INSTALLER": b"uv",
        "../../../bin/torchrun": b"#!/a/path/of/this/host\n",
        "../../../share/man/torch.1": b"manual\n",
        "torch/__pycache__/__init__.cpython-311.pyc": b"made here",
    }
    for path, content in files.items():
        write(site / path, content)
    listed = "".join(f"{path},sha256={base64.urlsafe_b64encode(b'x').decode()},1\n" for path in files)
    write(site / "Torch_Like-2.0.dist-info/RECORD", f"{listed}Torch_Like-2.0.dist-info/RECORD,,\n".encode())
    write(root / "labs" / "01_tensors.py", b"print(1)\n")
    write(root / "labs" / "data" / "digits.npz", b"npz")
    write(root / "labs" / "__pycache__" / "x.pyc", b"pyc")
    write(root / "wheels" / "a-1-py3-none-any.whl", b"12345")
    write(root / "wheels" / ".b.whl.part", b"12")
    write(root / "start", b"#!/bin/sh\n")
    (root / "start").chmod(0o755)
    write(root / "applied.json", b'{"schema": "labrig-applied/1", "target": "cpu"}')
    return root


def expected(folder: Path) -> Package:
    site = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    kept = (
        "torch/__init__.py", "torch/lib/libbig.so", "Torch_Like-2.0.dist-info/METADATA", "../../../share/man/torch.1",
    )  # fmt: skip
    there = {path: site / path for path in kept}
    return Package(
        "2.0+cpu",
        facts.tree({p: hashlib.sha256(f.read_bytes()).hexdigest() if f.exists() else "" for p, f in there.items()}),
    )


@pytest.mark.parametrize("python", list(interpreters()))
def test_what_an_apply_left_is_seen(folder: Path, python: str) -> None:
    seen = look(folder, python, environments=[NAME, "cuda-000000000000"])
    assert seen.environments == {NAME: {"torch-like": expected(folder)}}
    assert seen.labs == {
        "01_tensors.py": hashlib.sha256(b"print(1)\n").hexdigest(),
        "data/digits.npz": hashlib.sha256(b"npz").hexdigest(),
    }
    assert seen.wheels == {"a-1-py3-none-any.whl": 5}
    assert seen.start == hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert seen.applied == {"schema": "labrig-applied/1", "target": "cpu"} and not seen.unfinished
    assert seen.folder == "ours" and 0 < seen.free < seen.total
    assert seen.host.os in ("linux", "macos") and seen.host.arch and seen.host.docker is None and seen.host.docker_error
    assert seen.torch == {} and seen.images == {}
    assert all(minor.startswith("3.") for minor in seen.pythons)


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda site: write(site / "torch" / "__init__.py", b"import something\n"),
    "removed": lambda site: (site / "torch" / "__init__.py").unlink(),
    "unreadable": lambda site: ((site / "torch/__init__.py").unlink(), (site / "torch/__init__.py").mkdir()),
    "manual": lambda site: (site / "../../../share/man/torch.1").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_drift_is_seen(folder: Path, change: str) -> None:
    site = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    before = look(folder, environments=[NAME]).environments[NAME]["torch-like"]
    CHANGES[change](site)
    after = look(folder, environments=[NAME]).environments[NAME]["torch-like"]
    assert after.digest != before.digest
    if change != "unreadable":
        assert after == expected(folder)


def test_what_an_installer_writes_is_no_drift(folder: Path) -> None:
    site = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    before = look(folder, environments=[NAME]).environments
    (site / "../../../bin/torchrun").unlink()
    write(site / "torch/__pycache__/__init__.cpython-311.pyc", b"made again")
    write(site / "Torch_Like-2.0.dist-info/INSTALLER", b"pip")
    assert look(folder, environments=[NAME]).environments == before


def test_what_no_package_has_is_named(folder: Path) -> None:
    site = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    assert look(folder, environments=[NAME]).strays == {NAME: ()}
    write(site / "random.py", b"shadows = True\n")
    write(site / "evil.pth", b"import os\n")
    write(site / "torch" / "extra.py", b"")
    (site / "linked").symlink_to("/etc")
    write(site / "__pycache__" / "random.cpython-311.pyc", b"made from it")
    above = "lib/python3.11/site-packages"
    named = {f"{above}/{one}" for one in ("random.py", "evil.pth", "torch/extra.py", "linked")}
    assert set(look(folder, environments=[NAME]).strays[NAME]) == named


def test_a_big_file_is_hashed_once_and_again_when_it_changed(folder: Path) -> None:
    big = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages" / "torch" / "lib" / "libbig.so"
    good = look(folder, environments=[NAME]).environments
    memory = folder / ".hashed.json"
    known = json.loads(memory.read_text())
    (path,) = known
    assert known[path][-1] == hashlib.sha256(big.read_bytes()).hexdigest()

    # It is the memory that is asked, unless every byte is.
    memory.write_text(json.dumps({path: [*known[path][:-1], "0" * 64]}))
    assert look(folder, environments=[NAME]).environments != good
    assert look(folder, environments=[NAME], deep=True).environments == good

    # As long, with the old time: the inode's own time tells.
    about = big.stat()
    with big.open("r+b") as file:
        file.write(b"\x00")
    os.utime(big, ns=(about.st_atime_ns, about.st_mtime_ns))
    changed = look(folder, environments=[NAME]).environments
    assert changed == {NAME: {"torch-like": expected(folder)}} and changed != good
    for damage in ("", "[1", "[]", '{"a": 1}', json.dumps({path: "x"}), json.dumps({path: []})):
        memory.write_text(damage)
        assert look(folder, environments=[NAME]).environments == changed


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    seen = look(tmp_path / "a" / "b", environments=[NAME], images=["labrig/cpu:1"], torch=True)
    assert seen.folder == "absent" and not seen.environments and not seen.labs and not seen.applied and not seen.torch
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file").folder == ""


def test_an_apply_that_has_not_ended(folder: Path) -> None:
    write(folder / "applying.json", b"{}")
    write(folder / "applied.json", b"{half")
    (folder / "start").chmod(0o644)
    seen = look(folder)
    assert seen.unfinished and seen.applied == {} and seen.start == ""


def test_a_link_in_the_labs_is_not_the_lab(folder: Path) -> None:
    lab = folder / "labs" / "01_tensors.py"
    lab.rename(folder / "elsewhere.py")
    lab.symlink_to(folder / "elsewhere.py")
    assert look(folder).labs["01_tensors.py"] == "link"


def test_a_link_to_a_folder_in_the_labs_is_seen(folder: Path) -> None:
    (folder / "labs" / "more").symlink_to(folder / "wheels")
    assert look(folder).labs["more"] == "link"


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: bind(path),
    "folder": lambda path: path.mkdir(),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's path has to be short
        try:
            bound.bind(path.name)
        finally:
            os.chdir(before)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_file_is_not_waited_for(folder: Path, kind: str) -> None:
    site = folder / "envs" / NAME / "lib" / "python3.11" / "site-packages"
    info = site / "Torch_Like-2.0.dist-info"
    before = look(folder, environments=[NAME])
    odd = [folder / "labs" / "01_tensors.py", folder / "start", folder / "applied.json", folder / ".hashed.json"]
    odd += [site / "torch" / "__init__.py", info / "METADATA", folder / "envs" / NAME / "pyvenv.cfg"]
    for path in odd:
        path.unlink(missing_ok=True)
        ODD_FILES[kind](path)
        if not path.is_symlink():
            path.chmod(0o755)
    seen = look(folder, environments=[NAME], limit=20)
    digest = "link" if kind.startswith("link") else "odd"
    assert seen.labs.get("01_tensors.py") == (None if kind == "folder" else digest)
    assert seen.applied == {} and seen.start == ("" if kind.startswith("link") else digest)
    assert seen.environments[NAME] != before.environments[NAME] and seen.scaffolds != before.scaffolds
    (info / "RECORD").unlink()
    ODD_FILES[kind](info / "RECORD")
    assert look(folder, environments=[NAME], limit=20).environments[NAME]["torch-like"].digest == facts.tree({})


def test_it_ends_itself_and_what_it_started(folder: Path, tmp_path: Path) -> None:
    python = folder / "envs" / NAME / "bin" / "python"
    write(python, f"#!/bin/sh\necho $$ >{tmp_path}/begun\nsleep 100 & wait\n".encode())
    python.chmod(0o755)
    begun = time.monotonic()
    done = run(folder, environments=[NAME], torch=True, seconds=2)
    assert done.returncode == 1 and not done.stdout and time.monotonic() - begun < 15
    group = (tmp_path / "begun").read_text().strip()
    shown = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, timeout=20, check=True)
    left = [line.split() for line in shown.stdout.splitlines()]
    assert left and not [stat for pgid, stat in left if pgid == group and not stat.startswith("Z")]


SCAFFOLDS: dict[str, Callable[[Path], object]] = {
    "script": lambda venv: write(venv / "bin" / "torchrun", b"#!/another\n"),
    "more": lambda venv: write(venv / "bin" / "pip", b"#!/another\n"),
    "less": lambda venv: (venv / "bin" / "torchrun").unlink(),
    "link": lambda venv: ((venv / "bin/python").unlink(), (venv / "bin/python").symlink_to("/usr/bin/other")),
    "file for a link": lambda venv: ((venv / "bin/python").unlink(), write(venv / "bin/python", b"#!/bin/sh\n")),
    "configuration": lambda venv: write(venv / "pyvenv.cfg", b"include-system-site-packages = true\n"),
    "no configuration": lambda venv: (venv / "pyvenv.cfg").unlink(),
}


@pytest.mark.parametrize("change", SCAFFOLDS)
def test_what_makes_an_environment_run_is_seen(folder: Path, change: str) -> None:
    venv = folder / "envs" / NAME
    script, configuration = write(venv / "bin" / "torchrun", b"#!/a/path\n"), write(venv / "pyvenv.cfg", b"home = /\n")
    (venv / "bin" / "python").symlink_to("/usr/bin/python3")
    leads = hashlib.sha256(b"/usr/bin/python3").hexdigest()
    whole = {"bin/torchrun": script, "bin/python": f"link:{leads}", "pyvenv.cfg": configuration}
    assert look(folder, environments=[NAME]).scaffolds == {NAME: facts.tree(whole)}
    write(venv / "bin" / "__pycache__" / "x.pyc", b"made here")
    assert look(folder, environments=[NAME]).scaffolds == {NAME: facts.tree(whole)}
    SCAFFOLDS[change](venv)
    assert look(folder, environments=[NAME]).scaffolds != {NAME: facts.tree(whole)}


def test_what_others_may_change_or_students_not_enter_is_named(folder: Path) -> None:
    venv = f"envs/{NAME}"
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "labs" / "linked").symlink_to("/")  # not looked at
    (folder / "labs" / "__pycache__" / "x.pyc").chmod(0o666)
    (folder / "wheels").chmod(0o777)
    assert look(folder, environments=[NAME]).loose == ()
    wrong = {
        ".": 0o750, "start": 0o754, "applied.json": 0o664, "labs": 0o700, "labs/data": 0o757, "envs": 0o711,
        "labs/01_tensors.py": 0o666, venv: 0o700, f"{venv}/lib/python3.11/site-packages/torch/__init__.py": 0o620,
    }  # fmt: skip
    for path, mode in wrong.items():
        (folder / path).chmod(mode)
    assert set(look(folder, environments=[NAME]).loose) == set(wrong)
    for number in range(30):
        write(folder / "labs" / f"{number}.py", b"")
        (folder / "labs" / f"{number}.py").chmod(0o666)
    assert len(look(folder, environments=[NAME]).loose) == 20


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_files_of_another_user_are_named(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    os.chown(folder / "labs" / "data", 65534, 65534)
    os.chown(folder / "start", 65534, 65534)
    assert look(folder, environments=[NAME]).loose == ("start", "labs/data")


def test_torch_is_asked_in_its_environment(folder: Path) -> None:
    python = folder / "envs" / NAME / "bin" / "python"
    write(python, b"#!/bin/sh\necho it is broken >&2\nexit 1\n")
    python.chmod(0o755)
    assert look(folder, environments=[NAME], torch=True).torch[NAME].error == "it is broken"
    python.unlink()
    assert "cannot be started" in look(folder, environments=[NAME], torch=True).torch[NAME].error


@pytest.mark.skipif(sys.platform != "linux", reason="Macs have no nvidia-smi")
@pytest.mark.parametrize("old", [True, False], ids=["R470", "newer"])
def test_gpus_of_old_and_new_drivers(tmp_path: Path, old: bool) -> None:
    refuse = "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\n"
    row = "NVIDIA T4, 15360, 470.57.02" if old else "NVIDIA T4, 7.5, 15360, 550.54.14"
    write(tmp_path / "nvidia-smi", f"#!/bin/sh\n{refuse if old else ''}echo '{row}'\n".encode())
    (tmp_path / "nvidia-smi").chmod(0o755)
    host = look(tmp_path, path=str(tmp_path)).host
    (gpu,) = host.gpus
    assert (gpu.name, gpu.capability, gpu.memory_mib) == ("NVIDIA T4", None if old else "7.5", 15360)
    assert host.driver


DOCUMENT: dict[str, Any] = {
    "schema": facts.SCHEMA, "host": {"os": "linux", "arch": "x86_64", "gpus": [{"name": "T4", "capability": "7.5"}]},
    "time": 1.5, "machine_id": "m", "user": "u", "sudo": True, "system": "debian", "release": "12",
    "pythons": {"3.11": True}, "free": 1, "total": 2, "folder": "ours", "docker_free": None, "images": {"a": "b"},
    "labs": {"x": "y"}, "environments": {"e": {"p": {"version": "1", "digest": "d"}}}, "strays": {}, "wheels": {"w": 1},
    "start": "", "scaffolds": {"e": "f"}, "loose": ["."], "layers": ["sha256:1"],
    "applied": {"target": "cpu"}, "unfinished": False,
    "torch": {"e": {"version": "2", "cuda": None, "device": "cpu", "name": "", "error": ""}},
}  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*way, key)
            yield from places(value[key], (*way, key))


def test_the_document_is_read() -> None:
    seen = facts.parse(json.dumps(DOCUMENT).encode())
    assert seen.host.gpus[0].capability == "7.5" and seen.environments["e"]["p"] == Package("1", "d")


@given(st.sampled_from(list(places(DOCUMENT))), ODD)
def test_any_value_at_any_place_is_read_or_refused(way: tuple[Any, ...], odd: Any) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    inner = document
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = odd
    read_or_refused(json.dumps(document).encode())


@given(st.binary(max_size=300) | ODD.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(printed: bytes) -> None:
    with pytest.raises(Unreadable):
        facts.parse(printed)


@pytest.mark.parametrize("printed", [b"", b" \n", b"[" * 100_000, b"1" * 10_000, b"\x00" * (facts.MOST + 1)])
def test_long_and_deep_ones_are_refused(printed: bytes) -> None:
    with pytest.raises(Unreadable) as refused:
        facts.parse(printed)
    assert len(str(refused.value)) < 400 and str(refused.value).isprintable()


def read_or_refused(printed: bytes) -> None:
    try:
        seen = facts.parse(printed)
    except Unreadable as refused:
        assert str(refused).isprintable()
        return
    numbers = (seen.free, seen.total, seen.docker_free or 0, *seen.wheels.values(), *places_of_numbers(seen.applied))
    assert all(abs(number) < 1 << 63 for number in numbers)
    texts = (seen.user, seen.host.os_version, seen.host.docker_error, *seen.labs, *seen.images.values(), *seen.layers)
    assert all(text.isprintable() and text.encode() is not None for text in texts)
    assert 0 <= seen.time < 1 << 40


def places_of_numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from places_of_numbers(one)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("number", [10**400, 1 << 63, -(1 << 63), float("nan"), float("inf")])
@pytest.mark.parametrize(
    "way",
    [
        ("free",),
        ("total",),
        ("docker_free",),
        ("wheels", "w"),
        ("applied", "target"),
        ("host", "gpus", 0, "memory_mib"),
    ],
)
def test_numbers_that_nothing_can_reckon_with_are_refused(way: tuple[Any, ...], number: float) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    inner = document
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = number
    with pytest.raises(Unreadable):
        facts.parse(json.dumps(document).encode())


def test_clones_are_told_by_their_machine_id() -> None:
    def machine(name: str) -> Facts:
        return facts.parse(json.dumps({**DOCUMENT, "machine_id": name}).encode())

    found = keys.clones({"a": machine("1"), "b": machine("2"), "c": machine("1"), "d": machine(""), "e": machine("")})
    assert found == {"a": ("c",), "c": ("a",)}


def test_without_the_extra_it_is_named() -> None:
    """In a process of its own, as gevent is for good."""
    program = (
        "import sys; sys.modules['gevent'] = None\n"
        "from labrig import inventory\n"
        "from labrig.fleet import ssh\n"
        "from labrig.errors import HostError\n"
        "room = inventory.local()\n"
        "try: ssh.ask(room, room.hosts, lambda entry: {}, budget=1)\n"
        "except HostError as error: print(error.fix)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "make fleet\n", done.stderr
