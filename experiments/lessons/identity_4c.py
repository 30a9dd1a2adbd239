# %% [markdown]
# # What a distilled student should become: two answers, and the exact distance between them
#
# A teacher's next-token distribution is cut to its nucleus: the smallest set of tokens of mass ≥ p. What is the
# student to learn there? Knowledge distillation renormalises each nucleus by itself. A soft-optimal policy of the token
# MDP (reward log π_T, γ = 1) weighs each token by what may still happen after it:
#
#     π*(a|s) ∝ π_T(a|s) · P_T(the teacher never leaves the nuclei after s·a)
#
# That is the teacher *conditioned on staying inside*, and a third agent reaches it without any reward: behaviour
# cloning on those teacher texts alone that never left. This script trains all three on a teacher of four states, whose
# answers are known exactly, and draws what they learned on top of them:
#
#     python -m experiments.lessons.identity_4c [identity_4c.png]

# %%
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from agents.table_student import TableStudent
from envs.exact import solve
from envs.table_teacher import detour
from experiments.oracle import TOLERANCE, train
from experiments.table_data import build, complete_paths, ended_paths

P = 0.7
Table = npt.NDArray[np.float64]

# %% [markdown]
# ## The teacher
# Token 0 ends a text; the state is the last token. After 0 the tokens 1 and 2 are equally likely. After 1 the text
# nearly always ends inside its nucleus; after 2 four tokens are about equally likely, one of them outside.

# %%
teacher = detour()
renormalised = solve(teacher, "renormalised", top_p=P)
conditioned = solve(teacher, "conditioned", top_p=P)
stays = np.exp(conditioned.value)  # (S,) P_T(never leaves the nuclei from s on)
print("teacher\n", teacher.probabilities, "\nnever leaves, from each state on\n", stays.round(3))
print("renormalised\n", renormalised.policy.round(3), "\nconditioned\n", conditioned.policy.round(3))

# Identity (4b): the soft-optimal value is the logarithm of that probability.
assert np.allclose(solve(teacher, "soft", top_p=P).value, conditioned.value)

# %% [markdown]
# ## Three students
# Each is a table of logits that starts uniform. The data are exact: every path, weighted by the teacher's probability.

# %%
steps = build(teacher, complete_paths(teacher, 1), P, 1.0)
texts = build(teacher, ended_paths(teacher, P), P, 1.0)


def learned(name: str, data: Any, **config: Any) -> Table:
    """π_S of a student that this agent trained, over the whole vocabulary.  # (S, V)"""
    student = train(name, teacher, data, **config).student
    assert isinstance(student, TableStudent)
    with torch.no_grad():
        policy: Table = student.z.softmax(-1).numpy()
    return policy


students = {
    "kd on the nucleus": learned("kd", steps, on="set"),
    "soft_q, γ = 1": learned("soft_q", steps),
    "bc_filtered": learned("bc_filtered", texts),
}

# %% [markdown]
# ## The claims

# %%
targets = {"renormalised": renormalised.policy, "conditioned": conditioned.policy}
ends_at = {"kd on the nucleus": "renormalised", "soft_q, γ = 1": "conditioned", "bc_filtered": "conditioned"}
for student, policy in students.items():
    off = {target: float(np.abs(policy - exact).max()) for target, exact in targets.items()}
    print(f"{student:18} largest distance:", ", ".join(f"{value:.4f} to {target}" for target, value in off.items()))
    assert off[ends_at[student]] < TOLERANCE.policy
apart = float(np.abs(renormalised.policy - conditioned.policy).max())
print(f"the two targets are {apart:.4f} apart")
assert abs(apart - 0.121) < 0.001


# %% [markdown]
# ## The figure

# %%
SHADES = {"teacher": "0.88", "renormalised": "0.68", "conditioned": "0.40"}
MARKS: dict[str, tuple[str, float]] = {
    "kd on the nucleus": ("D", 0.0),
    "soft_q, γ = 1": ("o", 0.21),
    "bc_filtered": ("^", 0.35),
}  # shape, place
SHOWN = {
    0: "After 0: two ways, equally likely to the teacher",
    2: "After 2: one likely token lies outside",
}
WIDTH = 0.28


def draw(path: Path) -> None:
    """Exact probabilities as bars, what each student learned as marks on them."""
    canvas = Figure(figsize=(8.4, 4.6), layout="constrained")
    panels = canvas.subplots(1, len(SHOWN), sharey=True)
    for axes, (state, title) in zip(panels, SHOWN.items(), strict=True):
        draw_state(axes, state)
        axes.set_title(title, loc="left", fontsize=10)
    panels[0].set_ylabel("probability of the next token")
    low, high = renormalised.policy[0, 1], conditioned.policy[0, 1]
    panels[0].annotate("", xy=(1, high), xytext=(1, low + 0.02), arrowprops={"arrowstyle": "->", "linewidth": 1.0})
    panels[0].text(1 - 0.05, (low + high) / 2 + 0.01, f"+{apart:.3f}", ha="right", va="center", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    marks, bars = list(zip(handles, labels, strict=True))[:3], list(zip(handles, labels, strict=True))[3:]
    pairs = [entry for column in zip(bars, marks, strict=True) for entry in column]
    canvas.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    canvas.suptitle(
        "Soft Q-learning and filtered cloning learn the teacher that stays inside its nuclei;\n"
        "distillation on each nucleus by itself does not, and is off by an amount known exactly",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    canvas.savefig(path, dpi=160)


def draw_state(axes: Any, state: int) -> None:
    """One state: three bars a token, three marks a candidate."""
    tokens = np.arange(teacher.vocab_size)
    bars = {"teacher": teacher.probabilities[state], **{name: exact[state] for name, exact in targets.items()}}
    for number, (name, heights) in enumerate(bars.items()):
        axes.bar(tokens + (number - 1) * WIDTH, heights, 0.94 * WIDTH, color=SHADES[name], label=name)
    inside = conditioned.candidates[state]
    for name, (shape, place) in MARKS.items():
        look: dict[str, Any] = {"marker": shape, "linestyle": "none", "markersize": 6, "markeredgewidth": 1.2}
        look |= {"markeredgecolor": "black", "markerfacecolor": "white"}
        axes.plot(tokens[inside] + place, students[name][state][inside], label=name, **look)
    axes.set_xticks(tokens, [under(state, token) for token in range(len(tokens))])
    axes.set_xlabel("token, and how likely the teacher stays inside after it", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def under(state: int, token: int) -> str:
    """What stands below a token."""
    if not conditioned.candidates[state, token]:
        return f"{token}\noutside"
    return f"{token} (end)\n100%" if token in teacher.eos_ids else f"{token}\n{stays[token]:.0%}"


target = Path(next((word for word in sys.argv[1:] if word.endswith(".png")), "identity_4c.png"))
draw(target)
print(f"drawn: {target}")
