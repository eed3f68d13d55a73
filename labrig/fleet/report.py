"""Rows, a host each: made from what a host said, and shown as text, JSON, JUnit XML and one HTML page.

A row holds text that a host wrote. It is cut and cleaned where a row is made, and escaped where one is shown.

The JSON document, which `invoke verify --inventory=FILE --json` prints:

    {"schema": "labrig-room/1", "inventory": "room.toml", "when": "2026-11-27T08:00:00+00:00", "seconds": 12.3,
     "tally": {"OK": 26, "DRIFT": 2, "FAILED": 0, "UNREACHABLE": 1, "TIMEOUT": 0},
     "rows": [{"host", "room", "target", "state", "torch_want", "torch_have", "device", "image", "labs", "disk", "why",
               "fix", "seconds", "changes": [text], "size": bytes, "engine"}]}
"""

from __future__ import annotations

import io
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from labrig.fleet import DRIFT, FAILED, OK, STATES, UNREACHABLE, Row, keys
from labrig.fleet.facts import Facts, Seen
from labrig.fleet.plan import Plan, Step
from labrig.fleet.ssh import Ended
from labrig.fleet.wanted import Wanted, wanted_torch
from labrig.inventory import LOCAL, Entry, Room

SCHEMA = "labrig-room/1"
TEMPLATE = "room/room.html.j2"
COLUMNS = ("host", "target", "state", "torch want/have", "device", "image", "labs", "disk", "why")
NARROW = 120  # columns of a terminal; below it a host is a few lines instead of one
SKEW = 60.0  # seconds that a clock may be off; certificates and tokens begin to fail beyond some minutes
LOW = 2 << 30  # bytes that a disk should have free: a student's day
MOST = 400  # characters of a reason
_STYLES = {OK: "green", DRIFT: "yellow", FAILED: "bold red", UNREACHABLE: "magenta"}


@dataclass(frozen=True)
class Report:
    """A room at a moment. ``inventory`` is the file's name, ``when`` in UTC, ``seconds`` what asking took."""

    inventory: str
    when: datetime
    seconds: float
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that is described above."""
        return {
            "schema": SCHEMA,
            "inventory": self.inventory,
            "when": self.when.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "tally": count(self.rows),
            "rows": [asdict(row) | {"changes": list(row.changes)} for row in self.rows],
        }


# --- rows -------------------------------------------------------------------------------------------------------------


def command(room: Room, *names: str, task: str = "provision") -> str:
    """The command that mends hosts of a room; all of them if none is named."""
    if room.path == Path():
        return f"invoke {task} --host={LOCAL}"
    limit = f" --limit={','.join(names)}" if names else ""
    return f"invoke {task} --inventory={shlex.quote(str(room.path))}{limit}"


def of_ended(entry: Entry, ended: Ended[Any]) -> Row:
    """The row of a host that was not reached, or broke off."""
    return Row(
        host=entry.name,
        room=clean(entry.room),
        target=entry.target,
        state=ended.state or FAILED,
        why=clean(ended.why) or "no answer",
        fix=clean(ended.fix),
        seconds=round(ended.seconds, 3),
    )


def of_plan(plan: Plan, ended: Ended[Any], mend: str = "") -> Row:
    """The row of a host that answered. ``mend`` is the command that carries its steps out (:func:`command`)."""
    facts, wanted = plan.facts, plan.wanted
    seen = torch_of(facts, wanted)
    row = Row(
        host=plan.entry.name,
        room=clean(plan.entry.room),
        target=wanted.target.name if wanted else plan.entry.target,
        state=OK,
        torch_want=wanted_torch(wanted) if wanted else "",
        torch_have=clean(seen.version) if seen else "",
        device=_device(seen),
        image=_image(facts, wanted),
        labs=_labs(facts, wanted),
        disk=f"{facts.free / 1e9:.1f} of {facts.total / 1e9:.1f} GB free",
        seconds=round(ended.seconds, 3),
        changes=tuple(clean(words(step)) for step in plan.steps),
        size=plan.size,
        engine=wanted.engine if wanted else "",
    )
    if plan.refused:
        return replace(row, state=FAILED, why=clean(plan.refused), fix=clean(plan.fix))
    pending = _pending(plan)
    # A torch that does not work is graver than what explains it; only an apply that broke off is expected to leave one.
    if wanted and seen and not facts.unfinished and (wrong := _wrong_torch(seen, wanted)):
        why = "; ".join(filter(None, (wrong, pending)))
        return replace(row, state=FAILED, why=clean(why), fix=mend if pending else _torch_fix(wanted))
    if pending:
        return replace(row, state=DRIFT, why=clean(pending), fix=mend)
    return row


def torch_of(facts: Facts, wanted: Wanted | None) -> Seen | None:
    """What torch said of itself in the environment or image that the host should have; None: it was not asked."""
    if wanted is None:
        return None
    return facts.torch.get(wanted.image.image if wanted.image else wanted.environment)


def warn(rows: Sequence[Row], facts: Mapping[str, Facts], began: float, ended: float) -> list[Row]:
    """Rows with what is not the environment's fault and yet goes wrong one day: a clock, a disk, a cloned machine.

    ``facts`` are by host, ``began`` and ``ended`` when asking the room did (seconds since the epoch): a clock that
    lies between the two is right.
    """
    twins = keys.clones(facts)
    return [
        _noted(row, _warnings(facts[row.host], twins.get(row.host, ()), row.host, began, ended))
        if row.host in facts
        else row
        for row in rows
    ]


def _warnings(facts: Facts, twins: Sequence[str], name: str, began: float, ended: float) -> Iterable[tuple[str, str]]:
    """What is noticed, each with what mends it."""
    off = max(began - facts.time, facts.time - ended)
    if not off <= SKEW:  # a clock may say nan
        side = "behind" if facts.time < began else "ahead"
        yield f"its clock is {span(off)} {side}", f"on {name}: sudo timedatectl set-ntp true"
    if facts.free < LOW:
        yield f"{facts.free / 1e9:.1f} GB are free on its disk", f"make room on {name}"
    if twins:
        more = f" and {len(twins) - 3} more" if len(twins) > 3 else ""
        yield (
            f"a clone: the machine-id is that of {', '.join(twins[:3])}{more}",
            f"on {name}: sudo rm /etc/machine-id /var/lib/dbus/machine-id; sudo systemd-machine-id-setup",
        )


def _noted(row: Row, notes: Iterable[tuple[str, str]]) -> Row:
    for why, fix in notes:
        row = replace(row, why="; ".join(filter(None, (row.why, why))), fix="; ".join(filter(None, (row.fix, fix))))
    return row


def _device(seen: Seen | None) -> str:
    return clean(f"{seen.device} ({seen.name})" if seen.name else seen.device) if seen else ""


def _image(facts: Facts, wanted: Wanted | None) -> str:
    """The image by its digest in the engine, or the native environment by its name: what is there."""
    if wanted is None:
        return ""
    if wanted.image:
        there = facts.images.get(wanted.image.image, "")
        return clean(there.removeprefix("sha256:")[:12]) if there else "none"
    return wanted.environment if wanted.environment in facts.environments else "none"


def _labs(facts: Facts, wanted: Wanted | None) -> str:
    if wanted is None:
        return ""
    if not wanted.labs:
        return "in the image"
    same = sum(facts.labs.get(path) == sha256 for path, sha256 in wanted.labs.items())
    return f"all {same}" if same == len(wanted.labs) else f"{same} of {len(wanted.labs)}"


def _pending(plan: Plan) -> str:
    """What there is to change, in words; empty where nothing is."""
    if plan.facts.unfinished:
        return "an apply has not ended"
    if not plan.steps:
        return ""
    if not plan.facts.applied:
        return "nothing was applied yet"
    # Wheels are sent for an environment, and a note is written after anything.
    telling = [step for step in plan.steps if step.kind not in ("wheels", "note")]
    return "; ".join(map(words, telling or plan.steps))


def words(step: Step) -> str:
    """A step by its kind; one of a few files by their names."""
    named = f" ({', '.join(step.names)})" if step.kind == "labs" and 0 < len(step.names) <= 3 else ""
    return f"{step.kind}{' (sudo)' * step.sudo}: {step.what}{named}"


def _wrong_torch(seen: Seen, wanted: Wanted) -> str:
    if seen.error:
        return f"torch cannot be asked: {seen.error}"
    version, _, local = seen.version.partition("+")
    # As `verify` has it: a Mac's torch has no local part, nor has one from the default index.
    if version != wanted.target.torch or local not in ("", wanted.target.variant):
        return f"torch is {seen.version or 'of no version'}, not {wanted_torch(wanted)}"
    if seen.device != wanted.target.device:
        return f"torch computes on {seen.device or 'nothing'}, not on {wanted.target.device}"
    return ""


def _torch_fix(wanted: Wanted) -> str:
    """What a person does about a torch whose files are all as they should be."""
    if wanted.target.device == "cuda":
        return "on the host: nvidia-smi must show the GPU; then invoke doctor there says what is missing"
    return "invoke doctor, on the host itself, says why"


# --- what they say together -------------------------------------------------------------------------------------------


def count(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows are in each state; every state is there."""
    found = dict.fromkeys(STATES, 0)
    for row in rows:
        found[row.state] = found.get(row.state, 0) + 1
    return found


def tally(report: Report) -> str:
    """``26 OK, 2 DRIFT, 1 UNREACHABLE of 29 in 12.3 s``."""
    states = [f"{number} {state}" for state, number in count(report.rows).items() if number]
    return f"{', '.join(states) or 'no host'} of {len(report.rows)} in {report.seconds:.1f} s"


def bad(rows: Iterable[Row]) -> list[Row]:
    """The rows that a person has to do something about; one that is OK and warns is among them."""
    return [row for row in rows if row.state != OK or row.why]


# --- as text ----------------------------------------------------------------------------------------------------------


def text(rows: Sequence[Row], *, width: int = 200, color: bool = False) -> str:
    """A table; on a narrow terminal a few lines a host. Below each reason stands what mends it."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False, force_terminal=color,
        color_system="standard" if color else None, legacy_windows=False,
    )  # fmt: skip
    with console.capture() as captured:
        if width < NARROW:
            for row in rows:
                _print_block(console, row, width)
        else:
            console.print(_table(rows))
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def _cells(row: Row) -> tuple[str, ...]:
    torch = f"{row.torch_want or '?'} / {row.torch_have or '-'}" if row.torch_want or row.torch_have else ""
    return (row.host, row.target, row.state, torch, row.device, row.image, row.labs, row.disk)


def _table(rows: Sequence[Row]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in ("host", "state", "target"))
    for row in rows:
        host, target, state, *rest = map(clean, _cells(row))
        why = "\n".join(filter(None, (clean(row.why), row.fix and f"-> {clean(row.fix)}")))
        shown = (Text(host), Text(target), Text(state, style=_STYLES.get(state, "red")), *map(Text, rest), Text(why))
        table.add_row(*shown)
    return table


def _print_block(console: Any, row: Row, width: int) -> None:
    from rich.text import Text

    host, target, state, *rest = map(clean, _cells(row))
    console.print(Text.assemble((state, _STYLES.get(state, "red")), f"  {host}  {target}"))
    labels = ("torch", "", "", "labs", "")
    facts = ", ".join(f"{label} {value}".strip() for label, value in zip(labels, rest, strict=True) if value)
    for line, lead in ((facts, "  "), (clean(row.why), "  "), (clean(row.fix), "  -> ")):
        if line:
            folded = textwrap.wrap(line, width, initial_indent=lead, subsequent_indent="  ", break_on_hyphens=False)
            console.print(Text("\n".join(folded)))


# --- for programs -----------------------------------------------------------------------------------------------------


def junit(report: Report) -> str:
    """JUnit's XML, a test case a host; a host that is not OK has failed, also one that was not reached.

    In the shape that CI systems share: ``testsuites/testsuite/testcase/failure``
    (github.com/testmoapp/junitxml says which of them reads what).
    """
    failed = [row for row in report.rows if row.state != OK]
    totals = {"tests": str(len(report.rows)), "failures": str(len(failed)), "errors": "0", "skipped": "0",
              "time": f"{report.seconds:.3f}"}  # fmt: skip
    top = ElementTree.Element("testsuites", {"name": "labrig", **totals})
    stamp = report.when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    name = _legal(report.inventory) or "room"
    suite = ElementTree.SubElement(top, "testsuite", {"name": name, **totals, "timestamp": stamp})
    for row in report.rows:
        case = {"classname": _legal(row.room) or name, "name": _legal(row.host), "time": f"{row.seconds:.3f}"}
        element = ElementTree.SubElement(suite, "testcase", case)
        if row.state != OK:
            failure = ElementTree.SubElement(
                element, "failure", {"message": _legal(f"{row.state}: {row.why}"), "type": _legal(row.state)}
            )
            failure.text = _legal("\n".join(filter(None, (row.why, row.fix and f"fix: {row.fix}", *row.changes))))
        elif row.why:
            ElementTree.SubElement(element, "system-out").text = _legal(f"{row.why}\nfix: {row.fix}")
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode", xml_declaration=False) + "\n"


def html(report: Report, templates: Path) -> str:
    """One page that loads nothing from anywhere."""
    from labrig import render

    worst_first = sorted(report.rows, key=lambda row: (row.state == OK, not row.why))
    return (
        render.jinja(templates)
        .get_template(TEMPLATE)
        .render(
            report=report,
            rows=[(row, [_legal(one) for one in (*_cells(row), row.why, row.fix)]) for row in worst_first],
            columns=COLUMNS,
            states=count(report.rows),
            tally=tally(report),
            when=report.when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


# --- words ------------------------------------------------------------------------------------------------------------


def clean(said: str, most: int = MOST) -> str:
    """Text in one line that does nothing to a terminal: no control characters, none that turn the direction."""
    shown = _legal(" ".join(said.split()))
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def span(seconds: float) -> str:
    """A time for people: ``75 s``, ``12 min``, ``3 h``, ``40 days``."""
    for most, size, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _legal(said: str) -> str:
    """Text that XML 1.0 (section 2.2) and a page can hold, lines kept."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in said)
