"""jupyterhub_config.py: rendered from serve.toml, the images that students may choose, and where the hub listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from labrig import image, render, server_in_docker
from labrig.engines import docker
from labrig.serving import Offer, logins, state
from labrig.serving.inside import Choice
from labrig.serving.settings import SHARED, USER, Settings

TEMPLATE = "serving/jupyterhub_config.py.j2"


def text(settings: Settings, images: Mapping[Offer, str], gpus: int, note: state.Note, templates: Path) -> str:
    """The file. ``images``: what the engine calls the image of each offer: its identity, never a name or a tag;
    ``gpus``: how many there are to hand out.

    No secret stands in it: those of serve.toml are references, ours are files, both read when the hub starts.
    """
    place, login = state.place(), settings.login
    folder = {name: f"file:{place / name}" for name in (state.PASSWORD, state.ADMIN_PASSWORD)}
    given = {
        "py": repr,  # a constant of Python
        "choices": [
            Choice(one.target, one.title, one.why, one.size, identity, gpu=one.device == "cuda")
            for one, identity in images.items()
        ],
        "gpus": [str(number) for number in range(gpus)],  # as nvidia-smi counts them
        "note": note,
        "scheme": "https" if note.certificate else "http",
        "place": str(place),
        "state": state,
        "name": state.name(),
        "mark": state.mark(),
        "student": settings.student,
        "login": login,
        "shared": login.authenticator == SHARED,
        "password": login.password or folder[state.PASSWORD],
        "admin_password": folder[state.ADMIN_PASSWORD],
        "authenticator": logins.name_of(login.authenticator),
        "user_pattern": rf"{USER.pattern}\Z",  # jupyterhub looks for a match at the beginning
        "users": sorted(login.users),
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
