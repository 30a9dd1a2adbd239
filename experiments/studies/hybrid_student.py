"""Does an expert of low-frequency words beside a student pay? The same students with and without it, paired by seed.

    python -m experiments.studies.hybrid_student --out runs/hybrid-student

Students learn from the teacher's episodes with the nuclei of each p. An expert is counted from the very same episodes
(arm "own"), and one from the references of all training prompts ("references"); the gates are fitted on the teacher's
replies to the validation prompts. Everything is measured on the test prompts. The record goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from agents.episodes import Episodes
from envs.candidates import top_p
from envs.errors import InputError
from envs.service_desk import score_reply
from experiments.config import CompareConfig
from experiments.evaluate import Exam, along, answers, score_texts
from experiments.expert.command import fitted_on
from experiments.expert.counts import Expert, Pair, counted
from experiments.expert.hybrid import Hybrid
from experiments.expert.words import kinds_of, low_frequency
from experiments.folder import write
from experiments.metrics import mean_and_interval, task_measures
from experiments.references import replies_of
from experiments.report import aligned
from experiments.rules.spelling import pieces_of
from experiments.studies.command import run
from experiments.studies.rare_words import codes_of, taught
from experiments.workspace import Cell, Workspace

COLUMNS = {
    "rare_recall": "rare names",
    "code_recall": "part codes",
    "task_score": "task",
    "forward_kl": "KL(π_T‖π)",
    "rare_surprise": "−log π, rare",
    "surprise": "−log π, all",
    "leak": "leak",
    "nucleus": "own nucleus",
    "slower": "time/token",
}
"""Measure -> heading. Shares of the names and codes that greedy replies must hold and do; the task score; along the
teacher's test replies forward KL, nats at tokens of low-frequency words and at all, mass outside the teacher's sets,
and the tokens that the policy's own nucleus of p has; time of a decoded token as a multiple of the bare student's."""
ARMS = ("bare", "own", "references")
TIMED = 64  # prompts that are decoded to take the time
REPEATS = 3


@dataclass(frozen=True)
class HybridStudentConfig:
    """Settings of the study."""

    agents: tuple[str, ...] = ("bellman_distill",)
    seeds: int = 3
    top_p: tuple[float, ...] = (0.5, 0.9)
    max_candidates: int = 64
    updates: int = 100
    episodes: int = 256
    eval_prompts: int = 256
    max_new_tokens: int = 64
    out: Path = Path("runs/hybrid-student")
    """Folder of the walks and of the record."""


def study(config: HybridStudentConfig) -> list[dict[str, Any]]:
    """Every arm of every seed, p and agent, as the record holds them.

    Raises: InputError: fewer than 2 seeds, bad settings, or a record of other ones.
    """
    if config.seeds < 2:
        raise InputError(f"seeds = {config.seeds} gives no interval; take at least 2")
    path, settings = config.out / "record.json", json.loads(json.dumps(asdict(config), default=str))
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": settings, "cells": []}
    for name in settings.keys() - {"seeds", "agents", "top_p", "out"}:
        if known["settings"][name] != settings[name]:
            raise InputError(f"{path} holds {name} = {known['settings'][name]}; give another --out, or this setting")
    space = Workspace(CompareConfig(**asdict(config)))
    places = [(seed, mass, agent) for seed in range(config.seeds) for mass in config.top_p for agent in config.agents]
    done = {_place(cell) for cell in known["cells"]}
    for seed, mass, agent in places:
        if (seed, mass, agent) not in done:
            print(seed, mass, agent, flush=True)
            known["cells"] += _cells(space, Cell(agent, seed, mass))
            write(path, json.dumps(known, indent=1))
    return [cell for cell in known["cells"] if _place(cell) in places]


def _place(cell: dict[str, Any]) -> tuple[int, float, str]:
    return cell["seed"], cell["top_p"], cell["agent"]


def _cells(space: Workspace, cell: Cell) -> list[dict[str, Any]]:
    """All arms of one student."""
    episodes = space.episodes(cell.seed, cell.top_p)
    assert isinstance(episodes, Episodes)
    model, validation, teacher = taught(space, cell, episodes).model, space.exam("validation"), space.teacher
    kinds = kinds_of(pieces_of(getattr(teacher, "tokenizer", None)))
    references = replies_of(space.splits.train, teacher)
    pairs: dict[str, list[Pair]] = {
        "own": pairs_of(episodes),
        "references": [(prompt, reply) for prompt, replies in references.items() for reply in replies],
    }
    experts = {arm: counted(given, kinds) for arm, given in pairs.items()}
    fitting = list(zip(validation.ids, validation.samples, strict=True))
    policies: dict[str, Any] = {"bare": model}
    gates: dict[str, dict[str, float]] = {"bare": {}}
    for arm, expert in experts.items():
        gate, gates[arm] = fitted_on(model, expert, fitting, teacher)
        policies[arm] = Hybrid(model, expert, gate)
    slower = times(policies, space)
    place = {"seed": cell.seed, "top_p": cell.top_p, "agent": cell.agent}
    return [
        {**place, "arm": arm, **figures(policy, space, cell.top_p, experts["references"])}
        | {"slower": slower[arm], "candidates": set_size(episodes), "gate": gates[arm]}
        for arm, policy in policies.items()
    ]


def pairs_of(episodes: Episodes) -> list[Pair]:
    """Prompts and replies of episodes, as tokens."""
    rows = zip(episodes.tokens.tolist(), episodes.prompt_length.tolist(), episodes.length.tolist(), strict=True)
    return [(tokens[:size], tokens[size : size + steps]) for tokens, size, steps in rows]


def set_size(episodes: Episodes) -> float:
    """Candidates of a state of the teacher's."""
    return float(episodes.mask.sum(-1)[:, :-1][episodes.steps].double().mean())


def figures(policy: Any, space: Workspace, mass: float, judge: Expert) -> dict[str, float]:
    """The measures of one policy on the test prompts; `judge` says which words are low-frequency, for all alike."""
    exam, rule, teacher = space.exam("test"), space.rule(mass), space.teacher
    replies = [teacher.decode(reply) for reply in answers(policy, exam.ids, teacher, rule, 0.0)]
    task = task_measures(replies, exam.prompts)
    found: dict[str, float] = {name: task[name] for name in ("rare_recall", "task_score") if name in task}
    codes = [replace(prompt.checks, copied=codes_of(prompt.checks.copied)) for prompt in exam.prompts]
    held = [score_reply(text, own).copied for text, own in zip(replies, codes, strict=True)]
    if said := [share for share in held if share is not None]:
        found["code_recall"] = fmean(said)
    beside = along(policy, exam.ids, exam.samples, teacher, rule)
    found |= {"forward_kl": float(beside.forward_kl.mean()), "leak": float(beside.leak.mean())}
    surprise, nucleus = _states(policy, exam, mass)
    rare = torch.cat([torch.from_numpy(low_frequency(reply, judge.kinds, judge.common)) for reply in exam.samples])
    found |= {"surprise": float(surprise.mean()), "nucleus": float(nucleus.mean())}
    return found | ({"rare_surprise": float(surprise[rare].mean())} if rare.any() else {})


def _states(policy: Any, exam: Exam, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
    """−log π of every token of the teacher's replies, and how many tokens the policy's own nucleus has; (T,) each."""
    surprise, nucleus = [], []
    for prompt, reply in zip(exam.ids, exam.samples, strict=True):
        logp = score_texts(policy, [prompt + reply], [len(prompt)])[0, len(prompt) - 1 : len(prompt) + len(reply) - 1]
        surprise.append(-logp.double().gather(1, torch.tensor(reply)[:, None])[:, 0])
        nucleus.append(top_p(logp, mass, None).mask.sum(-1).double())
    return torch.cat(surprise), torch.cat(nucleus)


def times(policies: dict[str, Any], space: Workspace) -> dict[str, float]:
    """Time of a greedy token of each policy over the first one's, medians of runs in turn."""
    found: dict[str, list[float]] = {arm: [] for arm in policies}
    ids, rule = space.exam("test").ids[:TIMED], space.rule(space.masses[0])
    for _ in range(REPEATS):
        for arm, policy in policies.items():
            begin = time.perf_counter()
            replies = answers(policy, ids, space.teacher, rule, 0.0)
            found[arm].append((time.perf_counter() - begin) / sum(map(len, replies)))
    first = next(iter(found.values()))
    return {arm: median(own / bare for own, bare in zip(values, first, strict=True)) for arm, values in found.items()}


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Means of the bare students, and what each expert adds, with half of a 95 % interval over seeds; * excludes 0."""
    lines = [["agent", "p", "candidates", "arm", *COLUMNS.values()]]
    for agent, mass in dict.fromkeys((cell["agent"], cell["top_p"]) for cell in cells):
        own = [cell for cell in cells if (cell["agent"], cell["top_p"]) == (agent, mass)]
        by = {arm: {cell["seed"]: cell for cell in own if cell["arm"] == arm} for arm in ARMS}
        size = f"{fmean(cell['candidates'] for cell in by['bare'].values()):.1f}"
        for arm in ARMS:
            row = [_figure(by, arm, name) for name in COLUMNS]
            lines.append([agent, f"{mass:g}", size, arm if arm == "bare" else f"+ {arm}", *row])
    return aligned(lines, markdown=True)


def _figure(by: dict[str, dict[int, dict[str, Any]]], arm: str, name: str) -> str:
    pairs = [(by["bare"][seed].get(name), by[arm][seed].get(name)) for seed in sorted(by["bare"])]
    there = [(bare, own) for bare, own in pairs if bare is not None and own is not None]
    digits = 2 if name in ("nucleus", "slower") else 3
    if len(there) < len(pairs):
        return ""
    if arm == "bare":
        return f"{fmean(bare for bare, _ in there):.{digits}f}"
    if name == "slower":
        return f"x{fmean(own for _, own in there):.{digits}f}"
    gain, half = mean_and_interval([own - bare for bare, own in there])
    return f"{gain:+.{digits}f}±{half:.{digits}f}{'*' if abs(gain) > half else ''}"


if __name__ == "__main__":
    raise SystemExit(run(HybridStudentConfig, __doc__, lambda config: table(study(config))))
