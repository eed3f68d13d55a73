"""Images as the OCI image specification has them: config, manifest, index, layout; and the tar that an engine loads.

Formats: github.com/opencontainers/image-spec (config.md, manifest.md, image-index.md, image-layout.md), v1.1. Every
document is written with sorted keys and no spaces, so that the same image has the same digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import blobs
from labrig.base import ARCHITECTURES
from labrig.blobs import GZIP, Layer
from labrig.errors import BuildError, UsageError
from labrig.files import CHUNK, EPOCH, write_atomically

CREATED = "2025-01-01T00:00:00Z"  # EPOCH
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
CYCLONEDX = "application/vnd.cyclonedx+json"
TAG = "org.opencontainers.image.ref.name"  # the annotation by which a layout names an image
MADE = "labrig: "  # before a layer's title, in an image's history
LAYOUT = {"imageLayoutVersion": "1.0.0"}
# A base may come from Docker's own format; its layers are the same bytes by another name.
DOCKER = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TAG_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # distribution-spec, "Pulling manifests"
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")


@dataclass(frozen=True)
class Document:
    """A small blob that is kept in memory."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """Its digest."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """What points to it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content), **more}


@dataclass(frozen=True)
class Image:
    """An image for one platform. ``sbom`` is its bill of materials, and ``referrer`` the manifest that ties the two."""

    platform: str
    layers: tuple[Layer, ...]
    config: Document
    manifest: Document
    sbom: Document | None = None
    referrer: Document | None = None

    @property
    def digest(self) -> str:
        """The digest that names it."""
        return self.manifest.digest

    @property
    def documents(self) -> tuple[Document, ...]:
        """Its blobs besides the layers; what others point to comes first."""
        found = [self.config, self.manifest]
        if self.sbom and self.referrer:
            found += [EMPTY_DOCUMENT, self.sbom, self.referrer]
        return tuple(found)

    def descriptor(self) -> dict[str, Any]:
        """What an index says of it."""
        return self.manifest.descriptor(platform={"architecture": ARCHITECTURES[self.platform], "os": "linux"})


def document(media_type: str, content: Any) -> Document:
    """A JSON document, always the same bytes for the same content."""
    return Document(media_type, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


EMPTY_DOCUMENT = Document(EMPTY, b"{}")


def assemble(
    platform: str,
    layers: Sequence[Layer],
    settings: Mapping[str, Any],
    annotations: Mapping[str, str],
    sbom: bytes | None = None,
) -> Image:
    """The image of these layers, lowest first, with ``settings`` as its config (User, Env, Labels ...)."""
    config = document(
        CONFIG,
        {
            "architecture": ARCHITECTURES[platform],
            "config": dict(settings),
            "created": CREATED,
            "history": [{"created": CREATED, "created_by": f"{MADE}{layer.title}"} for layer in layers],
            "os": "linux",
            "rootfs": {"diff_ids": [layer.diff_id for layer in layers], "type": "layers"},
        },
    )
    manifest = document(
        MANIFEST,
        {
            "annotations": dict(annotations),
            "config": config.descriptor(),
            "layers": [describe(layer) for layer in layers],
            "mediaType": MANIFEST,
            "schemaVersion": 2,
        },
    )
    if sbom is None:
        return Image(platform, tuple(layers), config, manifest)
    bill = Document(CYCLONEDX, sbom)
    return Image(platform, tuple(layers), config, manifest, bill, refer(manifest, bill, "sbom.cdx.json"))


def refer(manifest: Document, about: Document, file: str) -> Document:
    """The manifest that ties a document to an image; ``file`` is what others would call it (image-spec, manifest.md,
    "Guidelines for Artifact Usage")."""
    return document(
        MANIFEST,
        {
            "annotations": {"org.opencontainers.image.created": CREATED},
            "artifactType": about.media_type,
            "config": EMPTY_DOCUMENT.descriptor(),
            "layers": [about.descriptor(annotations={"org.opencontainers.image.title": file})],
            "mediaType": MANIFEST,
            "schemaVersion": 2,
            "subject": manifest.descriptor(),
        },
    )


def describe(layer: Layer) -> dict[str, Any]:
    """A layer's descriptor."""
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}


def index(images: Iterable[dict[str, Any]]) -> Document:
    """The index of one image for several platforms, from their descriptors."""
    ordered = sorted(images, key=lambda one: json.dumps(one["platform"], sort_keys=True))
    return document(INDEX, {"manifests": ordered, "mediaType": INDEX, "schemaVersion": 2})


# --- layouts ----------------------------------------------------------------------------------------------------------


def write_layout(image: Image, folder: Path, tag: str) -> Document:
    """Put an image into a layout under a tag; gives what the tag names: its manifest, or the index of platforms.

    An image that the layout has under this tag for another platform stays, beside it in an index; the one for this
    platform is replaced, and its blobs go unless something else in the layout needs them. Readers of the layout see the
    old images or the new: ``index.json`` is replaced when all that it names is there. Writers wait for each other.

    Raises:
        UsageError: the folder holds something that is no layout.
        BuildError: it cannot be written, or lacks a blob that it names.
    """
    _read_index(folder)  # before anything is made
    try:
        store = folder / "blobs" / "sha256"
        store.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _write_layout(image, folder, store, tag)
    except OSError as error:
        raise blobs.unwritable(error, folder, what="the layout", otherwise="name another folder") from error


def _write_layout(image: Image, folder: Path, store: Path, tag: str) -> Document:
    for layer in image.layers:
        blobs.link(layer.digest, folder / inner(layer.digest))
    for one in image.documents:
        _put(folder, one)
    listed = _read_index(folder)
    same = [one for one in listed if one.get("annotations", {}).get(TAG) == tag]
    others = [one for one in listed if one not in same]
    ours = image.descriptor()
    kept = [one for old in same for one in _images_of(folder, old) if one["platform"] != ours["platform"]]
    named = image.manifest
    if kept:
        named = index([*kept, ours])
        _put(folder, named)
    entry = {**(named.descriptor() if kept else ours), "annotations": {TAG: tag}}
    images = [one for one in others if not one.get("artifactType")]
    digests = {inner["digest"] for one in (*images, entry) for inner in (one, *_images_of(folder, one))}
    # What refers to an image that is not there any more goes; this image's own is the new one.
    referrers = [one for one in others if one.get("artifactType") and _subject(folder, one) in digests - {image.digest}]
    if image.referrer:
        referrers.append(image.referrer.descriptor(artifactType=CYCLONEDX))
    whole = {"manifests": [*images, entry, *referrers], "mediaType": INDEX, "schemaVersion": 2}
    needed = _named(folder, whole)
    write_atomically(folder / "oci-layout", json.dumps(LAYOUT) + "\n")
    write_atomically(folder / "index.json", json.dumps(whole, indent=2, sort_keys=True) + "\n")
    for place in store.iterdir():
        mine = re.fullmatch(r"[0-9a-f]{64}|\..*", place.name)  # a blob, or what a writer left that was killed
        if mine and f"sha256:{place.name}" not in needed:
            place.unlink()
    return named


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer of a layout at a time; the folder itself is locked, so that no file of ours lies in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put(folder: Path, one: Document) -> None:
    place = folder / inner(one.digest)
    if not place.exists():
        write_atomically(place, one.content.decode())


def _read_index(folder: Path) -> list[dict[str, Any]]:
    """The entries of a layout's index; none where there is no layout yet.

    Raises:
        UsageError: there is something else.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", fix="name a new folder, or an OCI layout")
    if not (folder / "index.json").exists():
        # Hidden: what a writer left that was killed.
        strange = [
            one.name for one in folder.iterdir() if one.name not in ("blobs", "oci-layout") and one.name[0] != "."
        ]
        if strange:
            raise UsageError(
                f"{folder} is no OCI layout", found=", ".join(sorted(strange)[:5]), fix="name a new folder"
            )
        return []
    try:
        listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))["manifests"]
        for one in listed:
            if not DIGEST.fullmatch(one["digest"]) or not isinstance(one.get("annotations", {}), dict):
                raise ValueError(f"an entry that names no blob: {str(one)[:80]}")
        return [dict(one) for one in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{folder}/index.json cannot be read", found=f"{type(error).__name__}: {error}", fix="name a new folder"
        ) from None


def find_image(folder: Path, tag: str) -> dict[str, Any]:
    """The entry of a layout's image: that of a tag, or the only one.

    Raises:
        UsageError: there is no layout, no such image, or more than one and no tag.
    """
    if not (folder / "index.json").is_file():
        raise UsageError(f"{folder} is no OCI layout", found="no index.json there", fix="name the folder of one")
    listed = [one for one in _read_index(folder) if not one.get("artifactType")]
    named = [one for one in listed if not tag or one.get("annotations", {}).get(TAG) == tag]
    if len(named) != 1:
        tags = ", ".join(str(one.get("annotations", {}).get(TAG, one["digest"])) for one in listed)
        raise UsageError(
            f"{folder} has {'no such image' if tag else 'not one image'}", found=tags or "none",
            fix="name one: oci:FOLDER:TAG",
        )  # fmt: skip
    return named[0]


def read_blob(folder: Path, descriptor: Mapping[str, Any]) -> bytes:
    """A small blob of a layout, proven.

    Raises:
        BuildError: it is not there, or another one.
    """
    digest = str(descriptor["digest"])
    try:
        content = (folder / inner(digest)).read_bytes()
    except OSError as error:
        raise BuildError(f"{folder} lacks a blob that it names", found=f"{digest}: {error.strerror}") from None
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise BuildError(f"{folder} holds a blob that is not what its name says", found=digest)
    return content


def _images_of(folder: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The descriptors of the images for single platforms that an entry stands for, each with its platform."""
    if entry.get("mediaType") in INDEXES:
        return [one for inner in _read_json(folder, entry)["manifests"] for one in _images_of(folder, inner)]
    one = {key: value for key, value in entry.items() if key != "annotations"}
    if "platform" not in one:
        config = _read_json(folder, _read_json(folder, entry)["config"])
        one["platform"] = {key: config[key] for key in ("architecture", "os") if key in config}
    return [one]


def _subject(folder: Path, entry: Mapping[str, Any]) -> str:
    return str(_read_json(folder, entry).get("subject", {}).get("digest", ""))


def _named(folder: Path, whole: Mapping[str, Any]) -> set[str]:
    """The digests of all blobs that an index names, through its images."""
    named: set[str] = set()
    todo = list(whole["manifests"])
    while todo:
        one = todo.pop()
        if one["digest"] in named:
            continue
        named.add(one["digest"])
        if one.get("mediaType") in (*MANIFESTS, *INDEXES):
            inner = _read_json(folder, one)
            todo += [*inner.get("manifests", []), *inner.get("layers", [])]
            todo += [inner["config"]] if "config" in inner else []
    return named


def _read_json(folder: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    """A document of a layout. Raises what :func:`read_blob` raises, or BuildError for what is no document."""
    try:
        return dict(json.loads(read_blob(folder, descriptor)))
    except (ValueError, TypeError, RecursionError) as error:
        raise BuildError(f"{folder} holds a damaged document", found=f"{descriptor['digest']}: {error}") from None


# --- what an engine loads ---------------------------------------------------------------------------------------------


def archive(image: Image, references: Sequence[str], *, without: int = 0) -> Iterator[bytes]:
    """The tar that `docker load` reads, piece by piece: an OCI layout that has Docker's older manifest.json as well.

    ``without`` is how many of the lowest layers are left out, which only an engine that has them may be given.
    """
    # containerd knows an image by its whole name, as Docker itself writes it here.
    entries = [
        {
            **image.descriptor(),
            "annotations": {"io.containerd.image.name": _whole_name(one), TAG: one.rpartition(":")[2]},
        }
        for one in references
    ]
    docker = [
        {
            "Config": inner(image.config.digest),
            "RepoTags": list(references),
            "Layers": [inner(layer.digest) for layer in image.layers],
        }
    ]
    texts = {
        "oci-layout": json.dumps(LAYOUT).encode(),
        "index.json": json.dumps({"manifests": entries, "mediaType": INDEX, "schemaVersion": 2}).encode(),
        "manifest.json": json.dumps(docker).encode(),
        inner(image.config.digest): image.config.content,
        inner(image.manifest.digest): image.manifest.content,
    }
    for name, content in texts.items():
        yield _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    sent: set[str] = set()
    for layer in image.layers[without:]:
        if layer.digest in sent:
            continue
        sent.add(layer.digest)
        yield _header(inner(layer.digest), layer.size)
        with blobs.path(layer.digest).open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece
        yield bytes(-layer.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _whole_name(reference: str) -> str:
    """A reference with its registry; one without is of docker.io (distribution/reference, normalize.go)."""
    return reference if has_registry(reference) else f"docker.io/{reference}"


def has_registry(reference: str) -> bool:
    """Whether a reference begins with a registry, and not with a part of a name (distribution/reference)."""
    host, slash, _ = reference.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


def inner(digest: str) -> str:
    """Where a blob lies in a layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, int(EPOCH)
    return info.tobuf(tarfile.PAX_FORMAT)
