"""The labs as notebooks: the script and nothing else, the same bytes everywhere, and what Colab's first cell does.

The first cell is run as it is, by this Python, against a real web server; torch and the runtimes that cannot be here
are modules of a few lines.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest
import samples

from labrig import matrix, notebooks, render, spec
from labrig.errors import UsageError

ROOT = Path(__file__).parents[2]
LABS = ROOT / "labs"
SCRIPTS = notebooks.scripts(LABS)
IDS = [script.stem for script in SCRIPTS]
BOOKS = render.render_notebooks(samples.SHIPPED, ROOT / "templates")
DATA_LAB = "04_houses"
PROJECT = samples.SHIPPED.project


def book(lab: str, folder: str = "") -> dict[str, Any]:
    return json.loads(BOOKS[LABS / "notebooks" / folder / f"{lab}.ipynb"])


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def parts(script: Path) -> list[tuple[str, str, list[str]]]:
    """The cells of a script, read in the plainest way: kind, text, tags."""
    found = []
    for part in re.split(r"^# %%", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        if kind == "markdown" and text.startswith('"""'):
            text = text.strip()[3:-3]
        elif kind == "markdown":
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
        found.append((kind, text.strip("\n"), re.findall(r'"(\w+)"', head)))
    return found


# --- what a notebook is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
@pytest.mark.parametrize("folder", ["", "colab"])
def test_a_notebook_is_the_script_with_one_cell_of_setup(script: Path, folder: str) -> None:
    cells = book(script.stem, folder)["cells"]
    own = [cell for cell in cells if not cell["id"].endswith(("-setup", "-badge"))]
    assert len(cells) - len(own) == (2 if folder else 1)
    told = [(cell["cell_type"], source(cell), cell["metadata"].get("tags", [])) for cell in own]
    assert told == parts(script)
    assert told[-1][1].startswith("## Try this") and told[-1][2] == ["exercise"]
    assert source(cells[1 if not folder else 2]).count("sys.path.insert") == 1
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(source(cell))


@pytest.mark.parametrize("lab", IDS)
@pytest.mark.parametrize("folder", ["", "colab"])
def test_a_notebook_is_valid_and_its_ids_are_its_own(lab: str, folder: str) -> None:
    found = book(lab, folder)
    nbformat.validate(found)
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert found["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", id) and id.startswith(lab) for id in ids)


def test_the_bytes_do_not_depend_on_where_and_when() -> None:
    """Another process, another seed of hashes, another folder to be in, another locale."""
    ask = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]; import test_notebooks as t; "
        "print(hashlib.sha256(repr(sorted((p.name, x) for p, x in t.BOOKS.items())).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(sorted((p.name, x) for p, x in BOOKS.items())).encode()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", ask, str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == here, done.stderr


def test_an_edited_cell_changes_no_id(tmp_path: Path) -> None:
    script = tmp_path / SCRIPTS[0].name
    script.write_text(SCRIPTS[0].read_text().replace("n_loop = 20_000", "n_loop = 10_000"))
    before, after = notebooks.cells(SCRIPTS[0]), notebooks.cells(script)
    assert before != after
    assert [cell["id"] for cell in before] == [cell["id"] for cell in after]


def test_a_script_that_begins_without_a_title_is_named(tmp_path: Path) -> None:
    (tmp_path / "01_bare.py").write_text("import harness\n")
    with pytest.raises(UsageError, match=r"01_bare\.py does not begin"):
        notebooks.cells(tmp_path / "01_bare.py")


@pytest.mark.parametrize("content", [b"# %% [markdown]\n# # Odd\n# %%\nx = (\n", b"# %% [markdown]\n# \xff\n"])
def test_a_script_that_is_not_python_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "01_odd.py").write_bytes(content)
    with pytest.raises(UsageError, match=r"01_odd\.py"):
        notebooks.render(samples.SHIPPED, tmp_path, colab_template())


@pytest.mark.parametrize(
    ("call", "says"), [("lab.read(name)", "line 4: cannot tell"), ('lab.read("gone.csv.gz")', "cannot read .*gone")]
)
def test_a_lab_whose_files_cannot_be_told_is_named(call: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "01_odd.py").write_text(f"# %% [markdown]\n# Odd\n# %%\n{call}\n")
    shutil.copy(LABS / "harness.py", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(LABS / "data" / "manifest.json", tmp_path / "data")
    with pytest.raises(UsageError, match=says):
        notebooks.render(samples.SHIPPED, tmp_path, colab_template())


def colab_template() -> Any:
    return render.jinja(ROOT / "templates").get_template(notebooks.COLAB_TEMPLATE)


# --- the variant for Colab --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lab", IDS)
def test_it_begins_with_a_badge_and_installs_nothing(lab: str) -> None:
    cells = book(lab, "colab")["cells"]
    path = f"{PROJECT.repository}/blob/{PROJECT.branch}/labs/notebooks/colab/{lab}.ipynb"
    assert source(cells[0]).endswith(f"](https://colab.research.google.com/github/{path})")
    setup = source(cells[2])
    for cell in cells:
        assert not re.search(r"^\s*[!%]|\bpip3?\b|\buv\b|\bconda\b|subprocess.*install", source(cell), re.MULTILINE), (
            lab
        )
    address = f"https://raw.githubusercontent.com/{PROJECT.repository}/{PROJECT.branch}/labs"
    assert re.findall(r"https?://[^\"]+", setup) == [address]
    for target in ("cpu", "cuda"):
        row = samples.SHIPPED.targets[target]
        assert f'"{target}": ("{target}", "{row.python}", "{row.torch}")' in setup


@pytest.mark.parametrize("script", SCRIPTS, ids=IDS)
def test_it_names_each_file_that_the_lab_reads_by_its_hash(script: Path) -> None:
    stated = dict(re.findall(r'"([\w./]+)": "([0-9a-f]{64})"', source(book(script.stem, "colab")["cells"][2])))
    read = re.findall(r'lab\.read\("([^"]+)"\)', script.read_text(encoding="utf-8"))
    assert set(stated) == {"harness.py", *(["data/manifest.json"] if read else []), *(f"data/{name}" for name in read)}
    for name, sha256 in stated.items():
        assert hashlib.sha256((LABS / name).read_bytes()).hexdigest() == sha256


def test_the_project_decides_the_addresses() -> None:
    published = spec.Table(
        samples.SHIPPED.path, samples.SHIPPED.targets, {}, spec.Project("an-institute/labs", "autumn")
    )
    made = notebooks.render(published, LABS, colab_template())
    text = made[LABS / "notebooks" / "colab" / "01_tensors.ipynb"]
    assert "github/an-institute/labs/blob/autumn/labs/notebooks/colab/01_tensors.ipynb" in text
    assert "https://raw.githubusercontent.com/an-institute/labs/autumn/labs" in text
    assert PROJECT.repository not in text
    assert made[LABS / "notebooks" / "01_tensors.ipynb"] == BOOKS[LABS / "notebooks" / "01_tensors.ipynb"]


class Server:
    """A web server with a copy of what the lab needs; a test may spoil the files, or cut what is sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cut, self.asked = folder, False, list[str]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: Any, **options: Any) -> None:
        self.labs = server
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.labs.asked.append(self.path.lstrip("/"))
        if not self.labs.cut:
            return super().do_GET()
        content = (self.labs.folder / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    (folder / "data").mkdir(parents=True)
    for name in FILES:
        shutil.copy(LABS / name, folder / name)
    running = Server(folder)
    yield running
    running.close()


FILES = ("harness.py", "data/manifest.json", "data/houses.csv.gz")
CPU = samples.SHIPPED.targets["cpu"]
TORCH = """
import types
class Ones:
    def sum(self):
        if {broken}: raise RuntimeError("CUDA error: no kernel image is available\\nmore")
        return types.SimpleNamespace(item=lambda: 2.0)
__version__ = "{version}"
version = types.SimpleNamespace(cuda={cuda})
cuda = types.SimpleNamespace(is_available=lambda: {gpu}, get_device_name=lambda: "Tesla T4")
ones = lambda *shape, device: Ones()
"""

Ran = subprocess.CompletedProcess[str]
Cell = Callable[..., Ran]


@pytest.fixture
def cell(tmp_path: Path, server: Server) -> Cell:
    """Run Colab's first cell of a lab in an empty folder, in a runtime with the named torch, and print LAB_ARGS."""
    runtime, place = tmp_path / "runtime", tmp_path / "content"
    runtime.mkdir()
    place.mkdir()
    script = tmp_path / "cell.py"
    setup = source(book(DATA_LAB, "colab")["cells"][2])
    end = "\nprint('args', os.environ.get('LAB_ARGS', ''))\n"

    def run(
        *, version: str = f"{CPU.torch}+cpu", cuda: str | None = None, gpu: bool = False, broken: bool = False,
        without: tuple[str, ...] = (), address: str | None = None, python: str = CPU.python,
    ) -> Ran:  # fmt: skip
        script.write_text(setup.replace(f'("cpu", "{CPU.python}"', f'("cpu", "{python}"') + end)
        for module in ("numpy", "sklearn", "matplotlib"):
            (runtime / f"{module}.py").unlink(missing_ok=True)
            if module not in without:
                (runtime / f"{module}.py").write_text("")
        (runtime / "torch.py").write_text(TORCH.format(version=version, cuda=repr(cuda), gpu=gpu, broken=broken))
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LAB", "PYTHON"))}
        env |= {"PYTHONPATH": str(runtime), "PYTHONDONTWRITEBYTECODE": "1"}
        env["LABRIG_LABS"] = address or f"{server.address}/"
        command = [sys.executable, "-W", "error", str(script)]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def kept(tmp_path: Path) -> dict[str, bytes]:
    labs = tmp_path / "content" / "labs"
    return {str(file.relative_to(labs)): file.read_bytes() for file in labs.rglob("*") if file.is_file()}


GOOD = {name: (LABS / name).read_bytes() for name in FILES}


def test_it_fetches_once_and_keeps_what_is_right(cell: Cell, server: Server, tmp_path: Path) -> None:
    done = cell()
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path) == GOOD
    assert server.asked == list(FILES)
    assert cell().returncode == 0
    assert server.asked == list(FILES), "nothing is fetched twice"
    assert cell(address="http://127.0.0.1:9/").returncode == 0, "and nothing needs the network any more"


def test_a_flipped_byte_is_refused_and_not_kept(cell: Cell, server: Server, tmp_path: Path) -> None:
    spoilt = bytearray(GOOD["data/houses.csv.gz"])
    spoilt[1000] ^= 1
    (server.folder / "data" / "houses.csv.gz").write_bytes(spoilt)
    done = cell()
    assert done.returncode == 1
    assert f"{server.address}/data/houses.csv.gz is not the file that this notebook was made with" in done.stderr
    assert hashlib.sha256(spoilt).hexdigest()[:16] in done.stderr
    assert kept(tmp_path) == {name: GOOD[name] for name in FILES[:2]}
    (server.folder / "data" / "houses.csv.gz").write_bytes(GOOD["data/houses.csv.gz"])
    assert cell().returncode == 0
    assert kept(tmp_path) == GOOD


@pytest.mark.parametrize(
    ("address", "says"), [("http://127.0.0.1:9", "refused"), ("nonsense", "unknown url type"), (None, "HTTP Error 404")]
)
def test_an_address_that_is_gone_is_said(cell: Cell, server: Server, tmp_path: Path, address: str, says: str) -> None:
    (server.folder / "harness.py").unlink()
    done = cell(address=address)
    assert done.returncode == 1
    assert f"{address or server.address}/harness.py cannot be fetched" in done.stderr and says in done.stderr
    assert "run this cell again" in done.stderr
    assert kept(tmp_path) == {}


def test_a_connection_that_breaks_leaves_no_half_file(cell: Cell, server: Server, tmp_path: Path) -> None:
    server.cut = True
    done = cell()
    assert done.returncode == 1
    assert "harness.py cannot be fetched (IncompleteRead" in done.stderr
    assert kept(tmp_path) == {}
    server.cut = False
    assert cell().returncode == 0
    assert kept(tmp_path) == GOOD


@pytest.mark.parametrize("here", [GOOD["harness.py"][:5000], b"# an older one\n", b""])
def test_a_half_file_or_an_older_one_is_replaced(cell: Cell, tmp_path: Path, here: bytes) -> None:
    file = tmp_path / "content" / "labs" / "harness.py"
    file.parent.mkdir()
    file.write_bytes(here)
    assert cell().returncode == 0
    assert kept(tmp_path) == GOOD


def test_a_project_that_went_on_does_not_replace_what_fits_the_notebook(
    cell: Cell, server: Server, tmp_path: Path
) -> None:
    assert cell().returncode == 0
    (server.folder / "harness.py").write_bytes(GOOD["harness.py"] + b"# newer\n")
    assert cell().returncode == 0
    assert kept(tmp_path) == GOOD
    (tmp_path / "content" / "labs" / "harness.py").write_bytes(b"# mine\n")
    done = cell()
    assert done.returncode == 1 and "Open the notebook anew" in done.stderr
    assert kept(tmp_path) == GOOD | {"harness.py": b"# mine\n"}, "what was there is as it was"


def test_a_place_that_cannot_be_written_is_said(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "content" / "labs").write_text("a file of that name")
    done = cell()
    assert done.returncode == 1
    assert "labs/harness.py cannot be written" in done.stderr


def test_a_runtime_like_the_target_is_said_and_another_one_warned_of(cell: Cell) -> None:
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    same = cell(version=f"{CPU.torch.rpartition('.')[0]}.9+cpu", python=minor)
    assert same.stdout.startswith(f"Python {minor} and torch {CPU.torch.rpartition('.')[0]}, as in the target cpu")
    assert same.stderr == ""
    old = cell(python="3.8")
    assert f"has Python {minor} and torch {CPU.torch.rpartition('.')[0]}," in old.stderr
    assert "with Python 3.8 and" in old.stderr
    other = cell(version="2.11.0+cpu")
    assert other.returncode == 0
    [line] = other.stderr.splitlines()
    wanted = f"Python {CPU.python} and torch {CPU.torch.rpartition('.')[0]} (target cpu)"
    assert line.startswith(f"warning: this runtime has Python {minor} and torch 2.11,") and wanted in line
    cuda = cell(version="2.11.0+cu128", cuda="12.8", gpu=True)
    assert f"Python {samples.SHIPPED.targets['cuda'].python} and torch" in cuda.stderr
    assert "(target cuda)" in cuda.stderr


def test_it_says_what_the_lab_computes_on(cell: Cell) -> None:
    none = cell()
    assert "no GPU in this runtime: going on on the CPU" in none.stdout
    assert "Runtime > Change runtime type" in none.stdout
    assert none.stdout.endswith("args \n")
    gpu = cell(cuda="13.0", gpu=True)
    assert "GPU: Tesla T4\n" in gpu.stdout and gpu.stdout.endswith("args \n")
    broken = cell(cuda="13.0", gpu=True, broken=True)
    assert broken.returncode == 0
    assert "the GPU does not compute (CUDA error: no kernel image is available): going on on the CPU" in broken.stdout
    assert broken.stdout.endswith("args  --device cpu\n")


def test_what_a_runtime_lacks_is_named(cell: Cell) -> None:
    done = cell(without=("sklearn", "numpy"))
    assert done.returncode == 1
    assert "this runtime has no NumPy, no scikit-learn, which the lab needs" in done.stderr
    done = cell(without=("matplotlib",))
    assert done.returncode == 0
    assert "this runtime has no matplotlib: the lab runs without its pictures" in done.stderr


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_compares_each_runtime_with_each_target() -> None:
    columns, rows = notebooks.parity(samples.SHIPPED)
    assert len(rows) == len(matrix.colab_runtimes()) and all(len(row) == len(columns) for row in rows)
    assert columns[4:6] == [
        f"against `{t.name}`: Python {t.python}, torch {t.torch}{f', CUDA {t.cuda}' if t.cuda else ''}"
        for t in (samples.SHIPPED.targets["cpu"], samples.SHIPPED.targets["cuda"])
    ]
    page = (ROOT / "docs" / "colab.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {' | '.join(row)} |" in page
    for lab in IDS:
        assert f"| `{lab}` | [open](https://colab.research.google.com/github/{PROJECT.repository}/blob/" in page
    assert spec.Project().repository in "".join(page.splitlines(keepends=True)[:8])


@pytest.mark.parametrize(
    ("python", "torch", "cuda", "says"),
    [
        ("3.13.15", "2.13.1", "13.0.2", "Python equal, torch equal, CUDA equal"),
        ("3.13", "2.11.0", "12.8", "Python equal, torch differs, CUDA differs"),
        ("3.1", "2.130", "13", "Python differs, torch differs, CUDA differs"),
        (None, None, None, "Python unconfirmed, torch unconfirmed, CUDA unconfirmed"),
    ],
)
def test_versions_are_compared_by_major_and_minor(
    python: str | None, torch: str | None, cuda: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = matrix.ColabRuntime("r", python, torch, cuda, None, "high", "n", ("S70",))
    monkeypatch.setattr(matrix, "colab_runtimes", lambda: (one,))
    row = dataclasses.replace(samples.SHIPPED.targets["cuda"], python="3.13", torch="2.13.0", cuda="13.0")
    [shown] = notebooks.parity(dataclasses.replace(samples.SHIPPED, targets={"cuda": row}))[1]
    assert shown[4] == says
    assert "S70, read 2026-11-22" in shown[5]
