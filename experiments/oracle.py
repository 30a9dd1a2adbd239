"""Train an agent with a tabular student on exact data, and measure how far it is from the fixed point it declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from agents import REGISTRY, agent_class, learner_class, make_agent
from agents.base import Agent, FixedPoint
from agents.episodes import Episodes
from agents.objectives import levelled_q
from agents.scores import on_candidates
from agents.table_student import TableStudent
from envs.exact import Solution, solve
from envs.table_teacher import TABLES, TableTeacher, detour
from experiments.table_data import as_walked, build, candidates, complete_paths, ended_paths, mixed

if TYPE_CHECKING:
    import pytest

EPISODIC = [name for name in REGISTRY if issubclass(learner_class(name), Agent)]
"""Registered agents that learn from episodes; the others own their loop."""


@dataclass(frozen=True)
class Gap:
    """Largest distance over all states and tokens."""

    policy: float  # probability, of the full softmax: the leak counts
    q: float  # nats, on the candidates; 0 for agents that declare no values


VALUED = ("hard", "soft", "conservative", "chi2")
"""Fixed points of values as well as of a policy."""
TOLERANCE = Gap(policy=0.003, q=0.01)
"""What every agent reaches within 250 updates of a fresh table."""


def train(name: str, teacher: TableTeacher, batch: Episodes, *, updates: int = 250, **config: Any) -> Agent[Any]:
    """`updates` full-batch updates of a fresh tabular student on these episodes."""
    agent = beginner(name, teacher, updates, **config)
    for _ in range(updates):
        agent.update(batch)
    return agent


def beginner(name: str, teacher: TableTeacher, updates: int, **config: Any) -> Agent[Any]:
    """An agent around a fresh tabular student."""
    torch.manual_seed(0)
    student = TableStudent(teacher.vocab_size, teacher.order)
    return make_agent(name, student, seed=0, total_updates=updates, **{"lr": 0.3, **config})


def declared(agent: Agent[Any], teacher: TableTeacher, p: float, visits: Any = None) -> Solution:
    """The solution of what the agent declares."""
    point = agent.fixed_point
    assert isinstance(point, FixedPoint)
    rest: dict[str, Any] = {name: value for name, value in dataclasses.asdict(point).items() if name != "kind"}
    return solve(teacher, point.kind, top_p=p, visits=visits, **rest)


def gap(agent: Agent[Any], teacher: TableTeacher, p: float, solution: Solution, point: FixedPoint | None = None) -> Gap:
    """Distance of the student from the solution of its own fixed point, or `point`; a hard one by Q alone."""
    student, point = agent.student, point or agent.fixed_point
    critic = getattr(agent, "critics", [student])[0]  # an actor's critic, where it has one of its own
    assert isinstance(student, TableStudent) and isinstance(critic, TableStudent) and point is not None
    with torch.no_grad():
        policy = student.z.softmax(-1).numpy()
        sets = candidates(teacher, p)
        log_policy, _ = on_candidates(critic.z, sets.ids, sets.mask)
        q = levelled_q(critic.v, log_policy, point.alpha)
        own = torch.full_like(student.z, torch.nan)
        own[torch.arange(len(own))[:, None].expand_as(sets.ids)[sets.mask], sets.ids[sets.mask]] = q[sets.mask]
    wrong = np.nanmax(np.abs(own.numpy() - solution.q)) if point.kind in VALUED else 0.0
    off = 0.0 if point.kind == "hard" else np.nanmax(np.abs(policy - solution.policy))
    return Gap(policy=float(off), q=float(wrong))


Spoil: TypeAlias = Callable[[Episodes], Episodes]


@dataclass(frozen=True)
class Case:
    """Exact data of one teacher for one kind of agent."""

    teacher: TableTeacher
    p: float
    batch: Episodes  # the teacher's
    anyones: Episodes  # every path that a student may take

    def learn(self, name: str, *, updates: int = 250, spoil: Spoil | None = None, **config: Any) -> Agent[Any]:
        """A fresh agent after so many updates on it; `spoil` is a mistake planted in every batch."""
        agent = beginner(name, self.teacher, updates, **config)
        for update in range(updates):
            if update % (agent.walks.every if agent.walks else updates) == 0:
                batch = next_batch(agent, self)
                batch = batch if spoil is None else spoil(batch)
            agent.update(batch)
        return agent

    def gap(self, agent: Agent[Any]) -> Gap:
        """Distance of an agent that met every state from what it declares."""
        point = declared(agent, self.teacher, self.p, np.ones(self.teacher.states))
        return gap(agent, self.teacher, self.p, point)


@cache
def case_for(
    name: str, depth: int, gamma: float, reward: str, table: str = "toy", p: float = 0.8, **mistakes: bool
) -> Case:
    """Every path of `depth` tokens of a table; whole texts of `detour` at p = .7 where they are conditioned on."""
    if conditions(name):
        teacher, p = detour(), 0.7
        paths = ended_paths(teacher, p)
    else:
        teacher = TABLES[table]()
        paths = complete_paths(teacher, depth)
    options: dict[str, Any] = {"reward": reward, **mistakes}
    open_paths = complete_paths(teacher, depth, anyones=True)
    return Case(teacher, p, build(teacher, paths, p, gamma, **options), build(teacher, open_paths, p, gamma, **options))


def conditions(name: str) -> bool:
    """Whether an agent learns the teacher conditioned on staying inside, which whole texts alone can show."""
    point = make_agent(name, TableStudent(2, 1), total_updates=1).fixed_point
    return point is not None and point.kind == "conditioned"


def looks_ahead(name: str) -> bool:
    """Whether an agent has a γ, which its episodes must be built with."""
    return "gamma" in agent_class(name).Config.__dataclass_fields__


def depth_of(name: str, config: dict[str, Any]) -> int:
    """Tokens of a path: two where returns may be longer than a step, or no fixed point says that one is enough."""
    made = make_agent(name, TableStudent(2, 1), total_updates=1, **config)
    longer = getattr(made.config, "lam", None) is not None or made.fixed_point is None
    return max(getattr(made.config, "n", 1), 2 if longer else 1)


def case_of(name: str, config: dict[str, Any], place: tuple[str, float] = ("toy", 0.8), **mistakes: bool) -> Case:
    """What an agent with these settings learns from, at a table and p."""
    gamma, reward = config.get("gamma", 0.8), config.get("reward", "logprob")
    return case_for(name, depth_of(name, config), gamma, reward, *place, **mistakes)


def next_batch(agent: Agent[Any], case: Case) -> Episodes:
    """What an exact run would hand the agent now: the teacher's paths, the student's under its weights now, or both."""
    walks = agent.walks
    if walks is None or agent.data == "teacher":
        return case.batch
    own = agent.receive(as_walked(agent.student, case.anyones, agent.updates))
    return own if walks.share == 1 else mixed(case.batch, own, walks.share)


def arm(
    name: str,
    mutation: Callable[[pytest.MonkeyPatch], None] | None = None,
    mistakes: dict[str, bool] | None = None,
    spoil: Spoil | None = None,
    place: tuple[str, float] = ("toy", 0.8),
    updates: int = 250,
    **config: Any,
) -> Gap:
    """Gap of one arm at γ = .8 to what it declares, at a table and p; under mistakes in the code or in the data."""
    import pytest

    if looks_ahead(name):
        config = {"gamma": 0.8, **config}
    case = case_of(name, config, place, **(mistakes or {}))
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            mutation(patch)
        agent = case.learn(name, updates=updates, spoil=spoil, **config)
    return case.gap(agent)
