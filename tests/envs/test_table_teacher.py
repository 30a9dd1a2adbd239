"""Exact small teachers: states, texts, and agreement of the step-by-step with the whole-text answer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from envs.errors import InputError
from envs.table_teacher import TABLES, TableTeacher
from envs.teachers import Teacher, load_teacher

USUAL = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def test_a_table_is_a_teacher_and_its_name_loads_it_once() -> None:
    teacher = load_teacher("table:toy")
    assert isinstance(teacher, Teacher) and isinstance(teacher, TableTeacher)
    assert load_teacher("table:toy") is teacher and copy.deepcopy({"t": teacher})["t"] is teacher
    with pytest.raises(InputError, match="did you mean 'detour'"):
        load_teacher("table:detuor")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("p", USUAL)
def test_no_set_of_a_named_table_hangs_on_rounding(name: str, p: float) -> None:
    table = TABLES[name]().probabilities
    sums = np.cumsum(np.sort(table, 1)[:, ::-1], 1)
    assert np.abs(sums - p).min() > 1e-3


def test_the_state_is_the_last_tokens_newest_in_the_lowest_digit() -> None:
    teacher = TABLES["second_order"]()  # V = 4, order 2
    assert teacher.states == 16 and teacher.order == 2
    assert teacher.state_of([3, 1, 2]) == 1 * 4 + 2
    assert teacher.state_of([3]) == 3, "a short text is padded with EOS = 0 on the left"
    assert teacher.successors()[1 * 4 + 2].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("name", TABLES)
def test_walking_and_scoring_give_the_table_row_of_every_text(name: str) -> None:
    teacher = TABLES[name]()
    v = teacher.vocab_size
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(v, (int(n),), generator=generator).tolist() for n in (1, 4, 7)]
    scores = teacher.score(texts)
    assert scores.shape == (3, 7, v) and scores.dtype == torch.float32
    walk = teacher.walk(3)
    walk.start([2, 0, 1], [texts[2][:1], texts[0][:1], texts[1][:1]])
    for position in range(7):
        for row, text in enumerate(texts):
            if position < len(text):
                expected = torch.from_numpy(teacher.table[teacher.state_of(text[: position + 1])]).float()
                torch.testing.assert_close(scores[row, position], expected)
                torch.testing.assert_close(walk.log_probs[row], expected)
        active = torch.tensor([position + 1 < len(text) for text in texts])
        tokens = torch.tensor([text[min(position + 1, len(text) - 1)] for text in texts])
        walk.step(tokens, active)


def test_a_row_is_refilled_without_touching_the_others() -> None:
    teacher = TABLES["toy"]()
    walk = teacher.walk(2)
    walk.start([0, 1], [[1], [2]])
    walk.step(torch.tensor([3, 3]), torch.tensor([True, False]))
    walk.start([0], [[5]])
    torch.testing.assert_close(walk.log_probs, torch.from_numpy(teacher.table[[5, 2]]).float())


def test_texts_are_token_numbers() -> None:
    teacher = TABLES["toy"]()
    assert teacher.encode("1 2 5") == [1, 2, 5]
    assert teacher.decode([1, 2, 0]) == "1 2", "special tokens are left out"
    for text in ("", "1 six", "6", "-1"):
        with pytest.raises(InputError, match="token numbers below 6"):
            teacher.encode(text)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], "no n-gram table"),
        ([[0.5, 0.4], [0.5, 0.5]], "sum to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], "sum to 1"),
        ([[0.5, 0.5], [0.0, 1.0]], "state 1 of the table never reaches EOS"),
    ],
)
def test_a_table_that_is_no_teacher_is_refused(rows: list[list[float]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TableTeacher(np.array(rows))
