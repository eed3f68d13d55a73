"""Bytecode in an image: of what is imported and of nothing else, valid without a look at its source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from labrig import bytecode

SCRIPT = Path(bytecode.__file__)
FILES = {
    "shown/__init__.py": "",
    "shown/used.py": "from shown import helper\nimport colorsys\nimport single\n",
    "shown/helper.py": "",
    "shown/unused.py": "",
    "single.py": "",
    "other.py": "raise RuntimeError('nobody imports this')\n",
}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A small environment with a package of its own; gives its site-packages."""
    venv.create(tmp_path / "venv", symlinks=True)
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    for name, text in FILES.items():
        (packages / name).parent.mkdir(exist_ok=True)
        (packages / name).write_text(text)
    return packages


def run(environment: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    python = environment.parents[2] / "bin" / "python"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), str(SCRIPT), *modules]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def compiled(environment: Path) -> dict[str, bytes]:
    """Module -> its bytecode."""
    return {
        file.relative_to(environment).as_posix().replace("__pycache__/", "").partition(".")[0]: file.read_bytes()
        for file in environment.rglob("*.pyc")
    }


def test_what_the_labs_import_is_among_it() -> None:
    modules = set()
    for lab in (SCRIPT.parents[1] / "labs").glob("[0-9]*.py"):
        for node in ast.walk(ast.parse(lab.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    used = {module for module in modules if module.startswith(("sklearn.", "scipy.st"))}
    assert len(used) > 5
    assert used <= set(bytecode.MODULES)


def test_what_is_imported_is_compiled_and_nothing_else(environment: Path) -> None:
    done = run(environment, "shown.used", "not_installed.at_all")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "compiled 4 modules\n"
    assert set(compiled(environment)) == {"shown/__init__", "shown/used", "shown/helper", "single"}
    assert {file.name.split(".")[1] for file in environment.rglob("*.pyc")} == {sys.implementation.cache_tag}


def test_bytecode_is_valid_by_hash_and_not_compared_with_its_source(environment: Path) -> None:
    """PEP 552: after the magic number the flags; bit 0 says hash instead of time, bit 1 that the source is checked."""
    run(environment, "shown.used")
    for name, data in compiled(environment).items():
        assert int.from_bytes(data[4:8], "little") == 0b01, name
    (environment / "single.py").write_text("raise RuntimeError('the source was read')\n")
    python = environment.parents[2] / "bin" / "python"
    subprocess.run([str(python), "-c", "import single"], timeout=60, check=True)


def test_the_same_files_give_the_same_bytes_whenever_they_were_written(environment: Path) -> None:
    run(environment, "shown.used")
    first = compiled(environment)
    for file in environment.rglob("*.py"):
        os.utime(file, (1, 1))
    run(environment, "shown.used")
    assert compiled(environment) == first != {}


def test_without_a_name_it_is_what_labs_and_jupyterlab_import_where_that_is_installed(environment: Path) -> None:
    (environment / "numpy.py").write_text("import shown.helper\n")
    done = run(environment)
    assert done.stdout == "compiled 3 modules\n"
    assert set(compiled(environment)) == {"numpy", "shown/__init__", "shown/helper"}
    assert {"torch", "numpy", "matplotlib", "jupyterlab"} <= {name.partition(".")[0] for name in bytecode.MODULES}


def test_a_module_that_cannot_be_imported_or_compiled_fails_the_build(environment: Path) -> None:
    for module in ("other", "shown.gone"):
        done = run(environment, module)
        assert done.returncode != 0
        assert "Error" in done.stderr
