"""The prompts an environment serves: encoded, checked, and dealt in a random order, each once per pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from envs.errors import InputError
from envs.prompts import Prompt, beyond, embedded_prompts, encode_prompts
from envs.teachers import Teacher


class Card(NamedTuple):
    """One prompt to begin an episode with."""

    number: int  # its place in the deck; −1 for one that a reset was given
    ids: list[int]
    text: str | None  # as it was given; None where it was given as ids


class Deck:
    """Prompts as token ids, dealt by a seeded permutation.

    Args:
        source: what `envs.prompts.encode_prompts` takes; None = the embedded training split.
        longest: the most tokens a prompt may have; None = as many as the longest of these.
    Raises: InputError: no prompt, or one that is empty or longer than `longest` or than the teacher's context.
    """

    def __init__(self, teacher: Teacher, source: Any, longest: int | None) -> None:
        if longest is not None and longest < 1:
            raise InputError(f"max_prompt_tokens = {longest} is below 1; None takes the longest prompt")
        self._teacher = teacher
        self.prompts: list[Prompt]
        self.prompts, self._ids = encode_prompts(teacher, _embedded() if source is None else source)
        self.longest = max(map(len, self._ids)) if longest is None else longest
        for index, ids in enumerate(self._ids):
            self._check(ids, index)
        self._queue: list[int] = []

    @property
    def shortest(self) -> int:
        """Tokens of the shortest prompt."""
        return min(map(len, self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    def restart(self) -> None:
        """Forget the pass that is under way."""
        self._queue = []

    def deal(self, count: int, rng: np.random.Generator) -> list[Card]:
        """The next prompts of this pass, and of new passes once it is through."""
        return [self._next(rng) for _ in range(count)]

    def next_ids(self, count: int, rng: np.random.Generator) -> list[list[int]]:
        """The prompts that `deal` will give next, up to the end of the pass."""
        if not self._queue:
            self._queue = rng.permutation(len(self._ids)).tolist()
        return [self._ids[index] for index in self._queue[: -count - 1 : -1]]

    def given(self, prompts: Sequence[Any], count: int) -> list[Card]:
        """Prompts chosen from outside, which need not be in the deck.

        Raises: InputError: not `count` of them, or one that does not fit.
        """
        known, encoded = encode_prompts(self._teacher, prompts)
        if len(encoded) != count:
            raise InputError(f"{len(encoded)} prompts were given for {count} rows; give one a row")
        for number, ids in enumerate(encoded):
            self._check(ids, number)
        return [Card(-1, ids, known[number].text if known else None) for number, ids in enumerate(encoded)]

    def _next(self, rng: np.random.Generator) -> Card:
        if not self._queue:
            self._queue = rng.permutation(len(self._ids)).tolist()
        index = self._queue.pop()
        return Card(index, self._ids[index], self.prompts[index].text if self.prompts else None)

    def _check(self, ids: Sequence[int], number: int) -> None:
        context = self._teacher.context_limit
        limit = min(self.longest, context - 1)
        if not 0 < len(ids) <= limit:
            raise InputError(
                f"prompt {number} has {len(ids)} tokens, the limit is {limit} (max_prompt_tokens, and one less than "
                f"the teacher's context of {context}); shorten it, leave it out, or raise max_prompt_tokens"
            )
        if over := beyond(ids, self._teacher):
            raise InputError(f"prompt {number} has {over}; shorten it, or leave it out")


@cache
def _embedded() -> tuple[Prompt, ...]:
    """The embedded training split, generated once in a process."""
    return tuple(embedded_prompts("train"))
