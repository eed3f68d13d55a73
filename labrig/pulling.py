"""`invoke pull`: the published image of a target comes into the Docker engine, by its digest, without what is there."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labrig import blobs, daemon, environment, image, loading, published, registry
from labrig.blobs import Layer
from labrig.compat import Finding
from labrig.errors import DistributeError, HostError
from labrig.oci import Image
from labrig.progress import megabytes
from labrig.published import Entry

if TYPE_CHECKING:
    from docker import DockerClient


@dataclass(frozen=True)
class Pulled:
    """What was pulled; sizes are bytes. ``missing`` is what this machine had to receive of the image's ``size``."""

    entry: Entry
    missing: int
    received: int

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return {
            "target": self.entry.target,
            "platform": self.entry.platform,
            "reference": self.entry.reference,
            "image": self.entry.image,
            "size": self.entry.size,
            "missing": self.missing,
            "received": self.received,
        }


def pull(root: Path, name: str | None = None, *, force: bool = False) -> Pulled:
    """Bring the published image of a target into the Docker engine, under the name that a build would give it.

    Before the first byte it is said whether this host can run it, and how much is missing. Layers come as ``invoke
    fetch`` brings wheels: side by side, each from where an earlier run stopped, each proven by its digest.

    Raises:
        HostError: no engine; it cannot work here, and nobody forces it; nothing was published for this machine.
        DistributeError: the registry cannot be reached, refuses, or gives another image.
        BuildError: the disk is full, or the engine refuses.
        Interrupted: Ctrl-C.
    """
    todo = environment.plan(root, name, "docker", force=force)
    platform = todo.lock.platform
    entry = published.find(root / "images", todo.target.name, platform)
    if entry is None:
        raise HostError(
            f"no image of target {todo.target.name} for {platform} was published",
            found=f"images/{published.FILE} names none",
            fix=f"invoke build --target={todo.target.name} makes it; an admin publishes with invoke publish",
        )
    if entry.lock != todo.lock.digest:
        print(f"{entry.target}: published {entry.date} from another lock than this checkout's", file=sys.stderr)
    with daemon.connect() as client:
        return _pull(client, entry, todo.finding)


def _pull(client: DockerClient, entry: Entry, finding: Finding) -> Pulled:
    print(f"{entry.target} {finding.verdict} here: {finding.reason}", file=sys.stderr)
    there = image.find(client, entry.image)
    if there and is_it(there.id, entry):
        print(f"{entry.image} is there already", file=sys.stderr)
        there.tag(image.name_of(entry.target), "latest")
        return Pulled(entry, 0, 0)
    found = registry.look(entry.reference, entry.platform)
    _require_same(found, entry)
    above = found.layers[loading.present(client, found) :]
    absent = _absent(above)
    missing = sum(one.size for one in absent)
    print(
        f"pull {entry.reference}: {megabytes(missing)} of {megabytes(sum(one.size for one in found.layers))} "
        f"are missing, {len(absent)} of {len(found.layers)} layers",
        file=sys.stderr,
    )
    received = registry.bring(entry.reference, absent) if absent else 0

    def complete() -> None:
        nonlocal received
        received += registry.bring(entry.reference, _absent(found.layers))

    loading.load(client, found, entry.image, complete)
    loaded = image.find(client, entry.image)
    if loaded is None or not is_it(loaded.id, entry):
        raise DistributeError(
            "the engine has another image than was pulled", found=str(loaded and loaded.id), fix="run it again"
        )
    loaded.tag(image.name_of(entry.target), "latest")
    return Pulled(entry, missing, received)


def is_it(identity: str | None, entry: Entry) -> bool:
    """Whether an engine's image is the published one: it knows it by its config, or its manifest."""
    return identity in (entry.config, entry.reference.partition("@")[2])


def _require_same(found: Image, entry: Entry) -> None:
    """Raises DistributeError where a digest is of another image than the other lines of its entry say."""
    labels = json.loads(found.config.content).get("config", {}).get("Labels") or {}
    expected = {
        "config": (found.config.digest, entry.config),
        "target": (labels.get("labrig.target"), entry.target),
        "lock": (labels.get(image.LOCK), entry.lock),
        "labs": (found.layers[-1].diff_id if found.layers else "", entry.labs),
        "image": (f"{image.name_of(entry.target)}:{entry.torch}-{labels.get(image.INPUTS, '')[:12]}", entry.image),
    }
    wrong = [f"{name}: {has}, noted: {said}" for name, (has, said) in expected.items() if has != said]
    if wrong:
        raise DistributeError(
            f"{entry.reference} is not the image that images/{published.FILE} notes", found="; ".join(wrong),
            fix="take the file from git again, or publish anew",
        )  # fmt: skip


def _absent(layers: tuple[Layer, ...]) -> list[Layer]:
    """Those that are not in the store of layers, each once."""
    once = {one.digest: one for one in layers}
    return [one for one in once.values() if not blobs.is_untouched(blobs.path(one.digest), one.size)]
