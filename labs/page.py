"""What a lab says about itself, read from its source: never run, never imported.

The title and the expected time are the literal arguments of `harness.start(...)`; the question, what to see and where
simple methods win are paragraphs of the docstring; the exercises are the numbered lines under "## Try this".
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

LABS = Path(__file__).resolve().parent

# In reading order, each with what makes it one.
PARADIGMS = {
    "foundations": "what every lab after these is made of: tensors, gradients, and the parts of a training loop",
    "supervised": "every example comes with its answer, and the model learns to give it for new ones",
    "unsupervised": "no answers at all: find groups, directions, oddities, rules and themes in the data alone",
    "semi-supervised": "a few answers and many examples without: let the sure guesses teach",
    "self-supervised": "the data is its own answer: hide a part and learn to put it back",
    "systems": "what the machine does with all this: speed, memory, and more than one process",
}


@dataclass(frozen=True)
class Page:
    """One lab as a reader knows it. `seconds` is the time to expect on one CPU core."""

    id: str
    path: Path
    title: str
    paradigm: str = ""
    task: str = ""
    data: str = ""
    seconds: float = 0.0
    question: str = ""
    see: str = ""
    simple_wins: str = ""
    exercises: tuple[str, ...] = ()


def read(path: Path) -> Page:
    """The page of one lab. A file that is not Python yet gets a page with its name only, and fails when it is run."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return Page(path.stem, path, path.stem)
    about: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "harness.start":
            about = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
    prose = ast.get_docstring(tree) or ""
    return Page(
        id=path.stem,
        path=path,
        title=str(about.get("title", path.stem)),
        paradigm=str(about.get("paradigm", "")),
        task=str(about.get("task", "")),
        data=str(about.get("data", "")),
        seconds=float(str(about.get("seconds", 0))),
        question=_paragraph(prose, "Question"),
        see=_paragraph(prose, "What you should see"),
        simple_wins=_paragraph(prose, "Where simple methods win"),
        exercises=_exercises(source),
    )


def discover(folder: Path = LABS) -> dict[str, Page]:
    """All labs beside this file, by id, in reading order: `NN_name.py`."""
    return {path.stem: read(path) for path in sorted(folder.glob("[0-9][0-9]_*.py"))}


def _paragraph(prose: str, heading: str) -> str:
    found = re.search(rf"^\*\*{heading}\.\*\* (.+?)(?:\n\n|\Z)", prose, re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _exercises(source: str) -> tuple[str, ...]:
    tail = source.partition("# ## Try this\n")[2]
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in tail.splitlines())
    items = re.findall(r"^\d\. (.+?)(?=^\d\. |\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return tuple(" ".join(item.split()) for item in items)
