"""The gradient of `minillm`, by enumeration, is that of the reverse KL between texts."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import make_agent, objectives
from agents.base import Agent
from agents.episodes import Episodes
from agents.objectives import later_rewards
from agents.table_student import TableStudent
from agents.walks import Walks
from envs.table_teacher import TABLES
from experiments.table_data import Path, as_walked, build, complete_paths
from tests.agents.test_contract import with_gradient
from tests.agents.test_value_tilt import scatter

EXACT: dict[str, Any] = {"length_norm": False, "ratio_clip": math.inf}
TEACHER = TABLES["detour"]()  # every token has a probability everywhere


def fresh(**config: Any) -> Agent[Any]:
    student = TableStudent(4, 1)
    scatter(student)
    return make_agent("minillm", student, seed=0, total_updates=300, **config)


@cache
def every_walk(depth: int) -> Episodes:
    return build(TEACHER, complete_paths(TEACHER, depth, anyones=True), 0.7, 1.0)


def own(agent: Agent[Any], depth: int) -> Episodes:
    """Every walk of `depth` tokens from every state, with the student's probabilities."""
    assert isinstance(agent.student, TableStudent)
    return as_walked(agent.student, every_walk(depth), agent.updates)


def sequence_kl(agent: Agent[Any], paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Σ_y P_S(y) log P_S(y)/P_T(y) over these paths from every state, written out; and Σ_y P_S(y) |y|."""
    logp, teacher = agent.student.z.log_softmax(-1), torch.from_numpy(TEACHER.table)
    total, steps = torch.zeros((), dtype=torch.float64), 0.0
    for path in paths:
        state, ours, theirs = path.state, torch.zeros((), dtype=torch.float64), 0.0
        for token in path.tokens:
            ours, theirs = ours + logp[state, token], theirs + teacher[state, token].item()
            state = int(TEACHER.successors()[state, token])
        total = total + ours.exp() * (ours - theirs)
        steps += float(ours.detach().exp()) * len(path.tokens)
    return total, torch.tensor(steps)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_over_every_walk_the_gradient_is_that_of_the_reverse_kl_between_texts(depth: int) -> None:
    agent = fresh(**EXACT)
    loss, _ = agent.loss(own(agent, depth))
    total, steps = sequence_kl(agent, complete_paths(TEACHER, depth))  # the loss is a mean over steps
    torch.testing.assert_close(
        with_gradient(agent, loss)[1], with_gradient(agent, total / steps)[1], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    "mistake",
    [
        lambda rewards, steps, norm: later_rewards(rewards, steps, norm) + rewards,  # as the paper's code has it
        lambda rewards, steps, norm: 0 * rewards,  # the single step alone
        lambda rewards, steps, norm: later_rewards(-rewards, steps, norm),
    ],
)
def test_a_wrong_future_is_noticed(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = fresh(**EXACT)
    right = with_gradient(agent, agent.loss(own(agent, 2))[0])[1]
    monkeypatch.setattr(objectives, "later_rewards", mistake)
    wrong = with_gradient(agent, agent.loss(own(agent, 2))[0])[1]
    assert (right - wrong).abs().max() > 0.02


def test_the_single_step_is_the_exact_reverse_kl_at_every_state() -> None:
    """With the future off, the loss is Σ_s w(s) KL(π_S(·|s)‖π_T(·|s)) in value and gradient."""
    agent = fresh(**EXACT)
    batch = own(agent, 1)  # a single step has no future
    logp = agent.student.z.log_softmax(-1)
    wanted = (logp.exp() * (logp - torch.from_numpy(TEACHER.table))).sum(1).mean()
    torch.testing.assert_close(
        with_gradient(agent, agent.loss(batch)[0])[1], with_gradient(agent, wanted)[1], atol=1e-6, rtol=1e-5
    )
    assert agent.loss(batch)[1]["reverse_kl"].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_importance_weights_undo_a_mixture_of_walkers_for_the_last_token() -> None:
    """Walks whose first token is drawn from the mixture, and a future that this token alone decides on."""
    agent = fresh(**EXACT)
    straight = own(agent, 2)
    teacher, ours = straight.teacher_logp_taken.exp(), straight.behaviour_logp.exp()
    mixed = torch.where(straight.steps, 0.2 * teacher + 0.8 * ours, 1.0)
    ratio = torch.where(straight.steps, mixed / ours, 1.0)[:, 0]
    assert straight.weights is not None
    batch = dataclasses.replace(straight, weights=straight.weights * ratio, behaviour_logp=mixed.log())
    later = torch.zeros_like(mixed)
    later[:, 0] = straight.taken[:, 0].float()

    def gradient(walk: Episodes) -> tuple[float, Tensor]:
        logp = agent.student.scores(walk).logp_taken
        steps = objectives.clipped_importance(logp, walk.behaviour_logp, later, math.inf)
        return with_gradient(agent, steps[:, 0] @ walk.weights.double())

    torch.testing.assert_close(gradient(batch), gradient(straight), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient(straight)[0], -float(later[:, 0] @ straight.weights), atol=1e-5, rtol=0)


def test_it_walks_with_its_teacher_and_learns_from_the_newest_walk() -> None:
    assert fresh().walks == Walks(1.0, every=4, episodes=64, keep=1, teacher_mix=0.2)


@pytest.mark.parametrize("config", [{}, EXACT], ids=["default", "exact"])
def test_on_its_own_walk_a_table_comes_near_its_teacher(config: dict[str, Any]) -> None:
    agent = make_agent("minillm", TableStudent(4, 1), seed=0, total_updates=200, lr=0.1, **config)
    apart = []
    for _ in range(200):
        apart.append(np.abs(agent.student.z.detach().softmax(-1).numpy() - TEACHER.probabilities).max())
        agent.update(own(agent, 3))
    assert apart[-1] < 0.02 < apart[0]
