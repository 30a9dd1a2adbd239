"""Vocabulary maps: bytes of a fallback beside characters, tokens beyond the softmax, what is computed once."""

from __future__ import annotations

import numpy as np
import pytest

from envs.table_teacher import TableTeacher
from envs.token_bytes import Tokens, tokens_of
from envs.vocab_map import vocabulary_map
from tests.envs.carrying import carried_by_hand, states_of
from tests.envs.tokenizers import KINDS, byte_level

SPACED = ("sentencepiece", "llama")
BYTEWISE = Tokens((None, b"1", b"2", b"1", b"2"), fallback=frozenset({1, 2}))


def test_bytes_of_a_fallback_make_no_units_and_stand_for_no_characters() -> None:
    """Teacher <1> .05, <2> .1, 1 .4, 2 .25, EOS .2 everywhere; the student has <1> in the same place, and "12".

    π("12") = π_T(1) π_T(2) = .4 · .25; the teacher's <1> is the student's, its <2> the student's 2.
    """
    student = Tokens((None, b"1", b"12", b"1", b"2"), fallback=frozenset({1}))
    teacher = carried_by_hand(TableTeacher(np.tile([0.2, 0.05, 0.1, 0.4, 0.25], (5, 1))), BYTEWISE, student)
    assert teacher.map.pieces == (None, (1,), (4,), (3,), (4,)) and teacher.map.chains == {(3,): frozenset({4})}
    mass = states_of(teacher, [], (1,))[0].mass
    np.testing.assert_allclose(mass, [0.2, 0.05, 0.4 * 0.25, 0.4 * 0.75, 0.35], atol=1e-15)


def test_a_character_is_no_byte_of_the_same_number() -> None:
    """As ByT5's tokens 3 to 258 beside Llama's <0x00> to <0xFF>."""
    found = vocabulary_map(Tokens((None, b"1", b"2")), BYTEWISE, teacher_eos={0}, student_eos=0)
    assert found.pieces == (None, (3,), (4,))


@pytest.mark.parametrize("student", SPACED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_becomes_tokens_with_bytes_only_for_what_has_no_other(kind: str, student: str) -> None:
    own, other = tokens_of(KINDS[kind]()), tokens_of(KINDS[student]())
    characters = {piece for number, piece in enumerate(other.written) if piece and number not in other.fallback}
    found = vocabulary_map(own, other, teacher_eos={0}, student_eos=0)
    for number, cut in enumerate(found.pieces):
        kept = number in own.fallback and cut == (number,)  # a byte to both
        assert kept or all(token not in other.fallback or other.written[token] not in characters for token in cut or ())
    assert found.pieces[own.ids[b"1"]] == (other.ids[b"1"],) and other.ids[b"1"] not in other.fallback


@pytest.mark.parametrize("kind", SPACED)
def test_units_are_of_tokens_that_the_teacher_says(kind: str) -> None:
    """Student tokens of ASCII inside a text, as "482": the teacher's own cut, in no byte of the fallback."""
    own, other = tokens_of(KINDS[kind]()), tokens_of(byte_level(360))
    found = vocabulary_map(own, other, teacher_eos={0}, student_eos=0)
    units = {own.text_of(unit): unit for unit in found.cut if own.text_of(unit).isascii()}
    assert any(not text.startswith(b" ") for text in units)
    assert all(not own.fallback.intersection(unit) for unit in units.values())


def test_tokens_beyond_the_softmax_are_never_said() -> None:
    tokens = Tokens((None, b"a", b"b", b"c", None), {"<end>": 4})
    student = Tokens((None, b"ab", b"ac", b"a", b"b", b"c"))
    found = vocabulary_map(tokens, student, teacher_eos={0, 4}, student_eos=0, rows=3)
    assert found.chains == {(1,): frozenset({2})} and found.pieces == (None, (3,), (4,)) and found.ends.tolist() == [0]
    teacher = carried_by_hand(TableTeacher(np.full((3, 3), 1 / 3)), tokens, student)
    np.testing.assert_allclose(states_of(teacher, [], (1,))[0].mass, np.array([3, 1, 0, 2, 3, 0]) / 9, atol=1e-15)


def test_what_begins_longer_units_is_found_once() -> None:
    found = vocabulary_map(
        Tokens((None, b"a", b"b")), Tokens((None, b"a", b"b", b"ab")), teacher_eos={0}, student_eos=0
    )
    assert found.openers is found.openers and found.openers.tolist() == [1]
