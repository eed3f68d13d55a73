"""`invoke clean`: remove what labrig can make again and nothing else; results stay, and what others put there."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections import Counter
from pathlib import Path

from labrig import base, blobs, daemon, home, image, lock, native, spec
from labrig.conda import versions
from labrig.engines import conda, venv
from labrig.errors import BuildError, HostError, LockError
from labrig.spec import Table


def clean(root: Path, name: str | None = None, *, everything: bool = False, dry_run: bool = False) -> list[Path | str]:
    """Remove environments and images that no lock of this checkout names, images of former labs, and half downloads;
    gives what went (or would go). Where no Docker engine answers, images are left alone.

    With a target's name: every environment and image of that target, and uv's unpacked copies, which environments
    share files with by hard links: what was written into one is in the other. With ``everything``: the wheelhouse and
    the bases, too.

    Raises:
        SpecError: no target of that name.
        LockError: a lock cannot be read, so what it names is not known.
        BuildError: a build is running, and ``everything`` would take its ground away.
    """
    table = spec.read(root / "images" / spec.TABLE)
    places = [place for folder in _entries(home.environments()) for place in _entries(folder)]
    guards = [place for place in places if place.suffix == native.GUARD]
    guards += [*home.contexts().glob(".*.building"), *home.bases().glob(".*.lock")]
    busy = [place for place in guards if _is_locked(place)]
    if busy and (everything or name):
        raise BuildError(
            "an environment is being built", found=", ".join(map(str, busy)), fix="wait for it, or stop it"
        )
    locks = [
        lock.read(file)
        for target in table.targets.values()
        for platform in target.platforms
        if not everything and not name and (file := lock.path(table.path.parent, target.name, platform)).exists()
    ]
    shared = [place for place in (home.links(), home.uv_cache()) if place.is_dir()]
    if everything:
        ours = (home.environments(), home.wheels(), home.contexts(), home.bases(), home.layers(), home.certificates())
        places = [*shared, *(place for place in ours if place.is_dir())]
    elif name:
        table.pick(name)
        places = [place for place in places if place.parent.name == name and place.suffix != native.GUARD] + shared
    else:
        kept = {venv.folder(locked) for locked in locks} | _conda_folders(table, root)
        kept.update(place.with_suffix("") for place in busy)
        places = [place for place in places if place not in kept and place.suffix != native.GUARD]
        places += [
            file
            for file in (*_entries(home.wheels() / "partial"), *_entries(home.layers() / "partial"))
            if not _is_locked(file)
        ]
        places += [place for place in home.contexts().glob("[!.]*") if place.name not in table.targets]
        places += base.former()[0]
        places += blobs.stale(one.sha256 for locked in locks for one in locked.wheels)
    freed = _size(places)
    if not dry_run:
        for place in places:
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    said = f"{len(places)} would go, about" if dry_run else f"{len(places)} removed, freed about"
    images = _clean_images({locked.digest for locked in locks}, name, everything=everything, dry_run=dry_run)
    if images:
        print(f"{len(images)} images {'would go' if dry_run else 'removed'}", file=sys.stderr)
    if places or not images:
        print(f"{said} {freed / 1e6:.0f} MB" if places else "nothing to remove", file=sys.stderr)
    return [*places, *images]


def _conda_folders(table: Table, root: Path) -> set[Path]:
    """Conda environments of the present pins or exact locks; all of a target where a lock is stale and names none."""
    kept = set()
    for target in table.targets.values():
        for platform in target.platforms if target.conda else ():
            try:
                kept.add(conda.folder(target, versions(target, platform, root / "images"), root))
            except LockError:
                kept.update((home.environments() / target.name).glob("conda-*"))
    return kept


def _clean_images(kept: set[str], name: str | None, *, everything: bool, dry_run: bool) -> list[str]:
    try:
        with daemon.connect() as client:
            found = image.stale(client, kept, name, everything=everything)
            return found if dry_run else image.remove(client, found)
    except HostError:
        return []  # no engine, so there are no images here


def _is_locked(file: Path) -> bool:
    """True while a build or a fetch holds its lock on the file."""
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(places: list[Path]) -> int:
    """Bytes that go with the places: a file that has a hard link outside of them stays there and counts nothing."""
    files = (file for place in places for file in (place.rglob("*") if place.is_dir() else [place]))
    stats = [file.lstat() for file in files if file.is_file() and not file.is_symlink()]
    seen = Counter((stat.st_dev, stat.st_ino) for stat in stats)
    whole = {
        (stat.st_dev, stat.st_ino): stat.st_size for stat in stats if seen[stat.st_dev, stat.st_ino] == stat.st_nlink
    }
    return sum(whole.values())
