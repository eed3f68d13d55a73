"""Images against what a person would write instead: a Dockerfile that copies the wheels in and runs pip."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.clock import INVOKE, ROOT, Timing, measure, run
from labrig import base, daemon, environment, home, image, spec
from labrig.engines import Wish

# The same base, wheels and lock, written as most tutorials do it.
PLAIN = """\
FROM {base}
COPY wheels /wheels
COPY requirements.txt /requirements.txt
RUN python3 -m venv /opt/venv \\
    && /opt/venv/bin/pip install --no-index --find-links /wheels --no-deps -r /requirements.txt
ENV PATH=/opt/venv/bin:$PATH
COPY labs /opt/labs
"""
PLAIN_NAME = "labrig-bench:plain"
TENSOR = "import torch; torch.ones(2).sum().item()"


def target() -> spec.Target:
    """The target for the CPU, which every machine can build."""
    table = spec.read(ROOT / "images" / spec.TABLE)
    return next(target for target in table.targets.values() if target.device == "cpu" and "docker" in target.engines)


def bench_builds(runs: int) -> tuple[list[Timing], dict[str, int]]:
    """Both Dockerfiles with nothing cached but base and wheels, in turn; and the sizes of what they make, in bytes."""
    made = environment.build(ROOT, target().name, "docker", wish=Wish(builder="dockerfile"))
    context = home.contexts() / target().name
    if not context.is_dir():
        raise SystemExit(f"no build context in {context}: invoke clean --target={target().name}, then again")
    with tempfile.TemporaryDirectory(prefix="labrig-bench-", dir=home.root()) as folder, daemon.connect() as client:
        plain = Path(folder, "plain")
        shutil.copytree(context, plain, copy_function=_link)
        platform = made.lock.platform
        (plain / "images" / target().name / f"requirements-{platform}.txt").rename(plain / "requirements.txt")
        under = base.ensure(client, target(), platform, ROOT / "images").reference
        (plain / "Dockerfile").unlink()  # a link so far
        (plain / "Dockerfile").write_text(PLAIN.format(base=under), encoding="utf-8")
        own = "labrig-bench:own"
        command = ["docker", "buildx", "build", "--builder", "default", "--no-cache", "--tag"]
        timings = measure(
            {
                "labrig's Dockerfile, nothing cached": lambda: run(
                    *command, own, "--build-arg", f"BASE={under}", context, **daemon.environment()
                ),
                "a plain pip Dockerfile, nothing cached": lambda: run(
                    *command, PLAIN_NAME, plain, **daemon.environment()
                ),
            },
            runs,
        )
        sizes = {name: int(client.images.get(name).attrs["Size"]) for name in (own, PLAIN_NAME)}
        client.images.remove(own)
        return timings, sizes


def _link(source: str, to: str) -> None:
    Path(to).hardlink_to(source)


def bench_work(runs: int) -> list[Timing]:
    """What an admin and a student wait for; the plain image of ``bench_builds`` is there to be compared with."""
    here = [f"--target={target().name}", "--engine=docker"]
    reference = environment.build(ROOT, target().name, "docker").reference
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="labrig-bench-"))
        checkout = Path(folder, "checkout")
        ignore = shutil.ignore_patterns("__pycache__", ".*", "results", "bench", "docs")
        shutil.copytree(ROOT, checkout, ignore=ignore)
        lab = next(iter(sorted((checkout / "labs").glob("[0-9]*.py"))))

        def edit() -> None:
            with lab.open("a", encoding="utf-8") as file:
                file.write("# edited\n")
            run(INVOKE, "build", *here, cwd=checkout)

        def start(name: str) -> None:
            run("docker", "run", "--rm", "--network=none", name, "python", "-c", TENSOR, **daemon.environment())

        timings = measure(
            {
                "invoke build --engine=docker, nothing changed": lambda: run(INVOKE, "build", *here),
                "a lab edited, image built": edit,
                "invoke verify --engine=docker": lambda: run(INVOKE, "verify", *here),
                "container start to first tensor": lambda: start(reference),
                "container start to first tensor, the plain image": lambda: start(PLAIN_NAME),
            },
            runs,
        )
    run(INVOKE, "build", *here)
    with daemon.connect() as client:
        image.remove(client, [PLAIN_NAME, *_edited(client, reference)])
    return timings


def _edited(client: object, kept: str) -> list[str]:
    """The images of the edited labs: of this lock, and neither the one that is kept nor the latest."""
    found = image.stale(client, set(), target().name, everything=False)  # type: ignore[arg-type]
    return [reference for reference in found if reference != kept and not reference.endswith(":latest")]
