"""The page of published images, docs/published.{md,html,svg}: what they hold, their sizes as a picture, how to pull.

Made from the pin table, images/published.toml and images/sizes.tsv alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labrig import published, sizes
from labrig.progress import megabytes
from labrig.published import Entry
from labrig.sizes import Size
from labrig.spec import Table

# Kinds of layers, in the order in which they are drawn, each with its colour (Okabe and Ito 2008: told apart by all).
COLOURS = {
    "base": "#999999",
    "torch": "#d55e00",
    "CUDA": "#009e73",
    "other packages": "#0072b2",
    "bytecode": "#56b4e9",
    "labs": "#e69f00",
}
WIDTH, ROW, LEFT, TOP = 960, 56, 120, 56  # pixels of the picture
ROOM = WIDTH - LEFT - 100  # for the longest bar, and its total behind it
LEGEND = 140  # pixels for each kind


@dataclass(frozen=True)
class Bar:
    """An image in the picture; parts are (kind, bytes), pieces what is drawn: (x, width, colour, text)."""

    name: str
    total: int
    parts: Mapping[str, int]
    layers: tuple[Size, ...]

    def pieces(self, longest: int) -> list[tuple[float, float, str, str]]:
        """Rectangles from left to right, where ``longest`` bytes take all the room there is."""
        found, x = [], float(LEFT)
        for kind, count in self.parts.items():
            width = ROOM * count / longest
            found.append((x, width, COLOURS[kind], f"{kind}: {megabytes(count)}"))
            x += width
        return found


def kind(layer: str) -> str:
    """What a layer is, by its title (labrig/layers.py, assembly.py)."""
    first = layer.split()[0]
    if first == "base:" or layer.startswith("an empty environment"):
        return "base"
    if first == "bytecode:":
        return "bytecode"
    if layer.startswith("the labs"):
        return "labs"
    if first == "torch":
        return "torch"
    return "CUDA" if first.startswith(("nvidia-", "cuda-", "triton")) else "other packages"


def bars(measured: Sequence[Size]) -> list[Bar]:
    """One bar for each image of the committed table."""
    images: dict[tuple[str, str], list[Size]] = {}
    for one in measured:
        images.setdefault((one.target, one.platform), []).append(one)
    found = []
    for (target, _), layers in images.items():
        parts = dict.fromkeys(COLOURS, 0)
        for one in layers:
            parts[kind(one.layer)] += one.bytes
        shown = {name: count for name, count in parts.items() if count}
        found.append(Bar(target, sizes.total(layers), shown, tuple(layers)))
    return found


def render(table: Table, templates: Path) -> dict[Path, str]:
    """The page's files; nothing where there is no docs/ beside images/.

    Raises:
        SpecError: published.toml or sizes.tsv is not what labrig writes.
    """
    from labrig.render import jinja

    docs = table.path.parents[1] / "docs"
    if not docs.is_dir():
        return {}
    drawn = bars(sizes.read(table.path.parent))
    images = jinja(templates)
    picture = {
        "bars": drawn,
        "longest": max((one.total for one in drawn), default=1),
        "colours": COLOURS,
        "width": WIDTH,
        "row": ROW,
        "left": LEFT,
        "top": TOP,
        "legend": LEGEND,
        "megabytes": megabytes,
    }
    svg = images.get_template("published.svg.j2").render(picture)
    told = {
        "entries": [_known(one, table) for one in published.read(table.path.parent)],
        "bars": drawn,
        "megabytes": megabytes,
        "svg": svg,
    }
    files = {"published.svg": svg}
    files |= {name: images.get_template(f"{name}.j2").render(told) for name in ("published.md", "published.html")}
    return {docs / name: text for name, text in files.items()}


def _known(entry: Entry, table: Table) -> tuple[Entry, str]:
    """An entry, and what it is for, where its row is still there."""
    target = table.targets.get(entry.target)
    return entry, target.why if target else "no row of the pin table any more"
