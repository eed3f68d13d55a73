"""The labs on "mps": the CPU with the manners of MPS (as_mps.py), since there is no Mac here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from records import LABS, record

from labrig.engines import PROBE
from labs import check, harness

DRIVER = Path(__file__).with_name("as_mps.py")
SOURCES = sorted(LABS.glob("[0-9][0-9]_*.py"))
Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_lab_runs_on_mps_and_says_what_it_computes_elsewhere(source: Path, python: Python, tmp_path: Path) -> None:
    done = python(DRIVER, source, "--quick", "--device", "mps", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = record(tmp_path / source.stem)
    assert found["status"] == "passed" and found["args"]["device"] == "mps"
    assert check.problems(tmp_path / source.stem) == []
    told = [fallback for fallback in found["fallbacks"] if fallback["from"] == "mps"]
    uses_float64 = re.search(r"float64|\.double\(\)", source.read_text(encoding="utf-8"))
    assert told or not uses_float64, "float64 is computed elsewhere on a Mac, and a lab says so"
    for fallback in told:
        assert fallback["to"] in ("cpu", "skipped") and "MPS" in fallback["why"]


WRONG = {
    "a tensor of float64": ("torch.zeros(2, dtype=torch.float64, device=mps)", "doesn't support float64"),
    "double on the device": ("torch.zeros(2, device=mps).double()", "doesn't support float64"),
    "float64 by NumPy": ("torch.from_numpy(numpy.zeros(2)).to(mps)", "doesn't support float64"),
    "one number of float64": ("torch.tensor(numpy.float64(2)).to(mps)", "doesn't support float64"),
    "not sent": ("torch.zeros(2, device=mps) + torch.zeros(2)", "on the same device"),
    "a model that was not sent": ("torch.nn.Linear(2, 1)(torch.zeros(3, 2, device=mps))", "on the same device"),
    "to NumPy at once": (
        "torch.zeros(2, device=mps).numpy()",
        "can't convert mps:0 device type tensor to numpy",
    ),
    "by NumPy": ("numpy.asarray(torch.zeros(2, device=mps))", "can't convert mps:0 device type tensor to numpy"),
}
RIGHT = """
model = torch.nn.Linear(2, 1).to(mps)
x = torch.from_numpy(numpy.ones((3, 2))).float().to(mps)
optimizer = torch.optim.AdamW(model.parameters())
loss = model(x).pow(2).mean()
loss.backward()
optimizer.step()
assert loss.device == model.weight.grad.device == mps
assert loss.cpu().device.type == "cpu" and model.weight.detach().cpu().numpy().shape == (1, 2)
assert x[torch.tensor([0, 1])].shape == (2, 2) and (x.cpu().double() * 2).dtype == torch.float64
w = torch.ones(2, requires_grad=True)
w.to(mps).sum().cpu().backward()
assert w.grad.tolist() == [1, 1]
"""


TRY = """
import json, sys; sys.path.insert(0, sys.argv[1])
import as_mps, numpy, torch
mps, said = torch.device("mps"), {}
for name, code in json.load(sys.stdin).items():
    with as_mps.on_a_mac():
        try:
            exec(code)
            said[name] = ""
        except (RuntimeError, TypeError) as error:
            said[name] = str(error)
print(json.dumps(said))
"""


def test_what_the_labs_were_run_on_would_have_caught_what_a_mac_refuses(labs_python: str) -> None:
    codes = {"right": RIGHT, **{name: code for name, (code, _) in WRONG.items()}}
    done = subprocess.run(
        [labs_python, "-c", TRY, DRIVER.parent], input=json.dumps(codes), capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said.pop("right") == ""
    assert set(said) == set(WRONG)
    for name, (_, words) in WRONG.items():
        assert words in said[name], name


def test_a_device_that_is_seen_and_computes_nothing_is_exit_3_with_the_way_out(python: Python, tmp_path: Path) -> None:
    """As MPS in a virtual machine: no lab falls back to the CPU unasked, and it is no bug of the lab's."""
    lab = [DRIVER, LABS / "02_autograd.py", "--quick", "--out", tmp_path, "--device"]
    for device in ("mps", "auto"):
        done = python(*lab, device, AS_MPS="no-memory")
        assert done.returncode == 3, done.stderr
        assert "device mps is there but does not compute: MPS backend out of memory" in done.stderr
        assert done.stderr.rstrip().endswith("use --device cpu")
        assert "Traceback" not in done.stderr
    assert python(*lab, "cpu", AS_MPS="no-memory").returncode == 0


def test_the_probes_kernel_never_asks_mps_for_float64_and_its_question_for_it_is_refused(python: Python) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(DRIVER.parent)!r}, {str(PROBE.parent)!r}]\n"
        "import as_mps, probe\n"
        "with as_mps.on_a_mac():\n"
        "    print(probe.run_kernel('mps'))\n"
        "    print(probe.ask_float64())\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    kernel, float64 = done.stdout.splitlines()
    assert kernel == "ok"
    assert float64.startswith("TypeError: ") and "doesn't support float64" in float64


def test_a_macs_chip_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sysctl"
    program.write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo "Apple M2"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert harness._cpu_name() == "Apple M2"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert harness._cpu_name() not in ("", "Apple M2")
