# %% [markdown]
"""
# 04 · House prices

**Question.** A house is a row of numbers and words, and its price is another number. How far does a straight line get,
what does a network see that the line cannot, and is a network even the right tool for a table?

**You will learn**

1. how words become columns, why we predict the logarithm of a price, and which columns must stay out
2. what least squares is: one QR decomposition, and residuals that no column can explain any further
3. how a network bends the line, and why boosted trees are still what to try first on a table

**Paradigm.** Supervised learning. **How to run.** `python labs/04_houses.py` (13 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: error of log(price), network 0.297 / 0.294 /
0.304, line 0.409 / 0.409 / 0.413 (gate: 0.87 times; over seeds 0 to 3 the largest ratio was 0.74), boosted trees 0.250
/ 0.245 / 0.249, 15 neighbours 0.346 / 0.342 / 0.343, mean 0.76. Half of the houses are priced within 13 % by the
network, within 20 % by the line. Our line equals scikit-learn's within 5e-14. 13 CPU seconds, 0.46 GiB.

**What you should see.** A cloud around the diagonal: wide for the line, narrower for the network. Then two maps of what
is left over. The line has whole districts that it prices too high (red) or too low (blue), for a plane through east and
north is all the geography it knows. On the network's map the colours are paler and mixed.

**Where simple methods win.** Boosted trees, with default settings and in a second, have a sixth less error than the
network: a tree splits a column at any value and does not care how it is scaled. And the mean price of the 15 nearest
sales, blind to the house itself, beats the line with all its columns.

**Left out on purpose.** Not used: the assessor's own valuation (not in the file: it *is* a price, and would leak the
answer), `syear` (within `sdate`) and `age` (1999 less `yrbuilt`). Used are the sixteen others. The split is at random:
we value houses in a known market. Forecasting next year's prices is another question, and the last exercise.
"""

# %%
import harness

lab = harness.start(
    "04_houses",
    title="House prices", paradigm="supervised", task="regression",
    data="25,357 house sales in Lucas County, Ohio, 1993-98", seconds=13,
)

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws the split and then the batches

n_test = 5000  # every fifth house
n_steps, batch_size = (40 if lab.quick else 1800), 256
n_hidden = 128  # units in each of three hidden layers
lr_peak, weight_decay = 5e-3, 0.01  # one-cycle: up to the peak, then down to almost nothing
rare = 50  # a word that fewer training houses have gets no column: it would be learned from accidents
far = 6.0  # standard deviations; no input of the network may be larger

# %% [markdown]
# ## 1. From a table to numbers
#
# Prices multiply: a bath adds a share, not a sum. So the target is log(price), and an error of 0.1 means about 10 %,
# for a hut as for a villa. Areas get a logarithm for the same reason. A date like 960423 is not a number to calculate
# with (the day after 960430 is 960501), so it becomes years.

# %%
table = lab.read("houses.csv.gz")
y = np.log(table["price"])  # (N,)
N = len(y)
order = torch.randperm(N, generator=gen).numpy()
train, test = order[n_test:], order[:n_test]

year, month, day = table["sdate"] // 10_000, table["sdate"] // 100 % 100, table["sdate"] % 100
columns = {"sold": year + (month - 1) / 12 + (day - 1) / 365}
columns |= {name: table[name] for name in ("yrbuilt", "beds", "baths", "halfbaths", "rooms", "east_m", "north_m")}
columns |= {name: np.log1p(table[name]) for name in ("TLA", "lotsize", "frontage", "depth", "garagesqft")}

# One column of 0 and 1 per word ("one-hot"). The first word of each kind gets none: it is where all the others are 0.
# With it, the columns of a kind would always add up to 1, and the line would have many equally good answers.
for kind in ("stories", "wall", "garage"):
    words, counts = np.unique(table[kind][train], return_counts=True)
    columns |= {f"{kind}_{word}": table[kind] == word for word in words[counts >= rare][1:]}

raw = np.stack(list(columns.values()), 1).astype(float)  # (N, D)
features = (raw - raw[train].mean(0)) / raw[train].std(0)  # (N, D), measured on the training houses only
D = len(columns)
print(f"{len(train):,} houses to learn from, {len(test):,} to test on, {D} columns")


def rmse(y_hat: np.ndarray) -> float:
    """Root of the mean squared error of log(price), on the test houses."""
    return float(np.sqrt(((y_hat - y[test]) ** 2).mean()))


def typical(y_hat: np.ndarray) -> float:
    """Half of the test houses are priced within so many per cent."""
    return 100 * float(np.median(np.abs(np.exp(y_hat - y[test]) - 1)))


# %% [markdown]
# ## 2. The line
#
# Least squares wants the w that makes |A w - y| smallest. Write A = Q R, with orthonormal columns in Q: then only the
# part of y that lies along Q can be explained, and R w = Q' y says how. What remains, the residual, stands at right
# angles to every column; were it not so, some column could explain a little more.

# %%
a = torch.from_numpy(np.column_stack([features, np.ones(N)]))  # (N, D + 1): the last weight is the constant
target = torch.from_numpy(y)  # (N,)
if device.type == "mps":
    lab.fallback("least squares in float64", to="cpu", why="MPS has no float64")
q, r = torch.linalg.qr(a[train])  # (N_train, D + 1), (D + 1, D + 1) upper triangle
w = torch.linalg.solve_triangular(r, (q.T @ target[train])[:, None], upper=True)[:, 0]  # (D + 1,)
line = (a[test] @ w).numpy()  # (N_test,)
residual = target[train] - a[train] @ w
leftover = (a[train].T @ residual / len(train)).abs().max()  # (D + 1,): covariance of each column and the residual

theirs = LinearRegression().fit(features[train], y[train]).predict(features[test])
lab.metric("line_error", np.abs(line - theirs).max(), "largest difference of a log price", better="lower")
lab.gate("line", "our QR solution predicts what scikit-learn's LinearRegression predicts, within 10⁻⁴",
         metric="line_error", op="<=", limit=1e-4, exact=True)
lab.metric("residual_covariance", leftover, "largest over the columns", better="lower")
lab.gate("right_angles", "no column can explain any more of the line's residual: all covariances are below 10⁻⁸",
         metric="residual_covariance", op="<=", limit=1e-8, exact=True)

# %% [markdown]
# ## 3. The other opponents
#
# The mean knows nothing. The neighbours know nothing but the address: the mean of the 15 nearest sales. Boosting adds
# up a hundred small trees, each fitted to what the ones before it got wrong.

# %%
address = np.stack([table["east_m"], table["north_m"]], 1)  # (N, 2) in metres
nearest = KNeighborsRegressor(15).fit(address[train], y[train]).predict(address[test])
boosting = HistGradientBoostingRegressor(max_iter=10 if lab.quick else 100, random_state=lab.seed)
boosted = boosting.fit(raw[train], y[train]).predict(raw[test])
line_rmse = lab.baseline("rmse_line", rmse(line), "least squares (= sklearn LinearRegression)")
lab.baseline("rmse_boosting", rmse(boosted), "sklearn HistGradientBoostingRegressor")
lab.baseline("rmse_address", rmse(nearest), "sklearn KNeighborsRegressor, place only, 15 neighbours")
lab.baseline("rmse_mean", rmse(np.full(n_test, y[train].mean())), "the mean for every house")

# %% [markdown]
# ## 4. The network
#
# Take the hidden layers away and what remains is the line. With them, a column may count differently here than there:
# a garage in the centre, a large lot in the country. Huber's loss grows like a square for small errors and like a line
# for large ones, since some sales are no market prices (a house for 2,000 dollars is a present among relatives).

# %%
mean, std = y[train].mean(), y[train].std()
x = torch.tensor(features, dtype=torch.float32).clamp(-far, far).to(device)  # (N, D)
goal = torch.tensor((y - mean) / std, dtype=torch.float32).to(device)  # (N,) a network starts near 0 with spread 1
rows = torch.from_numpy(train)

torch.manual_seed(lab.seed)  # the weights do not depend on what was drawn above
model = nn.Sequential(
    nn.Linear(D, n_hidden), nn.ReLU(),  # (B, D) -> (B, n_hidden)
    nn.Linear(n_hidden, n_hidden), nn.ReLU(),
    nn.Linear(n_hidden, n_hidden), nn.ReLU(),
    nn.Linear(n_hidden, 1),  # (B, 1)
).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr_peak, weight_decay=weight_decay)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr_peak, total_steps=n_steps)

for step in lab.steps(0, n_steps):
    batch = rows[torch.randint(len(rows), (batch_size,), generator=gen)].to(device)
    loss = F.smooth_l1_loss(model(x[batch])[:, 0], goal[batch])  # (B, 1) -> (B,): else every house meets every price
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 40 == 39:
        lab.log(step, loss=loss.item())

model.eval()
with torch.no_grad():
    y_hat = model(x[torch.from_numpy(test).to(device)])[:, 0].cpu().numpy() * std + mean  # (N_test,) back to log(price)

lab.metric("rmse", rmse(y_hat), "of log(price), network", better="lower")
lab.gate("beats_line", "the network's error is at most 0.87 times that of the line, on the same test houses",
         metric="rmse", op="<=", limit=0.87 * line_rmse, baseline="rmse_line")
lab.honest("Error of log(price): the network, and boosted trees with default settings.", rmse(y_hat), rmse(boosted))
lab.honest("Error of log(price): 15 neighbours who know only the place, and a line that knows all columns.",
           rmse(nearest), line_rmse)
lab.metric("median_error", typical(y_hat), "per cent of the price, network", better="lower")
lab.baseline("median_error_line", typical(line), "least squares, per cent of the price")
lab.baseline("median_error_boosting", typical(boosted), "sklearn HistGradientBoostingRegressor, per cent of the price")

# %% [markdown]
# ## 5. What is left over, and where


# %%
def draw_prices(figure) -> None:
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for ax, (name, guess) in zip(axes, (("line", line), ("network", y_hat), ("boosted trees", boosted)), strict=True):
        ax.hexbin(np.exp(y[test]) / 1000, np.exp(guess) / 1000, gridsize=45, xscale="log", yscale="log", bins="log",
                  mincnt=1, cmap="Blues", extent=(0.7, 3, 0.7, 3), linewidths=0.1)
        ax.plot([5, 1000], [5, 1000], color=harness.COLOURS["bad"], lw=1)
        ax.set(title=f"{name}: error {rmse(guess):.2f}", xlabel="true price, 1,000 dollars", xlim=(5, 1000),
               ylim=(5, 1000), aspect="equal", xticks=[10, 100, 1000], xticklabels=["10", "100", "1,000"],
               yticks=[10, 100, 1000], yticklabels=["10", "100", "1,000"])
    axes[0].set(ylabel="predicted price")


def draw_map(figure) -> None:
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    place = (address[test] - address[train].mean(0)).T / 1000  # (2, N_test) km, without the few far outside
    for ax, (name, guess) in zip(axes, (("line", line), ("network", y_hat)), strict=True):
        cells = ax.hexbin(*place, C=guess - y[test], gridsize=(26, 11), extent=(-15, 15, -12, 9.6), mincnt=2,
                          reduce_C_function=np.median, cmap="RdBu_r", vmin=-0.5, vmax=0.5, linewidths=0.2)
        ax.set(title=f"What the {name} leaves over", xlabel="km east of the middle", aspect="equal", xlim=(-15.5, 15.5),
               ylim=(-12, 9.5))
        ax.set_facecolor("#eeeeea")
    axes[0].set(ylabel="km north of the middle")
    figure.colorbar(cells, ax=axes, label="too low      median error      too high", shrink=0.8, pad=0.02)


lab.plot("prices", draw_prices, size=(9, 3.5),
         alt="Predicted against true price of 5,000 houses, logarithmic, for line, network and boosted trees")
lab.plot("map", draw_map, size=(9, 3.6),
         alt="Two maps of the county with the median error per district: patches for the line, paler for the network")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Delete `"east_m", "north_m"` from the first list of columns. How much worse is the line, how much the network?
# 2. Replace `F.smooth_l1_loss` by `F.mse_loss`. Is the error, which is itself a squared one, smaller now?
# 3. Split by time: `order = np.argsort(-table["sdate"])`, so that the newest 5,000 are the test. Who suffers most?
