"""Layouts and archives of images, read by hand: what every byte of them says of the others."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from labrig import blobs, oci
from labrig.blobs import GZIP, Layer
from labrig.errors import BuildError, UsageError
from labrig.files import EPOCH
from labrig.oci import CONFIG, CYCLONEDX, EMPTY, INDEX, MANIFEST, TAG, Image
from labrig.tarball import Writer

SETTINGS = {"User": "1000", "Env": ["A=b", "Ü=ü"], "Labels": {"x": "y"}, "Cmd": ["python"]}
NOTES = {"org.opencontainers.image.title": "tiny"}
AMD, ARM = "linux_x86_64", "linux_aarch64"


def layer(name: str, size: int = 100) -> Layer:
    """A layer of one file, in the store."""

    def write(writer: Writer) -> None:
        writer.start(name, size)
        writer.data(name.encode()[:1] * size)

    return blobs.make(blobs.key("test", name, str(size)), f"layer {name}", write)


def image(*names: str, platform: str = AMD, sbom: bytes | None = None, **settings: Any) -> Image:
    """An image of such layers."""
    return oci.assemble(platform, [layer(name) for name in names], {**SETTINGS, **settings}, NOTES, sbom)


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(place.relative_to(folder)): place.read_bytes() for place in folder.rglob("*") if place.is_file()}


def stored(folder: Path) -> set[str]:
    """The digests of all blobs of a layout, each of which is what its name says."""
    found = set()
    for place in (folder / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(place.read_bytes()).hexdigest() == place.name
        found.add(f"sha256:{place.name}")
    return found


def blob(folder: Path, descriptor: dict[str, Any]) -> bytes:
    """What a descriptor points to, proven."""
    algorithm, _, value = descriptor["digest"].partition(":")
    content: bytes = (folder / "blobs" / algorithm / value).read_bytes()
    assert len(content) == descriptor["size"]
    assert hashlib.sha256(content).hexdigest() == value
    return content


def document(folder: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(blob(folder, descriptor))
    assert found.get("mediaType", descriptor["mediaType"]) == descriptor["mediaType"]
    return found


def listed(folder: Path) -> list[dict[str, Any]]:
    """The entries of a layout's index."""
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX)
    found: list[dict[str, Any]] = index["manifests"]
    return found


def walk(folder: Path) -> set[str]:
    """All digests that a layout names, every descriptor proven; nothing else may lie there."""
    named: set[str] = set()
    todo = listed(folder)
    while todo:
        one = todo.pop()
        named.add(one["digest"])
        content = blob(folder, one)
        if one["mediaType"] in (MANIFEST, INDEX):
            inner = json.loads(content)
            assert inner["mediaType"] == one["mediaType"]
            assert inner["schemaVersion"] == 2
            todo += [*inner.get("manifests", []), *inner.get("layers", []), *filter(None, [inner.get("config")])]
            if "config" in inner and inner["config"]["mediaType"] == CONFIG:
                config = json.loads(blob(folder, inner["config"]))
                assert len(config["rootfs"]["diff_ids"]) == len(inner["layers"])
                if "platform" in one:
                    assert one["platform"] == {"architecture": config["architecture"], "os": config["os"]}
    assert stored(folder) == named
    assert [place.name for place in folder.rglob("*") if place.name.startswith(".")] == []
    return named


def tagged(folder: Path, tag: str) -> dict[str, Any]:
    [found] = [one for one in listed(folder) if one.get("annotations", {}).get(TAG) == tag]
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "layout"


# --- one image --------------------------------------------------------------------------------------------------


def test_a_layout_says_what_the_image_is(folder: Path) -> None:
    made = image("a", "b")
    named = oci.write_layout(made, folder, "tiny")
    assert named == made.manifest
    [entry] = listed(folder)
    assert entry == {
        "mediaType": MANIFEST,
        "digest": made.digest,
        "size": len(made.manifest.content),
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {TAG: "tiny"},
    }
    manifest = document(folder, entry)
    assert manifest["annotations"] == NOTES
    assert [one["mediaType"] for one in manifest["layers"]] == [GZIP, GZIP]
    assert [one["digest"] for one in manifest["layers"]] == [layer("a").digest, layer("b").digest]
    assert manifest["config"]["mediaType"] == CONFIG
    config = json.loads(blob(folder, manifest["config"]))
    assert config["config"] == SETTINGS
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert config["created"] == "2025-01-01T00:00:00Z"
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer("a").diff_id, layer("b").diff_id]}
    assert [one["created_by"] for one in config["history"]] == ["labrig: layer a", "labrig: layer b"]
    for one, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        with tarfile.open(fileobj=io.BytesIO(blob(folder, one)), mode="r:gz") as tar:
            assert len(tar.getnames()) == 1
        assert f"sha256:{hashlib.sha256(gzip.decompress(blob(folder, one))).hexdigest()}" == diff_id
    assert len(walk(folder)) == 4


def test_documents_are_the_same_bytes_for_the_same_image() -> None:
    one = oci.assemble(AMD, [layer("a")], {"b": 1, "a": {"y": 1, "x": 2}}, {"n": "1", "m": "2"})
    two = oci.assemble(AMD, [layer("a")], {"a": {"x": 2, "y": 1}, "b": 1}, {"m": "2", "n": "1"})
    assert one == two
    assert b" " not in one.manifest.content


def test_a_layout_written_twice_is_the_same(folder: Path, tmp_path: Path) -> None:
    for sbom in (None, b"{}"):
        place = folder / str(sbom)
        oci.write_layout(image("a", "b", sbom=sbom), place, "tiny")
        before = state(place)
        oci.write_layout(image("a", "b", sbom=sbom), place, "tiny")
        assert state(place) == before
        oci.write_layout(image("a", "b", sbom=sbom), tmp_path / "other" / str(sbom), "tiny")
        assert state(tmp_path / "other" / str(sbom)) == before
        walk(place)


def test_a_layer_that_is_there_twice_is_one_blob(folder: Path) -> None:
    oci.write_layout(image("a", "a"), folder, "tiny")
    manifest = document(folder, listed(folder)[0])
    assert len(manifest["layers"]) == 2
    assert len(walk(folder)) == 3


def test_layers_are_links_to_the_store(folder: Path) -> None:
    oci.write_layout(image("a"), folder, "tiny")
    inner = folder / "blobs" / "sha256" / layer("a").digest.removeprefix("sha256:")
    assert inner.samefile(blobs.path(layer("a").digest))


def test_a_new_image_of_a_tag_replaces_the_old_and_takes_its_blobs_away(folder: Path) -> None:
    oci.write_layout(image("a", "b"), folder, "tiny")
    before = walk(folder)
    made = image("a", "c")
    oci.write_layout(made, folder, "tiny")
    after = walk(folder)
    assert len(listed(folder)) == 1
    assert before & after == {layer("a").digest}
    assert layer("b").digest not in after
    assert blobs.path(layer("b").digest).exists(), "the store keeps its own"


@pytest.mark.parametrize("lost", ["manifest", "config", "layer"])
def test_a_blob_of_the_layout_that_was_lost_comes_back(folder: Path, lost: str) -> None:
    made = image("a", "b")
    oci.write_layout(made, folder, "tiny")
    before = state(folder)
    digest = {"manifest": made.digest, "config": made.config.digest, "layer": layer("a").digest}[lost]
    (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()
    oci.write_layout(made, folder, "tiny")
    assert state(folder) == before


# --- platforms and tags -----------------------------------------------------------------------------------------


def test_a_second_platform_makes_an_index_of_both(folder: Path) -> None:
    amd, arm = image("a", "b"), image("a", "c", platform=ARM)
    assert oci.write_layout(amd, folder, "tiny") == amd.manifest
    named = oci.write_layout(arm, folder, "tiny")
    assert named.media_type == INDEX
    [entry] = listed(folder)
    assert entry["digest"] == named.digest
    assert (entry["mediaType"], entry["annotations"]) == (INDEX, {TAG: "tiny"})
    assert "platform" not in entry
    inner = document(folder, entry)["manifests"]
    assert {one["platform"]["architecture"]: one["digest"] for one in inner} == {
        "amd64": amd.digest,
        "arm64": arm.digest,
    }
    assert all("annotations" not in one for one in inner)
    walk(folder)


def test_the_order_in_which_platforms_come_does_not_matter(folder: Path) -> None:
    amd, arm = image("a", "b"), image("a", "c", platform=ARM)
    for place, order in (("x", (amd, arm)), ("y", (arm, amd)), ("z", (arm, amd, arm, amd, amd))):
        for one in order:
            oci.write_layout(one, folder / place, "tiny")
    assert state(folder / "x") == state(folder / "y") == state(folder / "z")


@pytest.mark.parametrize("platform", [AMD, ARM])
def test_replacing_one_platform_keeps_the_other(folder: Path, platform: str) -> None:
    images = {AMD: image("a", "b"), ARM: image("a", "c", platform=ARM)}
    for one in images.values():
        oci.write_layout(one, folder, "tiny")
    before = walk(folder)
    index = tagged(folder, "tiny")["digest"]
    newer = image("a", "d", platform=platform)
    oci.write_layout(newer, folder, "tiny")
    after = walk(folder)
    other = images[ARM if platform == AMD else AMD]
    inner = document(folder, tagged(folder, "tiny"))["manifests"]
    assert {one["digest"] for one in inner} == {newer.digest, other.digest}
    assert {other.digest, other.config.digest, *(one.digest for one in other.layers)} <= after
    old = images[platform]
    assert before - after == {old.digest, old.config.digest, old.layers[1].digest, index}


def test_two_tags_stand_side_by_side(folder: Path) -> None:
    one, two = image("a", "b"), image("a", "c")
    oci.write_layout(one, folder, "one")
    oci.write_layout(two, folder, "two")
    assert (tagged(folder, "one")["digest"], tagged(folder, "two")["digest"]) == (one.digest, two.digest)
    walk(folder)
    newer = image("d")
    oci.write_layout(newer, folder, "two")
    assert (tagged(folder, "one")["digest"], tagged(folder, "two")["digest"]) == (one.digest, newer.digest)
    assert not {two.digest, layer("c").digest} & walk(folder)


def test_two_tags_of_one_image_share_it(folder: Path) -> None:
    made = image("a", sbom=b"{}")
    oci.write_layout(made, folder, "one")
    oci.write_layout(made, folder, "two")
    assert {tagged(folder, tag)["digest"] for tag in ("one", "two")} == {made.digest}
    walk(folder)
    oci.write_layout(image("b", sbom=b"{}"), folder, "two")
    assert {layer("a").digest, made.digest, made.referrer.digest if made.referrer else ""} <= walk(folder)


def test_an_image_of_a_tag_or_the_only_one_is_found(folder: Path) -> None:
    oci.write_layout(image("a", sbom=b"{}"), folder, "one")
    assert oci.find_image(folder, "")["digest"] == image("a").digest
    oci.write_layout(image("b"), folder, "two")
    assert oci.find_image(folder, "two")["digest"] == image("b").digest
    with pytest.raises(UsageError, match="one, two"):
        oci.find_image(folder, "")
    with pytest.raises(UsageError, match="no such image"):
        oci.find_image(folder, "three")


# --- bills of materials -----------------------------------------------------------------------------------------


def test_a_bill_of_materials_refers_to_its_image(folder: Path) -> None:
    made = image("a", sbom=b'{"bomFormat": "CycloneDX"}')
    oci.write_layout(made, folder, "tiny")
    entry, referrer = listed(folder)
    assert entry["digest"] == made.digest
    assert referrer["artifactType"] == CYCLONEDX
    assert "annotations" not in referrer
    tie = document(folder, referrer)
    assert tie["artifactType"] == CYCLONEDX
    assert tie["subject"] == {"mediaType": MANIFEST, "digest": made.digest, "size": len(made.manifest.content)}
    assert tie["config"]["mediaType"] == EMPTY
    assert blob(folder, tie["config"]) == b"{}"
    [bill] = tie["layers"]
    assert blob(folder, bill) == b'{"bomFormat": "CycloneDX"}'
    assert bill["mediaType"] == CYCLONEDX
    walk(folder)


def test_a_bill_goes_with_the_image_that_it_describes(folder: Path) -> None:
    old = image("a", sbom=b'{"old": 1}')
    oci.write_layout(old, folder, "tiny")
    new = image("b", sbom=b'{"new": 1}')
    oci.write_layout(new, folder, "tiny")
    assert new.referrer and old.referrer and new.sbom and old.sbom
    assert [one["digest"] for one in listed(folder)] == [new.digest, new.referrer.digest]
    assert old.sbom.digest not in walk(folder)


def test_a_new_bill_of_the_same_image_replaces_the_old(folder: Path) -> None:
    oci.write_layout(image("a", sbom=b'{"old": 1}'), folder, "tiny")
    newer = image("a", sbom=b'{"new": 1}')
    oci.write_layout(newer, folder, "tiny")
    assert newer.referrer
    assert [one["digest"] for one in listed(folder)] == [newer.digest, newer.referrer.digest]
    walk(folder)


def test_the_bills_of_both_platforms_stay(folder: Path) -> None:
    amd, arm = image("a", sbom=b'{"amd": 1}'), image("b", platform=ARM, sbom=b'{"arm": 1}')
    for one in (amd, arm, amd):
        oci.write_layout(one, folder, "tiny")
    assert amd.referrer and arm.referrer
    assert {amd.referrer.digest, arm.referrer.digest} == {
        one["digest"] for one in listed(folder) if one.get("artifactType")
    }
    walk(folder)


# --- folders that are no layout ---------------------------------------------------------------------------------


def test_an_empty_folder_becomes_a_layout(folder: Path) -> None:
    folder.mkdir()
    oci.write_layout(image("a"), folder, "tiny")
    assert len(walk(folder)) == 3


def test_a_folder_with_other_things_is_left_alone(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    made = image("a")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        oci.write_layout(made, folder, "tiny")
    assert state(folder) == {"notes.txt": b"mine"}
    assert sorted(place.name for place in folder.iterdir()) == ["inner", "notes.txt"]


def test_a_file_is_no_folder(folder: Path) -> None:
    folder.write_text("mine")
    with pytest.raises(UsageError, match="no folder"):
        oci.write_layout(image("a"), folder, "tiny")
    assert folder.read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b"{}",
        b'{"manifests": 5}',
        b'{"manifests": null}',
        b'{"manifests": [5]}',
        b'{"manifests": ["ab"]}',
        b'{"manifests": [{}]}',
        b'{"manifests": [{"annotations": 5, "digest": "sha256:0", "mediaType": "x", "size": 1}]}',
        b'{"manifests": [{"annotations": null, "digest": "sha256:0", "mediaType": "x", "size": 1}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=range(15),
)
def test_a_damaged_index_is_left_alone(folder: Path, text: bytes) -> None:
    oci.write_layout(image("a"), folder, "tiny")
    (folder / "index.json").write_bytes(text)
    before = state(folder)
    made = image("b")
    with pytest.raises(UsageError, match=r"index\.json"):
        oci.write_layout(made, folder, "tiny")
    assert state(folder) == before


@pytest.mark.parametrize("harm", ["gone", "changed", "no json"])
def test_a_layout_whose_index_of_platforms_is_damaged_is_one_error(folder: Path, harm: str) -> None:
    oci.write_layout(image("a"), folder, "tiny")
    named = oci.write_layout(image("b", platform=ARM), folder, "tiny")
    place = folder / "blobs" / "sha256" / named.digest.removeprefix("sha256:")
    if harm == "gone":
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:-1] + b" " if harm == "changed" else b"no json")
    before = (folder / "index.json").read_bytes()
    with pytest.raises(BuildError, match=named.digest):
        oci.write_layout(image("c"), folder, "tiny")
    assert (folder / "index.json").read_bytes() == before


def test_what_is_not_ours_stays_among_the_blobs(folder: Path) -> None:
    oci.write_layout(image("a"), folder, "tiny")
    (folder / "blobs" / "sha256" / "notes.txt").write_text("mine")
    (folder / "README").write_text("mine")
    oci.write_layout(image("b"), folder, "tiny")
    assert (folder / "blobs" / "sha256" / "notes.txt").read_text() == "mine"
    assert (folder / "README").read_text() == "mine"


def test_a_layer_that_the_store_lacks_is_an_error_and_the_layout_stays(folder: Path) -> None:
    oci.write_layout(image("a"), folder, "tiny")
    before = state(folder)
    made = image("b")
    blobs.path(layer("b").digest).unlink()
    with pytest.raises(BuildError):
        oci.write_layout(made, folder, "tiny")
    assert (folder / "index.json").read_bytes() == before["index.json"]
    assert before.items() <= state(folder).items()


def test_a_damaged_image_of_another_tag_is_one_error_before_anything_is_replaced(folder: Path) -> None:
    one = image("a")
    oci.write_layout(one, folder, "one")
    oci.write_layout(image("b"), folder, "two")
    (folder / "blobs" / "sha256" / one.digest.removeprefix("sha256:")).unlink()
    before = (folder / "index.json").read_bytes()
    with pytest.raises(BuildError, match=one.digest):
        oci.write_layout(image("c"), folder, "two")
    assert (folder / "index.json").read_bytes() == before
    assert layer("b").digest in stored(folder)


def test_an_entry_that_another_tool_wrote_stays(folder: Path) -> None:
    """Without a platform, without a tag, with annotations of its own."""
    oci.write_layout(image("a"), folder, "tiny")
    index = json.loads((folder / "index.json").read_bytes())
    [entry] = index["manifests"]
    index["manifests"] = [{key: entry[key] for key in ("mediaType", "digest", "size")} | {"annotations": {"x": "y"}}]
    (folder / "index.json").write_text(json.dumps(index))
    oci.write_layout(image("b"), folder, "tiny")
    assert index["manifests"][0] in listed(folder)
    assert len(walk(folder)) == 6


def test_an_image_without_a_platform_in_the_index_is_judged_by_its_config(folder: Path) -> None:
    """Skopeo and others write no platform beside a manifest: the same image has to be replaced, not joined."""
    oci.write_layout(image("a"), folder, "tiny")
    index = json.loads((folder / "index.json").read_bytes())
    del index["manifests"][0]["platform"]
    (folder / "index.json").write_text(json.dumps(index))
    made = image("b")
    oci.write_layout(made, folder, "tiny")
    assert tagged(folder, "tiny")["digest"] == made.digest
    walk(folder)


# --- what an engine loads ---------------------------------------------------------------------------------------


def unpacked(made: Image, references: list[str], without: int = 0) -> dict[str, bytes]:
    found = {}
    content = b"".join(oci.archive(made, references, without=without))
    assert len(content) % 512 == 0
    assert content.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            assert info.name not in found
            assert (info.mtime, info.uid, info.gid) == (int(EPOCH), 0, 0)
            found[info.name] = file.read()
    return found


def inner(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def test_an_archive_is_a_layout_and_what_docker_reads(folder: Path) -> None:
    made = image("a", "b")
    found = unpacked(made, ["labrig/tiny:1.0", "host:5000/labrig/tiny:latest"])
    digests = [layer("a").digest, layer("b").digest]
    assert set(found) == {
        "oci-layout", "index.json", "manifest.json", inner(made.digest), inner(made.config.digest),
        *map(inner, digests),
    }  # fmt: skip
    for name, content in found.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(found["index.json"])
    assert [one["digest"] for one in index["manifests"]] == [made.digest] * 2
    assert [one["annotations"] for one in index["manifests"]] == [
        {"io.containerd.image.name": "docker.io/labrig/tiny:1.0", TAG: "1.0"},
        {"io.containerd.image.name": "host:5000/labrig/tiny:latest", TAG: "latest"},
    ]
    [docker] = json.loads(found["manifest.json"])
    assert docker == {
        "Config": inner(made.config.digest),
        "RepoTags": ["labrig/tiny:1.0", "host:5000/labrig/tiny:latest"],
        "Layers": [inner(digest) for digest in digests],
    }


@pytest.mark.parametrize("without", range(4))
def test_the_lowest_layers_can_be_left_out(without: int) -> None:
    made = image("a", "b", "c")
    found = unpacked(made, ["tiny:1"], without)
    assert {name for name in found if name.startswith("blobs/")} == {
        inner(made.digest), inner(made.config.digest), *(inner(layer(name).digest) for name in "abc"[without:])
    }  # fmt: skip
    [docker] = json.loads(found["manifest.json"])
    assert len(docker["Layers"]) == 3, "all are named"


def test_a_layer_that_is_there_twice_is_sent_once() -> None:
    found = unpacked(image("a", "b", "a"), ["tiny:1"])
    assert len([name for name in found if name.startswith("blobs/")]) == 4
    assert len(json.loads(found["manifest.json"])[0]["Layers"]) == 3


def test_archives_are_the_same_bytes() -> None:
    one, two = (b"".join(oci.archive(image("a", "b"), ["tiny:1"])) for _ in range(2))
    assert one == two
