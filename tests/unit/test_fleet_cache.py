"""The room's cache without one: who pulls what, in which waves, and what is rendered for the machines."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import samples
import yaml
from jinja2 import UndefinedError

from labrig import inventory, published, spec
from labrig.errors import DistributeError, UsageError
from labrig.fleet import Row, cache, mirror, report
from labrig.fleet import wanted as wanting
from labrig.fleet.cache import Waves
from labrig.inventory import Room

ROOT = Path(__file__).parents[2]
GB = 10**9
UPSTREAM = "https://registry.example.org"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout from which images of two targets were published."""
    root = tmp_path / "checkout"
    (root / "images").mkdir(parents=True)
    shutil.copy(ROOT / "images" / "targets.toml", root / "images")
    (root / "templates").symlink_to(ROOT / "templates")
    for target in ("cpu", "cuda"):
        published.keep(root / "images", samples.published(target, size=2 * GB))
    return root


def room(root: Path, hosts: str, head: str = 'cache = "10.0.7.1:5000"') -> Room:
    (root / "room.toml").write_text(f"[room]\n{head}\n{hosts}")
    return inventory.read(root / "room.toml")


def host(name: str, **keys: str) -> str:
    address = f"10.0.7.{len(name)}{name[-1]}"
    return f'[[host]]\nname = "{name}"\naddress = "{address}"\n' + "".join(f'{k} = "{v}"\n' for k, v in keys.items())


@pytest.mark.parametrize("template", sorted((ROOT / "templates" / "room").glob("*.j2")), ids=lambda one: one.name)
def test_a_name_that_a_rooms_template_does_not_get_is_an_error(root: Path, template: Path) -> None:
    (root / "templates").unlink()
    shutil.copytree(ROOT / "templates", root / "templates")
    given = {"start.sh.j2": "folder", "room.html.j2": "report"}.get(template.name, "upstream")
    (root / "templates" / "room" / template.name).write_text(template.read_text() + f"{{{{ {given}.tocrh }}}}")
    table = spec.read(root / "images" / spec.TABLE)
    with pytest.raises(UndefinedError, match="tocrh"):
        mirror.rendered(root, room(root, host("a")), "https://registry.example.org")
        report.html(report.Report("room.toml", datetime.now(UTC), 1.0, (Row("a"),)), root / "templates")
        image = samples.published("cpu")
        wanting.contained(table.targets["cpu"], samples.lock_of(root), image, "", root / "templates")


# --- waves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "size", "megabits", "expected"),
    [
        (30, 5 * GB, 1000, Waves(15, 2, 1200)),  # 150 GB at 125 MB/s
        (100, 5 * GB, 1000, Waves(15, 7, 4000)),
        (30, 5 * GB, 10_000, Waves(30, 1, 120)),
        (30, 5 * GB, 100, Waves(1, 30, 12_000)),
        (1, 5 * GB, 1000, Waves(1, 1, 62.5)),  # what an engine takes, not the link
        (4, 1_000, 1000, Waves(4, 1, 4_000 / 125e6)),
        (0, 5 * GB, 1000, Waves(1, 0, 0)),
        (5, 0, 1000, Waves(5, 1, 0)),
    ],
)
def test_waves(hosts: int, size: int, megabits: float, expected: Waves) -> None:
    found = cache.waves(hosts, size, megabits)
    assert (found.at_once, found.count) == (expected.at_once, expected.count)
    assert found.seconds == pytest.approx(expected.seconds)


def test_a_number_of_hosts_may_be_named() -> None:
    assert cache.waves(30, GB, at_once=4).at_once == 4
    assert cache.waves(3, GB, at_once=40).at_once == 3


@pytest.mark.parametrize("hosts", range(1, 60, 7))
@pytest.mark.parametrize("megabits", [10, 100, 1000, 25_000])
def test_waves_hold_all_hosts_and_the_link(hosts: int, megabits: float) -> None:
    found = cache.waves(hosts, 3 * GB, megabits)
    assert 1 <= found.at_once <= hosts and (found.count - 1) * found.at_once < hosts <= found.count * found.at_once
    assert found.seconds >= hosts * 3 * GB / (megabits * 1e6 / 8) * 0.999, "no faster than the link"


# --- who pulls what --------------------------------------------------------------------------------------------------


def wanted(root: Path, hosts: str, target: str = "") -> dict[str, int]:
    return {image.target: count for image, count in cache.wanted(root, room(root, hosts), target).items()}


def test_images_that_hosts_want(root: Path) -> None:
    assert wanted(root, host("a1", target="cpu") + host("bb1", target="cpu")) == {"cpu": 2}
    assert wanted(root, host("a1") + host("bb1", target="cuda")) == {"cpu": 1, "cuda": 2}
    assert wanted(root, host("a1") + host("bb1", target="cuda"), "cpu") == {"cpu": 1}
    assert wanted(root, host("a1", engine="venv") + host("bb1", target="cpu")) == {"cpu": 1}
    assert wanted(root, host("a1", machine="linux x86_64") + host("bb1", machine="linux aarch64")) == {
        "cpu": 1,
        "cuda": 1,
    }


def test_what_the_last_run_found_counts(root: Path) -> None:
    from labrig.fleet import Row, apply

    hosts = host("a1") + host("bb1") + host("ccc1")
    last = [Row("a1", target="cpu", engine="docker", state="OK"), Row("bb1", target="cpu", engine="venv")]
    apply.keep_run(room(root, hosts), last)
    assert wanted(root, hosts) == {"cpu": 2, "cuda": 1}


def test_nothing_to_warm_is_said(root: Path) -> None:
    (root / "images" / published.FILE).unlink()
    with pytest.raises(DistributeError, match="was published"):
        wanted(root, host("a1", engine="docker"))
    with pytest.raises(UsageError):
        wanted(root, host("a1", target="nonsense"))
    with pytest.raises(UsageError):
        wanted(root, host("a1"), "nonsense")
    with pytest.raises(UsageError, match="names no cache"):
        cache.require_cache(room(root, host("a1"), 'user = "admin"'))


@pytest.mark.parametrize("head", ['cache = "10.0.7.1:5000"', 'user = "admin"'])
def test_a_room_without_images_is_warm(root: Path, head: str, capsys: pytest.CaptureFixture[str]) -> None:
    native = room(root, host("a1", engine="venv") + host("bb1", engine="venv"), head)
    assert cache.warm(root, native.path) == ()
    said = capsys.readouterr()
    assert said.err == "no host of room.toml takes an image: nothing to warm\n" and not said.out


def test_the_arithmetic_is_said() -> None:
    said = cache.arithmetic(samples.published("cpu", size=5 * GB), 30, 1000)
    assert "30 hosts x 5.00 GB = 150.00 GB" in said and "20 min" in said and "10.00 GB" in said


def test_an_image_keeps_its_name_behind_the_cache(root: Path) -> None:
    image = samples.published("cpu")
    digest = image.reference.partition("@")[2]
    assert cache.through(room(root, host("a1")), image) == f"10.0.7.1:5000/lab/cpu@{digest}"
    assert cache.through(room(root, host("a1"), 'user = "admin"'), image) == image.reference


# --- rendered --------------------------------------------------------------------------------------------------------


def files(
    root: Path, upstream: str = UPSTREAM, head: str = 'cache = "10.0.7.1:5000"', *, tls: bool = False
) -> dict[str, str]:
    return mirror.rendered(root, room(root, host("a1"), head), upstream, tls=tls)


@pytest.mark.parametrize("tls", [False, True])
def test_the_cache_listens_where_the_room_has_it(root: Path, tls: bool) -> None:
    config = yaml.safe_load(files(root, tls=tls)["config.yml"])
    assert config["http"]["addr"] == "10.0.7.1:5000"
    assert config["http"]["debug"]["addr"] == "127.0.0.1:5001"
    assert config["proxy"]["remoteurl"] == UPSTREAM
    assert ("tls" in config["http"]) == tls
    named = yaml.safe_load(files(root, head='cache = "cache.example.org:443"', tls=tls)["config.yml"])
    assert named["http"]["addr"] == ":443"


@pytest.mark.parametrize("tls", [False, True])
def test_the_container_may_little_and_knows_no_password(root: Path, tls: bool) -> None:
    service = yaml.safe_load(files(root, tls=tls)["compose.yaml"])["services"]["cache"]
    assert service["environment"] == ["REGISTRY_PROXY_USERNAME", "REGISTRY_PROXY_PASSWORD"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert any("tls.key" in one for one in service["volumes"]) == tls


def test_mirrors_are_docker_hubs_alone(root: Path) -> None:
    assert json.loads(files(root)["daemon.json"]) == {"insecure-registries": ["10.0.7.1:5000"]}
    assert json.loads(files(root, tls=True)["daemon.json"]) == {}
    hub = files(root, mirror.HUB_URL)
    assert json.loads(hub["daemon.json"])["registry-mirrors"] == ["http://10.0.7.1:5000"]
    assert "/etc/containerd/certs.d/docker.io/hosts.toml" in hub["README.md"]


@pytest.mark.parametrize("tls", [False, True])
def test_containerd_goes_through_the_cache(root: Path, tls: bool) -> None:
    hosts = tomllib.loads(files(root, tls=tls)["hosts.toml"])
    assert hosts["server"] == UPSTREAM
    ((address, how),) = hosts["host"].items()
    assert address == f"{'https' if tls else 'http'}://10.0.7.1:5000" and how["capabilities"] == ["pull", "resolve"]


@pytest.mark.parametrize(
    ("upstream", "head", "what"),
    [
        ("registry.example.org", 'cache = "10.0.7.1:5000"', "cannot be meant"),
        ("https://me:geheim@registry.example.org", 'cache = "10.0.7.1:5000"', "cannot be meant"),
        (UPSTREAM, 'cache = "10.0.7.1"', "no port"),
        (UPSTREAM, 'user = "admin"', "names no cache"),
    ],
)
def test_what_cannot_be_meant_is_said(root: Path, upstream: str, head: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        files(root, upstream, head)
    assert "geheim" not in str(refused.value)


def test_the_registry_behind_is_the_one_that_was_published_to(root: Path) -> None:
    assert mirror.upstream_of(root) == UPSTREAM
    other = replace(samples.published("cuda"), reference=f"docker.io/lab/cuda@sha256:{'0' * 64}")
    published.keep(root / "images", other)
    with pytest.raises(UsageError, match="one registry"):
        mirror.upstream_of(root)
    published.keep(root / "images", replace(other, target="cpu", image=samples.published("cpu").image))
    assert mirror.upstream_of(root) == mirror.HUB_URL


def test_files_are_written_beside_each_other(root: Path, tmp_path: Path) -> None:
    found = room(root, host("a1"))
    written = mirror.write(root, found.path, tmp_path / "out")
    assert {file.name for file in written} == {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.yml", "compose.yaml", "labrig-cache.service", "hosts.toml", "README.md", "daemon.json",
    }  # fmt: skip
