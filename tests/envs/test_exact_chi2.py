"""The optimum of equation (5): against the per-state formula at γ = 0, its dual at γ > 0, and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from envs import exact_chi2
from envs.errors import InputError
from envs.exact import Solution, candidate_sets, solve, teacher_visits
from envs.exact_chi2 import Transitions, maximise_chi2, objective_chi2
from envs.table_teacher import EOS, TABLES, TableTeacher

CASES = [("toy", 0.8, [[1], [3]]), ("detour", 0.7, [[0]]), ("second_order", 0.8, [[1], [2, 3]])]


def data_of(teacher: TableTeacher, p: float, visits: np.ndarray) -> Transitions:
    """The pairs inside the sets, in the order of `np.nonzero`, weighted d(s) π_T(a|s)."""
    weights = np.where(candidate_sets(teacher.probabilities, p), visits[:, None] * teacher.probabilities, 0.0)
    rows, tokens = np.nonzero(weights)
    after = np.where(tokens == EOS, -1, teacher.successors()[rows, tokens])
    return Transitions(teacher.states, rows, after, weights[rows, tokens])


def start_mass(data: Transitions, gamma: float) -> np.ndarray:
    """m(s) = Σ_a w(s, a) − γ Σ_{pairs leading to s} w."""
    goes_on = data.after >= 0
    out = np.bincount(data.state, data.weight, data.states)
    return out - gamma * np.bincount(data.after[goes_on], data.weight[goes_on], data.states)


def dual(policy: np.ndarray, data: Transitions, gamma: float, c: float) -> float:
    """c Σ (ρ_π − w)² / w − H(ρ_π) for a policy over the pairs (N,): nothing of the solver is used."""
    chain = np.zeros((data.states, data.states))
    goes_on = data.after >= 0
    np.add.at(chain, (data.state[goes_on], data.after[goes_on]), gamma * policy[goes_on])
    flow = np.linalg.solve(np.eye(data.states) - chain.T, start_mass(data, gamma))[data.state] * policy
    return float((c * (flow - data.weight) ** 2 / data.weight + flow * np.log(policy)).sum())


def pairs_of(solved: Solution, data: Transitions, teacher: TableTeacher) -> tuple[np.ndarray, np.ndarray]:
    supported = ~np.isnan(solved.q)
    assert supported.sum() == len(data.state)
    return solved.q[supported], solved.policy[supported]


def visited(solved: Solution) -> np.ndarray:
    return ~np.isnan(solved.policy[:, 0])


@pytest.mark.parametrize(
    ("c", "expected"), [(0.1, [0.64, 0.36]), (1.0, [0.829, 0.171]), (2.0, [0.859, 0.141]), (np.inf, [0.9, 0.1])]
)
def test_at_one_state_the_optimum_is_that_of_chi_squared_less_entropy(c: float, expected: list[float]) -> None:
    """min c χ²(π‖(.9, .1)) − H(π): log π + 2c π/π_T is the same for both tokens."""
    data = Transitions(1, np.array([0, 0]), np.array([-1, -1]), np.array([0.9, 0.1]))
    q = maximise_chi2(data, gamma=0.0, alpha=1.0, c=c)
    policy = np.exp(q) / np.exp(q).sum()
    assert policy == pytest.approx(expected, abs=1e-3)
    if c < np.inf:
        level = np.log(policy) + 2 * c * policy / data.weight
        assert level[0] == pytest.approx(level[1], abs=1e-10)


@pytest.mark.parametrize(("name", "p", "prompts"), CASES)
def test_without_a_discount_every_state_solves_the_per_state_problem(
    name: str, p: float, prompts: list[list[int]]
) -> None:
    teacher = TABLES[name]()
    solved = solve(teacher, "chi2", top_p=p, gamma=0.0, c=0.1, visits=teacher_visits(teacher, prompts, p))
    renormalised = solve(teacher, "renormalised", top_p=p).policy
    for state in np.flatnonzero(visited(solved)):
        kept = solved.candidates[state]
        policy, prior = solved.policy[state, kept], renormalised[state, kept]
        level = np.log(policy) + 0.2 * policy / prior
        assert np.ptp(level) < 1e-9


@pytest.mark.parametrize(("name", "p", "prompts"), CASES)
@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize(("gamma", "c"), [(0.5, 0.1), (0.9, 0.1), (0.9, 1.0), (0.9, 1e-3), (0.99, 10.0), (1.0, 1.0)])
def test_the_optimum_is_stationary_and_nothing_near_or_far_is_better(
    name: str, p: float, prompts: list[list[int]], cut: bool, gamma: float, c: float
) -> None:
    teacher = TABLES[name]()
    visits = teacher_visits(teacher, prompts, p if cut else 1.0)
    data = data_of(teacher, p, visits)
    q, _ = pairs_of(solve(teacher, "chi2", top_p=p, gamma=gamma, c=c, visits=visits), data, teacher)

    def objective(at: np.ndarray) -> float:
        return objective_chi2(at, data, gamma=gamma, alpha=1.0, c=c)

    nudges = 1e-5 * np.eye(len(q))
    slopes = [(objective(q + nudge) - objective(q - nudge)) / 2e-5 for nudge in nudges]
    assert np.abs(slopes).max() < 1e-9 * max(1.0, 0.1 / c) * max(1.0, data.weight.max())
    rng = np.random.default_rng(0)
    for size in (0.01, 0.3, 3.0):
        for _ in range(20):
            assert objective(q + size * rng.normal(size=len(q))) < objective(q)


@pytest.mark.parametrize(("name", "p", "prompts"), CASES)
@pytest.mark.parametrize(("gamma", "c"), [(0.5, 0.1), (0.7, 1.0)])
def test_with_a_discount_it_is_the_divergence_of_the_flows_that_is_least(
    name: str, p: float, prompts: list[list[int]], gamma: float, c: float
) -> None:
    """Max J = min_π c χ²(ρ_π‖w) − H(ρ_π), met at the policy of the optimal Q: no gap, and no policy below."""
    teacher = TABLES[name]()
    visits = teacher_visits(teacher, prompts, p)
    data = data_of(teacher, p, visits)
    assert start_mass(data, gamma).min() > -1e-12
    q, policy = pairs_of(solve(teacher, "chi2", top_p=p, gamma=gamma, c=c, visits=visits), data, teacher)
    best = objective_chi2(q, data, gamma=gamma, alpha=1.0, c=c)
    assert dual(policy, data, gamma, c) == pytest.approx(best, abs=1e-10)
    rng = np.random.default_rng(1)
    for size in (1e-3, 0.1, 1.0):
        weights = policy * np.exp(size * rng.normal(size=len(policy)))
        other = weights / np.bincount(data.state, weights, data.states)[data.state]
        assert dual(other, data, gamma, c) > best - 1e-12


@pytest.mark.parametrize(("name", "p", "prompts"), CASES)
def test_with_a_discount_the_per_state_problem_is_another_one(name: str, p: float, prompts: list[list[int]]) -> None:
    teacher = TABLES[name]()
    visits = teacher_visits(teacher, prompts, p)
    coupled, apart = (solve(teacher, "chi2", top_p=p, gamma=g, c=0.1, visits=visits) for g in (0.9, 0.0))
    assert np.nanmax(np.abs(coupled.policy - apart.policy)) > 0.1


@pytest.mark.parametrize(("name", "p", "prompts"), CASES)
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_without_chi_squared_it_is_the_renormalised_teacher_for_every_discount(
    name: str, p: float, prompts: list[list[int]], gamma: float
) -> None:
    teacher = TABLES[name]()
    visits = teacher_visits(teacher, prompts, p)
    none, little = (solve(teacher, "chi2", top_p=p, gamma=gamma, c=c, visits=visits) for c in (np.inf, 1e5))
    met = visited(none)
    renormalised = solve(teacher, "renormalised", top_p=p).policy[met]
    np.testing.assert_allclose(none.policy[met], renormalised, atol=1e-12)
    assert np.abs(little.policy[met] - renormalised).max() < 1e-4
    assert np.abs(none.value[met]).max() < 1e-12
    data = data_of(teacher, p, visits)
    q, _ = pairs_of(none, data, teacher)
    levels = np.random.default_rng(4).normal(size=data.states)[data.state]
    flat = [objective_chi2(at, data, gamma=gamma, alpha=1.0, c=np.inf) for at in (q, q + levels)]
    assert flat[0] == pytest.approx(flat[1], abs=1e-10), "γ and the levels cancel"
    other = q + np.random.default_rng(5).normal(size=len(q))
    assert objective_chi2(other, data, gamma=gamma, alpha=1.0, c=np.inf) < flat[0]


def test_a_temperature_enters_with_the_entropy() -> None:
    """min c χ² − α H: α log π + 2c π/π_T is level."""
    data = Transitions(1, np.array([0, 0, 0]), np.array([-1, -1, -1]), np.array([0.6, 0.3, 0.1]))
    q = maximise_chi2(data, gamma=0.0, alpha=0.5, c=0.3)
    policy = np.exp(q / 0.5) / np.exp(q / 0.5).sum()
    assert np.ptp(0.5 * np.log(policy) + 0.6 * policy / data.weight) < 1e-10


def test_keeping_the_linear_term_of_masked_tokens_has_no_maximum() -> None:
    """One state of mass Z = .8 on the set, c = ∞: −V weighs 1, Q only .8, so that lowering the level pays for ever."""
    inside = np.array([0.5, 0.3])
    objective = [float((inside * (np.log(inside) + level)).sum() - level) for level in (0.0, -10.0, -20.0)]
    assert objective[2] - objective[1] == pytest.approx(0.2 * 10) == objective[1] - objective[0]


def test_counts_of_taken_tokens_do_as_well_as_visits_and_name_what_is_missing() -> None:
    teacher = TABLES["toy"]()
    visits = teacher_visits(teacher, [[1]], 0.8)
    counts = visits[:, None] * teacher.probabilities
    by_visits, by_counts = (solve(teacher, "chi2", top_p=0.8, gamma=0.9, c=1.0, visits=v) for v in (visits, counts))
    np.testing.assert_allclose(by_counts.policy, by_visits.policy, atol=1e-12)
    assert not visited(by_visits)[EOS], "no walk passes the state after EOS"
    gone = visits.copy()
    gone[3] = 0.0
    with pytest.raises(InputError, match="state 3 is reached but no token is taken in it"):
        solve(teacher, "chi2", top_p=0.8, c=1.0, visits=gone)
    with pytest.raises(InputError, match="empty"):
        solve(teacher, "chi2", top_p=0.8, c=1.0, visits=0 * visits)


def test_a_narrow_phi_and_a_high_temperature_are_solved_by_damped_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Newton steps lower J here; with too few steps allowed the failure is said."""
    teacher = TABLES["second_order"]()
    options = {"top_p": 0.5, "gamma": 1.0, "alpha": 5.0, "c": 1e-4, "visits": np.ones(16)}
    solved = solve(teacher, "chi2", **options)
    data = data_of(teacher, 0.5, np.ones(16))
    q, _ = pairs_of(solved, data, teacher)
    best = objective_chi2(q, data, gamma=1.0, alpha=5.0, c=1e-4)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        assert objective_chi2(q + size * rng.normal(size=len(q)), data, gamma=1.0, alpha=5.0, c=1e-4) < best
    monkeypatch.setattr(exact_chi2, "ITERATIONS", 2)
    with pytest.raises(InputError, match="no maximum that can be found"):
        solve(teacher, "chi2", **options)
