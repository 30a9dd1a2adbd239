# %% [markdown]
# # Lesson 06 · Inverse soft Q-learning: where TD enters, and where γ cancels
#
# **New against lesson 05:** no reward. Only the teacher's walk is seen, and Q is to be found under which that walk is
# optimal. Turn the Bellman equation round: any Q *implies* a reward,
#
#     x(s, a) = Q(s, a) − γ V(s'),        V(s) = log Σ_{a in the nucleus} exp Q(s, a)
#
# and inverse soft Q-learning makes the implied reward large on the teacher's steps and the value small:
#
#     maximise  E_T[ φ(x) ] − E_T[ V(s) − γ V(s') ],        φ(x) = x − x² / (4c)
#
# It looks like temporal-difference learning: Q here, V there, a discount between them. Whether it *is* depends on one
# term alone, and this lesson finds which.

# %%
import math
from typing import Any

import numpy as np
import torch

from agents import objectives
from agents.table_student import TableStudent
from envs.exact import solve
from envs.table_teacher import TableTeacher, toy
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, SECOND, mark, sheet, show
from experiments.oracle import TOLERANCE, train
from experiments.table_data import build, complete_paths

# %% [markdown]
# ## Without χ² γ cancels
# Let c = ∞, so that φ(x) = x, and write out one teacher step. A student's Q is `v(s) + log π(a|s)`, with V(s) = v(s):
#
#     φ(x) − (V − γV') = v + log π(a|s) − γV' − v + γV' = log π(a|s)
#
# The values are gone, the discount is gone, and what is left is the log-likelihood of the teacher's token on its
# nucleus: behaviour cloning. With numbers, v = −1, log π = log .5, V' = −2, γ = .9:
#
#     x = −1 − .693 + 1.8 = .107        x − (−1 + 1.8) = −.693 = log .5
#
# The same to the last bit in the gradient.


# %%
def one_step(gamma: float, c: float) -> tuple[float, list[float]]:
    """The loss of that step, and its gradient with respect to v(s), log π(a|s) and v(s')."""
    v, log_policy, ahead = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (-1, math.log(0.5), -2))
    loss = objectives.inverse_soft_q(v, log_policy, torch.tensor(gamma, dtype=torch.float64), ahead, c)
    torch.autograd.backward(loss)
    return float(loss.detach()), [0.0 if leaf.grad is None else float(leaf.grad) for leaf in (v, log_policy, ahead)]


for gamma in (0.0, 0.5, 0.9, 1.0):
    loss, gradient = one_step(gamma, math.inf)
    print(f"c = ∞, γ = {gamma}: loss {loss:.6f} nats, gradient on v, log π, v' {gradient}")
    assert abs(loss - math.log(2)) < 1e-12 and np.allclose(gradient, [0.0, -1.0, 0.0])

# %% [markdown]
# ## χ² is what looks ahead
# At finite c the loss has one term more, x²/(4c): the square of `Q − γV'`, a TD error with reward 0. Its gradient
# reaches both ends of the step, and now γ matters. By hand, c = .1 and γ = .9: x = .107, x²/(4c) = .0286, slope
# x/(2c) = .534 on v and log π, and −.9 · .534 = −.481 on v'.

# %%
loss, gradient = one_step(0.9, 0.1)
slope = (-1 - math.log(2) + 1.8) / 0.2
print(f"c = .1, γ = .9: loss {loss:.4f} nats, gradient {[round(x, 3) for x in gradient]}")
assert abs(loss - (math.log(2) + 0.0286)) < 1e-4
assert np.allclose(gradient, [slope, slope - 1, -0.9 * slope]), "the linear parts still cancel on v and v'"

# %% [markdown]
# ## What it costs: its optimum is not the teacher
# A squared reward wants rewards near 0, and likely tokens to be no better than rare ones. At γ = 0, state by state,
#
#     min_π  c · χ²(π ‖ π_T) − H(π),        χ² = Σ (π − π_T)² / π_T
#
# Take a teacher that says (.9, .1). Setting the slope `2c (π/π_T − 1) + log π` equal for both tokens at c = .1:
#
#     π = (.64, .36):    .2 (.711 − 1) − .446 = −.504        .2 (3.6 − 1) − 1.022 = −.502        equal
#
# The paper's c = .1 makes a 90 % teacher a 64 % student. Only c → ∞ returns the teacher, and there TD has gone.

# %%
coin = TableTeacher(np.array([[0.9, 0.1], [0.9, 0.1]]), "coin")
for c, expected in ((0.1, 0.64), (math.inf, 0.9)):
    solved = solve(coin, "chi2", top_p=1.0, gamma=0.0, c=c, visits=np.ones(2)).policy[0]
    print(f"teacher (.9, .1), c = {c}: optimum {solved.round(3)}")
    assert abs(solved[0] - expected) < 0.005
slopes = [0.2 * (share / own - 1) + math.log(share) for share, own in ((0.64, 0.9), (0.36, 0.1))]
assert abs(slopes[0] + 0.504) < 1e-3 and abs(slopes[1] + 0.502) < 1e-3

# %% [markdown]
# ## With several states: γ matters at finite c and nowhere else
# A teacher of six tokens on its nuclei at p = .8. Exact optima for a range of c, and students that learned by this
# loss. The distance is the largest difference in probability from the renormalised teacher.

# %%
P = 0.8
teacher = toy()
target = solve(teacher, "renormalised", top_p=P).policy


def distance(policy: Any) -> float:
    """Largest difference in probability from the teacher renormalised on its nuclei."""
    return float(np.abs(policy - target).max())


def optimum(gamma: float, c: float) -> Any:
    """The exact optimum on paths of one step from every state, equally often.  # (S, V)"""
    return solve(teacher, "chi2", top_p=P, gamma=gamma, c=c, visits=np.ones(teacher.states)).policy


def learned(gamma: float, c: float) -> Any:
    """π_S of a `bellman_distill` student.  # (S, V)"""
    data = build(teacher, complete_paths(teacher, 1), P, gamma)
    student = train("bellman_distill", teacher, data, updates=150, lr=0.4, gamma=gamma, c=c).student
    assert isinstance(student, TableStudent)
    return student.z.detach().softmax(-1).numpy()


widths = np.geomspace(0.03, 100, 36)
curves = {gamma: [distance(optimum(gamma, c)) for c in widths] for gamma in (0.0, 0.5, 1.0)}
students = {(gamma, c): learned(gamma, c) for gamma, c in ((0.0, 0.1), (1.0, 0.1), (1.0, 10.0))}
for (gamma, c), policy in students.items():
    off = float(np.abs(policy - optimum(gamma, c)).max())
    print(f"γ = {gamma}, c = {c}: {off:.4f} from its optimum, {distance(policy):.3f} from the teacher")
    assert off < TOLERANCE.policy

apart = float(np.abs(optimum(0.0, 0.1) - optimum(1.0, 0.1)).max())
print(f"γ = 0 against γ = 1 at c = .1: {apart:.3f} apart in probability")
assert apart > 0.02
for gamma in curves:
    assert np.allclose(optimum(gamma, math.inf), target), "at c = ∞ every γ ends at the teacher on its nuclei"
    assert all(np.diff(curves[gamma]) < 0), "the wider φ, the nearer the teacher"

# %% [markdown]
# Compare lesson 05: soft Q-learning with the reward log π_T looks ahead *and* has a target worth having. Inverse soft
# Q-learning, which is told no reward, must choose: look ahead through χ² and leave the teacher, or keep the teacher and
# clone. In this package c is 10 by default, and γ an arm of the comparison, not an article of faith.

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "χ² is the only term of inverse soft Q-learning that looks ahead, and it leads away from the teacher",
    ["Two tokens, teacher (.9, .1), γ = 0", "Six states at p = .8: exact optima, learned students"],
)
odds = [solve(coin, "chi2", top_p=1.0, gamma=0.0, c=c, visits=np.ones(2)).policy[0, 0] for c in widths]
left.plot(widths, odds, color=DARK, linewidth=2)
left.axhline(0.9, color=MIDDLE, linestyle="--", linewidth=1)
left.text(0.03, 0.905, "teacher", fontsize=9, color=DARK)
published = solve(coin, "chi2", top_p=1.0, gamma=0.0, c=0.1, visits=np.ones(2)).policy[0, 0]
left.plot([0.1], [published], **mark("o", ACCENT, ACCENT))
left.annotate(
    f"c = .1, as published: {published:.2f}", (0.115, 0.635), (0.14, 0.625), color=ACCENT, fontsize=10, va="center"
)
left.set_ylabel("probability of the likelier token")
for (gamma, curve), shade in zip(curves.items(), (LIGHT, MIDDLE, DARK), strict=True):
    right.plot(widths, curve, color=shade, linewidth=2.5, label=f"optimum, γ = {gamma:g}")
for (gamma, c), policy in students.items():
    name = "bellman_distill, learned" if (gamma, c) == (0.0, 0.1) else None
    right.plot([c], [distance(policy)], label=name, **mark("o", SECOND))
right.set_ylim(bottom=0)
right.set_ylabel("largest distance from the teacher, probability")
right.legend(frameon=False, fontsize=9)
for axes in (left, right):
    axes.set_xscale("log")
    axes.set_xlabel("c, nats (χ² off: c = ∞)")
show(canvas, "lesson_06")
