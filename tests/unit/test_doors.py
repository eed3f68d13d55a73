"""The rendered ways to a target's image without labrig: they say what `invoke start` does, and one image by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import samples
import yaml

from labrig import image, published, render, spec
from labrig.spec import Target

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"
DOORS = ("compose.yaml", "devcontainer.json", "run.md")
TARGETS = [target for target in samples.SHIPPED.targets.values() if "docker" in target.engines]
# containers.dev/implementors/json_reference: general, image, and lifecycle properties.
KNOWN = {
    "name", "image", "forwardPorts", "portsAttributes", "otherPortsAttributes", "containerEnv", "remoteEnv",
    "remoteUser", "containerUser", "updateRemoteUserUID", "userEnvProbe", "overrideCommand", "shutdownAction", "init",
    "privileged", "capAdd", "securityOpt", "mounts", "features", "overrideFeatureInstallOrder", "customizations",
    "appPort", "workspaceMount", "workspaceFolder", "runArgs", "hostRequirements", "initializeCommand",
    "onCreateCommand", "updateContentCommand", "postCreateCommand", "postStartCommand", "postAttachCommand", "waitFor",
}  # fmt: skip


def doors(target: Target) -> dict[str, str]:
    files = render.render_doors(target, TEMPLATES, ROOT / "images")
    return {file.name: text for file, text in files.items()}


def devcontainer(target: Target) -> dict[str, Any]:
    text = doors(target)["devcontainer.json"]  # JSON with comments, here on lines of their own
    found: dict[str, Any] = json.loads("\n".join(line for line in text.splitlines() if not line.startswith("//")))
    return found


def test_only_targets_with_an_image_have_them() -> None:
    committed = {file.relative_to(ROOT / "images") for name in DOORS for file in (ROOT / "images").glob(f"*/{name}")}
    assert committed == {Path(target.name, name) for target in TARGETS for name in DOORS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_compose_says_what_start_does(target: Target) -> None:
    service = yaml.safe_load(doors(target)["compose.yaml"])["services"]["jupyterlab"]
    assert service["image"] == f"${{LABRIG_IMAGE:-{render.reference(target, ROOT / 'images')}}}"
    assert service["command"] == list(image.SERVE)
    assert service["working_dir"] == str(image.LABS)
    assert service["ports"] == ["127.0.0.1:${LABRIG_PORT:-8888}:8888"]
    assert (service["read_only"], service["cap_drop"], service["init"]) == (True, ["ALL"], True)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] == image.PIDS
    assert [one.partition(":")[0] for one in service["tmpfs"]] == [image.HOME, "/tmp"]
    assert service["volumes"][0]["target"] == image.WORK
    assert service["volumes"][0]["bind"] == {"create_host_path": False}, "or the engine makes it, as root's"
    assert "environment" not in service, "no token in what `docker inspect` shows"
    assert ("deploy" in service) == (target.device == "cuda")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_dev_container_has_known_keys_and_no_more_rights(target: Target) -> None:
    found = devcontainer(target)
    assert set(found) <= KNOWN
    assert found["image"] == render.reference(target, ROOT / "images")
    assert found["workspaceMount"].endswith(f"target={found['workspaceFolder']}")
    assert found["workspaceFolder"] == image.WORK
    assert (found["remoteUser"], found["updateRemoteUserUID"]) == ("student", True)
    assert "--cap-drop=ALL" in found["runArgs"] and found["securityOpt"] == ["no-new-privileges"]
    assert found.get("hostRequirements") == ({"gpu": "optional"} if target.device == "cuda" else None)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_line_to_type_is_shell(target: Target) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", doors(target)["run.md"], re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        done = subprocess.run(
            [shutil.which("sh") or "sh", "-n"], input=block, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stderr
    docker = " ".join(blocks[0].replace("\\\n", " ").split())
    for flag in ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--publish 127.0.0.1:8888:8888"):
        assert f" {flag} " in docker
    assert ("--gpus=all" in docker) == ("--nv" in blocks[3]) == (target.device == "cuda")
    assert docker.endswith(f"{render.reference(target, ROOT / 'images')} {' '.join(image.SERVE)}")


def test_what_is_published_goes_into_all_by_its_digest(tmp_path: Path) -> None:
    target, images = TARGETS[0], tmp_path / "images"
    shutil.copytree(ROOT / "images", images)
    (images / published.FILE).unlink(missing_ok=True)  # a fork has one
    usual, before = render.reference(target, images), render.render_doors(target, TEMPLATES, images)
    entry = samples.published(target.name)
    published.keep(images, entry)
    for file, text in render.render_doors(target, TEMPLATES, images).items():
        text = re.sub(r"^Where `invoke pull`.*\n", "", text, flags=re.MULTILINE)  # where it has the usual name
        assert entry.reference in text and usual not in text
        plain = text.replace(f"docker://{entry.reference}", f"docker-daemon:{usual}").replace(entry.reference, usual)
        assert plain == before[file]


def test_those_of_a_target_without_an_image_go(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    file = tmp_path / "images" / spec.TABLE
    file.write_text(file.read_text().replace('engines = ["docker", "venv"]', 'engines = ["venv"]'))
    table = spec.read(file)
    gone = render.remove_strays(table, render.render_all(table, TEMPLATES))
    assert {one.name for one in gone} == {*DOORS, "Dockerfile", "Dockerfile.dockerignore"}
    assert {one.parent.name for one in gone} == {"cuda-legacy"}
