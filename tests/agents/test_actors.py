"""What is particular to `sqil`, `ppo` and `sac`: identities, old policies, clipping, twins, temperatures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from agents.episodes import Episodes
from agents.objectives import at_slots, levelled_q
from agents.table_student import TableStudent
from envs.exact import solve
from envs.table_teacher import TableTeacher
from experiments.oracle import TOLERANCE, arm, beginner, case_for, next_batch
from experiments.table_data import Path, as_walked, build, complete_paths, mixed
from tests.agents.test_td_agents import batch_for, scatter


def two_states() -> TableTeacher:
    return TableTeacher(np.array([[0.3, 0.7], [0.6, 0.4]]), "two_states")


def test_the_loss_of_sqil_by_hand() -> None:
    """Three tokens, two of them candidates, a uniform student, V = 0. The teacher takes one: its error is −(1 + log 2),
    beyond the Huber width; the student takes the other: −log 2. Both leave 1/3 outside."""
    teacher = TableTeacher(np.array([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]))
    one, other = (build(teacher, [Path(1, (token,), 1.0)], 0.8, 0.5) for token in (0, 1))
    other = dataclasses.replace(other, from_teacher=torch.tensor([False]))
    agent = beginner("sqil", teacher, 1, gamma=0.5)
    wanted = ((1 + math.log(2) - 0.5) + 0.5 * math.log(2) ** 2) / 2 + math.log(1.5)
    batch = Episodes.concatenate([one, other])
    assert agent.loss(batch)[0].item() == pytest.approx(wanted, abs=1e-6)
    unpaid = dataclasses.replace(batch, rewards=torch.full_like(batch.rewards, 7.0))
    assert torch.equal(agent.loss(batch)[0], agent.loss(unpaid)[0])  # the env's rewards are not read


@pytest.mark.parametrize("config", [{"gamma": 0.8}, {"gamma": 0.0}, {"gamma": 0.8, "alpha": 0.5}], ids=str)
def test_on_a_fixed_mixture_sqil_is_soft_q_learning_on_the_teachers_share(config: dict[str, Any]) -> None:
    """Two states enumerated; beside the teacher a uniform walker, so r̄(s, a) = π_T / (π_T + ½). At γ = 0 it is Q."""
    teacher, gamma = two_states(), config["gamma"]
    paths = (complete_paths(teacher, 1), complete_paths(teacher, 1, anyones=True))
    own, anyones = (build(teacher, each, 1.0, gamma) for each in paths)
    batch = mixed(own, as_walked(TableStudent(2, 1), anyones), 0.5)
    agent = beginner("sqil", teacher, 400, target_rate=0.2, **config)
    for _ in range(400):
        agent.update(batch)
    share = teacher.probabilities / (teacher.probabilities + 0.5)
    alpha = config.get("alpha", 1.0)
    wanted = solve(teacher, "soft", gamma=gamma, alpha=alpha, reward=share)
    with torch.no_grad():
        found = levelled_q(agent.student.v, agent.student.z.log_softmax(-1), alpha).numpy()
    assert np.abs(found - wanted.q).max() < TOLERANCE.q
    if gamma == 0.0:
        assert np.abs(found - share).max() < TOLERANCE.q
    else:
        assert (found > share).all()  # the survival bias: every step left pays


def test_sqil_pays_each_visit_where_walkers_go_on() -> None:
    """Two steps long, the walkers meet the second state unequally often; the share is that of the visits counted."""
    teacher, uniform = two_states(), TableStudent(2, 1)
    paths = (complete_paths(teacher, 2), complete_paths(teacher, 2, anyones=True))
    own, anyones = (build(teacher, each, 1.0, 0.8) for each in paths)
    agent = beginner("sqil", teacher, 400, gamma=0.8, target_rate=0.2)
    batch = mixed(own, as_walked(uniform, anyones), 0.5)
    for _ in range(400):
        agent.update(batch)
    visits = []
    for walk in (teacher.probabilities, np.full((2, 2), 0.5)):
        states = np.array([1.0, 1.0 + walk[:, 1].sum()])  # each once as a start; token 1 leads to state 1, token 0 ends
        visits.append(states[:, None] * walk)
    wanted = solve(teacher, "soft", gamma=0.8, reward=visits[0] / sum(visits))
    with torch.no_grad():
        found = levelled_q(agent.student.v, agent.student.z.log_softmax(-1)).numpy()
    assert np.abs(found - wanted.q).max() < TOLERANCE.q


def test_ppo_starts_at_a_ratio_of_1_where_it_is_the_actor_critic() -> None:
    """Loss and gradient: of a fresh walk nothing is clipped, and ∇ρ = ∇log π."""
    agent, batch = batch_for("ppo")
    other, _ = batch_for("actor_critic")
    noted = dataclasses.replace(batch, behaviour_logp=batch.behaviour_logp - 0.5 * batch.steps)
    received = agent.receive(noted)  # whatever the walk noted
    inside = batch.in_set
    own = at_slots(agent.student.scores(batch).log_policy[:, :-1], batch.slots)[inside]
    torch.testing.assert_close(received.behaviour_logp[inside], own.detach().float())
    assert torch.equal(received.behaviour_logp[~inside], noted.behaviour_logp[~inside])
    slopes = [torch.autograd.grad(each.loss(received)[0], [each.student.z, each.student.v]) for each in (agent, other)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-5)


def test_ppo_learns_nothing_more_from_a_ratio_beyond_its_clip() -> None:
    agent, batch = batch_for("ppo", depth=1)
    agent.config = dataclasses.replace(agent.config, leak_weight=0.0)
    with torch.no_grad():
        agent.student.z += torch.randn(agent.student.z.shape, generator=torch.Generator().manual_seed(1)) * 5
    own = at_slots(agent.student.scores(batch).log_policy[:, :-1], batch.slots)
    ratio = (own - batch.behaviour_logp).exp()[batch.in_set]
    assert (ratio > 1.2).any() and (ratio < 0.8).any()
    other, _ = batch_for("actor_critic", depth=1)
    other.student.load_state_dict(agent.student.state_dict())
    other.config = dataclasses.replace(other.config, leak_weight=0.0)
    clipped, free = (torch.autograd.grad(each.loss(batch)[0], [each.student.z])[0] for each in (agent, other))
    assert (clipped.abs().sum(1) < 1e-9).any() or clipped.norm() < free.norm()


def test_mass_that_moves_inside_moves_no_ratio() -> None:
    """The leak may close between two walks by any factor: π_S^A, and so its ratio, stands still."""
    agent, batch = batch_for("ppo", depth=1)
    agent.config = dataclasses.replace(agent.config, leak_weight=0.0)
    before = agent.loss(batch)[0]
    outside = torch.ones_like(agent.student.z, dtype=torch.bool)
    held = batch.mask[:, 0]
    outside[batch.tokens[:, 0, None].expand_as(held)[held], batch.ids[:, 0][held]] = False
    assert outside.any()
    with torch.no_grad():
        agent.student.z[outside] -= 3.0
    torch.testing.assert_close(agent.loss(batch)[0], before)


def test_ppo_with_clipped_values_reaches_the_same_fixed_point() -> None:
    found = arm("ppo", value_clip=1.0, lam=0.5, updates=400)
    assert found.policy < TOLERANCE.policy and found.q < TOLERANCE.q, found


def test_ppo_clips_values_around_those_of_the_student_that_walked() -> None:
    case = case_for("ppo", 1, 0.8, "logprob")
    agent = beginner("ppo", case.teacher, 10, gamma=0.8, value_clip=0.1)
    walk = next_batch(agent, case)
    scatter(agent.student, 0)
    assert agent.old is not None and not agent.old.v.any()
    agent.receive(walk)
    assert torch.equal(agent.old.v, agent.student.v)


def test_the_critics_of_sac_are_taught_apart_and_each_target_follows_its_own() -> None:
    agent, batch = batch_for("sac")
    assert torch.equal(agent.critics[0].z, agent.critics[1].z)
    for _ in range(3):
        figures = agent.update(batch)
    assert not torch.equal(agent.critics[0].z, agent.critics[1].z) and figures["twins_apart"] > 0
    for target, critic in zip(agent.targets, agent.critics, strict=True):
        assert (target.v - critic.v).abs().sum() > 0
        assert not any(value.requires_grad for value in target.parameters())


def test_the_actor_of_sac_leaves_its_own_values_alone_and_its_critics_to_theirs() -> None:
    agent, batch = batch_for("sac")
    torch.autograd.backward(agent.loss(batch)[0])
    assert agent.student.v.grad is None or not agent.student.v.grad.any()
    assert all(critic.z.grad.abs().sum() > 0 for critic in agent.critics)


@pytest.mark.parametrize(("entropy", "updates"), [(0.3, 1000), (0.6, 400)])
def test_sac_tuned_to_an_entropy_ends_there(entropy: float, updates: int) -> None:
    """The identity where α is not known beforehand: the policy is the soft-optimal one of the α that was found."""
    case = case_for("sac", 1, 0.8, "logprob")
    config = {"target_entropy": entropy, "student_share": 0.0, "target_rate": 0.3}
    agent = beginner("sac", case.teacher, updates, gamma=0.8, **config)
    assert agent.fixed_point is None and agent.walks is None
    for _ in range(updates):
        figures = agent.update(case.batch)
    assert figures["entropy"] == pytest.approx(entropy, abs=0.01) and figures["alpha"] != pytest.approx(1.0, abs=0.1)
    best = solve(case.teacher, "soft", top_p=case.p, gamma=0.8, alpha=figures["alpha"])
    policy = agent.student.z.detach().softmax(-1)
    assert (policy - torch.from_numpy(best.policy)).abs().max() < 3 * TOLERANCE.policy
