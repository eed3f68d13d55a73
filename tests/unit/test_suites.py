"""Suites and bases in the table, what follows from them in what is rendered, and which images no lock names."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
from docker.errors import APIError, ImageNotFound
from docker.utils import exclude_paths

from labrig import cleaning, image, lock, render, spec
from labrig.errors import SpecError
from labrig.spec import Suite, Table, Target

ROOT = Path(__file__).parents[2]
STABLE = {"python": samples.PYTHON, "image": "debian:stable-slim"}
OTHER = {"old": {"python": "3.2", "image": "debian:old"}}
DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))


def parse(suites: Any = None, usual: Any = "bootstrap", name: str = "here", **keys: Any) -> Target:
    """The target of a row that the engine docker makes."""
    data = {
        "defaults": {"engines": ["docker"], "base": usual},
        "indexes": {samples.INDEX: "https://index.example/"},
        "suites": {"stable": STABLE} if suites is None else suites,
        "targets": {name: samples.row(**keys)},
    }
    return spec.parse(data, Path(spec.TABLE)).targets[name]


def refusal(*suites: Any, **keys: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(*suites, **keys)
    return caught.value


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_rows_python_decides_its_suite_and_the_first_of_several_is_taken_unless_it_names_one() -> None:
    suites = {**OTHER, "stable": STABLE, "testing": {**STABLE, "image": "debian"}}
    assert parse(suites).suite == Suite("stable", samples.PYTHON, "debian:stable-slim")
    assert parse(suites, suite="testing").suite == Suite("testing", samples.PYTHON, "debian")
    error = refusal(suites, suite="old")
    assert error.what == f"{spec.TABLE}: [targets.here] key 'suite' is wrong"
    assert (error.found, error.fix) == ("'old'", "allowed: one of stable, testing")


def test_a_row_whose_python_no_suite_brings_is_for_other_engines() -> None:
    error = refusal(OTHER)
    assert error.what == f"{spec.TABLE}: [targets.here] key 'python' is wrong"
    assert error.found == samples.PYTHON
    assert "3.2 (old)" in error.fix and 'engines = ["venv"]' in error.fix
    assert "none: there is no [suites]" in refusal({}).fix
    assert parse({}, engines=["venv"]).suite is None


def test_a_base_is_made_here_or_comes_from_a_registry_by_default_or_by_row() -> None:
    assert parse().base == parse(usual="registry", base="bootstrap").base == "bootstrap"
    assert parse(usual="registry").base == parse(base="registry").base == "registry"
    for wrong in ("scratch", "", 1, ["registry"]):
        for error, title in ((refusal(usual=wrong), "[defaults]"), (refusal(base=wrong), "[targets.here]")):
            assert error.what == f"{spec.TABLE}: {title} key 'base' is wrong"
            assert error.fix == "allowed: one of bootstrap, registry"


@pytest.mark.parametrize(
    ("suites", "where"),
    [
        (3, "the top level key 'suites'"), ({"stable": 3}, "the top level key 'suites.stable'"),
        ({"Stable": STABLE}, "the top level key 'suites'"), ({"a/b": STABLE}, "the top level key 'suites'"),
        ({"stable": {**STABLE, "pyhton": "3"}}, "[suites.stable] has an unknown key"),
        ({"stable": {"python": "3.11"}}, "[suites.stable] key 'image'"),
        ({"stable": {"image": "debian"}}, "[suites.stable] key 'python'"),
        *[({"stable": {**STABLE, "python": one}}, "[suites.stable] key 'python'") for one in (3.1, "3", "3.11.7")],
        *[({"stable": {**STABLE, "image": one}}, "[suites.stable] key 'image'")
          for one in ("", 1, "Debian", "debian:", "debian:a b", "debian\n", f"debian@{DIGEST}", '"', "a//b", "-a")],
    ],
)  # fmt: skip
def test_a_mistake_in_a_suite_is_named(suites: Any, where: str) -> None:
    error = refusal(suites)
    assert where in error.what
    assert error.fix.startswith("allowed: ")


@pytest.mark.parametrize("name", ["-", "-cpu", "cpu-", "--"])
def test_a_name_that_cannot_be_an_images_is_refused_where_an_image_is_made(name: str) -> None:
    error = refusal(name=name)
    assert error.what == f"{spec.TABLE}: {name!r} cannot be the name of an image, which the engine docker makes"
    assert (error.found, 'engines = ["venv"]' in error.fix) == (repr(name), True)
    assert parse(name=name, engines=["venv"]).name == name


def test_other_names_can_be_an_images() -> None:
    for name in ("a", "0", "a-b", "a--b", "cuda-13-0"):
        assert image.name(parse(name=name)) == f"labrig/{name}"
    for name in ("debian", "library/debian:12", "mirror:5000/debian:stable-20250101-slim", "a/b_c/d.e"):
        suite = parse({"stable": {**STABLE, "image": name}}).suite
        assert suite and suite.image == name


# --- what is rendered -------------------------------------------------------------------------------------------------


def table(root: Path, base: str) -> Table:
    """A checkout of the real rows and templates, with bases of that kind."""
    for folder in ("images", "templates"):
        shutil.copytree(ROOT / folder, root / folder)
    file = root / "images" / spec.TABLE
    text, count = re.subn(r'(?m)^base = ".*"$', f'base = "{base}"', file.read_text())
    assert count == 1
    file.write_text(text)
    return spec.read(file)


def dockerfiles(made: Table) -> dict[str, list[str]]:
    """The instructions of the rows' Dockerfiles, each on one line."""
    files = render.render_all(made, made.path.parents[1] / "templates")
    found = {}
    for file in (file for file in files if file.name == "Dockerfile"):
        lines = (line for line in files[file].splitlines() if line and not line.startswith("#"))
        found[file.parent.name] = "\n".join(lines).replace("\\\n", "").splitlines()
    assert set(found) == {one.name for one in made.targets.values() if "docker" in one.engines} != set()
    return found


def test_an_image_from_a_registry_gets_python_by_apt_and_a_default_once_a_digest_is_locked(tmp_path: Path) -> None:
    made = table(tmp_path, "registry")
    for lines in dockerfiles(made).values():
        assert lines[:2] == ["ARG BASE", "FROM ${BASE}"]
        assert lines[2].startswith("RUN apt-get update")
        assert [line.startswith("RUN --network=none ") for line in lines[3:] if line.startswith("RUN")] == [True] * 3
    for one in made.targets.values():
        if one.suite:
            text = f'image = "{one.suite.image}"\ndigest = "{DIGEST}"\n'
            (made.path.parent / one.name / "base.lock").write_text(text)
    for name, lines in dockerfiles(made).items():
        suite = made.targets[name].suite
        assert suite and lines[0] == f"ARG BASE={suite.image}@{DIGEST}"


def test_an_image_on_our_own_base_never_has_the_network_while_it_is_built(tmp_path: Path) -> None:
    made = table(tmp_path, "bootstrap")
    for name, lines in dockerfiles(made).items():
        suite = made.targets[name].suite
        assert suite and lines[:2] == [f"ARG BASE=labrig-base:{suite.name}", "FROM ${BASE}"]
        assert [line.startswith("RUN --network=none ") for line in lines if line.startswith("RUN")] == [True] * 3


def test_an_image_says_what_it_is_and_which_driver_it_needs(tmp_path: Path) -> None:
    made, devices = table(tmp_path, "bootstrap"), set()
    for name, lines in dockerfiles(made).items():
        target = made.targets[name]
        label = next(line for line in lines if line.startswith("LABEL "))
        said = dict(re.findall(r'(\S+)="([^"]*)"', label))
        locked = lock.load(target, target.platforms[0], made.path.parent)
        assert {key: said[key] for key in said if key.startswith("labrig.")} == image.labels(target, locked)
        nvidia = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility NVIDIA_REQUIRE_CUDA="
        needed = [f'{nvidia}"driver>={target.min_driver}"'] if target.device == "cuda" else []
        assert [line for line in lines if "NVIDIA" in line] == needed
        devices.add(target.device)
    assert devices == {"cpu", "cuda"}


def test_a_build_by_hand_sees_what_invoke_build_lays_out_and_nothing_hidden(tmp_path: Path) -> None:
    made = table(tmp_path, "bootstrap")
    text = render.render_all(made, tmp_path / "templates")[tmp_path / "images" / "cpu" / "Dockerfile.dockerignore"]
    shutil.rmtree(tmp_path / "images" / "mps")
    seen = {"labs/__main__.py", "labs/data/a.csv", "labrig/bytecode.py", "wheels/one.whl"}
    seen.add("images/cpu/requirements-linux_x86_64.txt")
    unseen = {".env", "labs/.env", "labs/.cache/a", "labs/data/.DS_Store", "wheels/.one.whl.7", "images/cpu/.hidden"}
    unseen |= {"labs/__pycache__/a.pyc", "labrig/base.py", "results/report.html", "secrets.txt"}
    for name in seen | unseen:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in text.splitlines() if not line.startswith("#")]
    assert {one for one in exclude_paths(str(tmp_path), patterns) if (tmp_path / one).is_file()} == seen


# --- which images no lock names ---------------------------------------------------------------------------------------


class Images:
    """As much of the SDK's client as is asked about images; of each its target, the digest of its lock, its tags."""

    def __init__(self, *all_: tuple[str, str, str]) -> None:
        self.images, self.all = self, list(all_)

    def list(self, name: str = "", filters: object = None) -> list[Any]:
        found = [one for one in self.all if (one[1] if filters else one[2].startswith(f"{name}:"))]
        labels = [{"labrig.target": target, image.LOCK: locked} for target, locked, _ in found]
        tags = [names.split() for *_, names in found]
        return [SimpleNamespace(id="sha256:77", tags=t, labels=said) for t, said in zip(tags, labels, strict=True)]

    def remove(self, reference: str) -> None:
        if "busy" in reference:
            raise APIError("409", explanation="a container uses it")
        if reference not in (names := [tags or "sha256:77" for *_, tags in self.all]):
            raise ImageNotFound("404")
        del self.all[names.index(reference)]


OLD = ["labrig/cpu:former", "labrig/cuda:latest"]


def engine(current: str) -> Any:
    return Images(
        ("cpu", current, "labrig/cpu:now labrig/cpu:latest"), ("cpu", current, "labrig/cpu:former"),
        ("cuda", "older", "labrig/cuda:latest"), ("cpu", current, ""), ("", "", "debian:stable-slim"),
        ("", "", "labrig-base:stable"), ("cpu", "older", "course/lab:1"),  # built FROM one of ours, labels and all
    )  # fmt: skip


def test_images_of_other_locks_and_former_labs_are_stale_and_others_only_on_demand() -> None:
    client = engine("current")
    everything = sorted({*OLD, "labrig/cpu:latest", "labrig/cpu:now", "labrig-base:stable"})
    assert image.stale(client, {"current"}, None, everything=False) == OLD
    assert image.stale(client, {"current"}, "cuda", everything=False) == ["labrig/cuda:latest"]
    assert image.stale(client, {"current"}, None, everything=True) == everything


def test_what_went_is_told_from_what_is_used_or_was_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert image.remove(engine(""), ["labrig/cpu:busy", "labrig/cpu:former", "labrig/none:1"]) == ["labrig/cpu:former"]
    assert capsys.readouterr().err == "labrig/cpu:busy stays: a container uses it\n"


def test_cleaning_takes_the_images_that_no_lock_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = table(tmp_path, "bootstrap").targets["cpu"]
    client = engine(lock.load(target, target.platforms[0], tmp_path / "images").digest)
    monkeypatch.setattr("labrig.cleaning.daemon.connect", lambda: nullcontext(client))
    before = list(client.all)
    assert cleaning.clean(tmp_path, dry_run=True) == OLD
    assert client.all == before
    assert cleaning.clean(tmp_path) == OLD
    assert cleaning.clean(tmp_path) == []
    assert [tags for *_, tags in client.all] == [
        before[0][2],
        "",
        "debian:stable-slim",
        "labrig-base:stable",
        "course/lab:1",
    ]
