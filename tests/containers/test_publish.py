"""publish and pull with a real registry and a real engine: what an admin hands out and what a student gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import registries

from labrig import daemon, image, oci, published
from labrig.published import Entry

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET, PLATFORM = "cpu", "linux_x86_64"
MB = 1_000_000


@dataclass(frozen=True)
class Published:
    """A checkout whose image was published, what was said, and where it lies."""

    checkout: Path
    entry: Entry
    registry: Path
    address: str


def invoke(checkout: Path, *words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*INVOKE, *words], cwd=checkout, capture_output=True, text=True, timeout=600, env={**os.environ, **variables}
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def edit(checkout: Path) -> None:
    """Another lab, and so an image that no engine has from an earlier run."""
    lab = sorted((checkout / "labs").glob("[0-9]*.py"))[0]
    lab.write_text(f"{lab.read_text()}# edited {uuid4()}\n")
    invoke(checkout, "render")  # its notebook follows


def remove(reference: str) -> None:
    """As on a machine that never had it, under any name; layers that others have stay."""
    with daemon.connect() as client:
        if found := image.find(client, reference):
            client.images.remove(found.id, force=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    checkout = tmp_path_factory.mktemp("checkout") / "labrig"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "tests", "bench"))
    shutil.copytree(ROOT / "tests" / "environment", checkout / "tests" / "environment")  # what verify runs
    shutil.copy(ROOT / "tests" / "conftest.py", checkout / "tests")
    shutil.copy(ROOT / "tests" / "proofs.py", checkout / "tests")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "images" / published.FILE).unlink(missing_ok=True)  # a fork has one
    edit(checkout)
    folder = tmp_path_factory.mktemp("registry")
    with registries.serve(folder) as address:
        place = f"--registry={address}/lab"
        made = invoke(checkout, "build", f"--target={TARGET}", "--engine=docker").stdout.strip()
        refused = invoke(checkout, "publish", f"--target={TARGET}", place, code=6)
        assert "was not verified as it is now" in refused.stderr and not registries.blobs(folder)
        assert not (checkout / "images" / published.FILE).exists()
        invoke(checkout, "verify", f"--target={TARGET}", "--engine=docker")
        done = invoke(checkout, "publish", f"--target={TARGET}", place)
        entry = published.find(checkout / "images", TARGET, PLATFORM)
        assert entry and done.stdout == f"{entry.reference}\n" and entry.image == made
        yield Published(checkout, entry, folder, address)
        subprocess.run(["docker", "rmi", "--force", made], capture_output=True, timeout=120, check=False)


def raw(out: Published, name: str) -> dict[str, Any]:
    """A manifest, as another tool reads it."""
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{out.entry.repository}{name}"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return found


def test_both_tags_name_the_digest_that_is_noted(out: Published) -> None:
    kept = raw(out, out.entry.reference.partition(out.entry.repository)[2])
    assert raw(out, f":{out.entry.tag}") == raw(out, ":latest") == kept
    assert out.entry.size == sum(one["size"] for one in {one["digest"]: one for one in kept["layers"]}.values())
    for part in (out.entry.torch, out.entry.variant, f"py{out.entry.python}", out.entry.lock[:8]):
        assert part in out.entry.tag


def test_the_bill_of_materials_and_the_record_of_verify_are_tied_to_it(out: Published) -> None:
    digest = out.entry.reference.partition("@")[2]
    listed = raw(out, f":{digest.replace(':', '-')}")["manifests"]
    assert {one["artifactType"] for one in listed} == {oci.CYCLONEDX, "application/vnd.labrig.verify.v1+json"}
    kinds = {one["artifactType"]: raw(out, f"@{one['digest']}") for one in listed}
    assert all(one["subject"]["digest"] == digest for one in kinds.values())
    about = kinds["application/vnd.labrig.verify.v1+json"]["layers"][0]["digest"].removeprefix("sha256:")
    [blob] = out.registry.rglob(f"{about}/data")
    record = json.loads(blob.read_text())
    assert record["failed"] == 0 and record["passed"] > 15 and record["lock"] == out.entry.lock
    assert out.entry.verified.startswith(f"{record['passed']} passed")


def test_it_is_as_large_as_the_committed_table_says(out: Published) -> None:
    """Within the budget; the base is of the packages of the day, and this checkout has another lab."""
    said = json.loads(invoke(out.checkout, "sizes", f"--target={TARGET}", "--check", "--json").stdout)
    assert said["bytes"] == out.entry.size == sum(one["bytes"] for one in said["layers"])
    assert abs(said["bytes"] - said["before"]) < 0.02 * said["before"]


def test_the_page_names_it(out: Published) -> None:
    for name in ("published.md", "published.html"):
        assert f"docker pull {out.entry.reference}" in (out.checkout / "docs" / name).read_text()
    invoke(out.checkout, "render", "--check")


def test_publishing_again_sends_nothing_and_changes_nothing(out: Published) -> None:
    before, file = registries.blobs(out.registry), (out.checkout / "images" / published.FILE).read_text()
    done = invoke(out.checkout, "publish", f"--target={TARGET}", f"--registry={out.address}/lab", "--json")
    assert json.loads(done.stdout)["reference"] == out.entry.reference
    assert registries.blobs(out.registry) == before
    assert (out.checkout / "images" / published.FILE).read_text() == file


def test_what_cannot_be_a_registry_is_refused_before_anything_is_made(out: Published) -> None:
    for wrong in ("", "nonsense", "http://x/y", f"{out.address}/LAB", f"{out.address}/lab:1"):
        done = invoke(out.checkout, "publish", f"--target={TARGET}", f"--registry={wrong}", code=2)
        assert "is no" in done.stderr and "Traceback" not in done.stderr


def test_a_student_pulls_what_is_missing_and_gets_what_was_published(out: Published, tmp_path: Path) -> None:
    remove(out.entry.image)
    cache = {"LABRIG_CACHE": str(tmp_path / "cache")}
    done = invoke(out.checkout, "pull", f"--target={TARGET}", "--json", **cache)
    said = json.loads(done.stdout)
    assert f"{TARGET} runs here" in done.stderr.splitlines()[0], "first whether it can run"
    assert "are missing" in done.stderr.splitlines()[1], "then how much it is"
    assert said["image"] == out.entry.image and 0 < said["received"] == said["missing"] <= out.entry.size
    with daemon.connect() as client:
        found = client.images.get(out.entry.image)
        assert f"labrig/{TARGET}:latest" in found.tags
        code = "import torch; print(torch.__version__, torch.cuda.is_available())"
        output = client.containers.run(out.entry.image, ["python", "-c", code], remove=True, network_mode="none")
    assert output.decode().split()[0].partition("+")[0] == out.entry.torch
    again = invoke(out.checkout, "pull", f"--target={TARGET}", **cache)
    assert again.stdout == f"{out.entry.image}\n" and "is there already" in again.stderr


def test_another_image_under_the_name_is_not_taken_for_it(out: Published) -> None:
    """Whoever tagged it: the engine's digest has to be that of images/published.toml."""
    with daemon.connect() as client:
        other = next(one for one in client.images.list("labrig-base") if one.tags)
        remove(out.entry.image)
        other.tag(*out.entry.image.rsplit(":", 1))
    done = invoke(out.checkout, "pull", f"--target={TARGET}")
    assert "is there already" not in done.stderr
    with daemon.connect() as client:
        assert client.images.get(out.entry.image).id in (out.entry.config, out.entry.reference.partition("@")[2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reference": "0" * 64}, "has no"),
        ({"config": f"sha256:{'0' * 64}"}, "config: "),
        ({"labs": f"sha256:{'0' * 64}"}, "labs: "),
        ({"image": f"labrig/{TARGET}:2.13.0-000000000000"}, "image: "),
    ],
)
def test_a_reference_that_is_not_what_the_other_lines_say_is_not_loaded(
    out: Published, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    if "reference" in change:
        change = {"reference": f"{out.entry.repository}@sha256:{change['reference']}"}
    checkout = tmp_path / "labrig"
    shutil.copytree(out.checkout, checkout)
    published.keep(checkout / "images", replace(out.entry, **{"config": f"sha256:{'1' * 64}", **change}))
    done = invoke(checkout, "pull", f"--target={TARGET}", code=7)
    assert says in done.stderr, done.stderr


def test_a_lab_edit_reaches_the_student_in_less_than_a_megabyte(out: Published, tmp_path: Path) -> None:
    before = registries.blobs(out.registry)
    edit(out.checkout)
    made = invoke(out.checkout, "build", f"--target={TARGET}", "--engine=docker").stdout.strip()
    try:
        invoke(out.checkout, "verify", f"--target={TARGET}", "--engine=docker")
        invoke(out.checkout, "publish", f"--target={TARGET}", f"--registry={out.address}/lab")
        new = {digest: size for digest, size in registries.blobs(out.registry).items() if digest not in before}
        assert 0 < sum(new.values()) < MB
        remove(made)
        cache = str(tmp_path / "cache")  # empty; all other layers are in the engine
        said = json.loads(invoke(out.checkout, "pull", f"--target={TARGET}", "--json", LABRIG_CACHE=cache).stdout)
        assert said["image"] == made and 0 < said["received"] < MB
        entry = published.find(out.checkout / "images", TARGET, PLATFORM)
        assert entry and entry.tag == f"{out.entry.tag}.2", "the first tag still names the first image"
        assert raw(out, f":{out.entry.tag}") == raw(out, out.entry.reference.partition(out.entry.repository)[2])
    finally:
        subprocess.run(["docker", "rmi", "--force", made], capture_output=True, timeout=120, check=False)


def test_a_machine_that_cannot_run_it_is_told_before_a_byte_is_pulled(out: Published, tmp_path: Path) -> None:
    old = "linux x86_64 driver=580.65.06 gpu=6.1 python=3.13 docker=26.1"
    (tmp_path / "host.json").write_text(invoke(out.checkout, "doctor", f"--for={old}", "--json").stdout)
    done = invoke(
        out.checkout, "pull", "--target=cuda", code=3, LABRIG_HOST=str(tmp_path / "host.json"),
        LABRIG_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert "cannot work on this machine" in done.stderr and "--force" in done.stderr
    assert not (tmp_path / "cache" / "layers").exists()


def test_a_machine_without_what_makes_a_base_takes_the_published_image(out: Published, tmp_path: Path) -> None:
    """As a student's: Docker, and no mmdebstrap."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("docker", "git", "uname", "sh", "ldd"):
        if found := shutil.which(program):
            (programs / program).symlink_to(found)
    done = invoke(
        out.checkout, "labs", f"--target={TARGET}", "--lab=01", "--quick", f"--out={tmp_path / 'results'}",
        PATH=str(programs), LABRIG_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert "engine" not in done.stderr.splitlines()[0], "no other engine is taken"
    entry = published.find(out.checkout / "images", TARGET, PLATFORM)
    assert entry and invoke(
        out.checkout,
        "shell",
        f"--target={TARGET}",
        "--engine=docker",
        "--command=echo $LABRIG_IMAGE_ID",
        PATH=str(programs),
        LABRIG_CACHE=str(tmp_path / "cache"),
    ).stdout.strip() in (entry.config, entry.reference.partition("@")[2]), "not an older one of the same lock"
    assert (tmp_path / "results" / "report.html").is_file()
    assert not (tmp_path / "cache" / "bases").exists() and not (tmp_path / "cache" / "wheels").exists()


def test_a_machine_that_made_no_base_yet_takes_what_it_would_make(out: Published, tmp_path: Path) -> None:
    """It could, and half a minute later would have the same, but for the base."""
    entry = published.find(out.checkout / "images", TARGET, PLATFORM)
    assert entry
    remove(entry.image)
    words = ["start", f"--target={TARGET}", "--engine=docker", f"--folder={tmp_path / 'work'}", "--json"]
    cache = {"LABRIG_CACHE": str(tmp_path / "cache")}
    try:
        done = invoke(out.checkout, *words, **cache)
        assert "taking the published image: no base was made here yet" in done.stderr
        assert (tmp_path / "work" / "labs" / "notebooks").is_dir()
    finally:
        invoke(out.checkout, "stop", **cache)
    again = invoke(out.checkout, "shell", f"--target={TARGET}", "--engine=docker", "--command=true", **cache)
    assert "taking" not in again.stderr and "pull" not in again.stderr, "it is in the engine"
    assert not (tmp_path / "cache" / "bases").exists() and not (tmp_path / "cache" / "wheels").exists()
