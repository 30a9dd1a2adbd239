"""The identities (4a)-(4g) on table teachers, against sums over every text and numbers worked by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from envs.candidates import top_p as nuclei
from envs.errors import InputError
from envs.exact import (
    Solution,
    candidate_sets,
    gap_bound,
    solve,
    solve_finite,
    stay_probability,
    teacher_visits,
    value_bound,
)
from envs.table_teacher import EOS, TABLES, TableTeacher

CASES = [("toy", 0.8, 4), ("detour", 0.7, 5), ("second_order", 0.8, 5)]


def hand_table() -> TableTeacher:
    """At p = .6 state 1 holds {2, 1} with mass .8, state 2 holds {EOS} with mass .9."""
    return TableTeacher(np.array([[0.2, 0.4, 0.4], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]), "hand")


def texts(teacher: TableTeacher, state: int, horizon: int) -> Iterator[list[tuple[int, int]]]:
    """Every text of at most `horizon` tokens after a state, as (state, token) pairs; EOS ends one early."""
    if horizon == 0:
        yield []
        return
    for token in range(teacher.vocab_size):
        following = (state * teacher.vocab_size + token) % teacher.states
        if teacher.probabilities[state, token] == 0:
            continue
        rests = [[]] if token == EOS else texts(teacher, following, horizon - 1)
        yield from ([(state, token), *rest] for rest in rests)


def law(text: list[tuple[int, int]], probabilities: np.ndarray) -> float:
    """P(text): `probabilities` (S, V), or (H + 1, S, V) by steps left with H the longest text."""
    if probabilities.ndim == 2:
        return float(np.prod([probabilities[pair] for pair in text]))
    longest = len(probabilities) - 1
    return float(np.prod([probabilities[(longest - t, *pair)] for t, pair in enumerate(text)]))


def inside(text: list[tuple[int, int]], sets: np.ndarray) -> bool:
    return all(sets[pair] for pair in text)


def policy_gap(one: Solution, other: Solution) -> float:
    return float(np.abs(one.policy - other.policy).max())


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("p", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_sets_are_those_of_the_environment(name: str, p: float) -> None:
    teacher = TABLES[name]()
    sets = nuclei(torch.from_numpy(teacher.table), p)
    expected = torch.zeros(teacher.states, teacher.vocab_size + 1, dtype=torch.bool)
    expected.scatter_(1, sets.ids.where(sets.mask, torch.tensor(teacher.vocab_size)), True)
    np.testing.assert_array_equal(candidate_sets(teacher.probabilities, p), expected[:, :-1].numpy())


def test_soft_and_hard_values_worked_by_hand() -> None:
    """γ = .5: with u = exp(V(1)/2), u² = .3 u + .5 √.9; the hard V(1) = log .5 + ½ log .9; V(2) = log .9, EOS ends."""
    u = (0.3 + np.sqrt(0.09 + 2 * np.sqrt(0.9))) / 2
    soft = solve(hand_table(), "soft", top_p=0.6, gamma=0.5)
    assert soft.value[1:] == pytest.approx([2 * np.log(u), np.log(0.9)], abs=1e-12)
    assert soft.policy[1] == pytest.approx([0.0, 0.3 * u / u**2, 0.5 * np.sqrt(0.9) / u**2], abs=1e-12)
    assert soft.policy[2].tolist() == [1.0, 0.0, 0.0] and np.isnan(soft.q[1, 0])
    hard = solve(hand_table(), "hard", top_p=0.6, gamma=0.5)
    assert hard.value[1:] == pytest.approx([np.log(0.5) + 0.5 * np.log(0.9), np.log(0.9)], abs=1e-12)
    assert hard.policy[1].tolist() == [0.0, 0.0, 1.0]


def test_renormalised_and_conditioned_worked_by_hand() -> None:
    """P(stays from 2) = .9; x = P(stays from 1) = .3 x + .5 · .9, so x = .45 / .7."""
    renormalised = solve(hand_table(), "renormalised", top_p=0.6)
    assert renormalised.policy[1] == pytest.approx([0.0, 3 / 8, 5 / 8])
    conditioned = solve(hand_table(), "conditioned", top_p=0.6)
    assert conditioned.policy[1] == pytest.approx([0.0, 0.3, 0.7])
    assert np.exp(conditioned.value[1]) == pytest.approx(0.45 / 0.7)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_4a_the_whole_vocabulary_gives_zero_values_and_the_teacher(
    name: str, p: float, horizon: int, gamma: float
) -> None:
    teacher = TABLES[name]()
    for solved in (solve(teacher, "soft", gamma=gamma), solve_finite(teacher, horizon=horizon, gamma=gamma)):
        assert np.abs(solved.value).max() < 1e-12
        policies = solved.policy[1:] if solved.horizon else solved.policy
        assert np.abs(policies - teacher.probabilities).max() < 1e-12
    assert policy_gap(solve(teacher, "soft", gamma=gamma), solve(teacher, "teacher")) < 1e-12


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_4b_the_undiscounted_value_is_the_log_probability_of_staying_inside(name: str, p: float, horizon: int) -> None:
    teacher = TABLES[name]()
    solved = solve_finite(teacher, horizon=horizon, top_p=p)
    stay = stay_probability(teacher, p, horizon)
    for left in (1, horizon):
        for state in range(teacher.states):
            kept = [text for text in texts(teacher, state, left) if inside(text, solved.candidates)]
            counted = sum(law(text, teacher.probabilities) for text in kept)
            assert stay[left, state] == pytest.approx(counted, abs=1e-13)
            assert solved.value[left, state] == pytest.approx(np.log(counted), abs=1e-11)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_4c_the_optimum_is_the_teacher_conditioned_on_staying_inside(name: str, p: float, horizon: int) -> None:
    """So are the teacher's texts that never leave the sets, by count: filtered behaviour cloning."""
    teacher = TABLES[name]()
    solved = solve_finite(teacher, horizon=horizon, top_p=p)
    for state in range(teacher.states):
        first = np.zeros(teacher.vocab_size)
        for text in texts(teacher, state, horizon):
            if inside(text, solved.candidates):
                first[text[0][1]] += law(text, teacher.probabilities)
        np.testing.assert_allclose(solved.policy[horizon, state], first / first.sum(), atol=1e-12)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_4c_a_discount_tilts_the_renormalised_teacher_towards_it(
    name: str, p: float, horizon: int, gamma: float
) -> None:
    teacher = TABLES[name]()
    soft = solve(teacher, "soft", top_p=p, gamma=gamma)
    ahead = np.where(np.arange(teacher.vocab_size) == EOS, 0.0, soft.value[teacher.successors()])
    weights = np.where(soft.candidates, teacher.probabilities * np.exp(gamma * ahead), 0.0)
    np.testing.assert_allclose(soft.policy, weights / weights.sum(1, keepdims=True), atol=1e-12)
    conditioned, renormalised = (solve(teacher, target, top_p=p) for target in ("conditioned", "renormalised"))
    if gamma == 1.0:
        assert policy_gap(soft, conditioned) < 1e-12 and np.abs(soft.value - conditioned.value).max() < 1e-11
        assert policy_gap(soft, renormalised) > 0.05
    else:
        assert min(policy_gap(soft, conditioned), policy_gap(soft, renormalised)) > 0.005


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
@pytest.mark.parametrize("gamma", [0.0, 0.7, 0.99, 1.0])
def test_4d_values_lie_within_the_bound_of_the_steps_left(name: str, p: float, horizon: int, gamma: float) -> None:
    teacher = TABLES[name]()
    solved = solve_finite(teacher, horizon=horizon, top_p=p, gamma=gamma)
    least = np.where(solved.candidates, teacher.probabilities, 0).sum(1).min()
    for left in range(horizon + 1):
        bound = value_bound(least, gamma, left)
        assert (solved.value[left] <= 1e-12).all() and (solved.value[left] >= bound - 1e-12).all()
    assert value_bound(least, gamma, 1) == pytest.approx(solved.value[1].min()), "one step: the bound is attained"
    if gamma < 1.0:
        forever, full = (solve(teacher, "soft", top_p=q, gamma=gamma) for q in (p, 1.0))
        assert np.nanmax(np.abs(full.q - forever.q)) <= gap_bound(p, gamma) + 1e-12


def test_bounds_worked_by_hand() -> None:
    assert value_bound(0.5, 0.5, 2) == pytest.approx(1.5 * np.log(0.5))
    assert value_bound(0.5, 1.0, 3) == pytest.approx(3 * np.log(0.5))
    assert value_bound(0.8, 0.9) == pytest.approx(10 * np.log(0.8))
    assert value_bound(1.0, 1.0) == 0.0 == value_bound(0.8, 0.9, 0)
    assert gap_bound(0.8, 0.99) == pytest.approx(22.1, abs=0.01)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_4e_the_divergence_over_texts_is_the_return_with_entropy(name: str, p: float, horizon: int) -> None:
    teacher = TABLES[name]()
    raw = np.random.default_rng(5).gamma(1.0, size=teacher.probabilities.shape) * (teacher.probabilities > 0)
    policy = raw / raw.sum(1, keepdims=True)
    logs = np.log(np.where(policy > 0, policy, 1.0))
    entropy = -(policy * logs).sum(1)
    divergence, returns = 0.0, 0.0
    for text in texts(teacher, 1, horizon):
        mass = law(text, policy)
        divergence += mass * sum(logs[pair] - teacher.table[pair] for pair in text)
        returns += mass * sum(teacher.table[pair] + entropy[pair[0]] for pair in text)
    assert -divergence == pytest.approx(returns, abs=1e-12) and divergence > 0.1


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_4f_a_temperature_moves_the_optimum_to_a_power_of_the_law_unless_rewards_scale(
    name: str, p: float, horizon: int
) -> None:
    teacher = TABLES[name]()
    solved = solve_finite(teacher, horizon=horizon, alpha=2.0)
    powers = {tuple(text): law(text, teacher.probabilities) ** 0.5 for text in texts(teacher, 1, horizon)}
    for text, power in powers.items():
        assert law(list(text), solved.policy) == pytest.approx(power / sum(powers.values()), abs=1e-13)
    assert np.abs(solved.policy[horizon, 1] - teacher.probabilities[1]).max() > 0.02
    scaled = solve_finite(teacher, horizon=horizon, alpha=2.0, reward=2.0 * teacher.table)
    np.testing.assert_allclose(scaled.policy[horizon], teacher.probabilities, atol=1e-12)


def test_4g_the_loss_on_the_set_less_the_log_mass_on_it_is_the_full_cross_entropy() -> None:
    logits = np.random.default_rng(2).normal(size=(6, 6))
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    sets = candidate_sets(TABLES["toy"]().probabilities, 0.8)
    on_set = np.where(sets, logits, -np.inf)
    log_set_policy = on_set - np.logaddexp.reduce(on_set, axis=1, keepdims=True)
    log_mass = np.log(np.where(sets, np.exp(logp), 0).sum(1, keepdims=True))
    np.testing.assert_allclose((-log_set_policy - log_mass)[sets], -logp[sets], atol=1e-12)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_the_oracles_notice_a_wrong_discount_set_end_or_truncation(name: str, p: float, horizon: int) -> None:
    class Endless(TableTeacher):
        """The same table, but EOS is an ordinary token."""

        def __init__(self, probabilities: np.ndarray) -> None:
            super().__init__(probabilities)
            self.eos_ids = frozenset()

    teacher, gamma = TABLES[name](), 0.9
    right = solve(teacher, "soft", top_p=p, gamma=gamma)
    wrong = {
        "gamma": solve(teacher, "soft", top_p=p, gamma=0.8),
        "set": solve(teacher, "soft", top_p=1.0, gamma=gamma),
        "end": solve(Endless(teacher.probabilities), "soft", top_p=p, gamma=gamma),
        "hard": solve(teacher, "hard", top_p=p, gamma=gamma),
    }
    for mutation, solved in wrong.items():
        assert policy_gap(right, solved) > 0.01, mutation
    cut = solve_finite(teacher, horizon=horizon, top_p=p, gamma=gamma)
    assert np.abs(cut.policy[2] - right.policy).max() > 0.01, "a truncated state must not count as worth 0"
    far = solve_finite(teacher, horizon=400, top_p=p, gamma=gamma)
    np.testing.assert_allclose(far.policy[400], right.policy, atol=1e-12)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_path_consistency_holds_on_any_path_inside_and_rewards_alone_do_not(name: str, p: float, horizon: int) -> None:
    teacher, gamma = TABLES[name](), 0.9
    solved = solve(teacher, "soft", top_p=p, gamma=gamma)
    missed = 0.0
    for text in [text for state in range(teacher.states) for text in texts(teacher, state, 3)]:
        if not inside(text, solved.candidates):
            continue
        start, last = text[0][0], text[-1]
        beyond = 0.0 if last[1] == EOS else gamma ** len(text) * solved.value[teacher.successors()[last]]
        with_terms = sum(gamma**k * (teacher.table[s] - np.log(solved.policy[s])) for k, s in enumerate(text))
        rewards_alone = sum(gamma**k * teacher.table[s] for k, s in enumerate(text))
        assert with_terms + beyond == pytest.approx(solved.value[start], abs=1e-11)
        missed = max(missed, abs(rewards_alone + beyond - solved.value[start]))
    assert missed > 1.0


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_topp_logprob_has_nothing_to_propagate(name: str, p: float, horizon: int) -> None:
    teacher = TABLES[name]()
    solved = solve(teacher, "soft", top_p=p, gamma=0.9, reward="topp_logprob")
    assert np.abs(solved.value).max() < 1e-12
    assert policy_gap(solved, solve(teacher, "renormalised", top_p=p)) < 1e-12


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
@pytest.mark.parametrize(("target", "alpha"), [("soft", 1.0), ("soft", 0.5), ("hard", 1.0)])
def test_induced_rewards_make_the_teachers_scores_the_optimal_q(
    name: str, p: float, horizon: int, target: str, alpha: float
) -> None:
    teacher = TABLES[name]()
    solved = solve(teacher, target, top_p=p, gamma=0.9, alpha=alpha, reward=f"induced_{target}")
    np.testing.assert_allclose(solved.q[solved.candidates], teacher.table[solved.candidates], atol=1e-12)


@pytest.mark.parametrize(("name", "p", "horizon"), CASES)
def test_visits_are_the_expected_counts_over_all_texts_cut_where_they_leave(name: str, p: float, horizon: int) -> None:
    teacher = TABLES[name]()
    for top_p in (p, 1.0):
        sets = candidate_sets(teacher.probabilities, top_p)
        counted = np.zeros(teacher.states)
        for text in texts(teacher, teacher.state_of([2]), horizon):
            reached = [inside(text[:t], sets) for t in range(len(text))]
            for (state, _), counts in zip(text, reached, strict=True):
                counted[state] += counts * law(text, teacher.probabilities)
        np.testing.assert_allclose(teacher_visits(teacher, [[2]], top_p, horizon=horizon), counted, atol=1e-12)
        forever = teacher_visits(teacher, [[2]], top_p)
        np.testing.assert_allclose(teacher_visits(teacher, [[2]], top_p, horizon=900), forever, atol=1e-9)
    both = teacher_visits(teacher, [[1], [2]])
    np.testing.assert_allclose(both, (teacher_visits(teacher, [[1]]) + teacher_visits(teacher, [[2]])) / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "sotf"}, "did you mean 'soft'"),
        ({"target": "soft", "reward": "logprop"}, "did you mean 'logprob'"),
        ({"target": "soft", "reward": "sqil"}, "no exact solution"),
        ({"target": "soft", "gamma": 1.1}, "gamma = 1.1"),
        ({"target": "soft", "alpha": 0.0}, "alpha = 0.0"),
        ({"target": "chi2", "c": -1.0}, "c = -1.0"),
        ({"target": "chi2"}, "give visits"),
        ({"target": "soft", "top_p": 0.0}, "top_p = 0.0"),
        ({"target": "soft", "top_p": 0.3}, "no text ends inside the sets"),
        ({"target": "conditioned", "top_p": 0.3}, "no text ends inside the sets"),
        ({"target": "soft", "alpha": 5.0}, "no limit"),
    ],
)
def test_what_cannot_be_solved_is_said(options: dict[str, object], said: str) -> None:
    table = TableTeacher(np.array([[0.2, 0.4, 0.4], [0.2, 0.3, 0.5], [0.1, 0.5, 0.4]]))
    with pytest.raises(InputError, match=said):
        solve(table, **options)


def test_slow_sweeps_end_at_the_fixed_point() -> None:
    """γ = .995 and a reward of 1 for going on: a value of 1 / (1 − γ), hard, where nobody need ever end."""
    solved = solve(hand_table(), "hard", gamma=0.995, reward=np.array([[0.0, 1.0, 1.0]] * 3))
    np.testing.assert_allclose(solved.value, 200.0, rtol=1e-10)


def test_a_horizon_and_prompts_are_needed() -> None:
    with pytest.raises(InputError, match="horizon = 0"):
        solve_finite(hand_table(), horizon=0)
    with pytest.raises(InputError, match="0 prompts"):
        teacher_visits(hand_table(), [])
