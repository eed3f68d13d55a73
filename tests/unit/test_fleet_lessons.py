"""What the labs of several hosts say side by side, and what is made of results that are none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import published

from labrig import lock, spec
from labrig.errors import UsageError
from labrig.fleet import lessons, suite
from labrig.fleet.facts import Unreadable
from labrig.fleet.lessons import Lesson
from labrig.fleet.wanted import Wanted
from labrig.inventory import Entry, Room

ROOT = Path(__file__).parents[2]
TARGET = spec.read(ROOT / "images" / spec.TABLE).targets["cpu"]
LOCK = lock.load(TARGET, "linux_x86_64", ROOT / "images")
NATIVE = Wanted(TARGET, "venv", "linux_x86_64", LOCK, "cpu-0123456789ab", {}, None, "", {"a": "b"}, "")
ENTRY = Entry("pc01", None, "cpu", "", "", "10.0.7.11")


def result(lab: str = "06_images", **changed: Any) -> dict[str, Any]:
    """One element of what `python -m labs run --json` prints, with the keys that are read."""
    metrics = {
        "accuracy": {"value": 0.91, "unit": "share of test images", "better": "higher"},
        "resume_difference": {"value": 0.0, "unit": "largest difference", "better": "lower"},
        "step": {"value": 3.1, "unit": "ms on cpu", "better": "lower"},
        "gain": {"value": 1.7, "unit": "times as fast", "better": "higher"},
    }
    gates = [
        {"id": "resume", "exact": True, "passed": True, "checked": True},
        {"id": "accuracy", "exact": False, "passed": None, "checked": False},
    ]
    whole = {"lab": lab, "status": "passed", "reason": None, "seconds": 6.5, "metrics": metrics, "gates": gates}
    return {**whole, **changed}


def lesson(**metrics: float) -> Lesson:
    return Lesson("passed", "", 1.0, metrics, ())


def test_speeds_are_the_machines_own_and_are_not_compared() -> None:
    assert lessons.read(json.dumps([result()])) == {
        "06_images": Lesson("passed", "", 6.5, {"accuracy": 0.91, "resume_difference": 0.0}, ())
    }


def test_what_the_shipped_labs_measure_in_time_is_left_out() -> None:
    units = ["seconds, workers: 2", "ms on cpu", "times", "times as long", "GB/s, copying", "GFLOP/s, adding"]
    metrics = {str(n): {"value": 1.0, "unit": unit, "better": "lower"} for n, unit in enumerate(units)}
    assert lessons.read(json.dumps([result(metrics=metrics)]))["06_images"].metrics == {}


def test_a_missed_exact_gate_is_a_complaint_and_the_others_are_not_asked_when_quick() -> None:
    gates = [{"id": "resume", "exact": True, "passed": False}, {"id": "accuracy", "exact": False, "passed": False}]
    labs = lessons.read(json.dumps([result(), result("07_x", status="failed", gates=gates, reason="gate")]))
    assert labs["07_x"].missed == ("resume",)
    assert lessons.complaint(labs) == "labs: 07_x: missed resume"
    assert lessons.complaint({"06_images": labs["06_images"]}) == ""


@pytest.mark.parametrize(
    "printed",
    ["", "Traceback", "{}", "[1]", '[{"lab": 1}]', "[" * 100_000, "null", json.dumps([result(seconds="soon")]),
     json.dumps([result(metrics={"a": 1})]), json.dumps([result(gates=None)]), json.dumps([result(status=["\x1b"])])],
)  # fmt: skip
def test_what_is_no_result_is_said(printed: str) -> None:
    with pytest.raises(Unreadable):
        lessons.read(printed)


def test_a_number_apart_from_the_rooms_median_is_named() -> None:
    hosts = {f"pc{n:02}": {"06_images": lesson(accuracy=0.90 + n / 1000, loss=2.0)} for n in range(5)}
    hosts["pc09"] = {"06_images": lesson(accuracy=0.41, loss=2.1)}
    compared = lessons.compare(hosts)
    assert [(one.host, one.lab, one.metric, one.value) for one in compared.outliers] == [
        ("pc09", "06_images", "accuracy", 0.41)
    ]
    assert compared.rows() == [("pc09", "06_images", "accuracy", "0.41", "0.9015")]
    assert lessons.apart(compared.outliers, "pc09") == "06_images accuracy is 0.41, the room's median 0.9015"
    assert lessons.apart(compared.outliers, "pc01") == ""
    assert "1 of them with numbers that are not the room's" in compared.tally()


def test_no_number_is_no_number_of_the_rooms() -> None:
    compared = lessons.compare({"a": {"x": lesson(m=1.0)}, "b": {"x": lesson(m=1.0)}, "c": {"x": lesson(m=math.nan)}})
    assert [one.host for one in compared.outliers] == ["c"]
    assert json.loads(json.dumps(compared.to_json(), allow_nan=False))["outliers"][0]["value"] is None


def test_rounding_is_no_difference_and_one_host_is_none() -> None:
    near = {"a": {"x": lesson(m=1e-7, n=100.0)}, "b": {"x": lesson(m=5e-7, n=104.0)}}
    assert not lessons.compare(near).outliers
    assert not lessons.compare({"a": {"x": lesson(m=1.0)}}).outliers


def test_the_script_runs_the_labs_in_a_folder_that_is_gone_afterwards(tmp_path: Path) -> None:
    """By a stand-in for the labs' package, in the environment of these tests."""
    folder = tmp_path / "opt lab"
    made = folder / "envs" / NATIVE.environment / "bin"
    made.mkdir(parents=True)
    (made / "python").symlink_to(sys.executable)
    (folder / "labs").mkdir()
    (folder / "labs" / "__main__.py").write_text(
        "import json, pathlib, sys\nout = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "out.mkdir()\n(out / 'x').write_text('y')\n"
        "import tempfile\ntempfile.mkdtemp()\nprint(json.dumps([sys.argv[1:], str(out)]))\n"
    )
    (tmp_path / "tmp").mkdir()
    script = lessons.script(replace(ENTRY, folder=str(folder)), NATIVE, 60)
    done = subprocess.run(
        ["sh"], input=script, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    )
    assert done.returncode == 0, done.stderr
    flags, out = json.loads(done.stdout)
    assert flags == ["run", "--quick", "--progress", "off", "--json", "--out", out]
    assert Path(out).parent.parent == tmp_path / "tmp" and not list((tmp_path / "tmp").iterdir())
    assert not list((folder / "labs").glob("__pycache__"))


def test_a_runner_that_does_not_end_is_ended_there(tmp_path: Path) -> None:
    made = tmp_path / "envs" / NATIVE.environment / "bin"
    made.mkdir(parents=True)
    (made / "python").symlink_to(sys.executable)
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs" / "__main__.py").write_text("import time\ntime.sleep(600)\n")
    script = lessons.script(replace(ENTRY, folder=str(tmp_path)), NATIVE, lessons.GRACE + 1)
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and not done.stdout


def test_an_image_runs_without_network_and_with_the_gpu_where_it_is_for_one() -> None:
    contained = replace(NATIVE, engine="docker", image=published("cpu"), environment="")
    words = lessons.script(ENTRY, contained, 60)
    assert "--network none" in words and "--gpus" not in words and contained.image and contained.image.image in words
    gpu = replace(contained, target=replace(TARGET, device="cuda"))
    assert "--gpus all" in lessons.script(ENTRY, gpu, 60)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1.7e308, 10**400])
def test_numbers_that_json_has_not_are_none_of_the_rooms(odd: float) -> None:
    metrics = {"accuracy": {"value": odd, "unit": "share of test images", "better": "higher"}}
    good, bad = lessons.read(json.dumps([result()])), lessons.read(json.dumps([result(metrics=metrics)]))
    found = lessons.compare({"pc01": good, "pc02": bad, "pc03": good})
    (outlier,) = json.loads(json.dumps(found.to_json(), allow_nan=False))["outliers"]
    assert outlier == {"host": "pc02", "lab": "06_images", "metric": "accuracy", "value": None, "median": 0.91}
    assert lessons.compare({"pc01": bad, "pc02": bad}).outliers == ()
    with pytest.raises(Unreadable):
        lessons.read(json.dumps([result(seconds=odd)]))


def test_a_path_says_nothing_else_in_ssh_s_configuration(tmp_path: Path) -> None:
    room = Room(tmp_path / "room.toml", (ENTRY,), "", tmp_path / "100 %d.known_hosts")
    lines = suite.ssh_config(room, replace(ENTRY, key=Path("/home/a b/50%")), tmp_path / "s").splitlines()
    assert 'IdentityFile "/home/a b/50%%"' in lines and any(line.endswith('/100 %%d.known_hosts"') for line in lines)
    for odd in ('/a"b', "/a\nProxyCommand touch /tmp/x", "/a\\", "/${HOME}/a", "/a\r"):
        with pytest.raises(UsageError, match="cannot stand in ssh's configuration"):
            suite.ssh_config(room, replace(ENTRY, key=Path(odd)), tmp_path / "s")
        with pytest.raises(UsageError):
            suite.ssh_config(replace(room, known_hosts=Path(odd)), ENTRY, tmp_path / "s")
