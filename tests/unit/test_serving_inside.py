"""What a hub takes from students, what it shows them, and what it says when it cannot."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub.spawner import SpawnException

from labrig.serving import inside
from labrig.serving.inside import Choice

CPU = Choice("cpu", "cpu: torch 2.13.0", "Any machine.", 478_000_000, "sha256:" + "a" * 64)
CUDA = Choice("cuda", 'cuda "13" <b>', "For GPUs & more.", 3_210_000_000, "sha256:" + "b" * 64, gpus=("0", "1"))
KNOWN = {"cpu": CPU, "cuda": CUDA}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


class Page(HTMLParser):
    """The inputs of a form, and all that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "input":
            self.inputs.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(last: object = None) -> Page:
    page = Page()
    page.feed(inside.form(KNOWN, SimpleNamespace(orm_spawner=SimpleNamespace(user_options=last))))
    page.close()
    return page


def test_the_form_has_an_entry_for_each_image_with_title_size_and_reason() -> None:
    page = shown()
    assert [one["value"] for one in page.inputs] == ["cpu", "cuda"]
    assert {one["name"] for one in page.inputs} == {"image"}
    for words in (CPU.title, CPU.why, CUDA.title, CUDA.why, "478 MB", "3.2 GB, with a GPU of its own"):
        assert words in page.text, words
    assert "b" not in page.tags, "what a table says is text, not HTML"


@pytest.mark.parametrize(
    ("last", "first"),
    [(None, "cpu"), ({}, "cpu"), ({"image": "cuda"}, "cuda"), ({"image": "gone"}, "cpu"), ({"image": ["cuda"]}, "cpu")],
)
def test_what_was_chosen_last_time_is_chosen_again(last: object, first: str) -> None:
    assert [one["value"] for one in shown(last).inputs if "checked" in one] == [first]


def test_a_form_says_an_image_and_nothing_else() -> None:
    assert inside.options({"image": ["cuda", "cpu"], "_xsrf": ["x"], "mem_limit": ["64G"]}) == {"image": "cuda"}
    assert inside.options({"image": []}) == inside.options({}) == {}


def test_an_image_of_the_list_is_given_and_without_a_word_the_first() -> None:
    assert inside.chosen(KNOWN, {"image": "cuda"}) is CUDA
    assert inside.chosen(KNOWN, {}) is CPU


@given(st.dictionaries(st.just("image") | st.text(), JSON, max_size=3))
def test_anything_else_is_refused_with_what_there_is(asked: dict[str, object]) -> None:
    """Whatever JSON the REST API hands on."""
    if not asked or (set(asked) == {"image"} and asked["image"] in ("cpu", "cuda")):
        assert inside.chosen(KNOWN, asked).target == asked.get("image", "cpu")
        return
    with pytest.raises(SpawnException) as refused:
        inside.chosen(KNOWN, asked)
    assert refused.value.status_code == 400
    said = refused.value.jupyterhub_message
    assert said.endswith("There is: cpu, cuda.")
    assert len(said) < 250
    json.dumps(said)


@pytest.mark.parametrize("image", [CPU.image, "python:3.12", "sha256:" + "c" * 64, "CPU", "", None])
def test_no_image_is_had_by_another_name_than_its_target(image: object) -> None:
    """Not by the engine's id either: the list is the targets."""
    with pytest.raises(SpawnException, match="There is: cpu, cuda"):
        inside.chosen(KNOWN, {"image": image})


def answer(status: int, text: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason = status, text
    return response


REFUSED = requests.exceptions.ConnectionError("('Connection aborted.', ConnectionRefusedError(111, ''))")
NO_SPACE = "mkdir /var/lib/docker/overlay2/0: no space left on device"


@pytest.mark.parametrize(
    ("error", "words", "reason"),
    [
        (REFUSED, "does not answer. Try again", "engine"),
        (docker.errors.DockerException("Error while fetching server API version"), "does not answer", "engine"),
        (FileNotFoundError(2, "No such file or directory"), "does not answer", "engine"),
        (docker.errors.ImageNotFound("No such image", answer(404, "")), "invoke pull --target=cpu", "image"),
        (docker.errors.APIError("", answer(500, ""), NO_SPACE), "disk of this server is full", "disk"),
        (docker.errors.APIError("", answer(500, ""), "something new"), "its log says why", "engine"),
    ],
)
def test_what_the_engine_refuses_is_said_in_a_students_words(error: Exception, words: str, reason: str) -> None:
    with pytest.raises(SpawnException) as told, inside.in_words(CPU):
        raise error
    assert told.value.status_code == 503
    assert told.value.reason == reason
    assert words in told.value.jupyterhub_message
    for strange in ("errno", "overlay2", "Connection", "API", "aborted"):
        assert strange not in told.value.jupyterhub_message
    assert "[" in told.value.log_message, "the engine's own words are in the hub's log"


def test_a_refusal_that_is_meant_for_a_student_passes() -> None:
    with pytest.raises(SpawnException, match="no GPU"), inside.in_words(CPU):
        raise inside.refusal("no GPU", "gpu", 503)


def test_all_spawners_share_one_pool_though_traitlets_copies_what_is_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools: list[Any] = []
    monkeypatch.setattr(inside, "release", lambda pool, spawner: pools.append(pool))
    c = SimpleNamespace(DockerSpawner=SimpleNamespace())
    inside.configure(c, [CPU, CUDA])
    for _ in range(2):
        copy.deepcopy(c.DockerSpawner.post_stop_hook)(None)
    assert pools[0] is pools[1]
    assert copy.deepcopy(c.DockerSpawner.pre_spawn_hook) is c.DockerSpawner.pre_spawn_hook
