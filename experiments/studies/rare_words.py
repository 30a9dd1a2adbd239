"""Does protecting rare words pay? The same students with bare nuclei and with protected ones, paired by seed.

    python -m experiments.studies.rare_words --out runs/rare-words

Every agent learns from the same teacher walks, in the same order, once with the nuclei of each p and once with what
is protected beside them: by default the tail of the service desk's catalogue and all part codes, as a lexicon. Replies
are greedy, to the test prompts. The record goes on where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from agents.base import Agent
from agents.episodes import Episodes
from agents.replay import Replay
from agents.student import Student
from envs import service_desk_grammar as grammar
from envs.errors import InputError
from envs.lexicon import Lexicon, compiled, read_words
from envs.sequences import right_padded
from envs.service_desk import RARE_RANK, score_reply
from experiments.cell import build_agent
from experiments.config import CompareConfig
from experiments.evaluate import Exam, answers
from experiments.folder import write
from experiments.metrics import mean_and_interval, task_measures
from experiments.report import aligned
from experiments.store.source import min_mass_of
from experiments.studies.command import run
from experiments.workspace import Cell, Workspace

CODE = re.compile(r"[A-Z]\d\d")
KINDS = "BFKNRTWX"  # first letters of part codes
COLUMNS = {
    "rare_recall": "rare names",
    "code_recall": "part codes",
    "task_score": "task",
    "rare_surprise": "−log π_S, words",
    "surprise": "−log π_S, all",
    "set_size": "candidates",
    "lost": "words lost",
}
"""Measure -> heading. Shares of the names and codes that greedy replies must hold and do, the task score; the student's
nats a token along the teacher's test replies, at tokens of the lexicon's words and at all; candidates of a state, and
the share of such tokens in the teacher's episodes that its set does not hold."""
GIVEN = ("set_size", "lost")  # of the episodes, not of what was learnt from them
ARMS = ("bare", "protected")


@dataclass(frozen=True)
class RareWordsConfig:
    """Settings of the study."""

    agents: tuple[str, ...] = ("soft_q", "bellman_distill")
    seeds: int = 3
    top_p: tuple[float, ...] = (0.5, 0.8, 0.9)
    protect: Path | None = None
    """A lexicon; none: the catalogue's tail and the part codes."""
    rare_within: int | None = None
    """Protect rare tokens within the teacher's so many most probable, in place of the lexicon, whose words are measured
    all the same."""
    max_candidates: int = 384
    updates: int = 100
    episodes: int = 256
    eval_prompts: int = 128
    max_new_tokens: int = 64
    out: Path = Path("runs/rare-words")
    """Folder of the walks and of the record."""


def catalogue() -> list[str]:
    """Rare names and part codes of the service desk."""
    codes = [f"{kind}{number}" for kind in KINDS for number in range(10, 100)]
    return [*grammar.MODELS[RARE_RANK:], *grammar.PARTS[RARE_RANK:], *codes]


def study(config: RareWordsConfig) -> list[dict[str, Any]]:
    """Every arm of every seed, p and agent, as the record holds them.

    Raises: InputError: fewer than 2 seeds, bad settings, or a record of other ones.
    """
    if config.seeds < 2:
        raise InputError(f"seeds = {config.seeds} gives no interval; take at least 2")
    spaces = _spaces(config)
    lexicon = compiled(spaces["bare"].teacher, read_words(config.protect or config.out / "lexicon.txt"))
    path, settings = config.out / "record.json", json.loads(json.dumps(asdict(config), default=str))
    free = ("seeds", "agents", "top_p", "out")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": settings, "cells": []}
    for name in settings.keys() - set(free):
        if known["settings"][name] != settings[name]:
            raise InputError(f"{path} holds {name} = {known['settings'][name]}; give another --out, or this setting")
    done = {(cell["seed"], cell["top_p"], cell["agent"], cell["arm"]) for cell in known["cells"]}
    for place in _places(config):
        if place not in done:
            print(*place, flush=True)
            known["cells"].append(_cell(spaces, lexicon, *place))
            write(path, json.dumps(known, indent=1))
    wanted = set(_places(config))
    return [cell for cell in known["cells"] if (cell["seed"], cell["top_p"], cell["agent"], cell["arm"]) in wanted]


def _places(config: RareWordsConfig) -> Iterator[tuple[int, float, str, str]]:
    for seed in range(config.seeds):
        for top_p in config.top_p:
            for agent in config.agents:
                yield from ((seed, top_p, agent, arm) for arm in ARMS)


def _spaces(config: RareWordsConfig) -> dict[str, Workspace]:
    """The run folder of each arm."""
    bare = CompareConfig(
        agents=config.agents,
        top_p=config.top_p,
        max_candidates=config.max_candidates,
        max_new_tokens=config.max_new_tokens,
        updates=config.updates,
        episodes=config.episodes,
        eval_prompts=config.eval_prompts,
        out=config.out / "bare",
    )
    if config.protect is None:
        write(config.out / "lexicon.txt", "\n".join(catalogue()) + "\n")
    words = (config.protect or config.out / "lexicon.txt") if config.rare_within is None else None
    guarded = replace(bare, protect=words, rare_within=config.rare_within, out=config.out / "protected")
    return {"bare": Workspace(bare), "protected": Workspace(guarded)}


def _cell(
    spaces: dict[str, Workspace], lexicon: Lexicon, seed: int, top_p: float, agent: str, arm: str
) -> dict[str, Any]:
    space, exam = spaces[arm], spaces["bare"].exam("test")
    episodes = space.episodes(seed, top_p)
    assert isinstance(episodes, Episodes)
    student = taught(space, Cell(agent, seed, top_p), episodes)
    place = {"seed": seed, "top_p": top_p, "agent": agent, "arm": arm}
    return place | figures(student, space, exam, lexicon) | of_sets(episodes, lexicon)


def taught(space: Workspace, cell: Cell, episodes: Episodes) -> Student:
    """A student of this seed after the run's updates."""
    student, settings = space.student(cell.seed), space.settings(cell.agent)
    agent = build_agent(space.config, cell, student, settings)
    if isinstance(agent, Agent) and "min_mass" in agent.config.__dataclass_fields__:
        settings = {"min_mass": min(cell.top_p, min_mass_of(episodes)), **settings}
        agent = build_agent(space.config, cell, student, settings)
    if not isinstance(agent, Agent) or agent.needs or agent.walks is not None:
        raise InputError(f"{cell.agent} does not learn from episodes alone; take soft_q, bellman_distill or bc")
    replay = Replay(len(episodes), seed=cell.seed)
    replay.add(episodes)
    for _ in range(space.config.updates):
        agent.update(replay.sample(agent.config.batch_size))
    return student


def figures(student: Student, space: Workspace, exam: Exam, lexicon: Lexicon) -> dict[str, float]:
    """What a student's greedy replies hold, and how much the teacher's replies surprise it."""
    rule = space.rule(space.masses[0])
    replies = [space.teacher.decode(ids) for ids in answers(student.model, exam.ids, space.teacher, rule, 0.0)]
    task = task_measures(replies, exam.prompts)
    codes = [replace(prompt.checks, copied=own) for prompt in exam.prompts for own in [codes_of(prompt.checks.copied)]]
    held = [score_reply(text, own).copied for text, own in zip(replies, codes, strict=True)]
    found: dict[str, float] = {name: task[name] for name in ("rare_recall", "task_score") if name in task}
    if any(share is not None for share in held):
        found["code_recall"] = fmean(share for share in held if share is not None)
    surprise = surprises(student.model, exam.ids, exam.samples)
    rare = torch.from_numpy(np.concatenate([lexicon.said(reply) for reply in exam.samples]))
    found |= {"rare_surprise": float(surprise[rare].mean())} if rare.any() else {}
    return found | {"surprise": float(surprise.mean())}


def codes_of(copied: Sequence[str]) -> tuple[str, ...]:
    """Those strings that are part codes.

    >>> codes_of(("B12", "482"))
    ('B12',)
    """
    return tuple(text for text in copied if CODE.fullmatch(text))


@torch.no_grad()
def surprises(model: Any, ids: Sequence[list[int]], replies: Sequence[list[int]]) -> torch.Tensor:
    """−log π_S of every token of these replies, one after another.  # (T,) nats"""
    found = []
    for prompt, reply in zip(ids, replies, strict=True):
        tokens, mask = right_padded([prompt + reply], model.get_output_embeddings().weight.device)
        logp = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[0].float().log_softmax(-1)
        states = logp[len(prompt) - 1 : len(prompt) + len(reply) - 1]
        found.append(-states.gather(1, torch.tensor(reply, device=states.device)[:, None])[:, 0].cpu())
    return torch.cat(found)


def of_sets(episodes: Episodes, lexicon: Lexicon) -> dict[str, float]:
    """Candidates of a state, and the share of the lexicon's tokens taken that its set does not hold."""
    chosen = torch.from_numpy(np.stack([lexicon.said(row) for row in episodes.taken.tolist()])) & episodes.steps
    sizes = episodes.mask.sum(-1)[:, :-1][episodes.steps]
    found = {"set_size": float(sizes.double().mean())}
    return found | ({"lost": float((~episodes.in_set[chosen]).double().mean())} if chosen.any() else {})


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Means of the bare arms, and what protection adds, with half of a 95 % interval over seeds; * excludes 0."""
    lines = [["agent", "p", "arm", *COLUMNS.values()]]
    for agent, top_p in dict.fromkeys((cell["agent"], cell["top_p"]) for cell in cells):
        own = [cell for cell in cells if (cell["agent"], cell["top_p"]) == (agent, top_p)]
        by = {arm: {cell["seed"]: cell for cell in own if cell["arm"] == arm} for arm in ARMS}
        seeds = sorted(by["bare"].keys() & by["protected"].keys())
        means, more = [], []
        for name in COLUMNS:
            if not all(name in by[arm][seed] for arm in ARMS for seed in seeds):
                means.append("")
                more.append("")
                continue
            digits = 1 if name == "set_size" else 3
            means.append(f"{fmean(by['bare'][seed][name] for seed in seeds):.{digits}f}")
            gain, half = mean_and_interval([by["protected"][seed][name] - by["bare"][seed][name] for seed in seeds])
            sure = "*" if abs(gain) > half and name not in GIVEN else ""
            more.append(f"{gain:+.{digits}f}±{half:.{digits}f}{sure}")
        lines += [[agent, f"{top_p:g}", "bare", *means], [agent, f"{top_p:g}", "protected", *more]]
    return aligned(lines, markdown=True)


if __name__ == "__main__":
    raise SystemExit(run(RareWordsConfig, __doc__, lambda config: table(study(config))))
