"""The labs are driven as people drive them: as processes of an environment's Python, never imported here."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from records import LABS, ROOT

from labrig import environment

sys.path.insert(0, str(ROOT))  # for the parts of labs that need only the standard library


@pytest.fixture(scope="session")
def labs_python() -> str:
    """The Python of the environment that fits this host, built if need be; LABRIG_LABS_PYTHON names another."""
    return os.environ.get("LABRIG_LABS_PYTHON") or f"{environment.build(ROOT, engine='venv').reference}/bin/python"


@pytest.fixture(scope="session")
def python(labs_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the environment's Python to its end."""

    def run(*arguments: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [labs_python, *map(str, arguments)], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True,
            timeout=120, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A PYTHONPATH on which the named modules cannot be imported."""

    def make(*modules: str) -> str:
        folder = tmp_path_factory.mktemp("poison")
        for module in modules:
            (folder / f"{module}.py").write_text(f"raise ImportError('{module} is not here', name='{module}')\n")
        return str(folder)

    return make


@pytest.fixture
def labs_server() -> Iterator[str]:
    """The address of a web server on 127.0.0.1 with the files of labs/."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(LABS))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., Path]:
    """A checkout with the real runner and harness, and the labs given as name -> body after `harness.start`."""

    def make(**bodies: str) -> Path:
        folder = tmp_path / "checkout" / "labs"
        folder.mkdir(parents=True, exist_ok=True)
        for source in LABS.glob("*.py"):
            if not source.name[0].isdigit():
                shutil.copy(source, folder)
        for name, body in bodies.items():
            lab_id = name.lstrip("_")
            (folder / f"{lab_id}.py").write_text(
                f'import harness\nlab = harness.start("{lab_id}", title="{lab_id}", paradigm="p", task="t", data="d", '
                f"seconds=1)\n{body}\n"
            )
        return folder.parent

    return make
