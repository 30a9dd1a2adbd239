"""A tabular student's own walk, exactly: every path, weighted by the student as it is; and its values, by algebra."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents import make_agent
from agents.episodes import Episodes
from agents.table_student import TableStudent
from agents.value_tilt import ValueTilt
from envs.table_teacher import TABLES, TableTeacher
from experiments.table_data import as_walked, build, candidates, complete_paths

Array = NDArray[np.float64]
DEPTH = 2


@torch.no_grad()
def renormalised(student: TableStudent, teacher: TableTeacher, p: float) -> None:
    """Make the student what `kd` on the set would: a start that has stopped improving."""
    inside = candidates(teacher, p)
    student.z.fill_(-9)
    for s in range(teacher.states):
        own = inside.ids[s][inside.mask[s]]
        student.z[s, own] = torch.from_numpy(teacher.table[s, own.numpy()])


@dataclasses.dataclass(frozen=True)
class Exact:
    """What a tabular student's own future costs, and the teacher tilted by it; float64, from the tables alone."""

    costs: Array  # (S,)
    mean: float
    values: Array  # (S,)
    policy: Array  # (S, V) the tilted teacher on its sets


def exact(z: Array, teacher: TableTeacher, p: float, gamma: float, *, clip: float = 2.0, leaves: int = 4) -> Exact:
    """V = (I − γP)⁻¹(ρ − c) for softmax(z), ρ over walks of DEPTH tokens from every state; π ∝ π_T exp(γΔ)."""
    policy = np.exp(z - z.max(1, keepdims=True))
    policy /= policy.sum(1, keepdims=True)
    inside = candidates(teacher, p)
    after, states = teacher.successors(), teacher.states
    costs, moves = np.zeros(states), np.zeros((states, states))
    for s in range(states):
        own = inside.ids[s][inside.mask[s]].numpy()
        mass = policy[s, own].sum()
        ours, theirs = policy[s, own] / mass, teacher.probabilities[s, own]
        costs[s] = (ours * np.log(ours / (theirs / theirs.sum()))).sum() - np.log(theirs.sum()) - np.log(mass)
        for token in range(1, teacher.vocab_size):
            moves[s, after[s, token]] += policy[s, token]
    visits, arrived = np.zeros(states), np.ones(states)
    for _ in range(DEPTH):
        visits, arrived = visits + arrived, arrived @ moves
    mean = float(visits @ costs / visits.sum())
    values = np.linalg.solve(np.eye(states) - gamma * moves, mean - costs)
    tilted = np.zeros_like(policy)
    for s in range(states):
        own = inside.ids[s][inside.mask[s]].numpy()
        weight = teacher.probabilities[s, own].copy()
        if len(own) > 1:
            looked = own[:leaves]
            ahead = np.where(looked == 0, 0.0, values[after[s, looked]])
            share = teacher.probabilities[s, looked] / teacher.probabilities[s, looked].sum()
            better = np.where(looked == 0, 0.0, ahead - share @ ahead).clip(-clip, clip)
            weight[:leaves] *= np.exp(gamma * better)
        tilted[s, own] = weight / weight.sum()
    return Exact(costs, mean, values, tilted)


TABLE_CRITIC: dict[str, Any] = {
    "critic_width": 0,
    "critic_lr": 0.1,
    "critic_rate": 0.2,
    "critic_alone": 0,
    "average_rate": 0.5,
    "huber": 9.0,
}


def learn(
    name: str = "second_order",
    p: float = 0.8,
    gamma: float = 0.8,
    *,
    updates: int = 400,
    stop: int | None = None,
    start: Callable[[TableStudent, TableTeacher, float], None] | None = None,
    mutation: Callable[[pytest.MonkeyPatch], None] | None = None,
    mistakes: dict[str, bool] | None = None,
    **config: Any,
) -> tuple[ValueTilt, TableTeacher]:
    """`value_tilt` on exact data: teacher's and student's walks, half and half."""
    teacher = TABLES[name]()
    student = TableStudent(teacher.vocab_size, teacher.order)
    if start is not None:
        start(student, teacher, p)
    batch, anyones = (
        build(teacher, complete_paths(teacher, DEPTH, anyones=own), p, gamma, **(mistakes or {}))
        for own in (False, True)
    )
    settings = {**TABLE_CRITIC, "lr": 0.1, "gamma": gamma, **config}
    agent = make_agent("value_tilt", student, seed=0, total_updates=updates, **settings)
    assert isinstance(agent, ValueTilt)
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            mutation(patch)
        for _ in range(updates if stop is None else stop):
            agent.update(Episodes.concatenate([batch, as_walked(student, anyones)]))
    return agent, teacher


@torch.no_grad()
def gaps(
    agent: ValueTilt, teacher: TableTeacher, p: float = 0.8, gamma: float = 0.8, **more: Any
) -> tuple[float, float]:
    """Largest distance of the policy from the tilt by its own exact values, and of the critic from those (nats)."""
    assert isinstance(agent.student, TableStudent)
    z = agent.student.z
    wanted = exact(z.numpy(), teacher, p, gamma, **more)
    values = agent.slow_critic(torch.eye(teacher.states)).numpy()
    return (
        float(np.abs(z.softmax(-1).numpy() - wanted.policy).max()),
        float(np.abs(values - wanted.values).max()),
    )
