"""A room as an Ansible inventory and a playbook, for sites that must: the same work, carried out by Ansible.

The playbook is the same for every room (templates/room/playbook.yml). What differs stands in the inventory, in a
group for each kind: hosts of the same target, engine and platform.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labrig import environment, home, inventory, wheelhouse
from labrig.engines.venv import requirements_text
from labrig.errors import FetchError, UsageError
from labrig.files import EPOCH, copy_proven, write_atomically
from labrig.fleet import apply, cache, ssh
from labrig.fleet import plan as planning
from labrig.fleet import wanted as wanting
from labrig.fleet.plan import Course
from labrig.fleet.wanted import Wanted
from labrig.inventory import AUTO, FOLDER, LOCAL, Entry, Room

UNAME = {"linux_x86_64": "Linux x86_64", "linux_aarch64": "Linux aarch64", "macos_arm64": "Darwin arm64"}
CONSTANT = ("playbook.yml", "ansible.cfg")


@dataclass(frozen=True)
class Kind:
    """Hosts that get the same."""

    wanted: Wanted
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """Its group."""
        return _group(f"labrig_{self.wanted.target.name}_{self.wanted.engine}_{self.wanted.platform}")


def export(root: Path, path: Path, output: Path, limit: str = "") -> list[Path]:
    """Write an inventory and a playbook, and all that it copies, into a folder; gives the files, but for wheels.

    Raises:
        UsageError: the room's file; or it is not known what a host should have.
        FetchError: a wheel cannot be had.
    """
    room = inventory.read(path)
    course = planning.prepare(root, room)
    kinds = _kinds(course, apply.select(room, limit))
    texts = {name: (root / "templates" / "room" / name).read_text(encoding="utf-8") for name in CONSTANT}
    texts["hosts.yml"] = _hosts(room, kinds)
    texts["files/labs.sha256"] = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(course.labs.items()))
    for kind in kinds:
        texts |= {f"files/{kind.name}/{name}": text for name, text in _files(kind.wanted).items()}
        if kind.wanted.engine == "venv":
            _bring_wheels(course, kind.wanted, output / "wheels" / kind.wanted.environment)
    for name, text in texts.items():
        write_atomically(output / name, text, mode=0o755 if name.endswith("/start") else 0o644)
    _pack(root / "labs", sorted(course.labs), output / "files" / "labs.tar")
    return [output / name for name in (*texts, "files/labs.tar")]


def _kinds(course: Course, entries: Sequence[Entry]) -> list[Kind]:
    last = cache.last_targets(course.room)
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        if not entry.address:
            print(f"{entry.name}: it has no address, and is left out", file=sys.stderr)
            continue
        if "nvidia" in entry.install:
            print(f"{entry.name}: the NVIDIA Container Toolkit is installed by invoke provision alone", file=sys.stderr)
        found.setdefault(_choice(course, entry, last.get(entry.name, ("", ""))), []).append(entry)
    kinds = []
    for (target, engine, platform), same in found.items():
        try:
            wanted = course.wanted(course.table.targets[target], platform, engine)
        except planning.Refused as refused:
            raise UsageError(f"host {same[0].name}: {refused.why}", fix=refused.fix) from None
        kinds.append(Kind(wanted, tuple(same)))
    return kinds


def _choice(course: Course, entry: Entry, last: tuple[str, str]) -> tuple[str, str, str]:
    """Target, engine and platform of a host: what its entry says, else what the last run found, else the usual one."""
    name = last[0] if entry.target == AUTO else entry.target
    if name not in course.table.targets:
        raise UsageError(
            f"host {entry.name}: what it should have is not known before it was asked",
            found=f"target = {entry.target!r}, and no run over {course.room.path.name} that found one",
            fix='write target = ..., or run invoke provision first',
        )  # fmt: skip
    target = course.table.targets[name]
    images = [platform for one, platform in course.published if one == name]
    engine = last[1] if entry.engine == AUTO and last[0] == name else entry.engine
    if engine not in ("docker", "venv"):
        engine = "docker" if images and "docker" in target.engines else "venv"
    platforms = images if engine == "docker" and images else target.platforms
    described = entry.machine.host if entry.machine else None
    platform = (described.container_platform if engine == "docker" else described.platform) if described else None
    return name, engine, platform or platforms[0]


def _hosts(room: Room, kinds: Sequence[Kind]) -> str:
    """The inventory."""
    import yaml

    engines: dict[str, Any] = {"labrig_venv": {"children": {}}, "labrig_docker": {"children": {}}}
    rooms: dict[str, Any] = {}
    for kind in kinds:
        group = {"vars": _variables(kind), "hosts": {entry.name: _of_host(room, entry) for entry in kind.entries}}
        engines[f"labrig_{kind.wanted.engine}"]["children"][kind.name] = group
        for entry in kind.entries:
            if entry.room:
                rooms.setdefault(_group(f"room_{entry.room}"), {"hosts": {}})["hosts"][entry.name] = None
    text = yaml.safe_dump({"all": {"children": {**engines, **rooms}}}, sort_keys=False, allow_unicode=True, width=1000)
    return f"# Generated by `invoke ansible` from {room.path.name}.\n{text}"


def _variables(kind: Kind) -> dict[str, Any]:
    wanted = kind.wanted
    said: dict[str, Any] = {
        "labrig_kind": kind.name, "labrig_target": wanted.target.name, "labrig_engine": wanted.engine,
        "labrig_uname": UNAME[wanted.platform], "labrig_folder": FOLDER, "labrig_install": [],
    }  # fmt: skip
    if wanted.image:
        said["labrig_pull"], said["labrig_names"] = wanted.pull, [*wanting.names_of(wanted.image)]
        # An engine knows an image by its config, or by its manifest (containerd's store).
        said["labrig_identities"] = [wanted.image.config, wanted.image.reference.partition("@")[2]]
        # Docker runs Linux on a Mac as well.
        return said
    said["labrig_environment"], said["labrig_python"] = wanted.environment, wanted.target.python
    said["labrig_packages"] = [f"{_normal(one.name)}=={one.version}" for one in wanted.lock.wheels]
    return said


def _of_host(room: Room, entry: Entry) -> dict[str, Any]:
    """How Ansible reaches a host; passwords stay references, and host keys strict, also of a machine on the way."""
    said: dict[str, Any] = {}
    if entry.address == LOCAL:
        said["ansible_connection"] = "local"
    else:
        said["ansible_host"] = entry.address
        known = f"UserKnownHostsFile={ssh.quoted(room.known_hosts.absolute())}"
        options = [word for one in (known, "StrictHostKeyChecking=yes", "ForwardAgent=no") for word in ("-o", one)]
        way = ["-o", f"ProxyCommand={ssh.through(entry, *options)}"] if entry.jump else []
        said["ansible_ssh_common_args"] = shlex.join([*options, *way])
    said |= {"ansible_port": entry.port} if entry.port != 22 else {}
    said |= {"ansible_user": entry.user} if entry.user else {}
    said |= {"ansible_ssh_private_key_file": str(entry.key)} if entry.key else {}
    kind, _, where = entry.password.partition(":")
    if kind == "env":
        said["ansible_password"] = f"{{{{ lookup('env', '{where}') }}}}"
    elif kind:
        said["ansible_password"] = f"{{{{ lookup('file', {json.dumps(str(Path(where).expanduser().absolute()))}) }}}}"
    said |= {"labrig_folder": entry.folder} if entry.folder != FOLDER else {}
    said |= {"labrig_install": [*entry.install]} if entry.install else {}
    said |= {"labrig_room": entry.room} if entry.room else {}
    return said


def _files(wanted: Wanted) -> Mapping[str, str]:
    note = {**planning.note(wanted), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    files = {"start": wanted.start, "applied.json": json.dumps(note, indent=1) + "\n"}
    return files if wanted.image else {**files, "requirements.txt": requirements_text(wanted.lock)}


def _bring_wheels(course: Course, wanted: Wanted, folder: Path) -> None:
    """Copies of a lock's wheels, proven, in a folder of their own; a wheel that is there and whole stays."""
    environment.fetch(course.table, wanted.target, wanted.lock)
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in wanted.lock.wheels:
        to = folder / wheel.file
        if not (to.exists() and to.stat().st_size == wheel.size):
            with wheelhouse.find(wheel, home.wheels()).open("rb") as source:
                if not copy_proven(source, to, wheel.sha256, wheel.size):
                    raise FetchError(f"{wheel.file} in the wheelhouse is not what the lock says", fix="invoke fetch")
    for file in set(folder.iterdir()) - {folder / wheel.file for wheel in wanted.lock.wheels}:
        file.unlink()


def _pack(labs: Path, names: Iterable[str], to: Path) -> None:
    """The labs in a tar that is the same wherever it is made, as Ansible copies it where it is another one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = (labs / name).stat().st_size, 0o644, int(EPOCH)
            with (labs / name).open("rb") as file:
                archive.addfile(member, file)
    partial = to.with_suffix(".partial")
    partial.write_bytes(packed.getvalue())
    partial.replace(to)


def _group(text: str) -> str:
    """A name that Ansible takes for a group: a variable's."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
