"""Offline kits: what a room without internet needs of some targets, on a stick; docs/offline.md.

A kit is a folder, or a tar of one. It holds the image as an OCI layout, the wheels by file name, locks, labs, and the
script labrig/stick.py as kit.py, which needs no labrig. ``checksums`` names every other file by SHA-256 and is written
last, so a kit that lacks it is a half one. A kit never shares a file with labrig's stores by a link: who writes on a
stick must not reach them. What is taken back from a kit is proven first, byte by byte.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from labrig import base, blobs, daemon, environment, home, image, loading, lock, oci, render, spec, stick, wheelhouse
from labrig.blobs import Layer
from labrig.errors import BuildError, HostError, LockError, UsageError, VerifyError
from labrig.files import CHUNK, EPOCH, alone, copy_proven
from labrig.host import read_host
from labrig.lock import Lock
from labrig.oci import Document, Image
from labrig.progress import Progress, megabytes
from labrig.spec import Table, Target
from labrig.stick import ABOUT, CHECKSUMS

README, SCRIPT = "README.txt", "kit.py"
TOP = (README, SCRIPT, ABOUT, CHECKSUMS, "image", "labs", "targets", "wheels")  # all that lies in a kit's folder
TAR = ".tar"
PARTIAL = ".partial"  # behind the name of a kit that is being written, beside the place where it will stand
FAT_LIMIT = 2**32 - 1  # bytes of the largest file on FAT32
SMALL = 16_000_000  # bytes of the largest file that is read into memory


@dataclass(frozen=True)
class Entry:
    """A file of a kit: its name there, what it is, and where it comes from. ``size`` is in bytes."""

    name: str
    sha256: str
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Written:
    """A kit that was written. ``digest`` is that of its checksums, by which two kits are compared; size in bytes."""

    place: Path
    digest: str
    size: int
    targets: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """What a program would read of it."""
        return {
            "kit": str(self.place), "digest": f"sha256:{self.digest}", "size": self.size, "targets": list(self.targets),
        }  # fmt: skip


# --- export -----------------------------------------------------------------------------------------------------------


def export(
    root: Path,
    names: Sequence[str],
    place: Path,
    *,
    platform: str = "",
    with_image: bool = True,
    with_wheels: bool = True,
    overrides: Sequence[str] = (),
    offline: bool = False,
) -> Written:
    """Write a kit of some targets (without names: of the one that fits this host) to a folder, or to a ``.tar``.

    What an export that was stopped has written is kept where it is right, so the same command goes on.

    Raises:
        UsageError: a name, a platform, or a place that holds something else.
        LockError, FetchError, HostError, BuildError: what goes into it cannot be had; the disk is full.
    """
    if not with_image and not with_wheels:
        raise UsageError("a kit without image and without wheels is none", fix="leave out --no-image or --no-wheels")
    table = spec.read(root / "images" / spec.TABLE)
    targets = [table.pick(name) for name in dict.fromkeys(names)] or [environment.pick_best(table, read_host())]
    locks = [lock.load(one, _platform(one, platform), root / "images") for one in targets]
    for one in targets:
        if with_image and "docker" not in one.engines:
            if not with_wheels:
                raise UsageError(f"target {one.name} has no image", fix="leave out --no-wheels")
            print(f"target {one.name} has no image: the kit has its wheels alone", file=sys.stderr)
    _require_place(place)
    about = [_describe(target, locked, with_wheels) for target, locked in zip(targets, locks, strict=True)]
    with _scratch() as layout:
        for target, locked, entry in zip(targets, locks, about, strict=True):
            if with_wheels:
                environment.fetch(table, target, locked, overrides=overrides, offline=offline)
            if with_image and "docker" in target.engines:
                made = environment.export(
                    root, target.name, platform=locked.platform, output=layout, overrides=overrides, offline=offline
                )
                entry["image"] = _describe_image(target, made.image)
        entries = _entries(root, targets, locks, about, layout, with_wheels)
        listed = "".join(f"{one.sha256}  {one.name}\n" for one in entries)
        entries.append(_of_text(CHECKSUMS, listed))
        try:
            (_write_tar if place.suffix == TAR else _write_folder)(entries, place)
        except OSError as error:
            raise _unwritable(error, place) from error
    digest, size = entries[-1].sha256, sum(one.size for one in entries)
    print(f"kit {place}: {len(entries)} files, {megabytes(size)}, sha256:{digest}", file=sys.stderr)
    return Written(place, digest, size, tuple(about))


def _platform(target: Target, wish: str) -> str:
    """The platform of a target in a kit: the one that was asked for, else that of this host, or the target's first."""
    host = read_host()
    for one in (wish,) if wish else (host.container_platform, host.platform, target.platforms[0]):
        if one in target.platforms:
            return str(one)
    raise UsageError(
        f"target {target.name} has no platform {wish!r}", found=f"its platforms: {', '.join(target.platforms)}",
        fix="name one of these with --platform",
    )  # fmt: skip


def _describe(target: Target, locked: Lock, with_wheels: bool) -> dict[str, Any]:
    """What kit.json says of a target, before there is an image; labrig/stick.py reads it."""
    folder = f"targets/{target.name}"
    return {
        "name": target.name,
        "platform": locked.platform,
        "python": target.python,
        "torch": target.torch,
        "variant": target.variant,
        "cuda": target.cuda,
        "min_driver": target.min_driver,
        "glibc": target.glibc if locked.platform == target.platforms[0] else None,
        "macos": lock.oldest_macos(target),
        "lock": f"{folder}/{locked.platform}.lock",
        "lock_digest": locked.digest,
        "requirements": f"{folder}/requirements-{locked.platform}.txt",
        "wheels": [one.file for one in locked.wheels] if with_wheels else [],
        "wheels_size": locked.size if with_wheels else 0,
        "image": None,
    }


def _describe_image(target: Target, made: Image) -> dict[str, Any]:
    return {
        "platform": f"linux/{base.ARCHITECTURES[made.platform]}",
        "digest": made.digest,
        "config": made.config.digest,
        "reference": image.tag(target, _labels(made)[image.INPUTS]),
        "size": sum(one.size for one in made.layers),
    }


def _labels(made: Image) -> dict[str, str]:
    return dict(json.loads(made.config.content)["config"]["Labels"])


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for a layout, beside labrig's layers so that it costs no room; one export at a time."""
    folder = home.contexts()
    folder.mkdir(parents=True, exist_ok=True)
    layout = folder / ".kit"
    with alone(folder / ".kit.building", "another export is running; waiting for it"):
        shutil.rmtree(layout, ignore_errors=True)
        try:
            yield layout
        finally:
            shutil.rmtree(layout, ignore_errors=True)


def _entries(
    root: Path,
    targets: Sequence[Target],
    locks: Sequence[Lock],
    about: Sequence[dict[str, Any]],
    layout: Path,
    with_wheels: bool,
) -> list[Entry]:
    """Every file of a kit but its checksums, by name.

    Raises:
        UsageError: a file of labs/ has a name that not every system can have.
    """
    found = [
        _of_text(README, _readme(about)),
        _of_text(SCRIPT, Path(stick.__file__).read_text(encoding="utf-8")),
        _of_text(
            ABOUT,
            json.dumps({"format": stick.FORMAT, "revision": image.revision(root), "targets": about}, indent=2) + "\n",
        ),
    ]
    for target, locked, entry in zip(targets, locks, about, strict=True):
        found.append(_of_text(entry["lock"], lock.serialize(locked)))
        requirements = render.render_requirements(target, locked, root / "templates")
        found.append(_of_text(entry["requirements"], requirements))
        for each in locked.wheels if with_wheels else ():
            path = wheelhouse.find(each, home.wheels())
            found.append(Entry(f"wheels/{each.file}", each.sha256, each.size, _opener(path)))
    for name, sha256 in image.read_labs(root / "labs").items():
        path = root / "labs" / name
        found.append(Entry(f"labs/{name}", sha256, path.stat().st_size, _opener(path)))
    for path in sorted(one for one in layout.rglob("*") if one.is_file()):
        name = f"image/{path.relative_to(layout).as_posix()}"
        sha256 = path.name if path.parent.name == "sha256" else hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(Entry(name, sha256, path.stat().st_size, _opener(path)))
    whole = {one.name: one for one in found}
    for one in found:
        if not stick.is_safe(one.name):
            raise UsageError(f"{one.name} is no name that every system can have", fix="rename the file")
        if one.sha256 != whole[one.name].sha256:
            raise UsageError(f"two targets have different files {one.name}", fix="make a kit for each")
    return [whole[name] for name in sorted(whole)]


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _of_text(name: str, text: str) -> Entry:
    content = text.encode()
    return Entry(name, hashlib.sha256(content).hexdigest(), len(content), lambda: io.BytesIO(content))


def _readme(about: Sequence[Mapping[str, Any]]) -> str:
    """The page on a kit for who gets it."""
    lines = ["PyTorch labs without internet", ""]
    for one in about:
        gpu = f", for NVIDIA GPUs with driver {one['min_driver']} or newer" if one["min_driver"] else ""
        lines.append(f"  {one['name']}: torch {one['torch']} ({one['variant']}), Python {one['python']}{gpu}")
    lines += [
        "",
        "You need Python 3.8 or newer to run kit.py. It opens no connection and writes nothing here.",
        "",
        "  python3 kit.py            says what of this kit fits your machine",
        "  python3 kit.py verify     proves every file; compare the line it prints with your teacher's",
    ]
    if any(one["wheels"] for one in about):
        pythons = " or ".join(dict.fromkeys(one["python"] for one in about))
        lines += [
            "  python3 kit.py native     makes an environment and copies the labs to ./labrig-NAME, or to --to FOLDER",
            f"                            (needs Python {pythons} with venv; pip takes everything from here)",
        ]
    if any(one["image"] for one in about):
        lines.append("  python3 kit.py load       loads the image into Docker or podman")
    lines += [
        "",
        "If a file is damaged, kit.py names it and uses nothing of it: copy the kit again. Without Python:",
        "sha256sum --quiet -c checksums. A machine with labrig takes all of it with: invoke import FOLDER",
        "",
        "Licences: labs/data/licences for the labs' data; each wheel brings its own.",
        "",
    ]
    return "\n".join(lines)


# --- writing ----------------------------------------------------------------------------------------------------------


def _require_place(place: Path) -> None:
    """Raises UsageError where something else stands than a kit, whole or half."""
    if place.is_mount():
        raise UsageError(
            f"{place} is a whole disk", fix=f"name a new folder on it, such as --output={place / 'labrig-kit'}"
        )
    partial = _partial(place)
    if place.suffix == TAR:
        if (place.exists() and not _is_kit(place)) or partial.is_dir():
            raise UsageError(f"{place} is there, and is no kit", fix="name another file with --output")
        return
    if (place.exists() and not place.is_dir()) or (partial.exists() and not partial.is_dir()):
        raise UsageError(f"{place} is no folder", fix="name a new folder, or a file that ends with .tar")
    half = partial.iterdir() if partial.exists() else ()
    strange = [one.name for one in half if one.name not in TOP and one.name[0] != "."]  # hidden: a half file of ours
    if place.exists() and any(place.iterdir()) and not _is_kit(place):
        strange += [one.name for one in place.iterdir()]
    if strange:
        raise UsageError(
            f"{place} is no kit and not empty", found=", ".join(sorted(strange)[:5]), fix="name a new folder"
        )


def _is_kit(place: Path) -> bool:
    """Whether a kit stands there and nothing else with it."""
    try:
        with open_kit(place) as kit:
            return set(kit.sizes) - set(kit.expected) <= {CHECKSUMS}
    except (BuildError, UsageError):
        return False


def _partial(place: Path) -> Path:
    return place.with_name(place.name + PARTIAL)


def _unwritable(error: OSError, place: Path) -> BuildError:
    if error.errno == errno.EFBIG:
        return BuildError(
            "a file is larger than this file system can hold", found=f"{error.filename or place}: 4 GiB on FAT32",
            fix="a folder instead of a .tar, or a stick with exFAT or ext4",
        )  # fmt: skip
    return blobs.unwritable(error, place, what="the kit", otherwise="name another place with --output")


def _require_room(entries: Sequence[Entry], place: Path, there: int) -> None:
    """Say how much is to be written, before it is. Raises BuildError where there is less room."""
    needed = sum(one.size for one in entries) - there
    free = shutil.disk_usage(place).free
    print(f"writing {megabytes(needed)} to {place}, where {megabytes(free)} are free", file=sys.stderr, flush=True)
    if free < needed:
        raise BuildError(
            f"not enough room in {place}", found=f"{megabytes(free)} free, {megabytes(needed)} needed",
            fix="make room, or name another place with --output",
        )  # fmt: skip


def _write_folder(entries: Sequence[Entry], place: Path) -> None:
    """A kit as a folder: under another name until all of it is there; what is there and right is kept."""
    partial = _partial(place)
    if place.exists() and any(place.iterdir()):
        shutil.rmtree(partial, ignore_errors=True)
        place.rename(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / CHECKSUMS).unlink(missing_ok=True)
    names = {one.name: one for one in entries}
    there = 0
    for path in partial.rglob("*"):
        one = names.get(path.relative_to(partial).as_posix())
        if path.is_symlink() or (path.is_file() and (one is None or path.stat().st_size != one.size)):
            path.unlink()  # of another kit, or half
        elif one is not None and path.is_file():
            there += one.size
    _require_room(entries, partial, there)
    with Progress("export") as progress:
        progress.start(sum(one.size for one in entries))
        for one in entries:
            _put(one, partial / one.name, progress)
    for folder in (partial, *(one for one in partial.rglob("*") if one.is_dir())):
        with contextlib.suppress(OSError):  # FAT knows no modes
            folder.chmod(0o755)  # whatever the umask of who exports: others are to read it
    if place.exists():
        place.rmdir()
    partial.rename(place)


def _put(one: Entry, to: Path, progress: Progress) -> None:
    if to.exists():
        with to.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == one.sha256:
                progress.advance(one.size)
                return
    to.parent.mkdir(parents=True, exist_ok=True)
    with one.open() as source:
        if not copy_proven(source, to, one.sha256, one.size, advance=progress.advance):
            raise _changed(one)


def _changed(one: Entry) -> BuildError:
    return BuildError(
        f"{one.name} is not what it was when the kit was put together",
        fix="run it again; if that does not help, invoke clean --all and build anew",
    )


def _write_tar(entries: Sequence[Entry], place: Path) -> None:
    """A kit as a tar of one folder, whose name is the file's; under another name until it is whole."""
    partial = _partial(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    _require_room(entries, place.parent, 0)
    total = sum(one.size for one in entries)
    if total > FAT_LIMIT:
        print(f"{place.name} is larger than 4 GiB: a stick with FAT32 cannot hold it, a folder it can", file=sys.stderr)
    with Progress("export") as progress, partial.open("wb") as file:
        progress.start(total)
        for one in entries:
            info = tarfile.TarInfo(f"{place.stem}/{one.name}")
            info.size, info.mtime, info.mode = one.size, int(EPOCH), 0o644
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            hashed, left = hashlib.sha256(), one.size
            with one.open() as source:
                while piece := source.read(min(CHUNK, left + 1)):
                    hashed.update(piece)
                    file.write(piece)
                    left -= len(piece)
                    progress.advance(len(piece))
            if left or hashed.hexdigest() != one.sha256:
                raise _changed(one)
            file.write(bytes(-one.size % tarfile.BLOCKSIZE))
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(place)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A kit that is open: the sizes of its files by name, in bytes, and what its checksums say of them."""

    place: Path
    sizes: Mapping[str, int]
    expected: Mapping[str, str]
    digest: str  # of the checksums
    open: Callable[[str], BinaryIO]

    def read(self, name: str) -> bytes:
        """A small file, proven. Raises BuildError: it is missing, too large, or another one."""
        if not 0 <= self.sizes.get(name, -1) <= SMALL:
            raise _damaged(self.place, f"{name} is missing or too large")
        with self.open(name) as file:
            content = file.read(SMALL)
        if hashlib.sha256(content).hexdigest() != self.expected.get(name):
            raise _damaged(self.place, f"{name} is damaged")
        return content

    def blob(self, digest: str) -> str:
        """The name of a blob of the image. Raises BuildError: there is none."""
        name = f"image/{oci.inner(digest)}"
        if not oci.DIGEST.fullmatch(digest) or name not in self.sizes:
            raise _damaged(self.place, f"no blob {digest[:80]}")
        return name


def _damaged(place: Path, found: str) -> BuildError:
    return BuildError(
        f"{place} is no whole kit",
        found=stick.shown(found),
        fix="copy it again from where it came; nothing of it was used",
    )


@contextlib.contextmanager
def open_kit(place: Path) -> Iterator[Opened]:
    """A kit for reading. Nothing in it is trusted: no name leads out of it, nothing but files is in it.

    Raises:
        UsageError: there is nothing.
        BuildError: it is no kit, or a half one.
    """
    if not place.exists():
        raise UsageError(f"there is no {place}", fix="name the folder or the .tar of a kit")
    with contextlib.ExitStack() as stack:
        try:
            read: Callable[[str], BinaryIO]
            if place.is_dir():
                sizes, read = stick.files_of(place), lambda name: _opener(place / name)()
            else:
                sizes, read = _members(stack.enter_context(tarfile.open(place, "r:")))
            if not 0 < sizes.get(CHECKSUMS, 0) <= SMALL:
                raise ValueError(f"{CHECKSUMS} is missing, which is written last")
            with read(CHECKSUMS) as file:
                listed = file.read(SMALL)
            kit = Opened(place, sizes, stick.parse_checksums(listed.decode()), hashlib.sha256(listed).hexdigest(), read)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise _damaged(place, str(error)) from None
        yield kit


def _members(archive: tarfile.TarFile) -> tuple[dict[str, int], Callable[[str], BinaryIO]]:
    """The files of a kit's tar, without the folder that they are in. Raises ValueError for what a kit never holds."""
    found: dict[str, tarfile.TarInfo] = {}
    for one in archive:
        name = one.name.removeprefix("./").rstrip("/")
        if one.isdir() and (name in ("", ".") or stick.is_safe(name)):
            continue
        if one.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or one.sparse is not None or not stick.is_safe(name):
            raise ValueError(f"{one.name[:120]!a} is no file of a kit")
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = one
    top = min((name for name in found if name.rpartition("/")[2] == CHECKSUMS), key=len, default=CHECKSUMS)
    prefix = top.removesuffix(CHECKSUMS)
    if strange := [name for name in found if not name.startswith(prefix)]:
        raise ValueError(f"{strange[0]!a} is beside the kit")
    members = {name.removeprefix(prefix): one for name, one in found.items()}

    def read(name: str) -> BinaryIO:
        opened = archive.extractfile(members[name])
        assert opened is not None  # noqa: S101 for the type checker: it is a file
        return opened  # type: ignore[return-value]

    return {name: one.size for name, one in members.items()}, read


def prove(kit: Opened) -> None:
    """Read every file to its end. Raises BuildError: one is missing, too many, or damaged; the first is named."""
    missing = sorted(set(kit.expected) - set(kit.sizes))
    strange = sorted(set(kit.sizes) - set(kit.expected) - {CHECKSUMS})
    wrong = [f"{name} is missing" for name in missing] + [f"{name} is not the kit's" for name in strange]
    if wrong:
        raise _damaged(kit.place, wrong[0] + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""))
    with Progress("verify") as progress:
        progress.start(sum(kit.sizes.values()))
        for name, sha256 in kit.expected.items():
            try:
                with kit.open(name) as file:
                    hashed = hashlib.sha256()
                    while piece := file.read(CHUNK):
                        hashed.update(piece)
                        progress.advance(len(piece))
            except (OSError, tarfile.TarError) as error:
                raise _damaged(kit.place, f"{name} cannot be read: {error}") from None
            if hashed.hexdigest() != sha256:
                raise _damaged(kit.place, f"{name} is damaged")


# --- import -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What came out of a kit for a target. ``reference`` is the image's name, ``loaded`` whether an engine has it."""

    target: str
    platform: str
    lock: str
    wheels: int  # that the kit has; they are in the wheelhouse now
    reference: str = ""
    loaded: bool = False


def import_kit(root: Path, place: Path) -> list[Imported]:
    """Prove a kit, put its wheels, layers and bases where labrig looks for them, and load its images into the engine.

    Only what belongs to a lock of this checkout is taken: no command here would use anything else.

    Raises:
        UsageError: there is no kit.
        BuildError: it is damaged, half or hostile; nothing of it was used.
        LockError: it is for other locks.
    """
    table = spec.read(root / "images" / spec.TABLE)
    with open_kit(place) as kit:
        prove(kit)
        print(f"kit {place}: {len(kit.expected)} files are right, sha256:{kit.digest}", file=sys.stderr)
        plans, reasons, revision = _plans(kit, table)
        if not plans:
            raise LockError(
                f"{place} is for another checkout than this one", found="; ".join(reasons),
                fix=f"git checkout {revision} (where it was made), or use it without labrig: python3 kit.py",
            )  # fmt: skip
        for reason in reasons:
            print(f"left out: {reason}", file=sys.stderr)
        return [_take(kit, *plan) for plan in plans]


def _plans(kit: Opened, table: Table) -> tuple[list[tuple[Target, Lock, Image | None]], list[str], str]:
    """The targets of a kit that are this checkout's, why the others are not, and the commit it was made from.

    Raises:
        BuildError: kit.json, or a document of an image, cannot be meant.
    """
    plans: list[tuple[Target, Lock, Image | None]] = []
    reasons: list[str] = []
    try:
        about = json.loads(kit.read(ABOUT))
        if about["format"] != stick.FORMAT:
            raise ValueError(f"format {about['format']}, this labrig reads {stick.FORMAT}")
        for entry in about["targets"]:
            if reason := _unfit(kit, entry, table):
                reasons.append(reason)
                continue
            target = table.targets[entry["name"]]
            locked = lock.load(target, entry["platform"], table.path.parent)
            made = _image(kit, str(entry["image"]["digest"]), target, locked) if entry["image"] else None
            plans.append((target, locked, made))
        return plans, reasons, stick.shown(str(about["revision"])[:80])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(kit.place, f"{type(error).__name__}: {error}") from None


def _unfit(kit: Opened, entry: Mapping[str, Any], table: Table) -> str:
    """Why a target of a kit is not one of this checkout, or an empty text."""
    name, platform = str(entry["name"]), str(entry["platform"])
    if name not in table.targets or platform not in table.targets[name].platforms:
        return f"there is no target {name[:80]!r} for {platform[:80]!r} here"
    try:
        locked = lock.load(table.targets[name], platform, table.path.parent)
    except LockError as error:
        return error.what
    found = kit.read(str(entry["lock"]))
    if found != lock.serialize(locked).encode():
        digest = hashlib.sha256(found).hexdigest()
        return f"target {name}: the kit's lock is {digest[:12]}, this checkout's {locked.digest[:12]}"
    return ""


def _take(kit: Opened, target: Target, locked: Lock, made: Image | None) -> Imported:
    wheels = [one for one in locked.wheels if f"wheels/{one.file}" in kit.sizes]
    new = 0
    for one in wheels:
        with kit.open(f"wheels/{one.file}") as file:
            new += wheelhouse.keep(one, file, home.wheels())
    if wheels:
        print(f"target {target.name}: {len(wheels)} wheels, {new} of them new here", file=sys.stderr)
    done = Imported(target.name, locked.platform, locked.digest, len(wheels))
    if made is None:
        return done
    for layer in made.layers:
        with kit.open(kit.blob(layer.digest)) as file:
            blobs.keep(layer.digest, layer.size, file)
    blobs.remember(f"kit: {target.name} {locked.platform}", [layer.digest for layer in made.layers])
    labels, ground = _labels(made), made.layers[0]
    if labels.get(image.BASE_DIGEST) == ground.diff_id:
        with blobs.path(ground.digest).open("rb") as file:
            if base.keep(target, locked.platform, ground.diff_id, file):
                print(f"the base of target {target.name} is kept, too", file=sys.stderr)
    reference = image.tag(target, labels[image.INPUTS])
    return replace(done, reference=reference, loaded=_load(made, target, reference))


def _image(kit: Opened, digest: str, target: Target, locked: Lock) -> Image:
    """The image of a kit, as its documents say. Raises BuildError or ValueError: they are not of this target."""
    manifest = Document(oci.MANIFEST, kit.read(kit.blob(digest)))
    said = json.loads(manifest.content)
    config = Document(oci.CONFIG, kit.read(kit.blob(str(said["config"]["digest"]))))
    inner = json.loads(config.content)
    layers = tuple(
        Layer(f"kit: {number}", str(one["digest"]), str(diff_id), int(one["size"]), 0, str(one["mediaType"]))
        for number, (one, diff_id) in enumerate(zip(said["layers"], inner["rootfs"]["diff_ids"], strict=True), 1)
    )
    if not layers or any(kit.sizes[kit.blob(one.digest)] != one.size for one in layers):
        raise ValueError("an image without layers, or with one of another size")
    made = Image(locked.platform, layers, config, manifest)
    labels = _labels(made)
    if (labels["labrig.target"], labels[image.LOCK]) != (target.name, locked.digest) or not re.fullmatch(
        r"[0-9a-f]{64}", labels[image.INPUTS]
    ):
        raise ValueError(f"the image is not of target {target.name} and its lock")
    return made


def _load(made: Image, target: Target, reference: str) -> bool:
    """Load an image into the engine, if one answers that can run it; whether it has it now.

    Raises:
        BuildError: the engine refused it.
        VerifyError: the engine has another image now.
    """
    if read_host().container_platform != made.platform:
        print(f"{reference} is not loaded: it is for {made.platform}; its layers are kept", file=sys.stderr)
        return False
    try:
        with daemon.connect() as client, image.alone(target):
            proofs = (made.config.digest, made.digest)  # an engine with containerd's store names the manifest
            found = image.find(client, reference)
            if not found or found.id not in proofs:
                loading.load(client, made, reference)
                found = image.find(client, reference)
            if not found or found.id not in proofs:
                raise VerifyError(
                    f"the engine has another image {reference} than the kit", found=str(found and found.id),
                    fix=f"docker rmi {reference}, then import it again",
                )  # fmt: skip
            found.tag(image.name(target), "latest")
    except HostError as error:
        print(f"{reference} is not loaded: {error.what} ({error.found}); its layers are kept, and the same command "
              "loads it when one does", file=sys.stderr)  # fmt: skip
        return False
    return True
