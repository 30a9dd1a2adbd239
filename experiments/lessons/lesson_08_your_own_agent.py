# %% [markdown]
# # Lesson 08 · Your own agent, in one file
#
# **New against lesson 07:** nothing to learn, something to write. An agent here is one file: a frozen `Config` and a
# class with a `loss`. It sees arrays only, no teacher and no environment. It says where it ends, and on a small exact
# teacher that is *checked*. The same file, unchanged, then distils a language model.
#
# The agent of this lesson squares the path consistency of lesson 05 and nothing else:
#
#     ½ ( v(s) − [ r − log π(a|s) + γ v(s') ] )²
#
# No target network, no critic, no anchor. Here is the whole file.

# %%
import csv
import inspect
import io
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import make_agent, objectives
from agents.base import Agent, Logs
from agents.episodes import Episodes
from agents.errors import InputError
from agents.scores import Scores
from agents.table_student import TableStudent
from experiments.__main__ import main
from experiments.lessons import path_agent
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, SECOND, mark, sheet, show
from experiments.oracle import TOLERANCE, case_of

NAME = "experiments.lessons.path_agent:PathConsistency"
source = inspect.getsource(path_agent)
print(source[source.index("class PathConsistency") :])

# %% [markdown]
# ## How the loss reads
# `student.scores(batch)` is one forward pass for every state of every episode. At each state it gives `value`, the
# `log_policy` on the candidates and `log_inside`, the logarithm of the mass that the student leaves on them. A batch
# carries `slots` (−1: the token taken was no candidate), `rewards`, `discounts` (γ, and 0 where a text really ended)
# and `in_set`. There is no `done` flag to get wrong.
#
# By hand, one step: v(s) = −1, log π = −.7, r = −.5, v(s') = −.6, γ = .8 gives the target −.5 + .7 − .48 = −.28, the
# error −.72 and the loss .259. If the step ends the text, the target is .2 and the loss .72.

# %%
for discount, by_hand in ((0.8, 0.2592), (0.0, 0.72)):
    target = objectives.bootstrap(torch.tensor(-0.5 + 0.7), torch.tensor(discount), torch.tensor(-0.6))
    assert abs(float(0.5 * (-1.0 - target) ** 2) - by_hand) < 1e-6

# %% [markdown]
# ## Does it end where it says?
# `fixed_point` declares the soft optimum at the agent's γ. On a table teacher that optimum is solved exactly, by code
# that shares nothing with the agent's, and the agent has to come within .003 in probability and .01 nats in Q.
#
# A check is worth something only if mistakes fail it. So the same agent once more with `− log π` left out of the target
# ("the reward is the reward"): a loss that falls, an agent that learns, and the wrong answer.


# %%
class Forgetful(path_agent.PathConsistency):
    """The mistake: the entropy is missing from the return."""

    def loss(self, batch: Episodes) -> tuple[Tensor, Logs]:
        scores = self.student.scores(batch)
        target = objectives.bootstrap(batch.rewards, batch.discounts, scores.value[:, 1:])
        log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)
        error = torch.where(batch.in_set, scores.value[:, :-1] + 0 * log_policy - target, 0)
        leak = -objectives.average(scores.log_inside[:, :-1], batch.step_weights)
        return objectives.average(0.5 * error.square(), batch.step_weights * batch.in_set) + leak, {}


UPDATES = 150
case = case_of(NAME, {"gamma": 0.8})  # every step of a six-token teacher, weighted by its probability


def errors(agent: Agent[Any]) -> Any:
    """|v(s) − (r − log π + γ v(s'))| of every step inside the sets.  # (N,) nats"""
    batch, scores = case.batch, scored(agent)
    log_policy = objectives.at_slots(scores.log_policy[:, :-1], batch.slots)
    target = objectives.bootstrap(batch.rewards - log_policy, batch.discounts, scores.value[:, 1:])
    return (scores.value[:, :-1] - target)[batch.in_set].abs().numpy()


@torch.no_grad()
def scored(agent: Agent[Any]) -> Scores:
    return agent.student.scores(case.batch)


def learn(agent: Agent[Any]) -> tuple[list[float], list[float]]:
    """Distance from the declared fixed point after every third update: in probability, and in nats of Q."""
    found = []
    for update in range(UPDATES):
        agent.update(case.batch)
        if update % 3 == 1:
            found.append(case.gap(agent))
    return [gap.policy for gap in found], [gap.q for gap in found]


def fresh(kind: str | type[Agent[Any]]) -> Agent[Any]:
    """An agent around a uniform table; by name as the command finds it, or by class."""
    student = TableStudent(case.teacher.vocab_size, case.teacher.order)
    options = {"lr": 0.4, "gamma": 0.8}
    if isinstance(kind, str):
        return make_agent(kind, student, seed=0, total_updates=UPDATES, **options)
    return kind(student, kind.make_config(**options), seed=0, total_updates=UPDATES)


own, wrong = fresh(NAME), fresh(Forgetful)
at_first = errors(own)
policy_gap, q_gap = learn(own)
wrong_gap, _ = learn(wrong)
print(
    f"from the soft optimum: {policy_gap[-1]:.4f} in probability, {q_gap[-1]:.4f} nats; forgetful {wrong_gap[-1]:.3f}"
)
assert policy_gap[-1] < TOLERANCE.policy and q_gap[-1] < TOLERANCE.q
assert wrong_gap[-1] > 0.1
at_last = errors(own)
assert at_last.max() < 0.01 < 0.5 < at_first.max(), "consistent on every step, not on average"

# %% [markdown]
# ## Its settings are checked
# `--agents my_module:MyAgent@gamma=…` reaches the `Config`; what it cannot take is refused by name.

# %%
refused = []
for setting in ({"gama": 0.8}, {"gamma": 1.5}):
    try:
        path_agent.PathConsistency.make_config(**setting)
    except InputError as error:
        refused.append(str(error))
print("\n".join(refused))
assert "did you mean gamma" in refused[0] and "must lie in [0, 1]" in refused[1]

# %% [markdown]
# ## The same file distils a language model
#
#     tdistill compare --agents kd experiments.lessons.path_agent:PathConsistency --out mine
#
# A file in your working folder is found as `my_agent:MyClass`. Here the command runs for a few updates on a table
# teacher with a random Llama as student, which takes seconds and teaches the student little; what comes out is an
# ordinary model directory. (The tests that every agent must pass are yours to inherit: `experiments.contract`.)

# %%
with tempfile.TemporaryDirectory() as folder:
    run, prompts = Path(folder) / "mine", Path(folder) / "prompts.txt"
    prompts.write_text("\n".join(f"{a} {b}" for a in range(1, 6) for b in range(1, 6)))
    words = f"--teacher table:toy --student tiny --prompts {prompts} --top-p 0.8 --seeds 1 --updates 4 --episodes 16"
    words += f" --eval-prompts 4 --max-new-tokens 6 --threads 1 --jobs 1 --out {run}"
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(["compare", *words.split(), "--agents", NAME])
    assert code == 0, said.getvalue()
    with (run / "results.csv").open() as table:
        agents = {row["agent"] for row in csv.DictReader(table)}
    models = [path.parent for path in run.glob("students/*/config.json")]
    print("compare ended with", code, "and compared", sorted(agents), "students:", [path.name for path in models])
    assert NAME in agents and len(models) >= 1

# %% [markdown]
# ## The figure

# %%
canvas, (left, right) = sheet(
    "An agent of one file ends where it says it does; without log π in its return it would not",
    ["Largest distance from the declared fixed point", "Consistency of every step inside the sets"],
)
updates = np.arange(2, UPDATES + 1, 3)
left.plot(updates, wrong_gap, color=ACCENT, linewidth=2)
left.plot(updates, policy_gap, color=DARK, linewidth=2)
left.plot(updates, q_gap, color=SECOND, linewidth=2)
left.axhline(TOLERANCE.policy, color=MIDDLE, linestyle="--", linewidth=1)
left.set_yscale("log")
left.set_xlabel("updates")
left.set_ylabel("probability; nats")
left.text(UPDATES, 1.15 * wrong_gap[-1], "policy, log π forgotten", color=ACCENT, fontsize=9, ha="right", va="bottom")
left.text(0.04, 0.2, "policy, probability\n(dashed: what is asked)", color=DARK, fontsize=9, transform=left.transAxes)
left.text(0.5, 0.56, "Q, nats", color=SECOND, fontsize=9, transform=left.transAxes)
steps = np.arange(len(at_first))
right.bar(steps, at_first, 0.8, color=LIGHT, label="before the first update")
right.plot(steps, at_last, label=f"after {UPDATES} updates", **mark("o", SECOND))
names = [f"{s}\n{a}" for s, a in zip(case.batch.tokens[:, 0].tolist(), case.batch.taken[:, 0].tolist(), strict=True)]
right.set_xticks(steps, [name for name, held in zip(names, case.batch.in_set[:, 0], strict=True) if held])
right.set_xlabel("step: last token above, token taken below")
right.set_ylabel("|v(s) − (r − log π + γ v(s'))|, nats")
handles, labels = right.get_legend_handles_labels()
right.legend(handles[::-1], labels[::-1], frameon=False, fontsize=9)
show(canvas, "lesson_08")
