"""One cell whose agent owns its loop: it walks the environment on the training prompts, for the price of the others.

Its budget is as many environment steps as the seed's shared teacher episodes have tokens, or as a budget of teacher
tokens has: every arm pays for the same number of teacher labels (`AGENT.steps=N` sets another, within such a budget).
It starts from the same student, is measured on the same prompts as often, and is exported the same way. `updates` of
its curve and its row are the share of the budget that is spent, in units of the run's updates, so that curves share an
axis; `gradient_steps` in its result counts its own.

A budget of seconds ends it earlier, between two rollouts. A stopped cell goes on from its last checkpoint with what is
left of the budget. That is not bit-identical to a cell that was never stopped: the episodes under way begin anew, with
other random numbers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from agents.loop import LoopAgent
from agents.student import Student
from envs.errors import InputError
from experiments import budget
from experiments.cell import build_agent, check_settings, last_checkpoint, new_checkpoint
from experiments.evaluate import measure
from experiments.store.source import tokens_of
from experiments.workspace import Cell, Report, Workspace

STATE = "trainer.pt"


class _Spent(Exception):
    """The wall-clock budget is over."""


class LoopTrainer:
    """Watches an agent's own loop: measures, checkpoints, shows where it is.

    Raises: InputError: settings that cannot be used, or others than those that the cell was begun with.
    """

    def __init__(self, space: Workspace, cell: Cell, settings: dict[str, Any], folder: Path) -> None:
        self.space, self.cell, self.settings, self.folder = space, cell, settings, folder
        agent = build_agent(space.config, cell, space.student(cell.seed), settings)
        assert isinstance(agent, LoopAgent)
        self.agent = agent
        if space.config.budget == "teacher_tokens":
            size = int(space.config.budget_size)
            self.budget = min(agent.config.steps or size, size)
        else:
            self.budget = agent.config.steps or tokens_of(space.episodes(cell.seed, cell.top_p))
        self.record: dict[str, Any] = {"seconds": 0.0, "budget": budget.begun(space.config, 0.0), "curve": []}
        self._restore()

    @property
    def student(self) -> Student:
        """The student as it is now."""
        return self.agent.student

    @property
    def updates(self) -> int:
        """How much of the budget is spent, in units of the run's updates."""
        steps = self.agent.steps * self.space.config.updates // self.budget
        return max(steps, int(self.spent * self.space.config.updates))

    @property
    def spent(self) -> float:
        """Share of a budget of seconds."""
        found = self.record["budget"]
        return budget.share(found, self.record["seconds"]) if found["of"] == "seconds" else 0.0

    def run(self, report: Report) -> dict[str, Any]:
        """Learn until the budget is spent; the record of costs and of the validation curve."""
        from torch.utils.tensorboard import SummaryWriter

        logs, config, agent = self.space.out / "tensorboard" / self.cell.name, self.space.config, self.agent
        self._shown, self._saved = 0, time.monotonic()
        with SummaryWriter(str(logs)) as writer:
            if not self.record["curve"]:
                self._validate(writer, report, 0)
            self._since = time.monotonic()

            def watch() -> None:
                self.record["seconds"] += time.monotonic() - self._since
                self._validate(writer, report, self.updates)
                report(f"return {agent.episode_return:.1f}", self.updates - self._shown)
                self._shown = self.updates
                if agent.steps and time.monotonic() - self._saved >= config.checkpoint_seconds:
                    self._checkpoint()
                    self._saved = time.monotonic()
                self._since = time.monotonic()
                if self.spent >= 1:
                    raise _Spent

            env = self._environment()
            try:
                agent.learn(env, self.budget, watch=watch, logs=logs)
            except _Spent:
                pass
            finally:
                env.close()
            self.record["seconds"] += time.monotonic() - self._since
            self._validate(writer, report, config.updates)
        report("", config.updates - self._shown)
        self._checkpoint()
        taken = {"tokens": agent.steps, "teacher_tokens": agent.steps, "gradient_steps": agent.gradient_steps}
        return {"updates": config.updates, **self.record, **taken}

    def _environment(self) -> Any:
        from envs.sb3 import TopPVecEnv

        config, space = self.space.config, self.space
        return TopPVecEnv(
            min(self.agent.config.num_envs, self.budget),
            teacher=space.teacher,
            prompts=space.splits.train,
            top_p=self.cell.top_p,
            max_candidates=config.max_candidates,
            max_new_tokens=config.max_new_tokens,
            reward=config.reward,
            gamma=config.gamma,
            extras=space.extras,
        )

    def _validate(self, writer: Any, report: Report, updates: int) -> None:
        """Measure once, for every point of the curve that has become due."""
        config, curve = self.space.config, self.record["curve"]
        points = [*range(0, config.updates, config.eval_every), config.updates][len(curve) :]
        due = [point for point in points if point <= updates]
        if not due:
            return
        report("measuring on the validation prompts", 0)
        exam, rule = self.space.exam("validation"), self.space.rule(self.cell.top_p)
        figures = measure(self.student.model, exam, self.space.teacher, rule, quick=True)
        for point in due:
            curve.append({"updates": point, "seconds": self.record["seconds"], **figures})
            for name, value in figures.items():
                writer.add_scalar(f"validation/{name}", value, point)
        writer.flush()

    def _checkpoint(self) -> None:
        with new_checkpoint(self.folder, self.agent.steps) as partial:
            if partial is not None:
                self.agent.save(partial)
                state = {"record": self.record, "settings": self.settings, "budget": self.budget}
                torch.save(state, partial / STATE)

    def _restore(self) -> None:
        found = last_checkpoint(self.folder)
        if found is None:
            return
        state = torch.load(found / STATE, weights_only=True)
        check_settings(self.folder, state["settings"], self.settings)
        if state["budget"] != self.budget:
            raise InputError(f"{self.folder} was begun with {state['budget']} steps, now they are {self.budget}")
        self.agent.load(found)
        self.record |= state["record"]
