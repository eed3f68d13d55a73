"""`invoke publish`: an image that was verified goes to a registry, by its digest, under a tag that says what it is."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labrig import environment, oci, published, registry, render, sizes, spec, verified
from labrig.assembly import Recipe
from labrig.errors import UsageError, VerifyError
from labrig.oci import Document, Image
from labrig.published import Entry

MOVING = "latest"  # beside the tag that stays, never alone


def publish(root: Path, name: str | None, place: str, *, platform: str = "", overrides: Sequence[str] = ()) -> Entry:
    """Publish the image of a target in the registry namespace ``HOST/NAMESPACE``; gives what was noted of it.

    The image is made from the lock, and it is published only if the last record of `invoke verify` for exactly these
    bytes has no failure. Its bill of materials and that record are tied to it. Publishing again changes nothing.

    Raises:
        UsageError: a name, or a place that cannot be meant.
        VerifyError: it was not verified, a check failed, or it is far above its budget.
        DistributeError: the registry cannot be reached, or refuses. What it has is not sent again.
    """
    if not (oci.has_registry(f"{place}/") and registry.NAMESPACE.fullmatch(place)):
        raise UsageError(
            f"{place!r} is no place in a registry", fix="name HOST/NAMESPACE in small letters: registry.example.org/lab"
        )
    drafted = environment.draft(root, name, platform=platform, overrides=overrides)
    recipe, images = drafted.recipe, root / "images"
    repository = f"{place}/{recipe.target.name}"
    made = drafted.build()
    record = require_verified(made, recipe)
    measured = sizes.measure(recipe.target, recipe.lock.platform, made.layers)
    before = sizes.of(images, recipe.target.name, recipe.lock.platform)
    if warning := sizes.check(recipe.target, measured, before):
        print(warning, file=sys.stderr)
    tag = _tag(recipe, made, repository, published.find(images, recipe.target.name, recipe.lock.platform))
    registry.push(made, f"{repository}:{tag}")
    about = Document(verified.MEDIA_TYPE, json.dumps(record, sort_keys=True).encode())
    registry.attach(made, f"{repository}:{tag}", about, "verify.json")
    registry.tag(made, f"{repository}:{MOVING}")
    entry = _entry(recipe, made, sizes.total(measured), f"{repository}@{made.digest}", tag, record)
    published.keep(images, entry)
    for file in render.write(render.render_published(spec.read(images / spec.TABLE), root / "templates")):
        print(f"rendered {file.relative_to(root)}", file=sys.stderr)
    return entry


def require_verified(made: Image, recipe: Recipe) -> dict[str, Any]:
    """The record of the last `invoke verify` of exactly this image.

    Raises:
        VerifyError: there is none, or a check failed.
    """
    target = recipe.target.name
    fix = f"invoke build --target={target} && invoke verify --target={target} --engine=docker"
    record = verified.find(made)
    if record is None:
        raise VerifyError(
            f"the image of target {target} was not verified as it is now",
            found=f"no record for {recipe.reference}, config {made.config.digest}", fix=fix,
        )  # fmt: skip
    if record["failed"] or not record["passed"]:
        failed = ", ".join(one["id"] for one in record["checks"] if one["status"] == "failed")
        raise VerifyError(f"the image of target {target} did not pass its checks", found=failed or "none ran", fix=fix)
    return record


def _tag(recipe: Recipe, made: Image, repository: str, before: Entry | None) -> str:
    """The tag that is never moved: torch, Python, lock and date; numbered where that day's is another image's.

    An image that was published already keeps its tag.
    """
    if before and before.reference == f"{repository}@{made.digest}":
        return before.tag
    target, locked = recipe.target, recipe.lock
    first = f"{target.torch}-{target.variant}-py{target.python}-{locked.digest[:8]}-{datetime.now(UTC):%Y%m%d}"
    for number in itertools.count(1):
        tag = f"{first}.{number}" if number > 1 else first
        if registry.digest_of(f"{repository}:{tag}", locked.platform) in ("", made.digest):
            break
    return tag


def _entry(recipe: Recipe, made: Image, size: int, reference: str, tag: str, record: dict[str, Any]) -> Entry:
    target, locked = recipe.target, recipe.lock
    return Entry(
        target=target.name,
        platform=locked.platform,
        reference=reference,
        tag=tag,
        image=recipe.reference,
        config=made.config.digest,
        size=size,
        torch=target.torch,
        variant=target.variant,
        python=target.python,
        cuda=target.cuda or "none",
        min_driver=target.min_driver or "none",
        capabilities=target.capabilities,
        lock=locked.digest,
        labs=made.layers[-1].diff_id,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        verified=verified.tally(record),
    )
