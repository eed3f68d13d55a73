"""What a student has: JupyterLab in a container or native, started by root and by somebody else, and its ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import certificates
import pytest

from bench import kernel
from labrig import daemon, environment, home, image, server, server_in_docker, server_native
from labrig.engines import Environment
from labrig.errors import HostError
from labrig.host import Gpu, read_host

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
SOMEBODY = 4711  # a user whom neither this machine nor the image knows
FOR_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
WHO = "import os; print(os.getuid(), os.getgid()); open('mine', 'w').write('x')"


@pytest.fixture(scope="module")
def made() -> Environment:
    return environment.build(ROOT, TARGET, "docker")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with everything of this machine's but its servers; no container of this one's is left."""
    place = tmp_path / "cache"
    place.mkdir()
    shutil.copytree(home.layers(), place / "layers", copy_function=os.symlink)  # whoever has another Python adds some
    for folder in (one for one in home.root().iterdir() if one.name not in ("layers", home.servers().name)):
        (place / folder.name).mkdir()  # of its own, for its locks
        for one in folder.glob("[!.]*"):
            (place / folder.name / one.name).symlink_to(one)
    monkeypatch.setenv("LABRIG_CACHE", str(place))
    yield place
    invoke("stop")


def invoke(*arguments: str, who: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*somebody(who), *INVOKE, *arguments], cwd=ROOT, env={**os.environ, **variables}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def give(who: int, *places: Path) -> None:
    """Make folders somebody else's, with all that is in them."""
    for place in places:
        for one in (place, *place.rglob("*")):
            os.chown(one, who, who, follow_symlinks=False)


def somebody(who: int) -> list[str]:
    """What makes a command another user's, who may use the engine, and read this checkout wherever it lies."""
    if not who:
        return []
    group = Path("/var/run/docker.sock").stat().st_gid
    reads = "+dac_read_search"
    ids = [f"--reuid={who}", f"--regid={who}", f"--groups={group}"]
    return ["setpriv", *ids, f"--inh-caps={reads}", f"--ambient-caps={reads}"]


def start(*arguments: str, engine: str = "docker", **options: Any) -> dict[str, Any]:
    done = invoke("start", f"--target={TARGET}", f"--engine={engine}", *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def container() -> Any:
    """What the engine knows of the container of this cache, or None."""
    with daemon.connect() as client:
        found = server_in_docker._find(client, TARGET)
        return found and found.attrs


def status_of(url: str, path: str, **headers: str) -> int:
    with contextlib.closing(HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=20)) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def token_of(url: str) -> str:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["token"][0]


def until(what: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


# --- one that runs ------------------------------------------------------------------------------------------------


def test_started_by_root_it_is_a_students_shut_in_and_answers_to_its_token_only(
    made: Environment, cache: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    done = invoke("start", f"--target={TARGET}", "--engine=docker", f"--folder={work}")
    assert done.returncode == 0, done.stderr
    url = done.stdout.removesuffix("\n")
    token, port = token_of(url), urllib.parse.urlsplit(url).port
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/\?token=[0-9a-f]{{48}}", url)
    assert token not in done.stderr

    assert status_of(url, "/api/status", Authorization=f"token {token}") == 200
    for path in ("/api/status", "/api/contents", "/api/kernels", "/api/terminals"):
        assert status_of(url, path) == 403, path
    assert status_of(url, "/lab") == 302, "to the page that asks for the token"
    assert status_of(url, "/api/status", Authorization=f"token {token[::-1]}") == 403
    assert status_of(url, "/api/status", Authorization=f"token {token}", Host="rebound.example") == 403

    about = container()
    host, config = about["HostConfig"], about["Config"]
    assert (host["ReadonlyRootfs"], host["Privileged"], host["Init"]) == (True, False, True)
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == image.PIDS
    assert host["PortBindings"] == {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    assert token not in json.dumps(about), "neither in a variable nor in a label, nor on its command line"
    assert config["User"] == (f"{image.UID}:{image.GID}" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}")
    note = home.servers() / TARGET
    assert {oct(file.stat().st_mode)[-3:] for file in note.iterdir()} == {"600"}
    assert oct(note.stat().st_mode)[-3:] == oct(home.servers().stat().st_mode)[-3:] == "700"

    assert listening(port) == {"127.0.0.1"}, "on this machine"
    with daemon.connect() as client:
        inside = client.containers.get(about["Id"])
        own = about["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        assert addresses(inside.exec_run("cat /proc/net/tcp /proc/net/tcp6").output.decode(), 8888) == {own}
        for process in inside.top()["Processes"]:
            said = Path(f"/proc/{process[1]}/status").read_text()
            assert re.search(r"CapEff:\t0+\n", said) and re.search(r"CapBnd:\t0+\n", said), said
            assert "NoNewPrivs:\t1" in said
            assert int(re.findall(r"Uid:\t(\d+)", said)[0]) > 0
        for place in ("/opt/labrig/labs/x", "/opt/venv/x", "/x", "/etc/x"):
            assert inside.exec_run(["touch", place], user="0:0").exit_code != 0, f"root itself cannot write {place}"
        assert token not in inside.logs().decode()
        memory = int(client.info()["MemTotal"])
    size = kernel.execute(url, "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize)")
    assert abs(int(size) - memory // 2) < 1 << 20

    seen = kernel.execute(url, WHO).split()
    owner = (work / "mine").stat()
    assert seen == [str(owner.st_uid), str(owner.st_gid)]
    assert owner.st_uid == work.stat().st_uid > 0
    assert kernel.execute(url, "import torch; print(torch.ones(2).sum().item())") == "2.0\n"
    assert f"uid={owner.st_uid}" in in_terminal(url, "id")
    assert (work / "labs" / "01_tensors.py").read_bytes() == (ROOT / "labs" / "01_tensors.py").read_bytes()


def in_terminal(url: str, command: str) -> str:
    """What a terminal of JupyterLab shows of a command, which prints ``uid=``."""
    import websocket

    name = kernel.ask(url, "POST", "/api/terminals")["name"]
    place = f"ws://{urllib.parse.urlsplit(url).netloc}/terminals/websocket/{name}"
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(place, timeout=60, http_no_proxy=["127.0.0.1"])
    header = {"Authorization": f"token {token_of(url)}"}
    with contextlib.closing(
        websocket.create_connection(place, header=header, timeout=60, http_no_proxy=["127.0.0.1"])
    ) as terminal:
        terminal.send(json.dumps(["stdin", f"{command}\r"]))
        shown = ""
        while "uid=" not in shown:
            kind, text = json.loads(terminal.recv())[:2]
            shown += text if kind == "stdout" else ""
        return shown


def listening(port: int) -> set[str]:
    """The addresses of this machine at which something listens on a port."""
    return addresses(Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text(), port)


def addresses(table: str, port: int) -> set[str]:
    """The addresses that listen (state 0A) on a port in the words of proc(5), net/tcp."""
    found = re.findall(rf"^ *\d+: ([0-9A-F]+):{port:04X} [0-9A-F:]+ 0A ", table, re.MULTILINE)
    return {socket.inet_ntoa(bytes.fromhex(one)[::-1]) if len(one) == 8 else one for one in found}


@FOR_ROOT
def test_started_by_somebody_its_files_are_theirs(made: Environment, cache: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "home"
    theirs.mkdir()
    give(SOMEBODY, theirs, cache)
    began = start(who=SOMEBODY, HOME=str(theirs))
    url = began["url"]
    assert kernel.execute(url, WHO).split() == [str(SOMEBODY)] * 2
    kernel.execute(url, "import matplotlib.pyplot as p, pathlib; p.plot([1]); p.savefig('a.png')")
    kernel.execute(url, "import pathlib; pathlib.Path.home().joinpath('x').touch()")
    for name in ("", "mine", "a.png", "labs/01_tensors.py", ".labrig-labs.json"):
        assert (theirs / image.FOLDER / name).stat().st_uid == SOMEBODY
    with daemon.connect() as client:
        name = next(one.name for one in client.containers.list(filters={"label": server_in_docker.MARK})
                    if one.name.startswith(f"labrig-{TARGET}-{SOMEBODY}-"))  # fmt: skip
    stopped = invoke("stop", who=SOMEBODY, HOME=str(theirs))
    assert stopped.stdout == f"stopped {TARGET} (docker); the work is in {theirs / image.FOLDER}\n"
    with daemon.connect() as client:
        assert name not in {one.name for one in client.containers.list(all=True, ignore_removed=True)}
    assert (theirs / image.FOLDER / "mine").exists()
    if began["reference"] != made.reference:  # theirs is another Python, which compiled other bytecode
        with daemon.connect() as client:
            image.remove(client, [began["reference"]])
        environment.build(ROOT, TARGET, "docker")  # the latest is this one's again


@FOR_ROOT
def test_native_it_is_a_process_of_whoever_starts_it_and_no_roots(cache: Path, tmp_path: Path) -> None:
    environment.build(ROOT, TARGET, "venv")
    refused = invoke("start", f"--target={TARGET}", "--engine=venv")
    assert refused.returncode == 3
    assert "does not run as root" in refused.stderr and "--engine=docker" in refused.stderr
    theirs = tmp_path / "home"
    theirs.mkdir()
    shutil.rmtree(cache / "servers")
    give(SOMEBODY, theirs, cache)
    mine: dict[str, Any] = {"who": SOMEBODY, "HOME": str(theirs)}
    # What would open it to everybody, if it were heard.
    (theirs / ".jupyter").mkdir()
    (theirs / ".jupyter" / "jupyter_server_config.py").write_text(
        "c.IdentityProvider.token = ''\nc.ServerApp.ip = '0.0.0.0'\n"
    )
    began = start(engine="venv", **mine)
    url, port = began["url"], began["port"]
    assert listening(port) == {"127.0.0.1"}
    assert status_of(url, "/api/contents") == 403
    assert kernel.execute(url, WHO).split() == [str(SOMEBODY)] * 2
    assert (theirs / image.FOLDER / "mine").stat().st_uid == SOMEBODY
    process = int((cache / "servers" / TARGET / "pid").read_text())
    assert token_of(url).encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
    assert start(engine="venv", **mine) == began
    shown = json.loads(invoke("status", "--json", **mine).stdout)
    assert [(one["target"], one["engine"], one["state"], one["url"]) for one in shown] == [
        (TARGET, "venv", "running", url)
    ]
    assert token_of(url) not in invoke("logs", **mine).stdout

    os.kill(process, signal.SIGKILL)
    until(lambda: json.loads(invoke("status", "--json", **mine).stdout)[0]["state"] == server.ENDED)
    again = start(engine="venv", **mine)
    assert again["url"] != url
    stopped = invoke("stop", f"--target={TARGET}", **mine)
    assert stopped.returncode == 0 and stopped.stdout.startswith(f"stopped {TARGET} (venv)")
    assert not list((cache / "servers").glob("[!.]*"))
    assert listening(again["port"]) == set()


@FOR_ROOT
def test_a_native_start_that_is_killed_leaves_a_process_that_the_next_one_ends(cache: Path, tmp_path: Path) -> None:
    environment.build(ROOT, TARGET, "venv")
    theirs = tmp_path / "home"
    theirs.mkdir()
    give(SOMEBODY, theirs, cache)
    command = [*somebody(SOMEBODY), *INVOKE, "start", f"--target={TARGET}", "--engine=venv"]
    variables = {**os.environ, "HOME": str(theirs)}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        assert any("starts on port" in line for line in starting.stderr)
        starting.kill()
    place = cache / "servers" / TARGET
    until(lambda: (place / "pid").exists() and (place / "pid").read_text().endswith("\n"))
    left = Path("/proc", (place / "pid").read_text().strip())
    assert left.exists() and server_native.is_alive(TARGET, place)
    shown = json.loads(invoke("status", "--json", who=SOMEBODY, HOME=str(theirs)).stdout)
    assert [one["state"] for one in shown] == [server.LEFT]
    began = start(engine="venv", who=SOMEBODY, HOME=str(theirs))
    assert not left.exists()
    assert kernel.execute(began["url"], "print(1)") == "1\n"
    assert invoke("stop", who=SOMEBODY, HOME=str(theirs)).returncode == 0


# --- found again, stopped, crashed --------------------------------------------------------------------------------


def test_it_is_found_again_unless_it_is_asked_for_otherwise(made: Environment, cache: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = start(f"--folder={work}")
    assert start() == first == start(f"--folder={work}", f"--port={first['port']}")
    for other in (f"--folder={tmp_path / 'other'}", f"--port={first['port'] + 1}", "--engine=venv"):
        done = invoke("start", f"--target={TARGET}", other)
        assert done.returncode == 2, other
        assert "running already" in done.stderr and f"invoke stop --target={TARGET}" in done.stderr
    assert not (tmp_path / "other").exists()

    table = invoke("status").stdout
    assert f"{TARGET}: {first['url']}\n" in table and server.RUNNING in table
    with subprocess.Popen([*INVOKE, "logs", "--follow"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        assert any("is running at" in line for line in following.stdout), "and goes on"
        assert following.poll() is None
        assert invoke("stop").stdout.startswith(f"stopped {TARGET} (docker)")
        following.stdout.read()
        assert following.wait(timeout=30) == 0
    assert container() is None
    done = invoke("stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing was running\n")
    assert json.loads(invoke("status", "--json").stdout) == []
    assert invoke("logs").returncode == 2
    assert invoke("stop", "--target=nope").returncode == 2


def test_after_a_crash_its_log_is_there_and_it_starts_anew(made: Environment, cache: Path, tmp_path: Path) -> None:
    first = start(f"--folder={tmp_path / 'work'}")
    with daemon.connect() as client:
        client.containers.get(container()["Id"]).kill()
    assert json.loads(invoke("status", "--json").stdout)[0]["state"] == server.ENDED
    assert "is running at" in invoke("logs").stdout
    (tmp_path / "work" / "labs" / "01_tensors.py").write_text("# mine\n")
    done = invoke("start", f"--target={TARGET}", f"--folder={tmp_path / 'work'}")
    assert done.returncode == 0
    assert "had ended; starting it anew" in done.stderr
    assert done.stdout.strip() != first["url"]
    assert (tmp_path / "work" / "labs" / "01_tensors.py").read_text() == "# mine\n"
    assert "kept as edited: labs/01_tensors.py" in invoke("logs").stdout


# --- one that does not come to run --------------------------------------------------------------------------------


def test_a_private_ca_and_a_proxy_are_there_inside(made: Environment, cache: Path, tmp_path: Path) -> None:
    """JupyterLab itself is asked on this machine, past the proxy, which does not exist."""
    authority, _ = certificates.make(tmp_path)
    proxy = "http://u:geheim@192.0.2.1:3128"
    start(f"--folder={tmp_path / 'work'}", LABRIG_CA=str(authority), LABRIG_PROXY=proxy)
    said = subprocess.run(
        ["docker", "exec", container()["Id"], "sh", "-c", 'echo "$HTTPS_PROXY $NO_PROXY"; cat "$SSL_CERT_FILE"'],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert said.startswith(f"{proxy} ") and "127.0.0.1" in said.splitlines()[0]
    assert authority.read_text().strip() in said
    assert "geheim" not in invoke("logs").stdout + invoke("status").stdout


def test_a_port_that_is_taken_is_said_or_passed_over(made: Environment, cache: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", next(server.free_ports()))) as taken:
        port = taken.getsockname()[1]
        done = invoke("start", f"--target={TARGET}", "--engine=docker", f"--port={port}", f"--folder={tmp_path / 'w'}")
        assert done.returncode == 2
        free = int(re.findall(r"--port=(\d+)", done.stderr)[0])
        assert f"port {port} is taken" in done.stderr and free != port
        place = home.servers() / "engine"
        place.mkdir(parents=True)
        (place / "token").write_text("0" * 48)
        folder = tmp_path / "w"
        owner = server_in_docker.prepare(folder)
        assert server_in_docker.launch(TARGET, made, place, ROOT, folder, port, owner) is False, "in the engine's words"
        shutil.rmtree(place)
        assert start(f"--folder={folder}")["port"] != port
    for wrong in ("-1", "65536", "many"):
        assert invoke("start", f"--target={TARGET}", f"--port={wrong}").returncode == 2


@FOR_ROOT
def test_one_that_ends_at_once_is_exit_4_with_its_last_words_and_leaves_nothing(
    made: Environment, cache: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o500)
    os.chown(work, SOMEBODY, SOMEBODY)
    done = invoke("start", f"--target={TARGET}", "--engine=docker", f"--folder={work}")
    assert done.returncode == 4, done.stderr
    assert "ended while it started" in done.stderr
    assert f"the labs cannot be copied into {image.WORK} by user {SOMEBODY}: Permission denied" in done.stderr
    assert container() is None
    assert not list(home.servers().glob("[!.]*"))


def test_a_gpu_that_the_engine_cannot_hand_in_is_exit_3(
    made: Environment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = dataclasses.replace(read_host(), driver="580.65.06", gpus=(Gpu("Test GPU", "8.0"),))
    monkeypatch.setattr(server_in_docker, "read_host", lambda: host)
    for_cuda = dataclasses.replace(made, target=dataclasses.replace(made.target, device="cuda"))
    place = home.servers() / TARGET
    place.mkdir(parents=True)
    (place / "token").write_text("0" * 48)
    owner = server_in_docker.prepare(tmp_path / "work")
    with pytest.raises(HostError, match="GPU") as caught:
        server_in_docker.launch(TARGET, for_cuda, place, ROOT, tmp_path / "work", next(server.free_ports()), owner)
    assert caught.value.code == 3
    assert "NVIDIA Container Toolkit" in caught.value.fix
    asked = container()["HostConfig"]["DeviceRequests"]
    assert [(one["Count"], one["Capabilities"]) for one in asked] == [(-1, [["gpu"]])]
    server_in_docker.stop(TARGET, place)
    assert container() is None


@FOR_ROOT
def test_a_folder_of_roots_with_other_things_in_it_is_left_alone(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "letter").write_text("dear")
    done = invoke("start", f"--target={TARGET}", "--engine=docker", f"--folder={tmp_path / 'work'}")
    assert done.returncode == 2
    assert "belongs to root and is not empty" in done.stderr
    assert (tmp_path / "work").stat().st_uid == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_stopped_leaves_nothing_or_what_the_next_one_removes(
    made: Environment, cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*INVOKE, "start", f"--target={TARGET}", "--engine=docker", f"--folder={tmp_path / 'work'}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as starting:
        assert starting.stderr
        assert any("starts on port" in line for line in starting.stderr)
        os.killpg(starting.pid, number)
        starting.stderr.read()
        code = starting.wait(timeout=60)
    if number == signal.SIGINT:
        assert code == 130
        assert container() is None
        assert not list(home.servers().glob("[!.]*"))
    else:
        left = container()["Id"]
        done = invoke("start", f"--target={TARGET}", "--engine=docker", f"--folder={tmp_path / 'work'}")
        assert done.returncode == 0, done.stderr
        assert container()["Id"] != left
        assert [one["state"] for one in json.loads(invoke("status", "--json").stdout)] == [server.RUNNING]


# --- the same without labrig ----------------------------------------------------------------------------------------


def lines_of(page: Path, heading: str) -> str:
    """The first block to type below a heading."""
    text = page.read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return text.partition("```sh\n")[2].partition("```")[0]


@FOR_ROOT
@pytest.mark.parametrize("heading", ["Docker", "Docker Compose"])
def test_the_lines_to_type_start_it_for_whoever_types_them(made: Environment, tmp_path: Path, heading: str) -> None:
    """In a terminal, by somebody who is not root; Ctrl-C ends it.

    The image has a name of its own here: tests beside this one move the latest.
    """
    theirs = tmp_path / "home"
    theirs.mkdir()
    os.chown(theirs, SOMEBODY, SOMEBODY)
    port = next(server.free_ports())
    lines = lines_of(ROOT / "images" / TARGET / "run.md", heading).replace("127.0.0.1:8888:", f"127.0.0.1:{port}:")
    lines = lines.replace(f" {image.name(made.target)}:latest ", f" {made.reference} ")
    ours, terminal = pty.openpty()
    os.set_blocking(ours, False)
    variables = {**os.environ, "HOME": str(theirs), "LABRIG_PORT": str(port), "LABRIG_IMAGE": made.reference}
    said = b""

    def saying() -> bytes:
        nonlocal said
        with contextlib.suppress(BlockingIOError, OSError):
            said += os.read(ours, 1 << 16)
        return said

    with subprocess.Popen(
        [*somebody(SOMEBODY), "setsid", "--ctty", "sh", "-eu", "-c", lines], cwd=ROOT, env=variables,
        stdin=terminal, stdout=terminal, stderr=terminal,
    ) as typed:  # fmt: skip
        try:
            until(lambda: typed.poll() is not None or re.search(rb"\?token=[0-9a-f]{48}\b", saying()))
            assert typed.poll() is None, said.decode()
            token = re.findall(rb"\?token=([0-9a-f]{48})\b", said)[0].decode()
            url = f"http://127.0.0.1:{port}/?token={token}"
            until(lambda: server.answers(port, token))
            assert kernel.execute(url, WHO).split() == [str(SOMEBODY)] * 2
            assert (theirs / image.FOLDER / "mine").stat().st_uid == SOMEBODY
            caps = kernel.execute(url, "print(open('/proc/self/status').read())")
            assert re.search(r"CapEff:\t0+\n", caps) and "NoNewPrivs:\t1" in caps
            with pytest.raises(RuntimeError, match="Read-only file system"):
                kernel.execute(url, "open('/opt/x', 'w')")
            assert listening(port) == {"127.0.0.1"}
            os.write(ours, b"\x03")
            until(lambda: saying() and typed.poll() is not None)
        finally:
            if typed.poll() is None:
                os.killpg(os.getpgid(typed.pid), signal.SIGKILL)
    os.close(ours)
    os.close(terminal)
    if heading == "Docker Compose":
        subprocess.run(["docker", "compose", "-f", f"images/{TARGET}/compose.yaml", "down"], cwd=ROOT, check=True,
                       capture_output=True, timeout=60)  # fmt: skip


@pytest.mark.parametrize("file", sorted((ROOT / "images").glob("*/compose.yaml")), ids=lambda file: file.parent.name)
def test_compose_reads_what_is_rendered(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["docker", "compose", "-f", str(file), "config", "--format=json"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "HOME": str(tmp_path), "LABRIG_UID": "12", "LABRIG_GID": "34", "LABRIG_PORT": "5678"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    service = json.loads(done.stdout)["services"]["jupyterlab"]
    assert service["user"] == "12:34"
    assert any(one.endswith("uid=12,gid=34") for one in service["tmpfs"])
    assert [(one["host_ip"], one["published"]) for one in service["ports"]] == [("127.0.0.1", "5678")]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["volumes"][0]["source"] == str(tmp_path / image.FOLDER)
    assert ("deploy" in service) == ("cuda" in file.parent.name)
