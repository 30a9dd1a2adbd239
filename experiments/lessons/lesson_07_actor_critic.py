# %% [markdown]
# # Lesson 07 · Actor-critic, and the student's own walk
#
# **New against lesson 06:** the student walks. So far the teacher's texts were given and the student learned from them
# off-policy. An actor-critic tries its own tokens, sees how much better than expected each turned out, and makes the
# better ones likelier:
#
#     gradient = E_{a ∼ π}[ A(s, a) · ∇ log π(a|s) ],        A = r − log π + γ V(s') − V(s)
#
# The expectation is over the student's *own* tokens: that is its strength (it learns where it really goes, lesson 03)
# and its condition (an old walk is another student's walk).

# %%
from typing import Any

import numpy as np
import torch

from agents import objectives
from agents.errors import InputError
from envs.exact import solve
from envs.table_teacher import detour
from experiments.lessons.sheet import ACCENT, DARK, MIDDLE, SECOND, sheet, show
from experiments.oracle import TOLERANCE, beginner, case_for
from experiments.table_data import as_walked

# %% [markdown]
# ## One token, by hand
# A teacher that says (.9, .1), a student that says (½, ½), one token. What it is paid with its own surprise inside:
#
#     G(0) = log .9 − log .5 = +.588        G(1) = log .1 − log .5 = −1.609        V = mean = −.511
#
# The gradient of V with respect to the logit of token 0 is what we want to estimate by sampling one token. With
# ∇ log π(0) = 1 − ½ and ∇ log π(1) = −½, the sample is
#
#     without a baseline:   G(0)/2 = .294   or   −G(1)/2 = .805        mean .549, give or take .255
#     with V as baseline:   (.588 + .511)/2 = .549   or   (1.609 − .511)/2 = .549        no noise at all
#
# A baseline moves no mean. A good one takes the noise away.

# %%
log_teacher = torch.tensor([0.9, 0.1], dtype=torch.float64).log()


def sampled_gradient(token: int, baseline: float) -> float:
    """Gradient ascent's estimate from one token: of logit 0, at a uniform student."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_policy = logits.log_softmax(-1)
    outcome = (log_teacher - log_policy)[token] - baseline  # r − log π − V, a constant to policy_gradient
    torch.autograd.backward(objectives.policy_gradient(log_policy[token], outcome))
    assert logits.grad is not None
    return -float(logits.grad[0])


logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
value = objectives.expected_value(log_teacher, logits.log_softmax(-1), torch.ones(2, dtype=torch.bool))
torch.autograd.backward(value)
assert logits.grad is not None
exact, v = float(logits.grad[0]), float(value.detach())
for baseline in (0.0, v):
    samples = [sampled_gradient(token, baseline) for token in (0, 1)]
    print(f"baseline {baseline:6.3f}: samples {samples[0]:.3f} and {samples[1]:.3f}, mean {np.mean(samples):.3f}")
    assert abs(np.mean(samples) - exact) < 1e-12
assert abs(v - -0.511) < 5e-4 and abs(exact - 0.549) < 5e-4 and abs(samples[0] - samples[1]) < 1e-12
noisy = [sampled_gradient(token, 0.0) for token in (0, 1)]
assert np.allclose(noisy, [0.294, 0.805], atol=5e-4)

# %% [markdown]
# ## Entropy inside the return
# Many implementations leave log π out of the return, values and all, and add the entropy of each state as a bonus
# beside it. Then no token is paid for the entropy of the states it leads to, and that is *another objective*: it rests
# where
#
#     π ∝ exp(r + V(s')),        V(s) = Σ_a π(a|s) (r + V(s'))        a mean, where the soft optimum has a log-sum-exp
#
# On the teacher of lesson 05 that is .21 away from the soft optimum in probability.

# %%
P = 0.7
teacher = detour()
soft = solve(teacher, "soft", top_p=P, gamma=1.0)
inside, after = soft.candidates, teacher.successors()
goes_on = np.arange(teacher.vocab_size) != 0
rewards = np.where(inside, teacher.table, 0.0)

beside, worth = soft.policy, soft.value
for _ in range(200):
    q = rewards + np.where(goes_on, worth[after], 0.0)
    weights = np.where(inside, np.exp(q), 0.0)
    beside = weights / weights.sum(1, keepdims=True)
    worth = (beside * q).sum(1)
off = float(np.abs(beside - soft.policy).max())
print(f"entropy as a bonus beside the return: {off:.3f} from the soft optimum; after 0 {beside[0].round(3)}")
assert abs(off - 0.212) < 1e-3

# %% [markdown]
# Now let the values keep the entropy, and move only that of the present token from its return into a bonus. The mean
# of the gradient is the same, its noise is not. At the soft optimum `r − log π + V(s') = V(s)` holds for *every* token
# (that is what π = exp(Q − V) says), so with the entropy inside, every advantage is 0 and a student that has arrived
# stands still. With a bonus beside it the tokens' pushes cancel on average only, and it trembles for ever.
#
# Exact, on the same teacher: the noise of a one-token estimate along the way from the uniform student to the optimum.


# %%
def noise(policy: Any, baseline: bool, entropy_inside: bool) -> float:
    """Standard deviation of the gradient estimate from one token, over the logits of a state; a mean over states."""
    own = np.where(inside, np.log(np.where(inside, policy, 1.0)), 0.0)  # log π on the nucleus
    chain = np.where(goes_on, policy, 0.0)
    values = np.linalg.solve(np.eye(4) - chain, (policy * (rewards - own)).sum(1))  # soft V^π
    outcome = rewards + np.where(goes_on, values[after], 0.0) - own * entropy_inside
    found = []
    for state in range(4):
        level = policy[state] @ outcome[state] if baseline else 0.0
        pushes = (outcome[state] - level)[:, None] * (np.eye(4) - policy[state])  # A(a) ∇ log π(a), (V, V)
        mean = policy[state] @ pushes
        found.append(np.sqrt(policy[state] @ ((pushes - mean) ** 2).sum(1)))
    return float(np.mean(found))


def between(share: float) -> Any:
    """A policy this far from the uniform one on the way to the optimum, in log-probability."""
    weights = np.where(inside, np.where(inside, soft.policy, 1.0) ** share, 0.0)
    return weights / weights.sum(1, keepdims=True)


shares = np.linspace(0.0, 1.0, 21)
kinds = {"no baseline": (False, True), "entropy beside the return": (True, False), "entropy inside": (True, True)}
noises = {name: [noise(between(share), *kind) for share in shares] for name, kind in kinds.items()}
print("noise at the optimum:", {name: round(curve[-1], 4) for name, curve in noises.items()})
assert noises["entropy inside"][-1] < 1e-9 < 0.05 < noises["entropy beside the return"][-1]
assert noises["no baseline"][-1] > noises["entropy beside the return"][-1]

# %% [markdown]
# ## Learned on its own walk
# `actor_critic` with λ-returns, its value head as critic. Before every second update the student walks anew: here every
# path of two tokens, weighted by the student's own probabilities, so that nothing is left to chance. A token outside a
# nucleus cuts the trace.

# %%
UPDATES = 150
case = case_for("actor_critic", 2, 1.0, "logprob", "detour", P)
agent = beginner("actor_critic", teacher, UPDATES, lr=0.4)
assert agent.walks is not None
gaps, errors = [], []
for update in range(UPDATES):
    if update % agent.walks.every == 0:
        walk = agent.receive(as_walked(agent.student, case.anyones, agent.updates))
    errors.append(agent.update(walk)["td_error"])  # the mean |G − V| of the tokens it took, nats
    gaps.append(case.gap(agent).policy)
print(f"distance from the soft optimum {gaps[-1]:.4f}, mean advantage {errors[-1]:.4f} nats (at first {errors[0]:.2f})")
assert gaps[-1] < TOLERANCE.policy
assert errors[-1] < 0.01 < 0.2 < errors[0], "the advantages die out with the error"

# %% [markdown]
# ## An old walk is another student's walk
# The expectation above is over the *present* student. The agent knows how old an episode is and refuses one that was
# walked too many updates ago, rather than learning something else from it in silence.

# %%
refused = ""
try:
    for _ in range(agent.walks.max_age + 1):
        agent.update(walk)
except InputError as error:
    refused = str(error)
print("refused:", refused)
assert "stale" in refused

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "On its own walk the student reaches the soft optimum, and with entropy inside the return its noise dies there",
    ["actor_critic, learning", "Noise of a one-token gradient estimate, exact"],
)
left.plot(range(1, UPDATES + 1), errors, color=SECOND, linewidth=2)
left.plot(range(1, UPDATES + 1), gaps, color=DARK, linewidth=2)
left.axhline(TOLERANCE.policy, color=MIDDLE, linestyle="--", linewidth=1)
left.set_yscale("log")
left.set_xlabel("updates")
left.set_ylabel("nats; probability")
left.text(75, 0.2, "mean |advantage|, nats", color=SECOND, fontsize=9)
left.text(5, 0.0005, "largest distance\nfrom the optimum,\nprobability", color=DARK, fontsize=9)
for (name, curve), colour in zip(noises.items(), (MIDDLE, ACCENT, DARK), strict=True):
    right.plot(shares, curve, color=colour, linewidth=2.5)
    right.text(0.98, curve[-1] + 0.012, name, color=colour, fontsize=9, ha="right", va="bottom")
right.set_ylim(bottom=-0.01)
right.set_xticks([0, 0.5, 1], ["uniform", "halfway", "optimum"])
right.set_xlabel("student")
right.set_ylabel("standard deviation, nats")
show(canvas, "lesson_07")
