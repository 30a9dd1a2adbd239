"""Would a perfect critic help? `value_tilt` with values by rollouts in the place of learned ones, and its controls.

A student that distillation has brought as far as it gets walks; behind every branching state of its walks the most
probable successors are tried out, each by several walks of the same student. What these cost, less the average, is the
value of the successor (6b); the student then learns from its walks towards the teacher tilted by it. Arms, on the same
walks in the same order from the same student:

untilted   no tilt: distillation as before
tilted     by the values
uncentred  by values without the average cost: what buys shortness
permuted   by each other's values: as large a tilt that says nothing

    python -m experiments.studies.oracle_tilt RUN

RUN is the folder of a comparison with `--warm-start kd`; its validation prompts are the judges, its test prompts are
not touched. The same command goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from agents import objectives
from agents.base import Logs
from agents.episodes import Episodes
from agents.scores import Scores
from agents.student import Student
from agents.value_tilt import ValueTilt, ValueTiltConfig
from envs.errors import InputError
from experiments.config import CompareConfig, from_mapping, read_yaml
from experiments.evaluate import Rule, measure
from experiments.folder import CONFIG, write
from experiments.metrics import mean_and_interval
from experiments.report import aligned
from experiments.studies.command import run
from experiments.studies.rollouts import Successors, costs_of, mean_by, successors, walks_from
from experiments.workspace import Workspace

MEASURES = {
    "cost": "cost",
    "teacher_nll": "−log π_T",
    "in_set": "in set",
    "length": "length",
    "surprise": "−log π_S",
    "task_score": "task",
    "forward_kl": "KL(T‖S)",
}
"""Measure -> heading. Of new replies to the validation prompts: the cost, the teacher's and the student's own surprise
in nats per token, the share of tokens in the sets, tokens of a reply; then the validation measures of a comparison."""
USUAL = ValueTiltConfig()  # whose clips are kept
JUDGE_SEED = 54321  # of the replies that are measured
FREE = {"run", "seeds", "top_p", "gamma", "out"}  # settings of which the record may come to hold more


@dataclass(frozen=True)
class OracleTiltConfig:
    """Settings of the study."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a comparison with a warm start."""
    seeds: int = 3
    """Warm students of the run, from seed 0 on."""
    top_p: tuple[float, ...] = (0.8,)
    gamma: tuple[float, ...] = (0.8,)
    """Strength of the tilt and discount of the values."""
    episodes: int = 96
    """Replies of the student that it learns from."""
    leaves: int = 4
    """Most successors tried out behind a state."""
    rollouts: int = 8
    """Walks behind each of them."""
    rollout_tokens: int = 16
    """Tokens of such a walk."""
    updates: int = 300
    batch_size: int = 16
    lr: float = 3e-4
    replies: int = 512
    """New replies of each student that are measured."""
    out: Path | None = None
    """The record; none: oracle_tilt.json in the run's folder."""


class OracleTilt(ValueTilt):
    """`value_tilt` that is told Δ."""

    name: ClassVar[str] = "oracle_tilt"
    told: Tensor  # (B, T, K) Δ of the batch in hand

    def look_ahead(self, batch: Episodes, scores: Scores) -> tuple[Tensor, Logs]:
        return self.told, {}


@dataclass(frozen=True)
class Lesson:
    """Walks of a student, the successors of their states and what walking on from these cost."""

    episodes: Episodes
    found: Successors
    costs: Tensor  # (R, H) of R rollouts
    lengths: Tensor  # (R,)
    number: Tensor  # (R,) text that each began with
    average: float  # ρ: the mean cost of a token of `episodes`

    def advantage(self, gamma: float, average: float, generator: torch.Generator | None = None) -> Tensor:
        """Δ of every candidate, permuted among the leaves if there is a generator.  # (B, T, K) nats

        V(s·a) is the mean over rollouts of −Σ_t γ^t (c_t − ρ).
        """
        steps = torch.arange(self.costs.shape[1])
        paid = (average - self.costs) * (steps < self.lengths[:, None])
        returns = (paid * gamma**steps).sum(1)
        values = self.found.spread(mean_by(self.number, returns, len(self.found.texts)))
        width = values.shape[-1]
        usual = (self.episodes.logp[..., :width], self.found.looked_at, self.found.ends)
        known = objectives.leaf_advantage(values, *usual, limit=USUAL.tilt_clip)
        if generator is not None:
            leaves = self.found.leaves
            known[leaves] = known[leaves][torch.randperm(int(leaves.sum()), generator=generator)]
        return torch.nn.functional.pad(known, (0, self.episodes.ids.shape[-1] - width))[:, :-1]


def rehearse(config: OracleTiltConfig, space: Workspace, student: Student, top_p: float, seed: int) -> Lesson:
    """Let the student walk, and walk on from every successor."""
    rule, model, teacher = space.rule(top_p), student.model, space.teacher
    prompts = [teacher.encode(prompt.text) for prompt in space.splits.train[: config.episodes]]
    episodes, _ = walks_from(prompts, 1, teacher, rule, seed=seed, student=model)
    found = successors(episodes, config.leaves, sorted(teacher.eos_ids))
    short = Rule(top_p, rule.max_candidates, config.rollout_tokens)
    onward, number = walks_from(found.texts, config.rollouts, teacher, short, seed=seed + 1, student=model)
    average = float(costs_of(student, episodes, USUAL.cost_clip).sum() / episodes.length.sum())
    return Lesson(episodes, found, costs_of(student, onward, USUAL.cost_clip), onward.length, number, average)


def tilts(lesson: Lesson, gamma: float, seed: int) -> dict[str, Tensor]:
    """Δ of every arm."""
    told = lesson.advantage(gamma, lesson.average)
    return {
        "untilted": torch.zeros_like(told),
        "tilted": told,
        "uncentred": lesson.advantage(gamma, 0.0),
        "permuted": lesson.advantage(gamma, lesson.average, torch.Generator().manual_seed(seed)),
    }


def learn(config: OracleTiltConfig, student: Student, lesson: Lesson, told: Tensor, gamma: float, seed: int) -> None:
    """Train the student on the lesson's walks, each pass in an order of the seed's."""
    settings = {"gamma": gamma, "critic_alone": 0, "lr": config.lr, "batch_size": config.batch_size}
    agent = OracleTilt(student, OracleTilt.make_config(**settings), seed=seed, total_updates=config.updates)
    episodes, generator = lesson.episodes.discounted(gamma), torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.int64)
    for _ in tqdm(range(config.updates), desc="learning", leave=False):
        if len(order) < config.batch_size:
            order = torch.cat([order, torch.randperm(len(episodes), generator=generator)])
        rows, order = order[: config.batch_size], order[config.batch_size :]
        batch = episodes.select(rows)
        agent.told = told[rows, : batch.slots.shape[1], : batch.ids.shape[2]]
        agent.update(batch)


def judge(config: OracleTiltConfig, space: Workspace, student: Student, top_p: float) -> dict[str, float]:
    """What new replies to the validation prompts cost, and the validation measures."""
    teacher, prompts = space.teacher, space.splits.validation
    each = math.ceil(config.replies / len(prompts))
    texts = [teacher.encode(prompt.text) for prompt in prompts]
    own, _ = walks_from(texts, each, teacher, space.rule(top_p), seed=JUDGE_SEED, student=student.model)
    tokens = float(own.length.sum())
    quick = measure(student.model, space.exam("validation"), teacher, space.rule(top_p), quick=True)
    return {
        "cost": float(costs_of(student, own, USUAL.cost_clip).sum()) / tokens,
        "teacher_nll": -float(own.teacher_logp_taken.sum()) / tokens,
        "in_set": float(own.in_set.sum()) / tokens,
        "length": tokens / len(own),
        "surprise": -float(own.behaviour_logp.sum()) / tokens,
        **{name: quick[name] for name in ("task_score", "forward_kl") if name in quick},
    }


def study(config: OracleTiltConfig) -> list[dict[str, Any]]:
    """Every arm at every seed, top_p and γ that the record does not hold yet.

    Raises: InputError: a folder that is no run with a warm start, a seed that it does not have, or a record of other
        settings.
    """
    space = _space(config)
    place = config.out or config.run / "oracle_tilt.json"
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    kept: dict[str, Any] = {"settings": settings, "arms": []}
    if place.is_file():
        kept = json.loads(place.read_text(encoding="utf-8"))
    if kept["settings"] != settings:
        raise InputError(f"{place} holds a study with {kept['settings']}, this one has {settings}; give another --out")
    record: list[dict[str, Any]] = kept["arms"]
    for seed, top_p in [(seed, top_p) for top_p in config.top_p for seed in range(config.seeds)]:
        missing = [(arm, gamma) for arm, gamma in _arms(config) if not _known(record, seed, top_p, arm, gamma)]
        if not missing:
            continue
        lesson = rehearse(config, space, space.student(seed), top_p, seed)
        for arm, gamma in missing:
            print(f"seed {seed}, p = {top_p:g}, γ = {gamma:g}: {arm}", flush=True)
            student = space.student(seed)
            learn(config, student, lesson, tilts(lesson, gamma, seed)[arm], gamma, seed)
            figures = judge(config, space, student, top_p)
            record.append({"seed": seed, "top_p": top_p, "gamma": gamma, "arm": arm, **figures})
            write(place, json.dumps(kept, indent=1))
    return record


def _arms(config: OracleTiltConfig) -> Iterator[tuple[str, float]]:
    """The untilted one is the same at every γ."""
    yield "untilted", 0.0
    for gamma in config.gamma:
        yield from ((arm, gamma) for arm in ("tilted", "uncentred", "permuted"))


def _known(record: list[dict[str, Any]], seed: int, top_p: float, arm: str, gamma: float) -> dict[str, Any] | None:
    place = {"seed": seed, "top_p": top_p, "arm": arm, "gamma": gamma}
    return next((entry for entry in record if place.items() <= entry.items()), None)


def _space(config: OracleTiltConfig) -> Workspace:
    if not (config.run / CONFIG).is_file():
        raise InputError(f"{config.run} is no run folder; give one of `tdistill compare --warm-start kd`")
    space = Workspace(from_mapping(CompareConfig, read_yaml(config.run / CONFIG), str(config.run)))
    for seed in range(config.seeds):
        if not space.config.warm_start or not space.warm_start_record(seed).is_file():
            raise InputError(
                f"{config.run} has no warm student of seed {seed}; run it with --warm-start kd and more seeds"
            )
    return space


def table(config: OracleTiltConfig, record: list[dict[str, Any]]) -> str:
    """Arms less the untilted one, paired by seed: mean ± half of a 95 % interval (Student's t); a * excludes 0."""
    names = [name for name in MEASURES if all(name in entry for entry in record)]
    lines = [["arm", "p", "γ", "seeds", *(MEASURES[name] for name in names)]]
    for top_p in config.top_p:
        base = [_known(record, seed, top_p, "untilted", 0.0) for seed in range(config.seeds)]
        means = [mean_and_interval([entry[name] for entry in base if entry])[0] for name in names]
        lines.append(["untilted", f"{top_p:g}", "", str(len(base)), *(f"{mean:.3f}" for mean in means)])
        for arm, gamma in list(_arms(config))[1:]:
            own = [_known(record, seed, top_p, arm, gamma) for seed in range(config.seeds)]
            pairs = [(mine, other) for mine, other in zip(own, base, strict=True) if mine and other]
            changes = [mean_and_interval([mine[name] - other[name] for mine, other in pairs]) for name in names]
            cells = [f"{mean:+.4f}±{half:.4f}{'*' if abs(mean) > half else ''}" for mean, half in changes]
            lines.append([arm, f"{top_p:g}", f"{gamma:g}", str(len(pairs)), *cells])
    return aligned(lines, markdown=True)


if __name__ == "__main__":
    raise SystemExit(run(OracleTiltConfig, __doc__, lambda config: table(config, study(config))))
