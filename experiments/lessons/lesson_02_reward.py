# %% [markdown]
# # Lesson 02 · The teacher's log-probability as reward
#
# **New against lesson 01:** a reward and a value. The nucleus is left out once more (p = 1: every token is a
# candidate), so that one question stands alone: if each token pays `log π_T(a|s)`, what does an optimal student do?
#
# It does what the teacher does. Not roughly, and for every discount γ: that is why this reward, and no other, stands
# under everything that follows. The last section shows three harmless-looking changes after which it is no longer true.

# %%
import math
from typing import Any

import numpy as np
import torch

from agents.objectives import expected_value, reverse_kl, soft_value
from agents.table_student import TableStudent
from envs.exact import solve, solve_finite
from envs.table_teacher import detour
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, SECOND, below, mark, sheet, show
from experiments.oracle import train
from experiments.table_data import Path, build, complete_paths

teacher = detour()
log_teacher = torch.from_numpy(teacher.table)  # (S, V) nats
everything = torch.ones_like(log_teacher, dtype=torch.bool)
print("π_T, state = last token, token 0 ends the text\n", teacher.probabilities)

# %% [markdown]
# ## One token, by hand
# The *soft* value of a state is what the best student can expect there if it is paid for its own entropy too:
#
#     V(s) = log Σ_a exp Q(s, a),        π(a|s) = exp(Q(s, a) − V(s))
#
# On the last token Q is the reward itself, `log π_T`. After token 0 the teacher says (.02, .48, .48, .02), so
#
#     V = log(.02 + .48 + .48 + .02) = log 1 = 0
#
# and the best policy is exp(log π_T − 0) = π_T. One token earlier Q = log π_T + γ · V(next) = log π_T + γ · 0: the same
# sum again. Nothing is ever propagated, whatever γ is.

# %%
value = soft_value(log_teacher, everything)  # (S,) nats
print(f"V of every state after one backup: 0, to within {value.abs().max():.0e} nats")
assert value.abs().max() < 1e-12

for gamma in (0.0, 0.5, 0.99, 1.0):
    solved = solve(teacher, "soft", top_p=1.0, gamma=gamma)
    assert np.abs(solved.value).max() < 1e-12
    assert np.abs(solved.policy - teacher.probabilities).max() < 1e-12
finite = solve_finite(teacher, horizon=6, top_p=1.0, gamma=0.9)
assert np.abs(finite.value).max() < 1e-12, "nor does a budget of tokens change it"

# %% [markdown]
# ## Why: the soft return is minus a divergence
# For *any* student, reward plus entropy, added up over a text, is
#
#     E_π[ Σ_t log π_T(a_t|s_t) + H(π(·|s_t)) ] = −KL(π ‖ π_T)
#
# A divergence is 0 at equality and nowhere else, so the teacher is the one maximum. Take one token after 0 and a
# student that is uniform over the four:
#
#     reward   ½ log .02 + ½ log .48 = ½ (−3.912 − .734) = −2.323 nats
#     entropy  log 4                                     = +1.386
#     sum                                                =  −.937 = −KL

# %%
uniform = torch.full((4,), -math.log(4), dtype=torch.float64)
soft_return = expected_value(log_teacher[0], uniform, everything[0])
print(f"reward + entropy {soft_return:.3f} nats, KL {reverse_kl(log_teacher[0], uniform):.3f} nats")
assert abs(soft_return - -0.937) < 5e-4
assert abs(soft_return + reverse_kl(log_teacher[0], uniform)) < 1e-12

# %% [markdown]
# The same over whole texts of up to five tokens, for some student drawn at random. On the left values by dynamic
# programming; on the right the sum over every text there is, P_π(text) · log(P_π(text) / P_T(text)).

# %%
log_policy = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(-1)
after, goes_on = torch.from_numpy(teacher.successors()), torch.arange(4) != 0
worth = torch.zeros(4, dtype=torch.float64)
for _ in range(5):
    worth = expected_value(log_teacher + torch.where(goes_on, worth[after], 0), log_policy, everything)


def log_law(table: torch.Tensor, path: Path) -> float:
    """log P(text) under a table of log-probabilities."""
    states = [path.state, *path.tokens[:-1]]  # of an order-1 table: the last token
    return sum(float(table[state, token]) for state, token in zip(states, path.tokens, strict=True))


texts = [path for path in complete_paths(teacher, 5) if path.state == 2]
laws = [(log_law(log_policy, path), log_law(log_teacher, path)) for path in texts]
divergence = sum(math.exp(own) * (own - theirs) for own, theirs in laws)
print(f"after token 2: soft return {worth[2]:.6f} nats, KL over {len(texts)} texts {divergence:.6f} nats")
assert abs(worth[2] + divergence) < 1e-9

# %% [markdown]
# ## Learned, not solved
# Soft Q-learning from the teacher's walks, with two discounts. γ makes no difference to where it ends.


# %%
def learned(gamma: float) -> Any:
    """π_S of a soft-Q student at p = 1.  # (S, V)"""
    data = build(teacher, complete_paths(teacher, 1), 1.0, gamma)
    student = train("soft_q", teacher, data, updates=220, gamma=gamma).student
    assert isinstance(student, TableStudent)
    return student.z.detach().softmax(-1).numpy()


students = {gamma: learned(gamma) for gamma in (0.0, 1.0)}
for gamma, policy in students.items():
    off = float(np.abs(policy - teacher.probabilities).max())
    print(f"γ = {gamma}: largest distance from the teacher {off:.4f}")
    assert off < 0.01

# %% [markdown]
# ## Three harmless-looking changes
# 1. **The hard maximum** in place of the soft one (ordinary Q-learning) leaves out the entropy. What remains is the
#    most probable text, for ever: a dictator, not a teacher.
# 2. **A temperature α ≠ 1** with the same reward. At γ = 1 the law of whole texts becomes ∝ P_T(text)^(1/α): at α = ½
#    squared. Paying α · log π_T would have kept it.
# 3. **A constant b added to every token**, for instance to centre rewards. At γ = 0 it cancels; at γ = 1 a text of n
#    tokens is paid n·b, and the student learns to go on, or to stop.

# %%
hard = solve(teacher, "hard", top_p=1.0)
sharp = solve(teacher, "soft", top_p=1.0, alpha=0.5)
assert np.abs(hard.policy - teacher.probabilities).max() > 0.5 and np.allclose(hard.policy.max(1), 1.0)

short, longer = Path(0, (1, 0), 1.0), Path(0, (2, 3, 0), 1.0)
with np.errstate(divide="ignore"):
    log_sharp = torch.from_numpy(np.log(sharp.policy))
odds = log_law(log_teacher, short) - log_law(log_teacher, longer)
squared = log_law(log_sharp, short) - log_law(log_sharp, longer)
print(f"log odds of '1 end' against '2 3 end': teacher {odds:.3f}, α = ½ {squared:.3f} = twice as much")
assert abs(squared - 2 * odds) < 1e-9


def expected_length(policy: Any) -> float:
    """Tokens of a text begun after token 0, the end included: ℓ = 1 + Σ_{a ≠ end} π(a|s) ℓ(s·a)."""
    chain = np.where(np.arange(4) != 0, policy, 0.0)  # of an order-1 table the next state is the token itself
    return float(np.linalg.solve(np.eye(4) - chain, np.ones(4))[0])


bonuses = np.linspace(-1.0, 0.8, 55)
lengths = [expected_length(solve(teacher, "soft", top_p=1.0, reward=teacher.table + b).policy) for b in bonuses]
own_length = expected_length(teacher.probabilities)
centred = expected_length(solve(teacher, "soft", top_p=1.0, reward=teacher.table + 0.5).policy)
print(f"the teacher's texts have {own_length:.2f} tokens; .5 nats more a token make them {centred:.2f}")
assert all(np.diff(lengths) > 0) and centred > 1.3 * own_length
blind = solve(teacher, "soft", top_p=1.0, gamma=0.0, reward=teacher.table + 0.5)
assert np.abs(blind.policy - teacher.probabilities).max() < 1e-12, "at γ = 0 a constant cancels"

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "Paid log π_T and entropy, the optimal student is the teacher, whatever γ is.\n"
    "Another temperature changes which texts it writes, a bonus per token how long they are",
    ["The next token after 2", "Texts under a constant reward per token, γ = 1"],
)
tokens = np.arange(4)
rows = {"teacher = soft optimum, every γ": teacher.probabilities[2], "α = ½, γ = 1": sharp.policy[2]}
rows["hard maximum"] = hard.policy[2]
for number, ((name, heights), shade) in enumerate(zip(rows.items(), (LIGHT, MIDDLE, DARK), strict=True)):
    left.bar(tokens + (number - 1) * 0.28, heights, 0.26, color=shade, label=name)
for gamma, shape, place in zip(students, "Do", (-0.33, -0.23), strict=True):
    left.plot(tokens + place, students[gamma][2], label=f"soft_q learned, γ = {gamma:g}", **mark(shape))
left.set_xticks(tokens, ["0 (end)", "1", "2", "3"])
left.set_xlabel("token")
left.set_ylabel("probability")
handles, labels = left.get_legend_handles_labels()
below(canvas, handles, labels, 3)
right.plot(bonuses, lengths, color=SECOND, linewidth=2)
right.axvline(0, color=LIGHT, zorder=0)
right.plot([0], [own_length], **mark("o", ACCENT, ACCENT))
right.annotate(
    f"the teacher: {own_length:.2f} tokens",
    (0, own_length),
    (-0.95, own_length + 1.4),
    color=ACCENT,
    fontsize=10,
    arrowprops={"arrowstyle": "-", "color": ACCENT},
)
right.set_xlabel("b, nats added to every token's reward")
right.set_ylabel("expected length, tokens")
show(canvas, "lesson_02")
