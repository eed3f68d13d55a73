# %% [markdown]
"""
# 06 · Images with a convolutional network

**Question.** Logistic regression looks at every pixel on its own. What is gained by a network that knows that pixels
have neighbours, and can we stop, go on, and ship it without changing a single bit?

**You will learn**

1. why convolution and pooling fit images: one small filter, used everywhere, and a little tolerance to shifts
2. what a checkpoint must hold so that *interrupted and resumed* equals *never interrupted*, exactly
3. how `torch.export` turns a Python model into a file that runs without the Python that made it

**Paradigm.** Supervised learning. **How to run.** `python labs/06_images.py` (40 seconds); try Ctrl-C and `--resume`.
`--quick` takes scikit-learn's digits instead; `--full` is a wider network for a GPU, and was never run.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: test accuracy 0.885 / 0.892 / 0.893, logistic
regression 0.847 (gate: 0.018 better; the data has its own split, so the seed does not move it), support vector machine
0.868; resumed and exported models differ by 0.0. 37 CPU seconds, 0.71 GiB.

**What you should see.** A confusion matrix whose mistakes are not spread evenly: shirt, t-shirt, pullover and coat are
taken for each other; trousers and bags hardly ever are. The worst mistakes are drawn beside it.

**Where simple methods win.** A support vector machine with an RBF kernel gets 0.868 after three seconds of training,
with two settings, and wins on the digits of `--quick`. Networks pull ahead when images and data sets grow.

**Left out on purpose.** Augmentation and a validation set for early stopping. The split is the data set's own; the
seed draws weights, batches and dropout (with `--quick` also the split).
"""

# %%
import harness

lab = harness.start(
    "06_images",
    title="Images with a CNN", paradigm="supervised", task="image classification",
    data="Fashion-MNIST, 6,000 + 2,000 images", seconds=40,
)

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws the batches; part of the checkpoint, see section 4

n_steps = 60 if lab.quick else 4000 if lab.full else 500
batch_size, log_every = (256 if lab.full else 64), 20
lr_peak = 4e-3  # one-cycle: up to here in the first third, then down to almost nothing
width = 128 if lab.full else 32  # channels after the first convolution; the second has twice as many

# %% [markdown]
# ## 1. The images
#
# 8,000 grey pictures of clothes in ten classes of equal size. The test images are set aside before anything is fitted,
# also the pixel scale: whoever peeks measures nothing. A convolution wants four axes: image, channel, row, column.


# %%
def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    if lab.quick:  # 1,797 handwritten digits of 8 x 8 pixels: the same program in two seconds
        pixels, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16
        lab.data("digits", pixels, labels, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI",
                 sha256="0b3e4ee14f82503950f2fd8375b2e78056c1dd5ef2cb04e4cd0cc4827c0e6bb6")
        test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=lab.seed)[1]
        return pixels.reshape(-1, 8, 8) / 16, labels, test, [str(digit) for digit in range(10)]
    file = lab.read("fashion_8k.npz")
    pixels, labels = (np.concatenate([file[f"{name}_train"], file[f"{name}_test"]]) for name in "xy")
    names = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    return pixels / 255, labels.astype(np.int64), np.arange(len(file["y_train"]), len(labels)), names


images, labels, test, names = load_images()  # (N, H, W) in 0..1, (N,), the numbers of the test images
train = np.setdiff1d(np.arange(len(images)), test)
mean, std = images[train].mean(), images[train].std()  # of the training images only
standard = torch.from_numpy((images - mean) / std).float()[:, None]  # (N, 1, H, W)
x, y = standard[train].to(device), torch.from_numpy(labels)[train].to(device)
x_test, y_test = standard[test].to(device), torch.from_numpy(labels)[test].to(device)

# %% [markdown]
# ## 2. The opponents
#
# Never report a network without the simple method beside it, on the same rows. Logistic regression has one weight per
# pixel and class; move the picture by a pixel and all are wrong. The RBF machine compares whole images. A weak opponent
# would flatter us: C = 0.01 is the best of four that we tried for logistic regression (its default, 1, gets 0.82).

# %%
flat = standard.flatten(1).numpy()  # (N, H * W)
simple = LogisticRegression(C=1 if lab.quick else 0.01, max_iter=1000).fit(flat[train], labels[train])
strong = SVC(gamma="scale", C=10).fit(flat[train], labels[train])
simple_accuracy, strong_accuracy = (m.score(flat[test], labels[test]) for m in (simple, strong))
lab.baseline("accuracy_logistic", simple_accuracy, "sklearn LogisticRegression")
lab.baseline("accuracy_svm", strong_accuracy, "sklearn SVC, RBF kernel")

# %% [markdown]
# ## 3. The network
#
# A convolution slides one small filter over the image: few weights, and a stroke is recognised wherever it is. Pooling
# keeps the strongest answer of each 2 x 2 block, so that a shift by one pixel hardly matters (and all that follows has
# a quarter of the work). The last layer is again logistic regression, on features that the layers below have learned.


# %%
class CNN(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(0.25)
        self.out = nn.Linear(2 * width * (side // 4) ** 2, len(names))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 1, H, W)
        h = F.relu(self.norm1(F.max_pool2d(self.conv1(x), 2)))  # (B, width, H/2, W/2)
        h = F.relu(self.norm2(F.max_pool2d(self.conv2(h), 2)))  # (B, 2 width, H/4, W/4)
        return self.out(self.drop(h.flatten(1)))  # (B, 10) one score per class


def make() -> tuple[CNN, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    model = CNN(width, images.shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr_peak, weight_decay=0.01)
    return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr_peak, total_steps=n_steps)


def train_step(model: CNN, optimizer: torch.optim.Optimizer, schedule, gen: torch.Generator) -> torch.Tensor:
    batch = torch.randint(len(x), (batch_size,), generator=gen)  # drawn anew each step: no epoch to remember
    model.train()  # dropout on, batch statistics
    loss = F.cross_entropy(model(x[batch.to(device)]), y[batch.to(device)])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    return loss


@torch.no_grad()
def evaluate(model: nn.Module) -> tuple[float, torch.Tensor]:
    model.eval()  # dropout off, running statistics: without this line the answer depends on the batch
    y_hat = torch.cat([model(part).softmax(1) for part in x_test.split(500)])  # (N_test, 10), 500 at a time: memory
    return (y_hat.argmax(1) == y_test).float().mean().item(), y_hat.cpu()


model, optimizer, schedule = make()
first = lab.resume(model=model, optimizer=optimizer, schedule=schedule, gen=gen)  # 0, unless --resume found a state
for step in lab.steps(first, n_steps):
    loss = train_step(model, optimizer, schedule, gen)
    if (step + 1) % log_every == 0:
        lab.log(step, loss=loss.item())
accuracy, y_hat = evaluate(model)

lab.metric("accuracy", accuracy, "share of test images")
lab.metric("parameters", sum(p.numel() for p in model.parameters()), "numbers", better="lower")
lab.gate("beats_logistic", "the CNN is at least 0.018 better than logistic regression on the same test images",
         metric="accuracy", op=">=", limit=simple_accuracy + 0.018, baseline="accuracy_logistic")
lab.honest("Share of test images right: the CNN, a support vector machine.", accuracy, strong_accuracy)

# %% [markdown]
# ## 4. Interrupted and resumed = never interrupted
#
# The weights alone are not enough. Adam remembers two averages per weight, the schedule its place, the generator which
# batch comes next, and dropout draws from torch's global generator. Forget one and the run continues, looks healthy,
# and is a different run. Here: five steps straight, then the same five from a checkpoint in a *new* model.

# %%
checkpoint = lab.folder / "checkpoint.pt"
straight = (*make(), gen)  # a fresh model, optimizer and schedule; the generator as it is now
for _ in range(5):
    train_step(*straight)  # so that Adam's averages and the batch statistics are no longer zero
parts = ("model", "optimizer", "schedule", "gen")
lab.save(checkpoint, 5, **dict(zip(parts, straight, strict=True)))  # and the global generators, which dropout uses
for _ in range(5):
    train_step(*straight)

torch.manual_seed(12345)  # another process would start from anything
resumed = (*make(), torch.Generator())  # other weights, empty averages, another batch order
lab.load(checkpoint, **dict(zip(parts, resumed, strict=True)))
for _ in range(5):
    train_step(*resumed)

weights = zip(straight[0].state_dict().values(), resumed[0].state_dict().values(), strict=True)
bit_exact = device.type == "cpu"  # accelerators may add the same numbers in another order
lab.metric("resume_difference", max((a - b).abs().max() for a, b in weights), "largest difference", better="lower")
lab.gate("resume", "five steps from a checkpoint equal five steps straight on, bit by bit on a CPU",
         metric="resume_difference", op="<=", limit=0 if bit_exact else 1e-3, exact=bit_exact)

# %% [markdown]
# ## 5. A model without its Python
#
# `torch.export` traces the model into a graph of plain operations and stores it with its weights. The batch size is
# declared free; without that, the file would only ever accept as many images as the example had.

# %%
model.eval()
program = torch.export.export(model, (x_test[:4].clone(),), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},))
torch.export.save(program, lab.folder / "model.pt2")
loaded = torch.export.load(lab.folder / "model.pt2").module()
with torch.no_grad():
    exported_difference = (loaded(x_test[:33]) - model(x_test[:33])).abs().max().item()  # 33 images, traced with 4

lab.metric("export_difference", exported_difference, "largest score difference", better="lower")
lab.gate("export", "the exported file gives the scores of the model within 10⁻⁵, for another batch size",
         metric="export_difference", op="<=", limit=1e-5, exact=True)

# %% [markdown]
# ## 6. A number says how many, a picture says which: the most confident mistakes

# %%
guess = y_hat.argmax(1)  # (N_test,)
truth = y_test.cpu()
wrong = (guess != truth).nonzero().flatten()
worst = wrong[y_hat[wrong, guess[wrong]].argsort(descending=True)][:6].tolist()
table = confusion_matrix(truth, guess, labels=range(len(names)))  # (10, 10) rows: truth, columns: guess


def draw(figure) -> None:
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    ax = left.subplots()
    ax.imshow(np.sqrt(table), cmap="Blues")  # square root: a single mistake stays visible beside ninety hits
    for i, j in np.argwhere(table):
        ax.text(j, i, table[i, j], ha="center", va="center", fontsize=8.5, fontweight="normal" if i == j else "bold",
                color="white" if 4 * table[i, j] > table.max() else harness.COLOURS["ink" if i == j else "bad"])
    ax.set(title=f"{len(wrong)} mistakes in {len(truth)} test images", xlabel="the network says", ylabel="it is",
           xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    ax.tick_params("x", rotation=0 if lab.quick else 40)
    ax.spines[:].set_visible(False)
    for ax, i in zip(right.subplots(3, 2).flat, worst, strict=False):
        ax.imshow(images[test[i]], cmap="gray_r")
        ax.set_title(f"{names[guess[i]]} ({y_hat[i, guess[i]]:.0%}), is {names[truth[i]]}",
                     fontsize=8.5, loc="center", pad=4, color=harness.COLOURS["bad"])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color(harness.COLOURS["grid"])


lab.plot("mistakes", draw, size=(9, 5), alt="Confusion matrix of the ten classes, and the six most confident mistakes")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Leave out `gen` where `parts` is saved and loaded. The loss looks the same: which gate notices, and by how much?
# 2. Remove `model.eval()` from `evaluate`. How much accuracy does one forgotten line cost, and is it the same twice?
# 3. Train on 100 images only: `train = train[:100]`. Does the network or the support vector machine suffer more?
