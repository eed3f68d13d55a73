"""A hub's and a cluster's files, validated offline: freshly rendered, or as an admin has edited them.

Four things look at them: the chart's schema (or our table of its keys), KubeSpawner's and JupyterHub's real classes,
the schemas of Kubernetes' objects, and our own rules for what none of these catches.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from labrig import secret
from labrig.errors import UsageError, VerifyError
from labrig.serving import (
    Offer,
    chart,
    claims,
    cluster,
    configuration,
    dangers,
    documents,
    offers,
    rules,
    settings,
    traits,
)
from labrig.serving.documents import Document
from labrig.serving.rules import ERROR, Finding
from labrig.serving.state import CONFIG

WRAPPED = ("key", "what is wrong", "what to do")
COLUMNS = ("file", "line", "key", "what is wrong", "what to do")
MOST = 20  # findings that a schema makes of one file


@dataclass(frozen=True)
class Report:
    """What was looked at, by what, and what was found."""

    files: tuple[str, ...]
    by: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(one.level == ERROR for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {"files": self.files, "by": self.by, "findings": [one.to_json() for one in self.findings]}

    def rows(self) -> list[tuple[str, ...]]:
        """The rows of the table."""
        return [
            (
                one.file,
                str(one.line or ""),
                one.key,
                one.what if one.level == ERROR else f"{one.level}: {one.what}",
                one.fix,
            )
            for one in self.findings
        ]

    def summary(self) -> str:
        """What was looked at and by what, for people."""
        counted = f"{_many(self.errors, 'error')}, {_many(len(self.findings) - self.errors, 'warning')}"
        return "\n".join((f"{', '.join(self.files)}: {counted}", *self.by))

    def require_good(self) -> None:
        """Raises VerifyError where there is any error."""
        if self.errors:
            where = f"{_many(self.errors, 'error')} in {_many(len(self.files), 'file')}"
            raise VerifyError(where, fix="change what the rows name, and check again")


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def run(root: Path, config: Path | None, folder: str, path: str) -> Report:
    """Check the files in ``folder``, or without one those that are rendered from ``config`` now, a hub's among them;
    ``path`` of a chart.

    Raises:
        HostError: the extra is not installed, or nothing was published.
        UsageError: a flag, the settings, the chart or a file cannot be read.
    """
    told = settings.read(config)
    offered = offers.read(root, cluster.PLATFORM, told.targets)
    if folder:
        texts = read_folder(Path(folder))
    else:
        texts = {CONFIG: configuration.draft(told, offered, root)}
        if cluster.warn_of_here(offered):  # whoever has one server has not asked for a cluster
            print("so only the hub's file is checked", file=sys.stderr)
        else:
            texts |= cluster.render(root, told, offered)
    return check(texts, offered, cluster.find_labs(root), told, chart.read(Path(path) if path else None))


def check(
    texts: Mapping[str, str],
    offered: Sequence[Offer],
    labs: Sequence[str],
    told: settings.Settings,
    against: chart.Chart,
) -> Report:
    """Look at files by their name: values.yaml, labs-job-*.yaml and other objects, jupyterhub_config.py.

    Raises:
        HostError: the extra is not installed.
    """
    versions = supported(against.kubernetes)
    found: list[Finding] = []
    objects: list[Document] = []
    for name, text in texts.items():
        if name == CONFIG:
            found += check_config(text, name, offered)
            continue
        try:
            document = documents.read(text, name)
        except documents.DocumentError as error:
            found.append(Finding(name, error.line, "", f"{error.what}: {error.found}", error.fix))
            continue
        if name == cluster.VALUES:
            own = list(check_values(document, offered, told, against))
        else:
            own = list(check_object(document, offered, labs, versions))
            objects.append(document)
        found += [*_causes(document, own), *rules.find_secrets(document)]
    found += claims.check(objects, told.cluster)
    by = (
        f"values: {against.by}",
        f"traits: {_version('jupyterhub')}, {_version('jupyterhub-kubespawner')}, {_version('dockerspawner')}",
        f"objects: the schemas of Kubernetes {versions[0]} to {versions[-1]}",
    )
    return Report(
        tuple(texts), by, tuple(sorted(set(found), key=lambda one: (one.file, one.level, one.line, one.key, one.what)))
    )


def _causes(document: Document, found: Sequence[Finding]) -> Iterator[Finding]:
    """Findings without what follows from a misspelt key: that the one which was meant, and all in it, is missing."""
    absent = [one.meant for one in found if one.meant and one.meant not in document.lines]
    for one in found:
        if not any(one.key == key or one.key.startswith(f"{key}.") for key in absent):
            yield one


def read_folder(folder: Path) -> dict[str, str]:
    """What is to be checked in a folder: its YAML files, and a hub's configuration.

    Raises:
        UsageError: it is not there, or holds no values.yaml, or a file cannot be read.
    """
    names = sorted(
        file.name
        for file in folder.glob("*")
        if (file.suffix in (".yaml", ".yml") or file.name == CONFIG) and file.is_file()
    )
    if cluster.VALUES not in names:
        raise UsageError(
            f"--output {folder} holds no {cluster.VALUES}",
            found=", ".join(names) or "no YAML",
            fix="invoke serve --cluster --output=FOLDER writes it",
        )
    texts = {}
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                texts[name] = file.read(documents.MOST + 1).decode()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read {folder / name}", found=str(error)[:200], fix="it has to be UTF-8 text"
            ) from None
    return texts


# ------------------------------------------------------------------------------------------------ the chart's values


def check_values(
    document: Document, offered: Sequence[Offer], told: settings.Settings, against: chart.Chart
) -> Iterator[Finding]:
    """Values: by schema, by the real classes, by our rules."""
    if not isinstance(document.data, dict):
        yield Finding(
            document.file, 0, "", f"it is {_kind(document.data)}, not a table of values", "write keys of the chart"
        )
        return
    if "kind" in document.data and "apiVersion" in document.data:
        yield Finding(
            document.file, document.line("kind"), "kind", "it is an object of Kubernetes, not values", "name the values"
        )
        return
    yield from _by_schema(document, chart.lay_over(against.defaults, document.data), against.schema)
    yield from _overrides(document, offered)
    # What harms a course is looked at where the chart's defaults hold as well.
    laid = Document(document.file, chart.lay_over(against.defaults, document.data), document.lines)
    yield from rules.check_values(laid, offered, told)
    yield from dangers.check_values(laid, offered, told)
    yield from rules.check_environment(document)
    yield from rules.check_hub(document, offered, f"chart {against.version}", against.hub)


def _overrides(document: Document, offered: Sequence[Offer]) -> Iterator[Finding]:
    """What goes to the classes of JupyterHub: the tables of ``hub.config``, the profiles' overrides, and code."""
    data, above = document.data, "singleuser.profileList"
    chosen = _chosen(rules.at(data, "hub.config.JupyterHub.authenticator_class"))
    key = "hub.config.JupyterHub.authenticator_class"
    is_other = traits.unseen("JupyterHub", "authenticator_class", rules.at(data, key))
    classes = [(f"hub.config.{owner}", owner, inner) for owner, inner in rules.table(data, "hub.config").items()]
    profiles = [
        (f"{above}.{number}.kubespawner_override", "KubeSpawner", row.get("kubespawner_override"))
        for number, row in enumerate(rules.rows(data, above))
    ]
    for key, owner, inner in classes + profiles:
        if not traits.is_known(owner, chosen.get(owner, "")):
            if owner not in chosen:
                yield _unknown(document.file, document.line(key), key, owner, is_other=is_other)
            continue
        for name, value in inner.items() if isinstance(inner, dict) else ():
            if wrong := traits.check_trait(owner, name, value, chosen.get(owner, "")):
                near = f"{key}.{traits.near_trait(owner, name, chosen.get(owner, ''))}"
                yield Finding(document.file, document.line(f"{key}.{name}"), f"{key}.{name}", *wrong[1:], meant=near)
            elif traits.unseen(owner, name, value, chosen.get(owner, "")):
                yield _unseen(document.file, document.line(f"{key}.{name}"), f"{key}.{name}", value)
    for key, text in rules.table(data, "hub.extraConfig").items():
        where = f"hub.extraConfig.{key}"
        yield from check_config(
            str(text), document.file, offered, where, document.line(where), chosen, is_other=is_other
        )


def _chosen(name: Any) -> dict[str, str]:
    """The class of a site's authenticator, and its module."""
    module, _, owner = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    return {owner: module} if module else {}


def _unknown(file: str, line: int, key: str, owner: str, *, is_other: bool) -> Finding:
    """A class that is not known. ``is_other``: the authenticator is one that was not looked at, so this can be its."""
    near = traits.near(owner, [*traits.HOMES, *traits.OTHERS])
    if owner in traits.OTHERS or (is_other and not near):
        return _unseen(file, line, key, owner)
    fix, meant = (f"write {near}", f"{key.rpartition('.')[0]}.{near}") if near else ("leave it out", "")
    return Finding(file, line, key, f"no class {owner} is known", fix, meant=meant)


def _unseen(file: str, line: int, key: str, owner: str) -> Finding:
    """A class that was not looked at: nothing is imported because a file that is checked names it."""
    if "." in owner and owner.partition(".")[0] not in traits.PACKAGES:
        what = f"{owner[:120]} is of a package that a check does not import, so this class was not looked at"
        return Finding(file, line, key, what, "try it with the hub", rules.WARNING)
    near = "" if "." in owner or owner in traits.ELSEWHERE else traits.near(owner, [*traits.ELSEWHERE])
    what = f"{owner[:120]} is not installed here, so its traits were not looked at"
    fix = f"write {near}, if you mean that" if near else "install its package where you check"
    return Finding(file, line, key, what, fix, rules.WARNING)


def _by_schema(document: Document, data: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Finding]:
    try:
        from jsonschema import Draft7Validator
    except ImportError as error:
        raise documents.require_extra(error) from None
    for wrong in itertools.islice(Draft7Validator(schema).iter_errors(data), MOST):
        yield from _of_error(document, wrong)


def _of_error(document: Document, error: Any) -> Iterator[Finding]:
    """A schema's error in our words; a value is never shown, it may be a secret."""
    above = ".".join(str(part) for part in error.absolute_path)

    def finding(key: str, what: str, fix: str, meant: str = "") -> Finding:
        return Finding(document.file, document.line(key), key, what, fix, meant=meant)

    if error.validator == "additionalProperties" and isinstance(error.validator_value, bool):
        known = list(error.schema.get("properties", {}))
        for stray in [one for one in error.instance if one not in known]:
            near = traits.near(str(stray), known)
            yield finding(
                f"{above}.{stray}".lstrip("."),
                f"unknown key {str(stray)[:80]}",
                f"write {near}" if near else f"use {', '.join(known)}"[:160],
                f"{above}.{near}".lstrip(".") if near else "",
            )
    elif error.validator == "required":
        for name in [one for one in error.validator_value if one not in error.instance]:
            yield finding(f"{above}.{name}".lstrip("."), f"{name} is missing", "write it")
    elif error.validator == "type":
        meant = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        yield finding(above, f"it is {_kind(error.instance)}", f"write {' or '.join(map(str, meant))}")
    elif error.validator == "enum":
        yield finding(
            above,
            "it is none of the values that are known",
            f"write {', '.join(map(str, error.validator_value))}"[:160],
        )
    else:
        yield finding(
            above, f"it breaks the schema's rule {error.validator}", f"see {error.validator} at this key in the schema"
        )


def _kind(value: Any) -> str:
    names = {
        "dict": "a table",
        "list": "a list",
        "str": "text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
    }
    return "nothing" if value is None else names.get(type(value).__name__, f"a {type(value).__name__}")


# ------------------------------------------------------------------------------------------------ Kubernetes' objects


def supported(lowest: str) -> list[str]:
    """The versions of Kubernetes whose schemas are here, from the lowest that a chart runs on."""
    try:
        from kubernetes_validate import utils
        from packaging.version import Version
    except ImportError as error:
        raise documents.require_extra(error) from None
    every = dict.fromkeys(utils.all_versions())
    return [".".join(one.split(".")[:2]) for one in every if Version(one) >= Version(lowest)]


def check_object(
    document: Document, offered: Sequence[Offer], labs: Sequence[str], versions: Sequence[str]
) -> Iterator[Finding]:
    """An object of Kubernetes: by the schemas of every version, and if it is a Job by our rules."""
    data = document.data
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("kind", "apiVersion")):
        yield Finding(document.file, 0, "kind", "it is no object of Kubernetes", "name its kind and apiVersion")
        return
    if document.file.startswith("labs-job-") and data["kind"] != "Job":
        yield Finding(document.file, document.line("kind"), "kind", f"it is a {data['kind'][:60]}", "write Job")
        return
    wrong: dict[Finding, list[str]] = {}
    for version in versions:
        for one in _by_kubernetes(document, version):
            wrong.setdefault(one, []).append(version)
    for one, where in wrong.items():
        what = one.what if len(where) == len(versions) else f"{one.what} (Kubernetes {', '.join(where)})"
        yield replace(one, what=what)
    if data["kind"] == "Job" and data["apiVersion"].startswith("batch/"):
        yield from rules.check_job(document, offered, labs)
        yield from dangers.check_job(document, offered)


def _by_kubernetes(document: Document, version: str) -> Iterator[Finding]:
    """All errors of one version: kubernetes-validate itself stops at the first."""
    kind, group = document.data["kind"], document.data["apiVersion"]
    try:
        validator = _validator(kind, group, version)
    except (OSError, ValueError):  # ValueError: no name of a file can be so
        what = f"there is no {kind[:60]} of {group[:60]}"
        yield Finding(document.file, document.line("kind"), "kind", what, "correct kind or apiVersion")
        return
    for wrong in itertools.islice(validator.iter_errors(document.data), MOST):
        yield from _of_error(document, wrong)


@cache
def _validator(kind: str, group: str, version: str) -> Any:
    """Of an object, by the strict schemas that kubernetes-validate has. Raises OSError where it has none."""
    from jsonschema import Draft202012Validator
    from kubernetes_validate import utils
    from referencing import Registry, Resource

    # As it names its files: batch/v1 is batch-v1, rbac.authorization.k8s.io/v1 is rbac-v1.
    first, _, last = group.partition("/")
    name = f"{kind.lower()}-{first.split('.')[0]}-{last}.json" if last else f"{kind.lower()}-{first}.json"
    if "/" in name:
        raise FileNotFoundError(name)
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    schema = utils.schema_contents(f"{folder}/{name}", version)
    definitions = utils.schema_contents(f"{folder}/_definitions.json", version)
    registry = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    return Draft202012Validator(schema, registry=registry)


# ------------------------------------------------------------------------------------------------ jupyterhub_config.py


def check_config(
    text: str,
    file: str,
    offered: Sequence[Offer],
    key: str = "",
    line: int = 0,
    chosen: Mapping[str, str] | None = None,
    *,
    is_other: bool = False,
) -> Iterator[Finding]:
    """A hub's configuration, as text: unknown classes and traits, values that do not fit, images that were not
    published, secrets. It is not run. ``chosen``: classes that a site brings, and their modules, besides the
    authenticator that the text names; ``is_other``: that is one that was not looked at.
    """
    try:
        given, chosen_images = list(traits.assignments(text)), list(traits.choices(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        number = getattr(error, "lineno", None) or 0
        yield Finding(
            file, line + number, key, f"it is no Python: {str(error)[:120] or type(error).__name__}", "edit it"
        )
        return
    named = [value for _, _, name, value in given if name == "authenticator_class"]
    homes = {owner: home for one in (chosen or {}, *map(_chosen, named)) for owner, home in one.items()}
    is_other = is_other or any(traits.unseen("JupyterHub", "authenticator_class", value) for value in named)
    for number, owner, name, value in given:
        where = f"{key}: c.{owner}.{name}".lstrip(": ")
        if not traits.is_known(owner, homes.get(owner, "")):
            yield (
                _unseen(file, line + number, where, f"{homes[owner]}.{owner}")
                if owner in homes
                else _unknown(file, line + number, where, owner, is_other=is_other)
            )
        elif wrong := traits.check_trait(owner, name, value, homes.get(owner, "")):
            yield Finding(file, line + number, where, *wrong[1:])
        elif traits.unseen(owner, name, value, homes.get(owner, "")):
            yield _unseen(file, line + number, where, value)
        if any(secret.find_plain(value, name)) or (secret.is_reference(value) and secret.NAMED.search(name)):
            yield Finding(
                file,
                line + number,
                where,
                "a secret would stand here for everybody who reads the file",
                "read it from the environment or a file when the hub starts",
            )
        if name in ("image", "allowed_images"):
            yield from _images(file, line + number, where, value, offered)
    for number, value in chosen_images:
        yield from _images(file, line + number, f"{key}: inside.Choice".lstrip(": "), value, offered)


def _images(file: str, line: int, key: str, value: Any, offered: Sequence[Offer]) -> Iterator[Finding]:
    known = {name for one in offered for name in (one.reference, one.config, one.reference.partition("@")[2])}
    images = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    for image in images if value is not ... else []:
        if not isinstance(image, str) or image not in known:
            shown = image[:120] if isinstance(image, str) else _kind(image)
            yield Finding(file, line, key, f"{shown} is none of the published images", "render it again")


def _version(package: str) -> str:
    from importlib import metadata

    return f"{package} {metadata.version(package)}"
