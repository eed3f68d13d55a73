"""What a hub's jupyterhub_config.py calls: which image a student gets, on which GPU, into a folder of their own.

It runs inside the hub's process. Whatever it refuses is said to the student in words that help them; the engine's own
words go to the hub's log.
"""

from __future__ import annotations

import contextlib
import functools
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labrig import daemon, image
from labrig.serving import state
from labrig.serving.gpus import LABEL, Pool

OPTION = "image"  # the one thing that students choose: in the form, and in user_options of the REST API
KEPT = "Your files are kept."


@dataclass(frozen=True)
class Choice:
    """One image, as a hub gives it. ``image`` is the engine's own id of it, ``size`` in bytes to pull.

    ``gpus`` are the ids of those that it runs on, of which a student gets one; none: it is for the processor.
    """

    target: str
    title: str
    why: str
    size: int
    image: str
    gpus: tuple[str, ...] = ()


def configure(c: Any, choices: Sequence[Choice]) -> None:
    """Set what students choose from, and what is done before and after each server.

    Everything else of ``c.DockerSpawner``, the volume too, stands in jupyterhub_config.py.
    """
    known = {one.target: one for one in choices}
    pool = Pool()
    spawner = c.DockerSpawner
    spawner.allowed_images = {one.target: one.image for one in choices}
    spawner.image = choices[0].image
    spawner.options_form = functools.partial(form, known) if len(choices) > 1 else ""
    spawner.options_from_form = options
    spawner.apply_user_options = applied

    # Functions, no partials: traitlets gives each spawner a deep copy of what is configured, of the pool in a partial
    # as well, and then two students would get one GPU.
    async def before(spawner: Any) -> None:
        await prepare(known, pool, spawner)

    def after(spawner: Any) -> None:
        release(pool, spawner)

    c.DockerSpawner.pre_spawn_hook, c.DockerSpawner.post_stop_hook = before, after


# ------------------------------------------------------------------------------------------------ the choice


def form(known: Mapping[str, Choice], spawner: Any) -> str:
    """The choices as HTML (of Bootstrap 5, as JupyterHub's pages); what was chosen last time is chosen again."""
    last = (spawner.orm_spawner.user_options or {}).get(OPTION)
    first = last if last in list(known) else next(iter(known))  # it may be any JSON
    return "\n".join(_entry(one, checked=one.target == first) for one in known.values())


def _entry(one: Choice, *, checked: bool) -> str:
    target, title, why = (html.escape(text) for text in (one.target, one.title, one.why))
    size = f"{one.size / 1e9:.1f} GB" if one.size >= 1e9 else f"{one.size / 1e6:.0f} MB"
    about = size + (", with a GPU of its own" if one.gpus else "")
    return f"""<div class="form-check mb-3">
  <input class="form-check-input" type="radio" name="{OPTION}" id="choice-{target}" value="{target}"
    {"checked" if checked else ""} required>
  <label class="form-check-label" for="choice-{target}"><strong>{title}</strong>
    <span class="text-body-secondary">({about})</span><br>{why}</label>
</div>"""


def options(data: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What a form, or the address of /hub/spawn, says: the REST API's user_options of it."""
    return {OPTION: data[OPTION][0]} if data.get(OPTION) else {}


def applied(_spawner: Any, _options: Mapping[str, Any]) -> None:
    """Nothing: `prepare` looks at them. JupyterHub would warn of options that nobody takes, and writes a traceback
    for what is raised here."""


def chosen(known: Mapping[str, Choice], asked: Mapping[str, Any]) -> Choice:
    """The image that user_options name, the first where they name none. Raises SpawnException 400 for all else."""
    there = f"There is: {', '.join(known)}."
    if stray := sorted(set(asked) - {OPTION}):
        raise refusal(f"Unknown option {stray[0][:60]!r}; only {OPTION} can be chosen. {there}", "options")
    name = asked.get(OPTION, next(iter(known)))
    if not isinstance(name, str) or name not in known:
        raise refusal(f"There is no image {str(name)[:60]!r} here. {there}", "image")
    return known[name]


# ------------------------------------------------------------------------------------------- before and after


async def prepare(known: Mapping[str, Choice], pool: Pool, spawner: Any) -> None:
    """Before a student's server starts: its image, a folder that they can write, a GPU if the image is for one.

    Raises SpawnException for what a student has to be told.
    """
    try:
        one = chosen(known, spawner.user_options)
    except Exception:
        spawner.orm_spawner.user_options = {}  # or the hub would take them again the next time nothing is said
        raise
    spawner.image = one.image
    with in_words(one):
        await make_folder(one, spawner)
        gpu = await take_gpu(pool, one.gpus, spawner) if one.gpus else None
    # From the configuration, not from the spawner: it has what was set here for another image before.
    asked = spawner.config.DockerSpawner
    host, create = dict(asked.get("extra_host_config", {})), dict(asked.get("extra_create_kwargs", {}))
    if gpu is not None:
        host["device_requests"] = [{"Driver": "", "Count": 0, "DeviceIDs": [gpu], "Capabilities": [["gpu"]]}]
        create["labels"] = {**create.get("labels", {}), LABEL: gpu}
    spawner.extra_host_config, spawner.extra_create_kwargs = host, create


def release(pool: Pool, spawner: Any) -> None:
    """After a server has stopped, or has failed to start."""
    pool.give_back(spawner.container_name)


async def make_folder(one: Choice, spawner: Any) -> None:
    """See that the student's volume is there, and theirs.

    An engine fills an empty volume from the image's folder in its place, with that folder's owner, when a container is
    made (docs.docker.com/engine/storage/volumes). In the place of the student's home it is the student's; the container
    is never started, so nothing runs as root. Done each time: it takes 0.1 s and mends what was interrupted.
    """
    from docker.errors import NotFound
    from docker.types import Mount

    name = f"{spawner.container_name}-volume"
    volume = next(name for name, bind in spawner.volume_binds.items() if bind["bind"] == str(image.WORK))
    with contextlib.suppress(NotFound):  # it is there only where a hub was killed at this point
        await spawner.docker("remove_container", name, force=True)
    labels = {state.MARK: state.mark(), state.USER: spawner.user.name}
    mount = Mount(image.HOME, volume, type="volume", labels=labels)
    host = spawner.client.create_host_config(mounts=[mount], network_mode="none")
    mine = {state.MARK: state.mark()}  # by which --down finds it where the hub was killed here
    await spawner.docker("create_container", one.image, ["true"], name=name, host_config=host, labels=mine)
    await spawner.docker("remove_container", name, force=True)


async def take_gpu(pool: Pool, ids: Sequence[str], spawner: Any) -> str:
    """One of ``ids``, a GPU that nobody else has. Raises SpawnException 503 where there is none."""
    held = pool.held()
    found = await spawner.docker("containers", filters={"label": LABEL})
    running = {each["Names"][0].lstrip("/"): each["Labels"][LABEL] for each in found}
    if (gpu := pool.take(spawner.container_name, ids, running, held)) is None:
        all_of_them = "the one GPU for this image is" if len(ids) == 1 else f"all {len(ids)} GPUs for this image are"
        raise refusal(
            f"No GPU is free: {all_of_them} in use. Choose an image without one, or try again when somebody has "
            f"stopped their server. {KEPT}", "gpu", 503,
        )  # fmt: skip
    return gpu


# ------------------------------------------------------------------------------------------------- the words


@contextlib.contextmanager
def in_words(one: Choice) -> Iterator[None]:
    """What the engine refuses, in a student's words. Raises SpawnException 503."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException, OSError) as error:
        raise told(one, error) from error


def told(one: Choice, error: Exception) -> Exception:
    """What a student reads when the engine failed with ``error``."""
    from docker.errors import APIError, ImageNotFound

    said = error.explanation if isinstance(error, APIError) and error.explanation else error
    text = " ".join(str(said).split())[:300]
    if isinstance(error, ImageNotFound) or "no such image" in text.lower():
        words = (f"The image {one.target} is not on this server any more. Choose another, or tell whoever runs it "
                 f"(invoke pull --target={one.target})."), "image"  # fmt: skip
    elif daemon.is_full(text):
        words = "The disk of this server is full. Tell whoever runs it; nothing that you have saved is lost.", "disk"
    elif isinstance(error, APIError):
        words = "The Docker engine of this server refused to start. Tell whoever runs it; its log says why.", "engine"
    else:
        words = f"The Docker engine of this server does not answer. Try again in a minute. {KEPT}", "engine"
    return refusal(*words, 503, log=text)


def refusal(message: str, reason: str, status: int = 400, *, log: str = "") -> Exception:
    """What JupyterHub shows to a student: on its pages, and in answers of the REST API."""
    from jupyterhub.spawner import SpawnException

    error = SpawnException(message, reason=reason, status_code=status, log_message=f"{message} [{log}]" if log else "")
    error.jupyterhub_message = message
    return error  # type: ignore[no-any-return]
