# %% [markdown]
"""
# 19 · Speed and memory

**Question.** Where does the time of a training step go, into arithmetic or into waiting for memory, and which of the
usual tricks (compiling, half precision, checkpoints, loader processes) helps on *this* machine?

**You will learn**

1. the roofline: why a matrix product is fast and adding two vectors is slow, on every processor
2. what `torch.compile`, bf16 and checkpointing promise, what they must never change, and how to measure what they give
3. how a `DataLoader` hands batches over in shared memory, and why that kills workers in a container

**Paradigm.** Systems, 1 of 2. **How to run.** `python labs/19_speed.py` (20 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: 24 / 22 / 21 GB/s, 102 / 99 / 100 GFLOP/s (NumPy
103 / 101 / 101); compiling takes 10 / 10 / 11 s and makes a step 0.85 / 0.96 / 0.94 times as fast; bf16 2.1 / 1.8 / 1.9
times; a checkpointed step keeps 0.57 of the bytes. Results differ by 7e-8 at most, bf16 by 0.005. 18 CPU s, 0.62 GiB.

**What you should see.** Points under a roof. Left of its edge an operation waits for memory, right of it the processor
works at its limit; small products reach neither. Then the tricks as bars: longer than 1 is a gain, and some are not.

**Where simple methods win.** Doing nothing. For a small model on one CPU core, eager torch without workers is as fast
as anything: compiling takes longer than the whole training, and workers spend more time on handing over than on work.

**Left out on purpose.** The profiler, and CUDA graphs: both need a step that is longer than a millisecond. No speed is
gated, for it belongs to the machine; that the tricks change no result is.
"""

# %%
import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import harness

lab = harness.start(
    "19_speed",
    title="Speed and memory", paradigm="systems", task="measuring a training step",
    data="random numbers (synthetic)", seconds=20,
)

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)
sides = (32, 128, 256) if lab.quick else (32, 64, 128, 256, 512, 1024)  # of the square products
n_vector = 2**20 if lab.quick else 2**24  # 64 MB: larger than any cache, so that it comes from memory
width, depth, batch_size = 256, 3, 256  # of the network that is compiled, rounded and checkpointed

# %% [markdown]
# ## 1. The roofline
#
# Two ceilings: what the processor can compute, and what memory can bring. Which one holds depends on how often a number
# is used once it is there, the *intensity*. Adding two vectors: 1 operation for 12 bytes. A product of n x n matrices:
# n / 6 operations per byte. (Williams, Waterman, Patterson: Roofline, Communications of the ACM 52(4), 2009.)

# %%
vector, other = (torch.randn(n_vector, generator=gen).to(device) for _ in range(2))
target = torch.empty_like(vector)
copy_s = lab.seconds(lambda: target.copy_(vector))
add_s = lab.seconds(lambda: torch.add(vector, other, out=target))
bandwidth = 2 * 4 * n_vector / copy_s / 1e9  # GB/s: every number is read and written, 4 bytes each way
points = {"add": (1 / 12, n_vector / add_s / 1e9)}  # name: (operations per byte, 10⁹ operations per second)
for n in sides:
    a, b = (torch.randn(n, n, generator=gen).to(device) for _ in range(2))
    repeat = max(1, 2**21 // n**3)  # small ones many times in a row, or the clock would see itself
    points[f"{n}"] = n / 6, 2 * n**3 * repeat / 1e9 / lab.seconds(lambda: [a @ b for _ in range(repeat)])  # noqa: B023
peak = max(speed for _, speed in points.values())
a_np, b_np = a.cpu().numpy(), b.cpu().numpy()  # the largest pair
numpy_speed = 2 * n**3 / lab.seconds(lambda: a_np @ b_np) / 1e9

lab.data("vectors", vector.cpu().numpy(), licence="CC0 (made here)", synthetic=True)
lab.metric("bandwidth", bandwidth, "GB/s, copying")
lab.metric("peak", peak, "GFLOP/s, the fastest matrix product")
lab.metric("add_speed", points["add"][1], "GFLOP/s, adding two long vectors")
lab.baseline("numpy_peak", numpy_speed, f"numpy, product of {n} x {n} on the CPU")
lab.honest(f"GFLOP/s of a {n} x {n} product: torch on {device.type}, and NumPy.", points[f"{n}"][1], numpy_speed)
error = np.abs((a @ b).cpu().numpy() - a_np @ b_np).max() / np.abs(a_np @ b_np).max()
lab.metric("product_error", error, "relative, against NumPy", better="lower")
lab.gate("product", "what was timed is the product: torch and NumPy agree within 10⁻⁴ of its largest number",
         metric="product_error", op="<=", limit=1e-4, exact=True)

# %% [markdown]
# ## 2. Compiling
#
# Eager torch calls kernel after kernel, and each reads and writes memory. `torch.compile` writes a program that does,
# say, bias and activation in one pass. That takes a C++ compiler, and time.

# %%
torch.manual_seed(lab.seed)
layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.GELU())]
model = nn.Sequential(*layers).to(device)
x = torch.randn(batch_size, width, generator=gen).to(device)  # (256, 256)
with torch.no_grad():
    y_hat = model(x)
    eager_ms = 1e3 * lab.seconds(lambda: model(x), repeat=20)
lab.baseline("eager_ms", eager_ms, f"{depth} layers forward, eager, ms")
gains = {}  # how many times as fast as the plain way


def cannot_compile() -> str:  # the reason, or nothing
    if lab.quick or device.type != "cpu":
        return f"we never tried it on {device.type.upper()}" if device.type != "cpu" else "it takes longer than --quick"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) here; the images leave it out, since it is large"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h here (Debian: python3-dev), which compiled code needs"
    return ""


if reason := cannot_compile():
    lab.fallback("torch.compile", to="skipped", why=reason)
    print(f"torch.compile is skipped: {reason}")
else:
    cache = lab.folder.resolve() / "compiled"  # of our own, and emptied: nothing made by an earlier run is used
    shutil.rmtree(cache, ignore_errors=True)
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # we have one core
    compiled = torch.compile(model)
    with torch.no_grad():
        began = time.perf_counter()
        again = compiled(x)  # the first call compiles
        compile_s = lab.metric("compile_seconds", time.perf_counter() - began, "seconds, once", better="lower")
        compiled_ms = lab.metric("compiled_ms", 1e3 * lab.seconds(lambda: compiled(x), repeat=20), "ms", better="lower")
    shutil.rmtree(cache, ignore_errors=True)
    lab.metric("compiled_difference", (again - y_hat).abs().max(), "largest difference", better="lower")
    lab.gate("compiled", "the compiled model gives the eager model's numbers within 10⁻⁵",
             metric="compiled_difference", op="<=", limit=1e-5, exact=True)
    gains["compiled"] = eager_ms / compiled_ms
    lab.honest(f"Milliseconds of a forward pass: compiled, after {compile_s:.0f} s of compiling, and eager.",
               compiled_ms, eager_ms)

# %% [markdown]
# ## 3. Half precision
#
# bf16 keeps float32's range and 8 bits of its digits: half the bytes, and more speed on processors that multiply it
# directly. Where they do not, torch imitates it, and a product was a hundred times slower on one CPU that we tried. So
# *ask the machine first*: time one small product, then decide. `autocast` picks the operations that can bear it.

# %%
half = torch.randn(256, 256, generator=gen).to(device)
half_s = [lab.seconds(lambda m=m: m @ m, repeat=3) for m in (half, half.bfloat16())]
gains["bf16 product"] = lab.metric("bf16_gain", half_s[0] / half_s[1], "times as fast as float32, 256 x 256")
print("use bf16 here" if half_s[1] < half_s[0] else "leave bf16 alone here: it is slower than float32")
with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
    rounded = model(x[:32]).float()  # few rows: it may be slow
amp_error = lab.metric("amp_error", (rounded - y_hat[:32]).norm() / y_hat[:32].norm(), "relative", better="lower")
lab.gate("amp", f"{depth} layers in bf16 differ by at most {depth} times its rounding, 2⁻⁷ in all that is added up",
         metric="amp_error", op="<=", limit=depth * 2**-7, exact=True)

# %% [markdown]
# ## 4. Memory: keep, or compute twice
#
# `backward` needs what `forward` computed, so every activation is kept: that fills a GPU, not the weights. A checkpoint
# keeps only the input of a block, and runs the block again on the way back. Autograd's own hooks count the kept bytes.

# %%
def step(keep_all: bool) -> tuple[torch.Tensor, int, float]:  # gradient, bytes kept, seconds
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if (place := t.untyped_storage().data_ptr()) not in weights:
            kept[place] = t.untyped_storage().nbytes()  # the same memory kept twice counts once
        return t

    def forward() -> torch.Tensor:
        h = x
        for i in range(0, len(model), 2):  # a block: a layer and its activation
            h = model[i : i + 2](h) if keep_all else checkpoint(model[i : i + 2], h, use_reentrant=False)
        return h.square().mean()

    seconds = lab.seconds(lambda: (model.zero_grad(), forward().backward()), repeat=5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return model[0].weight.grad.clone(), sum(kept.values()), seconds


(plain_grad, plain_bytes, plain_s), (saving_grad, saving_bytes, saving_s) = step(True), step(False)
lab.metric("kept_share", saving_bytes / plain_bytes, "of the bytes kept for backward", better="lower")
gains["checkpointed step"] = 1 / lab.metric("checkpoint_cost", saving_s / plain_s, "times as long", better="lower")
difference = (saving_grad - plain_grad).norm() / plain_grad.norm()
lab.metric("checkpoint_difference", difference, "of the gradient, relative", better="lower")
lab.gate("checkpoint", "a checkpointed step has the gradient of a plain one within 10⁻⁵ of its size",
         metric="checkpoint_difference", op="<=", limit=1e-5, exact=True)
lab.gate("kept", "checkpointing keeps at most 0.7 of the bytes", metric="kept_share", op="<=", limit=0.7, exact=True)

# %% [markdown]
# ## 5. Loader processes and shared memory
#
# Workers prepare batches beside the training and pass them on in `/dev/shm`. Docker gives a container 64 MB of it, one
# batch of 128 photographs (3 x 224 x 224) is 77 MB, and the worker dies of a "bus error" that explains nothing.

# %%
shared = Path("/dev/shm")  # noqa: S108 (nothing of ours is written there)
if shared.is_dir() and (shm_mb := shutil.disk_usage(shared).total / 1e6) < 1000:
    print(f"{shared} has {shm_mb:.0f} MB, too little for large batches: docker run --shm-size=1g, or --ipc=host")
rows = TensorDataset(torch.arange(2_000 if lab.quick else 20_000)[:, None].float())
seconds, sums = {}, {}
for n_workers in (0, 1, 2):
    if n_workers and sys.platform != "linux":
        lab.fallback(f"{n_workers} workers", to="skipped", why="a process that is spawned would run this file again")
        continue
    loader = DataLoader(rows, 100, num_workers=n_workers, multiprocessing_context="fork" if n_workers else None)
    began = time.perf_counter()
    sums[n_workers] = [batch.sum().item() for (batch,) in loader]  # batches of 400 bytes: any shm is enough
    seconds[n_workers] = time.perf_counter() - began
    lab.metric(f"loader_seconds_{n_workers}", seconds[n_workers], f"seconds, workers: {n_workers}", better="lower")
    if n_workers:
        gains[f"{n_workers} worker{'s' * (n_workers > 1)}"] = seconds[0] / seconds[n_workers]
lab.metric("loader_wrong", sum(found != sums[0] for found in sums.values()), "numbers of workers", better="lower")
lab.gate("loader", "any number of workers gives the same batches in the same order",
         metric="loader_wrong", op="==", limit=0, exact=True)


def draw(figure) -> None:
    roof, bars = figure.subplots(1, 2, width_ratios=[1.3, 1])
    at = np.logspace(-1.3, 2.5, 100)
    roof.loglog(at, np.minimum(peak, bandwidth * at), color=harness.COLOURS["baseline"], label="the roof")
    for name, (intensity, speed) in points.items():
        roof.plot(intensity, speed, "o", ms=7, color=harness.COLOURS["ours"])
        roof.annotate(name, (intensity, speed), (0, -14), textcoords="offset points", ha="center", fontsize=8)
    roof.set(title=f"Waiting for memory ({bandwidth:.0f} GB/s), or computing", xlabel="operations per byte",
             ylabel="10⁹ operations per second")
    drawn = bars.barh(list(gains), list(gains.values()),
                      color=[harness.COLOURS["good" if gain > 1 else "bad"] for gain in gains.values()])
    bars.bar_label(drawn, fmt="%.2g", padding=4)
    bars.axvline(1, color=harness.COLOURS["ink"], lw=1)
    bars.set(title="Tricks: times as fast as without", xscale="log", xlim=(0.05, 4 * max(1, *gains.values())))
    bars.set_xticks([0.1, 1], ["0.1", "1"])
    bars.minorticks_off()
    bars.invert_yaxis()


lab.plot("roofline", draw, size=(9, 4), alt="Operations under the roofline; gains of compiling, bf16 and workers")
lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Run with `--threads 2`. Which points move up, and does the slanted part of the roof move as much as the flat one?
# 2. Set `batch_size = 4096`. How many calls does compiling need now to pay off, and what do checkpoints save?
# 3. Give each row work to do: a dataset whose `__getitem__` sleeps 1 ms. From how much work on do two workers help?
