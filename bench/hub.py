"""A hub for a room: how fast it is there, how long students wait when they come together, what each of them costs.

Students log in over HTTP as a browser does (bench/student.py). What a user would do instead is `docker run` of the same
image with the same limits, one container a person, without logins, volumes or anybody who stops what is idle.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench import images, kernel, publishing, rest, student
from bench.clock import INVOKE, ROOT, run
from labrig import daemon, environment, home, image, published, server_native
from labrig.engines import Environment
from labrig.serving import settings, state

T = TypeVar("T")

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

TOGETHER = (1, 4, 8)  # students who log in at once
IDLE = 60.0  # seconds over which an idle student's CPU is counted
SETTLE = 5.0  # seconds after the last request before that
LOGINS = 20  # students who log in and start nothing, one after the other
NOTEBOOKS = "labs/notebooks"
CELL = "import torch; print(torch.__version__)"
PORT = 8888  # of JupyterLab in the image
MB, MIB = 1_000_000, 1 << 20
NAMES = "bench"  # what students of this benchmark are called, with a number


@dataclass
class Figures:
    """What the runs found; a list has one number a run, or a student."""

    start: list[float] = field(default_factory=list)  # seconds
    hub: dict[str, list[float]] = field(default_factory=dict)  # MB, by process
    ours: dict[int, list[float]] = field(default_factory=dict)  # seconds of each student, by how many came at once
    alone: dict[int, list[float]] = field(default_factory=dict)  # the same by `docker run`
    login: list[float] = field(default_factory=list)  # CPU seconds of the hub
    spawn: list[float] = field(default_factory=list)
    proxy: list[float] = field(default_factory=list)
    idle: list[rest.Memory] = field(default_factory=list)  # of each student's container
    shares: list[int] = field(default_factory=list)
    torch: list[rest.Memory] = field(default_factory=list)  # the same with a kernel that holds torch
    cpu: list[float] = field(default_factory=list)  # CPU seconds a minute, of each
    cpu_hub: list[float] = field(default_factory=list)  # CPU seconds a minute, of hub, proxy and culler
    labs: list[tuple[str, int, int, str]] = field(default_factory=list)  # bytes at most, shared, how it ended


@dataclass(frozen=True)
class Running:
    """A hub that is up."""

    address: str
    password: str
    keeper: int  # its process

    def processes(self) -> dict[str, int]:
        """The number of each process, by what it is."""
        said = rest.descendants(self.keeper)
        kinds = {"proxy": "configurable-http-proxy", "idle culler": "jupyterhub_idle_culler", "hub": "jupyterhub"}
        found = {"keeper": self.keeper}
        for kind, words in kinds.items():
            one = next((n for n, line in said.items() if words in line and n not in found.values()), None)
            if one is not None:
                found[kind] = one
        return found


def bench_hub(runs: int) -> str:
    """All figures, in Markdown."""
    if not (asked := daemon.ask()).version:
        return f"Not measured: {asked.why_not}."
    if not shutil.which("configurable-http-proxy"):
        return "Not measured: there is no configurable-http-proxy on PATH."
    found, made = Figures(), environment.build(ROOT, images.target().name, "docker")
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder, daemon.connect() as client:
        place = Path(folder)
        _publish(place, made, client)
        for number in range(runs):
            print(f"  {number + 1}/{runs} hub", file=sys.stderr, flush=True)
            with _hub(place, client, found) as hub:
                _one_run(hub, client, made, found)
        with _hub(place, client, found) as hub:
            _run_labs(hub, client, found)
    return _text(found)


def _one_run(hub: Running, client: DockerClient, made: Environment, found: Figures) -> None:
    """What is measured with one hub; the hub and `docker run` in turn."""
    _only_log_in(hub, found)
    for many in TOGETHER:
        students = _come(hub, many, found)
        if many == TOGETHER[-1]:
            _stay(hub, client, students, found)
        _at_once(lambda number, there=students: student.stop(there[number]), many)
        found.alone.setdefault(many, []).extend(_alone(client, made, many))


# ------------------------------------------------------------------------------------------------ a hub


def _publish(place: Path, made: Environment, client: DockerClient) -> None:
    """A checkout that says that the image was published, and a cache without a hub of its own."""
    checkout, cache = place / "checkout", place / "cache"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns("__pycache__", ".git", ".venv", "results"))
    target, torch = made.target, made.lock.wheel("torch")
    number = str(client.images.get(made.reference).id)
    published.keep(checkout / "images", published.Entry(
        target=target.name, platform=made.lock.platform, reference=f"127.0.0.1:5000/bench/{target.name}@{number}",
        tag="bench", image=made.reference, config=number, size=1, torch=torch.version if torch else target.torch,
        variant=target.variant, python=target.python, cuda=target.cuda or "none", min_driver="none", capabilities=(),
        lock=made.lock.digest, labs=number, date="2026-01-01", verified="by nobody: a benchmark",
    ))  # fmt: skip
    cache.mkdir()
    for part in home.root().iterdir():  # all but the hub and the servers, of which a person may have one running
        if part.name not in (home.servers().name, state.place().name):
            (cache / part.name).symlink_to(part)


@contextmanager
def _hub(place: Path, client: DockerClient, found: Figures) -> Iterator[Running]:
    """Bring a new hub up; it and all that is its own in the engine go at the end."""
    password, port, there = secrets.token_urlsafe(16), _free_port(), {"LABRIG_CACHE": str(place / "cache")}
    (place / "password").write_text(password, encoding="ascii")
    (place / "password").chmod(0o600)
    (place / "serve.toml").write_text(
        f'[hub]\nport = {port}\n[login]\npassword = "file:{place / "password"}"\n', encoding="utf-8"
    )
    checkout, folder = place / "checkout", place / "cache" / state.place().name
    address = f"http://127.0.0.1:{port}"
    try:
        began = time.perf_counter()
        run(INVOKE, "serve", "--hub", f"--config={place / 'serve.toml'}", cwd=checkout, **there)
        version = _version(address)
        found.start.append(time.perf_counter() - began)
        _require(bool(version), version)
        hub = Running(address, password, int((folder / server_native.PID).read_text(encoding="ascii")))
        yield hub
    finally:
        try:
            run(INVOKE, "serve", "--down", cwd=checkout, **there)
        finally:
            _clear(client, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _version(address: str) -> str:
    """What the hub answers to whoever asks for its version; the proxy alone answers 404."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/hub/api/", timeout=kernel.PATIENCE) as answer:
        return str(json.load(answer)["version"])


def _clear(client: DockerClient, folder: Path) -> None:
    """Remove the containers, volumes and networks of the hub of this folder, and no others."""
    with publishing._cache(folder.parent):
        mine = {"name": state.name()}  # also of volumes, which outlive `--down`
    for container in client.containers.list(all=True, filters=mine):
        container.remove(force=True)
    for volume in client.volumes.list(filters=mine):
        volume.remove()
    for network in client.networks.list(filters=mine):
        network.remove()


# ------------------------------------------------------------------------------------------------ students


def _only_log_in(hub: Running, found: Figures) -> None:
    """CPU seconds of the hub for a login that starts nothing."""
    process = hub.processes()["hub"]
    before = rest.used(process)
    for number in range(LOGINS):
        student.log_in(hub.address, f"{NAMES}-in-{number}", hub.password)
    found.login.append((rest.used(process) - before) / LOGINS)


def _come(hub: Running, many: int, found: Figures) -> list[student.Student]:
    """So many students at once, each from the login form to what a first cell has printed; their servers stay."""
    process, proxy = (hub.processes()[kind] for kind in ("hub", "proxy"))
    before = rest.used(process), rest.used(proxy)

    def come(number: int) -> tuple[student.Student, float]:
        began = time.perf_counter()
        one = student.log_in(hub.address, f"{NAMES}-{many}-{number}", hub.password)  # new, with an empty folder
        student.spawn(one)
        said = student.execute(one, CELL)
        taken = time.perf_counter() - began
        _require(bool(said.strip()), said)
        return one, taken

    came = _at_once(come, many)
    found.spawn.append((rest.used(process) - before[0]) / many)
    found.proxy.append((rest.used(proxy) - before[1]) / many)
    found.ours.setdefault(many, []).extend(seconds for _, seconds in came)
    return [one for one, _ in came]


def _stay(hub: Running, client: DockerClient, students: Sequence[student.Student], found: Figures) -> None:
    """What students cost who do nothing: without a kernel, and with one that holds torch."""
    containers = [_container(client, one) for one in students]
    hubs = [number for kind, number in hub.processes().items()]
    time.sleep(SETTLE)
    for kind, number in hub.processes().items():
        found.hub.setdefault(kind, []).append((rest.proportional(number) or rest.resident(number)) / MB)
    for container in containers:
        found.idle.append(rest.memory(container))
        shares = [rest.proportional(number) for number in _processes(container)]
        if None not in shares:
            found.shares.append(sum(one for one in shares if one))
    before = [rest.cpu_seconds(one) for one in containers], [rest.used(one) for one in hubs]
    time.sleep(IDLE)
    found.cpu += [(rest.cpu_seconds(one) - was) * 60 / IDLE for one, was in zip(containers, before[0], strict=True)]
    found.cpu_hub.append(sum(rest.used(one) for one in hubs) - sum(before[1]))

    def hold(number: int) -> rest.Memory:
        with student.session(students[number]) as connection:
            kernel.converse(connection, CELL)
            return rest.memory(containers[number])

    found.torch += _at_once(hold, len(students))


def _alone(client: DockerClient, made: Environment, many: int) -> list[float]:
    """The same by `docker run`, so many people at once: seconds of each until a first cell has run."""
    limits = settings.Student()

    def come(number: int) -> float:
        began, token, name = time.perf_counter(), secrets.token_hex(16), f"labrig-bench-hub-{os.getpid()}-{number}"
        try:
            run(
                "docker", "run", "--detach", "--name", name, "--memory", str(limits.memory), "--cpus", str(limits.cpu),
                "--shm-size", str(limits.shm), "--publish", f"127.0.0.1::{PORT}", "--env", "JUPYTER_TOKEN",
                "--workdir", image.LABS, made.reference, *image.SERVE, JUPYTER_TOKEN=token, **daemon.environment(),
            )  # fmt: skip
            container = client.containers.get(name)
            published_at = container.attrs["NetworkSettings"]["Ports"][f"{PORT}/tcp"][0]["HostPort"]
            url = f"http://127.0.0.1:{published_at}/?token={token}"
            _wait_for(url)
            _require(bool(kernel.execute(url, CELL).strip()), url)
            return time.perf_counter() - began
        finally:
            run("docker", "rm", "--force", "--volumes", name, **daemon.environment())

    return _at_once(come, many)


def _run_labs(hub: Running, client: DockerClient, found: Figures) -> None:
    """Every lab's notebook in a student's container, cell by cell, one kernel after the other."""
    one = student.log_in(hub.address, f"{NAMES}-labs", hub.password)
    student.spawn(one)
    container = _container(client, one)
    books = student.api(one, "GET", f"/api/contents/{NOTEBOOKS}")["content"]
    for name in sorted(book["name"] for book in books if book["type"] == "notebook"):
        print(f"  {name}", file=sys.stderr, flush=True)
        cells = student.api(one, "GET", f"/api/contents/{NOTEBOOKS}/{name}")["content"]["cells"]
        ended = "yes"
        with rest.watched(container) as seen:
            try:
                with student.session(one, NOTEBOOKS) as connection:
                    for cell in cells:
                        if cell["cell_type"] == "code":
                            kernel.converse(connection, "".join(cell["source"]))
            except RuntimeError as error:
                ended = f"no: {str(error)[:100]}"
        most = max(one.own for one in seen), max(one.shared for one in seen)
        found.labs.append((name.removesuffix(".ipynb"), *most, ended))
    student.stop(one)


# ------------------------------------------------------------------------------------------------ small things


def _container(client: DockerClient, one: student.Student) -> Container:
    """The container of a student, by what the hub tells it of whom it is for."""
    mine = f"JUPYTERHUB_USER={one.name}"
    return next(each for each in client.containers.list() if mine in each.attrs["Config"]["Env"])


def _processes(container: Container) -> list[int]:
    said = container.top(ps_args="-eo pid")
    return [int(row[said["Titles"].index("PID")]) for row in said["Processes"]]


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + kernel.PATIENCE
    while True:
        try:
            kernel.ask(url, "GET", "/api/status")
            return
        except (OSError, RuntimeError, HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _at_once(do: Callable[[int], T], many: int) -> list[T]:
    """Call it with 0, 1, 2 ... side by side, and wait for all."""
    gate = threading.Barrier(many)

    def begin(number: int) -> T:
        gate.wait()
        return do(number)

    with concurrent.futures.ThreadPoolExecutor(many) as pool:
        return list(pool.map(begin, range(many)))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _require(good: bool, found: object) -> None:
    """A figure of something else than was meant is none."""
    if not good:
        sys.exit(f"the benchmark did not do what it measures: {found}")


# ------------------------------------------------------------------------------------------------ the tables


def _text(found: Figures) -> str:
    parts = [_waits(found), _costs(found), _needs(found)]
    return "\n\n".join("\n".join(part) for part in parts)


def _waits(found: Figures) -> list[str]:
    lines = [
        "| from the login form to a first cell that has imported torch | the hub, s | `docker run`, s | times |",
        "|---|---|---|---|",
    ]
    for many, ours in found.ours.items():
        alone = found.alone[many]
        ratio = statistics.median(ours) / statistics.median(alone)
        who = "1 student" if many == 1 else f"{many} students at once"
        lines.append(f"| {who} | {_spread(ours)} | {_spread(alone)} | {ratio:.1f} |")
    return lines


def _costs(found: Figures) -> list[str]:
    login, spawn = statistics.median(found.login), statistics.median(found.spawn)
    own = [one.own / MB for one in found.idle]
    torch = [one.own / MB for one in found.torch]
    rows = [
        ("hub start: `invoke serve --hub` until it answers", f"{_spread(found.start)} s"),
        *(
            (f"memory of the {kind}, with {TOGETHER[-1]} students (PSS)", f"{_spread(sizes, 0)} MB")
            for kind, sizes in found.hub.items()
        ),
        ("memory of an idle student, no kernel: own", f"{_spread(own, 0)} MB"),
        ("the same, page cache, which Linux takes back", f"{_spread([one.files / MB for one in found.idle], 0)} MB"),
        *([("the same, PSS", f"{_spread([one / MB for one in found.shares], 0)} MB")] if found.shares else []),
        ("memory of a student with one kernel that has imported torch: own", f"{_spread(torch, 0)} MB"),
        ("CPU of an idle student, no browser open, a minute", f"{_spread(found.cpu, 2)} s"),
        (f"CPU of hub, proxy and culler with {TOGETHER[-1]} of them, a minute", f"{_spread(found.cpu_hub, 2)} s"),
        ("CPU of the hub for a login", f"{_spread([1000 * one for one in found.login], 0)} ms"),
        ("CPU of the hub from login to a first cell", f"{_spread([1000 * one for one in found.spawn], 0)} ms"),
        ("CPU of the proxy for the same", f"{_spread([1000 * one for one in found.proxy], 0)} ms"),
        (
            "so one hub process, which uses one core, takes a second",
            f"{1 / login:.0f} logins, or {1 / spawn:.1f} starts",
        ),
    ]
    return ["| what | median (min-max) |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]


def _needs(found: Figures) -> list[str]:
    limit = settings.Student().memory
    lines = [
        f"| lab, as a notebook in a student's container of {limit / MIB:.0f} MiB | MiB at most | of it tmpfs | ran |",
        "|---|---|---|---|",
    ]
    return lines + [
        f"| `{name}` | {most / MIB:.0f} | {shared / MIB:.0f} | {ended} |" for name, most, shared, ended in found.labs
    ]


def _spread(figures: Sequence[float], digits: int = 1) -> str:
    low, middle, high = (f"{one:.{digits}f}" for one in (min(figures), statistics.median(figures), max(figures)))
    return f"{middle} ({low}-{high})"
