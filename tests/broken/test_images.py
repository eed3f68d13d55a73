"""Negative proof for images: real ones with one thing broken, each caught by the checks named here and by no other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import testinfra

from labrig import checks, daemon, environment, image, matrix, verify
from labrig.checks import FAILED, SKIPPED, Expectation, Outcome
from labrig.engines import Environment, docker
from labrig.errors import VerifyError
from labrig.lock import Lock, Wheel
from labrig.spec import Target

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
SITE = "$SITE"  # an ARG of every broken image: its site-packages
FLAGS = "import torch._C as _c\n_c._cuda_getArchFlags = lambda: {!r}\n"


@dataclass(frozen=True)
class Row:
    """The row and lock that an image is measured against: the ones it was made from, or others."""

    target: Target
    lock: Lock


Change = Callable[[Row], Row]


def same(row: Row) -> Row:
    return row


def cuda(row: Row) -> Row:
    """The row of the same torch for CUDA, as somebody would believe who reads the tag only."""
    torch, variant = row.target.torch, matrix.default_variant(row.target.torch, row.lock.platform)
    assert variant
    build = matrix.variant(torch, variant)
    assert build
    assert build.cuda
    target = replace(
        row.target, name="cuda", variant=variant, device="cuda", cuda=".".join(build.cuda.split(".")[:2]),
        min_driver=matrix.driver_floor(variant, build.cuda),
        archs={row.lock.platform: matrix.archs(torch, variant, row.lock.platform) or ()},
    )  # fmt: skip
    return Row(target, replace(row.lock, target="cuda"))


def companion(row: Row) -> Row:
    """The row with the torchvision that belongs to its torch."""
    release = matrix.release(row.target.torch)
    assert release and release.torchvision
    file = f"torchvision-{release.torchvision}-py3-none-any.whl"
    wheel = Wheel("torchvision", release.torchvision, file, "0" * 64, 1)
    return Row(row.target, replace(row.lock, wheels=(*row.lock.wheels, wheel)))


def edit(*words: str) -> str:
    quoted = json.dumps(["python", "/tmp/edit.py", *words])
    return f"RUN --mount=type=bind,source=edit.py,target=/tmp/edit.py {quoted}"


def append(file: str, code: str) -> str:
    return edit("append", file, code)


def append_for_cuda(row: Row, version: str, cuda_version: str, archs: list[str]) -> list[str]:
    """The CPU's torch made to look like one for CUDA, as far as can be seen without a GPU."""
    flags = " ".join(f"sm_{arch.replace('.', '')}" for arch in archs)
    return [
        append("torch/version.py", f"\n__version__ = {version!r}\ncuda = {cuda_version!r}\n"),
        append("torch/__init__.py", f"\n{FLAGS.format(flags)}"),
        f"RUN mkdir {SITE}/nvidia && touch {SITE}/nvidia/libcudart.so.13",
    ]


def another_cuda(row: Row) -> list[str]:
    version = f"{row.target.torch}+{row.target.variant}"
    return append_for_cuda(row, version, "12.6", list(row.target.capabilities))


def fewer_archs(row: Row) -> list[str]:
    version = f"{row.target.torch}+{row.target.variant}"
    return append_for_cuda(row, version, str(row.target.cuda), list(row.target.capabilities)[1:])


def lines(*text: str) -> Callable[[Row], list[str]]:
    return lambda _: list(text)


INFO = "printf 'Metadata-Version: 2.1\\nName: {0}\\nVersion: {1}\\n' > {2}/{0}-{1}.dist-info/METADATA"


def package(name: str, version: str) -> str:
    return f"RUN mkdir {SITE}/{name}-{version}.dist-info && {INFO.format(name, version, SITE)}"


SMALL = "64 MB shm with workers"  # nothing is wrong with the image: its container is started so
LIBRARY = "scipy.libs/libquadmath-*.so*"  # needed by another library, torch does without it

# what is broken -> lines of a Dockerfile, run as root; the row it is measured against; the checks that must catch it
BROKEN: dict[str, tuple[Callable[[Row], list[str]], Change, set[str]]] = {
    "nothing": (lines(), same, set()),
    "CPU wheel under a cuda label": (lines(), cuda, {"torch", "cuda", "archs", "cuda-stack"}),
    "cuda tag over another CUDA": (another_cuda, cuda, {"cuda"}),
    "arch list that lacks the row's": (fewer_archs, cuda, {"archs"}),
    "wrong torch": (lines(append("torch/version.py", "\n__version__ = '2.0.0+cpu'\n")), same, {"torch"}),
    "wrong companion": (lines(package("torchvision", "0.1.0")), companion, {"packages"}),
    "missing package": (lines(f"RUN rm -r {SITE}/contourpy {SITE}/contourpy-*"), same, {"packages"}),
    "extra package": (lines(package("left_pad", "1.3")), same, {"extra"}),
    "missing shared object": (lines(f"RUN rm {SITE}/{LIBRARY}"), same, {"files", "libraries"}),
    "truncated library": (
        lines(f"RUN for f in {SITE}/{LIBRARY}; do truncate -s 4096 $f; done"), same, {"files", "libraries"},
    ),
    "edited module": (
        lines(f"RUN sed -i 's/Splits the tensor/Splitz the tensor/' {SITE}/torch/functional.py"), same, {"files"},
    ),
    SMALL: (lines(), same, {"shm"}),
    "root-owned home": (lines("RUN chown -R 0:0 /home/student"), same, {"home"}),
    "stale labs": (lines("RUN echo '# of last year' >> /opt/labrig/labs/harness.py"), same, {"labs"}),
    "no labs": (lines("RUN rm -r /opt/labrig/labs"), same, {"labs"}),
    "label that lies": (lines("LABEL labrig.cuda=13.0"), same, {"labels"}),
    "lock digest that differs": (lines(f"LABEL labrig.lock={'f' * 64}"), same, {"lock"}),
    "root": (lines("USER 0:0"), same, {"user", "home"}),
    "a program that gives rights away": (lines("RUN cp /usr/bin/env /usr/bin/oops && chmod u+s /usr/bin/oops"), same,
                                         {"rights"}),
    "a folder that everyone may write to": (lines("RUN mkdir -m 777 /opt/data"), same, {"rights"}),
    "pip's cache in root's home": (
        lines("RUN mkdir -p /root/.cache/pip/http && echo x > /root/.cache/pip/http/x"), same, {"leftovers"},
    ),
    "a second CUDA": (
        lines("RUN mkdir -p /usr/local/cuda/lib64 && touch /usr/local/cuda/lib64/libcudart.so.12"), same,
        {"cuda-stack"},
    ),
    "workers that die": (
        lines(append("torch/utils/data/_utils/worker.py", "\ndef _worker_loop(*_):\n    raise SystemExit(1)\n")), same,
        {"dataloader", "shm", "confined"},
    ),
    "a kernel that is 1 % off": (
        lines(append("torch/__init__.py", "\n_relu = Tensor.relu\nTensor.relu = lambda x: _relu(x) * (1.01 if x.dtype"
                     " == float32 else 1.0)\n")), same, {"device", "confined"},
    ),
    "torch that writes to the root": (
        lines(append("torch/__init__.py", "\nopen('/var/tmp/torch', 'w').close()\n")), same, {"confined"},
    ),
    "torch that phones home": (  # an address for documentation (RFC 5737)
        lines(append("torch/__init__.py", "\nimport socket as _s\ntry:\n    _s.create_connection(('192.0.2.1', 9), 1)\n"
                     "except OSError:\n    pass\n")), same, {"network"},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def made() -> Environment:
    """The image of the target that fits this host."""
    return environment.build(ROOT, engine="docker")


@dataclass(frozen=True)
class Seen:
    row: Row
    facts: dict[str, Any]


def build(made: Environment, name: str, folder: Path) -> tuple[str, Row]:
    """The image in which `name` is broken, in one or a few small layers on top of the good one."""
    break_it, change, _ = BROKEN[name]
    row = change(Row(made.target, made.lock))
    place = folder / name.replace(" ", "-").replace("%", "")
    place.mkdir()
    (place / "edit.py").write_bytes(Path(__file__).with_name("edit.py").read_bytes())
    labels = [f'LABEL {key}="{value}"' for key, value in image.labels(row.target, row.lock).items()]
    site = f"ARG SITE=/opt/venv/lib/python{made.target.python}/site-packages"
    broken = break_it(row)
    last = [] if any(line.startswith("USER") for line in broken) else [f"USER {image.UID}:{image.GID}"]
    text = "\n".join([f"FROM {made.reference}", "USER 0:0", site, *labels, *broken, *last]) + "\n"
    (place / "Dockerfile").write_text(text)
    reference = f"{image.name(row.target)}:{row.target.torch}-broken-{list(BROKEN).index(name)}"
    done = subprocess.run(
        ["docker", "buildx", "build", "--builder", "default", "--tag", reference, str(place)],
        env={**daemon.environment(), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return reference, row


@pytest.fixture(scope="session")
def seen(made: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Seen]]:
    """What `verify` reads in every broken image, two at a time."""
    folder = tmp_path_factory.mktemp("images")
    images: dict[str, tuple[str, Row]] = {}

    def look(name: str) -> Seen:
        reference, row = images[name]
        broken = Environment(row.target, "docker", reference, row.lock)
        with docker.session(broken, "verify") as session:
            context = verify.write_context(session, None, require_device=False)
            return Seen(row, verify.read_facts(testinfra.get_host(session.hostspec), context))

    usual = [name for name in BROKEN if name != SMALL]
    try:
        for name in BROKEN:
            images[name] = build(made, name, folder)
        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(usual, pool.map(look, usual), strict=True))
        with pytest.MonkeyPatch.context() as patch, daemon.connect() as client:
            patch.setattr(docker, "SHM_SHARE", client.info()["MemTotal"] // (64 << 20))
            found[SMALL] = look(SMALL)
        yield found
    finally:
        with daemon.connect() as client:
            image.remove(client, [reference for reference, _ in images.values()])


def judge(seen: Seen, *, require_device: bool = False) -> dict[str, Outcome]:
    labs = image.read_labs(ROOT / "labs")
    expectation = Expectation(seen.row.target, seen.row.lock, "docker", require_device, labs)
    return {check.id: checks.judge(check, expectation, seen.facts) for check in checks.CHECKS}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_caught_by_its_check_and_by_no_other(name: str, seen: dict[str, Seen]) -> None:
    outcomes = judge(seen[name])
    failed = {id: outcome for id, outcome in outcomes.items() if outcome.status == FAILED}
    assert set(failed) == BROKEN[name][2], failed
    assert all(outcome.reason for outcome in failed.values())


def test_every_check_of_images_is_tripped_by_some_broken_image() -> None:
    tripped = set().union(*(expected for *_, expected in BROKEN.values()))
    ours = {check.id for check in checks.CHECKS if any(check.applies("docker", platform) for platform in checks.LINUX)}
    assert ours - tripped == {"python"}  # that one: rows of another Python


def test_workers_that_run_out_of_shared_memory_are_told_so(seen: dict[str, Seen]) -> None:
    outcome = judge(seen[SMALL])["shm"]
    assert "shared memory" in outcome.reason or "Bus error" in outcome.reason
    assert outcome.found == "0.07 GB"


def test_an_absent_gpu_is_a_skip_with_its_reason_and_a_failure_where_it_is_required(seen: dict[str, Seen]) -> None:
    lie = seen["CPU wheel under a cuda label"]
    skipped = judge(lie)["device"]
    assert skipped.status == SKIPPED
    assert "torch sees no cuda device here" in skipped.reason
    required = judge(lie, require_device=True)["device"]
    assert required.status == FAILED
    assert "--require-device" in required.reason


def test_verify_refuses_a_broken_image_and_names_the_check(made: Environment, tmp_path: Path) -> None:
    """The door itself, from the image to the error that people see."""
    (tmp_path / "one").mkdir()
    reference, row = build(made, "stale labs", tmp_path / "one")
    try:
        record = verify.verify(Environment(row.target, "docker", reference, row.lock))
        failed = {result.id: result for result in record.checks if result.status == FAILED}
        assert set(failed) == {"labs"}
        assert failed["labs"].found == "harness.py differs"
        with pytest.raises(VerifyError, match=f"1 of {len(checks.CHECKS)} checks failed"):
            record.raise_for_failures()
    finally:
        with daemon.connect() as client:
            image.remove(client, [reference])
