"""jupyterhub_config.py: rendered from serve.toml, the images that students may choose, and where the hub listens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from labrig import image, render, server_in_docker
from labrig.engines import docker
from labrig.serving import Offer, logins, state
from labrig.serving import settings as files
from labrig.serving.inside import Choice
from labrig.serving.settings import SHARED, USER, Settings

TEMPLATE = "serving/jupyterhub_config.py.j2"
PAGES = "serving/pages"  # what JupyterHub shows instead of its own


def own_passwords(settings: Settings) -> dict[str, int]:
    """The files of passwords that are ours to make, and how many random bytes each holds."""
    login, made = settings.login, {}
    if login.authenticator == SHARED and not login.password:
        made[state.PASSWORD] = 6
    if login.authenticator == SHARED and login.admins and "admin_password" not in login.settings:
        made[state.ADMIN_PASSWORD] = 24
    return made


def text(
    settings: Settings,
    images: Mapping[Offer, str],
    gpus: Mapping[str, tuple[str, ...]],
    note: state.Note,
    templates: Path,
) -> str:
    """The file. ``images``: what the engine calls the image of each offer: its identity, never a name or a tag;
    ``gpus``: for each target that needs one, the ids of those it runs on.

    No secret stands in it: those of serve.toml are references, ours are files, both read when the hub starts.
    """
    from sqlalchemy import URL

    place, login = state.place(), settings.login
    folder = {name: f"file:{place / name}" for name in (state.PASSWORD, state.ADMIN_PASSWORD)}
    given = {
        "py": repr,  # a constant of Python
        "choices": [
            Choice(one.target, one.title, one.why, one.size, identity, gpus.get(one.target, ()))
            for one, identity in images.items()
        ],
        "note": note,
        "scheme": "https" if note.certificate else "http",
        "place": str(place),
        "database": URL.create("sqlite", database=str(place / state.DATABASE)).render_as_string(),
        "state": state,
        "name": state.name(),
        "mark": state.mark(),
        "student": settings.student,
        "login": login,
        "shared": login.authenticator == SHARED,
        "pages": str((templates / PAGES).absolute()),
        "password": login.password or folder[state.PASSWORD],
        "admin_password": folder[state.ADMIN_PASSWORD] if state.ADMIN_PASSWORD in own_passwords(settings) else "",
        "authenticator": logins.name_of(login.authenticator),
        "user_pattern": rf"{USER.pattern}\Z",  # jupyterhub looks for a match at the beginning
        # Admins as well, whom JupyterHub lets in by themselves only where users are named.
        "users": sorted(login.users if login.is_open else {*login.users, *login.admins}),
        "open": login.is_open,
        "is_whole": bool(login.users) and not any(login.settings[one] for one in login.own_lists),
        "blocked": [str(one).lower() for one in login.settings.get("blocked_users", [])],  # as it compares names
        "file": str(place / state.DATABASE),
        "admins": sorted(login.admins),
        "command": [*image.SERVE, "--hub"],
        "owner": f"{image.UID}:{image.GID}",
        "labs": str(image.LABS),
        "home": image.HOME,
        "work": str(image.WORK),
        "pids": image.PIDS,
        "tmpfs": {image.HOME: docker.owned(f"{image.UID}:{image.GID}"), "/tmp": server_in_docker.MEMORY},  # noqa: S108
        "log": {"Type": "json-file", "Config": {"max-size": server_in_docker.LOG_SIZE, "max-file": "2"}},
    }
    return render.jinja(templates).get_template(TEMPLATE).render(given)


def draft(settings: Settings, offered: Sequence[Offer], root: Path) -> str:
    """The file as it would be here for all that is offered, before anything was looked at or started: ports are open,
    and an image is known by its config, as an engine without containerd's store knows it."""
    hub = settings.hub
    note = state.Note(
        url=files.url(hub), address=hub.address, port=hub.port, hub_address="127.0.0.1", hub_port=0, proxy="",
        certificate=str(hub.certificate or ""), key=str(hub.key or ""), asked="", checkout=str(root), since="",
        subdomains=hub.subdomains,
    )  # fmt: skip
    images = {one: one.config for one in offered if one.hub}
    gpus = {one.target: ("0",) for one in images if one.device == "cuda"}
    return text(settings, images, gpus, note, root / "templates")
