"""The declared checks (labrig.checks) on hosts with a native environment, by testinfra over ssh: `verify --deep`.

It is the suite of `invoke verify`, a second look by other code than the agent's. testinfra asks OpenSSH, through one
connection a host that is made before and ended after; it has no time limit of its own, so ours ends it.
Hosts with Docker are not asked: their image is known by its digest, and none is published that was not verified.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrig import checks, engines, verify
from labrig.engines import Environment, Session
from labrig.errors import HostError, LabrigError
from labrig.fleet import report, ssh
from labrig.fleet.plan import Plan
from labrig.inventory import LOCAL, Entry, Room
from labrig.verify import Record

CONNECT = 20.0  # seconds
GATEWAY = "+gateway"  # no host of a room can have that name


@dataclass(frozen=True)
class Checked:
    """What the checks of a host said: a record, or why there is none. ``why`` is empty where all is well; ``fix`` is
    what mends it, where that is not an apply."""

    record: Record | None
    why: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as `verify --json` prints one, or ``error``."""
        return self.record.to_json() if self.record else {"error": self.why}


def sample(plans: Sequence[Plan], *, everywhere: bool) -> list[Plan]:
    """The native hosts to check: the first of each target and platform, or all. OpenSSH would ask a person for a
    password, so hosts with one are left out, which is said."""
    native = [one for one in plans if one.wanted and one.wanted.engine == "venv"]
    if locked := [one.entry.name for one in native if one.entry.password]:
        print(f"checks: not on hosts with a password, only with keys: {', '.join(locked)[:300]}", file=sys.stderr)
    native = [one for one in native if not one.entry.password]
    first: dict[tuple[str, str], Plan] = {}
    for one in native:
        if one.wanted:
            first.setdefault((one.wanted.target.name, one.wanted.platform), one)
    return native if everywhere else list(first.values())


def run(room: Room, plans: Sequence[Plan], *, budget: float) -> dict[str, Checked]:
    """Check hosts, one after the other, each within ``budget`` seconds. Whatever goes wrong is that host's."""
    found = {}
    for one in plans:
        began = time.monotonic()
        found[one.entry.name] = _check(room, one, budget)
        said = found[one.entry.name]
        words = verify.tally(said.record) if said.record else said.why
        print(f"{one.entry.name}: checks: {words}, in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


def _check(room: Room, plan: Plan, budget: float) -> Checked:
    try:
        with _enter(room, plan) as session:
            record = verify.examine(session, require_device=True, timeout=budget)
    except LabrigError as error:
        why = report.clean(" ".join(filter(None, (error.what, error.found))))
        return Checked(None, f"checks: {why}", error.fix or f"{ssh.command(plan.entry)} shows why")
    wrong = [f"{one.id}: {one.found}" for one in record.checks if one.status == checks.FAILED]
    return Checked(record, f"checks: {report.clean('; '.join(wrong))}" if wrong else "")


@contextlib.contextmanager
def _enter(room: Room, plan: Plan) -> Iterator[Session]:
    """A session in a host's environment for the checks, as engines give one for this machine's."""
    entry, wanted = plan.entry, plan.wanted
    assert wanted is not None  # noqa: S101 - a sample has what it should have
    python = f"{entry.folder}/envs/{wanted.environment}/bin/python"
    environment = Environment(
        wanted.target, "venv", f"{entry.name}:{entry.folder}/envs/{wanted.environment}", wanted.lock
    )
    if entry.address == LOCAL:
        yield Session(environment, _no_run, "local://", python)
        return
    with contextlib.ExitStack() as stack:
        # A socket's path has to be short (sun_path, unix(7)).
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lr", dir="/tmp")))
        config = folder / "config"
        config.write_text(ssh_config(room, entry, folder / "s"), encoding="utf-8")
        stack.enter_context(_connected(config, entry, folder / "s"))
        there = f"/tmp/labrig-{secrets.token_hex(8)}"  # noqa: S108 - made by us, for us alone, or not at all
        _ssh(config, entry, f"umask 077 && mkdir {there} && cat >{there}/probe.py", engines.PROBE.read_bytes())
        stack.callback(_remove, config, entry, there)
        yield Session(
            environment, _no_run, f"ssh://{entry.name}?ssh_config={config}", python, probe=f"{there}/probe.py"
        )


def _no_run(*_: object, **__: object) -> int:
    raise NotImplementedError("the checks run through testinfra")


def ssh_config(room: Room, entry: Entry, socket: Path) -> str:
    """How OpenSSH reaches a host: through one connection, with the room's host keys, also of a machine on the way; of
    ~/.ssh/config with what fleet.ssh takes from it.

    Raises:
        UsageError: a path that cannot be written there.
    """
    lines = [("Host", entry.name), ("ControlPath", ssh.quoted(socket))]
    lines.append(("ProxyJump", GATEWAY if entry.jump else ""))  # it stands before a ProxyCommand, so it counts
    lines += _machine(entry.address, entry.port, entry.user, entry.key, only=True)
    if entry.jump:
        user, address, port = ssh.jump(entry)
        lines += [("Host", GATEWAY), *_machine(address, port, user, entry.key, only=False)]
    lines += [
        ("Host", "*"),
        ("UserKnownHostsFile", ssh.quoted(room.known_hosts.absolute())),
        ("GlobalKnownHostsFile", "none"),
        ("StrictHostKeyChecking", "yes"),
        ("BatchMode", "yes"),
        ("ForwardAgent", "no"),
        ("ForwardX11", "no"),
        ("ConnectTimeout", "10"),
        ("ServerAliveInterval", "2"),
        ("ServerAliveCountMax", "2"),
    ]
    return "".join(f"{key} {value}\n" for key, value in lines if value)


def _machine(address: str, port: int, user: str, key: Path | None, *, only: bool) -> list[tuple[str, str]]:
    """Place, user and keys of a machine. ``only``: a key that it has is the only one to try."""
    own = ssh.configured(address)
    only = only and key is not None
    keys = [key] if key else []
    keys += [] if only else [Path(one) for one in own.get("identityfile", ())]
    if keys and not only:  # OpenSSH tries the usual ones only where none is named
        keys += [one for name in ssh.USUAL if (one := Path.home() / ".ssh" / name).exists()]
    agent = str(own.get("identityagent", ""))
    return [
        ("HostName", own.get("hostname", address)),
        ("Port", str(port if port != ssh.PORT else own.get("port", port))),
        ("User", user or own.get("user", "")),
        *(("IdentityFile", ssh.quoted(one)) for one in keys),
        *(("CertificateFile", ssh.quoted(Path(one))) for one in own.get("certificatefile", ())),
        ("IdentitiesOnly", "yes" if only else ""),
        ("IdentityAgent", ssh.quoted(Path(agent).expanduser()) if agent else ""),
        ("ProxyCommand", _way(own)),
    ]


def _way(own: Mapping[str, Any]) -> str:
    """The way to a machine that ~/.ssh/config says, as a ProxyCommand; its host keys are the user's own there."""
    if "proxycommand" in own:
        return str(own["proxycommand"])
    *before, last = str(own.get("proxyjump", "")).split(",")
    if not last:
        return ""
    words = ["ssh", "-F", str(Path.home() / ".ssh" / "config"), "-o", "BatchMode=yes", "-o", "ForwardAgent=no"]
    words += ["-J", ",".join(before)] if before else []
    return f"{shlex.join([*words, f'ssh://{last}']).replace('%', '%%')} -W '[%h]:%p'"


@contextlib.contextmanager
def _connected(config: Path, entry: Entry, socket: Path) -> Iterator[None]:
    """The connection that all others of a host go through.

    Raises:
        HostError: no ssh here, or it does not get there.
    """
    if not shutil.which("ssh"):
        raise HostError("no ssh on this machine", fix="install openssh-client")
    errors = config.with_name("errors")
    command = ["ssh", "-F", str(config), "-o", "ControlMaster=yes", "-N", entry.name]
    with errors.open("wb") as said:
        master = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        try:
            until = time.monotonic() + CONNECT
            while not socket.exists():
                if master.poll() is not None or time.monotonic() > until:
                    lines = errors.read_text(errors="replace").strip().splitlines()
                    raise HostError(f"ssh does not reach {entry.name}", found=lines[-1] if lines else "no answer")
                time.sleep(0.05)
            yield
        finally:
            master.terminate()
            master.wait()


def _remove(config: Path, entry: Entry, there: str) -> None:
    with contextlib.suppress(HostError):  # it is gone, and its row says so
        _ssh(config, entry, f"rm -rf {there}")


def _ssh(config: Path, entry: Entry, script: str, stdin: bytes = b"") -> str:
    """What a script printed there. Raises HostError."""
    command = ["ssh", "-F", str(config), entry.name, script]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=CONNECT)
    except subprocess.TimeoutExpired:
        raise HostError(f"{entry.name} does not answer", found=f"{CONNECT:g} s") from None
    if done.returncode:
        raise HostError(f"{entry.name} refused", found=done.stderr.decode(errors="replace").strip()[-200:])
    return done.stdout.decode(errors="replace").strip()
