"""The runner, with the real harness and small labs: crash, hang, skip, reuse, Ctrl-C, kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from records import record

HOLDS = 'lab.metric("m", 1.0)\nlab.gate("g", "one is one", metric="m", op="==", limit=1, exact=True)\nlab.finish()'
# A lab that trains slowly and notes each start, so that a test can see whether it went on or began again.
SLOW = f"""
class Counter:
    n = 0
    def state_dict(self): return {{"n": self.n}}
    def load_state_dict(self, state): self.n = state["n"]
counter = Counter()
first = lab.resume(counter=counter)
with open(lab.folder.parent / "starts.txt", "a") as file: file.write(f"{{first}}\\n")
import os, pathlib, time
for step in lab.steps(first, 20):
    counter.n += 1
    if counter.n == 2:
        pathlib.Path(lab.folder.parent, "pid.txt").write_text(str(os.getpid()))
    time.sleep(0.01 if lab.folder.parent.joinpath("fast").exists() else 0.4)
assert counter.n == 20
{HOLDS}
"""


def result_of(completed: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    return {entry["lab"]: entry for entry in json.loads(completed.stdout)}


def wait_for(condition: Callable[[], object], timeout: float = 30) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@contextlib.contextmanager
def background(python: str, cwd: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([python, "-m", "labs", *map(str, arguments)], cwd=cwd, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_each_way_to_end_is_told_apart(checkout, python, tmp_path: Path) -> None:
    tree = checkout(
        _01_holds=HOLDS,
        _02_missed=HOLDS.replace("1.0", "2.0"),
        _03_crash="raise ValueError('broken <model>')",
        _04_skip='lab.skip("no compiler here")',
        _06_silent="import os\nos._exit(0)",
        _07_elsewhere=f"lab.device = type('D', (), {{'type': 'xpu'}})()\n{HOLDS}",
        _08_killed="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        _09_gateless="lab.finish()",
    )
    (tree / "labs" / "10_syntax.py").write_text("def (:\n")
    before = sorted(tree.rglob("*"))
    out = tmp_path / "run"
    run = ["-m", "labs", "run", "--device", "cpu", "--out", out, "--json", "--jobs", 3, "--progress", "off"]
    ended = python(*run, cwd=tree, PYTHONDONTWRITEBYTECODE="1")
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("\n") <= 1  # off is off, but for a word about three labs on fewer CPUs
    assert sorted(tree.rglob("*")) == before  # nothing but --out is written
    got = result_of(ended)
    assert {lab: entry["status"] for lab, entry in got.items()} == {
        "01_holds": "passed", "02_missed": "failed", "03_crash": "error", "04_skip": "skipped",
        "06_silent": "error", "07_elsewhere": "error", "08_killed": "error", "09_gateless": "error",
        "10_syntax": "error",
    }  # fmt: skip
    assert got["01_holds"]["seconds"] > 0 and got["01_holds"]["device"] == "cpu" and got["01_holds"]["reason"] is None
    assert got["01_holds"]["gates"][0]["passed"] is True
    assert got["02_missed"]["reason"] == "gate missed: g"
    assert got["03_crash"]["reason"] == "ValueError: broken <model>"
    assert "Traceback" in (out / "03_crash" / "error.txt").read_text()
    assert got["04_skip"]["reason"] == "no compiler here"
    assert "no metrics.json" in got["06_silent"]["reason"]
    assert got["07_elsewhere"]["reason"] == "asked for cpu, ran on xpu"
    assert "SIGKILL" in got["08_killed"]["reason"]
    assert "without a gate" in got["09_gateless"]["reason"]
    assert "SyntaxError" in got["10_syntax"]["reason"] and (out / "10_syntax" / "error.txt").is_file()
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "1 passed" in html and "1 skipped" in html and "1 failed" in html and "6 error" in html
    assert "broken &lt;model&gt;" in html and "<model>" not in html

    # A missed gate alone is 5, and what was good is not run again.
    again = python(*run, "01", "02_missed", cwd=tree)
    assert again.returncode == 5, again.stderr
    assert result_of(again)["01_holds"]["reused"] and not result_of(again)["02_missed"]["reused"]
    skipped = python(*run, "01", "04", cwd=tree)
    assert skipped.returncode == 0, skipped.stderr

    # Another source, another flag, or an altered result: no reuse.
    assert not result_of(python(*run, "01", "--seed", 1, cwd=tree))["01_holds"]["reused"]
    assert result_of(python(*run, "01", "--seed", 1, cwd=tree))["01_holds"]["reused"]
    path = out / "01_holds" / "metrics.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    assert python("-m", "labs", "verify", out, cwd=tree).returncode == 6
    assert not result_of(python(*run, "01", "--seed", 1, cwd=tree))["01_holds"]["reused"]
    with (tree / "labs" / "01_holds.py").open("a") as file:
        file.write("# changed\n")
    assert not result_of(python(*run, "01", "--seed", 1, cwd=tree))["01_holds"]["reused"]


def test_a_lab_that_hangs_is_killed_with_all_its_processes(checkout, python, tmp_path: Path) -> None:
    tree, out = checkout(), tmp_path / "run"
    (tree / "labs" / "01_hang.py").write_text(
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid.txt').write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    ended = python("-m", "labs", "run", "--device", "cpu", "--out", out, "--timeout", 1.5, "--json", cwd=tree)
    assert ended.returncode == 1, ended.stderr
    got = result_of(ended)["01_hang"]
    assert got["status"] == "error" and "no result within 1.5 s (--timeout)" in got["reason"]
    assert not alive(int((tmp_path / "pid.txt").read_text()))


def test_a_lab_whose_processes_take_too_much_memory_is_stopped(checkout, python, tmp_path: Path) -> None:
    """Its children count: here they alone hold more than the limit. What several share counts once."""
    tree, out = checkout(), tmp_path / "run"
    (tree / "labs" / "01_greedy.py").write_text(
        "import subprocess, sys, time\n"
        "for _ in range(2):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; x = bytearray(80 << 20); time.sleep(600)'])\n"
        "time.sleep(600)\n"
    )
    run = ["-m", "labs", "run", "--device", "cpu", "--out", out, "--json"]
    ended = python(*run, "--memory", 150, cwd=tree)
    assert ended.returncode == 1, ended.stderr
    got = result_of(ended)["01_greedy"]
    assert got["status"] == "error" and re.fullmatch(
        r"took 1\d\d MiB, more than 150 \(--memory\), stopped", got["reason"]
    )
    (tree / "labs" / "01_greedy.py").write_text(
        "import os, time\nshared = bytearray(80 << 20)\nos.fork() and os.fork()\ntime.sleep(2.5)\n"
    )
    ended = python(*run, "--memory", 150, cwd=tree)
    assert "more than 150" not in result_of(ended)["01_greedy"]["reason"], "three processes share 80 MiB"


def test_labs_are_picked_by_number_name_and_paradigm(checkout, python, tmp_path: Path) -> None:
    tree = checkout(_01_one=HOLDS, _02_two=HOLDS, _03_three=HOLDS)
    other = tree / "labs" / "03_three.py"
    other.write_text(other.read_text().replace('paradigm="p"', 'paradigm="q"'))

    def picked(*flags: str) -> list[str]:
        ended = python("-m", "labs", "run", *flags, "--device", "cpu", "--out", tmp_path, "--json", cwd=tree)
        assert ended.returncode == 0, ended.stderr
        return list(result_of(ended))

    assert picked("--paradigm", "p") == ["01_one", "02_two"]
    assert picked("--paradigm", "q", "01") == ["01_one", "03_three"]
    assert picked("--lab", "03_three", "--lab=01") == ["01_one", "03_three"]
    wrong = python("-m", "labs", "run", "--paradigm", "learned", "--out", tmp_path, cwd=tree)
    assert wrong.returncode == 2 and "there is no paradigm learned; there are: p, q" in wrong.stderr


def test_a_broken_copy_of_a_real_lab_misses_its_gate(checkout, python, tmp_path: Path) -> None:
    """The gate is real: an engine that forgets that a value used twice collects two shares fails by name."""
    from records import LABS

    tree = checkout()
    source = (LABS / "02_autograd.py").read_text(encoding="utf-8")
    assert source.count("parent.grad += node.grad") == 1
    (tree / "labs" / "02_autograd.py").write_text(source.replace("parent.grad += node.grad", "parent.grad = node.grad"))
    run = ["run", "02", "--quick", "--device", "cpu", "--out", tmp_path / "run", "--json"]
    ended = python("-m", "labs", *run, cwd=tree)
    assert ended.returncode == 5, ended.stderr
    assert result_of(ended)["02_autograd"]["reason"] == "gate missed: engine"


def test_usage_errors_say_what_there_is(checkout, python, tmp_path: Path) -> None:
    tree = checkout(_01_holds=HOLDS)
    unknown = python("-m", "labs", "run", "42", "--out", tmp_path / "run", cwd=tree)
    assert unknown.returncode == 2 and "there are: 01_holds" in unknown.stderr
    (tmp_path / "file").write_text("")
    blocked = python("-m", "labs", "run", "--device", "cpu", "--out", tmp_path / "file" / "run", cwd=tree)
    assert blocked.returncode == 2 and "name a folder" in blocked.stderr
    for flags in (["--jobs", "0"], ["--timeout", "0"], ["--timeout", "nan"], ["--seed", "x"], ["--quick", "--full"]):
        assert python("-m", "labs", "run", *flags, cwd=tree).returncode == 2
    assert python("-m", "labs", "report", tmp_path, cwd=tree).returncode == 2
    for ended in (unknown, blocked):
        assert "Traceback" not in ended.stderr


def test_ctrl_c_leaves_what_is_finished_and_the_next_run_goes_on(checkout, python, labs_python, tmp_path: Path) -> None:
    tree, out = checkout(_01_holds=HOLDS, _02_slow=SLOW, _03_later=HOLDS), tmp_path / "run"
    run = ["run", "--device", "cpu", "--jobs", 1, "--json", "--out", out]
    with background(labs_python, tree, *run) as process:
        wait_for(lambda: (out / "pid.txt").exists())
        with background(labs_python, tree, *run) as second:  # meanwhile the folder is taken
            assert "another run is writing there" in second.communicate(timeout=30)[1]
            assert second.returncode == 2
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert [entry["status"] for entry in json.loads(stdout)] == ["passed", "interrupted", "interrupted"]
    assert record(out / "02_slow")["status"] == "interrupted"
    assert not alive(int((out / "pid.txt").read_text()))
    assert python("-m", "labs", "verify", out, cwd=tree).returncode == 5

    (out / "fast").touch()
    ended = python("-m", "labs", *run, cwd=tree)
    assert ended.returncode == 0, ended.stderr
    got = result_of(ended)
    assert got["01_holds"]["reused"] and not got["02_slow"]["reused"]
    first, second_start = map(int, (out / "starts.txt").read_text().split())
    assert first == 0 and 0 < second_start < 20


def test_after_kill_9_no_lab_lives_on_and_the_next_run_continues(checkout, python, labs_python, tmp_path: Path) -> None:
    tree, out = checkout(_01_holds=HOLDS, _02_slow=SLOW), tmp_path / "run"
    run = ["run", "--device", "cpu", "--jobs", 1, "--json", "--out", out]
    with background(labs_python, tree, *run) as process:
        wait_for(lambda: (out / "pid.txt").exists())
        process.kill()
        process.communicate()
        pid = int((out / "pid.txt").read_text())
        wait_for(lambda: not alive(pid), timeout=15)
    (out / "fast").touch()
    ended = python("-m", "labs", *run, cwd=tree)
    assert ended.returncode == 0, ended.stderr
    assert result_of(ended)["01_holds"]["reused"]
    starts = list(map(int, (out / "starts.txt").read_text().split()))
    assert len(starts) == 2 and starts[1] > 0  # the orphan saved its state before it stopped
    assert not list(out.rglob(".*.json*"))


def test_progress_goes_to_stderr_and_the_result_to_stdout(checkout, python, tmp_path: Path) -> None:
    tree, out = checkout(_02_slow=SLOW), tmp_path / "run"
    out.mkdir()
    (out / "fast").touch()
    run = ["-m", "labs", "run", "--device", "cpu", "--out", out, "--seed"]
    plain = python(*run, 1, "--progress", "plain", cwd=tree)
    assert "02_slow" in plain.stderr and "100 %" in plain.stderr
    assert plain.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    lines = python(*run, 2, "--progress", "json", "--json", cwd=tree)
    events = [json.loads(line) for line in lines.stderr.splitlines()]
    assert events[0]["event"] == "started" and events[-1]["event"] == "ended"
    assert json.loads(lines.stdout)


def test_a_whole_core_is_not_exceeded(checkout, python, tmp_path: Path) -> None:
    allowed = int(python("-c", "from labs.harness import cpu_quota; print(int(max(1, cpu_quota())))").stdout)
    seen = (
        'import os, torch\nlab.metric("threads", torch.get_num_threads())\n'
        'assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())\n'
    )
    tree = checkout(_01_threads=seen + HOLDS)
    ended = python(tree / "labs" / "01_threads.py", "--threads", allowed + 7, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert record(tmp_path / "01_threads")["args"]["threads"] == allowed
    assert record(tmp_path / "01_threads")["metrics"]["threads"]["value"] == allowed
    assert f"so {allowed} it is" in ended.stderr


@pytest.mark.parametrize("data", ["not json", "[]", '{"schema": "lab-run/0", "labs": {}}'])
def test_a_damaged_memory_only_costs_the_reuse(data: str, tmp_path: Path) -> None:
    from labs import runner

    (tmp_path / "run.json").write_text(data)
    assert runner.read_run(tmp_path) == {"schema": "lab-run/1", "labs": {}}
    assert os.listdir(tmp_path) == ["run.json"]  # noqa: PTH208
