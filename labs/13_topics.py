# %% [markdown]
"""
# 13 · Topics in six novels

**Question.** What are 700,000 words about, if nobody has time to read them and nobody has labelled a page?

**You will learn**

1. how a text becomes a table of word weights, and the table a product of two small ones without negative numbers
2. why the multiplicative update never makes the error worse and needs no learning rate
3. how to judge topics without labels, and why the loudest topics of a novel are simply its people

**Paradigm.** Unsupervised learning. **How to run.** `python labs/13_topics.py` (20 seconds).

**Measured** on one x86-64 core, torch 2.13.0 (CPU), seeds 0 / 1 / 2: error 57.93 / 57.93 / 57.93, scikit-learn 58.00 /
57.98 / 58.02 (gate: 1.005 x); coherence 0.31 / 0.30 / 0.28, random words -0.35 / -0.37 / -0.34 (gate: 0.3 more);
agreement with the novel 0.62 / 0.62 / 0.59 (gate: 0.40). 20 CPU seconds on a busy machine, 0.61 GiB.

**What you should see.** On the left casts of characters, on the right, without names, subjects: money, dances, faces,
feelings. The second list is the one a reader wants, though both judges (agreement, coherence) prefer the first.

**Where simple methods win.** To sort pieces by novel, plain k-means is better (agreement 0.69 to 0.74).

**Left out on purpose.** LDA, the classical topic model: it finds next to nothing in pieces this short in this little
time. And choosing the number of topics.
"""

# %%
import re
from collections import Counter
from itertools import pairwise

import harness

lab = harness.start(
    "13_topics",
    title="Topics in six novels", paradigm="unsupervised", task="topic modelling",
    data="six novels by Jane Austen", seconds=20,
)

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import normalized_mutual_info_score

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # draws the starting tables; k-means uses the same seed
length = 200  # words of a piece: a page or so, long enough to be about something
n_words = 2000  # of the vocabulary: the commonest, without "the", "of" and the like
n_topics = 12  # two per novel, if novels were all there is
n_steps = 20 if lab.quick else 120
n_top = 8  # words that stand for a topic

# %% [markdown]
# ## 1. From text to a table
#
# One row per piece of 200 words, one column per word. A count says less the more pieces have the word, so it is
# multiplied by log(pieces / pieces with the word); the square root lets the tenth "Emma" of a page count less than the
# first. Rows get length 1. We make two tables: with all words, and without the words that are nearly always written
# with a capital letter, the names. Nothing is predicted later, so there is no test part to keep apart.

# %%
text = lab.read("austen.txt.xz")
novels = dict(part.split("\n", 1) for part in text.split("\f")[1:])
pieces, novel_of = [], []  # lists of words as written; the number of their novel, only used to judge
for number, novel in enumerate(novels.values()):
    words = re.findall(r"[A-Za-z]+", novel)
    found = [words[i : i + length] for i in range(0, len(words) - length + 1, length)][: 100 if lab.quick else None]
    pieces += found
    novel_of += [number] * len(found)
total = Counter(word.lower() for piece in pieces for word in piece)
capital = Counter(word.lower() for piece in pieces for word in piece if word[0].isupper())
usable = [word for word, _ in total.most_common() if word not in ENGLISH_STOP_WORDS and len(word) > 2]


def table(vocabulary: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which piece has which word (N, n_words) as 0 and 1, and the weighted table of the same shape."""
    column = {word: j for j, word in enumerate(vocabulary)}
    counts = torch.zeros(len(pieces), len(vocabulary))
    for i, piece in enumerate(pieces):
        for word, count in Counter(word.lower() for word in piece).items():
            if word in column:
                counts[i, column[word]] = count
    has = (counts > 0).float()
    x = counts.sqrt() * torch.log(len(pieces) / has.sum(0).clamp(min=1))  # (N, n_words)
    return has, x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)


everything = usable[:n_words]
no_names = [word for word in usable if capital[word] < 0.5 * total[word]][:n_words]
has, x = table(everything)
x_device = x.to(device)

# %% [markdown]
# ## 2. Non-negative matrix factorisation
#
# Find w (pieces x topics) and h (topics x words), both without negative numbers, so that w h is close to x. A piece is
# then a *sum* of topics, and a topic a list of words: nothing can be taken away again, so the parts stay readable. Lee
# and Seung's update multiplies each number by (what pulls it up) / (what pulls it down). A positive number stays
# positive, the error cannot rise, and there is no step size to choose.


# %%
def error(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor) -> float:
    return (x - w @ h).norm().item()  # the root of the summed squares


def start(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w, h = torch.rand(len(x), n_topics, generator=gen), torch.rand(n_topics, x.shape[1], generator=gen)
    scale = (x.mean().cpu() / n_topics).sqrt()  # so that w h begins about as large as x
    return (w * scale).to(device), (h * scale).to(device)


def update(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = h * (w.T @ x) / (w.T @ w @ h).clamp(min=1e-9)  # (n_topics, n_words)
    w = w * (x @ h.T) / (w @ (h @ h.T)).clamp(min=1e-9)  # (N, n_topics)
    return w, h


w, h = start(x_device)
errors = [error(x_device, w, h)]
for step in lab.steps(0, n_steps):
    w, h = update(x_device, w, h)
    errors.append(error(x_device, w, h))
    lab.log(step, error=errors[-1])
w, h = w.cpu(), h.cpu()
theirs = NMF(n_topics, init="random", solver="mu", max_iter=n_steps, tol=0, random_state=lab.seed).fit(x.numpy())

rises = max(0.0, *(after / before - 1 for before, after in pairwise(errors)))
lab.metric("largest_rise", rises, "of the error in one update, relative", better="lower")
lab.gate("never_rises", "no update makes the error larger, beyond the rounding of float32 (10⁻⁵)",
         metric="largest_rise", op="<=", limit=1e-5, exact=True)
lab.metric("error", errors[-1], "root of the summed squares", better="lower")
lab.baseline("error_sklearn", theirs.reconstruction_err_, "sklearn NMF, the same update and number of steps")
lab.gate("error", "the error is at most half a percent above scikit-learn's",
         metric="error", op="<=", limit=1.005 * theirs.reconstruction_err_, baseline="error_sklearn")

# %% [markdown]
# ## 3. Are they topics?
#
# Two judges who never saw the factorisation. *Coherence*: do the top words of a topic occur in the same pieces? For two
# words it is log(p(both) / p(a) p(b)) / -log p(both), which is 1 if they always come together and 0 if they ignore
# each other. And *agreement with the novel*: how much does the strongest topic of a piece say about where it is from?


# %%
def coherence(topics: torch.Tensor, has: torch.Tensor) -> float:  # topics: (n, n_top) columns
    share = has.mean(0)
    values = []
    for top in topics:
        both = (has[:, top].T @ has[:, top]) / len(has)  # (n_top, n_top)
        npmi = torch.log(both / (share[top, None] * share[top])) / -torch.log(both)
        values.append(torch.where(both > 0, npmi, -1.0)[~torch.eye(len(top), dtype=torch.bool)].mean())
    return torch.stack(values).mean().item()


top = h.argsort(1, descending=True)[:, :n_top]  # (n_topics, n_top)
coherent = coherence(top, has)
at_random = coherence(torch.randint(x.shape[1], (200, n_top), generator=gen), has)
strongest = (w * h.norm(dim=1)).argmax(1)  # (N,) scale each topic by its own length: w alone depends on how it is split
agreement = normalized_mutual_info_score(novel_of, strongest)
groups = KMeans(n_topics, n_init=2, random_state=lab.seed).fit_predict(x.numpy())
agreement_kmeans = normalized_mutual_info_score(novel_of, groups)
share_names = np.mean([capital[everything[j]] >= 0.5 * total[everything[j]] for j in top.flatten().tolist()])

has_plain, x_plain = table(no_names)
v, g = start(x_plain.to(device))
for _ in lab.steps(0, n_steps):
    v, g = update(x_plain.to(device), v, g)
v, g = v.cpu(), g.cpu()
top_plain = g.argsort(1, descending=True)[:, :n_top]
agreement_plain = normalized_mutual_info_score(novel_of, (v * g.norm(dim=1)).argmax(1))

lab.metric("coherence", coherent, f"mean NPMI of the {n_top} top words of a topic")
lab.baseline("coherence_random", at_random, "words drawn at random from the same vocabulary")
lab.gate("coherent", "top words occur together: 0.3 of NPMI more than words drawn at random",
         metric="coherence", op=">=", limit=at_random + 0.3, baseline="coherence_random")
lab.metric("agreement", agreement, "normalised mutual information with the novel")
lab.baseline("agreement_kmeans", agreement_kmeans, "sklearn KMeans on the same table")
lab.gate("novels", "the strongest topic of a piece tells much about its novel (at least 0.40)",
         metric="agreement", op=">=", limit=0.40)
lab.metric("names", share_names, "share of top words that are names", better="lower")
lab.metric("agreement_without_names", agreement_plain, "the same, names left out")
lab.metric("coherence_without_names", coherence(top_plain, has_plain), "the same, names left out")
lab.honest("Agreement of groups and novels: strongest topic, and plain k-means.", agreement, agreement_kmeans)

# %% [markdown]
# ## 4. Read them
#
# With names, most topics are casts: they say which novel it is, and that is all. Without names the same algorithm finds
# what all six novels share: money, dances, faces. It agrees with no novel any more, as it should.

# %%
def draw(figure) -> None:
    with_names, without = figure.subplots(1, 2)
    for ax, title, lists in ((with_names, f"All words: {share_names:.0%} of these are names", (top, everything)),
                             (without, "Names left out: subjects", (top_plain, no_names))):
        columns, vocabulary = lists
        for i, column in enumerate(columns.tolist()):
            names = [capital[vocabulary[j]] >= 0.5 * total[vocabulary[j]] for j in column]
            colour = harness.COLOURS["baseline" if sum(names) >= 4 else "ours"]
            ax.text(0, -i, vocabulary[column[0]], color=colour, fontsize=10.5, fontweight="bold", va="center")
            rest = ", ".join(vocabulary[j] for j in column[1:5])
            ax.text(0.24, -i, rest, color=harness.COLOURS["ink"], fontsize=9, va="center")
        ax.set(title=title, xlim=(0, 1), ylim=(-n_topics + 0.4, 0.6))
        ax.set_axis_off()


lab.plot("topics", draw, size=(9, 4.6),
         alt="Twelve word lists twice: with all words most are casts of characters, without names they are subjects "
             "such as money, dances and marriage")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Set `n_topics = 6`, one per novel. Does every novel get its own topic, and what happens to the agreement?
# 2. Set `length = 1000`. Are longer pieces easier to tell apart, and what becomes of topics such as dances?
# 3. Leave out the factor `torch.log(...)` in `table`. Which words take over the lists, and why were they held down?
