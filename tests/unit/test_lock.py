"""Locks: written, read, told apart, and solved by the real uv against indexes and folders of tiny wheels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging import tags
from packaging.utils import parse_wheel_filename
from samples import INDEX, PYTHON, TORCH
from servers import IndexServer, Manners

from labrig import lock, matrix, resolver, spec
from labrig.errors import LockError
from labrig.indexes import Sources
from labrig.lock import Lock, Wheel
from labrig.spec import Target

IMAGES = Path(__file__).parents[2] / "images"
LINUX, MAC = "linux_x86_64", "macos_arm64"
CUDA = matrix.default_variant(TORCH, LINUX)
PLAIN = {"variant": CUDA, "index": None}  # a row whose torch is the default index's


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the settings nor the cache of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_", "LABRIG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")


def serve(*wheels: Mapping[str, bytes]) -> IndexServer:
    """An index that tells no sizes and gives no parts of files, as a folder behind a web server does."""
    return IndexServer({name: content for one in wheels for name, content in one.items()}, Manners(ranges=False))


def folder(place: Path, *wheels: Mapping[str, bytes]) -> Sources:
    """A folder of wheels and nothing else, which spares the requests."""
    for one in wheels:
        samples.write(one, place)
    return Sources(default=None, find_links=(str(place),), named={INDEX: None})


def versions(solved: Lock) -> dict[str, str]:
    return {wheel.name: wheel.version for wheel in solved.wheels}


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/simple"


# --- the file -------------------------------------------------------------------------------------------------------

DIGEST = st.binary(max_size=8).map(lambda b: hashlib.sha256(b).hexdigest())
NAME = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", fullmatch=True)
VERSION = st.from_regex(r"[1-9][0-9]{0,3}(\.[1-9][0-9]{0,2}){0,3}(rc[1-9])?(\+cu[1-9][0-9]{2})?", fullmatch=True)


@st.composite
def wheels(draw: st.DrawFn) -> Wheel:
    name, version = draw(NAME), draw(VERSION)
    tag = draw(st.sampled_from(["py3-none-any", "1-cp311-cp311-manylinux_2_26_x86_64.manylinux_2_28_x86_64"]))
    return Wheel(name, version, f"{name.replace('-', '_')}-{version}-{tag}.whl", draw(DIGEST), draw(st.integers(1)))


LOCKS = st.builds(
    Lock,
    target=st.from_regex(spec.NAME, fullmatch=True),
    platform=st.sampled_from(spec.PLATFORMS),
    python=st.sampled_from(["3.11", "3.13"]),
    inputs=DIGEST,
    wheels=st.lists(wheels(), min_size=1, max_size=5, unique_by=lambda w: w.name).map(tuple),
)


@given(LOCKS)
@settings(deadline=None, max_examples=30)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, one: Lock) -> None:
    images = tmp_path_factory.getbasetemp() / "round"
    file = lock.write(one, images)
    assert file == images / one.target / f"{one.platform}.lock"
    again = lock.read(file)
    assert again == one
    assert again.digest == one.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert again.size == sum(wheel.size for wheel in one.wheels)


def sample() -> Lock:
    def one(name: str, version: str) -> Wheel:
        return Wheel(name, version, f"{name}-{version}-py3-none-any.whl", hashlib.sha256(name.encode()).hexdigest(), 7)

    return Lock("here", LINUX, PYTHON, "0" * 64, (one("alpha", "1.0"), one("torch", f"{TORCH}+cpu")))


DIGEST_OF_ALPHA = sample().wheels[0].sha256
DAMAGES: dict[str, tuple[str, str]] = {
    "no TOML": ("format = 1", "format = "),
    "another format": ("format = 1", "format = 2"),
    "no format": ("format = 1\n", ""),
    "merge conflict": ('name = "alpha"', '<<<<<<< HEAD\nname = "alpha"'),
    "no name": ('name = "alpha"\n', ""),
    "name as number": ('name = "alpha"', "name = 1"),
    "another name": ('name = "alpha"', 'name = "beta"'),
    "another version": ('version = "1.0"', 'version = "1.1"'),
    "short digest": (DIGEST_OF_ALPHA, DIGEST_OF_ALPHA[:-1]),
    "digest in capitals": (DIGEST_OF_ALPHA, DIGEST_OF_ALPHA.upper()),
    "digest with a path": (DIGEST_OF_ALPHA, "../" + DIGEST_OF_ALPHA[3:]),
    "no size": ("size = 7\n", ""),
    "size as text": ("size = 7", 'size = "7"'),
    "size as boolean": ("size = 7", "size = true"),
    "size zero": ("size = 7", "size = 0"),
    "target as number": ('target = "here"', "target = 1"),
    "inputs as list": ('inputs = "', 'inputs = ["'),
    "wheels as text": ("[[wheel]]", '[wheel]'),
    "a wheel twice": ("\n[[wheel]]", "\n" + lock.serialize(sample()).split("\n\n")[1] + "\n[[wheel]]"),
    "no wheel": (lock.serialize(sample()).split("\n\n", 1)[1], "wheel = []"),
    "nested": ("format = 1", "format = " + "[" * 100_000),
    "long number": ("size = 7", "size = " + "9" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_lock_says_how_to_mend_it(tmp_path: Path, damage: str) -> None:
    file = lock.write(sample(), tmp_path)
    before, after = DAMAGES[damage]
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    unreadable(file)


@pytest.mark.parametrize(
    "name",
    [
        "../alpha-1.0-py3-none-any.whl", "/alpha-1.0-py3-none-any.whl", "a/alpha-1.0-py3-none-any.whl", "..", "",
        "..\\\\alpha-1.0-py3-none-any.whl", "alpha-1.0-py3-none-a\\u0000ny.whl", "alpha-1.0-py3-none-any\\n.whl",
        "alpha-1.0-py3-none-any .whl", "alpha-1.0-py3-none-any", "alpha-1.0.tar.gz", ".alpha-1.0-py3-none-any.whl",
        "älpha-1.0-py3-none-any.whl", "alpha-1.0-py3-none-any.whl\\\" #",
    ],
)  # fmt: skip
def test_a_file_name_that_is_none_is_not_let_through(tmp_path: Path, name: str) -> None:
    file = lock.write(sample(), tmp_path)
    file.write_text(file.read_text().replace('file = "alpha-1.0-py3-none-any.whl"', f'file = "{name}"'))
    unreadable(file)


def test_a_name_that_pip_would_read_as_an_option_is_not_let_through(tmp_path: Path) -> None:
    file = lock.write(sample(), tmp_path)
    text = file.read_text().replace('file = "alpha-', 'file = "_r-').replace('name = "alpha"', 'name = "-r"')
    file.write_text(text)
    unreadable(file)


def unreadable(file: Path) -> None:
    with pytest.raises(LockError) as caught:
        lock.read(file)
    assert caught.value.code == 4
    assert f"here/{LINUX}.lock" in caught.value.what
    assert caught.value.found
    assert "invoke lock --target=here" in caught.value.fix


def test_no_lock_and_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "here" / f"{LINUX}.lock").mkdir(parents=True)
    unreadable(tmp_path / "here" / f"{LINUX}.lock")


@given(st.binary() | st.tuples(st.integers(0, 600), st.binary(max_size=4)))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_a_lock_or_a_lock_error(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | tuple[int, bytes]
) -> None:
    whole = lock.serialize(sample()).encode()
    content = damage if isinstance(damage, bytes) else whole[: damage[0]] + damage[1] + whole[damage[0] + 1 :]
    file = tmp_path_factory.getbasetemp() / "any.lock"
    file.write_bytes(content)
    try:
        one = lock.read(file)
    except LockError as error:
        assert error.found and error.fix
        return
    assert all("/" not in wheel.file and wheel.size > 0 for wheel in one.wheels)


# --- its state ------------------------------------------------------------------------------------------------------


def test_locked_stale_missing_and_declared_are_told_apart(tmp_path: Path) -> None:
    reason = "its index cannot be reached"
    both = samples.target(platforms=[LINUX, "linux_aarch64"], unlocked={"linux_aarch64": reason})
    assert lock.status(both, LINUX, tmp_path) == "missing"
    assert lock.status(both, "linux_aarch64", tmp_path) == "declared"
    assert lock.locked_platforms(both, tmp_path) == ()

    fresh = dataclasses.replace(sample(), inputs=lock.inputs_digest(both, LINUX))
    lock.write(fresh, tmp_path)
    assert lock.status(both, LINUX, tmp_path) == "locked"
    assert lock.locked_platforms(both, tmp_path) == (LINUX,)
    assert lock.load(both, LINUX, tmp_path) == fresh

    changed = dataclasses.replace(both, packages=("alpha", "beta"))
    assert lock.status(changed, LINUX, tmp_path) == "stale"
    assert lock.locked_platforms(changed, tmp_path) == ()

    def refusal(target: Target, platform: str) -> LockError:
        with pytest.raises(LockError) as caught:
            lock.load(target, platform, tmp_path)
        assert "invoke lock --target=here" in caught.value.fix
        return caught.value

    assert "is stale" in refusal(changed, LINUX).what
    assert "older row" in refusal(changed, LINUX).found
    assert refusal(both, "linux_aarch64").found == reason
    lock.path(tmp_path, "here", LINUX).unlink()
    assert f"no {tmp_path.name}/here/{LINUX}.lock" == refusal(both, LINUX).found
    # A declared platform that was locked elsewhere, where it can be, counts as locked.
    lock.write(
        dataclasses.replace(sample(), platform="linux_aarch64", inputs=lock.inputs_digest(both, "linux_aarch64")),
        tmp_path,
    )
    assert lock.status(both, "linux_aarch64", tmp_path) == "locked"


def test_another_targets_or_platforms_lock_is_stale(tmp_path: Path) -> None:
    for other, platform in ((samples.target("there"), LINUX), (samples.target(), "linux_aarch64")):
        lock.write(dataclasses.replace(sample(), inputs=lock.inputs_digest(other, platform)), tmp_path)
        assert lock.status(samples.target(), LINUX, tmp_path) == "stale"


def test_the_digest_of_the_inputs_changes_with_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base = samples.target(companions=["torchvision"])
    others = {
        "torch": dataclasses.replace(base, torch=next(t for t in matrix.releases() if t != base.torch)),
        "variant": dataclasses.replace(base, variant=str(CUDA)),
        "no index": dataclasses.replace(base, index=None),
        "python": dataclasses.replace(base, python="3.0"),
        "packages": dataclasses.replace(base, packages=("alpha", "beta")),
        "package versions": dataclasses.replace(base, packages=("alpha>=1",)),
        "companions": dataclasses.replace(base, companions=()),
        "macOS": dataclasses.replace(base, macos="14.0"),
        "name": dataclasses.replace(base, name="there"),
    }
    digests = {name: lock.inputs_digest(other, LINUX) for name, other in others.items()}
    digests["nothing"] = lock.inputs_digest(base, LINUX)
    digests["platform"] = lock.inputs_digest(base, "linux_aarch64")
    release = matrix.release(TORCH)
    assert release
    newer = dataclasses.replace(release, glibc={LINUX: "2.39"})
    monkeypatch.setattr(matrix, "release", lambda _: newer)
    digests["glibc"] = lock.inputs_digest(base, LINUX)
    assert len(set(digests.values())) == len(digests)


def test_the_digest_of_the_inputs_does_not_change_with_what_is_not_asked() -> None:
    base = samples.target()
    data: dict[str, Any] = {
        "indexes": {"other": "https://mirror.example/"},
        "defaults": {"engines": ["docker", "venv"], "base": "registry"},
        "suites": {"stable": {"python": samples.PYTHON, "image": "debian:stable-slim"}},
    }
    data["targets"] = {"here": samples.row(index="other", why="another reason", platforms=["linux_aarch64", LINUX])}
    other = spec.parse(data, Path(spec.TABLE)).targets["here"]
    assert other != base
    assert lock.inputs_digest(other, LINUX) == lock.inputs_digest(base, LINUX)


# --- solving --------------------------------------------------------------------------------------------------------

ALPHA1, ALPHA2 = samples.wheel("alpha", "1.0"), samples.wheel("alpha", "2.0")
BETA = samples.wheel("beta", "1.5")
TORCH_CPU = samples.torch_wheel(f"{TORCH}+cpu")
TORCH_PLAIN = samples.torch_wheel(TORCH)


def test_the_lock_is_the_same_from_an_index_and_from_a_folder(tmp_path: Path) -> None:
    wanted = {"alpha": "2.0", "beta": "1.5", "torch": f"{TORCH}+cpu"}
    files = {**ALPHA2, **BETA, **TORCH_CPU}
    with serve(ALPHA1, ALPHA2, BETA) as rest, serve(TORCH_CPU, samples.wheel("alpha", "9.0")) as own:
        by_name = resolver.solve(samples.target(), LINUX, Sources(default=rest.url, named={INDEX: own.url}))
        heads = {r.path.rsplit("/", 1)[-1] for r in (*rest.requests, *own.requests) if r.method == "HEAD"}
        assert set(files) <= heads  # pages tell no size: each wheel is asked for its own
        # Only torch is bound to the row's own index: its other packages are not taken.
        assert versions(by_name) == wanted
    for wheel in by_name.wheels:
        assert wheel.size == len(files[wheel.file])
        assert wheel.sha256 == hashlib.sha256(files[wheel.file]).hexdigest()
    assert by_name.inputs == lock.inputs_digest(samples.target(), LINUX)

    strange = folder(tmp_path / "my wheels #1 %41", ALPHA1, ALPHA2, BETA, TORCH_CPU)
    from_folder = resolver.solve(samples.target(), LINUX, strange)
    assert lock.serialize(from_folder) == lock.serialize(by_name)


def test_an_index_without_digests_gives_the_same_lock() -> None:
    with serve(ALPHA2, BETA) as rest, serve(TORCH_CPU) as own:
        sources = Sources(default=rest.url, named={INDEX: own.url})
        first = resolver.solve(samples.target(), LINUX, sources)
        rest.manners.hashes = own.manners.hashes = False
        os.environ["UV_CACHE_DIR"] += "-other"  # undone by the fixture
        assert resolver.solve(samples.target(), LINUX, sources) == first


def test_companions_come_from_the_rows_index_too() -> None:
    target = samples.target(companions=["torchvision"])
    version = target.companions[0].partition("==")[2]
    with (
        serve(ALPHA1, BETA, samples.wheel("torchvision", version)) as rest,
        serve(TORCH_CPU, samples.wheel("torchvision", f"{version}+cpu")) as own,
    ):
        solved = resolver.solve(target, LINUX, Sources(default=rest.url, named={INDEX: own.url}))
    assert versions(solved)["torchvision"] == f"{version}+cpu"


@pytest.mark.parametrize("build", ["cpu", "cu126"])
def test_another_local_build_is_never_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str) -> None:
    """==X.Y.Z alone would accept X.Y.Z+cpu from a folder of wheels, and even prefer it."""
    target = samples.target(**PLAIN, companions=["torchvision"])
    version = target.companions[0].partition("==")[2]
    others = samples.torch_wheel(f"{TORCH}+{build}") | samples.wheel("torchvision", f"{version}+{build}")
    plain = folder(tmp_path / "both", others, ALPHA1, BETA, TORCH_PLAIN, samples.wheel("torchvision", version))
    solved = resolver.solve(target, LINUX, plain)
    assert versions(solved)["torch"] == TORCH
    assert versions(solved)["torchvision"] == version

    only = folder(tmp_path / "only", others, ALPHA1, BETA)
    with pytest.raises(LockError) as caught:
        resolver.solve(target, LINUX, only)
    assert "no lock for" in caught.value.what
    # Without the exclusion uv takes it, and only the check of the result finds it out.
    monkeypatch.setattr(lock, "_without_local_builds", lambda _, pin: pin)
    with pytest.raises(LockError) as caught:
        resolver.solve(dataclasses.replace(target, variant="cu999"), LINUX, only)
    assert f"torch {TORCH}+{build}" in caught.value.found


def test_a_build_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    mine = folder(tmp_path, samples.torch_wheel(f"{TORCH}+mine"), ALPHA1, BETA)
    with pytest.raises(LockError) as caught:
        resolver.solve(samples.target(**PLAIN), LINUX, mine)
    assert f"torch {TORCH}+mine" in caught.value.found
    assert f"the row allows {TORCH}" in caught.value.found


def test_old_versions_are_kept_and_newest_taken_on_upgrade(tmp_path: Path) -> None:
    sources = folder(tmp_path, ALPHA1, BETA, TORCH_CPU)
    target, more = samples.target(), samples.target(packages=["alpha>=2"])
    old = resolver.solve(target, LINUX, sources)
    folder(tmp_path, ALPHA2, samples.wheel("beta", "1.9"))
    assert resolver.solve(target, LINUX, sources, old=old) == old
    newest = {"alpha": "2.0", "beta": "1.9", "torch": f"{TORCH}+cpu"}
    assert versions(resolver.solve(target, LINUX, sources)) == newest
    # What cannot stay goes; the rest stays.
    assert versions(resolver.solve(more, LINUX, sources, old=old)) == {**newest, "beta": "1.5"}
    # A package no longer asked for goes too.
    assert "alpha" not in versions(resolver.solve(samples.target(packages=["beta"]), LINUX, sources, old=old))


def test_a_row_without_solution_gives_the_resolvers_reason(tmp_path: Path) -> None:
    with pytest.raises(LockError) as caught:
        resolver.solve(samples.target(packages=["alpha>=3"]), LINUX, folder(tmp_path, ALPHA1, ALPHA2, BETA, TORCH_CPU))
    assert caught.value.code == 4
    assert "alpha>=3" in caught.value.found
    assert "[targets.here]" in caught.value.fix


@pytest.mark.parametrize(
    "files",
    [samples.sdist("alpha", "1.0"), samples.wheel("alpha", "1.0", "cp311-cp311-win_amd64")],
    ids=["sdist", "another platform's wheel"],
)
def test_a_package_without_a_wheel_for_the_platform_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(LockError) as caught:
        resolver.solve(samples.target(**PLAIN), LINUX, folder(tmp_path, files, BETA, TORCH_PLAIN))
    assert "alpha" in caught.value.found


def test_an_unreachable_index_is_told_within_seconds() -> None:
    gone = closed_port()
    with serve(ALPHA1, BETA) as rest:
        began = time.monotonic()
        with pytest.raises(LockError) as caught:
            resolver.solve(samples.target(), LINUX, Sources(default=rest.url, named={INDEX: gone}), old=sample())
    assert time.monotonic() - began < 8
    assert gone in caught.value.found
    assert f"--index {INDEX}=none" in caught.value.fix
    assert "PIP_FIND_LINKS=" in caught.value.fix


def test_an_unreachable_default_index_is_no_fault_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(LockError) as caught:
        resolver.solve(samples.target(**PLAIN), LINUX, Sources(default=closed_port().replace("//", "//user:secret@")))
    assert "mirror" in caught.value.fix
    assert "[targets" not in caught.value.fix
    assert "--index" not in caught.value.fix
    assert "secret" not in str(caught.value)


def test_an_address_with_odd_characters_cannot_break_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    odd = 'http://127.0.0.1:1/"\n[tool.uv]\nno-index = true'
    with serve(ALPHA1, BETA) as rest, pytest.raises(LockError):
        resolver.solve(samples.target(), LINUX, Sources(default=rest.url, named={INDEX: odd}, timeout=1))


# --- for other platforms ----------------------------------------------------------------------------------------------


def test_a_mac_is_locked_from_anywhere(tmp_path: Path) -> None:
    target = samples.target(
        variant="mps", index=None, platforms=["macos_arm64"], python=samples.SHIPPED.targets["mps"].python
    )
    assert target.macos
    floor, above = target.macos.split(".")[0], int(target.macos.split(".")[0]) + 1
    sources = folder(
        tmp_path,
        samples.wheel("alpha", "1.0", f"py3-none-macosx_{floor}_0_arm64"),
        samples.wheel("alpha", "2.0", f"py3-none-macosx_{above}_0_arm64"),  # its Macs may be older
        samples.wheel("alpha", "3.0", "py3-none-manylinux_2_28_x86_64"),
        samples.wheel("alpha", "4.0", f"py3-none-macosx_{floor}_0_x86_64"),
        BETA,
        samples.torch_wheel(TORCH, target.python, f"macosx_{floor}_0_arm64"),
    )
    solved = resolver.solve(target, "macos_arm64", sources)
    assert versions(solved) == {"alpha": "1.0", "beta": "1.5", "torch": TORCH}


def test_a_mac_that_installs_torch_installs_all_even_where_mps_needs_a_newer_macos(tmp_path: Path) -> None:
    torch, python, floor = next(
        (torch, python, floor)
        for torch in reversed(matrix.releases())
        for python in matrix.pythons(torch, MAC)
        if (floor := matrix.macos_floor(torch, python)) and not matrix.at_least(floor.install, floor.mps)
    )
    target = samples.target(torch=torch, variant="mps", index=None, platforms=[MAC], python=python)
    assert target.macos == floor.mps
    install, newer = (version.replace(".", "_") for version in (floor.install, floor.mps))
    sources = folder(
        tmp_path,
        samples.wheel("alpha", "1.0", f"py3-none-macosx_{install}_arm64"),
        samples.wheel("alpha", "2.0", f"py3-none-macosx_{newer}_arm64"),
        BETA,
        samples.torch_wheel(torch, python, f"macosx_{install}_arm64"),
    )
    solved = resolver.solve(target, MAC, sources)
    assert versions(solved)["alpha"] == "1.0"
    assert not uninstallable(solved, target, MAC)


def test_linux_wheels_stay_below_the_lowest_glibc(tmp_path: Path) -> None:
    target = samples.target(**PLAIN, platforms=[LINUX])
    assert target.glibc
    minor = int(target.glibc.split(".")[1])
    sources = folder(
        tmp_path,
        samples.wheel("alpha", "1.0", f"py3-none-manylinux_2_{minor}_x86_64"),
        samples.wheel("alpha", "2.0", f"py3-none-manylinux_2_{minor + 1}_x86_64"),
        samples.wheel("alpha", "3.0", f"py3-none-manylinux_2_{minor}_aarch64"),
        BETA,
        TORCH_PLAIN,
    )
    assert versions(resolver.solve(target, LINUX, sources))["alpha"] == "1.0"


# --- the committed locks ----------------------------------------------------------------------------------------------

COMMITTED = sorted(IMAGES.glob("*/*.lock"))


def installable(target: Target, platform: str) -> set[tags.Tag]:
    """What pip takes on the oldest machine of that platform that torch itself installs on."""
    version = tuple(int(part) for part in target.python.split("."))
    release, mac = matrix.release(target.torch), matrix.macos_floor(target.torch, target.python)
    if platform == MAC:
        assert mac
        major, minor = matrix.numbers(mac.install)
        places = list(tags.mac_platforms((major, minor), "arm64"))
    else:
        assert release
        glibc = release.glibc[platform]
        assert glibc, f"labrig/data knows the glibc of a target that is locked for {platform}"
        machine = platform.removeprefix("linux_")
        places = [f"manylinux_2_{minor}_{machine}" for minor in range(matrix.numbers(glibc)[1], 4, -1)]
        places += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    return {
        *tags.cpython_tags(version, platforms=places),
        *tags.compatible_tags(version, f"cp{version[0]}{version[1]}", places),
    }


def uninstallable(one: Lock, target: Target, platform: str) -> list[str]:
    """Wheels of a lock that the oldest machine would refuse."""
    possible = installable(target, platform)
    return [wheel.file for wheel in one.wheels if not parse_wheel_filename(wheel.file)[3] & possible]


def test_every_lockable_platform_is_locked() -> None:
    expected = {
        lock.path(IMAGES, target.name, platform)
        for target in samples.SHIPPED.targets.values()
        for platform in target.platforms
        if platform not in target.unlocked
    }
    assert expected
    assert set(COMMITTED) == expected


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_committed_lock_is_current_installable_and_holds_no_address(
    file: Path, record_property: Callable[[str, object], None]
) -> None:
    target = samples.SHIPPED.targets[file.parent.name]
    one = lock.load(target, file.stem, IMAGES)
    assert lock.serialize(one) == file.read_text()
    assert uninstallable(one, target, file.stem) == []
    resolver._check_builds(target, one)
    for package in target.packages:
        assert one.wheel(package), package
    assert "://" not in file.read_text()
    assert not re.search(r"[/\\]", file.read_text().replace(lock.HEADER.format(target=target.name), ""))
    assert one.size > sum(w.size for w in one.wheels if w.name != "torch")
    for engine in {"docker", "venv"} & set(target.engines):
        record_property("proves", f"{target.name} {engine} locked")


def stranger(target: Target, platform: str, *, newer: int = 0, machine: str = "", python: str = "") -> str:
    """The file of a wheel for the oldest machine of a lock, or for one that is a little different."""
    cpython = f"cp{(python or target.python).replace('.', '')}"
    floor = lock.oldest_macos(target)
    if platform == MAC:
        assert floor
        return f"alpha-1.0-{cpython}-{cpython}-macosx_{matrix.numbers(floor)[0] + newer}_0_{machine or 'arm64'}.whl"
    release = matrix.release(target.torch)
    assert release
    glibc = matrix.numbers(release.glibc[platform] or "")[1] + newer
    place = f"manylinux_2_{glibc}_{machine or platform.removeprefix('linux_')}"
    return f"alpha-1.0-{cpython}-{cpython}-{place}.whl"


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_wheel_that_the_oldest_machine_would_refuse_does_not_pass(file: Path) -> None:
    """The check above can fail: a system one version newer, another machine, another Python."""
    target = samples.SHIPPED.targets[file.parent.name]
    one = lock.load(target, file.stem, IMAGES)

    def refused(name: str) -> list[str]:
        entry = dataclasses.replace(one.wheels[0], file=name)
        return uninstallable(dataclasses.replace(one, wheels=(entry,)), target, file.stem)

    assert refused(stranger(target, file.stem)) == []
    others = [
        stranger(target, file.stem, newer=1),
        stranger(target, file.stem, machine="riscv64" if file.stem != MAC else "x86_64"),
        stranger(target, file.stem, python="3.9"),
    ]
    for name in others:
        assert refused(name) == [name]
