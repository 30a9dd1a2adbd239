"""Carried log-probabilities against an enumeration of the teacher's token sequences, and against its law of texts."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from envs import carry
from envs.carried_teacher import CarriedTeacher, in_tokens_of
from envs.carry import Bounds, State
from envs.errors import InputError
from envs.table_teacher import TableTeacher
from envs.teachers import EMBEDDED, load_teacher
from envs.token_bytes import Tokens, tokens_of
from tests.envs.carrying import (
    EXACT,
    STUDENTS,
    TEACHER,
    Ends,
    ExactReader,
    carried,
    cuts,
    probability,
    short_texts,
    states_of,
    table,
)
from tests.envs.tokenizers import KINDS, sentence_piece, texts


def distribution(teacher: CarriedTeacher, reply: Sequence[int]) -> np.ndarray[Any, Any]:
    """π(·|σ) after the prompt [0] and a reply, float64."""
    return states_of(teacher, reply)[-1].mass


class Cutter:
    """The cut G of the docstring of `envs.vocab_map`, written anew: over whole token sequences, by recursion."""

    def __init__(self, teacher: CarriedTeacher, look: float) -> None:
        self.table, self.look = teacher.teacher.probabilities, look
        self.student = teacher.tokens
        self.eos = teacher.map.eos
        longer = [own for own in Tokens(TEACHER).split([w for w in self.student.written if w]) if own and len(own) > 1]
        self.prefixes = {own[:stop] for own in longer for stop in range(1, len(own))}
        self.nodes = {own[:stop] for own in longer for stop in range(1, len(own) + 1)}

    def followed(self, unit: tuple[int, ...], before: int) -> bool:
        p, last = 1.0, before
        for token in unit:
            p, last = p * self.table[last, token], token
        return unit in self.prefixes and p >= self.look

    def __call__(self, tokens: Sequence[int]) -> tuple[list[int], bool]:
        """The student tokens that are settled, and whether the last unit might go on."""
        found: list[int] = []
        place, before = 0, 0
        while place < len(tokens):
            if tokens[place] == 0:
                return [*found, self.eos], True
            unit = (tokens[place],)
            while self.followed(unit, before):
                if place + len(unit) == len(tokens):
                    return found, False
                if (*unit, tokens[place + len(unit)]) not in self.nodes:
                    break
                unit = (*unit, tokens[place + len(unit)])
            text = b"".join(TEACHER[token] or b"" for token in unit)
            found += self.student.split([text])[0] or ()
            place += len(unit)
            before = unit[-1]
        return found, True


def brute(teacher: CarriedTeacher, reply: list[int], look: float = 0.0) -> float:
    """P(σ): all teacher sequences whose cut begins with σ, each up to where that is settled."""
    cut = Cutter(teacher, look)

    def below(tokens: list[int], p: float) -> float:
        said, settled = cut(tokens)
        common = min(len(said), len(reply))
        if said[:common] != reply[:common] or p == 0.0:
            return 0.0
        if len(said) >= len(reply):
            return p
        if settled and tokens and tokens[-1] == 0:
            return 0.0
        last = tokens[-1] if tokens else 0
        return sum(below([*tokens, token], p * cut.table[last, token]) for token in range(len(TEACHER)))

    return below([], 1.0)


def replies(teacher: CarriedTeacher, depth: int) -> Iterator[list[int]]:
    """Replies that the law can reach, up to so many tokens, without an EOS."""
    todo: list[list[int]] = [[]]
    while todo:
        reply = todo.pop()
        yield reply
        if len(reply) < depth:
            mass = distribution(teacher, reply)
            todo += [[*reply, token] for token in np.flatnonzero(mass > 0).tolist() if token != teacher.map.eos]


@pytest.mark.parametrize("look", [0.0, 0.1])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_conditional_is_that_of_an_enumeration(name: str, look: float) -> None:
    teacher = carried(STUDENTS[name], Bounds(look, 0.0))
    for reply in replies(teacher, 2):
        mass = distribution(teacher, reply)
        here = brute(teacher, reply, look)
        there = [brute(teacher, [*reply, token], look) for token in range(teacher.vocab_size)]
        np.testing.assert_allclose(mass, np.array(there) / here, atol=1e-12)
        assert mass.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("look", [0.0, 0.1])
@pytest.mark.parametrize("name", STUDENTS)
def test_the_law_of_texts_is_the_teachers(name: str, look: float) -> None:
    """Σ over σ of a text Π π(s|σ) = Σ over the teacher's token sequences of it, with nothing said about cuts."""
    teacher, own = carried(STUDENTS[name], Bounds(look, 0.0)), table(len(TEACHER))
    for text in short_texts(4):
        law = 0.0
        for tokens in cuts(text, TEACHER):
            along = [0, *tokens, 0]
            law += float(np.prod([own.probabilities[pair] for pair in itertools.pairwise(along)]))
        found = 0.0
        for tokens in cuts(text, STUDENTS[name]):
            found += probability(teacher, [*tokens, teacher.map.eos])
        assert found == pytest.approx(law, abs=1e-13)


@st.composite
def vocabularies(draw: st.DrawFn) -> Tokens:
    """EOS, the two bytes, and more; tokens that write the same, bytes of a fallback, and a tokenizer's own cuts."""
    more = draw(st.lists(st.text("ab", min_size=1, max_size=4), max_size=6))
    written = (None, b"a", b"b", *(text.encode() for text in more))
    fallback = draw(st.sampled_from([frozenset[int](), frozenset({1, 2})]))
    bytewise = draw(st.booleans())
    own = (lambda parts: [[1 + "ab".index(letter) for letter in part] for part in parts]) if bytewise else None
    return Tokens(written, own=own, fallback=fallback)


@settings(max_examples=40, deadline=None)
@given(vocabularies(), vocabularies(), st.sampled_from([0.0, 0.05, 0.2]), st.integers(5, 9))
def test_between_any_vocabularies_the_law_of_texts_is_the_teachers(
    own: Tokens, student: Tokens, look: float, context: int
) -> None:
    """Texts of up to four bytes behind a prompt of one token, which the context holds."""
    speaker = table(len(own.written))
    speaker.context_limit = context
    teacher = CarriedTeacher(speaker, Ends(0), Bounds(look, 0.0), tokens=(own, student))
    for text in short_texts(4):
        assert carried_law(teacher, text) == pytest.approx(law_of(speaker, own.written, text), rel=1e-9)


def test_with_equal_vocabularies_the_machinery_is_the_identity() -> None:
    teacher, own = carried(TEACHER), table(len(TEACHER))
    for reply in ([], [3], [1, 2], [5, 4, 3]):
        np.testing.assert_array_equal(distribution(teacher, reply), own.probabilities[reply[-1] if reply else 0])


def test_numbers_by_hand() -> None:
    """Teacher a .5, ab .3, EOS .2 in every state; the student has the bytes.

    After "a" either the teacher said a, P = .5, or it is inside ab, P = .3: b follows with .3/.8, and what follows the
    whole token a with .5/.8 of the row. P("a", "b") = .3, by one reading alone: b begins no token.
    """
    rows = np.tile([0.2, 0.5, 0.3], (3, 1))
    tokens = (Tokens((None, b"a", b"ab")), Tokens((b"a", b"b", None)))
    teacher = CarriedTeacher(TableTeacher(rows, "by hand"), Ends(2), EXACT, tokens=tokens)
    first, inside, behind = (state.mass for state in states_of(teacher, [0, 1], (1,)))
    np.testing.assert_allclose(first, [0.8, 0.0, 0.2], atol=1e-15)
    np.testing.assert_allclose(inside, [0.5 / 0.8 * 0.8, 0.3 / 0.8, 0.5 / 0.8 * 0.2], atol=1e-15)
    np.testing.assert_allclose(behind, first, atol=1e-15)


def test_a_student_token_of_several_of_the_teachers_is_their_chain() -> None:
    """Teacher a, b; the student has ab too. In every state a .5, b .3, EOS .2.

    π(ab) = .5 · .3, π(a) = .5 · .7; after a the teacher cannot have said b, so that b has no mass there and a .5/.7.
    """
    rows = np.tile([0.2, 0.5, 0.3], (3, 1))
    tokens = (Tokens((None, b"a", b"b")), Tokens((None, b"a", b"b", b"ab")))
    teacher = CarriedTeacher(TableTeacher(rows, "by hand"), Ends(0), EXACT, tokens=tokens)
    first, after = (state.mass for state in states_of(teacher, [1], (1,)))
    np.testing.assert_allclose(first, [0.2, 0.5 * 0.7, 0.3, 0.5 * 0.3], atol=1e-15)
    np.testing.assert_allclose(after, [0.2 / 0.7, 0.5 * 0.7 / 0.7, 0.0, 0.5 * 0.3 / 0.7], atol=1e-15)


@pytest.mark.parametrize("prune", [1e-3, 0.05, 0.2])
def test_what_is_left_out_is_what_is_missing(prune: float) -> None:
    """1 − Σ π = pruned + unwritten at every state; carried probabilities are lower bounds of the exact ones."""
    exact, bounded = carried(STUDENTS["bytes"]), carried(STUDENTS["bytes"], Bounds(0.0, prune))
    lost = 0.0
    for text in short_texts(5):
        reply = [1 + byte - 97 for byte in text]
        for state in states_of(bounded, reply):
            if not state.branches:  # all that led here was left out
                break
            assert 1 - state.mass.sum() == pytest.approx(state.pruned + state.unwritten, abs=1e-12)
            lost += state.pruned
        full = [*reply, exact.map.eos]
        assert probability(bounded, full) <= probability(exact, full) + 1e-15
    assert lost > 0


def test_what_the_student_cannot_write_is_counted() -> None:
    """Without b, all that is carried is what writes a alone; the rest is the mass of tokens with a b."""
    teacher, own = carried((None, b"a")), table(len(TEACHER))
    state = states_of(teacher, [1])[-1]
    assert state.unwritten == pytest.approx(own.probabilities[1, 2:].sum(), abs=1e-15)
    assert state.mass.sum() + state.unwritten == pytest.approx(1.0, abs=1e-12)


def spoken(kind: str, student: str, seed: int, bounds: Bounds) -> CarriedTeacher:
    """A random table that speaks one kind of tokenizer, carried to another."""
    own = KINDS[kind]()
    teacher = table(len(own), seed, eos=0.1)
    other = KINDS[student]()
    return CarriedTeacher(teacher, other, bounds, tokens=(tokens_of(own), tokens_of(other)))


def law_of(teacher: TableTeacher, written: Sequence[bytes | None], text: bytes) -> float:
    """P_T(text, EOS) over all of the teacher's token sequences that write it: forward sums over (place, last token)."""
    sums = [np.zeros(teacher.vocab_size) for _ in range(len(text) + 1)]
    sums[0][0] = 1.0
    for place in range(len(text)):
        reached = sums[place] @ teacher.probabilities
        for token, piece in enumerate(written):
            if piece and text.startswith(piece, place):
                sums[place + len(piece)][token] += reached[token]
    return float(sums[-1] @ teacher.probabilities[:, 0])


def carried_law(teacher: CarriedTeacher, text: bytes) -> float:
    """Σ over the student's token sequences that write the text, by the chain rule, of those that have mass."""
    reader = ExactReader(teacher.teacher)

    def rest(state: State, place: int) -> float:
        found = float(state.mass[teacher.map.eos]) if place == len(text) else 0.0
        for token in np.flatnonzero(state.mass > 0).tolist():
            piece = teacher.tokens.written[token]
            if piece and text.startswith(piece, place):
                after = carry.step([state], [token], teacher.map, reader, teacher.bounds)[0]
                found += float(state.mass[token]) * rest(after, place + len(piece))
        return found

    return rest(carry.start([(0,)], teacher.map, reader, teacher.bounds)[0], 0)


PAIRS = [pair for pair in itertools.permutations(KINDS, 2) if pair[0] != "byt5"]  # whose EOS is not 0


@pytest.mark.parametrize(("kind", "student"), PAIRS)
def test_between_kinds_of_tokenizers_the_law_of_texts_is_the_teachers(kind: str, student: str) -> None:
    teacher = spoken(kind, student, 3, Bounds(0.02, 0.0))
    written = tokens_of(KINDS[kind]()).written
    assert isinstance(teacher.teacher, TableTeacher)
    for text in [part for text in texts(40, seed=5) if len(part := text.encode()[:4]) > 0][:12]:
        law = law_of(teacher.teacher, written, text)
        assert law > 0
        assert carried_law(teacher, text) == pytest.approx(law, rel=1e-9)


@pytest.mark.parametrize(("kind", "student"), PAIRS)
def test_texts_are_walked_byte_by_byte(kind: str, student: str) -> None:
    """A random text in the teacher's tokens, cut by the map: P(σ) ≥ P_T(tokens), and the bytes are the same."""
    teacher = spoken(kind, student, 4, Bounds(0.02, 0.0))
    own = tokens_of(KINDS[kind]())
    assert isinstance(teacher.teacher, TableTeacher)
    for whole in own.split([text.encode() for text in texts(20, seed=6)]):
        tokens = (whole or ())[:3]  # every other way to say so is summed, and nothing is left out
        reply = cut_of(teacher, tokens)
        assert teacher.tokens.text_of(reply) == own.text_of(tokens)
        along = np.log([teacher.teacher.probabilities[pair] for pair in itertools.pairwise([0, *tokens])]).sum()
        assert np.log(probability(teacher, reply)) >= along - 1e-9


def cut_of(teacher: CarriedTeacher, tokens: Sequence[int]) -> list[int]:
    """The cut of a teacher's text, its last unit ended by an EOS."""
    assert isinstance(teacher.teacher, TableTeacher)
    chains, rows, found, place, before = teacher.map.chains, teacher.teacher.probabilities, [], 0, 0
    while place < len(tokens):
        unit, p = (tokens[place],), float(rows[before, tokens[place]])
        while unit in chains and p >= teacher.bounds.look and place + len(unit) < len(tokens):
            after = tokens[place + len(unit)]
            if after not in chains[unit]:
                break
            p *= float(rows[unit[-1], after])
            unit = (*unit, after)
        found += teacher.map.cut_of(unit) or ()
        place, before = place + len(unit), unit[-1]
    return found


def test_special_tokens_keep_their_names_and_others_are_not_carried() -> None:
    teacher = spoken("gpt2", "sentencepiece", 0, EXACT)
    assert teacher.map.pieces[1] == (1,) and teacher.map.first[0] == teacher.map.eos == 0
    teacher = spoken("gpt2", "byt5", 0, Bounds(0.02, 0.0))  # which has no <named>
    assert isinstance(teacher.teacher, TableTeacher)
    assert teacher.map.pieces[1] is None and teacher.map.first[0] == teacher.map.eos == 1
    state = states_of(teacher, [])[0]
    assert state.unwritten == pytest.approx(teacher.teacher.probabilities[0, 1], abs=1e-15)


def test_characters_that_the_student_cannot_write_are_lost_by_measure() -> None:
    own, other = KINDS["gpt2"](), sentence_piece(fallback=False)
    tokens = tokens_of(own), tokens_of(other)
    teacher = CarriedTeacher(table(len(own)), other, Bounds(0.02, 0.0), tokens=tokens)
    state = states_of(teacher, [])[0]
    assert 0 < state.unwritten < 1 and state.mass.sum() + state.unwritten == pytest.approx(1.0, abs=1e-9)


def test_equal_tokenizers_give_the_teacher_itself() -> None:
    teacher = load_teacher("embedded")
    assert in_tokens_of(teacher, AutoTokenizer.from_pretrained(EMBEDDED)) is teacher
    assert in_tokens_of(teacher, KINDS["gpt2"]()) is not teacher


def test_a_walk_of_rows_is_the_filter_of_each_and_of_the_score() -> None:
    """Rows that begin, go on and stop at different times, over few rows of the teacher, and `score` of whole texts."""
    teacher = carried(STUDENTS["pairs"])
    for prompt in range(1, 4):
        teacher.remember([prompt], [prompt])
    rng, texts_of = random.Random(0), [[0], [1], [2]]
    walk = teacher.walk(3)
    walk.start([0, 1, 2], texts_of)
    for turn in range(12):
        for row, text in enumerate(texts_of):
            state = states_of(teacher, text[1:], (text[0],))[-1]
            torch.testing.assert_close(
                walk.log_probs[row].exp(), torch.from_numpy(state.mass).float(), atol=1e-6, rtol=0
            )
        if turn == 5:
            walk.keep_rows([2, 0])
            texts_of = [texts_of[2], texts_of[0]]
        if turn == 8:
            texts_of[1] = [3]
            walk.start([1], [[3]])
        tokens = [rng.choice(np.flatnonzero(row.exp().numpy()[1:] > 1e-3).tolist()) + 1 for row in walk.log_probs]
        active = [turn % 3 > 0 or row == 0 for row in range(len(texts_of))]
        walk.step(torch.tensor(tokens), torch.tensor(active))
        for row, token in enumerate(tokens):
            texts_of[row] = [*texts_of[row], token] if active[row] else texts_of[row]
    scores = teacher.score([*texts_of, [2, 1, 0]])
    for row, text in enumerate([*texts_of, [2, 1]]):
        for place in range(1, len(text) + 1):
            state = states_of(teacher, text[1:place], (text[0],))[-1]
            torch.testing.assert_close(
                scores[row, place - 1].exp(), torch.from_numpy(state.mass).float(), atol=1e-6, rtol=0
            )


def test_errors_say_what_to_do() -> None:
    teacher = carried(STUDENTS["long"])
    assert copy.deepcopy(teacher) is teacher
    with pytest.raises(InputError, match=r"not encoded by this teacher.*give prompts as texts"):
        teacher.walk(1).start([0], [[2]])
    with pytest.raises(InputError, match="two different ones to the teacher"):
        teacher.remember([0], [1])
    walk = teacher.walk(1)
    walk.start([0], [[0]])
    walk.step(torch.tensor([1]), torch.tensor([True]))
    impossible = int((walk.log_probs[0] == -torch.inf).nonzero()[0])
    with pytest.raises(InputError, match=r"has no mass of the teacher's.*tdistill collect"):
        walk.step(torch.tensor([impossible]), torch.tensor([True]))
    for wrong in (Bounds(look=1.0), Bounds(prune=-0.1)):
        with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
            carried(STUDENTS["long"], wrong)
    with pytest.raises(InputError, match="names no EOS token"):
        CarriedTeacher(table(6), Ends(None))
    with pytest.raises(InputError, match="has no tokenizer"):
        in_tokens_of(table(6), KINDS["gpt2"]())
    with pytest.raises(InputError, match="write none of the teacher's"):
        carried((None, b"z"))
    small = table(6)
    small.context_limit = 3
    walk = carried(STUDENTS["bytes"], teacher=small).walk(1)
    walk.start([0], [[0]])
    with pytest.raises(InputError, match="4 of the teacher's own tokens, its context is 3; lower --max-new-tokens"):
        for _ in range(4):
            walk.step(torch.tensor([1]), torch.tensor([True]))
