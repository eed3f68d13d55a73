"""Where the labs are, and how to read what one left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LABS = ROOT / "labs"


def record(folder: Path) -> dict[str, Any]:
    """metrics.json of one lab."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
