"""The compatibility tables, read a second time in the plainest way and compared with what labrig.matrix answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig import matrix
from labrig.errors import UsageError

TABLES = (
    "releases", "wheels", "cuda_variants", "drivers", "gpu_arch", "gpus", "macos", "conda", "python", "images",
    "defects", "colab", "chart", "sources",
)  # fmt: skip
REMARK = re.compile(r" \(.*\)$")


def raw(name: str, folder: Path = matrix.DATA) -> list[dict[str, str]]:
    header, *lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def known(value: str) -> str | None:
    return None if value in ("-", "unconfirmed") else REMARK.sub("", value)


def listed(value: str) -> tuple[str, ...]:
    return () if value in ("-", "unconfirmed") else tuple(value.split())


# --- the tables themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_row_parses_and_names_known_sources(name: str) -> None:
    rows = matrix.read_table(matrix.DATA / f"{name}.tsv")
    assert [dict(row) for row in rows] == raw(name)
    assert rows
    for row in rows:
        ids = listed(row.get("src", "-"))
        assert all(matrix.source(id) for id in ids), row
        if name != "sources" and "unconfirmed" not in row["conf"]:
            assert ids, f"a fact without a source: {row}"


def test_every_table_in_the_folder_is_tested() -> None:
    assert sorted(path.stem for path in matrix.DATA.glob("*.tsv")) == sorted(TABLES)


def test_the_tables_fit_each_other() -> None:
    torches = {row["torch"] for row in raw("releases")}
    builds = {(row["torch"], row["variant"]): row for row in raw("cuda_variants")}
    assert {row["torch"] for row in raw("gpu_arch")} <= torches
    assert {torch for torch, _ in builds} == torches
    assert {row["torch"] for row in raw("macos") if row["arch"] == "arm64"} == torches
    assert {(row["torch"], row["variant"]) for row in raw("gpu_arch")} <= set(builds)
    for release in raw("releases"):
        torch = release["torch"]
        assert release["pypi_cuda"] == matrix.default_variant(torch, "linux_x86_64")
        for package in ("torchvision", "torchaudio"):
            for platform in matrix.PLATFORMS:
                assert matrix.companion_pythons(package, release[package], platform)
        for platform in matrix.PLATFORMS:
            everywhere = set(listed(release["python_all"]))
            assert everywhere <= set(matrix.pythons(torch, platform))
    for row in raw("wheels"):
        if row["package"] == "torch" and row["torch"] in torches:
            build = row["build"].removesuffix("+mps")
            assert matrix.default_variant(row["torch"], row["platform"]) == build


def test_every_cuda_build_that_exists_has_a_driver_floor() -> None:
    for torch in matrix.releases():
        for build in matrix.variants(torch):
            if build.kind == "cuda" and build.platforms:
                for system in ("linux", "windows"):
                    assert matrix.driver_floor(build.name, build.cuda, system), (build, system)


# --- each question against the raw rows -------------------------------------------------------------------------------


def test_releases_are_all_there_in_version_order() -> None:
    assert set(matrix.releases()) == {row["torch"] for row in raw("releases")}
    assert list(matrix.releases()) == sorted(matrix.releases(), key=matrix.numbers)
    assert list(matrix.releases()) == [row["torch"] for row in sorted(raw("releases"), key=lambda row: row["released"])]


def test_release() -> None:
    for row in raw("releases"):
        found = matrix.release(row["torch"])
        assert found is not None
        assert (found.torchvision, found.torchaudio) == (known(row["torchvision"]), known(row["torchaudio"]))
        assert found.glibc == {f"linux_{arch}": known(row[f"glibc_{arch}"]) for arch in ("x86_64", "aarch64")}
        assert found.sources == listed(row["src"])
    assert matrix.release("0.0.1") is None


def test_colab_runtimes() -> None:
    rows = raw("colab")
    assert [one.name for one in matrix.colab_runtimes()] == [row["runtime"] for row in rows]
    for found, row in zip(matrix.colab_runtimes(), rows, strict=True):
        assert (found.python, found.torch, found.cuda) == tuple(
            known(row[name]) for name in ("python", "torch", "cuda")
        )
        assert found.os == known(row["os"])
        assert (found.confidence, found.note, found.sources) == (row["conf"], row["note"], listed(row["src"]))
        assert set(row) == {"runtime", "python", "torch", "cuda", "os", "conf", "src", "note"}


def test_variants() -> None:
    for torch in matrix.releases():
        rows = [row for row in raw("cuda_variants") if row["torch"] == torch]
        assert [build.name for build in matrix.variants(torch)] == [row["variant"] for row in rows]
        for row in rows:
            build = matrix.variant(torch, row["variant"])
            assert build is not None
            assert build.kind == row["kind"]
            assert build.cuda == known(row["cuda"])
            assert build.platforms == tuple(name for name in matrix.PLATFORMS if row[name] == "yes")
            assert set(build.default_on) == set(listed(row["pypi_default_on"]))
            assert build.index_path == row["index_path"]
            assert build.sources == listed(row["src"])
            assert set(build.default_on) <= set(build.platforms)
        for platform in matrix.PLATFORMS:
            assert sum(platform in build.default_on for build in matrix.variants(torch)) <= 1
    assert matrix.variants("0.0.1") == ()
    assert matrix.variant(matrix.releases()[-1], "cu1") is None
    assert matrix.default_variant("0.0.1", "linux_x86_64") is None


def test_where_nobody_looked_is_neither_yes_nor_no() -> None:
    for row in raw("cuda_variants"):
        build = matrix.variant(row["torch"], row["variant"])
        assert build is not None
        assert build.unconfirmed == tuple(name for name in matrix.PLATFORMS if row[name] == "unconfirmed")


def test_pythons_newest_first_and_when_their_support_ends() -> None:
    ordinary = [row for row in raw("python") if not row["python"].endswith("t")]
    assert [each.minor for each in matrix.stable_pythons()] == [row["python"] for row in reversed(ordinary)]
    for row in raw("python"):
        found = matrix.python(row["python"])
        assert found is not None
        assert (found.end, found.status, found.torch_last) == (
            row["end_of_support"], row["status"], known(row["torch_last_all_platforms"])
        )  # fmt: skip
        assert found.sources == matrix.cite("python", row["python"]) == listed(row["src"])
    assert matrix.python("2.7") is None


def test_the_newest_driver_is_the_highest_that_a_toolkit_shipped() -> None:
    shipped = [known(row["shipped_linux"]) for row in raw("drivers") if " " not in row["shipped_linux"]]
    assert matrix.newest_driver() == max(filter(None, shipped), key=matrix.numbers)


def test_a_defect_holds_from_its_first_release_to_its_last() -> None:
    (row,) = raw("defects")
    bad = [torch for torch in matrix.releases() if matrix.has_defect(row["defect"], torch, row["platform"])]
    assert (bad[0], bad[-1]) == (row["torch_first"], row["torch_last"])
    assert not matrix.has_defect(row["defect"], bad[0], "linux_x86_64")


def test_cite() -> None:
    for row in raw("gpu_arch"):
        assert matrix.cite("gpu_arch", row["torch"], row["variant"], row["platform"]) == listed(row["src"])
    for row in raw("drivers"):
        assert matrix.cite("drivers", row["variant"], row["toolkit"]) == listed(row["src"])
    assert matrix.cite("gpus", "6.1") and matrix.cite("releases", matrix.releases()[0])
    assert matrix.cite("gpus", "99.0") == ()


def test_default_on_a_mac_is_the_cpu_build() -> None:
    assert {matrix.default_variant(torch, "macos_arm64") for torch in matrix.releases()} == {"cpu"}


def test_pythons() -> None:
    for row in raw("wheels"):
        found = matrix.companion_pythons(row["package"], row["version"], row["platform"])
        if row["python"] == "py3":
            assert found == matrix.pythons(row["torch"], row["platform"]) != ()
        else:
            assert found == tuple(row["python"].split())
        if row["package"] == "torch":
            assert matrix.pythons(row["torch"], row["platform"]) == found
    assert matrix.pythons("0.0.1", "linux_x86_64") == ()
    assert matrix.pythons(matrix.releases()[-1], "solaris_sparc") == ()


def test_archs_are_unknown_where_they_are_unconfirmed() -> None:
    unknown = 0
    for row in raw("gpu_arch"):
        found = matrix.archs(row["torch"], row["variant"], row["platform"])
        if row["archs"] == "unconfirmed" or row["conf"] == "unconfirmed":
            assert found is None
            unknown += 1
        else:
            assert found == tuple(row["archs"].split())
    assert unknown
    assert matrix.archs(matrix.releases()[-1], "cpu", "linux_x86_64") is None


def test_driver_floor() -> None:
    for row in raw("drivers"):
        for system in ("linux", "windows"):
            toolkit = None if row["toolkit"].endswith("x") else row["toolkit"]
            assert matrix.driver_floor(row["variant"], toolkit, system) == known(row[f"min_{system}"])
    assert matrix.driver_floor("cpu") is None
    assert matrix.driver_floor("cu130", "99.0.0") is None, "an unknown toolkit is not answered by another one's row"
    with pytest.raises(UsageError, match="no such system"):
        matrix.driver_floor("cu130", os="beos")


def test_driver_floors_are_one_per_cuda_major() -> None:
    floors = {(row["cuda_major"], row["min_linux"]) for row in raw("drivers")}
    assert len(floors) == len({major for major, _ in floors})


def test_macos_floor() -> None:
    for row in raw("macos"):
        found = matrix.macos_floor(row["torch"])
        if "unconfirmed" in (row["macos_install_min"], row["macos_mps_min"]):
            assert found is None
        elif row["arch"] == "arm64":
            assert found is not None
            assert (found.install, found.mps) == (row["macos_install_min"], row["macos_mps_min"])
        else:
            assert found is None
            assert matrix.intel_mac_last() == row["torch"]
    assert matrix.macos_floor("0.0.1") is None


def test_macos_floor_of_a_python_whose_wheel_is_tagged_apart() -> None:
    apart = 0
    for row in raw("macos"):
        if row["arch"] != "arm64":
            continue
        for python in matrix.pythons(row["torch"], "macos_arm64"):
            found = matrix.macos_floor(row["torch"], python)
            assert found is not None
            tags = [
                part for part in row["wheel_tag"].split("; ") if "(" not in part or python in re.split(r"[ ()]", part)
            ]
            assert len(tags) == 1
            assert tags[0].startswith(f"macosx_{found.install.replace('.', '_')}_arm64")
            apart += found.install != row["macos_install_min"]
    assert apart


def test_gpus() -> None:
    for row in raw("gpus"):
        found = matrix.gpu(row["cc"])
        assert found is not None
        assert (found.family, ", ".join(found.cards), found.advice) == (row["family"], row["cards"], row["advice"])
        assert found.jetson == (row["class"] == "jetson")
        assert found.driver_last == (None if row["driver_last"] == "ongoing" else row["driver_last"])
        assert found.driver_floor == known(row["driver_floor_linux"])
        assert found.driver_floor_windows == known(row["driver_floor_windows"])
        assert found.torch_last == known(row["torch_last"])
        assert found.torch_last_variants == listed(row["torch_last_variants"])
        assert (found.confidence, found.sources) == (row["conf"], listed(row["src"]))
    assert matrix.gpu("1.0") is None


@pytest.mark.parametrize("row", raw("gpus"), ids=lambda row: row["cc"])
def test_first_and_last_torch_of_a_gpu_follow_from_the_rule(row: dict[str, str]) -> None:
    """gpus.tsv derives them from gpu_arch.tsv; here they are derived again with `runs_on`."""
    runs = [
        torch
        for torch in matrix.releases()
        for build in matrix.variants(torch)
        if (code := matrix.archs(torch, build.name, row["platform"])) and matrix.runs_on(code, row["cc"])
    ]
    if row["torch_first"] == "-":
        assert not runs
    else:
        assert (runs[0], runs[-1]) == (row["torch_first"], REMARK.sub("", row["torch_last"]))


def test_jetson_chips_before_thor_are_those_without_an_official_wheel() -> None:
    before_thor = {row["cc"] for row in raw("gpus") if row["class"] == "jetson" and row["torch_first"] == "-"}
    for cc in before_thor:
        major = cc.split(".")[0]
        assert not matrix.runs_on([f"{major}.0"], cc)
        assert matrix.runs_on([f"{major}.0", cc], cc)


# --- rules ------------------------------------------------------------------------------------------------------------

CAPABILITIES = st.builds("{}.{}".format, st.integers(2, 20), st.integers(0, 9))
JETSON = ("5.3", "6.2", "7.2", "8.7")


@given(st.lists(CAPABILITIES), CAPABILITIES)
def test_runs_on(archs: list[str], cc: str) -> None:
    x, y = map(int, cc.split("."))
    ordinary = any(f"{x}.{z}" in archs for z in range(y + 1))
    assert matrix.runs_on(archs, cc) == ((cc in archs) if cc in JETSON else ordinary)


@given(st.lists(CAPABILITIES), CAPABILITIES, CAPABILITIES)
def test_more_code_never_runs_on_fewer_gpus(archs: list[str], extra: str, cc: str) -> None:
    assert matrix.runs_on([*archs, extra], cc) >= matrix.runs_on(archs, cc)


@given(st.text(max_size=8))
def test_a_malformed_capability_is_an_error_with_a_name(text: str) -> None:
    if re.fullmatch(r"[0-9]+\.[0-9]", text):
        matrix.runs_on(["8.0"], text)
    else:
        with pytest.raises(UsageError, match="compute capability"):
            matrix.runs_on(["8.0"], text)


VERSIONS = st.lists(st.integers(0, 2000), min_size=1, max_size=4)


def dotted(parts: list[int]) -> str:
    return ".".join(map(str, parts))


@given(VERSIONS, VERSIONS)
def test_at_least_is_a_total_order(a: list[int], b: list[int]) -> None:
    assert matrix.at_least(dotted(a), dotted(b)) or matrix.at_least(dotted(b), dotted(a))
    width = max(len(a), len(b))
    assert matrix.at_least(dotted(a), dotted(b)) == (a + [0] * (width - len(a)) >= b + [0] * (width - len(b)))
    assert matrix.at_least(dotted([*a, 0]), dotted(a))
    assert matrix.at_least(dotted(a), dotted([*a, 0]))


def test_numbers_compare_as_numbers() -> None:
    assert matrix.at_least("570.124.06", "570.26")
    assert not matrix.at_least("2.4.1", "2.10.0")
    assert matrix.at_least("580", "580.0")


@given(st.text(max_size=12))
def test_anything_but_a_dotted_version_is_an_error_with_a_name(text: str) -> None:
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        assert dotted(list(matrix.numbers(text)))
    else:
        with pytest.raises(UsageError, match="dotted version"):
            matrix.numbers(text)


# --- wrong tables -----------------------------------------------------------------------------------------------------

CACHED = [function for function in vars(matrix).values() if hasattr(function, "cache_clear")]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the tables that the test may spoil."""
    copy = tmp_path / "data"
    shutil.copytree(matrix.DATA, copy)
    monkeypatch.setattr(matrix, "DATA", copy)
    for function in CACHED:
        function.cache_clear()
    yield copy
    for function in CACHED:
        function.cache_clear()


def spoil(path: Path, line: int, column: str, value: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = lines[line - 1].split("\t")
    fields[lines[0].split("\t").index(column)] = value
    lines[line - 1] = "\t".join(fields)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


OLDEST = matrix.releases()[0]
QUESTIONS = {
    "releases": matrix.releases,
    "cuda_variants": lambda: matrix.variants(OLDEST),
    "wheels": lambda: matrix.pythons(OLDEST, "linux_x86_64"),
    "gpu_arch": lambda: matrix.archs(OLDEST, "cu121", "linux_x86_64"),
    "drivers": lambda: matrix.driver_floor("cu121"),
    "gpus": lambda: matrix.gpu("8.6"),
    "macos": lambda: matrix.macos_floor(OLDEST),
    "sources": lambda: matrix.source("S01"),
}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("releases", "torch", "two"),
        ("releases", "torch", "-"),
        ("releases", "torchvision", "0.19.x"),
        ("releases", "src", "S01,S02"),
        ("releases", "glibc_x86_64", ""),
        ("cuda_variants", "linux_x86_64", "maybe"),
        ("cuda_variants", "kind", "tpu"),
        ("cuda_variants", "pypi_default_on", "linux"),
        ("wheels", "python", "3.11, 3.12"),
        ("wheels", "platform", "linux"),
        ("gpu_arch", "archs", "sm_80"),
        ("gpu_arch", "conf", "sure"),
        ("drivers", "min_linux", "R580"),
        ("gpus", "cc", "86"),
        ("gpus", "class", "toy"),
        ("macos", "macos_mps_min", "Sonoma"),
        ("sources", "id", "x"),
        ("sources", "kind", "hearsay"),
    ],
)
def test_a_wrong_value_is_named_with_file_line_and_column(tables: Path, table: str, column: str, value: str) -> None:
    spoil(tables / f"{table}.tsv", 3, column, value)
    with pytest.raises(UsageError) as error:
        QUESTIONS[table]()
    assert f"{table}.tsv, line 3: column {column}" in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("table", QUESTIONS)
def test_a_broken_table_is_a_clear_error(tables: Path, table: str) -> None:
    path = tables / f"{table}.tsv"
    text = path.read_text(encoding="utf-8")

    def answer() -> str:
        for function in CACHED:
            function.cache_clear()
        with pytest.raises(UsageError) as error:
            QUESTIONS[table]()
        return str(error.value)

    path.write_text("")
    assert f"{table}.tsv: no header line" in answer()
    path.write_text(text + "one\ttwo\n", encoding="utf-8")
    assert "wrong number of fields" in answer()
    path.write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    assert "a second row" in answer()
    path.write_text(text.replace("\t", "\twrong_", 1), encoding="utf-8")
    if text.split("\t")[1] not in ("released",):  # a column that nothing reads yet
        assert "no column" in answer()
    path.write_bytes(b"\xff\xfe")
    assert f"cannot read the table {table}.tsv" in answer()
    path.unlink()
    assert f"cannot read the table {table}.tsv" in answer()


def test_a_new_torch_release_is_rows_and_no_code(tables: Path) -> None:
    newest = matrix.releases()[-1]
    major, minor, _ = matrix.numbers(newest)
    new = f"{major}.{minor + 1}.0"
    for name in ("releases", "wheels", "cuda_variants", "gpu_arch", "macos"):
        path = tables / f"{name}.tsv"
        header = path.read_text(encoding="utf-8").splitlines()[0].split("\t")
        torch = header.index("torch")
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        added = [[new if field == newest else field for field in line] for line in lines if line[torch] == newest]
        if name == "wheels":
            added = [line for line in added if line[0] == "torch"]
        with path.open("a", encoding="utf-8") as file:
            file.writelines("\t".join(line) + "\n" for line in added)
    for function in CACHED:
        function.cache_clear()
    assert matrix.releases()[-2:] == (newest, new)
    assert matrix.pythons(new, "linux_x86_64") == matrix.pythons(newest, "linux_x86_64")
    default = matrix.default_variant(new, "linux_x86_64")
    assert default is not None
    assert matrix.archs(new, default, "linux_x86_64")
    assert matrix.archs(new, default, "linux_x86_64") == matrix.archs(newest, default, "linux_x86_64")
    assert matrix.macos_floor(new) == matrix.macos_floor(newest)


def test_it_loads_nothing_heavy() -> None:
    code = "import sys; import labrig.matrix; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert not {"torch", "docker", "rich", "httpx2", "unearth", "packaging", "jinja2"} & set(modules.split())
