"""The figure of the README: a state of the token MDP, and what five seeds of the agents reached.

    python experiments/docs/figure.py --out experiments/docs

The state is computed from the embedded teacher; the scores are read from `experiments/results/reference.csv`.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from envs import load_teacher
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, mark, sheet
from experiments.metrics import mean_and_interval

PROMPT = "Does the Halden chain, code F66, fit a city bike?"
STEPS = 7  # of the most probable token, to "Thanks so much for your message."
TOP_P, SHOWN = 0.9, 7
RESULTS = Path(__file__).parents[1] / "results" / "reference.csv"
ARMS = (
    "start bc bc_filtered kd gkd minillm q_learning soft_q cql sqil bellman_distill actor_critic ppo sac value_tilt"
).split()
Scores = dict[tuple[str, float], tuple[float, float]]


def state() -> tuple[str, list[tuple[str, float, bool]]]:
    """A state on the teacher's greedy reply: the reply so far, and its most probable next tokens.

    Returns: text; (token, probability, whether it lies in the set of equation (1)) in descending order.
    """
    teacher = load_teacher("embedded")
    prompt = teacher.encode(PROMPT)
    text = list(prompt)
    for _ in range(STEPS):
        text.append(int(teacher.score([text])[0, -1].argmax()))
    probability = np.exp(teacher.score([text])[0, -1].double().numpy())
    order = np.argsort(-probability, kind="stable")[:SHOWN]
    before = np.cumsum(probability[order]) - probability[order]
    rows = zip(order.tolist(), before, strict=True)
    tokens = [(teacher.decode([token]).strip(), float(probability[token]), bool(mass < TOP_P)) for token, mass in rows]
    return teacher.decode(text[len(prompt) :]), tokens


def scores(measure: str, path: Path = RESULTS) -> Scores:
    """(agent, top_p) -> mean of a test measure over seeds, and half of its 95 % interval; NaN of one seed."""
    found: dict[tuple[str, float], list[float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["agent"], float(row["top_p"])), []).append(float(row[measure]))
    return {arm: mean_and_interval(values) for arm, values in found.items()}


def draw_state(axes: Any) -> None:
    """Bars of a state's tokens, those of the nucleus dark."""
    reply, tokens = state()
    axes.barh(range(SHOWN), [p for _, p, _ in tokens], color=[DARK if held else LIGHT for *_, held in tokens])
    axes.set_yticks(range(SHOWN), [text for text, *_ in tokens])
    held = sum(inside for *_, inside in tokens)
    axes.axhline(held - 0.5, color=ACCENT, linewidth=1, linestyle="--")
    place = {"fontsize": 9, "ha": "right", "va": "top", "transform": axes.get_yaxis_transform()}
    axes.text(1, held - 0.42, f"above: the nucleus at p = {TOP_P}, {held} actions", color=ACCENT, **place)
    axes.text(1, held + 0.6, f"asked: {PROMPT}\nreply so far: {reply} …", **{**place, "fontsize": 8})
    axes.invert_yaxis()
    axes.set_xlabel("probability of the teacher")


def draw_scores(axes: Any, found: Scores) -> None:
    """Task scores with their intervals, a row an agent: sets of .9 and of .5; the dotted line is bc."""
    for colour, top_p, shift in ((DARK, 0.9, -0.16), (ACCENT, 0.5, 0.16)):
        for row, name in enumerate(ARMS):
            value, half = found[name, top_p]
            half = 0.0 if math.isnan(half) else half
            axes.plot([value - half, value + half], [row + shift] * 2, color=colour, linewidth=1.6)
            look = mark("o", colour) | {"markersize": 4.5}
            axes.plot(value, row + shift, label=f"p = {top_p:g}" if row == 0 else "", **look)
    axes.axvline(found["bc", 0.9][0], color=MIDDLE, linewidth=1, linestyle=":", zorder=0)
    axes.set_yticks(range(len(ARMS)), ARMS)
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    axes.set_xlabel("task score of greedy replies (the teacher: 1)")


def main() -> None:
    """Draw both panels into tdistill.png, in the folder after `--out` or the working folder."""
    title = (
        "Actions are the teacher's likely tokens (left). The teacher's distribution as target (kd) does best;\n"
        "on sets, bellman_distill at p = .5 and soft_q at p = .9 beat cloning (bc) (right)"
    )
    names = ["A state of the embedded teacher", "Students after 600 updates; 95 % over 5 seeds"]
    canvas, (left, right) = sheet(title, names, height=4.2)
    draw_state(left)
    draw_scores(right, scores("task_score"))
    words = sys.argv
    folder = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path()
    canvas.savefig(folder / "tdistill.png", dpi=125)


if __name__ == "__main__":
    main()
