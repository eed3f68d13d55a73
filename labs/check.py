"""Is the result of a lab what it says it is? Read from its files alone, without training anything.

A record is believed when its fields are complete, every gate follows from the numbers beside it, the same numbers
stand in events.jsonl, the status follows from the gates, and the bytes are those the runner saw when the lab ended.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from labs.harness import OPERATORS, SCHEMA

FIELDS = {
    "": "schema lab status reason args env time memory data metrics baselines gates honest fallbacks plots splits",
    "lab": "id title paradigm task",
    "args": "device seed quick full threads",
    "env": "torch numpy sklearn python os arch device_name cpu_quota load_avg image_id deterministic",
    "time": "wall_s cpu_s import_s train_s",
    "memory": "peak_rss_mib device_peak_mib",
}
ITEM_FIELDS = {
    "data": "name sha256 rows licence synthetic",
    "gates": "id text metric op value limit baseline margin exact checked passed",
    "honest": "text ours theirs",
    "fallbacks": "op from to why",
    "plots": "file alt",
}
VALUE_FIELDS = {"metrics": "value unit better", "baselines": "value source"}
STATUSES = ("passed", "failed", "skipped", "error", "interrupted")


class Unreadable(Exception):
    """There is no record, or it is not one."""


def read_record(folder: Path) -> dict[str, Any]:
    """metrics.json of one lab, with all its fields there."""
    path = folder / "metrics.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable("there is no metrics.json") from None
    except (ValueError, OSError) as error:
        raise Unreadable(f"metrics.json cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise Unreadable(f"metrics.json is not a {SCHEMA} record")
    wrong = []
    for name, fields in FIELDS.items():
        wrong += _difference(name or "record", record if not name else record.get(name), fields)
    for name, fields in ITEM_FIELDS.items():
        items = record.get(name)
        wrong += [w for item in (items if isinstance(items, list) else [None]) for w in _difference(name, item, fields)]
    for name, fields in VALUE_FIELDS.items():
        values = record.get(name)
        found = values.values() if isinstance(values, dict) else [None]
        wrong += [w for item in found for w in _difference(name, item, fields)]
    if wrong:
        raise Unreadable(f"metrics.json has the wrong fields: {'; '.join(wrong)}")
    return record


def _difference(name: str, found: Any, fields: str) -> list[str]:
    if not isinstance(found, dict):
        return [f"{name} is absent or of another type"]
    missing, extra = set(fields.split()) - set(found), set(found) - set(fields.split())
    return [f"{name} lacks {', '.join(sorted(missing))}"] * bool(missing) + [
        f"{name} has {', '.join(sorted(extra))} too"
    ] * bool(extra)


def problems(folder: Path, *, sha256: str | None = None) -> list[str]:
    """What is wrong with the record in `folder`: empty when it can be believed. `sha256` is of the bytes first seen."""
    try:
        record = read_record(folder)
        return list(_problems(folder, record, sha256))
    except Unreadable as error:
        return [str(error)]
    except (KeyError, TypeError, ValueError, OSError) as error:
        return [f"the record cannot be followed: {type(error).__name__}: {error}"]


def _problems(folder: Path, record: dict[str, Any], sha256: str | None) -> list[str]:
    wrong = []
    if sha256 and hashlib.sha256((folder / "metrics.json").read_bytes()).hexdigest() != sha256:
        wrong.append("metrics.json is not the file the lab wrote (its SHA-256 differs)")
    if record["lab"]["id"] != folder.name:
        wrong.append(f"it is the record of {record['lab']['id']}")
    if record["status"] not in STATUSES:
        wrong.append(f"status {record['status']} is unknown")
    if record["status"] in ("passed", "failed", "skipped") and not record["time"]["wall_s"] > 0:
        wrong.append("it took 0 seconds, so nothing ran")
    for gate in record["gates"]:
        wrong += _gate_problems(gate, record)
    missed = [gate["id"] for gate in record["gates"] if gate["passed"] is False]
    if record["status"] == "passed" and (missed or not record["gates"]):
        wrong.append(f"status is passed, but {'missed: ' + ', '.join(missed) if missed else 'there is no gate'}")
    if record["status"] == "failed" and not missed:
        wrong.append("status is failed, but no gate was missed")
    wrong += [f"{p['file']} is absent" for p in record["plots"] if not (folder / p["file"]).is_file()]
    return wrong + _event_problems(folder / "events.jsonl", record)


def _gate_problems(gate: dict[str, Any], record: dict[str, Any]) -> list[str]:
    name, metric, value, limit = gate["id"], gate["metric"], gate["value"], gate["limit"]
    wrong = []
    if metric not in record["metrics"]:
        return [f"gate {name} is about the metric {metric}, which is not there"]
    if value != (measured := record["metrics"][metric]["value"]):
        wrong.append(f"gate {name} says {metric} = {value}, the metric says {measured}")
    if gate["baseline"] and gate["baseline"] not in record["baselines"]:
        wrong.append(f"gate {name} names the baseline {gate['baseline']}, which is not there")
    if gate["checked"] != (gate["exact"] or not record["args"]["quick"]):
        wrong.append(f"gate {name} is marked {'checked' if gate['checked'] else 'not checked'} against the rules")
    usable = value is not None and limit is not None
    holds = (usable and OPERATORS[gate["op"]](value, limit)) if gate["checked"] else None
    if gate["passed"] is not holds:
        wrong.append(f"gate {name} says passed = {gate['passed']}, but {value} {gate['op']} {limit} is {holds}")
    margin = ((limit - value) if gate["op"].startswith("<") else (value - limit)) if usable else None
    if gate["margin"] != margin:
        wrong.append(f"gate {name} has the margin {gate['margin']}, the numbers give {margin}")
    return wrong


def _event_problems(path: Path, record: dict[str, Any]) -> list[str]:
    """The diary of the last start must tell the same numbers as the record."""
    try:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        return [f"events.jsonl cannot be read: {error}"]
    starts = [i for i, event in enumerate(events) if event.get("event") == "start"]
    events = events[starts[-1] :] if starts else []
    wrong = []
    for kind in ("metric", "baseline"):
        told = {e["name"]: e["value"] for e in events if e["event"] == kind}
        if told != {name: entry["value"] for name, entry in record[f"{kind}s"].items()}:
            wrong.append(f"events.jsonl tells other {kind}s than metrics.json")
    told_gates = [(e["id"], e["op"], e["limit"], e["passed"]) for e in events if e["event"] == "gate"]
    if told_gates != [(g["id"], g["op"], g["limit"], g["passed"]) for g in record["gates"]]:
        wrong.append("events.jsonl tells other gates than metrics.json")
    if [e["status"] for e in events if e["event"] == "result"][-1:] != [record["status"]] and starts:
        wrong.append("events.jsonl ends with another status than metrics.json")
    return wrong
