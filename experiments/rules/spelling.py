"""Tokens as the bytes they write: which of them go on with a text, and how few spell it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from envs.token_bytes import rule_of, vocabulary_size

Mask = NDArray[np.bool_]
WORD = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_")
"""Bytes, lower case, that make words; those of other scripts are asked of where a phrase stands (`Spelling`)."""
INFINITE = 10**9


def pieces_of(tokenizer: Any) -> list[bytes]:
    """The bytes that each token adds to a text, by id; none of a special token.

    Raises: InputError: a tokenizer whose tokens are not bytes by a rule known here.
    """
    size, special = vocabulary_size(tokenizer), set(tokenizer.all_special_ids)
    tokens = ["" if token is None else str(token) for token in tokenizer.convert_ids_to_tokens(list(range(size)))]
    write = rule_of(tokenizer) or _of_words
    found = [b"" if number in special else write(token) for number, token in enumerate(tokens)]
    probe = tokenizer("Order 482 is ready, thank you.", add_special_tokens=False)["input_ids"]
    spelled = b"".join(found[number] for number in probe)
    if spelled.strip() != tokenizer.decode(probe, skip_special_tokens=True).strip().encode():
        raise InputError(
            f"{type(tokenizer).__name__} writes its tokens in a way that rules do not know ({spelled!r}); byte-level "
            "BPE, SentencePiece and whole words are known"
        )
    return found


def _of_words(token: str) -> bytes:
    return b" " + token.encode()


class Spelling:
    """A vocabulary as lower-case bytes (of ASCII letters), and what of it goes on with a text.

    Whether a byte ends a word is clear for ASCII. Bytes of other scripts, and of punctuation outside ASCII, count as
    what is on the safe side: as letters where a phrase must be said, as none where it must not.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [piece.lower() for piece in pieces]
        self.known = set(self.pieces) - {b""}
        self.longest = max(map(len, self.pieces))
        self.starts = cache(self._starts)
        self.inside = cache(self._inside)
        self.fewest = cache(self._fewest)
        self.goes_on = cache(self._goes_on)
        self.within = cache(self._within)
        self.as_letter = self._where([bool(piece) and is_word(piece[0], True) for piece in self.pieces])
        self.touches = cache(self._touches)

    def __len__(self) -> int:
        return len(self.pieces)

    def _where(self, flags: Sequence[bool]) -> Mask:
        found = np.array(flags, dtype=bool)
        found.setflags(write=False)
        return found

    def _starts(self, rest: bytes) -> Mask:
        """Tokens that write `rest` first, to its end or to the end of a word.  # (V,)"""
        return self._where([piece.startswith(rest) and ends_at(piece, len(rest), False) for piece in self.pieces])

    def _inside(self, phrase: bytes) -> Mask:
        """Tokens with the whole phrase in them, not at their beginning.  # (V,)"""
        return self._where([occurs(piece, phrase, False, 1) for piece in self.pieces])

    def _touches(self, phrase: bytes) -> Mask:
        """Tokens that can complete the phrase behind some text.  # (V,)"""
        found = self.inside(phrase).copy()
        for said in range(len(phrase)):
            found |= self.starts(phrase[said:])
        return self._where(found.tolist())

    def _fewest(self, text: bytes) -> int:
        """How few tokens spell a text exactly; `INFINITE` if none do.

            n(∅) = 0,   n(x) = 1 + min over tokens t with x = t·y of n(y)

        Source: own derivation, shortest path.
        """
        least = [INFINITE] * len(text) + [0]
        for start in reversed(range(len(text))):
            for end in range(start + 1, min(len(text), start + self.longest) + 1):
                if least[end] < least[start] and text[start:end] in self.known:
                    least[start] = least[end] + 1
        return least[0]

    def _goes_on(self, rest: bytes, room: int) -> Mask:
        """Tokens that go on with `rest` so that it is said within `room` tokens, the token itself included.  # (V,)"""

        def good(piece: bytes) -> bool:
            if piece and rest.startswith(piece):
                return 1 + self.fewest(rest[len(piece) :]) <= room
            return room >= 1 and piece.startswith(rest) and ends_at(piece, len(rest), True)

        return self._where([good(piece) for piece in self.pieces])

    def _within(self, rest: bytes) -> Mask:
        """Tokens that go on with `rest` and no further.  # (V,)"""
        return self._where([bool(piece) and rest.startswith(piece) for piece in self.pieces])


def is_word(byte: int, others: bool) -> bool:
    """Whether a lower-case byte belongs to a word; bytes outside ASCII as `others` says."""
    return byte in WORD or (others and byte >= 0x80)


def ends_at(text: bytes, place: int, others: bool) -> bool:
    """Whether what ends before `place` ends there as a whole word; the end of the text ends any."""
    return place >= len(text) or text[place - 1] not in WORD or not is_word(text[place], others)


def begins_at(text: bytes, place: int, first: int, others: bool) -> bool:
    """Whether something that begins with the byte `first` begins at `place` as a whole word."""
    return place <= 0 or first not in WORD or not is_word(text[place - 1], others)


def occurs(text: bytes, phrase: bytes, others: bool, start: int = 0) -> bool:
    """Whether a text says a phrase, as whole words; both lower case.

    >>> occurs(b"an artist", b"art", True), occurs(b"art, at last", b"art", True)
    (False, True)
    """
    while (place := text.find(phrase, start)) >= 0:
        if begins_at(text, place, phrase[0], others) and ends_at(text, place + len(phrase), others):
            return True
        start = place + 1
    return False
