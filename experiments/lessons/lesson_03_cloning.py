# %% [markdown]
# # Lesson 03 · Behaviour cloning, and how its error compounds
#
# **New against lesson 02:** a student that learns from texts, and is not perfect. Behaviour cloning maximises the
# likelihood of the teacher's tokens. Its fixed point is the teacher itself; but no student is ever at its fixed point,
# and cloning has only been shown the *teacher's* states. Once it writes by itself it meets its own.
#
# This is the oldest objection to imitating by supervised learning: an error of ε a token on the teacher's texts may
# cost of the order of ε·T² over T tokens of its own, not ε·T, because one wrong token leads where it has never been.

# %%
import dataclasses
from typing import Any

import numpy as np

from agents.episodes import Episodes
from envs.table_teacher import TableTeacher
from experiments.lessons.sheet import ACCENT, DARK, MIDDLE, SECOND, below, sheet, show
from experiments.oracle import beginner
from experiments.table_data import Path, build

# %% [markdown]
# ## A road with ditches
# Twelve tokens: 0 ends the text, 1 is the road, 2 to 11 are ditches. Whatever came last, the teacher goes on along
# the road: .979 for the road, .02 for the end, .0001 for each ditch. From a ditch it would return at once; only it is
# practically never in one, so its texts never show how.

# %%
V, ROAD, TOKENS, UPDATES = 12, 1, 40, 60
row = np.array([0.02, 0.979, *[0.0001] * 10])
teacher = TableTeacher(np.tile(row, (V, 1)), "road")
rng = np.random.default_rng(0)


def walked(policy: Any, texts: int, *, teachers: bool) -> Episodes:
    """So many texts of at most 40 tokens, sampled from a policy (S, V); with the teacher's opinion of every state."""
    paths = []
    for _ in range(texts):
        reply = [int(rng.choice(V, p=policy[ROAD]))]
        while reply[-1] != 0 and len(reply) < TOKENS:
            reply.append(int(rng.choice(V, p=policy[reply[-1]])))
        paths.append(Path(ROAD, tuple(reply), 1.0))
    episodes = build(teacher, paths, 1.0, 1.0)
    return dataclasses.replace(episodes, from_teacher=episodes.from_teacher & teachers)


def policy_of(agent: Any) -> Any:
    """π_S as a table.  # (S, V)"""
    return agent.student.z.detach().softmax(-1).numpy()


# %% [markdown]
# ## Cloning
# Sixteen teacher texts, sixty updates. On the road the student is nearly right; in a ditch it knows nothing, and is
# uniform still.

# %%
lessons = walked(teacher.probabilities, 16, teachers=True)
cloner = beginner("bc", teacher, UPDATES, lr=0.15)
for _ in range(UPDATES):
    cloner.update(lessons)
clone = policy_of(cloner)
strays = float(clone[ROAD, 2:].sum())
print(f"on the road: {clone[ROAD, ROAD]:.3f} road, {clone[ROAD, 0]:.3f} end, ε = {strays:.3f} into some ditch")
assert 0.005 < strays < 0.1
unseen = [ditch for ditch in range(2, V) if not bool((lessons.taken == ditch).any())]
assert len(unseen) >= 8 and np.allclose(clone[unseen], 1 / V), "what was never seen was never learned"

# %% [markdown]
# ## The same student, on two kinds of states
# What does a token cost, as KL(π_S ‖ π_T) at its state? By hand, in a ditch:
#
#     ¹⁰⁄₁₂ · log(.0833/.0001) + ¹⁄₁₂ · log(.0833/.979) + ¹⁄₁₂ · log(.0833/.02) = 5.604 − .205 + .119 = 5.52 nats
#
# Along the teacher's texts such states do not occur and the mean cost is small. Along its own texts the student strays
# with probability ε a token and comes back with probability ¹⁄₁₂: the share of its texts that lie in a ditch grows as
# ε·t at first, and so does the cost of a token, which is what makes the sum quadratic. Then ways out balance ways in,
# here after some fifteen tokens, and the sum goes on in a straight, steep line; a student that never came back would
# stay on the parabola. The numbers are exact: both laws of states by position are matrix products.


# %%
def costs(student: Any, walker: Any) -> Any:
    """Mean KL(π_S‖π_T) of token t, over the texts of a walker that go on so far, t = 1..40.  # (T,) nats"""
    each = (student * np.log(student / teacher.probabilities)).sum(1)  # (S,)
    law, found = np.eye(V)[ROAD], []
    for _ in range(TOKENS):
        found.append(law @ each / law.sum())
        law = np.where(np.arange(V) != 0, law @ walker, 0.0)  # of an order-1 table the token is the next state
    return np.array(found)


ditch = float((clone[unseen[0]] * np.log(clone[unseen[0]] / row)).sum())
on_teachers, on_own = costs(clone, teacher.probabilities), costs(clone, clone)
print(f"in a ditch a token costs {ditch:.2f} nats")
print(f"token 40 costs {on_teachers[-1]:.3f} nats on the teacher's texts, {on_own[-1]:.3f} on the student's own")
assert abs(ditch - 5.52) < 0.005
assert on_own[0] == on_teachers[0], "the first token is at the same state for both"
assert on_own[-1] > 5 * on_teachers[-1]
early = np.diff(on_own[:4])
assert (early > 0).all() and (early > 0.6 * early[0]).all(), "linear at first, as ε·t"
assert abs(early[0] / (strays * ditch) - 1) < 0.1, "by ε times the cost of a ditch"
assert on_own[-1] - on_own[19] < 0.05 * on_own[-1], "level in the end"

# %% [markdown]
# ## The remedy: ask the teacher about the student's own states
# Nothing but the states has to change. Half of each batch are now texts that the *student* walks, with the teacher's
# next-token distribution as the label at every state (Ross et al. 2011; for language models Agarwal et al. 2024, here
# the agent `gkd` with the forward divergence). As many texts, as many updates.

# %%
pupil = beginner("gkd", teacher, UPDATES, lr=0.15, divergence="forward", student_share=0.5)
for update in range(UPDATES):
    if update % 10 == 0:
        taught = walked(teacher.probabilities, 8, teachers=True)
        batch = Episodes.concatenate([taught, walked(policy_of(pupil), 8, teachers=False)])
    pupil.update(batch)
corrected = costs(policy_of(pupil), policy_of(pupil))
print(f"after learning on its own texts: {corrected[-1]:.3f} nats at token 40")
total = {"bc, teacher's texts": on_teachers.sum(), "bc, own texts": on_own.sum(), "gkd, own texts": corrected.sum()}
print("summed over 40 tokens, nats:", {name: round(float(value), 1) for name, value in total.items()})
assert corrected[-1] < 0.5 * on_own[-1] and corrected.sum() < 0.5 * on_own.sum()

# %% [markdown]
# The usual measure, held-out likelihood, looks at the teacher's texts only, at the states of bc's lower curve, and
# says nothing of the two others. That is why every evaluation in this package measures the student on its own
# replies too (KL(S‖T), excess error by position).

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "A clone is nearly right on its teacher's texts and lost on its own; learning on its own texts mends it",
    ["Cost of token t", "The same, summed up to token t"],
)
t = np.arange(1, TOKENS + 1)
for axes, change in ((left, np.asarray), (right, np.cumsum)):
    axes.plot(t, change(on_own), color=ACCENT, linewidth=2.5, label="bc, on its own texts")
    axes.plot(t, change(corrected), color=SECOND, linewidth=2.5, label="gkd, on its own texts")
    axes.plot(t, change(on_teachers), color=DARK, linewidth=2.5, label="bc, on the teacher's texts")
    axes.set_xlabel("t, tokens")
    axes.set_ylim(bottom=0)
left.set_ylabel("KL(π_S ‖ π_T), nats a token")
right.set_ylabel("nats a text")
first = on_own[0] + strays * ditch * (t - 1)
left.plot(t, first, color=MIDDLE, linestyle="--", linewidth=1, label="its first slope, ε · 5.5 nats a token", zorder=0)
left.set_ylim(0, 1.15 * float(on_own.max()))
handles, labels = left.get_legend_handles_labels()
below(canvas, handles, labels, 4)
show(canvas, "lesson_03")
