"""The conservative fixed point: numbers by hand, its own equation, its two ends, and what its values can be."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from envs.errors import InputError
from envs.exact import Solution, solve
from envs.exact_conservative import conservative_q
from envs.table_teacher import EOS, TABLES, TableTeacher

CASES = [("toy", 0.8, 0.8), ("detour", 0.7, 1.0), ("second_order", 0.8, 0.9)]


def test_at_one_state_the_optimum_is_one_worked_by_hand() -> None:
    """β = (½, ½), w = 1: with π = (¾, ¼) the errors are 1 − 2π = (−½, ½) and Q's gap is log 3, so y's is 1 + log 3."""
    q = conservative_q(np.array([[1 + math.log(3), 0.0, 9.0]]), np.array([[0.5, 0.5, 0.0]]), weight=1.0, alpha=1.0)
    assert q[0] == pytest.approx([0.5 + math.log(3), 0.5, 0.0])


def solved(table: str, p: float, gamma: float, weight: float) -> tuple[TableTeacher, Solution]:
    teacher = TABLES[table]()
    return teacher, solve(teacher, "conservative", top_p=p, gamma=gamma, weight=weight)


@pytest.mark.parametrize("weight", [0.3, 3.0])
@pytest.mark.parametrize(("table", "p", "gamma"), CASES)
def test_it_solves_its_equation(table: str, p: float, gamma: float, weight: float) -> None:
    """Q = r + γV(s') + w (1 − π/β) and V = log Σ exp Q, written out token by token."""
    teacher, found = solved(table, p, gamma, weight)
    after = teacher.successors()
    for state, token in zip(*np.nonzero(found.candidates), strict=True):
        held = found.candidates[state]
        share = teacher.probabilities[state, token] / teacher.probabilities[state, held].sum()
        ahead = 0.0 if token == EOS else gamma * found.value[after[state, token]]
        wanted = teacher.table[state, token] + ahead + weight * (1 - found.policy[state, token] / share)
        assert found.q[state, token] == pytest.approx(wanted, abs=1e-9)
        assert found.value[state] == pytest.approx(math.log(np.exp(found.q[state, held]).sum()), abs=1e-9)


@pytest.mark.parametrize(("table", "p", "gamma"), CASES)
def test_it_runs_from_the_soft_optimum_to_the_renormalised_teacher(table: str, p: float, gamma: float) -> None:
    teacher, loose = solved(table, p, gamma, 0.0)
    _, tight = solved(table, p, gamma, 1e3)
    soft, data = solve(teacher, "soft", top_p=p, gamma=gamma), solve(teacher, "renormalised", top_p=p)
    np.testing.assert_allclose(loose.q, soft.q, atol=1e-10)
    assert np.abs(tight.policy - data.policy).max() < 1e-3 < 0.05 < np.abs(soft.policy - data.policy).max()


@pytest.mark.parametrize(("table", "p", "gamma"), CASES)
def test_values_lie_between_those_of_the_data_and_the_optimal_ones(table: str, p: float, gamma: float) -> None:
    values = [solved(table, p, gamma, weight)[1].value for weight in (0.0, 0.5, 5.0, 1e3)]
    assert all((low <= high + 1e-9).all() for high, low in pairwise(values))


def test_without_lookahead_it_is_the_renormalised_teacher_at_any_weight() -> None:
    teacher, found = solved("toy", 0.8, 0.0, 2.0)
    np.testing.assert_allclose(found.policy, solve(teacher, "renormalised", top_p=0.8).policy, atol=1e-10)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="weight = -1"):
        solve(TABLES["toy"](), "conservative", weight=-1.0)
