"""The figure of the README: a state of the token MDP, and what five seeds of the agents reached.

    python experiments/docs/figure.py --out experiments/docs

The state is computed from the embedded teacher; the scores are read from the table of `pages/results.md`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from envs import load_teacher
from experiments.lessons.sheet import ACCENT, DARK, LIGHT, MIDDLE, mark, sheet

PROMPT = "Does the Halden chain, code F66, fit a city bike?"
STEPS = 7  # of the most probable token, to "Thanks so much for your message."
TOP_P, SHOWN = 0.9, 7
ARMS = {
    "start": "the student they start from",
    "bc": "bc",
    "bc_filtered": "bc_filtered",
    "kd": "kd",
    "kd@on=set": "kd@on=set",
    "gkd": "gkd",
    "soft_q": "soft_q",
    "soft_q@gamma=0": "  its twin at γ = 0",
    "soft_q@shuffle=true": "  values permuted",
    "bellman_distill": "bellman_distill",
    "sac": "sac",
    "value_tilt": "value_tilt",
}


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


def scores(page: Path) -> dict[str, tuple[float, float]]:
    """Agent -> task score and half of its 95 % interval (0 where there is one seed), of the table headed by `task`."""
    tables = page.read_text(encoding="utf-8").split("\n\n")
    table = next(part for part in tables if re.match(r"\| agent +\| top_p \| seeds \| +task \| +critical", part))
    found = {}
    for line in table.splitlines()[2:]:
        name, _, _, task, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        value, _, half = task.partition("±")
        found[name] = float(value), float(half or 0)
    return found


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


def draw_scores(axes: Any, found: dict[str, tuple[float, float]]) -> None:
    """Task scores with their intervals, one row an agent; the dotted line is bc."""
    for row, name in enumerate(ARMS):
        value, half = found[name]
        colour = ACCENT if name.startswith("soft_q") else DARK
        axes.plot([value - half, value + half], [row, row], color=colour, linewidth=2)
        axes.plot(value, row, **mark("o", colour))
    axes.axvline(found["bc"][0], color=MIDDLE, linewidth=1, linestyle=":", zorder=0)
    axes.set_yticks(range(len(ARMS)), list(ARMS.values()))
    axes.invert_yaxis()
    axes.set_xlabel("task score of greedy replies (the teacher: 1)")


def main() -> None:
    """Draw both panels into tdistill.png, in the folder after `--out` or the working folder."""
    title = (
        "Actions are the teacher's likely tokens (left). Reading their probabilities helps;\n"
        "looking ahead does not on this teacher: soft_q, its γ = 0 twin and permuted values tie (right)"
    )
    names = ["A state of the embedded teacher", "Students after 300 updates; 95 % over 5 seeds"]
    canvas, (left, right) = sheet(title, names, height=4.2)
    draw_state(left)
    draw_scores(right, scores(Path(__file__).parent / "pages/results.md"))
    words = sys.argv
    folder = Path(words[words.index("--out") + 1]) if "--out" in words[:-1] else Path()
    canvas.savefig(folder / "tdistill.png", dpi=125)


if __name__ == "__main__":
    main()
