"""Rooms of machines: labrig against ansible-core in one run, many hosts, and what a room costs its registry.

The machines are containers with an sshd each (tests/fleet/rooms.py), so their work and the controller's share one
computer: CPU seconds and ratios say more than wall seconds. What is applied is a lock of tiny wheels and few labs.
"""

from __future__ import annotations

import concurrent.futures
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import publishing
from bench.clock import INVOKE, ROOT, measure, run
from bench.labs import MISSED, limit
from labrig import blobs, daemon, home, inventory, oci, published, registry
from labrig.fleet import cache, mirror
from labrig.progress import megabytes
from labrig.tarball import Writer

ANSIBLE = "ansible-core<2.20"  # the newest for Python 3.11
LAYERS = (20, 9, 3)  # megabytes of noise
CLIENTS = 8
MB = 1_000_000
# Issue 9: what a room must hold. CPU seconds are the controller's, from the start of its Python on.
APPLY_CPU_S, TIMES_LESS, HOST_CPU_MS, CROWD_S, EDIT_MB, HERD = 2, 5, 30, 60, 1, 4
CROWD = 1000
APPLIED = (
    "Each host gets 3 wheels of some kB, one of them a stand-in for torch, and 4 lab files: with a real environment a "
    "probe costs more, on the hosts above all. From the registry: bytes of blobs without manifests, to skopeo."
)


def bench_fleet(runs: int) -> str:
    """All figures, in Markdown. Where a limit is missed the benchmark ends with them."""
    if not (asked := daemon.ask()).version:
        return f"Not measured: {asked.why_not}."
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fleet")]
    limits: list[str] = []
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder:
        place = Path(folder)
        parts = [
            _second_apply(place, runs, limits), _many(place, limits), _crowd(place, limits), _edit(place, limits),
            _herd(place, limits),
        ]  # fmt: skip
    text = "\n\n".join([APPLIED, *parts, "\n".join(["| limit | held | figure |", "|---|---|---|", *limits])])
    if MISSED in text:
        sys.exit(f"{text}\n\na limit was missed; the figures are not kept")
    return text


def _second_apply(place: Path, runs: int, limits: list[str]) -> str:
    """Four hosts that have all they should have, by `invoke provision` and by the exported playbook."""
    import courses
    import rooms

    run(sys.executable, "-m", "venv", place / "ansible")
    run(place / "ansible" / "bin" / "python", "-m", "pip", "install", "--quiet", ANSIBLE)
    playbook = place / "ansible" / "bin" / "ansible-playbook"
    checkout = courses.make(place / "second")
    there = {"LABRIG_CACHE": str(checkout.cache)}
    with rooms.hosts(4) as room:
        file = room.write(place, target="cpu", engine="venv")
        exported = place / "exported"
        run(INVOKE, "ansible", f"--inventory={file}", f"--output={exported}", cwd=checkout.root, **there)

        def labrig() -> None:
            rows = json.loads(run(INVOKE, "provision", f"--inventory={file}", "--json", cwd=checkout.root, **there))
            _require(all(row["state"] == "OK" and not row["changes"] for row in rows), rows)

        def ansible() -> None:
            said = run(playbook, "playbook.yml", cwd=exported)
            _require(said.count("changed=0 ") == 4, said)

        run(playbook, "playbook.yml", cwd=exported)  # brings everything
        own, other = measure({"invoke provision": labrig, "ansible-playbook, the exported playbook": ansible}, runs)
    lines = [
        "| second apply, 4 hosts, nothing to change | wall s, median (min-max) | controller CPU s |",
        "|---|---|---|",
    ]
    for timing in (own, other):
        spread = f"{timing.median:.1f} ({min(timing.wall):.1f}-{max(timing.wall):.1f})"
        lines.append(f"| {timing.name} | {spread} | {statistics.median(timing.cpu):.2f} |")
    mine, theirs = statistics.median(own.cpu), statistics.median(other.cpu)
    lines.append(f"| times less | {other.median / own.median:.1f} | {theirs / mine:.1f} |")
    limits += [
        limit(f"second apply of 4 hosts at most {APPLY_CPU_S} CPU s", mine, APPLY_CPU_S, "s, median"),
        limit(f"at least {TIMES_LESS} times less than ansible-core", theirs / mine, TIMES_LESS, "times", least=True),
    ]
    return "\n".join(lines)


def _many(place: Path, limits: list[str]) -> str:
    """240 hosts, which are names of 12 machines that have everything, each reached and judged by itself."""
    import courses
    import rooms

    checkout = courses.make(place / "many")
    there = {"LABRIG_CACHE": str(checkout.cache)}
    with rooms.hosts(12, logical=20) as room:
        file = room.write(place, name="many", engine="venv", target="cpu")
        first = ",".join(host.name for host in room.hosts if host.name.endswith("n00"))
        run(INVOKE, "provision", f"--inventory={file}", f"--limit={first}", cwd=checkout.root, **there)
        said: list[str] = []
        ask = [INVOKE, "provision", f"--inventory={file}", "--plan", "--budget=180", "--json"]
        (timing,) = measure({"240 hosts": lambda: said.append(run(*ask, cwd=checkout.root, **there))}, 1)
    rows = json.loads(said[0])
    bad = [row for row in rows if row["state"] != "OK"]
    _require(len(rows) == 240 and not bad, bad)
    each = 1000 * timing.cpu[0] / 240
    limits.append(limit(f"240 hosts at most {HOST_CPU_MS} CPU ms each", each, HOST_CPU_MS, "ms"))
    return (
        "| `invoke provision --plan` of 240 hosts on 12 machines, the whole command | |\n|---|---|\n"
        f"| controller CPU a host | {each:.0f} ms |\n| wall | {timing.median:.1f} s |\n| rows lost | 0 |"
    )


def _crowd(place: Path, limits: list[str]) -> str:
    """A thousand hosts whose answers are made up (tests/crowd.py): all that is done with them but ssh."""
    import courses

    checkout = courses.make(place / "crowd")
    shown: list[str] = []
    ask = [sys.executable, ROOT / "tests" / "crowd.py", checkout.root, str(CROWD)]
    there = {"LABRIG_CACHE": str(checkout.cache), "PYTHONPATH": str(ROOT)}
    (timing,) = measure({f"{CROWD} simulated": lambda: shown.append(run(*ask, **there))}, 1)
    _require(int(shown[0]) == CROWD, shown)
    limits.append(limit(f"{CROWD} simulated hosts under {CROWD_S} s", timing.median, CROWD_S, "s of wall"))
    return (
        f"| {CROWD} hosts without ssh, from what they printed to all forms of the report | |\n|---|---|\n"
        f"| CPU | {timing.cpu[0]:.1f} s |\n| wall | {timing.median:.1f} s |\n| rows lost | 0 |"
    )


def _edit(place: Path, limits: list[str]) -> str:
    """What came in at each of eight machines, by the count of its network card, for an edited lab."""
    import courses
    import rooms

    checkout = courses.make(place / "edit")
    there = {"LABRIG_CACHE": str(checkout.cache)}
    with rooms.hosts(CLIENTS) as room:
        file = room.write(place, name="edit", target="cpu", engine="venv")
        run(INVOKE, "provision", f"--inventory={file}", "--json", cwd=checkout.root, **there)
        with (checkout.root / "labs" / "01_one.py").open("a", encoding="utf-8") as lab:
            lab.write("# edited\n")
        received = "cat /sys/class/net/eth0/statistics/rx_bytes"
        before = [int(host.sh(received)) for host in room.hosts]
        rows = json.loads(run(INVOKE, "provision", f"--inventory={file}", "--json", cwd=checkout.root, **there))
        each = [int(host.sh(received)) - was for host, was in zip(room.hosts, before, strict=True)]
    _require(all(row["changes"] for row in rows), rows)
    limits.append(limit(f"an edited lab at most {EDIT_MB} MB a host", max(each) / MB, EDIT_MB, "MB"))
    return (
        f"| a lab was edited, {CLIENTS} hosts | |\n|---|---|\n"
        f"| received by a host, all of ssh included | {max(each) / 1000:.0f} kB at most |"
    )


def _herd(place: Path, limits: list[str]) -> str:
    """Eight clients at once, before and after `invoke warm`: the bytes of blobs that came from the registry."""
    found, cold, warmed = {}, f"{CLIENTS} pulls at once from a cold cache", f"{CLIENTS} pulls at once after it"
    with publishing._cache(place / "home"):
        with _rig(place / "cold") as (upstream, room, image):
            found[cold] = _pull_together(upstream, room, image, place / "1")
        with _rig(place / "warm") as (upstream, room, image):
            said = json.loads(run(sys.executable, "-c", WARM, place / "warm", room.path))
            _require(said["held"] == said["size"], said)
            found["invoke warm itself"] = upstream.sent
            found[warmed] = _pull_together(upstream, room, image, place / "2")
    size = image.size
    limits += [
        limit(f"{CLIENTS} pulls after warm: no blob from the registry", found[warmed], 0, "bytes"),
        limit(f"at least {HERD} times the image without", found[cold] / size, HERD, "times", least=True),
    ]
    lines = [
        f"| an image of {megabytes(size)} through the room's cache | from the registry | times the image |",
        "|---|---|---|",
    ]
    lines += [f"| {what} | {megabytes(sent)} | {sent / size:.1f} |" for what, sent in found.items()]
    return "\n".join(lines)


# In a process of its own, as the task is: what is warm, asked once more.
WARM = """
import json, sys
from pathlib import Path
from labrig import inventory
from labrig.fleet import cache
(warmed,) = cache.warm(Path(sys.argv[1]), Path(sys.argv[2]))
held, size = cache.is_warm(inventory.read(Path(sys.argv[2])), warmed.image)
print(json.dumps({"held": held, "size": size}))
"""


@contextmanager
def _rig(place: Path) -> Iterator[tuple[Any, inventory.Room, published.Entry]]:
    """A registry that counts what it sends, an image in it, and the cache before it, as labrig configures it."""
    import moods
    import registries

    (place / "images").mkdir(parents=True)
    (place / "registry").mkdir()
    (place / "images" / "targets.toml").write_bytes((ROOT / "images" / "targets.toml").read_bytes())
    (place / "templates").symlink_to(ROOT / "templates")
    with moods.serve(place / "registry") as upstream:
        made = oci.assemble("linux_x86_64", [_layer(size) for size in LAYERS], {"User": "1000"}, {}, b'{"bom": 1}')
        reference = registry.push(made, f"{upstream.address}/bench/cpu:1")
        image = published.Entry(
            target="cpu", platform="linux_x86_64", reference=reference, tag="1", image="labrig/cpu:1",
            config=made.config.digest, size=sum(one.size for one in made.layers), torch="", variant="cpu", python="",
            cuda="none", min_driver="none", capabilities=(), lock="", labs=made.layers[-1].diff_id, date="2026-01-01",
            verified="",
        )  # fmt: skip
        published.keep(place / "images", image)
        port = registries.free_pair()
        (place / "room.toml").write_text(
            f'[room]\ncache = "127.0.0.1:{port}"\n[[host]]\nname = "pc"\naddress = "10.0.0.1"\ntarget = "cpu"\n'
        )
        room = inventory.read(place / "room.toml")
        files = mirror.rendered(place, room, f"http://{upstream.address}", storage=str(place / "blobs"))
        (place / "config.yml").write_text(files["config.yml"])
        upstream.sent = 0
        with registries.run(place / "config.yml", port):
            yield upstream, room, image


def _layer(size: int) -> blobs.Layer:
    def write(writer: Writer) -> None:
        content = random.Random(size).randbytes(size * MB)  # noqa: S311 - noise, which does not compress
        writer.start(f"data/{size}", len(content))
        writer.data(content)

    return blobs.make(blobs.key("bench", str(size)), f"of {size} MB", write)


def _pull_together(upstream: Any, room: inventory.Room, image: published.Entry, folder: Path) -> int:
    """Eight clients at once; the bytes of blobs that came from the registry."""
    folder.mkdir()
    before, name = upstream.sent, f"docker://{cache.through(room, image)}"

    def pull(number: int) -> None:
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", name, f"dir:{folder / str(number)}")

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(pull, range(CLIENTS)))
    return int(upstream.sent - before)


def _require(good: bool, found: object) -> None:
    """A figure of something else than was meant is none."""
    if not good:
        sys.exit(f"the benchmark did not do what it measures: {found}")
