# %% [markdown]
"""
# 18 · Missing patches

**Question.** Hide ten of the sixteen patches of a picture and ask a network to paint them. No label is needed for
that. Does it learn what clothes look like, and is what it learned good for anything else?

**You will learn**

1. how a Vision Transformer reads a picture as a short sentence of patches, and why it then needs positions
2. the masked autoencoder: the encoder gets the visible patches only, a small decoder paints the others
3. how to judge features without training them further (a linear probe), and against whom

**Paradigm.** Self-supervised learning. **How to run.** `python labs/18_missing_patches.py` (45 seconds); after Ctrl-C
`--resume` goes on. `--full` is a larger network for a GPU; it was never run.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: error in the hidden patches 0.219 / 0.216 /
0.217, one ridge regression 0.261 / 0.261 / 0.263 (gate: 0.92 of it); accuracy of a linear probe 0.753 / 0.773 / 0.759,
of an untrained encoder 0.620 / 0.609 / 0.628 (gate: 0.06 more). 46 CPU seconds, 0.74 GiB.

**What you should see.** Outlines are right and edges are soft: where several pictures are possible, squared error
rewards their average. Text and patterns that lie wholly in hidden patches cannot come back; nobody told the network.

**Where simple methods win.** Here, at painting: ten nearest neighbours (0.20) and a Gaussian (0.20) beat the network,
in two seconds and without training. And 784 raw pixels (0.80) beat 64 averaged features; 16 x 64 win (0.81 to 0.82).

**Left out on purpose.** Augmentation (mirroring hurts so short a training) and fine-tuning the encoder with labels.
The split is the data set's own; the seed draws masks, weights and batches.
"""

# %%
import harness

lab = harness.start(
    "18_missing_patches",
    title="Missing image patches", paradigm="self-supervised", task="image restoration",
    data="Fashion-MNIST, 6,000 + 2,000 images", seconds=45,
)

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws masks and batches; part of the checkpoint

n_patches, n_keep, patch = 16, 6, 7  # 4 x 4 patches of 7 x 7 pixels. Of 4 x 4 pixels there are 49: too slow for a CPU
n_steps = 20 if lab.quick else 20_000 if lab.full else 1000
batch_size, log_every = (64 if lab.quick else 512 if lab.full else 160), 20
d_model, n_heads, n_blocks = (256, 8, 6) if lab.full else (64, 4, 2)
lr_peak = 1e-3 if lab.full else 8e-3  # one-cycle: a small network stands a large step in the middle of training
n_train, n_test, n_masks = (600, 200, 10) if lab.quick else (6000, 2000, 100)  # masks: one for 20 test images each

# %% [markdown]
# ## 1. Sixteen words per picture
#
# Cutting an image into patches moves numbers and changes none. The scale comes from the training images alone, and
# makes the error easy to read: guessing one grey for everything costs 1.


# %%
def to_patches(images: torch.Tensor) -> torch.Tensor:  # (N, 28, 28) -> (N, 4, 7, 4, 7) -> (N, 16, 49)
    return ((images - mean) / std).reshape(-1, 4, patch, 4, patch).transpose(2, 3).reshape(-1, n_patches, patch**2)


def random_mask(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.rand(n, n_patches, generator=gen).argsort(1)[:, :n_keep]  # (n, 6) numbers of the visible patches
    return keep, torch.ones(n, n_patches, dtype=torch.bool).scatter(1, keep, False)  # (n, 16) True where hidden


def hidden_error(filled: torch.Tensor) -> float:
    return ((filled.view_as(x_test) - x_test) ** 2)[hidden_test].mean().item()  # of all hidden test pixels


file = lab.read("fashion_8k.npz")
images, images_test = (torch.from_numpy(file[name]).float() for name in ("x_train", "x_test"))  # (N, 28, 28)
mean, std = images.mean(), images.std()
x, x_test = to_patches(images[:n_train]), to_patches(images_test[:n_test])  # (N, 16, 49) the classes are mixed
y, y_test = file["y_train"][:n_train], file["y_test"][:n_test]
keep_test, hidden_test = (mask.repeat(n_test // n_masks, 1) for mask in random_mask(n_masks))  # each for 20 images

# %% [markdown]
# ## 2. The opponents
#
# All get the same visible pixels. Ridge regression is *one* linear map for all masks: it reads zeros where pixels are
# hidden, and which patches those are. Ten nearest neighbours look up the training images most alike in the visible
# patches, and average what they have in the hidden ones. The Gaussian knows how every pixel varies with every other,
# C (784 x 784), and solves for the *best* linear answer to each mask anew: mean_h + C_hv C_vv⁻¹ (x_v - mean_v). Its
# noise (0.03) and the number of neighbours were chosen on training images.


# %%
def ridge_inputs(patches: torch.Tensor, hidden: torch.Tensor) -> np.ndarray:
    return torch.cat([patches.masked_fill(hidden[:, :, None], 0).flatten(1), ~hidden], 1).numpy()  # (N, 784 + 16)


twice = x.repeat(2, 1, 1)  # every training image under two masks
ridge = Ridge(alpha=100).fit(ridge_inputs(twice, random_mask(len(twice))[1]), twice.flatten(1).numpy())
by_ridge = torch.from_numpy(ridge.predict(ridge_inputs(x_test, hidden_test))).view_as(x_test)

train, test = x.flatten(1), x_test.flatten(1)  # (N, 784)
center, covariance = train.mean(0), torch.cov(train.T) + 0.03 * torch.eye(train.shape[1])
by_neighbours, by_gauss = test.clone(), test.clone()
for m in range(n_masks):
    h = hidden_test[m].repeat_interleave(patch * patch)  # (784,) True where hidden, for test images m, m + 100, ...
    seen = test[m::n_masks][:, ~h]  # (20, 294)
    nearest = torch.cdist(seen, train[:, ~h]).topk(10, largest=False).indices  # (20, 10)
    by_neighbours[m::n_masks, h] = train[nearest][:, :, h].mean(1)
    weights = torch.linalg.solve(covariance[~h][:, ~h], covariance[~h][:, h])  # (294, 490)
    by_gauss[m::n_masks, h] = center[h] + (seen - center[~h]) @ weights

lab.baseline("error_mean_image", hidden_error(x.mean(0).expand_as(x_test)), "mean of the training images")
error_ridge = lab.baseline("error_ridge", hidden_error(by_ridge), "sklearn Ridge, one for all masks")
error_gauss = lab.baseline("error_gaussian", hidden_error(by_gauss), "mean of a Gaussian, given the visible pixels")
error_neighbours = lab.baseline("error_neighbours", hidden_error(by_neighbours), "mean of the 10 nearest images")

# %% [markdown]
# ## 3. The network
#
# Attention treats its input as a set: it does not know where a patch came from, so every patch gets a learned vector
# for its place. The encoder never receives the hidden patches, which makes it fast and cheating impossible. For the
# decoder one and the same learned vector stands in for each hidden patch; only its place tells it what to paint.


# %%
class Block(nn.Module):  # every patch asks all others (attention), then thinks for itself (MLP)
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.mix = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model))

    def forward(self, h: torch.Tensor) -> torch.Tensor:  # (B, T, d)
        B, T, d = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(B, T, 3, n_heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, T, d / heads)
        attention = (q @ k.transpose(-2, -1) / (d // n_heads) ** 0.5).softmax(-1)  # (B, heads, T, T) rows sum to 1
        h = h + self.mix((attention @ v).transpose(1, 2).reshape(B, T, d))
        return h + self.mlp(self.norm2(h))


class MaskedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(patch * patch, d_model)
        self.place, self.place_out = (nn.Parameter(0.02 * torch.randn(n_patches, d_model)) for _ in range(2))
        self.encoder = nn.Sequential(*[Block() for _ in range(n_blocks)], nn.LayerNorm(d_model))
        self.unknown = nn.Parameter(torch.zeros(d_model))
        self.decoder = nn.Sequential(Block(), nn.LayerNorm(d_model), nn.Linear(d_model, patch * patch))
        self.register_buffer("mean_image", x.mean(0))  # only the difference to it remains to be learned

    def encode(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        visible = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))  # (B, 16, 49) -> (B, 6, 49)
        return self.encoder(self.embed(visible) + self.place[keep])  # (B, 6, d)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        where = keep[:, :, None].expand(-1, -1, d_model)
        h = self.unknown.expand(len(x), n_patches, -1).scatter(1, where, self.encode(x, keep))  # (B, 16, d)
        return self.mean_image + self.decoder(h + self.place_out)  # (B, 16, 49)


model, untrained = MaskedAutoencoder().to(device), MaskedAutoencoder().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr_peak, weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr_peak, total_steps=n_steps)
first = lab.resume(model=model, optimizer=optimizer, schedule=schedule, gen=gen)  # 0, unless --resume found a state
for step in lab.steps(first, n_steps):
    batch, (keep, hidden) = torch.randint(len(x), (batch_size,), generator=gen), random_mask(batch_size)
    target = x[batch].to(device)  # (B, 16, 49)
    error = (model(target, keep.to(device)) - target) ** 2
    loss = error[hidden.to(device)].mean()  # hidden patches only: copying what is visible teaches nothing
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if (step + 1) % log_every == 0:
        lab.log(step, loss=loss.item())

# %%
# Could it have cheated? A test that cannot fail proves nothing, so the same noise goes into the hidden patches, where
# it must change nothing at all, and into the visible ones, where it must.
noise = 5 * torch.randn(x_test.shape, generator=gen)
inputs = (x_test, x_test + noise * hidden_test[:, :, None], x_test + noise * ~hidden_test[:, :, None])
with torch.no_grad():
    y_hat, in_hidden, in_visible = (model(x.to(device), keep_test.to(device)).cpu() for x in inputs)  # (N, 16, 49)
leak = (in_hidden - y_hat).abs().max() / (in_visible - y_hat).abs().max()
lab.metric("leak", leak, "influence of hidden / of visible pixels", better="lower")
lab.gate("no_leak", "noise in the hidden patches does not change the answer; in the visible ones it does",
         metric="leak", op="<=", limit=0 if device.type == "cpu" else 1e-5, exact=True)
error_hidden = lab.metric("error_hidden", hidden_error(y_hat), "mean squared error, hidden pixels", better="lower")
lab.gate("beats_ridge", "the error in hidden patches is at most 0.92 of that of one ridge regression for all masks",
         metric="error_hidden", op="<=", limit=0.92 * error_ridge, baseline="error_ridge")
lab.honest("Error in hidden patches: the network, averaging the 10 nearest images.", error_hidden, error_neighbours)
lab.honest("Error in hidden patches: the network, one covariance matrix (Gaussian).", error_hidden, error_gauss)

# %% [markdown]
# ## 4. Good for anything else?
#
# The probe: freeze the encoder, show it all 16 patches, average its 16 vectors to 64 numbers per image, and fit a
# logistic regression on 1,000 labels. An untrained encoder is the fair opponent (random features are not bad!), raw
# pixels are the hard one. Side by side instead of averaged, the 16 vectors also keep what is where.

# %%
rows = np.concatenate([np.flatnonzero(y == k)[:10 if lab.quick else 100] for k in range(10)])  # the labels we use


def probe(train: torch.Tensor, test: torch.Tensor) -> float:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return classifier.fit(train.numpy(), y[rows]).score(test.numpy(), y_test)


with torch.no_grad():
    ours, ours_test, other, other_test = (m.encode(p.to(device), torch.arange(n_patches).expand(len(p), -1).to(device))
                                          .cpu() for m in (model, untrained) for p in (x[rows], x_test))  # (N, 16, d)
accuracy = lab.metric("probe_accuracy", probe(ours.mean(1), ours_test.mean(1)), "share of test images")
lab.metric("probe_accuracy_by_place", probe(ours.flatten(1), ours_test.flatten(1)), "share of test images")
chance = lab.baseline("probe_untrained", probe(other.mean(1), other_test.mean(1)), "untrained encoder, the same fit")
raw = lab.baseline("probe_pixels", probe(x[rows].flatten(1), x_test.flatten(1)), "784 raw pixels, the same fit")
lab.gate("learned_features", "64 averaged features classify at least 0.06 better than those of an untrained encoder",
         metric="probe_accuracy", op=">=", limit=chance + 0.06, baseline="probe_untrained")
lab.honest("Share of test images right with 1,000 labels: 64 averaged features against 784 raw pixels.", accuracy, raw)

# %%
def draw(figure) -> None:
    h, tint = hidden_test[:, :, None], harness.COLOURS["ours"] + "38"  # what is hidden shows the colour below it
    rows = {"visible": x_test.masked_fill(h, torch.nan), f"the network\nerror {error_hidden:.2f}": y_hat,
            f"10 neighbours\nerror {error_neighbours:.2f}": by_neighbours, "original": x_test}
    figure.suptitle("Ten of sixteen patches are hidden: one test image of every class", fontweight="bold", fontsize=11)
    for axes, (title, patches) in zip(figure.subplots(4, 10), rows.items(), strict=True):
        filled = torch.where(h, patches.view_as(x_test), x_test).view(-1, 4, 4, patch, patch).transpose(2, 3)
        for k, ax in enumerate(axes):
            ax.imshow(filled[y_test == k][0].reshape(28, 28), cmap="gray_r", vmin=x.min(), vmax=x.max())
            ax.set(xticks=[], yticks=[], facecolor=tint)
            ax.spines[:].set(visible=True, color=harness.COLOURS["grid"])
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)


lab.plot("restored", draw, size=(9, 3.9),
         alt="Ten clothes, four rows: the visible patches, what the network and what neighbours paint, the original")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Set `n_keep = 3`, then 10. Who suffers more from seeing less, the network or the ten neighbours?
# 2. Take `+ self.place[keep]` out of `encode`. How much is lost when the encoder knows what, but not where?
# 3. Drop `[hidden.to(device)]` from the loss, so that visible pixels count as well. Which error becomes worse?
