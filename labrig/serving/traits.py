"""JupyterHub's configuration against its real classes: does a trait exist, and does a value fit it.

Neither a chart's schema nor Python says so: a misspelt trait is a line that does nothing.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from labrig.serving import documents

# Where the classes are that a configuration may name.
HOMES = {
    "JupyterHub": "jupyterhub.app", "Authenticator": "jupyterhub.auth", "LocalAuthenticator": "jupyterhub.auth",
    "PAMAuthenticator": "jupyterhub.auth", "DummyAuthenticator": "jupyterhub.auth", "Spawner": "jupyterhub.spawner",
    "SharedPasswordAuthenticator": "jupyterhub.authenticators.shared", "Proxy": "jupyterhub.proxy",
    "ConfigurableHTTPProxy": "jupyterhub.proxy", "DockerSpawner": "dockerspawner", "KubeSpawner": "kubespawner",
}  # fmt: skip
Wrong = tuple[str, str, str]  # the trait, what is wrong, what to do


def check_trait(owner: str, name: str, value: Any = ..., home: str = "") -> Wrong | None:
    """What is wrong with ``c.OWNER.NAME = value``; ``value`` is left out where it is not known before it runs.
    ``home`` is the module of a class that a site has chosen itself.

    Raises:
        HostError: the extra is not installed.
    """
    known = _traits(owner, home)
    if known is None:
        return None
    if name not in known:
        other = near(name, list(known))
        return f"{owner}.{name}", f"{owner} has no trait {name}", f"write {other}" if other else "leave it out"
    if value is ...:
        return None
    from traitlets import HasTraits, TraitError, Type

    if isinstance(known[name], Type) and isinstance(value, str) and not _is_installed(value):
        return None  # a class of somebody else's package; whoever asks says that it is not here
    try:
        if not (value is None and known[name].allow_none):
            known[name].validate(HasTraits(), value)
    except (TraitError, TypeError, ValueError, AttributeError):
        entries = getattr(known[name], "load_entry_points", None)  # jupyterhub.traitlets.EntryPointType
        if entries and isinstance(value, str):
            names = sorted(entries())
            allowed = f"one of {', '.join(names)}, or a class: package.module.Class"
            return f"{owner}.{name}", f"there is no {value[:80]}", f"write {near(value, names) or allowed}"
        meant = known[name].info()
        return f"{owner}.{name}", f"{type(value).__name__} does not fit {owner}.{name}", f"write {meant}"[:200]
    return None


def _is_installed(path: str) -> bool:
    """Whether the module of ``package.module.Class`` can be imported here; a name without dots is no such path."""
    module = path.rpartition(".")[0]
    try:
        return not module or bool(importlib.import_module(module))
    except ImportError:
        return False


def is_known(owner: str, home: str = "") -> bool:
    """Whether a class can be looked at here. Raises HostError as :func:`check_trait`."""
    return _traits(owner, home) is not None


@cache
def _traits(owner: str, home: str) -> dict[str, Any] | None:
    """The traits that a class lets be configured, by name; None for a class that is not known, or not installed."""
    module = HOMES.get(owner, home)
    try:
        found: Any = getattr(importlib.import_module(module), owner) if module else None
    except (ImportError, AttributeError) as error:
        if owner in HOMES and isinstance(error, ImportError):
            raise documents.require_extra(error) from None
        return None
    return dict(found.class_traits(config=True)) if hasattr(found, "class_traits") else None


def assignments(text: str) -> Iterator[tuple[int, str, str, Any]]:
    """Each ``c.OWNER.NAME = value`` of a configuration: line, owner, name, value (``...`` where it is no literal).

    Raises SyntaxError where it is no Python.
    """
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            chain = ast.unparse(target).split(".") if isinstance(target, ast.Attribute) else []
            if len(chain) == 3 and chain[0] == "c":
                whole = None if isinstance(node, ast.AugAssign) else node.value  # a bare annotation has no value either
                yield node.lineno, chain[1], chain[2], _literal(whole) if whole else ...


def variables(text: str) -> Iterator[str]:
    """The variables without which a configuration does not load: each ``os.environ["NAME"]`` that it reads. None of
    what is no Python."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            name = _literal(node.slice)
            if ast.unparse(node.value) in ("os.environ", "environ") and isinstance(name, str):
                yield name


def choices(text: str) -> Iterator[tuple[int, Any]]:
    """The image of each ``inside.Choice(...)`` of a configuration, and its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "inside.Choice":
            for keyword in node.keywords:
                if keyword.arg == "image":
                    yield node.lineno, _literal(keyword.value)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return ...


def near_trait(owner: str, name: str, home: str = "") -> str:
    """The trait of a class that is most like a name; empty where none is."""
    return near(name, list(_traits(owner, home) or {}))


def near(name: str, known: Sequence[str]) -> str:
    """The known name that is most like another; empty where none is."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")
