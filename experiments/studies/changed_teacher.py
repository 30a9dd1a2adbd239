"""What an update saves when a teacher changes, and whether it costs quality: paired with beginning again.

    python -m experiments.studies.changed_teacher --out runs/changed

The embedded teacher is fine-tuned on its own corpus, where replies to one kind of message now end with another
sentence. Then two by two: the old store is brought up to date, or all of it is drawn anew; and the old student goes on,
or one begins where it began; each with the same number of updates. An arm is as good as another if the whole 95 %
interval of their difference in KL(T‖S) to the new teacher lies within the margin, which is fixed beforehand (two
one-sided tests at 2.5 %: Schuirmann 1987), and better if it lies below 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from envs.errors import InputError
from envs.prompts import embedded_prompts
from envs.teachers import EMBEDDED, WARM_START
from experiments.compare import distill
from experiments.config import DistillConfig
from experiments.folder import write
from experiments.metrics import mean_and_interval
from experiments.report import Row, aligned
from experiments.store.draw import CollectConfig, draw
from experiments.studies.command import run
from experiments.train import START
from experiments.update.command import UpdateConfig, renew, run_of

KIND = "appointment"
ADDED = " Please bring your customer card."
ARMS = {
    "before": "nothing done",
    "update": "store updated, old student goes on",
    "begun": "store updated, student begun anew",
    "again": "store drawn anew, old student goes on",
    "anew": "store drawn anew, student begun anew",
}
COLUMNS = {"forward_kl": "KL(T‖S)", f"forward_kl {KIND}": f"KL, {KIND}", "task_score": "task"}
ASKED = {"read": "tokens read", "walked": "tokens walked"}
PAIRS = (("begun", "anew"), ("update", "again"), ("update", "begun"), ("again", "anew"))
UPDATED = ("update", "begun")
Figures = dict[str, float]


@dataclass(frozen=True)
class ChangedTeacherConfig:
    """Settings of the study."""

    out: Path
    """Folder of its stores and runs; the same command goes on where it stopped."""
    seeds: int = 3
    episodes: int = 512
    """Prompts of a store, a reply each."""
    updates: int = 150
    """Of the old student, and again after the change."""
    tuning: int = 100
    """Updates that change the teacher."""
    margin: float = 0.02
    """Nats of KL(T‖S) that would not matter."""
    agent: str = "bellman_distill"
    eval_prompts: int = 128
    drift: float = 0.05
    round_size: int = 32


def study(config: ChangedTeacherConfig) -> str:
    """The table, what was asked of the teacher, and whether the update is as good.

    Raises: InputError: fewer than two seeds, or as a run.
    """
    if config.seeds < 2:
        raise InputError(f"seeds = {config.seeds} gives no interval; give at least 2")
    teacher = changed_teacher(config)
    return said(config, [one_seed(config, teacher, seed) for seed in range(config.seeds)])


def changed_teacher(config: ChangedTeacherConfig) -> Path:
    """The teacher's directory after its change."""
    path = config.out / "changed.jsonl"
    lines = []
    for prompt in embedded_prompts("train"):
        more = ADDED if KIND in prompt.tags else ""
        record = {"prompt": prompt.text, "reference": [text + more for text in prompt.references]}
        lines.append(json.dumps({**record, "tags": list(prompt.tags)}))
    write(path, "\n".join(lines) + "\n")
    tuned = DistillConfig(
        student=str(EMBEDDED),
        agent="bc",
        agent_config=("bc.lr=3e-4",),
        targets="references",
        prompts=path,
        updates=config.tuning,
        eval_every=config.tuning,
        episodes=2048,
        eval_prompts=16,
        threads=1,
        out=config.out / "teacher",
    )
    distill(tuned)
    return tuned.out / "students" / "bc-seed0"


def one_seed(config: ChangedTeacherConfig, teacher: Path, seed: int) -> dict[str, Figures]:
    """What each arm gives with the old store and the old student of a seed, measured against the new teacher."""
    out = config.out / f"seed{seed}"
    old, new = (CollectConfig(out / name, count=config.episodes, seed=seed) for name in ("old", "new"))
    new = replace(new, teacher=str(teacher))
    common = DistillConfig(
        agent=config.agent,
        seed=seed,
        updates=config.updates,
        eval_every=config.updates,
        eval_prompts=config.eval_prompts,
        threads=1,
    )
    draw(old)
    distill(replace(common, store=old.out, out=out / "first"))
    student = out / "first" / "students" / f"{config.agent}-seed{seed}"
    after = replace(common, teacher=str(teacher), student=str(student))
    own = {field.name: getattr(after, field.name) for field in fields(after)}
    own |= {"store": old.out, "out": out / "update", "drift": config.drift, "round_size": config.round_size}
    asked, run = renew(update := UpdateConfig(**own)), run_of(update)
    drawn = draw(new)
    rows = {
        "update": distill(run),
        "begun": distill(replace(run, student=str(WARM_START), out=out / "begun")),
        "again": distill(replace(after, store=new.out, out=out / "again")),
        "anew": distill(replace(after, student=str(WARM_START), store=new.out, out=out / "anew")),
    }
    found = {"before": figures_of(rows["again"], START)}
    for arm, of_arm in rows.items():
        whole = {"read": asked["read_again"], "walked": drawn["tokens"]}
        found[arm] = figures_of(of_arm, config.agent) | (asked if arm in UPDATED else whole)
    write(out / "figures.json", json.dumps(found, indent=1))
    return found


def figures_of(rows: Sequence[Row], agent: str) -> Figures:
    """The measures of `COLUMNS` of a run's arm."""
    row = next(row for row in rows if row.agent == agent)
    found = {name: row.measures[name] for name in ("forward_kl", "task_score")}
    return found | {f"forward_kl {KIND}": row.more["slices"][KIND]["forward_kl"]}


def said(config: ChangedTeacherConfig, found: Sequence[dict[str, Figures]]) -> str:
    """Means over seeds with half of a 95 % interval, the paired difference, and the verdict."""
    lines = [["", *COLUMNS.values(), *ASKED.values()]]
    for arm, name in ARMS.items():
        cells = [_cell([own[arm][column] for own in found]) for column in COLUMNS]
        asked = [sum(own[arm].get(column, 0.0) for own in found) / len(found) for column in ASKED]
        lines.append([name, *cells, *(f"{value:,.0f}" for value in asked)])
    verdicts = []
    for one, other in PAIRS:
        gaps = {name: [own[one][name] - own[other][name] for own in found] for name in COLUMNS}
        lines.append([f"{ARMS[one]} − {ARMS[other]}", *(_cell(gaps[name], "+") for name in COLUMNS), "", ""])
        mean, half = mean_and_interval(gaps["forward_kl"])
        better, good = mean + half < 0, abs(mean) + half <= config.margin
        verdict = "better" if better else "as good" if good else "not shown to be as good"
        verdicts.append(f"“{ARMS[one]}” is {verdict} beside “{ARMS[other]}”")
    whole, walked = (_cell([saved(own, names) for own in found]) for names in (tuple(ASKED), ("walked",)))
    return "\n\n".join(
        [
            aligned(lines, markdown=True),
            f"{len(found)} seeds, ± half of a 95 % interval; margin {config.margin:g} nats: {'; '.join(verdicts)}",
            f"updating the store saves {whole} of the teacher's tokens, {walked} of those walked one by one",
        ]
    )


def saved(own: dict[str, Figures], names: Sequence[str]) -> float:
    """Share of these questions that updating a store has not asked."""
    asked, again = (sum(own[arm][name] for name in names) for arm in ("update", "again"))
    return 1 - asked / again


def _cell(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.3f}±{half:.3f}"


if __name__ == "__main__":
    raise SystemExit(run(ChangedTeacherConfig, __doc__, study))
