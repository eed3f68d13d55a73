"""Containers as the machines of a room: a real sshd each, on 127.0.0.1 at a port of its own.

    with rooms.hosts(4, refused=1, frozen=1) as room:
        inventory = room.write(tmp_path, target="cpu", engine="venv")  # room.toml, and room.known_hosts beside it

What can be had, by the words of ``hosts``:
    count     good machines: Debian 12, python3 with venv, a user `admin` with sudo and one `guest` without
    refused   a port where nobody listens
    frozen    a machine whose processes do not run (docker pause): it accepts connections and says nothing
    garbage   its shell prints nonsense, whatever it is asked
    endless   its shell prints nonsense without end
    freezing  it carries out ``freezes_after`` commands, and freezes in the middle of the next
    clones    machines that have the host key and the machine-id of the first good one
    docker    good machines with a Docker engine of their own; Debian 12's, 20.10
    logical   so many names (ports) for each good machine
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "labrig-base:bookworm"
ENGINE = ("docker.io", "iptables")
START = 90.0  # seconds for a machine to answer, with all others starting at the same time

DOCKERFILE = f"""\
FROM {BASE}
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \\
    openssh-server sudo python3-venv procps iproute2 @MORE@ >/dev/null \\
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
RUN useradd -m -s /bin/bash -p '*' admin && useradd -m -s /bin/bash -p '*' guest \\
    && echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin && mkdir -p /run/sshd \\
    && printf 'MaxStartups 500\\nMaxSessions 500\\nLoginGraceTime 600\\nPrintMotd no\\nUseDNS no\\n' \\
    >/etc/ssh/sshd_config.d/room.conf
RUN printf '%s' @BEGIN@ | base64 -d >/begin && chmod 755 /begin
RUN printf '%s' @SHELL@ | base64 -d >/usr/local/bin/odd-shell && chmod 755 /usr/local/bin/odd-shell
ENTRYPOINT ["/begin"]
"""

# The machine's start: what makes it different from all others of its image.
BEGIN = """\
#!/bin/sh
set -eu
for user in admin guest; do
    install -d -m 700 -o $user -g $user /home/$user/.ssh
    echo "$AUTHORIZED" >/home/$user/.ssh/authorized_keys
    chown $user:$user /home/$user/.ssh/authorized_keys
done
if [ -n "${PASSWORD:-}" ]; then
    echo "admin:$PASSWORD" | chpasswd
fi
unset PASSWORD
if [ -n "${HOST_KEY:-}" ]; then
    (umask 077; printf '%s' "$HOST_KEY" | base64 -d >/etc/ssh/ssh_host_ed25519_key)
    ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key >/etc/ssh/ssh_host_ed25519_key.pub
else
    ssh-keygen -q -A
fi
echo "${MACHINE_ID:-$(tr -d - </proc/sys/kernel/random/uuid)}" >/etc/machine-id
if [ -n "${ODD:-}" ]; then
    echo "$ODD" >/etc/odd
    usermod -s /usr/local/bin/odd-shell admin
fi
if [ -n "${ENGINE:-}" ]; then
    usermod -aG docker admin
    # A bridge of its own: with --bridge=none this engine would take docker0 away from the one outside.
    ip link add "$ENGINE" type bridge
    ip address add "$ENGINE_ADDRESS" dev "$ENGINE"
    ip link set "$ENGINE" up
    setsid dockerd --bridge="$ENGINE" --iptables=false --ip6tables=false --data-root=/images \
        >/var/log/dockerd.log 2>&1 </dev/null &
fi
echo "ListenAddress ${LISTEN:-0.0.0.0:22}" >>/etc/ssh/sshd_config.d/room.conf
exec /usr/sbin/sshd -D -e
"""

# The login shell of a machine that is not well; /etc/odd says how.
SHELL = """\
#!/bin/bash
read -r how after </etc/odd
case $how in
garbage) printf 'Segmentation fault\\n\\033[31m\\000\\377{"schema": "labrig-host/1", "host": [1, 2' ; exit 0 ;;
endless) while :; do printf '%065536d' 0 || exit 1; done ;;
freezing)
    exec 9>>/tmp/odd.lock; flock 9
    ran=$(cat /tmp/odd.ran 2>/dev/null || echo 0); echo $((ran + 1)) >/tmp/odd.ran
    exec 9>&-
    if [ "$ran" -ge "$after" ]; then
        /bin/bash "$@" <&0 & sleep 0.2
        sudo -n sh -c "kill -STOP $!; pkill -STOP -x sshd"
        exec sleep infinity
    fi ;;
esac
exec /bin/bash "$@"
"""


@dataclass(frozen=True)
class Host:
    """A machine: where ssh reaches it. ``container`` is empty where there is none (refused)."""

    name: str
    kind: str  # good, refused, frozen, garbage, endless, freezing, clone, docker
    port: int
    container: str = ""
    keys: tuple[str, ...] = ()  # of known_hosts: "[127.0.0.1]:2222 ssh-ed25519 AAAA..."
    address: str = "127.0.0.1"

    def sh(self, script: str, *, user: str = "root", timeout: float = 120) -> str:
        """Run a script inside, past ssh, and give what it printed; it has to end well."""
        command = ["docker", "exec", "-i", "--user", user, self.container, "sh", "-eu"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {script}: {done.stdout}{done.stderr}"
        return done.stdout

    def freeze(self) -> None:
        _docker("pause", self.container)

    def thaw(self) -> None:
        _docker("unpause", self.container)


@dataclass
class Room:
    """Machines that run, and the key that opens them."""

    folder: Path
    key: Path
    hosts: list[Host] = field(default_factory=list)

    def of(self, kind: str) -> list[Host]:
        return [host for host in self.hosts if host.kind == kind]

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def write(
        self,
        folder: Path,
        hosts: Sequence[Host] | None = None,
        *,
        name: str = "room",
        keys: bool = True,
        each: dict[str, dict[str, Any]] | None = None,
        **shared: Any,
    ) -> Path:
        """Write NAME.toml and, with ``keys``, NAME.known_hosts into a folder.

        ``shared`` are the keys of [room] (user and key have values of their own here), ``each`` those of a host, by
        its name.
        """
        chosen = self.hosts if hosts is None else hosts
        lines = ["[room]"]
        keys_of_all = {"user": "admin", "key": self.key, **shared}  # None leaves one out
        lines += [f"{key} = {_toml(value)}" for key, value in keys_of_all.items() if value is not None]
        for host in chosen:
            own = {"name": host.name, "address": host.address, "port": host.port, **(each or {}).get(host.name, {})}
            lines += ["", "[[host]]", *(f"{key} = {_toml(value)}" for key, value in own.items())]
        path = folder / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        if keys:
            known = "".join(f"{line}\n" for host in chosen for line in host.keys)
            path.with_suffix(".known_hosts").write_text(known)
        return path


def _toml(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)  # what JSON and TOML write alike


def image(*more: str) -> str:
    """The machines' image with more packages of Debian's: made once, named by what it is made from."""
    text = DOCKERFILE.replace("@MORE@", " ".join(more))
    for mark, script in (("@BEGIN@", BEGIN), ("@SHELL@", SHELL)):
        text = text.replace(mark, base64.b64encode(script.encode()).decode())
    name = f"labrig-test-host:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not _is_there(name):
        if not _is_there(BASE):
            command = [sys.executable, "-m", "invoke", "base", "--target=cpu"]
            subprocess.run(command, cwd=ROOT, check=True, timeout=900, stdout=subprocess.DEVNULL)
        done = subprocess.run(
            ["docker", "build", "--tag", name, "-"], input=text, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return name


def _is_there(name: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, timeout=60).returncode == 0


@contextmanager
def hosts(
    count: int = 1,
    *,
    refused: int = 0,
    frozen: int = 0,
    garbage: int = 0,
    endless: int = 0,
    freezing: int = 0,
    clones: int = 0,
    docker: int = 0,
    logical: int = 1,
    freezes_after: int = 1,
    password: str = "",
    packages: Sequence[str] = (),
    memory: str = "",
) -> Iterator[Room]:
    """Start machines, wait until every sshd answers, and remove them all at the end; the words are explained above.

    ``password`` is set for `admin`. ``memory`` puts each engine's images into so much of it ("2g") instead of a volume.
    """
    folder = Path(tempfile.mkdtemp(prefix="labrig-room-"))
    prefix = f"labrig-room-{os.getpid()}-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        room = Room(folder, new_key(folder / "key"))
        started: list[str] = []
        bridges: list[str] = []
        stack.callback(_remove_bridges, bridges, packages)
        stack.callback(_remove, started)
        made: list[Host] = []

        def start(name: str, kind: str, *, names: int = 1, image_: str, **settings: str) -> None:
            container = f"{prefix}-{name}"
            started.append(container)
            command = ["run", "--detach", "--init", "--name", container, "--hostname", name, "--label", "labrig-room"]
            ports = [free_port()] if kind == "docker" else []
            if kind == "docker":
                bridge = f"lr{secrets.token_hex(5)}"
                bridges.append(bridge)
                subnet = f"10.214.{secrets.randbelow(256)}.1/24"
                settings |= {"LISTEN": f"127.0.0.1:{ports[0]}", "ENGINE": bridge, "ENGINE_ADDRESS": subnet}
                where = ["--tmpfs", f"/images:exec,size={memory}"] if memory else ["--volume", "/images"]
                # On the host's network it reaches what listens at 127.0.0.1, as a registry of a test does.
                command = [one for one in command if one not in ("--hostname", name)]
                command += ["--privileged", "--network=host", *where]
            else:
                command += ["--publish", "127.0.0.1::22"] * names  # the engine finds free ports
            settings = {
                "AUTHORIZED": room.key.with_suffix(".pub").read_text().strip(),
                "PASSWORD": password,
                **settings,
            }
            environment = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
            _docker(*command, *environment, image_)
            if kind != "docker":
                said = _docker("port", container, "22/tcp").split()
                ports = [int(place.rpartition(":")[2]) for place in said]
            for number, port in enumerate(ports):
                made.append(Host(name if names == 1 else f"{name}n{number:02}", kind, port, container))

        plain = image(*packages) if count + frozen + garbage + endless + freezing + clones else ""
        same: dict[str, str] = {}
        if clones:
            new_key(folder / "host")
            same["HOST_KEY"] = base64.b64encode((folder / "host").read_bytes()).decode()
            same["MACHINE_ID"] = secrets.token_hex(16)
        for number in range(count):
            start(f"pc{number + 1:02}", "good", names=logical, image_=plain, **(same if number == 0 else {}))
        for number in range(clones):
            start(f"clone{number + 1}", "clone", image_=plain, **same)
        for number in range(frozen):
            start(f"frozen{number + 1}", "frozen", image_=plain)
        for kind, many in (("garbage", garbage), ("endless", endless), ("freezing", freezing)):
            for number in range(many):
                start(f"{kind}{number + 1}", kind, image_=plain, ODD=f"{kind} {freezes_after}")
        if docker:
            with_engine = image(*packages, *ENGINE)
            for number in range(docker):
                start(f"docker{number + 1}", "docker", image_=with_engine)
        until = time.monotonic() + START
        keys: dict[str, list[str]] = {}  # by container: all its ports have the same
        for host in made:
            if host.container not in keys:
                keys[host.container] = [line.split(" ", 1)[1] for line in scan(host, until)]
            room.hosts.append(replace(host, keys=tuple(f"{_place(host)} {key}" for key in keys[host.container])))
        for host in room.of("docker"):
            while subprocess.run(
                ["docker", "exec", host.container, "docker", "version"], capture_output=True
            ).returncode:
                assert time.monotonic() < until, host.sh("tail -n 20 /var/log/dockerd.log")
                time.sleep(0.3)
        for number in range(refused):
            closed = stack.enter_context(socket.socket())
            closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
            room.hosts.append(Host(f"refused{number + 1}", "refused", closed.getsockname()[1]))
        for host in room.of("frozen"):
            host.freeze()
        yield room


def _place(host: Host) -> str:
    return f"[{host.address}]:{host.port}"


def scan(host: Host, until: float) -> list[str]:
    """The lines of known_hosts that ssh-keyscan gives: a published port accepts connections before sshd runs."""
    while True:
        done = subprocess.run(
            ["ssh-keyscan", "-T", "5", "-p", str(host.port), host.address], capture_output=True, text=True, timeout=60
        )
        lines = sorted(line for line in done.stdout.splitlines() if line and not line.startswith("#"))
        if lines:
            return lines
        assert time.monotonic() < until, f"{host.name} does not answer: {_logs(host.container)}"
        time.sleep(0.1)


def new_key(path: Path) -> Path:
    """A private key without a passphrase, its public half beside it."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "labrig-room", "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _logs(container: str) -> str:
    done = subprocess.run(["docker", "logs", "--tail", "20", container], capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


def _remove(containers: Sequence[str]) -> None:
    """Away with them, also where they are paused or were never started."""
    for container in containers:
        subprocess.run(["docker", "unpause", container], capture_output=True, timeout=60)
    if containers:
        subprocess.run(["docker", "rm", "--force", "--volumes", *containers], capture_output=True, timeout=180)


def _remove_bridges(bridges: Sequence[str], packages: Sequence[str]) -> None:
    """They are the outer machine's, as its network is what those containers were on."""
    for bridge in bridges:
        command = ["run", "--rm", "--privileged", "--network=host", "--entrypoint=ip"]
        arguments = ["docker", *command, image(*packages, *ENGINE), "link", "delete", bridge]
        subprocess.run(arguments, capture_output=True, timeout=60)
