"""docs/tour.md is what its commands give: all of them are run again."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import tour


def steady(text: str) -> str:
    """The page without what differs from run to run: digests, times, amounts of this machine, the width of a column."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", text)
    text = re.sub(r"\b[0-9.]+ (s|GB)\b", r"0 \1", text)
    text = re.sub(r"about \d+ s left", "about 0 s left", text)
    lines = [re.sub(r"\s+", " ", line) for line in text.splitlines()]
    # Two labs run side by side: which one ends first is not ours to say.
    finished = sorted(re.sub(r"\(.*\)", "", line) for line in lines if line.startswith("✓"))
    return "\n".join([line for line in lines if not line.startswith(("✓", " ─"))] + finished)


@pytest.mark.docker
def test_the_page_is_what_its_commands_give(docker_engine: None) -> None:
    """Where it differs for a reason: `python tests/docs/tour.py` makes it anew."""
    found = tour.steps()
    assert steady(tour.page(found)) == steady(tour.PAGE.read_text(encoding="utf-8"))
    codes = {name: step.code for name, step in found.items() if isinstance(step, tour.Step)}
    assert codes == {"build": 0, "labs": 0, "verify": 0, "caught": 6, "doctor": 0, "refused": 3}


def test_the_picture_is_of_the_page_and_needs_nothing() -> None:
    svg = tour.PICTURE.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own file
    words = " ".join("".join(node.itertext()) for node in root.iter()).replace("\xa0", " ")
    assert not re.search(r"url\((?!#)|https?://(?!www\.w3\.org)", svg)
    page = tour.PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"labrig/cpu:\S+", page):
        if "mended" not in name:
            assert name in words
    for say in (tour.CARD, "installs but fails", "use target `cuda-legacy`", "1 of 23 checks failed", "21 passed"):
        assert say in words and say.replace("$ ", "") in page
