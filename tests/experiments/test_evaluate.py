"""Students are measured against their teacher, whatever padding their embeddings have."""

from __future__ import annotations

import pytest
import torch

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.prompts import Prompt
from experiments.evaluate import Rule, along, check_context, measure, set_exam, speeds
from experiments.metrics import token_measures
from tests.envs.models import VOCABULARY, tiny_model, tiny_tokenizer

TEACHER = HFTeacher(tiny_model("llama"), tiny_tokenizer())
RULE = Rule(top_p=0.9, max_candidates=64, max_new_tokens=8)
PROMPTS = [Prompt(f"w{i} w{i + 1}", references=("w4 w5",)) for i in range(3, 15)]


def test_a_student_with_padding_rows_is_measured_on_the_tokens_both_have() -> None:
    exam = set_exam(TEACHER, PROMPTS, RULE)
    wide = tiny_model("gpt2", vocabulary=VOCABULARY + 40, seed=2)  # much of its mass lies on rows without a token
    found = measure(wide, exam, TEACHER, RULE)
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values())
    assert found["forward_kl"] > 0 and 1 <= found["length"] <= 8


def test_a_teacher_is_its_own_best_student() -> None:
    exam = set_exam(TEACHER, PROMPTS, RULE)
    itself, same = measure(None, exam, TEACHER, RULE), measure(TEACHER.model, exam, TEACHER, RULE)
    assert itself == pytest.approx(same, abs=1e-5)
    assert itself["forward_kl"] == 0 and itself["rouge_l_teacher"] == 1


def test_measures_along_replies_are_those_of_each_position_alone() -> None:
    exam, student = set_exam(TEACHER, PROMPTS[:3], RULE), tiny_model("llama", seed=5)
    found = along(student, exam.ids, exam.samples, TEACHER, RULE)
    expected = []
    for ids, reply in zip(exam.ids, exam.samples, strict=True):
        for end in range(len(ids), len(ids) + len(reply)):
            text = torch.tensor([(ids + reply)[:end]])
            with torch.no_grad():
                pair = [model(input_ids=text).logits[0, -1:].log_softmax(-1) for model in (student, TEACHER.model)]
            expected.append(float(token_measures(pair[0], pair[1], 0.9, 64).forward_kl))
    assert sorted(found.forward_kl.tolist()) == pytest.approx(sorted(expected), abs=1e-4)


def test_texts_that_do_not_fit_are_refused_before_anything_is_decoded() -> None:
    model, prompts = tiny_model("gpt2"), [Prompt("w3"), Prompt("w4 " * 60)]
    check_context(model, "s", prompts, TEACHER, 68)
    model.config.n_positions = model.config.max_position_embeddings = 64
    with pytest.raises(InputError, match="student 's' sees 64 tokens, the run needs 65"):
        check_context(model, "s", prompts, TEACHER, 5)
    with pytest.raises(
        InputError, match="has 130 tokens, the limit is 127, one less than the teacher's context of 128"
    ):
        check_context(model, "s", [Prompt("w4 " * 130)], TEACHER, 1)


def test_speeds_are_ratios_of_two_decodings_side_by_side() -> None:
    found = speeds(TEACHER.model, set_exam(TEACHER, PROMPTS, RULE), TEACHER, RULE)
    assert set(found) == {"tokens_per_second", "teacher_tokens_per_second", "speed_up"}
    assert min(found.values()) > 0
