"""An agent that learns a table teacher while one watches, beside the exact solution of what it declares."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents import agent_class, make_agent
from agents.base import Agent
from agents.objectives import levelled_q
from agents.scores import on_candidates
from agents.table_student import TableStudent
from envs.errors import InputError
from envs.exact import Solution
from envs.table_teacher import TableTeacher
from experiments.explore.views import Pupil
from experiments.explore.walk import Settings
from experiments.oracle import EPISODIC, Case, Gap, case_of, conditions, declared, gap, looks_ahead, next_batch
from experiments.table_data import candidates

UPDATES, AT_ONCE = 250, 5


@cache
def teachable() -> tuple[str, ...]:
    """Agents that can be watched: those with a fixed point that every table has."""
    return tuple(name for name in EPISODIC if not conditions(name) and _point(name) is not None)


def _point(name: str) -> Any:
    return make_agent(name, TableStudent(2, 1), total_updates=1).fixed_point


@dataclass
class Lesson:
    """An agent with a fresh table, the exact data it learns from, and how far it is from its fixed point."""

    name: str
    agent: Agent[Any]
    case: Case
    solution: Solution  # what the agent declares
    settings: Settings
    gaps: list[tuple[int, Gap]] = field(default_factory=list)  # after so many updates
    _batch: Any = None

    @classmethod
    def begin(cls, name: str, teacher: TableTeacher, settings: Settings, updates: int = UPDATES) -> Lesson:
        """A lesson of an agent in the MDP of these settings.

        Raises: InputError: an agent that cannot be watched, or values that do not exist there.
        """
        if name not in teachable():
            raise InputError(f"agent {name!r} cannot be watched here; take one of {', '.join(teachable())}")
        known = agent_class(name).Config.__dataclass_fields__
        given = {"gamma": settings.gamma, "alpha": settings.alpha}
        config = {key: value for key, value in given.items() if key in known}
        if looks_ahead(name):
            config["gamma"] = settings.gamma
        case = case_of(name, config, (teacher.name, settings.top_p))
        torch.manual_seed(0)
        student = TableStudent(teacher.vocab_size, teacher.order)
        agent = make_agent(name, student, seed=0, total_updates=updates, **{"lr": 0.3, **config})
        solution = declared(agent, case.teacher, case.p, np.ones(case.teacher.states))
        lesson = cls(name, agent, case, solution, settings)
        lesson._measure()
        return lesson

    @property
    def over(self) -> bool:
        """Whether all updates were made."""
        return self.agent.updates >= self.agent.total_updates

    @property
    def pupil(self) -> Pupil:
        """The student as the page shows it beside others."""
        return Pupil(f"{self.name}, learning", self.agent.student)

    def learn(self, updates: int = AT_ONCE) -> None:
        """Some updates on the exact data; a student walks anew as often as its agent asks."""
        for _ in range(min(updates, self.agent.total_updates - self.agent.updates)):
            walks = self.agent.walks
            if self._batch is None or (walks is not None and self.agent.updates % walks.every == 0):
                self._batch = next_batch(self.agent, self.case)
            self.agent.update(self._batch)
        self._measure()

    def learned(self) -> NDArray[np.float64]:
        """v(s) + α log π_S^A(a|s) of the student, or of its agent's critic; NaN outside the sets.  # (S, V)"""
        point = self.agent.fixed_point
        assert point is not None
        critic = getattr(self.agent, "critics", [self.agent.student])[0]
        with torch.no_grad():
            sets = candidates(self.case.teacher, self.case.p)
            log_policy, _ = on_candidates(critic.z, sets.ids, sets.mask)
            q = levelled_q(critic.v, log_policy, point.alpha)
        found = np.full(critic.z.shape, np.nan)
        rows = np.arange(len(found))[:, None].repeat(sets.ids.shape[1], 1)
        mask = sets.mask.numpy()
        found[rows[mask], sets.ids.numpy()[mask]] = q.numpy()[mask]
        return found

    def _measure(self) -> None:
        self.gaps.append((self.agent.updates, gap(self.agent, self.case.teacher, self.case.p, self.solution)))
