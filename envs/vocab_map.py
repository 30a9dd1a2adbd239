"""A vocabulary map: how a text that a teacher writes in its tokens is cut into a student's tokens.

The cut G is a function of the teacher's tokens, read from left to right. A *unit* is one teacher token, or several that
stand for one student token: a teacher token begins a longer unit if some student token, cut by the teacher's
tokenizer, begins with it, and the unit goes on as long as the next token does. Each unit is cut into student tokens
that write exactly its bytes: the one that writes all of them, else as the student's tokenizer cuts them, else the
fewest. EOS becomes EOS; special tokens become those of the same name.

    teacher  | " refund" | "able" | "." | EOS      the student has " refundable": one unit of two tokens
    student  | " refundable"      | "." | EOS

Since no byte is added, lost or moved, the text law is the teacher's own: P(text) = Σ over σ with this text of P(σ).
With equal vocabularies every unit is one token and G the identity.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from envs.token_bytes import Pieces, Tokens

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class VocabularyMap:
    """The cut of every unit, indexed by what has been said of it; made by `vocabulary_map`."""

    size: int  # V_S
    eos: int  # of the student
    ends: Ids  # teacher's ids that end a text
    first: Ids  # (V_T,) first student token of each teacher token; `size` where it has none
    begin: dict[Pieces, tuple[Ids, Ids]]  # pieces said -> teacher tokens that go on, and with what
    whole: dict[Pieces, Ids]  # pieces said -> teacher tokens that are said in full
    chains: dict[Pieces, frozenset[int]]  # teacher tokens read -> what would make the unit longer
    cut: dict[Pieces, Pieces | None]  # units of several teacher tokens -> student tokens
    pieces: tuple[Pieces | None, ...]  # (V_T,) the same of single ones; None: the student cannot write it

    @cached_property
    def openers(self) -> Ids:
        """Teacher tokens that may begin a longer unit."""
        return np.array(sorted(chain[0] for chain in self.chains if len(chain) == 1), dtype=np.int64)

    @property
    def longest(self) -> int:
        """The most student tokens of a teacher token."""
        return max((len(own) for own in self.pieces if own), default=1)

    def cut_of(self, unit: Pieces) -> Pieces | None:
        """The student tokens of a unit; None: the student cannot write it."""
        return self.pieces[unit[0]] if len(unit) == 1 else self.cut[unit]


def vocabulary_map(
    teacher: Tokens, student: Tokens, *, teacher_eos: Collection[int], student_eos: int, rows: int | None = None
) -> VocabularyMap:
    """The map between two vocabularies.

    Args:
        teacher_eos: all of them become `student_eos`.
        rows: V_T, the width of the teacher's softmax; None: its tokens. Tokens beyond it are never said.
    Raises: InputError: the student can write no token of the teacher.
    """
    count = len(teacher.written) if rows is None else rows
    size = len(student.written)
    known = [number for number, piece in enumerate(teacher.written[:count]) if piece]
    pieces: list[Pieces | None] = [None] * count
    for number, own in zip(known, student.split([teacher.written[number] or b"" for number in known]), strict=True):
        pieces[number] = own
    _same_first(pieces, teacher, student)
    for name, number in teacher.special.items():
        if number < count and student.special.get(name, student_eos) != student_eos:
            pieces[number] = (student.special[name],)
    ends = np.array(sorted(number for number in teacher_eos if number < count), dtype=np.int64)
    for number in ends:
        pieces[number] = None
    if not any(pieces):
        raise InputError("the student's tokens write none of the teacher's; take another tokenizer for the student")
    chains, cut = _chains(teacher, student, set(range(count)) - set(teacher_eos))
    first = np.array([own[0] if own else size for own in pieces], dtype=np.int64)
    first[ends] = student_eos
    begin, whole = _index(pieces)
    return VocabularyMap(size, student_eos, ends, first, begin, whole, chains, cut, tuple(pieces))


def _same_first(pieces: list[Pieces | None], teacher: Tokens, student: Tokens) -> None:
    """Of several student tokens that write the same, the one with the teacher's id: equal vocabularies map to
    themselves. A byte of the student's fallback stands for one of the teacher's alone."""
    for number, piece in enumerate(teacher.written[: len(pieces)]):
        alike = number in teacher.fallback or number not in student.fallback
        if piece and alike and number < len(student.written) and student.written[number] == piece:
            pieces[number] = (number,)


def _chains(
    teacher: Tokens, student: Tokens, said: set[int]
) -> tuple[dict[Pieces, frozenset[int]], dict[Pieces, Pieces | None]]:
    """What teacher tokens read so far may be followed by within a unit, and the cut of every unit of several.

    Args:
        said: what units are made of: the teacher's tokens that may be said and end no text.
    """
    written = sorted({piece for piece in student.written if piece})
    longer = [own for own in teacher.split(written) if own is not None and len(own) > 1 and said.issuperset(own)]
    found: dict[Pieces, set[int]] = {}
    for own in longer:
        for stop in range(1, len(own)):
            found.setdefault(own[:stop], set()).add(own[stop])
    units = sorted({own[:stop] for own in longer for stop in range(2, len(own) + 1)})
    cuts = student.split([teacher.text_of(unit) for unit in units])
    return {unit: frozenset(after) for unit, after in found.items()}, dict(zip(units, cuts, strict=True))


def _index(pieces: Sequence[Pieces | None]) -> tuple[dict[Pieces, tuple[Ids, Ids]], dict[Pieces, Ids]]:
    """Teacher tokens by the beginnings of their cuts."""
    begin: dict[Pieces, list[tuple[int, int]]] = {}
    whole: dict[Pieces, list[int]] = {}
    for number, own in enumerate(pieces):
        if own is None:
            continue
        whole.setdefault(own, []).append(number)
        for stop in range(1, len(own)):
            begin.setdefault(own[:stop], []).append((number, own[stop]))
    pairs = {said: np.array(own, dtype=np.int64) for said, own in begin.items()}
    return (
        {said: (own[:, 0], own[:, 1]) for said, own in pairs.items()},
        {said: np.array(own, dtype=np.int64) for said, own in whole.items()},
    )
