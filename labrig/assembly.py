"""The builder `layers`: the image of a target put together from layers, without a daemon; docs/layers.md.

From the bottom: the base, an empty environment with its user, the wheels, their bytecode, the labs' data, the labs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from labrig import base, blobs, image, layers, oci, precompiled, registry, render, sbom, skeleton
from labrig.blobs import Layer
from labrig.engines import Fetch, Wish
from labrig.errors import UsageError
from labrig.lock import Lock
from labrig.oci import Image
from labrig.spec import Target
from labrig.tarball import FOLDER, Writer
from labrig.wheel import Places

DATA = "labs/data/"  # of the labs' files: megabytes that hardly ever change, in a layer below the others
LAYOUT = "oci:"  # before a folder, where a base comes from


@dataclass(frozen=True)
class Ground:
    """What the layers stand on. ``settings`` is the base's own config; ``layers`` brings its layers into the store."""

    name: str
    digest: str
    settings: Mapping[str, Any]
    layers: Callable[[], tuple[Layer, ...]]


@dataclass(frozen=True)
class Recipe:
    """Everything an image is made of, decided before anything is built. ``python`` compiles its bytecode, if any."""

    target: Target
    lock: Lock
    ground: Ground
    requirements: str
    root: Path  # of the checkout
    labs: Mapping[str, str]  # file under labs/ -> SHA-256
    python: tuple[Path, str] | None

    @property
    def settings(self) -> dict[str, Any]:
        """The image's config, without the digest of its inputs."""
        found = dict(variable.partition("=")[::2] for variable in self.ground.settings.get("Env") or ())
        settings = image.settings(self.target, self.lock, found.pop("PATH", image.DEFAULT_PATH))
        names = {variable.partition("=")[0] for variable in settings["Env"]}
        settings["Env"] += [f"{name}={value}" for name, value in found.items() if name not in names]
        settings["Labels"] |= {image.BASE_NAME: self.ground.name, image.BASE_DIGEST: self.ground.digest}
        return settings

    @property
    def inputs(self) -> str:
        """SHA-256 over all that goes in."""
        return blobs.key(
            "layers", layers.VERSION, skeleton.VERSION, self.ground.digest, self.lock.digest, self.requirements,
            json.dumps(self.settings, sort_keys=True), precompiled.VERSION if self.python else "",
            self.python[1] if self.python else "", *sorted(f"{name} {sha256}" for name, sha256 in self.labs.items()),
        )  # fmt: skip

    @property
    def reference(self) -> str:
        """What an engine calls the image."""
        return image.tag(self.target, self.inputs)


def plan(target: Target, lock: Lock, root: Path, wish: Wish, *, offline: bool = False) -> Recipe:
    """Decide what an image is made of. Raises what :func:`ground` raises."""
    return Recipe(
        target,
        lock,
        ground(target, lock.platform, root / "images", wish.base, offline=offline),
        render.render_requirements(target, lock, root / "templates"),
        root,
        image.read_labs(root / "labs"),
        precompiled.interpreter(target.python) if wish.bytecode else None,
    )


def ground(target: Target, platform: str, images: Path, source: str = "", *, offline: bool = False) -> Ground:
    """What an image of a target stands on: the row's base, or ``source``, which is ``oci:FOLDER[:TAG]`` or
    ``HOST/NAME@DIGEST``.

    Raises:
        UsageError: the source cannot be meant, or no digest of the row's base is locked.
        HostError, BuildError: the base cannot be made.
        DistributeError: a registry cannot be reached, or has no such image.
    """
    if not source and target.base == "bootstrap":
        if offline:
            base.require_kept(target, platform)
        made = base.bootstrap(target, platform)
        return Ground(made.name, made.digest, {}, lambda: (_of_tar(made),))
    if source.startswith(LAYOUT):
        under, config, digest = _of_layout(source, platform)
    else:
        source = source or base.locked(target, images)
        under, config = registry.pull_base(_full_name(source), platform, offline=offline)
        digest = source.partition("@")[2]
    # A folder's name says nothing to others, and would make the same image another one elsewhere.
    name = "oci-layout" if source.startswith(LAYOUT) else source.partition("@")[0]
    return Ground(name, digest, config.get("config") or {}, lambda: under)


def _full_name(reference: str) -> str:
    """A reference with its registry: Docker's short names are of docker.io, whose server has a name of its own."""
    if not oci.has_registry(reference):
        reference = f"docker.io/{reference if '/' in reference else f'library/{reference}'}"
    name = reference.removeprefix("docker.io/")
    return reference if name == reference else f"registry-1.docker.io/{name}"


def _of_tar(made: base.Base) -> Layer:
    """The one layer of a base that was made here."""

    def pack(writer: Writer) -> None:
        print(f"compressing the base {made.name}, once", file=sys.stderr, flush=True)
        with base.tar(made).open("rb") as tar:
            writer.pack(tar)

    return blobs.make(blobs.key("base", "1", made.digest), f"base: {made.name}", pack)


def _of_layout(source: str, platform: str) -> tuple[tuple[Layer, ...], dict[str, Any], str]:
    """The base in a layout: its layers, its config, its digest."""
    folder, _, tag = source.removeprefix(LAYOUT).partition(":")
    descriptor = oci.find_image(Path(folder), tag)
    image = registry.read_image(descriptor, platform, lambda one: oci.read_blob(Path(folder), one), source)
    for layer in image.layers:
        if not blobs.is_untouched(blobs.path(layer.digest), layer.size):
            with _open(Path(folder) / oci.inner(layer.digest)) as blob:
                registry.keep(layer.digest, layer.size, blob)
    return image.layers, json.loads(image.config.content), str(descriptor["digest"])


def _open(blob: Path) -> BinaryIO:
    if not blob.is_file():
        raise UsageError(f"the layout lacks a blob that it names: {blob.name}", fix="make the layout anew")
    return blob.open("rb")


def build(recipe: Recipe, fetch: Fetch, *, with_sbom: bool = False) -> Image:
    """Put the image together; ``fetch`` is called only if a layer of wheels has to be made.

    Raises:
        BuildError: a wheel is not one, the base has no such Python, the disk is full.
        Interrupted: Ctrl-C; layers that were finished are kept.
    """
    lock, target = recipe.lock, recipe.target
    places = Places(image.ENVIRONMENT, target.python)
    found = layers.of_wheels(lock, fetch, places)
    under = recipe.ground.layers()
    found = [*under, skeleton.layer(under, target.python, places), *found]
    if recipe.python:
        found += precompiled.of_wheels(lock, fetch, places, recipe.python)
    found += labs(recipe.root, recipe.labs, recipe.requirements)
    settings = recipe.settings
    settings["Labels"] |= {image.INPUTS: recipe.inputs}
    annotations = {
        key: value for key, value in settings["Labels"].items() if key.startswith("org.opencontainers.image.")
    }
    bill = sbom.of_lock(target, lock) if with_sbom else None
    return oci.assemble(lock.platform, found, settings, annotations, bill)


def labs(root: Path, found: Mapping[str, str], requirements: str) -> tuple[Layer, Layer]:
    """The two highest layers: the labs' data, and, above, a checkout's labs and the list of what is installed. They
    need neither a base nor a wheel."""
    folder = str(image.LABS).lstrip("/")
    data = {name: sha256 for name, sha256 in found.items() if f"labs/{name}".startswith(DATA)}
    code = {name: sha256 for name, sha256 in found.items() if name not in data}
    texts = {f"{folder}/requirements.txt": requirements.encode()}
    return _of_files("the labs' data", root, data, {}), _of_files("the labs", root, code, texts)


def _of_files(title: str, root: Path, files: Mapping[str, str], texts: Mapping[str, bytes]) -> Layer:
    folder = str(image.LABS).lstrip("/")
    parts = [f"{name} {sha256}" for name, sha256 in sorted(files.items())]
    key = blobs.key("files", layers.VERSION, folder, *parts, *(f"{n} {t.decode()}" for n, t in sorted(texts.items())))

    def write(writer: Writer) -> None:
        folders: set[str] = set()
        contents: dict[str, Callable[[], bytes]] = {
            f"{folder}/labs/{name}": (root / "labs" / name).read_bytes for name in files
        }
        contents |= {name: lambda text=text: text for name, text in texts.items()}  # type: ignore[misc]
        for path, read in sorted(contents.items()):
            content = read()
            layers.write_folders(writer, path, folders)
            writer.start(path, len(content))
            writer.data(content)
        if not files:  # the folder of the labs is there even where there are none
            writer.start(f"{folder}/labs", mode=0o755, kind=FOLDER)

    return blobs.make(key, title, write)
