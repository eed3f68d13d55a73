"""A program that reaches the hosts of an inventory: gevent changes the process it runs in, so tests start this one.

python reach.py ROOM.toml BUDGET WORK [REACH [SILENCE]]

It prints {"rows": {name: {...}}, "cpu": seconds, "wall": seconds}
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labrig import inventory
from labrig.fleet import Connection, facts, ssh, steps
from labrig.fleet.plan import Plan, Step
from labrig.inventory import Entry


def look(connection: Connection, entry: Entry) -> Any:
    return asdict(facts.parse(connection.probe({"folder": entry.folder})))


def change(connection: Connection, entry: Entry) -> Any:
    """What an apply is made of."""
    from pyinfra.operations import files, server

    connection.send(b"\x00\xff" * 1_500_000, "/tmp/sent file", mode=0o640)
    heard = connection.run("stat -c %a '/tmp/sent file'; sha256sum <'/tmp/sent file'; echo no >&2; exit 3")
    made = [connection.operate(files.directory, path="/opt/labrig", sudo=True, timeout=60) for _ in range(2)]
    try:
        connection.operate(server.shell, commands=["echo because >&2; exit 4"], timeout=60)
        failed: Any = None
    except ssh.Failure as failure:
        failed = [failure.state, failure.why]
    begun = time.monotonic()
    try:
        connection.operate(server.shell, commands=["sleep 100"], timeout=1)
        cut: Any = None
    except ssh.Failure as failure:
        cut = [failure.state, time.monotonic() - begun]
    again = connection.operate(files.directory, path="/opt/labrig", sudo=True, timeout=60)
    fed = connection.run("cat; id -u", stdin=b"in\n", sudo=True)
    return {"heard": asdict(heard), "made": made, "failed": failed, "cut": cut, "again": again, "fed": fed.out}


def become_root(connection: Connection, entry: Entry) -> Any:
    return connection.run("id -u", sudo=True).out


def operate_as_root(connection: Connection, entry: Entry) -> Any:
    from pyinfra.operations import server

    return connection.operate(server.shell, commands=["true"], sudo=True, timeout=20)


def linger(connection: Connection, entry: Entry) -> Any:
    return connection.run("sleep 2; echo rested").out


def stay(connection: Connection, entry: Entry) -> Any:
    return connection.run("sleep 5; echo stayed").out


def stop(connection: Connection, entry: Entry) -> Any:
    """Two of the hosts freeze at work, one waiting for a command and one for an operation."""
    from pyinfra.operations import server

    freeze = "sudo -n pkill -STOP -x sshd; sleep 50"
    if entry.name == "pc02":
        connection.run(freeze)
    elif entry.name == "pc03":
        connection.operate(server.shell, commands=[freeze], timeout=50)
    return stay(connection, entry)


def glance(connection: Connection, entry: Entry) -> Any:
    connection.probe({"folder": entry.folder}, timeout=2)


def stare(connection: Connection, entry: Entry) -> Any:
    connection.probe({"folder": "/tmp/stare", "environments": ["cpu-0"], "torch": True})


def stumble(connection: Connection, entry: Entry) -> Any:
    if entry.name.endswith("1"):
        raise RuntimeError("a bug in the work")
    return connection.run("echo on").out


def equip(connection: Connection, entry: Entry) -> Any:
    """The step "nvidia", with the host's own folder in the place of NVIDIA's, which not every machine reaches."""
    steps.TOOLKIT_KEY, steps.TOOLKIT_LIST = "file:///repository/key", "deb [trusted=yes] file:/repository ./"
    seen = facts.parse(connection.probe({"folder": entry.folder}))
    steps.carry_out(connection, Path(), Plan(entry, seen, None, ()), Step("nvidia", ""))


def main() -> None:
    room = inventory.read(Path(sys.argv[1]))
    work = globals()[sys.argv[3]]
    ssh.become_cooperative()
    used, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    told = []
    if work is look:
        rows: Any = ssh.ask(
            room, room.hosts, lambda entry: {"folder": entry.folder}, budget=float(sys.argv[2]),
            ended=lambda entry, how: told.append(entry.name),
        )  # fmt: skip
    else:
        budget, reach, silence = float(sys.argv[2]), *map(float, (*sys.argv[4:], 0, 0)[:2])
        rows = ssh.each(
            room, room.hosts, work, budget=budget, reach=reach, silence=silence,
            ended=lambda entry, how: told.append(entry.name),
        )  # fmt: skip
    now = resource.getrusage(resource.RUSAGE_SELF)
    assert sorted(told) == sorted(rows)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    rows = {name: {**asdict(how), "state": how.state or "OK"} for name, how in rows.items()}
    print(json.dumps({"rows": rows, "cpu": cpu, "wall": time.monotonic() - begun}))


if __name__ == "__main__":
    main()
