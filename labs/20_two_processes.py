# %% [markdown]
"""
# 20 · Two processes, one model

**Question.** Many machines train one model by each taking a part of the batch. Is that really the same training, number
for number, and what does it cost?

**You will learn**

1. why the mean of two half-batch gradients *is* the gradient of the whole batch, if the halves are equally large
2. what an all-reduce does, and that data-parallel training is one all-reduce per step and nothing more
3. how processes find each other, and why anything that starts processes needs a timeout and a clean-up

**Paradigm.** Systems, 2 of 2. **How to run.** `python labs/20_two_processes.py` (15 seconds), on the CPU.

**Measured** on two x86-64 cores, torch 2.13.0 for CPU, seeds 0 / 1 / 2: weights differ by 4e-16 / 6e-16 / 6e-16 at
most in 150 steps (gate: 1e-10), without the all-reduce by 0.28 / 0.26 / 0.33. Seconds for the steps: one process 0.06,
two with DDP 0.36 / 0.45 / 0.42, two with our all-reduce 1.3 / 1.3 / 1.2. 20 CPU seconds, 0.47 GiB a process.

**What you should see.** Two lines near 10⁻¹⁵, the last digits of float64: after every step the two processes hold what
one process alone would hold. The third line forgot the all-reduce; its two models drift apart at once.

**Where simple methods win.** For a model this small one process is six times faster: the numbers spend longer on the
way than in the making. Split a batch only when one device cannot hold it, or takes too long for it.

**Left out on purpose.** Splitting the model itself, and more than one machine; the same two calls would do the latter.
"""

# %%
import os
import subprocess
import sys
import time

import harness

lab = harness.start(
    "20_two_processes",
    title="Two processes, one model", paradigm="systems", task="data-parallel training",
    data="digits (scikit-learn)", seconds=15,
)

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

n_ranks, limit_s = 2, 120  # processes, and seconds after which they are stopped
n_steps, batch_size, lr = (10 if lab.quick else 150), 64, 0.1  # 64 images in all, 32 in each process
if lab.device.type == "mps":
    lab.fallback("everything: float64 and gloo", to="cpu", why="MPS has no float64 and no process group")
elif lab.device.type != "cpu":
    lab.fallback("both processes", to="cpu", why="two processes would share one device; the lesson is the same")

# %% [markdown]
# ## 1. The data and the batches, fixed beforehand
#
# To compare runs number for number, everything random is drawn once, here, and written to a file that all read: the
# first weights and which rows make up each batch. float64, so that a wrong formula cannot hide behind rounding.

# %%
images, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
lab.data("digits", images, labels, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI")
train, test = train_test_split(range(len(images)), test_size=500, stratify=labels, random_state=lab.seed)
x_all, y_all = torch.from_numpy(images / 16), torch.from_numpy(labels)  # float64
x, y, x_test, y_test = x_all[train], y_all[train], x_all[test], y_all[test]
gen = torch.Generator().manual_seed(lab.seed)
batches = torch.randint(len(train), (n_steps, batch_size), generator=gen)  # (steps, 64)
torch.manual_seed(lab.seed)


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10)).double()


start = make().state_dict()
torch.save({"x": x, "y": y, "batches": batches, "start": start, "lr": lr},
           lab.folder / "problem.pt")

# %% [markdown]
# ## 2. One process, the whole batch
#
# The reference: plain gradient descent with momentum, and the weights noted after every step, in one row.
# %%
def alone() -> tuple[nn.Sequential, torch.Tensor]:
    model = make()
    model.load_state_dict(start)
    optimizer, history = torch.optim.SGD(model.parameters(), lr, momentum=0.9), []
    for batch in batches:
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())  # (3610,)
    return model, torch.stack(history)  # (steps, 3610)


alone()  # once to warm up: the first step of a process pays for what is loaded late
began = time.perf_counter()
model, reference = alone()
alone_s = time.perf_counter() - began
accuracy = (model(x_test).argmax(1) == y_test).double().mean()
lab.metric("accuracy", accuracy, "share of test images")
guess = lab.baseline("accuracy_guess", y_test.bincount().max() / len(test), "always the most common digit")
lab.gate("learns", "the model that all of them train is worth it: five times better than guessing",
         metric="accuracy", op=">=", limit=5 * guess, baseline="accuracy_guess")

# %% [markdown]
# ## 3. The worker: the same loop, half the rows, one more line
#
# Each process reads its half of the batch. `all_reduce` adds up a tensor over all processes and gives everyone the sum;
# divided by their number it is the mean gradient, which is the gradient of the mean over the whole batch. From equal
# weights and equal gradients the same optimizer makes equal weights: the models never need to be compared or copied.
#
# The worker is a program of its own: a fresh process knows nothing of this one. It trains three times: with our
# all-reduce, with torch's `DistributedDataParallel`, which does it while `backward` still runs, and with none.

# %%
worker_source = '''
import sys, time, datetime, torch, torch.distributed as dist
from torch import nn

folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
# The ranks meet through a file: no port to be taken, nothing that another machine could reach.
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
                        timeout=datetime.timedelta(seconds=60))
problem = torch.load(f"{folder}/problem.pt", weights_only=True)
x, y = problem["x"], problem["y"]
total = torch.full((3,), float(rank + 1))
dist.all_reduce(total)  # 1 + 2 = 3 in every process


def train(mode):
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10)).double()
    model.load_state_dict(problem["start"])
    call = nn.parallel.DistributedDataParallel(model) if mode == "ddp" else model
    optimizer, history = torch.optim.SGD(model.parameters(), problem["lr"], momentum=0.9), []
    dist.barrier()  # the clock starts when all are ready
    began = time.perf_counter()
    for batch in problem["batches"]:
        mine = batch.chunk(world)[rank]  # rows 0..31 or 32..63 of the 64
        loss = nn.functional.cross_entropy(call(x[mine]), y[mine])  # the mean over 32 rows
        optimizer.zero_grad()
        loss.backward()
        if mode == "reduce":
            for p in model.parameters():
                dist.all_reduce(p.grad)  # the sum over the processes, in place
                p.grad /= world
        optimizer.step()
        history.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    return {"history": torch.stack(history), "seconds": time.perf_counter() - began}


train("none")  # once to warm up
results = {mode: train(mode) for mode in ("reduce", "ddp", "none")}
torch.save(results | {"total": total}, f"{folder}/rank-{rank}.pt")
dist.barrier()
dist.destroy_process_group()
'''
(lab.folder / "worker.py").write_text(worker_source, encoding="utf-8")


def together() -> list[dict]:
    """Start the workers and give what each of them saved. None of them outlives this call, whatever happens."""
    folder, workers = lab.folder.resolve(), []
    for old in (folder / "meet", *(folder / f"rank-{rank}.pt" for rank in range(n_ranks))):
        old.unlink(missing_ok=True)  # a file left by an earlier run would lead the ranks astray
    loopback = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}  # never leave this machine
    said = [folder / f"rank-{rank}.txt" for rank in range(n_ranks)]
    try:
        for rank in range(n_ranks):
            command = [sys.executable, str(folder / "worker.py"), str(folder), str(rank), str(n_ranks)]
            with said[rank].open("w") as file:
                workers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                                env=os.environ | loopback))
        deadline = time.monotonic() + limit_s
        while any(w.poll() is None for w in workers):
            if any(w.poll() for w in workers) or time.monotonic() > deadline:
                break  # one has failed, and the other would wait for it for ever
            time.sleep(0.05)
    finally:  # also on Ctrl-C
        for w in workers:
            w.kill()
            w.wait()
    if any(w.returncode for w in workers):
        codes, texts = [w.returncode for w in workers], [file.read_text()[-2000:] for file in said]
        raise RuntimeError(f"workers ended with {codes} (limit {limit_s} s):\n" + "\n".join(texts))
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(n_ranks)]


ranks = together()

# %% [markdown]
# ## 4. The same training?
# %%
def drift(mode: str) -> torch.Tensor:  # (steps,) the largest distance of any process from the one that was alone
    return torch.stack([(rank[mode]["history"] - reference).abs().amax(1) for rank in ranks]).amax(0)

sum_error = max((rank["total"] - sum(range(1, n_ranks + 1))).abs().max() for rank in ranks)
lab.metric("sum_error", sum_error, "all-reduce of the ranks' numbers", better="lower")
lab.gate("sum", "an all-reduce gives every process the sum over all", metric="sum_error", op="==", limit=0, exact=True)
for mode, name in (("reduce", "our all-reduce"), ("ddp", "DistributedDataParallel")):
    lab.metric(f"difference_{mode}", drift(mode).max(), "largest weight difference, any step", better="lower")
    lab.gate(mode, f"two processes with {name} equal one process with the whole batch within 10⁻¹⁰, at every step",
             metric=f"difference_{mode}", op="<=", limit=1e-10, exact=True)
apart = (ranks[0]["none"]["history"] - ranks[1]["none"]["history"]).abs().amax(1)  # (steps,)
lab.metric("difference_none", apart[-1], "between the two processes at the end")
lab.gate("needed", "without the all-reduce the two models end up far apart", metric="difference_none", op=">=",
         limit=0.05)

seconds = {mode: max(rank[mode]["seconds"] for rank in ranks) for mode in ("reduce", "ddp")}
for mode, s in seconds.items():
    lab.metric(f"seconds_{mode}", s, "seconds in the loop, two processes", better="lower")
lab.baseline("seconds_alone", alone_s, "one process, the same batches")
lab.honest("Seconds for the same training: two processes against one. A tiny model only loses by being shared.",
           seconds["ddp"], alone_s)


def draw(figure) -> None:
    ax, clock = figure.subplots(1, 2, width_ratios=[1.7, 1])
    at = range(1, n_steps + 1)
    for values, name, colour, line in ((apart, "no all-reduce: the two apart", "bad", "-"),
                                       (drift("reduce"), "our all-reduce", "ours", "-"),
                                       (drift("ddp"), "torch's DDP", "good", ":")):
        ax.semilogy(at, values.clamp(min=1e-17), line, lw=3, color=harness.COLOURS[colour], label=name)
    ax.axhline(1e-10, color=harness.COLOURS["muted"], lw=1, ls="--")
    ax.text(n_steps, 2e-10, "gate", ha="right", color=harness.COLOURS["muted"])
    ax.set(title="Weights against one process alone", xlabel="step", ylabel="largest difference (log)",
           ylim=(1e-17, 1e2))
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.68))
    bars = {"one process": alone_s, "two, all-reduce": seconds["reduce"], "two, DDP": seconds["ddp"]}
    colours = [harness.COLOURS[name] for name in ("baseline", "ours", "good")]
    drawn = clock.barh(list(bars), list(bars.values()), color=colours)
    clock.bar_label(drawn, [f"{value:.2f} s" for value in bars.values()], padding=4)
    clock.set(title=f"Seconds for {n_steps} steps", xlabel="seconds", xlim=(0, 1.3 * max(bars.values())))
    clock.invert_yaxis()


lab.plot("difference", draw, size=(9, 3.8),
         alt="Left: two processes stay within 1e-14 of one, or drift apart without all-reduce. Right: seconds taken")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. In the worker leave out `p.grad /= world`. The loss still falls; which gate notices? Could `lr` make up for it?
# 2. Split unevenly: rank 0 takes `batch[:48]`, rank 1 `batch[48:]`. Why is the mean of two means wrong now?
# 3. Set `n_ranks = 4`. How do the seconds grow, and why does the difference stay where it is?
