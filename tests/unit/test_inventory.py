"""Inventories for ssh: what is taken, what is refused and where; descriptions alone are in test_description."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig import inventory
from labrig.errors import UsageError
from labrig.inventory import Room

ROOM = """\
[room]
user = "admin"
cache = "10.0.7.1:5000"
password = "env:ROOM_PASSWORD"

[[host]]
name = "pc01"
address = "10.0.7.11"

[[host]]
name = "pc02"
address = "pc02.lab.example"
port = 2222
user = "root"
engine = "docker"
install = ["docker", "nvidia"]
key = "~/.ssh/lab"
jump = "admin@gateway:22"
folder = "/srv/labrig/"
"""


def read(folder: Path, text: str) -> Room:
    file = folder / "room.toml"
    file.write_text(text)
    return inventory.read(file)


def test_what_a_room_says_holds_for_hosts_that_say_nothing_else(tmp_path: Path) -> None:
    room = read(tmp_path, ROOM)
    first, second = room.hosts
    assert (room.cache, room.known_hosts) == ("10.0.7.1:5000", tmp_path / "room.known_hosts")
    assert (first.user, first.port, first.engine, first.target, first.folder) == (
        "admin",
        22,
        "auto",
        "auto",
        "/opt/labrig",
    )
    assert (second.user, second.port, second.engine, second.install) == ("root", 2222, "docker", ("docker", "nvidia"))
    assert (second.key, second.jump, second.folder) == (Path.home() / ".ssh/lab", "admin@gateway:22", "/srv/labrig")
    assert inventory.parse({"host": [{"name": "a", "address": "fe80::1%eth0"}]}, "x")[0].address == "fe80::1%eth0"
    assert (first.machine, first.line, second.line) == (None, 6, 10)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"10.0.7.11"', '"10.0.7.300"', "line 8: [[host]] 1 (pc01): address is wrong"),
        ('"10.0.7.11"', '"2222"', "address is wrong"),
        ('"10.0.7.11"', '"admin@10.0.7.11"', "address is wrong"),
        ('"10.0.7.11"', '"-oProxyCommand=x"', "address is wrong"),
        ('"10.0.7.11"', '["a", "b"]', "address is wrong"),
        ('"10.0.7.11"', '"fe80::1%$(reboot)"', "address is wrong"),
        (
            '"10.0.7.11"',
            '"PC02.lab.example"\nport = 2222\njump = "admin@gateway:22"',
            "line 14: [[host]] 2 (pc02): at the address of pc01",
        ),
        ("port = 2222", "port = 0", "line 13: [[host]] 2 (pc02): port is wrong"),
        ("port = 2222", 'port = "22"', "port is wrong"),
        ("port = 2222", "port = true", "port is wrong"),
        ('"root"', '"root; reboot"', "user is wrong"),
        ('"docker"\n', '"podman"\n', "engine is wrong"),
        ('"nvidia"', '"cuda"', "install is wrong"),
        ('"/srv/labrig/"', '"srv"', "folder is wrong"),
        ('"/srv/labrig/"', '"/srv/../etc"', "folder is wrong"),
        ('"/srv/labrig/"', '"/"', "folder is wrong"),
        ('"/srv/labrig/"', '"/srv/$(reboot)"', "folder is wrong"),
        ('"admin@gateway:22"', '"-J x"', "jump is wrong"),
        ('cache = "10.0.7.1:5000"', 'cache = "http://10.0.7.1"', "[room]: cache is wrong"),
        ('user = "admin"', 'usr = "admin"', "line 2: [room]: unknown key 'usr'"),
        ('user = "admin"', 'user = "a b"', "line 2: [room]: user is wrong"),
        ('"pc02"', '"pc01"', "line 11: [[host]] 2 (pc01): a second host 'pc01'\n  found: the first is in line 7"),
        ('"pc01"', '"pc 1"', "line 7: [[host]] 1: name is wrong"),
        ('name = "pc01"', '"name" = 5', "line 7: [[host]] 1: name is wrong"),
        ("[room]", "[[room]]", "[room] is wrong"),
        ('address = "10.0.7.11"\n', "", "line 6: [[host]] 1 (pc01): neither address nor machine"),
        ('name = "pc01"\n', 'name = "pc01"\nadress = "x"\n', "line 8: [[host]] 1 (pc01): unknown key 'adress'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in ROOM
    with pytest.raises(UsageError) as error:
        read(tmp_path, ROOM.replace(old, new, 1))
    assert says in str(error.value), str(error.value)


def test_a_password_is_a_reference_and_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = read(tmp_path, ROOM).hosts[0]
    monkeypatch.setenv("ROOM_PASSWORD", "geheim")
    assert inventory.password_of(entry) == "geheim" and "ROOM_PASSWORD" not in repr(entry)
    monkeypatch.delenv("ROOM_PASSWORD")
    with pytest.raises(UsageError, match="the variable ROOM_PASSWORD is empty or not set"):
        inventory.password_of(entry)
    (tmp_path / "secret").write_text("geheim\n")
    from_file = read(tmp_path, ROOM.replace("env:ROOM_PASSWORD", f"file:{tmp_path}/secret")).hosts[0]
    assert inventory.password_of(from_file) == "geheim"
    (tmp_path / "secret").unlink()
    with pytest.raises(UsageError, match="cannot read the file"):
        inventory.password_of(from_file)


@pytest.mark.parametrize("value", ['"4711"', "4711", "4711.5", "true, 4711", "[4711]", "{ is = 4711 }", '"file:"'])
def test_what_stands_at_password_is_never_shown(tmp_path: Path, value: str) -> None:
    of_room = ROOM.replace('"env:ROOM_PASSWORD"', value)
    for text in (of_room, of_room.replace("[room]", "[[room]]"), f"{ROOM}password = {value}\n"):
        with pytest.raises(UsageError) as error:
            read(tmp_path, text)
        assert "4711" not in str(error.value)


def test_both_lines_of_an_address_that_is_there_twice(tmp_path: Path) -> None:
    text = ROOM.replace("port = 2222", "").replace("pc02.lab.example", "10.0.7.11").replace("jump =", "notes =")
    with pytest.raises(UsageError, match=r"line 12: \[\[host]] 2 \(pc02\).* of pc01\n.*pc01 is in line 8"):
        read(tmp_path, text)


def test_as_many_hosts_as_there_may_be_and_one_more(tmp_path: Path) -> None:
    def hosts(count: int) -> str:
        return "".join(
            f'[[host]]\nname = "h{n}"\naddress = "10.{n // 65536}.{n // 256 % 256}.{n % 256}"\n' for n in range(count)
        )

    assert len(read(tmp_path, hosts(inventory.MAX_HOSTS)).hosts) == inventory.MAX_HOSTS
    with pytest.raises(UsageError, match=r"line 30001: \[\[host]] 10001: too many machines"):
        read(tmp_path, hosts(inventory.MAX_HOSTS + 1))


@given(st.text(max_size=40))
def test_an_address_has_nothing_that_a_command_would_read_otherwise(text: str) -> None:
    try:
        [entry] = inventory.parse({"host": [{"name": "a", "address": text}]}, "room.toml")
    except UsageError:
        return
    assert entry.address == inventory.LOCAL or all(one.isalnum() or one in ".:-_%" for one in entry.address)
    assert not entry.address.startswith("-")
