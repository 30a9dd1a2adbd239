"""Agents that look ahead, on every table: fixed points, twins at γ = 0, the shuffled control, gradients, refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from agents import agent_class, make_agent
from agents.episodes import Episodes
from agents.errors import InputError
from agents.table_student import TableStudent
from agents.td import TDConfig
from envs.exact import solve
from envs.table_teacher import toy
from experiments.oracle import EPISODIC, TOLERANCE, arm, beginner, case_for, next_batch
from experiments.table_data import as_walked, build, complete_paths

LOOKING_AHEAD = ["q_learning", "soft_q", "bellman_distill", "cql", "sqil", "actor_critic", "ppo", "sac"]
DECLARING = [name for name in LOOKING_AHEAD if name != "sqil"]
ON_POLICY = ["actor_critic", "ppo"]
PLACES = [("detour", 0.5), ("second_order", 0.8)]
"""`detour` at p = .5 has two equal tokens at a set's boundary, the lower of which stays; `second_order` is order 2."""


def test_every_agent_that_looks_ahead_and_lives_here_is_listed() -> None:
    assert {name for name in EPISODIC if issubclass(agent_class(name).Config, TDConfig)} >= set(LOOKING_AHEAD)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", DECLARING)
def test_the_fixed_point_is_reached_with_ties_and_with_order_two(name: str, place: tuple[str, float]) -> None:
    faster = {"target_rate": 0.2} if name == "q_learning" else {}  # hard values pass on from target to target
    found = arm(name, place=place, updates=400, **faster)
    assert found.policy < TOLERANCE.policy and found.q < TOLERANCE.q, found


@pytest.mark.parametrize("name", DECLARING)
def test_at_gamma_0_there_is_nothing_to_learn_but_the_reward(name: str) -> None:
    """The twin: Q = log π_T, π = π_T^A for all but the χ² optimum; shuffled values change nothing."""
    case = case_for(name, 1, 0.0, "logprob")
    agent = case.learn(name, gamma=0.0, shuffle=True)
    found = case.gap(agent)
    assert found.policy < TOLERANCE.policy and found.q < TOLERANCE.q, found
    if name not in ("q_learning", "bellman_distill"):
        policy = agent.student.z.detach().softmax(-1).numpy()
        assert abs(policy - solve(case.teacher, "renormalised", top_p=case.p).policy).max() < TOLERANCE.policy


def batch_for(name: str, depth: int = 2, seed: int = 0) -> tuple[Any, Episodes]:
    """A scattered agent of this name and data of its kind."""
    case = case_for(name, depth, 0.8, "logprob")
    agent = beginner(name, case.teacher, 10, gamma=0.8)
    scatter(agent.student, seed)
    return agent, next_batch(agent, case)


def scatter(student: TableStudent, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in student.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_shuffled_values_are_drawn_by_the_agents_own_generator(name: str) -> None:
    agent, batch = batch_for(name)
    agent.config = dataclasses.replace(agent.config, shuffle=True)
    values = torch.arange(batch.states.numel()).reshape(batch.states.shape).double()
    state = agent.generator.get_state()
    first, second = agent.ahead(values, batch), agent.ahead(values, batch)
    assert not torch.equal(first, second)
    assert torch.equal(first[batch.states].sort().values, values[batch.states])
    assert torch.equal(first[~batch.states], values[~batch.states])
    agent.generator.set_state(state)
    assert torch.equal(first, agent.ahead(values, batch))


def test_shuffling_touches_chi2_alone_in_bellman_distill() -> None:
    for c, same in ((math.inf, True), (1.0, False)):
        agent, batch = batch_for("bellman_distill")
        agent.config = dataclasses.replace(agent.config, c=c)
        plain = agent.loss(batch)[0].item()
        agent.config = dataclasses.replace(agent.config, shuffle=True)
        assert (agent.loss(batch)[0].item() == pytest.approx(plain, abs=1e-9)) is same


@pytest.mark.parametrize("name", ["q_learning", "soft_q", "cql", "sqil", "actor_critic", "ppo", "sac"])
def test_a_missing_detach_is_noticed_by_the_gradient(name: str) -> None:
    """V(s') is a target: a state met only as a successor moves no value."""
    teacher = toy()
    start = [path for path in complete_paths(teacher, 1) if path.state == 1 and path.tokens != (1,)]
    still = {"leak_weight": 0.0, "gamma": 0.8, **({"hinge": 0.0} if name in ("q_learning", "soft_q") else {})}
    agent = beginner(name, teacher, 10, **still)
    batch = as_walked(agent.student, build(teacher, start, 0.8, 0.8))
    critics = getattr(agent, "critics", [agent.student])
    torch.autograd.backward(agent.loss(batch)[0])
    moved = sum(critic.v.grad.abs() for critic in critics)  # a coin gives each step to one critic
    assert (moved > 0).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("name", ON_POLICY)
def test_returns_are_targets_to_the_policy_too(name: str) -> None:
    """The critic's loss, whatever its weight, moves no logit through the log π inside the return."""
    slopes = []
    for weight in (1.0, 5.0):
        agent, batch = batch_for(name)
        agent.config = dataclasses.replace(agent.config, critic_weight=weight)
        slopes.append(torch.autograd.grad(agent.loss(batch)[0], [agent.student.z])[0])
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("name", ON_POLICY)
def test_steps_outside_the_set_teach_through_the_leak_alone(name: str) -> None:
    agent, batch = batch_for(name, depth=1)
    agent.config = dataclasses.replace(agent.config, leak_weight=0.0)
    assert batch.weights is not None
    outside = ~batch.in_set[:, 0]
    loud = dataclasses.replace(batch, weights=torch.where(outside, 100 * batch.weights, batch.weights))
    losses = [agent.loss(given)[0] for given in (batch, loud)]
    slopes = [torch.autograd.grad(loss, [agent.student.z, agent.student.v]) for loss in losses]
    torch.testing.assert_close(*slopes)


REFUSED = [
    *((name, {"gamma": 1.5}, "gamma is 1.5; it must lie in") for name in LOOKING_AHEAD),
    *(
        (name, {"alpha": 0.0}, "alpha is 0.0; it must be positive")
        for name in LOOKING_AHEAD
        if name != "bellman_distill"
    ),
    *((name, {"lam": -0.1}, "lam is -0.1; it must lie in") for name in ("soft_q", *ON_POLICY)),
    *((name, {"student_share": 0.5}, "student_share is 0.5; it must be 1") for name in ON_POLICY),
    *((name, {"teacher_mix": 0.5}, "teacher_mix is 0.5; it must be 0") for name in ON_POLICY),
    *((name, {"critic_weight": 0.0}, "critic_weight") for name in ON_POLICY),
    ("soft_q", {"lam": 0.5, "n": 2}, "excludes n = 2: set one of the two"),
    ("sqil", {"target_rate": 0.0}, "target_rate"),
    ("cql", {"conservatism": -1.0}, "conservatism"),
    ("ppo", {"epsilon": 0.0}, "epsilon"),
    ("ppo", {"value_clip": 0.0}, "value_clip"),
    ("sac", {"target_entropy": -1.0}, "target_entropy"),
    ("sac", {"min_mass": 0.0}, "min_mass"),
]


@pytest.mark.parametrize(("name", "config", "says"), REFUSED, ids=str)
def test_a_setting_out_of_range_is_named(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        agent_class(name).make_config(**config)


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_a_student_without_values_is_refused(name: str) -> None:
    class Plain(torch.nn.Linear):
        """A student that scores tokens and no states."""

    with pytest.raises(InputError, match=f"{name} learns values and a Plain has none"):
        make_agent(name, Plain(2, 2), total_updates=1)
