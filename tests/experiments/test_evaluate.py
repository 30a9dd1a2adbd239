"""Students are measured against their teacher, whatever padding their embeddings have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.prompts import Prompt
from experiments.__main__ import main
from experiments.evaluate import Rule, along, check_context, measure, set_exam, speeds
from experiments.metrics import token_measures
from tests.envs.models import VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

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


def test_a_student_that_sees_too_little_is_refused_before_anything_is_decoded() -> None:
    model, prompts = tiny_model("gpt2"), [Prompt("w3"), Prompt("w4 " * 60)]
    check_context(model, "s", prompts, TEACHER, 68)
    model.config.n_positions = model.config.max_position_embeddings = 64
    with pytest.raises(InputError, match="student 's' sees 64 tokens, the run needs 65"):
        check_context(model, "s", prompts, TEACHER, 5)


def test_prompts_without_room_for_a_reply_are_refused_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a context of 128 tokens a prompt may have 127."""
    teacher, path, out = save_tiny("gpt2", tmp_path / "teacher"), tmp_path / "p.txt", tmp_path / "f.json"
    path.write_text("w3 w4\n" + "w5 " * 130 + "\nw6\n", encoding="utf-8")
    words = ["evaluate", "--teacher", str(teacher), "--student", str(teacher), "--prompts", str(path)]
    words += ["--max-new-tokens", "4", "--json", str(out)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "has 130 tokens, the limit is 127 (one less than the teacher's context of 128)" in said
    assert "--skip-bad" in said and not out.exists()
    assert main([*words, "--skip-bad"]) == 0 and out.is_file()


def test_speeds_are_ratios_of_two_decodings_side_by_side() -> None:
    found = speeds(TEACHER.model, set_exam(TEACHER, PROMPTS, RULE), TEACHER, RULE)
    assert set(found) == {"tokens_per_second", "teacher_tokens_per_second", "speed_up"}
    assert min(found.values()) > 0
