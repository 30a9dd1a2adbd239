"""Every public objective against numbers worked by hand; one test each, named after it."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import pytest
import torch
from torch import Tensor

from agents import objectives
from agents.episodes import PAD_LOGP

LOG2, LOG3 = math.log(2), math.log(3)
PARTS = list(pkgutil.iter_modules(objectives.__path__))


def close(found: Tensor, wanted: list[float] | list[list[float]] | float) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype), atol=1e-6, rtol=1e-6)


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def test_doctests() -> None:
    found = [doctest.testmod(importlib.import_module(f"agents.objectives.{part.name}")) for part in PARTS]
    assert sum(result.attempted for result in found) > 0 and not any(result.failed for result in found)


def test_soft_value() -> None:
    q = torch.tensor([[0.0, 0.0, 99.0], [LOG2, LOG3, PAD_LOGP]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    close(objectives.soft_value(q, mask), [LOG2, math.log(5)])
    close(objectives.soft_value(q, mask, alpha=0.5), [0.5 * LOG2, 0.5 * math.log(13)])  # e^(log 2 / .5) = 4, 9


@pytest.mark.parametrize(
    ("mask", "alpha", "says"),
    [([True], 0.0, "alpha"), ([False], 1.0, "no candidates"), ([True, True], 1.0, "shape")],
)
def test_soft_value_refuses(mask: list[bool], alpha: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objectives.soft_value(torch.zeros(1), torch.tensor(mask), alpha)


def test_soft_value_gives_padding_no_gradient() -> None:
    q = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    objectives.soft_value(q, torch.tensor([True, True, False])).backward()
    assert q.grad is not None
    close(q.grad, [1 / (1 + math.e), math.e / (1 + math.e), 0.0])


def test_double_value() -> None:
    online = torch.tensor([[1.0, 3.0, 9.0], [1.0, 3.0, 9.0]])
    target = torch.tensor([[5.0, 4.0, 7.0], [5.0, 4.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    close(objectives.double_value(online, target, mask), [4.0, 0.0])  # online chooses slot 1, the target reads it
    close(objectives.double_value(target, target, mask), [5.0, 0.0])  # the plain maximum


def test_levelled_q() -> None:
    policy = logs(0.25, 0.75)
    q = objectives.levelled_q(torch.tensor(-1.0), policy, alpha=2.0)
    close(q, [-1 + 2 * math.log(0.25), -1 + 2 * math.log(0.75)])
    mask = torch.ones(2, dtype=torch.bool)
    close(objectives.soft_value(q, mask, alpha=2.0), -1.0)  # V_p(s) = v(s), exactly


def test_at_slots() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    close(objectives.at_slots(values, torch.tensor([1, 0, -1])), [2.0, 3.0, 0.0])


def test_bootstrap() -> None:
    rewards, discounts = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.0])
    close(objectives.bootstrap(rewards, discounts, torch.tensor([-4.0, math.nan])), [-3.0, -2.0])


def path(n: int, inside: list[bool], alpha: float = 1.0, last: float = 0.5) -> Tensor:
    return objectives.path_target(
        torch.tensor([[-1.0, -2.0, -3.0]]),
        torch.tensor([[0.5, 0.5, last]]),
        torch.tensor([[-0.1, -0.2, -0.3]]),
        torch.tensor([[10.0, 20.0, 30.0, 40.0]]),
        torch.tensor([inside]),
        n=n,
        alpha=alpha,
    )


def test_path_target() -> None:
    free = [True, True, True]
    close(path(1, free), [[-0.9 + 10, -1.8 + 15, -2.7 + 20]])
    close(path(2, free), [[-0.9 - 0.9 + 7.5, -1.8 - 1.35 + 10, -2.7 + 20]])  # -0.9 + .5·(-1.8 + .5·30); cut step: row 3
    close(path(3, free), [[-0.9 - 0.9 - 0.675 + 5, -1.8 - 1.35 + 10, -2.7 + 20]])
    close(path(3, free, alpha=0.0), [[-1 - 1 - 0.75 + 5, -2 - 1.5 + 10, -3 + 20]])
    close(path(3, free, last=0.0), [[-0.9 - 0.9 - 0.675, -1.8 - 1.35, -2.7]])  # terminal: nothing after it
    close(path(3, [True, False, True]), [[-0.9 + 10, 20.0, -2.7 + 20]])  # cut before the token outside; V itself there


def test_value_bounds() -> None:
    lower, upper = objectives.value_bounds(0.5, 0.8)
    assert (lower, upper) == (pytest.approx(2 * math.log(0.8)), 0.0)
    assert objectives.value_bounds(0.5, 0.8, width=4)[0] == pytest.approx(2 * math.log(0.2))
    assert objectives.value_bounds(1.0, 0.8) == (-math.inf, 0.0)
    assert objectives.value_bounds(0.5, None) == (-math.inf, 0.0)


def test_hinge() -> None:
    q = torch.tensor([[-1.0, -1.0, 7.0], [5.0, 5.0, 5.0]])
    logp = torch.tensor([[-3.0, -0.5, PAD_LOGP], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    close(objectives.hinge(q, logp, mask), [2.0, 0.0])  # (2² + 0) / 2 candidates


def test_huber() -> None:
    error = torch.tensor([0.5, -3.0])
    close(objectives.huber(error, 1.0), [0.125, 2.5])
    close(objectives.huber(error, math.inf), [0.125, 4.5])


def test_renormalise() -> None:
    logp = torch.cat([logs(0.5, 0.3), torch.tensor([PAD_LOGP])])[None].repeat(2, 1)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = objectives.renormalise(logp, mask)
    close(found[0, :2].exp(), [0.625, 0.375])
    close(found[1], logp[1].tolist())


def test_forward_kl() -> None:
    teacher, student = logs(0.5, 0.5, 0.0), logs(0.25, 0.75, 0.5)
    wanted = 0.5 * LOG2 + 0.5 * math.log(2 / 3)
    close(objectives.forward_kl(teacher, student), wanted)
    close(objectives.forward_kl(teacher, student, torch.tensor([True, False, False])), 0.5 * LOG2)


def test_nucleus_nll() -> None:
    inside, leak = logs(0.4), logs(0.5)
    close(objectives.nucleus_nll(inside, leak), [-math.log(0.2)])  # .4 of the set, .5 on it: .2 of the whole softmax
    close(objectives.nucleus_nll(inside, leak, 0.0), [-math.log(0.4)])


def test_set_cross_entropy() -> None:
    mask = torch.tensor([True, True, False])
    found = objectives.set_cross_entropy(logs(0.5, 0.3, 1e-9), logs(0.25, 0.75, 1.0), mask)
    close(found, -0.5 * math.log(0.25) - 0.3 * math.log(0.75))


def test_backup_correction() -> None:
    found = objectives.backup_correction(logs(0.3, 7.0), logs(0.5, 0.5), logs(0.6, 0.6), logs(0.5, 0.5))
    close(found, [-0.6 * LOG2, 0.8 * LOG2])  # (.3 − .6)/.5; an advantage above 0 counts as 0: (1 − .6)/.5


def test_backup_correction_has_the_soft_optimal_policy_as_its_minimum() -> None:
    """Over the walker's own tokens the corrected loss is the cross-entropy to π_T exp(γV(s')), normalised by e^V(s)."""
    teacher, ahead, mask = logs(0.5, 0.3), torch.tensor([-0.2, -1.0]), torch.ones(2, dtype=torch.bool)
    backed_up = teacher.exp() * ahead.exp()
    advantage = teacher + ahead - backed_up.sum().log()
    policy = logs(0.1, 0.9)
    renormalised = objectives.renormalise(teacher, mask)
    corrections = objectives.backup_correction(advantage, policy, renormalised, teacher)
    total = objectives.set_cross_entropy(renormalised, policy, mask) + (teacher.exp() * corrections).sum()
    close(total, float(-(backed_up / backed_up.sum() * policy).sum()))


def test_inverse_reward() -> None:
    found = objectives.inverse_reward(
        torch.tensor([2.0, 2.0]), torch.tensor([-0.5, -0.5]), torch.tensor([0.5, 0.0]), torch.tensor([3.0, math.nan])
    )
    close(found, [0.0, 1.5])


def test_concave_reward() -> None:
    x = torch.tensor([2.0, -2.0])
    close(objectives.concave_reward(x, 0.5), [0.0, -4.0])
    close(objectives.concave_reward(x, math.inf), [2.0, -2.0])


def test_inverse_soft_q() -> None:
    value, policy = torch.tensor([2.0, 2.0]), torch.tensor([-0.5, -0.5])
    discounts, ahead = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 9.0])
    # x = 2 − .5 − .5·1 = 1 and 1.5; φ = x − x²/4; V − d·V' = 1.5 and 2
    close(objectives.inverse_soft_q(value, policy, discounts, ahead, 1.0), [1.5 - 0.75, 2.0 - 0.9375])
    close(objectives.inverse_soft_q(value, policy, discounts, ahead, math.inf), [0.5, 0.5])


def test_average() -> None:
    values, weights = torch.tensor([1.0, 5.0, math.nan]), torch.tensor([3.0, 1.0, 0.0])
    close(objectives.average(values, weights), 2.0)
    close(objectives.average(values, torch.zeros(3)), 0.0)
