"""What is rendered and committed: current, whole, and fit for the tools that read it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import samples
from jinja2 import UndefinedError
from packaging.requirements import Requirement

from labrig import engines, lock, render, spec, support
from labrig.errors import LockError, PendingError
from labrig.spec import Table

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"
COMMITTED = render.render_all(samples.SHIPPED, TEMPLATES)
SCRIPTS = sorted(file for file in COMMITTED if file.name == "setup.sh")
REQUIREMENTS = sorted(file for file in COMMITTED if file.name.startswith("requirements-"))


def names(files: list[Path]) -> list[str]:
    return [f"{file.parent.name}/{file.name}" for file in files]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A copy of the table, the locks, the labs, the rendered files and the README; the labs' data are not copied."""
    shutil.copytree(ROOT / "images", tmp_path / "images")
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "labs", tmp_path / "labs", ignore=shutil.ignore_patterns("data", "__pycache__"))
    (tmp_path / "labs" / "data").symlink_to(ROOT / "labs" / "data")
    return spec.read(tmp_path / "images" / spec.TABLE)


def rendered(table: Table) -> dict[Path, str]:
    return render.render_all(table, TEMPLATES)


def pending(table: Table) -> PendingError:
    with pytest.raises(PendingError) as caught:
        render.check(table, rendered(table))
    assert caught.value.code == 8
    assert caught.value.fix.startswith("invoke render")
    return caught.value


# --- current ----------------------------------------------------------------------------------------------------------


def test_what_is_committed_is_what_a_render_gives(record_property: Callable[[str, object], None]) -> None:
    render.check(samples.SHIPPED, COMMITTED)
    assert len(SCRIPTS) == len(samples.SHIPPED.targets)
    assert len(REQUIREMENTS) == sum(
        len(lock.locked_platforms(target, ROOT / "images")) for target in samples.SHIPPED.targets.values()
    )
    tracked = subprocess.run(
        ["git", "ls-files", "-s", *map(str, COMMITTED)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(tracked) == len(COMMITTED)
    assert {line.split("\t")[1] for line in tracked if line.startswith("100755")} == {
        str(file.relative_to(ROOT)) for file in SCRIPTS
    }
    for target in samples.SHIPPED.targets.values():
        if ROOT / "images" / target.name / "Dockerfile" in COMMITTED:
            record_property("proves", f"{target.name} docker rendered")


def test_a_changed_byte_and_a_missing_file_are_named(table: Table) -> None:
    render.check(table, rendered(table))
    images = table.path.parent
    (images / "cpu" / "setup.sh").write_bytes(
        (images / "cpu" / "setup.sh").read_bytes().replace(b"set -eu", b"set -e\xff")
    )
    (images / "mps" / "requirements-macos_arm64.txt").unlink()
    error = pending(table)
    assert error.found == ("images/cpu/setup.sh differs; images/mps/requirements-macos_arm64.txt is missing")
    changed = render.write(rendered(table))
    assert names(sorted(changed)) == ["cpu/setup.sh", "mps/requirements-macos_arm64.txt"]
    assert stat.S_IMODE((images / "cpu" / "setup.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((images / "mps" / "requirements-macos_arm64.txt").stat().st_mode) == 0o644
    render.check(table, rendered(table))
    assert render.write(rendered(table)) == []


def native_nowhere(text: str) -> str:
    """The table without the targets for Macs and without conda: nothing is left for a hosted machine to try."""
    return text[: text.index("[targets.mps]")].replace(', "conda"]', "]")


def test_files_of_a_target_that_is_gone_are_named_and_removed(table: Table) -> None:
    text = table.path.read_text()
    table.path.write_text(native_nowhere(text))
    table = spec.read(table.path)
    assert "images/mps/macos_arm64.lock belongs to no target" in pending(table).found
    assert "images/mps/setup.sh belongs to no target" in pending(table).found
    assert "workflows/native.yml belongs to no target" in pending(table).found
    removed = render.remove_strays(table, rendered(table))
    assert names(removed) == [
        "workflows/native.yml",
        "cpu/environment.yml",
        "cuda/environment.yml",
        "mps/environment.yml",
        "mps/macos_arm64.lock",
        "mps/requirements-macos_arm64.txt",
        "mps/setup.sh",
    ]
    assert not (table.path.parent / "mps").exists()
    assert not (table.path.parents[1] / ".github" / "workflows" / "native.yml").exists()
    render.write(rendered(table))  # the README's table has a line less
    render.check(table, rendered(table))


def test_a_persons_file_is_named_and_left(table: Table) -> None:
    note = table.path.parent / "cpu" / "NOTES.md"
    note.write_text("mine")
    assert pending(table).found == "images/cpu/NOTES.md belongs to no target"
    assert "move that out" in pending(table).fix
    assert render.remove_strays(table, rendered(table)) == []
    assert note.read_text() == "mine"


def test_a_workflow_that_somebody_wrote_is_theirs(table: Table) -> None:
    theirs = table.path.parents[1] / ".github" / "workflows" / "tests.yml"
    theirs.write_text("name: ours\n")
    render.check(table, rendered(table))
    native = theirs.with_name("native.yml")
    native.write_text("name: mine\n")
    assert "workflows/native.yml differs" in pending(table).found
    table.path.write_text(native_nowhere(table.path.read_text()))
    without = spec.read(table.path)
    assert "native.yml" not in pending(without).found
    render.remove_strays(without, rendered(without))
    assert native.read_text() == "name: mine\n" and theirs.exists()


def test_notebooks_of_labs_that_are_gone_are_named_and_removed_and_copies_are_left(table: Table) -> None:
    labs = table.path.parents[1] / "labs"
    notebooks = labs / "notebooks"
    copy = notebooks / "01_tensors-Copy1.ipynb"  # as JupyterLab names one
    shutil.copy(notebooks / "01_tensors.ipynb", copy)
    (notebooks / ".ipynb_checkpoints").mkdir()
    shutil.copy(notebooks / "01_tensors.ipynb", notebooks / ".ipynb_checkpoints" / "01_tensors-checkpoint.ipynb")
    (labs / "02_autograd.py").unlink()
    assert pending(table).found == (
        "notebooks/01_tensors-Copy1.ipynb belongs to no lab".join(["labs/", "; "])
        + "labs/notebooks/02_autograd.ipynb belongs to no lab; notebooks/colab/02_autograd.ipynb belongs to no lab"
    )
    assert names(render.remove_strays(table, rendered(table))) == [
        "notebooks/02_autograd.ipynb",
        "colab/02_autograd.ipynb",
    ]
    assert pending(table).found == "labs/notebooks/01_tensors-Copy1.ipynb belongs to no lab"
    assert copy.exists()


def test_a_notebook_that_is_stale_is_named(table: Table) -> None:
    script = table.path.parents[1] / "labs" / "01_tensors.py"
    script.write_text(script.read_text().replace("## 1. A tensor is memory", "## 1. A tensor is a memory"))
    names = "labs/notebooks/01_tensors.ipynb differs; notebooks/colab/01_tensors.ipynb differs"
    assert pending(table).found == names
    assert len(render.write(rendered(table))) == 2
    render.check(table, rendered(table))


def test_the_desktops_files_are_nobodys_and_our_leftovers_are_ours(table: Table) -> None:
    folder = table.path.parent / "cpu"
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    render.check(table, rendered(table))
    (folder / ".setup.sh.x1y2z3").write_bytes((folder / "setup.sh").read_bytes()[:300])  # of a killed command
    assert pending(table).found == "images/cpu/.setup.sh.x1y2z3 belongs to no target"
    assert names(render.remove_strays(table, rendered(table))) == ["cpu/.setup.sh.x1y2z3"]
    assert (folder / ".DS_Store").exists()


def test_a_changed_row_is_stale_until_it_is_locked(table: Table) -> None:
    table.path.write_text(table.path.read_text().replace('"jupyterlab"', '"notebook"'))
    with pytest.raises(LockError, match="is stale") as caught:
        rendered(spec.read(table.path))
    assert caught.value.fix == "invoke lock --target=cpu"


def test_a_target_whose_every_platform_is_only_declared_has_nothing_to_render(table: Table) -> None:
    table.path.write_text(table.path.read_text() + '\n[targets.mps.unlocked]\nmacos_arm64 = "far away"\n')
    (table.path.parent / "mps" / "macos_arm64.lock").unlink()
    with pytest.raises(LockError, match="no lock at all"):
        rendered(spec.read(table.path))


def test_a_name_that_a_template_does_not_get_is_an_error(table: Table, tmp_path: Path) -> None:
    (table.path.parents[1] / "docs").mkdir()
    for template in TEMPLATES.glob("*.j2"):  # those of rooms, in a folder of their own, are rendered by labrig.fleet
        folder = tmp_path / template.name
        shutil.copytree(TEMPLATES, folder)
        given = {
            "workflow-native": "runner",
            "workflow-publish": "registry",
            "published": "bars",
            "colab": "address",
        }.get(template.name.partition(".")[0], "target")
        (folder / template.name).write_text(template.read_text() + f"{{{{ {given}.tocrh }}}}")
        with pytest.raises(UndefinedError, match="tocrh"):
            render.render_all(table, folder)


def between(text: str, name: str) -> list[str]:
    """The lines of a generated table."""
    return text.partition(render.BEGIN.format(name))[2].partition(render.END.format(name))[0].strip().splitlines()


def test_the_readme_has_every_target_in_one_line(table: Table) -> None:
    why = "All | sorts\\n  of things."
    table.path.write_text(table.path.read_text().replace('why = "Apple Silicon.', f'why = "{why} Apple Silicon.'))
    table = spec.read(table.path)
    readme = table.path.parent.parent / "README.md"
    assert pending(table).found.endswith("/README.md differs")
    assert render.write(rendered(table)) == [readme]
    shown = between(readme.read_text(), "targets")
    assert len(shown) == 2 + len(table.targets)
    for line, target in zip(shown[2:], table.targets.values(), strict=True):
        cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 5
        assert cells[0] == f"`{target.name}`"
        assert target.torch in cells[1]
        assert (target.min_driver or "") in cells[3]
    known = between(readme.read_text(), "support")[2:]
    assert len(known) == len(table.targets) * len(engines.MODULES)
    for row, line in zip(known, support.lines(table), strict=True):
        assert row == f"| `{line.target}` | {line.engine} | {line.status} | {line.why} |"
    readme.write_text("no marks")
    assert render.render_readme(table) == {}


# --- fit for those who read it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.parent.name)
def test_setup_is_plain_posix_shell(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for command in ([shellcheck, "--shell=sh"], ["dash", "-n"], ["sh", "-n"]):
        if command[0] == "dash" and not shutil.which("dash"):
            continue  # a Mac has none; its sh is asked, and shellcheck knows the rules
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "{{" not in script.read_text() and "{%" not in script.read_text()


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_requirements_are_the_lock(file: Path) -> None:
    platform = file.stem.removeprefix("requirements-")
    locked = lock.load(samples.SHIPPED.targets[file.parent.name], platform, ROOT / "images")
    found = []
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            continue
        text, _, digest = line.partition(" --hash=sha256:")
        requirement = Requirement(text)
        assert not (requirement.url or requirement.marker or requirement.extras)
        found.append((requirement.name, str(requirement.specifier), digest))
    assert found == [(wheel.name, f"=={wheel.version}", wheel.sha256) for wheel in locked.wheels]


def test_every_rendered_file_says_that_it_is_generated() -> None:
    for file, text in COMMITTED.items():
        if file.suffix != ".md":  # pages that people write, with generated tables in them
            assert "Generated by `invoke render`" in text[:200]
            assert str(ROOT) not in text
            assert os.path.expanduser("~") not in text  # noqa: PTH111
            assert text.endswith("\n") and "\r" not in text


def test_setup_names_the_index_and_its_variable_only_where_there_is_one() -> None:
    for script in SCRIPTS:
        target = samples.SHIPPED.targets[script.parent.name]
        text = script.read_text()
        if target.index:
            assert (
                f"${{LABRIG_INDEX_{target.index.upper().replace('-', '_')}:-{samples.SHIPPED.indexes[target.index]}}}"
                in text
            )
        else:
            assert "LABRIG_INDEX" not in text and "--index-url" not in text
