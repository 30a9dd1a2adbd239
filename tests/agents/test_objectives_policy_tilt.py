"""Every objective of the tilt against numbers worked by hand, on three tokens and three steps."""

from __future__ import annotations

import math

import torch

from agents import objectives
from agents.episodes import PAD_LOGP
from tests.agents.test_objectives import LOG2, LOG3, close, logs

HALVES = logs(0.4, 0.2, 0.2)  # three candidates of mass .8: renormalised ½ ¼ ¼
ALL = torch.tensor([True, True, True])


def test_state_cost() -> None:
    policy, inside = logs(0.25, 0.25, 0.5), torch.tensor(math.log(0.9))
    kl = 0.25 * -LOG2 + 0.5 * LOG2  # ¼ log ½ + ¼ log 1 + ½ log 2
    close(objectives.state_cost(HALVES, policy, inside, ALL, 10.0), kl - math.log(0.8) - math.log(0.9))
    close(objectives.state_cost(HALVES, policy, torch.tensor(-20.0), ALL, 10.0), 10.0)
    # One candidate of mass .4, kept with all the student's mass: −log Z alone; padding is not asked.
    one, mask = torch.tensor([0.0, PAD_LOGP, PAD_LOGP]), torch.tensor([True, False, False])
    close(objectives.state_cost(HALVES, one, torch.tensor(0.0), mask, 10.0), -math.log(0.4))


def test_differential_returns() -> None:
    costs, mean = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 9.0]]), torch.tensor(2.0)
    values = torch.tensor([[9.0, 4.0, 6.0, 8.0], [9.0, 4.0, 6.0, 7.0]])
    # The first walk is cut after three steps, γ = ½; the second ends by itself after two.
    discounts = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]])
    steps = torch.tensor([[True, True, True], [True, True, False]])
    found = [objectives.differential_returns(costs, mean, discounts, values, steps, lam) for lam in (0.0, 0.5, 1.0)]
    close(found[0], [[3.0, 2.0, 4.0], [3.0, -1.0, 6.0]])  # 2 − c + ½ V(s'); EOS is worth 0
    close(found[2], [[1.5, 1.0, 4.0], [0.5, -1.0, 6.0]])  # 4 = 0 + ½ 8;  1 = −1 + ½ 4;  1.5 = 1 + ½ 1
    # λ = ½: 4;  −1 + ½ (½ 6 + ½ 4) = 1.5;  1 + ½ (½ 4 + ½ 1.5) = 2.375
    close(found[1], [[2.375, 1.5, 4.0], [1.75, -1.0, 6.0]])


def test_a_walk_cut_before_the_longest_is_bootstrapped_where_it_was_cut() -> None:
    costs, values = torch.tensor([[1.0, 50.0]]), torch.tensor([[0.0, 4.0, 50.0]])
    discounts, steps = torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
    for lam in (0.0, 0.5, 1.0):
        found = objectives.differential_returns(costs, torch.tensor(2.0), discounts, values, steps, lam)
        close(found[:, 0], [5.0])


def test_leaf_advantage() -> None:
    nothing, values = torch.zeros(3, dtype=torch.bool), torch.tensor([1.0, -1.0, 5.0])
    # ½ · 1 − ¼ + ¼ · 5 = 1.5
    close(objectives.leaf_advantage(values, HALVES, ALL, nothing, 9.0), [-0.5, -2.5, 3.5])
    close(objectives.leaf_advantage(values, HALVES, ALL, nothing, 2.0), [-0.5, -2.0, 2.0])
    # Two leaves: ⅔ · 1 − ⅓ = ⅓; the third candidate is not looked at.
    close(
        objectives.leaf_advantage(values, HALVES, torch.tensor([True, True, False]), nothing, 9.0), [2 / 3, -4 / 3, 0.0]
    )
    # The second token ends the text: its value is 0, whatever a critic says of it, and it is not tilted.
    ends = torch.tensor([False, True, False])
    close(objectives.leaf_advantage(values, HALVES, ALL, ends, 9.0), [1 - 1.75, 0.0, 5 - 1.75])
    close(objectives.leaf_advantage(values, HALVES, nothing, nothing, 9.0), [0.0, 0.0, 0.0])


def test_tilted_teacher() -> None:
    # ½ · 2, ¼ · 1, ¼ · 3 over their sum 2
    close(objectives.tilted_teacher(HALVES, torch.tensor([LOG2, 0.0, LOG3]), 1.0, ALL).exp(), [0.5, 0.125, 0.375])
    close(
        objectives.tilted_teacher(HALVES, torch.tensor([2 * LOG2, 0.0, 2 * LOG3]), 0.5, ALL).exp(), [0.5, 0.125, 0.375]
    )
    close(objectives.tilted_teacher(HALVES, torch.tensor([9.0, 0.0, 7.0]), 0.0, ALL).exp(), [0.5, 0.25, 0.25])
    mask = torch.tensor([True, True, False])
    close(objectives.tilted_teacher(HALVES, torch.tensor([0.0, LOG2, 50.0]), 1.0, mask)[:2].exp(), [0.5, 0.5])
