"""A hub whose engine is stopped under it, and one whose engine has two GPUs for more students.

The engine is a test's own, in a network of its own (see apart). It has no GPU, but hands out the ids of two.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import apart
import hubs
import pytest
from apart import Engine
from hubs import Hub, Student
from seats import rest, servers, started, until

from labrig import image

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
MINE = f"{image.WORK}/mine.txt"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if os.getuid():
        pytest.skip("an engine of its own needs root")
    with apart.engine(tmp_path_factory.mktemp("engine") / "e", "labrig/cpu:latest", gpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def hub(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """With two images: for CUDA it is the same, which takes no GPU to start."""
    path = f"{engine.folder / 'bin'}:{os.environ['PATH']}"
    with hubs.prepared(tmp_path_factory.mktemp("hub"), DOCKER_HOST=engine.address, PATH=path) as made:
        import samples  # of tests/unit, which hubs has found

        from labrig import published

        images = made.checkout / "images"
        (cpu,) = published.read(images)
        published.keep(images, samples.published("cuda", config=cpu.config, size=3_160_000_000))
        made.up()
        yield made


def gpus(engine: Engine, name: str) -> list[str]:
    """The GPUs that a student's container was given, as its own first process sees them."""
    (box,) = containers(engine, name)
    said = engine.docker("exec", box, "cat", "/proc/1/environ").split("\0")
    return [line.partition("=")[2] for line in said if line.startswith("NVIDIA_VISIBLE_DEVICES=")]


def containers(engine: Engine, name: str) -> list[str]:
    return engine.docker("ps", "--quiet", "--filter", f"label=labrig.hub.user={name}").split()


def asked(student: Student, image: str) -> tuple[int, str]:
    """A start through the REST API, to its end: the status, and what was said; 503 also where that came later."""
    status, text = rest(student, "POST", f"users/{student.name}/server", {"user_options": {"image": image}})
    if status == 202:
        events = rest(student, "GET", f"users/{student.name}/server/progress")[1]  # until it is ready, or has failed
        last = json.loads(events.strip().rpartition("data:")[2])
        return (503, last["message"]) if last.get("failed") else (201, "")
    return status, json.loads(text)["message"] if status >= 400 else ""


def stop(student: Student) -> None:
    rest(student, "DELETE", f"users/{student.name}/server")
    until(lambda: not servers(student))


def test_each_student_has_one_gpu_and_who_comes_too_late_is_told(engine: Engine, hub: Hub) -> None:
    room = [Student(hub, name) for name in ("ada", "grace", "alan")]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda one: asked(one, "cuda"), room))
    assert sorted(status for status, _ in answers) == [201, 201, 503], (answers, hub.log())
    late = next(one for one, (status, _) in zip(room, answers, strict=True) if status == 503)
    rest_of_them = [one for one in room if one is not late]
    assert "No GPU is free: all 2 GPUs for this image are in use." in next(
        said for status, said in answers if status == 503
    )
    for one in rest_of_them:
        started(one)
    assert sorted(gpus(engine, one.name) for one in rest_of_them) == [["0"], ["1"]]
    started(late, image="cpu")
    assert gpus(engine, late.name) == []

    process = hub.process("hub")
    os.kill(hub.process("hub"), signal.SIGKILL)
    until(lambda: hub.process("hub") != process)
    until(lambda: Student(hub, "barbara").is_in)
    barbara = Student(hub, "barbara")
    assert asked(barbara, "cuda")[0] == 503, "a hub that came back knows who has which"
    first = rest_of_them[0]
    had = gpus(engine, first.name)
    stop(first)
    started(barbara, image="cuda")
    assert gpus(engine, "barbara") == had
    for one in (*rest_of_them[1:], late, barbara):
        stop(one)


def test_the_engine_is_stopped_and_comes_back(engine: Engine, hub: Hub) -> None:
    ada, grace = Student(hub, "ada"), Student(hub, "grace")
    started(ada, image="cpu")
    (box,) = containers(engine, "ada")
    engine.docker("exec", box, "sh", "-c", f"echo hers > {MINE}")
    process = hub.process("hub")
    engine.stop()
    for _ in range(6):  # more often than any limit of failures that would end a hub
        status, said = asked(grace, "cpu")
        assert (status, "Docker engine of this server does not answer" in said) == (503, True), said
    status, _, page = grace.ask("hub/spawn/grace", {"image": "cpu"})
    assert (status, "does not answer. Try again in a minute" in page) == (503, True)
    found = hub.status()
    assert found["state"] == "running" and found["engine"]
    assert hub.process("hub") == process

    engine.start()
    started(grace, image="cpu")
    until(lambda: not servers(ada), 90)  # her container ended with the engine; the hub looks each half minute
    started(ada, image="cpu")
    (box,) = containers(engine, "ada")
    assert engine.docker("exec", box, "cat", MINE) == "hers"
    assert hub.process("hub") == process


def test_an_image_that_is_gone_is_said(engine: Engine, hub: Hub) -> None:
    for name in ("ada", "grace"):
        stop(Student(hub, name))
    engine.docker("rmi", "--force", "labrig/cpu:latest")
    status, said = asked(Student(hub, "edsger"), "cpu")
    assert status == 503
    assert said.startswith("The image cpu is not on this server any more.")
    assert "invoke pull --target=cpu" in said
