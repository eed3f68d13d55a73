"""`invoke provision`: what the hosts of a room lack is shown, or brought; the record of the last run.

A host is done in one connection: asked, compared, changed, and asked again. What is then still missing makes it FAILED,
whatever the operations said. Where something else has to happen first (wheels that are not in the wheelhouse, a new
login), the host is taken up in a next round; those that pull an image come last, so many at once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from labrig import cli, home, published
from labrig.errors import DistributeError, Interrupted, LabrigError, PendingError, UsageError
from labrig.files import alone, write_atomically
from labrig.fleet import DRIFT, FAILED, OK, STATES, TIMEOUT, Connection, Row, cache, report, ssh, steps
from labrig.fleet.facts import Facts, Unreadable, parse
from labrig.fleet.plan import Course, Lacking, Plan, Step, compare, prepare, words_of
from labrig.fleet.wanted import Wanted
from labrig.inventory import AUTO, LOCAL, Entry, Room, local, read
from labrig.progress import megabytes

ASK, APPLY = 60.0, 1800.0  # seconds that a host has, to answer and to be changed
SILENCE = 120.0  # seconds without an answer of its sshd, after which a host is not waited for; it may be at work
MOST_HOSTS = 2000  # in one run: a minute of the controller's CPU, and an hour of a room's patience
REDRAW = 0.25  # seconds between two drawings of the live table
LOGINS = 2  # times that a host is taken up again after its engine was installed
BEFORE = ("docker", "nvidia", "python", "folder")  # steps that change nothing in the folder
COLUMNS = ("host", "target", "state", "changes", "bytes", "why, and what to do")


@dataclass(frozen=True)
class Outcome:
    """How far the work on a host came; ``lacking`` wheels, ``again`` and ``waits`` end a round."""

    plan: Plan | None
    lacking: Wanted | None = None
    again: bool = False
    waits: bool = False  # for its turn to pull an image


@dataclass(frozen=True)
class Options:
    """How a room is gone through. ``max_fail``: hosts that may fail before no more is begun, as "3" or "10%"."""

    limit: str = ""
    max_fail: str = ""
    retries: int = 0
    budget: float = 0.0  # seconds a host; 0 = ASK or APPLY
    parallel: int = ssh.PARALLEL
    wave: int = 0  # hosts that pull an image at once; 0 = as many as cache.waves says
    cold: bool = False  # also where the room's cache does not hold the image
    megabits: float = cache.MEGABITS  # of the cache's link, a second


@dataclass
class _Run:
    """What is known in the middle of a run, so that it is there also when Ctrl-C ends it."""

    course: Course
    entries: Sequence[Entry]
    board: Board
    most: int  # hosts that may fail
    rows: dict[str, Row] = field(default_factory=dict)
    done: dict[str, tuple[Step, ...]] = field(default_factory=dict)  # in this and earlier rounds
    left: dict[str, int] = field(default_factory=dict)  # retries
    logins: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, Plan] = field(default_factory=dict)  # for their turn to pull an image
    admitted: set[str] = field(default_factory=set)  # whose turn it is, or was

    @property
    def over(self) -> bool:
        """Whether more hosts have failed than may."""
        failed = [row for name, row in self.rows.items() if row.state != OK and not self.left.get(name)]
        return len(failed) > self.most


# --- the task ---------------------------------------------------------------------------------------------------------


def find_room(inventory: str, host: str) -> Room:
    """The room that the flags name. Raises UsageError."""
    if bool(inventory) == bool(host):
        raise UsageError("name a room or this machine", fix=f"--inventory=FILE, or --host={LOCAL}")
    if host and host != LOCAL:
        raise UsageError(f"--host={host} is not known", fix=f"--host={LOCAL} is this machine; others have an inventory")
    room = local() if host else read(Path(inventory))
    if unreachable := [entry.name for entry in room.hosts if not entry.address]:
        names = ", ".join(unreachable[:5])
        raise UsageError(f"{room.path.name}: no address of {names}", fix="write address = ..., or leave them out")
    return room


def read_options(
    limit: str,
    max_fail: str,
    retries: int,
    budget: float,
    parallel: int,
    wave: int = 0,
    cold: bool = False,
    megabits: int = 1000,
) -> Options:
    """The flags of the task. Raises UsageError."""
    _most(max_fail, 1)
    wrong = {
        "--retries": retries,
        "--budget": budget,
        "--parallel": parallel,
        "--wave": wave,
        "--megabits": megabits - 1,
    }
    if found := [f"{name}={value}" for name, value in wrong.items() if value < 0]:
        raise UsageError(f"{found[0]} is below 0", fix="a number from 0 on")
    return Options(limit, max_fail, retries, budget, parallel or ssh.PARALLEL, wave, cold, megabits)


def plan(root: Path, room: Room, options: Options) -> list[Row]:
    """What an apply would change, host by host; nothing is changed there."""
    course = prepare(root, room)
    entries = select(room, options.limit)
    found = ssh.ask(room, entries, course.request, budget=options.budget or ASK, parallel=options.parallel)
    rows = []
    for entry in entries:
        how = found[entry.name]
        if how.value is None:
            rows.append(_row_of_failure(course, entry, how))
            continue
        rows.append(judged(entry, how.seconds, partial(_planned, course, entry, how)))
    return rows


def _planned(course: Course, entry: Entry, how: ssh.Ended[Facts]) -> Row:
    assert how.value is not None  # noqa: S101 - it answered
    return row_of(course, compare_fetched(course, entry, how.value), seconds=how.seconds)


def judged(entry: Entry, seconds: float, judge: Callable[[], Row]) -> Row:
    """A host's row; whatever its answer makes go wrong here is in it, and costs no other host."""
    try:
        return judge()
    except Interrupted:
        raise
    except LabrigError as error:
        why, fix = words_of(error)
        return Row(entry.name, entry.room, _named(entry), FAILED, why=why, fix=fix, seconds=seconds)
    except Exception as error:  # noqa: BLE001
        why = f"what it said cannot be judged: {type(error).__name__}: {error}"
        return Row(entry.name, entry.room, _named(entry), FAILED, why=report.clean(why), fix="look at that machine")


def apply(root: Path, room: Room, options: Options) -> list[Row]:
    """Bring every host to what it should have; gives a row for each, in the inventory's order, and keeps them.

    Raises:
        UsageError: a wrong flag, or the checkout's.
        Interrupted: Ctrl-C; ``rows`` in it are kept all the same, and the next apply finishes.
    """
    course = prepare(root, room)
    entries = select(room, options.limit)
    most = _most(options.max_fail, len(entries))
    with _alone(), Board(entries) as board:
        run = _Run(course, entries, board, most, left=dict.fromkeys((one.name for one in entries), options.retries))
        try:
            _rounds(run, entries, options)
            _pull(run, options)
        finally:
            rows = [run.rows.get(entry.name, _untried(run, entry)) for entry in entries]
            keep_run(room, rows)
    return rows


@contextmanager
def _alone() -> Iterator[None]:
    """One apply at a time from here: two on a host would take each other's files away."""
    place = home.root() / "rooms" / ".apply.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place, "another provision is running; waiting for it"):
        yield


def _rounds(run: _Run, entries: Sequence[Entry], options: Options) -> None:
    """Rounds over hosts until each has ended, or waits for its turn to pull an image."""
    todo = list(entries)
    while todo:
        todo = _round(run, todo, options)


def _pull(run: _Run, options: Options) -> None:
    """Go on with the hosts that wait to pull an image: so many at once, the next as soon as one of them has ended."""
    if run.course.room.cache and not options.cold:
        _refuse_cold(run)
    entries = [entry for entry in run.entries if entry.name in run.waiting]
    if not entries:
        return
    plans = [run.waiting[entry.name] for entry in entries]
    at_once = cache.admit(plans, options.wave, megabits=options.megabits)
    run.admitted |= set(run.waiting)
    _rounds(run, entries, replace(options, parallel=min(at_once, options.parallel)))


def _refuse_cold(run: _Run) -> None:
    """Those of them have failed whose image the room's cache does not hold, or of which it cannot be asked."""
    refused: dict[published.Entry, LabrigError] = {}
    images = [plan.wanted.image for plan in run.waiting.values() if plan.wanted and plan.wanted.image]
    for image in dict.fromkeys(images):
        try:
            cache.require_warm(run.course.room, image)
        except (DistributeError, UsageError) as error:
            refused[image] = error
    for plan in [*run.waiting.values()]:
        if plan.wanted and plan.wanted.image in refused:
            del run.waiting[plan.entry.name]
            _fail(run, plan.entry, refused[plan.wanted.image])


def _round(run: _Run, todo: Sequence[Entry], options: Options) -> list[Entry]:
    """One round over hosts; gives those that have to be taken up again."""
    again: list[Entry] = []
    lacking: dict[str, Wanted] = {}

    def work(connection: Connection, entry: Entry) -> Outcome:
        if run.over:
            raise ssh.Failure(
                FAILED, f"not tried: more than {run.most} hosts have failed", "mend those, then apply again"
            )
        return _bring(run, connection, entry)

    def ended(entry: Entry, how: ssh.Ended[Outcome]) -> None:
        outcome = how.value
        if outcome and outcome.lacking:
            lacking[entry.name] = outcome.lacking
        elif outcome and outcome.waits and outcome.plan:
            run.waiting[entry.name] = outcome.plan
            run.board.wait(entry.name)
        elif outcome and outcome.again:
            again.append(entry)
        else:
            _keep_row(run, entry, how, again)

    budget = options.budget or APPLY
    reach = min(ASK, budget)
    ssh.each(
        run.course.room, todo, work, budget=budget, reach=reach, silence=SILENCE, parallel=options.parallel, ended=ended
    )
    for entry in todo:
        if entry.name in lacking and _fetch(run, entry, lacking[entry.name]):
            again.append(entry)
    if lacking:
        run.course.forget()
    return [] if run.over else again


def _keep_row(run: _Run, entry: Entry, how: ssh.Ended[Outcome], again: list[Entry]) -> None:
    """Note how a host ended; where it failed and may be tried again, it is."""
    if how.value and how.value.plan:
        make = partial(row_of, run.course, how.value.plan, done=run.done.get(entry.name, ()), seconds=how.seconds)
        row = judged(entry, how.seconds, make)
    else:
        row = _row_of_failure(run.course, entry, how)
        row = replace(row, changes=_words(run.done.get(entry.name, ())))
        if run.left.get(entry.name) and not row.why.startswith("not tried"):
            run.left[entry.name] -= 1
            again.append(entry)
            run.board.say(f"{entry.name}: {row.state}, {row.why}; tried again")
    run.rows[entry.name] = row
    if entry not in again:
        run.left[entry.name] = 0
        run.board.end(row)


def _bring(run: _Run, connection: Connection, entry: Entry) -> Outcome:
    """Ask a host, change what differs, and ask it again."""
    request = run.course.request(entry)
    run.board.doing(entry.name, "asked")
    try:
        # A host that has frozen is not waited for as one that installs.
        todo = compare(run.course, entry, _ask(connection, request, timeout=2 * ASK))
        wanted = todo.wanted
        if todo.refused or not todo.steps or wanted is None:
            return Outcome(todo)
        if wanted.engine == "venv" and _wheels_missing(wanted, todo.steps):
            return Outcome(None, lacking=wanted)
        if entry.name not in run.admitted and any(step.kind == "image" and step.size for step in todo.steps):
            return Outcome(todo, waits=True)
        for step in todo.steps:
            if step.kind == "note":
                break
            _carry_out(run, connection, entry, todo, step)
            if step.kind in steps.RECONNECT:
                return _log_in_again(run, entry, todo)
        proof = compare(run.course, entry, _ask(connection, request))
        _require_done(proof)
        steps.carry_out(connection, run.course.root, replace(todo, facts=proof.facts), todo.steps[-1])
        run.done[entry.name] = (*run.done.get(entry.name, ()), todo.steps[-1])
        return Outcome(replace(proof, steps=(), facts=replace(proof.facts, unfinished=False)))
    except Lacking as lacking:
        return Outcome(None, lacking=lacking.wanted)


def _carry_out(run: _Run, connection: Connection, entry: Entry, todo: Plan, step: Step) -> None:
    """One step; what is in the folder is changed only after an apply was noted as begun there."""
    before = run.done.get(entry.name, ())
    if step.kind not in BEFORE and all(one.kind in BEFORE for one in before):
        steps.begin(connection, todo)
    run.board.doing(entry.name, f"{step.kind}: {step.what}" + (f" ({megabytes(step.size)})" if step.size else ""))
    steps.carry_out(connection, run.course.root, todo, step)
    run.done[entry.name] = (*before, step)


def _log_in_again(run: _Run, entry: Entry, todo: Plan) -> Outcome:
    """The rest needs a new login, which the next round makes."""
    run.logins[entry.name] = run.logins.get(entry.name, 0) + 1
    if run.logins[entry.name] > LOGINS:
        raise ssh.Failure(FAILED, "the engine was installed and still does not answer", "look at it there: docker info")
    return Outcome(todo, again=True)


def _require_done(proof: Plan) -> None:
    """Raises Failure where a host that was asked again still lacks something."""
    left = [report.words(step) for step in proof.steps if step.kind != "note"]
    if proof.refused or left:
        why = f"after all steps: {proof.refused or 'still to be done: ' + '; '.join(left)}"
        owner = f"there: sudo chown -R {shlex.quote(proof.facts.user)} {proof.entry.folder}"
        raise ssh.Failure(FAILED, why, proof.fix or owner * any(step.kind == "rights" for step in proof.steps))


def _ask(connection: Connection, request: dict[str, Any], *, timeout: float = 0.0) -> Facts:
    printed = connection.probe(request, timeout=timeout)
    try:
        return parse(printed)
    except Unreadable as error:
        raise ssh.Failure(
            FAILED, f"printed no facts: {error}", "log in there: something prints before commands run"
        ) from None


def _wheels_missing(wanted: Wanted, todo: Sequence[Step]) -> bool:
    """Whether wheels that are to be sent are not in the wheelhouse, or not known well enough for the proof."""
    from labrig import wheelhouse
    from labrig.fleet.wanted import lacking

    names = {name for step in todo if step.kind == "wheels" for name in step.names}
    sent = [wheel for wheel in wanted.lock.wheels if wheel.file in names]
    return lacking(wanted) or bool(wheelhouse.missing(sent, home.wheels()))


def _fetch(run: _Run, entry: Entry, wanted: Wanted) -> bool:
    """Bring the wheels of a lock into the wheelhouse; False, and the host has failed, where they cannot be had."""
    try:
        _bring_wheels(run.course, wanted)
    except Interrupted:
        raise
    except LabrigError as error:
        _fail(run, entry, error)
        return False
    return True


def _fail(run: _Run, entry: Entry, error: LabrigError) -> None:
    """A host has failed for what went wrong here, not there; to try it again would not help."""
    why, fix = words_of(error)
    row = _row_of_failure(run.course, entry, ssh.Ended(None, FAILED, why, fix))
    run.rows[entry.name] = row = replace(row, changes=_words(run.done.get(entry.name, ())))
    run.left[entry.name] = 0
    run.board.end(row)


def _bring_wheels(course: Course, wanted: Wanted) -> None:
    """Bring the wheels of a lock into the wheelhouse; where they cannot be had, that is tried once and not for each
    host."""
    from labrig import environment

    if wanted.environment in course.lost:
        raise course.lost[wanted.environment]
    try:
        environment.fetch(course.table, wanted.target, wanted.lock)
    except LabrigError as error:
        course.lost[wanted.environment] = error
        raise


def compare_fetched(course: Course, entry: Entry, facts: Facts) -> Plan:
    """The same as plan.compare, with the wheels fetched that it cannot judge without.

    Raises:
        LabrigError: they cannot be had.
    """
    try:
        return compare(course, entry, facts)
    except Lacking as lacking:
        _bring_wheels(course, lacking.wanted)
        course.forget()
        return compare(course, entry, facts)


# --- which hosts ------------------------------------------------------------------------------------------------------


def select(room: Room, limit: str) -> list[Entry]:
    """The hosts that ``--limit`` names: names and room:NAME with commas, or @failed; all without it.

    Raises:
        UsageError: there is no such host or room, no run that is remembered, or they are too many.
    """
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in limit.split(","))):
        if word == "@failed":
            found = {row.host for row in last_run(room) if row.state != OK}
        elif word.startswith("room:"):
            found = {entry.name for entry in room.hosts if entry.room == word.removeprefix("room:")}
        else:
            found = {entry.name for entry in room.hosts if entry.name == word}
        if not found and word != "@failed":
            names = ", ".join(sorted({entry.room for entry in room.hosts if entry.room}) or ["none"])
            raise UsageError(
                f"--limit: no host {word!r} in {room.path.name}", found=f"{len(room.hosts)} hosts; rooms: {names}",
                fix="names with commas, room:NAME, or @failed",
            )  # fmt: skip
        chosen |= found
    found_all = [entry for entry in room.hosts if not limit or entry.name in chosen]
    if len(found_all) > MOST_HOSTS:
        raise UsageError(
            f"line {found_all[MOST_HOSTS].line} of {room.path.name}: host {MOST_HOSTS + 1} of {len(found_all)}",
            found=f"more than {MOST_HOSTS} hosts for one run", fix="--limit=room:NAME, or a file for each building",
        )  # fmt: skip
    return found_all


def _most(text: str, hosts: int) -> int:
    """How many hosts may fail. Raises UsageError."""
    if not text:
        return hosts
    number = text.removesuffix("%")
    if not number.isdecimal() or (text.endswith("%") and int(number) > 100):
        raise UsageError("--max-fail is wrong", found=repr(text), fix="a number of hosts, or a part of them: 10%")
    return hosts * int(number) // 100 if text.endswith("%") else int(number)


def keep_run(room: Room, rows: Sequence[Row]) -> None:
    """Remember how hosts ended; those that were not in this run keep what is known of them."""
    if (file := _record(room)) is None:
        return
    names = {entry.name for entry in room.hosts}
    kept = {row.host: row for row in (*_read_record(file), *rows) if row.host in names}
    ordered = [asdict(kept[entry.name]) for entry in room.hosts if entry.name in kept]
    write_atomically(file, json.dumps({"schema": report.SCHEMA, "rows": ordered}, indent=1) + "\n")


def last_run(room: Room) -> list[Row]:
    """How hosts ended when they were last applied or verified.

    Raises:
        UsageError: nothing is remembered.
    """
    file = _record(room)
    rows = _read_record(file) if file else []
    if not rows:
        raise UsageError(f"no run over {room.path.name or LOCAL} is remembered", fix="leave out --limit=@failed")
    return rows


def _record(room: Room) -> Path | None:
    """Where runs over an inventory are remembered; the machine you sit at needs no memory."""
    if room.path == Path():
        return None
    name = hashlib.sha256(str(room.path.absolute()).encode()).hexdigest()[:16]
    return home.root() / "rooms" / f"{name}.json"


def _read_record(file: Path) -> list[Row]:
    known = {one.name for one in fields(Row)}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["rows"]
        rows = [Row(**{key: value for key, value in row.items() if key in known}) for row in said]
        return [replace(row, changes=tuple(row.changes)) for row in rows if row.state in ("", *STATES)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


# --- rows -------------------------------------------------------------------------------------------------------------


def row_of(course: Course, found: Plan, *, done: Sequence[Step] = (), seconds: float = 0.0) -> Row:
    """A host that answered: OK, DRIFT with changes that are pending, FAILED where it was refused."""
    mend = report.command(course.room, found.entry.name)
    row = report.of_plan(found, ssh.Ended(found, seconds=seconds), mend)
    # Its changes stand in a column of their own.
    why = row.why if found.refused or found.facts.unfinished else ""
    shown = done or found.steps
    return replace(row, why=why, changes=_words(shown), size=sum(step.size for step in shown))


def _row_of_failure(course: Course, entry: Entry, how: ssh.Ended[Any]) -> Row:
    again = report.command(course.room, entry.name)
    again += f" --budget={2 * max(how.seconds, ASK):.0f}" * (how.state == TIMEOUT)
    fix = f"{how.fix}; then {again}" if how.fix else again
    return Row(entry.name, entry.room, _named(entry), how.state or FAILED, why=how.why, fix=fix, seconds=how.seconds)


def _untried(run: _Run, entry: Entry) -> Row:
    why = f"not tried: more than {run.most} hosts have failed" if run.over else "not finished: it was interrupted"
    if entry.name in run.waiting and entry.name not in run.admitted:
        why = "its image was not pulled"
    fix = report.command(run.course.room, "@failed")
    return Row(
        entry.name, entry.room, _named(entry), FAILED, why=why, fix=fix, changes=_words(run.done.get(entry.name, ()))
    )


def _named(entry: Entry) -> str:
    return "" if entry.target == AUTO else entry.target


def _words(shown: Sequence[Step]) -> tuple[str, ...]:
    words = (report.clean(report.words(step)) for step in shown if step.kind != "note" or len(shown) == 1)
    return tuple(dict.fromkeys(words))  # what was tried again is one change


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows as columns of :data:`COLUMNS`; hosts that have all they should have are not shown."""
    return [
        (
            row.host, f"{row.target} ({row.engine})" if row.engine else row.target, row.state,
            "\n".join(row.changes), megabytes(row.size) if row.size else "",
            "\n".join(filter(None, [row.why, row.fix and f"fix: {row.fix}"])),
        )
        for row in rows
        if row.state != OK or row.changes
    ]  # fmt: skip


def show(rows: Sequence[Row], *, planned: bool) -> None:
    """Print the hosts that something is to be said about, and all of them in one line."""
    if shown := table(rows):
        cli.print_table(COLUMNS, shown, wrapped=("changes", COLUMNS[-1]))
    counts = ", ".join(f"{number} {state}" for state, number in report.count(rows).items() if number)
    changed, size = sum(bool(row.changes) for row in rows), megabytes(sum(row.size for row in rows))
    print(f"{counts} of {len(rows)}; {changed} with changes, {size} {'to send' if planned else 'sent'}")


def require_planned(rows: Sequence[Row]) -> None:
    """Raises DistributeError where a host was refused or did not answer, PendingError where changes are pending."""
    if bad := [row.host for row in rows if row.state not in (OK, DRIFT)]:
        raise DistributeError(f"{_hosts(bad)} cannot be planned", found=_few(bad), fix="see their rows")
    if pending := [row.host for row in rows if row.state == DRIFT]:
        raise PendingError(f"changes are pending on {_hosts(pending)} of {len(rows)}", fix="the same without --plan")


def require_applied(rows: Sequence[Row]) -> None:
    """Raises DistributeError where a host has failed."""
    if bad := [row.host for row in rows if row.state != OK]:
        fix = "see their rows; then the same with --limit=@failed"
        raise DistributeError(f"{_hosts(bad)} not as they should be", found=_few(bad), fix=fix)


def _hosts(names: Sequence[str]) -> str:
    return "1 host" if len(names) == 1 else f"{len(names)} hosts"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- what is going on -------------------------------------------------------------------------------------------------


class Board:
    """What each host is at, on stderr: a table on a terminal, lines in a log."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._at = {entry.name: ("", "") for entry in entries}  # state and words; what changed last stands last
        self._live: Any = None
        self._due: Any = None  # the greenlet that draws next
        self._lines = 1  # of hosts, that the terminal has

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._lines = max(1, console.height - 2)
            # Drawn by a greenlet: a thread of its own would not run beside them.
            self._live = Live(console=console, get_renderable=self._drawn, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._due:
            self._due.kill(block=False)
        if self._live:
            self._live.stop()  # draws what is true now

    def doing(self, host: str, what: str) -> None:
        """A host begins with something."""
        self._show(host, "", what, said=what != "asked")

    def wait(self, host: str) -> None:
        """A host waits for its turn."""
        self._show(host, "", "", said=False)

    def end(self, row: Row) -> None:
        """A host has ended."""
        count = len(row.changes)
        what = row.why or (f"{count} change{'s' * (count > 1)}" if count else "nothing to change")
        self._show(row.host, row.state, f"{what}, {row.seconds:.1f} s")

    def say(self, line: str) -> None:
        """One line of prose."""
        if self._live:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show(self, host: str, state: str, what: str, *, said: bool = True) -> None:
        self._at.pop(host, None)
        self._at[host] = (state, what)
        if self._live:
            self._draw_soon()
        elif said:
            print(f"{host}: {f'{state}, ' if state else ''}{what}", file=sys.stderr, flush=True)

    def _draw_soon(self) -> None:
        """Draw once for all that happens within :data:`REDRAW`: hosts wait for whoever draws, and their time runs."""
        import gevent

        def draw() -> None:
            self._due = None
            self._live.refresh()

        if self._due is None:
            self._due = gevent.spawn_later(REDRAW, draw)

    def _drawn(self) -> Any:
        """As many hosts as the terminal has lines for: those at work, those that ended last, and those that wait."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shown = [(host, state, what) for host, (state, what) in reversed(self._at.items())]
        working = sorted(row for row in shown if row[2] and not row[1])
        ordered = [*working, *(row for row in shown if row[1]), *sorted(row for row in shown if not row[2])]
        drawn = Table.grid(padding=(0, 2))
        for _ in range(3):
            drawn.add_column(no_wrap=True, overflow="ellipsis")
        for row in ordered[: self._lines]:
            drawn.add_row(*map(Text, row))
        more = len(ordered) - self._lines
        return Group(drawn, Text(f"{more} of {len(ordered)} hosts are not shown")) if more > 0 else drawn
