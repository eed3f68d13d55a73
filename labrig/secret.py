"""Secrets by reference: what a settings file says instead of a password, and how it is read when it is used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from labrig.errors import UsageError

REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")
MEANT = "a reference: env:NAME or file:PATH"


def is_reference(value: object) -> bool:
    """Whether a value refers to a secret."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def read(reference: str, whose: str) -> str:
    """The secret that ``env:NAME`` or ``file:PATH`` refers to; empty where there is no reference.

    Raises:
        UsageError: there is no such variable or file, or it is empty. What it holds is never shown.
    """
    kind, _, where = reference.partition(":")
    if not kind:
        return ""
    if kind == "env":
        value, place = os.environ.get(where, ""), f"the variable {where}"
    else:
        place = f"the file {where}"
        try:
            value = Path(where).expanduser().read_text(encoding="utf-8").rstrip("\n")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{whose}: cannot read {place}",
                found=type(error).__name__,
                fix="correct the reference, or let it be read",
            ) from None
    if not value:
        raise UsageError(
            f"{whose}: {place} is empty or not set", fix="set it where this is started, or correct the name"
        )
    return value
