"""Carried teachers over tables, and exact walks along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from envs import carry
from envs.carried_teacher import CarriedTeacher
from envs.carry import Bounds, State
from envs.table_teacher import TableTeacher
from envs.token_bytes import Tokens

EXACT = Bounds(look=0.0, prune=0.0)
TEACHER = (None, b"a", b"b", b"ab", b"ba", b"abb")
STUDENTS = {
    "bytes": (None, b"a", b"b"),
    "pairs": (None, b"a", b"b", b"aa", b"ab", b"bb"),
    "long": (None, b"a", b"b", b"abba", b"bab", b"abbb", b"aaa"),
    "other order": (b"abb", b"ba", b"b", b"a", None),
    "equal": TEACHER,
}


class Ends:
    """All of a tokenizer that a carried teacher over tables asks for."""

    def __init__(self, eos: int) -> None:
        self.eos_token_id = eos


def table(size: int, seed: int = 0, eos: float = 0.25) -> TableTeacher:
    """Order 1, every token possible everywhere, EOS with the probability given."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(0.6, size=(size, size)) + 0.01
    rows[:, 0] = 0.0
    rows *= (1 - eos) / rows.sum(1, keepdims=True)
    rows[:, 0] = eos
    return TableTeacher(rows, "bytes")


def carried_by_hand(teacher: TableTeacher, own: Tokens, student: Tokens, bounds: Bounds = EXACT) -> CarriedTeacher:
    """The first token without bytes is the student's EOS."""
    return CarriedTeacher(teacher, Ends(student.written.index(None)), bounds, tokens=(own, student))


def carried(
    student: Sequence[bytes | None], bounds: Bounds = EXACT, teacher: TableTeacher | None = None
) -> CarriedTeacher:
    """Over the table of `TEACHER`; the prompt [0] is [0] to both."""
    found = carried_by_hand(teacher or table(len(TEACHER)), Tokens(TEACHER), Tokens(tuple(student)), bounds)
    found.remember([0], [0])
    return found


class ExactReader:
    """A table's rows in float64, where a walk has float32."""

    def __init__(self, teacher: TableTeacher) -> None:
        self.teacher, self.limit = teacher, teacher.context_limit

    def __call__(self, texts: Sequence[tuple[int, ...]]) -> list[np.ndarray[Any, Any]]:
        assert all(len(text) <= self.limit for text in texts)
        return [self.teacher.probabilities[self.teacher.state_of(text)].copy() for text in texts]


def states_of(teacher: CarriedTeacher, reply: Sequence[int], prompt: tuple[int, ...] = (0,)) -> list[State]:
    """The states along a reply, the one before it included."""
    assert isinstance(teacher.teacher, TableTeacher)
    reader = ExactReader(teacher.teacher)
    found = carry.start([prompt], teacher.map, reader, teacher.bounds)
    for token in reply:
        found += carry.step(found[-1:], [token], teacher.map, reader, teacher.bounds)
    return found


def probability(teacher: CarriedTeacher, reply: Sequence[int]) -> float:
    """Π π(s|σ) along a reply, by the chain rule."""
    assert isinstance(teacher.teacher, TableTeacher)
    reader, p = ExactReader(teacher.teacher), 1.0
    state = carry.start([(0,)], teacher.map, reader, teacher.bounds)
    for place, token in enumerate(reply):
        p *= float(state[0].mass[token])
        if p == 0.0 or place + 1 == len(reply):
            break
        state = carry.step(state, [token], teacher.map, reader, teacher.bounds)
    return p


def cuts(text: bytes, written: Sequence[bytes | None]) -> Iterator[list[int]]:
    """All token sequences that write a text."""
    if not text:
        yield []
    for token, piece in enumerate(written):
        if piece and text.startswith(piece):
            yield from ([token, *rest] for rest in cuts(text[len(piece) :], written))


def short_texts(longest: int) -> list[bytes]:
    return [
        bytes(97 + (number >> place & 1) for place in range(size))
        for size in range(longest + 1)
        for number in range(2**size)
    ]
