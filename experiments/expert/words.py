"""Words as token sequences, and which of them are low-frequency."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.rules.spelling import is_word
from experiments.slices import rare_tokens

Word: TypeAlias = tuple[int, ...]
Kinds: TypeAlias = NDArray[np.uint8]
SILENT, BEGINS, CONTINUES = 0, 1, 2
"""What a token is to a word: it writes nothing (special tokens), it begins one, or it goes on with one."""


def kinds_of(pieces: Sequence[bytes]) -> Kinds:
    """What each token is to a word, by the bytes it writes: a letter or digit goes on with what stands before it.

    >>> kinds_of([b"", b" Ember", b"s", b","]).tolist()
    [0, 1, 2, 1]
    """
    return np.array(
        [SILENT if not piece else CONTINUES if is_word(piece.lower()[0], True) else BEGINS for piece in pieces],
        dtype=np.uint8,
    )


def spans(text: Sequence[int], kinds: Kinds) -> list[tuple[int, int]]:
    """Where the words of a text stand, first place and the one behind the last; silent tokens belong to none.

    >>> spans([1, 2, 3, 0, 2], np.array([0, 1, 2, 1], dtype=np.uint8))
    [(0, 2), (2, 3), (4, 5)]
    """
    found: list[tuple[int, int]] = []
    for place, token in enumerate(text):
        kind = kinds[token] if token < len(kinds) else SILENT
        if kind == CONTINUES and found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        elif kind != SILENT:
            found.append((place, place + 1))
    return found


def common_words(texts: Iterable[Sequence[int]], kinds: Kinds) -> frozenset[Word]:
    """The words of these texts that are not low-frequency: rare words are at most a tenth, as `slices.rare_tokens`."""
    numbers: dict[Word, int] = {}
    corpus = [
        [numbers.setdefault(tuple(text[start:end]), len(numbers)) for start, end in spans(text, kinds)]
        for text in texts
    ]
    rare = rare_tokens(corpus)
    return frozenset(word for word, number in numbers.items() if number not in rare)


def low_frequency(text: Sequence[int], kinds: Kinds, common: Collection[Word]) -> NDArray[np.bool_]:
    """Which tokens of a text belong to a word that is none of the common ones.  # (len(text),) bool"""
    found = np.zeros(len(text), dtype=bool)
    for start, end in spans(text, kinds):
        found[start:end] = tuple(text[start:end]) not in common
    return found
