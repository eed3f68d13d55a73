"""What students may choose from: an offer for each published target of a platform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labrig import lock, published, spec
from labrig.errors import HostError, LockError, UsageError
from labrig.serving import Offer


def read(root: Path, platform: str, only: Sequence[str] = ()) -> tuple[Offer, ...]:
    """The published images for a platform, in order of the table; ``only`` these targets, where any are named.

    Raises:
        HostError: nothing was published for it.
        UsageError: a target that is named is not in the table, or was not published.
        SpecError, LockError: a file of the checkout is not what it should be.
    """
    images = root / "images"
    targets = spec.read(images / spec.TABLE).targets
    entries = {one.target: one for one in published.read(images) if one.platform == platform}
    if not entries:
        raise HostError(
            f"nothing was published for {platform}, so there is nothing that students could be given",
            found=f"images/{published.FILE} has no such entry",
            fix="invoke publish --target=cpu --registry=HOST:PORT/NAME (docs/publishing.md)",
        )
    for name in only:
        if name not in targets:
            raise UsageError(f"there is no target {name!r}", found=", ".join(targets), fix="invoke list")
        if name not in entries:
            raise UsageError(
                f"target {name} was not published for {platform}", found=f"published: {', '.join(sorted(entries))}",
                fix=f"invoke publish --target={name} --registry=HOST:PORT/NAME",
            )  # fmt: skip
    names = [name for name in targets if name in entries and (not only or name in only)]
    return tuple(_offer(targets[name], entries[name], images) for name in names)


def _offer(target: spec.Target, entry: published.Entry, images: Path) -> Offer:
    return Offer(
        target=target.name,
        reference=entry.reference,
        config=entry.config,
        image=entry.image,
        size=entry.size,
        platform=entry.platform,
        torch=entry.torch,
        device=target.device,
        variant=entry.variant,
        min_driver=entry.min_driver,
        capabilities=entry.capabilities,
        hub=_hub(target, entry, images),
        why=_about(target),
    )


def _about(target: spec.Target) -> str:
    """Where it computes; the row's own ``why`` is for admins."""
    where = "an NVIDIA GPU" if target.device == "cuda" else "the processor"
    return f"Computes on {where}. Python {target.python}."


def _hub(target: spec.Target, entry: published.Entry, images: Path) -> str:
    """The version of jupyterhub in the image: that of its lock, where this checkout still has it."""
    locked = lock.load(target, entry.platform, images)
    if locked.digest != entry.lock:
        raise LockError(
            f"the published image of {target.name} is from another lock than this checkout's",
            found=f"published: {entry.lock[:12]}, here: {locked.digest[:12]}",
            fix=f"publish anew, or take the checkout that published it (images/{published.FILE}, {entry.date})",
        )
    wheel = locked.wheel("jupyterhub")
    return wheel.version if wheel else ""
