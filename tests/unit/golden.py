"""The golden verdicts: machines x builds, all combinations that differ, one a line.

python tests/unit/golden.py     write them anew; read the difference before you commit it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("golden.tsv")
HEADER = "machine\tbuild\tverdict\tcause"

# One driver of each branch that matters, from the oldest that PyTorch's users still have to the newest.
DRIVERS = (
    "450.80.02",
    "470.256.02",
    "525.60.13",
    "535.183.01",
    "550.54.14",
    "570.26",
    "580.65.06",
    "595.58.03",
    "610.43.02",
)
WINDOWS_DRIVERS = ("452.39", "474.44", "528.33", "553.62", "571.59", "582.28", "595.79")
PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.13t", "3.14", "3.15", "3.16")
MACOS = ("10.15", "11.7", "12.7", "13.6", "14.0", "14.5", "15.1", "26.0")
MADE_FOR_DESKTOP = ("2.7.1+cu118", "2.7.1+cu126", "2.7.1+cu128", "2.13.0+cu126", "2.13.0+cu130", "2.15.0+cu132")
MADE_FOR_SERVERS = ("2.11.0+cu126", "2.11.0+cu130", "2.13.0+cu130", "2.9.1+cu128", "2.7.1+cu128")


def cases() -> Iterator[tuple[str, str]]:
    """Machine and build of every line; a build without + is a target of images/targets.toml."""
    from labrig import matrix, spec

    targets = tuple(spec.read(ROOT / "images" / spec.TABLE).targets)
    capabilities = [gpu.capability for gpu in matrix.gpus()]
    desktop = [gpu.capability for gpu in matrix.gpus() if not gpu.jetson]
    for capability in desktop:
        for driver in DRIVERS:
            for build in ("cuda", "cuda-legacy", *MADE_FOR_DESKTOP):
                yield f"linux x86_64 glibc=2.36 driver={driver} gpu={capability}", build
        for driver in WINDOWS_DRIVERS:
            for build in ("2.7.1+cu126", "2.13.0+cu126", "2.13.0+cu130"):
                yield f"windows amd64 python=3.12 driver={driver} gpu={capability}", build
            for build in ("cuda", "cuda-legacy"):
                yield f"wsl2 x86_64 glibc=2.39 driver={driver} gpu={capability}", build
    for capability in capabilities:
        for build in MADE_FOR_SERVERS:
            yield f"linux aarch64 glibc=2.39 driver=580.95.05 gpu={capability}", build
    for torch in matrix.releases():
        for python in PYTHONS:
            yield f"linux x86_64 glibc=2.36 python={python}", f"{torch}+cpu"
            yield f"darwin arm64 macos=15.1 python={python}", f"{torch}+mps"
        for macos in MACOS:
            yield f"darwin arm64 macos={macos}", f"{torch}+mps"
        for libc in ("glibc=2.17", "glibc=2.28", "libc=musl"):
            yield f"linux x86_64 {libc}", f"{torch}+cpu"
            yield f"linux aarch64 {libc}", f"{torch}+cpu"
        yield "linux aarch64 glibc=2.36 no-lse", f"{torch}+cpu"
    for machine in (
        "linux x86_64 glibc=2.36",
        "linux x86_64 glibc=2.36 container",
        "linux aarch64 glibc=2.36",
        "linux x86_64 libc=musl",
        "linux x86_64 libc=musl docker=27.0",
        "linux x86_64 glibc=2.17",
        "linux x86_64 glibc=2.36 driver=580.65.06",
        "linux x86_64 glibc=2.36 driver=580.65.06 container",
        "linux x86_64 glibc=2.36 gpu=8.6 driver=none",
        "linux x86_64 glibc=2.36 driver=580.65.06 gpu=6.1,8.9",
        "linux x86_64 glibc=2.36 driver=595.58.03 gpu=6.1,8.9",
        "linux x86_64 glibc=2.36 driver=535.183.01 gpu=7.0,7.0",
        "linux riscv64 glibc=2.36",
        "linux ppc64le glibc=2.28",
        "darwin arm64 macos=15.1",
        "darwin arm64 macos=13.6",
        "darwin arm64 macos=15.1 vm",
        "darwin arm64 macos=15.1 ssh",
        "darwin arm64 macos=15.1 rosetta",
        "darwin x86_64 macos=13.6",
        "windows amd64 driver=580.88 gpu=8.9",
        "wsl2 x86_64 glibc=2.39",
        "GTX 1080",
        "T4",
        "RTX 5090",
        "Tesla V100",
        "Tesla K80",
        "H100",
        "GH200",
        "DGX Spark",
        "M2",
    ):
        for build in targets:
            yield machine, build


def lines() -> list[str]:
    """The file, line by line."""
    from labrig import compat, description, spec

    targets = {name: compat.of_target(t) for name, t in spec.read(ROOT / "images" / spec.TABLE).targets.items()}
    found = [HEADER]
    for words, name in cases():
        host = description.parse(words).host
        build = targets[name] if name in targets else compat.of_release(name, host)
        finding = compat.judge(build, host, list(targets.values()))
        found.append(f"{words}\t{name}\t{finding.verdict}\t{finding.cause or '-'}")
    return found


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    print(f"{FILE.name}: {len(lines()) - 1} verdicts", file=sys.stderr)
