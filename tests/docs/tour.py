"""docs/tour.md and its picture, from real runs.

python tests/docs/tour.py     run everything and write them anew (needs a Docker engine)
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE, PICTURE = ROOT / "docs" / "tour.md", ROOT / "docs" / "tour.svg"
BIN = Path(sys.executable).parent
WIDTH = 100
CARD = 'invoke doctor --for="GTX 1080"'


@dataclass(frozen=True)
class Step:
    """A command, and what came of it as a person sees it."""

    command: str
    code: int
    output: str


def run(command: str, *, color: bool = False, show: str = "") -> Step:
    """Run a command line in the checkout, as after `. .venv/bin/activate`; ``show`` is what the page shows instead."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": str(WIDTH)}
    environment.pop("NO_COLOR", None)
    if color:
        return Step(show or command, *_in_a_terminal(command, environment))
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Step(show or command, done.returncode, _tidy(done.stdout))


def _in_a_terminal(command: str, environment: dict[str, str]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    size = f"stty rows 60 cols {WIDTH}; "
    with subprocess.Popen(
        ["sh", "-c", size + command], cwd=ROOT, env={**environment, "TERM": "xterm"}, stdin=theirs, stdout=theirs,
        stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        data = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65536):
                data += part
        os.close(ours)
    return process.returncode, _tidy(data.decode().replace("\r\n", "\n"))


def _tidy(text: str) -> str:
    """Without bars that moved, and without paths of the machine that made the page."""
    lines = [line.rstrip() for line in text.splitlines() if not re.search(r"[━╌]{5}| started \(", line)]
    return "\n".join(lines).strip("\n").replace(str(ROOT), ".").replace(str(Path.home()), "~")


@contextlib.contextmanager
def broken(reference: str) -> Iterator[tuple[str, str]]:
    """An image in which somebody mended torch by hand: its Dockerfile, and its name."""
    name = f"{reference.rpartition('-')[0]}-mended"
    dockerfile = (
        f"FROM {reference}\nUSER root\n"
        "RUN sed -i 's/^debug = False/debug = True/' /opt/venv/lib/python*/site-packages/torch/version.py\n"
        "USER 1000:1000\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(dockerfile)
        command = ["docker", "buildx", "build", "--quiet", "--builder", "default", "--tag", name, folder]
        variables = {**os.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        subprocess.run(command, check=True, capture_output=True, timeout=300, env=variables)
        try:
            yield dockerfile, name
        finally:
            subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True, timeout=60)


def steps() -> dict[str, Step | str]:
    """Everything that the page shows, in its order."""
    with tempfile.TemporaryDirectory() as folder:
        build = run("invoke build --target=cpu --engine=docker 2>&1 | tail -n 1", show="invoke build --target=cpu")
        show = "invoke labs --target=cpu --lab=01 --lab=04"
        labs = run(f"{show} --engine=docker --out={folder}/results", show=show)
        labs = Step(labs.command, labs.code, labs.output.replace(f"{folder}/", ""))
        verify = run("invoke verify --target=cpu --engine=docker", show="invoke verify --target=cpu")
        with broken(build.output) as (dockerfile, name):
            caught = run(f"invoke verify --target=cpu --image={name}")
    doctor = run(CARD, color=True)
    recorded = '{"os": "linux", "arch": "x86_64", "libc": "glibc 2.36", "driver": "580.95.05", ' + (
        '"gpus": [{"name": "NVIDIA GeForce GTX 1080", "capability": "6.1"}]}'
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pc07.json").write_text(recorded)
        refused = run(
            f"LABRIG_HOST={folder}/pc07.json invoke build --target=cuda",
            show="LABRIG_HOST=pc07.json invoke build --target=cuda",
        )
    return {
        "build": build, "labs": labs, "verify": verify, "dockerfile": dockerfile, "caught": caught, "doctor": doctor,
        "refused": refused,
    }  # fmt: skip


def page(found: dict[str, Step | str]) -> str:
    """docs/tour.md."""

    def shown(name: str) -> str:
        step = found[name]
        assert isinstance(step, Step)
        code = f"\n(exit code {step.code})" if step.code else ""
        return f"```console\n$ {step.command}\n{_plain(step.output)}{code}\n```"

    return f"""# A tour

Made by `python tests/docs/tour.py` from real runs on a machine with two cores and no GPU; a test runs all of it again
and compares.

## Build, labs, verify

The image of target `cpu`: found made, or made from the locked wheels. Its name ends with the digest of all that went
in.

{shown("build")}

Two of the twenty labs, inside it. Exit code 0 means that every gate held: the lab trained on real data, and beat the
simpler method that was measured in the same run.

{shown("labs")}

And the proof that the image is what its row says:

{shown("verify")}

## An image that somebody mended

One line in one file of torch, changed by hand, and everything still imports:

```dockerfile
{str(found["dockerfile"]).rstrip()}
```

The check that is there for it fails, with what was found and what to run:

{shown("caught")}

## A card that is too old, before anything is pulled

A room of GTX 1080. The newest build would install, see the card, and die at its first kernel:

{shown("doctor")}

Who tries all the same on such a machine (here a recorded one) is stopped before a byte of the 2.7 GB is fetched:

{shown("refused")}
"""


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# rich's own format loads its font from elsewhere; a picture in a README must need nothing.
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


def picture(found: dict[str, Step | str]) -> str:
    """The tour in one picture of a terminal."""
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="standard")
    for name, first, last in (("build", 0, None), ("labs", -3, None), ("verify", -1, None), ("caught", -3, None),
                              ("doctor", 0, -7)):  # fmt: skip
        step = found[name]
        assert isinstance(step, Step)
        console.print(Text(f"$ {step.command}", style="bold"))
        lines = step.output.splitlines()[first:last]
        for line in lines:
            text = Text.from_ansi(line)
            if name == "caught":
                text.stylize("red")
            console.print(text, soft_wrap=False)
        console.print()
    return console.export_svg(title="labrig", code_format=_SVG, unique_id="tour")


def write() -> None:
    """Write the page and the picture anew."""
    found = steps()
    PAGE.write_text(page(found), encoding="utf-8")
    PICTURE.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"{PAGE.relative_to(ROOT)}, {PICTURE.relative_to(ROOT)}", file=sys.stderr)
