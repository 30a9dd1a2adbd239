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


def test_a_token_without_mass_adds_nothing() -> None:
    found = token_measures(torch.tensor([[0.0, -1e4]]), torch.tensor([[0.0, -math.inf]]), 0.9, None)
    assert float(found.forward_kl) == float(found.reverse_kl) == 0


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


def test_impossible_for_both_is_no_difference_and_impossible_for_the_teacher_is_infinite() -> None:
    """Row 0: both exclude token 2. Row 1: the teacher alone does, where the student has 1/4."""
    student = logs([0.5, 0.5, 0.0], [0.5, 0.25, 0.25])
    found = token_measures(student, logs([0.75, 0.25, 0.0], [0.5, 0.5, 0.0]), 1.0, None)
    forward = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(2)]
    assert found.forward_kl.tolist() == pytest.approx(forward)
    assert found.reverse_kl.tolist() == pytest.approx([0.5 * math.log(4 / 3), math.inf])
    assert found.agreement.tolist() == [1, 1] and found.leak.tolist() == pytest.approx([0, 0], abs=1e-7)
    assert found.entropy.tolist() == pytest.approx([math.log(2), 1.5 * math.log(2)])


def test_a_narrower_student_is_compared_on_the_tokens_it_has() -> None:
    """The teacher's third row goes, 1/2 and 1/4 become 2/3 and 1/3."""
    student, teacher = common_vocabulary(logs([0.5, 0.5]), logs([0.5, 0.25, 0.25]))
    forward = token_measures(student, teacher, 0.9, None).forward_kl
    assert float(forward) == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))


def test_rouge_is_a_mean_that_minds_the_order_of_words() -> None:
    assert rouge_l(["b a"], [["a b"]]) == pytest.approx(0.5)
    assert rouge_l(["a c d", ""], [["a b c d"], ["a"]]) == pytest.approx((6 / 7 + 0) / 2)  # precision 1, recall 3/4
    with pytest.raises(ValueError, match="zip"):
        rouge_l(["a"], [])


def test_a_critical_case_passes_with_all_its_phrases_and_counts_only_if_it_has_any() -> None:
    asked = Prompt("p", tags=("critical",), checks=Checks(required=("recall notice", "stop")))
    silent = Prompt("q", tags=("critical",), checks=Checks(copied=("7",)))
    unmarked = Prompt("r", checks=Checks(required=("stop",)))
    replies = ["Stop: recall notice", "recall notice", "7", "no"]
    found = task_measures(replies, [asked, asked, silent, unmarked])
    assert found == pytest.approx({"task_score": (1 + 0.5 + 1 + 0) / 4, "critical_pass": 0.5})


def test_the_table_of_quantiles_ends_at_sixteen_values() -> None:
    """Halves of 0 and 1: the variance is 4/15 for sixteen values."""
    _, half = mean_and_interval([0.0, 1.0] * 8)
    assert half == pytest.approx(2.131 * math.sqrt(4 / 15 / 16))
    _, half = mean_and_interval([0.0, 1.0] * 8 + [0.5])
    assert half == pytest.approx(2.120 * math.sqrt(4 / 16 / 17), rel=5e-3)
    assert mean_and_interval([2.0] * 5) == (2.0, 0.0)
