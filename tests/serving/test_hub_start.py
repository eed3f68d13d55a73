"""A hub is brought up, found again, killed, brought back, and ended: the real hub, proxy and engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubs
import pytest
import seats
from hubs import Hub, Student

from labrig import daemon, image
from labrig.serving import hub as serving
from labrig.serving import inside, proofs

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What something gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.2)
    return found


def lives(number: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False


def processes(hub: Hub) -> dict[int, str]:
    """Every process that has this hub's folder, or its address as a service has it, in its environment."""
    with contextlib.suppress(FileNotFoundError):
        note = json.loads((hub.place / "hub.json").read_text())
        hub.places.add(f"{note['hub_address']}:{note['hub_port']}")
    marks = [f"LABRIG_CACHE={hub.cache}\0", *(f"JUPYTERHUB_API_URL=http://{one}/hub/api\0" for one in hub.places)]
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            has = (folder / "environ").read_bytes().decode(errors="replace") + "\0"
            if any(mark in has for mark in marks) and lives(int(folder.name)):
                found[int(folder.name)] = command
    return found


def seen(student: Student) -> int:
    """The status of the student's own JupyterLab, asked through the proxy."""
    status, url, _ = student.ask(f"user/{student.name}/api/status")
    return status if f"/user/{student.name}/api/status" in url and "/hub/" not in url else 0


def seated(hub: Hub, name: str) -> Student:
    """Somebody whose server runs."""
    one = Student(hub, name)
    until(lambda: (one.ask(f"user/{name}/lab"), seen(one))[1] == 200, hubs.PATIENCE)
    return one


def engine_has(hub: Hub) -> list[str]:
    """What of this hub's is in the engine, volumes left out."""
    said = []
    for kind in (["container", "ls", "--all"], ["network", "ls"]):
        done = subprocess.run(
            ["docker", *kind, "--quiet", f"--filter=name=labrig-hub-{hubs.mark(hub)}"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        said += done.stdout.split()
    return said


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hubs.serve(tmp_path_factory.mktemp("hub"), '[login]\nadmins = ["teacher"]\n') as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Hub]:
    """A checkout in which a hub can be started."""
    with hubs.prepared(tmp_path) as made:
        yield made


def test_it_says_where_it_is_and_where_the_passwords_lie_and_what_a_shared_one_means(hub: Hub) -> None:
    hub.invoke("serve", "--down")
    done = hub.up()
    assert done.stdout == f"{hub.url}\n"
    assert f"the students' password is in {hub.place}/password" in done.stderr
    assert f"the admins' password is in {hub.place}/admin-password" in done.stderr
    assert "one password for all" in done.stderr
    again = hub.up()
    assert again.stdout == done.stdout and again.stderr == "the hub is running already\n"


def test_nothing_of_it_is_anybody_elses_to_read(hub: Hub) -> None:
    seated(hub, "ada")
    assert hub.place.stat().st_mode & 0o777 == 0o700
    for file in hub.place.rglob("*"):
        assert file.stat().st_size == 0 or file.stat().st_mode & 0o077 == 0, file  # locks are empty


def test_the_passwords_let_in_and_nothing_else_does(hub: Hub) -> None:
    password, admin = hub.secret(), hub.secret("admin-password")
    assert len(password) >= 12 and len(admin) >= 32
    assert Student(hub, "grace").is_in
    for name, wrong in (("grace", "wrong-password"), ("grace", ""), ("grace", admin), ("teacher", password)):
        assert not Student(hub, name, wrong).is_in, (name, wrong)
    teacher = Student(hub, "teacher", admin)
    assert teacher.ask("hub/admin")[0] == 200
    assert Student(hub, "grace").ask("hub/admin")[0] == 403
    for name in ("../grace", "a b", "-x", "x" * 70):
        assert not Student(hub, name, password).is_in, name


def test_status_says_that_the_engines_disk_is_full(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(hub.cache))
    monkeypatch.setattr(proofs, "ENGINE_ROOM", 1 << 60)  # more than any disk has
    with daemon.connect() as client:
        folder = client.info()["DockerRootDir"]
    [line] = serving.status().full
    assert line.startswith(f"{folder}: ") and line.endswith(f" {1 << 40} MiB needed")


def test_status_names_the_servers_and_no_secret_is_anywhere(hub: Hub) -> None:
    ada = seated(hub, "ada")
    ada.ask("hub/token")
    said = hub.status()
    assert (said["state"], said["url"], said["why"], said["engine"]) == ("running", hub.url, "", "")
    [server] = [one for one in said["servers"] if one["user"] == "ada"]
    assert server["target"] == "cpu"
    assert len(server["since"]) == len(said["since"]) and server["since"].endswith("+00:00")
    person = hub.invoke("serve", "--status").stdout
    assert person.startswith(f"hub: running {hub.url}") and "ada" in person

    known = {name: hub.secret(name) for name in ("password", "admin-password", "proxy-token", "cookie-secret")}
    # A session's number opens nothing without the signed cookies beside it; JupyterLab's own log has it.
    known |= {one.name: str(one.value) for one in ada.cookies if one.name != "jupyterhub-session-id"}
    assert any(name.startswith("jupyterhub-user-ada") for name in known), known.keys()
    inside = subprocess.run(
        ["docker", "exec", server["container"], "printenv", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_SERVICE_PREFIX"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.split()  # fmt: skip
    known["JUPYTERHUB_API_TOKEN"] = inside[0]
    shown = {file.name: file.read_text() for file in (hub.place / "jupyterhub_config.py", hub.place / "hub.json")}
    shown |= {"log": hub.log(), "logs": hub.invoke("serve", "--logs").stdout, "status": json.dumps(said)}
    shown |= {str(number): command for number, command in processes(hub).items()}
    assert len(processes(hub)) >= 4, "keeper, proxy, hub, culler"
    container = subprocess.run(["docker", "logs", server["container"]], capture_output=True, text=True, timeout=60)
    shown["container"] = container.stdout + container.stderr
    assert len(shown["log"]) > 1000 and len(shown["container"]) > 100
    for name, secret in known.items():
        assert len(secret) > 8, name
        assert not [place for place, text in shown.items() if secret in text], name
    assert not re.search(r"token=(?!\[secret\])\w", hub.log())


def test_a_killed_hub_comes_back_and_leaves_no_second_culler(hub: Hub) -> None:
    ada = seated(hub, "ada")
    proxy, before = hub.process("proxy"), hub.process("hub")
    os.kill(before, signal.SIGKILL)
    assert seen(ada) == 200, "through the proxy, which goes on"
    until(lambda: hub.process("hub") != before and Student(hub, "ada").is_in)
    assert hub.process("proxy") == proxy
    assert seen(ada) == 200
    assert [one["user"] for one in hub.status()["servers"]].count("ada") == 1
    until(lambda: sum("--cull-every" in command for command in processes(hub).values()) == 1)


def test_only_the_hubs_user_reaches_what_the_proxy_takes_routes_from(hub: Hub) -> None:
    """The proxy's token goes there, also while the proxy is down: a port could be taken by any account meanwhile."""
    proxy = Path("/proc", str(hub.process("proxy")))
    own = set()
    for one in (proxy / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            own.add(str(one.readlink()))
    rows = [row.split() for name in ("tcp", "tcp6") for row in (proxy / "net" / name).read_text().splitlines()[1:]]
    listening = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
    assert listening == {hub.port}
    assert (hub.place / "proxy-api").is_socket() and (hub.place / "proxy-api").stat().st_mode & 0o077 == 0


def test_a_killed_proxy_comes_back_with_its_routes(hub: Hub) -> None:
    ada = seated(hub, "ada")
    before = hub.process("proxy")
    os.kill(before, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return hub.process("proxy") != before and seen(ada) == 200
        except (urllib.error.URLError, OSError):
            return False

    until(is_back)
    assert hub.status()["state"] == "running"


def test_a_killed_keeper_takes_both_along_and_up_brings_them_back(hub: Hub) -> None:
    ada = seated(hub, "ada")
    keeper, children = int((hub.place / "pid").read_text()), [hub.process("proxy"), hub.process("hub")]
    container = [one for one in hub.status()["servers"] if one["user"] == "ada"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not any(map(lives, children)))
    said = hub.status()
    assert said["state"] == "ended" and [one for one in said["servers"] if one["user"] == "ada"] == container
    hub.up()
    until(lambda: seen(ada) == 200)
    assert [one for one in hub.status()["servers"] if one["user"] == "ada"] == container, "the same container"


def test_who_is_taken_from_the_list_is_put_out_by_the_next_start(hub: Hub) -> None:
    """With a cookie, a token and a server that live; put on it again, they come in again."""
    ada = seated(hub, "ada")
    token = json.loads(seats.rest(ada, "POST", "users/ada/tokens", {})[1])["token"]
    assert seats.rest(ada, "GET", "users/ada")[0] == 200 == by_token(hub, token, "users/ada")
    text = hub.config.read_text()
    try:
        hub.config.write_text(text.replace("[login]\n", '[login]\nusers = ["grace"]\n'))
        start_again(hub)
        until(lambda: "ada" not in [one["user"] for one in hub.status()["servers"]])
        assert seen(ada) == 0
        asked = [("GET", "users/ada"), ("POST", "users/ada/tokens"), ("POST", "users/ada/server")]
        assert {(seats.rest(ada, *one)[0], by_token(hub, token, one[1], one[0])) for one in asked} == {(403, 403)}
        assert ada.ask("hub/spawn/ada")[0] == 403
        assert not Student(hub, "ada").is_in and Student(hub, "grace").is_in
        assert Student(hub, "teacher", hub.secret("admin-password")).ask("hub/admin")[0] == 200
    finally:
        hub.config.write_text(text)
        start_again(hub)
    assert seats.rest(Student(hub, "ada"), "GET", "users/ada")[0] == 200


def start_again(hub: Hub) -> None:
    """As a service is: the hub ends without a word to students' servers, and comes back."""
    keeper, children = int((hub.place / "pid").read_text()), [hub.process("proxy"), hub.process("hub")]
    os.kill(keeper, signal.SIGTERM)
    until(lambda: not any(map(lives, [keeper, *children])))
    hub.up()


def by_token(hub: Hub, token: str, path: str, method: str = "GET") -> int:
    """The status of the REST API's answer to a token alone."""
    request = urllib.request.Request(  # noqa: S310 - an address of ours
        f"{hub.url}hub/api/{path}", headers={"Authorization": f"token {token}"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_other_settings_are_not_taken_by_a_hub_that_runs(hub: Hub) -> None:
    text = hub.config.read_text()
    try:
        hub.config.write_text(f'{text}\n[student]\nmemory = "1G"\n')
        done = hub.invoke("serve", "--hub", f"--config={hub.config}", code=2)
        assert "running already, started with other settings" in done.stderr and "--down" in done.stderr
    finally:
        hub.config.write_text(text)


def leave_half_made(hub: Hub, name: str) -> str:
    """A student's volume as a hub leaves it that is killed while it makes it; gives the volume's name."""
    volume = f"labrig-hub-{hubs.mark(hub)}-{name}"
    one = inside.Choice("cpu", "", "", 0, "labrig/cpu:latest")
    with daemon.connect() as client:

        async def docker(method: str, *words: Any, **more: Any) -> None:
            getattr(client.api, method)(*words, **more)
            if method == "create_container":
                raise ProcessLookupError("killed")

        spawner = SimpleNamespace(
            container_name=volume, volume_binds={volume: {"bind": str(image.WORK)}}, docker=docker, client=client.api,
            user=SimpleNamespace(name=name),
        )  # fmt: skip
        with pytest.raises(ProcessLookupError):
            asyncio.run(inside.make_folder(one, spawner))
    return volume


def test_down_ends_all_and_up_knows_everybody_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    seated(hub, "ada")
    monkeypatch.setenv("LABRIG_CACHE", str(hub.cache))
    volume = leave_half_made(hub, "margaret")
    password = hub.secret()
    [server] = [one for one in hub.status()["servers"] if one["user"] == "ada"]
    written = f"from pathlib import Path; Path('{image.WORK}/mine').write_text('kept')"
    run = ["docker", "exec", server["container"], "python", "-c"]
    subprocess.run([*run, written], check=True, timeout=60)
    done = hub.invoke("serve", "--down")
    assert "ended the hub" in done.stdout and "ada" in done.stdout and "their files stay" in done.stdout
    assert not processes(hub) and not engine_has(hub)
    assert "margaret" not in done.stdout
    subprocess.run(["docker", "volume", "rm", volume], check=True, timeout=60)  # as docs/scale.md has it
    assert hub.status()["state"] == "not started"
    again = hub.invoke("serve", "--down")
    assert again.stdout == "" and again.stderr == "nothing runs here\n"
    hub.up()
    assert hub.secret() == password
    seated(hub, "ada")
    read = subprocess.run([*run, f"print(open('{image.WORK}/mine').read())"], capture_output=True, timeout=60)
    assert read.stdout == b"kept\n"


@pytest.mark.parametrize("name", ["", "lab.test"])
def test_with_a_certificate_all_is_tls_up_to_the_kernel(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a name, each student's server has a host of its own below it, which a DNS would lead here."""
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda host, *words, **more: known("127.0.0.1" if str(host).endswith("lab.test") else host, *words, **more),
    )  # fmt: skip
    through = {"LABRIG_PROXY": "http://svc:g3h31m@proxy.test:3128"}
    with hubs.prepared(tmp_path, hub="subdomains = true" if name else "", tls=True, name=name, **through) as hub:
        told = hub.up().stderr
        assert "without its user and password" in told and "g3h31m" not in told
        said = hub.status()
        assert said["url"] == hub.url == f"https://{name or '127.0.0.1'}:{hub.port}/" and said["state"] == "running"
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{hub.url}hub/login", timeout=30)  # noqa: S310 - of a CA that nobody knows
        ada = Student(hub, "ada")
        seats.started(ada)
        assert seats.run(ada, "print(6 * 7)") == "42\n"
        assert seats.run(ada, "import os; print(os.environ['HTTPS_PROXY'])") == "http://proxy.test:3128\n"
        own = {one.domain for one in ada.cookies if one.name == "jupyterhub-user-ada"}
        assert own == {f"ada.{name}" if name else "127.0.0.1"}
        assert "jupyterhub-session-id" in {one.name for one in ada.cookies}
        # The key of JupyterLab's forms is not secure, and opens nothing by itself.
        assert {one.name for one in ada.cookies if not one.secure} <= {"_xsrf"}


def test_a_hub_that_does_not_stay_is_given_up_with_the_reason(place: Hub) -> None:
    """Its database is damaged while it runs."""
    place.up()
    (place.place / "jupyterhub.sqlite").write_bytes(b"no database" * 1000)
    for extra in ("-wal", "-shm"):
        (place.place / f"jupyterhub.sqlite{extra}").unlink(missing_ok=True)
    os.kill(place.process("hub"), signal.SIGKILL)
    until(lambda: place.status()["state"] == "ended", 120)
    said = place.status()
    assert "the hub ended 5 times within a minute" in said["why"]
    assert not processes(place)
    assert "file is not a database" in place.log()
    done = place.invoke("serve", "--hub", f"--config={place.config}", code=4)
    assert "the hub's database is damaged" in done.stderr and f"mv {place.place}/jupyterhub.sqlite" in done.stderr
    assert not processes(place)


def test_foreground_says_its_log_and_ctrl_c_ends_it(place: Hub) -> None:
    with subprocess.Popen(
        [*hubs.INVOKE, "serve", "--hub", "--foreground", f"--config={place.config}"], cwd=place.checkout,
        env={**os.environ, **place.variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        until(lambda: place.log().count("JupyterHub is now running"))
        until(lambda: place.status()["state"] == "running")
        assert process.poll() is None
        second = ["serve", "--hub", "--foreground", f"--config={place.config}"]
        assert "a hub is running already" in place.invoke(*second, code=2).stderr
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "JupyterHub is now running" in out and place.url in errors
    assert "SIGTERM: ending" in out, "the keeper's last line"
    assert "interrupted" not in errors
    assert "ECONNREFUSED" not in out and "\x1b[" not in out
    assert not processes(place)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 3.0])
def test_ctrl_c_while_it_starts_leaves_nothing(place: Hub, seconds: float) -> None:
    with subprocess.Popen(
        [*hubs.INVOKE, "serve", "--hub", f"--config={place.config}"], cwd=place.checkout,
        env={**os.environ, **place.variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:  # it was up already
        place.invoke("serve", "--down")
    else:
        reached = "labrig: " in errors  # the task; before it, Invoke and Python end in their own ways
        assert process.returncode == 130 or (process.returncode in (1, -2) and not reached), errors
    assert not processes(place) and not engine_has(place)
    assert place.status()["state"] == "not started"


# --- bad input ----------------------------------------------------------------------------------------------------


def refused(hub: Hub, code: int, **variables: str) -> str:
    """What is said, when nothing was started."""
    done = hub.invoke("serve", "--hub", f"--config={hub.config}", code=code, **variables)
    assert "fix:" in done.stderr and not done.stdout
    assert not processes(hub) and not engine_has(hub)
    return done.stderr


def without_proxy(folder: Path) -> str:
    """PATH with every program but the proxy."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).glob("*"):
            if program.name != "configurable-http-proxy" and not (folder / program.name).exists():
                with contextlib.suppress(OSError):
                    (folder / program.name).symlink_to(program)
    return str(folder)


def test_a_port_that_is_taken_is_named_with_a_free_one(place: Hub) -> None:
    with socket.create_server(("127.0.0.1", place.port)):
        said = refused(place, 2)
    assert f"serve.toml, line 2: [hub]: port {place.port} is taken" in said
    free = re.search(r"port (\d+) is free", said)
    assert free and int(free[1]) != place.port


def test_an_address_of_another_machine(place: Hub) -> None:
    place.config.write_text('[hub]\naddress = "192.0.2.77"\nplain = true\n')
    assert "192.0.2.77 is no address of this machine" in refused(place, 2)


def test_no_proxy_program_and_one_that_does_not_run(place: Hub, tmp_path: Path) -> None:
    path = without_proxy(tmp_path / "bin")
    said = refused(place, 3, PATH=path)
    assert "configurable-http-proxy is not installed" in said
    assert "npm install --global configurable-http-proxy" in said
    program = tmp_path / "bin" / "configurable-http-proxy"
    for text, words in (("exit 1", "does not run"), ("echo 5.1.0", "is too old")):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        assert words in refused(place, 3, PATH=path)


def test_an_image_that_was_not_pulled(place: Hub) -> None:
    file = place.checkout / "images" / "published.toml"
    file.write_text(re.sub(r'config = "sha256:\w+"', f'config = "sha256:{"3" * 64}"', file.read_text()))
    said = refused(place, 3)
    assert "its image is not in the engine" in said and "invoke pull --target=cpu" in said


def test_nothing_was_published(place: Hub) -> None:
    (place.checkout / "images" / "published.toml").unlink()
    assert "invoke publish" in refused(place, 3)


def test_a_full_disk(place: Hub) -> None:
    """Before a start, and while the hub runs, which goes on once there is room again."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    place.cache.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place.cache)], check=True, timeout=30)
    fill = place.cache / "fill"
    try:
        for left in (8 << 20, 64 << 10):
            fill.write_bytes(bytes((80 << 20) - left))
            said = refused(place, 4)
            assert "the disk is full" in said and f"{left >> 20} MiB free" in said and "LABRIG_CACHE" in said
        fill.unlink()
        place.up()
        assert place.status()["full"] == [] and "disk" not in place.invoke("serve", "--status").stderr
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        [line] = place.status()["full"]
        assert line.startswith(f"{place.place}: 0 MiB free")
        said = place.invoke("serve", "--status").stderr
        assert "the disk is full" in said and "make room" in said
        Student(place, "ada")
        fill.unlink()
        assert Student(place, "grace").is_in
        assert place.status()["state"] == "running" and place.status()["full"] == []
    finally:
        place.invoke("serve", "--down")
        subprocess.run(["umount", str(place.cache)], check=True, timeout=30)


def test_no_engine(place: Hub, tmp_path: Path) -> None:
    said = refused(place, 3, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert "no Docker engine answers here" in said


def test_an_engine_that_has_gone_is_said_by_status_and_down_ends_the_hub(place: Hub, tmp_path: Path) -> None:
    place.up()
    gone = f"unix://{tmp_path}/none.sock"
    said = json.loads(place.invoke("serve", "--status", "--json", DOCKER_HOST=gone).stdout)
    assert said["state"] == "running" and said["engine"]
    assert "no Docker engine" in place.invoke("serve", "--down", code=3, DOCKER_HOST=gone).stderr
    assert not processes(place)
    assert "ended the hub" in place.invoke("serve", "--down").stdout


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('authenticator = "oauthenticator.github.GitHub"', "line 4: [login]: there is no authenticator oauthenticator"),
        ('authenticator = "jupyterhub.auth.Nobody"', "line 4: [login]: there is no authenticator jupyterhub.auth.No"),
        ('authenticator = "pathlib.Path"', "line 4: [login]: pathlib.Path is no authenticator"),
        ('authenticator = "pam"\n[login.settings]\nservise = "x"', "line 6: [login.settings]: PAMAuthenticator has no"),
        ('authenticator = "pam"\n[login.settings]\nopen_sessions = "maybe"', "line 6: [login.settings]: open_sessions"),
        ('password = "env:LABRIG_NO_SUCH"', "line 4: [login]: the variable LABRIG_NO_SUCH is empty or not set"),
        ('password = "env:LABRIG_SHORT"', "line 4: [login]: the shared password is too short"),
        ('[login.settings]\nuser_password = "geheim-geheim"', "line 5: [login.settings]: user_password is a secret"),
    ],
)
def test_a_login_that_cannot_be(place: Hub, table: str, words: str) -> None:
    place.config.write_text(f"[hub]\nport = {place.port}\n[login]\n{table}\n")
    said = refused(place, 2, LABRIG_SHORT="short")
    assert words in said, said
    assert "geheim" not in said


def test_one_mode_at_a_time(place: Hub) -> None:
    for words in ((), ("--hub", "--down")):
        assert "one of --hub" in place.invoke("serve", *words, code=2).stderr
    assert "invoke serve --hub" in place.invoke("serve", "--logs", code=2).stderr
