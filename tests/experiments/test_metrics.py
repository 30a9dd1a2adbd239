"""The held-out measures, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from envs.prompts import Prompt
from envs.service_desk import Checks
from experiments.metrics import common_vocabulary, mean_and_interval, rouge_l, task_measures, token_measures


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_two_distributions_by_hand() -> None:
    """At p = .7 the teacher's set is {0, 1}; the student has .25 + .25 of its mass there and prefers token 2."""
    found = token_measures(logs([0.25, 0.25, 0.5]), logs([0.5, 0.25, 0.25]), 0.7, None)
    assert float(found.forward_kl) == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))
    assert float(found.reverse_kl) == pytest.approx(0.25 * math.log(0.5) + 0.5 * math.log(2))
    assert float(found.agreement) == 0 and float(found.leak) == pytest.approx(0.5)
    assert float(found.entropy) == pytest.approx(1.5 * math.log(2))


def test_a_cut_set_leaks_more_and_equals_diverge_by_nothing() -> None:
    both = logs([0.5, 0.25, 0.25])
    found = token_measures(both, both, 0.7, 1)
    assert float(found.leak) == pytest.approx(0.5) and float(found.agreement) == 1
    assert float(found.forward_kl) == float(found.reverse_kl) == 0


def test_tokens_of_probability_zero() -> None:
    found = token_measures(logs([1.0, 0.0]), logs([0.5, 0.5]), 0.9, None)
    assert float(found.forward_kl) == math.inf
    assert float(found.reverse_kl) == pytest.approx(math.log(2)) and float(found.entropy) == 0


def test_padded_rows_are_no_difference() -> None:
    student, teacher = common_vocabulary(logs([0.4, 0.4, 0.2]), logs([0.5, 0.5]))
    torch.testing.assert_close(student, teacher)


def test_rouge_takes_the_best_reference_and_passes_over_texts_without_one() -> None:
    assert rouge_l(["a b c d", "x"], [["a b", "a b c d"], []]) == 1.0
    assert rouge_l(["a b c d"], [["a b"]]) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert rouge_l(["a"], [[]]) is None


def test_rouge_reads_every_script() -> None:
    assert rouge_l(["Ваш заказ готов"], [["ваш ЗАКАЗ, готов!"]]) == 1.0
    assert rouge_l(["你好"], [["好"]]) == pytest.approx(2 / 3) and rouge_l(["Größe"], [["Gr"]]) == 0.0


def test_task_measures_by_hand() -> None:
    prompts = [
        Prompt("p", tags=("critical",), checks=Checks(copied=("12",), required=("recall notice", "stop"))),
        Prompt("q", checks=Checks(copied=("7",), computed=("9 euros",), rare=("Nidd yoke",))),
    ]
    found = task_measures(["recall notice for 12", "the Nidd yoke for 9 euros, 77"], prompts)
    assert found == pytest.approx(
        {"task_score": (2 / 3 + 0) / 2, "critical_pass": 0.0, "computed_score": 1.0, "rare_recall": 1.0}
    )
    assert task_measures(["x"], [Prompt("p")]) == {}


def test_intervals_are_students_t() -> None:
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    mean, half = mean_and_interval([4.0])
    assert mean == 4.0 and math.isnan(half)
    _, half = mean_and_interval([0.0, 1.0] * 20)
    assert half == pytest.approx(2.023 * math.sqrt(10 / 39) / math.sqrt(40), rel=2e-3)
