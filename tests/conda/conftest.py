"""A conda program and local channels for it: the real solver and installer of py-rattler, on packages made here."""

from __future__ import annotations

import sys
from pathlib import Path

import channel
import pytest
from checkouts import ROOT, Checkout, copy_checkout

from labrig import spec

STAND_IN = Path(__file__).with_name("micromamba.py")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH in which the stand-in is called micromamba, and no other conda program is."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "micromamba").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    (folder / "micromamba").chmod(0o755)
    return folder


@pytest.fixture
def small(tmp_path: Path, program: Path) -> Checkout:
    """A channel of empty packages for every platform: all that the pins name, and what they must keep out."""
    folder = tmp_path / channel.NAME
    for target in spec.read(ROOT / "images" / spec.TABLE).targets.values():
        if target.conda:
            channel.empty_packages(folder, target, ROOT / "images")
    return copy_checkout(tmp_path, channel.index(folder), program)
