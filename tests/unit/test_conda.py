"""Conda's pins, exact locks, and the programs that make environments: which is taken, and what each one is told."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rattler import MatchSpec

from labrig import conda, condatool, environment, home, lock, matrix, native, spec
from labrig.conda import CondaLock, Package, Pin
from labrig.engines import conda as engine
from labrig.errors import BuildError, HostError, LockError, UsageError
from labrig.host import Host
from labrig.spec import Target

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
TABLE = spec.read(IMAGES / spec.TABLE)
TARGETS = [target for target in TABLE.targets.values() if target.conda]
CPU = TABLE.pick("cpu")
PLATFORM = "linux_x86_64"
LINUX = Host(os="linux", arch="x86_64")


def committed(target: Target) -> dict[str, Any]:
    text = (IMAGES / target.name / "environment.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def pins(target: Target) -> tuple[Pin, ...]:
    return conda.pins(target, conda.versions(target, target.platforms[0], IMAGES))


# --- environment.yml --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_environment_yml_is_exact_for_condas_own_parser(target: Target) -> None:
    document = committed(target)
    assert document["name"] == f"labrig-{target.name}"
    assert target.conda
    assert document["channels"] == [target.conda.channel, "nodefaults"]
    specs = {
        match.name.normalized: match for match in (MatchSpec(text) for text in document["dependencies"]) if match.name
    }
    assert len(specs) == len(document["dependencies"])
    for name, match in specs.items():
        assert str(match.version).lstrip("=").count("*") == 0, f"{name} {match.version} is no exact version"
    assert str(specs["python"].version) == f"=={target.conda.python}"
    assert target.conda.python.startswith(f"{target.python}.")
    assert str(specs["pytorch"].version) == f"=={target.torch}"
    for platform in target.platforms:
        build = matrix.conda_build(target.torch, target.variant, platform)
        assert build
        assert str(specs["pytorch"].build) == build.build
    assert ("cuda-version" in specs) == bool(target.cuda)
    locked = lock.load(target, lock.locked_platforms(target, IMAGES)[0], IMAGES)
    assert not set(conda.OF_IMAGES) & set(specs)
    for package in set(target.packages) - set(conda.OF_IMAGES):
        wheel = locked.wheel(package)
        assert wheel
        assert str(specs[conda.NAMES.get(package, package)].version) == f"=={wheel.version}"


def test_a_platform_that_cannot_be_locked_has_the_other_ones_versions() -> None:
    (declared,) = CPU.unlocked
    found = conda.versions(CPU, declared, IMAGES)
    assert found.platform == declared
    assert found.wheels == lock.load(CPU, PLATFORM, IMAGES).wheels


def test_a_package_that_the_lock_lacks_is_named() -> None:
    locked = lock.load(CPU, PLATFORM, IMAGES)
    empty = dataclasses.replace(locked, wheels=())
    with pytest.raises(LockError, match="has no numpy"):
        conda.pins(CPU, empty)


def test_a_target_without_conda_is_a_usage_error() -> None:
    other = dataclasses.replace(CPU, conda=None, engines=("venv",))
    with pytest.raises(UsageError, match="not made by the engine conda"):
        conda.channel(other)


def test_virtual_packages_describe_the_lowest_machine() -> None:
    assert conda.virtual_packages(CPU, PLATFORM) == {
        "CONDA_OVERRIDE_GLIBC": CPU.glibc, "CONDA_OVERRIDE_ARCHSPEC": "x86_64"
    }  # fmt: skip
    cuda, mps = TABLE.pick("cuda"), TABLE.pick("mps")
    assert conda.virtual_packages(cuda, PLATFORM)["CONDA_OVERRIDE_CUDA"] == cuda.cuda
    assert conda.virtual_packages(mps, "macos_arm64") == {"CONDA_OVERRIDE_OSX": mps.macos}


@pytest.mark.parametrize("value", ["conda-forge", "ftp://x", "https://x y", "https://me:sec@ret@", "https:///x"])
def test_an_override_that_is_no_address_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(conda.OVERRIDE, value)
    with pytest.raises(UsageError, match=conda.OVERRIDE) as caught:
        conda.channel(CPU)
    assert value not in str(caught.value), "it may hold a password"


def test_an_override_is_channel_and_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CPU.conda
    assert (conda.channel(CPU), conda.address(CPU)) == (CPU.conda.channel, CPU.conda.address)
    monkeypatch.setenv(conda.OVERRIDE, "https://mirror.example/conda-forge/")
    assert conda.channel(CPU) == conda.address(CPU) == "https://mirror.example/conda-forge"


# --- exact locks ------------------------------------------------------------------------------------------------------

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12)
HEX = "0123456789abcdef"


@st.composite
def packages(draw: st.DrawFn) -> Package:
    name = draw(st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,12}", fullmatch=True))
    version = draw(st.from_regex(r"([0-9]!)?[0-9]+(\.[0-9a-z]+){0,3}(\+[a-z0-9]+)?", fullmatch=True))
    build = draw(WORD)
    return Package(
        name, version, build, draw(st.sampled_from(["linux-64", "noarch"])),
        f"{name}-{version}-{build}{draw(st.sampled_from(['.conda', '.tar.bz2']))}",
        draw(st.text(HEX, min_size=64, max_size=64)), draw(st.text(HEX, min_size=32, max_size=32)),
        draw(st.integers(1, 10**10)),
    )  # fmt: skip


@given(st.lists(packages(), min_size=1, max_size=4))
def test_a_lock_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, found: list[Package]) -> None:
    images = tmp_path_factory.mktemp("images")
    written = CondaLock("cpu", PLATFORM, "f" * 64, tuple(found))
    file = conda.write(written, images)
    assert file == images / "cpu" / "linux_x86_64.conda.lock"
    assert conda.read(file) == written


GOOD = Package("numpy", "2.0.1", "py0_1", "linux-64", "numpy-2.0.1-py0_1.conda", "a" * 64, "b" * 32, 9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"file": "../../etc/passwd"}, "names the file"),
        ({"file": "numpy-2.0.1-py0_2.conda"}, "names the file"),
        ({"file": "numpy-2.0.1-py0_1.exe"}, "names the file"),
        ({"name": "scipy"}, "names the file"),
        ({"subdir": "../x"}, "subdir"),
        ({"subdir": "osx-arm64"}, "subdir"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"md5": "b" * 31}, "md5"),
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"build": 3}, "no text"),
    ],
)
def test_a_lock_that_says_what_cannot_be_is_damaged(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = conda.write(CondaLock("cpu", PLATFORM, "f" * 64, (GOOD,)), tmp_path)
    text = file.read_text()
    for key, value in change.items():
        old = getattr(GOOD, key)
        text = text.replace(f"\n{key} = {json.dumps(old)}\n", f"\n{key} = {json.dumps(value)}\n")
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(LockError, match="damaged") as caught:
        conda.read(file)
    assert says in caught.value.found


@pytest.mark.parametrize("text", ["", "format = 1", "<<<<<<< HEAD", "format = 9", "a = " + "[" * 5000])
def test_what_is_no_lock_is_damaged(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cpu" / "linux_x86_64.conda.lock"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(LockError, match="damaged"):
        conda.read(file)


def covering() -> tuple[Package, ...]:
    """A package for every pin of the target."""
    found = [(pin.name, pin.version, pin.build.replace("*", "0") or "h0") for pin in pins(CPU)]
    return tuple(Package(*one, "linux-64", f"{'-'.join(one)}.conda", "a" * 64, "b" * 32, 9) for one in found)


@pytest.mark.parametrize("wrong", ["missing", "twice", "another version", "another build", "none at all"])
def test_a_lock_that_does_not_cover_the_pins_is_damaged(tmp_path: Path, wrong: str) -> None:
    locked = lock.load(CPU, PLATFORM, IMAGES)
    good = covering()
    torch = next(one for one in good if one.name == "pytorch")
    other = torch.file.replace(torch.version, "9.9")
    packages = {
        "missing": tuple(one for one in good if one is not torch),
        "twice": (*good, torch),
        "another version": tuple(
            dataclasses.replace(one, version="9.9", file=other) if one is torch else one for one in good
        ),
        "another build": tuple(
            dataclasses.replace(one, build="rocm_0", file=one.file.replace(one.build, "rocm_0"))
            if one is torch
            else one
            for one in good
        ),
        "none at all": (),
    }[wrong]
    file = conda.write(CondaLock("cpu", PLATFORM, conda.inputs_digest(CPU, locked), packages), tmp_path)
    if not packages:
        file.write_text(file.read_text() + "package = []\n")
    with pytest.raises(LockError, match="damaged") as caught:
        conda.load(CPU, locked, tmp_path)
    assert caught.value.code == 4


def test_a_lock_of_older_pins_is_stale(tmp_path: Path) -> None:
    locked = lock.load(CPU, PLATFORM, IMAGES)
    assert conda.load(CPU, locked, tmp_path) is None
    current = CondaLock("cpu", PLATFORM, conda.inputs_digest(CPU, locked), covering())
    conda.write(current, tmp_path)
    assert conda.load(CPU, locked, tmp_path) == current
    newer = dataclasses.replace(
        locked,
        wheels=tuple(dataclasses.replace(w, version="99") if w.name == "numpy" else w for w in locked.wheels),
    )
    with pytest.raises(LockError, match="stale") as caught:
        conda.load(CPU, newer, tmp_path)
    assert "invoke lock --engine=conda --target=cpu" in caught.value.fix


def test_the_explicit_form_is_condas() -> None:
    locked = CondaLock("cpu", PLATFORM, "f" * 64, (GOOD,))
    url = "https://x.example/conda-forge/linux-64/numpy-2.0.1-py0_1.conda"
    assert conda.explicit(locked, "https://x.example/conda-forge", "md5") == f"@EXPLICIT\n{url}#{'b' * 32}\n"
    assert conda.explicit(locked, "https://x.example/conda-forge", "sha256") == f"@EXPLICIT\n{url}#{'a' * 64}\n"


# --- the programs -----------------------------------------------------------------------------------------------------

# Words that `--version` prints: mamba 2.3, conda 24.9, pixi 0.41, mamba 1.5 (which names conda, too).
SAYS = {"micromamba": "2.3.0", "mamba": "2.3.0", "conda": "conda 24.9.2", "pixi": "pixi 0.41.4"}
MAMBA_1 = "mamba 1.5.8\nconda 23.11.0"

PROGRAM = """#!{python}
import json, os, pathlib, shutil, sys
if "--version" in sys.argv:
    print({says!r})
    sys.exit()
words = sys.argv[1:]
files = {{w: pathlib.Path(w).read_text() for w in words if os.path.isfile(w)}}
kept = {{k: v for k, v in os.environ.items() if k.startswith(("CONDA_", "MAMBA_", "PYTHONPATH"))}}
print("a line of the program")
with open({log!r}, "a") as log:
    log.write(json.dumps([words, files, kept]) + "\\n")
{then}
"""
MAKE = """
place = words[words.index("--prefix") + 1] if "--prefix" in words else None
place = place or os.path.dirname(words[words.index("--manifest-path") + 1]) + "/.pixi/envs/default"
os.makedirs(place + "/bin")
os.symlink(sys.executable, place + "/bin/python")
"""


class Programs:
    """A PATH on which only the named programs are, and what they were called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log = folder / "bin", folder / "log"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", str(self.folder))

    def put(self, name: str, says: str = "", then: str = MAKE) -> Path:
        file = self.folder / name
        text = PROGRAM.format(python=sys.executable, says=says or SAYS[name], log=str(self.log), then=then)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def calls(self) -> list[tuple[list[str], dict[str, str], dict[str, str]]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("CONDA_", "MAMBA_"))]:
        monkeypatch.delenv(name)
    return Programs(tmp_path, monkeypatch)


def test_without_a_program_it_is_exit_3_with_the_line_that_installs_one(programs: Programs) -> None:
    with pytest.raises(HostError, match="no program here makes conda environments") as caught:
        condatool.find()
    assert caught.value.code == 3
    assert "no micromamba, mamba, conda or pixi on PATH" in caught.value.found
    assert caught.value.fix.startswith('install micromamba: "${SHELL}" <(curl -L micro.mamba.pm/install.sh)')
    assert condatool.lacking() == caught.value.found


@pytest.mark.parametrize("names", [list(SAYS)[i:] for i in range(len(SAYS))], ids=lambda names: names[0])
def test_the_first_program_in_order_is_taken(programs: Programs, names: list[str]) -> None:
    for name in reversed(names):
        programs.put(name)
    tool = condatool.find()
    assert (tool.name, tool.path) == (names[0], programs.folder / names[0])
    assert tool.version == SAYS[names[0]].split()[-1]
    assert tool.is_mamba == (names[0] in ("micromamba", "mamba"))


@pytest.mark.parametrize(
    ("variable", "name"), [("MAMBA_EXE", "micromamba"), ("MAMBA_EXE", "mamba"), ("CONDA_EXE", "conda")]
)
def test_a_program_that_only_an_initialised_shell_knows_is_found(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, name: str
) -> None:
    place = programs.put(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(variable, str(place))
    assert condatool.find().path == place
    monkeypatch.setenv(variable, str(place.with_name("gone")))
    assert condatool.lacking()


def test_a_program_that_does_not_answer_or_is_too_old_is_passed_over_and_said(programs: Programs) -> None:
    programs.put("micromamba", "1.5.8")
    (programs.folder / "mamba").write_text("#!/bin/sh\nexit 127\n")
    (programs.folder / "mamba").chmod(0o755)
    with pytest.raises(HostError) as caught:
        condatool.find()
    assert "1.5.8, older than 2.0.6" in caught.value.found
    assert "mamba does not say its version" in caught.value.found
    programs.put("conda")
    assert condatool.find().name == "conda"


def built(offline: bool = False, target: Target = CPU) -> Path:
    locked = conda.versions(target, target.platforms[0], IMAGES)
    made = engine.build(target, locked, home.wheels, root=ROOT, offline=offline)
    assert made.engine == "conda"
    return Path(made.reference)


@pytest.mark.parametrize(
    ("name", "says", "words"),
    [
        ("micromamba", "2.3.0", ["create", "--yes", "--prefix", "P", "--file", "F"]),
        ("mamba", "2.3.0", ["create", "--yes", "--prefix", "P", "--file", "F"]),
        ("mamba", MAMBA_1, ["env", "create", "--prefix", "P", "--file", "F"]),
        ("conda", "conda 24.9.2", ["env", "create", "--prefix", "P", "--file", "F"]),
    ],
)
def test_an_environment_is_made_of_environment_yml(
    programs: Programs, name: str, says: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    programs.put(name, says)
    place = built()
    said, files, _ = programs.calls()[0]
    assert [word for word in said if word not in (str(place), *files)] == [w for w in words if w not in ("P", "F")]
    assert said[said.index("--prefix") + 1] == str(place)
    (text,) = files.values()
    assert yaml.safe_load(text) == committed(CPU)
    note = json.loads((place / native.MARK).read_text())
    assert note["tool"] == f"{name} {says.splitlines()[0].split()[-1]}"
    out, err = capfd.readouterr()
    assert out == ""
    assert "a line of the program" in err
    assert f"{name} completes the pins" in err
    assert built() == place
    assert len(programs.calls()) == 1, "what is there is not made again"
    (programs.folder / name).unlink()
    assert built() == place, "and needs no program"


def test_pixi_makes_it_of_a_workspace(programs: Programs) -> None:
    programs.put("pixi")
    for target in (CPU, TABLE.pick("cuda"), TABLE.pick("mps")):
        prefix = built(target=target)
        said, files, _ = programs.calls()[-1]
        workspace = prefix.parents[2]
        assert said == ["install", "--manifest-path", str(workspace / "pixi.toml")]
        assert prefix == workspace / ".pixi" / "envs" / "default"
        manifest = tomllib.loads(files[said[-1]])
        assert Path(said[-1]).stat().st_mode & 0o077 == 0, "a mirror's address may hold a password"
        assert target.conda
        assert manifest["workspace"]["channels"] == [target.conda.channel]
        assert manifest["workspace"]["platforms"] == [matrix.SUBDIRS[target.platforms[0]]]
        assert manifest.get("system-requirements", {}) == ({"cuda": target.cuda} if target.cuda else {})
        asked = {
            name: one if isinstance(one, dict) else {"version": one} for name, one in manifest["dependencies"].items()
        }
        assert asked == {
            pin.name: {"version": f"=={pin.version}"} | ({"build": pin.build} if pin.build else {})
            for pin in pins(target)
        }
        assert built(target=target) == prefix


def test_what_pixi_cannot_do_is_said(programs: Programs) -> None:
    programs.put("pixi")
    with pytest.raises(HostError, match="pixi cannot be kept from the network"):
        built(offline=True)
    assert not any(home.environments().rglob("bin"))


@pytest.mark.parametrize(
    ("name", "says", "digest"),
    [("micromamba", "2.3.0", "md5"), ("conda", "conda 24.9.2", "sha256"), ("conda", "conda 24.5.0", "md5")],
)
def test_an_exact_lock_is_handed_over_with_the_digest_the_program_checks(
    programs: Programs, tmp_path: Path, name: str, says: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock.load(CPU, PLATFORM, IMAGES)
    exact = CondaLock("cpu", PLATFORM, conda.inputs_digest(CPU, locked), (GOOD,))
    monkeypatch.setattr(conda, "load", lambda *_: exact)
    programs.put(name, says)
    place = built(offline=True)
    said, files, _ = programs.calls()[0]
    assert said[:2] == ["create", "--yes"]
    assert said[-1] == "--offline"
    assert list(files.values()) == [conda.explicit(exact, conda.address(CPU), digest)]
    programs.put(name, "9.9.9")
    assert built() == place, "the place does not depend on the program"


def test_the_program_is_told_the_rows_cuda_unless_the_caller_says_another(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put("micromamba")
    cuda = TABLE.pick("cuda")
    monkeypatch.setenv("CONDA_PREFIX", "/an/active/one")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    place = built(target=cuda)
    _, _, variables = programs.calls()[-1]
    assert variables == {
        "CONDA_OVERRIDE_CUDA": cuda.cuda, "CONDA_ALWAYS_YES": "true", "CONDA_CHANNEL_PRIORITY": "strict",
        "MAMBA_NO_BANNER": "1",
    }  # fmt: skip
    (place / native.MARK).unlink()
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.4")
    built(target=cuda)
    assert programs.calls()[-1][2]["CONDA_OVERRIDE_CUDA"] == "12.4"
    built(target=CPU)
    monkeypatch.delenv("CONDA_OVERRIDE_CUDA")


@pytest.mark.parametrize(
    ("then", "says", "fix"),
    [
        ("print('nothing provides __cuda >=13'); sys.exit(1)", "nothing provides __cuda", "unset it"),
        ("print('No space left on device'); sys.exit(1)", "No space left", "make room"),
        ("print('Could not solve'); sys.exit(1)", "Could not solve", "name a mirror"),
        ("print('404 https://me:secret@x.example/y'); sys.exit(1)", "404 https://***@x.example/y", "name a mirror"),
    ],
)
def test_a_program_that_fails_is_exit_4_and_leaves_nothing(
    programs: Programs, then: str, says: str, fix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    programs.put("micromamba", then=MAKE + then)
    with pytest.raises(BuildError, match="micromamba could not make the environment") as caught:
        built()
    assert says in caught.value.found
    assert fix in caught.value.fix
    assert "secret" not in capfd.readouterr().err + str(caught.value)
    assert not any(home.environments().rglob("bin"))


def test_what_a_program_lists_has_one_form(programs: Programs, tmp_path: Path) -> None:
    entry = {"name": "numpy", "version": "2.0", "build_string": "py0", "channel": "conda-forge", "base_url": "x"}
    programs.put("micromamba", then="")
    tool = condatool.find()
    with pytest.raises(BuildError, match="does not list"):
        condatool.read_list(tool, tmp_path)
    quiet = PROGRAM.replace('print("a line of the program")\n', "")
    text = quiet.format(
        python=sys.executable, says="2.3.0", log=str(programs.log), then=f"print({json.dumps([entry])!r})"
    )
    (programs.folder / "micromamba").write_text(text)
    expected = [{"name": "numpy", "version": "2.0", "build": "py0", "channel": "conda-forge"}]
    assert condatool.read_list(tool, tmp_path) == expected
    assert programs.calls()[-1][0] == ["list", "--json", "--prefix", str(tmp_path)]
    pixi = {"name": "numpy", "version": "2.0", "build": "py0", "source": "https://me:secret@conda.example/conda-forge/"}
    text = quiet.format(python=sys.executable, says="", log=str(programs.log), then=f"print({json.dumps([pixi])!r})")
    (programs.folder / "pixi").write_text(text)
    (programs.folder / "pixi").chmod(0o755)
    workspace = tmp_path / "workspace"
    pixis = condatool.Tool("pixi", programs.folder / "pixi", "0.41.4")
    listed = condatool.read_list(pixis, workspace / ".pixi" / "envs" / "default")
    assert listed[0] == {**expected[0], "channel": "https://***@conda.example/conda-forge/"}
    manifest = str(workspace / "pixi.toml")
    assert programs.calls()[-1][0] == ["list", "--json", "--manifest-path", manifest]


def test_only_mamba_can_say_an_exact_lock(programs: Programs) -> None:
    programs.put("conda")
    with pytest.raises(HostError, match="made by micromamba or mamba 2"):
        condatool.solve(condatool.find(), "", PLATFORM, {})


LINK = {
    "name": "numpy", "version": "2.0.1", "build": "py0_1", "build_string": "py0_1", "subdir": "linux-64", "size": 9,
    "url": "https://conda.example/conda-forge/linux-64/numpy-2.0.1-py0_1.conda", "sha256": "a" * 64, "md5": "b" * 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"sha256": ""}, "sha256 of numpy is ''"),
        ({"md5": None}, "something is no text"),
        ({"size": 0}, "size of numpy is 0"),
        ({"url": "https://conda.example/conda-forge/win-64/numpy-2.0.1-py0_1.conda"}, "subdir of numpy is 'win-64'"),
        ({"url": "https://me:secret@conda.example/x"}, ""),
        ({"url": "https://conda.example/conda-forge/linux-64/numpy"}, "names the file 'numpy'"),
    ],
)
def test_what_a_solver_answers_becomes_a_lock_only_if_it_can_be_one(
    programs: Programs, change: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mamba leaves digests out of what is in its cache (mamba-org/mamba#2346)."""
    answer = json.dumps({"actions": {"LINK": [LINK | change]}})
    quiet = PROGRAM.replace('print("a line of the program")\n', "")
    file = programs.put("micromamba")
    file.write_text(quiet.format(python=sys.executable, says="2.3.0", log=str(programs.log), then=f"print({answer!r})"))
    if not change:
        assert condatool.solve(condatool.find(), "", PLATFORM, {}) == (GOOD,)
        said, _, _ = programs.calls()[-1]
        monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.1")
        monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "2.1")
        condatool.solve(condatool.find(), "", PLATFORM, {"CONDA_OVERRIDE_GLIBC": "2.28"})
        kept = programs.calls()[-1][2]
        assert (kept["CONDA_OVERRIDE_CUDA"], kept["CONDA_OVERRIDE_GLIBC"]) == ("", "2.28"), "not this machine's"
        assert said[:6] == ["create", "--yes", "--dry-run", "--json", "--platform", "linux-64"]
        return
    with pytest.raises(LockError, match="no conda lock for linux_x86_64; the old one is untouched") as caught:
        condatool.solve(condatool.find(), "", PLATFORM, {})
    assert says in caught.value.found
    assert "micromamba clean --packages" in caught.value.found
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "then",
    [
        "print('no json')",
        "print('{}')",
        "print('[1]')",
        "sys.exit(3)",
        "print('{\"actions\": 1}')",
        "print('[1]'); sys.exit(1)",
        "print('{\"solver_problems\": null}'); sys.exit(1)",
        "print('{\"solver_problems\": [{}]}'); sys.exit(1)",
    ],
)
def test_garbage_of_a_program_is_an_error_of_ours(programs: Programs, then: str, tmp_path: Path) -> None:
    quiet = PROGRAM.replace('print("a line of the program")\n', "")
    file = programs.put("micromamba")
    file.write_text(quiet.format(python=sys.executable, says="2.3.0", log=str(programs.log), then=then))
    with pytest.raises(LockError, match="no conda lock"):
        condatool.solve(condatool.find(), "", PLATFORM, {})
    with pytest.raises(BuildError, match="does not list"):
        condatool.read_list(condatool.find(), tmp_path)


# --- choosing, entering -----------------------------------------------------------------------------------------------


def test_conda_is_passed_over_without_a_program_and_for_another_platform(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "read_host", lambda: LINUX)
    (tmp_path / "images").mkdir()
    table = (
        (IMAGES / spec.TABLE)
        .read_text()
        .replace('engines = ["docker", "venv", "conda"]', 'engines = ["conda", "venv"]')
    )
    (tmp_path / "images" / spec.TABLE).write_text(table)
    chosen, why = environment.usable_engine(tmp_path, "cpu")
    assert chosen == "venv"
    assert why == "conda cannot be used here: no micromamba, mamba, conda or pixi on PATH"
    programs.put("micromamba")
    assert environment.usable_engine(tmp_path, "cpu") == ("conda", "")
    assert engine.check(TABLE.pick("mps"), LINUX) == "target mps is for macos_arm64; this machine is linux_x86_64"


def test_a_session_is_activated_as_conda_does_it(tmp_path: Path) -> None:
    scripts = tmp_path / engine.SCRIPTS
    outer = {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/v", "CONDA_PREFIX": "/other", "KEPT": "a\nb",
        "CONDA_SHLVL": "3",
    }  # fmt: skip
    plain = engine.activated(outer, tmp_path)
    assert plain == {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "KEPT": "a\nb", "PYTHONNOUSERSITE": "1", "CONDA_PREFIX": str(tmp_path),
        "CONDA_DEFAULT_ENV": str(tmp_path), "CONDA_SHLVL": "1",
    }  # fmt: skip
    scripts.mkdir(parents=True)
    (scripts / "one.sh").write_text('echo hello\nexport ONE="$CONDA_PREFIX/one"\n')
    (scripts / "two.sh").write_text('export TWO="$ONE two"\n')
    (scripts / "not.fish").write_text("set -x ONE no\n")
    inner = engine.activated(outer, tmp_path)
    assert (inner["ONE"], inner["TWO"], inner["KEPT"]) == (f"{tmp_path}/one", f"{tmp_path}/one two", "a\nb")
    (scripts / "two.sh").write_text("echo broken >&2\nexit 3\n")
    with pytest.raises(BuildError, match="cannot be activated") as caught:
        engine.activated(outer, tmp_path)
    assert "broken" in caught.value.found
