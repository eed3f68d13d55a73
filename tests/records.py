"""Where the labs are, how to read what one left, and when two runs of it gave the same numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "labs"
LONG = ("06_images", "08_gpt", "16_masked_words", "18_missing_patches")  # half a minute each at full size
CLOCKS = ("ms", "µs", "seconds", "times", "GFLOP/s", "GB/s", "MiB")  # units of what no two runs agree on

# python -c EXECUTE NOTEBOOK FOLDER: runs all cells with the kernel in the folder, and prints what they showed as JSON.
EXECUTE = """
import json, sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(book)
nbclient.NotebookClient(book, timeout=60, resources={"metadata": {"path": sys.argv[2]}}).execute()
out = [output for cell in book.cells for output in cell.get("outputs", [])]
pictures = [output["metadata"]["image/png"]["alt"] for output in out if "image/png" in output.get("data", {})]
print(json.dumps({"pictures": pictures, "text": "".join(output.get("text", "") for output in out)}))
"""


def record(folder: Path) -> dict[str, Any]:
    """metrics.json of one lab."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def assert_equal_numbers(native: Mapping[str, Any], image: Mapping[str, Any]) -> None:
    """Two runs of a lab with the same wheels on the same processor, natively and in the image, agree to the last bit.

    What is itself a rounding error may depend on where memory lies; and only natively there may be a compiler.
    """
    assert [gate["id"] for gate in native["gates"] if gate["id"] != "compiled"] == [g["id"] for g in image["gates"]]
    assert {d["name"]: d["sha256"] for d in native["data"]} == {d["name"]: d["sha256"] for d in image["data"]}
    compared = [name for name in image["metrics"] if not _timed(native["metrics"][name]["unit"])]
    assert compared
    for name in compared:
        a, b = (found["metrics"][name]["value"] for found in (native, image))
        assert a == b or abs(a - b) < 1e-12, name


def _timed(unit: str) -> bool:
    return re.split(r"[ ,]", unit)[0] in CLOCKS
