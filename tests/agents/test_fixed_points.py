"""Arms reach the fixed points they declare (the contract tests their defaults): tabular student, exact data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agents.gkd import DIVERGENCES
from envs.exact import solve
from envs.table_teacher import TABLES, detour, toy
from experiments.oracle import TOLERANCE, arm, declared, gap, train
from experiments.table_data import build, complete_paths, ended_paths

ARMS: list[tuple[str, dict[str, Any]]] = [
    ("kd", {"on": "set"}),
    *(("gkd", {"on": "set", "divergence": kind}) for kind in DIVERGENCES),
    ("gkd", {"divergence": "forward"}),
    ("gkd", {"divergence": "skew_forward"}),
    ("q_learning", {"double": False, "reward": "topp_logprob"}),
    ("soft_q", {"anchor": 0.0, "hinge": 0.0, "clamp": False, "huber": math.inf}),
    ("soft_q", {"gradient": "residual", "min_mass": 0.8}),
    ("soft_q", {"n": 3}),
    ("soft_q", {"lam": 0.6}),
    ("soft_q", {"lam": 1.0, "anchor": 0.0, "hinge": 0.0}),
    ("soft_q", {"alpha": 0.5, "target_rate": 1.0, "target_period": 10}),
    ("soft_q", {"reward": "topp_logprob", "alpha": 2.0, "target_rate": 1.0, "huber": 9.0}),
    ("cql", {"conservatism": 0.0}),
    ("cql", {"conservatism": 0.2, "alpha": 0.5, "target_rate": 1.0}),
    # Its errors at the optimum reach 1.1 nats, where a Huber bend at 1 would end .2 nats away.
    ("cql", {"conservatism": 5.0, "alpha": 2.0, "target_rate": 1.0}),
    ("actor_critic", {"lam": 0.0}),
    ("actor_critic", {"lam": 1.0, "alpha": 0.5, "walk_every": 1}),
    ("ppo", {"reward": "topp_logprob", "walk_every": 4}),
    ("sac", {"student_share": 0.0, "alpha": 0.5}),
    ("sac", {"student_share": 1.0, "min_mass": 0.8}),
    ("bellman_distill", {"c": 0.1}),
    ("bellman_distill", {"c": 1.0, "linear": "expected"}),
    ("bellman_distill", {"c": math.inf}),
]


@pytest.mark.parametrize(("name", "config"), ARMS, ids=lambda value: str(value))
def test_the_declared_fixed_point_is_reached(name: str, config: dict[str, Any]) -> None:
    found = arm(name, **config)
    assert found.policy < TOLERANCE.policy, found
    assert found.q < TOLERANCE.q, found


def test_every_state_of_an_order_two_teacher_is_told_apart() -> None:
    teacher = TABLES["second_order"]()
    batch = build(teacher, complete_paths(teacher, 1), 0.8, 0.8)
    agent = train("soft_q", teacher, batch, updates=400, gamma=0.8)
    found = gap(agent, teacher, 0.8, declared(agent, teacher, 0.8))
    assert found.policy < TOLERANCE.policy and found.q < TOLERANCE.q, found


def test_soft_q_and_filtered_cloning_learn_the_conditioned_teacher_and_kd_on_the_set_does_not() -> None:
    """Identity (4c), end to end, by the exact amount."""
    teacher, p = detour(), 0.7
    whole = build(teacher, ended_paths(teacher, p), p, 1.0)
    steps = build(teacher, complete_paths(teacher, 1), p, 1.0)
    agents = [train("soft_q", teacher, steps), train("bc_filtered", teacher, whole)]
    kd = train("kd", teacher, steps, on="set")
    conditioned = solve(teacher, "conditioned", top_p=p)
    for agent in agents:
        assert gap(agent, teacher, p, conditioned).policy < TOLERANCE.policy
    renormalised = solve(teacher, "renormalised", top_p=p)
    apart = float(np.abs(conditioned.policy - renormalised.policy).max())
    assert apart > 0.1
    assert gap(kd, teacher, p, conditioned).policy == pytest.approx(apart, abs=TOLERANCE.policy)


def test_without_lookahead_soft_q_is_kd_on_the_set() -> None:
    """The γ = 0 twin."""
    teacher = toy()
    agent = train("soft_q", teacher, build(teacher, complete_paths(teacher, 1), 0.8, 0.0), gamma=0.0)
    assert gap(agent, teacher, 0.8, solve(teacher, "renormalised", top_p=0.8)).policy < TOLERANCE.policy


def test_bellman_distill_leaves_the_teacher_at_small_c() -> None:
    """(5): its own optimum at finite c is not the teacher, so the oracle must not be."""
    teacher = toy()
    agent = train("bellman_distill", teacher, build(teacher, complete_paths(teacher, 1), 0.8, 0.8), gamma=0.8, c=0.1)
    assert gap(agent, teacher, 0.8, solve(teacher, "renormalised", top_p=0.8)).policy > 0.1
