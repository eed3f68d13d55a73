"""Ansible's inventories, taken over: what a site has becomes a room's file. (The other way is in playbook.)

No Ansible is needed to read them. Formats: docs.ansible.com, "How to build your inventory", and where that is
silent, what ansible-core's plugins/inventory/ini.py and yaml.py do. Variables come in Ansible's order: ``all``, then
groups by their depth, priority and name, then the host's own.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labrig import inventory
from labrig.errors import UsageError
from labrig.inventory import LOCAL, MAX_HOSTS

SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
RANGE = re.compile(r"\[([^\[\]]*)\]")
PORT = re.compile(r"(?P<host>.+):(?P<port>[0-9]{1,5})")
JINJA = re.compile(r"\{\{|\{%")
LOOKUP = re.compile(
    r"""\{\{\s*lookup\(\s*['"](?:ansible\.builtin\.)?env['"]\s*,\s*['"]([A-Za-z_]\w*)['"]\s*\)\s*\}\}"""
)
GATEWAY = re.compile(r"\bssh\b.*\s-W\s*['\"]?\[?%h\]?:%p['\"]?")  # ProxyCommand, as it was before ProxyJump
# What a variable is called in a room's file; of several the first that a host has counts, as in Ansible.
NAMES = {
    "address": ("ansible_ssh_host", "ansible_host"),
    "port": ("ansible_ssh_port", "ansible_port"),
    "user": ("ansible_ssh_user", "ansible_user"),
    "key": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
    **{key: (f"labrig_{key}",) for key in ("target", "engine", "install", "folder", "room", "notes", "machine")},
}
ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
PASSWORDS = re.compile(r"ansible_(\w+_)?(pass|password|passphrase)")
LOGIN = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
CONNECTIONS = ("ssh", "smart", "paramiko", "paramiko_ssh", "ansible.builtin.ssh", "ansible.builtin.paramiko_ssh")
PRIORITY = "ansible_group_priority"


@dataclass
class Group:
    """A group of an Ansible inventory, as its file has it."""

    name: str
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, None] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass
class Inventory:
    """An Ansible inventory: groups, and what stands at the hosts themselves."""

    groups: dict[str, Group] = field(default_factory=dict)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)  # what was not understood
    depths: dict[str, int] = field(default_factory=dict)  # how far a group is from ``all``

    def group(self, name: str) -> Group:
        """The group of a name, made where there is none."""
        return self.groups.setdefault(name, Group(name))

    def add(self, group: str, host: str, port: int, variables: Mapping[str, Any]) -> None:
        """Put a host into a group; what is said of it later counts, but for a port behind its name."""
        self.hosts.setdefault(host, {"ansible_port": port} if port else {}).update(variables)
        if len(self.hosts) > MAX_HOSTS:
            raise UsageError("too many machines", found=f"more than {MAX_HOSTS}", fix="split the inventory")
        self.group(group).hosts[host] = None


@dataclass(frozen=True)
class Imported:
    """The text of a room's file, and what of the inventory is not in it."""

    text: str
    notes: tuple[str, ...]


def is_import(path: str, room: str, output: str) -> bool:
    """Whether the flags ask for an import. Raises UsageError where they ask for nothing, or for both."""
    if bool(path) == bool(room) or bool(output) != bool(room):
        raise UsageError(
            "say which way", found="--from, --inventory and --output do not go together so",
            fix="--from=hosts.ini > room.toml, or --inventory=room.toml --output=FOLDER",
        )  # fmt: skip
    return bool(path)


# --- import ----------------------------------------------------------------------------------------------------------


def import_room(path: Path) -> Imported:
    """An Ansible inventory, INI or YAML, as the text of a room's file.

    Raises:
        UsageError: it cannot be read, or holds a password; or what a host has cannot stand in a room's file.
    """
    found = read(path)
    notes = list(found.ignored)
    unused: dict[str, int] = {}
    tables: list[dict[str, Any]] = []
    for name in found.hosts:
        said = variables_of(found, name)
        connection = str(said.get("ansible_connection", "ssh"))
        if connection not in (*CONNECTIONS, "local"):
            notes.append(f"host {name}: ansible_connection={connection} is no ssh: left out")
            continue
        table, used, more = _table(path, name, said)
        if "room" not in table and (room := _room_of(found, name)):
            table["room"] = room
        tables.append(table)
        notes += more
        for key in set(said) - used:
            unused[key] = unused.get(key, 0) + 1
    if not tables:
        raise UsageError(f"{path} has no machines", found="; ".join(notes)[:300] or "no host", fix="name another file")
    notes += [f"{key}: of {count} hosts, no key of a room's file, left out" for key, count in sorted(unused.items())]
    for folder in ("group_vars", "host_vars"):
        if (path.parent / folder).is_dir():
            notes.append(f"{folder}/ beside it was not read: ansible-inventory -i {path.name} --list --yaml has it all")
    text = _written(path, tables, notes)
    inventory.parse(tomllib.loads(text), f"what {path.name} becomes")
    return Imported(text, tuple(notes))


def variables_of(found: Inventory, host: str) -> dict[str, Any]:
    """The variables of a host, as Ansible merges them."""
    merged: dict[str, Any] = {}
    for group in _groups_of(found, host):
        merged |= group.variables
    merged |= found.hosts[host]
    merged.pop(PRIORITY, None)
    return merged


def _groups_of(found: Inventory, host: str) -> list[Group]:
    """The groups of a host, those whose variables count last at the end."""
    names = {"all"} | {name for name, group in found.groups.items() if host in group.hosts}
    while more := {name for name, group in found.groups.items() if names & set(group.children)} - names:
        names |= more
    chosen = [found.group(name) for name in names]
    return sorted(chosen, key=lambda one: (found.depths.get(one.name, 0), _priority(one), one.name))


def _depth(found: Inventory, name: str, under: tuple[str, ...] = ()) -> int:
    """How far a group is from ``all``, by the longest way."""
    if name == "all":
        return 0
    if name in under:
        raise UsageError("the inventory's groups hold each other", found=" > ".join((*under, name)), fix="untie them")
    parents = [one for one, group in found.groups.items() if name in group.children]
    return 1 + max((_depth(found, one, (*under, name)) for one in parents), default=0)


def _priority(group: Group) -> int:
    said = str(group.variables.get(PRIORITY, 1))
    return int(said) if said.isdigit() else 1


def _room_of(found: Inventory, host: str) -> str:
    """The group that is nearest to a host, which is most likely where it stands; of several the first of the file."""
    direct = [
        name
        for name, group in found.groups.items()
        if host in group.hosts and name not in ("all", "ungrouped") and not name.startswith("labrig_")
    ]
    deepest = max((found.depths[name] for name in direct), default=0)
    return next((name for name in direct if found.depths[name] == deepest), "")


def _table(path: Path, name: str, said: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
    """A host as a [[host]] table; which variables went into it; and what was not understood."""
    _refuse_passwords(path, name, said)
    table: dict[str, Any] = {"name": name, "address": name}
    used, notes = {"ansible_connection"}, []
    for key, variables in NAMES.items():
        for variable in variables:
            if variable in said:
                used.add(variable)
                table[key] = _value(path, name, variable, said[variable])
                break
    if said.get("ansible_connection") == "local":
        table["address"] = LOCAL
    for variable in ARGUMENTS:
        if variable in said:
            used.add(variable)
            jump, left = _jump(str(_value(path, name, variable, said[variable])))
            table |= {"jump": jump} if jump else {}
            notes += [f"host {name}: {variable}: {one} left out" for one in left]
    for variable in LOGIN:
        if variable in said:
            used.add(variable)
            table["password"] = f"env:{_env(said[variable])}"
    if str(table.get("port", "")).isdigit():
        table["port"] = int(table["port"])
    if table.get("port") == 22:
        del table["port"]
    return table, used, notes


def _value(path: Path, host: str, variable: str, value: Any) -> Any:
    if isinstance(value, Vaulted) or (isinstance(value, str) and JINJA.search(value)):
        raise UsageError(
            f"{path.name}: host {host}: {variable} is known to Ansible alone",
            found="a template, or kept in a vault",
            fix="write its value; or a password by reference into the room's file",
        )
    return list(value) if isinstance(value, list) else value if isinstance(value, int) else str(value)


def _env(value: Any) -> str:
    """The variable that a password is looked up in; empty where it is something else."""
    found = LOOKUP.fullmatch(value.strip()) if isinstance(value, str) else None
    return found[1] if found else ""


def _refuse_passwords(path: Path, host: str, said: Mapping[str, Any]) -> None:
    for variable, value in said.items():
        if PASSWORDS.fullmatch(variable) and not (variable in LOGIN and _env(value)):
            raise UsageError(
                f"{path.name}: host {host}: {variable} is a password, and a room's file holds none",
                found="a password that is not shown",
                fix=f'take {variable} out and import again; then write password = "env:ROOM_PASSWORD" at the host',
            )  # fmt: skip


def _jump(arguments: str) -> tuple[str, list[str]]:
    """The machine that ssh's arguments jump through, and those arguments that mean something else."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        return "", [repr(arguments)[:80]]
    jump, left = "", []
    while words:
        word = words.pop(0)
        if word in ("-o", "-J") and words:
            word += f" {words.pop(0)}"
        option, _, value = word.removeprefix("-o").strip().partition("=")
        if word.startswith("-J"):
            jump = word[2:].strip()
        elif word.startswith("-o") and option.lower() == "proxyjump":
            jump = value
        elif word.startswith("-o") and option.lower() == "proxycommand" and GATEWAY.search(value):
            jump = _gateway(value)
        else:
            left.append(word)
    return jump, left


def _gateway(command: str) -> str:
    """The machine of ``ssh -W %h:%p [-p PORT] USER@HOST``; ssh's other options do not matter here."""
    words, port, host = shlex.split(command)[1:], "", ""
    while words:
        word = words.pop(0)
        if word == "-p" and words:
            port = words.pop(0)
        elif word in ("-W", "-o", "-i", "-l", "-F") and words:
            words.pop(0)
        elif not word.startswith("-"):
            host = word
    return f"{host}:{port}" if port else host


def _written(path: Path, tables: list[dict[str, Any]], notes: Iterable[str]) -> str:
    """The file: what all hosts have in common is the room's."""
    shared = {
        key: value
        for key, value in tables[0].items()
        if key in inventory.SHARED and all(one.get(key) == value for one in tables)
    }
    lines = [
        f"# Of {path.name}, an inventory of Ansible's, by `invoke ansible`.",
        *(f"# {_line(one)}" for one in notes),
    ]
    lines += ["", "[room]", *_pairs(shared)] if shared else []
    for table in tables:
        lines += ["", "[[host]]", *_pairs({key: value for key, value in table.items() if key not in shared})]
    return "\n".join(lines) + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers and lists of strings are TOML as well, but for one character.
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f") for key, value in table.items()
    ]


def _line(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


# --- reading ---------------------------------------------------------------------------------------------------------


class Vaulted:
    """A value that Ansible keeps encrypted, or in a form of its own (a YAML tag)."""


def read(path: Path) -> Inventory:
    """An Ansible inventory: YAML by its name or its first line, else INI.

    Raises:
        UsageError: it cannot be read, is a program, or something in it cannot be meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}", found=getattr(error, "strerror", "") or "not UTF-8") from None
    if text.startswith("#!"):
        raise UsageError(
            f"{path.name} is a program that makes an inventory", found=text.splitlines()[0][:100],
            fix=f"ansible-inventory -i {path} --list --yaml > hosts.yml, then --from=hosts.yml",
        )  # fmt: skip
    is_yaml = path.suffix in (".yml", ".yaml", ".json") or text.lstrip().startswith(("---", "all:", "{"))
    found = _read_yaml(path, text) if is_yaml else _read_ini(path, text)
    found.depths = {name: _depth(found, name) for name in found.groups}
    return found


def _read_ini(path: Path, text: str) -> Inventory:
    found, group, kind = Inventory(), "ungrouped", "hosts"
    for number, raw in enumerate(text.splitlines(), start=1):
        line, where = raw.strip(), f"{path.name}, line {number}"
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            if not (section := SECTION.fullmatch(line)) or section[2] not in (None, "hosts", "children", "vars"):
                raise UsageError(f"{where}: no section", found=line[:100], fix="[NAME], [NAME:children] or [NAME:vars]")
            group, kind = section[1], section[2] or "hosts"
            found.group(group)
        elif kind == "vars":
            key, equals, value = line.partition("=")
            if not equals:
                raise UsageError(f"{where}: no variable", found=_hidden(line), fix="write NAME=VALUE")
            found.group(group).variables[key.strip()] = _literal(value.strip())
        elif kind == "children":
            child = line.partition("#")[0].strip()
            found.group(child)
            found.group(group).children[child] = None
        else:
            _add_ini_host(found, group, line, where)
    return found


def _add_ini_host(found: Inventory, group: str, line: str, where: str) -> None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"{where}: quotes do not match", found=_hidden(line), fix=str(error)) from None
    variables: dict[str, Any] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{where}: no variable", found=_hidden(word), fix="write NAME=VALUE")
        variables[key] = _literal(value)
    pattern, port = _split_port(words[0])
    for host in expand(pattern, where):
        found.add(group, host, port, variables)


def _hidden(text: str) -> str:
    """A line as far as it can be shown: a password may stand in it."""
    return re.sub(r"=\S.*", "=...", text)[:100]


def _literal(text: str) -> Any:
    """A value as Ansible reads it in INI: Python's literals, and everything else as text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str | int | float | list | dict) else str(value)


def _read_yaml(path: Path, text: str) -> Inventory:
    import yaml

    loader: Any = type("Loader", (yaml.SafeLoader,), {})  # one of our own, so that what is added below stays ours
    loader.add_multi_constructor("!", lambda *_: Vaulted())
    try:
        data = yaml.load(text, loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path.name}{at} is no YAML", found=str(getattr(error, "problem", ""))[:200]) from None
    found = Inventory()
    if not isinstance(data, dict):
        raise UsageError(f"{path.name} is no inventory", found=type(data).__name__, fix="all: {hosts: {...}}")
    for name, body in data.items():
        _add_yaml_group(found, path, str(name), body, 0)
    return found


def _add_yaml_group(found: Inventory, path: Path, name: str, body: Any, depth: int) -> None:
    where, group = f"{path.name}: group {name}", found.group(name)
    if depth > 100:
        raise UsageError(f"{where}: too deep", found=f"{depth} groups in each other")
    for part, inner in _mapping(body, where).items():  # in the file's order: what a host is said to have later counts
        names = _mapping(inner, f"{where}: {part}") if part in ("vars", "hosts", "children") else {}
        if part == "vars":
            group.variables |= names
        elif part == "hosts":
            for pattern, said in names.items():
                _add_yaml_hosts(found, name, pattern, said, f"{where}: host {pattern}")
        elif part == "children":
            for child, below in names.items():
                group.children[child] = None
                _add_yaml_group(found, path, child, below, depth + 1)
        else:
            found.ignored.append(f"group {name}: {part} is no part of a group: left out")


def _add_yaml_hosts(found: Inventory, group: str, pattern: str, said: Any, where: str) -> None:
    host, port = _split_port(pattern)
    variables = _mapping(said, where)
    for one in expand(host, where):
        found.add(group, one, port, variables)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {value: None}  # Ansible takes the name of one host or child as well
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{where} is wrong", found=type(value).__name__, fix="write names with a colon, one a line")
    return {str(key): one for key, one in (value or {}).items()}


def _split_port(pattern: str) -> tuple[str, int]:
    """``HOST:PORT`` and ``[ADDRESS]:PORT``; an IPv6 address alone has no port."""
    if pattern.startswith("[") and (
        match := re.fullmatch(r"\[([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\](?::(\d+))?", pattern)
    ):
        return match[1], int(match[2] or 0)
    bare = RANGE.sub("", pattern)
    match = PORT.fullmatch(pattern)
    if match and bare.count(":") == 1:
        return match["host"], int(match["port"])
    return pattern, 0


def expand(pattern: str, where: str = "") -> Iterator[str]:
    """The hosts of a pattern: ``web[01:20:2]``, ``db-[a:f]``, or both in one.

    Raises:
        UsageError: a range that cannot be meant.
    """
    match = RANGE.search(pattern)
    if not match:
        if "[" in pattern or "]" in pattern:
            raise UsageError(f"{where}: no range", found=pattern[:100], fix="NAME[01:20], or NAME[a:f]")
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for one in _range(match[1], where):
        for rest in expand(after, where):
            yield f"{before}{one}{rest}"


def _range(text: str, where: str) -> Iterator[str]:
    wrong = UsageError(f"{where}: no range", found=f"[{text[:100]}]", fix="[01:20], [1:20:2] or [a:f]")
    first, colon, rest = text.partition(":")
    last, _, step = rest.partition(":")
    if not colon or not last or (step and not step.isdigit()) or step == "0":
        raise wrong
    first = first or "0"
    if first.isdigit() and last.isdigit():
        width = len(first) if first.startswith("0") and len(first) > 1 else 0
        if width and len(last) != width:
            raise wrong  # as in Ansible: 01:100 is refused
        numbers = range(int(first), int(last) + 1, int(step or 1))
        yield from (f"{number:0{width}d}" for number in numbers)
    elif len(first) == len(last) == 1 and first in string.ascii_letters and last in string.ascii_letters:
        letters = string.ascii_letters
        yield from letters[letters.index(first) : letters.index(last) + 1 : int(step or 1)]
    else:
        raise wrong
