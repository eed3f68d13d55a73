"""The pin table: images/targets.toml, read, validated and completed from the compatibility data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One fully pinned row. Platform names are those of labrig/data: linux_x86_64, linux_aarch64, macos_arm64."""

    name: str
    torch: str  # exact, "2.13.0"
    variant: str  # "cpu", "cu130", ...; "mps" for the macOS wheel
    python: str  # minor, "3.11"
    device: str  # what torch computes on: "cpu", "cuda", "mps"
    engines: tuple[str, ...]
    platforms: tuple[str, ...]
    packages: tuple[str, ...]
    companions: tuple[str, ...]  # "torchvision==0.28.0", versions from the data
    index: str | None  # name in [indexes] that torch and companions come from; None = the default index
    unlocked: Mapping[str, str]  # platform -> why no lock can be made for it here
    why: str
    # derived from labrig/data
    cuda: str | None  # "13.0"
    min_driver: str | None  # lowest NVIDIA driver on Linux
    archs: Mapping[str, tuple[str, ...]]  # platform -> compute capabilities with native code
    glibc: str | None  # lowest glibc
    macos: str | None  # lowest macOS on which the device works
