"""Unit tests talk to no Docker engine: one that runs here is somebody's. And none fails for having been slow."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("labrig", deadline=None)
hypothesis.settings.load_profile("labrig")


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'no-engine'}")
