# %% [markdown]
"""
# 01 · Tensors, checked against NumPy

**Question.** A tensor looks like a NumPy array. What is the same, what is shared, and what is different?

**You will learn**

1. why broadcasting, views and `einsum` make loops unnecessary, and what a loop costs
2. that a transpose moves no data: a tensor is a block of memory plus a way to walk through it
3. what float32 gives up, and when that ruins a result

**Paradigm.** Foundations, 1 of 3. **How to run.** `python labs/01_tensors.py` (4 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: relative error at condition number 10⁶ in
float64 1e-11 / 1e-11 / 9e-12, in float32 0.005 / 0.006 / 0.008; a loop is 656 / 485 / 592 times slower (gate: 20);
a 1024 x 1024 product takes 12 to 15 ms in torch and 13 to 20 ms in NumPy. 4 CPU seconds, 0.41 GiB.

**What you should see.** One strip of memory and three grids that show it: walked row by row, walked column by
column, and walked in steps of two. Only the walk differs; not one number was moved. Then float32 losing
one digit for every power of ten in the condition number of a linear system, until nothing is left.

**Where simple methods win.** On a CPU torch is not faster than NumPy: both hand a matrix product to the same kind of
library. Reach for torch because of gradients and accelerators, the next two labs and every one after them.

**Left out on purpose.** Autograd (lab 02) and sparse tensors.
"""

# %%
import harness

lab = harness.start(
    "01_tensors",
    title="Tensors against NumPy", paradigm="foundations", task="tensor operations",
    data="random numbers, digits (scikit-learn)", seconds=4,
)

import numpy as np
import torch
from sklearn.datasets import load_digits

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # a generator of our own: the same numbers whatever else draws some
n_loop = 20_000 if lab.quick else 200_000  # elements for the Python loop, which is the slow one
n_matmul = 256 if lab.quick else 1024  # side of the timed matrix product

# %% [markdown]
# ## 1. A tensor is memory plus strides
#
# A tensor holds no rows and columns. It holds one flat block of numbers, a *shape*, and a *stride* per dimension: how
# many numbers to jump over to reach the next index. Transposing swaps two strides, slicing changes an offset, neither
# touches the memory. That is why both are free, and why writing into a slice changes the original.

# %%
block = torch.arange(24)  # (24,) the memory itself: number k lies at place k
rows = block.view(6, 4)  # (6, 4) strides (4, 1): one step down jumps over four numbers
columns = rows.T  # (4, 6) strides (1, 4): the same memory, walked the other way
every_second = rows[::2, 1::2]  # (3, 2) strides (8, 2): starts at place 1

same_memory = all(view.untyped_storage().data_ptr() == block.data_ptr() for view in (rows, columns, every_second))
place = every_second.storage_offset() + 2 * every_second.stride(0) + 1 * every_second.stride(1)  # of element [2, 1]
located = bool(block[place] == every_second[2, 1])

try:
    refused = columns.view(24) is None  # `view` never copies, so it must refuse what strides cannot express;
except RuntimeError:  # `reshape` copies when it has to, and says nothing
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
# NumPy is our independent witness. Each operation runs in float32 and in float64 and must agree within the tolerances
# of `torch.testing`, which know the digits of each type. Broadcasting lines shapes up *from the right*, stretching 1s.


# %%
def compare(dtype: torch.dtype, where: torch.device) -> list[str]:
    """Names of the operations whose result is not NumPy's."""
    N, D, K = 64, 16, 8  # rows, features, outputs: all different, so that a wrong axis cannot go unnoticed
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
        "attention scores": (  # one letter per axis; what is not in the output is summed over
            torch.einsum("hnd,hmd->hnm", ht, ht), np.einsum("hnd,hmd->hnm", hn, hn)),
        "product as einsum": (torch.einsum("nd,dk->nk", xt, wt), xn @ wn),
        "sort": (xt.sort(0).values, np.sort(xn, 0)),
        "log-sum-exp": (torch.logsumexp(xt, 1), np.log(np.exp(xn).sum(1))),
        "masked fill": (xt.masked_fill(xt < 0, 0), np.where(xn < 0, 0, xn)),
    }
    # Singular vectors are only unique up to sign, so compare what they rebuild.
    u, s, vh = torch.linalg.svd(x.to(wide), full_matrices=False)  # (N, D), (D,), (D, D)
    pairs |= {"singular values": (s, np.linalg.svd(xn, compute_uv=False)), "rebuilt from the SVD": ((u * s) @ vh, xn)}
    wrong = []
    for name, (ours, theirs) in pairs.items():
        try:
            torch.testing.assert_close(ours.cpu(), torch.from_numpy(np.asarray(theirs)))
        except AssertionError as error:
            wrong.append(f"{name} in {dtype}: {error}")
    return wrong


wide = torch.device("cpu") if device.type == "mps" else device  # where float64 and linalg exist
if wide != device:
    lab.fallback("float64 and SVD checks", to="cpu", why="MPS has no float64 and no complete linalg")
torch.set_float32_matmul_precision("highest")  # TF32 keeps 10 bits of mantissa: fast, but not float32
disagreements = compare(torch.float32, device) + compare(torch.float64, wide)
print("\n".join(disagreements) or "ten operations in two precisions: NumPy and torch agree")

lab.metric("parity_failures", len(disagreements), "operations", better="lower")
lab.gate("parity", "ten operations in float32 and float64 agree with NumPy within torch.testing's tolerances",
         metric="parity_failures", op="==", limit=0, exact=True)

# %% [markdown]
# ## 3. What float32 gives up
#
# float32 carries about 7 digits, float64 about 16. Solving a linear system loses as many digits as the *condition
# number* has powers of ten. Build systems whose condition number and solution are known, and watch: around 10⁸ float32
# has no correct digit left, and no error message says so.

# %%
N = 100
left, right = torch.linalg.qr(torch.randn(2, N, N, generator=gen, dtype=torch.float64)).Q  # (N, N), both orthogonal
truth = torch.randn(N, generator=gen, dtype=torch.float64)  # (N,)
conditions = [10.0**k for k in range(11)]
lost = {"float32": [], "float64": [], "NumPy": []}  # relative error of the solution, per condition number
for condition in conditions:
    spectrum = torch.logspace(0, -np.log10(condition), N, dtype=torch.float64)  # (N,) from 1 down to 1 / condition
    a = (left * spectrum) @ right.T  # (N, N) with exactly this condition number
    y = a @ truth  # (N,)
    answers = (torch.linalg.solve(a.float(), y.float()), torch.linalg.solve(a, y),
               torch.from_numpy(np.linalg.solve(a.numpy(), y.numpy())))
    for name, answer in zip(lost, answers, strict=True):
        lost[name].append(((answer.double() - truth).norm() / truth.norm()).item())
error_32, error_64, error_numpy = (errors[conditions.index(1e6)] for errors in lost.values())

lab.metric("solve_error_float64", error_64, "relative error", better="lower")
lab.metric("solve_error_float32", error_32, "relative error", better="lower")
lab.baseline("solve_error_numpy", error_numpy, "numpy.linalg.solve, float64")
lab.gate("solve", "float64 solves a system of condition number 10⁶ to 7 digits (float32 cannot: that is the lesson)",
         metric="solve_error_float64", op="<=", limit=1e-7, exact=True)

# %% [markdown]
# ## 4. What a Python loop costs
#
# A sum of squares: the loop pays for the interpreter and a boxed float at every element, the vectorised form once per
# call. Then a matrix product on host and device: reported, never gated, for that speed belongs to the machine.

# %%
values = torch.randn(n_loop, generator=gen)  # (n_loop,)
numbers, values_numpy = values.tolist(), values.numpy()
times = {
    "Python loop": lab.seconds(lambda: sum(value * value for value in numbers), repeat=3),
    "NumPy": lab.seconds(lambda: values_numpy @ values_numpy, repeat=20),
    "torch, CPU": lab.seconds(lambda: values @ values, repeat=20),
}
speedup = times["Python loop"] / times["torch, CPU"]

big = torch.randn(n_matmul, n_matmul, generator=gen)  # a square
big_numpy, big_device = big.numpy(), big.to(device)
numpy_ms = 1e3 * lab.seconds(lambda: big_numpy @ big_numpy)
device_ms = 1e3 * lab.seconds(lambda: big_device @ big_device)
print(f"{speedup:.0f} times as fast as a loop; product: NumPy {numpy_ms:.1f} ms, torch {device_ms:.1f} ms")

lab.metric("speedup_over_loop", speedup, "times")
lab.metric("matmul_ms", device_ms, f"ms on {device.type}", better="lower")
lab.baseline("python_loop", 1.0, "the same sum in a Python for loop")
lab.baseline("matmul_numpy_ms", numpy_ms, "numpy on the CPU, ms")
lab.gate("vectorised", "one vectorised call is at least 20 times as fast as a Python loop",
         metric="speedup_over_loop", op=">=", limit=20, baseline="python_loop")
lab.honest(f"Milliseconds for a {n_matmul} x {n_matmul} matrix product: torch on {device.type}, and NumPy.",
           device_ms, numpy_ms)

# %% [markdown]
# ## 5. Put together: which two digits look alike?

# %%
images, labels = load_digits(return_X_y=True)  # (1797, 64) values 0..16, (1797,)
lab.data("digits", images, labels, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI")
is_class = torch.from_numpy(labels)[None] == torch.arange(10)[:, None]  # (10, 1797)
means = is_class.double() @ torch.from_numpy(images) / is_class.sum(1, keepdim=True)  # (10, 64)
distance = (means[:, None] - means[None]).norm(dim=-1)  # (10, 1, 64) - (1, 10, 64) -> (10, 10, 64) -> (10, 10)
pair = divmod((distance + 1e9 * torch.eye(10)).argmin().item(), 10)  # the diagonal is 0: keep it from winning
print("the two digits most alike on average:", *pair)


# %%
def draw_memory(figure) -> None:
    ax = figure.subplots()
    panels = [("block: the memory itself", block[None], 0, 0), ("rows = block.view(6, 4)", rows, 0, 2.6),
              ("rows.T", columns, 8, 2.6), ("rows[::2, 1::2]", every_second, 18, 2.6)]
    for title, view, left, top in panels:  # every cell is one unit wide in all four panels
        H, W = view.shape
        ax.imshow(view, cmap="YlGnBu", vmin=-4, vmax=30, extent=(left, left + W, top + H, top))
        for (i, j), number in np.ndenumerate(view.numpy()):
            ax.text(left + j + 0.5, top + i + 0.55, number, ha="center", va="center", fontsize=8.5,
                    color="white" if number > 15 else harness.COLOURS["ink"])
        ax.text(left, top - 0.25, title, fontweight="bold")
        if H > 1:
            ax.text(left, top + H + 0.75, f"strides {view.stride()}", color=harness.COLOURS["muted"])
    ax.set(xlim=(-0.1, 24.1), ylim=(9.6, -0.9))
    ax.set_axis_off()


def draw_precision_and_speed(figure) -> None:
    left_ax, right_ax = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for name, colour in (("float32", "bad"), ("float64", "ours")):
        left_ax.loglog(conditions, lost[name], "o-", ms=4, color=harness.COLOURS[colour], label=name)
    left_ax.axhline(1, color=harness.COLOURS["muted"], lw=1, ls=":", label="no digit left")
    left_ax.set(title="Digits lost in solving a linear system", xlabel="condition number", ylabel="relative error")
    left_ax.legend(loc="lower right")
    bars = right_ax.barh(list(times), [1e6 * t for t in times.values()],
                         color=[harness.COLOURS[c] for c in ("bad", "baseline", "ours")])
    right_ax.bar_label(bars, [f"{1e6 * t:,.0f} µs" for t in times.values()], padding=4)
    right_ax.set(title=f"Sum of {n_loop:,} squares", xscale="log", xlabel="microseconds (log)", xlim=(1, 1e5))
    right_ax.invert_yaxis()


lab.plot("memory", draw_memory, size=(9, 3.9),
         alt="24 memory places as one strip, and below it three grids over them: rows, transposed, every second one")
lab.plot("precision", draw_precision_and_speed, size=(9, 3.6),
         alt="Left: relative error grows with the condition number, float32 reaches 1 near 1e7. "
             "Right: time of a sum of squares as Python loop, in NumPy and in torch")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. In section 1 replace `rows.T` by `rows.T.contiguous()`. Which of the four memory claims breaks, and at what cost?
# 2. In section 2 make `b` of shape `(N,)` instead of `(K,)`. Read the error, then mend it with one `None` in an index.
# 3. In section 4 set `n_loop = 10`. From which size on is the vectorised form worth its overhead?
