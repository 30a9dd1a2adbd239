"""For each lesson a mistake in the production code it teaches, under which one of its assertions fails.

`python -m tests.experiments.lesson_mutations` plants each in a copy of the sources, runs the lesson there and prints
the assertion that failed:

    00  the return of 1 1 0 is log(¾ · ¾ · ¼)         05  soft_q ends at the conditioned teacher
    01  candidates 1, 3, 2, 0 of state 0 at p = .8    06  loss log 2 and gradient (0, −1, 0) for every γ
    02  V ≡ 0 after one backup                        07  with V as baseline the two samples are equal
    03  gkd halves the cost of its own texts          08  the agent reaches the fixed point it declares
    04  the maximum of (−1.3, −.4, padding) is −.4
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """`right` stands once in `file`; with `wrong` in its place the lesson fails."""

    lesson: str
    mistake: str
    file: str
    right: str
    wrong: str


VALUES, GRADIENTS = "agents/objectives/values.py", "agents/objectives/policy_gradient.py"
MUTATIONS = [
    Mutation(
        "00",
        "the reward is the probability, not its logarithm",
        "envs/rewards.py",
        "return step.taken_logp.float()",
        "return step.taken_logp.exp().float()",
    ),
    Mutation(
        "01",
        "the token that crosses p is left out of the set",
        "envs/candidates.py",
        "return (short[:, : after.shape[1]] & after).sum(-1) + 1",
        "return (short[:, : after.shape[1]] & after).sum(-1).clamp(min=1)",
    ),
    Mutation("02", "a hard maximum for the soft one", VALUES, "-math.inf).logsumexp(-1)", "-math.inf).amax(-1)"),
    Mutation(
        "03",
        "nothing is learned at the student's own states",
        "agents/gkd.py",
        'whole, weights = self.config.on == "vocabulary", batch.step_weights',
        'whole, weights = self.config.on == "vocabulary", batch.step_weights * batch.from_teacher[:, None]',
    ),
    Mutation(
        "04",
        "the maximum runs over padding",
        VALUES,
        "best = selector.masked_fill(~mask, -math.inf).argmax",
        "best = selector.argmax",
    ),
    Mutation(
        "05",
        "the entropy is missing from the return",
        VALUES,
        "bootstrap(rewards - alpha * log_policy, discounts, target",
        "bootstrap(rewards, discounts, target",
    ),
    Mutation(
        "06",
        "γ stays in the linear term",
        "agents/objectives/inverse.py",
        "return (value - ahead) - concave_reward",
        "return value - concave_reward",
    ),
    Mutation(
        "07",
        "the actor's term teaches the critic",
        GRADIENTS,
        "-advantage.detach() * log_policy",
        "-advantage * log_policy",
    ),
    Mutation(
        "08",
        "every step is taken for its most probable candidate",
        VALUES,
        "values.gather(-1, slots.clamp(min=0)[..., None])[..., 0]",
        "values[..., 0]",
    ),
]


def planted(mutation: Mutation, folder: Path) -> subprocess.CompletedProcess[str]:
    """The lesson, run on a copy of the sources with this mistake in it."""
    for room in ("envs", "agents", "experiments"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    place = folder / mutation.file
    place.write_text(place.read_text(encoding="utf-8").replace(mutation.right, mutation.wrong), encoding="utf-8")
    command = [sys.executable, "-m", "experiments", "lesson", mutation.lesson, "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=1100)


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """The line of the lesson whose assertion failed; empty if none did."""
    found = re.findall(r'lesson_\d\d\w+\.py", line \d+, in <module>\n\s+(assert .*)', done.stderr)
    return found[-1] if found and "AssertionError" in done.stderr else ""


def main() -> None:
    print("| lesson | mistake | assertion that fails |\n|---|---|---|")
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            done = planted(mutation, Path(folder))
        print(f"| {mutation.lesson} | {mutation.mistake} | {failed(done) or done.stderr[-300:]} |", flush=True)


if __name__ == "__main__":
    main()
