"""A room's verify without a room: flags, exit codes, what a log gets, how OpenSSH is told to reach a host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labrig.errors import DistributeError, PendingError, UsageError
from labrig.fleet import DRIFT, FAILED, OK, STATES, TIMEOUT, UNREACHABLE, Row, audit, suite
from labrig.fleet.audit import Found, Wish
from labrig.fleet.report import Report
from labrig.inventory import Entry, Room

ENTRY = Entry(
    "pc01", None, "cpu", "", "", "10.0.7.11", user="admin", port=2201, key=Path("/home/a b/key"),
    jump="admin@gateway:2200"
)  # fmt: skip
ROOM = Room(Path("/etc/room.toml"), (ENTRY,), "", Path("/etc/a room.known_hosts"))


def found(*states: str, wish: Wish = Wish()) -> Found:  # noqa: B008 - frozen
    rows = tuple(Row(f"pc{n:02}", state=state, why="" if state == OK else "why") for n, state in enumerate(states))
    return Found(Report("room.toml", datetime(2026, 1, 1, tzinfo=UTC), 1.0, rows), wish)


def test_flags_without_a_value() -> None:
    assert audit.read_wish(False, True, "", "", True, 0.0, "", "") == Wish(watch=audit.INTERVAL, deep="sample")
    assert audit.read_wish(True, "5", "pc01", "quick", "all", 9.0, "a", "b") == Wish(
        True, "pc01", "quick", "all", 9.0, 5.0, "a", "b"
    )
    assert audit.read_wish(False, "", "", "", "", 0.0, "", "") == Wish()


@pytest.mark.parametrize(
    "wrong",
    [{"watch": "soon"}, {"watch": "-1"}, {"watch": "nan"}, {"labs": "full"}, {"deep": "some"}, {"budget": -1.0},
     {"budget": float("inf")}],
)  # fmt: skip
def test_flags_that_mean_nothing(wrong: dict[str, object]) -> None:
    flags = {
        "only_bad": False,
        "watch": "",
        "limit": "",
        "labs": "",
        "deep": "",
        "budget": 0.0,
        "junit": "",
        "html": "",
    }
    with pytest.raises(UsageError):
        audit.read_wish(**(flags | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["junit", "html"])
@pytest.mark.parametrize("place", ["absent/room.out", "file/room.out", "folder"])
def test_where_no_file_can_be_is_said_before_hosts_are_asked(tmp_path: Path, flag: str, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    flags = {"junit": "", "html": "", flag: str(tmp_path / place)}
    with pytest.raises(UsageError, match=f"--{flag}=.* cannot be written"):
        audit.read_wish(False, "", "", "", "", 0.0, **flags)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]
    flags[flag] = str(tmp_path / "folder" / "room.out")
    assert audit.read_wish(False, "", "", "", "", 0.0, **flags) == Wish(**flags)


def test_a_room_or_this_machine() -> None:
    for inventory, host in (("room.toml", "@local"), ("", "pc01")):
        with pytest.raises(UsageError, match="--host"):
            audit.verify(Path(), inventory, host, Wish())


def test_flags_of_a_room_and_of_one_environment() -> None:
    audit.require_sense("", Wish(), one=True, json=True)
    audit.require_sense("room.toml", Wish(watch=1.0), one=False, json=False)
    for inventory, wish, one, json in (
        ("room.toml", Wish(), True, False),
        ("", Wish(only_bad=True), False, False),
        ("room.toml", Wish(watch=1.0), False, True),
        ("room.toml", Wish(watch=1.0, labs="quick"), False, False),
        ("room.toml", Wish(watch=1.0, deep="all"), False, False),
    ):
        with pytest.raises(UsageError):
            audit.require_sense(inventory, wish, one=one, json=json)


def test_exit_codes() -> None:
    found(OK, OK).raise_for_failures()
    with pytest.raises(PendingError):
        found(OK, DRIFT).raise_for_failures()
    for state in (FAILED, UNREACHABLE, TIMEOUT):
        with pytest.raises(DistributeError):
            found(OK, DRIFT, state).raise_for_failures()
    with pytest.raises(DistributeError, match="not OK: 12 of 12") as raised:
        found(*[FAILED] * 12).raise_for_failures()
    assert "and 4 more" in raised.value.found


def test_only_bad_leaves_the_tally_whole() -> None:
    bad = found(*STATES, wish=Wish(only_bad=True))
    assert [row["state"] for row in bad.to_json()["rows"]] == list(STATES[1:])
    assert bad.to_json()["tally"] == dict.fromkeys(STATES, 1)
    assert "pc00" not in bad.text() and "of 5 in 1.0 s" in bad.text()
    assert found(OK, wish=Wish(only_bad=True)).text() == "1 OK of 1 in 1.0 s"


def test_a_log_gets_changes_only() -> None:
    assert audit.changes(None, found(OK, TIMEOUT)) == ["pc01: TIMEOUT why"]
    assert audit.changes(found(OK, TIMEOUT, OK), found(DRIFT, TIMEOUT, OK)) == ["pc00: OK -> DRIFT why"]
    assert audit.changes(found(OK, TIMEOUT), found(OK, OK)) == ["pc01: TIMEOUT -> OK"]


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """~/.ssh/config of somebody who has none yet."""
    from pyinfra.connectors.sshuserclient import client

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    client.get_ssh_config.cache.clear()
    yield tmp_path / ".ssh" / "config"
    client.get_ssh_config.cache.clear()


def openssh(entry: Entry, name: str, folder: Path) -> dict[str, str]:
    """What OpenSSH itself would do: ssh -G prints it; several keys with a line end."""
    config = folder / "config"
    config.write_text(suite.ssh_config(ROOM, entry, folder / "s"))
    done = subprocess.run(["ssh", "-F", str(config), "-G", name], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    asked: dict[str, str] = {}
    for key, _, value in (line.partition(" ") for line in done.stdout.splitlines()):
        asked[key] = f"{asked[key]}\n{value}" if key in asked else value
    return asked


def test_openssh_understands_how_a_host_is_reached(tmp_path: Path, own_config: Path) -> None:
    for name in ("pc01", suite.GATEWAY):
        asked = openssh(ENTRY, name, tmp_path)
        assert asked["stricthostkeychecking"] == "true" and asked["batchmode"] == "yes", asked
        assert asked["forwardagent"] == "no" and asked["userknownhostsfile"] == "/etc/a room.known_hosts"
        assert asked["serveraliveinterval"] == "2" and asked["identityfile"] == "/home/a b/key"
        if name == "pc01":
            assert (asked["hostname"], asked["port"], asked["user"]) == ("10.0.7.11", "2201", "admin")
            assert asked["proxyjump"] == suite.GATEWAY and asked["identitiesonly"] == "yes"
            assert asked["controlpath"] == str(tmp_path / "s")
        else:
            assert (asked["hostname"], asked["port"], asked["user"]) == ("gateway", "2200", "admin")
            assert "proxyjump" not in asked and "controlpath" not in asked and asked["identitiesonly"] == "no"


def test_openssh_is_told_what_the_own_configuration_says(tmp_path: Path, own_config: Path) -> None:
    own_config.write_text(
        "Host short\n  HostName 10.0.7.12\n  Port 2202\n  User me\n  IdentityFile ~/.ssh/lab\n"
        "  ProxyJump first,you@gate:2200\n"
        "Host gateway\n  HostName 10.0.7.1\n  User nobody\n  IdentityFile ~/.ssh/gate\n  ProxyCommand nc %h 100%%\n"
    )
    (tmp_path / ".ssh" / "id_rsa").touch()
    alone = openssh(replace(ENTRY, address="short", port=22, user="", key=None, jump=""), "pc01", tmp_path)
    assert (alone["hostname"], alone["port"], alone["user"]) == ("10.0.7.12", "2202", "me")
    assert alone["identityfile"].split("\n") == [str(tmp_path / ".ssh" / name) for name in ("lab", "id_rsa")]
    assert alone["proxycommand"].endswith("-J first ssh://you@gate:2200 -W '[%h]:%p'"), alone
    assert f"-F {own_config} " in alone["proxycommand"]
    both = replace(ENTRY, address="short", jump="gateway")
    behind, gate = (openssh(both, name, tmp_path) for name in ("pc01", suite.GATEWAY))
    assert behind["proxyjump"] == suite.GATEWAY and "proxycommand" not in behind and behind["port"] == "2201"
    assert behind["identityfile"] == "/home/a b/key" and behind["user"] == "admin"
    assert (gate["hostname"], gate["port"], gate["user"]) == ("10.0.7.1", "22", "nobody")
    keys = ["/home/a b/key", *(str(tmp_path / ".ssh" / name) for name in ("gate", "id_rsa"))]
    assert gate["identityfile"].split("\n") == keys and gate["proxycommand"] == "nc 10.0.7.1 100%%"


def test_an_apply_is_no_way_out_where_ssh_does_not_get_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    wanted = SimpleNamespace(environment="cpu-0", target=None, lock=None)
    plans: Any = [SimpleNamespace(entry=ENTRY, wanted=wanted)]
    checked = suite.run(ROOM, plans, budget=5)["pc01"]
    assert checked.record is None and checked.why == "checks: no ssh on this machine"
    row = audit._proven(Row("pc01", state=OK), checked, "invoke provision")
    assert (row.state, row.fix) == (FAILED, "install openssh-client")


def test_hosts_that_the_checks_leave_out_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = SimpleNamespace(engine="venv", target=SimpleNamespace(name="cpu"), platform="linux_x86_64")
    locked = replace(ENTRY, name="pc02", password="env:ROOM_PASSWORD")  # noqa: S106 - a reference
    plans: Any = [SimpleNamespace(entry=entry, wanted=wanted) for entry in (locked, ENTRY)]
    assert [one.entry.name for one in suite.sample(plans, everywhere=False)] == ["pc01"]
    assert capsys.readouterr().err == "checks: not on hosts with a password, only with keys: pc02\n"


def test_a_key_of_nobody_is_openssh_s_own_choice(own_config: Path) -> None:
    words = suite.ssh_config(ROOM, replace(ENTRY, key=None, user="", jump=""), Path("/s"))
    assert "Identit" not in words and "User " not in words and "ProxyJump" not in words
