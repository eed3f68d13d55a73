"""What of `invoke provision` needs no host: which are chosen, and what is made of an odd answer."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from labrig.errors import DistributeError, Interrupted, PendingError, UsageError
from labrig.fleet import DRIFT, FAILED, OK, UNREACHABLE, Row, apply, ssh
from labrig.inventory import Entry, Room


def room(count: int) -> Room:
    hosts = [
        Entry(f"h{n}", None, "auto", f"E{n % 2}", "", f"10.0.{n // 256}.{n % 256}", line=2 * n + 1)
        for n in range(count)
    ]
    return Room(Path("room.toml"), tuple(hosts), "", Path("room.known_hosts"))


def test_more_hosts_than_one_run_takes_are_refused_with_the_line() -> None:
    most = apply.MOST_HOSTS
    assert len(apply.select(room(most), "")) == most
    with pytest.raises(UsageError, match=f"line {2 * most + 1} of room.toml: host {most + 1} of {most + 2}"):
        apply.select(room(most + 2), "")
    assert len(apply.select(room(most + 2), "h1,h2")) == 2
    with pytest.raises(UsageError, match="no host 'room:E7'"):
        apply.select(room(4), "room:E7")


def test_whatever_an_answer_makes_go_wrong_is_one_row() -> None:
    def judge() -> Row:
        raise OverflowError("int too large to convert to float")

    def interrupt() -> Row:
        raise Interrupted("Ctrl-C")

    with pytest.raises(Interrupted):
        apply.judged(room(1).hosts[0], 1.0, interrupt)
    row = apply.judged(room(1).hosts[0], 1.0, judge)
    assert (row.host, row.state) == ("h0", FAILED) and "OverflowError" in row.why


def test_how_a_plan_and_an_apply_end(capsys: pytest.CaptureFixture[str]) -> None:
    good, drift, away = (
        Row("a", state=OK),
        Row("b", state=DRIFT, changes=("labs: 1",), size=9),
        Row("c", state=UNREACHABLE),
    )
    apply.require_planned([good])
    apply.require_applied([good])
    with pytest.raises(PendingError, match="changes are pending on 1 host of 2"):
        apply.require_planned([good, drift])
    with pytest.raises(DistributeError) as planned:
        apply.require_planned([good, drift, away])
    assert "1 host cannot be planned" in str(planned.value) and "@failed" not in str(planned.value)
    with pytest.raises(DistributeError, match="2 hosts not as they should be") as applied:
        apply.require_applied([good, drift, away])
    assert "--limit=@failed" in applied.value.fix
    apply.show([good], planned=False)
    assert capsys.readouterr().out == "1 OK of 1; 0 with changes, 0 bytes sent\n"
    apply.show([good, drift], planned=True)
    assert "labs: 1" in (out := capsys.readouterr().out) and out.endswith("1 with changes, 9 bytes to send\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_table_is_drawn_seldom_and_is_no_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much happens between two drawings; the last one says how it ended."""
    pytest.importorskip("gevent")
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    hosts = room(240).hosts
    with apply.Board(hosts) as board:
        for host in hosts:
            board.doing(host.name, "asked")
            board.doing(host.name, "labs: 1 of 71 files")
        for host in hosts[:-1]:
            board.end(Row(host.name, state=OK, changes=("labs: 1",)))
    drawn = re.sub(r"\x1b\[[?\d;]*\w", "", terminal.getvalue()).split("230 of 240 hosts are not shown")
    assert 2 <= len(drawn) <= 4, f"drawn {len(drawn) - 1} times"
    last = drawn[-2].split("\n")[-11:-1]
    assert [line.split()[0] for line in last] == [f"h{n}" for n in range(239, 229, -1)]
    assert "labs: 1 of 71 files" in last[0] and "OK" in last[1], last


@pytest.mark.parametrize(
    ("own", "more", "words"),
    [
        ({}, {}, "10.0.7.9, port 22"),
        ({"hostname": "lab9.example.edu", "port": "2201"}, {}, "10.0.7.9 (lab9.example.edu), port 2201"),
        ({"hostname": "10.0.7.9", "port": "2201", "proxyjump": "gate"}, {"port": 2222},
         "10.0.7.9, port 2222, by way of gate"),
        ({"proxyjump": "gate"}, {"jump": "admin@other"}, "10.0.7.9, port 22, by way of admin@other"),
    ],
)  # fmt: skip
def test_a_row_says_where_a_host_was_dialled(
    own: dict[str, str], more: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "configured", lambda _: own)
    assert ssh.place_of(Entry("pc9", None, "auto", "", "", "10.0.7.9", **more)) == words
