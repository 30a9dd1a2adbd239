"""The objectives of `minillm` against numbers worked by hand."""

from __future__ import annotations

import math

import torch

from agents import objectives
from tests.agents.test_objectives import LOG2, close

STEPS = torch.tensor([[True, True, True], [True, True, False]])


def test_later_rewards() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, -1.0, 50.0]])
    close(objectives.later_rewards(rewards, STEPS, False), [[6.0, 4.0, 0.0], [-1.0, 0.0, 0.0]])
    close(objectives.later_rewards(rewards, STEPS, True), [[3.0, 4.0, 0.0], [-1.0, 0.0, 0.0]])


def test_clipped_importance() -> None:
    policy = torch.tensor([0.0, 0.0, 0.0, -LOG2], requires_grad=True)
    behaviour = torch.tensor([0.0, -LOG2, -LOG2, 0.0])  # weights 1, 2, 2, ½
    advantage = torch.tensor([3.0, 3.0, -3.0, 3.0])
    close(objectives.clipped_importance(policy, behaviour, advantage, math.inf), [-3.0, -6.0, 6.0, -1.5])
    found = objectives.clipped_importance(policy, behaviour, advantage, 0.2)
    close(found, [-3.0, -3.6, 6.0, -1.5])  # too likely already and still wanted: no more; the others go on
    found.sum().backward()
    assert policy.grad is not None
    close(policy.grad, [-3.0, 0.0, 6.0, -1.5])
