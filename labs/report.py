"""One HTML page of a run, or of several side by side: pictures and styles inline, no script, nothing fetched.

What happened comes from the files of the run; what a lab asks and what to look for comes from its source (page.py).
"""

from __future__ import annotations

import base64
import csv
import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs import check
from labs.harness import write_atomically
from labs.page import PARADIGMS, Page, discover

MARKS = {"passed": "✓", "failed": "✗", "error": "✗", "skipped": "–", "interrupted": "◦", "running": "◦"}


@dataclass(frozen=True)
class Outcome:
    """One lab of one run. `record` is None when the lab left none that can be read."""

    page: Page
    folder: Path
    status: str
    reason: str
    record: dict[str, Any] | None


def write(runs: list[Path], out: Path) -> Path:
    """Render the runs to `out` (written atomically) and return it."""
    read = [read_outcomes(run) for run in runs]
    names = [run.resolve().name for run in runs]
    write_atomically(out, render(names, read))
    return out


def read_outcomes(run: Path) -> dict[str, Outcome]:
    """What each lab of a run came to, in reading order."""
    pages = discover()
    try:
        memory = json.loads((run / "run.json").read_text(encoding="utf-8"))["labs"]
    except (OSError, ValueError, KeyError):
        memory = {}
    found = sorted({path.parent.name for path in run.glob("*/metrics.json")} | set(memory))
    outcomes = {}
    for lab in found:
        entry, record, folder = memory.get(lab, {}), None, run / lab
        status, reason = entry.get("status", ""), entry.get("reason") or ""
        try:
            record = check.read_record(folder)
            status, reason = status or record["status"], reason or record["reason"] or ""
        except check.Unreadable as error:
            status, reason = status or "error", reason or str(error)
        title = record["lab"]["title"] if record else lab
        outcomes[lab] = Outcome(pages.get(lab, Page(lab, folder, title)), folder, status, reason, record)
    return outcomes


# ---------------------------------------------------------------------------------------------- small things


def esc(text: object) -> str:
    return html.escape(str(text), quote=True)


def prose(text: str) -> str:
    """The little Markdown that labs use: `code`, *emphasis*."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", esc(text))
    return re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", text)


def number(value: float | None) -> str:
    """Four digits at most, thousands apart, powers of ten written as such."""
    if value is None:
        return "not a number"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        factor = "" if mantissa == "1.0" else f"{mantissa} × "
        return f"{factor}10<sup>{int(exponent)}</sup>".replace("-", "−")
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def seconds(value: float) -> str:
    return f"{value / 60:.1f} min" if value >= 120 else f"{value:.1f} s"


def pill(status: str, text: str = "") -> str:
    return f'<span class="pill {esc(status)}">{MARKS.get(status, "?")} {esc(text or status)}</span>'


def main_gate(record: dict[str, Any]) -> dict[str, Any] | None:
    """The gate that says most: the first against a baseline, else the first."""
    gates = record["gates"]
    return next((g for g in gates if g["baseline"]), gates[0] if gates else None)


def baseline_value(gate: dict[str, Any], record: dict[str, Any]) -> float | None:
    entry = record["baselines"].get(gate["baseline"] or "")
    return entry["value"] if entry else None


def margin_bar(gate: dict[str, Any], baseline: float | None) -> str:
    """Better is to the right: a hollow dot for the baseline, a line for the gate, a full dot for us."""
    value, limit, flip = gate["value"], gate["limit"], gate["op"].startswith("<")
    if value is None or limit is None or gate["op"] == "==" or (flip and limit <= 0):
        return ""  # counts and exact zeros have no scale
    points = [p for p in (value, limit, baseline) if p is not None]
    positive = [p for p in points if p > 0]
    logarithmic = bool(positive) and min(points) >= 0 and (baseline is None or max(positive) / min(positive) > 30)
    floor = min(positive) / 10 if positive else 1.0

    def scale(x: float) -> float:
        x = math.log10(max(x, floor)) if logarithmic else x
        return -x if flip else x

    low, high = min(map(scale, points)), max(map(scale, points))
    width = max(high - low, 16.0 if logarithmic and baseline is None else 0.0) or 1.0

    def place(x: float) -> float:
        return 10 + 160 * (scale(x) - low) / width

    colour = {True: "good", False: "bad", None: "muted"}[gate["passed"]]
    at, line = place(value) if value or not logarithmic else 170.0, place(limit)  # 0 is beyond every power of ten
    dot = f'<circle cx="{place(baseline):.1f}" cy="11" r="4" class="baseline"/>' if baseline is not None else ""
    return (
        f'<svg class="margin {colour}" viewBox="0 0 180 22" role="img" aria-label="{esc(margin_text(gate))}">'
        f'<line x1="6" x2="174" y1="11" y2="11" class="track"/>'
        f'<line x1="{min(at, line):.1f}" x2="{max(at, line):.1f}" y1="11" y2="11" class="lead"/>'
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="3" y2="19" class="gate"/>{dot}'
        f'<circle cx="{at:.1f}" cy="11" r="5" class="ours"/></svg>'
    )


def margin_text(gate: dict[str, Any]) -> str:
    """The margin in words, plain text."""
    value, limit, margin = gate["value"], gate["limit"], gate["margin"]
    if margin is None:
        return "not a number"
    if gate["op"] == "==":
        return "as it must be" if margin == 0 else f"off by {abs(margin):.3g}"
    if value == 0 and gate["op"].startswith("<"):
        return "exact: no difference at all"
    if value == limit:
        return "exactly at the gate"
    side = "beyond" if margin > 0 else "short of"
    if value > 0 and limit > 0 and (ratio := max(value / limit, limit / value)) >= 3:
        return f"{ratio:,.0f} times {side} the gate"
    return f"{abs(margin):.3g} {side} the gate"


def picture(folder: Path, plot: dict[str, str]) -> str:
    data = base64.b64encode((folder / plot["file"]).read_bytes()).decode()
    return f'<img alt="{esc(plot["alt"])}" src="data:image/png;base64,{data}">'


def sparkline(path: Path) -> str:
    """The curves a lab logged, each as a small line; logarithmic when all values are positive."""
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    except (OSError, ValueError, KeyError):
        return ""
    drawn = []
    for name, points in curves.items():
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if len(points) < 3:
            continue
        heights = [math.log(v) if all(p[1] > 0 for p in points) else v for _, v in points]
        low, high = min(heights), max(heights)
        first, last = points[0][0], points[-1][0]
        line = " ".join(
            f"{2 + 196 * (s - first) / max(1, last - first):.1f},{38 - 34 * (h - low) / ((high - low) or 1):.1f}"
            for (s, _), h in zip(points, heights, strict=True)
        )
        text = f"{name} {number(points[0][1])} → {number(points[-1][1])} in {last + 1:,} steps"
        svg = f'<svg viewBox="0 0 200 40" aria-hidden="true"><polyline points="{line}"/></svg>'
        drawn.append(f'<figure class="spark">{svg}<figcaption>{text}</figcaption></figure>')
    return "".join(drawn)


# ---------------------------------------------------------------------------------------------- the page


def render(names: list[str], runs: list[dict[str, Outcome]]) -> str:
    labs = sorted({lab for outcomes in runs for lab in outcomes})
    several = len(runs) > 1
    heads = "".join(run_head(name if several else "", outcomes) for name, outcomes in zip(names, runs, strict=True))
    table = comparison_table(names, runs) if several else summary_table(runs[0])
    cards = "".join(
        part_head(paradigm) + "".join(card(lab, names, [outcomes.get(lab) for outcomes in runs]) for lab in members)
        for paradigm, members in by_paradigm(runs, labs)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Labs: {esc(", ".join(names))}</title>
<style>{STYLE}</style></head><body>
<header><p class="kicker">Labs that prove their own claims</p>{heads}</header>
<main>{table}{cards}</main>
<footer>Better is always to the right: <span class="key ours"></span> measured, <span class="key gate"></span> the gate
it must pass, <span class="key baseline"></span> the simple method in the same run. Made by
<code>python -m labs report</code>; check it again with <code>python -m labs verify</code>.</footer>
</body></html>
"""


def by_paradigm(runs: list[dict[str, Outcome]], labs: list[str]) -> list[tuple[str, list[str]]]:
    """The labs of each paradigm, in reading order; what names none of them comes last."""
    groups: dict[str, list[str]] = {paradigm: [] for paradigm in PARADIGMS}
    for lab in labs:
        page = next(outcomes[lab].page for outcomes in runs if lab in outcomes)
        groups.setdefault(page.paradigm, []).append(lab)
    return [(paradigm, members) for paradigm, members in groups.items() if members]


def part_head(paradigm: str) -> str:
    return f'<section class="part"><h2>{esc(paradigm.capitalize())}</h2>{part_text(paradigm)}</section>'


def part_text(paradigm: str) -> str:
    return f"<p>{esc(PARADIGMS[paradigm])}</p>" if paradigm in PARADIGMS else ""


def group_row(paradigm: str, columns: int) -> str:
    return f'<tr class="part"><th colspan="{columns}" scope="rowgroup">{esc(paradigm.capitalize())}</th></tr>'


def run_head(name: str, outcomes: dict[str, Outcome]) -> str:
    statuses = [o.status for o in outcomes.values()]
    counts = {status: statuses.count(status) for status in ("passed", "skipped", "failed", "error")}
    counts["interrupted"] = len(statuses) - sum(counts.values())
    words = [f'<span class="{status}">{n} {status}</span>' for status, n in counts.items() if n]
    line = ", ".join(words) or "nothing ran"
    reasons = [f"{esc(o.page.id)}: {esc(o.reason)}" for o in outcomes.values() if o.reason and o.status != "passed"]
    why = f'<p class="why">{"<br>".join(reasons)}</p>' if reasons else ""
    title = f'<p class="run">{esc(name)}</p>' if name else ""
    return f"<section>{title}<h1>{line}</h1>{why}{environment(outcomes)}</section>"


def environment(outcomes: dict[str, Outcome]) -> str:
    record = next((o.record for o in outcomes.values() if o.record), None)
    if record is None:
        return ""
    env, args = record["env"], record["args"]
    chip = re.sub(r"\((R|TM)\)| Processor| CPU", "", env["device_name"])
    records = [o.record for o in outcomes.values() if o.record]
    wall, cpu = (sum(record["time"][clock] for record in records) for clock in ("wall_s", "cpu_s"))
    memory = max(record["memory"]["peak_rss_mib"] for record in records)
    facts = [
        ("torch", env["torch"]), ("device", f"{args['device']} · {chip}"), ("Python", env["python"]),
        ("system", f"{env['os']}, {env['arch']}"),
        ("CPU quota", f"{env['cpu_quota']:g}, load {env['load_avg'][0]:g}"),
        ("each lab", f"{args['threads']} thread{'s' * (args['threads'] > 1)}, seed {args['seed']}"),
        ("time", f"{seconds(wall)}, {seconds(cpu)} of CPU"),
        ("most memory", f"{memory:,.0f} MiB"),
    ]  # fmt: skip
    if env["image_id"]:
        facts.append(("image", env["image_id"]))
    quick = '<p class="quick">Quick sizes: only exact gates were checked, the rest is for looking.</p>' * args["quick"]
    return '<dl class="env">' + "".join(f"<div><dt>{k}</dt><dd>{esc(v)}</dd></div>" for k, v in facts) + f"</dl>{quick}"


def link(lab: str, page: Page) -> str:
    return f'<a class="lab" href="#{esc(lab)}">{esc(lab[:2])} · {esc(page.title)}</a>'


def summary_table(outcomes: dict[str, Outcome]) -> str:
    rows = []
    for paradigm, lab in with_parts([outcomes]):
        if lab is None:
            rows.append(group_row(paradigm, 9))
            continue
        outcome = outcomes[lab]
        name = f"<td>{link(lab, outcome.page)}</td><td>{pill(outcome.status)}</td>"
        record, gate = outcome.record, main_gate(outcome.record) if outcome.record else None
        if record is None or gate is None:
            rows.append(f'<tr>{name}<td colspan="7" class="why">{esc(outcome.reason)}</td></tr>')
            continue
        theirs, metric = baseline_value(gate, record), gate["metric"].replace("_", " ")
        memory = record["memory"]["device_peak_mib"] or record["memory"]["peak_rss_mib"]
        rows.append(
            f'<tr>{name}<td>{esc(metric)}</td><td class="n"><b>{number(gate["value"])}</b></td>'
            f'<td class="n">{number(theirs) if theirs is not None else "·"}</td>'
            f'<td class="bar">{margin_bar(gate, theirs)}</td>'
            f'<td class="n">{seconds(record["time"]["wall_s"])}</td><td class="n">{memory:,.0f} MiB</td>'
            f"<td>{esc(record['args']['device'])}</td></tr>"
        )
    heads = ("Lab", "", "Metric", "Measured", "Baseline", "Margin", "Time", "Memory", "Device")
    numeric = ("Measured", "Baseline", "Time", "Memory")
    cells = "".join(f'<th class="n">{h}</th>' if h in numeric else f"<th>{h}</th>" for h in heads)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def with_parts(runs: list[dict[str, Outcome]]) -> Iterator[tuple[str, str | None]]:
    """(paradigm, None) before its labs, then (paradigm, lab) for each."""
    for paradigm, members in by_paradigm(runs, sorted({lab for outcomes in runs for lab in outcomes})):
        yield paradigm, None
        for lab in members:
            yield paradigm, lab


def comparison_table(names: list[str], runs: list[dict[str, Outcome]]) -> str:
    """One column group per run; the speed-up is in wall time against the first run."""
    heads = '<th rowspan="2">Lab</th><th rowspan="2">Metric</th>'
    heads += "".join(f'<th colspan="3" class="group">{esc(name)}</th>' for name in names)
    second = "".join('<th class="n">Measured</th><th class="n">Time</th><th>Result</th>' for _ in names)
    rows = []
    for paradigm, lab in with_parts(runs):
        if lab is None:
            rows.append(group_row(paradigm, 2 + 3 * len(runs)))
            continue
        first = next(o for o in (outcomes.get(lab) for outcomes in runs) if o)
        records = [outcomes[lab].record if lab in outcomes else None for outcomes in runs]
        gates = [main_gate(record) if record else None for record in records]
        metric = next((g["metric"] for g in gates if g), "").replace("_", " ")
        row = f"<td>{link(lab, first.page)}</td><td>{esc(metric)}</td>"
        reference = runs[0].get(lab)
        for index, (outcomes, gate) in enumerate(zip(runs, gates, strict=True)):
            outcome = outcomes.get(lab)
            if outcome is None or outcome.record is None or gate is None:
                row += f'<td colspan="3" class="why group">{esc(outcome.reason if outcome else "not run")}</td>'
                continue
            wall, speed = outcome.record["time"]["wall_s"], ""
            if index and reference and reference.record and wall:
                speed = f"<small>{reference.record['time']['wall_s'] / wall:.1f} × as fast</small>"
            device, load = outcome.record["args"]["device"], outcome.record["env"]["load_avg"][0]
            row += (
                f'<td class="n group"><b>{number(gate["value"])}</b></td><td class="n">{seconds(wall)}{speed}</td>'
                f"<td>{pill(outcome.status)}<small>{esc(device)}, load {load:g}</small></td>"
            )
        rows.append(f"<tr>{row}</tr>")
    return (f'<div class="scroll"><table><thead><tr>{heads}</tr><tr>{second}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>")  # fmt: skip


def card(lab: str, names: list[str], outcomes: list[Outcome | None]) -> str:
    outcome = next((o for o in outcomes if o and o.record), next(o for o in outcomes if o))
    page, record = outcome.page, outcome.record
    parts = [
        f'<article id="{esc(lab)}"><header class="cardhead"><p class="kicker">{esc(lab[:2])} · {esc(page.paradigm)}</p>'
        f"<h3>{esc(page.title)}</h3>{pill(outcome.status)}</header>"
    ]
    if page.question:
        parts.append(f'<p class="question">{prose(page.question)}</p>')
    if outcome.reason:
        parts.append(f'<p class="why">{esc(outcome.reason)}</p>')
    error = outcome.folder / "error.txt"
    if outcome.status == "error" and error.is_file():
        tail = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        parts.append(f"<pre>{esc(chr(10).join(tail))}</pre>")
    plots = [p for p in (record["plots"] if record else []) if (outcome.folder / p["file"]).is_file()]
    plots = [picture(outcome.folder, p) for p in plots]
    see = f"<figcaption><b>What you should see.</b> {prose(page.see)}</figcaption>" if page.see else ""
    if plots:
        parts.append(f"<figure>{plots[0]}{see}{''.join(plots[1:])}</figure>")
    if record:
        if len([o for o in outcomes if o and o.record]) > 1:
            parts.append(metrics_by_run(names, outcomes))
        parts.append(gates_table(record))
        parts.append(sparkline(outcome.folder / "curves.csv"))
        parts.append('<div class="pair">' + honest_box(page, record) + exercises_box(page) + "</div>")
        parts.append(small_print(record))
    return "".join(parts) + "</article>"


def metrics_by_run(names: list[str], outcomes: list[Outcome | None]) -> str:
    metrics: dict[str, None] = {}
    for outcome in outcomes:
        metrics |= dict.fromkeys(outcome.record["metrics"]) if outcome and outcome.record else {}
    rows = ""
    for metric in metrics:
        cells = ""
        for outcome in outcomes:
            entry = outcome.record["metrics"].get(metric) if outcome and outcome.record else None
            cells += f'<td class="n">{number(entry["value"]) if entry else "·"}</td>'
        rows += f"<tr><td>{esc(metric.replace('_', ' '))}</td>{cells}</tr>"
    heads = "".join(f'<th class="n">{esc(name)}</th>' for name in names)
    table = f"<thead><tr><th>Metric</th>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="small">{table}</table></div>'


def gates_table(record: dict[str, Any]) -> str:
    if not record["gates"]:
        return ""
    rows = ""
    for gate in record["gates"]:
        status = {True: "passed", False: "failed", None: "skipped"}[gate["passed"]]
        text = {True: "held", False: "missed", None: "not checked"}[gate["passed"]]
        theirs = baseline_value(gate, record)
        op = {"<=": "≤", ">=": "≥", "==": "="}.get(gate["op"], esc(gate["op"]))
        against = ""
        if theirs is not None:
            against = f"<small>{esc(record['baselines'][gate['baseline']]['source'])}: {number(theirs)}</small>"
        rows += (
            f"<tr><td>{pill(status, text)}</td><td>{esc(gate['text'])}{against}</td>"
            f'<td class="n"><b>{number(gate["value"])}</b> <span class="limit">{op} {number(gate["limit"])}</span></td>'
            f'<td class="bar">{margin_bar(gate, theirs)}<small>{esc(margin_text(gate))}</small></td></tr>'
        )
    return f'<h4>Gates</h4><div class="scroll"><table class="gates"><tbody>{rows}</tbody></table></div>'


def honest_box(page: Page, record: dict[str, Any]) -> str:
    if not page.simple_wins and not record["honest"]:
        return ""
    items = "".join(
        f'<p class="versus">{esc(h["text"])}<br><span class="ours">ours <b>{number(h["ours"])}</b></span> '
        f'<span class="theirs">theirs <b>{number(h["theirs"])}</b></span></p>'
        for h in record["honest"]
    )
    intro = f"<p>{prose(page.simple_wins)}</p>" if page.simple_wins else ""
    return f'<section class="box"><h4>Where simple methods win</h4>{intro}{items}</section>'


def exercises_box(page: Page) -> str:
    items = "".join(f"<li>{prose(item)}</li>" for item in page.exercises)
    return f'<section class="box try"><h4>Try this</h4><ol>{items}</ol></section>' if items else ""


def small_print(record: dict[str, Any]) -> str:
    lines = []
    for data in record["data"]:
        kind = ", synthetic" if data["synthetic"] else ""
        lines.append(f"Data: {esc(data['name'])}{kind}, {data['rows']:,} rows, {esc(data['licence'])}, "
                     f"sha256 <code>{esc(data['sha256'][:12])}</code>")  # fmt: skip
    lines += [f"Fallback: {esc(f['op'])} ran on {esc(f['to'])} instead of {esc(f['from'])}, {esc(f['why'])}"
              for f in record["fallbacks"]]  # fmt: skip
    clock = record["time"]
    trained = f", {seconds(clock['train_s'])} of it training" if clock["train_s"] is not None else ""
    lines.append(f"{seconds(clock['wall_s'])}{trained}; {clock['cpu_s']:.1f} CPU seconds, "
                 f"{record['memory']['peak_rss_mib']:,.0f} MiB at most")  # fmt: skip
    return f'<p class="fine">{"<br>".join(lines)}</p>'


STYLE = """
:root{--bg:#f6f5f1;--card:#fff;--ink:#1f2328;--soft:#5f6670;--line:#e2e0da;--ours:#0b6fb8;--base:#d9780f;
  --good:#0a7d5f;--bad:#b93a17;--tint:#f3f6f9;--try:#f2f8f4;--code:#eef0f2;--skip:#6b7280}
@media(prefers-color-scheme:dark){
  :root{--bg:#14171b;--card:#1c2026;--ink:#e7e9ec;--soft:#a0a8b3;--line:#323841;--ours:#58aee8;--base:#eba04c;
    --good:#4cc39b;--bad:#f08562;--tint:#222932;--try:#1f2b27;--code:#2a3038;--skip:#98a1ad}
  figure img{filter:brightness(.93)}
}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",sans-serif}
body>header,main,footer{max-width:1060px;margin:0 auto;padding:0 24px}
body>header{padding-top:44px;padding-bottom:8px;display:flex;flex-wrap:wrap;gap:8px 40px}
body>header>.kicker{flex-basis:100%}
body>header>section{flex:1 1 320px;min-width:0}
.kicker{margin:0;color:var(--soft);font-size:13px;letter-spacing:.06em;text-transform:uppercase}
.run{margin:10px 0 -6px;font-weight:600}
h1{font-size:40px;line-height:1.15;letter-spacing:-.02em;margin:6px 0 14px}
h1 .passed{color:var(--good)}
h1 .failed,h1 .error{color:var(--bad)}
h1 .skipped,h1 .interrupted{color:var(--skip)}
h2{font-size:30px;letter-spacing:-.015em;margin:0;line-height:1.2}
h3{font-size:25px;letter-spacing:-.01em;margin:2px 0 0;line-height:1.2}
h4{font-size:14px;margin:0 0 8px;letter-spacing:.01em}
section.part{margin:56px 0 -6px;padding:0 2px}
section.part p{margin:6px 0 0;color:var(--soft);font-size:17px;max-width:46em}
tr.part th{padding:18px 10px 6px 4px;font-size:13px;font-weight:600;color:var(--ink);border-top:1px solid var(--line)}
tbody tr.part:first-child th{border-top:0;padding-top:8px}
.env{display:flex;flex-wrap:wrap;gap:8px 22px;margin:0 0 18px}
.env dt{font-size:12px;color:var(--soft)}
.env dd{margin:0;font-size:14px;font-variant-numeric:tabular-nums}
.quick,.why{color:var(--base)}
.quick{margin:0 0 14px;font-size:14px}
.why{font-size:15px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14.5px}
main>.scroll{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:6px 16px}
th{font-size:12px;font-weight:500;color:var(--soft);text-align:left;padding:8px 10px}
td{padding:10px;border-top:1px solid var(--line);vertical-align:middle}
td:first-child,th:first-child{padding-left:4px}
th.group,td.group{border-left:1px solid var(--line)}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.lab{white-space:nowrap}
a{color:inherit;text-decoration-color:var(--line);text-underline-offset:3px}
a:hover{text-decoration-color:currentColor}
small{display:block;color:var(--soft);font-size:12.5px;line-height:1.35}
sup{line-height:0;font-size:.72em}
.pill{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;font-weight:600;white-space:nowrap;
  color:var(--skip);background:color-mix(in srgb,var(--skip) 14%,transparent)}
.pill.passed{color:var(--good);background:color-mix(in srgb,var(--good) 13%,transparent)}
.pill.failed,.pill.error{color:var(--bad);background:color-mix(in srgb,var(--bad) 13%,transparent)}
svg.margin{width:180px;height:22px;display:block}
main>.scroll svg.margin{width:140px}
main>.scroll td{padding:9px 7px}
main>.scroll th{padding-left:7px;padding-right:7px}
main>.scroll td:first-child,main>.scroll th:first-child{padding-left:4px}
.margin line{stroke-linecap:round}
.track{stroke:var(--line);stroke-width:3}
.lead{stroke-width:5}
.good .lead{stroke:var(--good)}
.bad .lead{stroke:var(--bad)}
.muted .lead{stroke:var(--skip)}
.gate{stroke:var(--ink);stroke-width:2}
circle.baseline{fill:var(--card);stroke:var(--base);stroke-width:2.5}
circle.ours{fill:var(--ours);stroke:var(--card);stroke-width:1.5}
article{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:28px 30px 22px;margin:26px 0}
.cardhead{display:grid;grid-template-columns:1fr auto;align-items:end}
.cardhead .kicker{grid-column:1/-1}
.question{font-size:19px;line-height:1.5;max-width:46em;margin:12px 0 18px}
figure{margin:0 0 22px}
figure img{display:block;width:100%;height:auto;border-radius:8px;border:1px solid var(--line);margin:0 0 10px;
  background:#fdfdfb}
figcaption{color:var(--soft);font-size:14.5px;max-width:54em;margin:0 0 14px}
figcaption b{color:var(--ink)}
.gates td{padding:9px 10px}
.gates td:nth-child(2){min-width:240px}
.limit{color:var(--soft)}
.spark{display:inline-flex;align-items:center;gap:14px;margin:14px 24px 0 0}
.spark svg{width:200px;height:40px}
.spark polyline{fill:none;stroke:var(--ours);stroke-width:1.8;stroke-linejoin:round}
.spark figcaption{margin:0;font-size:13px;font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px;margin:20px 0 14px}
.box{background:var(--tint);border-radius:10px;padding:16px 18px;font-size:14.5px}
.box p{margin:0 0 10px}
.box.try{background:var(--try)}
.box ol{margin:0;padding-left:1.3em}
.box li{margin:0 0 8px;padding-left:2px}
.versus{border-top:1px solid var(--line);padding-top:10px;color:var(--soft);font-size:13.5px}
.versus b{font-size:16px;font-variant-numeric:tabular-nums}
.versus .ours{color:var(--ours);margin-right:18px}
.versus .theirs{color:var(--base)}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;background:var(--code);
  border-radius:4px;padding:1px 4px}
pre{background:var(--code);border-radius:8px;padding:12px 14px;overflow-x:auto;font-size:12.5px;line-height:1.45}
.fine,footer{color:var(--soft);font-size:12.5px;line-height:1.6}
.fine{margin:0}
footer{padding-top:4px;padding-bottom:44px}
.key{display:inline-block;width:10px;height:10px;border-radius:50%;vertical-align:-1px;margin:0 2px 0 6px}
.key.ours{background:var(--ours)}
.key.baseline{border:2.5px solid var(--base)}
.key.gate{width:2px;height:13px;border-radius:0;background:var(--ink);vertical-align:-2px;margin:0 4px 0 8px}
@media(max-width:640px){
  h1{font-size:31px}
  article{padding:20px 16px}
  body>header,main,footer{padding-left:14px;padding-right:14px}
  .gates tr{display:grid;grid-template-columns:auto 1fr}
  .gates td{border:0;padding:3px 8px}
  .gates td:nth-child(2){grid-column:1/-1;order:-1;border-top:1px solid var(--line);padding-top:10px}
  .gates td.bar{grid-column:1/-1;padding-bottom:10px}
}
@media print{
  :root{--bg:#fff;--card:#fff;--ink:#111;--soft:#555;--line:#ccc;--ours:#0b6fb8;--base:#b8620a;--good:#0a7d5f;
    --bad:#b93a17;--tint:#f4f6f8;--try:#f3f8f5;--code:#f0f0f0;--skip:#666}
  body{font-size:11.5px}
  body>header{padding-top:0}
  h1{font-size:26px}
  article{break-inside:auto;padding:14px 0;border:0;border-top:1px solid #ccc;border-radius:0}
  figure,.box,tr,.cardhead,.question{break-inside:avoid}
  h2,h3,h4,section.part{break-after:avoid}
  section.part{margin:22px 0 0}
  .question{font-size:14px}
  figure img{filter:none;max-height:11cm;width:auto;max-width:100%}
  svg.margin{width:120px}
  table,.box,figcaption{font-size:11px}
  *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
