# %% [markdown]
"""
# 06 · Images with a convolutional network

**Question.** Logistic regression looks at every pixel on its own. What is gained by a network that knows that pixels
have neighbours, and can we stop, go on, and ship it without changing a single bit?

**You will learn**

1. why convolution and pooling fit images: one small filter, used everywhere, and a little tolerance to shifts
2. what a checkpoint must hold so that *interrupted and resumed* equals *never interrupted*, exactly
3. how `torch.export` turns a Python model into a file that runs without the Python that made it

**Paradigm.** Supervised learning: images with labels.

**How to run.** `python labs/06_images.py` (about 20 seconds); press Ctrl-C and add `--resume` to see point 2 happen.

**Measured** on one core of a shared x86-64 machine, torch 2.13.0 for CPU, seeds 0 / 1 / 2: MEASURED06

**What you should see.** A confusion matrix that is nearly all diagonal. The digits that are still wrong are drawn
beside it, and most of them you would have to guess yourself.

**Where simple methods win.** On images this small a support vector machine with an RBF kernel is as good as the
network, trains in a tenth of a second and has two settings. Networks pull ahead when images and data sets grow.

**Left out on purpose.** Augmentation, learning-rate search, a validation set for early stopping: the settings below
were fixed before the test images were looked at, and every seed makes its own split.
"""

# %%
import harness

lab = harness.start(
    "06_images",
    title="Images with a CNN",
    paradigm="supervised",
    task="image classification",
    data="digits (scikit-learn)",
    seconds=20,
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

n_steps = 60 if lab.quick else 900
batch_size = 64
lr_peak = 4e-3  # one-cycle: up to here in the first third, then down to almost nothing
width = 24  # channels after the first convolution; the second has twice as many
log_every = 20

# %% [markdown]
# ## 1. The images
#
# 1,797 handwritten digits of 8 x 8 pixels. A convolution wants four axes: image, channel, row, column. The test
# images are set aside before anything is fitted, also the pixel scale: whoever peeks measures nothing.

# %%
N_CLASSES = 10


def load_images() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All images (N, H, W) in 0..1, their labels (N,), and the names of the classes."""
    pixels, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16
    lab.data("digits", pixels, labels, licence="CC BY 4.0 (UCI, via scikit-learn)",
             sha256="0b3e4ee14f82503950f2fd8375b2e78056c1dd5ef2cb04e4cd0cc4827c0e6bb6")
    return pixels.reshape(-1, 8, 8) / 16, labels, [str(digit) for digit in range(10)]


images, labels, names = load_images()
train, test = train_test_split(np.arange(len(images)), test_size=0.3, stratify=labels, random_state=lab.seed)
mean, std = images[train].mean(), images[train].std()  # of the training images only
standard = torch.from_numpy((images - mean) / std).float()[:, None]  # (N, 1, H, W)
x, y = standard[train].to(device), torch.from_numpy(labels)[train].to(device)
x_test, y_test = standard[test].to(device), torch.from_numpy(labels)[test].to(device)
print(f"{len(train)} training and {len(test)} test images of {images.shape[1]} x {images.shape[2]} pixels")

# %% [markdown]
# ## 2. The opponents
#
# Never report a network without the simple method beside it, on the same rows. Logistic regression has one weight per
# pixel and class; move the digit by a pixel and all of them are wrong. The RBF machine compares whole images.

# %%
flat = standard.flatten(1).numpy()  # (N, H * W)
simple = LogisticRegression(max_iter=2000).fit(flat[train], labels[train])
strong = SVC(gamma="scale", C=10).fit(flat[train], labels[train])
simple_accuracy = lab.baseline("accuracy_logistic", simple.score(flat[test], labels[test]), "sklearn LogisticRegression")
strong_accuracy = lab.baseline("accuracy_svm", strong.score(flat[test], labels[test]), "sklearn SVC, RBF kernel")
majority = np.bincount(labels[train]).argmax()
lab.baseline("accuracy_majority", float((labels[test] == majority).mean()), "always the most frequent class")
print(f"logistic regression {simple_accuracy:.3f}, support vector machine {strong_accuracy:.3f}")

# %% [markdown]
# ## 3. The network
#
# A convolution slides one small filter over the image: few weights, and a stroke is recognised wherever it is. Pooling
# then keeps the strongest answer of each 2 x 2 block, so that a shift by one pixel hardly matters. The last layer is
# again logistic regression, on features that the layers below have learned.


# %%
class CNN(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(0.25)
        self.out = nn.Linear(2 * width * (side // 4) ** 2, N_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 1, H, W)
        h = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)  # (B, width, H/2, W/2)
        h = F.max_pool2d(F.relu(self.norm2(self.conv2(h))), 2)  # (B, 2 width, H/4, W/4)
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
    y_hat = model(x_test).softmax(1)  # (N_test, 10)
    return (y_hat.argmax(1) == y_test).float().mean().item(), y_hat.cpu()


model, optimizer, schedule = make()
n_parameters = sum(p.numel() for p in model.parameters())
first = lab.resume(model=model, optimizer=optimizer, schedule=schedule, gen=gen)  # 0, unless --resume found a state
for step in lab.steps(first, n_steps):
    loss = train_step(model, optimizer, schedule, gen)
    if (step + 1) % log_every == 0:
        lab.log(step, loss=loss.item())
accuracy, y_hat = evaluate(model)
print(f"CNN with {n_parameters:,} parameters: {accuracy:.3f} of the test images right")

lab.metric("accuracy", accuracy, "share of test images")
lab.metric("parameters", n_parameters, "numbers", better="lower")
lab.gate("beats_logistic", "the CNN is at least 0.015 better than logistic regression on the same test images",
         metric="accuracy", op=">=", limit=simple_accuracy + 0.015, baseline="accuracy_logistic")
lab.honest("Share of test images right: the CNN against a support vector machine that trains in 0.1 s.",
           accuracy, strong_accuracy)

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
parts = dict(zip(("model", "optimizer", "schedule", "gen"), straight, strict=True))
lab.save(checkpoint, 5, **parts)  # also saves the global generators, which dropout uses
for _ in range(5):
    train_step(*straight)

torch.manual_seed(12345)  # another process would start from anything
resumed = (*make(), torch.Generator())  # other weights, empty averages, another batch order
lab.load(checkpoint, **dict(zip(parts, resumed, strict=True)))
for _ in range(5):
    train_step(*resumed)

differences = [(a - b).abs().max().item() for a, b in zip(straight[0].state_dict().values(),
                                                          resumed[0].state_dict().values(), strict=True)]  # fmt: skip
bit_exact = device.type == "cpu"  # accelerators may add the same numbers in another order
lab.metric("resume_difference", max(differences), "largest weight difference", better="lower")
lab.gate("resume", "five steps from a checkpoint equal five steps straight on, bit by bit on a CPU",
         metric="resume_difference", op="<=", limit=0 if bit_exact else 1e-3, exact=bit_exact)

# %% [markdown]
# ## 5. A model without its Python
#
# `torch.export` traces the model into a graph of plain operations and stores it with its weights. The batch size is
# declared free; without that, the file would only ever accept as many images as the example had.

# %%
model.eval()
batch_axis = torch.export.Dim("batch", min=1, max=4096)
program = torch.export.export(model, (x_test[:4],), dynamic_shapes=({0: batch_axis},))
torch.export.save(program, lab.folder / "model.pt2")
loaded = torch.export.load(lab.folder / "model.pt2").module()
with torch.no_grad():
    exported_difference = (loaded(x_test[:33]) - model(x_test[:33])).abs().max().item()  # 33: not the batch of the trace
print(f"exported: {(lab.folder / 'model.pt2').stat().st_size / 1024:.0f} KB, differs by {exported_difference:.1e}")

lab.metric("export_difference", exported_difference, "largest score difference", better="lower")
lab.gate("export", "the exported file gives the scores of the model within 10⁻⁵, for another batch size",
         metric="export_difference", op="<=", limit=1e-5, exact=True)

# %% [markdown]
# ## 6. Look at the mistakes
#
# A number says how many, a picture says which. Sort by how much probability the network gave to the wrong answer.

# %%
guess = y_hat.argmax(1)  # (N_test,)
truth = y_test.cpu()
wrong = (guess != truth).nonzero().flatten()
worst = wrong[y_hat[wrong, guess[wrong]].argsort(descending=True)][:6]  # the most confident mistakes first
least_sure = y_hat.gather(1, truth[:, None]).flatten().argsort()  # fill up with what was right, but hardly
shown = list(dict.fromkeys([*worst.tolist(), *least_sure.tolist()]))[:6]
table = confusion_matrix(truth, guess, labels=range(N_CLASSES))  # (10, 10) rows: truth, columns: guess


def draw(figure) -> None:
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    ax = left.subplots()
    ax.imshow(np.sqrt(table), cmap="Blues")  # square root: a single mistake stays visible beside fifty hits
    for (i, j), count in np.ndenumerate(table):
        if count:
            ax.text(j, i, count, ha="center", va="center", fontsize=8.5,
                    color="white" if count > 20 else harness.COLOURS["ink" if i == j else "bad"],
                    fontweight="normal" if i == j else "bold")  # fmt: skip
    ax.set(title=f"{len(wrong)} mistakes in {len(truth)} test images", xlabel="the network says", ylabel="it is",
           xticks=range(N_CLASSES), yticks=range(N_CLASSES), xticklabels=names, yticklabels=names)  # fmt: skip
    ax.spines[:].set_visible(False)
    for ax, i in zip(right.subplots(3, 2).flat, shown, strict=True):
        ax.imshow(images[test[i]], cmap="gray_r")
        right_now = guess[i] == truth[i]
        ax.set_title(f"says {names[guess[i]]}, {'rightly' if right_now else 'is ' + names[truth[i]]} "
                     f"({y_hat[i, guess[i]]:.0%})", fontsize=9, loc="center", pad=4,
                     color=harness.COLOURS["good" if right_now else "bad"])  # fmt: skip
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color(harness.COLOURS["grid"])


lab.plot("mistakes", draw, size=(9, 5),
         alt="Left: confusion matrix of the ten digits. Right: the six worst or least certain test images")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Leave out `gen` where `parts` is saved and loaded. The loss looks the same: which gate notices, and by how much?
# 2. Remove `model.eval()` from `evaluate`. How much accuracy does one forgotten line cost, and is it the same twice?
# 3. Train on 100 images only: `train = train[:100]`. Does the network or the support vector machine suffer more?
