"""A checkout whose target cpu has a lock of tiny wheels, and few labs; and a wheelhouse that has the wheels."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "unit"))
import samples

from labrig import lock, spec, wheelhouse
from labrig.lock import Lock, Wheel

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = "linux_x86_64"
# What the agent asks of torch: its version, its CUDA, and a kernel on the CPU.
TORCH = """
class version:
    cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
class Tensor:
    def __init__(self, many): self.many = many
    def __matmul__(self, other): return Tensor(self.many)
    def sum(self): return self
    def cpu(self): return self
    def __float__(self): return float(self.many) ** 3
def ones(rows, columns, device="cpu"): return Tensor(rows)
"""
LABS = {
    "__init__.py": "",
    "__main__.py": "import sys\nprint('labs', *sys.argv[1:])\n",
    "01_one.py": "print(1)\n",
    "data/digits.txt": "0 1 2 3\n",
    "notebooks/colab/01.ipynb": "{}\n",
}


@dataclass(frozen=True)
class Checkout:
    """The checkout, its lock, and where its wheels lie (``cache`` is for LABRIG_CACHE)."""

    root: Path
    cache: Path
    wheels: Path
    lock: Lock


def make(folder: Path, *, in_wheelhouse: bool = True) -> Checkout:
    """Make one in a folder."""
    root, wheels, store = folder / "checkout", folder / "wheels", folder / "cache" / "wheels"
    shutil.copytree(ROOT / "images", root / "images")
    shutil.copytree(ROOT / "templates", root / "templates")
    shutil.copy(ROOT / "tasks.py", root)
    (root / "labrig").symlink_to(ROOT / "labrig")
    for name, text in LABS.items():
        (root / "labs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "labs" / name).write_text(text)
    target = spec.read(root / "images" / spec.TABLE).targets["cpu"]
    made = {
        **samples.wheel("torch", f"{target.torch}+cpu", "cp311-cp311-manylinux_2_28_x86_64",
                        code=TORCH, requires=["beta>=1"]),
        **samples.wheel("alpha", "1.0", code="many = 1\n" * 300),
        **samples.wheel("beta", "1.5", files={
            "beta.py": b"value = 1\n",
            "beta-1.5.data/data/share/beta/notes.txt": b"notes\n",
            "beta-1.5.data/scripts/beta": b"#!python\nprint('beta')\n",
        }),
    }  # fmt: skip
    samples.write(made, wheels)
    locked = Lock(
        "cpu", PLATFORM, target.python, lock.inputs_digest(target, PLATFORM),
        tuple(sorted(map(samples.read_wheel, wheels.glob("*.whl")), key=lambda one: one.name)),
    )  # fmt: skip
    lock.write(locked, root / "images")
    if in_wheelhouse:
        for wheel in locked.wheels:
            keep(wheel, wheels, store)
    return Checkout(root, folder / "cache", wheels, locked)


def keep(wheel: Wheel, wheels: Path, store: Path) -> None:
    """Put a wheel into the wheelhouse."""
    with (wheels / wheel.file).open("rb") as file:
        assert wheelhouse.keep(wheel, file, store)
