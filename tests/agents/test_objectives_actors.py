"""Objectives of actors, of conservative critics and of the shuffled control, against numbers worked by hand."""

from __future__ import annotations

import math

import torch

from agents import objectives
from tests.agents.test_objectives import LOG2, close, logs


def test_conservative_gap() -> None:
    q, mask = torch.tensor([1.0, 1.0 + LOG2, 50.0]), torch.tensor([True, True, False])
    for alpha, wanted in ((1.0, math.log(3)), (0.5, 0.5 * math.log(5))):  # e^(1/α)(1 + 2^(1/α)) over e^(1/α)
        value = objectives.soft_value(q, mask, alpha)
        close(value - q[0], wanted)
        close(objectives.conservative_gap((q[0] - value) / alpha, alpha), wanted)


def test_permuted() -> None:
    values = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.0, 0.0]])
    states = torch.tensor([[True, True, False], [True, False, False]])
    close(objectives.permuted(values, states, torch.tensor([2, 0, 1])), [[3.0, 1.0, 0.5], [2.0, 0.0, 0.0]])


def test_policy_gradient() -> None:
    policy = logs(0.5, 0.25).requires_grad_()
    advantage = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = objectives.policy_gradient(policy, advantage)
    close(loss.detach(), [2 * LOG2, -2 * LOG2])
    (slope,) = torch.autograd.grad(loss.sum(), [policy])
    close(slope, [-2.0, 1.0])


def test_centred() -> None:
    found = objectives.centred(torch.tensor([1.0, 5.0, 99.0]), torch.tensor([3.0, 1.0, 0.0]))
    close(found[:2], [-1.0, 3.0])


def test_clipped_policy_gradient() -> None:
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    close(objectives.clipped_policy_gradient(ratio.log(), advantage, 0.2), [-1.2, 1.5, -0.5, 0.8])


def test_clipped_value_error() -> None:
    old, target = torch.zeros(3), torch.tensor([3.0, 3.0, 0.1])
    value = torch.tensor([2.0, 0.2, 2.0])
    # clipped to .5: ½·2.5² beats ½·1²; unclipped .2: ½·2.8²; ½·1.9² beats ½·.4²
    close(objectives.clipped_value_error(value, old, target, 0.5, math.inf), [3.125, 3.92, 1.805])


def test_expected_value() -> None:
    q, policy = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[math.log(0.25), math.log(0.75), -1e4]])
    mask = torch.tensor([[True, True, False]])
    entropy = 0.5 * LOG2 - 0.75 * math.log(0.75)
    close(objectives.expected_value(q, policy, mask, 0.0), [1.75])
    close(objectives.expected_value(q, policy, mask, 2.0), [1.75 + 2 * entropy])
    best = torch.cat([(q[:, :2] / 2).log_softmax(-1), torch.full((1, 1), -1e4)], 1)
    close(objectives.expected_value(q, best, mask, 2.0), objectives.soft_value(q, mask, 2.0).tolist())


def test_expected_value_gives_padding_no_gradient() -> None:
    policy = torch.tensor([math.log(0.25), math.log(0.75), math.nan], requires_grad=True)
    value = objectives.expected_value(torch.tensor([1.0, 2.0, math.nan]), policy, torch.tensor([True, True, False]))
    (slope,) = torch.autograd.grad(value, [policy])
    close(slope, [0.25 * (1 - math.log(0.25) - 1), 0.75 * (2 - math.log(0.75) - 1), 0.0])


def test_temperature_loss() -> None:
    log_alpha = torch.tensor(LOG2, requires_grad=True)
    loss = objectives.temperature_loss(log_alpha, torch.tensor([0.5, 2.0]), 1.0)
    close(loss.detach(), [-1.0, 2.0])
    (slope,) = torch.autograd.grad(loss[0], [log_alpha])
    close(slope, -1.0)  # too little entropy: descending raises α
