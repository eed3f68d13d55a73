"""Every lab, at quick size, keeps the contract; its source keeps the house style."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from html import escape as html_escape
from pathlib import Path

import pytest
from records import EXECUTE, LABS, ROOT, assert_equal_numbers, record

from labrig import checks, environment, labs, support, verify
from labrig.engines import Environment
from labs import check, page

SOURCES = sorted(LABS.glob("[0-9][0-9]_*.py"))
IDS = [path.stem for path in SOURCES]
RESUMABLE = [path.stem for path in SOURCES if "lab.resume(" in path.read_text(encoding="utf-8")]


Run = Callable[[str, str], tuple[Environment, Path]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An environment, and what all labs left that ran in it with `--quick --device cpu`, once per session."""

    @functools.cache
    def quickly(target: str, engine: str) -> tuple[Environment, Path]:
        made, out = environment.build(ROOT, target, engine), tmp_path_factory.mktemp(f"{target}-{engine}") / "out"
        with Path(os.devnull).open("w") as nowhere:
            labs.run(ROOT, made, out=out, device="cpu", quick=True, stdout=nowhere.fileno())
        return made, out

    return quickly


@pytest.fixture(scope="session")
def quick(run: Run) -> Path:
    """The folder of the native run."""
    return run("cpu", "venv")[1]


# ---- what the support table calls "run here" is run here: built, labs run in it, every check passed

PROVEN = [
    pytest.param(target, engine, id=f"{target}-{engine}", marks=pytest.mark.docker if engine == "docker" else ())
    for target, engine in sorted(support.PROVEN)
]


@pytest.mark.parametrize(("target", "engine"), PROVEN)
def test_it_is_built_used_and_proven(
    target: str,
    engine: str,
    run: Run,
    record_property: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    if engine == "docker":
        request.getfixturevalue("docker_engine")
    made, out = run(target, engine)
    results = json.loads((out / labs.RESULTS).read_text())
    assert [lab["lab"] for lab in results] == IDS
    assert {lab["status"] for lab in results} == {"passed"}
    verified = verify.verify(made)
    assert [result for result in verified.checks if result.status in (checks.FAILED, checks.SKIPPED)] == []
    record_property("proves", f"{target} {engine} run")


@pytest.mark.docker
@pytest.mark.parametrize("lab", IDS)
def test_equal_seeds_give_equal_numbers_natively_and_in_the_image(lab: str, run: Run, docker_engine: None) -> None:
    assert_equal_numbers(*(record(run("cpu", engine)[1] / lab) for engine in ("venv", "docker")))


# ---- each lab's run


@pytest.mark.parametrize("lab", IDS)
def test_a_quick_run_keeps_the_contract(lab: str, quick: Path) -> None:
    assert (
        check.problems(quick / lab) == []
    )  # all fields, gates that follow from their numbers, the same story in events
    found = record(quick / lab)
    assert found["lab"]["id"] == lab
    assert found["status"] == "passed"
    assert found["args"] == {"device": "cpu", "seed": 0, "quick": True, "full": False, "threads": 1}
    assert found["env"]["torch"] and found["env"]["cpu_quota"] > 0
    assert found["time"]["cpu_s"] < 30  # 5 s and the imports; processor time, since the wall is the neighbours' too
    assert found["data"] and all(len(entry["sha256"]) == 64 and entry["rows"] > 0 for entry in found["data"])
    assert found["baselines"], "an honest comparison needs a baseline"
    assert found["honest"]


@pytest.mark.parametrize("lab", IDS)
def test_exact_gates_are_enforced_even_when_quick(lab: str, quick: Path) -> None:
    gates = record(quick / lab)["gates"]
    assert any(gate["exact"] for gate in gates)
    for gate in gates:
        assert gate["checked"] is gate["exact"]
        assert gate["passed"] is (True if gate["exact"] else None)


@pytest.mark.parametrize("lab", IDS)
def test_pictures_are_there_small_and_described(lab: str, quick: Path) -> None:
    plots = record(quick / lab)["plots"]
    assert plots
    for plot in plots:
        data = (quick / lab / plot["file"]).read_bytes()
        assert data.startswith(b"\x89PNG") and 5_000 < len(data) < 150_000
        assert len(plot["alt"]) > 30


@pytest.mark.parametrize("lab", RESUMABLE)
def test_interrupted_and_resumed_equals_uninterrupted(
    lab: str, quick: Path, labs_python: str, tmp_path: Path, python
) -> None:
    command = [labs_python, str(LABS / f"{lab}.py"), "--quick", "--device", "cpu", "--no-plots"]
    command += ["--out", str(tmp_path), "--progress", "json"]
    process = subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stderr is not None
    first = json.loads(process.stderr.readline())
    assert first["step"] >= 1
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    stopped = tmp_path / lab
    assert record(stopped)["status"] == "interrupted"
    assert (stopped / "state.pt").is_file()

    resumed = python(*command[1:], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    at = int(re.search(r"goes on at step (\d+)", resumed.stderr)[1])  # type: ignore[index]
    assert 0 < at < first["total"]

    straight = quick / lab
    assert (stopped / "curves.csv").read_text() == (straight / "curves.csv").read_text()
    for name in ("metrics", "baselines"):
        assert record(stopped)[name] == record(straight)[name]
    compare = (
        "import sys, torch\n"
        "def same(a, b):\n"
        "    if isinstance(a, torch.Tensor): return torch.equal(a, b)\n"
        "    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)\n"
        "    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))\n"
        "    return a == b\n"
        "a, b = (torch.load(path, weights_only=True) for path in sys.argv[1:])\n"
        "sys.exit(0 if same(a, b) else 'the states differ')\n"
    )
    verdict = python("-c", compare, stopped / "state.pt", straight / "state.pt")
    assert verdict.returncode == 0, verdict.stderr


def test_a_state_of_other_flags_is_refused(quick: Path, python) -> None:
    out = quick
    copied = out / "other" / "06_images"
    copied.mkdir(parents=True)
    (copied / "state.pt").write_bytes((out / "06_images" / "state.pt").read_bytes())
    flags = ["--quick", "--device", "cpu", "--seed", 7, "--resume", "--out", out / "other"]
    refused = python(LABS / "06_images.py", *flags)
    assert refused.returncode == 2
    assert "seed" in refused.stderr and "Traceback" not in refused.stderr


def test_a_named_device_that_is_absent_is_an_error(python, tmp_path: Path) -> None:
    asked = python("-c", "from labs.harness import available_devices; print(available_devices())")
    absent = next(name for name in ("mps", "cuda") if name not in asked.stdout)
    ended = python(LABS / "02_autograd.py", "--device", absent, "--out", tmp_path)
    assert ended.returncode == 3
    assert f"device {absent} is absent" in ended.stderr and "Traceback" not in ended.stderr
    assert record(tmp_path / "02_autograd")["status"] == "error"
    run = python("-m", "labs", "run", "02", "--device", absent, "--out", tmp_path / "run")
    assert run.returncode == 3
    assert f"device {absent} is absent" in run.stderr and run.stdout == ""


def test_without_matplotlib_the_pictures_are_left_out_with_a_reason(python, poison, tmp_path: Path) -> None:
    ended = python(LABS / "01_tensors.py", "--quick", "--out", tmp_path, PYTHONPATH=poison("matplotlib"))
    assert ended.returncode == 0, ended.stderr
    found = record(tmp_path / "01_tensors")
    assert found["plots"] == []
    assert {"matplotlib is not installed"} == {f["why"] for f in found["fallbacks"]}


def test_without_a_compiler_lab_19_skips_what_needs_one_and_says_why(python, tmp_path: Path) -> None:
    ended = python(LABS / "19_speed.py", "--device", "cpu", "--no-plots", "--out", tmp_path, PATH=str(tmp_path), CXX="")
    assert ended.returncode == 0, ended.stderr
    found = record(tmp_path / "19_speed")
    assert "compiled_ms" not in found["metrics"]
    told = {fallback["op"]: fallback for fallback in found["fallbacks"]}["torch.compile"]
    assert told["to"] == "skipped" and "no C++ compiler" in told["why"]


def test_without_torch_a_lab_says_so(python, poison, tmp_path: Path) -> None:
    ended = python(LABS / "01_tensors.py", "--out", tmp_path, PYTHONPATH=poison("torch"))
    assert ended.returncode == 3
    assert "torch cannot be imported" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("flags", [["--device", "tpu"], ["--seed", "-1"], ["--quick", "--full"], ["--what"]])
def test_wrong_flags_exit_2(flags: list[str], python, tmp_path: Path) -> None:
    assert python(LABS / "01_tensors.py", *flags, "--out", tmp_path).returncode == 2


# The plainest, one that saves and resumes, a compiler, processes of its own; the others run there by hand.
IN_EVERY_RUN = ("01_tensors", "06_images", "19_speed", "20_two_processes")


@pytest.mark.parametrize(
    "lab", [pytest.param(lab, marks=() if lab in IN_EVERY_RUN else pytest.mark.full) for lab in IDS]
)
def test_a_lab_runs_in_a_notebook_kernel(lab: str, python, tmp_path: Path) -> None:
    """The committed notebook in a real kernel, whose own command line has flags no lab knows; every plot is in it."""
    flags = f"--quick --device cpu --out {tmp_path} --progress off"
    told = executed(LABS / "notebooks" / f"{lab}.ipynb", LABS / "notebooks", python, LAB_ARGS=flags, HOME=str(tmp_path))
    assert_shown(told, tmp_path / lab)


# One of random numbers, one that reads a file of labs/data.
COLAB_IN_EVERY_RUN = ("01_tensors", "04_houses")


@pytest.mark.parametrize(
    "lab", [pytest.param(lab, marks=() if lab in COLAB_IN_EVERY_RUN else pytest.mark.full) for lab in IDS]
)
def test_the_colab_variant_runs_with_nothing_but_an_address(lab: str, python, tmp_path: Path, labs_server: str) -> None:
    """In an empty folder, as in Colab, with a web server as the project's address; what it wrote stays in there."""
    book = tmp_path / f"{lab}.ipynb"
    book.write_bytes((LABS / "notebooks" / "colab" / book.name).read_bytes())
    flags = "--quick --device cpu --progress off"
    told = executed(book, tmp_path, python, LAB_ARGS=flags, LABRIG_LABS=labs_server, HOME=str(tmp_path / "home"))
    assert "no GPU in this runtime: going on on the CPU" in told["text"]
    assert "target cpu" in told["text"]
    assert_shown(told, tmp_path / "results" / "by-hand" / lab)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["labs", "results", book.name, *told["home"]])


def test_files_of_a_notebook_go_beside_labs(python, tmp_path: Path) -> None:
    """The same as of a script that is run in the checkout, though a notebook's kernel is in the notebook's folder."""
    ask = "import sys; sys.modules['ipykernel'] = sys; from labs import harness; print(harness.default_out())"
    assert python("-c", ask, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout.strip() == str(ROOT / "results" / "by-hand")


def executed(book: Path, folder: Path, python, **env: str) -> dict:
    """What a notebook's cells showed, run by nbclient in the environment; a cell that raises fails the test."""
    home = Path(env["HOME"])
    home.mkdir(exist_ok=True)
    ended = python("-W", "ignore", "-c", EXECUTE, book, folder, cwd=home, **env)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout) | {"home": [home.name] if home.parent == folder else []}


def assert_shown(told: dict, folder: Path) -> None:
    assert told["pictures"] and told["pictures"] == [plot["alt"] for plot in record(folder)["plots"]]
    assert f"{folder.name}: passed" in told["text"]
    assert check.problems(folder) == []


# ---- the source


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_a_lab_stands_alone(source: Path) -> None:
    allowed = {"harness", "torch", "numpy", "sklearn", "scipy", *sys.stdlib_module_names}
    assert "cuda" not in source.read_text(encoding="utf-8"), "a lab computes on lab.device, whatever that is"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module or ""]
        for module in modules:
            assert module.partition(".")[0] in allowed


def test_the_runner_never_imports_labrig() -> None:
    for source in LABS.glob("*.py"):
        assert not re.search(r"^\s*(import|from) labrig", source.read_text(encoding="utf-8"), re.MULTILINE), source


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_a_lab_reads_like_one(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert 100 <= len(lines) <= 250
    assert lines[0] == "# %% [markdown]"
    about = page.read(source)
    assert about.paradigm in page.PARADIGMS
    assert about.title and about.task and about.data and about.seconds > 0
    assert about.question.endswith("?") and about.see and about.simple_wins
    assert len(about.exercises) == 3
    for heading in ("You will learn", "Measured", "Left out on purpose"):
        assert f"**{heading}" in text
    assert f'"{source.stem}"' in text
    assert text.count("lab.finish()") == 1 and "lab.plot(" in text


def test_the_long_labs_can_be_resumed() -> None:
    assert set(RESUMABLE) == {"06_images", "08_gpt", "16_masked_words", "18_missing_patches"}


def test_list_loads_no_torch(python, poison) -> None:
    nothing = poison("torch", "numpy", "sklearn", "matplotlib")
    listed = python("-m", "labs", "list", "--json", PYTHONPATH=nothing)
    assert listed.returncode == 0, listed.stderr
    entries = json.loads(listed.stdout)
    assert [entry["id"] for entry in entries] == IDS
    alone = python(SOURCES[0], "--list", PYTHONPATH=nothing)
    assert json.loads(alone.stdout) == entries[0]
    assert all(lab in python("-m", "labs", "list", PYTHONPATH=nothing).stdout for lab in IDS)


def test_every_metric_is_explained(quick: Path) -> None:
    """docs/labs.md names every metric and baseline that a lab records, in the lab's own part."""
    text = (ROOT / "docs" / "labs.md").read_text(encoding="utf-8")
    for lab in IDS:
        found = record(quick / lab)
        part = text.partition(f"### {lab}\n")[2].partition("\n### ")[0]
        for name in [*found["metrics"], *found["baselines"]]:
            assert f"`{name}`" in part, f"{lab}: {name}"


# ---- verify and report, on real records


def test_report_is_one_file_that_needs_nothing(quick: Path, python, tmp_path: Path) -> None:
    out = quick
    ended = python("-m", "labs", "report", out, "--out", tmp_path / "one.html")
    assert ended.returncode == 0, ended.stderr
    html = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert f"{len(IDS)} passed" in html
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?(https?:|//)""", html)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", html)
    assert html.count("data:image/png;base64,") == sum(len(record(out / lab)["plots"]) for lab in IDS)
    for lab in IDS:
        about = page.read(LABS / f"{lab}.py")
        assert f'id="{lab}"' in html and html_escape(about.title) in html
        assert html.count("<li>") == 3 * len(IDS)
    assert "prefers-color-scheme:dark" in html and "@media print" in html
    both = python("-m", "labs", "report", out, out, "--out", tmp_path / "two.html")
    assert both.returncode == 0, both.stderr
    assert "× as fast" in (tmp_path / "two.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["metrics"]["engine_error"].update(value=1e-20),
        lambda r: r["gates"][0].update(value=1e-20),
        lambda r: (r["metrics"]["engine_error"].update(value=0.0), r["gates"][0].update(value=0.0, margin=1e-12)),
        lambda r: r["gates"][0].update(limit=1.0),
        lambda r: r["gates"].pop(),
        lambda r: r["time"].update(wall_s=0.0),
        lambda r: r.update(status="skipped"),
        lambda r: r.pop("honest"),
        lambda r: r["plots"][0].update(file="plots/absent.png"),
        lambda r: r["lab"].update(id="03_other"),
    ],
)
def test_a_tampered_record_is_caught(change: Callable[[dict], object], quick: Path, tmp_path: Path) -> None:
    source, lab = quick / "02_autograd", tmp_path / "02_autograd"
    (lab / "plots").mkdir(parents=True)
    for path in ("metrics.json", "events.jsonl", "plots/steps.png"):
        os.link(source / path, lab / path)
    assert check.problems(lab) == []
    altered = record(source)
    change(altered)
    (lab / "metrics.json").unlink()
    (lab / "metrics.json").write_text(json.dumps(altered))
    assert check.problems(lab)


def test_verify_exits_6_on_it(quick: Path, python, tmp_path: Path) -> None:
    lab = tmp_path / "run" / "02_autograd"
    lab.mkdir(parents=True)
    text = (quick / "02_autograd" / "metrics.json").read_text()
    (lab / "metrics.json").write_text(text.replace('"passed": true', '"passed": null'))
    ended = python("-m", "labs", "verify", tmp_path / "run", "--json")
    assert ended.returncode == 6
    assert json.loads(ended.stdout)[0]["status"] == "unbelievable"
    good = python("-m", "labs", "verify", quick)
    assert good.returncode == 0, good.stdout
    assert python("-m", "labs", "verify", ROOT / "docs").returncode == 2


# ---- the machine


def test_cpu_quota_is_the_smallest_limit_above_us(tmp_path: Path) -> None:
    from labs.harness import cpu_quota

    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/inner\n")
    (tmp_path / "fs/outer/inner").mkdir(parents=True)
    free = cpu_quota(tmp_path / "fs", membership)
    assert free >= 1
    (tmp_path / "fs/outer/inner/cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path / "fs", membership) == free
    (tmp_path / "fs/outer/cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path / "fs", membership) == 0.5
    (tmp_path / "fs/outer/inner/cpu.max").write_text("25000 100000\n")
    assert cpu_quota(tmp_path / "fs", membership) == 0.25
    assert cpu_quota(tmp_path / "absent", tmp_path / "absent") == free
