"""The published loss against numbers worked by hand: three tokens, the first two of them candidates."""

from __future__ import annotations

import math

import torch

from agents import objectives
from tests.agents.test_objectives import LOG2, close, logs

LOGITS = logs(0.5, 0.25, 0.25) + 7.0  # any level
INSIDE = torch.tensor([True, True, False])
# q = 0, −log 2, −log 2; ε = 1/32, p = ¾: (⅔ + 1/32, ⅓ + 1/32, 1/32) over 35/32
POLICY = [67 / 105, 35 / 105, 3 / 105]
VALUE = sum(p * (q - math.log(p)) for p, q in zip(POLICY, (0.0, -LOG2, -LOG2), strict=True))


def test_released_q() -> None:
    close(objectives.released_q(LOGITS), [0.0, -LOG2, -LOG2])
    far = torch.tensor([3.0, -7.5, 1.0], requires_grad=True)
    found = objectives.released_q(far)
    close(found, [0.0, -10.0, -2.0])
    found[1].backward()
    assert far.grad is not None and not far.grad.any()  # a token that far away learns nothing


def test_released_policy() -> None:
    close(objectives.released_policy(LOGITS, INSIDE, 0.75, 1 / 32), POLICY)


def test_released_value() -> None:
    close(objectives.released_value(LOGITS, INSIDE, 0.75, 1 / 32), VALUE)


def test_released_loss() -> None:
    q, value, ahead = torch.tensor([0.0, -2.0, -5.0]), torch.tensor(0.5), torch.tensor(3.0)
    # γ = ⅓: x = −1, −3, −1 (the token outside counts, as −γV'); −(−5/3) + (½ − 1) + 11/3 / (4 · ½)
    close(objectives.released_loss(q, INSIDE, value, ahead, 1 / 3, 0.5), 5 / 3 - 0.5 + 11 / 6)
    close(objectives.released_loss(q, INSIDE, value, ahead, 1 / 3, math.inf), 5 / 3 - 0.5)
