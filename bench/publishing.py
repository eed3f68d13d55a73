"""What a change costs a student: bytes and seconds of `invoke pull` after a lab edit, one more package, a torch patch.

A registry on this machine, an admin with the usual cache and engine, a student with a cache and an engine of their own
(in memory, needs root). What a user would do instead is the plain image of bench.images: whatever of its environment
changes, its one layer of packages is pulled anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import images
from bench.clock import INVOKE, ROOT, run
from labrig import assembly, base, blobs, daemon, environment, home, registry, spec, wheelhouse
from labrig.engines import Wish, venv

ENGINE = 8000  # MB of memory for the student's engine
PACKAGE = "pandas"  # as a teacher adds one to the row's packages


def bench_publishing(runs: int) -> str:
    """Bytes and seconds of each change, in Markdown; one run of each, since bytes do not vary."""
    if not (asked := daemon.ask()).version:
        return f"Not measured: {asked.why_not}."
    if os.getuid():
        return "Not measured: a second engine needs root."
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
    import registries
    from second import second_engine

    target = images.target()
    lines = [
        "| what changed since the student's last pull | MB received | wall s | MB, a plain pip image |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder:
        place = Path(folder)
        checkout, student = place / "checkout", place / "student"
        shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns("__pycache__", ".git", ".venv", "results"))
        for name in ("registry", "plain"):
            (place / name).mkdir()
        with registries.serve(place / "registry") as address, second_engine(ENGINE) as engine:
            there = {"DOCKER_HOST": engine.environment["DOCKER_HOST"], "LABRIG_CACHE": str(student)}
            changes: list[tuple[str, Callable[[], None]]] = [
                ("everything: the first pull", lambda: _edit(checkout)),
                ("a lab was edited", lambda: _edit(checkout)),
                (f"the course needs {PACKAGE} as well", lambda: _add(checkout, target.name)),
            ]
            found = {}
            for what, change in changes:
                change()
                found[what] = _pull(checkout, there, target.name, address)
            found["torch was patched (its wheel with one more file)"] = _patched(target, student, address)
            whole, packages = _plain(target, place / "plain", address)
        plain = [whole, 0, packages, packages]
    for (what, (received, seconds)), instead in zip(found.items(), plain, strict=True):
        shown = f"{instead / 1e6:.1f}" if instead else "the same"
        lines.append(f"| {what} | {received / 1e6:.2f} | {seconds:.1f} | {shown} |")
    return "\n".join(lines)


def _edit(checkout: Path) -> None:
    lab = sorted((checkout / "labs").glob("[0-9]*.py"))[0]
    with lab.open("a", encoding="utf-8") as file:
        file.write(f"# edited {time.time_ns()}\n")
    run(INVOKE, "render", cwd=checkout)  # its notebook follows


def _add(checkout: Path, target: str) -> None:
    table = checkout / "images" / spec.TABLE
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace('"jupyterlab"]', f'"jupyterlab", "{PACKAGE}"]', 1), encoding="utf-8")
    run(INVOKE, "lock", f"--target={target}", cwd=checkout)


def _pull(checkout: Path, there: dict[str, str], target: str, address: str) -> tuple[int, float]:
    """The admin's part, outside the clock; then the bytes and seconds of the student's."""
    image = run(INVOKE, "build", f"--target={target}", "--engine=docker", cwd=checkout).strip()
    run(INVOKE, "verify", f"--target={target}", "--engine=docker", cwd=checkout)
    run(INVOKE, "publish", f"--target={target}", f"--registry={address}/lab", cwd=checkout)
    began = time.perf_counter()
    said = json.loads(run(INVOKE, "pull", f"--target={target}", "--json", cwd=checkout, **there))
    seconds = time.perf_counter() - began
    run("docker", "rmi", "--force", image)
    return int(said["received"]), seconds


def _patched(target: spec.Target, cache: Path, address: str) -> tuple[int, float]:
    """A stand-in for a patch release, pushed; then the bytes and seconds until its layers are at the student's."""
    todo = environment.plan(ROOT, target.name, "docker")
    torch = todo.lock.wheel("torch")
    assert torch is not None  # noqa: S101 - every row has it
    with tempfile.TemporaryDirectory(dir=home.root()) as folder:
        patched = Path(folder, torch.file)
        shutil.copyfile(wheelhouse.find(torch, home.wheels()), patched)
        with zipfile.ZipFile(patched, "a") as archive:
            archive.writestr("torch/patch.txt", "patched\n")
        with patched.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        newer = replace(torch, sha256=sha256, size=patched.stat().st_size)
        store = wheelhouse.find(newer, home.wheels())
        store.parent.mkdir(parents=True, exist_ok=True)
        patched.rename(store)
    try:
        wheels = tuple(newer if one == torch else one for one in todo.lock.wheels)
        usual = assembly.build(assembly.plan(target, todo.lock, ROOT, Wish()), home.wheels)
        made = assembly.build(assembly.plan(target, replace(todo.lock, wheels=wheels), ROOT, Wish()), home.wheels)
        reference = registry.push(made, f"{address}/lab/{target.name}:patched")
        with _cache(cache):
            began = time.perf_counter()
            found = registry.look(reference, todo.lock.platform)
            absent = [one for one in found.layers if not blobs.is_untouched(blobs.path(one.digest), one.size)]
            return registry.bring(reference, absent), time.perf_counter() - began
    finally:
        shutil.rmtree(store.parent)
        for one in set(made.layers) - set(usual.layers):  # of a wheel that no lock names
            blobs.path(one.digest).unlink(missing_ok=True)


@contextmanager
def _cache(folder: Path) -> Any:
    before = os.environ.get("LABRIG_CACHE")
    os.environ["LABRIG_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["LABRIG_CACHE"]
        if before is not None:
            os.environ["LABRIG_CACHE"] = before


def _plain(target: spec.Target, place: Path, address: str) -> tuple[int, int]:
    """The plain image, pushed: its compressed bytes, and those of its layer of packages."""
    todo = environment.plan(ROOT, target.name, "docker")
    wheelhouse.link_folder(todo.lock.wheels, home.wheels(), place / "wheels")
    (place / "requirements.txt").write_text(venv.requirements_text(todo.lock), encoding="utf-8")
    shutil.copytree(ROOT / "labs", place / "labs", ignore=shutil.ignore_patterns("__pycache__"))
    with daemon.connect() as client:
        under = base.ensure(client, target, todo.lock.platform, ROOT / "images").reference
    (place / "Dockerfile").write_text(images.PLAIN.format(base=under), encoding="utf-8")
    name = f"{address}/plain/{target.name}:1"
    for words in (["buildx", "build", "--builder", "default", "--tag", name, place], ["push", name], ["rmi", name]):
        run("docker", *words, **daemon.environment())
    layers = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"))["layers"]
    return sum(one["size"] for one in layers), max(one["size"] for one in layers)
