"""Rows of a room: states, and that every form shows them whatever a host has written into them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig import lock, spec
from labrig.fleet import DRIFT, FAILED, OK, STATES, TIMEOUT, UNREACHABLE, Row, report
from labrig.fleet.facts import Facts, Seen
from labrig.fleet.plan import Plan, Step
from labrig.fleet.ssh import Ended
from labrig.fleet.wanted import Wanted
from labrig.host import Host
from labrig.inventory import Entry, Room

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"
TARGET = spec.read(ROOT / "images" / spec.TABLE).targets["cpu"]
LOCK = lock.load(TARGET, "linux_x86_64", ROOT / "images")
NAME = "cpu-0123456789ab"
GOOD = Seen("2.13.0+cpu", None, "cpu")
NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
MEND = "invoke provision --inventory=room.toml --limit=pc07"
HOSTILE = "</td><script>alert(1)</script>\x1b[2J\x00&amp;\"'>]]>‮\ud800￿"

ENTRY = Entry("pc07", None, "auto", "E1.07", "", "10.0.7.17", line=9)
ROOM = Room(Path("room.toml"), (ENTRY,), "", Path("room.known_hosts"))
WANTED = Wanted(TARGET, "venv", "linux_x86_64", LOCK, NAME, {}, None, "", {"01.py": "a", "02.py": "b"}, "")
FACTS = Facts(
    host=Host("linux", "x86_64"), time=1000.0, machine_id="m7", user="admin", sudo=False, system="debian",
    release="12", pythons={"3.11": True}, free=12_300_000_000, total=50_000_000_000, folder="ours", docker_free=None,
    images={}, labs={"01.py": "a", "02.py": "b"}, environments={NAME: {}}, wheels={}, start="s",
    applied={"schema": "labrig-applied/1"}, unfinished=False, torch={NAME: GOOD},
)  # fmt: skip


def row_of(*steps: Step, refused: str = "", fix: str = "", wanted: Wanted | None = WANTED, **facts: Any) -> Row:
    plan = Plan(ENTRY, replace(FACTS, **facts), wanted, steps, refused, fix)
    return report.of_plan(plan, Ended(plan, seconds=1.25), MEND)


def test_a_host_that_has_everything_is_ok() -> None:
    row = row_of()
    assert row == Row(
        "pc07", "E1.07", "cpu", OK, "2.13.0+cpu", "2.13.0+cpu", "cpu", NAME, "all 2", "12.3 of 50.0 GB free",
        seconds=1.25, engine="venv",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "state", "why", "fix"),
    [
        (row_of(Step("labs", "1 of 2 files", 9, names=("02.py",))), DRIFT, "labs: 1 of 2 files (02.py)", MEND),
        (row_of(Step("note", "note"), applied={}, torch={}), DRIFT, "nothing was applied yet", MEND),
        (row_of(unfinished=True, torch={NAME: Seen(error="no module")}), DRIFT, "an apply has not ended", MEND),
        (row_of(refused="the driver is too old", fix="install 580", wanted=None), FAILED, "too old", "install 580"),
        (row_of(torch={NAME: Seen(error="killed")}), FAILED, "torch cannot be asked: killed", "invoke doctor"),
        (row_of(torch={NAME: replace(GOOD, version="2.12.0+cpu")}), FAILED, "is 2.12.0+cpu, not 2.13", "doctor"),
        (row_of(torch={NAME: replace(GOOD, version="2.13.0+cu130")}), FAILED, "torch is 2.13.0+cu130", "doctor"),
        (row_of(torch={NAME: replace(GOOD, device="cuda")}), FAILED, "computes on cuda, not on cpu", "doctor"),
        (
            row_of(Step("environment", "torch"), torch={NAME: Seen(error="no module torch")}),
            FAILED, "torch cannot be asked: no module torch; environment: torch", MEND,
        ),
    ],
)  # fmt: skip
def test_states(row: Row, state: str, why: str, fix: str) -> None:
    assert (row.state, why in row.why, fix in row.fix) == (state, True, True), row


@pytest.mark.parametrize("state", [UNREACHABLE, TIMEOUT, FAILED])
def test_a_host_that_was_not_reached_keeps_its_reason(state: str) -> None:
    ended: Ended[Facts] = Ended(None, state, "no\nroute \x1b[2J", "look at its cable", 0.5)
    assert report.of_ended(ENTRY, ended) == Row(
        "pc07", "E1.07", "auto", state, why="no route ?[2J", fix="look at its cable", seconds=0.5
    )


def test_a_torch_without_a_local_part_is_right() -> None:
    assert row_of(torch={NAME: replace(GOOD, version="2.13.0")}).state == OK


def test_labs_are_counted() -> None:
    assert row_of(Step("labs", "labs"), labs={"01.py": "other"}).labs == "0 of 2"


def test_clocks_disks_and_clones_are_noted_and_change_no_state() -> None:
    names = ["pc01", "pc02", "pc03", "pc04"]
    facts = {
        "pc01": replace(FACTS, machine_id="a", time=1000.0),
        "pc02": replace(FACTS, machine_id="a", time=1005.0 + 3 * 3600),
        "pc03": replace(FACTS, machine_id="c", time=1000.0 - 75, free=1_000_000_000),
        "pc04": replace(FACTS, machine_id="", time=1005.0 + 59),
    }
    rows = report.warn([replace(row_of(), host=one) for one in (*names, "pc05")], facts, 1000.0, 1005.0)
    assert [row.state for row in rows] == [OK] * 5
    assert [row.why for row in rows] == [
        "a clone: the machine-id is that of pc02",
        "its clock is 3 h ahead; a clone: the machine-id is that of pc01",
        "its clock is 75 s behind; 1.0 GB are free on its disk",
        "",
        "",
    ]
    assert "machine-id-setup" in rows[0].fix and "set-ntp" in rows[1].fix and "make room on pc03" in rows[2].fix
    assert [row.host for row in report.bad(rows)] == names[:3]


def test_a_clock_of_nan_is_wrong() -> None:
    row, = report.warn([row_of()], {"pc07": replace(FACTS, time=float("nan"))}, 1000.0, 1005.0)  # fmt: skip
    assert "clock" in row.why


def test_the_command_that_mends() -> None:
    assert report.command(ROOM, "pc07") == MEND
    assert report.command(replace(ROOM, path=Path("a room.toml"))) == "invoke provision --inventory='a room.toml'"
    assert report.command(replace(ROOM, path=Path())) == "invoke provision --host=@local"


def made(*rows: Row, seconds: float = 12.34) -> report.Report:
    return report.Report("room.toml", NOON, seconds, rows)


def test_the_tally() -> None:
    rows = [Row("a", state=OK)] * 26 + [Row("a", state=DRIFT)] * 2 + [Row("a", state=UNREACHABLE)]
    assert report.tally(made(*rows)) == "26 OK, 2 DRIFT, 1 UNREACHABLE of 29 in 12.3 s"


def test_json_has_what_is_documented() -> None:
    document = json.loads(json.dumps(made(row_of(Step("labs", "1 file", 9))).to_json()))
    assert document["schema"] == report.SCHEMA and document["when"] == "2026-11-27T12:00:00+00:00"
    assert document["tally"] == {**dict.fromkeys(STATES, 0), DRIFT: 1}
    assert document["rows"][0]["changes"] == ["labs: 1 file"] and document["rows"][0]["size"] == 9
    described = re.search(r'"rows": \[\{(.*?)\}\]', report.__doc__ or "", re.DOTALL)
    assert described and re.findall(r'"(\w+)"', described[1]) == list(document["rows"][0])


def test_every_row_that_is_not_ok_is_a_failure_in_junit() -> None:
    rows = [replace(row_of(), host=state.lower(), state=state, why="why", fix="fix") for state in STATES]
    top = parsed(made(*rows))
    assert top.tag == "testsuites" and top.attrib["tests"] == "5" and top.attrib["failures"] == "4"
    cases = top.findall("testsuite/testcase")
    assert [case.attrib["name"] for case in cases] == [state.lower() for state in STATES]
    assert [case.find("failure") is None for case in cases] == [True, False, False, False, False]
    assert not top.findall(".//skipped")
    failure = cases[3].find("failure")
    assert failure is not None and failure.attrib == {"message": "UNREACHABLE: why", "type": "UNREACHABLE"}
    assert failure.text == "why\nfix: fix"


def parsed(whole: report.Report) -> ElementTree.Element:
    return ElementTree.fromstring(report.junit(whole).encode())  # noqa: S314 - our own


class Page(HTMLParser):
    """The elements of a page, the text of its cells, and whether anything is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self._open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action") or name.startswith("on")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def test_a_host_that_writes_html_writes_text() -> None:
    values = dict.fromkeys(("host", "room", "target", "torch_have", "device", "image", "labs", "disk"), HOSTILE)
    row = Row(**values, state=FAILED, torch_want="2.13.0+cpu", why=HOSTILE, fix=HOSTILE, changes=(HOSTILE,))
    page = Page(report.html(made(row), TEMPLATES))
    assert page.tags.count("script") == 1 and not page.loads
    assert len(page.rows[1]) == len(report.COLUMNS)
    assert "<script>alert(1)</script>" in page.rows[1][0]
    top = parsed(made(row))
    assert "</td><script>" in top.findall("testsuite/testcase")[0].attrib["name"]
    for width in (80, 200):
        shown = report.text([row], width=width)
        assert "\x1b" not in shown and "\x00" not in shown and "‮" not in shown


def test_the_page_has_a_row_for_each_host_and_loads_nothing() -> None:
    rows = [replace(row_of(), host=f"pc{n:03}", state=OK if n % 9 else DRIFT) for n in range(240)]
    text = report.html(made(*rows), TEMPLATES)
    page = Page(text)
    assert len(page.rows) == 241 and not page.loads and "http" not in text.replace("http-equiv", "")
    states = [row[2] for row in page.rows[1:]]
    assert states == sorted(states)  # DRIFT before OK: what is to be done comes first
    assert len(text) < 200_000


def test_a_command_on_the_page_is_broken_between_its_words_only() -> None:
    text = report.html(made(replace(row_of(), state=DRIFT, fix="invoke verify --limit='a b' <x>")), TEMPLATES)
    words = ("invoke", "verify", "--limit=&#39;a", "b&#39;", "&lt;x&gt;")
    assert f"<code>{''.join(f'<span>{word}</span> ' for word in words)}</code>" in text
    assert "code span { display: inline-block;" in text


def test_wide_and_narrow_tables_have_every_host_reason_and_fix() -> None:
    rows = [row_of(Step("labs", "1 file", names=("02.py",))), replace(row_of(), host="pc08")]
    for width in (60, 80, 119, 120, 200):
        shown = report.text(rows, width=width)
        assert all(len(line) <= width for line in shown.splitlines())
        flat = " ".join(shown.split())
        assert "pc07" in flat and "pc08" in flat and "DRIFT" in flat
        if width in (80, 200):
            assert f"-> {MEND}" in flat and "labs: 1 file (02.py)" in flat


def test_colours_are_for_terminals() -> None:
    rows = [row_of(), replace(row_of(), state=DRIFT)]
    for width in (80, 200):
        assert "\x1b[" not in report.text(rows, width=width)
        coloured = report.text(rows, width=width, color=True)
        assert "\x1b[32m" in coloured and "\x1b[33m" in coloured


def test_ten_thousand_rows_take_seconds() -> None:
    rows = [replace(row_of(), host=f"pc{n:05}") for n in range(10_000)]
    for form in (
        lambda: report.text(rows),
        lambda: report.text(rows, width=80),
        lambda: report.junit(made(*rows)),
        lambda: report.html(made(*rows), TEMPLATES),
    ):
        began = time.process_time()
        assert form().count("pc0") >= 10_000
        assert time.process_time() - began < 30, form


SAID = st.text(st.characters(exclude_categories=()), max_size=40)
ROWS = st.builds(
    Row, SAID, SAID, SAID, st.sampled_from(STATES), SAID, SAID, SAID, SAID, SAID, SAID, SAID, SAID,
    st.floats(0, 1e6), st.tuples(SAID), st.integers(0, 1 << 40),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_any_rows_can_be_shown_in_every_form(rows: list[Row]) -> None:
    whole = made(*rows)
    json.loads(json.dumps(whole.to_json()))
    top = parsed(whole)
    assert int(top.attrib["failures"]) == sum(row.state != OK for row in rows) == len(top.findall(".//failure"))
    page = Page(report.html(whole, TEMPLATES))
    assert len(page.rows) == len(rows) + 1 and page.tags.count("script") == 1
    report.html(whole, TEMPLATES).encode()
    for width in (60, 200):
        shown = report.text(rows, width=width, color=False)
        shown.encode()
        assert all(one.isprintable() or one == "\n" for one in shown)
