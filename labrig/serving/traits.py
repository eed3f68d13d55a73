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

# Where the classes are that a configuration may name; others are found by entry points, and among the bases of both.
HOMES = {
    "JupyterHub": "jupyterhub.app", "Authenticator": "jupyterhub.auth", "LocalAuthenticator": "jupyterhub.auth",
    "PAMAuthenticator": "jupyterhub.auth", "DummyAuthenticator": "jupyterhub.auth", "Spawner": "jupyterhub.spawner",
    "SharedPasswordAuthenticator": "jupyterhub.authenticators.shared", "Proxy": "jupyterhub.proxy",
    "ConfigurableHTTPProxy": "jupyterhub.proxy", "DockerSpawner": "dockerspawner", "KubeSpawner": "kubespawner",
    "CryptKeeper": "jupyterhub.crypto",
}  # fmt: skip
GROUPS = ("jupyterhub.authenticators", "jupyterhub.spawners", "jupyterhub.proxies")
# A file that is checked must not choose what is run here, so nothing is imported but what registers itself with
# jupyterhub, and classes of these packages.
PACKAGES = (
    "jupyterhub", "dockerspawner", "kubespawner", "oauthenticator", "ltiauthenticator", "nativeauthenticator",
    "ldapauthenticator", "firstuseauthenticator", "tmpauthenticator",
)  # fmt: skip
# Entry points of packages that the chart's hub has and that need not be here, and their classes
# (jupyterhub/oauthenticator, setup.py; the local ones begin with local- and Local).
ELSEWHERE = {
    "auth0": "Auth0OAuthenticator", "azuread": "AzureAdOAuthenticator", "bitbucket": "BitbucketOAuthenticator",
    "cilogon": "CILogonOAuthenticator", "generic-oauth": "GenericOAuthenticator", "github": "GitHubOAuthenticator",
    "gitlab": "GitLabOAuthenticator", "globus": "GlobusOAuthenticator", "google": "GoogleOAuthenticator",
    "mediawiki": "MWOAuthenticator", "okpy": "OkpyOAuthenticator", "openshift": "OpenShiftOAuthenticator",
}  # fmt: skip
OTHERS = (
    "OAuthenticator", *ELSEWHERE.values(), *(f"Local{one}" for one in ELSEWHERE.values()), "LTI11Authenticator",
    "LTI13Authenticator", "NativeAuthenticator", "LDAPAuthenticator", "FirstUseAuthenticator", "TmpAuthenticator",
)  # fmt: skip
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
    from traitlets import HasTraits, Type

    if isinstance(known[name], Type) and isinstance(value, str):
        said, value = value, _named(known[name], value)  # else traitlets would import whatever it says
        if value is None:
            other = near(said, [*_entries(known[name])]) if said not in ELSEWHERE else ""
            # What is like no name that is known here may be installed where the hub runs, see :func:`unseen`.
            return (f"{owner}.{name}", f"there is no {said[:80]}", f"write {other}") if other else None
    elif _imports(known[name]):
        return None
    try:
        if not (value is None and known[name].allow_none):
            known[name].validate(HasTraits(), value)
    except Exception:  # noqa: BLE001 - whatever the trait of somebody else's class raises
        meant = known[name].info()
        return f"{owner}.{name}", f"{type(value).__name__} does not fit {owner}.{name}", f"write {meant}"[:200]
    return None


def unseen(owner: str, name: str, value: Any, home: str = "") -> bool:
    """Whether a trait names a class, as text, that is not looked at here: it is not installed, or of a package that is
    not imported for a check. Raises HostError as :func:`check_trait`."""
    from traitlets import Type

    trait = (_traits(owner, home) or {}).get(name)
    return isinstance(trait, Type) and isinstance(value, str) and _named(trait, value) is None


def _named(trait: Any, value: str) -> Any:
    """The class that a trait's text names, by entry point or path; None where it is not looked at."""
    for name, path in _entries(trait).items():
        if name.lower() == value.lower():  # as jupyterhub finds it (jupyterhub, traitlets.EntryPointType)
            return _loaded(path)
    return _by_path(value)


def _entries(trait: Any) -> dict[str, str]:
    """The names that a trait takes for classes which are installed here, and their paths."""
    from importlib import metadata

    group = getattr(trait, "entry_point_group", "")
    found = metadata.entry_points(group=group) if group in GROUPS else ()
    return {entry.name: entry.value.replace(":", ".") for entry in found}


def _by_path(path: str) -> Any:
    """``package.module.Class`` of a package whose classes may be imported; None where there is none."""
    words = path.split(".")
    if words[0] not in PACKAGES or not all(one.isidentifier() and not one.startswith("_") for one in words):
        return None
    return _loaded(path)


def _loaded(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit):  # noqa: BLE001 - whatever somebody else's module raises when it is imported
        return None
    return found if isinstance(found, type) else None


def _imports(trait: Any) -> bool:
    """Whether somewhere in a trait, such as a list's or a union's, is one that imports what a text names."""
    from traitlets import TraitType, Type

    inner = [getattr(trait, one, None) for one in ("_trait", "_key_trait", "_value_trait")]
    inner += [*(getattr(trait, "trait_types", None) or ()), *(getattr(trait, "_traits", None) or ())]
    return isinstance(trait, Type) or any(_imports(one) for one in inner if isinstance(one, TraitType))


def is_known(owner: str, home: str = "") -> bool:
    """Whether a class can be looked at here. Raises HostError as :func:`check_trait`."""
    return _traits(owner, home) is not None


@cache
def _traits(owner: str, home: str) -> dict[str, Any] | None:
    """The traits that a class lets be configured, by name; None for a class that is not known, or not looked at."""
    if home:
        found = _by_path(f"{home}.{owner}")
    elif owner in HOMES:
        try:
            found = getattr(importlib.import_module(HOMES[owner]), owner, None)
        except ImportError as error:
            raise documents.require_extra(error) from None
    else:
        found = _classes().get(owner)
    return dict(found.class_traits(config=True)) if hasattr(found, "class_traits") else None


@cache
def _classes() -> dict[str, Any]:
    """By name the classes that register themselves with jupyterhub here, ours, and the bases of both: a table of a
    base's name counts for what extends it."""
    from importlib import metadata

    paths = [entry.value.replace(":", ".") for group in GROUPS for entry in metadata.entry_points(group=group)]
    paths += [f"{module}.{name}" for name, module in HOMES.items()]
    classes = [found for found in map(_loaded, paths) if found is not None]
    return {one.__name__: one for found in classes for one in found.__mro__ if hasattr(one, "class_traits")}


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
    except (ValueError, TypeError, RecursionError, MemoryError):
        return ...


def near_trait(owner: str, name: str, home: str = "") -> str:
    """The trait of a class that is most like a name; empty where none is."""
    return near(name, list(_traits(owner, home) or {}))


def near(name: str, known: Sequence[str]) -> str:
    """The known name that is most like another; empty where none is."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")
