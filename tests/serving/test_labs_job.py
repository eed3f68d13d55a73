"""What a pod of the rendered Job runs, really run: in the image, as its user, nothing writable but its volumes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import offered

from labrig import daemon, environment, image
from labrig.serving import cluster, rules

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
SPOILT = 'raise RuntimeError("no such thing")\n'


@pytest.fixture(scope="module")
def reference() -> str:
    return environment.build(ROOT, "cpu", "docker").reference


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = offered.checkout(tmp_path_factory.mktemp("job") / "checkout", "cpu")
    found: dict[str, Any] = yaml.safe_load(offered.files(root)["labs-job-cpu.yaml"])
    return found


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Path]:
    """A volume as a cluster makes it for the pod's group (fsGroup)."""
    folder = tmp_path / "claim"
    folder.mkdir()
    os.chown(folder, 0, image.GID)
    folder.chmod(0o2775)
    yield folder


def run_pod(
    job: dict[str, Any],
    reference: str,
    claim: Path,
    index: int,
    *,
    change: Sequence[tuple[str, str]] = (),
    labs: Path | None = None,
) -> tuple[int, str]:
    """Run the pod of an index as Kubernetes would: everything that is set comes from the manifest."""
    spec = job["spec"]["template"]["spec"]
    one = spec["containers"][0]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in one["volumeMounts"]}
    owner = spec["securityContext"]
    memory = int(rules.kubernetes(one["resources"]["limits"]["memory"]) or 0)
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    words = one["command"]
    for old, new in change:
        words = [new if word == old else word for word in words]
    binds = {
        str(claim): {"bind": at, "mode": "rw"} for at, volume in places.items() if "persistentVolumeClaim" in volume
    }
    if labs:
        binds[str(labs)] = {"bind": f"{image.LABS}/labs/{labs.name}", "mode": "ro"}
    with daemon.connect() as client:
        container = client.containers.run(
            reference, words, detach=True, name=f"labrig-cluster-test-{os.getpid()}-{index}",
            working_dir=one["workingDir"], user=f"{owner['runAsUser']}:{owner['runAsGroup']}", read_only=True,
            cap_drop=["ALL"], security_opt=["no-new-privileges"], network_mode="none", mem_limit=memory,
            nano_cpus=int(float(one["resources"]["limits"]["cpu"]) * 1e9), volumes=binds,
            shm_size=int(rules.kubernetes(places["/dev/shm"]["emptyDir"]["sizeLimit"]) or 0),
            tmpfs={at: "rw,exec,nosuid,nodev,mode=1777" for at in places if at in ("/tmp", image.HOME)},
            environment={cluster.INDEX: str(index), **{pair["name"]: pair["value"] for pair in one["env"]}},
        )  # fmt: skip
        try:
            code = container.wait(timeout=600)["StatusCode"]
            return code, container.logs().decode(errors="replace")
        finally:
            container.remove(force=True)


def documents(claim: Path) -> dict[str, dict[str, Any]]:
    return {file.name: json.loads(file.read_text()) for file in sorted((claim / "cpu").iterdir())}


def test_each_index_leaves_one_document_and_one_that_fails_leaves_one_too(
    job: dict[str, Any], reference: str, claim: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "03_modules.py"
    spoilt.write_text(SPOILT)
    ended = {index: run_pod(job, reference, claim, index) for index in (0, 1)}
    assert [code for code, _ in ended.values()] == [0, 0], ended
    code, said = run_pod(job, reference, claim, 2, labs=spoilt)
    assert code == 1, said
    code, said = run_pod(job, reference, claim, 3, change=[("--device=cpu", "--device=cuda")])
    assert code == 3, said  # counted, and tried again elsewhere
    found = documents(claim)
    assert list(found) == ["00-01_tensors.json", "01-02_autograd.json", "02-03_modules.json", "03-04_houses.json"]
    assert [one["result"]["status"] for one in found.values()] == ["passed", "passed", "error", "error"]
    assert "no such thing" in found["02-03_modules.json"]["result"]["reason"]
    assert "cuda" in found["03-04_houses.json"]["result"]["reason"]
    for index, one in enumerate(found.values()):
        assert (one["index"], one["schema"]) == (index, "lab-document/1")
        assert one["image"] == job["spec"]["template"]["spec"]["containers"][0]["image"]
        assert one["torch"].startswith("2.13.0")
    assert found["00-01_tensors.json"]["result"]["metrics"]


def test_an_index_without_a_lab_is_no_retry(job: dict[str, Any], reference: str, claim: Path) -> None:
    code, said = run_pod(job, reference, claim, 99)
    assert code == 2 and "an index from 0 to 19" in said
    assert not list(claim.iterdir())


def test_a_claim_that_is_not_the_groups_is_said(job: dict[str, Any], reference: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    code, said = run_pod(job, reference, closed, 0)
    assert code == 4 and "cannot be written" in said and "Traceback" not in said
