"""Where things stand in a TOML file: an error about a key names its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig.errors import UsageError

HEADER = re.compile(r"\s*\[+\s*([A-Za-z0-9_.-]+)\s*\]")  # of a table, in a file that is already known to be TOML
ASSIGNED = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")


@dataclass(frozen=True)
class Table:
    """A table of the file as errors name it. ``lines``: where each of its keys stands, and "" for the table itself."""

    file: str
    name: str
    lines: Mapping[str, int]

    def line(self, key: str = "") -> int:
        """The line of a key, else of the table; 0 where it is not known."""
        return self.lines.get(key, self.lines.get("", 0))

    def at(self, key: str = "") -> str:
        """``room.toml, line 5: [[host]] 1 (pc01)``."""
        line = self.line(key)
        return f"{self.file}{f', line {line}' if line else ''}: {self.name}"


def read(path: Path, what: str, fix: str) -> tuple[str, dict[str, Any]]:
    """The text of a file that a person writes, and what it says.

    Raises:
        UsageError: it cannot be read (``what`` it is, and the ``fix`` for that), or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot read {what} {path}", found=reason, fix=fix) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a number or nesting too deep for Python
        raise UsageError(f"{path.name} is not valid TOML", found=str(error)[:300], fix=f"edit {path}") from None


def lines_of(text: str, table: str) -> list[dict[str, int]]:
    """For each table of that name the lines of its keys; that of "" is its own."""
    found: list[dict[str, int]] = []
    inside = False
    for number, line in enumerate(text.split("\n"), start=1):
        if header := HEADER.match(line):
            inside = header[1] == table
            if inside:
                found.append({"": number})
        elif inside and (key := ASSIGNED.match(line)):
            found[-1].setdefault(key[1], number)
    return found
