"""The chart Zero to JupyterHub: which keys its values have, by its own schema where there is one, else by our table.

A chart's schema has keys that have to be there, with which its own values.yaml comes; so values are laid over those
first, as helm does. Our table (data/chart.tsv) knows the keys of the sections that we render, and is closed there.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import matrix
from labrig.errors import UsageError
from labrig.serving import documents

NAME = "jupyterhub"
VERSION, HUB, KUBERNETES = "4.4.0", "5.5.0", "1.32"  # data/sources.tsv, S97
REPOSITORY = "https://hub.jupyter.org/helm-chart"
SCHEMAS = ("values.schema.json", "values.schema.yaml", "schema.yaml")  # packed; in the repository, today and before
FILES = ("Chart.yaml", "values.yaml", *SCHEMAS)


@dataclass(frozen=True)
class Chart:
    """What values are held against. ``by``: in words, which schema it is."""

    by: str
    version: str
    hub: str  # the version of jupyterhub in the hub's image
    kubernetes: str  # the lowest, "1.32"
    schema: Mapping[str, Any]
    defaults: Mapping[str, Any]


def read(path: Path | None) -> Chart:
    """A chart: FILE.tgz as ``helm pull`` saves it, or a folder; without one what our table knows.

    Raises:
        UsageError: it cannot be read, or is no chart of JupyterHub.
    """
    if path is None:
        return Chart(
            f"labrig's own table of the keys that the chart {NAME} {VERSION} has in the sections it renders; "
            "--chart=FILE takes the chart's own schema", VERSION, HUB, KUBERNETES, of_table(), {},
        )  # fmt: skip
    texts = _of_folder(path) if path.is_dir() else _of_archive(path)
    schema = next((name for name in SCHEMAS if name in texts), "")
    if missing := [name for name in ("Chart.yaml", "values.yaml") if name not in texts] + (
        [] if schema else [SCHEMAS[0]]
    ):
        raise _wrong(path, f"no {', no '.join(missing)}")
    about, defaults = (_read(path, texts, name) for name in ("Chart.yaml", "values.yaml"))
    if about.get("name") != NAME:
        raise _wrong(path, f"a chart of the name {str(about.get('name'))[:60]!r}")
    version, hub = (str(about.get(key, ""))[:40] for key in ("version", "appVersion"))
    lowest = re.search(r"\d+\.\d+", str(about.get("kubeVersion", "")))
    return Chart(f"the schema of the chart {NAME} {version} ({path.name}), over its defaults", version, hub,
                 lowest[0] if lowest else KUBERNETES, _read(path, texts, schema), defaults)  # fmt: skip


def of_table() -> dict[str, Any]:
    """The schema that data/chart.tsv makes."""
    schema: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    for row in matrix.read_table(matrix.DATA / "chart.tsv"):
        *above, name = row["key"].split(".")
        place = schema
        for part in above:
            place = place["properties"][part]
        place["properties"][name] = _part(row)
    return schema


def _part(row: matrix.Row) -> dict[str, Any]:
    kind, *values = row["type"].split()
    if kind == "enum":
        return {"enum": [None if value == "null" else value for value in values]}
    part: dict[str, Any] = {"type": [kind, *values]}
    if row["inside"] == "closed":
        part |= {"properties": {}, "additionalProperties": False}
    elif row["inside"] == "strings":
        part |= {"additionalProperties": {"type": "string"}}
    return part


def lay_over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over a chart's defaults, as helm does: tables into each other, anything else in its place, and null takes
    a default away."""
    laid = dict(defaults)
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(laid.get(key), Mapping):
            laid[key] = lay_over(laid[key], value)
        elif value is None and key in laid:
            del laid[key]
        else:
            laid[key] = value
    return laid


def _of_folder(path: Path) -> dict[str, str]:
    try:
        return {name: (path / name).read_text(encoding="utf-8") for name in FILES if (path / name).is_file()}
    except (OSError, ValueError) as error:
        raise _wrong(path, str(error)) from None


def _of_archive(path: Path) -> dict[str, str]:
    """The files of a packed chart; of the charts inside of it none, and nothing is written anywhere."""
    texts: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").partition("/")
                wanted = member.isreg() and folder == NAME and name in FILES and member.size <= documents.CHART_MOST
                if wanted and (opened := archive.extractfile(member)) is not None:
                    texts[name] = opened.read().decode()
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise _wrong(path, str(error)) from None
    return texts


def _read(path: Path, texts: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        if name.endswith(".json"):
            data = json.loads(texts[name])
        else:
            data = documents.read(texts[name], name, most=documents.CHART_MOST, aliases=name in SCHEMAS).data
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"{name}: {error}") from None
    except documents.DocumentError as error:
        where = f"{name}, line {error.line}" if error.line else name
        raise _wrong(path, f"{where}: {error.found}") from None
    if not isinstance(data, dict):
        raise _wrong(path, f"{name} is no table")
    return data


def _wrong(path: Path, found: str) -> UsageError:
    return UsageError(
        f"--chart {path} is no chart that can be read", found=found[:300],
        fix=f"helm pull {NAME} --repo {REPOSITORY} --version {VERSION}, and name the file that it saves",
    )  # fmt: skip
