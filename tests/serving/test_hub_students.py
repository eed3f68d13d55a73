"""A room of students at a real hub: Chromium, the proxy, the hub, and containers of the real image.

They log in, run a lab, keep their files; one asks for more than there is. The hub is killed under them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import hubs
import pytest
import seats
from hubs import Hub, Student
from seats import Seat, rest, servers, started, until

from labrig import image

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
ARTIFACTS = Path(os.environ.get("LABRIG_ARTIFACTS") or ROOT / "results" / "hub")
SETTINGS = """
[student]
memory = "1G"
shm = "256M"
cpu = 0.5
"""
MIB = 1 << 20
# What a student's own Python sees of the walls around it.
LOOK = """
import json, os, pathlib, resource
def first(*names):
    return next((pathlib.Path(n).read_text().strip() for n in names if pathlib.Path(n).exists()), "")
def writable(place):
    try:
        file = pathlib.Path(place, "proof"); file.write_text("x"); file.unlink(); return True
    except OSError:
        return False
status = dict(l.split(":\\t", 1) for l in pathlib.Path("/proc/self/status").read_text().splitlines() if ":\\t" in l)
c = "/sys/fs/cgroup/"
print(json.dumps({
    "uid": [os.getuid(), os.geteuid(), os.getgid()],
    "capabilities": {status[k] for k in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16},
    "no new privileges": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "memory": first(c + "memory.max", c + "memory/memory.limit_in_bytes"),
    "cpu": first(c + "cpu.max") or first(c + "cpu/cpu.cfs_quota_us") + " " + first(c + "cpu/cpu.cfs_period_us"),
    "pids": first(c + "pids.max", c + "pids/pids.max"),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "writable": [p for p in ("/", "/etc", "/opt/labrig", "/usr/bin", "/home/student", "/home/student/work", "/tmp")
                 if writable(p)],
    "engine's socket": os.path.exists("/var/run/docker.sock") or os.path.exists("/run/docker.sock"),
}))
"""


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def containers(hub: Hub, name: str = "") -> list[str]:
    """The ids of students' containers that run; ``name``: of that student."""
    labels = [f"label=labrig.hub={hubs.mark(hub)}", f"label=labrig.hub.user{'=' if name else ''}{name}"]
    return docker("ps", "--quiet", "--no-trunc", *(word for one in labels for word in ("--filter", one))).split()


def inspected(hub: Hub, name: str) -> Any:
    (found,) = json.loads(docker("inspect", *containers(hub, name)))
    return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hubs.prepared(tmp_path_factory.mktemp("hub"), SETTINGS) as made:
        seats.offer_another(made)
        made.up()
        yield made


@pytest.fixture
def seat(hub: Hub, tmp_path: Path) -> Iterator[Callable[[str], Seat]]:
    """Sit somebody down at a browser of their own; where the test fails, a picture of each page stays."""
    taken: list[Seat] = []
    with contextlib.ExitStack() as stack:

        def sit(name: str) -> Seat:
            one = Seat(stack.enter_context(chromium.opened(tmp_path / f"profile-{name}", "1200,850")), hub, name)
            taken.append(one)
            return one

        try:
            yield sit
        finally:
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            for one in taken:
                one.page.save_screenshot(str(ARTIFACTS / f"{one.name}.png"))


def is_run(one: Seat, lab: str) -> bool:
    """Whether a student's notebook, as it is kept, has run from its first cell to its last, and shows what came out."""
    status, text = one.fetch("GET", f"{one.base}api/contents/labs/notebooks/{lab}.ipynb")
    assert status == 200, text
    cells = [cell for cell in json.loads(text)["content"]["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return bool(outputs) and all(cell["execution_count"] for cell in cells)


def test_two_students_run_a_lab_keep_their_files_and_see_only_their_own(hub: Hub, seat: Callable[[str], Seat]) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    ada, grace = seat("ada"), seat("grace")
    ada.open("/hub/login")
    assert "PyTorch labs" in ada.see("h1").text
    ada.page.save_screenshot(str(ARTIFACTS / "login.png"))
    for one in (ada, grace):
        one.log_in(hub.secret())
        one.see("#spawn_form")
        one.page.save_screenshot(str(ARTIFACTS / "choice.png"))
        one.choose("cpu")
    for one, lab in ((ada, "01_tensors"), (grace, "02_autograd")):
        one.in_lab()
        one.see(xpath="//li[contains(@class, 'lm-TabBar-tab')]//*[text()='01_tensors.ipynb']")
        one.open_notebook(f"labs/notebooks/{lab}.ipynb")
        one.menu("Run", "Run All Cells")
    for one, lab in ((ada, "01_tensors"), (grace, "02_autograd")):
        kernel = one.kernel(f"labs/notebooks/{lab}.ipynb")
        assert one.run(kernel, "print('done')") == "done\n"  # after all cells, which it was given before
        one.see(xpath="//*[@id='jp-main-statusbar']//*[contains(text(), '| Idle')]")
        one.save_notebook()
        assert is_run(one, lab)
        written = {"type": "file", "format": "text", "content": f"{one.name} was here"}
        assert one.fetch("PUT", f"{one.base}api/contents/mine.txt", written)[0] == 201
    grace.see_plot()
    grace.page.save_screenshot(str(ARTIFACTS / "plot.png"))
    before = {one.name: containers(hub, one.name) for one in (ada, grace)}
    # What is the other's is closed, by the other's own server.
    assert ada.fetch("GET", f"{grace.base}api/contents/mine.txt")[0] == 403
    assert grace.fetch("GET", f"{ada.base}api/contents/mine.txt")[0] == 403

    for one in (ada, grace):
        one.stop_server()
        until(lambda one=one: not containers(hub, one.name))
        one.start_server()
        one.choose("cpu")
    for one, lab in ((ada, "01_tensors"), (grace, "02_autograd")):
        one.in_lab()
        assert containers(hub, one.name) != before[one.name]
        status, text = one.fetch("GET", f"{one.base}api/contents/mine.txt")
        assert (status, json.loads(text)["content"]) == (200, f"{one.name} was here")
        assert is_run(one, lab)


def test_the_walls_around_a_student_hold(hub: Hub, seat: Callable[[str], Seat]) -> None:
    """As the student's own Python sees them, and as the engine says."""
    linus = seat("linus")
    linus.log_in(hub.secret())
    linus.choose("cpu")
    linus.in_lab()
    kernel = json.loads(linus.fetch("POST", f"{linus.base}api/kernels", {"name": "python3"})[1])["id"]
    look = json.loads(linus.run(kernel, LOOK))
    assert look == {
        "uid": [1000, 1000, 1000], "capabilities": True, "no new privileges": "1", "seccomp": "2",
        "memory": str(1024 * MIB), "cpu": "50000 100000", "pids": "4096", "shm": 256 * MIB,
        "writable": ["/home/student", "/home/student/work", "/tmp"], "engine's socket": False,
    }  # fmt: skip
    # They are walls, and no numbers: what is too much ends, and the server goes on.
    code = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', {!r}]).returncode)"
    assert linus.run(kernel, code.format("b'x' * (1500 << 20)")).strip() == "-9"
    full = "open('/dev/shm/x', 'wb').write(b'x' * (300 << 20))"
    assert "No space left" in linus.run(kernel, full)
    assert linus.run(kernel, "import os; os.unlink('/dev/shm/x'); print(1)").strip() == "1"

    found = inspected(hub, "linus")
    host = found["HostConfig"]
    assert found["Config"]["User"] == "1000:1000"
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"]
    assert "no-new-privileges" in host["SecurityOpt"][0]
    assert host["ReadonlyRootfs"] and host["Init"]
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (1024 * MIB, 1024 * MIB, 256 * MIB)
    assert host["CpuQuota"] * 2 == host["CpuPeriod"] and host["PidsLimit"] == 4096
    assert host["DeviceRequests"] is None and not host["Devices"]
    ports = [one for many in found["NetworkSettings"]["Ports"].values() for one in many or []]
    assert {one["HostIp"] for one in ports} == {"127.0.0.1"}
    assert [one["Destination"] for one in found["Mounts"] if one["Type"] != "tmpfs" and one["RW"]] == [
        "/home/student/work"
    ]


def test_a_third_asks_for_another_image_and_is_refused(hub: Hub) -> None:
    mallory = Student(hub, "mallory")
    assert mallory.is_in
    there = f"There is: cpu, {seats.ANOTHER}."
    identity = docker("image", "inspect", "--format", "{{.Id}}", "labrig/cpu")
    wanted: list[Any] = ["python:3.12", identity, "cuda", "", ["cpu"], {"cpu": 1}, 7, None, "x" * 4000, "<b>"]
    for asked in wanted:
        status, text = rest(mallory, "POST", "users/mallory/server", {"user_options": {"image": asked}})
        assert (status, json.loads(text)["message"].endswith(there)) == (400, True), text
    status, text = rest(mallory, "POST", "users/mallory/server", {"user_options": {"mem_limit": "64G"}})
    assert (status, "mem_limit" in text) == (400, True)
    forged = {"image": "python:3.12"}
    for path, form in (("hub/spawn/mallory", forged), ("hub/spawn/mallory?image=python:3.12", None)):
        status, _, page = mallory.ask(path, form)
        assert status == 400
        assert f"There is no image &#39;python:3.12&#39; here. {there}" in page
        assert 'name="image"' in page, "and the choice is shown again"
    assert not containers(hub, "mallory")
    started(mallory)  # what was refused is not remembered
    assert inspected(hub, "mallory")["Image"] == identity
    # And nobody starts another's server.
    assert rest(mallory, "POST", "users/ada/server")[0] in (403, 404)


REACH = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close(); print("open")
    except OSError:
        print("closed")
"""


def test_students_reach_the_hub_and_neither_each_other_nor_other_containers(hub: Hub) -> None:
    for name in ("barbara", "edsger"):
        started(Student(hub, name), image="cpu")
    (barbara,), (edsger,) = containers(hub, "barbara"), containers(hub, "edsger")
    network = inspected(hub, "edsger")["NetworkSettings"]
    (own,) = network["Networks"].values()
    api = next(line for line in inspected(hub, "barbara")["Config"]["Env"] if line.startswith("JUPYTERHUB_API_URL="))
    at_hub = api.partition("://")[2].partition("/")[0]
    published = network["Ports"]["8888/tcp"][0]["HostPort"]
    image = docker("inspect", "--format", "{{.Image}}", barbara)
    other = docker("run", "--detach", "--rm", "--label=labrig-proof", image, "python", "-m", "http.server", "8888")
    try:
        elsewhere = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", other) + ":8888"
        places = [f"{own['IPAddress']}:8888", elsewhere, f"{own['Gateway']}:{published}", at_hub]
        reach = ["python3", "-c", REACH, *places[:2], f"127.0.0.1:{published}", at_hub]

        def all_open() -> bool:
            done = subprocess.run(reach, capture_output=True, text=True, timeout=60)
            return done.stdout.split() == ["open"] * 4

        until(all_open)  # each of them is there: this machine reaches it
        found = docker("exec", barbara, "python", "-c", REACH, *places).split()
        assert found == ["closed", "closed", "closed", "open"]
        assert docker("exec", edsger, "python", "-c", REACH, f"{own['IPAddress']}:8888").split() == ["open"]
    finally:
        docker("kill", other)


def test_the_hub_is_killed_and_students_work_on(hub: Hub, seat: Callable[[str], Seat]) -> None:
    ada, grace = seat("ada"), seat("grace")
    kernels = {}
    for one in (ada, grace):
        one.log_in(hub.secret())
        if "/hub/spawn" in one.page.current_url:
            one.choose("cpu")
        one.in_lab()
        kernels[one.name] = json.loads(one.fetch("POST", f"{one.base}api/kernels", {"name": "python3"})[1])["id"]
        one.run(kernels[one.name], f"kept = '{one.name}'; count = 0")
    before, process = containers(hub), hub.process("hub")
    os.kill(process, signal.SIGKILL)
    times = 0
    while hub.process("hub") == process or Student(hub, "nobody", "").answer[0] >= 500 or times < 3:
        times += 1
        for one in (ada, grace):
            said = one.run(kernels[one.name], "count += 1; print(kept, count)").split()
            assert said == [one.name, str(times)]
        assert times < 300
    assert containers(hub) == before
    for one in (ada, grace):
        assert one.fetch("GET", f"{one.base}api/kernels/{kernels[one.name]}")[0] == 200
        one.open("/hub/home")  # the hub knows them, and their servers
        assert one.see("#start").text.strip() == "My Server"
    ada.stop_server()
    until(lambda: not containers(hub, "ada"))
    assert containers(hub, "grace")


def test_no_secret_is_where_somebody_could_read_it(hub: Hub) -> None:
    """Not in a log, a rendered file, a command line, nor in what the engine tells but of a student's own container."""
    hopper = Student(hub, "hopper")
    started(hopper, image="cpu")
    box = inspected(hub, "hopper")
    own = [line for line in box["Config"]["Env"] if line.startswith(("JUPYTERHUB_API_TOKEN=", "JPY_API_TOKEN="))]
    token = own[0].partition("=")[2]
    kept = {name: (hub.place / name).read_text().strip() for name in ("password", "proxy-token", "cookie-secret")}
    secrets = {**kept, "the student's token": token}
    assert all(len(one) >= 12 for one in secrets.values())
    files = [file for file in hub.place.rglob("*") if file.is_file() and file.name not in kept]
    assert {"log", "jupyterhub_config.py", "jupyterhub.sqlite"} <= {file.name for file in files}
    lines = command_lines()
    assert any(b"configurable-http-proxy" in line for line in lines)
    told = {one: docker("inspect", one) for one in containers(hub)}
    for name, value in secrets.items():
        found = [str(file) for file in files if value.encode() in file.read_bytes()]
        assert not found, (name, found)
        assert not [line for line in lines if value.encode() in line], name
        assert [one for one, text in told.items() if value in text] == ([box["Id"]] if value == token else []), name
    for name in kept:
        assert (hub.place / name).stat().st_mode & 0o077 == 0, name


def command_lines() -> list[bytes]:
    """Of all processes; one may end meanwhile."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(place.read_bytes())
    return found


def test_a_server_that_nobody_uses_is_stopped_and_its_files_stay(tmp_path: Path) -> None:
    with hubs.serve(tmp_path, "[student]\nidle = 1\n") as made:
        ada = Student(made, "ada")
        started(ada)
        (box,) = containers(made, "ada")
        docker("exec", box, "sh", "-c", f"echo hers > {image.WORK}/mine.txt")
        until(lambda: not containers(made, "ada"), 240)  # a minute of nothing, looked for each half
        until(lambda: not servers(ada))
        started(ada)
        (again,) = containers(made, "ada")
        assert again != box
        assert docker("exec", again, "cat", f"{image.WORK}/mine.txt") == "hers"
