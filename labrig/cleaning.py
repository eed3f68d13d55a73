"""`invoke clean`: remove what labrig can make again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from labrig import home, lock, spec
from labrig.engines import venv


def clean(root: Path, name: str | None = None, *, everything: bool = False, dry_run: bool = False) -> list[Path]:
    """Remove environments that no lock of this checkout names, and half downloads; gives what went (or would go).

    With a target's name: every environment of that target, and uv's unpacked copies, which environments share files
    with by hard links: what was written into one is in the other. With ``everything``: the wheelhouse, too.
    """
    table = spec.read(root / "images" / spec.TABLE)
    if everything:
        places = [home.root()] if home.root().is_dir() else []
    elif name:
        table.pick(name)
        places = [*_made(home.environments() / name), *_made(home.links()), *_made(home.uv_cache())]
    else:
        kept = {
            venv.folder(lock.read(file))
            for target in table.targets.values()
            for platform in target.platforms
            if (file := lock.path(table.path.parent, target.name, platform)).exists()
        }
        places = [place for folder in _made(home.environments()) for place in _made(folder) if place not in kept]
        places += _made(home.wheels() / "partial")
    freed = 0
    for place in places:
        freed += _size(place)
        if not dry_run:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    verb = "would free" if dry_run else "freed"
    print(
        f"{len(places)} removed, {verb} about {freed / 1e6:.0f} MB" if places else "nothing to remove", file=sys.stderr
    )
    return places


def _made(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(place: Path) -> int:
    """Bytes that go with a place: a file that is hard-linked elsewhere stays there and counts nothing."""
    files = place.rglob("*") if place.is_dir() else [place]
    stats = [file.lstat() for file in files if file.is_file() and not file.is_symlink()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
