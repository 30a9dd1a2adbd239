# %% [markdown]
# # Lesson 04 · Q-learning, and the target
#
# **New against lesson 03:** the student looks ahead. Cloning learns each token by itself; Q-learning learns what a
# token is worth *with everything that may follow*, from single steps, by chasing a target it computes itself:
#
#     target = r + γ · max_{a' in A(s')} Q(s', a')        r = log π_T(a|s)
#
# Four things go wrong here more often than anywhere else: what is maximised over, what follows a cut, who computes the
# target, and what the maximum does to noise.

# %%
import math
from typing import Any

import numpy as np
import torch

from agents import objectives
from envs.exact import solve
from envs.table_teacher import detour
from experiments.lessons.sheet import ACCENT, DARK, MIDDLE, SECOND, sheet, show
from experiments.oracle import TOLERANCE, beginner, gap
from experiments.table_data import build, complete_paths, ended_paths

# %% [markdown]
# ## By hand
# Token 0 ends a text; the state is the last token. At p = .7 the nuclei of this teacher are
#
#     after 0:  1 (.48)  2 (.48)          after 1:  0 (.96)
#     after 2:  0 (.26)  2 (.25)  3 (.25)  after 3:  0 (.72)
#
# Work backwards, γ = 1. After 1 and 3 there is nothing to choose: V = log .96 = −.041 and log .72 = −.329. After 2:
#
#     Q(2, end) = log .26         = −1.347     the largest: V(2) = −1.347
#     Q(2, 3)   = log .25 − .329  = −1.715
#     Q(2, 2)   = log .25 − 1.347 = −2.733
#
# and after 0: Q(0, 1) = log .48 − .041 = −.775, Q(0, 2) = log .48 − 1.347 = −2.081. The two tokens are equally likely,
# and yet one is worth 1.3 nats more.

# %%
P = 0.7
teacher = detour()
hard = solve(teacher, "hard", top_p=P, gamma=1.0)
print("Q* by value iteration (NaN: outside the nucleus)\n", hard.q.round(3))
assert np.allclose(hard.q[2, [0, 2, 3]], [-1.347, -2.733, -1.715], atol=5e-4)
assert np.allclose(hard.q[0, [1, 2]], [-0.775, -2.081], atol=5e-4)

# %% [markdown]
# ## What it learns: the most probable text
# Rewards are log-probabilities and the maximum adds up the best of them, so V*(s) is the log-probability of the single
# most probable text from s on. A student that acts on it says that text, always. That may be what you want from a
# translation; it is not a distribution any more, which is why `q_learning` is judged by its greedy replies only.

# %%
best: dict[int, float] = {}
for path in ended_paths(teacher, P):
    states = [path.state, *path.tokens[:-1]]
    if path.tokens[-1] == 0 and all(hard.candidates[s, a] for s, a in zip(states, path.tokens, strict=True)):
        best[path.state] = max(best.get(path.state, 0.0), path.weight)
print("most probable text inside, by trying all of them:", {s: round(math.log(w), 3) for s, w in sorted(best.items())})
assert np.allclose([math.log(best[state]) for state in range(4)], hard.value)

# %% [markdown]
# ## Learned, with two kinds of target network
# The target contains the student's own Q. If it moved at once with every update, a student would chase its own tail;
# so the targets come from a slow copy. Either it follows by 10 % each update, or it stands still and is replaced every
# 25 updates: the steps in the figure. Both arrive.
#
# ## What follows a cut
# Here every training text is one token long: after it the budget is used up, and unless the token was the end, the
# text was *truncated*. The environment marks that by a discount of γ (0 only where a text really ends), and the target
# bootstraps. Merge the two into one `done` flag, and the student believes that nothing follows a cut. Its fixed point
# is then Q = r, the optimum for γ = 0: it has looked at rewards alone, with all the machinery running.


# %%
def learn(cut_ends: bool = False, **settings: Any) -> tuple[Any, list[float]]:
    """A `q_learning` student, and its largest distance from Q* after every third update, nats."""
    data = build(teacher, complete_paths(teacher, 1), P, 1.0, truncation_terminates=cut_ends)
    agent, distances = beginner("q_learning", teacher, 150, lr=0.4, **settings), []
    for update in range(150):
        agent.update(data)
        if update % 3 == 2:
            distances.append(gap(agent, teacher, P, hard).q)
    return agent, distances


follows, following = learn(target_rate=0.1)
copies, copied = learn(target_rate=1.0, target_period=25)
myopic, cut = learn(cut_ends=True, target_rate=0.1)
rewards_alone = solve(teacher, "hard", top_p=P, gamma=0.0)
print(f"distance from Q*: follows {following[-1]:.4f}, copies {copied[-1]:.4f}, a cut taken for an end {cut[-1]:.3f}")
print(f"the last one is {gap(myopic, teacher, P, rewards_alone).q:.4f} from the rewards alone")
assert following[-1] < TOLERANCE.q and copied[-1] < TOLERANCE.q
assert abs(cut[-1] - 1.347) < 0.02, "it misses V(2) = −1.347 after token 2"
assert gap(myopic, teacher, P, rewards_alone).q < TOLERANCE.q

# %% [markdown]
# ## What the maximum does to noise
# Take K candidates that are all worth 0, and estimates that are off by a standard normal. The largest estimate is not 0
# on average: 1/√π = .564 for two, .846 for three, about 3.4 for 2,048. Q-learning backs that up, state after state. Two
# remedies: let one estimate choose and another one value (*double* Q-learning), which is unbiased here; and have few
# candidates, which is what a nucleus is for: in lesson 01 two at the median and at most five in nine states of ten.

# %%
generator = torch.Generator().manual_seed(0)
biases: dict[int, tuple[float, float]] = {}
for count in (2, 3, 8, 32, 128, 512, 2048):
    noise = torch.randn(2, 2_000, count, generator=generator)
    all_candidates = torch.ones(2_000, count, dtype=torch.bool)
    single = objectives.double_value(noise[0], noise[0], all_candidates)
    double = objectives.double_value(noise[0], noise[1], all_candidates)
    biases[count] = (float(single.mean()), float(double.mean()))
print("bias of the maximum, of the double estimate:", {k: (round(a, 2), round(b, 2)) for k, (a, b) in biases.items()})
assert abs(biases[2][0] - 1 / math.sqrt(math.pi)) < 0.08 and abs(biases[3][0] - 0.846) < 0.08
assert biases[2048][0] > 3.3 and all(abs(double) < 0.1 for _, double in biases.values())

# %% [markdown]
# ## What is maximised over
# The maximum must run over the candidates of the *next* state, and padding slots are not candidates: a padded 0 would
# beat every log-probability. Forgetting the mask in the target, not in acting, is the most common bug of all; the first
# exercise in `lessons/bugs` is to find it.

# %%
padded = torch.tensor([-1.3, -0.4, 0.0])  # two candidates, one padding slot
mask = torch.tensor([True, True, False])
assert float(objectives.double_value(padded, padded, mask)) == float(torch.tensor(-0.4))

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "Q-learning reaches Q* if a cut is not taken for an end; its maximum needs few candidates, or two estimates",
    ["Largest distance from Q*", "Mean of the target where all candidates are worth 0"],
)
updates = np.arange(3, 151, 3)
left.plot(updates, cut, color=ACCENT, linewidth=2)
left.plot(updates, copied, color=SECOND, linewidth=2)
left.plot(updates, following, color=DARK, linewidth=2)
left.text(150, 1.62, "a cut taken for an end", color=ACCENT, fontsize=9, ha="right")
left.text(52, 0.42, "target copied every 25 updates", color=SECOND, fontsize=9)
left.text(48, 0.004, "target follows\nby 10 % an update", color=DARK, fontsize=9, ha="right")
left.set_yscale("log")
left.set_ylim(3e-4, 3)
left.set_xlabel("updates")
left.set_ylabel("nats")
counts = list(biases)
right.plot(counts, [bias for bias, _ in biases.values()], "o-", color=ACCENT, linewidth=2, markersize=5)
right.plot(counts, [bias for _, bias in biases.values()], "o-", color=DARK, linewidth=2, markersize=5)
right.axvspan(2, 5, color=MIDDLE, alpha=0.25, linewidth=0)
right.text(2.1, 2.4, "a nucleus\nat p = .9", fontsize=9, color=DARK)
right.text(40, 2.7, "maximum", color=ACCENT, fontsize=10, ha="right")
right.text(300, 0.15, "one chooses, the other values", color=DARK, fontsize=10, ha="center")
right.set_xscale("log", base=2)
right.set_xticks([2, 8, 32, 128, 512, 2048], ["2", "8", "32", "128", "512", "2,048"])
right.set_xlabel("K, candidates")
right.set_ylabel("standard deviations of the noise")
show(canvas, "lesson_04")
