# %% [markdown]
"""
# 01 · Tensors, checked against NumPy

**Question.** A tensor looks like a NumPy array. What is the same, what is shared, and what is different?

**You will learn**

1. why broadcasting, views and `einsum` make loops unnecessary, and what a loop costs
2. that a transpose moves no data: a tensor is a block of memory plus a way to walk through it
3. what float32 gives up, and when that ruins a result

**Paradigm.** Foundations, 1 of 3.

**How to run.** `python labs/01_tensors.py` (about 4 seconds), or `--quick`, or cell by cell in a notebook.

**Measured** on one core of a shared x86-64 machine, torch 2.13.0 for CPU, seeds 0 / 1 / 2: MEASURED01

**What you should see.** Three grids that hold the same six-by-four block of memory: walked row by row, walked
column by column, and walked in steps of two. The colours move, the numbers in memory never did. Then float32 losing
one digit for every power of ten in the condition number of a linear system, until nothing is left.

**Where simple methods win.** On a CPU torch is not faster than NumPy: both hand a matrix product to the same kind of
library. Reach for torch because of gradients and accelerators, the next two labs and every one after them.

**Left out on purpose.** Autograd (lab 02), sparse tensors, and everything that needs more than one process.
"""

# %%
import harness

lab = harness.start(
    "01_tensors",
    title="Tensors against NumPy",
    paradigm="foundations",
    task="tensor operations",
    data="random numbers, digits (scikit-learn)",
    seconds=4,
)

import numpy as np
import torch
from sklearn.datasets import load_digits

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # a generator of our own: the same numbers whatever else draws some

n_small = 64  # rows of the parity checks: large enough to catch a wrong axis, small enough to be instant
n_loop = 20_000 if lab.quick else 200_000  # elements for the Python loop, which is the slow one
n_matmul = 256 if lab.quick else 1024  # side of the timed matrix product

# %% [markdown]
# ## 1. A tensor is memory plus strides
#
# A tensor does not hold rows and columns. It holds one flat block of numbers, a *shape*, and a *stride* per
# dimension: how many numbers to jump over to reach the next index. Transposing swaps two strides. Slicing changes an
# offset. Neither touches the memory, which is why both are free, and why writing into a slice changes the original.

# %%
block = torch.arange(24)  # (24,) the memory itself: number k lies at place k
rows = block.view(6, 4)  # (6, 4) strides (4, 1): one step down jumps over four numbers
columns = rows.T  # (4, 6) strides (1, 4): the same memory, walked the other way
every_second = rows[::2, 1::2]  # (3, 2) strides (8, 2): starts at place 1

same_memory = all(view.untyped_storage().data_ptr() == block.data_ptr() for view in (rows, columns, every_second))
place = every_second.storage_offset() + 2 * every_second.stride(0) + 1 * every_second.stride(1)  # of element [2, 1]
located = bool(block[place] == every_second[2, 1])
print("strides", rows.stride(), columns.stride(), every_second.stride(), "| element [2, 1] lies at place", place)

# `view` promises not to copy, so it must refuse what strides cannot express; `reshape` may copy and says nothing.
try:
    columns.view(24)
    refused = False
except RuntimeError:
    refused = True

# `from_numpy` shares memory in both directions; `torch.tensor` copies. Mixing the two up is a classic silent bug.
array = np.zeros(3)
shared, copied = torch.from_numpy(array), torch.tensor(array)
array[0] = 7.0  # seen by `shared` only
shared[1] = 5.0  # seen by `array` too
sharing_right = shared.tolist() == [7, 5, 0] and array.tolist() == [7, 5, 0] and copied.tolist() == [0, 0, 0]

lab.metric("memory_claims_false", 4 - sum([same_memory, located, refused, sharing_right]), "claims", better="lower")
lab.gate("memory", "views share memory, strides locate elements, view() refuses to copy, from_numpy shares",
         metric="memory_claims_false", op="==", limit=0, exact=True)

# %% [markdown]
# ## 2. The same answers as NumPy
#
# NumPy is our independent witness. Each operation runs twice, in float32 and in float64, and must agree within the
# tolerances of `torch.testing`, which know how many digits each type has. Note the shapes: broadcasting lines shapes
# up *from the right* and stretches every 1.


# %%
def compare(dtype: torch.dtype, where: torch.device) -> list[str]:
    """Names of the operations whose result is not NumPy's."""
    N, D, K = n_small, 16, 8  # rows, features, outputs
    x = torch.randn(N, D, generator=gen, dtype=dtype)  # (N, D)
    w = torch.randn(D, K, generator=gen, dtype=dtype)  # (D, K)
    b = torch.randn(K, generator=gen, dtype=dtype)  # (K,)
    heads = torch.randn(4, N, D, generator=gen, dtype=dtype)  # (H, N, D)
    xt, wt, bt, ht = x.to(where), w.to(where), b.to(where), heads.to(where)
    xn, wn, bn, hn = x.numpy(), w.numpy(), b.numpy(), heads.numpy()
    pairs = {
        "affine map": (xt @ wt + bt, xn @ wn + bn),  # (N, K) + (K,): b is stretched over the rows
        "pairwise distance": (  # (N, 1, D) - (1, N, D): all pairs without a loop
            ((xt[:, None] - xt[None]) ** 2).sum(-1), ((xn[:, None] - xn[None]) ** 2).sum(-1)),
        "standardise": ((xt - xt.mean(0)) / xt.std(0, correction=0), (xn - xn.mean(0)) / xn.std(0)),
        "attention scores": (  # each letter is one axis; a letter that is not in the output is summed over
            torch.einsum("hnd,hmd->hnm", ht, ht), np.einsum("hnd,hmd->hnm", hn, hn)),
        "matrix product as einsum": (torch.einsum("nd,dk->nk", xt, wt), xn @ wn),
        "log-sum-exp": (torch.logsumexp(xt, 1), np.log(np.exp(xn).sum(1))),
        "sort": (xt.sort(0).values, np.sort(xn, 0)),
        "masked fill": (xt.masked_fill(xt < 0, 0), np.where(xn < 0, 0, xn)),
    }  # fmt: skip
    # Singular vectors are only unique up to sign, so compare what they rebuild. MPS has no complete linalg.
    linalg = torch.device("cpu") if where.type == "mps" else where
    u, s, vh = torch.linalg.svd(x.to(linalg), full_matrices=False)  # (N, D), (D,), (D, D)
    pairs["singular values"] = (s, np.linalg.svd(xn, compute_uv=False))
    pairs["rebuilt from the SVD"] = ((u * s) @ vh, xn)
    wrong = []
    for name, (ours, theirs) in pairs.items():
        try:
            torch.testing.assert_close(ours.cpu(), torch.from_numpy(np.asarray(theirs)))
        except AssertionError as error:
            wrong.append(f"{name} in {dtype}: {error}")
    print(f"{dtype}: {len(pairs) - len(wrong)} of {len(pairs)} operations agree with NumPy")
    return wrong


if device.type == "mps":
    lab.fallback("float64 and SVD checks", to="cpu", why="MPS has no float64 and no complete linalg")
torch.backends.cuda.matmul.allow_tf32 = False  # TF32 keeps 10 bits of mantissa: fast, but not float32
disagreements = compare(torch.float32, device)
disagreements += compare(torch.float64, torch.device("cpu") if device.type == "mps" else device)
print("\n".join(disagreements) or "nothing to explain")

lab.metric("parity_failures", len(disagreements), "operations", better="lower")
lab.gate("parity", "ten operations in float32 and float64 agree with NumPy within torch.testing's tolerances",
         metric="parity_failures", op="==", limit=0, exact=True)

# %% [markdown]
# ## 3. What float32 gives up
#
# float32 carries about 7 digits, float64 about 16. Solving a linear system loses as many digits as the *condition
# number* has powers of ten. Build systems whose condition number and solution are known, and watch: around 10⁸
# float32 has no correct digit left, and no error message says so.

# %%
N = 100
left, _ = torch.linalg.qr(torch.randn(N, N, generator=gen, dtype=torch.float64))  # (N, N) orthogonal
right, _ = torch.linalg.qr(torch.randn(N, N, generator=gen, dtype=torch.float64))  # (N, N) orthogonal
truth = torch.randn(N, generator=gen, dtype=torch.float64)  # (N,)
conditions = [10.0**k for k in range(11)]
lost = {"float32": [], "float64": [], "NumPy": []}  # relative error of the solution, per condition number
for condition in conditions:
    spectrum = torch.logspace(0, -np.log10(condition), N, dtype=torch.float64)  # (N,) from 1 down to 1 / condition
    a = (left * spectrum) @ right.T  # (N, N) with exactly this condition number
    y = a @ truth  # (N,)
    answers = {
        "float32": torch.linalg.solve(a.float(), y.float()).double(),
        "float64": torch.linalg.solve(a, y),
        "NumPy": torch.from_numpy(np.linalg.solve(a.numpy(), y.numpy())),
    }
    for name, answer in answers.items():
        lost[name].append(((answer - truth).norm() / truth.norm()).item())
error_32, error_64, error_numpy = (lost[name][conditions.index(1e6)] for name in lost)
print(f"condition 10⁶: relative error {error_32:.1e} in float32, {error_64:.1e} in float64")

lab.metric("solve_error_float64", error_64, "relative error", better="lower")
lab.metric("solve_error_float32", error_32, "relative error", better="lower")
lab.baseline("solve_error_numpy", error_numpy, "numpy.linalg.solve, float64")
lab.gate("solve", "float64 solves a system of condition number 10⁶ to 7 digits (float32 cannot: that is the lesson)",
         metric="solve_error_float64", op="<=", limit=1e-7, exact=True)

# %% [markdown]
# ## 4. What a Python loop costs
#
# The sum of squares, three ways. The loop pays for the interpreter and a boxed float at every element; the vectorised
# form pays once per call. Then a matrix product on host and device, reported and never gated: that speed belongs to
# the machine, not to the lesson.

# %%
values = torch.randn(n_loop, generator=gen)  # (n_loop,)
numbers, values_numpy = values.tolist(), values.numpy()


def loop() -> float:
    total = 0.0
    for value in numbers:
        total += value * value
    return total


loop_s = lab.seconds(loop, repeat=3)
times = {"Python loop": loop_s, "NumPy": lab.seconds(lambda: values_numpy @ values_numpy, repeat=20),
         "torch, CPU": lab.seconds(lambda: values @ values, repeat=20)}  # fmt: skip
speedup = loop_s / times["torch, CPU"]

big = torch.randn(n_matmul, n_matmul, generator=gen)  # (n_matmul, n_matmul)
big_numpy, big_device = big.numpy(), big.to(device)
numpy_ms = 1e3 * lab.seconds(lambda: big_numpy @ big_numpy)
device_ms = 1e3 * lab.seconds(lambda: big_device @ big_device)
print(f"sum of squares: torch {speedup:.0f} times as fast as a loop")
print(f"{n_matmul}² matrix product: NumPy {numpy_ms:.1f} ms, torch on {device.type} {device_ms:.1f} ms")

lab.metric("speedup_over_loop", speedup, "times")
lab.metric("matmul_ms", device_ms, f"ms on {device.type}", better="lower")
lab.baseline("python_loop", 1.0, "the same sum in a Python for loop")
lab.baseline("matmul_numpy_ms", numpy_ms, "numpy on the CPU, ms")
lab.gate("vectorised", "one vectorised call is at least 20 times as fast as a Python loop",
         metric="speedup_over_loop", op=">=", limit=20, baseline="python_loop")
lab.honest(f"A {n_matmul} x {n_matmul} matrix product in ms: torch on {device.type} against NumPy. "
           "On a CPU there is nothing to gain.", device_ms, numpy_ms)  # fmt: skip

# %% [markdown]
# ## 5. One real use: which digits look alike?
#
# All pairwise distances of ten class means, without a loop: (10, 1, 64) − (1, 10, 64) → (10, 10, 64) → (10, 10).

# %%
images, labels = load_digits(return_X_y=True)  # (1797, 64) values 0..16, (1797,)
lab.data("digits", images, labels, licence="CC BY 4.0 (UCI, via scikit-learn)")
x, y = torch.from_numpy(images).to(device, torch.float32), torch.from_numpy(labels).to(device)
is_class = torch.nn.functional.one_hot(y, 10).T.float()  # (10, 1797) a row of ones and zeros per class
means = is_class @ x / is_class.sum(1, keepdim=True)  # (10, 64)
distance = ((means[:, None] - means[None]) ** 2).sum(-1).sqrt().cpu()  # (10, 10)
pair = divmod((distance + 1e9 * torch.eye(10)).argmin().item(), 10)  # the diagonal is 0: keep it from winning
print("the two digits most alike on average:", *pair)


# %%
def draw_memory(figure) -> None:
    views = [("rows = block.view(6, 4)", rows), ("rows.T", columns), ("rows[::2, 1::2]", every_second)]
    axes = figure.subplots(1, 3, width_ratios=[4, 6, 2.9])
    for ax, (title, view) in zip(axes, views, strict=True):
        ax.imshow(view, cmap="YlGnBu", vmin=-4, vmax=30)
        for (i, j), number in np.ndenumerate(view.numpy()):
            ax.text(j, i, number, ha="center", va="center", color="white" if number > 15 else "#22262b")
        ax.set(title=title, xlabel=f"strides {view.stride()}", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def draw_precision_and_speed(figure) -> None:
    left_ax, right_ax = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for name, colour in (("float32", "bad"), ("float64", "ours")):
        left_ax.loglog(conditions, lost[name], "o-", ms=4, color=harness.COLOURS[colour], label=name)
    left_ax.axhline(1, color=harness.COLOURS["muted"], lw=1, ls=":")
    left_ax.text(1, 1.6, "nothing left", color=harness.COLOURS["muted"], fontsize=8.5)
    left_ax.set(title="Digits lost in solving a linear system", xlabel="condition number", ylabel="relative error")
    left_ax.legend(loc="lower right")
    bars = right_ax.barh(list(times), [1e6 * t for t in times.values()],
                         color=[harness.COLOURS[c] for c in ("bad", "baseline", "ours")])  # fmt: skip
    right_ax.bar_label(bars, [f"{1e6 * t:,.0f} µs" for t in times.values()], padding=4)
    right_ax.set(title=f"Sum of {n_loop:,} squares", xscale="log", xlabel="microseconds (log)", xlim=(None, 1e7 * loop_s))
    right_ax.invert_yaxis()


lab.plot("memory", draw_memory, size=(8.4, 3.6),
         alt="Three grids showing the same 24 memory places: by rows, transposed, and every second one")
lab.plot("precision", draw_precision_and_speed, size=(9, 3.6),
         alt="Left: relative error grows with the condition number, float32 reaches 1 near 1e7. "
             "Right: time of a sum of squares as Python loop, in NumPy and in torch")  # fmt: skip

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. In section 1 replace `rows.T` by `rows.T.contiguous()`. Which of the four memory claims breaks, and what did it cost?
# 2. In section 2 make `b` of shape `(N,)` instead of `(K,)`. Read the error, then mend it with one `None` in an index.
# 3. In section 4 set `n_loop = 10`. From which size on is the vectorised form worth its overhead?
