"""`invoke list`: the form that programs read, and the one that people do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import samples

from labrig import catalogue, spec, support
from labrig.errors import LockError

IMAGES = Path(__file__).parents[2] / "images"
KEYS = ["name", "torch", "variant", "cuda", "python", "device", "engines", "platforms", "min_driver", "capabilities",
        "locked", "support"]  # fmt: skip


def test_entries_have_the_promised_keys_and_the_targets_values() -> None:
    entries = catalogue.entries(samples.SHIPPED)
    assert [entry["name"] for entry in entries] == list(samples.SHIPPED.targets)
    for entry in entries:
        assert list(entry) == KEYS
        target = samples.SHIPPED.targets[entry["name"]]
        for key in set(KEYS) - {"locked", "support"}:
            value = getattr(target, key)
            assert entry[key] == (list(value) if isinstance(value, tuple) else value)
        assert entry["support"] == {
            line.engine: {"status": line.status, "why": line.why}
            for line in support.lines(samples.SHIPPED)
            if line.target == entry["name"]
        }
        assert entry["locked"] == [p for p in target.platforms if p not in target.unlocked]
    assert json.loads(json.dumps(entries)) == entries


def test_rows_say_what_is_not_locked(tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "images")
    table = spec.read(tmp_path / "images" / spec.TABLE)
    (tmp_path / "images" / "cuda" / "linux_x86_64.lock").unlink()
    rows = {row[0]: dict(zip(catalogue.COLUMNS, row, strict=True)) for row in catalogue.rows(table)}
    assert rows["cuda"]["locked for"] == "(linux_x86_64: not locked)"
    assert rows["cpu"]["locked for"] == "linux_x86_64 (linux_aarch64: not locked)"
    cuda = table.targets["cuda"]
    assert f">= {cuda.min_driver} for CUDA {cuda.cuda}" in rows["cuda"]["needs"]
    assert rows["cuda"]["needs"].endswith(" ".join(cuda.capabilities))
    assert (rows["cpu"]["needs"], rows["mps"]["needs"]) == ("no GPU", "Apple Silicon")
    assert all(isinstance(cell, str) and cell for row in rows.values() for cell in row.values())


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "images")
    (tmp_path / "images" / "mps" / "macos_arm64.lock").write_text("<<<<<<< HEAD")
    with pytest.raises(LockError, match=r"mps/macos_arm64\.lock"):
        catalogue.entries(spec.read(tmp_path / "images" / spec.TABLE))
