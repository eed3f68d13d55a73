# %% [markdown]
"""
# 12 · Association rules

**Question.** Nobody says what to predict. Which things go together in a table of yes and no, and which of them only
seem to, because both are common?

**You will learn**

1. how Apriori avoids counting nearly all of the possible sets, and that its counting is one matrix product
2. what support, confidence and lift say, and why *frequent* is not *interesting*
3. how to find out what chance alone would have produced: shuffle every column and mine again

**Paradigm.** Unsupervised learning. **How to run.** `python labs/12_rules.py` (10 seconds), or cell by cell.

**Measured** on one x86-64 core, torch 2.13.0 for CPU, seeds 0 / 1 / 2: 755 / 977 / 796 frequent sets, all as counted by
brute force; 1,098 / 1,504 / 1,066 rules, none in the shuffled votes; confidence 0.949 / 0.946 / 0.951, on unseen
members 0.942 / 0.944 / 0.951 (gate: 0.87); planted sets: recall and precision 1.0 (gate: 0.9). 12 CPU s, 0.8 GiB.

**What you should see.** Two fans that hardly touch: what members of Congress voted in 1984 falls apart into two camps,
although the mining was never told of parties. Beside it every frequent set of 50,000 invented baskets: the planted ones
float far above the rest, and some of the most frequent sets of all mean nothing.

**Where simple methods win.** To predict one given column, use a classifier: logistic regression reads all votes at once
and beats the best single rule. Rules are for when you do not know yet what to ask.

**Left out on purpose.** FP-growth, which is faster on huge data, and real shopping baskets: none could be shipped under
a clear licence, so the baskets here are synthetic and say so.
"""

# %%
from collections import Counter
from itertools import combinations

import harness

lab = harness.start(
    "12_rules",
    title="Association rules", paradigm="unsupervised", task="frequent sets and rules",
    data="votes of 435 members of Congress; 50,000 synthetic baskets", seconds=10,
)

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

device = lab.device
gen = torch.Generator().manual_seed(lab.seed)  # the split, the shuffles and the baskets derive from this one seed
max_size = 3 if lab.quick else 4  # longer rules exist, but nobody reads them
min_support, min_confidence = 0.3, 0.9  # for the votes: held by 30 % of the members, right in 90 %
n_baskets, n_items, n_planted = (4_000, 60, 6) if lab.quick else (50_000, 120, 12)

# %% [markdown]
# ## 1. The votes, as items
#
# Sixteen roll calls, answered yes, no, or not at all. Each answer becomes an item that a member has or has not, and so
# does the party: 34 columns of 0 and 1. A missing vote is simply neither item. A third of the rows is kept for testing.

# %%
table = lab.read("votes.csv.gz")
calls = [name for name in table if name != "party"]
items = [f"{name}: {answer}" for name in calls for answer in ("yes", "no")] + ["republican", "democrat"]
columns = [table[name] == answer for name in calls for answer in ("y", "n")]
columns += [table["party"] == name for name in ("republican", "democrat")]
votes = torch.from_numpy(np.stack(columns, 1)).float()  # (435, 34)
order = torch.randperm(len(votes), generator=gen)
train, test = votes[order[:290]].to(device), votes[order[290:]].to(device)

# %% [markdown]
# ## 2. Apriori in three products
#
# 34 items have 46,000 subsets of four, 120 items 8 million. Apriori's one idea: *a set is at most as frequent as its
# parts*. So sets of k + 1 items are built only from frequent sets of k, and only if **all** their parts are frequent.
#
# A set is a row of 0 and 1 as well. Then `x @ sets.T` says how many items of each set each basket holds; it holds the
# whole set where that number is k. The same product between candidates and frequent sets checks the parts.


# %%
def count(x: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:  # (N, M), (C, M) -> (C,)
    """How many rows of x hold each set; in pieces, for (N, C) numbers at once may be too many."""
    counts = torch.empty(len(sets), dtype=torch.long, device=x.device)  # first: pieces then leave no gaps in memory
    for piece, into in zip(sets.split(128), counts.split(128), strict=True):
        into.copy_((x @ piece.T == piece.sum(1)).sum(0))  # (N, 128) -> (128,)
    return counts


def apriori(x: torch.Tensor, min_support: float) -> dict[tuple[int, ...], int]:
    """Every set of at most max_size items that min_support of the rows hold, with its number of rows."""
    M = x.shape[1]
    single, found = torch.eye(M, device=x.device), {}
    sets = single  # the candidates of size 1: (M, M)
    for size in range(1, max_size + 1):
        counts = count(x, sets)
        sets, counts = sets[counts >= min_support * len(x)], counts[counts >= min_support * len(x)]
        found |= {tuple(row.nonzero().flatten().tolist()): int(n) for row, n in zip(sets.cpu(), counts, strict=True)}
        last = M - 1 - sets.flip(1).argmax(1)  # (F,) the highest item of each set; only later ones are appended
        which, item = (torch.arange(M, device=x.device)[None] > last[:, None]).nonzero(as_tuple=True)
        candidates = sets[which] + single[item]  # (C, M) with size + 1 items; below (C,) how many parts are frequent
        parts = torch.cat([(piece @ sets.T == size).sum(1) for piece in candidates.split(4096)])
        sets = candidates[parts == size + 1]
        if len(sets) == 0:
            break
    return found


def by_counting(x: torch.Tensor, min_support: float) -> dict[tuple[int, ...], int]:
    """The same without any idea: note every subset of every row, then see which ones are frequent."""
    seen: Counter = Counter()
    for row in x.cpu():
        for size in range(1, max_size + 1):
            seen.update(combinations(row.nonzero().flatten().tolist(), size))
    return {subset: n for subset, n in seen.items() if n >= min_support * len(x)}


frequent = apriori(train, min_support)
brute = by_counting(train, min_support)
lab.metric("sets", len(frequent), "frequent sets")
lab.metric("wrong_sets", len(frequent.items() ^ brute.items()), "sets in one list only, or counted otherwise",
           better="lower")
lab.gate("same_sets", "Apriori finds the sets and the counts of a brute-force counter, no more and no less",
         metric="wrong_sets", op="==", limit=0, exact=True)

# %% [markdown]
# ## 3. Rules, and what chance would give
#
# From a set comes the rule *if all the others, then this one*. **Confidence**: how often it is right. **Lift**: how
# much more often than without the condition; 1 means the condition says nothing. Rules always look meaningful. So
# shuffle each column by itself: every item stays as common, but nothing goes together. What is left is chance.


# %%
def rules_of(found: dict[tuple[int, ...], int], n_rows: int) -> list[tuple[tuple[int, ...], int, float, float]]:
    """(condition, consequence, confidence, lift) of all rules that are confident and say something."""
    rules = []
    for subset, n in found.items():
        for then in subset if len(subset) > 1 else ():
            condition = tuple(i for i in subset if i != then)
            confidence = n / found[condition]
            lift = confidence / (found[then,] / n_rows)
            if confidence >= min_confidence and lift >= 1.3:
                rules.append((condition, then, confidence, lift))
    return sorted(rules, key=lambda rule: -rule[3])


rules = rules_of(frequent, len(train))
shuffled = torch.stack([column[torch.randperm(len(train), generator=gen).to(device)] for column in train.T], 1)
by_chance = rules_of(apriori(shuffled, min_support), len(train))

kept = []  # what the rules are worth on members that were not mined
for condition, then, _, _ in rules:
    having = test[test[:, condition].all(1)]  # the rows that fulfil the condition
    kept.append(having[:, then].mean().item())
lab.metric("rules", len(rules), "rules")
lab.metric("confidence_train", sum(r[2] for r in rules) / len(rules), "mean over the rules")
lab.metric("confidence_test", sum(kept) / len(kept), "mean over the rules, unseen members")
chance = lab.baseline("rules_by_chance", len(by_chance), "the same votes, each column shuffled by itself")
lab.gate("beyond_chance", "at least 20 times as many rules as in the shuffled votes, and 100",
         metric="rules", op=">=", limit=max(100, 20 * chance), baseline="rules_by_chance")
lab.gate("rules_hold", "on unseen members the rules are still right in 87 % of the cases, on average",
         metric="confidence_test", op=">=", limit=0.87)

# To predict the party: the most confident rule of one vote, against a model that weighs all the votes.
republican, democrat = items.index("republican"), items.index("democrat")
best = max((r for r in rules if len(r[0]) == 1 and r[1] in (republican, democrat)), key=lambda r: r[2])
says = test[:, best[0]].all(1) == test[:, best[1]].bool()  # right if condition and consequence are both there, or not
logistic = LogisticRegression().fit(train[:, :-2].cpu(), train[:, democrat].cpu())
accuracy = logistic.score(test[:, :-2].cpu(), test[:, democrat].cpu())
lab.baseline("accuracy_logistic", accuracy, "sklearn LogisticRegression on all votes")
lab.honest(f"Party of unseen members: the one rule '{items[best[0][0]]}, so {items[best[1]]}' against logistic "
           "regression on all votes.", says.float().mean().item(), accuracy)

# %% [markdown]
# ## 4. Baskets with a planted answer
#
# Votes have no answer sheet. So invent baskets: items of very different popularity, bought independently, and some sets
# that a few customers take together, forgetting an item now and then. **Frequent** sets are mostly two popular items.
# **Interest** asks more: is the set more common than any of its items would make it, joined to the rest by chance?

# %%
popularity = 0.3 * torch.rand(n_items, generator=gen) ** 4 + 0.01  # (M,) from 1 % to 31 %, few of them popular
baskets = (torch.rand(n_baskets, n_items, generator=gen) < popularity).float()  # (N, M)
shelf = [i for i in torch.randperm(n_items, generator=gen).tolist() if popularity[i] < 0.1]  # no best sellers
planted = set()
for k in range(n_planted):
    members = sorted(shelf.pop() for _ in range(2 + k % (max_size - 1)))  # 2, 3 or 4 items
    planted.add(tuple(members))
    takes = torch.rand(n_baskets, 1, generator=gen) < 0.03  # (N, 1) three customers in a hundred
    remembers = torch.rand(n_baskets, len(members), generator=gen) < 0.9  # (N, size)
    baskets[:, members] = torch.maximum(baskets[:, members], (takes & remembers).float())
lab.data("planted baskets", baskets.numpy(), licence="CC0 (made here)", synthetic=True)

found = apriori(baskets.to(device), min_support=0.012)
support = {subset: n / n_baskets for subset, n in found.items()}
interest = {s: min(support[s] / (support[tuple(j for j in s if j != i)] * support[i,]) for i in s)
            for s in found if len(s) > 1}
picked = [s for s in interest if interest[s] >= 2]
picked = {s for s in picked if not any(set(s) < set(larger) for larger in picked)}  # only the largest of each family
common = set(sorted(interest, key=lambda s: -support[s])[:n_planted])  # what a list of best sellers would show

lab.metric("recall", len(picked & planted) / n_planted, "share of the planted sets found")
lab.metric("precision", len(picked & planted) / max(1, len(picked)), "share of the found sets that were planted")
lab.baseline("recall_by_support", len(common & planted) / n_planted, "the most frequent sets")
lab.gate("recall", "nine in ten planted sets are found, item for item", metric="recall", op=">=", limit=0.9)
lab.gate("precision", "nine in ten found sets were planted", metric="precision", op=">=", limit=0.9)


def draw(figure) -> None:
    graph, cloud = figure.subplots(1, 2, width_ratios=[1.7, 1])
    pairs = [r for r in rules if len(r[0]) == 1 and max(r[0][0], r[1]) < republican]  # vote => vote
    share = {i: (train[train[:, i] == 1][:, republican].mean().item()) for r in pairs for i in (r[0][0], r[1])}
    height = {}
    for side in (False, True):
        camp = sorted((i for i in share if (share[i] > 0.5) == side), key=lambda i: share[i])
        height |= {i: (k + 0.5) / len(camp) for k, i in enumerate(camp)}
    for (start,), end, _, lift in pairs:
        graph.annotate("", (share[end], height[end]), (share[start], height[start]), arrowprops={
            "arrowstyle": "->", "lw": 1, "color": harness.COLOURS["muted"], "alpha": min(1, lift / 2 - 0.3),
            "connectionstyle": "arc3,rad=0.3"})  # fmt: skip
    for i, where in share.items():
        right = where > 0.5
        graph.plot(where, height[i], "o", ms=8, color=harness.COLOURS["bad" if right else "ours"])
        graph.text(where + (0.06 if right else -0.06), height[i], items[i].replace("-", " "), fontsize=8,
                   ha="left" if right else "right", va="center")
    graph.set(title=f"{len(pairs)} rules, vote => vote: two camps", xlim=(-1.1, 2.1), yticks=[], xticks=[0, 0.5, 1],
              xlabel="share of Republicans among those who voted so")
    graph.spines["left"].set_visible(False)
    parts = {s for s in interest if any(set(s) < set(whole) for whole in planted)}
    for name, group, colour in (("two popular items", interest.keys() - planted - parts, "baseline"),
                                ("part of a planted set", parts, "muted"),
                                ("planted", interest.keys() & planted, "good")):
        cloud.semilogy([100 * support[s] for s in group], [interest[s] for s in group], "o", ms=4, alpha=0.7,
                       color=harness.COLOURS[colour], label=name)
    cloud.axhline(2, color=harness.COLOURS["muted"], lw=1, ls="--")
    cloud.set(title="Frequent is not interesting", xlabel="support: % of the baskets", ylabel="interest (log)")
    cloud.legend(loc="center right", bbox_to_anchor=(1, 0.6))


lab.plot("rules", draw, size=(9, 4.6),
         alt="Left: votes as dots in two camps, arrows between votes that imply each other. "
             "Right: support and interest of all frequent sets; the planted ones lie far above")

lab.finish()

# %% [markdown] tags=["exercise"]
# ## Try this
#
# 1. Set `min_support` to 0.2. How many times more sets are there, and how much longer does the brute force take?
# 2. In `rules_of` leave out the condition on the lift. Which rules come in, and what happens to the shuffled votes?
# 3. Let customers forget more: 0.6 in place of 0.9. Which planted sets are lost first, the small or the large ones?
