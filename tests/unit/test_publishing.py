"""What is published and how it is noted: entries, records of verify, tags, budgets, and the page made of them."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig import lock, oci, page, published, publishing, render, sizes, spec, verified
from labrig.blobs import GZIP, Layer
from labrig.errors import SpecError, VerifyError
from labrig.sizes import Size
from labrig.spec import Table

ROOT = Path(__file__).parents[2]
CPU = samples.SHIPPED.targets["cpu"]
LOCKED = lock.load(CPU, "linux_x86_64", ROOT / "images")
SAID = {"passed": 20, "failed": 0, "skipped": 1, "checks": [{"id": "device", "status": "skipped", "reason": "no GPU"}]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that can be rendered and has published nothing, with a cache of its own."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    for folder in ("images", "templates", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "images" / published.FILE).unlink(missing_ok=True)  # a fork has one
    return tmp_path


@pytest.fixture
def table(root: Path) -> Table:
    return spec.read(root / "images" / spec.TABLE)


# --- images/published.toml --------------------------------------------------------------------------------------------


def test_nothing_is_published_until_somebody_publishes(tmp_path: Path) -> None:
    assert published.read(tmp_path) == ()
    assert published.find(tmp_path, "cpu", "linux_x86_64") is None


def test_entries_come_back_as_they_were_and_the_newest_of_a_target_stays(tmp_path: Path) -> None:
    for entry in (samples.published("cuda"), samples.published("cpu"), samples.published("cpu", date="2026-02-02")):
        published.keep(tmp_path, entry)
    assert published.read(tmp_path) == (samples.published("cpu", date="2026-02-02"), samples.published("cuda"))
    other = samples.published("cpu", platform="linux_aarch64")
    published.keep(tmp_path, other)
    assert published.find(tmp_path, "cpu", "linux_aarch64") == other
    assert published.find(tmp_path, "cpu", "linux_x86_64") == samples.published("cpu", date="2026-02-02")


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.integers(0, 10**15), st.lists(st.text(st.characters(codec="utf-8"))))
def test_any_text_survives_the_file(text: str, size: int, many: list[str]) -> None:
    entry = samples.published("cuda", verified=text, size=size, capabilities=tuple(many))
    row = tomllib.loads(published.render([entry]))["cuda"]["linux_x86_64"]
    assert (row["verified"], row["size"], tuple(row["capabilities"])) == (text, size, tuple(many))


@pytest.mark.parametrize(
    "change",
    [
        {"reference": "registry.example.org/lab/cpu:latest"},
        {"reference": "registry.example.org/lab/cpu@sha256:0"},
        {"reference": f"x/y; rm -rf @sha256:{'0' * 64}"},
        {"image": "labrig/cuda:1"},
        {"image": "labrig/cpu:a b"},
        {"tag": "-x"},
        {"size": "many"},
        {"size": True},
        {"capabilities": "7.5"},
        {"size": -5},
        {"config": "sha256:1"},
        {"labs": ""},
        {"date": "<script>"},
    ],
)
def test_what_nobody_publishes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    entry = samples.published("cpu")
    text = published.render([entry])
    for key, value in change.items():
        line = f"{key} = {json.dumps(value)}"
        text = re.sub(rf"^{key} = .*$", lambda _, line=line: line, text, flags=re.MULTILINE)
    (tmp_path / published.FILE).write_text(text)
    with pytest.raises(SpecError, match=published.FILE):
        published.read(tmp_path)


@pytest.mark.parametrize("text", ["[", "x = 1", "[cpu]\nlinux_x86_64 = 1", "[cpu.linux_x86_64]\nsize = 1", "\udc80"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / published.FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SpecError, match=published.FILE):
        published.read(tmp_path)


# --- records of verify ------------------------------------------------------------------------------------------------


def image(*names: str) -> oci.Image:
    layers = [Layer(name, f"sha256:{'1' * 64}", f"sha256:{'2' * 64}", 10, 20, GZIP) for name in names]
    return oci.assemble("linux_x86_64", layers, {"User": "1000"}, {})


def recipe() -> Any:
    """What publish asks of a recipe."""
    locked = SimpleNamespace(platform="linux_x86_64", digest="ab" * 32)
    return SimpleNamespace(target=CPU, lock=locked, reference="labrig/cpu:2.13.0-0123456789ab")


@pytest.mark.parametrize("by", ["config", "manifest"])
def test_an_image_is_published_only_as_it_was_verified(root: Path, by: str) -> None:
    made, other = image("a"), image("a", "b")
    with pytest.raises(VerifyError, match="was not verified as it is now") as caught:
        publishing.require_verified(made, recipe())
    assert "invoke verify --target=cpu --engine=docker" in caught.value.fix
    verified.note(getattr(made, by).digest, LOCKED, SAID)
    assert publishing.require_verified(made, recipe())["passed"] == 20
    with pytest.raises(VerifyError, match="was not verified as it is now"):
        publishing.require_verified(other, recipe())


def test_one_that_failed_since_is_not_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = image("a")
    monkeypatch.setattr(verified, "_now", lambda: "2026-01-01T00:00:00+00:00")
    verified.note(made.config.digest, LOCKED, SAID)
    monkeypatch.setattr(verified, "_now", lambda: "2026-01-01T00:00:01+00:00")
    failed = {"passed": 20, "failed": 1, "skipped": 0, "checks": [{"id": "files", "status": "failed", "reason": "x"}]}
    verified.note(made.manifest.digest, LOCKED, failed)
    with pytest.raises(VerifyError, match="did not pass") as caught:
        publishing.require_verified(made, recipe())
    assert caught.value.found == "files"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other"}', '{"schema": "labrig-verify/1", "image": "x"}'])
def test_a_damaged_record_is_none(root: Path, text: str) -> None:
    made = image("a")
    place = root / "cache" / "verified" / f"{made.config.digest.removeprefix('sha256:')}.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert verified.find(made) is None


def test_a_skip_is_told_with_its_reason() -> None:
    assert verified.tally(SAID) == "20 passed, 1 skipped (device: no GPU)"
    assert verified.tally({**SAID, "skipped": 0, "checks": []}) == "20 passed"


# --- tags -------------------------------------------------------------------------------------------------------------


def test_a_tag_says_what_it_is_and_is_never_another_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made = image("a")
    there = {}
    monkeypatch.setattr(publishing.registry, "digest_of", lambda reference, _: there.get(reference, ""))
    first = publishing._tag(recipe(), made, "host/lab/cpu", None)
    assert re.fullmatch(rf"{CPU.torch}-cpu-py{CPU.python}-abababab-\d{{8}}", first)
    there[f"host/lab/cpu:{first}"] = made.digest
    assert publishing._tag(recipe(), made, "host/lab/cpu", None) == first
    there[f"host/lab/cpu:{first}"] = "sha256:other"
    assert publishing._tag(recipe(), made, "host/lab/cpu", None) == f"{first}.2"
    there[f"host/lab/cpu:{first}.2"] = "sha256:other"
    assert publishing._tag(recipe(), made, "host/lab/cpu", None) == f"{first}.3"
    before = samples.published("cpu", reference=f"host/lab/cpu@{made.digest}", tag="of-another-day")
    assert publishing._tag(recipe(), made, "host/lab/cpu", before) == "of-another-day"


# --- sizes ------------------------------------------------------------------------------------------------------------


HEAD = "target\tplatform\tlayer\tbytes\n"


def layers(**bytes_: int) -> tuple[Size, ...]:
    return tuple(Size("cpu", "linux_x86_64", name, count) for name, count in bytes_.items())


def test_the_table_comes_back_in_the_order_of_the_layers(tmp_path: Path) -> None:
    assert sizes.read(tmp_path) == ()
    cuda = (Size("cuda", "linux_x86_64", "z", 2), Size("cuda", "linux_x86_64", "a", 1))
    for made in (cuda, layers(base=5, a=1), layers(base=4, b=2)):
        sizes.keep(tmp_path, made)
    assert sizes.read(tmp_path) == (*layers(base=4, b=2), *cuda)
    assert sizes.of(tmp_path, "cuda", "linux_x86_64") == cuda


@pytest.mark.parametrize("text", ["", "x\n", f"{HEAD}a\tb\tc\n", f"{HEAD}a\tb\tc\t-1\n"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / sizes.FILE).write_text(text)
    with pytest.raises(SpecError, match=sizes.FILE):
        sizes.read(tmp_path)


def test_two_percent_above_the_budget_warn_and_five_fail() -> None:
    target = replace(CPU, size_mb=100)
    before = layers(base=60_000_000, torch=40_000_000)
    assert sizes.check(target, before, before) == ""
    assert sizes.check(target, layers(base=62_000_000, torch=40_000_000), before) == ""
    warning = sizes.check(target, layers(base=62_000_001, torch=40_000_000), before)
    assert "102.0 MB" in warning and "base +2.0 MB" in warning
    assert sizes.check(target, layers(base=60_000_000, torch=45_000_000), before)
    with pytest.raises(VerifyError, match=r"\+5\.0%") as caught:
        sizes.check(target, layers(base=60_000_000, torch=45_000_001), before)
    assert caught.value.code == 6 and caught.value.found == "torch +5.0 MB"
    with pytest.raises(VerifyError) as caught:
        sizes.check(replace(CPU, size_mb=50), before, before)
    assert caught.value.found == "no layer grew since images/sizes.tsv; the budget is 50 MB"
    assert sizes.check(replace(CPU, size_mb=None), layers(base=10**12)) == ""


def test_equal_layers_are_pulled_once_and_counted_once() -> None:
    one = Layer("a", "sha256:1", "sha256:2", 10, 20)
    assert sizes.total(sizes.measure(CPU, "linux_x86_64", [one, replace(one, title="again")])) == 10


def test_the_shipped_images_are_within_what_is_promised() -> None:
    """cpu at most 0.45 GB, cuda at most 3.0 GB, compressed, without what makes an image a hub's; each has a budget."""
    hub = 40_000_000  # jupyterhub and the 20 wheels that only it needs have 31 MB, with their bytecode 38.6
    totals = {
        target.name: sizes.total(sizes.of(ROOT / "images", target.name, "linux_x86_64"))
        for target in samples.SHIPPED.targets.values()
        if "docker" in target.engines
    }
    assert hub < totals["cpu"] <= 450_000_000 + hub and hub < totals["cuda"] <= 3_000_000_000 + hub
    for name, found in totals.items():
        budget = samples.SHIPPED.targets[name].size_mb
        assert budget and 0.9 * budget * 10**6 < found <= sizes.WARNS * budget * 10**6, name


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", '"440"', "1000000"])
def test_a_budget_that_cannot_be_is_refused(table: Table, value: str) -> None:
    text = table.path.read_text()
    table.path.write_text(re.sub(r"^size_mb = .*$", f"size_mb = {value}", text, count=1, flags=re.MULTILINE))
    with pytest.raises(SpecError, match="size_mb"):
        spec.read(table.path)


# --- the page ---------------------------------------------------------------------------------------------------------


def rendered(table: Table) -> dict[str, str]:
    return {file.name: text for file, text in page.render(table, ROOT / "templates").items()}


def test_the_page_says_that_nothing_is_public_until_something_is(table: Table) -> None:
    found = rendered(table)
    assert list(found) == ["published.svg", "published.md", "published.html"]
    assert "None yet" in found["published.md"] and "None yet" in found["published.html"]
    assert "docker pull" not in found["published.md"]


def test_the_page_has_every_image_by_its_digest(table: Table) -> None:
    entries = [samples.published("cpu"), samples.published("cuda", verified="<20 passed>")]
    for entry in entries:
        published.keep(table.path.parent, entry)
    found = rendered(table)
    for entry in entries:
        for text in (found["published.md"], found["published.html"]):
            assert f"docker pull {entry.reference}" in text and entry.tag in text
    assert "&lt;20 passed&gt;" in found["published.html"] and "<20 passed>" not in found["published.html"]
    assert f"NVIDIA driver {entries[1].min_driver} or newer" in found["published.md"]
    files = render.render_all(table, ROOT / "templates")
    render.write(files)
    render.check(table, files)


def test_the_picture_is_whole_and_to_scale(table: Table) -> None:
    svg = ElementTree.fromstring(rendered(table)["published.svg"])  # noqa: S314 - our own file
    space = "{http://www.w3.org/2000/svg}"
    drawn: dict[str, float] = {}
    for rect in svg.iter(f"{space}rect"):
        if rect.find(f"{space}title") is not None:
            drawn[rect.attrib["y"]] = drawn.get(rect.attrib["y"], 0.0) + float(rect.attrib["width"])
    totals = [bar.total for bar in page.bars(sizes.read(table.path.parent))]
    assert len(drawn) == len(totals) > 1
    for width, total in zip(drawn.values(), totals, strict=True):
        assert width == pytest.approx(page.ROOM * total / max(totals), abs=1)


def test_every_kind_of_layer_has_its_colour() -> None:
    kinds = [page.kind(one.layer) for one in sizes.read(ROOT / "images")]
    assert set(kinds) == set(page.COLOURS)
    assert page.kind("torch 2.13.0") == "torch" and page.kind("bytecode: torch 2.13.0") == "bytecode"
    assert page.kind("torchvision 0.28.0") == "other packages"
    assert page.kind("nvidia-cublas 13.1") == page.kind("triton 3.7.1") == "CUDA"


def test_the_page_gets_along_with_an_empty_table(table: Table) -> None:
    (table.path.parent / sizes.FILE).unlink()
    assert ElementTree.fromstring(rendered(table)["published.svg"]) is not None  # noqa: S314


def test_a_layer_is_known_by_its_packages_and_not_by_their_versions() -> None:
    """So that what grew is named, and not whatever stands beside it."""
    made = [one.layer for one in sizes.of(ROOT / "images", "cpu", "linux_x86_64")]
    assert len({sizes._same(layer) for layer in made}) == len(made)
    assert sizes._same("torch 2.13.0+cpu") == sizes._same("torch 2.14.1")
    assert sizes._same("bytecode: anyio 4.1 and 19 other small ones") == "bytecode: anyio"
