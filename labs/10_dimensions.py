# %% [markdown]
"""
# 10 · Fewer dimensions

**Question.** An image of a digit has 64 numbers. How much of it survives in two, and does a network that may bend space
keep more than the best flat projection?

**You will learn**

1. that PCA is a singular value decomposition, and the best that any *linear* map can do
2. how an autoencoder learns without labels: squeeze through a narrow layer, ask for the input back
3. why two numbers that rebuild well also sort well, although nobody said what a digit is

**Paradigm.** Unsupervised learning. **How to run.** `python labs/10_dimensions.py` (16 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: error from two numbers 0.0302
/ 0.0301 / 0.0309, PCA 0.0526 / 0.0522 / 0.0522 (gate: 0.75 of it; over these seeds 0.58 to 0.59); ten neighbours on the
map sort 0.88 / 0.85 / 0.85 of unseen digits, on PCA's 0.63 / 0.67 / 0.65 (gate: 0.10 better). 16 CPU s, 0.44 GiB.

**What you should see.** Two maps of the same test images, each dot at its two numbers. PCA throws most digits on one
heap; the autoencoder gives nearly every digit a place of its own, and it never saw a label. Below, ten images rebuilt
from two and from eight numbers.

**Where simple methods win.** PCA needs no training, has no settings, orders its components by importance and says how
much is lost. On the 64 raw pixels the nearest neighbours are better than on any two numbers.

**Left out on purpose.** t-SNE and UMAP draw prettier maps, but have no map for a new image and nothing to rebuild.
"""

# %%
import harness

lab = harness.start(
    "10_dimensions",
    title="Fewer dimensions", paradigm="unsupervised", task="dimension reduction",
    data="digits (scikit-learn)", seconds=16,
)

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws the batches; the split and the weights use the same seed
n_steps = 60 if lab.quick else 1500
batch_size, lr_peak, log_every = 128, 4e-3, 50
n_neighbours = 10  # of the judge: a test image gets the label of its ten nearest training images

# %% [markdown]
# ## 1. The images
#
# 1,797 digits of 8 x 8. The labels are loaded, but only the judge in section 4 may look at them.

# %%
images, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16, (1797,)
lab.data("digits", images, labels, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI")
x_np, x_test_np, y, y_test = train_test_split(images / 16, labels, test_size=600, stratify=labels,
                                              random_state=lab.seed)
mean = x_np.mean(0)  # (64,) of the training images only
x = torch.tensor(x_np - mean, dtype=torch.float32)  # (1197, 64)
x_test = torch.tensor(x_test_np - mean, dtype=torch.float32)  # (600, 64)

# %% [markdown]
# ## 2. PCA is a singular value decomposition
#
# x = U S Vᵀ. The rows of Vᵀ are directions in pixel space, orthogonal, the one with the largest spread first. Keep the
# first K: `x @ V` are the K numbers, `(x @ V) @ Vᵀ` is the image rebuilt from them. No other linear map to K numbers
# rebuilds the training images better (Eckart and Young, 1936). scikit-learn must agree, up to the sign of a direction.


# %%
def mse(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return ((x_hat - x) ** 2).mean().item()


u, s, vt = torch.linalg.svd(x, full_matrices=False)  # (1197, 64), (64,), (64, 64): on the CPU, where it is complete
theirs = PCA(n_components=8, svd_solver="full").fit(x.numpy())
directions = torch.tensor(theirs.components_)  # (8, 64)
signs = (vt[:8] * directions).sum(1, keepdim=True).sign()  # (8, 1)
lab.metric("pca_difference", (vt[:8] - signs * directions).abs().max(), "largest difference", better="lower")
lab.gate("pca", "our eight principal directions are scikit-learn's within 10⁻⁴, up to their sign",
         metric="pca_difference", op="<=", limit=1e-4, exact=True)

codes = {"PCA": (x @ vt[:2].T, x_test @ vt[:2].T)}  # (1197, 2), (600, 2)
error_pca = {K: mse(x_test @ vt[:K].T @ vt[:K], x_test) for K in (2, 8)}
for K in (2, 8):
    lab.baseline(f"error_pca_{K}", error_pca[K], f"PCA with {K} components, test images")
# What is lost on the training images must be exactly the spread of the directions that were dropped.
lost = ((s[2:] ** 2).sum() / x.numel()).item()
lab.metric("spectrum_difference", abs(mse(x @ vt[:2].T @ vt[:2], x) / lost - 1), "relative", better="lower")
lab.gate("spectrum", "the error of PCA is the sum of the squared singular values it dropped",
         metric="spectrum_difference", op="<=", limit=1e-4, exact=True)

# %% [markdown]
# ## 3. The same, but bent
#
# Replace the two matrices by two small networks: 64 to K, and K back to 64. Without the curved activations this would
# learn PCA again, slowly. With them, the two numbers may follow a bent surface through pixel space.


# %%
class Autoencoder(nn.Module):
    def __init__(self, K: int, width: int = 128) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                                    nn.Linear(width, K))  # the narrow place: K numbers, no activation
        self.decode = nn.Sequential(nn.Linear(K, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                                    nn.Linear(width, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 64) -> (B, K) -> (B, 64)
        return self.decode(self.encode(x))


def train(K: int) -> Autoencoder:
    torch.manual_seed(lab.seed)
    model = Autoencoder(K).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr_peak, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr_peak, total_steps=n_steps)
    for step in lab.steps(0, n_steps):
        batch = torch.randint(len(x), (batch_size,), generator=gen)
        target = x[batch].to(device)  # the input is the answer: nobody had to label anything
        loss = ((model(target) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % log_every == 0:
            lab.log(step, **{f"loss_{K}": loss.item()})
    return model.eval()


models, rebuilt = {K: train(K) for K in (2, 8)}, {}
with torch.no_grad():
    for K, model in models.items():
        rebuilt[K] = model(x_test.to(device)).cpu()  # (600, 64)
        lab.metric(f"error_{K}", mse(rebuilt[K], x_test), f"mean squared error, {K} numbers", better="lower")
    codes["autoencoder"] = tuple(models[2].encode(part.to(device)).cpu() for part in (x, x_test))
    code = codes["autoencoder"][1][:5].to(device)
    apart = models[2].decode(code).cpu()  # from the codes alone: is anything smuggled past the narrow place?
lab.metric("smuggled", (apart - rebuilt[2][:5]).abs().max(), "difference when rebuilt from the codes", better="lower")
lab.gate("narrow", "two numbers per image are all that the decoder needs and sees",
         metric="smuggled", op="<=", limit=1e-5, exact=True)
lab.gate("rebuilds", "from two numbers the autoencoder's error on test images is at most 0.75 of PCA's",
         metric="error_2", op="<=", limit=0.75 * error_pca[2], baseline="error_pca_2")

# %% [markdown]
# ## 4. Do the two numbers know the digits?
#
# Now the labels come out, to judge only: a test image gets the label of the ten training images nearest on the map.


# %%
def judge(train_code: torch.Tensor, test_code: torch.Tensor) -> float:
    return KNeighborsClassifier(n_neighbours).fit(train_code, y).score(test_code, y_test)


sorted_ours = lab.metric("accuracy_2", judge(*codes["autoencoder"]), "share of test images, 10 nearest on the map")
sorted_pca = lab.baseline("accuracy_pca_2", judge(*codes["PCA"]), "10 nearest neighbours on two principal components")
sorted_pixels = lab.baseline("accuracy_pixels", judge(x, x_test), "10 nearest neighbours on all 64 pixels")
lab.gate("sorts", "ten neighbours on the autoencoder's map are 0.10 better than on PCA's",
         metric="accuracy_2", op=">=", limit=sorted_pca + 0.10, baseline="accuracy_pca_2")
lab.honest("Share of test images right by ten neighbours: on two learned numbers against all 64 raw pixels.",
           sorted_ours, sorted_pixels)
lab.honest("Error from eight numbers: the autoencoder against PCA, which needs no training at all.",
           mse(rebuilt[8], x_test), error_pca[8])


def draw_maps(figure) -> None:
    palette = [*(harness.COLOURS[c] for c in ("ours", "baseline", "good", "bad", "extra", "muted")),
               "#d45f9a", "#7a5c2e", "#a8a032", "#2fa8b8"]  # ten digits need ten colours, and their names as well
    scores = (sorted_pca, sorted_ours)
    for ax, (name, (_, code)), score in zip(figure.subplots(1, 2), codes.items(), scores, strict=True):
        for digit in range(10):
            of_it = code[torch.from_numpy(y_test == digit)].numpy()  # (about 60, 2)
            ax.plot(*of_it.T, "o", ms=4, alpha=0.6, mew=0, color=palette[digit])
            box = {"boxstyle": "circle,pad=0.15", "fc": harness.COLOURS["paper"], "alpha": 0.85, "lw": 0}
            ax.text(*np.median(of_it, 0), str(digit), fontsize=14, fontweight="bold", color=palette[digit], ha="center",
                    va="center", bbox=box)
        ax.set(title=f"{name}: {score:.0%} sorted right", xticks=[], yticks=[], xlabel="first number")
        ax.set_ylabel("second number")


def draw_rebuilt(figure) -> None:
    rows = [("original", x_test), ("2 numbers, PCA", x_test @ vt[:2].T @ vt[:2]), ("2, autoencoder", rebuilt[2]),
            ("8 numbers, PCA", x_test @ vt[:8].T @ vt[:8]), ("8, autoencoder", rebuilt[8])]
    shown = [int(np.flatnonzero(y_test == digit)[0]) for digit in range(10)]
    for line, (name, pictures) in zip(figure.subplots(len(rows), 10), rows, strict=True):
        for ax, i in zip(line, shown, strict=True):
            ax.imshow((pictures[i].numpy() + mean).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    figure.suptitle("What comes back from two and from eight numbers", fontweight="bold", fontsize=11)


lab.plot("maps", draw_maps, size=(9, 4.4),
         alt="Two maps of 600 test images, one dot each, coloured by digit: PCA mixes the digits, the autoencoder "
             "gives most of them a place of their own")
lab.plot("rebuilt", draw_rebuilt, size=(9, 4.2),
         alt="Ten digits: originals, and rebuilt from 2 and 8 numbers by PCA and by the autoencoder")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Replace every `nn.GELU()` by `nn.Identity()`. How close does the error come to PCA's, and can it ever be below it?
# 2. Set the learned sizes to `(2, 32)`. From how many numbers on does the autoencoder lose its lead over PCA?
# 3. Train on 100 images: `x = x[:100]` and `y = y[:100]`. Which of the two maps still sorts unseen digits?
