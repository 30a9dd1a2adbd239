"""Which tokens spell which word of a reply, and the words that must not be lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from envs.errors import InputError
from envs.teachers import Teacher
from experiments.references import tokens_of

WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Spelling(NamedTuple):
    """The text of a reply, and where in it each token's characters lie; an empty range for a token without any."""

    text: str
    ranges: list[tuple[int, int]]

    def tokens(self, start: int, end: int) -> list[int]:
        """Positions of the tokens that spell any of the characters from start to end."""
        return [place for place, (own, last) in enumerate(self.ranges) if own < end and last > start]


def spelling(reply: Sequence[int], decode: Callable[[Sequence[int]], str], silent: Collection[int]) -> Spelling:
    """Read a reply token by token; of a character that several tokens spell, each of them has it.

    Args:
        decode: text of tokens, read from the reply's start on, as tokenizers ask that drop or merge spaces.
        silent: tokens that spell nothing, as the end of a text.
    """
    ranges: list[tuple[int, int]] = []
    text = ""
    for place, token in enumerate(reply):
        if token in silent or not decode([token]):
            ranges.append((len(text), len(text)))
            continue
        longer = decode(reply[: place + 1])
        alike = zip(text, longer, strict=False)  # a token that ends a character begun before changes it
        same = (
            len(text) if longer.startswith(text) else sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], alike))
        )
        begin = min(same, max(len(longer) - 1, 0))
        ranges.append((begin, len(longer)))
        text = longer
    return Spelling(text, ranges)


def words_in(text: str) -> Iterator[tuple[str, int, int]]:
    """The words and numbers of a text in lower case, and where they begin and end.

    >>> list(words_in("It's 3-fold."))
    [("it's", 0, 4), ('3-fold', 5, 11)]
    """
    yield from ((found[0].lower(), found.start(), found.end()) for found in WORD.finditer(text))


def phrase_in(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Where a phrase stands in a text, whole words only, in any case; as `envs.service_desk.score_reply` looks."""
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    yield from (found.span() for found in re.finditer(pattern, text, re.IGNORECASE))


def read_lexicon(path: Path, teacher: Teacher) -> list[str]:
    """The words and phrases of a file, one a line; blank lines and repetitions are left out.

    Raises: InputError: no such file, no UTF-8, no word in it, or one that the teacher's tokens cannot spell.
    """
    if not path.is_file():
        raise InputError(f"lexicon {str(path)!r} does not exist; give a text file, one word or phrase a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    words = list({line.lower(): line for line in lines if line}.values())
    if not words:
        raise InputError(f"lexicon {str(path)!r} holds 0 words; write one word or phrase a line")
    for number, word in enumerate(lines, start=1):
        if word:
            _check_spelt(word, f"{path}, line {number}", teacher)
    return words


def _check_spelt(word: str, where: str, teacher: Teacher) -> None:
    """Raises: InputError: the teacher has no tokens for this word."""
    unknown = getattr(getattr(teacher, "tokenizer", None), "unk_token_id", None)
    try:
        ids = tokens_of(word, teacher)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not ids or unknown in ids:
        raise InputError(
            f"{where}: the tokens of {teacher.name!r} cannot spell {word!r}; write it as its texts have it, or take "
            "the line out"
        )
