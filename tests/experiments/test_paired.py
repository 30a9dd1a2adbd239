"""Paired differences by hand."""

from __future__ import annotations

import math

import pytest

from experiments.paired import differences, figures, sign_flip_p, table
from experiments.report import Row


def row(agent: str, seed: int, **measures: float) -> Row:
    return Row(agent, seed, 0.9, 10, {}, measures, [])


ROWS = [
    row("kd", 0, task_score=0.50, length=40.0),
    row("kd", 1, task_score=0.30, length=42.0),
    row("soft_q", 0, task_score=0.52, length=40.0),
    row("soft_q", 1, task_score=0.34, length=41.0),
    row("soft_q", 2, task_score=0.99, length=9.0),
    row("bc", 0, task_score=0.40),
    row("teacher", 0, task_score=1.0),
]


def test_what_a_seed_does_to_both_cancels() -> None:
    """.02 and .04: mean .03, deviation .01414, half = 12.706 · .01414 / √2 = .12706; seed 2 has no partner."""
    found = {(entry.agent, entry.measure): entry for entry in differences(ROWS, "kd")}
    entry = found["soft_q", "task_score"]
    assert entry.seeds == 2 and entry.mean == pytest.approx(0.03) and entry.half == pytest.approx(0.12706)
    assert found["soft_q", "length"].mean == pytest.approx(-0.5)
    assert found["bc", "task_score"].seeds == 1 and math.isnan(found["bc", "task_score"].half)
    assert ("bc", "length") not in found and ("kd", "task_score") not in found


def test_the_table_and_the_figures_need_two_seeds() -> None:
    text = table(ROWS, "kd")
    assert "+0.030±0.127" in text and "*" not in text and "bc" not in text and "teacher" not in text
    assert table(ROWS[:1], "kd") == "" and table(ROWS, "nobody") == ""
    sure = [*ROWS[:2], row("soft_q", 0, task_score=0.60), row("soft_q", 1, task_score=0.401)]
    assert "+0.101±0.006*" in table([*sure[:2], *sure[2:]], "kd")
    first = figures(ROWS, "kd")[0]
    assert first["name"] == "paired/task_score" and first["reference"] == "kd" and first["low"] < 0 < first["high"]


def test_every_flip_of_signs_is_tried() -> None:
    """|±3 ±2 ±1| ≥ 6 for 2 of 8 flips; 1 − 1 = 0, which all four reach; .1 + .2 − .3 is 0 but for rounding."""
    assert sign_flip_p([3.0, 2.0, 1.0]) == 0.25 and sign_flip_p([1.0, -1.0]) == 1
    assert sign_flip_p([0.1, 0.1, 0.1]) == 0.25 and sign_flip_p([0.1, 0.2, -0.3]) == 1
    assert sign_flip_p([4.0, 2.0, -1.0]) == 0.5  # 5 and more: 7, 5 and their negatives
    assert sign_flip_p([1.0] * 12) == 2**-11 and math.isnan(sign_flip_p([1.0] * 13))
    assert "(0.500)" in table(ROWS, "kd") and figures(ROWS, "kd")[0]["p_sign_flip"] == 0.5
