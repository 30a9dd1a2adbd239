"""The student that learns on: its agent, what it learns from, the last student that passed, and the way back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents import agent_class
from agents.base import Agent
from agents.episodes import Episodes
from agents.replay import Replay
from agents.student import Student
from envs.errors import InputError
from experiments import provenance
from experiments.arms import agent_of
from experiments.cell import build_agent
from experiments.labels import Labels
from experiments.online.config import OnlineConfig
from experiments.online.desk import Desk
from experiments.seen import remember
from experiments.workspace import Cell, Workspace

ENDLESS = 2**31
"""Updates of a schedule whose end is never reached: after the warm-up the rate stays."""
PASSED = "passed"
Portion = tuple[int, int]
"""A block that has labels, and how many."""


class Learner:
    """A student and its agent.

    `adopted` labels were learnt from by the student that passed; `fresh` ones since then; `waiting` ones came while the
    updates were held; `quarantined` ones made a student fail, and are never learnt from again. All stay on disk.

    Raises: InputError: an agent that walks by itself, or a student that does not fit the run.
    """

    def __init__(self, space: Workspace, config: OnlineConfig, desk: Desk) -> None:
        self.space, self.config, self.desk = space, config, desk
        self.student: Student = space.student(config.seed)
        space.check_student(self.student)
        settings, kind = space.settings(config.agent), agent_class(agent_of(config.agent))
        anchor = space.episodes(config.seed, config.top_p)
        if "min_mass" in {field.name for field in fields(kind.Config)}:
            settings = {"min_mass": None, **settings}  # what the sets of a stream retain is not known beforehand
        cell = Cell(config.agent, config.seed, config.top_p)
        agent = build_agent(replace(config, updates=ENDLESS), cell, self.student, settings)
        assert isinstance(agent, Agent)
        if kind.data == "student" or agent.walks is not None:
            raise InputError(
                f"{config.agent} learns from walks of its own, and a stream brings labels; take one that learns from "
                "given episodes, as soft_q or bellman_distill, or student_share = 0"
            )
        if getattr(agent.config, "is_staged", False):
            raise InputError(f"{config.agent}: a schedule ends with its run, and a stream has no end; leave it out")
        self.agent, self.labels = agent, Labels(space.teacher, agent.needs)
        self.gamma = settings.get("gamma", config.gamma)
        self.anchor = Replay(len(anchor), seed=config.seed)
        self.anchor.add(anchor.discounted(self.gamma))
        self.adopted: list[Portion] = []
        self.fresh: list[Portion] = []
        self.waiting: list[Portion] = []
        self.quarantined: list[Portion] = []
        self.asked = 0  # tokens that the teacher read for what the agent needs beside episodes
        self.tried = 0  # updates when the gate was last tried
        self.passed = 0  # number of the student that passed last; 0: the one to begin with
        self._stream = self._replay([])

    @property
    def updates(self) -> int:
        """Of the student as it is."""
        return self.agent.updates

    def take(self, number: int, count: int) -> None:
        """Learn from a block's labels from now on."""
        self.fresh.append((number, count))
        self._stream.add(self._episodes(number))

    def learn(self, updates: int) -> dict[str, float]:
        """So many updates; the figures of the last one.

        Raises: DivergedError: as `Agent.update`; the student is as it was before that.
        """
        figures: dict[str, float] = {}
        for _ in range(updates):
            batch, asked = self.labels.attach(self._batch())
            self.asked += asked
            figures = self.agent.update(batch.to(self.space.device))
        return figures

    def adopt(self, number: int) -> None:
        """Call the student as it is the last that passed."""
        self.adopted = _newest([*self.adopted, *self.fresh], self.config.memory)
        self.fresh, self.passed, self.tried = [], number, self.updates
        self.agent.save(self._folder(number))

    def go_back(self, *, quarantine: bool) -> None:
        """Be the last student that passed; what has been learnt from since then waits, or is put away for good."""
        (self.quarantined if quarantine else self.waiting).extend(self.fresh)
        self.fresh = []
        self.agent.load(self._folder(self.passed))
        self.tried = self.updates
        self._stream = self._replay(self.adopted)

    def release(self) -> int:
        """Take what waits as fresh; how many labels these are."""
        released, self.waiting = self.waiting, []
        for number, count in released:
            self.take(number, count)
        return sum(count for _, count in released)

    def export(self, directory: Path, learnt: Iterable[str], figures: dict[str, float]) -> None:
        """Write the student as it is to an ordinary model directory, which takes its place once it is whole.

        Args:
            learnt: hashes of prompts of the stream that it has learnt from.
            figures: for its card.
        """
        space, new, old = self.space, directory.with_name("student.new"), directory.with_name("student.old")
        shutil.rmtree(new, ignore_errors=True)
        card = {"teacher": self.config.teacher, "agent": self.config.agent, "updates": self.updates}
        card |= {f"validation {name}": value for name, value in figures.items()} | {"made with": provenance.line()}
        self.student.save(new, card)
        remember(new, space.start_directory, space.splits.train, space.splits.validation, learnt)
        shutil.rmtree(old, ignore_errors=True)
        if directory.is_dir():
            os.rename(directory, old)
        os.rename(new, directory)
        shutil.rmtree(old, ignore_errors=True)

    def export_passed(self, directory: Path, learnt: Iterable[str], checkpoint: Path | None) -> None:
        """See that the last student that passed is there, as `export` writes it: a kill may have come between.

        Args:
            checkpoint: of the student as it is; None: it is the last that passed.
        """
        old = directory.with_name("student.old")
        if not directory.is_dir() and old.is_dir():
            os.rename(old, directory)
        if directory.is_dir():
            return
        if checkpoint is not None:
            self.agent.load(self._folder(self.passed))
        self.export(directory, learnt, {})
        if checkpoint is not None:
            self.agent.load(checkpoint)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the student as it is, and return the rest of what the next update depends on."""
        self.agent.save(directory)
        return {
            **{name: list(getattr(self, name)) for name in ("adopted", "fresh", "waiting", "quarantined")},
            "asked": self.asked,
            "tried": self.tried,
            "passed": self.passed,
            "replays": [self.anchor.state_dict(), self._stream.state_dict()],
        }

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        """Go on as the learner that was saved would have."""
        self.agent.load(directory)
        for name in ("adopted", "fresh", "waiting", "quarantined"):
            setattr(self, name, [tuple(pair) for pair in state[name]])
        self.asked, self.tried, self.passed = state["asked"], state["tried"], state["passed"]
        self._stream = self._replay([*self.adopted, *self.fresh])
        for replay, own in zip((self.anchor, self._stream), state["replays"], strict=True):
            replay.load_state_dict(own)

    def forget_students(self) -> None:
        """Remove those that passed before the last one; to be called once a checkpoint needs them no more."""
        for folder in (self.space.out / PASSED).glob("*"):
            if folder != self._folder(self.passed):
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, number: int) -> Path:
        return self.space.out / PASSED / f"{number:08d}"

    def _episodes(self, number: int) -> Episodes:
        return self.desk.episodes(number).discounted(self.gamma)

    def _replay(self, portions: list[Portion]) -> Replay:
        """Of these labels; its passes are seeded by the last student that passed."""
        seed = int(np.random.SeedSequence([self.config.seed, self.passed]).generate_state(1)[0])
        replay = Replay(self.config.memory, seed=seed)
        for number, _ in portions:
            replay.add(self._episodes(number))
        return replay

    def _batch(self) -> Episodes:
        """Of the stream and of the anchor; of the anchor alone as long as the stream has brought nothing."""
        size = self.config.batch_size
        own = min(size, max(1, round(size * (1 - self.config.anchor)))) if len(self._stream) else 0
        parts = [replay.sample(count) for replay, count in ((self._stream, own), (self.anchor, size - own)) if count]
        return Episodes.concatenate(parts)


def _newest(portions: list[Portion], labels: int) -> list[Portion]:
    """The newest portions that have at least so many labels together."""
    kept, count = list[Portion](), 0
    for portion in reversed(portions):
        if count >= labels:
            break
        kept.append(portion)
        count += portion[1]
    return kept[::-1]
