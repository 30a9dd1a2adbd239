"""Train an agent with a tabular student on exact data, and measure how far it is from the fixed point it declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from agents import REGISTRY, learner_class, make_agent
from agents.base import Agent, FixedPoint
from agents.episodes import Episodes
from agents.objectives import levelled_q
from agents.student import on_candidates
from agents.table_student import TableStudent
from envs.exact import Solution, solve
from envs.table_teacher import TableTeacher, detour, toy
from tests.agents.table_data import build, candidates, complete_paths, ended_paths

EPISODIC = [name for name in REGISTRY if issubclass(learner_class(name), Agent)]
"""Registered agents that learn from episodes; the others own their loop."""


@dataclass(frozen=True)
class Gap:
    """Largest distance over all states and tokens."""

    policy: float  # probability, of the full softmax: the leak counts
    q: float  # nats, on the candidates; 0 for agents that declare no values


TOLERANCE = Gap(policy=0.003, q=0.01)
"""What every agent reaches within 250 updates of a fresh table."""


def train(name: str, teacher: TableTeacher, batch: Episodes, *, updates: int = 250, **config: Any) -> Agent[Any]:
    """`updates` full-batch updates of a fresh tabular student."""
    torch.manual_seed(0)
    student = TableStudent(teacher.vocab_size, teacher.order)
    agent = make_agent(name, student, seed=0, total_updates=updates, lr=0.3, **config)
    for _ in range(updates):
        agent.update(batch)
    return agent


def declared(agent: Agent[Any], teacher: TableTeacher, p: float, visits: Any = None) -> Solution:
    """The solution of what the agent declares."""
    point = agent.fixed_point
    assert isinstance(point, FixedPoint)
    rest = {"gamma": point.gamma, "alpha": point.alpha, "c": point.c, "reward": point.reward}
    return solve(teacher, point.kind, top_p=p, visits=visits, **rest)


def gap(agent: Agent[Any], teacher: TableTeacher, p: float, solution: Solution) -> Gap:
    """Distance of the student from the solution; hard Q learners are compared by Q alone."""
    student, point = agent.student, agent.fixed_point
    assert isinstance(student, TableStudent) and point is not None
    with torch.no_grad():
        policy = student.z.softmax(-1).numpy()
        sets = candidates(teacher, p)
        log_policy, _ = on_candidates(student.z, sets.ids, sets.mask)
        q = levelled_q(student.v, log_policy, point.alpha)
        own = torch.full_like(student.z, torch.nan)
        own[torch.arange(len(own))[:, None].expand_as(sets.ids)[sets.mask], sets.ids[sets.mask]] = q[sets.mask]
    wrong = np.nanmax(np.abs(own.numpy() - solution.q)) if point.kind in ("hard", "soft", "chi2") else 0.0
    off = 0.0 if point.kind == "hard" else np.nanmax(np.abs(policy - solution.policy))
    return Gap(policy=float(off), q=float(wrong))


@dataclass(frozen=True)
class Case:
    """Exact data of one teacher for one kind of agent, at p and γ = .8 (.7 and .8 for `detour`)."""

    teacher: TableTeacher
    p: float
    batch: Episodes


@cache
def case_for(name: str, depth: int, gamma: float, reward: str, **mistakes: bool) -> Case:
    """Whole texts of `detour` for `bc_filtered`, else every path of `depth` tokens of `toy`."""
    teacher, p = (detour(), 0.7) if name == "bc_filtered" else (toy(), 0.8)
    paths = ended_paths(teacher, p) if name == "bc_filtered" else complete_paths(teacher, depth)
    return Case(teacher, p, build(teacher, paths, p, gamma, reward=reward, **mistakes))


def arm(
    name: str,
    mutation: Callable[[pytest.MonkeyPatch], None] | None = None,
    mistakes: dict[str, bool] | None = None,
    **config: Any,
) -> Gap:
    """Gap of one arm at γ = .8 to what it declares; under a mutation of the code or mistakes in the data."""
    if name in ("q_learning", "soft_q", "bellman_distill"):
        config = {"gamma": 0.8, **config}
    case = case_for(name, config.get("n", 1), 0.8, config.get("reward", "logprob"), **(mistakes or {}))
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            mutation(patch)
        agent = train(name, case.teacher, case.batch, **config)
    visits = np.ones(case.teacher.states)
    return gap(agent, case.teacher, case.p, declared(agent, case.teacher, case.p, visits))
