"""The builder `layers`: the same image as the Dockerfile's, the same digest wherever it is made, and its ways out."""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import pytest
import registries

from labrig import assembly, blobs, daemon, environment, home, image, interpreters, lock, oci, registry, sbom, spec
from labrig.engines import Wish
from labrig.environment import Exported
from labrig.errors import DistributeError, UsageError
from labrig.lock import Lock

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
PLAIN = Wish(bytecode=False)
MB = 1_000_000
# What an installer writes about itself; docs/layers.md lists it.
OWN_NOTES = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD", "uv_cache.json")
# What the engine mounts or touches in any container that it makes.
MOUNTED = ("etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", ".dockerenv", "dev", "dev/console")


@pytest.fixture(scope="module")
def target() -> spec.Target:
    return spec.read(ROOT / "images" / spec.TABLE).pick(TARGET)


@pytest.fixture(scope="module")
def locked(target: spec.Target) -> Lock:
    return lock.load(target, "linux_x86_64", ROOT / "images")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """The image for this checkout in an OCI layout, without bytecode."""
    folder = tmp_path_factory.mktemp("layout") / "image"
    return folder, environment.export(ROOT, TARGET, output=folder, wish=PLAIN)


def run(*command: str | Path, timeout: int = 900, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


# --- parity -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file of an image as a tar has it."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    link: str
    sha256: str
    time: float
    text: str  # of scripts


@functools.cache
def tree(reference: str) -> dict[str, Member]:
    """Every file of an image."""
    container = run("docker", "create", reference)
    found = {}
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for one in archive:
                opened = archive.extractfile(one) if one.isfile() else None
                content = opened.read() if opened else b""
                is_script = PurePosixPath(one.name).parent.name == "bin" and content.startswith(b"#!/opt")
                found[one.name] = Member(
                    one.type, one.mode, (one.uid, one.gid), one.linkname,
                    hashlib.sha256(content).hexdigest(), one.mtime, content.decode() if is_script else "",
                )  # fmt: skip
    finally:
        run("docker", "rm", container)
    return found


def without_notes(files: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the builders may differ in: notes of installers, bytecode, the engine's own files."""
    return {
        path: file
        for path, file in files.items()
        if "__pycache__" not in path
        and path not in MOUNTED
        and not (".dist-info/" in path and path.rpartition("/")[2] in OWN_NOTES)
    }


def entry_point(text: str) -> tuple[str, str]:
    """What a console script runs, module and attribute, whoever wrote it; of any other script its text."""
    body = ast.parse(text).body
    imports = [one for one in ast.walk(ast.Module(body, [])) if isinstance(one, ast.ImportFrom)]
    calls = [
        ast.unparse(one.func)
        for one in ast.walk(ast.Module(body, []))
        if isinstance(one, ast.Call) and ast.unparse(one.func) not in ("sys.exit", "re.sub")
    ]
    names = {alias.name: one.module or "" for one in imports for alias in one.names}
    called = [call for call in calls if call.partition(".")[0] in names]
    if len(called) != 1 or len(text.splitlines()) > 15:
        return "", text.partition("\n")[2]
    return names[called[0].partition(".")[0]], called[0]


@pytest.fixture(scope="module")
def both() -> tuple[str, str]:
    """The target's image by each builder, the Dockerfile's first."""
    by_dockerfile = environment.build(ROOT, TARGET, "docker", wish=Wish(builder="dockerfile")).reference
    by_layers = environment.build(ROOT, TARGET, "docker", wish=Wish(builder="layers")).reference
    assert by_dockerfile != by_layers
    return by_dockerfile, by_layers


def test_both_builders_make_the_same_file_system(both: tuple[str, str]) -> None:
    dockerfile, layers = (without_notes(tree(reference)) for reference in both)
    assert len(layers) > 30_000
    assert sorted(dockerfile.keys() ^ layers.keys())[:9] == []
    scripts = {path for path, file in layers.items() if file.text or dockerfile[path].text}
    assert len(scripts) > 30
    for path in scripts:
        one, other = dockerfile[path], layers[path]
        assert one.text.splitlines()[0] == other.text.splitlines()[0] == "#!/opt/venv/bin/python", path
        assert entry_point(one.text) == entry_point(other.text), path
        assert (one.kind, one.mode, one.owner) == (other.kind, other.mode, other.owner), path
    times = {path for path in layers if layers[path] == replace(dockerfile[path], time=layers[path].time)}
    assert sorted(layers.keys() - times - scripts)[:9] == []
    # COPY gives a folder of the labs the time at which the context was laid out.
    late = {path for path in times if layers[path].time != dockerfile[path].time}
    assert sorted(path for path in late if not path.startswith("opt/labrig/labs"))[:9] == []


def test_both_builders_give_the_same_settings(both: tuple[str, str]) -> None:
    with daemon.connect() as client:
        dockerfile, layers = (dict(client.images.get(reference).attrs["Config"]) for reference in both)
    for one in (dockerfile, layers):
        assert one["Labels"].pop(image.INPUTS)
    assert dockerfile["Labels"].pop(image.REVISION)  # would make each commit another digest
    said = {key: value for key, value in dockerfile.items() if value and key != "ArgsEscaped"}  # of the old builder
    assert said == {key: value for key, value in layers.items() if value}
    assert said["User"] and said["Env"] and said["Labels"] and said["WorkingDir"]


@pytest.mark.parametrize("builder", spec.BUILDERS)
def test_the_image_of_each_builder_passes_every_check(both: tuple[str, str], builder: str) -> None:
    reference = both[builder == "layers"]
    record = json.loads(run(*INVOKE, "verify", f"--target={TARGET}", f"--image={reference}", "--json"))
    assert record["failed"] == 0 and record["passed"] > 20, record


def test_the_environment_is_that_of_the_engine_venv(both: tuple[str, str], target: spec.Target) -> None:
    native = Path(environment.build(ROOT, TARGET, "venv").reference)
    in_image = without_notes(tree(both[1]))
    for folder in (f"lib/python{target.python}/site-packages", "share", "etc"):
        here = {
            str(file.relative_to(native)): (
                hashlib.sha256(file.read_bytes()).hexdigest(),
                bool(file.stat().st_mode & 0o100),
            )
            for file in (native / folder).rglob("*")
            if file.is_file() and not file.is_symlink()
        }
        # What uv and its venv leave of themselves.
        here = {
            path: file for path, file in without_notes(here).items() if not re.search(r"/_virtualenv\.(py|pth)$", path)
        }
        there = {
            path.removeprefix("opt/venv/"): (file.sha256, bool(file.mode & 0o100))
            for path, file in in_image.items()
            if path.startswith(f"opt/venv/{folder}/") and file.kind == tarfile.REGTYPE
        }
        # A few of them: to compare sets of tens of thousands takes pytest minutes.
        assert sorted(here.keys() ^ there.keys())[:9] == []
        assert sorted(path for path in here if here[path] != there[path])[:9] == []
        assert here
    scripts = {path.removeprefix("opt/venv/bin/"): file.text for path, file in in_image.items() if file.text}
    for name, text in scripts.items():
        assert entry_point((native / "bin" / name).read_text()) == entry_point(text), name


# --- the same digest everywhere ---------------------------------------------------------------------------------------


def cold(folder: Path, python: Path = Path(sys.executable), **variables: str) -> str:
    """The digest of the image without bytecode, made by a copy of the checkout with nothing cached but wheels and
    base."""
    checkout, cache = folder / "checkout", folder / "cache"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "tests", "bench"))
    cache.mkdir()
    for shared in (home.wheels(), home.bases()):
        (cache / shared.name).symlink_to(shared)
    command = [python, "-m", "invoke", "build", f"--target={TARGET}", "--no-bytecode", "--offline", "--json"]
    done = subprocess.run(
        ["sh", "-c", 'umask "$1"; shift; exec "$@"', "sh", variables.pop("umask", "022"), *command, "--output=image"],
        cwd=checkout, env={**os.environ, "LABRIG_CACHE": str(cache), **variables}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for file in (checkout / "image" / "blobs" / "sha256").iterdir():
        with file.open("rb") as opened:
            assert hashlib.file_digest(opened, "sha256").hexdigest() == file.name
    return str(json.loads(done.stdout)["digest"])


@pytest.mark.parametrize(
    "variables",
    [
        {"umask": "077", "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
        {"umask": "000", "TZ": "UTC", "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "1", "PYTHONHASHSEED": "2"},
    ],
)
def test_a_cold_build_elsewhere_has_the_same_digest(
    layout: tuple[Path, Exported], tmp_path: Path, variables: dict[str, str]
) -> None:
    assert cold(tmp_path, **variables) == layout[1].image.digest


def test_another_python_and_another_zlib_give_the_same_digest(layout: tuple[Path, Exported], tmp_path: Path) -> None:
    """The toolkit under another minor version; and no compressor of zlib's is there at all."""
    python = tmp_path / "venv" / "bin" / "python"
    other = interpreters.find("3.13")
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", other, tmp_path / "venv")
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    run(*uv, "--require-hashes", "-r", ROOT / "requirements.txt", **certificates())
    forbid = tmp_path / "site"
    forbid.mkdir()
    (forbid / "sitecustomize.py").write_text(
        "import zlib\n"
        "def refused(*_, **__): raise RuntimeError('a layer depends on zlib')\n"
        "zlib.compress = zlib.compressobj = refused\n"
    )
    assert cold(tmp_path, python, PYTHONPATH=str(forbid)) == layout[1].image.digest


def certificates() -> dict[str, str]:
    """uv reads this variable, where pip and others are told of a certificate by another."""
    found = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    return {"SSL_CERT_FILE": found} if found else {}


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_a_layout_is_what_other_tools_read(layout: tuple[Path, Exported], tmp_path: Path) -> None:
    folder, made = layout
    name = f"oci:{folder}:{TARGET}-{made.target.torch}"
    assert made.places == (name,)
    said = json.loads(run("skopeo", "inspect", name))
    assert said["Digest"] == made.image.digest and said["Labels"][image.LOCK] == made.lock.digest
    assert said["Layers"] == [one.digest for one in made.image.layers]
    run("skopeo", "copy", name, f"dir:{tmp_path}")  # which proves the digest of every blob
    assert {file.name for file in tmp_path.iterdir()} > {one.digest.partition(":")[2] for one in made.image.layers}


def test_every_layer_inflates_to_its_diff_id(layout: tuple[Path, Exported]) -> None:
    for one in layout[1].image.layers:
        with subprocess.Popen(["gzip", "-dc", blobs.path(one.digest)], stdout=subprocess.PIPE) as process:
            assert process.stdout
            sha256 = hashlib.file_digest(process.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
        assert f"sha256:{sha256}" == one.diff_id, one.title
        assert process.returncode == 0


def test_the_bill_of_materials_is_valid_and_complete(layout: tuple[Path, Exported]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    folder, made = layout
    entry = next(one for one in json.loads((folder / "index.json").read_text())["manifests"] if "artifactType" in one)
    manifest = json.loads(oci.read_blob(folder, entry))
    assert manifest["subject"]["digest"] == made.image.digest
    bill = oci.read_blob(folder, manifest["layers"][0])
    assert bill == sbom.of_lock(made.target, made.lock)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None
    found = {one["name"]: (one["version"], one["hashes"][0]["content"]) for one in json.loads(bill)["components"]}
    assert found == {one.name: (one.version, one.sha256) for one in made.lock.wheels}


def test_a_layout_of_another_base_can_be_the_base(
    layout: tuple[Path, Exported], target: spec.Target, tmp_path: Path
) -> None:
    """An image of ours has a Python with venv, too: its layers stay below, its variables stay."""
    made = environment.export(ROOT, TARGET, output=tmp_path / "on", wish=Wish(base=f"oci:{layout[0]}", bytecode=False))
    under = [one.digest for one in layout[1].image.layers]
    assert [one.digest for one in made.image.layers][: len(under)] == under
    config = json.loads(made.image.config.content)["config"]
    assert config["Labels"][image.BASE_DIGEST] == layout[1].image.digest
    assert str(tmp_path) not in made.image.config.content.decode()
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"has not one image|is no OCI layout"):
            environment.export(ROOT, TARGET, output=tmp_path / "x", wish=Wish(base=f"oci:{wrong}"))


# --- registries -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(layout: tuple[Path, Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The image in a registry: its name there, and the registry's folder."""
    folder = tmp_path_factory.mktemp("registry")
    with registries.serve(folder) as address:
        name = f"{address}/lab/cpu:1"
        assert registry.push(layout[1].image, name) == f"{address}/lab/cpu@{layout[1].image.digest}"
        yield name, folder


def edited(tmp_path: Path) -> Path:
    """A copy of the checkout with another lab, which no engine has from an earlier run."""
    checkout = tmp_path / "edited"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "tests", "bench"))
    lab = sorted((checkout / "labs").glob("[0-9]*.py"))[0]
    lab.write_text(f"{lab.read_text()}# edited {uuid4()}\n")
    return checkout


def test_an_image_is_pushed_without_an_engine_and_pulled_with_one(
    layout: tuple[Path, Exported], pushed: tuple[str, Path]
) -> None:
    name, folder = pushed
    assert {one.digest for one in layout[1].image.layers} < registries.blobs(folder).keys()
    run("docker", "pull", f"{name.rpartition(':')[0]}@{layout[1].image.digest}", timeout=300)
    run("docker", "rmi", f"{name.rpartition(':')[0]}@{layout[1].image.digest}")


def test_a_second_push_sends_nothing_and_a_lab_edit_less_than_a_megabyte(
    layout: tuple[Path, Exported], pushed: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, folder = pushed
    before = registries.blobs(folder)
    registry.push(layout[1].image, name)
    assert registries.blobs(folder) == before
    assert "0 of " in capsys.readouterr().err
    environment.export(edited(tmp_path), TARGET, push=name.replace(":1", ":2"), wish=PLAIN)
    new = {digest: size for digest, size in registries.blobs(folder).items() if digest not in before}
    assert 0 < sum(new.values()) < MB, new


def test_the_bill_of_materials_is_a_referrer(layout: tuple[Path, Exported], pushed: tuple[str, Path]) -> None:
    """By the tag of the specification, as this registry has no referrers API."""
    import urllib.request

    address, _, rest = pushed[0].partition("/")
    url = f"http://{address}/v2/{rest.rpartition(':')[0]}/manifests/{layout[1].image.digest.replace(':', '-')}"
    request = urllib.request.Request(url, headers={"Accept": oci.INDEX})
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        listed = json.loads(answer.read())
    referrer = layout[1].image.referrer
    assert referrer
    assert [(one["digest"], one["artifactType"]) for one in listed["manifests"]] == [(referrer.digest, oci.CYCLONEDX)]
    assert not list((pushed[1] / "data").rglob("*.making*"))


def test_an_image_of_another_platform_makes_an_index(
    layout: tuple[Path, Exported], pushed: tuple[str, Path], tmp_path: Path
) -> None:
    """A stand-in for arm64, of the same layers: pulling for amd64 still gives ours."""
    ours = layout[1].image
    settings = json.loads(ours.config.content)["config"]
    foreign = oci.assemble("linux_aarch64", ours.layers[:2], settings, {})
    name = pushed[0].replace(":1", ":both")
    registry.push(ours, name)
    digest = registry.push(foreign, name).rpartition("@")[2]
    said = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
    assert {one["platform"]["architecture"]: one["digest"] for one in said["manifests"]} == {
        "amd64": ours.digest, "arm64": foreign.digest,
    }  # fmt: skip
    assert digest != ours.digest
    under, config = registry.pull_base(f"{name.rpartition(':')[0]}@{digest}", "linux_x86_64")
    assert [one.digest for one in under] == [one.digest for one in ours.layers] and config["architecture"] == "amd64"
    with pytest.raises(DistributeError, match="cannot be reached"):
        registry.pull_base(f"127.0.0.1:1/lab/cpu@sha256:{'0' * 64}", "linux_x86_64")
    oci.write_layout(ours, tmp_path / "both", "1")
    index = oci.write_layout(foreign, tmp_path / "both", "1")
    assert index.digest == digest


def test_a_closed_registry_is_told_apart_and_opened_by_docker_login(
    layout: tuple[Path, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = oci.assemble("linux_x86_64", layout[1].image.layers[-1:], {}, {})
    with registries.serve(tmp_path, closed=True) as address:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
        with pytest.raises(DistributeError, match="refuses") as caught:
            registry.push(small, f"{address}/lab/small:1")
        assert f"docker login {address}" in caught.value.fix
        secret = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": secret}}}))
        assert registry.push(small, f"{address}/lab/small:1").endswith(small.digest)


def test_of_another_torch_a_student_pulls_that_wheel_and_nothing_else(
    layout: tuple[Path, Exported], pushed: tuple[str, Path], target: spec.Target, tmp_path: Path
) -> None:
    """A stand-in for a patch release: the same wheel with one more file."""
    from labrig import wheelhouse

    torch = layout[1].lock.wheel("torch")
    assert torch
    patched = tmp_path / torch.file
    shutil.copyfile(wheelhouse.find(torch, home.wheels()), patched)
    with zipfile.ZipFile(patched, "a") as archive:
        archive.writestr("torch/patch.txt", "2.13.1\n")
    with patched.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    newer = replace(torch, sha256=sha256, size=patched.stat().st_size)
    place = wheelhouse.find(newer, home.wheels())
    place.parent.mkdir(parents=True, exist_ok=True)
    patched.rename(place)
    try:
        wheels = tuple(newer if one == torch else one for one in layout[1].lock.wheels)
        recipe = assembly.plan(target, replace(layout[1].lock, wheels=wheels), ROOT, PLAIN)
        made = assembly.build(recipe, home.wheels)
        before = registries.blobs(pushed[1])
        registry.push(made, pushed[0].replace(":1", ":patch"))
        new = {digest: size for digest, size in registries.blobs(pushed[1]).items() if digest not in before}
        layer = next(one for one in made.layers if one.title.startswith("torch "))
        assert new.pop(layer.digest) == layer.size
        assert sum(new.values()) < MB, new
        blobs.path(layer.digest).unlink()
    finally:
        shutil.rmtree(place.parent)


# --- engines ----------------------------------------------------------------------------------------------------------


def test_an_engine_is_not_sent_what_it_has(both: tuple[str, str], tmp_path: Path) -> None:
    checkout = edited(tmp_path)
    done = subprocess.run(
        [*INVOKE, "build", f"--target={TARGET}", "--engine=docker"], cwd=checkout, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = re.search(r"loading \S+: (\d+) layers, ([\d.]+) (kB|MB)(?:, (\d+) there already)?", done.stderr)
    assert sent, done.stderr
    with daemon.connect() as client:
        if any("containerd.snapshotter" in str(value) for _, value in client.info()["DriverStatus"]):
            assert sent[4] is None
        else:
            assert sent[1] == "1" and sent[3] == "kB", done.stderr
        image.remove(client, [done.stdout.strip()])
    environment.build(ROOT, TARGET, "docker")  # the latest is this checkout's again
