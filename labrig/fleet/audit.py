"""`invoke verify --inventory=FILE`: every host of a room asked once, what it said against what it should have.

`--host=@local` is a room of one: the machine you sit at.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labrig import cli
from labrig.errors import DistributeError, Interrupted, PendingError, UsageError
from labrig.files import write_atomically
from labrig.fleet import DRIFT, FAILED, OK, TIMEOUT, Connection, Row, apply, lessons, report, ssh, suite
from labrig.fleet.facts import Facts, Unreadable
from labrig.fleet.lessons import Comparison, Lesson
from labrig.fleet.plan import Plan, prepare
from labrig.fleet.report import Report
from labrig.fleet.ssh import Ended
from labrig.inventory import LOCAL, Entry, Room

BUDGET = 60.0  # seconds for a host: importing torch from a cold disk takes most of it
LABS_BUDGET = 900.0  # seconds for all labs of a host, quickly
SUITE_BUDGET = 300.0  # seconds for the checks of a host
INTERVAL = 30.0  # seconds between two looks of --watch


@dataclass(frozen=True)
class Wish:
    """The flags. ``deep`` is "", "sample" or "all"; ``budget`` and ``watch`` are seconds, 0 for what is usual."""

    only_bad: bool = False
    limit: str = ""
    labs: str = ""
    deep: str = ""
    budget: float = 0.0
    watch: float = 0.0
    junit: str = ""
    html: str = ""


@dataclass(frozen=True)
class Found:
    """What was found, and what of it is to be shown."""

    report: Report
    wish: Wish
    lessons: Comparison | None = None
    suites: Mapping[str, suite.Checked] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of report, with ``labs`` and ``suites`` where they were asked for."""
        rows = report.bad(self.report.rows) if self.wish.only_bad else self.report.rows
        document = self.report.to_json() | {"rows": replace(self.report, rows=tuple(rows)).to_json()["rows"]}
        if self.lessons:
            document["labs"] = self.lessons.to_json()
        if self.suites:
            document["suites"] = {name: one.to_json() for name, one in self.suites.items()}
        return document

    def text(self) -> str:
        """The table, as wide as the reader's terminal, and the tally."""
        rows = report.bad(self.report.rows) if self.wish.only_bad else self.report.rows
        wide = cli.terminal() if sys.stdout.isatty() else {}
        table = [report.text(rows, **wide)] if rows else []
        return "\n".join([*table, report.tally(self.report)])

    def raise_for_failures(self) -> None:
        """Raise unless every host is OK.

        Raises:
            PendingError: hosts have drifted, and nothing else is wrong.
            DistributeError: hosts failed, or were not reached.
        """
        states = {row.state for row in self.report.rows} - {OK}
        wrong = [row.host for row in self.report.rows if row.state != OK]
        if not wrong:
            return
        kind = PendingError if states == {DRIFT} else DistributeError
        named = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        count = f"{len(wrong)} of {len(self.report.rows)}"
        raise kind(f"not OK: {count}", found=named, fix="each row says what mends it")


def verify(root: Path, inventory: str, host: str, wish: Wish) -> Found:
    """Ask every host of an inventory (or those of --limit), or ``host``, which is @local, once; with --labs and --deep
    more is done on those that answered.

    Raises:
        UsageError: the inventory, both or neither of it and a host, or the limit.
        HostError: the extra labrig[fleet] is not installed.
        Interrupted: Ctrl-C; labs that run on hosts end there by themselves, within the budget, and leave nothing.
    """
    room = apply.find_room(inventory, host)
    entries = apply.select(room, wish.limit)
    began = time.monotonic()
    rows, plans = ask(root, room, entries, budget=wish.budget or BUDGET, deep=bool(wish.deep))
    compared: Comparison | None = None
    suites: dict[str, suite.Checked] = {}
    if wish.labs:
        compared = run_labs(room, plans, budget=wish.budget or LABS_BUDGET)
        again = {row.host: f"{report.command(room, row.host, task='verify')} --labs=quick" for row in rows}
        rows = [_judged(row, compared, again[row.host]) for row in rows]
    if wish.deep:
        sample = suite.sample(_able(plans), everywhere=wish.deep == "all")
        if not sample:
            print("no host with a native environment and a key to run the checks on", file=sys.stderr)
        suites = suite.run(room, sample, budget=wish.budget or SUITE_BUDGET)
        rows = [_proven(row, suites.get(row.host), report.command(room, row.host)) for row in rows]
    apply.keep_run(room, rows)
    return Found(
        Report(room.path.name or LOCAL, datetime.now(UTC), time.monotonic() - began, tuple(rows)),
        wish, compared, suites,
    )  # fmt: skip


def show(root: Path, found: Found, *, json: bool = False) -> None:
    """Print what was found, and write the files that were asked for."""
    if json:
        cli.print_json(found.to_json())
    else:
        print(found.text())
    if found.lessons and not json:
        print(found.lessons.tally())
    if found.lessons and found.lessons.outliers and not json:
        cli.print_table(lessons.COLUMNS, found.lessons.rows(), wrapped=lessons.COLUMNS[2:3])
    _write(root, found)


def read_wish(
    only_bad: bool, watch: str | bool, limit: str, labs: str, deep: str | bool, budget: float, junit: str, html: str
) -> Wish:
    """The flags as they were typed; --watch and --deep also stand without a value. Raises UsageError."""
    try:
        interval = INTERVAL if watch is True else float(watch or 0)
    except ValueError:
        raise UsageError("--watch takes seconds", found=repr(watch)[:60], fix="--watch, or --watch=60") from None
    kind = "sample" if deep is True else str(deep or "")
    if kind not in ("", "sample", "all"):
        raise UsageError("--deep takes no such word", found=repr(kind)[:60], fix="--deep, or --deep=all")
    if labs not in ("", "quick"):
        raise UsageError("--labs takes one word", found=repr(labs)[:60], fix="--labs=quick")
    if not (0 <= interval < 86400 and 0 <= budget < 86400):
        raise UsageError("--watch and --budget are seconds", found=f"{interval:g}, {budget:g}", fix="from 1 to 86399")
    for flag, file in (("--junit", junit), ("--html", html)):
        _require_place(flag, file)
    return Wish(only_bad, limit, labs, kind, budget, interval, junit, html)


def _require_place(flag: str, file: str) -> None:
    """Raises UsageError where a file cannot be written: before a room is asked for minutes."""
    place = Path(file).expanduser()
    if file and (place.is_dir() or not place.parent.is_dir() or not os.access(place.parent, os.W_OK)):
        found = "a folder" if place.is_dir() else f"the folder {place.parent} is not there, or cannot be written"
        raise UsageError(f"{flag}={file} cannot be written", found=found, fix="name a file in a folder of yours")


def require_sense(room: str, wish: Wish, *, one: bool, json: bool) -> None:
    """``room`` is what was named of --inventory and --host; ``one`` says that something about a single environment was
    named too.

    Raises:
        UsageError: flags do not go together.
    """
    if room and one:
        raise UsageError(
            "--inventory and --host go with none of --target, --engine, --image, --require-device and --offline",
            found="one that is about a single environment",
            fix="what each host should have stands in the inventory",
        )
    if not room and wish != Wish():
        raise UsageError("flags that are about a room, and no --inventory", fix=f"--inventory=FILE, or --host={LOCAL}")
    if wish.watch and (wish.labs or wish.deep or json):
        raise UsageError("--watch goes with none of --labs, --deep and --json", fix="run those once")


def ask(
    root: Path, room: Room, entries: Sequence[Entry], *, budget: float, deep: bool = False
) -> tuple[list[Row], dict[str, Plan]]:
    """Every host's row, in the order of the inventory; and what was found of those that answered."""
    course = prepare(root, room)
    began = time.time()
    answers = ssh.ask(room, entries, lambda entry: course.request(entry, torch=True, deep=deep), budget=budget)
    ended = time.time()
    rows: list[Row] = []
    plans: dict[str, Plan] = {}
    for entry in entries:
        answer = answers[entry.name]
        if answer.value is None:
            rows.append(_patient(report.of_ended(entry, answer), room, budget))
            continue

        def judge(entry: Entry = entry, facts: Facts = answer.value, answer: Ended[Facts] = answer) -> Row:
            plans[entry.name] = found = apply.compare_fetched(course, entry, facts)
            return report.of_plan(found, answer, report.command(room, entry.name))

        rows.append(apply.judged(entry, answer.seconds, judge))
    return report.warn(rows, {name: one.facts for name, one in plans.items()}, began, ended), plans


def _patient(row: Row, room: Room, budget: float) -> Row:
    """A machine that did not answer in time may only be busy: torch took 60 s on one whose CPUs were all in use."""
    if row.state != TIMEOUT:
        return row
    again = f"{report.command(room, row.host, task='verify')} --budget={2 * budget:.0f}"
    return replace(row, fix=_and(row.fix, f"if it is only busy: {again}"))


def _write(root: Path, found: Found) -> None:
    if found.wish.junit:
        write_atomically(Path(found.wish.junit).expanduser(), report.junit(found.report))
    if found.wish.html:
        write_atomically(Path(found.wish.html).expanduser(), report.html(found.report, root / "templates"))


# --- labs and checks on the hosts -------------------------------------------------------------------------------------


def _able(plans: Mapping[str, Plan]) -> list[Plan]:
    """The hosts whose torch answers: what else is wrong with them is said already."""
    return [
        one for one in plans.values()
        if (seen := report.torch_of(one.facts, one.wanted)) and seen.version and not seen.error
    ]  # fmt: skip


def run_labs(room: Room, plans: Mapping[str, Plan], *, budget: float) -> Comparison:
    """Run the labs on every host whose torch answers, and compare what they measured."""
    able = {one.entry.name: one for one in _able(plans)}
    entries = [one.entry for one in able.values()]

    def work(connection: Connection, entry: Entry) -> dict[str, Lesson]:
        wanted = able[entry.name].wanted
        assert wanted is not None  # noqa: S101 - it was asked for its torch
        said = connection.run(lessons.script(entry, wanted, budget), timeout=budget)
        try:
            return lessons.read(said.out)
        except Unreadable as error:
            why = said.error.strip().splitlines()[-1:] or [str(error)]
            raise ssh.Failure(FAILED, f"the labs did not run: {report.clean(why[0])}") from None

    hosts = f"{len(entries)} host{'s' * (len(entries) != 1)}"
    print(f"labs, quickly, on {hosts}; at most {report.span(budget)}", file=sys.stderr)
    ended = ssh.each(room, entries, work, budget=budget, ended=_say_labs)
    return lessons.compare(
        {name: how.value if how.value is not None else lessons.failed(how.why) for name, how in ended.items()}
    )


def _say_labs(entry: Entry, how: Ended[dict[str, Lesson]]) -> None:
    ended = (
        f"{len(how.value)} lab{'s' * (len(how.value) != 1)}"
        if how.value is not None
        else f"{how.state}: {report.clean(how.why)}"
    )
    print(f"{entry.name}: {ended} in {how.seconds:.0f} s", file=sys.stderr)


def _judged(row: Row, compared: Comparison, again: str) -> Row:
    """A row with what the labs showed: a lab that did not end well is a failure, a number apart is said. ``again`` is
    the command that runs them once more."""
    complaint = lessons.complaint(compared.hosts.get(row.host, {}))
    apart = lessons.apart(compared.outliers, row.host)
    if not complaint and not apart:
        return row
    fix = f"{again}; if it stays: test its memory and its driver"
    return replace(
        row, state=FAILED if complaint else row.state, why=_and(row.why, complaint or apart), fix=_and(row.fix, fix)
    )


def _proven(row: Row, checked: suite.Checked | None, mend: str) -> Row:
    """A row with what the checks showed."""
    if checked is None or not checked.why:
        return row
    return replace(row, state=FAILED, why=_and(row.why, checked.why), fix=row.fix or checked.fix or mend)


def _and(*words: str) -> str:
    return "; ".join(filter(None, words))


# --- watching ---------------------------------------------------------------------------------------------------------


def watch(root: Path, inventory: str, host: str, wish: Wish) -> Found:
    """Ask again and again until Ctrl-C, which is how this ends well: what was found last is given.

    A terminal shows the table, anything else gets a line for each host whose state changes. Raises as verify.
    """
    draw = sys.stdout.isatty()
    found: Found | None = None
    with _screen() if draw else nullcontext():
        try:
            while True:
                before, found = found, verify(root, inventory, host, wish)
                if draw:
                    print(f"\x1b[H\x1b[2J{found.text()}\n{_now()}; Ctrl-C ends", end="", flush=True)
                else:
                    for line in changes(before, found):
                        print(f"{_now()} {line}", flush=True)
                _write(root, found)
                time.sleep(wish.watch)
        except (KeyboardInterrupt, Interrupted):
            if found is None:
                raise
    return found


def changes(before: Found | None, after: Found) -> list[str]:
    """The hosts whose state is another than before, a line each; at first those that are not OK."""
    old = {row.host: row.state for row in before.report.rows} if before else {}
    return [
        f"{row.host}: {' -> '.join(filter(None, (old.get(row.host), row.state)))} {row.why}".rstrip()
        for row in after.report.rows
        if row.state != old.get(row.host, OK)
    ]


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


@contextmanager
def _screen() -> Iterator[None]:
    """A screen of its own, as `less` has one: what was on the terminal comes back."""
    print("\x1b[?1049h", end="")
    try:
        yield
    finally:
        print("\x1b[?1049l", end="", flush=True)
