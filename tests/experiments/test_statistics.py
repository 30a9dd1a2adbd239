"""Aggregates over seeds and tasks by hand, and their intervals against a bootstrap written here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from rliable import metrics

from experiments import statistics
from experiments.report import Row
from experiments.statistics import (
    aggregates,
    figures,
    heading,
    iqm,
    matrices,
    performance_profile,
    probability_of_improvement,
    scores_of,
    selection_rule,
    several_seeds,
    share_above,
    summaries,
    table,
)


@dataclass(frozen=True)
class Sliced(Row):
    """A row with measures by kind of message."""

    more: dict[str, Any] = field(default_factory=dict)


def row(agent: str, seed: int, *scores: float, **measures: float) -> Row:
    """A row with a task score on kinds a, b, … and, as a kind across them, on critical prompts."""
    slices = {name: {"prompts": 2, "task_score": score} for name, score in zip("abc", scores, strict=False)}
    more = {"slices": slices | {"critical": {"task_score": 0.123}}}
    return Sliced(agent, seed, 0.9, 10, {}, measures, [], more=more)


def plain(agent: str, *scores: float) -> list[Row]:
    return [row(agent, seed, task_score=score) for seed, score in enumerate(scores)]


def test_a_quarter_goes_at_either_end_of_what_is_left_the_mean_counts() -> None:
    """0, 1 | 2, 3, 4, 5 | 6, 90 -> 3.5; of five, one goes at either end: 1, 2, 6 -> 3; of three, none."""
    for scores, expected in (
        ([[90.0, 1, 2], [3, 4, 5], [6, 0, 3.5]], (2 + 3 + 3.5 + 4 + 5) / 5),
        ([[0.0, 90], [1, 6], [2, 5], [3, 4]], 3.5),
        ([[2.0], [0], [90], [1], [6]], 3.0),
        ([[1.0], [2], [9]], 4.0),
    ):
        assert iqm(np.array(scores)) == pytest.approx(expected) == metrics.aggregate_iqm(np.array(scores))


def test_the_start_is_zero_and_the_teacher_one() -> None:
    """Kind a: start (.1 + .3) / 2 = .2, teacher 1: .6 -> .5; kind b: 0 and .5: .4 -> .8, .6 -> 1.2."""
    ends = [row("start", 0, 0.1, 0.0), row("start", 1, 0.3, 0.0), row("teacher", 0, 1.0, 0.5)]
    arms = [row("kd", 0, 0.6, 0.4), row("kd", 1, 1.0, 0.6)]
    assert scores_of([*ends, *arms])["kd", 0.9] == pytest.approx(np.array([[0.5, 0.8], [1.0, 1.2]]))
    assert list(scores_of([*ends, *arms])) == [("kd", 0.9)]
    assert matrices([*ends, *arms]).normalised
    gap = aggregates([*ends, *arms])["kd", 0.9]
    assert gap["optimality_gap"].value == pytest.approx(1 - (0.5 + 0.8 + 1 + 1) / 4)
    assert gap["median"].value == pytest.approx(0.875) and gap["mean"].value == pytest.approx(0.875)
    for others in (ends[:2], ends[2:], [ends[0], row("teacher", 0, 1.0, 0.0)], [*ends[:2], row("teacher", 0, 0.5)]):
        assert scores_of([*others, *arms])["kd", 0.9] == pytest.approx(np.array([[0.6, 0.4], [1.0, 0.6]]))
        assert not matrices([*others, *arms]).normalised and "optimality_gap" not in aggregates(arms)["kd", 0.9]


def test_tasks_and_the_measure_are_what_all_arms_have() -> None:
    mixed = [row("kd", 0, 0.6, 0.4, task_score=0.5), row("bc", 0, 0.2, task_score=0.3)]
    assert {key: own.tolist() for key, own in scores_of(mixed).items()} == {("kd", 0.9): [[0.5]], ("bc", 0.9): [[0.3]]}
    closer = [row("kd", 0, forward_kl=0.5), row("bc", 0, forward_kl=0.2, task_score=1.0), row("far", 0)]
    assert {key: own.tolist() for key, own in scores_of(closer).items()} == {
        ("kd", 0.9): [[-0.5]],
        ("bc", 0.9): [[-0.2]],
    }
    assert heading(mixed).startswith("Interquartile mean of task score over") and "of −KL(T‖S) over" in heading(closer)


def test_intervals_agree_with_a_bootstrap_by_hand() -> None:
    """Whole seeds drawn again, 4,000 times, percentiles: within the error of the two samples."""
    draw = np.random.default_rng(7)
    scores = draw.normal(size=(6, 3))
    rows = [row("kd", seed, *own) for seed, own in enumerate(scores)]
    found = aggregates(rows)["kd", 0.9]["iqm"]
    means = []
    for _ in range(4000):
        again = scores[draw.integers(6, size=6)]  # (6, 3): a drawn seed brings all its tasks
        means.append(np.mean(np.sort(again, axis=None)[4:14]))  # 18 / 4 = 4 go at either end
    low, high = np.percentile(means, [2.5, 97.5])
    # The error of a 2.5 % point of 1,000 draws from a normal law is 2.7·σ/√1000 = .085 σ.
    close = 4 * 0.085 * float(np.std(means))
    assert found.low == pytest.approx(low, abs=close) and found.high == pytest.approx(high, abs=close)
    assert high - low > 5 * close, "the tolerance must tell a right interval from a wrong one"
    np.random.seed(11)
    assert found == aggregates(rows)["kd", 0.9]["iqm"], (
        "the same rows give the same interval, whatever was drawn before"
    )


def test_what_a_seed_does_to_all_its_tasks_is_not_averaged_over_them() -> None:
    """Scores s + t of seed s on task t have the spread of one task's: mean ± 1.96 σ/√S, not σ/√(S·T)."""
    seeds = np.random.default_rng(3).normal(size=(25, 1))
    for tasks in ([0.0], [0.0, 5.0, 10.0]):
        scores = seeds + np.array(tasks)  # (S, T)
        found = aggregates(
            [
                row("kd", seed, *own) if len(own) > 1 else row("kd", seed, task_score=own[0])
                for seed, own in enumerate(scores.tolist())
            ]
        )["kd", 0.9]["mean"]
        half = 1.96 * float(seeds.std()) / math.sqrt(25)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)  # drawn apart: .58 of it on three tasks


def test_both_arms_of_a_comparison_keep_their_seeds_whole() -> None:
    """Of two seeds, one above on all tasks and one below on all: a draw of them gives 0, ½ or 1, and nothing else."""
    own = [row("kd", 0, 2.0, 2.0, 2.0), row("kd", 1, 0.0, 0.0, 0.0)]
    other = [row("bc", seed, 1.0, 1.0, 1.0) for seed in (0, 1)]
    found = probability_of_improvement([*own, *other], "bc")["kd", 0.9]
    assert (found.low, found.value, found.high) == (0, 0.5, 1)  # drawn apart, 0 and 1 have (1/4)³ each: below 2.5 %


def test_tasks_are_not_drawn_again() -> None:
    """Seeds that agree leave nothing to draw, however far tasks are apart: the interval is a point."""
    found = aggregates([row("kd", seed, 0.0, 0.3, 9.0) for seed in range(3)])["kd", 0.9]["iqm"]
    assert found.low == found.high == found.value == pytest.approx((0 + 3 * 0.3 + 9) / 5)  # of nine, two go at an end


def test_the_callers_random_numbers_stay() -> None:
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    before = [np.random.rand()]
    aggregates(plain("kd", 0.1, 0.2))
    assert [*before, np.random.rand()] == list(expected)


def test_half_of_a_tie_is_an_improvement() -> None:
    """Task 1: 3 beats 1, 2 and ties 3; 2 beats 1, ties 2: (2.5 + 1.5) / 6. Task 2 ties: ½. Mean: (2/3 + 1/2) / 2."""
    own, other = np.array([[3.0, 1], [2, 1]]), np.array([[1.0, 1], [2, 1], [3, 1]])
    assert (
        share_above(own, other) == pytest.approx((4 / 6 + 1 / 2) / 2) == metrics.probability_of_improvement(own, other)
    )
    assert share_above(other, own) == pytest.approx(1 - (4 / 6 + 1 / 2) / 2)
    found = probability_of_improvement([*plain("bc", 0.1, 0.2), *plain("kd", 0.3, 0.4), *plain("q", 0.1, 0.2)], "bc")
    assert list(found) == [("kd", 0.9), ("q", 0.9)]
    assert (found["kd", 0.9].value, found["kd", 0.9].low, found["kd", 0.9].high) == (1, 1, 1)
    assert found["q", 0.9].value == 0.5 and found["q", 0.9].low < 0.5 < found["q", 0.9].high


def test_a_profile_is_the_share_of_runs_above() -> None:
    """Scores 0, 1, 1, 2 from threshold 0 to 2: ¾ above 0, ¾ above .96, ¼ above 1, none above 2."""
    thresholds, found = performance_profile(plain("kd", 0.0, 1.0, 1.0, 2.0))
    share, low, high = found["kd", 0.9]
    assert thresholds[[0, 24, 25, 50]] == pytest.approx(np.array([0, 0.96, 1, 2]))
    assert share[[0, 24, 25, 50]].tolist() == [0.75, 0.75, 0.25, 0]
    assert (low <= share).all() and (share <= high).all() and low[24] < share[24] < high[24] and high[50] == 0
    ends = [*plain("start", 0.5), *plain("teacher", 1.0)]
    assert performance_profile([*ends, *plain("kd", 0.6, 0.7)])[0][[0, -1]].tolist() == [0.0, 1.0]
    assert performance_profile(ends)[1] == {}


def test_one_seed_has_no_interval() -> None:
    rows = [*plain("bc", 0.1), *plain("kd", 0.3, 0.4)]
    found = summaries(rows, "bc")
    bc, kd = table(found, "bc").splitlines()[1:]
    assert "0.100 (one seed: no interval)" in bc and "1.000 (one seed: no interval)" in kd
    assert "0.350 [0.300, 0.400]" in kd and kd.split()[:4] == ["kd", "0.9", "2", "1"]
    assert several_seeds(rows) and not several_seeds(rows[:2]) and not several_seeds(plain("start", 0.1, 0.2))
    assert [(entry["name"], entry["agent"]) for entry in figures(found, "bc")] == [("iqm", "kd")]
    share, low, high = performance_profile(rows)[1]["bc", 0.9]
    assert math.isfinite(share[0]) and np.isnan([low, high]).all()
    assert table([], "bc") == ""


def test_what_was_drawn_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, drawn, intervals = [*plain("bc", 0.1, 0.4), *plain("kd", 0.3, 0.9)], list[int](), statistics._intervals

    def counted(scores: Any, measure: Any) -> Any:
        drawn.append(len(scores))
        return intervals(scores, measure)

    monkeypatch.setattr(statistics, "_intervals", counted)
    first = summaries(rows, "bc")
    assert sorted(drawn) == [1, 1, 2]  # two arms, and one of them against the other
    assert summaries(list(rows), "bc") == first and len(drawn) == 3
    assert summaries(rows, "kd") != first and len(drawn) == 6
    assert summaries([*plain("bc", 0.1, 0.4), *plain("kd", 0.3, 0.8)], "kd")[1].iqm != first[1].iqm


def test_figures_name_the_reference_and_the_rule_is_said() -> None:
    found = figures(summaries([*plain("bc", 0.1, 0.3), *plain("kd", 0.2, 0.4)], "bc"), "bc")
    assert [(entry["name"], entry["agent"], entry.get("reference")) for entry in found] == [
        ("iqm", "bc", None),
        ("iqm", "kd", None),
        ("probability_of_improvement", "kd", "bc"),
    ]
    assert found[2]["value"] == 0.75 and found[2]["low"] <= 0.75 <= found[2]["high"] and found[2]["seeds"] == 2
    assert selection_rule(0).endswith("settings as given") and "with 4 trials each" in selection_rule(4)
