"""What a host should have, and by which digests it is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labrig.fleet.facts import Package
from labrig.lock import Lock
from labrig.published import Entry as Published
from labrig.spec import Target


@dataclass(frozen=True)
class Wanted:
    """What one kind of host should have: all hosts of a target, platform and engine want the same.

    ``packages`` are those of the lock, each with the tree digest that its wheel says its files have (facts.tree over
    the files of the wheel's RECORD, by their paths from site-packages as an installed RECORD has them: what goes to
    purelib, platlib and data; not scripts and headers, which an installer writes anew, nor the RECORD itself).
    """

    target: Target
    engine: str  # docker, venv
    platform: str
    lock: Lock
    environment: str  # its name under the folder's envs/: "cpu-0123456789ab"; empty for docker
    packages: Mapping[str, Package]
    image: Published | None  # docker
    pull: str  # the image by digest as that host pulls it, through the room's cache
    labs: Mapping[str, str]  # path -> SHA-256; empty for docker, whose image holds them
    start: str  # the text of the start command


def wanted_torch(wanted: Wanted) -> str:
    """The version that torch should say it has."""
    wheel = wanted.lock.wheel("torch")
    return wheel.version if wheel else wanted.target.torch
