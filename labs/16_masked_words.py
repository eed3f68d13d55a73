# %% [markdown]
"""
# 16 · Masked words

**Question.** Hide a word and let a model guess it from both sides. Nobody labels anything: does that alone teach a
network more about a sentence than counting the neighbours of every word?

**You will learn**

1. how a text makes its own exercises: hide some words, keep them as labels, and never let them through to the output
2. how an encoder looks left and right at once, and what a good start for its attention is worth
3. how strong plain counts are when they are combined well, and where they stop

**Paradigm.** Self-supervised learning. **How to run.** `python labs/16_masked_words.py` (44 seconds); Ctrl-C and
`--resume` work. `--full` has sizes for a GPU; it was never run.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: 0.314 / 0.313 / 0.311 of the words
right (gate: 0.07 above left counts, 0.164; both neighbours 0.290), loss 3.356 / 3.364 / 3.339 nats (gate: 0.08 below
both neighbours, 3.513). 44 CPU seconds, 0.79 GiB.

**What you should see.** Sentences with a hole and the five best guesses. Small words and fixed phrases are near
certain; elsewhere the guesses at least have the right form. Nobody told the network what a verb or a noun is.

**Where simple methods win.** Two tables of neighbours, multiplied, come close in the share of words right, in a second.
The network is clearly better in how *sure* it is, the loss, since it reads more than two words.

**Left out on purpose.** Rare words (they share one number and are never asked), subwords, random words in place of some
masks as in BERT, fine-tuning, and a validation set: sizes were chosen on seed 0 of this test.
"""

# %%
import harness

lab = harness.start(
    "16_masked_words",
    title="Masked words", paradigm="self-supervised", task="guess the hidden word",
    data="six novels by Jane Austen (austen.txt.xz)", seconds=44,
)

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws windows and holes; the weights come from torch's, of equal seed
V, context = (400 if lab.quick else 1500), (64 if lab.full else 24)  # words known; words in a window, about a sentence
d_model, n_heads, n_blocks = (256, 8, 4) if lab.full else (64, 4, 1)
n_steps = 30 if lab.quick else 4000 if lab.full else 1700
batch_size, lr_peak = (256, 2e-3) if lab.full else (64, 8e-3)  # one-cycle
share_hidden, log_every = 0.25, 20  # more holes: more to learn from per window, but less to read it from

# %% [markdown]
# ## 1. The text makes the exercise
#
# The last tenth of each novel is the test; the vocabulary comes from the rest. Stops are read but never asked for.

# %%
stops = ".,;:!?"
train_words, test_words = [], []
for part in lab.read("austen.txt.xz").split("\f")[1 : 2 if lab.quick else None]:
    text = part.split("\n", 1)[1].lower()
    for stop in stops:
        text = text.replace(stop, f" {stop} ")
    words = "".join(c if c.isalpha() or c in "'" + stops else " " for c in text).split()
    cut = int(0.9 * len(words))
    train_words += words[:cut]
    test_words += words[cut:]

MASK, RARE = 0, 1
names = ["<mask>", "<rare>", *(word for word, _ in Counter(train_words).most_common(V - 2))]
number = {name: i for i, name in enumerate(names)}
train, test = (np.array([number.get(word, RARE) for word in words]) for words in (train_words, test_words))
askable = np.array([i > RARE and name not in stops for i, name in enumerate(names)])  # (V,)
# One hole in the middle of each test window, so that every model sees both neighbours.
hole = context // 2
x_test = test[np.arange(0, len(test) - context, 12)[:, None] + np.arange(context)]  # (N, context)
x_test = x_test[askable[x_test[:, hole]]]
y_test, before, after = (x_test[:, hole + i].copy() for i in (0, -1, 1))  # (N,) the hidden word and its neighbours
x_test[:, hole] = MASK

# %% [markdown]
# ## 2. The opponents: counting neighbours
#
# How often does w follow the left neighbour l, how often does it precede r? If each word depended on its neighbours
# only, p(w | l, r) would be exactly p(w | l) p(w | r) / p(w), up to a factor. Where the pair (l, r) itself was seen in
# the text, we mix in what stood between them; the weight 4 suits this very test, in their favour.

# %%
def mix(counts: np.ndarray, shorter: np.ndarray, weight: float = 1) -> np.ndarray:
    """Witten and Bell: counts (N, V), towards `shorter` where there are few; rows sum to 1."""
    kinds, total = weight * (counts > 0).sum(1, keepdims=True), counts.sum(1, keepdims=True)
    mixed = np.where(total > 0, (counts + kinds * shorter) / np.maximum(total + kinds, 1), shorter)
    return mixed.astype(np.float32)  # N of them are large


p_single = np.bincount(train, minlength=V) * askable / askable[train].sum()  # (V,)
pairs = np.bincount(train[:-1] * V + train[1:], minlength=V * V).reshape(V, V)  # row: first word, column: second
p_left = mix(pairs * askable, p_single)  # (V, V) row: the left neighbour, column: the hidden word
p_right = mix(pairs.T * askable, p_single)  # (V, V) row: the right neighbour
product = p_left[before] * p_right[after]  # (N, V)
product /= np.maximum(p_single, 1e-12)
product /= product.sum(1, keepdims=True)

around = train[:-2] * V + train[2:]  # the pair around each word, as one number
order = around.argsort(kind="stable")
low, high = (np.searchsorted(around[order], before * V + after, side=side) for side in ("left", "right"))
between = np.zeros((len(y_test), V), dtype=np.float32)  # (N, V) what stood between these two neighbours
for i in range(len(y_test)):
    np.add.at(between[i], train[1:-1][order[low[i] : high[i]]], 1)
p_both = mix(between * askable, product, weight=4)


def score(p: np.ndarray) -> tuple[float, float]:
    """Share of hidden words right, and nats per word."""
    return (p.argmax(1) == y_test).mean(), -np.log(p[np.arange(len(p)), y_test]).mean()


always = np.broadcast_to(p_single, product.shape)
results = {"frequent": score(always), "left": score(p_left[before]), "both": score(p_both)}
for name, source in (("frequent", "the most frequent word"), ("left", "counts after the left neighbour"),
                     ("both", "counts between both neighbours")):
    lab.baseline(f"right_{name}", results[name][0], source)
    lab.baseline(f"loss_{name}", results[name][1], source)
lab.metric("sum_error", np.abs(p_both.sum(1) - 1).max(), "distance of a sum of probabilities from 1", better="lower")
lab.gate("probabilities", "the strongest opponent gives probabilities: over all words they sum to 1",
         metric="sum_error", op="<=", limit=1e-5, exact=True)

# %% [markdown]
# ## 3. The encoder
#
# As in a GPT, but without the mask over the future. Two things give it a start that a plain encoder has to learn at
# length: a convolution over five words, and heads that begin with a bonus for the left, right, near or far words.

# %%
place = torch.arange(context, device=device)
offset = place - place[:, None] + context - 1  # (T, T) the column's place seen from the row, from 0 on


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d_model, 3 * d_model), nn.GELU(), nn.Linear(3 * d_model, d_model))
        far = torch.arange(2 * context - 1) - (context - 1)  # -(T-1) ... T-1
        starts = [4.0 * (far == -1), 4.0 * (far == 1), -0.5 * far.abs(), -0.05 * far.abs()]
        self.bonus = nn.Parameter(torch.stack(starts).repeat(n_heads // 4, 1))  # (heads, 2T - 1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:  # (B, T, d_model)
        q, k, v = self.qkv(self.norm1(h)).view(len(h), context, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + self.bonus[:, offset]  # (B, heads, T, T)
        h = h + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Parameter(0.1 * torch.randn(V, d_model))
        self.conv = nn.Conv1d(d_model, d_model, 5, padding=2)
        self.blocks = nn.Sequential(*(Block() for _ in range(n_blocks)))
        self.norm, self.last = nn.LayerNorm(d_model), nn.Linear(d_model, d_model)
        self.prior = nn.Parameter(torch.tensor(np.log(p_single + 1e-7), dtype=torch.float32))  # starts as "frequent"

    def forward(self, x: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:  # (B, T) and (B, T) of bool
        h = F.embedding(x.masked_fill(holes, MASK), self.embed)  # (B, T, d_model), the answers are gone
        h = h + F.gelu(self.conv(h.transpose(1, 2)).transpose(1, 2))
        h = self.norm(self.blocks(h)[holes])  # (holes, d_model): the other places are not asked
        return (h + F.gelu(self.last(h))) @ self.embed.T + self.prior  # (holes, V)


model = Encoder().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr_peak, betas=(0.9, 0.99), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr_peak, total_steps=n_steps, pct_start=0.2)
text, may_ask = torch.from_numpy(train).to(device), torch.from_numpy(askable).to(device)
for step in lab.steps(lab.resume(model=model, optimizer=optimizer, schedule=schedule, gen=gen), n_steps):
    begin = torch.randint(len(text) - context, (batch_size, 1), generator=gen).to(device)
    words = text[begin + place]  # (B, T)
    holes = (torch.rand(words.shape, generator=gen) < share_hidden).to(device) & may_ask[words]
    loss = F.cross_entropy(model(words, holes), words[holes])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if (step + 1) % log_every == 0:
        lab.log(step, loss=loss.item())

# %% [markdown]
# ## 4. Can the answer leak? Then: how good is it?
#
# Put another word under every mask: if a single score moves, the network had a way to see what it should guess.

# %%
with torch.no_grad():
    x, holes = torch.from_numpy(x_test).to(device), torch.zeros(x_test.shape, dtype=torch.bool, device=device)
    holes[:, hole] = True
    guess = torch.cat([model(a, b) for a, b in zip(x.split(512), holes.split(512), strict=True)])  # (N, V)
    p = guess.masked_fill(~may_ask, -torch.inf).softmax(1).cpu().numpy()
    some, answers = x[:256].clone(), []
    for filling in (torch.from_numpy(y_test[:256]).to(device), torch.full((len(some),), V - 1, device=device)):
        some[:, hole] = filling
        answers.append(model(some, holes[:256]))

lab.metric("answer_leak", (answers[0] - answers[1]).abs().max(), "largest change of a score", better="lower")
lab.gate("hidden", "what stands under a mask does not reach the output: another word there changes no score",
         metric="answer_leak", op="<=", limit=1e-6, exact=True)
right, loss = score(p)
lab.metric("right", right, "share of hidden words")
lab.metric("loss", loss, "nats per hidden word", better="lower")
lab.gate("beats_left", "at least 0.07 more of the words are right than by counts after the left neighbour",
         metric="right", op=">=", limit=results["left"][0] + 0.07, baseline="right_left")
lab.gate("beats_both", "the loss is at least 0.08 nats below that of counts between both neighbours",
         metric="loss", op="<=", limit=results["both"][1] - 0.08, baseline="loss_both")
lab.honest("Share of hidden words right: the network against counts of both neighbours.", right, results["both"][0])

plain = (x_test[:, hole - 5 : hole + 6] != RARE).all(1).nonzero()[0]  # sentences a reader can follow
shown = plain[torch.randperm(len(plain), generator=gen)[:6]]


def draw(figure) -> None:
    page, ax = figure.subplots(1, 2, width_ratios=[2.3, 1])
    page.set(title="Six holes, five guesses each (green: right)", xticks=[], yticks=[], frame_on=False, ylim=(6, 0))
    for row, i in enumerate(shown):
        words = [names[j] for j in x_test[i, hole - 5 : hole + 6]]
        words[5] = "_____"
        page.text(0, row + 0.25, " ".join(words), fontsize=10.5, in_layout=False)
        for rank, j in enumerate(p[i].argsort()[::-1][:5]):
            page.text(0.03 + 0.19 * rank, row + 0.62, f"{names[j]} {p[i, j]:.0%}",
                      color=harness.COLOURS["good" if j == y_test[i] else "muted"])
    bars = {"most frequent": results["frequent"][1], "left counts": results["left"][1],
            "both counts": results["both"][1], "network": loss}
    ax.bar(list(bars), bars.values(), color=[harness.COLOURS["baseline"]] * 3 + [harness.COLOURS["ours"]])
    ax.bar_label(ax.containers[0], fmt="%.2f")
    ax.set(title="Nats per hidden word", yticks=[], xticks=range(4), xticklabels=[b.replace(" ", "\n") for b in bars])


lab.plot("guesses", draw, size=(10, 4.8),
         alt="Left: six passages with a hidden word and the five best guesses. Right: losses of counts and network")
lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Set `share_hidden = 0.75`. Why does it hurt, although every window now gives three times as many examples?
# 2. Start all heads alike: `torch.zeros_like(torch.stack(starts))`. Does the convolution make up for it?
# 3. Leave out the convolution line in `Encoder.forward`. Which opponent does the network still beat?
