"""The law of the student's tokens that a teacher's law and a vocabulary map give: a filter over what was read.

    P(σ) = Σ of P_T(teacher's tokens) over those whose cut G begins with σ,   π(s|σ) = P(σ·s) / P(σ)

A *branch* is one way the teacher may have come to σ: its tokens so far, and the student tokens said of the unit that it
is in. Where a student token ends inside a teacher token the branch stays, as the sum over the teacher's tokens that
share what was said; where it may be a whole unit too, another branch goes on behind that unit. Log-probabilities of
whole teacher tokens enter by the chain rule.

Two bounds keep this finite. `look`: a unit is followed beyond a teacher token only where that has at least this
probability, and never beyond its context (else the unit ends there: another cut of the same bytes, nothing is lost).
`prune`: branches below this share of P(σ) are left out; what they had is missing from the probabilities, as is what the
student cannot write: 1 − Σ_s π(s|σ) is what was not carried, and nothing is renormalised. With prune = 0, and all
written, the law is exact.

Source: own derivation; sums over tokens that share a prefix as in Phan et al. (2024), arXiv:2410.09303, and covers of a
text as in Vieira et al. (2024), arXiv:2412.03719.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.token_bytes import Pieces
from envs.vocab_map import VocabularyMap

Mass = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """What is followed; both are probabilities."""

    look: float = 0.01
    """A unit is followed beyond a teacher token of at least this probability."""
    prune: float = 1e-4
    """Ways of reading a text with less than this share of its probability are left out, and counted as lost."""


class Reader(Protocol):
    """Who knows the teacher."""

    @property
    def limit(self) -> int:
        """The most tokens of a text: the teacher's context."""
        ...

    def __call__(self, texts: Sequence[Pieces]) -> list[Mass]:
        """The distribution of the token after each text of the teacher's, (V_T,) each."""
        ...


@dataclass(frozen=True)
class Unit:
    """A unit of several teacher tokens, or of one that is no longer unit's beginning."""

    tokens: Pieces
    share: float  # its probability, that no longer unit follows included
    cut: Pieces | None
    weight: float  # P of its tokens, without what follows
    after: Reading | None  # where it has been read on


@dataclass
class Reading:
    """A text of the teacher's, and what may follow: single tokens by mass, and units that were looked into."""

    text: Pieces
    mass: Mass  # (V_T,), without tokens that cannot follow and those that were looked into
    units: list[Unit] = field(default_factory=list)
    opened: bool = False


@dataclass(frozen=True)
class Branch:
    """One way to have come to the student's text."""

    reading: Reading
    weight: float  # P of the teacher's text, over P(σ)
    said: Pieces = ()  # student tokens of the unit it is in


@dataclass
class State:
    """A text of the student's: the ways to it, and what follows."""

    branches: list[Branch]
    mass: Mass  # (V_S,) π(s|σ)
    unwritten: float = 0.0  # share of what the student has no tokens for
    pruned: float = 0.0  # share of the branches left out

    @property
    def length(self) -> int:
        """Tokens of the teacher's text, in the longest of the ways; at the reader's limit the text has to end."""
        return max((len(branch.reading.text) for branch in self.branches), default=0)


def start(texts: Sequence[Pieces], vocabulary: VocabularyMap, reader: Reader, bounds: Bounds) -> list[State]:
    """The states behind these prompts of the teacher's."""
    readings = [Reading(text, mass) for text, mass in zip(texts, reader(texts), strict=True)]
    _open(readings, vocabulary, reader, bounds)
    return [_state([Branch(reading, 1.0)], 0.0, vocabulary) for reading in readings]


def step(
    states: Sequence[State], tokens: Sequence[int], vocabulary: VocabularyMap, reader: Reader, bounds: Bounds
) -> list[State]:
    """The states behind one more student token each, none of them EOS; the teacher is asked once for all.

    A token without mass leads to a state without branches.
    """
    ways, lost = [], []
    for state, token in zip(states, tokens, strict=True):
        total = float(state.mass[token])
        found = [(way, share / total) for way, share in _ways(state, token, vocabulary)] if total > 0 else []
        kept = [(way, share) for way, share in found if share >= bounds.prune]
        if found and not kept:
            kept = [max(found, key=lambda pair: pair[1])]
        ways.append([(way, total) for way, _ in kept])
        lost.append(sum(share for _, share in found) - sum(share for _, share in kept))
    wanted = [way.text for own in ways for way, _ in own if way.reading is None]
    masses = iter(reader(wanted) if wanted else [])
    after = [
        [Branch(way.reading or Reading(way.text, next(masses)), way.weight / total, way.said) for way, total in own]
        for own in ways
    ]
    _open([branch.reading for own in after for branch in own], vocabulary, reader, bounds)
    return [_state(own, max(0.0, share), vocabulary) for own, share in zip(after, lost, strict=True)]


@dataclass(frozen=True)
class _Way:
    text: Pieces
    weight: float
    said: Pieces
    reading: Reading | None


def _ways(state: State, token: int, vocabulary: VocabularyMap) -> Iterator[tuple[_Way, float]]:
    """The branches behind a token, with the probability of each, in units of P(σ)."""
    for branch in state.branches:
        reading, weight = branch.reading, branch.weight
        said = (*branch.said, token)
        stays = 0.0
        if said in vocabulary.begin:
            stays += float(reading.mass[vocabulary.begin[said][0]].sum())
        for unit in reading.units:
            if unit.cut is None or unit.cut[: len(said)] != said:
                continue
            if len(unit.cut) > len(said):
                stays += unit.share
                continue
            text = reading.text + unit.tokens
            yield _Way(text, weight * unit.weight, (), unit.after), weight * unit.share
        if stays > 0:
            yield _Way(reading.text, weight, said, reading), weight * stays
        for number in vocabulary.whole.get(said, ()):
            if (share := weight * float(reading.mass[number])) > 0:
                yield _Way((*reading.text, int(number)), share, (), None), share


def _state(branches: list[Branch], pruned: float, vocabulary: VocabularyMap) -> State:
    mass = np.zeros(vocabulary.size + 1)  # the last: what has no tokens
    for branch in branches:
        reading, said = branch.reading, branch.said
        if not said:
            mass += branch.weight * np.bincount(vocabulary.first, reading.mass, vocabulary.size + 1)
        elif said in vocabulary.begin:
            numbers, after = vocabulary.begin[said]
            mass += branch.weight * np.bincount(after, reading.mass[numbers], vocabulary.size + 1)
        for unit in reading.units:
            if unit.cut is None:
                mass[-1] += 0.0 if said else branch.weight * unit.share
            elif len(unit.cut) > len(said) and unit.cut[: len(said)] == said:
                mass[unit.cut[len(said)]] += branch.weight * unit.share
    return State(branches, mass[:-1], float(mass[-1]), pruned)


def _open(readings: Sequence[Reading], vocabulary: VocabularyMap, reader: Reader, bounds: Bounds) -> None:
    """Look into the units that may begin behind these texts, a teacher token deeper at a time.

    A unit of n tokens is followed where a longer one, n + 1, can be read still.
    """
    todo: list[tuple[Reading, Pieces, float]] = []
    for reading in readings:
        if not reading.opened and len(reading.text) + 2 <= reader.limit:
            reading.opened = True
            openers = vocabulary.openers
            for number in openers[reading.mass[openers] >= bounds.look]:
                todo.append((reading, (int(number),), float(reading.mass[number])))
                reading.mass[number] = 0.0
    while todo:
        masses = reader([reading.text + unit for reading, unit, _ in todo])
        deeper: list[tuple[Reading, Pieces, float]] = []
        for (reading, unit, weight), mass in zip(todo, masses, strict=True):
            rest = mass.copy()
            for number in sorted(vocabulary.chains[unit]):
                longer, share = (*unit, number), weight * float(rest[number])
                rest[number] = 0.0
                room = len(reading.text) + len(longer) < reader.limit
                if share >= bounds.look and longer in vocabulary.chains and room:
                    deeper.append((reading, longer, share))
                elif share > 0:
                    reading.units.append(Unit(longer, share, vocabulary.cut[longer], share, None))
            after = Reading(reading.text + unit, rest)
            reading.units.append(Unit(unit, weight * float(rest.sum()), vocabulary.cut_of(unit), weight, after))
        todo = deeper
