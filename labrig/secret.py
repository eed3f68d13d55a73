"""Secrets by reference: what a settings file says instead of a password, and how it is read when it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labrig.errors import UsageError

# No path of a secret has control characters or YAML's ends of a line: a rendered file names it in a comment.
REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# What a key or a trait is called whose value is a secret; other keys than these name something (claim_groups_key). The
# consumers of LTI 1.1 are a table of a key and its secret each (ltiauthenticator, lti11/auth.py).
NAMED = re.compile(
    r"(?i)(password|passphrase|secret|token|credential"
    r"|(api|private|secret|access|signing|encryption|shared|auth|ssh|tls)[_-]?key)s?$|^consumers$"
)
MEANT = "a reference: env:NAME or file:PATH"


def is_reference(value: object) -> bool:
    """Whether a value refers to a secret."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def find_plain(value: Any, path: str, *, is_secret: bool = False) -> Iterator[str]:
    """The path of each text or number in a value, however deep, that is named as a secret is, or is in what is so
    named, and is no reference. What it holds is never given."""
    is_secret = is_secret or NAMED.search(path.rpartition(".")[2]) is not None
    if isinstance(value, dict):
        for key, one in value.items():
            yield from find_plain(one, f"{path}.{key}", is_secret=is_secret)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from find_plain(one, path, is_secret=is_secret)
    elif is_secret and value and value is not True and isinstance(value, str | bytes | int | float):
        yield from () if is_reference(value) else (path,)


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
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nosuchuser
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
