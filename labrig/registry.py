"""Registries: pushing an image without an engine, and taking a base from one by its digest.

The protocol is the OCI distribution specification v1.1, spoken by `oras`, which finds credentials where
`docker login` puts them. A blob that a registry has already is not sent again. http is spoken to this machine only, and
only where a TLS handshake is answered in words that are not TLS; the handshake carries no credentials.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labrig import blobs, network, oci
from labrig.base import ARCHITECTURES
from labrig.blobs import Layer
from labrig.errors import BuildError, DistributeError, Interrupted, UsageError
from labrig.files import CHUNK
from labrig.oci import Document, Image
from labrig.progress import Progress, megabytes

if TYPE_CHECKING:
    from oras.container import Container
    from oras.provider import Registry
    from requests import Response

PIECE = 16 * CHUNK  # bytes that are sent at once
ACCEPTED = {"Accept": ", ".join(oci.MANIFESTS + oci.INDEXES)}
TIMEOUT = (10, 300)  # seconds to connect, and between two bytes
NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")  # OpenSSL's words for an answer without TLS
DENIED = re.compile(r"\b(401|403)\b|password|authentication")
REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
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
        todo = [one for one in image.layers if not registry.blob_exists(oci.describe(one), place)]
        with Progress("push") as progress:
            progress.start(sum(one.size for one in todo))
            for layer in {one.digest: one for one in todo}.values():
                answer = registry.chunked_upload(str(blobs.path(layer.digest)), place, oci.describe(layer), PIECE)
                _check(answer, "PUT", f"the layer {layer.title}", (201, 204))
                progress.advance(layer.size)
            sent = sum(_send(registry, place, one) for one in image.documents if one.media_type != oci.MANIFEST)
            progress.say(
                f"push: {len(todo)} of {len(image.layers)} layers sent, "
                f"{megabytes(sum(one.size for one in todo) + sent)}; the registry had the others"
            )
        named = _with_others(registry, place, tag, image)
        _put_manifest(registry, place, image.digest, image.manifest)
        if image.referrer:
            answer = _put_manifest(registry, place, image.referrer.digest, image.referrer)
            if "OCI-Subject" not in answer.headers:
                _list_referrer(registry, place, image)
        _put_manifest(registry, place, tag, named)  # last: until now nobody sees a difference
    return f"{found['host']}/{found['name']}@{named.digest}"


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
    found = _parse(reference)
    if not found["digest"]:
        raise UsageError(f"{reference} is not pinned", fix="name HOST/NAME@sha256:DIGEST")

    def fetch(descriptor: Mapping[str, Any], to: Path) -> None:
        digest = str(descriptor["digest"])
        if offline:
            raise BuildError(f"the base {reference} cannot be had offline", found=digest, fix="build online, once")
        is_manifest = descriptor.get("mediaType", oci.MANIFEST) in oci.MANIFESTS + oci.INDEXES
        if not is_manifest:
            size = megabytes(int(descriptor.get("size", 0)))
            print(f"pulling {reference}: {digest[:19]}, {size}", file=sys.stderr)
        with _connected(reference) as (registry, place):
            _download(registry, place, "manifests" if is_manifest else "blobs", digest, to)

    def small(descriptor: Mapping[str, Any]) -> bytes:
        if not blobs.path(str(descriptor["digest"])).exists():
            _keep(descriptor, fetch)
        return blobs.path(str(descriptor["digest"])).read_bytes()

    return read_image({"digest": found["digest"]}, platform, small, fetch, reference)


def read_image(
    descriptor: Mapping[str, Any],
    platform: str,
    small: Callable[[Mapping[str, Any]], bytes],
    fetch: Callable[[Mapping[str, Any], Path], None],
    called: str,
) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """The layers of an image, brought into the store, and its config; ``small`` reads a document, ``fetch`` a blob.

    Raises:
        DistributeError: there is none for the platform; a blob is not what its digest says.
    """
    try:
        documents: list[str] = []
        manifest = json.loads(small(descriptor))
        if "manifests" in manifest:
            architecture = ARCHITECTURES[platform]
            fits = [
                one
                for one in manifest["manifests"]
                if one.get("platform", {}).get("architecture") == architecture and one["platform"].get("os") == "linux"
            ]
            if not fits:
                raise DistributeError(f"{called} has no image for linux/{architecture}", fix="name another base")
            documents = [str(fits[0]["digest"])]
            manifest = json.loads(small(fits[0]))
        config = json.loads(small(manifest["config"]))
        layers = []
        digests = [str(descriptor["digest"]), str(manifest["config"]["digest"])]
        for one, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
            media_type = oci.DOCKER.get(one["mediaType"], one["mediaType"])
            if not blobs.is_untouched(blobs.path(one["digest"]), int(one["size"])):
                _keep(one, fetch)
            layers.append(
                Layer(f"base: {str(one['digest'])[:19]}", one["digest"], diff_id, int(one["size"]), 0, media_type)
            )
        blobs.remember(f"base: {called}", [*documents, *digests])
        return tuple(layers), dict(config)
    except (KeyError, TypeError, ValueError) as error:
        raise DistributeError(
            f"{called} is no image that labrig can read", found=f"{type(error).__name__}: {error}"
        ) from None


def _keep(descriptor: Mapping[str, Any], fetch: Callable[[Mapping[str, Any], Path], None]) -> None:
    """Bring a blob into the store, proven."""
    digest = str(descriptor["digest"])
    folder = blobs.path(digest).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=blobs.ABANDONED, dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        fetch(descriptor, temporary)
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{found}" != digest:
            raise DistributeError("a blob is not what was asked for", found=f"sha256:{found}", fix=f"expected {digest}")
        blobs.seal(temporary)
        temporary.replace(blobs.path(digest))
    finally:
        temporary.unlink(missing_ok=True)


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
def _connected(reference: str) -> Iterator[tuple[Registry, Container]]:
    import requests
    from oras.auth import AuthenticationException

    host = str(_parse(reference)["host"])
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    here = bare in ("localhost", "[::1]") or bare.startswith("127.")
    logging.getLogger("oras").setLevel(logging.CRITICAL)  # what it would say, an error of ours says
    try:
        registry = _client(host, insecure=here and not _speaks_tls(host))
        place = registry.get_container(reference)
        folder = os.environ.get("DOCKER_CONFIG")
        registry.auth.load_configs(place, [str(Path(folder, "config.json"))] if folder else None)
        if registry.asks_for_password and not getattr(registry.auth, "_basic_auth", None):
            raise ValueError("it wants a user and a password")
        yield registry, place
    except KeyboardInterrupt:
        raise Interrupted("it was interrupted", fix="run it again: what the registry has is not sent again") from None
    except requests.RequestException as error:
        raise DistributeError(
            f"the registry {host} cannot be reached",
            found=_cause(error),
            fix=network.cure(_cause(error), "look at the address and the network"),
        ) from None
    except (ValueError, AuthenticationException) as error:  # how oras says that a registry refuses
        raise DistributeError(
            f"the registry {host} refuses",
            found=str(error),
            fix=f"docker login {host}; may you write there?" if DENIED.search(str(error)) else "look at what it says",
        ) from None


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
        do_request = Registry.do_request.__wrapped__
        asks_for_password = False

    trusted = str(network.ca() or "") or True
    client = Client(insecure=insecure, tls_verify=trusted)

    def adapt(one: Client) -> None:
        tries = Retry(3, backoff_factor=0.5, status_forcelist=(502, 503, 504), raise_on_status=False)
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


def _send(registry: Registry, place: Container, one: Document) -> int:
    """Send a small blob, unless it is there; gives the bytes that were sent."""
    if registry.blob_exists(one.descriptor(), place):
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


def _download(registry: Registry, place: Container, kind: str, digest: str, to: Path) -> None:
    url = f"{place.registry}/v2/{place.api_prefix}/{kind}/{digest}"
    with (
        _ask(
            registry, "GET", url, (200,), stream=True, headers=dict(ACCEPTED) if kind == "manifests" else None
        ) as answer,
        to.open("wb") as file,
    ):
        for piece in answer.iter_content(CHUNK):
            file.write(piece)


def _with_others(registry: Registry, place: Container, tag: str, image: Image) -> Document:
    """What the tag is to name: the image, or an index of it and of those for other platforms that the tag names now."""
    answer = _ask(registry, "GET", place.manifest_url(tag), (200, 404), headers=dict(ACCEPTED))
    if answer.status_code == 404:
        return image.manifest
    try:
        there = json.loads(answer.content)
        if "manifests" in there:
            others = [one for one in there["manifests"] if one["platform"]["architecture"] != "unknown"]  # attestations
        else:
            config = json.loads(_get(registry, place, there["config"]["digest"]))
            digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
            platform = {"architecture": config["architecture"], "os": config["os"]}
            media_type = there.get("mediaType", oci.MANIFEST)
            others = [{"mediaType": media_type, "digest": digest, "size": len(answer.content), "platform": platform}]
    except (ValueError, KeyError, TypeError):
        return image.manifest  # the tag named something else than an image
    others = [one for one in others if one["platform"] != image.descriptor()["platform"]]
    return oci.index([*others, image.descriptor()]) if others else image.manifest


def _list_referrer(registry: Registry, place: Container, image: Image) -> None:
    """For a registry without the referrers API: a tag names the list (distribution-spec, referrers tag schema)."""
    assert image.referrer is not None  # noqa: S101 for the type checker
    name = image.digest.replace(":", "-")
    answer = _ask(registry, "GET", place.manifest_url(name), (200, 404), headers={"Accept": oci.INDEX})
    listed = json.loads(answer.content).get("manifests", []) if answer.status_code == 200 else []
    entry = image.referrer.descriptor(artifactType=oci.CYCLONEDX)
    listed = [one for one in listed if one["digest"] != entry["digest"]] + [entry]
    whole = oci.document(oci.INDEX, {"manifests": listed, "mediaType": oci.INDEX, "schemaVersion": 2})
    _put_manifest(registry, place, name, whole)
