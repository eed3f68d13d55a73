"""What a host lacks, and who is refused: facts made by hand, against a small checkout's real lock, wheels and labs."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import courses
import crowd
import pytest
import registries
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig import blobs, oci
from labrig.blobs import Layer
from labrig.errors import DistributeError, FetchError, UsageError
from labrig.fleet import apply, plan, wanted
from labrig.fleet.facts import Facts, Package
from labrig.fleet.plan import Course, Plan
from labrig.host import Gpu, Host
from labrig.inventory import Entry, Room

DEBIAN = crowd.DEBIAN
CARD = Gpu("NVIDIA GeForce RTX 3060", "8.6", 12288)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> courses.Checkout:
    return courses.make(tmp_path_factory.mktemp("course"))


@pytest.fixture
def course(checkout: courses.Checkout, monkeypatch: pytest.MonkeyPatch) -> Course:
    monkeypatch.setenv("LABRIG_CACHE", str(checkout.cache))
    return plan.prepare(checkout.root, room())


def entry(**changed: Any) -> Entry:
    return replace(Entry("pc01", None, "cpu", "", "", address="10.0.0.1", engine="venv", user="admin"), **changed)


def room(*entries: Entry, cache: str = "") -> Room:
    return Room(Path("room.toml"), entries or (entry(target="auto"),), cache, Path("known"))


def facts(host: Host = DEBIAN, **changed: Any) -> Facts:
    """A Debian that was never touched."""
    empty = Facts(
        host=host, time=0.0, machine_id="m", user="admin", sudo=True, system="debian", release="12",
        pythons={"3.11": True}, free=10**11, total=10**12, folder="", docker_free=None, images={}, labs={},
        environments={}, wheels={}, start="", applied={}, unfinished=False, torch={},
    )  # fmt: skip
    return replace(empty, **changed)


def whole(course: Course, **changed: Any) -> Facts:
    """A host that has all."""
    want = want_of(course)
    has = facts(
        folder="ours", labs=dict(want.labs), environments={want.environment: dict(want.packages)},
        start=wanted.start_digest(want), applied={**plan.note(want), "date": "2026-01-01"},
    )  # fmt: skip
    return replace(has, **changed)


def want_of(course: Course) -> wanted.Wanted:
    return course.wanted(course.table.targets["cpu"], courses.PLATFORM, "venv")


def kinds(found: Plan) -> list[str]:
    assert not found.refused, found.refused
    return [step.kind for step in found.steps]


def test_a_new_host_gets_all_in_order(course: Course) -> None:
    found = plan.compare(course, entry(), facts(pythons={}))
    assert kinds(found) == ["python", "folder", "wheels", "environment", "labs", "start", "note"]
    assert [step.kind for step in found.steps if step.sudo] == ["python", "folder"]
    sizes = {step.kind: step.size for step in found.steps}
    lock = want_of(course).lock
    assert sizes["wheels"] == lock.size == sum(one.size for one in lock.wheels)
    assert sizes["labs"] == sum(len(text) for name, text in courses.LABS.items() if "colab" not in name)
    assert found.size == sizes["wheels"] + sizes["labs"] + sizes["start"]


def test_a_whole_host_gets_nothing(course: Course) -> None:
    assert plan.compare(course, entry(), whole(course)).steps == ()


def without(values: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


DRIFTS: dict[str, tuple[Callable[[Course, Facts], Facts], list[str], tuple[str, ...]]] = {
    "edited lab": (lambda c, f: replace(f, labs={**f.labs, "01_one.py": "0" * 64}), ["labs"], ("01_one.py",)),
    "deleted lab": (lambda c, f: replace(f, labs=without(f.labs, "data/digits.txt")), ["labs"], ("data/digits.txt",)),
    "start": (lambda c, f: replace(f, start="0" * 64), ["start"], ()),
    "no start": (lambda c, f: replace(f, start=""), ["start"], ()),
    "removed package": (
        lambda c, f: replace(f, environments={n: without(e, "beta") for n, e in f.environments.items()}),
        ["wheels", "environment"],
        ("beta",),
    ),
    "edited package": (
        lambda c, f: replace(
            f, environments={n: {**e, "alpha": Package("1.0", "0" * 64)} for n, e in f.environments.items()}
        ),
        ["wheels", "environment"],
        ("alpha",),
    ),
    "a package besides": (
        lambda c, f: replace(
            f, environments={n: {**e, "gamma": Package("1.0", "0" * 64)} for n, e in f.environments.items()}
        ),
        ["besides"],
        ("gamma",),
    ),
    "a file besides": (
        lambda c, f: replace(f, strays=dict.fromkeys(f.environments, ("lib/python3.11/site-packages/random.py",))),
        ["besides"],
        (),
    ),
    "open to others": (lambda c, f: replace(f, loose=("start",)), ["rights"], ("start",)),
    "an edited program": (
        lambda c, f: replace(f, applied={**f.applied, "scaffold": "1"}, scaffolds=dict.fromkeys(f.environments, "2")),
        ["wheels", "environment"],
        (),
    ),
    "a package besides, with a program": (
        lambda c, f: replace(
            f,
            applied={**f.applied, "scaffold": "1"},
            scaffolds=dict.fromkeys(f.environments, "2"),
            strays=dict.fromkeys(f.environments, ("lib/python3.11/site-packages/gamma.py",)),
        ),
        ["besides"],
        (),
    ),
    "no environment": (lambda c, f: replace(f, environments={}), ["wheels", "environment"], ()),
    "broken off": (lambda c, f: replace(f, unfinished=True), [], ()),
    "note gone": (lambda c, f: replace(f, applied={}), [], ()),
    "another lock noted": (lambda c, f: replace(f, applied={**f.applied, "lock": "0" * 64}), [], ()),
}


@pytest.mark.parametrize("noted", [None, "", "0" * 64, ["x"]])
@pytest.mark.parametrize("path", ["../../home/admin/precious", "/etc/passwd", "mine.py", "a/../b.py"])
def test_what_a_host_notes_lets_nothing_go_that_was_not_put_there(course: Course, path: str, noted: object) -> None:
    """Its note, and what it says of labs/, may be a lie of whoever could write there."""
    clean = whole(course)
    files = {**clean.applied["files"], path: noted}
    absent = plan.compare(course, entry(), replace(clean, applied={**clean.applied, "files": files}))
    assert [step.gone for step in absent.steps if step.gone] == []
    there = replace(clean, applied={**clean.applied, "files": files}, labs={**clean.labs, path: "0" * 64})
    gone = [step.gone for step in plan.compare(course, entry(), there).steps if step.gone]
    assert gone == ([("mine.py",)] if (path, noted) == ("mine.py", "0" * 64) else [])


def test_a_folder_of_somebody_else_is_not_taken(course: Course) -> None:
    found = plan.compare(course, entry(), facts(folder="theirs", user="x; reboot"))
    assert "is there and is not" in found.refused and "'x; reboot'" in found.fix and not found.steps


@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drift_is_found_alone(course: Course, drift: str) -> None:
    spoil, expected, names = DRIFTS[drift]
    found = plan.compare(course, entry(), spoil(course, whole(course)))
    assert kinds(found) == [*expected, "note"]
    assert names in [(), *(step.names for step in found.steps)]
    if drift.endswith("package"):
        one = next(wheel for wheel in want_of(course).lock.wheels if wheel.name == names[0])
        assert found.size == one.size  # only that one is sent


def test_what_others_put_there_is_left(course: Course) -> None:
    clean = whole(course)
    more = {n: {**e, "pip": Package("23.0", "1" * 64)} for n, e in clean.environments.items()}
    has = replace(clean, labs={**clean.labs, "mine.py": "1" * 64}, environments=more)
    assert plan.compare(course, entry(), has).steps == ()


@pytest.mark.parametrize(("now", "gone"), [("5" * 64, ("old.py",)), ("6" * 64, ())])
def test_a_lab_that_the_course_dropped_goes_unless_it_was_edited(
    course: Course, now: str, gone: tuple[str, ...]
) -> None:
    clean = whole(course)
    before = {**clean.applied, "files": {**want_of(course).labs, "old.py": "5" * 64}}
    found = plan.compare(course, entry(), replace(clean, labs={**clean.labs, "old.py": now}, applied=before))
    assert [step.gone for step in found.steps if step.kind == "labs"] == ([gone] if gone else [])
    assert kinds(found)[-1] == "note"


def test_an_environment_that_was_broken_off_is_made_anew(course: Course) -> None:
    half = {n: without(e, "beta") for n, e in whole(course).environments.items()}
    found = plan.compare(course, entry(), whole(course, environments=half, unfinished=True))
    assert [(step.kind, step.names) for step in found.steps if step.kind == "environment"] == [("environment", ())]
    assert found.size == want_of(course).lock.size


def test_wheels_that_are_there_are_not_sent(course: Course) -> None:
    wheels = {one.file: one.size for one in want_of(course).lock.wheels[1:]}
    first = want_of(course).lock.wheels[0]
    found = plan.compare(course, entry(), facts(wheels=wheels))
    assert [step.names for step in found.steps if step.kind == "wheels"] == [(first.file,)]
    half = plan.compare(course, entry(), facts(wheels={**wheels, first.file: first.size - 1}))
    assert [step.names for step in half.steps if step.kind == "wheels"] == [(first.file,)]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_mixture_of_drifts_is_what_it_is_made_of(data: st.DataObject, checkout: courses.Checkout) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABRIG_CACHE", str(checkout.cache))
        course = plan.prepare(checkout.root, room())
        clean = whole(course)
        labs = data.draw(st.sets(st.sampled_from(sorted(clean.labs))))
        packages = data.draw(st.sets(st.sampled_from(sorted(want_of(course).packages))))
        start = data.draw(st.booleans())
        name = want_of(course).environment
        found = plan.compare(
            course, entry(), replace(
                clean, labs={path: "0" * 64 if path in labs else sha for path, sha in clean.labs.items()},
                environments={name: {n: p for n, p in clean.environments[name].items() if n not in packages}},
                start="" if start else clean.start,
            ),
        )  # fmt: skip
        steps = {step.kind: step for step in found.steps}
        assert ("labs" in steps) == bool(labs) and ("start" in steps) == start
        assert ("environment" in steps) == ("wheels" in steps) == bool(packages)
        assert ("note" in steps) == bool(labs or packages or start)
        if labs:
            assert set(steps["labs"].names) == labs
        if packages:
            every = packages == set(want_of(course).packages)
            assert set(steps["environment"].names) == (set() if every else packages)


# --- who is refused ---------------------------------------------------------------------------------------------------


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "musl": ({}, {"host": replace(DEBIAN, libc="musl 1.2.4")}, "musl", "glibc"),
    "old glibc": ({}, {"host": replace(DEBIAN, libc="glibc 2.17")}, "2.17 is older", "glibc"),
    "windows": ({"target": "auto"}, {"host": Host("windows", "x86_64")}, "Windows", "WSL2"),
    "arm": ({}, {"host": replace(DEBIAN, arch="aarch64")}, "no lock for linux_aarch64", "invoke lock"),
    "mac": ({}, {"host": Host("macos", "arm64", os_version="15.1")}, "macos", "mps"),
    "old driver": (
        {"target": "cuda"},
        {"host": replace(DEBIAN, driver="535.10.01", gpus=(CARD,)), "pythons": {"3.13": True}},
        "535.10.01",
        "driver",
    ),
    "old GPU": (
        {"target": "cuda"},
        {
            "host": replace(DEBIAN, driver="580.65.06", gpus=(Gpu("GTX 1080", "6.1", 8192),)),
            "pythons": {"3.13": True},
        },
        "6.1",
        "use target `cuda-legacy`",
    ),
    "no GPU": (
        {"target": "cuda"},
        {"host": replace(DEBIAN, pci_nvidia=0), "pythons": {"3.13": True}},
        "no NVIDIA",
        "use target `cpu`",
    ),
    "disk": ({}, {"free": 10**8}, "100.0 MB free", "make room"),
    "no Python": ({}, {"pythons": {"3.13": True}, "release": "13"}, "needs Python 3.11: none", "install Python 3.11"),
    "no venv": ({}, {"pythons": {"3.11": False}, "system": "fedora"}, "no module venv", "install Python"),
    "no sudo": ({}, {"sudo": False}, "/opt/labrig cannot be made", "sudo install -d -o admin /opt/labrig"),
    "no sudo for Python": ({}, {"sudo": False, "pythons": {}}, "python, folder: needs root", "by hand"),
    "no engine": (
        {"engine": "docker"},
        {"host": replace(DEBIAN, docker_error="permission denied")},
        "permission denied",
        'install = ["docker"]',
    ),
    "engine on fedora": (
        {"engine": "docker", "install": ("docker",)},
        {"system": "fedora"},
        "Debian and Ubuntu",
        "docs.docker.com",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_who_is_refused_is_told_why(course: Course, case: str) -> None:
    changed, has, why, fix = REFUSALS[case]
    course = with_image(course)
    found = plan.compare(course, entry(**changed), facts(**has))
    assert found.steps == () and why in found.refused and fix and fix in found.fix
    assert "\n" not in found.refused


def test_nothing_published_is_a_reason(course: Course) -> None:
    found = plan.compare(course, entry(engine="docker"), facts(replace(DEBIAN, docker="28.2.2")))
    assert "no image of target cpu for linux_x86_64 was published" in found.refused and "invoke publish" in found.fix


def test_an_unknown_target_is_named_with_its_line(checkout: courses.Checkout) -> None:
    with pytest.raises(UsageError, match=r"line 7 of room\.toml: host pc01 has no target 'gpu'"):
        plan.prepare(checkout.root, room(entry(target="gpu", line=7)))


# --- Docker -----------------------------------------------------------------------------------------------------------


def with_image(course: Course, cache: str = "") -> Course:
    one = samples.published("cpu")
    return replace(course, published={("cpu", courses.PLATFORM): one}, room=room(cache=cache), known={})


def docker_facts(version: str = "28.2.2", **changed: Any) -> Facts:
    return facts(replace(DEBIAN, docker=version), docker_free=10**11, folder="ours", **changed)


LAYERS = tuple(Layer("", f"sha256:{n:064}", f"sha256:{n + 5:064}", 10**6 * n, 0) for n in (4, 3, 2, 1))


def with_layers(course: Course, media_type: str = blobs.GZIP, *, through: str = "") -> Course:
    """Its image was looked at, and has these layers, together 10 MB."""
    config = oci.document(oci.CONFIG, {"config": "of the image"})
    layers = tuple(replace(one, media_type=media_type) for one in LAYERS)
    course = with_image(course, through)
    pull = course.wanted(course.table.targets["cpu"], courses.PLATFORM, "docker").pull
    return replace(course, looked={pull: oci.Image(courses.PLATFORM, layers, config, config)}, known={})


def out_of_reach(course: Course) -> Course:
    """The room's cache does not answer."""
    one = samples.published("cpu", reference=f"registry.example.org/lab/cpu@sha256:{'7' * 64}", size=10**7)
    through = room(cache=f"127.0.0.1:{registries.free_port()}")
    return replace(course, published={("cpu", courses.PLATFORM): one}, room=through, known={}, looked={})


def test_docker_where_an_engine_answers_and_an_image_was_published(course: Course) -> None:
    auto = entry(engine="auto")
    assert kinds(plan.compare(with_image(course), auto, docker_facts())) == ["image", "start", "note"]
    assert "environment" in kinds(plan.compare(course, auto, docker_facts()))
    assert "environment" in kinds(plan.compare(with_image(course), auto, facts()))


def test_an_image_is_pulled_by_digest_through_the_cache_and_known_by_its_id(course: Course) -> None:
    through = with_image(course, cache="10.0.7.1:5000")
    auto = entry(engine="auto")
    found = plan.compare(through, auto, docker_facts())
    one = through.published["cpu", courses.PLATFORM]
    pull = f"10.0.7.1:5000/lab/cpu@sha256:{'0' * 64}"
    assert [(step.size, step.names) for step in found.steps if step.kind == "image"] == [(one.size, (pull,))]
    want = found.wanted
    assert want is not None
    good = dict.fromkeys(wanted.names_of(one), one.config)
    has = docker_facts(images=good, start=wanted.start_digest(want), applied=plan.note(want))
    assert plan.compare(through, auto, has).steps == ()
    moved = plan.compare(through, auto, replace(has, images={**good, "labrig/cpu:latest": "sha256:" + "9" * 64}))
    assert [(step.kind, step.size) for step in moved.steps] == [("image", 0), ("note", 0)]


def test_engines_are_installed_only_where_that_was_asked_for(course: Course) -> None:
    found = plan.compare(with_layers(course), entry(engine="auto", install=("docker",)), facts())
    assert kinds(found) == ["docker", "folder", "image", "start", "note"]
    assert found.steps[0].sudo


def test_a_full_disk_of_the_engine_refuses(course: Course) -> None:
    found = plan.compare(with_image(course), entry(engine="auto"), replace(docker_facts(), docker_free=10**6))
    assert "Docker's disk has 1.0 MB free" in found.refused


ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
NEEDING: dict[str, tuple[dict[str, Any], Facts]] = {
    "there": ({}, facts(replace(DEBIAN, docker="20.10.24+dfsg1"), docker_free=10**11)),
    "Debian 12 would bring it": ({"install": ("docker",)}, facts()),
    "Debian 11 would bring it": ({"install": ("docker",)}, facts(release="11")),
}
ABLE: dict[str, tuple[dict[str, Any], Facts]] = {
    "there": ({}, facts(replace(DEBIAN, docker="23.0.0"), docker_free=10**11)),
    "Debian 13 would bring it": ({"install": ("docker",)}, facts(release="13")),
    "Ubuntu would bring it": ({"install": ("docker",)}, facts(system="ubuntu", release="22.04")),
}


@pytest.mark.parametrize("case", NEEDING)
def test_an_engine_too_old_for_the_compression_is_refused_before_it_is_installed(course: Course, case: str) -> None:
    changed, has = NEEDING[case]
    old = plan.compare(with_layers(course, ZSTD), entry(engine="docker", **changed), has)
    assert not old.steps and "cannot unpack the image's layers, which zstd compressed" in old.refused
    assert "Docker 20.10." in old.refused and "bring Docker 23.0 or newer" in old.fix
    assert "image" in kinds(plan.compare(with_layers(course), entry(engine="docker", **changed), has))


@pytest.mark.parametrize("case", ABLE)
def test_an_engine_new_enough_gets_any_image_unseen(course: Course, case: str) -> None:
    changed, has = ABLE[case]
    for way in (with_layers(course, ZSTD), out_of_reach(course)):
        assert "image" in kinds(plan.compare(way, entry(engine="docker", **changed), has))
        assert not [one for one in way.looked.values() if not isinstance(one, oci.Image)]


def test_an_old_engine_that_has_the_image_is_whole_whatever_the_registry_does(course: Course) -> None:
    course = out_of_reach(course)
    one = course.published["cpu", courses.PLATFORM]
    want = course.wanted(course.table.targets["cpu"], courses.PLATFORM, "docker")
    has = docker_facts(
        "20.10.24+dfsg1", images=dict.fromkeys(wanted.names_of(one), one.config),
        start=wanted.start_digest(want), applied=plan.note(want),
    )  # fmt: skip
    found = plan.compare(course, entry(engine="auto"), has)
    assert (found.refused, found.steps, course.looked) == ("", (), {})


def test_an_image_that_cannot_be_looked_at_is_asked_for_once(course: Course) -> None:
    course = out_of_reach(course)
    old = docker_facts("20.10.24+dfsg1")
    first = plan.compare(course, entry(engine="auto"), old)
    assert (
        "20.10.24+dfsg1 may be too old" in first.refused and f"{course.room.cache} cannot be reached" in first.refused
    )
    assert "bring Docker 23.0 or newer" in first.fix
    (error,) = course.looked.values()
    assert isinstance(error, DistributeError)
    plan.compare(course, entry(engine="auto"), old)
    other = plan.compare(course, entry(engine="auto"), docker_facts(layers=(LAYERS[0].diff_id,)))
    assert [step.size for step in other.steps if step.kind == "image"] == [10**7], "all of it, and nothing fails"
    assert list(course.looked.values()) == [error]


# --- what an image costs a host that has another one ------------------------------------------------------------------


PREFIXES = {0: 10, 1: 6, 2: 3, 3: 1, 4: 0}  # of layers that are there -> MB that are not


@pytest.mark.parametrize("count", PREFIXES)
@pytest.mark.parametrize("through", ["", "10.0.7.1:5000"])
def test_layers_that_a_host_has_are_not_pulled_and_need_no_room(course: Course, count: int, through: str) -> None:
    there = tuple(one.diff_id for one in LAYERS[:count])
    course = with_layers(replace(course, known={}), through=through)
    config = next(one for one in course.looked.values() if isinstance(one, oci.Image)).config.content
    size = PREFIXES[count] * 10**6 + len(config) if count else course.published["cpu", courses.PLATFORM].size
    has = docker_facts(layers=(*there, "sha256:" + "9" * 64) if count else ())
    found = plan.compare(course, entry(engine="auto"), has)
    assert [step.size for step in found.steps if step.kind == "image"] == [size]
    room = plan.UNPACKED * size + plan.SPARE
    assert not plan.compare(course, entry(engine="auto"), replace(has, docker_free=room)).refused
    assert "free, about" in plan.compare(course, entry(engine="auto"), replace(has, docker_free=room - 1)).refused


def test_a_layer_above_one_that_is_not_there_is_pulled(course: Course) -> None:
    course = with_layers(course)
    found = plan.compare(course, entry(engine="auto"), docker_facts(layers=(LAYERS[0].diff_id, LAYERS[2].diff_id)))
    assert [step.size // 10**6 for step in found.steps if step.kind == "image"] == [6]


def test_containers_without_gpus_get_the_toolkit_or_a_reason(course: Course) -> None:
    host = replace(DEBIAN, docker="28.2.2", driver="580.65.06", gpus=(CARD,), docker_gpus=False)
    one = samples.published("cuda")
    course = replace(course, published={("cuda", courses.PLATFORM): one}, known={})
    has = facts(host, docker_free=10**12, folder="ours")
    refused = plan.compare(course, entry(target="cuda", engine="docker"), has)
    assert "containers there get no GPU" in refused.refused and 'install = ["nvidia"]' in refused.fix
    found = plan.compare(course, entry(target="cuda", engine="docker", install=("nvidia",)), has)
    assert kinds(found) == ["nvidia", "image", "start", "note"] and "restarts Docker" in found.steps[0].what


# --- what wheels say --------------------------------------------------------------------------------------------------


def test_a_wheel_says_what_an_installed_record_has(checkout: courses.Checkout) -> None:
    files, size = wanted.read_record(checkout.wheels / "beta-1.5-py3-none-any.whl")
    assert files.pop("beta.py") == hashlib.sha256(b"value = 1\n").hexdigest()
    assert files.pop("../../../share/beta/notes.txt") == hashlib.sha256(b"notes\n").hexdigest()
    assert sorted(files) == ["beta-1.5.dist-info/METADATA", "beta-1.5.dist-info/WHEEL"]
    assert size > 16


def test_records_are_read_once(course: Course, checkout: courses.Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = want_of(course).packages
    monkeypatch.setattr(zipfile, "ZipFile", None)
    course.forget()
    assert want_of(course).packages == first


def test_without_wheels_a_new_host_is_planned_and_an_old_one_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, course: Course
) -> None:
    whole_one = whole(course)
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    course.forget()
    assert "wheels" in kinds(plan.compare(course, entry(), facts()))
    with pytest.raises(plan.Lacking):
        plan.compare(course, entry(), whole_one)


def test_wheels_that_cannot_be_had_are_tried_for_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, course: Course, checkout: courses.Checkout
) -> None:
    host = whole(course)
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("LABRIG_INDEX_PYTORCH_CPU", "none")
    (tmp_path / "links").mkdir()
    run = plan.prepare(checkout.root, room())
    with pytest.raises(FetchError) as first:
        apply.compare_fetched(run, entry(), host)
    shutil.copytree(checkout.wheels, tmp_path / "links", dirs_exist_ok=True)
    with pytest.raises(FetchError) as second:
        apply.compare_fetched(run, entry(name="pc02"), host)
    assert second.value is first.value
    assert apply.compare_fetched(plan.prepare(checkout.root, room()), entry(), host).steps == ()


def test_a_request_names_what_there_may_be(course: Course) -> None:
    asked = with_image(course).request(entry(engine="auto"), torch=True)
    assert asked["environments"] == [want_of(course).environment] and asked["torch"] is True
    assert asked["images"] == [samples.published("cpu").image]
    everything = course.request(entry(target="auto"))
    assert len(everything["environments"]) > 2


def test_no_row_of_a_thousand_hosts_is_lost(course: Course) -> None:
    """From what each printed to every form of the report."""
    rows = crowd.rows_of(course.root, 1000)
    assert [row.host for row in rows] == [f"pc{number:04}" for number in range(1000)]
    assert [row.state for row in rows] == [*crowd.STATES] * 250, rows[:4]
    assert all(row.why and row.fix for row in rows if row.state == "DRIFT")
    for form, text in crowd.forms(rows, course.root).items():
        assert all(row.host in text for row in rows), form
