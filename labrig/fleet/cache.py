"""The room's registry cache: filled by one pull before the room opens, asked whether it is, and how many hosts at once.

The cache is CNCF Distribution's pull-through cache (`invoke cache` renders its configuration). What was measured of
version 2.8, and what follows:

- Clients that ask for a blob it does not hold are each served from upstream, and one more copy comes for itself, so a
  room that starts together reads upstream once per host and more (distribution/distribution#3969, out of scope there).
- A blob is held only once that copy is whole: after the client has all of it. HEAD says nothing of it: it is answered
  from upstream as well, and makes the cache read the whole blob twice.
- A blob that is held is served from a file, and so ranges work: one byte is answered with 206. One that is not is
  copied from upstream, always whole and with 200. So 206 proves that the cache has the whole blob itself (a copy is
  given its name only when its digest fits); 200 proves that it had not when it was asked.
- To ask is to start: a blob that is not held is fetched because somebody asked. So the smallest is asked for first, the
  largest is warmed first, and whoever asks stops at the first that is not held.
- What is held goes after 7 days, unless the cache is version 3 with ``ttl: 0``. Warm again before each term, or week.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import inventory, oci, published, registry, spec
from labrig.base import ARCHITECTURES
from labrig.errors import DistributeError, UsageError
from labrig.fleet.plan import Plan
from labrig.inventory import AUTO, Entry, Room
from labrig.progress import Progress, megabytes
from labrig.registry import Source

MEGABITS = 1000.0  # of a link, where nobody says another number
HOST_SPEED = 80e6  # bytes a second that an engine receives and unpacks (measured: 261 MB in 3.2 s)
PATIENCE = 600.0  # seconds that a host's pull may take in a wave of many
SETTLE = 30.0  # seconds at least that a cache gets to finish its own copy of what it has served
COLD_FACTOR = 2  # a cache reads what it does not hold twice: for the client and for itself
COLUMNS = ("target", "platform", "hosts", "size", "held before", "image")


@dataclass(frozen=True)
class Blob:
    """A part of an image; ``size`` in bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Warmed:
    """An image that the cache holds. ``before``: bytes of it that it held already; ``hosts`` of the room want it."""

    image: published.Entry
    through: str
    hosts: int
    size: int
    before: int

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return {
            "target": self.image.target, "platform": self.image.platform, "reference": self.image.reference,
            "through": self.through, "hosts": self.hosts, "size": self.size, "before": self.before,
        }  # fmt: skip


@dataclass(frozen=True)
class Waves:
    """How a room pulls: so many hosts at once, in so many waves, for so many seconds in all."""

    at_once: int
    count: int
    seconds: float


# --- warm ------------------------------------------------------------------------------------------------------------


def warm(
    root: Path, path: Path, target: str = "", *, megabits: float = MEGABITS, settle: float = SETTLE
) -> tuple[Warmed, ...]:
    """Bring every image that hosts of a room want into the room's cache, each by one pull, and prove that it is there.
    A room of which no host takes an image is told so, and is done.

    Each blob is read through the cache to its end and hashed, and kept nowhere; then it is asked for until the cache
    serves it from its own storage. What it holds already is read and hashed all the same, from the cache alone.
    ``megabits`` a second is the link to the registry, for the estimate; ``settle``: seconds that the cache gets at
    least to finish its own copy, more for a blob whose reading took longer.

    Raises:
        UsageError: the inventory, its cache, or the target.
        DistributeError: nothing was published; the cache or what is behind it cannot be reached, gives other bytes, or
            does not keep them.
        Interrupted: Ctrl-C; what the cache holds it keeps.
    """
    room = inventory.read(path)
    if not takers(room):
        print(f"no host of {path.name} takes an image: nothing to warm", file=sys.stderr)
        return ()
    require_cache(room)
    todo = wanted(root, room, target)
    for image, hosts in todo.items():
        print(arithmetic(image, hosts, megabits), file=sys.stderr, flush=True)
    return tuple(_warm(room, image, hosts, settle) for image, hosts in todo.items())


def require_cache(room: Room) -> None:
    """Raises UsageError where a room names no cache."""
    if not room.cache:
        raise UsageError(
            f"{room.path} names no cache", found="no key cache in [room]",
            fix='write cache = "HOST:PORT" under [room]; invoke cache renders its configuration',
        )  # fmt: skip


def wanted(root: Path, room: Room, target: str = "") -> dict[published.Entry, int]:
    """The published images that hosts of a room may pull, and how many hosts that are at most.

    A host with the target ``auto`` wants what the last apply or verify found for it, else any that was published. One
    that is described pulls for its own platform only.

    Raises:
        UsageError: a target that there is not.
        DistributeError: none of them was published.
    """
    table = spec.read(root / "images" / spec.TABLE)
    if target:
        table.pick(target)
    entries = published.read(root / "images")
    last = last_targets(room)
    found: dict[published.Entry, int] = {}
    for entry in takers(room):
        if entry.target != AUTO:
            table.pick(entry.target)
        name = last.get(entry.name, (AUTO, ""))[0] if entry.target == AUTO else entry.target
        platform = entry.machine.host.container_platform if entry.machine else None
        for image in entries:
            fits = name in (AUTO, image.target) and platform in (None, image.platform)
            if fits and target in ("", image.target):
                found[image] = found.get(image, 0) + 1
    if not found:
        raise DistributeError(
            f"no image that {room.path.name} wants was published",
            found=f"images/{published.FILE} has {', '.join(sorted({one.target for one in entries})) or 'nothing'}",
            fix=f"invoke publish --target={target or 'NAME'} --registry=HOST/NAMESPACE",
        )
    return found


def takers(room: Room) -> list[Entry]:
    """The hosts that may pull an image: not native ones, by the inventory or the last run, nor mere descriptions."""
    last = last_targets(room)
    return [
        entry for entry in room.hosts
        if entry.address and "venv" not in (entry.engine, last.get(entry.name, ("", ""))[1])
    ]  # fmt: skip


def last_targets(room: Room) -> dict[str, tuple[str, str]]:
    """Host -> target and engine, as the last apply or verify found them; empty where nothing is remembered."""
    from labrig.fleet import apply

    try:
        rows = apply.last_run(room)
    except UsageError:
        return {}
    return {row.host: (row.target or AUTO, row.engine) for row in rows if row.target}


def arithmetic(image: published.Entry, hosts: int, megabits: float = MEGABITS) -> str:
    """What the room would cost the link to the registry, without and with a warm cache, in a line."""
    without, through = image.size * hosts, image.size * COLD_FACTOR
    return (
        f"{image.target} ({image.platform}): {hosts} host{'s' * (hosts != 1)} x {megabytes(image.size)} = "
        f"{megabytes(without)} from the registry, {_minutes(without, megabits)} at {megabits:g} Mbit/s; "
        f"through a cache about {megabytes(through)}, {_minutes(through, megabits)}, and 0 once it is warm"
    )


def _minutes(size: int, megabits: float) -> str:
    seconds = size * 8 / (megabits * 1e6)
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(1, math.ceil(seconds))} s"


def through(room: Room, image: published.Entry) -> str:
    """``CACHE/NAME@DIGEST``: the image by the same name and digest, from the room's cache where it has one."""
    return f"{room.cache}/{image.reference.partition('/')[2]}" if room.cache else image.reference


def _warm(room: Room, image: published.Entry, hosts: int, settle: float) -> Warmed:
    reference = through(room, image)
    with registry.reading(reference) as source, Progress(f"warm {image.target}") as progress:
        blobs = sorted(_blobs(source, image), key=lambda one: -one.size)
        size, before = sum(one.size for one in blobs), 0
        progress.start(size)
        for blob in blobs:
            began = time.monotonic()
            if _read(room, source, blob, progress):
                before += blob.size
            else:
                _await(room, source, blob, max(settle, 2 * (time.monotonic() - began)))
        progress.say(
            f"warm: the cache {room.cache} holds {image.target} ({image.platform}), {megabytes(size)}, "
            f"{megabytes(size - before)} of it new"
        )
    return Warmed(image, reference, hosts, size, before)


def _blobs(source: Source, image: published.Entry) -> tuple[Blob, ...]:
    """The config and the layers of an image, each once, as its manifest has them; what is read on the way is proven."""
    try:
        manifest = _manifest(source, image.reference.partition("@")[2])
        if "manifests" in manifest:
            architecture = ARCHITECTURES[image.platform]
            fits = [one for one in manifest["manifests"] if one["platform"]["architecture"] == architecture]
            manifest = _manifest(source, str(fits[0]["digest"]))
        parts = {str(one["digest"]): int(one["size"]) for one in [manifest["config"], *manifest["layers"]]}
        if not all(oci.DIGEST.fullmatch(digest) and size > 0 for digest, size in parts.items()):
            raise ValueError("a digest or a size that cannot be")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DistributeError(
            f"{image.reference} is no image that labrig can read", found=f"{type(error).__name__}: {error}"[:300]
        ) from None
    return tuple(Blob(digest, size) for digest, size in parts.items())


def _manifest(source: Source, digest: str) -> Mapping[str, Any]:
    content = source.manifest(digest)
    if (found := f"sha256:{hashlib.sha256(content).hexdigest()}") != digest:
        raise DistributeError(f"the cache gives another manifest than {digest}", found=found, fix=_mend(digest))
    manifest = json.loads(content)
    if not isinstance(manifest, dict):
        raise TypeError("a manifest is a table")
    return manifest


def _read(room: Room, source: Source, blob: Blob, progress: Progress) -> bool:
    """Read a blob to its end and prove it; whether the cache had it already.

    Raises:
        DistributeError: other bytes than its digest says.
    """
    hashed, count = hashlib.sha256(), 0
    with source.blob(blob.digest) as (held, pieces):
        for piece in pieces:
            hashed.update(piece)
            count += len(piece)
            progress.advance(len(piece))
            if count > blob.size:
                break
    if (count, f"sha256:{hashed.hexdigest()}") != (blob.size, blob.digest):
        raise DistributeError(
            f"the cache {room.cache} gives other bytes than {blob.digest} has",
            found=f"{count} bytes with sha256 {hashed.hexdigest()} ({'its own copy' if held else 'from upstream'}); "
            f"expected: {blob.size} bytes",
            fix=_mend(blob.digest) if held else "the registry behind it is damaged, or something between: publish anew",
        )
    return held


def _mend(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    return (
        f"its disk is damaged: remove docker/registry/v2/blobs/sha256/{name[:2]}/{name} from its storage, restart it, "
        "and invoke warm again"
    )


def _await(room: Room, source: Source, blob: Blob, seconds: float) -> None:
    """Wait until the cache serves a blob from its own storage, which it was made to fetch.

    Raises:
        DistributeError: it does not keep it.
    """
    # Asked while it is still at it, a cache fetches the blob once more; mostly it is through as soon as we are.
    until, pause = time.monotonic() + seconds, 0.1
    time.sleep(pause)
    while not source.gives_ranges(blob.digest):
        if time.monotonic() > until:
            raise DistributeError(
                f"the cache {room.cache} does not keep {blob.digest} ({megabytes(blob.size)})",
                found=f"{seconds:.0f} s after it was served whole it still comes from upstream",
                fix="look at its log and at the free space of its storage; is it a pull-through cache (invoke cache)?",
            )
        pause = min(2 * pause, 5.0)
        time.sleep(pause)


# --- ask -------------------------------------------------------------------------------------------------------------


def is_warm(room: Room, image: published.Entry) -> tuple[int, int]:
    """Bytes of an image that the cache holds for certain, and bytes in all; equal where it is warm.

    Nothing but the manifests is read. The first part that the cache does not hold ends the count, since asking makes
    the cache fetch it: the smallest are asked for first.

    Raises:
        DistributeError: the cache cannot be reached or refuses, or cannot reach what is behind it.
    """
    with registry.reading(through(room, image)) as source:
        blobs = sorted(_blobs(source, image), key=lambda one: one.size)
        there = 0
        for blob in blobs:
            if not source.gives_ranges(blob.digest):
                break
            there += blob.size
        return there, sum(one.size for one in blobs)


# --- waves -----------------------------------------------------------------------------------------------------------


def waves(hosts: int, bytes_each: int, megabits: float = MEGABITS, at_once: int = 0) -> Waves:
    """How many hosts pull at once from the cache, and how long all take.

    ``megabits`` a second is the cache's link. So many at once that the link is full (an engine takes HOST_SPEED), and
    no more than PATIENCE allows each its pull in; ``at_once`` names another number. Line rate is assumed: the seconds
    are the least it can be.
    """
    speed = megabits * 1e6 / 8
    fill = math.ceil(speed / HOST_SPEED)
    patient = math.floor(speed * PATIENCE / bytes_each) if bytes_each else hosts
    size = max(1, min(hosts, at_once or max(fill, patient)))
    full, rest = divmod(hosts, size)
    seconds = sum(one * bytes_each / min(speed, one * HOST_SPEED) for one in [size] * full + [rest] * (rest > 0))
    return Waves(size, full + (rest > 0), seconds)


def admit(plans: Sequence[Plan], wave: int = 0, *, megabits: float = MEGABITS) -> int:
    """How many of the hosts with these plans pull their image at once (``wave``; 0: as many as :func:`waves` says).

    The estimate is printed to stderr.
    """
    sizes = [sum(step.size for step in plan.steps if step.kind == "image") for plan in plans]
    how = waves(len(plans), max(sizes, default=0), megabits, wave)
    print(
        f"images: {len(plans)} host{'s' * (len(plans) != 1)}, {megabytes(sum(sizes))}, "
        f"{how.at_once} at once; about {max(1, how.seconds):.0f} s at {megabits:g} Mbit/s",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return how.at_once


def require_warm(room: Room, image: published.Entry) -> None:
    """Raises DistributeError where the room's cache does not hold all of an image."""
    there, size = is_warm(room, image)
    if there < size:
        raise DistributeError(
            f"the cache {room.cache} does not hold {image.target} ({image.platform}): each host would pull it through",
            found=f"{megabytes(there)} of {megabytes(size)} are certain to be there",
            fix=f"invoke warm --inventory={room.path}, or go on with --cold",
        )


def rows(warmed: Iterable[Warmed]) -> list[tuple[str, ...]]:
    """A table of what is warm."""
    return [
        (one.image.target, one.image.platform, str(one.hosts), megabytes(one.size), megabytes(one.before), one.through)
        for one in warmed
    ]
