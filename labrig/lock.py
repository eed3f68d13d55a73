"""Locks: every wheel of an environment by name, version, file and SHA-256, per target and platform."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One locked wheel. ``size`` is in bytes."""

    name: str
    version: str
    file: str
    sha256: str
    size: int
