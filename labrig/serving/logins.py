"""Who comes in: the authenticator's class and its traits, from [login] of serve.toml."""

from __future__ import annotations

import difflib
import importlib
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from labrig import secret
from labrig.errors import HostError, UsageError
from labrig.serving import settings as files
from labrig.serving.settings import PAM, SHARED, Settings

# jupyterhub's own names for its own (jupyterhub, pyproject.toml: entry points of jupyterhub.authenticators).
CLASSES = {
    SHARED: "jupyterhub.authenticators.shared.SharedPasswordAuthenticator",
    PAM: "jupyterhub.auth.PAMAuthenticator",
}
STANDING = {"allowed_users": "users", "admin_users": "admins"}  # traits that [login] itself sets
SHORTEST = 8  # of a shared password (jupyterhub, authenticators/shared.py)


def name_of(authenticator: str) -> str:
    """The class, as MODULE.CLASS."""
    return CLASSES.get(authenticator, authenticator)


def resolved(value: Any, trait: str) -> Any:
    """A trait's value, in which each reference is replaced by the secret. Raises UsageError, see ``secret.read``."""
    if isinstance(value, dict):
        return {key: resolved(one, f"{trait}.{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [resolved(one, trait) for one in value]
    return secret.read(value, trait) if secret.is_reference(value) else value


def removed(c: Any, database: str, users: Collection[str]) -> set[str]:
    """Whom a hub's database knows and its list of users does not name; nobody before a hub's first start. ``c`` is the
    hub's configuration, whose authenticator says how the database has a user's name.

    Of those whom it blocks JupyterHub stops the servers and takes the rights when it starts, so that neither a cookie
    nor a token opens anything (jupyterhub, app.py: init_blocked_users).
    Raises sqlite3.Error where the database cannot be read.
    """
    if not Path(database).exists():
        return set()
    with closing(sqlite3.connect(database)) as known:
        if not known.execute("select 1 from sqlite_master where name = 'users'").fetchone():
            return set()
        names = {name for (name,) in known.execute("select name from users")}
    module, _, name = c.JupyterHub.authenticator_class.rpartition(".")
    door = getattr(importlib.import_module(module), name)(config=c)
    return names - {door.normalize_username(user) for user in users}


def prove(settings: Settings) -> None:
    """Look at the class, at each trait, and at each secret.

    Raises:
        UsageError: there is no such class or trait, a value is of the wrong kind, a secret is written out or is not
            where it is said to be, or nothing says who comes in; with the line.
        HostError: jupyterhub is not installed.
    """
    login = settings.login
    table = files.where(settings, "login.settings")
    known = load(settings)
    for trait, value in login.settings.items():
        require_trait(settings, known, trait)
        if plain := next(secret.find_plain(value, trait), ""):
            raise UsageError(
                f"{table.at(trait)}: {plain[:80]} is a secret, and stands in the file", found="no reference",
                fix=f"write {secret.MEANT}",
            )  # fmt: skip
    if login.authenticator == SHARED and "user_password" in login.settings:
        raise UsageError(
            f"{table.at('user_password')}: the shared password stands in [login]", found="user_password",
            fix=f"write it there as password, as {secret.MEANT}",
        )  # fmt: skip
    if login.authenticator == SHARED and login.password:
        where = files.where(settings, "login")
        if len(secret.read(login.password, where.at("password"))) < SHORTEST:
            raise UsageError(
                f"{where.at('password')}: the shared password is too short", found=f"less than {SHORTEST} characters",
                fix="make it longer",
            )  # fmt: skip
    _require_values(settings, known)
    require_list(settings)


def require_list(settings: Settings) -> None:
    """Raises UsageError where a class, which may know the whole world, is not told who comes in; or is told twice."""
    login = settings.login
    for trait, key in STANDING.items():
        if trait in login.settings:
            raise UsageError(
                f"{files.where(settings, 'login.settings').at(trait)}: who comes in stands in [login]", found=trait,
                fix=f"write them there, as {key}",
            )  # fmt: skip
    if not (login.users or login.own_lists or login.authenticator in CLASSES):
        raise UsageError(
            f"{files.where(settings, 'login').at('authenticator')}: nothing says who may come in",
            found=f"no users, and no allow_... or allowed_... of {login.authenticator}",
            fix="name users, or in [login.settings] a list that the class has, such as allowed_organizations; "
            "allow_all = true there lets in everybody who has an account",
        )  # fmt: skip
    others = [*(["users"] if login.users else []), *filter(files.is_list, login.settings)]
    if login.is_open and others:
        raise UsageError(
            f"{files.where(settings, 'login.settings').at('allow_all')}: everybody comes in, so {others[0]} counts for "
            "nothing", found=f"allow_all = true and {others[0]}", fix="leave one of the two out",
        )  # fmt: skip


def load(settings: Settings) -> type:
    """The authenticator's class. Raises as :func:`prove`."""
    try:
        from jupyterhub.auth import Authenticator
    except ImportError:
        raise HostError("jupyterhub is not installed here", fix="make serve") from None
    wanted = settings.login.authenticator
    at = files.where(settings, "login").at("authenticator")
    module, _, name = name_of(wanted).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UsageError(
            f"{at}: there is no authenticator {wanted}", found=f"no module {error.name} in this environment",
            fix=f"correct the name, or install what has it: .venv/bin/python -m pip install {package}",
        ) from None  # fmt: skip
    except (ImportError, OSError, AttributeError) as error:
        raise UsageError(
            f"{at}: there is no authenticator {wanted}", found=str(error)[:200], fix="correct the name"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Authenticator)):
        raise UsageError(
            f"{at}: {wanted} is no authenticator", found="no class that extends jupyterhub.auth.Authenticator",
            fix="correct the name",
        )  # fmt: skip
    return found


def require_trait(settings: Settings, known: type, trait: str) -> None:
    """Raises UsageError where a class has no such trait."""
    names = known.class_trait_names(config=True)  # type: ignore[attr-defined]
    if trait not in names:
        near = difflib.get_close_matches(trait, names, 3)
        raise UsageError(
            f"{files.where(settings, 'login.settings').at(trait)}: {known.__name__} has no trait {trait!r}",
            found=f"near: {', '.join(near)}" if near else "nothing of a like name",
            fix="correct the name, or take it out",
        )


def _require_values(settings: Settings, known: type) -> None:
    """Raises UsageError for a value that its trait does not take; never shows it, it may be a secret."""
    from traitlets import TraitError
    from traitlets.config import Config

    table = files.where(settings, "login.settings")
    try:
        known()
    except Exception as error:  # whatever somebody else's class raises; PAM without its library does
        raise HostError(
            f"{files.where(settings, 'login').at('authenticator')}: {known.__name__} does not start",
            found=f"{type(error).__name__}: {str(error)[:200]}", fix="install what it needs, as its documentation says",
        ) from error  # fmt: skip
    for trait, value in settings.login.settings.items():
        given: Mapping[str, Any] = {known.__name__: {trait: resolved(value, table.at(trait))}}
        try:
            known(config=Config(given))
        except (TraitError, ValueError) as error:
            meant = known.class_traits()[trait].info()  # type: ignore[attr-defined]
            raise UsageError(
                f"{table.at(trait)}: {trait} is wrong", found=type(value).__name__, fix=f"write {meant}"
            ) from error
