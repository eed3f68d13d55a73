"""Where things stand in a TOML file: an error about a key names its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
