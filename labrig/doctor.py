"""What a machine can run and what to do about the rest: `invoke doctor`, for this host, a described one, or a room.

The verdicts come from labrig.compat. For people they are text, for programs JSON; nothing is fetched and no torch is
imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labrig import compat, inventory, matrix
from labrig.compat import CPU_ONLY, NO_INSTALL, RUNS, Build, Cause, Finding, judge
from labrig.description import Machine
from labrig.description import parse as describe
from labrig.errors import UsageError
from labrig.host import Host, read_host
from labrig.inventory import AUTO, Entry
from labrig.spec import Table, Target

TOOLKIT_FIX = (
    "install the NVIDIA Container Toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl "
    "restart docker"
)


@dataclass(frozen=True)
class Obstacle:
    """One reason why CUDA is not available on a machine (or in its containers), and what removes it."""

    cause: Cause
    reason: str
    fix: str


# --- reports ----------------------------------------------------------------------------------------------------------


def examine(table: Table, description: str = "", releases: Sequence[str] = ()) -> dict[str, Any]:
    """Judge this host, or a described machine, for the table's targets, or for torch releases ("2.13.0+cu130").

    Raises:
        UsageError: a description or a release that is not understood.
    """
    machine = describe(description) if description else Machine(read_host())
    targets = [compat.of_target(target) for target in table.targets.values()]
    if not releases:
        return report_builds(targets, machine.host, machine.assumed)
    builds = [compat.of_release(text, machine.host) for text in releases]
    return report_builds(builds, machine.host, machine.assumed, targets)


def examine_room(table: Table, path: Path, *, alone: bool = True) -> list[dict[str, Any]]:
    """Judge every machine of an inventory file; ``alone`` says that no other machine or build was named as well.

    Raises:
        UsageError: it was, or something in the file is wrong.
    """
    if not alone:
        raise UsageError("--inventory goes with neither --for nor --build", fix="ask one of them at a time")
    return report_room(table.targets, inventory.read(path).hosts)


def report(targets: Sequence[Target], host: Host, assumed: Sequence[str] = ()) -> dict[str, Any]:
    """The answer of `doctor --json` about targets; see :func:`report_builds`."""
    return report_builds([compat.of_target(target) for target in targets], host, assumed)


def report_builds(
    builds: Sequence[Build], host: Host, assumed: Sequence[str] = (), others: Sequence[Build] = ()
) -> dict[str, Any]:
    """A JSON document: "host", "assumed" (in a description), "best", "cuda" (why it is not available: causes, most
    basic first), "targets" (name, verdict, reason, fix, cause, sources: ids), "sources" (what the ids mean).

    Fixes may name one of the builds, or of the ``others``.
    """
    best = compat.best(builds, host)
    findings = [judge(build, host, [*builds, *others]) for build in builds]
    ids = sorted({each for finding in findings for each in finding.sources})
    return {
        "host": host.to_json(),
        "assumed": list(assumed),
        "best": best.name if best else None,
        "cuda": [asdict(each) for each in obstacles(builds, host)],
        "targets": [asdict(finding) | {"sources": list(finding.sources)} for finding in findings],
        "sources": {each: asdict(known) for each in ids if (known := matrix.source(each))},
    }


def report_room(targets: Mapping[str, Target], entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One object for each machine of a room: name, room, target (of the inventory, or the best), verdict, reason, fix,
    cause, sources, assumed.

    Raises:
        UsageError: an entry names a target that there is not.
    """
    builds = [compat.of_target(target) for target in targets.values()]
    found = []
    for entry in entries:
        if entry.target != AUTO and entry.target not in targets:
            raise UsageError(
                f"the inventory's host {entry.name}: no target {entry.target!r}",
                found=f"targets: {', '.join(targets)}",
                fix=f'write one of these, or "{AUTO}"',
            )
        finding = _of_entry(builds, entry)
        row = {"host": entry.name, "room": entry.room, "target": finding.name}
        row |= {key: value for key, value in asdict(finding).items() if key != "name"}
        found.append(row | {"sources": list(finding.sources), "assumed": list(inventory.described(entry).assumed)})
    return found


def _of_entry(builds: Sequence[Build], entry: Entry) -> Finding:
    """The verdict for the target that an inventory names, or for the best one.

    Where the best one leaves a GPU unused, the machine's problem is that GPU: the verdict is the one of the target for
    it that is nearest to running.
    """
    host = inventory.described(entry).host
    if entry.target != AUTO:
        return judge(next(build for build in builds if build.name == entry.target), host, builds)
    best = compat.best(builds, host)
    if best is None:
        return _nearest(builds, host)
    finding = judge(best, host, builds)
    unused = host.gpus and best.device == "cpu"
    if unused:
        other = _nearest([build for build in builds if build.device == "cuda"], host, builds)
        reason = f"on the CPU; its GPU is not used: {other.reason}"
        return Finding(best.name, finding.verdict, reason, other.fix, other.cause, other.sources)
    return finding


def _nearest(builds: Sequence[Build], host: Host, others: Sequence[Build] = ()) -> Finding:
    findings = [judge(build, host, others or builds) for build in builds]
    order = (RUNS, CPU_ONLY, compat.FAILS, compat.UNKNOWN, NO_INSTALL)
    return min(findings, key=lambda finding: order.index(finding.verdict))


# --- why CUDA is not available ----------------------------------------------------------------------------------------


def obstacles(builds: Sequence[Build], host: Host) -> tuple[Obstacle, ...]:
    """Every known reason why CUDA is not available on a host: what to mend first comes first. () where none is known.

    Looked at are the driver and the GPUs (by the best CUDA build of ``builds``), what hides them, the torch in use, and
    whether containers get a GPU. Nothing is said of a machine that shows no sign of an NVIDIA GPU but that.
    """
    if host.os == "macos":
        return ()
    found: list[Obstacle] = []
    of_cuda = [build for build in builds if build.device == "cuda"]
    finding = _nearest(of_cuda, host, builds) if of_cuda else None
    if finding and finding.cause:
        found.append(Obstacle(finding.cause, finding.reason, finding.fix))
    if not host.gpus:
        return tuple(found)
    if hidden := _hidden(host):
        found.append(hidden)
    if in_use := _in_use(host, builds):
        found.append(in_use)
    if host.docker_gpus is False and host.docker:
        reason = "containers here get no GPU: Docker has no NVIDIA runtime, no CDI device and no hook (moby/moby)"
        found.append(Obstacle("no NVIDIA Container Toolkit", reason, f"{TOOLKIT_FIX}; natively: --engine=venv"))
    return tuple(dict.fromkeys(found))


def _hidden(host: Host) -> Obstacle | None:
    """CUDA takes the list up to the first entry that is no device (CUDA C++ Programming Guide)."""
    if host.visible_devices is None:
        return None
    seen = 0
    for each in host.visible_devices.split(","):
        name = each.strip()
        if name.startswith(("GPU-", "MIG-")):
            return None  # by UUID: which of the cards that is, is not asked
        if not name.isdecimal() or int(name) >= len(host.gpus):
            break
        seen += 1
    if seen:
        return None
    reason = f"CUDA_VISIBLE_DEVICES={host.visible_devices!r} names none of the {len(host.gpus)} GPUs here"
    return Obstacle("hidden by CUDA_VISIBLE_DEVICES", reason, "unset CUDA_VISIBLE_DEVICES")


def _in_use(host: Host, builds: Sequence[Build]) -> Obstacle | None:
    """What is wrong with the torch of the environment in use."""
    if host.torch is None:
        return None
    what = f"the torch in use, {host.torch.version} in {host.torch.where}"
    if host.torch.cuda is None:
        best = compat.best([build for build in builds if build.device == "cuda"], host)
        fix = f"use {best.words}" if best and judge(best, host).verdict == RUNS else "install a build for CUDA"
        return Obstacle("CPU wheel", f"{what}, is a build for the CPU", f"{fix}; `invoke select` says how with pip")
    release = host.torch.version.partition("+")[0]
    try:
        build = compat.of_release(f"{release}+cu{host.torch.cuda.replace('.', '')}", host)
    except UsageError:  # a nightly, or one that the tables do not have
        return None
    finding = judge(build, host, builds)
    return Obstacle(finding.cause, f"{what}: {finding.reason}", finding.fix) if finding.cause else None


# --- for people -------------------------------------------------------------------------------------------------------

_MARKS = {
    "container": "container",
    "wsl": "WSL2",
    "translated": "Rosetta",
    "virtual": "virtual machine",
    "remote": "ssh, not logged in at the screen",
}
# Colours on a terminal, and in the pictures of the docs; the word itself says it all.
STYLES = {
    RUNS: "green", CPU_ONLY: "yellow", compat.FAILS: "red", NO_INSTALL: "red", compat.UNKNOWN: "magenta",
}  # fmt: skip


def render(report: Mapping[str, Any], *, width: int = 100, color: bool = False) -> str:
    """A report as text: what was found, which target is best, why CUDA is not available, and the verdicts."""
    host = report["host"]
    described = host["found_by"] == "description"
    gpus = ", ".join(f"{gpu['name']} ({gpu['capability'] or 'capability unknown'})" for gpu in host["gpus"])
    marks = [name for key, name in _MARKS.items() if host[key]]
    found = {
        "system": ", ".join(filter(None, [f"{host['os']} {host['os_version']}".strip(), host["arch"], *marks])),
        "C library": host["libc"],
        "Python": host["python"],
        "Docker": host["docker"] or ("" if described else f"none ({host['docker_error'] or 'not asked'})"),
        "NVIDIA driver": host["driver"] or ("" if host["os"] == "macos" else "none"),
        "GPUs": gpus or host["gpu_error"] or ("" if host["os"] == "macos" else "none"),
        "chip": host["chip"],
        "torch in use": f"{host['torch']['version']} in {host['torch']['where']}" if host["torch"] else None,
        "assumed": "; ".join(report["assumed"]),
        "found by": None if host["found_by"] in ("queries", "description") else host["found_by"],
        "best": report["best"] or "none: see below",
    }
    lines = [(label, value) for label, value in found.items() if value]
    for each in report["cuda"]:
        lines.append(("CUDA", f"not available, {each['cause']}: {each['reason']}"))
        lines += [("", f"fix: {each['fix']}")] if each["fix"] else []
    return _render_verdicts(lines, report, width, color)


def _render_verdicts(facts: Sequence[tuple[str, str]], report: Mapping[str, Any], width: int, color: bool) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    buffer = StringIO()
    console = Console(
        file=buffer, width=width, color_system="standard" if color else None, force_terminal=color, highlight=False
    )
    grid = Table.grid(padding=(0, 2))
    for label, value in facts:
        grid.add_row(label, Text(value))
    console.print(grid)
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in ("build", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("why, and what to do")
    for finding in report["targets"]:
        cited = f" [{' '.join(finding['sources'])}]" if finding["sources"] else ""
        lines = [finding["reason"] + cited, *([f"fix: {finding['fix']}"] if finding["fix"] else [])]
        verdict = Text(finding["verdict"], style=STYLES[finding["verdict"]])
        table.add_row(Text(finding["name"]), verdict, Text("\n".join(lines)))
    console.print(table)
    if report["sources"]:
        console.print()
        legend = Table.grid(padding=(0, 2))
        for name, source in report["sources"].items():
            legend.add_row(name, Text(f"{source['name']}: {_short(source['where'])} ({source['read']})"))
        console.print(legend)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + " ..."


ROOM_COLUMNS = ("host", "room", "target", "verdict", "why, and what to do")


def room_rows(rooms: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A room's report as rows of :data:`ROOM_COLUMNS`."""
    return [
        (
            row["host"],
            row["room"],
            row["target"],
            row["verdict"],
            "\n".join([row["reason"], *([f"fix: {row['fix']}"] if row["fix"] else [])]),
        )
        for row in rooms
    ]


def tally(rooms: Sequence[Mapping[str, Any]]) -> str:
    """A room in one line: how many machines there are of each verdict."""
    counts = {word: sum(row["verdict"] == word for row in rooms) for word in compat.VERDICTS}
    unused = sum(bool(row["cause"]) and row["verdict"] == RUNS for row in rooms)
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{len(rooms)} machines: {words}" + (f"; {unused} of those with a GPU that is not used" if unused else "")
