"""A torch of a Mac for tests of the probe: matrices in lists, "mps" on the CPU, float64 refused there as MPS does it.

It stands as torch.py in an environment. FAKE_MPS says which Mac: computes, wrong (1 % off), no-memory, absent,
not-built, float64 (accepts it).
"""

from __future__ import annotations

import os
import random
import types
from collections.abc import Callable
from itertools import chain

MAC = os.environ.get("FAKE_MPS", "computes")
__version__ = "0"
version = types.SimpleNamespace(cuda=None)
_C = types.SimpleNamespace()
float32, float64 = "torch.float32", "torch.float64"
REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)

cuda = types.SimpleNamespace(is_available=lambda: False)
backends = types.SimpleNamespace(
    mps=types.SimpleNamespace(
        is_built=lambda: MAC != "not-built", is_available=lambda: MAC not in ("absent", "not-built")
    )
)


class Tensor:
    """A matrix that remembers how it was made, so that it can hand a gradient back."""

    def __init__(
        self,
        rows: list[list[float]],
        dtype: str = float32,
        device: str = "cpu",
        back: Callable[..., None] | None = None,
    ) -> None:
        if device == "mps" and dtype == float64 and MAC != "float64":
            raise TypeError(REFUSED)
        if device == "mps" and MAC == "no-memory":
            raise RuntimeError("MPS backend out of memory (MPS allocated: 0 bytes). Tried to allocate 256 bytes.")
        self.rows, self.dtype, self.device, self.back = rows, dtype, device, back
        self.grad: Tensor | None = None

    def like(self, rows: list[list[float]], back: Callable[..., None] | None = None) -> Tensor:
        return Tensor(rows, self.dtype, self.device, back)

    def to(self, device: str) -> Tensor:
        return self if device == self.device else Tensor(self.rows, self.dtype, device)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def double(self) -> Tensor:
        return Tensor(self.rows, float64, self.device)

    def detach(self) -> Tensor:
        return self.like(self.rows)

    def clone(self) -> Tensor:
        return self.like(self.rows, self.back)

    def requires_grad_(self) -> Tensor:
        self.back = self.keep
        return self

    def keep(self, grad: list[list[float]]) -> None:
        self.grad = self.like(grad)

    def __matmul__(self, other: Tensor) -> Tensor:
        assert (self.device, self.dtype) == (other.device, other.dtype), "on two devices"

        def back(grad: list[list[float]]) -> None:
            assert other.back
            other.back(product(transposed(self.rows), grad))

        off = 1.01 if (MAC, self.device) == ("wrong", "mps") else 1.0
        return self.like([[off * value for value in row] for row in product(self.rows, other.rows)], back)

    def relu(self) -> Tensor:
        def back(grad: list[list[float]]) -> None:
            assert self.back
            pairs = zip(grad, self.rows, strict=True)
            self.back([[g * (v > 0) for g, v in zip(gs, vs, strict=True)] for gs, vs in pairs])

        return self.like([[max(0.0, value) for value in row] for row in self.rows], back)

    def sum(self) -> Tensor:
        def back(grad: list[list[float]]) -> None:
            assert self.back
            self.back([[grad[0][0]] * len(row) for row in self.rows])

        return self.like([[sum(map(sum, self.rows))]], back)

    def backward(self) -> None:
        assert self.back
        self.back([[1.0]])


def transposed(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def product(left: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in transposed(right)] for row in left]


class Generator:
    def manual_seed(self, seed: int) -> Generator:
        self.random = random.Random(seed)  # noqa: S311 - numbers for a test
        return self


def randn(height: int, width: int, *, generator: Generator) -> Tensor:
    return Tensor([[generator.random.gauss(0, 1) for _ in range(width)] for _ in range(height)])


def zeros(size: int, *, dtype: str = float32, device: str = "cpu") -> Tensor:
    return Tensor([[0.0] * size], dtype, device)


def assert_close(found: Tensor, expected: Tensor, *, rtol: float, atol: float) -> None:
    assert (found.device, found.dtype) == (expected.device, expected.dtype) == ("cpu", float64)
    for got, wanted in zip(chain(*found.rows), chain(*expected.rows), strict=True):
        if abs(got - wanted) > atol + rtol * abs(wanted):
            raise AssertionError("Tensor-likes are not close!")


testing = types.SimpleNamespace(assert_close=assert_close)
