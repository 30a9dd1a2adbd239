# %% [markdown]
# # Lesson 01 · The candidate set, and what p keeps
#
# **New against lesson 00:** a vocabulary worth cutting. A real teacher has thousands of tokens, and at nearly every
# place nearly all of them are noise. The **candidate set** (nucleus) of a state is
#
#     A_p(s) = the shortest list of tokens, most probable first, whose mass is at least p
#
# An agent chooses among these slots only. That is what makes temporal-difference learning on a language model thinkable
# at all: a maximum over 3 candidates instead of 2,048 tokens. This lesson shows what is kept, what is lost, and why
# "90 % a token" is not "90 % a text".

# %%
import numpy as np
import torch

from envs.candidates import top_p
from envs.exact import candidate_sets, stay_probability
from envs.prompts import embedded_prompts
from envs.table_teacher import toy
from envs.teachers import load_teacher
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, SECOND, mark, sheet, show

# %% [markdown]
# ## By hand
# One state of the toy teacher, six tokens, in hundredths, and the same sorted with running sums:
#
#     token    0   1   2   3   4   5          token       1    3    2    0    4    5
#     π_T     10  30  22  26   8   4          π_T        30   26   22   10    8    4
#                                             so far     30   56   78   88   96  100
#
# At p = .8 the first three tokens hold .78, which is not enough; the fourth crosses the line and belongs to the set:
# A = {1, 3, 2, 0} with mass Z = .88. Slot 0 is token 1. What is left out, 1 − Z = .12, is *less* than 1 − p = .20.

# %%
teacher = toy()
log_probabilities = torch.from_numpy(teacher.table).float()  # (S, V) nats
sets = top_p(log_probabilities, 0.8)
print("candidates of state 0:", sets.ids[0][sets.mask[0]].tolist(), f"mass {sets.log_mass[0].exp():.2f}")
assert sets.ids[0][sets.mask[0]].tolist() == [1, 3, 2, 0]
assert abs(float(sets.log_mass[0].exp()) - 0.88) < 1e-6

# %% [markdown]
# Log-probabilities of the candidates stay those of the *full* softmax: log .30, not log(.30/.88). Padding slots carry a
# finite number and a False in the mask, and nothing may ever be computed from them; `lessons/bugs` has an exercise on
# that.

# %%
assert abs(float(sets.logp[0, 0]) - np.log(0.30)) < 1e-6
assert torch.isfinite(sets.logp).all() and not sets.mask.all()

# %% [markdown]
# ## Three properties, for every p
# The set holds at least p; without its last token it would not; and a larger p only adds tokens. The code that agents
# use and an independent one written for the exact solutions agree on every state.

# %%
before = np.zeros_like(teacher.probabilities, bool)
for p in (0.35, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97):
    found = top_p(log_probabilities, p)
    inside = np.zeros_like(before)
    for state in range(teacher.states):
        inside[state, found.ids[state][found.mask[state]].numpy()] = True
    mass = np.where(inside, teacher.probabilities, 0.0).sum(1)
    last = found.logp.gather(1, found.sizes[:, None] - 1)[:, 0].exp().numpy()
    assert (inside == candidate_sets(teacher.probabilities, p)).all()
    assert (mass >= p - 1e-6).all() and (mass - last < p).all() and (before <= inside).all()
    before = inside

# %% [markdown]
# ## A real teacher
# The teacher embedded in this package has 2,048 tokens. Along 48 replies of its service desk, what do the sets look
# like? At p = .9 three or four candidates on average, two at the median and at most five in nine states of ten; in more
# than a third of the states just one: there is nothing to decide there.

# %%
desk = load_teacher("embedded")
prompts = embedded_prompts("test", 48)
(end,) = desk.eos_ids
questions = [desk.encode(prompt.text) for prompt in prompts]
texts = [
    question + desk.encode(prompt.references[0]) + [end] for question, prompt in zip(questions, prompts, strict=True)
]
scored = desk.score(texts)  # (B, L, V): one forward pass, the next token after every position
states = torch.cat([scored[row, len(q) - 1 : len(texts[row]) - 1] for row, q in enumerate(questions)])  # (N, V)
replies = np.repeat(np.arange(48), [len(text) - len(q) for text, q in zip(texts, questions, strict=True)])  # (N,)

ps = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
found_at = {p: top_p(states, p) for p in ps}
for p, found in found_at.items():
    sizes = found.sizes.float()
    print(
        f"p = {p:4}: {float(sizes.mean()):.1f} candidates on average, at most {int(sizes.max())}; "
        f"{float((sizes == 1).float().mean()):.0%} of the sets have one; mass lost {float(found.lost_mass.mean()):.1%}"
    )
    assert float(found.lost_mass.max()) <= 1 - p + 1e-6
nine = found_at[0.9]
assert desk.vocab_size == 2048 and float(nine.sizes.float().mean()) < 5
assert float((nine.sizes == 1).float().mean()) > 1 / 3
assert nine.sizes.float().quantile(torch.tensor([0.5, 0.9])).tolist() == [2, 5]
assert float(nine.lost_mass.mean()) < 0.03, "sets overshoot p: 2 % are lost, not 10 %"

# %% [markdown]
# ## A token is not a text
# Losing 2 % a token loses more than half of all 48-token texts: .98⁴⁸ = .38. For the toy teacher the probability that
# its next h tokens all lie in the sets is exact. By hand, from state 1 at p = .9, h = 1: Z. For more tokens it falls,
# and stops falling as texts end.
#
# For the service desk, −Σ log Z along a reply estimates how many nats a text loses. At p = .9 it is about one nat, at
# p = .5 more than ten: of 22,000 of the teacher's texts (e¹⁰) one would remain. The policies of lesson 05 begin here.

# %%
staying = {p: stay_probability(teacher, p, 12)[:, 1] for p in (0.5, 0.8, 0.9)}  # (H + 1,) from state 1
for p, curve in staying.items():
    z = np.where(candidate_sets(teacher.probabilities, p), teacher.probabilities, 0).sum(1)
    assert abs(curve[1] - z[1]) < 1e-12 and all(np.diff(curve) <= 1e-12)
cost = {p: np.bincount(replies, -found.log_mass.numpy()).mean() for p, found in found_at.items()}  # nats a reply
print("nats a reply lost:", {p: round(float(value), 2) for p, value in cost.items()})
assert cost[0.5] > 10 and 0.5 < cost[0.9] < 1.5 and all(np.diff(list(cost.values())) < 0)

# %% [markdown]
# ## The figure

# %%
canvas, (left, middle, right) = sheet(
    "A nucleus keeps a handful of tokens and nearly all the mass; over a whole text the little it loses adds up",
    ["One state at p = .8, by hand", "Set sizes, 2,048 tokens", "What a 48-token reply loses"],
    width=11.0,
    height=4.2,
)
order = np.argsort(-teacher.probabilities[0], kind="stable")
ranked = teacher.probabilities[0][order]
left.bar(range(6), ranked, 0.7, color=[DARK] * 4 + [LIGHT] * 2)
left.step(np.arange(7) - 0.5, np.append(np.cumsum(ranked), 1.0), where="post", color=SECOND, linewidth=1.5)
left.axhline(0.8, color=ACCENT, linewidth=1)
left.text(-0.45, 0.82, "p = .8", color=ACCENT, fontsize=10)
left.text(5.4, 0.9, "mass so far", color=SECOND, fontsize=9, ha="right")
left.set_xticks(
    range(6), [f"{token}\nslot {slot}" if slot < 4 else f"{token}\nout" for slot, token in enumerate(order)]
)
left.set_xlabel("token, most probable first")
left.set_ylabel("probability")
for (p, found), shade in zip(((p, found_at[p]) for p in (0.5, 0.9, 0.99)), (MIDDLE, DARK, "black"), strict=True):
    ranked = np.sort(found.sizes.numpy())
    middle.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post", color=shade, label=f"p = {p}")
middle.set_xscale("log")
middle.set_xlim(0.9, 2048)
middle.set_ylim(0, 1.02)
middle.set_xlabel("candidates (log scale up to the vocabulary)")
middle.set_ylabel("share of the states with at most so many")
middle.legend(frameon=False, fontsize=9, loc="lower right")
right.plot(list(cost), list(cost.values()), color=DARK, linewidth=1.5)
right.plot(list(cost), list(cost.values()), **mark("o"))
for p in (0.5, 0.9):
    right.annotate(
        f"{cost[p]:.1f} nats", (p, cost[p]), (p + 0.02, cost[p] + 0.3 - 0.4 * (p < 0.6)), color=ACCENT, fontsize=10
    )
right.set_xlabel("p, of every token's set")
right.set_ylabel("−Σ log Z, nats a reply")
right.set_ylim(bottom=0)
show(canvas, "lesson_01")
