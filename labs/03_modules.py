# %% [markdown]
"""
# 03 · Modules, losses, optimizers

**Question.** Every training script has the same four parts: a module, a loss, an optimizer and a loop. What is inside
each of them, and what happens if one line of the loop is forgotten?

**You will learn**

1. that a module is a list of parameters with a `forward`, and a loss is a formula of one line
2. what separates gradient descent, momentum, Adam and AdamW: a few lines, written here and checked against torch
3. how to recognise the two most common bugs, a forgotten `zero_grad()` and a forgotten `eval()`

**Paradigm.** Foundations, 3 of 3. **How to run.** `python labs/03_modules.py` (8 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: our optimizers differ from torch's by 2e-15 /
6e-15 / 1e-15; test error 0.43 / 0.43 / 0.30, linear model 1.86 / 1.76 / 1.40 (gate: 0.6 of it); without `zero_grad()`
529 / 459 / 651 times the error (gate: 10), without `eval()` 1.43 / 1.47 / 1.68 (gate: 1.15). 8 CPU seconds, 0.49 GiB.

**What you should see.** One valley, three ways down. Gradient descent bounces between the walls and then creeps;
momentum overshoots the turn, but arrives; Adam takes even steps, whatever the slope. Beside it, what one line costs.

**Where simple methods win.** A linear model has a closed form: one call, no learning rate, exact.

**Left out on purpose.** Learning-rate schedules (lab 06) and data too large for one batch.
"""

# %%
import harness

lab = harness.start(
    "03_modules",
    title="Modules, losses, optimizers", paradigm="foundations", task="regression with hand-written parts",
    data="1,000 points of a known function (synthetic)", seconds=8,
)

import torch
from sklearn.linear_model import LinearRegression
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # data, first weights and batches all derive from this one seed
n_train, n_test, n_features = 600, 400, 6
n_steps = 60 if lab.quick else 800  # of training in section 4
n_compared, n_valley = 50 if lab.quick else 200, 500  # enough for a mistake to show, and to reach the valley's bottom
batch_size, lr, drop = 64, 1e-2, 0.2
if device.type == "mps":
    lab.fallback("exact comparisons in float64", to="cpu", why="MPS has no float64")

# A sine, a product, a slope, two idle columns, and noise that nobody can predict: a line can only find the slope.
points = torch.randn(n_train + n_test, n_features, generator=gen)  # (1000, 6)
targets = torch.sin(2 * points[:, 0]) + points[:, 1] * points[:, 2] + 0.5 * points[:, 3]  # (1000,)
targets += 0.2 * torch.randn(len(points), generator=gen)
lab.data("known function", points.numpy(), targets.numpy(), licence="CC0 (made here)", synthetic=True)
(x, x_test), (y, y_test) = (t.to(device).split([n_train, n_test]) for t in (points, targets))
line = LinearRegression().fit(points[:n_train], targets[:n_train])
misses = line.predict(points[n_train:]) - targets[n_train:].numpy()  # (400,)
error_linear = lab.baseline("error_linear", (misses**2).mean(), "sklearn LinearRegression")

# %% [markdown]
# ## 1. A module and a loss
#
# What is assigned to an `nn.Module` is *registered*: `parameters()`, `.to(device)` and `state_dict()` find it. What
# sits in a plain list is not: it never trains, and nothing complains.

# %%
class Linear(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = n_in**-0.5  # torch's own choice: the outputs start about as large as the inputs
        self.weight = nn.Parameter((2 * torch.rand(n_out, n_in, generator=gen) - 1) * bound)
        self.bias = nn.Parameter((2 * torch.rand(n_out, generator=gen) - 1) * bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, n_in) -> (B, n_out)
        return x @ self.weight.T + self.bias

def mlp() -> nn.Module:  # (B, 6) -> (B, 64) -> (B, 1) -> (B,): Flatten(0) drops the last axis
    return nn.Sequential(Linear(n_features, 64), nn.Tanh(), nn.Dropout(drop), Linear(64, 1), nn.Flatten(0))

def squared(y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((y_hat - y) ** 2).mean()

ours, theirs = Linear(5, 3), nn.Linear(5, 3)
theirs.load_state_dict(ours.state_dict())  # the same names: weight, bias
ours.more = [nn.Parameter(torch.zeros(3))]  # in a plain list: parameters() will still find two
probe, label = torch.randn(7, 5, generator=gen), torch.randint(3, (7,), generator=gen)
scores = theirs(probe)  # (7, 3)
surprise = (scores.logsumexp(1) - scores.gather(1, label[:, None])[:, 0]).mean()  # - log softmax of the right class
differences = (ours(probe) - scores, squared(scores, -scores) - nn.functional.mse_loss(scores, -scores),
               surprise - nn.functional.cross_entropy(scores, label))
parts_error = max(d.abs().max().item() for d in differences) + len(list(ours.parameters())) - 2
lab.metric("parts_error", parts_error, "largest difference from torch", better="lower")
lab.gate("parts", "our Linear, squared error and cross-entropy equal torch's; a plain list hides a parameter",
         metric="parts_error", op="<=", limit=1e-6, exact=True)

# %% [markdown]
# ## 2. Four optimizers
#
# They differ in what they remember. *Momentum* keeps a velocity: steps in one direction add up. *Adam* also keeps each
# gradient's usual squared size and divides by its root: every weight moves by about `lr`. Both averages start at zero,
# which 1 - beta^t mends. *AdamW* shrinks the weights directly instead of hiding the decay in the gradient.

# %%
class SGD:
    def __init__(self, parameters, lr: float, momentum: float = 0.0) -> None:
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()  # the update itself is not differentiated
    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocity, strict=True):
            v.mul_(self.momentum).add_(p.grad)
            p.sub_(self.lr * v)

class Adam(SGD):
    def __init__(self, parameters, lr: float, betas=(0.9, 0.999), decay: float = 0.0, decoupled: bool = False) -> None:
        super().__init__(parameters, lr)
        self.betas, self.decay, self.decoupled, self.t = betas, decay, decoupled, 0
        self.square = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        b1, b2 = self.betas
        for p, v, s in zip(self.parameters, self.velocity, self.square, strict=True):
            if self.decoupled:
                p.mul_(1 - self.lr * self.decay)  # AdamW: every weight shrinks by the same share
            grad = p.grad if self.decoupled else p.grad + self.decay * p
            v.mul_(b1).add_((1 - b1) * grad)  # average gradient
            s.mul_(b2).add_((1 - b2) * grad**2)  # average squared gradient
            p.sub_(self.lr * (v / (1 - b1**self.t)) / ((s / (1 - b2**self.t)).sqrt() + 1e-8))

optim, rules = torch.optim, [  # ours and torch's in turn
    lambda p: SGD(p, 0.05), lambda p: optim.SGD(p, 0.05),
    lambda p: SGD(p, 0.01, momentum=0.9), lambda p: optim.SGD(p, 0.01, momentum=0.9),
    lambda p: Adam(p, 0.01, decay=0.1), lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    lambda p: Adam(p, 0.01, decay=0.1, decoupled=True), lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
]
x64, y64 = points[:64].double(), targets[:64].double()  # float64: a wrong constant cannot hide behind rounding
first_weights = mlp().double().state_dict()
ends = []  # all start from the same weights and see the same rows
for make in rules:
    model = mlp().double().eval()
    model.load_state_dict(first_weights)
    optimizer = make(model.parameters())
    for _ in range(n_compared):
        optimizer.zero_grad()
        squared(model(x64), y64).backward()
        optimizer.step()
    ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())  # (513,)
optimizer_error = (torch.stack(ends[::2]) - torch.stack(ends[1::2])).abs().max()  # (4, 513) each
lab.metric("optimizer_error", optimizer_error, "largest weight difference", better="lower")
lab.gate("optimizers", "four optimizers of our own end where torch's do, within 10⁻¹²",
         metric="optimizer_error", op="<=", limit=1e-12, exact=True)

# %% [markdown]
# ## 3. A valley, and the closed form at its bottom
#
# Two features in different units make the loss a long valley. The largest curvature limits the step, the smallest sets
# the pace: their ratio is the price. A formula for the bottom lets us check where gradient descent ends.

# %%
a = points[:n_train, :2].double() @ torch.tensor([[1.0, 0.6], [0.0, 0.25]], dtype=torch.float64)  # (600, 2)
b = a @ torch.tensor([1.5, -2.0], dtype=torch.float64) + 0.1 * targets[:n_train].double()  # (600,)
bottom = torch.linalg.lstsq(a, b).solution  # (2,)
lr_valley = 1.8 / torch.linalg.eigvalsh(2 * a.T @ a / n_train)[1].item()  # at 2 / largest curvature it only bounces
paths = {}
for name, make in {"gradient descent": lambda p: SGD(p, lr_valley), "momentum": lambda p: SGD(p, lr_valley / 4, 0.8),
                   "Adam": lambda p: Adam(p, 0.2)}.items():  # fmt: skip
    w = nn.Parameter(torch.tensor([-2.5, 1.5], dtype=torch.float64))
    optimizer, paths[name] = make([w]), torch.empty(n_valley, 2, dtype=torch.float64)
    for i in range(n_valley):
        paths[name][i] = w.detach()
        optimizer.zero_grad()
        squared(a @ w, b).backward()
        optimizer.step()
closed_form_error = (paths["gradient descent"][-1] - bottom).abs().max()
lab.metric("closed_form_error", closed_form_error, "largest weight difference", better="lower")
lab.gate("closed_form", "gradient descent ends at the closed-form solution within 10⁻⁸",
         metric="closed_form_error", op="<=", limit=1e-8, exact=True)
lab.honest("Calls until the linear model is exact: gradient descent against the closed form.",
           ((paths["gradient descent"] - bottom).norm(dim=1) > 1e-8).sum().item(), 1)

# %% [markdown]
# ## 4. The loop, and two ways to break it
#
# `backward()` *adds* to `.grad`: without `zero_grad()` every step follows the sum of all gradients so far. And dropout
# is for training only: without `eval()` the model keeps dropping a fifth of its hidden units while it is measured.

# %%
def train(clear: bool) -> tuple[nn.Module, list[float]]:
    gen.manual_seed(lab.seed)  # the same weights and batches in both runs: only the bug differs
    model, curve = mlp().to(device), []  # the test error every 20 steps
    optimizer = Adam(model.parameters(), lr)
    for step in lab.steps(0, n_steps):
        batch = torch.randint(n_train, (batch_size,), generator=gen).to(device)
        loss = squared(model.train()(x[batch]), y[batch])
        if clear or step == 0:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                curve.append(squared(model.eval()(x_test), y_test).item())
            lab.log(step, **{"error" if clear else "error_without_zero_grad": curve[-1]})
    return model, curve

(_, broken), (model, healthy) = train(clear=False), train(clear=True)
error_eval = sum(squared(model.train()(x_test), y_test).item() for _ in range(20)) / 20  # twenty different answers
error = lab.metric("error", healthy[-1], "mean squared error, test", better="lower")
lab.metric("zero_grad_cost", broken[-1] / error, "times the error")
lab.metric("eval_cost", error_eval / error, "times the error")
lab.gate("learns", "the network's error is at most 0.6 of the linear model's on the same test points",
         metric="error", op="<=", limit=0.6 * error_linear, baseline="error_linear")
lab.gate("zero_grad", "without zero_grad() 10 times the error or more", metric="zero_grad_cost", op=">=", limit=10)
lab.gate("eval", "without eval() 1.15 times the error or more", metric="eval_cost", op=">=", limit=1.15)

def draw(figure) -> None:
    valley, gallery = figure.subplots(1, 2, width_ratios=[1.2, 1])
    w1, w2 = torch.meshgrid(torch.linspace(-3.2, 3.8, 90), torch.linspace(-4.2, 3, 90), indexing="xy")
    height = ((torch.stack([w1, w2], -1).double() @ a.T - b) ** 2).mean(-1)  # (90, 90) the loss of every pair
    valley.contour(w1, w2, height.log(), levels=12, colors=harness.COLOURS["muted"], linewidths=0.5, alpha=0.6)
    for (name, path), colour in zip(paths.items(), ("bad", "baseline", "ours"), strict=True):
        valley.plot(*path[:60].T, "o-", ms=2.5, lw=1.2, color=harness.COLOURS[colour], label=name)
    valley.plot(*bottom, "*", ms=14, color=harness.COLOURS["good"], label="closed form", zorder=5)
    valley.set(title="60 steps down the same valley", xlabel="first weight", ylabel="second weight")
    at = range(20, n_steps + 1, 20)
    gallery.semilogy(at, broken, color=harness.COLOURS["bad"], label="without zero_grad()")
    gallery.semilogy(at, healthy, color=harness.COLOURS["ours"], label="as it should be")
    gallery.semilogy(n_steps, error_eval, "X", ms=9, color=harness.COLOURS["extra"], label="without eval()")
    gallery.axhline(error_linear, color=harness.COLOURS["baseline"], lw=1.2, ls="--", label="linear model")
    gallery.set(title="One forgotten line", xlabel="step", ylabel="test error (log)")
    gallery.legend(loc="center right", fontsize=8.5, bbox_to_anchor=(1, 0.55))
    valley.legend(loc="upper right", fontsize=8.5)

lab.plot("valley", draw, size=(9, 4.2),
         alt="Left: three optimizers' paths through a long valley. Right: test errors; without zero_grad far higher")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. In `Adam.step` leave out both divisions by `1 - b**self.t`. Which gate notices? Is the first step too long?
# 2. In section 3 replace 1.8 in `lr_valley` by 2.02. Along which direction of the valley does the path leave?
# 3. In `mlp` leave out `nn.Flatten(0)`. Torch does not complain, `learns` does. What is the shape of y_hat - y now?
