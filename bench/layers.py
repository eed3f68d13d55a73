"""The builder `layers` against the two Dockerfiles that people write, through BuildKit, with the same wheels at hand.

CPU seconds are the whole machine's (BuildKit works in a daemon), so nothing else may run meanwhile. Bytecode is off on
both sides, the base is there on both sides.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.clock import INVOKE, ROOT, Timing, measure, run
from bench.images import TENSOR, target
from labrig import assembly, base, daemon, environment, home, image, lock, wheelhouse
from labrig.engines import Wish, venv

# The wheels are mounted, as in labrig's own Dockerfile; nothing but the installer differs.
DOCKERFILE = """\
FROM {base}
RUN python3 -m venv {flags} /opt/venv
RUN --mount=type=bind,source=wheels,target=/wheels --mount=type=bind,source=requirements.txt,target=/requirements.txt \\
    {mount}{install} -r /requirements.txt
ENV PATH=/opt/venv/bin:$PATH
COPY labs /opt/labs
"""
OPTIONS = "--no-index --find-links /wheels --no-deps --require-hashes --only-binary :all:"
WAYS = {
    "pip Dockerfile": (f"/opt/venv/bin/pip install --quiet --no-compile --no-cache-dir {OPTIONS}", "", ""),
    "uv Dockerfile": (
        f"UV_LINK_MODE=copy /uv pip install --quiet --no-cache --python /opt/venv/bin/python {OPTIONS}",
        "--without-pip",
        "--mount=type=bind,source=uv,target=/uv ",
    ),
}
FLOOR = """
import hashlib, os, sys, zipfile
from isal import isal_zlib
packed, plain = hashlib.sha256(), hashlib.sha256()
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        for info in zipfile.ZipFile(file).infolist():
            head = os.pread(file.fileno(), 30, info.header_offset)
            at = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            left, inflate = info.compress_size, isal_zlib.decompressobj(-15)
            while left:
                piece = os.pread(file.fileno(), min(left, 1 << 20), at)
                at, left = at + len(piece), left - len(piece)
                packed.update(piece)
                plain.update(inflate.decompress(piece) if info.compress_type else piece)
"""


def bench_layers(runs: int) -> str:
    """Everything that issue by issue was promised of layers, in Markdown."""
    row = target()
    locked = lock.load(row, "linux_x86_64", ROOT / "images")
    todo = environment.plan(ROOT, row.name, "docker")
    environment.fetch(todo.table, row, locked)
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder, daemon.connect() as client:
        place = Path(folder)
        under = base.ensure(client, row, locked.platform, ROOT / "images").reference
        contexts = {name: _context(place / name.split()[0], locked, under, *how) for name, how in WAYS.items()}
        cache = _cache(place / "cache")
        here = ["--target", row.name, "--no-bytecode", "--offline"]

        def layers() -> None:
            _forget_layers(cache)
            shutil.rmtree(place / "out", ignore_errors=True)
            run(INVOKE, "build", *here, "--output", place / "out", LABRIG_CACHE=str(cache))

        def floor() -> None:
            run(sys.executable, "-c", FLOOR, *(wheelhouse.find(one, home.wheels()) for one in locked.wheels))

        def dockerfile(name: str) -> Callable[[], None]:
            def build() -> None:
                run("docker", "builder", "prune", "--all", "--force", **daemon.environment())
                _run_buildx(contexts[name], f"labrig-bench:{name.split()[0]}")

            return build

        builds = measure(
            {
                "layers, to an OCI layout on disk": layers,
                "the floor: read, inflate, SHA-256 of both": floor,
                **{f"{name}, through BuildKit": dockerfile(name) for name in WAYS},
            },
            runs,
            everything=True,
        )

        def started(name: str) -> None:
            run("docker", "run", "--rm", "--network=none", name, "python", "-c", TENSOR, **daemon.environment())

        def layers_started() -> None:
            _forget_layers(cache)
            _remove(image.name(row))
            run(INVOKE, "build", *here, "--engine=docker", LABRIG_CACHE=str(cache))
            started(image.name(row))

        def dockerfile_started(name: str) -> Callable[[], None]:
            def build() -> None:
                _remove(f"labrig-bench:{name.split()[0]}")
                dockerfile(name)()
                started(f"labrig-bench:{name.split()[0]}")

            return build

        starts = measure(
            {
                "layers: cold build, load, first tensor in a container": layers_started,
                "uv Dockerfile: cold build, first tensor in a container": dockerfile_started("uv Dockerfile"),
            },
            runs,
            everything=True,
        )
        warm = measure(
            {
                "layers again, nothing changed, to the same layout": lambda: run(
                    INVOKE, "build", *here, "--output", place / "out", LABRIG_CACHE=str(cache)
                )
            },
            max(3, runs),
        )
        edits, sent = _bench_edit(place, cache, here, runs)
        _remove("labrig-bench")
        memory = [_memory(name, cache) for name in ("cpu", "cuda")]
    return "\n".join(
        [
            _table(builds),
            "",
            _table(starts),
            "",
            "| what | wall s, median (min-max) | CPU s |",
            "|---|---|---|",
            *(_line(one) for one in (*warm, *edits)),
            "",
            f"A lab edit sent {sent / 1e6:.2f} MB to the registry.",
            f"Peak memory of a cold build: {'; '.join(memory)}.",
            "",
            _bytecode(row.name),
        ]
    )


def _context(folder: Path, locked: lock.Lock, under: str, install: str, flags: str, mount: str) -> Path:
    folder.mkdir()
    wheelhouse.link_folder(locked.wheels, home.wheels(), folder / "wheels")
    (folder / "requirements.txt").write_text(venv.requirements_text(locked), encoding="utf-8")
    shutil.copytree(ROOT / "labs", folder / "labs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(Path(sys.executable).with_name("uv"), folder / "uv")
    (folder / "uv").chmod(0o755)
    text = DOCKERFILE.format(base=under, flags=flags, mount=mount, install=install)
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    return folder


def _cache(folder: Path) -> Path:
    """A cache of its own, with the wheels, the base, and the base's layer."""
    folder.mkdir()
    for shared in (home.wheels(), home.bases()):
        (folder / shared.name).symlink_to(shared)
    return folder


def _forget_layers(cache: Path) -> None:
    """Remove all layers but the base's, and what is made from the base alone: the other side has its base, too."""
    kept = set()
    for note in (cache / "layers" / "keys").glob("*.json"):
        said = json.loads(note.read_text())
        if said["title"].startswith(("base:", "an empty environment")):
            kept |= {note, *((cache / "layers" / "blobs" / "sha256" / one.partition(":")[2]) for one in said["blobs"])}
    for file in (cache / "layers").rglob("*"):
        if file.is_file() and file not in kept:
            file.unlink()


def _run_buildx(context: Path, name: str) -> None:
    options = ["--builder", "default", "--network=none", "--tag", name]
    run("docker", "buildx", "build", *options, context, **daemon.environment())


def _remove(repository: str) -> None:
    """Remove all images of a name, and what is left of others."""
    with daemon.connect() as client:
        for one in client.images.list(repository):
            for tag in one.tags:
                client.images.remove(tag, force=True)
        client.images.prune()


def _bench_edit(place: Path, cache: Path, here: list[str], runs: int) -> tuple[list[Timing], int]:
    """A lab edit to a pushed image: its times, and the bytes that the registry got."""
    sys.path.insert(0, str(ROOT / "tests"))
    import registries

    checkout = place / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "results", "bench", "docs", "tests")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    lab = sorted((checkout / "labs").glob("[0-9]*.py"))[0]
    with registries.serve(place) as address:
        push = ["build", *here, f"--push={address}/lab/cpu:1"]
        run(INVOKE, *push, cwd=checkout, LABRIG_CACHE=str(cache))
        sizes = []

        def edit() -> None:
            with lab.open("a", encoding="utf-8") as file:
                file.write("# edited\n")
            before = registries.blobs(place)
            run(INVOKE, *push, cwd=checkout, LABRIG_CACHE=str(cache))
            sizes.append(sum(size for digest, size in registries.blobs(place).items() if digest not in before))

        return measure({"a lab edited, pushed to a registry on this machine": edit}, max(3, runs)), max(sizes)


def _memory(name: str, cache: Path) -> str:
    """Peak resident memory of a cold build of a target, where its wheels are here."""
    row = environment.plan(ROOT, name, "docker", force=True)
    if wheelhouse.missing(row.lock.wheels, home.wheels()):
        return f"{name} not measured, its wheels are not here"
    _forget_layers(cache)
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory(dir=cache) as out:
        command = [INVOKE, "build", f"--target={name}", "--no-bytecode", "--offline", f"--output={out}"]
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=ROOT, env={**os.environ, "LABRIG_CACHE": str(cache)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return f"{name} {int(done.stdout) * 1024 / 1e6:.0f} MB ({row.lock.size / 1e6:.0f} MB of wheels)"


def _bytecode(name: str) -> str:
    """What bytecode costs once, takes up, and saves at each start."""
    made = environment.build(ROOT, name, "docker", wish=Wish(bytecode=False)).reference
    whole = environment.build(ROOT, name, "docker").reference
    imports = "import torch, torchvision" if "torchvision" in name else "import torch"
    labs = "import torch, sklearn.ensemble, scipy.stats, matplotlib.pyplot"
    lines = ["| container start, then | with bytecode: wall s, CPU s | without |", "|---|---|---|"]
    for what in (imports, labs, "import jupyterlab.labapp, ipykernel.kernelapp"):
        cells = []
        for reference in (whole, made):
            found = [_started(reference, what) for _ in range(3)]
            cells.append(", ".join(f"{statistics.median(one[i] for one in found):.1f}" for i in (0, 1)))
        lines.append(f"| `{what}` | {' | '.join(cells)} |")
    row = environment.plan(ROOT, name, "docker")
    recipe = assembly.plan(row.target, row.lock, ROOT, Wish())
    found = [one for one in assembly.build(recipe, home.wheels).layers if one.title.startswith("bytecode")]
    packed, plain = sum(one.size for one in found), sum(one.plain_size for one in found)
    return "\n".join([*lines, "", f"Bytecode: {packed / 1e6:.0f} MB to pull, {plain / 1e6:.0f} MB unpacked."])


def _started(reference: str, what: str) -> tuple[float, float]:
    """Wall and CPU seconds of the imports in a new container."""
    code = f"import time, os; begun = time.time(); exec({what!r}); print(time.time() - begun, sum(os.times()[:2]))"
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--cap-drop=ALL", reference, "python", "-c", code],
        env={**os.environ, **daemon.environment()}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def _table(timings: list[Timing]) -> str:
    """Each way, and how many times as much as the first one it takes."""
    first = timings[0]
    lines = [
        "| what | wall s, median (min-max) | CPU s | wall, times layers | CPU, times layers |",
        "|---|---|---|---|---|",
    ]
    for one in timings:
        wall = one.median / first.median
        cpu = statistics.median(one.cpu) / statistics.median(first.cpu)
        lines.append(f"{_line(one)} {wall:.2f} | {cpu:.2f} |")
    return "\n".join(lines)


def _line(timing: Timing) -> str:
    spread = f"{timing.median:.2f} ({min(timing.wall):.2f}-{max(timing.wall):.2f})"
    return f"| {timing.name} | {spread} | {statistics.median(timing.cpu):.1f} |"
