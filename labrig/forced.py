"""What was built with --force although its verdict spoke against it: noted, so that nobody wonders later.

One JSON file in the cache; a build is known by target, engine and lock.
"""

from __future__ import annotations

import fcntl
import json
from datetime import UTC, datetime
from pathlib import Path

from labrig import home
from labrig.engines import Environment
from labrig.files import write_atomically


def place() -> Path:
    """Where the notes are."""
    return home.root() / "forced.json"


def note(environment: Environment, why: str) -> None:
    """Note that an environment was built in spite of ``why``."""
    file = place()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        key = _key(environment.target.name, environment.engine, environment.lock.digest)
        notes = {**_read(), key: {"why": why, "when": when, "reference": environment.reference}}
        write_atomically(file, json.dumps(notes, indent=2) + "\n")


def noted(target: str, engine: str, lock: str) -> str:
    """Why a build was forced; empty if it was not."""
    found = _read().get(_key(target, engine, lock))
    return str(found.get("why", "")) if isinstance(found, dict) else ""


def _key(target: str, engine: str, lock: str) -> str:
    return f"{target} {engine} {lock}"


def _read() -> dict[str, object]:
    try:
        found = json.loads(place().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: --force is then asked for once more
        return {}
    return found if isinstance(found, dict) else {}
