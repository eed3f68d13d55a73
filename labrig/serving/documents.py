"""YAML that somebody has edited: read with its lines, and refused where it is not what its reader would take it for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from labrig.errors import HostError, UsageError

MOST = 1 << 18  # bytes; what is rendered has some thousand, and an object in Kubernetes holds 1 MiB at most
CHART_MOST = 1 << 22
LEVELS = 60
LARGEST = (1 << 64) - 1  # Kubernetes and Go take no larger number
EXTRA = "make serve"


class DocumentError(UsageError):
    """A text that cannot be taken as YAML. ``line``: where, 0 where that is not known."""

    line = 0


@dataclass(frozen=True)
class Document:
    """One YAML document. ``lines``: of each key, by its path joined with dots, the line where it stands; ``text``: all
    of it, for what stands in comments."""

    file: str
    data: Any
    lines: Mapping[str, int] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    def line(self, key: str) -> int:
        """The line of a key, or of the nearest one around it; 0 where none is known."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return self.lines.get(key, 0)


def require_extra(error: ImportError) -> HostError:
    """What is said where a package of the extra is not there."""
    return HostError("checks of a hub need packages that are an extra", found=f"no {error.name}", fix=EXTRA)


def read(text: str, file: str, *, most: int = MOST, aliases: bool = False) -> Document:
    """The one document of a YAML text.

    ``aliases`` (``*name``) can make a text of some lines fill all memory, so they are refused where nobody needs them.

    Raises:
        DocumentError: it is too large or no YAML, has an alias, a key twice or more than one document.
        HostError: the extra is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise require_extra(error) from None
    if len(text.encode(errors="replace")) > most:
        raise _wrong(file, f"it has more than {most >> 10} KiB", "name a file that a chart or a cluster takes")
    try:
        _require_plain(file, yaml.parse(text, yaml.SafeLoader), aliases=aliases)
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
        if len(nodes) > 1:
            raise _wrong(file, f"{len(nodes)} documents", "one file, one document")
        lines: dict[str, int] = {}
        for path, line in _keys(nodes[0], "") if nodes and not aliases else ():
            if path in lines:
                raise _wrong(file, f"{path} in lines {lines[path]} and {line}"[:200], "keep one of them", line)
            lines[path] = line
        data = yaml.load(text, yaml.SafeLoader)
        if not aliases:
            data = _plain(data, file, "")
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _wrong(file, _reason(error)[:300], f"edit {file}", _line(error, text)) from None
    except (TypeError, LookupError, AttributeError):  # what PyYAML makes of !!int "", !!bool foo, !!timestamp x
        raise _wrong(file, "a value that is not what its tag (!!) says", "leave the tag out") from None
    return Document(file, data, lines, text)


def _reason(error: Exception) -> str:
    """A parser's words, without the places in them, for which it has no name but ``<unicode string>``."""
    parts = [getattr(error, part, None) for part in ("context", "problem")]
    said = ", ".join(str(part) for part in parts if part) or str(getattr(error, "reason", "") or error)
    return " ".join(said.split())


def _line(error: Exception, text: str) -> int:
    """Where a parser stopped: yaml.MarkedYAMLError has a mark, yaml.reader.ReaderError a character's number."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = getattr(error, "position", None)
    return mark.line + 1 if mark else text.count("\n", 0, place) + 1 if isinstance(place, int) else 0


def _plain(data: Any, file: str, above: str) -> Any:
    """Data as JSON can have it, and so a chart and a cluster: keys become texts, as they make them, and no number is
    larger than theirs. A date stays, for a schema to name. Raises UsageError for anything else."""
    if isinstance(data, dict):
        return {_key(key, file, above): _plain(one, file, f"{above}{str(key)[:60]}.") for key, one in data.items()}
    if isinstance(data, list):
        return [_plain(one, file, f"{above}{number}.") for number, one in enumerate(data)]
    at = above.rstrip(".")[:200]
    if isinstance(data, int) and abs(data) > LARGEST:
        raise _wrong(file, f"{at}: a number of more than 64 bits", "write a smaller one")
    if not isinstance(data, str | int | float | date | None):
        raise _wrong(
            file, f"{at}: {type(data).__name__}, which JSON has not", "write text, a number, a list or a table"
        )
    return data


def _key(key: Any, file: str, above: str) -> str:
    if isinstance(key, bool):
        return str(key).lower()
    if key is None:
        return "null"
    if isinstance(key, str) or (isinstance(key, int | float) and abs(key) <= LARGEST):
        return str(key)
    raise _wrong(file, f"{above.rstrip('.')[:200]}: a key that is {type(key).__name__}", "write text as the key")


def _require_plain(file: str, events: Iterable[Any], *, aliases: bool) -> None:
    """Raises UsageError at the first alias where none may be, and where there are too many levels."""
    depth = 0
    for event in events:
        line, kind = event.start_mark.line + 1, type(event).__name__
        if kind == "AliasEvent" and not aliases:
            raise _wrong(file, f"the alias *{event.anchor}"[:120], "write the value out", line)
        depth += kind in ("MappingStartEvent", "SequenceStartEvent")
        depth -= kind in ("MappingEndEvent", "SequenceEndEvent")
        if depth > LEVELS:
            raise _wrong(file, f"more than {LEVELS} levels", "name a file that a chart or a cluster takes", line)


def _wrong(file: str, found: str, fix: str, line: int = 0) -> DocumentError:
    error = DocumentError(f"{file} is no YAML that can be taken", found=found, fix=fix)
    error.line = line
    return error


def _keys(node: Any, above: str) -> Iterator[tuple[str, int]]:
    """Each key of a tree of nodes, with its line; what stands in a list is called by its number."""
    if node.id == "mapping":
        for name, value in node.value:
            path = f"{above}{name.value}" if name.id == "scalar" else f"{above}?"
            yield path, name.start_mark.line + 1
            yield from _keys(value, f"{path}.")
    elif node.id == "sequence":
        for number, value in enumerate(node.value):
            yield f"{above}{number}", value.start_mark.line + 1
            yield from _keys(value, f"{above}{number}.")
