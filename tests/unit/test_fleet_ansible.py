"""Ansible's inventories: read as ansible-core reads them (its own answers stand below), written as it takes them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import courses
import pytest
import samples
import yaml

from labrig import inventory, published
from labrig.errors import UsageError
from labrig.fleet import Row, ansible, apply, playbook

INI = """\
# a room
alone ansible_host=10.0.0.9

[labs]
pc[01:03] ansible_user=teacher   # the teachers' own
web-[a:c].example.org ansible_port=2222
gpu1 ansible_host=10.0.0.5 ansible_ssh_private_key_file="~/.ssh/lab key" \
ansible_ssh_common_args='-o ProxyJump=admin@gateway:2200 -o StrictHostKeyChecking=no'
old:2200

[labs:vars]
ansible_user = admin
ntp_server=time.example.org

[all:vars]
ansible_port=22

[school:children]
labs
servers

[servers]
box ansible_connection=local
"""
# `ansible-inventory --list` of ansible-core 2.19.14, of the text above: hostvars.
ANSIBLE_SAYS: dict[str, dict[str, Any]] = {
    "alone": {"ansible_host": "10.0.0.9", "ansible_port": 22},
    "box": {"ansible_connection": "local", "ansible_port": 22},
    "gpu1": {
        "ansible_host": "10.0.0.5",
        "ansible_port": 22,
        "ansible_ssh_common_args": "-o ProxyJump=admin@gateway:2200 -o StrictHostKeyChecking=no",
        "ansible_ssh_private_key_file": "~/.ssh/lab key",
        "ansible_user": "admin",
        "ntp_server": "time.example.org",
    },
    "old": {"ansible_port": 2200, "ansible_user": "admin", "ntp_server": "time.example.org"},
    **{
        f"pc{n:02}": {"ansible_port": 22, "ansible_user": "teacher", "ntp_server": "time.example.org"}
        for n in range(1, 4)
    },
    **{
        f"web-{one}.example.org": {"ansible_port": 2222, "ansible_user": "admin", "ntp_server": "time.example.org"}
        for one in "abc"
    },
}
YAML = """\
all:
  vars: {ansible_user: admin, n: 1}
  hosts:
    alone: {ansible_host: 10.0.0.9}
  children:
    labs:
      vars: {ansible_port: 2222}
      hosts:
        pc[01:02]:
        gpu1: {ansible_host: 10.0.0.5, ansible_port: 22}
      children:
        back:
          hosts: {z1: null}
          vars: {ansible_user: bob}
"""
YAML_SAYS: dict[str, dict[str, Any]] = {  # the same of this one
    "alone": {"ansible_host": "10.0.0.9", "ansible_user": "admin", "n": 1},
    "pc01": {"ansible_port": 2222, "ansible_user": "admin", "n": 1},
    "pc02": {"ansible_port": 2222, "ansible_user": "admin", "n": 1},
    "gpu1": {"ansible_host": "10.0.0.5", "ansible_port": 22, "ansible_user": "admin", "n": 1},
    "z1": {"ansible_port": 2222, "ansible_user": "bob", "n": 1},
}


def write(tmp_path: Path, text: str, name: str = "hosts.ini") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def room(tmp_path: Path, text: str, name: str = "hosts.ini") -> dict[str, inventory.Entry]:
    """The machines of the imported room, read as any other room."""
    (tmp_path / "room.toml").write_text(ansible.import_room(write(tmp_path, text, name)).text)
    return {entry.name: entry for entry in inventory.read(tmp_path / "room.toml").hosts}


@pytest.mark.parametrize(("text", "name", "says"), [(INI, "h.ini", ANSIBLE_SAYS), (YAML, "h.yml", YAML_SAYS)])
def test_variables_are_as_ansible_merges_them(
    tmp_path: Path, text: str, name: str, says: dict[str, dict[str, Any]]
) -> None:
    found = ansible.read(write(tmp_path, text, name))
    assert {host: ansible.variables_of(found, host) for host in found.hosts} == says


def test_an_inventory_becomes_a_room(tmp_path: Path) -> None:
    hosts = room(tmp_path, INI)
    assert [*hosts][:3] == ["alone", "pc01", "pc02"] and len(hosts) == 10
    gpu = hosts["gpu1"]
    assert (gpu.address, gpu.user, gpu.port, gpu.jump) == ("10.0.0.5", "admin", 22, "admin@gateway:2200")
    assert gpu.key == Path("~/.ssh/lab key").expanduser() and gpu.room == "labs"
    assert (hosts["old"].port, hosts["box"].address, hosts["alone"].room) == (2200, inventory.LOCAL, "")


def test_what_is_common_stands_once(tmp_path: Path) -> None:
    text = ansible.import_room(write(tmp_path, "[labs]\npc[1:9] ansible_user=admin labrig_target=cpu\n")).text
    assert text.count("admin") == text.count('"cpu"') == text.count('"labs"') == 1
    assert {one.target for one in inventory.parse(tomllib.loads(text), "room")} == {"cpu"}


def test_what_is_not_taken_over_is_said(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    found = ansible.import_room(write(tmp_path, INI + "\n[win]\nw1 ansible_connection=winrm\n"))
    said = "\n".join(found.notes)
    for part in ("w1: ansible_connection=winrm", "StrictHostKeyChecking=no", "ntp_server: of 8 hosts", "group_vars/"):
        assert part in said
    assert all(f"# {note}" in found.text for note in found.notes)
    odd = ansible.import_room(write(tmp_path, "all: {hosts: {a: }, strange: {b: 1}}", "h.yml"))
    assert "strange" in "".join(odd.notes)


@pytest.mark.parametrize(
    "line",
    [
        "a ansible_password=geheim",
        "a ansible_ssh_pass=geheim",
        "a ansible_become_password=geheim",
        "a\n[all:vars]\nansible_ssh_pass=geheim",
        "a ansible_ssh_private_key_passphrase=geheim",
    ],
)
def test_a_password_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match="is a password") as refused:
        ansible.import_room(write(tmp_path, line))
    assert "geheim" not in str(refused.value) and "env:" in refused.value.fix


def test_a_password_in_a_vault_is_refused_as_well(tmp_path: Path) -> None:
    text = "all:\n  hosts:\n    a:\n      ansible_password: !vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6161\n"
    with pytest.raises(UsageError, match="is a password"):
        ansible.import_room(write(tmp_path, text, "h.yml"))


def test_a_password_by_reference_stays_one(tmp_path: Path) -> None:
    text = "all: {hosts: {a: {ansible_password: \"{{ lookup('env', 'ROOM_PASSWORD') }}\"}}}"
    assert room(tmp_path, text, "h.yml")["a"].password == "env:ROOM_PASSWORD"  # noqa: S105


@pytest.mark.parametrize(
    ("arguments", "jump"),
    [
        ("-J gw", "gw"),
        ("-Jme@gw:22", "me@gw:22"),
        ("-o ProxyJump=gw", "gw"),
        ("-oproxyjump=gw", "gw"),
        ('-o ProxyCommand="ssh -W %h:%p -q -p 2200 -i k me@gw"', "me@gw:2200"),
        ("-o ProxyCommand='nc -X connect %h %p'", ""),
    ],
)
def test_the_way_through_another_machine(tmp_path: Path, arguments: str, jump: str) -> None:
    text = f"all: {{hosts: {{a: {{ansible_ssh_common_args: {arguments!r}}}}}}}".replace("\\'", "''")
    found = ansible.import_room(write(tmp_path, text, "h.yml"))
    assert tomllib.loads(found.text).get("room", {}).get("jump", "") == jump
    assert bool(found.notes) == (not jump)


@pytest.mark.parametrize(
    ("pattern", "hosts"),
    [
        ("web[1:3]", ["web1", "web2", "web3"]),
        ("web[08:10]", ["web08", "web09", "web10"]),
        ("web[0:6:3]x", ["web0x", "web3x", "web6x"]),
        ("db[a:c]-[1:2]", ["dba-1", "dba-2", "dbb-1", "dbb-2", "dbc-1", "dbc-2"]),
        ("plain", ["plain"]),
    ],
)
def test_ranges(pattern: str, hosts: list[str]) -> None:
    assert [*ansible.expand(pattern)] == hosts


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("web[1:]", "h.ini", "no range"),
        ("web[01:100]", "h.ini", "no range"),
        ("web[a:10]", "h.ini", "no range"),
        ("web[1:5:0]", "h.ini", "no range"),
        ("web[1", "h.ini", "no range"),
        ("web[0:99999999]", "h.ini", "too many machines"),
        ("[labs:strange]\na", "h.ini", "line 1: no section"),
        ("a b=1\na 'b=2", "h.ini", "line 2: quotes"),
        ("a word", "h.ini", "line 1: no variable"),
        ("[a:children]\nb\n[b:children]\na\n[b]\nx", "h.ini", "hold each other"),
        ("all: [", "h.yml", "line 1 is no YAML"),
        ("- a", "h.yml", "no inventory"),
        ("all: {hosts: [a]}", "h.yml", "hosts is wrong"),
        ("#!/usr/bin/python3\n", "h.py", "is a program"),
        ("", "h.ini", "no machines"),
        ("a ansible_port=99999", "h.ini", "port is wrong"),
        ("a ansible_host='{{ secret_host }}'", "h.ini", "known to Ansible alone"),
        ("a ansible_host=10.0.0.1\nb ansible_host=10.0.0.1", "h.ini", "the address of a"),
        ("a_-b- ansible_host=10.0.0.1", "h.ini", "name is wrong"),
    ],
)
def test_what_cannot_be_meant_is_said(tmp_path: Path, text: str, name: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ansible.import_room(write(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        ansible.import_room(tmp_path / "none")


def test_texts_cannot_break_out_of_their_quotes(tmp_path: Path) -> None:
    nasty = '"\n[[host]]\nname = "x" # \\ \x7f'
    text = json.dumps({"all": {"hosts": {"a": {"labrig_notes": nasty}}, "vars": {"b\nc": 1}}})
    hosts = room(tmp_path, text, "h.json")
    assert [*hosts] == ["a"] and hosts["a"].notes == nasty


# --- export ----------------------------------------------------------------------------------------------------------


ROOM = """\
[room]
cache = "10.0.7.1:5000"
user = "admin"
[[host]]
name = "pc1"
address = "10.0.7.11"
target = "cpu"
engine = "venv"
room = "E1.07"
key = "/keys/lab key"
jump = "admin@gateway:2200"
[[host]]
name = "pc2"
address = "10.0.7.12"
target = "cpu"
engine = "docker"
port = 2222
password = "env:ROOM_PASSWORD"
install = ["docker"]
[[host]]
name = "here"
address = "@local"
target = "cpu"
engine = "venv"
folder = "/srv/labrig"
"""


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A room, and the folder that it was exported to."""
    checkout = courses.make(tmp_path)
    monkeypatch.setenv("LABRIG_CACHE", str(checkout.cache))
    monkeypatch.setenv("ROOM_PASSWORD", "geheim")
    published.keep(checkout.root / "images", samples.published("cpu"))
    files = playbook.export(checkout.root, write(tmp_path, ROOM, "room.toml"), tmp_path / "out")
    assert all(file.is_file() for file in files)
    return tmp_path / "out"


def test_an_export_comes_back_as_the_same_room(exported: Path, tmp_path: Path) -> None:
    before = inventory.read(tmp_path / "room.toml").hosts
    (tmp_path / "back.toml").write_text(ansible.import_room(exported / "hosts.yml").text)
    after = {one.name: one for one in inventory.read(tmp_path / "back.toml").hosts}
    assert {one.name: replace(one, line=0) for one in before} == {n: replace(one, line=0) for n, one in after.items()}


def test_every_variable_of_the_playbook_is_known_of_every_host(exported: Path) -> None:
    found = ansible.read(exported / "hosts.yml")
    for play in yaml.safe_load((exported / "playbook.yml").read_text()):
        used = set(re.findall(r"\blabrig_[a-z]+\b", yaml.safe_dump(play["tasks"])))
        used |= set(re.findall(r"\blabrig_[a-z]+\b", str(play.get("vars", ""))))
        for engine in play["hosts"].split(":"):
            for child in found.groups[engine].children:
                for host in found.groups[child].hosts:
                    assert used <= set(ansible.variables_of(found, host)), host


def test_an_export_has_what_the_playbook_copies(exported: Path, tmp_path: Path) -> None:
    kind = exported / "files" / "labrig_cpu_venv_linux_x86_64"
    assert {file.name for file in kind.iterdir()} == {"start", "applied.json", "requirements.txt"}
    wheels = [*(exported / "wheels").glob("*/*.whl")]
    lines = (kind / "requirements.txt").read_text().splitlines()
    assert {hashlib.sha256(one.read_bytes()).hexdigest() for one in wheels} == {
        line.partition("sha256:")[2] for line in lines
    }
    assert all(one.stat().st_nlink == 1 for one in wheels), "no file is shared with the wheelhouse"
    sums = dict(reversed(line.split("  ")) for line in (exported / "files" / "labs.sha256").read_text().splitlines())
    with tarfile.open(exported / "files" / "labs.tar") as archive:
        packed = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()} == sums


def test_an_export_holds_no_password_and_strict_host_keys(exported: Path) -> None:
    text = "".join(file.read_text() for file in exported.rglob("*") if file.suffix in (".yml", ".cfg", ".json"))
    assert "geheim" not in text and "lookup(''env'', ''ROOM_PASSWORD'')" in text
    assert text.count("StrictHostKeyChecking=yes") == 3 and "host_key_checking = True" in text


def test_openssh_takes_the_way_through_another_machine(exported: Path, tmp_path: Path) -> None:
    """ProxyJump would hand neither the host keys nor the key to the ssh that reaches that machine."""
    said = ansible.variables_of(ansible.read(exported / "hosts.yml"), "pc1")["ansible_ssh_common_args"]
    known = f"{tmp_path}/room.known_hosts"
    way = openssh([*shlex.split(said), "10.0.7.11"])
    assert way["userknownhostsfile"] == known and way["stricthostkeychecking"] == "true"
    words = shlex.split(way["proxycommand"].replace("%h", "10.0.7.11").replace("%p", "22").replace("%%", "%"))
    gate = openssh(words[1:])
    assert (gate["hostname"], gate["port"], gate["user"]) == ("gateway", "2200", "admin")
    assert gate["userknownhostsfile"] == known and words[words.index("-i") + 1] == "/keys/lab key"
    assert gate["stricthostkeychecking"] == "true" and gate["forwardagent"] == "no"


def openssh(words: list[str]) -> dict[str, str]:
    """What ssh -G says that it would do."""
    done = subprocess.run(["ssh", "-F", "none", "-G", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return {key: value for key, _, value in (line.partition(" ") for line in done.stdout.splitlines())}


def test_whoever_gets_docker_may_use_it_before_it_is_used(exported: Path) -> None:
    tasks = yaml.safe_load((exported / "playbook.yml").read_text())[1]["tasks"]
    install = next(n for n, task in enumerate(tasks) if task.get("become"))
    assert "labrig_install" in tasks[install]["when"] and "engine.rc" in tasks[install]["when"]
    brought = tasks[install]["block"][0]
    assert brought["when"] == "dockerd.rc != 0" and brought["ansible.builtin.apt"]["fail_on_autoremove"] is True
    joined = tasks[install]["block"][-1]["ansible.builtin.user"]
    assert joined["groups"] == ["docker"] and joined["append"] is True
    assert tasks[install + 1]["ansible.builtin.meta"] == "reset_connection"
    uses = [n for n, task in enumerate(tasks) if task.get("ansible.builtin.command", {}) and "images" in str(task)]
    assert uses and min(uses) > install + 1


def test_an_export_needs_to_know_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = courses.make(tmp_path)
    monkeypatch.setenv("LABRIG_CACHE", str(checkout.cache))
    file = write(tmp_path, '[[host]]\nname = "pc1"\naddress = "10.0.7.11"\n', "room.toml")
    with pytest.raises(UsageError, match="pc1: what it should have is not known"):
        playbook.export(checkout.root, file, tmp_path / "out")
    apply.keep_run(inventory.read(file), [Row("pc1", target="cpu", engine="venv", state="OK")])
    playbook.export(checkout.root, file, tmp_path / "out")
    assert "labrig_cpu_venv_linux_x86_64" in (tmp_path / "out" / "hosts.yml").read_text()


@pytest.mark.parametrize(
    "flags", [("", "", ""), ("a", "b", "c"), ("a", "", "c"), ("", "b", ""), ("", "", "c"), ("a", "b", "")]
)
def test_flags_say_one_way(flags: tuple[str, str, str]) -> None:
    with pytest.raises(UsageError, match="which way"):
        ansible.is_import(*flags)
    assert ansible.is_import("a", "", "") and not ansible.is_import("", "b", "c")
