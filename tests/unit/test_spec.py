"""The pin table: what a row may say, what follows from it, and that every mistake is named with what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labrig import matrix, spec
from labrig.errors import SpecError
from labrig.spec import Table, Target

SHIPPED = Path(__file__).parents[2] / "images" / spec.TABLE
TORCH = spec.read(SHIPPED).targets["cuda"].torch
OLD = spec.read(SHIPPED).targets["cuda-legacy"].torch
PYTHON = spec.read(SHIPPED).targets["cuda"].python

CUDA = {"torch": TORCH, "variant": matrix.default_variant(TORCH, "linux_x86_64"), "python": PYTHON, "why": "a test"}
CPU = {**CUDA, "variant": "cpu", "index": "pytorch-cpu"}
MPS = {**CUDA, "variant": "mps", "platforms": ["macos_arm64"]}
DEFAULTS = {"packages": ["numpy"], "engines": ["venv"]}
SUITES = {"stable": {"python": PYTHON, "image": "debian:stable-slim"}}
CONDA = {"channel": "conda-forge", "address": "https://channel.example/conda-forge", "python": {PYTHON: f"{PYTHON}.7"}}
INDEXES = {"pytorch-cpu": "https://index.example/cpu"}


def toml(value: object) -> str:
    """A value as TOML; of what the tests need, JSON differs in tables only."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)


def document(row: dict[str, Any], name: str = "here", **top: object) -> str:
    data = {"defaults": DEFAULTS, "conda": CONDA, "indexes": INDEXES, "suites": SUITES, "targets": {name: row}} | top
    return "".join(f"{key} = {toml(value)}\n" for key, value in data.items())


class Written:
    """A pin table in a folder of the test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, text: str | bytes) -> Table:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return spec.read(self.path)

    def target(self, row: dict[str, Any]) -> Target:
        return self.read(document(row)).targets["here"]

    def error(self, text: str | bytes | dict[str, Any]) -> SpecError:
        with pytest.raises(SpecError) as caught:
            self.read(document(text) if isinstance(text, dict) else text)
        assert caught.value.code == 2
        assert caught.value.fix
        return caught.value


@pytest.fixture
def table(tmp_path: Path) -> Written:
    return Written(tmp_path / spec.TABLE)


def changed(row: dict[str, Any], **keys: object) -> dict[str, Any]:
    """The row with keys set, or left out where the value is None."""
    return {key: value for key, value in {**row, **keys}.items() if value is not None}


# --- the shipped table --------------------------------------------------------------------------------------------


def test_the_shipped_rows_are_the_decided_ones() -> None:
    table = spec.read(SHIPPED)
    assert {t.name: (t.torch, t.variant, t.python, t.device) for t in table.targets.values()} == {
        "cpu": ("2.13.0", "cpu", "3.11", "cpu"),
        "cuda": ("2.13.0", "cu130", "3.13", "cuda"),
        "cuda-legacy": ("2.7.1", "cu126", "3.11", "cuda"),
        "mps": ("2.13.0", "mps", "3.13", "mps"),
    }
    platforms = {t.name: t.platforms for t in table.targets.values()}
    assert platforms == {
        "cpu": ("linux_x86_64", "linux_aarch64"),
        "cuda": ("linux_x86_64",),
        "cuda-legacy": ("linux_x86_64",),
        "mps": ("macos_arm64",),
    }
    for target in table.targets.values():
        hub = () if target.name == "mps" else ("jupyterhub",)  # starts images only
        assert target.packages == ("numpy", "scikit-learn", "matplotlib", "jupyterlab", *hub)
        assert target.companions == ()
    assert table.indexes["pytorch-cpu"] == "https://download.pytorch.org/whl/cpu"
    assert table.targets["cpu"].index == "pytorch-cpu"
    assert "docker" not in table.targets["mps"].engines


def test_what_follows_is_the_datas() -> None:
    targets = spec.read(SHIPPED).targets
    for target in targets.values():
        if target.device == "cuda":
            build = matrix.variant(target.torch, target.variant)
            assert build and build.cuda
            assert build.cuda.startswith(f"{target.cuda}.")
            assert target.min_driver == matrix.driver_floor(target.variant, build.cuda)
            assert target.capabilities == matrix.archs(target.torch, target.variant, target.platforms[0])
            assert target.index is None
            assert matrix.default_variant(target.torch, target.platforms[0]) == target.variant
        else:
            assert (target.cuda, target.min_driver, target.capabilities) == (None, None, ())
        release = matrix.release(target.torch)
        assert release and target.glibc == release.glibc.get(target.platforms[0])
    # What the rows are for.
    assert matrix.numbers(targets["cuda"].min_driver or "0")[0] == 580
    assert targets["cuda"].capabilities[0] == "7.5"
    assert targets["cuda"].capabilities[-1].startswith("12.")
    assert {"5.0", "6.0", "7.0"} <= set(targets["cuda-legacy"].capabilities)
    floors = [matrix.numbers(targets[name].min_driver or "0") for name in ("cuda-legacy", "cuda")]
    assert floors == sorted(floors)
    assert targets["mps"].macos == "14.0"
    assert targets["mps"].glibc is None


def test_a_target_is_picked_by_name() -> None:
    table = spec.read(SHIPPED)
    assert table.pick("cuda").name == "cuda"
    with pytest.raises(SpecError) as caught:
        table.pick("cudda")
    assert "'cudda'" in str(caught.value)
    for name in table.targets:
        assert name in caught.value.found


# --- what a row may leave out, and what then follows ----------------------------------------------------------------


def test_a_short_row_is_completed(table: Written) -> None:
    target = table.target(CUDA)
    assert target.platforms == ("linux_x86_64",)
    assert target.packages == tuple(DEFAULTS["packages"])
    assert target.engines == tuple(DEFAULTS["engines"])
    assert target.index is None
    assert target.pinned == ("torch",)


def test_a_row_may_replace_the_defaults(table: Written) -> None:
    target = table.target(changed(CUDA, packages=["scipy >= 1,<2"], engines=["conda", "docker"], base="registry"))
    assert target.packages == ("scipy<2,>=1",)
    assert target.engines == ("conda", "docker")
    assert target.base == "registry"


def test_conda_takes_build_and_gpus_from_the_data_and_python_from_the_table(table: Written) -> None:
    found = table.target(changed(CUDA, engines=["conda"])).conda
    build = matrix.conda_build(TORCH, str(CUDA["variant"]), "linux_x86_64")
    assert found
    assert build
    assert (found.channel, found.address) == (CONDA["channel"], CONDA["address"])
    assert (found.python, found.build, found.cuda) == (f"{PYTHON}.7", build.build, build.cuda)
    assert dict(found.archs) == {"linux_x86_64": build.archs}
    assert table.target(CUDA).conda is None
    mac = table.target(changed(MPS, engines=["conda"])).conda
    assert mac
    assert (mac.build, mac.cuda) == ("cpu_*", None), "MPS is in the build for the CPU"


def test_what_conda_forge_is_not_known_to_have_is_refused(table: Written) -> None:
    old = {**CUDA, "torch": OLD, "variant": matrix.default_variant(OLD, "linux_x86_64"), "engines": ["conda"]}
    error = table.error(old)
    assert f"conda.tsv has no build of torch {OLD}" in error.fix
    assert "engines without conda" in error.fix


@pytest.mark.parametrize(
    ("conda", "says"),
    [
        ({}, "[conda.python]"),
        ({**CONDA, "channel": "https://x.example/"}, "name of a channel"),
        ({**CONDA, "address": "conda-forge"}, "address"),
        ({**CONDA, "python": {}}, "exact version"),
        ({**CONDA, "python": {PYTHON: PYTHON}}, "exact version"),
        ({**CONDA, "python": {PYTHON: "3.1.4"}}, f"a patch release of Python {PYTHON}"),
        ({**CONDA, "python": "3.13.1"}, "a table"),
        ({**CONDA, "mirror": "x"}, "allowed"),
    ],
)
def test_a_wrong_conda_table_is_named(table: Written, conda: dict[str, Any], says: str) -> None:
    error = table.error(document(changed(CUDA, engines=["conda"]), conda=conda))
    assert says in str(error)


def test_companions_get_the_version_of_the_data(table: Written) -> None:
    target = table.target(changed(CUDA, companions=["torchvision", "torchaudio"]))
    release = matrix.release(TORCH)
    assert release
    assert target.companions == (f"torchvision=={release.torchvision}", f"torchaudio=={release.torchaudio}")
    assert target.pinned == ("torch", "torchvision", "torchaudio")


@pytest.mark.parametrize("row", [CUDA, CPU, MPS], ids=["cuda", "cpu", "mps"])
def test_derived_values_may_be_repeated(table: Written, row: dict[str, Any]) -> None:
    target = table.target(row)
    derived = {
        "cuda": target.cuda,
        "min_driver": target.min_driver,
        "capabilities": list(target.capabilities) or None,
        "glibc": target.glibc,
        "macos": target.macos,
    }
    assert table.target(changed(row, **derived)) == target


@pytest.mark.parametrize(
    ("row", "key", "value"),
    [
        (CUDA, "cuda", "12.9"),
        (CUDA, "cuda", 13.0),
        (CPU, "cuda", "13.0"),
        (CUDA, "min_driver", "1"),
        (CPU, "min_driver", "525"),
        (CUDA, "capabilities", ["9.0"]),
        (CUDA, "capabilities", "7.5"),
        (CPU, "glibc", "2.17"),
        (MPS, "glibc", "2.28"),
        (MPS, "macos", "11.0"),
        (CUDA, "macos", "14.0"),
    ],
)
def test_a_derived_value_that_is_wrong_is_told_with_the_right_one(
    table: Written, row: dict[str, Any], key: str, value: object
) -> None:
    target = table.target(row)
    fact = getattr(target, key)
    error = table.error(changed(row, **{key: value}))
    assert f"[targets.here] key {key!r}" in error.what
    assert error.found == repr(value)
    assert (repr(list(fact) if isinstance(fact, tuple) else fact) if fact else "nothing") in error.fix


def test_every_release_of_the_data_can_be_a_row(table: Written) -> None:
    """A new release is a new row: whatever the data knows, a row with only the needed keys is accepted or refused."""
    accepted = 0
    for torch in matrix.releases():
        for build in matrix.variants(torch):
            for python in matrix.pythons(torch, "linux_x86_64"):
                row = changed(CPU, torch=torch, variant=build.name, python=python)
                try:
                    target = table.target(row)
                except SpecError:
                    known = build.kind in ("cpu", "cuda") and "linux_x86_64" in build.platforms
                    assert not known or python.endswith("t")
                    continue
                accepted += 1
                assert target.platforms
                assert target.device == build.kind
    assert accepted > len(matrix.releases())


# --- mistakes -------------------------------------------------------------------------------------------------------

UNKNOWN = "9.9.9"
assert UNKNOWN not in matrix.releases()
NO_LINUX_CPU = next(t for t in matrix.releases() for v in [matrix.variant(t, "cpu")] if v and not any(
    p.startswith("linux") for p in v.platforms))  # fmt: skip
NO_VISION = next(
    (torch, python)
    for torch in matrix.releases()
    for python in matrix.pythons(torch, "linux_x86_64")
    for release in [matrix.release(torch)]
    if not python.endswith("t")
    and release
    and release.torchvision
    and python not in matrix.companion_pythons("torchvision", release.torchvision, "linux_x86_64")
)
HAVE = " ".join(matrix.pythons(TORCH, "linux_x86_64"))

MISTAKES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # what: (row, key named, found, in what is allowed)
    "torch as a number": (changed(CPU, torch=2.13), "torch", "2.13 (a number)", 'in quotes, such as "2.13.0"'),
    "torch as a boolean": (changed(CPU, torch=True), "torch", "True (a boolean)", "in quotes"),
    "torch as a list": (changed(CPU, torch=["2.13.0"]), "torch", "['2.13.0'] (a list)", "in quotes"),
    "torch by minor": (changed(CPU, torch="2.13"), "torch", "'2.13'", "exact version"),
    "torch from a version on": (changed(CPU, torch=">=2.13"), "torch", "'>=2.13'", "exact version"),
    "torch with its build": (changed(CPU, torch=f"{TORCH}+cpu"), "torch", f"'{TORCH}+cpu'", "exact version"),
    "torch with a line end": (changed(CPU, torch=f"{TORCH}\n"), "torch", f"'{TORCH}\\n'", "exact version"),
    "unknown torch": (changed(CPU, torch=UNKNOWN), "torch", UNKNOWN, ", ".join(matrix.releases())),
    "no torch": (changed(CPU, torch=None), "torch", "nothing", "exact version"),
    "no why": (changed(CPU, why=None), "why", "nothing", "text in quotes"),
    "empty why": (changed(CPU, why=" "), "why", "' '", "text in quotes"),
    "python as a number": (changed(CPU, python=3.11), "python", "3.11 (a number)", 'minor version in quotes'),
    "python by patch": (changed(CPU, python="3.11.7"), "python", "'3.11.7'", "minor version"),
    "python without a wheel": (changed(CPU, python="3.2"), "python", "3.2", f"on linux_x86_64: {HAVE}"),
    "unknown variant": (
        changed(CPU, variant="cu999"), "variant", "'cu999'",
        ", ".join(v.name for v in matrix.variants(TORCH) if v.kind in ("cpu", "cuda") and v.platforms) + ", mps",
    ),
    "a variant labrig has no devices for": (changed(CPU, variant="xpu"), "variant", "'xpu'", "cpu"),
    "a variant with no wheel on Linux": (changed(CPU, torch=NO_LINUX_CPU), "variant", "cpu", "linux_x86_64"),
    "mps in a container": (changed(MPS, engines=["venv", "docker"]), "engines", "docker", "venv or conda"),
    "CUDA on macOS": (changed(CUDA, platforms=["macos_arm64"]), "platforms", "'macos_arm64'", "linux_x86_64"),
    "cpu on macOS": (changed(CPU, platforms=["macos_arm64"]), "platforms", "'macos_arm64'", "linux_x86_64"),
    "mps on Linux": (changed(MPS, platforms=["linux_x86_64"]), "platforms", "'linux_x86_64'", "macos_arm64"),
    "Windows": (changed(CPU, platforms=["windows_amd64"]), "platforms", "'windows_amd64'", "WSL2"),
    "no platform": (changed(CPU, platforms=[]), "platforms", "[] (a list)", "at least one"),
    "a platform twice": (changed(CPU, platforms=["linux_x86_64"] * 2), "platforms", "linux_x86_64", "each once"),
    "platforms as text": (changed(CPU, platforms="linux_x86_64"), "platforms", "'linux_x86_64'", "a list"),
    "another build without an index": (changed(CPU, index=None), "index", str(CUDA["variant"]), "pytorch-cpu"),
    "an unknown index": (changed(CPU, index="pypi"), "index", "'pypi'", "pytorch-cpu"),
    "an address as index": (changed(CPU, index="https://a.example"), "index", "'https://a.example'", "pytorch-cpu"),
    "an unknown engine": (changed(CPU, engines=["podman"]), "engines", "['podman'] (a list)", "docker, venv, conda"),
    "an address as package": (changed(CPU, packages=["x @ https://a.example/x.whl"]), "packages",
                              "'x @ https://a.example/x.whl'", "no address"),
    "a package with a marker": (changed(CPU, packages=["x; python_version > '3'"]), "packages",
                                "\"x; python_version > '3'\"", "no marker"),
    "a package that is none": (changed(CPU, packages=["--index-url=x"]), "packages", "'--index-url=x'", "name"),
    "a package deeply nested": (changed(CPU, packages=["x; " + "(" * 5000]), "packages", "'x; (((", "name"),
    "torch among the packages": (changed(CPU, packages=["Torch"]), "packages", "'Torch'", "companions"),
    "torchvision among them": (changed(CPU, packages=["numpy", "torchvision>=0"]), "packages",
                               "'torchvision>=0'", "companions"),
    "a package as a number": (changed(CPU, packages=[1]), "packages", "[1] (a list)", "a list of texts"),
    "another companion": (changed(CPU, companions=["torchtext"]), "companions", "['torchtext'] (a list)",
                          "torchvision, torchaudio"),
    "a companion without a wheel": (
        changed(CPU, torch=NO_VISION[0], python=NO_VISION[1], companions=["torchvision"]),
        "companions", "torchvision", "has wheels for Python",
    ),
    "unlocked, another platform": (changed(CPU, unlocked={"macos_arm64": "no"}), "unlocked", "'macos_arm64'", "linux"),
    "unlocked without a reason": (changed(CPU, unlocked={"linux_x86_64": ""}), "unlocked.linux_x86_64", "''", "reason"),
    "unlocked as a list": (changed(CPU, unlocked=["linux_x86_64"]), "unlocked", "['linux_x86_64']", "a table"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_row_key_found_and_allowed(table: Written, mistake: str) -> None:
    row, key, found, allowed = MISTAKES[mistake]
    error = table.error(row)
    assert error.what == f"{spec.TABLE}: [targets.here] key {key!r} is wrong"
    assert found in error.found
    assert error.fix.startswith("allowed: ")
    assert allowed in error.fix
    assert "\n" not in error.found


def test_without_any_index_the_fix_says_so(table: Written) -> None:
    for row in (CPU, changed(CPU, index=None)):
        assert "none" in table.error(document(row, indexes={})).fix


@pytest.mark.parametrize(
    ("text", "title", "allowed"),
    [
        (document({**CPU, "pyhton": "3.11"}), "[targets.here]", "python"),
        (document(CPU, defaults={**DEFAULTS, "torch": TORCH}), "[defaults]", "packages"),
        (document(CPU, target={}), "the top level", "targets"),
    ],
)
def test_an_unknown_key_is_named_at_each_level(table: Written, text: str, title: str, allowed: str) -> None:
    error = table.error(text)
    assert error.what == f"{spec.TABLE}: {title} has an unknown key"
    assert error.found in ("'pyhton'", "'torch'", "'target'")
    assert allowed in error.fix


def test_where_it_is_published(table: Written) -> None:
    assert table.read(document(CPU)).project == spec.Project("OWNER/labrig", "main")
    given = {"repository": "an-institute/pytorch.labs_2", "branch": "2026-autumn"}
    assert table.read(document(CPU, project=given)).project == spec.Project(*given.values())
    assert table.read(document(CPU, project={"branch": "dev"})).project == spec.Project(branch="dev")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("repository", value)
            for value in ("", "labrig", "a/b/c", "-a/b", "a_b/c", "a/.c", "a/b c", 'a/b"', "a/b)", 7)
        ),
        *(("branch", value) for value in ("", "a/b", ".", "..", "-b", "a b", "a?b", "a#b", "a\n", ["main"])),
        ("brunch", "main"),
    ],
)
def test_a_wrong_place_is_named_with_what_is_allowed(table: Written, key: str, value: object) -> None:
    error = table.error(document(CPU, project={key: value}))
    assert "[project]" in error.what
    assert "branch" in error.fix or "owner/name" in error.fix


@pytest.mark.parametrize("name", ["", "a" * 41, "CPU", "cpu_x", "../cpu", "cpu cuda", "cpü", "cpu\n", "٣"])
def test_a_bad_row_name_is_refused(table: Written, name: str) -> None:
    error = table.error(document(CPU, name=name))
    assert error.found == repr(name)
    assert "1 to 40" in error.fix


@pytest.mark.parametrize("name", ["a", "a" * 40, "0-9-z"])
def test_a_good_row_name_is_taken(table: Written, name: str) -> None:
    assert list(table.read(document(CPU, name=name)).targets) == [name]


@pytest.mark.parametrize(
    "address",
    [
        "", "index.example/cpu", "ftp://a.example", "https://", 7, None, "https://a.example/ b",
        'https://a.example/"', "https://a.example/$(id)", "https://a.example/`id`", "https://a.example/}", "https://a\n",
        "https://a.example/\\",
    ],
)  # fmt: skip
def test_an_index_is_an_address(table: Written, address: object) -> None:
    text = document(CPU, indexes={"pytorch-cpu": address}) if address is not None else document(CPU, indexes=["x"])
    error = table.error(text)
    assert "indexes" in error.what
    assert "allowed" in error.fix


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8080/simple/", "file:///srv/wheels", "https://u:p@a.example/%20"]
)
def test_a_mirror_is_an_address_too(table: Written, address: str) -> None:
    assert table.read(document(CPU, indexes={"pytorch-cpu": address})).indexes == {"pytorch-cpu": address}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "targets"),
        ("targets = {}", "at least one"),
        ("targets = 3", "a table"),
        ("targets = {a = 3}", "targets.a"),
        ("[targets.a", "TOML"),
        ("a = " + "[" * 100_000, "TOML"),
        ("a = " + "9" * 5000, "TOML"),
        ("a" + ".a" * 5000 + " = 1", "unknown key"),
        ("targets.a" + ".a" * 5000 + " = 1", "unknown key"),
        ("targets.a.torch" + ".a" * 5000 + " = 1", "torch"),
        ("targets.a.torch = 0x" + "f" * 5000, "torch"),
        (b"\xff\xfe", "UTF-8"),
        (b"\xef\xbb\xbfa = 1", "TOML"),
        ("a = 1\na = 2", "TOML"),
    ],
)
def test_a_file_that_is_no_pin_table(table: Written, text: str | bytes, words: str) -> None:
    error = table.error(text)
    assert words in str(error)
    assert len(str(error)) < 1000


def test_a_row_needs_the_default_it_leaves_out(table: Written) -> None:
    error = table.error(document(CPU, defaults={"engines": ["venv"]}))
    assert "[defaults] key 'packages'" in error.what
    assert error.found == "nothing"


def test_no_file_and_no_file_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SpecError) as caught:
            spec.read(path)
        assert str(path) in str(caught.value)
        assert caught.value.fix


# --- any document ---------------------------------------------------------------------------------------------------

SCALARS = st.none().map(lambda _: True) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
KEYS = ["torch", "variant", "python", "index", "platforms", "packages", "companions", "engines", "unlocked", "why",
        "base", "suite", "cuda", "min_driver", "capabilities", "glibc", "macos"]  # fmt: skip
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "torch": st.sampled_from(matrix.releases()),
    "variant": st.sampled_from(sorted({v.name for t in matrix.releases() for v in matrix.variants(t)} | {"mps"})),
    "python": st.sampled_from(sorted({p for t in matrix.releases() for p in matrix.pythons(t, "linux_x86_64")})),
    "platforms": st.lists(st.sampled_from(matrix.PLATFORMS), max_size=3),
    "engines": st.lists(st.sampled_from(spec.ENGINES), max_size=3),
    "companions": st.lists(st.sampled_from(["torchvision", "torchaudio"]), max_size=2),
    "packages": st.lists(st.sampled_from(["numpy", "torch", "x==1", "x @ file:///x"]) | st.text(), max_size=3),
    "index": st.sampled_from(sorted(INDEXES)),
    "base": st.sampled_from(spec.BASES),
    "suite": st.sampled_from(sorted(SUITES)),
    "unlocked": st.dictionaries(st.sampled_from(matrix.PLATFORMS), st.text(), max_size=2),
}
ROWS = st.fixed_dictionaries(
    {"torch": LIKELY["torch"] | VALUES, "variant": LIKELY["variant"], "python": LIKELY["python"], "why": st.just("w")},
    optional={
        key: LIKELY.get(key, VALUES) | VALUES for key in KEYS if key not in ("torch", "variant", "python", "why")
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"targets": st.dictionaries(st.just("a") | st.text(), ROWS | VALUES, max_size=2) | VALUES},
    optional={
        "defaults": st.just(DEFAULTS) | VALUES,
        "indexes": st.just(INDEXES) | VALUES,
        "suites": st.just(SUITES) | VALUES,
    },
)


@given(DOCUMENTS)
@settings(deadline=None, max_examples=150)
@example({"targets": {"a": {**CPU, "torch": NO_LINUX_CPU}}, "defaults": DEFAULTS, "indexes": INDEXES})
def test_no_table_makes_anything_but_a_spec_error(data: dict[str, Any]) -> None:
    try:
        table = spec.parse(data, Path(spec.TABLE))
    except SpecError as error:
        assert error.what and error.fix
        return
    for target in table.targets.values():
        assert matrix.release(target.torch)
        assert target.platforms and set(target.platforms) <= set(spec.PLATFORMS)
        assert target.device in ("cpu", "cuda", "mps")
        assert not (target.device == "mps" and "docker" in target.engines)
        assert "docker" not in target.engines or (target.suite and target.suite.python == target.python)


@given(st.text() | st.binary() | DOCUMENTS.map(lambda d: "".join(f"{k} = {toml(v)}\n" for k, v in d.items())))
@settings(deadline=None, max_examples=150)
def test_no_file_makes_anything_but_a_spec_error(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        spec.read(path)
    except SpecError as error:
        assert error.what and error.fix
