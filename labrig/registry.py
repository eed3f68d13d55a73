"""Registries: pushing an image without an engine, and taking a base from one by its digest.

The protocol is the OCI distribution specification v1.1, spoken by `oras`, which finds credentials where
`docker login` puts them. A blob that a registry has already is not sent again. http is spoken to this machine only, and
only where a TLS handshake is answered in words that are not TLS; the handshake carries no credentials.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from labrig import blobs, home, network, oci
from labrig.base import ARCHITECTURES
from labrig.blobs import Layer
from labrig.crew import Crew
from labrig.download import LONGEST_WAIT, Transfer, download
from labrig.errors import BuildError, DistributeError, FetchError, Interrupted, UsageError
from labrig.files import CHUNK, copy_proven
from labrig.oci import Document, Image
from labrig.progress import Progress, megabytes

if TYPE_CHECKING:
    from httpx2 import Auth, Client, Request
    from httpx2 import Response as Answer
    from oras.container import Container
    from oras.provider import Registry
    from requests import Response

RENEWALS = 4  # tokens that a download may use up: one may end just when it is used
PIECE = 16 * CHUNK  # bytes that are sent at once
ACCEPTED = {"Accept": ", ".join(oci.MANIFESTS + oci.INDEXES)}
BUSY = (429, 502, 503, 504)  # answers after which it is tried again
JOBS = 4  # layers that are pulled at once
TIMEOUT = (10, 300)  # seconds to connect, and between two bytes
NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")  # OpenSSL's words for an answer without TLS
DENIED = re.compile(r"\b(401|403)\b|password|authentication")
HOST, NAME = r"[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?", r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
NAMESPACE = re.compile(rf"(?:{HOST})/{NAME}")
REFERENCE = re.compile(
    rf"(?P<host>{HOST})/(?P<name>{NAME})"
    rf"(?::(?P<tag>{oci.TAG_NAME.pattern}))?(?:@(?P<digest>{oci.DIGEST.pattern}))?"
)


def push(image: Image, reference: str) -> str:
    """Send an image to ``HOST/NAME:TAG``, and its bill of materials with it; gives ``HOST/NAME@DIGEST``.

    Where the registry has an image of another platform under the tag, both become an index, whose digest is given.

    Raises:
        UsageError: the reference cannot be meant.
        DistributeError: the registry cannot be reached, or refuses.
    """
    found = require_tag(reference)
    tag = str(found["tag"])
    with _connected(reference) as (registry, place):
        todo = [one for one in image.layers if not _has(registry, place, one.digest)]
        with Progress("push") as progress:
            progress.start(sum(one.size for one in todo))
            for layer in {one.digest: one for one in todo}.values():
                answer = registry.chunked_upload(str(blobs.path(layer.digest)), place, oci.describe(layer), PIECE)
                _check(answer, "PUT", f"the layer {layer.title}", (201, 204))
                progress.advance(layer.size)
            sent = sum(_send(registry, place, one) for one in image.documents if one.media_type != oci.MANIFEST)
            progress.say(
                f"push: {len(todo)} of {len(image.layers)} layers sent, "
                f"{megabytes(sum(one.size for one in todo) + sent)}"
            )
        named = _with_others(registry, place, tag, image)
        _put_manifest(registry, place, image.digest, image.manifest)
        if image.sbom and image.referrer:
            _refer(registry, place, image.digest, image.referrer, image.sbom.media_type)
        _put_manifest(registry, place, tag, named)  # last: until now nobody sees a difference
    return f"{found['host']}/{found['name']}@{named.digest}"


def attach(image: Image, reference: str, about: Document, file: str) -> None:
    """Send a document about an image of ``HOST/NAME:TAG`` that was pushed, and tie it to its digest. Raises what
    :func:`push` raises."""
    with _connected(reference) as (registry, place):
        for one in (oci.EMPTY_DOCUMENT, about):
            _send(registry, place, one)
        _refer(registry, place, image.digest, oci.refer(image.manifest, about, file), about.media_type)


def tag(image: Image, reference: str) -> None:
    """Let ``HOST/NAME:TAG`` name an image that was pushed there, beside those for other platforms that it names."""
    with _connected(reference) as (registry, place):
        name = str(require_tag(reference)["tag"])
        _put_manifest(registry, place, name, _with_others(registry, place, name, image))


def digest_of(reference: str, platform: str) -> str:
    """The digest of the image for a platform that ``HOST/NAME:TAG`` names; empty where it names none.

    Raises:
        DistributeError: the registry cannot be reached, or refuses.
    """
    with _connected(reference) as (registry, place):
        found = _named(registry, place, str(require_tag(reference)["tag"]))
    same = [one for one in found if one["platform"].get("architecture") == ARCHITECTURES[platform]]
    return str(same[0]["digest"]) if same else ""


def require_tag(reference: str) -> dict[str, str | None]:
    """The parts of ``HOST/NAME:TAG``. Raises UsageError for anything else."""
    found = _parse(reference)
    if not found["tag"] or found["digest"]:
        raise UsageError(f"{reference} is no place to push to", fix="name HOST/NAME:TAG")
    return found


def pull_base(reference: str, platform: str, *, offline: bool = False) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """The layers and the config of ``HOST/NAME@DIGEST``, in the store; what is there is not fetched again.

    Raises:
        UsageError: the reference cannot be meant.
        BuildError: ``offline``, and something is not there.
        DistributeError: the registry cannot be reached, has no such image, or gives another one.
    """
    image = look(reference, platform, offline=offline)
    todo = [one for one in image.layers if not blobs.is_untouched(blobs.path(one.digest), one.size)]
    if todo and offline:
        raise _offline(reference, todo[0].digest)
    if todo:
        print(f"pulling {reference}: {megabytes(sum(one.size for one in todo))}", file=sys.stderr, flush=True)
        bring(reference, todo)
    return image.layers, dict(json.loads(image.config.content))


def look(reference: str, platform: str, *, offline: bool = False, plain: bool = False) -> Image:
    """The image ``HOST/NAME@DIGEST`` for a platform, as its manifest has it; no layer is fetched. ``plain``: from a
    cache, which need not have TLS, as in :func:`reading`.

    Raises what :func:`pull_base` raises.
    """
    found = _parse(reference)
    if not found["digest"]:
        raise UsageError(f"{reference} is not pinned", fix="name HOST/NAME@sha256:DIGEST")

    def small(descriptor: Mapping[str, Any]) -> bytes:
        digest = str(descriptor["digest"])
        if not blobs.path(digest).exists():
            if offline:
                raise _offline(reference, digest)
            is_manifest = descriptor.get("mediaType", oci.MANIFEST) in oci.MANIFESTS + oci.INDEXES
            with _connected(reference, plain=plain) as (registry, place):
                url = f"{place.registry}/v2/{place.api_prefix}/{'manifests' if is_manifest else 'blobs'}/{digest}"
                headers = dict(ACCEPTED) if is_manifest else None
                answer = _ask(registry, "GET", url, (200, 404), headers=headers)
                if answer.status_code == 404:
                    raise DistributeError(
                        f"the registry {found['host']} has no {reference.partition('@')[0]} with that digest",
                        found=digest,
                        fix="ask who published it: an admin may have removed it, or published anew",
                    )
                content = answer.content
                keep(digest, len(content), io.BytesIO(content))
        return blobs.path(digest).read_bytes()

    return read_image({"digest": found["digest"]}, platform, small, reference)


def bring(reference: str, layers: Sequence[Layer]) -> int:
    """Bring layers of ``HOST/NAME@DIGEST`` into the store, proven, from where an earlier run stopped; gives the bytes
    that were received.

    Raises:
        DistributeError: the registry cannot be reached, refuses, or gives something else than was asked for.
        BuildError: the disk is full or cannot be written.
        Interrupted: Ctrl-C; what came is kept.
    """
    partial = home.layers() / "partial"
    todo = {one.digest: one for one in layers}
    with _connected(reference) as (registry, place), Progress("pull") as progress:
        transfers = []
        for one in sorted(todo.values(), key=lambda one: -one.size):
            name = one.digest.removeprefix("sha256:")
            left = (partial / name).stat().st_size if (partial / name).exists() else 0
            url = f"{registry.prefix}://{place.get_blob_url(one.digest)}"
            blob = blobs.path(one.digest)
            blob.unlink(missing_ok=True)  # it is not there, or not as it was
            transfers.append(Transfer(one.title, name, one.size, url, partial / name, blob, left, "its digest"))
        crew = Crew(JOBS)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            _require_room(partial, sum(max(0, one.size - one.left) for one in transfers))
            progress.start(sum(one.size for one in transfers), done=sum(one.left for one in transfers))
            with _downloads(registry, place, crew) as client:
                received = crew.each(lambda one: _bring(one, client, crew, progress), transfers)
        except OSError as error:
            raise blobs.unwritable(error, partial) from error
        except FetchError as error:
            again = "run it again: it goes on where it stopped"
            raise DistributeError(error.what, found=error.found, fix=network.cure(error.found, again)) from None
    return sum(received.values())


def _bring(transfer: Transfer, client: Client, crew: Crew, progress: Progress) -> int:
    received = download(transfer, client, crew, progress)
    blobs.seal(transfer.final)
    return received


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BuildError(
            f"not enough room in {folder}", found=f"{megabytes(free)} free, {megabytes(needed)} needed",
            fix="make room, or set LABRIG_CACHE to a folder on a larger disk",
        )  # fmt: skip


def _offline(reference: str, digest: str) -> BuildError:
    return BuildError(f"{reference} cannot be had offline", found=f"not here: {digest}", fix="run it online, once")


def read_image(
    descriptor: Mapping[str, Any], platform: str, small: Callable[[Mapping[str, Any]], bytes], called: str
) -> Image:
    """The image for a platform that a descriptor stands for; ``small`` reads a document that a descriptor names.

    Raises:
        DistributeError: there is none for the platform, or it is no image.
    """
    try:
        documents = [str(descriptor["digest"])]
        content = small(descriptor)
        manifest = json.loads(content)
        if "manifests" in manifest:
            architecture = ARCHITECTURES[platform]
            fits = [
                one
                for one in manifest["manifests"]
                if one.get("platform", {}).get("architecture") == architecture and one["platform"].get("os") == "linux"
            ]
            if not fits:
                raise DistributeError(f"{called} has no image for linux/{architecture}", fix="name another base")
            documents.append(str(fits[0]["digest"]))
            content = small(fits[0])
            manifest = json.loads(content)
        config = Document(str(manifest["config"].get("mediaType", oci.CONFIG)), small(manifest["config"]))
        said = json.loads(config.content)
        titles = [str(one.get("created_by", "")) for one in said.get("history", []) if not one.get("empty_layer")]
        layers = []
        for number, (one, diff_id) in enumerate(zip(manifest["layers"], said["rootfs"]["diff_ids"], strict=True)):
            if not oci.DIGEST.fullmatch(one["digest"]) or int(one["size"]) < 0:
                raise ValueError(f"a layer that cannot be: {str(one)[:80]}")
            media_type = oci.DOCKER.get(one["mediaType"], one["mediaType"])
            title = titles[number].removeprefix(oci.MADE) if number < len(titles) else ""
            layers.append(Layer(title or one["digest"][:19], one["digest"], diff_id, int(one["size"]), 0, media_type))
        documents += [str(manifest["config"]["digest"]), *(one.digest for one in layers)]
        blobs.remember(f"image: {called}", documents)
        kind = Document(str(manifest.get("mediaType", oci.MANIFEST)), content)
        return Image(platform, tuple(layers), config, kind)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DistributeError(
            f"{called} is no image that labrig can read", found=f"{type(error).__name__}: {error}"
        ) from None


def keep(digest: str, size: int, source: BinaryIO) -> None:
    """Bring a blob into the store, proven.

    Raises:
        DistributeError: it is not what its digest says.
    """
    to = blobs.path(digest)
    to.parent.mkdir(parents=True, exist_ok=True)
    if not copy_proven(source, to, digest.removeprefix("sha256:"), size):
        raise DistributeError("a blob is not what was asked for", found="other bytes", fix=f"expected {digest}")
    blobs.seal(to)


@dataclass(frozen=True)
class Source:
    """An image's repository, read as an engine reads it: everything comes over the network, nothing is kept."""

    registry: Registry
    place: Container

    def manifest(self, digest: str) -> bytes:
        """A manifest or an index, not yet proven. Raises DistributeError where the registry has none."""
        url = f"{self.place.registry}/v2/{self.place.api_prefix}/manifests/{digest}"
        with self._get(url, digest, headers=dict(ACCEPTED)) as answer:
            return bytes(answer.content)

    @contextlib.contextmanager
    def blob(self, digest: str) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """All of a blob, asked for as a range: whether it is answered as one (206), and the pieces, not yet proven.

        Raises DistributeError where the registry does not give it.
        """
        headers = {"Range": "bytes=0-", "Accept-Encoding": "identity"}
        with self._get(self.place.get_blob_url(digest), digest, headers=headers) as answer:
            yield answer.status_code == 206, answer.iter_content(CHUNK)

    def gives_ranges(self, digest: str) -> bool:
        """Whether it answers with one byte when asked for one (206); the rest of a longer answer is not read.

        A cache that is just writing down that it holds a blob answers with 500 ("invalid checksum digest format").
        """
        good, url = (200, 206, 500), self.place.get_blob_url(digest)
        with self._get(url, digest, good, headers={"Range": "bytes=0-0"}) as answer:
            return bool(answer.status_code == 206)

    def _get(self, url: str, digest: str, good: tuple[int, ...] = (200, 206), **how: Any) -> Response:
        answer: Response = self.registry.do_request(f"{self.registry.prefix}://{url}", "GET", stream=True, **how)
        if answer.status_code not in good:
            with answer:
                said = " ".join(answer.text.split())[:200]
            if answer.status_code in (401, 403):
                raise ValueError(f"GET {digest}: {answer.status_code} {answer.reason} {said}")
            raise DistributeError(
                f"{self.place.registry} does not give {self.place.api_prefix}@{digest}",
                found=f"{answer.status_code} {answer.reason} {said}",
                fix="it is not there, or was removed: ask who published it"
                if answer.status_code == 404
                else "look at its log; a cache says so where the registry behind it cannot be reached or refuses",
            )
        return answer


@contextlib.contextmanager
def reading(reference: str) -> Iterator[Source]:
    """Read from a registry, or a cache in front of one, that need not have TLS: what is read is proven by digest.

    Raises:
        DistributeError: it cannot be reached, or refuses.
    """
    with _connected(reference, plain=True) as (registry, place):
        try:
            yield Source(registry, place)
        finally:
            registry.session.close()


# --- the protocol -----------------------------------------------------------------------------------------------------


def _parse(reference: str) -> dict[str, str | None]:
    found = REFERENCE.fullmatch(reference)
    if not found:
        raise UsageError(
            f"{reference!r} is no image in a registry",
            fix="name HOST/NAME:TAG, such as registry.example.org/lab/cpu:2.13.0",
        )
    return found.groupdict()


@contextlib.contextmanager
def _connected(reference: str, *, plain: bool = False) -> Iterator[tuple[Registry, Container]]:
    """A client for a registry. ``plain``: http is spoken to another machine as well, and no password is then sent."""
    import requests
    from oras.auth import AuthenticationException

    host = str(_parse(reference)["host"])
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    here = bare in ("localhost", "[::1]") or bare.startswith("127.")
    logging.getLogger("oras").setLevel(logging.CRITICAL)  # what it would say, an error of ours says
    try:
        insecure = (here or plain) and not _speaks_tls(host)
        registry = _client(host, insecure=insecure)
        place = registry.get_container(reference)
        folder = os.environ.get("DOCKER_CONFIG")
        if here or not insecure:
            _log_in(registry, place, folder or "")
        yield registry, place
    except KeyboardInterrupt:
        raise Interrupted("it was interrupted", fix="run it again: what is there already is not sent again") from None
    except requests.RequestException as error:
        raise DistributeError(
            f"the registry {host} cannot be reached",
            found=_cause(error),
            fix=network.cure(_cause(error), "look at the address and the network"),
        ) from None
    except (ValueError, AuthenticationException) as error:  # how oras says that a registry refuses
        login = f"docker login {host} (a password may be wrong or too old); may that user do this there?"
        raise DistributeError(
            f"the registry {host} refuses",
            found=str(error),
            fix=login if DENIED.search(str(error)) else "look at what it says",
        ) from None


def _log_in(registry: Registry, place: Container, folder: str) -> None:
    """Take the credentials that `docker login` left in ``folder``, or where it usually does."""
    try:
        registry.auth.load_configs(place, [str(Path(folder, "config.json"))] if folder else None)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise DistributeError(
            "Docker's own settings cannot be read",
            found=f"{Path(folder or '~/.docker', 'config.json')}, or its credential helper: {error}",
            fix=f"mend that file, or docker login {place.registry} anew",
        ) from None
    if registry.asks_for_password and not getattr(registry.auth, "_basic_auth", None):
        said = registry.auth._auth_config or {}
        helpers = [said.get("credsStore"), (said.get("credHelpers") or {}).get(place.registry)]
        absent = [f"docker-credential-{one}" for one in helpers if one and not shutil.which(f"docker-credential-{one}")]
        lacks = f"; {absent[0]}, which should know them, is not on PATH" if absent else ""
        raise ValueError(f"it wants a user and a password{lacks}")


def _speaks_tls(host: str) -> bool:
    """Whether a registry on this machine speaks TLS. Nothing is verified, as nothing is said: the client does that.

    One that does not answer, or ends the handshake in another way, is taken as what it is elsewhere, TLS.
    """
    name, colon, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "443")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((name.strip("[]"), int(port)), timeout=TIMEOUT[0]) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return error.reason not in NO_TLS
    except OSError:
        # Nobody there: without a port, one may be at that of http. With one, the client says what is wrong.
        return bool(colon)


def _client(host: str, *, insecure: bool) -> Registry:
    """A client of oras that does not try for two minutes, and never waits without end."""
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class Client(Registry):  # type: ignore[misc]  # oras has no types
        asks_for_password = False

        def do_request(self, url: str, method: str = "GET", headers: Any = None, **how: Any) -> Response:
            """A request with what is known to open the door, and once more with what a 401 asks for."""
            sent = dict(headers or {})
            sent |= _credentials(self)
            answer: Response = self.session.request(method, url, headers=sent, **how)
            if answer.status_code != 401 or self.asks_for_password:
                return answer
            self.auth.token = None  # it was for something less, such as reading, or is too old
            sent, changed = self.auth.authenticate_request(answer, dict(headers or {}))
            return self.session.request(method, url, headers=sent, **how) if changed else answer

    trusted = str(network.ca() or "") or True
    client = Client(insecure=insecure, tls_verify=trusted)

    def adapt(one: Client) -> None:
        tries = Retry(
            3, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False, retry_after_max=LONGEST_WAIT,
            allowed_methods=None,  # a piece that came in after all is refused the second time, and the push with it
        )  # fmt: skip
        one.session.mount(f"{one.prefix}://", HTTPAdapter(max_retries=tries))
        one.session.request = functools.partial(_request, one.session.request, trusted)

    adapt(client)
    # The registry says which kind of credentials it takes: a token, or user and password at each request (RFC 7617).
    answer = client.session.request("GET", f"{client.prefix}://{host}/v2/")
    if answer.status_code == 401 and answer.headers.get("WWW-Authenticate", "").lower().startswith("basic"):
        client = Client(insecure=insecure, auth_backend="basic", tls_verify=trusted)
        adapt(client)
        client.asks_for_password = True
    return client


def _request(plain: Callable[..., Response], trusted: str | bool, method: str, url: str, **how: Any) -> Response:
    """A request within our limits of time, trusting whom we trust, through the proxy that is set for its address."""
    return plain(method, url, **{"timeout": TIMEOUT, "verify": trusted, **how, "proxies": network.routes(url)})


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed request, in a line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _ask(registry: Registry, method: str, url: str, good: tuple[int, ...], **how: Any) -> Response:
    answer: Response = registry.do_request(f"{registry.prefix}://{url}", method, **how)
    _check(answer, method, url.partition("/")[2], good)
    return answer


def _check(answer: Response, method: str, what: str, good: tuple[int, ...]) -> None:
    if answer.status_code not in good:
        said = " ".join(answer.text.split())[:200]
        raise ValueError(f"{method} {what}: {answer.status_code} {answer.reason} {said}")


def _has(registry: Registry, place: Container, digest: str) -> bool:
    return _ask(registry, "HEAD", place.get_blob_url(digest), (200, 404)).status_code == 200


def _send(registry: Registry, place: Container, one: Document) -> int:
    """Send a small blob, unless it is there; gives the bytes that were sent."""
    if _has(registry, place, one.digest):
        return 0
    answer = _ask(registry, "POST", place.upload_blob_url(), (202,))
    where = registry._get_location(answer, place).partition("://")[2]
    url = f"{where}{'&' if '?' in where else '?'}digest={one.digest}"
    _ask(registry, "PUT", url, (201, 204), data=one.content, headers={"Content-Type": "application/octet-stream"})
    return len(one.content)


def _put_manifest(registry: Registry, place: Container, name: str, one: Document) -> Response:
    return _ask(
        registry,
        "PUT",
        place.manifest_url(name),
        (200, 201, 202),
        data=one.content,
        headers={"Content-Type": one.media_type},
    )


def _get(registry: Registry, place: Container, digest: str) -> bytes:
    """A small blob, proven."""
    content = _ask(registry, "GET", place.get_blob_url(digest), (200,)).content
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise DistributeError("the registry gives another document than was asked for", found=digest)
    return content


@contextlib.contextmanager
def _downloads(registry: Registry, place: Container, crew: Crew) -> Iterator[Client]:
    """A client for large blobs, with the settings and credentials of the registry's."""
    import httpx2

    address = f"{registry.prefix}://{place.registry}/"
    settings = registry.session.merge_environment_settings(
        address, network.routes(address), None, registry._tls_verify, None
    )
    verify = settings["verify"] if isinstance(settings["verify"], str) else ""
    context = ssl.create_default_context(cafile=verify) if verify else True
    proxy = settings["proxies"].get(registry.prefix)
    client = httpx2.Client(
        auth=_login(registry), verify=context, proxy=proxy, follow_redirects=True, trust_env=False,
        timeout=httpx2.Timeout(TIMEOUT[1], connect=TIMEOUT[0]),
    )  # fmt: skip
    try:
        yield client
    finally:
        if not crew.is_working():  # else a thread hangs in a connection, which the end of the process closes
            client.close()


def _login(registry: Registry) -> Auth:
    """The credentials of the registry's client, renewed when they are too old."""
    import httpx2

    class Login(httpx2.Auth):
        lock = threading.Lock()

        def auth_flow(self, request: Request) -> Generator[Request, Answer, None]:
            for _ in range(RENEWALS):
                used = _credentials(registry)
                request.headers.update(used)
                answer = yield request
                if answer.status_code != 401 or registry.asks_for_password:
                    return
                with self.lock:
                    if _credentials(registry) == used:  # no other thread has asked for a new one
                        registry.auth.token = None
                        registry.do_request(str(request.url), "HEAD")

    return Login()


def _credentials(registry: Registry) -> dict[str, str]:
    if getattr(registry.auth, "token", None) or registry.asks_for_password:
        return dict(registry.auth.get_auth_header())
    return {}


def _with_others(registry: Registry, place: Container, tag: str, image: Image) -> Document:
    """What the tag is to name: the image, or an index of it and of those for other platforms that the tag names now."""
    others = [one for one in _named(registry, place, tag) if one["platform"] != image.descriptor()["platform"]]
    return oci.index([*others, image.descriptor()]) if others else image.manifest


def _named(registry: Registry, place: Container, tag: str) -> list[dict[str, Any]]:
    """The descriptors of the images that a tag names, each with its platform."""
    answer = _ask(registry, "GET", place.manifest_url(tag), (200, 404), headers=dict(ACCEPTED))
    if answer.status_code == 404:
        return []
    try:
        there = json.loads(answer.content)
        if "manifests" in there:
            return [one for one in there["manifests"] if one["platform"]["architecture"] != "unknown"]  # attestations
        config = json.loads(_get(registry, place, there["config"]["digest"]))
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        platform = {"architecture": config["architecture"], "os": config["os"]}
        media_type = there.get("mediaType", oci.MANIFEST)
        return [{"mediaType": media_type, "digest": digest, "size": len(answer.content), "platform": platform}]
    except (ValueError, KeyError, TypeError):
        return []  # it names something else than an image


def _refer(registry: Registry, place: Container, subject: str, referrer: Document, kind: str) -> None:
    answer = _put_manifest(registry, place, referrer.digest, referrer)
    if "OCI-Subject" in answer.headers:
        return
    # A registry without the referrers API: a tag names the list (distribution-spec, referrers tag schema).
    name = subject.replace(":", "-")
    answer = _ask(registry, "GET", place.manifest_url(name), (200, 404), headers={"Accept": oci.INDEX})
    listed = json.loads(answer.content).get("manifests", []) if answer.status_code == 200 else []
    entry = referrer.descriptor(artifactType=kind)
    if entry["digest"] not in [one["digest"] for one in listed]:
        content = {"manifests": [*listed, entry], "mediaType": oci.INDEX, "schemaVersion": 2}
        _put_manifest(registry, place, name, oci.document(oci.INDEX, content))
