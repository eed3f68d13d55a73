"""A checkout that has published images, and what a cluster is rendered from."""

from __future__ import annotations

import shutil
from pathlib import Path

import samples

from labrig import published
from labrig.serving import Offer, cluster, offers, settings

ROOT = Path(__file__).parents[2]


def checkout(folder: Path, *targets: str) -> Path:
    """A checkout with its images published: each target under a digest of its own."""
    shutil.copytree(ROOT / "images", folder / "images")
    shutil.copytree(ROOT / "templates", folder / "templates")
    shutil.copytree(ROOT / "labs", folder / "labs", ignore=shutil.ignore_patterns("data", "__pycache__", "notebooks"))
    (folder / "images" / published.FILE).unlink(missing_ok=True)
    for number, target in enumerate(targets or ("cpu", "cuda", "cuda-legacy")):
        digest = f"sha256:{number:x}" * 1 + "a" * 63
        reference = f"registry.example.org/lab/{target}@{digest}"
        published.keep(folder / "images", samples.published(target, reference=reference))
    return folder


def offered(root: Path) -> tuple[Offer, ...]:
    """What that checkout offers."""
    return offers.read(root, cluster.PLATFORM)


def files(root: Path, told: settings.Settings | None = None) -> dict[str, str]:
    """The files of a cluster."""
    return cluster.render(root, told or settings.Settings(), offered(root))
