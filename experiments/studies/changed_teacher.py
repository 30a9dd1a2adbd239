"""What an update saves when a teacher changes, and whether it costs quality: paired with beginning again.

    python -m experiments.studies.changed_teacher --out runs/changed

The embedded teacher is fine-tuned on its own corpus, where replies to one kind of message now end with another
sentence. Its old store and its old student are then brought up to date; or everything is drawn anew, for the same
student or for one that begins where the old one began; each with the same number of updates. An update that compares
every episode keeps no label of the old teacher, and tells what these cost from what the same texts once more cost; one
that learns for a third of the updates says how much of that is due to how long. An update is as good if the whole 95 %
interval of its difference in KL(T‖S) to the new teacher lies within the margin, which is fixed beforehand (two
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
    "before": "old student, nothing learnt",
    "update": "update",
    "short": "update, a third of the updates",
    "compared": "update, every episode compared",
    "again": "old student, all drawn anew",
    "anew": "all begun anew",
}
COLUMNS = {"forward_kl": "KL(T‖S)", f"forward_kl {KIND}": f"KL, {KIND}", "task_score": "task"}
ASKED = {"read": "tokens read", "walked": "tokens walked"}
PAIRS = (("update", "again"), ("update", "anew"), ("short", "again"), ("compared", "again"))
COMPARED = ("update", "compared")
UPDATES = (*COMPARED, "short")
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
    rows, asked = dict[str, list[Row]](), dict[str, dict[str, float]]()
    for arm, size in zip(COMPARED, (config.round_size, config.episodes), strict=True):
        own = {field.name: getattr(after, field.name) for field in fields(after)}
        own |= {"store": old.out, "out": out / arm, "drift": config.drift, "round_size": size}
        update = UpdateConfig(**own)
        asked[arm] = renew(update)
        rows[arm] = distill(run := run_of(update))
        if arm == "update":
            updates = max(1, config.updates // 3)
            rows["short"] = distill(replace(run, updates=updates, eval_every=updates, out=out / "short"))
    asked["short"] = asked["update"]
    drawn = draw(new)
    for arm, place in (("again", str(student)), ("anew", str(WARM_START))):
        rows[arm] = distill(replace(after, student=place, store=new.out, out=out / arm))
    found = {arm: figures_of(of_arm, config.agent) for arm, of_arm in rows.items()}
    found["before"] = figures_of(rows["again"], START)
    for arm in UPDATES:
        found[arm] |= {name: value for name, value in asked[arm].items() if name not in ("saved", "saved_walked")}
    for arm in ("again", "anew"):
        found[arm] |= {"read": asked["update"]["read_again"], "walked": drawn["tokens"]}
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
        verdicts.append(f"{ARMS[one]} is {verdict} beside {ARMS[other]}")
    shares = []
    for arm in COMPARED:
        whole, walked = (_cell([saved(own, arm, names) for own in found]) for names in (tuple(ASKED), ("walked",)))
        shares.append(f"{ARMS[arm]}: {whole} of the teacher's tokens saved, {walked} of those walked one by one")
    return "\n\n".join(
        [
            aligned(lines, markdown=True),
            f"{len(found)} seeds, ± half of a 95 % interval; margin {config.margin:g} nats: {'; '.join(verdicts)}",
            "\n".join(shares),
        ]
    )


def saved(own: dict[str, Figures], arm: str, names: Sequence[str]) -> float:
    """Share of these questions that an update has not asked."""
    asked, again = (sum(own[one][name] for name in names) for one in (arm, "again"))
    return 1 - asked / again


def _cell(values: Sequence[float], sign: str = "") -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.3f}±{half:.3f}"


if __name__ == "__main__":
    raise SystemExit(run(ChangedTeacherConfig, __doc__, study))
