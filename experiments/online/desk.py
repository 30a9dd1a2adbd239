"""Which prompts the teacher is asked about, and what it says: kept on disk, so that nothing is asked twice.

labels/00000012.safetensors   the teacher's replies to prompts of block 12, as episodes
labels/00000012.json          which prompts these are, what the teacher thinks of the student's replies to them, and
                              whether it still says of a training text what it said when the run began
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.episodes import Episodes
from envs.prompts import prompt_hash
from envs.rewards import LogProb
from envs.vector_env import TopPTokenVectorEnv
from experiments.collect import collect
from experiments.evaluate import along
from experiments.folder import write
from experiments.online.config import OnlineConfig
from experiments.online.journal import Block
from experiments.online.signals import OF_TEACHER
from experiments.store.shards import Stored
from experiments.update.drift import Suspicion, read
from experiments.workspace import Workspace

CONTROLS = 1
"""Training texts on which the teacher is compared with itself, for each block that has labels."""
MOVED = 0.05
"""Nats by which a teacher that is not the same any more differs from what it was, in the mean over a text's states."""


@dataclass(frozen=True)
class Asked:
    """What was asked about a block's prompts."""

    rows: list[int]
    """Places of the labelled prompts in their block; the first `by_chance` of them were drawn."""
    by_chance: int
    signals: list[dict[str, float]]
    """forward_kl and leak along the student's reply to each, means over its tokens."""
    tokens: int
    """That the teacher gave or read."""
    hashes: list[str]
    """Of the labelled prompts."""
    teacher_drift: float = 0.0
    """Mean `coarse_kl` of the teacher from what it was, nats, along training texts."""

    @property
    def misled(self) -> bool:
        """Whether the teacher was not the one that it was when the run began: its labels are not to be learnt from."""
        return self.teacher_drift > MOVED


class Desk:
    """The teacher, and the folder where its answers are kept."""

    def __init__(self, space: Workspace, config: OnlineConfig) -> None:
        self.space, self.config, self.folder = space, config, space.out / "labels"

    def path(self, number: int) -> Path:
        """Of the episodes of a block."""
        return self.folder / f"{number:08d}.safetensors"

    def episodes(self, number: int) -> Episodes:
        """The teacher's replies to a block's prompts."""
        return Episodes.load(self.path(number))

    def reading(self, number: int) -> Asked:
        """What was asked about a block that has labels."""
        return Asked(**json.loads(self.path(number).with_suffix(".json").read_text(encoding="utf-8")))

    def ask(
        self,
        block: Block,
        chosen: tuple[list[int], int],
        model: Any,
        prompts: list[list[int]],
        replies: list[list[int]],
    ) -> Asked:
        """The teacher's replies to prompts of a block, and its view of the student's; what is there is read back.

        Args:
            chosen: as `Chooser.chosen` returns it.
            model: the student, whose `replies` to all `prompts` of the block these are.
        """
        number, (rows, by_chance) = block.number, chosen
        if self.path(number).with_suffix(".json").is_file():
            return self.reading(number)
        own, said = [prompts[row] for row in rows], [replies[row] for row in rows]
        episodes = self._drawn(number, own)
        rule, teacher = self.space.rule(self.config.top_p), self.space.teacher
        found = along(model, own, said, teacher, rule)
        parts = {name: torch.split(getattr(found, name), [len(reply) for reply in said]) for name in OF_TEACHER}
        signals = [{name: float(parts[name][place].mean()) for name in OF_TEACHER} for place in range(len(rows))]
        drift, tokens = self._drift(number)
        tokens += sum(map(len, own)) + sum(map(len, said)) + int(episodes.length.sum())
        hashes = [prompt_hash(block.texts[row]) for row in rows]
        reading = Asked(rows, by_chance, signals, tokens, hashes, drift)
        self.folder.mkdir(parents=True, exist_ok=True)
        episodes.save(self.path(number))
        write(self.path(number).with_suffix(".json"), json.dumps(asdict(reading)))
        return reading

    @cached_property
    def _known(self) -> Episodes | Stored:
        """What the teacher said of the training prompts when the run began."""
        return self.space.episodes(self.config.seed, self.config.top_p)

    def _drift(self, number: int) -> tuple[float, int]:
        """How far the teacher has moved on training texts, nats, and how many tokens it read for that."""
        generator = np.random.default_rng([self.config.seed, number, CONTROLS])
        rows = generator.choice(len(self._known), min(CONTROLS, len(self._known)), replace=False)
        texts = self._known.select(sorted(rows.tolist()))
        found = read(texts, self.space.teacher, self.config.top_p, self.config.max_candidates, LogProb.name)
        return float(found.drift.mean()), int((texts.prompt_length + texts.length).sum())

    def _drawn(self, number: int, prompts: list[list[int]]) -> Episodes:
        config = self.config
        env = TopPTokenVectorEnv(
            len(prompts),
            teacher=self.space.teacher,
            prompts=prompts,
            top_p=config.top_p,
            max_candidates=config.max_candidates,
            max_new_tokens=config.max_new_tokens,
            reward=config.reward,
            gamma=config.gamma,
            extras=self.space.extras,
        )
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        return collect(env, len(prompts), seed=seed, teacher_walk=config.teacher_walk)


class Chooser:
    """Which prompts of a block to ask about: some by chance, the others where most may be learnt.

    "uncertainty" takes those whose replies have the highest mean entropy, "drift" the most surprising prompts, "leak"
    those of which a ridge regression on the tokens of prompt and reply foresees the most leak from earlier labels.

    Source: Settles (2009), Active learning literature survey, section 3.1, for uncertainty; own choice for the others.
    """

    def __init__(self, config: OnlineConfig) -> None:
        self.config = config
        self.owed = {"labels": 0.0, "by_chance": 0.0}  # shares of prompts and labels that no whole one was asked for
        self.leaks = Suspicion()

    def chosen(
        self,
        number: int,
        open_rows: Sequence[int],
        signals: Sequence[Mapping[str, float]],
        known: npt.NDArray[np.bool_],
    ) -> tuple[list[int], int]:
        """Places of prompts in a block, those drawn by chance first, and how many these are.

        Args:
            open_rows: places that may be asked about.
            signals:   of every prompt of the block.
            known:     (B, FEATURES) `hashed` tokens of every prompt and its reply.
        """
        count = min(self._due("labels", len(signals) * self.config.label), len(open_rows))
        by_chance = min(self._due("by_chance", count * self.config.watched), count)
        generator = np.random.default_rng([self.config.seed, number])
        drawn = sorted(generator.choice(open_rows, by_chance, replace=False).tolist()) if by_chance else []
        rest = [row for row in open_rows if row not in drawn]
        worth = self._worth(rest, signals, known)
        best = sorted(range(len(rest)), key=lambda place: -worth[place])[: count - by_chance]
        return [*drawn, *sorted(rest[place] for place in best)], by_chance

    def learn(self, known: npt.NDArray[np.bool_], leaks: Sequence[float]) -> None:
        """Take in the leaks of replies that were labelled, if choices depend on them.  # (B, FEATURES), (B,)"""
        if self.config.label_by == "leak":
            self.leaks.learn(known, np.array(leaks))

    def state(self) -> dict[str, Any]:
        """All that the next choice depends on."""
        return {"owed": dict(self.owed), "leaks": self.leaks.state() if self.leaks.count else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the one that gave this state would have."""
        self.owed = dict(state["owed"])
        if state["leaks"] is not None:
            self.leaks.restore(state["leaks"])

    def _due(self, what: str, more: float) -> int:
        self.owed[what] += more
        whole = int(self.owed[what] + 1e-9)
        self.owed[what] -= whole
        return whole

    def _worth(
        self, rows: list[int], signals: Sequence[Mapping[str, float]], known: npt.NDArray[np.bool_]
    ) -> Sequence[float]:
        if self.config.label_by == "leak":
            foreseen: list[float] = self.leaks.foreseen(known[rows]).tolist()
            return foreseen
        name = {"uncertainty": "entropy", "drift": "surprise"}[self.config.label_by]
        return [signals[row][name] for row in rows]
