"""Render what is committed, images/<target>/ and a workflow, from the pin table, the locks and templates/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labrig import (
    base,
    compat,
    conda,
    files,
    image,
    interpreters,
    lock,
    matrix,
    notebooks,
    page,
    published,
    sizes,
    support,
)
from labrig.errors import LockError, PendingError
from labrig.files import write_atomically
from labrig.lock import Lock
from labrig.spec import MPS, Table, Target

if TYPE_CHECKING:
    from jinja2 import Environment

RUNNER = "macos-15"  # a hosted Mac: arm64, and not macos-26, where MPS gave wrong results (actions/runner-images#14380)
LINUX_RUNNER = "ubuntu-24.04"
PUBLISHERS = {"linux_x86_64": LINUX_RUNNER, "linux_aarch64": f"{LINUX_RUNNER}-arm"}  # platform -> hosted machine
REGISTRY = "ghcr.io"  # where a workflow on GitHub may write without any secret but its own
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"  # in the README, around its tables


def render(table: Table, target: Target, templates: Path) -> dict[Path, str]:
    """Every rendered file of a target, as path -> text.

    Raises:
        LockError: a lock is missing or stale; rendered files never lie about one.
    """
    images = table.path.parent
    locks: list[Lock] = []
    for platform in target.platforms:
        state = lock.status(target, platform, images)
        if state == "declared":
            continue
        locks.append(lock.load(target, platform, images))
    if not locks:
        raise LockError(f"target {target.name} has no lock at all", fix=f"invoke lock --target={target.name}")
    environment = jinja(templates)
    files = {}
    for locked in locks:
        text = render_requirements(target, locked, templates)
        files[images / target.name / f"requirements-{locked.platform}.txt"] = text
    files[images / target.name / "setup.sh"] = environment.get_template("setup.sh.j2").render(
        target=target,
        locks=locks,
        index=table.indexes[target.index] if target.index else None,
        index_variable=f"LABRIG_INDEX_{target.index.upper().replace('-', '_')}" if target.index else None,
        mac=matrix.macos_floor(target.torch, target.python) if target.device == MPS else None,
        intel_last=matrix.intel_mac_last(),
        uv_python=interpreters.request(target.python, "darwin" if target.device == MPS else "linux"),
        virtual_issue=compat.VIRTUAL_ISSUE,
        remote_issue=compat.REMOTE_ISSUE,
    )
    if target.conda:
        text = render_environment_yml(target, locks[0], templates, target.conda.channel)
        files[images / target.name / "environment.yml"] = text
    if "docker" in target.engines:
        files[images / target.name / "Dockerfile"] = render_dockerfile(target, locks[0], templates, images)
        ignore = environment.get_template("Dockerfile.dockerignore.j2").render(target=target)
        files[images / target.name / "Dockerfile.dockerignore"] = ignore
        files |= render_doors(target, templates, images)
    return files


def render_doors(target: Target, templates: Path, images: Path) -> dict[Path, str]:
    """How to start a target's image without labrig: for Compose, for VS Code, and a page of lines to type."""
    named = reference(target, images)
    given = {
        "target": target, "reference": named, "serve": image.SERVE, "labs": image.LABS, "home": image.HOME,
        "work": image.WORK, "folder": image.FOLDER, "uid": image.UID, "gid": image.GID, "pids": image.PIDS,
        "python": image.PYTHON,
        # Where Apptainer finds it: a name without a digest is the Docker engine's own.
        "apptainer": f"docker://{named}" if "@" in named else f"docker-daemon:{named}",
    }  # fmt: skip
    names = ("compose.yaml", "devcontainer.json", "run.md")
    environment = jinja(templates)
    return {images / target.name / name: environment.get_template(f"{name}.j2").render(given) for name in names}


def render_published(table: Table, templates: Path) -> dict[Path, str]:
    """What follows from images/published.toml alone. Nothing of it goes into an image: it would be another one then."""
    files = page.render(table, templates)
    for target in table.targets.values():
        if "docker" in target.engines:
            files |= render_doors(target, templates, table.path.parent)
    return files


def reference(target: Target, images: Path) -> str:
    """The image that a target's doors name: the published one for its first platform, else the latest built here."""
    entry = published.find(images, target.name, target.platforms[0])
    return entry.reference if entry else f"{image.name(target)}:latest"


def render_requirements(target: Target, locked: Lock, templates: Path) -> str:
    """A lock in pip's form."""
    return jinja(templates).get_template("requirements.txt.j2").render(target=target, lock=locked)


def render_environment_yml(target: Target, locked: Lock, templates: Path, channel: str) -> str:
    """The pins of a target in conda's form, from a channel or the address of its mirror."""
    template = jinja(templates).get_template("environment.yml.j2")
    return template.render(target=target, pins=conda.pins(target, locked), channel=channel)


def render_dockerfile(target: Target, locked: Lock, templates: Path, images: Path) -> str:
    """The Dockerfile of a target; ``locked`` is its lock for the platform that the Dockerfile takes by default."""
    return (
        jinja(templates)
        .get_template("Dockerfile.j2")
        .render(
            target=target,
            platform=locked.platform,
            name=image.name(target),
            base=base.default(target, images),
            epoch=files.EPOCH,
            labels=image.labels(target, locked),
        )
    )


def render_all(table: Table, templates: Path) -> dict[Path, str]:
    """Every rendered file of every target, the workflow for Macs, the notebooks, the pages with generated tables."""
    files = {file: text for target in table.targets.values() for file, text in render(table, target, templates).items()}
    for made in (render_workflow, render_publishing, render_notebooks, page.render):
        files |= made(table, templates)
    return files | render_readme(table) | render_selector(table) | render_colab(table)


def render_workflow(table: Table, templates: Path) -> dict[Path, str]:
    """The workflow that makes the targets for Macs, and conda's, on hosted machines; nothing where there are none."""
    targets = [target for target in table.targets.values() if target.device == MPS]
    template = jinja(templates).get_template("workflow-native.yml.j2")
    # A hosted machine has no GPU; what conda has for CUDA is solved beside the others by whoever locks it.
    of_conda = [target for target in table.targets.values() if target.conda and target.device != "cuda"]
    if not targets and not of_conda:
        return {}
    return {
        _workflow(table, "native"): template.render(
            targets=targets, conda_targets=of_conda, runner=RUNNER, linux_runner=LINUX_RUNNER
        )
    }


@dataclass(frozen=True)
class _Job:
    """A job of the workflow that publishes: one target for one platform."""

    target: Target
    platform: str

    @property
    def name(self) -> str:
        return f"{self.target.name}-{base.ARCHITECTURES[self.platform]}"

    @property
    def runner(self) -> str:
        return PUBLISHERS[self.platform]


def render_publishing(table: Table, templates: Path) -> dict[Path, str]:
    """The workflow that builds, verifies and publishes the images that are locked; nothing where there are none."""
    jobs = [
        _Job(target, platform)
        for target in table.targets.values()
        if "docker" in target.engines and target.builder == "layers"
        for platform in target.platforms
        if platform not in target.unlocked
    ]
    template = jinja(templates).get_template("workflow-publish.yml.j2")
    return {_workflow(table, "publish"): template.render(jobs=jobs, registry=REGISTRY)} if jobs else {}


def _workflow(table: Table, name: str) -> Path:
    return table.path.parents[1] / ".github" / "workflows" / f"{name}.yml"


def render_notebooks(table: Table, templates: Path) -> dict[Path, str]:
    """The labs beside images/ as notebooks; nothing where there are none."""
    return notebooks.render(table, _labs(table), jinja(templates).get_template(notebooks.COLAB_TEMPLATE))


def _labs(table: Table) -> Path:
    return table.path.parents[1] / "labs"


def render_readme(table: Table) -> dict[Path, str]:
    """The README beside images/ with its generated tables made anew; nothing where there is no such README."""
    file = table.path.parent.parent / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    targets = [
        (f"`{one.name}`", f"{one.torch} ({one.variant})", _python(one), _needs(one), one.why)
        for one in table.targets.values()
    ]
    known = [(f"`{line.target}`", line.engine, line.status, line.why) for line in support.lines(table)]
    new = _replace(text, "targets", ("target", "torch", "Python", "needs", "for"), targets)
    new = _replace(new, "support", support.COLUMNS, known)
    return {file: new} if BEGIN.format("targets") in text else {}


def _python(target: Target) -> str:
    """The row's Python, and until when it is supported (labrig/data/python.tsv)."""
    known = matrix.python(target.python)
    return f"{target.python} (until {known.end})" if known else target.python


def render_selector(table: Table) -> dict[Path, str]:
    """docs/select.md beside images/ with its generated tables made anew; nothing where there is no such page."""
    from labrig import selector

    file = table.path.parent.parent / "docs" / "select.md"
    if not file.exists():
        return {}
    new = _replace(file.read_text(encoding="utf-8"), "commands", selector.COMMAND_COLUMNS, selector.commands(table))
    return {file: _replace(new, "pythons", selector.PYTHON_COLUMNS, selector.python_rule(table))}


def render_colab(table: Table) -> dict[Path, str]:
    """docs/colab.md beside images/ with its generated tables made anew; nothing where there is no such page."""
    file = table.path.parent.parent / "docs" / "colab.md"
    if not file.exists():
        return {}
    new = _replace(file.read_text(encoding="utf-8"), "parity", *notebooks.parity(table))
    return {file: _replace(new, "labs", notebooks.DOOR_COLUMNS, notebooks.doors(table, _labs(table)))}


def _replace(text: str, name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text with the Markdown table between the marks of that name made anew; as it is where there are none."""
    head, begin, rest = text.partition(BEGIN.format(name))
    _, end, tail = rest.partition(END.format(name))
    if not begin or not end:
        return text
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([head + begin, *lines, end + tail])


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _needs(target: Target) -> str:
    if target.cuda:
        return f"NVIDIA driver {target.min_driver} or newer; capability {', '.join(target.capabilities)}"
    system = f"macOS {target.macos} or newer" if target.macos else f"Linux with glibc {target.glibc} or newer"
    return f"{system}; {', '.join(target.platforms)}"


def write(files: dict[Path, str]) -> list[Path]:
    """Write what differs, atomically; gives what was written."""
    changed = [file for file, text in files.items() if _read(file) != text.encode()]
    for file in changed:
        write_atomically(file, files[file], mode=0o755 if file.suffix == ".sh" else 0o644)
    return changed


def check(table: Table, files: dict[Path, str]) -> None:
    """Prove that the committed files are what a render gives, and that no other file stands beside them.

    Raises:
        PendingError: naming each file that differs, is missing, or belongs to no target.
    """
    wrong = [f"{_short(file)} differs" for file, text in files.items() if _read(file) not in (None, text.encode())]
    wrong += [f"{_short(file)} is missing" for file in files if _read(file) is None]
    wrong += [f"{_short(file)} belongs to no target" for file in _strays(table, files)]
    wrong += [f"{_short(file)} belongs to no lab" for file in notebooks.strays(_labs(table), files)]
    if wrong:
        raise PendingError(
            "rendered files are not current",
            found="; ".join(wrong),
            fix="invoke render (what it did not generate it leaves: move that out of images/ or labs/notebooks/)",
        )


def remove_strays(table: Table, files: dict[Path, str]) -> list[Path]:
    """Remove what labrig generated for targets and labs that are gone; what a person put there is theirs to move."""
    strays = [file for file in _strays(table, files) if _is_generated(file)]
    strays += [file for file in notebooks.strays(_labs(table), files) if notebooks.is_generated(file)]
    for file in strays:
        file.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            file.parent.rmdir()
    return strays


def _strays(table: Table, files: dict[Path, str]) -> list[Path]:
    images = table.path.parent
    locks = {lock.path(images, t.name, p) for t in table.targets.values() for p in t.platforms}
    locks |= {conda.path(images, t.name, p) for t in table.targets.values() if t.conda for p in t.platforms}
    locks |= {images / target.name / base.LOCK for target in table.targets.values() if target.base == "registry"}
    kept = set(files) | locks | {table.path, images / published.FILE, images / sizes.FILE}
    found = [file for file in images.rglob("*") if file.is_file() and file not in kept]
    workflows = [_workflow(table, name) for name in ("native", "publish")]
    found += [file for file in workflows if file not in kept and file.is_file() and _is_generated(file)]
    # Hidden files are the desktop's and the editor's, unless a killed command left one of ours half-written.
    return sorted(file for file in found if not file.name.startswith(".") or _is_generated(file))


def _is_generated(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"Generated by `invoke " in opened.read(200)


def jinja(templates: Path) -> Environment:
    """The templates, in which a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(  # noqa: S701 - shell and text, not HTML
        loader=FileSystemLoader(templates), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _short(file: Path) -> str:
    return "/".join(file.parts[-3:])
