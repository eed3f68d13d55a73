"""The real kit of the target cpu with the network off: verified, loaded, installed, imported, on a read-only stick."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from second import SecondEngine, second_engine

from labrig import stick

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
# A shell that has a folder mounted read-only at another place, and then becomes the command.
READ_ONLY = 'mount --bind "$1" "$2" && mount -o remount,ro,bind "$2" && shift 2 && exec "$@"'
# One lab needs the loopback interface, which a new network has not got up.
OFFLINE = ["unshare", "--net", "--mount"]


@dataclass(frozen=True)
class Exported:
    """A kit and what `invoke export --json` said of it."""

    place: Path
    said: dict[str, Any]

    @property
    def image(self) -> dict[str, Any]:
        found: dict[str, Any] = self.said["targets"][0]["image"]
        return found


def offline(
    *command: str | Path, cwd: Path = ROOT, code: int = 0, timeout: int = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without any network; it has to end with that exit code."""
    done = subprocess.run(
        [*OFFLINE, *map(str, command)], cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The kit of this checkout."""
    subprocess.run([*INVOKE, "fetch", f"--target={TARGET}"], cwd=ROOT, check=True, timeout=600)
    subprocess.run([*INVOKE, "base", f"--target={TARGET}"], cwd=ROOT, check=True, timeout=600)
    place = tmp_path_factory.mktemp("a stick") / "my kit"
    done = offline(*INVOKE, "export", f"--target={TARGET}", f"--output={place}", "--offline", "--json")
    return Exported(place, json.loads(done.stdout))


@pytest.fixture(scope="module")
def engine() -> Iterator[SecondEngine]:
    """An engine that has nothing yet."""
    with second_engine(5000) as engine:
        yield engine


@pytest.fixture
def stick_at(kit: Exported, tmp_path: Path) -> list[str | Path]:
    """The command of the kit's script on a read-only stick."""
    place = tmp_path / "read only"
    place.mkdir()
    return ["sh", "-c", READ_ONLY, "sh", kit.place, place, sys.executable, place / "kit.py"]


def damaged(kit: Exported, name: str, to: Path) -> Path:
    """A kit of which one byte in the middle of a file is another one."""
    shutil.copytree(kit.place, to, copy_function=os.link)
    content = bytearray((kit.place / name).read_bytes())
    content[len(content) // 2] ^= 0x20
    (to / name).unlink()
    (to / name).write_bytes(content)
    return to


def layers(kit: Exported) -> list[str]:
    """The names of the image's layers in the kit, lowest first."""
    manifest = json.loads((kit.place / stick._blob(kit.image["digest"])).read_text())
    return [stick._blob(one["digest"]) for one in manifest["layers"]]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(one): (one.stat().st_mtime_ns, one.stat().st_size) for one in folder.rglob("*")}


def test_the_kit_is_of_the_promised_size_and_has_no_links_into_the_cache(kit: Exported) -> None:
    files = [one for one in kit.place.rglob("*") if one.is_file()]
    assert kit.said["size"] == sum(one.stat().st_size for one in files) < 900_000_000
    assert kit.image["size"] < 490_000_000  # 450 MB, and 40 for what makes it a hub's: tests/unit/test_publishing.py
    assert {one.stat().st_nlink for one in files} == {1}


def test_a_read_only_stick_is_verified_without_network(kit: Exported, stick_at: list[str | Path]) -> None:
    before = state(kit.place)
    done = offline(*stick_at, "verify")
    assert done.stdout.strip() == kit.said["digest"]
    assert hashlib.sha256((kit.place / "checksums").read_bytes()).hexdigest() == done.stdout.strip()[7:]
    assert state(kit.place) == before


@pytest.mark.parametrize("number", [0, -1])
def test_a_damaged_layer_is_named_and_the_engine_has_nothing_of_it(
    kit: Exported, engine: SecondEngine, tmp_path: Path, number: int
) -> None:
    name = layers(kit)[number]
    place = damaged(kit, name, tmp_path / "damaged")
    done = offline(sys.executable, place / "kit.py", "load", code=4, **engine.environment)
    assert f"{name} is damaged" in done.stderr and done.stdout == ""
    assert engine.said("image", "ls", "--all", "--quiet") == []
    assert offline(sys.executable, place / "kit.py", "verify", code=4).stderr.count(name) == 1


def test_a_load_that_is_killed_leaves_nothing(kit: Exported, engine: SecondEngine) -> None:
    with subprocess.Popen(
        [sys.executable, kit.place / "kit.py", "load"], env=engine.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("loading "):
                break
        process.send_signal(signal.SIGKILL)
    assert engine.said("image", "ls", "--all", "--quiet") == []


def test_the_image_is_loaded_without_network_and_is_the_one_of_the_kit(
    kit: Exported, engine: SecondEngine, stick_at: list[str | Path]
) -> None:
    reference = kit.image["reference"]
    done = offline(*stick_at, "load", **engine.environment)
    assert done.stdout == f"{reference}\n"
    for name in (reference, f"labrig/{TARGET}:latest"):
        [found] = engine.said("image", "inspect", "--format", "{{.Id}}", name)
        assert found in (kit.image["config"], kit.image["digest"])
    code = "import torch; print(torch.__version__, torch.ones(2).sum().item())"
    said = engine.said("run", "--rm", "--network=none", "--read-only", reference, "python", "-c", code)
    assert said[0].startswith(kit.said["targets"][0]["torch"]) and said[0].endswith(" 2.0")
    again = offline(*stick_at, "load", **engine.environment)
    assert "in the engine already" in again.stderr and again.stdout == done.stdout


def test_without_an_engine_loading_is_exit_3(stick_at: list[str | Path], tmp_path: Path) -> None:
    done = offline(*stick_at, "load", code=3, DOCKER_HOST=f"unix://{tmp_path}/none")
    assert "kit.py native" in done.stderr


def test_a_damaged_wheel_is_named_and_nothing_is_installed(kit: Exported, tmp_path: Path) -> None:
    name = max((kit.place / "wheels").iterdir(), key=lambda one: one.stat().st_size).name
    place = damaged(kit, f"wheels/{name}", tmp_path / "damaged")
    done = offline(sys.executable, place / "kit.py", "native", "--to", tmp_path / "lab", code=4)
    assert f"wheels/{name} is damaged" in done.stderr
    assert not (tmp_path / "lab").exists()


def test_native_from_a_read_only_stick_without_network_runs_a_lab(stick_at: list[str | Path], tmp_path: Path) -> None:
    place = tmp_path / "my läb"
    done = offline(*stick_at, "native", "--to", place, PIP_INDEX_URL="http://127.0.0.1:9", PIP_FIND_LINKS="/nowhere")
    enter, _ = done.stdout.splitlines()
    code = "python -c 'import torch; print(torch.__version__)' && python -m labs run 01 --quick"
    ran = offline("bash", "-ec", f"{enter}\n{code}", PIP_FIND_LINKS="/nowhere")
    assert "passed" in ran.stdout
    assert (place / "results").is_dir()


def test_a_tar_is_imported_and_then_labrig_needs_no_network(
    kit: Exported, engine: SecondEngine, tmp_path: Path
) -> None:
    place = tmp_path / "my kit.tar"
    done = offline(*INVOKE, "export", f"--target={TARGET}", f"--output={place}", "--offline", "--json")
    assert json.loads(done.stdout)["digest"] == kit.said["digest"]
    with tarfile.open(place) as archive:
        assert archive.getnames()[0].startswith("my kit/")
    engine.docker("rmi", "--force", *engine.said("image", "ls", "--all", "--quiet"))
    variables = {**engine.environment, "LABRIG_CACHE": str(tmp_path / "empty"), "PIP_FIND_LINKS": str(tmp_path)}
    done = offline(*INVOKE, "import", place, "--json", **variables)
    [found] = json.loads(done.stdout)
    assert (found["reference"], found["loaded"]) == (kit.image["reference"], True)
    assert found["wheels"] == len(list((kit.place / "wheels").iterdir()))
    place.unlink()
    # Found, not made: the layers that this machine would make are not there.
    done = offline(*INVOKE, "build", f"--target={TARGET}", "--engine=docker", "--offline", **variables)
    assert done.stdout == f"{kit.image['reference']}\n" and "loading" not in done.stderr
    done = offline(*INVOKE, "build", f"--target={TARGET}", "--engine=venv", "--offline", **variables)
    python = Path(done.stdout.strip()) / "bin" / "python"
    assert python.is_relative_to(tmp_path / "empty")
    assert offline(python, "-c", "import torch; print(torch.__version__)").stdout
    shutil.rmtree(tmp_path / "empty")
