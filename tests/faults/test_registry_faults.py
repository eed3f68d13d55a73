"""Faults between a machine and a registry: gone in the middle, busy, tokens that end, wrong passwords, wrong bytes.

Whatever happens: a clear error, what came is kept, the same command goes on, and nothing wrong is ever in the store.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import moods
import pytest
import registries
from moods import Answer, Moody, Request

from labrig import blobs, home, oci, registry
from labrig.blobs import Layer
from labrig.errors import BuildError, DistributeError
from labrig.oci import Document, Image
from labrig.tarball import Writer

pytestmark = pytest.mark.docker  # what prepares an engine prepares docker-registry as well
MB = 1_000_000
SIZES = (9, 5, 3, 1)  # megabytes of the layers
SECRET = base64.b64encode(f"{registries.USER}:{registries.PASSWORD}".encode()).decode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "cache"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Moody]:
    folder = tmp_path / "registry"
    folder.mkdir()
    with moods.serve(folder) as moody:
        yield moody


def layer(size: int) -> Layer:
    def write(writer: Writer) -> None:
        content = random.Random(size).randbytes(size * MB)  # noqa: S311
        writer.start(f"data/{size}", len(content))
        writer.data(content)

    return blobs.make(blobs.key("moody", str(size)), f"of {size} MB", write)


@pytest.fixture
def image(cache: Path) -> Image:
    made = oci.assemble("linux_x86_64", [layer(size) for size in SIZES], {"User": "1000"}, {}, b'{"bom": 1}')
    assert all(one.size > size * MB for one, size in zip(made.layers, SIZES, strict=True)), "noise stays as it is"
    return made


@pytest.fixture
def elsewhere(image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache of another machine, which has nothing yet."""
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


@pytest.fixture
def pushed(there: Moody, image: Image, elsewhere: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The image in the registry, by its digest; this machine has nothing of it."""
    with monkeypatch.context() as before:
        before.setenv("LABRIG_CACHE", str(cache))
        reference = registry.push(image, f"{there.address}/lab/cpu:1")
    there.asked.clear()
    return reference


def log_in(address: str, secret: str, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": secret}}}))


def right(image: Image) -> None:
    """Every layer is in the store, is what its digest says, and is known to be so."""
    for one in image.layers:
        assert hashlib.sha256(blobs.path(one.digest).read_bytes()).hexdigest() == one.digest.removeprefix("sha256:")
        assert blobs.is_untouched(blobs.path(one.digest), one.size)
    assert not list((home.layers() / "partial").glob("*"))


def nothing_wrong() -> None:
    """What is in the store is what its name says; where it is not whole, it is in no place where it is looked for."""
    for blob in (home.layers() / "blobs" / "sha256").glob("[0-9a-f]*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def pull(reference: str) -> int:
    """As `invoke pull`: what is not in the store comes; gives the bytes received."""
    found = registry.look(reference, "linux_x86_64")
    todo = [one for one in found.layers if not blobs.is_untouched(blobs.path(one.digest), one.size)]
    return registry.bring(reference, todo) if todo else 0


# --- gone in the middle -----------------------------------------------------------------------------------------------


def test_a_push_whose_registry_goes_away_goes_on_where_it_stopped(there: Moody, image: Image) -> None:
    there.cut_upload = 4 * MB  # the first layer's piece is larger
    small = registry.PIECE
    assert small > there.cut_upload
    with pytest.raises(DistributeError, match="cannot be reached") as caught:
        registry.push(image, f"{there.address}/lab/cpu:1")
    assert caught.value.code == 7
    assert registry_holds(there, "1") is None, "a tag of a push that did not end"
    there.gone, there.cut_upload = False, None
    before = {one.digest for one in image.layers if has_blob(there, one.digest)}
    there.asked.clear()
    assert registry.push(image, f"{there.address}/lab/cpu:1").endswith(image.digest)
    assert there.count("PATCH", "/uploads/") == len(image.layers) - len(before)
    assert registry_holds(there, "1") == image.digest


def registry_holds(there: Moody, tag: str) -> str | None:
    """The digest that a tag names, asked by a client of the standard library."""
    import urllib.error
    import urllib.request

    there.gone = False
    request = urllib.request.Request(
        f"http://{there.address}/v2/lab/cpu/manifests/{tag}", headers={"Accept": oci.MANIFEST}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return f"sha256:{hashlib.sha256(answer.read()).hexdigest()}"
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 404
        return None


def has_blob(there: Moody, digest: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection(there.address, timeout=20)
    with contextlib.closing(connection):
        connection.request("HEAD", f"/v2/lab/cpu/blobs/{digest}")
        return connection.getresponse().status == 200


def test_a_pull_that_is_cut_goes_on_by_itself_from_the_last_byte(there: Moody, pushed: str, image: Image) -> None:
    there.cut = 2 * MB + 7
    received = pull(pushed)
    right(image)
    total = sum(one.size for one in image.layers)
    assert received == total and there.sent == total + len(image.config.content), "no byte came twice"
    assert there.count("GET", "/blobs/") > len(image.layers)


def test_a_pull_whose_registry_goes_away_keeps_what_came(there: Moody, pushed: str, image: Image) -> None:
    there.cut = 2 * MB
    there.mood = lambda request: _go(there) if "Range" in request.headers else None
    with pytest.raises(DistributeError, match=r"cannot be (downloaded|reached)") as caught:
        pull(pushed)
    assert "goes on where it stopped" in caught.value.fix
    nothing_wrong()
    kept = sum(one.stat().st_size for one in (home.layers() / "partial").iterdir())
    kept += sum(one.size for one in image.layers if blobs.path(one.digest).exists())
    assert kept > MB
    there.gone, there.cut, there.mood = False, None, lambda _: None
    assert pull(pushed) == sum(one.size for one in image.layers) - kept
    right(image)


def _go(there: Moody) -> Answer:
    there.gone = True
    return Answer(503)


def test_a_pull_that_is_killed_goes_on_where_it_stopped(there: Moody, pushed: str, image: Image) -> None:
    slow = Slow(there)
    there.mood = slow
    script = (
        "import sys; from labrig import registry\n"
        "found = registry.look(sys.argv[1], 'linux_x86_64')\n"
        "registry.bring(sys.argv[1], found.layers)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, pushed], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while there.sent < 4 * MB and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    nothing_wrong()
    there.mood = lambda _: None
    kept = sum(one.stat().st_size for one in (home.layers() / "partial").iterdir())
    kept += sum(one.size for one in image.layers if blobs.is_untouched(blobs.path(one.digest), one.size))
    assert kept > 0
    assert pull(pushed) <= sum(one.size for one in image.layers) - kept
    right(image)


class Slow:
    """A mood: the largest layer is held back until the others have come."""

    def __init__(self, there: Moody) -> None:
        self.there = there

    def __call__(self, request: Request) -> None:
        """Wait with every second blob."""
        if request.method == "GET" and "/blobs/" in request.path and request.number % 2:
            time.sleep(0.5)


def test_nobody_at_all_is_said_at_once(image: Image) -> None:
    begun = time.monotonic()
    with pytest.raises(DistributeError, match="cannot be reached"):
        registry.push(image, "127.0.0.1:1/lab/cpu:1")
    assert time.monotonic() - begun < 20


# --- busy -------------------------------------------------------------------------------------------------------------


class Busy:
    """A mood: of each kind of request the first gets 429 and is told when to come again."""

    def __init__(self, after: str = "1") -> None:
        self.after, self.seen = after, set[str]()

    def __call__(self, request: Request) -> Answer | None:
        """429 for what was not asked before."""
        kind = request.method + request.path.partition("?")[0]
        if kind in self.seen or request.method not in ("GET", "PUT", "HEAD"):
            return None
        self.seen.add(kind)
        return Answer(429, {"Retry-After": self.after}, b'{"errors":[{"code":"TOOMANYREQUESTS"}]}')


def test_a_busy_registry_is_asked_again_when_it_says(
    there: Moody, pushed: str, image: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    there.mood = Busy()
    begun = time.monotonic()
    pull(pushed)
    right(image)
    assert time.monotonic() - begun >= 1, "it was asked to wait"
    assert "asks to wait 1 s" in capsys.readouterr().err


def test_a_push_to_a_busy_registry_waits(there: Moody, image: Image) -> None:
    there.mood = Busy()
    assert registry.push(image, f"{there.address}/lab/cpu:1").endswith(image.digest)


def test_one_that_stays_busy_is_named(there: Moody, pushed: str) -> None:
    there.mood = lambda _: Answer(429, {"Retry-After": "0"}, b'{"errors":[{"message":"pull rate limit"}]}')
    with pytest.raises(DistributeError) as caught:
        pull(pushed)
    assert "429" in str(caught.value) and "pull rate limit" in str(caught.value)


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uses", [10**9, 3], ids=["that last", "that end"])
def test_tokens_are_fetched_and_fetched_anew(
    there: Moody, image: Image, elsewhere: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses: int
) -> None:
    """One for reading does not write, and one may end in the middle."""
    there.mood = moods.Tokens(there, SECRET, uses)
    log_in(there.address, SECRET, tmp_path)
    with monkeypatch.context() as before:
        before.setenv("LABRIG_CACHE", str(cache))
        reference = registry.push(image, f"{there.address}/lab/cpu:1")
    assert there.count("GET", "/token") >= 2
    pull(reference)
    right(image)


@pytest.mark.parametrize("secret", ["", base64.b64encode(b"student:verkehrt").decode()], ids=["none", "wrong"])
@pytest.mark.parametrize("kind", ["token", "password"])
def test_a_wrong_password_is_named_and_never_shown(
    there: Moody, image: Image, tmp_path: Path, secret: str, kind: str
) -> None:
    with contextlib.ExitStack() as stack:
        address = there.address
        there.mood = moods.Tokens(there, SECRET)
        if kind == "password":
            folder = tmp_path / "closed"
            folder.mkdir()
            address = stack.enter_context(registries.serve(folder, closed=True))
        if secret:
            log_in(address, secret, tmp_path)
        with pytest.raises(DistributeError, match="refuses") as caught:
            registry.push(image, f"{address}/lab/cpu:1")
    assert f"docker login {address}" in caught.value.fix
    assert "verkehrt" not in str(caught.value) and (not secret or secret not in str(caught.value))


def test_a_credential_helper_is_asked(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker login leaves it on desktops: the password is in a keyring, and a program of Docker's gives it."""
    folder = tmp_path / "closed"
    folder.mkdir()
    helper = tmp_path / "bin" / "docker-credential-lab"
    helper.parent.mkdir()
    said = json.dumps({"Username": registries.USER, "Secret": registries.PASSWORD})
    helper.write_text(f"#!/bin/sh\ncat >{tmp_path}/asked\n[ \"$1\" = get ] && echo '{said}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    with registries.serve(folder, closed=True) as address:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"credHelpers": {address: "lab"}}))
        assert registry.push(image, f"{address}/lab/cpu:1").endswith(image.digest)
        assert (tmp_path / "asked").read_text() == address


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "config.json"), ('{"auths": 3}', "config.json"), ('{"credsStore": "gone"}', "docker-credential-gone")],
)
def test_dockers_settings_that_cannot_be_used_are_named(image: Image, tmp_path: Path, text: str, found: str) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(text)
    with registries.serve(folder, closed=True) as address, pytest.raises(DistributeError) as caught:
        registry.push(image, f"{address}/lab/cpu:1")
    assert found in str(caught.value) and "docker login" in caught.value.fix


# --- wrong bytes ------------------------------------------------------------------------------------------------------


def test_a_layer_that_is_not_its_digest_is_never_kept(there: Moody, pushed: str, image: Image) -> None:
    there.flip = True
    with pytest.raises(DistributeError, match="is not what its digest says"):
        pull(pushed)
    nothing_wrong()
    there.flip = False
    pull(pushed)
    right(image)


def test_a_manifest_that_is_not_its_digest_is_refused(there: Moody, pushed: str, image: Image) -> None:
    other = Document(oci.MANIFEST, image.manifest.content.replace(b'"schemaVersion":2', b'"schemaVersion":2 '))
    there.mood = lambda request: (
        Answer(200, {"Content-Type": oci.MANIFEST}, other.content) if ("/manifests/" in request.path) else None
    )
    with pytest.raises(DistributeError, match="not what was asked for"):
        pull(pushed)
    nothing_wrong()


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b'{"manifests": 3}', b'{"manifests": [{}]}', b"\xff"])
def test_what_is_no_image_is_said_to_be_none(there: Moody, elsewhere: Path, content: bytes) -> None:
    there.mood = lambda _: Answer(200, {}, content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with pytest.raises(DistributeError, match=r"is no image that labrig can read|has no image for"):
        registry.look(f"{there.address}/lab/cpu@{digest}", "linux_x86_64")


def test_what_was_written_into_a_layer_is_seen_and_mended(there: Moody, pushed: str, image: Image) -> None:
    pull(pushed)
    blob = blobs.path(image.layers[1].digest)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"x")
    assert pull(pushed) == image.layers[1].size
    right(image)


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_the_first_byte(
    there: Moody, pushed: str, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(small_disk))
    with pytest.raises(BuildError, match="not enough room"):
        pull(pushed)
    assert there.sent < MB


def test_a_disk_that_fills_up_on_the_way_is_named_and_what_came_is_kept(
    there: Moody, pushed: str, image: Image, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(small_disk))
    monkeypatch.setattr(registry, "_require_room", lambda *_: None)  # as when somebody else fills it meanwhile
    with pytest.raises(BuildError) as caught:
        pull(pushed)
    assert "No space left" in str(caught.value) and "make room" in str(caught.value)
    nothing_wrong()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True, timeout=60)
    assert 0 < pull(pushed) < sum(one.size for one in image.layers)
    right(image)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB. Needs root, as the engine does."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=60)
