"""The steps of a plan, carried out on a host that was reached.

System packages and root's folders are changed by pyinfra's operations, with sudo, and only in the steps docker, nvidia,
python and folder. The rest is the user's own files: what differs is known by digest, so it is sent and put in place
without being asked for again. ``applying.json`` is written before the first change in the folder and removed after
``applied.json``, so an apply that was broken off shows.
"""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from labrig import home, wheelhouse
from labrig.engines.venv import requirements_text
from labrig.fleet import FAILED, Connection
from labrig.fleet import wanted as wanting
from labrig.fleet.plan import Plan, Step, note
from labrig.fleet.ssh import Failure
from labrig.stick import is_safe

# Seconds that one operation may take; the host's budget ends it in any case.
PACKAGES, SHORT = 900.0, 60.0
# The part of that budget that a pull or an installation may take, so that the row names what took too long.
LONG = 0.9
RECONNECT = ("docker", "nvidia")  # what changes a user's groups, or the engine, is seen by a new login only
# A shell over ssh on a Mac has neither Homebrew's nor python.org's programs on its PATH.
PATH = 'PATH="$PATH:/opt/homebrew/bin:/usr/local/bin"; export PATH'
# A controller that was killed leaves a pip behind, which goes on: it inherits the lock, and the next one waits for it.
ALONE = (
    "import fcntl, os, sys; held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600); "
    "fcntl.flock(held, fcntl.LOCK_EX); os.set_inheritable(held, True); os.execvp('sh', ['sh', '-c', sys.argv[2]])"
)
# Packages, also where whoever installed some last was killed in it. An apt that goes on, or the machine's own nightly
# one, holds a lock, and is waited for: apt's DPkg::Lock::Timeout is not for its lists, and dpkg has none. What was
# broken off is configured, or unpacked again (apt does that without packages only); nothing is removed for it.
INSTALL_PACKAGES = r"""
set -e
LC_ALL=C DEBIAN_FRONTEND=noninteractive; export LC_ALL DEBIAN_FRONTEND
left=@WAIT@
patiently() {
    until said=$("$@" 2>&1 </dev/null); do
        case $said in
            *"Could not get lock"*|*"locked by another process"*) [ "$left" -gt 0 ] ;;
            *) false ;;
        esac || { printf '%s\n' "$said" >&2; return 1; }
        left=$((left - 2)); sleep 2
    done
}
patiently dpkg --force-confdef --force-confold --configure -a || :
patiently apt-get update -qq
for packages in '' @PACKAGES@; do
    patiently apt-get install -qq --no-install-recommends --no-remove --fix-broken \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $packages
done
"""
LOCKED = 600  # seconds that all locks together are waited for
# docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html, "With apt"
TOOLKIT_KEY = "https://nvidia.github.io/libnvidia-container/gpgkey"
TOOLKIT_LIST = (
    "deb [signed-by=/usr/share/keyrings/nvidia-container-toolkit.asc] "
    "https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH) /"
)


def carry_out(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    """Carry one step out; the step "note" ends an apply.

    Raises:
        Failure: what the host refused, and the command that mends it.
    """
    _STEPS[step.kind](connection, root, plan, step)


def begin(connection: Connection, plan: Plan) -> None:
    """Note on a host that an apply has begun there."""
    begun = {"schema": "labrig-applying/1", "date": _now()}
    connection.send(json.dumps(begun).encode() + b"\n", f"{plan.entry.folder}/applying.json")


def _docker(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    from pyinfra.operations import server

    _install(connection, "docker.io", unless="dockerd")
    commands = ["if [ -d /run/systemd/system ]; then systemctl enable --now docker; fi"]
    if plan.facts.user != "root":
        commands.append(f"usermod -aG docker {shlex.quote(plan.facts.user)}")
    connection.operate(server.shell, commands=commands, sudo=True, timeout=PACKAGES)


def _nvidia(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    from pyinfra.operations import files, server

    _install(connection, "ca-certificates", "curl")  # for the download, and for apt's of the same place
    keyring, listed = "/usr/share/keyrings/nvidia-container-toolkit.asc", "/etc/apt/sources.list.d/nvidia-toolkit.list"
    connection.operate(files.download, src=TOOLKIT_KEY, dest=keyring, mode="644", sudo=True, timeout=SHORT)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[plan.facts.host.arch]
    line = TOOLKIT_LIST.replace("$(ARCH)", architecture)
    connection.operate(files.put, src=io.StringIO(line + "\n"), dest=listed, mode="644", sudo=True, timeout=SHORT)
    _install(connection, "nvidia-container-toolkit")
    # The engine looks for the toolkit when it starts: read anew, its settings alone would not make --gpus known to it.
    commands = ["nvidia-ctk runtime configure --runtime=docker", "systemctl restart docker"]
    connection.operate(server.shell, commands=commands, sudo=True, timeout=PACKAGES)


def _python(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    assert plan.wanted is not None  # noqa: S101 - a plan with steps has it
    minor = plan.wanted.target.python
    _install(connection, f"python{minor}", f"python{minor}-venv")


def _install(connection: Connection, *packages: str, unless: str = "") -> None:
    """Install packages; ``unless``: a program that may be there from elsewhere, and is then left alone."""
    from pyinfra.operations import server

    script = INSTALL_PACKAGES.replace("@WAIT@", str(LOCKED)).replace("@PACKAGES@", shlex.quote(" ".join(packages)))
    if unless:
        script = f"if ! command -v {unless} >/dev/null; then\n{script}\nfi"
    connection.operate(server.shell, commands=[script], sudo=True, timeout=PACKAGES)


def _folder(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    from pyinfra.operations import files

    how = {"user": plan.facts.user} if step.sudo else {}
    connection.operate(files.directory, path=plan.entry.folder, mode="755", **how, sudo=step.sudo, timeout=SHORT)


def _rights(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    """Nobody else writes where labs and programs lie that others run, and everybody reads. What belongs to somebody
    else shows when the host is asked again."""
    script = f"cd {shlex.quote(plan.entry.folder)} && {{ chmod -R u+rwX,go-w,a+rX . 2>/dev/null || :; }}"
    _shell(connection, script, timeout=LONG * connection.budget)


def _image(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    from pyinfra.operations import server

    assert plan.wanted is not None and plan.wanted.image is not None  # noqa: S101 - the engine is docker
    pull, names = shlex.quote(plan.wanted.pull), wanting.names_of(plan.wanted.image)
    identity = shlex.quote(plan.wanted.image.config)
    # An image that only lost its names is there under its id; an engine that keeps images by manifest asks by digest.
    there = f"docker image inspect {pull} >/dev/null 2>&1"
    fetch = f"{there} || docker pull --quiet {pull}"
    commands = [fetch if step.size else f"{there} || docker tag {identity} {shlex.quote(names[0])} || {fetch}"]
    commands += [f"docker tag {pull} {name} 2>/dev/null || docker tag {identity} {name}" for name in names]
    try:
        connection.operate(server.shell, commands=commands, timeout=LONG * connection.budget)
    except Failure as failure:
        if "HTTP response to HTTPS client" in failure.why:  # the engine's words for a registry without TLS
            fix = "invoke cache writes the daemon.json with which that engine takes a cache without TLS"
            raise Failure(FAILED, failure.why, fix) from None
        raise


def _wheels(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    assert plan.wanted is not None  # noqa: S101
    folder = f"{plan.entry.folder}/wheels"
    _shell(connection, f"mkdir -p {shlex.quote(folder)}", timeout=SHORT)
    files = {one.file: wheelhouse.find(one, home.wheels()) for one in plan.wanted.lock.wheels}
    for name in step.names:
        connection.send(files[name], f"{folder}/{name}", timeout=LONG * connection.budget)


def _environment(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    """Install from the wheels that were sent: all of them into a new environment, or some anew into the one there.

    An environment cannot be moved, as its scripts name their interpreter: so it is made where it stays, and until the
    apply has ended it is known as unfinished.
    """
    from pyinfra.operations import server

    assert plan.wanted is not None  # noqa: S101
    folder, wanted = plan.entry.folder, plan.wanted
    place = f"{folder}/envs/{wanted.environment}"
    lines = requirements_text(wanted.lock).splitlines(keepends=True)
    chosen = "".join(line for line in lines if not step.names or line.partition("==")[0] in step.names)
    connection.send(chosen.encode(), f"{folder}/requirements.txt")
    install = (
        f"{place}/bin/python -I -m pip --isolated --disable-pip-version-check --no-cache-dir --no-input install "
        f"--quiet --no-index --no-deps --find-links {folder}/wheels --require-hashes -r {folder}/requirements.txt"
    )
    if step.names:
        install += " --force-reinstall"
    python = f'"$(command -v python{wanted.target.python} || command -v python3)"'
    make = [] if step.names else [f"rm -rf {place}", f"mkdir -p {folder}/envs", f"{python} -m venv {place}"]
    script = "\n".join(["set -e", "umask 022", *make, install])
    locked = f"{python} -I -c {shlex.quote(ALONE)} {folder}/.installing {shlex.quote(script)}"
    connection.operate(server.shell, commands=[f"{PATH}; {locked}"], timeout=LONG * connection.budget)
    # Wheels that are installed would take their space a second time; a repair sends those that it needs.
    _shell(connection, f"rm -rf {folder}/wheels {folder}/requirements.txt", timeout=SHORT)


def _besides(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    """Take packages that the lock has not, and files that no package has, out of an environment."""
    assert plan.wanted is not None  # noqa: S101
    place = f"{plan.entry.folder}/envs/{plan.wanted.environment}"
    script = ["set -e", f"cd {shlex.quote(place)}"]
    if step.names:
        names = " ".join(map(shlex.quote, step.names))
        script.append(
            f"bin/python -I -m pip --isolated --disable-pip-version-check --no-input uninstall -qy -- {names}"
        )
    script += [f"rm -f -- {shlex.quote(name)}" for name in step.gone if _is_below(name, "lib")]
    _shell(connection, "\n".join(script), timeout=LONG * connection.budget)


def _is_below(name: str, folder: str) -> bool:
    """Whether a path that a host named is in that folder of it, whatever else it says."""
    parts = Path(name).parts
    return len(parts) > 1 and parts[0] == folder and ".." not in parts


def _labs(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    """Files come beside the labs and are renamed into them one by one: who copies them meanwhile gets whole ones."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in step.names:
            archive.add(root / "labs" / name, arcname=name, filter=_plain)
    move = (
        'for one; do mkdir -p "../labs/$(dirname "$one")"; [ ! -d "../labs/$one" ] && mv -f "$one" "../labs/$one"; done'
    )
    script = [
        "set -eu",
        "umask 022",
        f"cd {shlex.quote(plan.entry.folder)}",
        "rm -rf .labs-new",
        "mkdir -p .labs-new labs",
        "tar -xof - -C .labs-new",
        "cd .labs-new",
        f"find . -type f -exec sh -c {shlex.quote('set -e; ' + move)} sh {{}} +",
        "cd ..",
        "rm -rf .labs-new",
    ]
    for name in filter(is_safe, step.gone):
        script.append(f"rm -f {shlex.quote('labs/' + name)}")
        script.append(f"rmdir {shlex.quote(str(Path('labs', name).parent))} 2>/dev/null || :")
    _shell(connection, "\n".join(script), stdin=packed.getvalue(), timeout=LONG * connection.budget)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A file without what it says of this machine: owner, time, mode."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _start(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    assert plan.wanted is not None  # noqa: S101
    connection.send(plan.wanted.start.encode(), f"{plan.entry.folder}/start", mode=0o755)


def _note(connection: Connection, root: Path, plan: Plan, step: Step) -> None:
    assert plan.wanted is not None  # noqa: S101
    scaffold = plan.facts.scaffolds.get(plan.wanted.environment, "")
    applied = {**note(plan.wanted), "scaffold": scaffold, "date": _now()}
    connection.send(json.dumps(applied, indent=1).encode() + b"\n", f"{plan.entry.folder}/applied.json")
    _shell(connection, f"rm -f {shlex.quote(plan.entry.folder)}/applying.json", timeout=SHORT)


def _shell(connection: Connection, script: str, *, stdin: bytes = b"", timeout: float) -> None:
    answer = connection.run(script, stdin=stdin, timeout=timeout)
    if answer.code != 0:
        said = (answer.error or answer.out).strip().splitlines()
        raise Failure(FAILED, said[-1][:300] if said else f"a command ended with exit code {answer.code}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_STEPS: dict[str, Callable[[Connection, Path, Plan, Step], None]] = {
    "docker": _docker,
    "nvidia": _nvidia,
    "python": _python,
    "folder": _folder,
    "rights": _rights,
    "image": _image,
    "besides": _besides,
    "wheels": _wheels,
    "environment": _environment,
    "labs": _labs,
    "start": _start,
    "note": _note,
}
