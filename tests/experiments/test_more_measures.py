"""Variety, calibration, positions, slices and replies: by hand, and against each position alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from envs.candidates import top_p
from envs.hf_teacher import HFTeacher
from envs.prompts import Prompt
from envs.service_desk import Checks
from experiments import text_metrics
from experiments.calibration import expected_error, reliability
from experiments.compare import compare
from experiments.evaluate import Rule, answers, examine, set_exam
from experiments.metrics import TokenMeasures, token_measures
from experiments.positions import at_the_end, by_position, excess_error, places
from experiments.replies import records
from experiments.slices import by_tag, rare_tokens, rare_words
from tests.envs.models import tiny_model, tiny_tokenizer
from tests.experiments.runs import small

TEACHER = HFTeacher(tiny_model("llama"), tiny_tokenizer())
RULE = Rule(top_p=0.9, max_candidates=64, max_new_tokens=8)


def test_variety_and_repetition_by_hand() -> None:
    """Eight tokens of four kinds; the bigrams 12 23 34 41 12 and 12; the 4-grams 1212 2121 1212."""
    replies = [[1, 2, 3, 4, 1, 2], [1, 2]]
    assert text_metrics.distinct(replies, 1) == 4 / 8 and text_metrics.distinct(replies, 2) == 4 / 6
    assert text_metrics.repeated([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 3)
    assert text_metrics.distinct([[1]], 2) == text_metrics.repeated([1, 1, 1]) == 0
    found = text_metrics.length_measures([[1], [1, 2, 3]])
    assert found == pytest.approx({"length_sd": math.sqrt(2), "length_p10": 1.2, "length_p90": 2.8})


def test_self_bleu_by_hand() -> None:
    assert text_metrics.self_bleu([[1, 2, 3], [1, 2, 4]]) == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    short, long = math.exp(1 - 4 / 2), (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25
    assert text_metrics.self_bleu([[1, 2], [1, 2, 3, 4]]) == pytest.approx((short + long) / 2)
    # Two 5s match one: no reference has more.
    assert text_metrics.self_bleu([[5, 5], [5], [5]]) == pytest.approx((math.sqrt(1 / 2 * 0.1) + 1 + 1) / 3)
    assert text_metrics.self_bleu([[1, 2]]) == 0 and text_metrics.self_bleu([[1, 2]] * 3) == pytest.approx(1)


def test_matched_texts_are_cut_to_the_shorter_of_each_pair() -> None:
    """Ours has one bigram in four and one 4-gram twice; theirs repeats nothing before its end."""
    found = text_metrics.matched_measures([[1, 1, 1, 1, 1]], [[1, 2, 3, 4, 5, 5, 5, 5, 5]])
    assert found == pytest.approx({"distinct_2_matched": 0.25, "repetition_matched": 0.5})
    assert text_metrics.matched_measures([[7, 8]], [[7, 7, 7]])["distinct_2_matched"] == 1


def test_calibration_by_hand() -> None:
    bins = reliability(torch.tensor([1.0, 0.9, 0.25], dtype=torch.float64), torch.tensor([True, False, True]))
    assert bins["count"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert bins["accuracy"][9] == 0.5 and bins["confidence"][9] == pytest.approx(0.95)
    assert bins["accuracy"][0] == bins["confidence"][0] == 0
    assert expected_error(bins) == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.75)


def test_positions_and_excess_error_by_hand() -> None:
    at = places([2, 1])
    assert at.tolist() == [0, 1, 0]
    assert by_position(torch.tensor([1.0, 3.0, 2.0]), at) == [1.5, 3.0]
    assert excess_error([1.0, 3.0, 5.0], [1.0, 1.0]) == [0.0, 1.0]  # (1 − 1) / 1, (4 − 2) / 2
    assert excess_error([0.0, 1.0], [0.0, 0.0]) == [0.0]
    assert at_the_end([0.0, 1.0, 9.0], [20, 2, 1], [20, 20, 20]) == 1.0
    assert at_the_end([0.0], [20, 2, 1], [20, 20, 20]) is None


def test_rare_tokens_hold_at_most_a_tenth() -> None:
    assert rare_tokens([[1] * 10, [2] * 8, [3, 4]]) == {3, 4}
    assert rare_tokens([[1] * 10, [2] * 8, [3, 4, 5]]) == set()


def _made(*values: float) -> TokenMeasures:
    found = torch.tensor(values, dtype=torch.float64)
    return TokenMeasures(found, 2 * found, found, found, found, found, found)


def test_slices_by_hand() -> None:
    """Four of five prompts carry the tag, their replies are of 1, 1, 1 and 2 tokens; too few carry the other."""
    prompts = [Prompt("p", tags=("t",), checks=Checks(required=("a",)))] * 4 + [Prompt("q", tags=("u",))]
    lengths, samples = [1, 1, 1, 2, 1], [[8], [8], [8], [8, 9], [9]]
    beside, own = _made(1, 2, 3, 4, 5, 100), _made(0, 0, 0, 1, 1, 100)
    found = by_tag(prompts, ["a", "a", "a", "b", "b"], samples, (beside, lengths), (own, lengths))
    expected = {"prompts": 4, "length": 1.25, "forward_kl": 3, "agreement": 3, "leak": 3, "reverse_kl": 0.8}
    assert found == {"t": pytest.approx(expected | {"entropy": 0.4, "task_score": 0.75})}
    rare = rare_words(beside, samples, {9})["rare words"]
    assert rare == {"prompts": 2, "tokens": 2, "forward_kl": 52.5, "agreement": 52.5, "leak": 52.5}
    assert rare_words(beside, samples, {7}) == {}


def test_an_exam_by_position_is_each_position_alone() -> None:
    prompts = [Prompt(f"w{i} w{i + 1}", references=("w4 w5",), tags=("t",)) for i in range(3, 9)]
    exam, student = set_exam(TEACHER, prompts, RULE), tiny_model("llama", seed=5)
    found = examine(student, exam, TEACHER, RULE)
    own = answers(student, exam.ids, TEACHER, RULE, 1.0)
    sides = [_alone(student, exam.ids, replies) for replies in (exam.samples, own)]
    at = found.more["positions"]
    for name, side, field in (("forward_kl", 0, 0), ("leak", 0, 3), ("reverse_kl", 1, 1)):
        values = [[reply[t][field] for reply in sides[side] if t < len(reply)] for t in range(len(at[name]))]
        assert at[name] == pytest.approx([sum(v) / len(v) for v in values], abs=1e-4)
    assert at["count"] == [sum(len(reply) > t for reply in exam.samples) for t in range(len(at["count"]))]
    ends = zip(sides[1], exam.samples, strict=True)
    matched = [place[1] for reply, other in ends for place in reply[: len(other)]]
    assert found.measures["reverse_kl_matched"] == pytest.approx(sum(matched) / len(matched), abs=1e-4)
    total = sum(place[1] for reply in sides[1] for place in reply) / len(own)
    assert found.measures["reverse_kl_sum"] == pytest.approx(total, abs=1e-4)
    assert found.more["slices"]["t"]["forward_kl"] == pytest.approx(found.measures["forward_kl"])
    assert sum(found.more["calibration"]["count"]) == sum(map(len, exam.samples))


def _alone(student: torch.nn.Module, ids: list[list[int]], replies: list[list[int]]) -> list[list[list[float]]]:
    """Every measure at every position of every reply, from a text that ends there."""
    found = []
    for prompt, reply in zip(ids, replies, strict=True):
        found.append([])
        for end in range(len(prompt), len(prompt) + len(reply)):
            text = torch.tensor([(prompt + reply)[:end]])
            with torch.no_grad():
                pair = [model(input_ids=text).logits[0, -1:].log_softmax(-1) for model in (student, TEACHER.model)]
            found[-1].append([float(value) for value in token_measures(*pair, 0.9, 64)])
    return found


def test_a_teacher_measured_as_a_student_accumulates_no_excess() -> None:
    exam = set_exam(TEACHER, [Prompt(f"w{i}") for i in range(3, 9)], RULE)
    found = examine(None, exam, TEACHER, RULE)
    assert found.measures["excess_error"] == 0 and found.measures["distinct_2_matched"] == 1
    assert set(found.more["positions"]["excess_error"]) == {0.0}


def test_replies_say_what_the_teacher_thinks_of_each_token() -> None:
    prompts = [Prompt("w3 w4", references=("w5",), tags=("t",), checks=Checks(required=("w9",))), Prompt("w6")]
    exam = set_exam(TEACHER, prompts, RULE)
    ids = TEACHER.tokenizer("w7 w8", add_special_tokens=False)["input_ids"]
    first, second = records(exam, [ids, ids[:1]], TEACHER, RULE)
    assert (first["prompt"], first["reference"], first["tags"]) == ("w3 w4", "w5", ["t"])
    assert first["student"] == "w7 w8" and first["score"] == 0 and second["score"] is second["reference"] is None
    assert "".join(text for text, _, _ in first["tokens"]) == "w7 w8" and len(second["tokens"]) == 1
    with torch.no_grad():
        logp = TEACHER.model(input_ids=torch.tensor([exam.ids[0] + ids[:1]])).logits[0, -1].log_softmax(-1)
    nucleus = top_p(logp, 0.9, 64)
    assert first["tokens"][1][1] == pytest.approx(float(logp[ids[1]]), abs=1e-4)
    assert first["tokens"][1][2] == (ids[1] in nucleus.ids[nucleus.mask].tolist())


def test_cells_keep_the_parts_and_rows_of_older_folders_lack_them(tmp_path: Path) -> None:
    config = small(tmp_path, agents=("bc",))
    rows = compare(config)
    place = config.out / "cells" / "bc-p0.9-seed0"
    result = json.loads((place / "result.json").read_text())
    assert rows[0].more.keys() == rows[-1].more.keys() == {"slices", "positions", "calibration"}
    assert {name: result[name] for name in rows[-1].more} == rows[-1].more
    replies = json.loads((place / "replies.json").read_text())
    assert len(replies) > 0 and all(len(entry["tokens"]) > 0 for entry in replies)
    older = {key: value for key, value in result.items() if key not in rows[-1].more}
    (place / "result.json").write_text(json.dumps(older))
    again = compare(config)[-1]
    assert again.more == {} and again.measures["self_bleu"] == rows[-1].measures["self_bleu"]
