"""Where labrig keeps what it can make again: wheels, uv's unpacked copies, native environments."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The user's cache folder for labrig; ``LABRIG_CACHE`` names another."""
    if override := os.environ.get("LABRIG_CACHE"):
        return Path(override).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("labrig")


def wheels() -> Path:
    """The wheelhouse."""
    return root() / "wheels"


def environments() -> Path:
    """Native environments: <target>/<digest of the lock>."""
    return root() / "envs"


def links() -> Path:
    """Hard links to wheels by file name; uv knows by their paths what it has unpacked."""
    return root() / "links"


def bases() -> Path:
    """Root file systems that images stand on, by digest."""
    return root() / "bases"


def contexts() -> Path:
    """Build contexts of images, one a target."""
    return root() / "contexts"


def layers() -> Path:
    """Layers of images, and what is known of each by what it was made from."""
    return root() / "layers"


def verified() -> Path:
    """What `verify` found of images, by their digest."""
    return root() / "verified"


def uv_cache() -> Path:
    """uv's own cache, beside the environments so that it can hard-link into them."""
    return root() / "uv"


def certificates() -> Path:
    """Bundles of certificates that are trusted, by digest."""
    return root() / "certificates"


def servers() -> Path:
    """What is known of each JupyterLab that `invoke start` left running, one folder a target."""
    return root() / "servers"
