"""Make layers, or write a layout of them, once: what test_layer_faults.py starts, stops and kills.

layers_once.py wheels WHEELS       the layers of all wheels of a folder; of a wheelhouse, so <xx>/<sha256>/<file>
layers_once.py bytecode WHEELS     the layers of their bytecode
layers_once.py layout JOB          write an image into a layout; JOB is a JSON file, see `put`
layers_once.py dying JOB COPIES    the same in copies of that layout, dying by SIGKILL at the first, the second ... step
                                   that changes a file; and once more, in each copy, undisturbed

Says "ready", waits for a line, prints the layers as JSON. LIMIT is RLIMIT_FSIZE, in bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from invoke.exceptions import Exit

from labrig import cli, layers, oci, precompiled
from labrig.blobs import Layer
from labrig.lock import Lock, Wheel
from labrig.wheel import Places

VERSION = ".".join(map(str, sys.version_info[:3]))
PYTHON = VERSION.rpartition(".")[0]
PLACES = Places("/opt/env", PYTHON)
STEPS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "shutil.copyfile"}


def lock_of(store: Path) -> Lock:
    """The lock of all wheels of a wheelhouse."""
    wheels = []
    for path in sorted(store.glob("*/*/*.whl"), key=lambda path: path.name):
        name, version, *_ = path.name.split("-")
        wheels.append(Wheel(name, version, path.name, path.parent.name, path.stat().st_size))
    return Lock("tiny", "linux_x86_64", PYTHON, "0" * 64, tuple(wheels))


def put(job: Path, folder: Path) -> None:
    """Write the image of the layers of a job under its tag: {"tag": ..., "layers": [...], "sbom": ...}."""
    told = json.loads(job.read_text())
    image = oci.assemble(
        "linux_x86_64", [Layer(**one) for one in told["layers"]], {"User": "1000"}, {}, told["sbom"].encode()
    )
    oci.write_layout(image, folder, told["tag"])


def die_at(step: int) -> None:
    """End this process as kill -9 would, just before a change of a file: that one of them, counted from 1."""
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in STEPS or writes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_a_child(job: Path, folder: Path, step: int = 0) -> int:
    """The exit code of a process that writes the layout, and dies at a step."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if step:
                die_at(step)
            cli.door(put)(job, folder)
            code = 0
        except Exit as error:
            code = error.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying(job: Path, copies: Path) -> None:
    """In COPIES/<step>/killed the layout as the killed left it, in COPIES/<step>/after as the next one left that."""
    before = Path(json.loads(job.read_text())["folder"])
    step = 0
    while True:
        step += 1
        killed, after = copies / str(step) / "killed", copies / str(step) / "after"
        killed.parent.mkdir(parents=True)
        if before.exists():
            shutil.copytree(before, killed, copy_function=os.link)
        code = in_a_child(job, killed, step)
        if killed.exists():
            shutil.copytree(killed, after, copy_function=os.link)
        print(json.dumps({"step": step, "code": code, "next": in_a_child(job, after)}), flush=True)
        if code != -signal.SIGKILL:
            return


@cli.door
def main() -> None:
    what, *arguments = sys.argv[1:]
    if limit := os.environ.get("LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    paths = [Path(one) for one in arguments]
    made: list[Layer] = []
    store = paths[0]
    lock = lock_of(store) if what in ("wheels", "bytecode") else None
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "layout":
        put(paths[0], Path(json.loads(paths[0].read_text())["folder"]))
    elif what == "dying":
        dying(paths[0], paths[1])
        return
    elif lock is not None and what == "wheels":
        made = layers.of_wheels(lock, lambda: store, PLACES, quiet=True)
    elif lock is not None:
        python = Path(sys.executable), VERSION
        made = precompiled.of_wheels(lock, lambda: store, PLACES, python, quiet=True)
    print(json.dumps([dataclasses.asdict(one) for one in made]))


if __name__ == "__main__":
    try:
        main()
    except Exit as error:
        sys.exit(error.code)
