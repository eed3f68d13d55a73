"""The docs are true: every door is in them, what they link to is there, and their commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "labs" / "README.md"]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```sh(?P<note>[^\n]*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def tasks() -> dict[str, object]:
    from invoke.collection import Collection
    from invoke.loader import FilesystemLoader

    module, _ = FilesystemLoader(start=str(ROOT)).load("tasks")
    return dict(Collection.from_module(module).tasks)


def blocks() -> list[tuple[str, str]]:
    """Every ```sh block that is not marked as one that cannot be run (```sh no-run: WHY)."""
    return [
        (f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", match["body"])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in BLOCK.finditer(text)
        if not match["note"].strip().startswith("no-run:")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("name", sorted(tasks()))
def test_every_task_and_flag_is_in_the_docs(name: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/commands.md has no section on {name}"
    for argument in tasks()[name].get_arguments():  # type: ignore[attr-defined]
        assert f"--{argument.name.rstrip('_').replace('_', '-')}" in section[1], (
            f"{name} --{argument.name} is not described"
        )


def test_every_door_of_the_makefile_is_in_the_readme() -> None:
    doors = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert doors
    for door in doors:
        assert f"make {door}" in readme, f"make {door} is not in the README"


@pytest.mark.parametrize(("place", "commands"), blocks(), ids=[place for place, _ in blocks()])
def test_commands_run(place: str, commands: str) -> None:
    # As a person would type them, in the checkout, after `. .venv/bin/activate`.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-eu", "-c", commands], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{place}:\n{commands}\n{done.stdout}\n{done.stderr}"


def test_exit_codes_in_the_docs_are_those_of_the_errors() -> None:
    from labrig import errors

    codes = {
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.LabrigError) and error is not errors.LabrigError
    }
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert table == codes | {0, 1}


def test_the_page_on_macs_states_what_the_rows_need() -> None:
    from labrig import matrix, spec

    text = (ROOT / "docs" / "mac.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| macOS ")}
    wheel, mps = (next(line for by, line in rows.items() if by.startswith(start)) for start in ("the wheel", "MPS"))
    targets = [target for target in spec.read(ROOT / "images" / spec.TABLE).targets.values() if target.device == "mps"]
    assert targets
    for target in targets:
        floor = matrix.macos_floor(target.torch, target.python)
        assert floor
        assert f"| macOS {floor.install} |" in wheel and f"| macOS {floor.mps} |" in mps
        assert f"With only Python {target.python} " in text
    assert f"torch {matrix.intel_mac_last()} was the last with wheels for Intel" in text
