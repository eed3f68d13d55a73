"""How many bytes an image is to pull, layer by layer: images/sizes.tsv as last written, and the budget of its row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labrig.blobs import Layer
from labrig.errors import SpecError, VerifyError
from labrig.files import write_atomically
from labrig.progress import megabytes
from labrig.spec import Target

FILE = "sizes.tsv"
COLUMNS = ("target", "platform", "layer", "bytes")
WARNS, FAILS = 1.02, 1.05  # times the budget


@dataclass(frozen=True)
class Size:
    """One layer of an image, from the lowest up; ``bytes`` are compressed ones."""

    target: str
    platform: str
    layer: str
    bytes: int


def read(images: Path) -> tuple[Size, ...]:
    """The committed table; empty where none is.

    Raises:
        SpecError: it is not one that `invoke sizes --write` writes.
    """
    try:
        lines = (images / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise _wrong(str(error)) from None
    found = []
    for line in lines[1:]:
        row = line.split("\t")
        if len(row) != len(COLUMNS) or not row[3].isdecimal():
            raise _wrong(line[:80])
        found.append(Size(row[0], row[1], row[2], int(row[3])))
    if lines[:1] != ["\t".join(COLUMNS)]:
        raise _wrong(lines[0][:80] if lines else "nothing")
    return tuple(found)


def of(images: Path, target: str, platform: str) -> tuple[Size, ...]:
    """The committed layers of one image."""
    return tuple(one for one in read(images) if (one.target, one.platform) == (target, platform))


def keep(images: Path, made: Sequence[Size]) -> None:
    """Put the layers of one image into the table, in the place of its earlier ones."""
    same = {(one.target, one.platform) for one in made}
    others = [one for one in read(images) if (one.target, one.platform) not in same]
    # By target and platform; within one, sorted() leaves the order of the layers.
    rows = sorted([*others, *made], key=lambda one: (one.target, one.platform))
    lines = ["\t".join(COLUMNS), *(f"{one.target}\t{one.platform}\t{one.layer}\t{one.bytes}" for one in rows)]
    write_atomically(images / FILE, "\n".join(lines) + "\n")


def measure(target: Target, platform: str, layers: Iterable[Layer]) -> tuple[Size, ...]:
    """The sizes of an image's layers. Equal ones are stored, and pulled, once; so are they counted."""
    once = {layer.digest: layer for layer in layers}
    return tuple(Size(target.name, platform, layer.title, layer.size) for layer in once.values())


def total(sizes: Iterable[Size]) -> int:
    """Bytes in all."""
    return sum(one.bytes for one in sizes)


def check(target: Target, made: Sequence[Size], before: Sequence[Size] = ()) -> str:
    """Hold an image against the budget of its row; gives a warning, or an empty text.

    Raises:
        VerifyError: it is more than 5 % above, with the layers that grew since the table was written.
    """
    if target.size_mb is None:
        return ""
    budget, found = target.size_mb * 1_000_000, total(made)
    if found <= WARNS * budget:
        return ""
    was = {_same(one.layer): one.bytes for one in before}
    grown = [(one.bytes - was.get(_same(one.layer), 0), one.layer) for one in made]
    more = [f"{layer} +{megabytes(by)}" for by, layer in sorted(grown, reverse=True) if by > 0.001 * budget][:5]
    says = f"the image of {target.name} takes {megabytes(found)}, {found / budget - 1:+.1%} of its budget"
    if found <= FAILS * budget:
        return f"{says}; more than +5 % fails{': ' if more else ''}{', '.join(more)}"
    raise VerifyError(
        says, found=", ".join(more) or f"no layer grew since images/{FILE}; the budget is {target.size_mb} MB",
        fix="make it smaller, or raise size_mb of the row in images/targets.toml and say why",
    )  # fmt: skip


def _same(layer: str) -> str:
    """What a layer is known by when its packages have other versions or other small ones beside them."""
    return re.sub(r" (\d\S*|and \d+ other small ones)", "", layer)


@dataclass(frozen=True)
class Examined:
    """An image as it would be made now, and what the committed table says of it."""

    target: Target
    platform: str
    made: tuple[Size, ...]
    before: tuple[Size, ...]

    @property
    def title(self) -> str:
        """What the table of layers is headed with."""
        budget = f", budget {self.target.size_mb} MB" if self.target.size_mb else ""
        return f"{self.target.name} for {self.platform}{budget}"

    def to_json(self) -> dict[str, object]:
        """What a program would read of it."""
        return {
            "target": self.target.name,
            "platform": self.platform,
            "budget": self.target.size_mb * 1_000_000 if self.target.size_mb else None,
            "bytes": total(self.made),
            "before": total(self.before) or None,
            "layers": [{"layer": one.layer, "bytes": one.bytes} for one in self.made],
        }


def examine(
    root: Path, name: str | None, platform: str = "", *, overrides: Sequence[str] = (), offline: bool = False
) -> Examined:
    """Make the image of a target, or find its layers made, and measure them. Raises what ``environment.draft`` does."""
    from labrig import environment

    drafted = environment.draft(root, name, platform=platform, overrides=overrides, offline=offline)
    target, platform = drafted.recipe.target, drafted.recipe.lock.platform
    made = measure(target, platform, drafted.build().layers)
    return Examined(target, platform, made, of(root / "images", target.name, platform))


def write(root: Path, found: Examined) -> list[Path]:
    """Put what was measured into the committed table, and render what shows it; gives the files that changed."""
    from labrig import page, render, spec

    keep(root / "images", found.made)
    files = render.write(page.render(spec.read(root / "images" / spec.TABLE), root / "templates"))
    return [root / "images" / FILE, *files]


def rows(made: Sequence[Size], before: Sequence[Size]) -> list[tuple[str, ...]]:
    """The layers of an image for people, in columns of :data:`SHOWN`."""
    was = {one.layer: one.bytes for one in before}
    lines = [(one.layer, megabytes(one.bytes), _change(one.bytes, was.get(one.layer))) for one in made]
    return [*lines, ("all", megabytes(total(made)), _change(total(made), total(before) or None))]


SHOWN = ("layer", "to pull", "against images/sizes.tsv")


def _change(now: int, before: int | None) -> str:
    if before is None:
        return "new"
    return f"{now - before:+d} bytes" if now != before else ""


def _wrong(found: str) -> SpecError:
    return SpecError(f"images/{FILE} is not what invoke sizes writes", found=found, fix="invoke sizes --write")
