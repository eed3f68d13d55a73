"""Records of `invoke verify` for images, kept by the image's digest: what `invoke publish` asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labrig import home
from labrig.files import write_atomically
from labrig.lock import Lock
from labrig.oci import Image

SCHEMA = "labrig-verify/1"
MEDIA_TYPE = "application/vnd.labrig.verify.v1+json"


def note(identity: str, lock: Lock, record: Mapping[str, object]) -> None:
    """Keep what was found of the image that an engine knows by ``identity``; a later record replaces it."""
    said = {"schema": SCHEMA, "image": identity, "lock": lock.digest, "platform": lock.platform, "when": _now()}
    write_atomically(_place(identity), json.dumps({**said, **record}, indent=2, sort_keys=True) + "\n")


def find(image: Image) -> dict[str, Any] | None:
    """The last record of exactly this image; None: it was never verified, or no record of it is left.

    An engine knows an image by the digest of its config, or, with containerd's store, of its manifest.
    """
    found = []
    for digest in (image.config.digest, image.manifest.digest):
        try:
            said = json.loads(_place(digest).read_text(encoding="utf-8"))
            if said["schema"] == SCHEMA and said["image"] == digest:
                found.append((str(said["when"]), dict(said)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found, key=lambda one: one[0])[1] if found else None


def tally(record: Mapping[str, Any]) -> str:
    """``21 passed, 1 skipped (device: no GPU here)``."""
    skipped = [one for one in record["checks"] if one["status"] == "skipped"]
    reasons = "; ".join(f"{one['id']}: {one['reason']}" for one in skipped)
    words = f"{record['passed']} passed"
    if record["skipped"]:
        words += f", {record['skipped']} skipped ({reasons})"
    return words


def _place(identity: str) -> Path:
    return home.verified() / f"{identity.removeprefix('sha256:')}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
