# %% [markdown]
"""
# 02 · Autograd from scratch

**Question.** `loss.backward()` fills in every gradient. What does it do, and how would you know if it were wrong?

**You will learn**

1. how thirty-five lines of Python differentiate any program built from a few operations
2. how to teach torch an operation of your own, and how `gradcheck` catches a wrong derivative
3. why finite differences are only a witness: they fail when the step is large and when it is small

**Paradigm.** Foundations, 2 of 3. **How to run.** `python labs/02_autograd.py` (3 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: our engine differs from torch by 9e-16 / 1e-15 /
2e-16, the best finite difference by 3e-11 / 6e-11 / 7e-13; fitting 20 points ends at 0.018 / 0.037 / 0.026 where the
best constant has 0.52 / 0.60 / 0.52 (gate: a quarter of it). 3 CPU seconds, 0.30 GiB.

**What you should see.** Two valleys. On the right of each the step is so large that the curve bends away from its
tangent; on the left it is so small that the subtraction cancels nearly all digits. Even at the bottom a difference is
digits behind autograd, and needs two evaluations *per parameter*.

**Where simple methods win.** For one formula, writing down the derivative is exact and fastest. And to *check* one, a
finite difference is the best tool, because it shares no code with what it checks.

**Left out on purpose.** Tensors in the engine (each number is its own node here) and second derivatives.
"""

# %%
from __future__ import annotations

import math

import harness

lab = harness.start(
    "02_autograd",
    title="Autograd from scratch", paradigm="foundations", task="automatic differentiation",
    data="20 points on a noisy sine (synthetic)", seconds=3,
)

import torch

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)
n_points, n_hidden = 20, 8  # one hidden layer, 25 parameters in all, each of them a Python object
n_steps, lr = (20 if lab.quick else 200), 0.1  # of gradient descent

# %% [markdown]
# ## 1. The engine
#
# Every operation does two things: it computes a value, and it notes *how much the value moves when an input moves*,
# its local derivative. The chain rule is then bookkeeping: walk the graph backwards and hand each input its share,
# the output's gradient x the local derivative. A value used twice collects two shares, hence `+=`, not `=`.


# %%
class Value:
    def __init__(self, data: float, inputs: tuple[tuple[Value, float], ...] = ()) -> None:
        self.data, self.grad = data, 0.0
        self.inputs = inputs  # pairs: an input, and d self / d input

    def __add__(self, other: Value) -> Value:
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Value) -> Value:
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def __pow__(self, n: float) -> Value:
        return Value(self.data**n, ((self, n * self.data ** (n - 1)),))

    def tanh(self) -> Value:
        t = math.tanh(self.data)
        return Value(t, ((self, 1 - t * t),))

    def backward(self) -> None:
        order: dict[Value, None] = {}  # every node once, inputs before outputs

        def visit(node: Value) -> None:
            if node not in order:
                for parent, _ in node.inputs:
                    visit(parent)
                order[node] = None

        visit(self)
        self.grad = 1.0  # d loss / d loss
        for node in reversed(order):  # a node comes after everything that uses it: its gradient is complete
            for parent, local in node.inputs:
                parent.grad += node.grad * local


# %% [markdown]
# ## 2. Does it agree with torch?
#
# The same network twice: y_hat = w2 . tanh(w1 x + b1) + b2, once with our numbers and once with tensors. If both give
# the same 25 gradients to 12 digits, both are right or both share a mistake; and they share no code.

# %%
x = torch.linspace(-3, 3, n_points, dtype=torch.float64)  # (n_points,)
y = torch.sin(x) + 0.1 * torch.randn(n_points, generator=gen, dtype=torch.float64)  # (n_points,)
lab.data("noisy sine", x.numpy(), y.numpy(), licence="CC0 (made here)", synthetic=True)
shapes = {"w1": n_hidden, "b1": n_hidden, "w2": n_hidden, "b2": 1}
start = {name: 0.5 * torch.randn(size, generator=gen, dtype=torch.float64) for name, size in shapes.items()}


def engine_loss(p: dict[str, list[Value]]) -> Value:
    total = Value(0.0)
    for x_i, y_i in zip(x.tolist(), y.tolist(), strict=True):
        error = p["b2"][0] + Value(-y_i)  # y_hat - y_i, summed up unit by unit
        for w1, b1, w2 in zip(p["w1"], p["b1"], p["w2"], strict=True):
            error = error + w2 * (w1 * Value(x_i) + b1).tanh()
        total = total + error**2
    return total * Value(1 / n_points)


def torch_loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = torch.tanh(x[:, None] * p["w1"] + p["b1"])  # (n_points, n_hidden)
    y_hat = hidden @ p["w2"] + p["b2"]  # (n_points,)
    return ((y_hat - y) ** 2).mean()


def torch_gradients(dtype: torch.dtype, where: torch.device) -> torch.Tensor:  # (25,)
    p = {name: value.clone().to(where, dtype).requires_grad_() for name, value in start.items()}
    torch_loss(p, x.to(where, dtype), y.to(where, dtype)).backward()
    return torch.cat([value.grad for value in p.values()]).cpu().double()


ours = {name: [Value(v) for v in value.tolist()] for name, value in start.items()}
parameters = [v for values in ours.values() for v in values]  # 25 of them
engine_loss(ours).backward()
gradients = torch.tensor([v.grad for v in parameters], dtype=torch.float64)  # (25,)
reference = torch_gradients(torch.float64, torch.device("cpu"))
if device.type == "mps":
    lab.fallback("comparison in float64", to="cpu", why="MPS has no float64")

engine_error = lab.metric("engine_error", (gradients - reference).abs().max(), "largest difference", better="lower")
lab.gate("engine", "all 25 gradients of the engine equal torch's within 10⁻¹²",
         metric="engine_error", op="<=", limit=1e-12, exact=True)
in_float32 = torch_gradients(torch.float32, device)
lab.metric("device_error", (in_float32 - reference).abs().max(), "largest difference in float32", better="lower")
lab.gate("device", "torch's float32 gradients on the chosen device agree within 10⁻⁴",
         metric="device_error", op="<=", limit=1e-4, exact=True)

# %% [markdown]
# ## 3. Gradient descent with it
#
# The graph *is* the run of the program, so each step builds it anew, and must forget the gradients of the last one.

# %%
for step in lab.steps(0, n_steps):
    loss = engine_loss(ours)
    for v in parameters:
        v.grad = 0.0
    loss.backward()
    for v in parameters:
        v.data -= lr * v.grad
    lab.log(step, loss=loss.data)

lab.metric("loss", loss.data, "mean squared error", better="lower")
constant = lab.baseline("loss_constant", y.var(correction=0).item(), "the mean of y for every x")
lab.gate("learns", "gradient descent with our own gradients ends below a quarter of the best constant's error",
         metric="loss", op="<=", limit=constant / 4, baseline="loss_constant")
lab.honest("Milliseconds for one loss and its gradients: our engine against torch. Being right is not being fast.",
           1e3 * lab.seconds(lambda: engine_loss(ours).backward(), repeat=3),
           1e3 * lab.seconds(lambda: torch_gradients(torch.float64, torch.device("cpu")), repeat=20))

# %% [markdown]
# ## 4. An operation of our own, and the test that rejects a wrong one
#
# softplus(x) = log(1 + exp x), d/dx = sigmoid(x). `backward` multiplies the incoming gradient by the local derivative;
# `gradcheck` compares that with finite differences. Trust a test only after you have seen it fail: the third function
# is wrong on purpose.


# %%
class Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.logaddexp(x, torch.zeros_like(x))  # log(exp x + exp 0), which never overflows

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad * torch.sigmoid(*ctx.saved_tensors)


class WrongSoftplus(Softplus):
    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad * torch.tanh(*ctx.saved_tensors)  # looks like a sigmoid, passes a glance, trains badly


probe = torch.randn(12, generator=gen, dtype=torch.float64, requires_grad=True)
candidates = (Softplus.apply, lambda x: (x.tanh() * x.exp()).cumsum(0), WrongSoftplus.apply)
verdicts = [torch.autograd.gradcheck(function, probe, raise_exception=False) for function in candidates]

lab.metric("wrong_verdicts", sum(a != b for a, b in zip(verdicts, [True, True, False], strict=True)), better="lower")
lab.gate("gradcheck", "gradcheck accepts two right functions and rejects a deliberately wrong one",
         metric="wrong_verdicts", op="==", limit=0, exact=True)

# %% [markdown]
# ## 5. Finite differences: how small is small enough?
#
# (f(x + h) - f(x)) / h is off by about h, for the curve bends. But as h shrinks, f(x + h) and f(x) agree in ever more
# digits and their difference is rounding, about 10⁻¹⁶ / h. The two errors cross near h = 10⁻⁸. A central difference,
# (f(x + h) - f(x - h)) / 2h, cancels the bend and gets down to h² before rounding wins.

# %%
steps, forward_errors, central_errors = [10.0**-k for k in range(1, 13)], [], []
slope, direction = reference[0].item(), torch.eye(n_hidden, dtype=torch.float64)[0]  # only the first weight moves
for h in steps:
    left, here, right = (torch_loss({**start, "w1": start["w1"] + d * direction}, x, y).item() for d in (-h, 0, h))
    forward_errors.append(abs((right - here) / h - slope))
    central_errors.append(abs((right - left) / (2 * h) - slope))
valley = min(max(forward_errors[:2]), max(forward_errors[-2:])) / min(forward_errors)  # the ends above the bottom

lab.metric("difference_error", min(central_errors), "best central difference against autograd", better="lower")
lab.gate("difference", "the best finite difference agrees with autograd within 10⁻⁶",
         metric="difference_error", op="<=", limit=1e-6, exact=True)
lab.metric("valley", valley, "times: lower end of the curve / its bottom")
lab.gate("valley", "the error of a forward difference is V-shaped: both ends 100 times above the bottom",
         metric="valley", op=">=", limit=100, exact=True)


def draw(figure) -> None:
    ax, fit = figure.subplots(1, 2, width_ratios=[1.35, 1])
    for name, errors, colour in (("forward", forward_errors, "bad"), ("central", central_errors, "ours")):
        ax.loglog(steps, [max(e, 1e-13) for e in errors], "o-", ms=4, color=harness.COLOURS[colour], label=name)
    ax.axhline(max(1e-16, engine_error), color=harness.COLOURS["good"], label="our engine")
    ax.set(title="A step can be too small", xlabel="step h", ylabel="error of the derivative", ylim=(1e-17, None))
    for place, height, why in ((3e-12, 3e-3, "rounding"), (1e-6, 1e-2, "the curve bends")):
        ax.text(place, height, why, color=harness.COLOURS["muted"])
    ax.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0.15))
    w1, b1, w2, b2 = (torch.tensor([v.data for v in ours[name]], dtype=torch.float64) for name in shapes)
    fit.plot(x, y, "o", color=harness.COLOURS["baseline"], ms=5)
    fit.plot(x, torch.tanh(x[:, None] * w1 + b1) @ w2 + b2, color=harness.COLOURS["ours"])
    fit.set(title=f"Our own gradients after {n_steps} steps", xlabel="x", ylabel="y")


lab.plot("steps", draw, size=(9, 4),
         alt="Left: V-shaped error of finite differences against the step size. Right: 20 points and the fitted curve")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. In `Value.backward` write `=` instead of `+=`. Which of the 25 gradients are still right, and why those?
# 2. Give the engine an `exp` with its local derivative, and use it in place of `tanh`. Does it still train?
# 3. Repeat section 5 in float32. Where is the bottom of the valley now, and what does that say about `gradcheck`?
