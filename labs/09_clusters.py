# %% [markdown]
"""
# 09 · Clustering three ways

**Question.** Nobody has labelled the rows. Which belong together, and why do three good algorithms disagree?

**You will learn**

1. k-means, Ward and DBSCAN as a few lines of tensor arithmetic each, equal to scikit-learn's to the last row
2. that each of them *assumes* a shape of cluster: round, compact, or dense; the wrong one fails without a warning
3. how to tell useful segments from invented ones: by something they were never shown, on rows they never saw

**Paradigm.** Unsupervised learning. **How to run.** `python labs/09_clusters.py` (8 seconds).

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: all three agree with scikit-learn in each row;
inertia of the digits 1.002 / 1.000 / 1.000 x scikit-learn's (gate: 1.01); DBSCAN on moons 0.996 / 1 / 1 (gate: 0.95;
k-means 0.25); p of the segments 9e-31 / 2e-17 / 3e-19 (gate: 1e-6). 8 CPU seconds, 0.39 GiB.

**What you should see.** k-means cuts both moons across, since a cluster is round to it. DBSCAN follows them, and says
grey to a point that belongs nowhere. Below, the risk in the segments differs by a factor of two to four.

**Where simple methods win.** On the wines plain k-means finds the cultivars better than Ward's tree (0.90 to 0.79). And
with labels, no segments: logistic regression ranks risk far better (AUC 0.82 to 0.84, segments 0.62 to 0.66).

**Left out on purpose.** Choosing the number of clusters, and spatial indexes for more than some ten thousand rows.
"""

# %%
import harness

lab = harness.start(
    "09_clusters",
    title="Clustering three ways", paradigm="unsupervised", task="clustering and segmentation",
    data="digits, moons, wine, 4,454 loan customers", seconds=8,
)

import numpy as np
import torch
from sklearn.cluster import DBSCAN, AgglomerativeClustering, KMeans
from sklearn.datasets import load_digits, load_wine, make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import train_test_split

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws the starting centres; the moons and the split use the same seed
n_restarts = 2 if lab.quick else 10  # k-means only finds a valley near its start, so it starts more than once
noise = 0.07  # of the moons; with much more the two touch
min_points = 8  # DBSCAN: neighbours, itself included, that make a point a core point
n_segments = 5  # as many as a bank could treat differently

# %% [markdown]
# ## 1. k-means: the nearest of k centres
#
# Two steps, and each lowers the sum of squared distances to the own centre (the *inertia*): every row joins its nearest
# centre, every centre moves to the mean of its rows. So the loop ends, but in the nearest valley, not the deepest.
# k-means++ starts well apart: a row becomes a centre with a chance that grows as its squared distance from the others.

# %%
def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a[:, None] - b[None]).square().sum(-1)  # (N, 1, D) - (1, M, D) -> (N, M, D) -> (N, M)


def spread_out(x: torch.Tensor, k: int, gen: torch.Generator) -> torch.Tensor:
    chosen = [torch.randint(len(x), (), generator=gen).item()]  # k-means++
    while len(chosen) < k:
        nearest = squared_distances(x, x[chosen]).min(1).values  # (N,)
        chosen.append(torch.multinomial(nearest.cpu(), 1, generator=gen).item())  # 0 for a centre: never drawn twice
    return x[chosen]  # (k, D)


def kmeans(x: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Lloyd's two steps until no row changes sides: the cluster of each row (N,), the centres (k, D), the inertia."""
    cluster = torch.full((len(x),), -1, device=x.device)
    while True:
        distances = squared_distances(x, centres)  # (N, k)
        before, cluster = cluster, distances.argmin(1)
        if (cluster == before).all():
            return cluster, centres, distances.min(1).values.sum().item()
        member = (cluster[:, None] == torch.arange(len(centres), device=x.device)).to(x.dtype)  # (N, k) one 1 per row
        centres = member.T @ x / member.sum(0).clamp(min=1)[:, None]  # the means; (k, N) @ (N, D) -> (k, D)


def best_kmeans(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    runs = [kmeans(x, spread_out(x, k, gen)) for _ in lab.steps(0, n_restarts)]
    return min(runs, key=lambda run: run[2])  # the lowest inertia


pixels, digit = load_digits(return_X_y=True)  # (1797, 64), (1797,): the digit is only used to judge
lab.data("digits", pixels, digit, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI")
x = torch.from_numpy(pixels / 16).float().to(device)
cluster, _, inertia = best_kmeans(x, 10)
theirs = KMeans(10, n_init=n_restarts, random_state=lab.seed).fit(pixels / 16)
lab.metric("inertia", inertia, f"sum of squares, best of {n_restarts} starts", better="lower")
lab.baseline("inertia_sklearn", theirs.inertia_, f"sklearn KMeans, n_init={n_restarts}")
lab.gate("inertia", "k-means++ ends at most 1 % above scikit-learn's sum of squares on the digits",
         metric="inertia", op="<=", limit=1.01 * theirs.inertia_, baseline="inertia_sklearn")
lab.metric("digits_found", adjusted_rand_score(digit, cluster.cpu()), "adjusted Rand index with the ten digits")

# Is it the same algorithm? From the same start, both must put every row into the same cluster. That takes float64 and a
# nudge: between whole numbers ties are common, and rounding would decide them.
if device.type == "mps":
    lab.fallback("comparisons with scikit-learn in float64", to="cpu", why="MPS has no float64")
x = torch.from_numpy(pixels)  # (1797, 64) float64
start = spread_out(x, 10, gen) + 0.01 * torch.rand(10, 64, generator=gen, dtype=x.dtype)
twin = KMeans(10, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0).fit(pixels)
lab.metric("kmeans_agreement", adjusted_rand_score(twin.labels_, kmeans(x, start)[0]), "adjusted Rand index")
lab.gate("kmeans", "from the same centres, k-means and scikit-learn's put every digit into the same cluster",
         metric="kmeans_agreement", op="==", limit=1, exact=True)

# %% [markdown]
# ## 2. Ward: merge what costs least
#
# Start with every row as its own cluster; keep merging the two whose union raises the inertia least. For clusters of a
# and b rows it rises by ab / (a + b) x the squared distance of their means. Nothing is random, no start is needed.

# %%
def ward(x: torch.Tensor, k: int) -> torch.Tensor:
    means, sizes, cluster = x.clone(), torch.ones(len(x), dtype=x.dtype), torch.arange(len(x))  # (n, D), (n,), (N,)
    while len(means) > k:
        rise = squared_distances(means, means) * sizes[:, None] * sizes / (sizes[:, None] + sizes)  # (n, n)
        a, b = sorted(divmod(rise.fill_diagonal_(torch.inf).argmin().item(), len(means)))
        means[a] = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        left = torch.arange(len(means)) != b
        means, sizes = means[left], sizes[left]
        cluster[cluster == b] = a
        cluster[cluster > b] -= 1
    return cluster


wine, cultivar = load_wine(return_X_y=True)  # (178, 13) chemical measurements, three cultivars of grape
lab.data("wine", wine, cultivar, licence="as shipped with scikit-learn (BSD-3-Clause), from UCI")
wine = (wine - wine.mean(0)) / wine.std(0)  # or proline, measured in hundreds, would decide alone
x = torch.from_numpy(wine)  # (178, 13) float64
cluster, twin = ward(x, 3), AgglomerativeClustering(3, linkage="ward").fit_predict(wine)
lab.metric("ward_agreement", adjusted_rand_score(twin, cluster), "adjusted Rand index")
lab.gate("ward", "Ward's three clusters of wines are scikit-learn's, row by row",
         metric="ward_agreement", op="==", limit=1, exact=True)
ours = lab.metric("wine_ward", adjusted_rand_score(cultivar, cluster), "adjusted Rand index with the cultivar")
theirs = lab.baseline("wine_kmeans", adjusted_rand_score(cultivar, best_kmeans(x, 3)[0]), "our k-means, best start")
lab.honest("Cultivars found in the wines (adjusted Rand index): Ward's tree against plain k-means.", ours, theirs)

# %% [markdown]
# ## 3. DBSCAN: follow the dense places
#
# A point with at least `min_points` neighbours within a radius is a *core* point. Core points in reach of each other
# belong together, other points join a core point in reach, and who reaches none is noise, -1. In tensors: every core
# point takes the smallest number among its core neighbours, until a whole cluster bears one number.

# %%
def dbscan(x: torch.Tensor, radius: float, min_points: int) -> torch.Tensor:
    near = squared_distances(x, x).sqrt() <= radius  # (N, N), a point is near itself
    core = near.sum(1) >= min_points  # (N,)
    reach = near & core  # (N, N) row i: the core points that i can reach
    number = torch.arange(len(x))
    while True:
        lowest = torch.where(reach, number, len(x)).min(1).values  # (N,) N stands for "reaches none"
        spread = torch.where(core, lowest, number)
        if (spread == number).all():
            return torch.where(lowest < len(x), lowest, -1)
        number = spread


points, moon = make_moons(500, noise=noise, random_state=lab.seed)  # (500, 2), (500,)
lab.data("moons", points, moon, licence="CC0 (made here)", synthetic=True)
x = torch.from_numpy(points)
# The radius comes from the points alone: 98 % of them are to have min_points neighbours (itself counts) in reach.
radius = squared_distances(x, x).sqrt().kthvalue(min_points, dim=1).values.quantile(0.98).item()
moons = {"k-means": best_kmeans(x, 2)[0], "Ward": ward(x, 2), "DBSCAN": dbscan(x, radius, min_points)}
scores = {name: adjusted_rand_score(moon, cluster) for name, cluster in moons.items()}
agreement = [adjusted_rand_score(DBSCAN(eps=r, min_samples=min_points).fit_predict(points), dbscan(x, r, min_points))
             for r in (radius, radius / 2)]  # at half the radius it is many clusters and much noise
lab.metric("dbscan_agreement", min(agreement), "adjusted Rand index, the worse of two radii")
lab.gate("dbscan", "DBSCAN's clusters and noise are scikit-learn's, point by point",
         metric="dbscan_agreement", op="==", limit=1, exact=True)
lab.metric("moons_dbscan", scores["DBSCAN"], "adjusted Rand index with the two moons")
lab.baseline("moons_kmeans", scores["k-means"], "our k-means: two round halves")
lab.baseline("moons_ward", scores["Ward"], "our Ward")
lab.gate("moons", "DBSCAN finds the two moons (adjusted Rand index of at least 0.95)",
         metric="moons_dbscan", op=">=", limit=0.95, baseline="moons_kmeans")

# %% [markdown]
# ## 4. Segments of customers, and a test of whether they mean anything
#
# Would segments made *without* knowing who repaid still differ in who repaid? Medians, scales and centres come from one
# half of the customers. The other half joins its nearest centre, and there we count: the chi-square test gives the
# chance that meaningless segments differ as much.

# %%
customers = lab.read("credit.csv.gz")
bad = customers.pop("Status") == "bad"  # (4454,) hidden from all but the last opponent
train, test = train_test_split(np.arange(len(bad)), test_size=0.5, random_state=lab.seed)
columns = {}
for name, column in customers.items():
    if column.dtype.kind == "f":  # a number
        column = column if name in ("Age", "Time", "Seniority") else np.log1p(column)  # money: no millionaire decides
        column = np.where(np.isnan(column), np.nanmedian(column[train]), column)  # an empty cell: as the middle one
        columns[name.lower()] = (column - column[train].mean()) / column[train].std()
    else:
        for answer in np.unique(column[train]):
            is_it = column == answer
            if is_it[train].mean() >= 0.02:  # rare answers only add noise
                columns[f"{name.lower()} {answer}"] = 2 * (is_it - is_it[train].mean())  # as if half and standardised
x = torch.from_numpy(np.stack(list(columns.values()), 1)).float().to(device)  # (4454, 22)
cluster, centres, _ = best_kmeans(x[train], n_segments)
segment = squared_distances(x[test], centres).argmin(1).cpu().numpy()  # (2227,)
table = torch.from_numpy(np.bincount(2 * segment + bad[test], minlength=2 * n_segments)).double().view(-1, 2)
expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()  # (n_segments, 1) * (2,) -> (n_segments, 2)
chi_square = ((table - expected) ** 2 / expected).sum()
p = torch.special.gammaincc(torch.full_like(chi_square, (n_segments - 1) / 2), chi_square / 2)
known_rate = np.array([bad[train][cluster.cpu().numpy() == s].mean() for s in range(n_segments)])
rate = (table[:, 1] / table.sum(1)).numpy()  # (n_segments,) bad loans
rows = x.cpu().numpy()
told = LogisticRegression(max_iter=2000).fit(rows[train], bad[train]).decision_function(rows[test])
ours, theirs = (roc_auc_score(bad[test], score) for score in (known_rate[segment], told))
lab.metric("segments_p", p, "chance of such a difference by luck", better="lower")
lab.gate("segments", "the segments differ in unseen bad loans more than luck would do once in a million",
         metric="segments_p", op="<=", limit=1e-6)
lab.metric("auc_segments", ours, "unseen customers ranked by the rate of their segment")
lab.baseline("auc_told", theirs, "sklearn LogisticRegression, which was told who did not repay")
lab.honest("Unseen customers ranked by risk (AUC, luck is 0.5): by segment, by a classifier with labels", ours, theirs)


def draw(figure) -> None:
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    colours = [harness.COLOURS[name] for name in ("ours", "baseline", "good", "extra", "bad", "muted")]
    for ax, (name, cluster) in zip(above.subplots(1, 3), moons.items(), strict=True):
        colour = dict(zip(sorted({*cluster.tolist()} - {-1}), colours, strict=False))
        ax.scatter(*points.T, s=13, lw=0, c=[colour.get(number, colours[-1]) for number in cluster.tolist()])
        ax.set(title=f"{name}: agreement {scores[name]:.2f}", xticks=[], yticks=[], aspect="equal", frame_on=False)
    ax, order = below.subplots(), rate.argsort()
    tops = np.abs(centres.cpu().numpy()).argsort()[:, :-4:-1]  # (n_segments, 3) columns farthest from the average
    text = [", ".join(f"{[*columns][i]} {centres[s, i]:+.1f}" for i in tops[s]) for s in order]
    bars = ax.barh([*text, "everyone"], [*rate[order], bad[test].mean()], color=[colours[0]] * n_segments + ["gray"])
    ax.bar_label(bars, fmt="{:.0%}", padding=4)
    ax.set(title="Bad loans, among customers not seen before", xlim=(0, 0.6), xticks=[])


lab.plot("clusters", draw, size=(9, 5.4),
         alt="Two moons as k-means, Ward and DBSCAN divide them; below, bad loans in five segments of customers")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Leave out the line that standardises `wine`. How many cultivars are still found, and which column decides now?
# 2. Set `noise = 0.15`. What does DBSCAN do to the two moons, and which of the three methods suffers least?
# 3. Set `n_segments = 12`. Does the classifier's lead in AUC shrink, and would you name all twelve segments?
