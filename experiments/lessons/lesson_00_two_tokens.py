# %% [markdown]
# # Lesson 00 · A language model of two tokens, by hand
#
# **New:** everything. A text is an *episode*, the next token an *action*, a text so far a *state*, and how likely the
# teacher finds the token is what it *pays*. The smallest language model there is has two tokens:
#
#     0   the end of the text
#     1   "go on"
#
# and this teacher says "go on" with probability ¾ wherever it is. All of this lesson fits on the back of an envelope;
# the code runs the package's own environment and has to agree with the envelope.

# %%
import math

import gymnasium
import numpy as np

import envs  # registers tdistill/TopPToken-v0
from envs.table_teacher import TableTeacher
from experiments.lessons.sheet import ACCENT, DARK, MIDDLE, SECOND, below, sheet, show

teacher = TableTeacher(np.array([[0.25, 0.75], [0.25, 0.75]]), "two tokens")
END, ON = math.log(0.25), math.log(0.75)  # nats: −1.386 and −0.288

# %% [markdown]
# ## One episode
# The agent does not name a token. It names a **slot**: candidate 0 is the teacher's most probable token, here
# "go on", candidate 1 the next, here the end. The environment knows which token that is.
#
# Take the slots 0, 0, 1. The text is `1 1 0` and pays −.288 − .288 − 1.386 = −1.962 nats, which is the logarithm of
# ¾ · ¾ · ¼ = .1406: the *return* of an episode is the teacher's log-probability of its text.

# %%
env = gymnasium.make("tdistill/TopPToken-v0", teacher=teacher, prompts=[[1]], top_p=1.0, max_new_tokens=8)
observation, info = env.reset(seed=0)
assert observation["ids"].tolist() == [1, 0], "slot 0 is token 1, slot 1 is token 0"

total, tokens = 0.0, []
for slot in (0, 0, 1):
    observation, reward, terminated, truncated, info = env.step(slot)
    tokens.append(int(info["token"]))
    total += float(reward)
    print(f"slot {slot} = token {tokens[-1]} pays {reward:.3f} nats")
print(f"return {total:.3f} nats, log(¾ · ¾ · ¼) = {math.log(0.140625):.3f}")
assert tokens == [1, 1, 0] and abs(total - math.log(0.75 * 0.75 * 0.25)) < 1e-6

# %% [markdown]
# ## Two ways to stop
# The end token **terminates**: the text is over, and the value of what follows is 0 because nothing does. A budget of
# tokens **truncates**: the text would go on, only nobody looks. The two are never merged into one "done", because a
# learner must still expect something after a truncation. Lesson 04 shows what it costs to forget that.

# %%
assert terminated and not truncated and not observation["mask"].any(), "after the end there are no candidates"
short = gymnasium.make("tdistill/TopPToken-v0", teacher=teacher, prompts=[[1]], top_p=1.0, max_new_tokens=2)
short.reset(seed=0)
short.step(0)
observation, reward, terminated, truncated, info = short.step(0)
assert truncated and not terminated and observation["mask"].all(), "after a cut there are"

# %% [markdown]
# ## The value of not knowing anything
# Let an agent choose either slot with probability ½. What return may it expect? Call it V. Half the time it ends, half
# the time it goes on and is where it was:
#
#     V = ½ · (−1.386) + ½ · (−.288 + V)      →      V = −.837 / (1 − ½) = −1.674 nats
#
# That line is a **Bellman equation**, and solving it by repeated substitution, V₀ = 0, V₁ = −.837, V₂ = −1.255, …, is
# value iteration: every sweep halves the error.

# %%
exact = (0.5 * END + 0.5 * ON) / (1 - 0.5)
sweeps = [0.0]
for _ in range(12):
    sweeps.append(0.5 * END + 0.5 * (ON + sweeps[-1]))
errors = np.abs(np.array(sweeps) - exact)
print(f"V = {exact:.3f} nats; sweeps {np.round(sweeps[:5], 3)}")
assert abs(exact - -1.674) < 5e-4 and np.allclose(errors[1:] / errors[:-1], 0.5)

# %% [markdown]
# The environment agrees: 4,096 rows of one vector environment, the first episode of each. (Not the first 4,096 episodes
# to end: those would prefer short texts. A row that has ended is refilled while the others go on, and what it does then
# is not counted here.)

# %%
rows = envs.TopPTokenVectorEnv(4096, teacher=teacher, prompts=[[1]], top_p=1.0, max_new_tokens=64)
rows.reset(seed=0)
rng, returns, first = np.random.default_rng(0), np.zeros(4096), np.ones(4096, bool)
while first.any():
    _, rewards, ended, _, _ = rows.step(rng.integers(2, size=4096))
    returns += np.where(first, rewards, 0.0)
    first &= ~ended
means = np.cumsum(returns) / np.arange(1, 4097)
error = float(returns.std(ddof=1)) / math.sqrt(4096)
print(f"mean return of 4,096 episodes {means[-1]:.3f} ± {2 * error:.3f} nats")
assert abs(means[-1] - exact) < 4 * error < 0.05

# %% [markdown]
# ## Paid for surprise as well
# One more number to carry into lesson 02. Pay the agent its own entropy too, log 2 = .693 nats for each fair choice:
#
#     V = −.837 + .693 + ½ V      →      V = −.288 nats
#
# and let it choose as the teacher does, ¾ and ¼. Entropy and reward then cancel token by token, and V = 0. No agent can
# have more: 0 minus its V is exactly how far its texts are from the teacher's, as a Kullback-Leibler divergence. The
# fair coin is .288 nats away.

# %%
fair = (0.5 * END + 0.5 * ON + math.log(2)) / (1 - 0.5)
entropy = -(0.75 * ON + 0.25 * END)
own = (0.25 * END + 0.75 * ON + entropy) / (1 - 0.75)
print(f"with entropy: a fair coin {fair:.3f} nats, the teacher itself {own:.3f} nats")
divergence = sum(0.5**n * (n * math.log(0.5) - (n - 1) * ON - END) for n in range(1, 200))  # over texts of n tokens
assert abs(own) < 1e-12 and abs(fair + divergence) < 1e-9

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "A text's return is its log-probability; the value of an agent is the mean of it",
    ["Return of a text of n tokens", "The uniform agent: mean return, and value iteration"],
)
lengths = np.arange(1, 9)
ons = left.bar(lengths, (lengths - 1) * ON, 0.7, color=MIDDLE, label="going on, log ¾ each")
ends = left.bar(lengths, np.full(8, END), 0.7, bottom=(lengths - 1) * ON, color=DARK, label="the end, log ¼")
left.annotate("log .1406", (3, 2 * ON + END), (3.3, 2 * ON + END - 0.22), color=ACCENT, ha="right", fontsize=10)
left.set_xlabel("n, tokens (the end included)")
left.set_ylabel("return, nats")
left.set_ylim(-4.2, 0)
(sampled,) = right.plot(np.arange(1, 4097), means, color=SECOND, linewidth=2)
(swept,) = right.plot(np.arange(1, 13), sweeps[1:], "o-", color=DARK, markersize=4, linewidth=1)
right.axhline(exact, color=ACCENT, linewidth=1)
right.text(4000, exact - 0.01, f"V = {exact:.3f}", color=ACCENT, ha="right", va="top", fontsize=10)
right.set_xscale("log")
right.set_xlabel("episodes, or sweeps")
right.set_ylabel("nats")
names = ["going on, log ¾ a token", "the end, log ¼", "mean return of episodes", "sweeps of value iteration"]
below(canvas, [ons, ends, sampled, swept], names, 4)
show(canvas, "lesson_00")
