"""Exact small teachers: an n-gram table in place of a network, for oracles and lessons."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.candidates import normalise
from envs.errors import InputError
from envs.walk import Walk

EOS = 0


class TableTeacher:
    """An n-gram teacher whose states can be enumerated.

    The state of a text is its last `order` tokens read as a number in base V, the newest token the lowest digit;
    shorter texts are padded on the left with the EOS token 0. States are position-free and EOS ends a text, so the
    infinite-horizon fixed points of `exact.py` are those of the environment.

    Args:
        probabilities: (V ** order, V), rows summing to 1; row = state, column = next token.
        name: what errors and results call it.
    Raises: InputError: a table of another shape, rows that are no distributions, or a state that never reaches EOS.
    """

    def __init__(self, probabilities: NDArray[np.float64], name: str = "table") -> None:
        states, vocabulary = probabilities.shape
        order = round(np.log(states) / np.log(vocabulary))
        if vocabulary**order != states or order < 1:
            raise InputError(f"a table of {states} states and {vocabulary} tokens is no n-gram table; give V ** n rows")
        if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1.0, atol=1e-12):
            raise InputError("the rows of a table must be probabilities that sum to 1; divide each row by its sum")
        self.name, self.order, self.vocab_size = name, order, vocabulary
        self.eos_ids = frozenset({EOS})
        self.context_limit = 1_000_000
        self.probabilities = probabilities
        with np.errstate(divide="ignore"):
            self.table = np.log(probabilities)
        self._check_that_texts_end()

    def __deepcopy__(self, memo: object) -> TableTeacher:
        return self

    @property
    def states(self) -> int:
        """S: how many states there are, V ** order."""
        return int(self.vocab_size**self.order)

    def successors(self) -> NDArray[np.int64]:
        """(S, V): the state after each token; EOS leads nowhere but keeps an index."""
        state = np.arange(self.states, dtype=np.int64)[:, None]
        after: NDArray[np.int64] = (state * self.vocab_size + np.arange(self.vocab_size)) % self.states
        return after

    def state_of(self, text: Sequence[int]) -> int:
        """The state of a text."""
        state = 0
        for token in text[-self.order :]:
            state = state * self.vocab_size + int(token)
        return state

    def encode(self, text: str) -> list[int]:
        """Token ids from their decimal names: "1 2" is [1, 2].

        Raises: InputError: a word that is no token of this table.
        """
        words = text.split()
        if not words or not all(word.isdecimal() and int(word) < self.vocab_size for word in words):
            raise InputError(
                f"{text!r} is no text of {self.name!r}; write token numbers below {self.vocab_size}, as in '1 2'"
            )
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(token)) for token in ids if int(token) not in self.eos_ids)

    def walk(self, rows: int) -> Walk:
        return TableWalk(self, rows)

    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, sequences))
        logp = torch.zeros(len(sequences), longest, self.vocab_size)  # (B, L, V)
        for row, text in enumerate(sequences):
            states = [self.state_of(text[: end + 1]) for end in range(len(text))]
            logp[row, : len(text)] = torch.from_numpy(self.table[states]).float()
        return logp

    def _check_that_texts_end(self) -> None:
        can_end = self.probabilities[:, EOS] > 0
        after = self.successors()
        for _ in range(self.states):
            can_end = can_end | ((self.probabilities > 0) & can_end[after]).any(1)
        if not can_end.all():
            raise InputError(
                f"state {int((~can_end).argmax())} of the table never reaches EOS; give EOS some probability"
            )


class TableWalk:
    """N texts of a table teacher; see `envs.walk.Walk`."""

    def __init__(self, teacher: TableTeacher, rows: int) -> None:
        self._teacher = teacher
        self._table = normalise(torch.from_numpy(teacher.table))  # (S, V)
        self._state = torch.zeros(rows, dtype=torch.int64)
        self.log_probs = self._table[self._state]  # (N, V)

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        for row, prompt in zip(rows, prompts, strict=True):
            self._state[row] = self._teacher.state_of(prompt)
        self.log_probs = self._table[self._state]

    def step(self, tokens: Tensor, active: Tensor) -> None:
        after = (self._state * self._teacher.vocab_size + tokens) % self._teacher.states
        self._state = torch.where(active, after, self._state)
        self.log_probs = self._table[self._state]

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._state = self._state[list(rows)]
        self.log_probs = self._table[self._state]


def toy() -> TableTeacher:
    """Six tokens, order 1, probabilities in hundredths: nuclei of one to four tokens, of masses .82 to .98 at p = .8.

    Texts through 3 and 5 leave their sets often, texts through 1 and 2 seldom: what a learner of values must notice. No
    partial sum of a row comes within half a hundredth of the usual p, so that the sets are those of any precision.
    """
    rows = [
        [10, 30, 22, 26, 8, 4],
        [30, 22, 1, 44, 2, 1],
        [64, 1, 34, 1, 0, 0],
        [10, 7, 9, 41, 2, 31],
        [93, 3, 2, 2, 0, 0],
        [6, 14, 12, 27, 26, 15],
    ]
    return TableTeacher(np.array(rows) / 100, "toy")


def detour() -> TableTeacher:
    """Two ways of equal probability: one nearly always stays inside p = .7, the other seldom (equation (4c))."""
    rows = [
        [0.02, 0.48, 0.48, 0.02],
        [0.96, 0.02, 0.01, 0.01],
        [0.26, 0.24, 0.25, 0.25],
        [0.72, 0.10, 0.09, 0.09],
    ]
    return TableTeacher(np.array(rows), "detour")


def second_order() -> TableTeacher:
    """Four tokens, order 2: sixteen states drawn once from a fixed seed."""
    rng = random.Random(105)
    rows = np.array([[rng.gammavariate(0.7, 1.0) + 0.02 for _ in range(4)] for _ in range(16)])
    rows[:, EOS] += 0.15
    return TableTeacher(rows / rows.sum(1, keepdims=True), "second_order")


TABLES: dict[str, Callable[[], TableTeacher]] = {"toy": toy, "detour": detour, "second_order": second_order}
