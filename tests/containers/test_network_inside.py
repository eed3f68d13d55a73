"""LABRIG_CA and LABRIG_PROXY with a real registry that has TLS and a password, in real containers, in a real build."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import certificates
import proxies
import pytest
import registries

from labrig import base, blobs, buildkit, daemon, environment, home, image, network, oci, registry
from labrig.blobs import Layer
from labrig.errors import DistributeError
from labrig.oci import Image
from labrig.tarball import Writer

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
CREDENTIALS = "schueler:g3h31m-und-nirgends"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (network.CA, network.PROXY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def bridge() -> str:
    """The address of this machine that containers reach."""
    asked = ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, bridge: str) -> tuple[Path, Path]:
    return certificates.make(tmp_path_factory.mktemp("tls"), f"IP:127.0.0.1,IP:{bridge},DNS:packages.test")


# --- a registry -------------------------------------------------------------------------------------------------------


def small() -> Image:
    """An image of one file."""

    def write(writer: Writer) -> None:
        writer.start("hello", 5)
        writer.data(b"hello")

    layer: Layer = blobs.make(blobs.key("test", "network"), "layer", write)
    return oci.assemble("linux_x86_64", [layer], {"Cmd": ["true"]}, {})


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: tuple[Path, Path]) -> Iterator[str]:
    """The address of a registry with TLS and a password, to which we are logged in; a cache of our own."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with registries.serve(tmp_path, closed=True, tls=authority[1]) as address:
        login = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": login}}}))
        yield address


def test_a_registry_with_a_ca_of_its_own_and_a_password(
    closed: str, authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DistributeError, match="cannot be reached") as caught:
        registry.push(small(), f"{closed}/lab/small:1")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.found
    assert "LABRIG_CA=FILE" in caught.value.fix
    monkeypatch.setenv("LABRIG_CA", str(authority[0]))
    # What other settings say of whom to trust, and through which proxy, is not in the way.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(network.ca()))
    monkeypatch.setenv("LABRIG_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    pushed = registry.push(small(), f"{closed}/lab/small:1")
    assert pushed == f"{closed}/lab/small@{small().digest}"
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "other"))
    layers, config = registry.pull_base(pushed, "linux_x86_64")
    assert config["config"]["Cmd"] == ["true"]
    assert all(blobs.path(one.digest).is_file() for one in layers)
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "third"))
    monkeypatch.delenv("LABRIG_CA")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(DistributeError) as refused:
        registry.pull_base(pushed, "linux_x86_64")
    assert "LABRIG_CA=FILE" in refused.value.fix


def test_a_wrong_password_is_still_a_wrong_password(
    closed: str, authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABRIG_CA", str(authority[0]))
    (tmp_path / "docker" / "config.json").write_text("{}")
    with pytest.raises(DistributeError, match="refuses") as caught:
        registry.push(small(), f"{closed}/lab/small:1")
    assert f"docker login {closed}" in caught.value.fix


def test_a_registry_behind_the_proxy(
    closed: str, authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABRIG_CA", str(authority[0]))
    login = (tmp_path / "docker" / "config.json").read_text().replace(closed, "packages.test")
    (tmp_path / "docker" / "config.json").write_text(login)
    with proxies.forward(int(closed.rpartition(":")[2]), credentials=CREDENTIALS) as way:
        monkeypatch.setenv("LABRIG_PROXY", way.url)
        pushed = registry.push(small(), "packages.test/lab/small:1")
        monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "other"))
        assert registry.pull_base(pushed, "linux_x86_64")[1]["config"]["Cmd"] == ["true"]
    assert set(way.seen) == {"CONNECT packages.test:443"}


# --- in containers ----------------------------------------------------------------------------------------------------


@contextmanager
def page(host: str, leaf: Path) -> Iterator[int]:
    """A page with TLS; gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    # The handshake belongs to the thread of the request: a client that refuses must not end the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def made() -> str:
    """The image of this checkout, in the engine."""
    return environment.build(ROOT, TARGET, "docker").reference


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [*INVOKE, "shell", f"--target={TARGET}", "--engine=docker", "--offline", f"--command={command}"]
    return subprocess.run(
        line, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


CLIENTS = {
    "urllib": "python -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read())'",
    "requests": "python -c 'import sys, requests as r; print(r.get(sys.argv[1], timeout=20).content)'",
}


@pytest.mark.parametrize("client", CLIENTS)
def test_programs_in_a_container_trust_the_ca(
    client: str, made: str, bridge: str, authority: tuple[Path, Path]
) -> None:
    with page(bridge, authority[1]) as port:
        command = f"{CLIENTS[client]} https://{bridge}:{port}/"
        refused = shell(command)
        assert refused.returncode != 0
        if "No module named" in refused.stderr:
            pytest.fail(refused.stderr)
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
        done = shell(command, LABRIG_CA=str(authority[0]))
        assert (done.returncode, done.stdout) == (0, "b'ok'\n"), done.stderr


def test_pip_in_a_container_takes_the_ca(made: str, bridge: str, authority: tuple[Path, Path], tmp_path: Path) -> None:
    """pip is not in the image: who makes an environment there has Debian's."""
    with page(bridge, authority[1]) as port:
        command = (
            "python3 -m venv /tmp/own && "
            f"/tmp/own/bin/pip download --retries 0 --no-deps --index-url https://{bridge}:{port}/ nothing"
        )
        refused = shell(command)
        taken = shell(command, LABRIG_CA=str(authority[0]))
    assert "SSLError" in refused.stderr + refused.stdout
    assert "SSLError" not in taken.stderr + taken.stdout
    assert "No matching distribution" in taken.stderr


def test_the_bundle_is_read_only_and_the_proxy_is_used_inside(
    made: str, bridge: str, authority: tuple[Path, Path]
) -> None:
    with page("127.0.0.1", authority[1]) as port, proxies.forward(port, credentials=CREDENTIALS, host=bridge) as way:
        url = way.url.replace("127.0.0.1", bridge)
        settings = {"LABRIG_CA": str(authority[0]), "LABRIG_PROXY": url}
        done = shell(f"{CLIENTS['urllib']} https://packages.test/", **settings)
        assert (done.returncode, done.stdout) == (0, "b'ok'\n"), done.stderr
        assert way.seen == ["CONNECT packages.test:443"]
        assert CREDENTIALS.partition(":")[2] not in done.stderr
        assert "cannot reach" not in done.stderr
        seen = shell("env; echo >> /etc/ssl/labrig-ca.pem", **settings)
    for line in (f"https_proxy={url}", "NO_PROXY=127.0.0.1,localhost,::1", f"PIP_CERT={network.INSIDE}"):
        assert line in seen.stdout.splitlines()
    assert seen.returncode != 0
    assert "labrig-ca.pem" in seen.stderr
    local = shell("echo $https_proxy", LABRIG_PROXY=f"http://{CREDENTIALS}@127.0.0.1:9")
    assert local.stdout.strip().endswith("@127.0.0.1:9")
    assert "a container cannot reach" in local.stderr
    assert CREDENTIALS.partition(":")[2] not in local.stderr


# --- in builds --------------------------------------------------------------------------------------------------------


def traces(reference: str) -> str:
    """All that the engine knows of an image: its config, and the history of its build."""
    asked = (["docker", "inspect", reference], ["docker", "history", "--no-trunc", reference])
    return "".join(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout for command in asked
    )


def test_a_step_of_a_build_with_a_network_has_the_proxy_and_the_image_no_trace_of_it(
    made: str, bridge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with base = "registry", whose Dockerfile installs Python by apt."""
    monkeypatch.setenv("LABRIG_PROXY", f"http://{CREDENTIALS}@{bridge}:9")
    whole = environment.use(ROOT, TARGET, "docker", offline=True)
    with daemon.connect() as client:
        under = base.ensure(client, whole.target, whole.lock.platform, ROOT / "images")
        mark = uuid.uuid4().hex  # so that BuildKit has not this step from before
        text = f'ARG BASE\nFROM ${{BASE}}\nRUN test -n "$https_proxy" && test -n "$NO_PROXY" && touch /{mark}\n'
        context = tmp_path / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(text)
        target = replace(whole.target, name="network-test", base="registry")
        recipe = buildkit.Recipe(target, whole.lock, under, text, "", {})
        with image.alone(target) as guard:
            buildkit._run_buildx(client, recipe, context, ROOT, guard)
        try:
            found = traces(recipe.reference)
        finally:
            image.remove(client, [recipe.reference])
    said = capsys.readouterr()
    assert "--build-arg https_proxy" in said.err
    assert f"touch /{mark}" in found
    assert CREDENTIALS.partition(":")[2] not in found + said.out + said.err


@pytest.mark.parametrize("builder", ["layers", "dockerfile"])
def test_the_password_is_in_no_image_lock_or_message(builder: str, bridge: str, tmp_path: Path) -> None:
    """Of a checkout with another lab, so that something is built."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "tests", "bench"))
    lab = sorted((checkout / "labs").glob("[0-9]*.py"))[0]
    lab.write_text(lab.read_text() + f"# edited for {builder}\n")
    password = CREDENTIALS.partition(":")[2]
    line = [*INVOKE, "build", f"--target={TARGET}", "--engine=docker", f"--builder={builder}"]
    variables = {**os.environ, "LABRIG_PROXY": f"http://{CREDENTIALS}@{bridge}:9"}
    done = subprocess.run(line, cwd=checkout, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    reference = done.stdout.strip()
    try:
        found = traces(reference)
        assert "Entrypoint" in found
        notes = [file for file in home.layers().glob("*.json") if password in file.read_text(errors="replace")]
        files = [file for file in checkout.rglob("*") if file.is_file() and password.encode() in file.read_bytes()]
    finally:
        with daemon.connect() as client:
            image.remove(client, [reference])
            made = environment.use(ROOT, TARGET, "docker", offline=True)
            client.images.get(made.reference).tag(image.name(made.target), "latest")  # this checkout's again
    assert password not in found + done.stdout + done.stderr
    assert notes == files == []
