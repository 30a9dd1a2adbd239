"""What one reply owes and may not say, and which tokens that leaves it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from envs.errors import InputError
from experiments.rules.spelling import INFINITE, WORD, Mask, Spelling, begins_at, ends_at, occurs

BEGUN = 2
"""Words of a phrase with which it is begun, and kept going; one of a phrase of two."""


@dataclass(frozen=True)
class Duty:
    """Phrases of one reply, as lower-case bytes."""

    must: tuple[bytes, ...] = ()
    must_not: tuple[bytes, ...] = ()

    def owed(self, text: bytes) -> list[bytes]:
        """The phrases that a text so far does not say."""
        return [phrase for phrase in self.must if not occurs(text, phrase, True)]

    def progress(self, text: bytes) -> float:
        """How much of what must be said is said, a phrase whole or as far as the text's end has come with it.

            Σ_phrases (bytes said, 0 to its length) / its length

        Source: own derivation; the potential of `potential_of`, dimensionless.
        """
        return sum(1.0 if occurs(text, p, True) else begun(text, p) / len(p) for p in self.must)


def begun(text: bytes, phrase: bytes) -> int:
    """How many bytes of a phrase, less than all, stand at the end of a text; 0: none.

    >>> begun(b"sadly we can", b"we cannot")
    6
    """
    for said in range(min(len(phrase) - 1, len(text)), 0, -1):
        if text.endswith(phrase[:said]) and begins_at(text, len(text) - said, phrase[0], True):
            return said
    return 0


def threshold(phrase: bytes) -> int:
    """Bytes with which a phrase is begun; its first word of three may begin anything; a single word never is.

    >>> threshold(b"we cannot refund"), threshold(b"recall notice"), threshold(b"refund")
    (9, 6, 6)
    """
    words = phrase.split(b" ")
    return len(b" ".join(words[: max(1, min(BEGUN, len(words) - 1))]))


def cost(phrase: bytes, spelling: Spelling) -> int:
    """Tokens that are enough to say a phrase, whatever stands before it; `INFINITE` if there is none such number."""
    bare, spaced = spelling.fewest(phrase), spelling.fewest(b" " + phrase)
    return spaced if bare >= INFINITE else max(bare, spaced)


def allowed(duty: Duty, spelling: Spelling, eos: Mask, text: bytes, left: int, ending: bool = False) -> Mask:
    """Tokens that a reply may go on with, (V,) bool; never none where `check` found nothing.

    Masked are tokens that would complete a forbidden phrase, whatever tokens spell it; the EOS while a phrase is owed;
    a letter right behind a phrase that was just said, which would make another word of it. Where an owed phrase is
    begun, only tokens that go on with it stay; and where the tokens left are only just enough to say what is owed, or
    the reply is `ending` without it, only those that say it.

    The invariant behind: with R tokens left and phrases p owed, R ≥ Σ_p n(p), n(p) = `cost`; a free token is taken only
    where R − 1 ≥ Σ n(p), and a forced one says a part of p within its share.

    Source: own derivation.
    Args:
        eos: (V,) tokens that end a reply.
        text: the reply so far, lower-case bytes; left: tokens that it may still have, the next included.
        ending: whether the model would end the reply here.
    """
    mask = np.ones(len(spelling), dtype=bool)
    for phrase in duty.must_not:
        mask &= ~_completing(phrase, spelling, text)
    fresh = [phrase for phrase in duty.must if phrase[-1] in WORD and occurs(text, phrase, True)]
    fresh = [phrase for phrase in fresh if not occurs(text[:-1], phrase, True)]
    spoils = spelling.as_letter if fresh else np.zeros_like(mask)  # makes another word of a phrase that was just said
    mask &= ~spoils
    if not (owed := duty.owed(text)):
        return mask
    mask &= ~eos
    full = sum(cost(phrase, spelling) for phrase in owed)
    forced = ending or left <= full
    ways = []  # what may be said next, in this order: the phrase and its rest
    for said, phrase in sorted(((begun(text, phrase), phrase) for phrase in owed), reverse=True):
        if said and (forced or said >= threshold(phrase)):
            ways.append((phrase, phrase[said:]))
    if forced:
        spaces = (b" ",) if text and not text[-1:].isspace() else (b"", b" ")
        ways += [(phrase, space + phrase) for phrase in owed for space in spaces]
    for phrase, rest in ways:
        room = left - full + cost(phrase, spelling)
        most = spelling.fewest(rest) if forced else len(rest) + 1
        # What lies within the phrase says nothing forbidden (`check`), though its beginning may look like that.
        within = spelling.within(rest)
        found = (mask | within & ~spoils) & spelling.goes_on(rest, min(room, most))
        again = room - sum(cost(other, spelling) for other in fresh)  # what is spoilt is owed once more
        found |= within & spoils & spelling.goes_on(rest, min(again, most))
        if found.any():
            return found
    return mask


def _completing(phrase: bytes, spelling: Spelling, text: bytes) -> Mask:
    """Tokens behind which the text would say the phrase.  # (V,)"""
    found = spelling.inside(phrase)
    for said in range(min(len(phrase) - 1, len(text)) + 1):
        if text.endswith(phrase[:said]) and begins_at(text, len(text) - said, phrase[0], False):
            found = found | spelling.starts(phrase[said:])
    return found


def check(duty: Duty, spelling: Spelling, eos: Mask, budget: int, who: str) -> None:
    """Raises: InputError: phrases that contradict each other, that no tokens spell, that do not fit into the budget of
    new tokens, or that leave no token at some place."""
    for phrase in (*duty.must, *duty.must_not):
        either = spelling.fewest(phrase) if phrase in duty.must_not else INFINITE
        if min(either, cost(phrase, spelling)) >= INFINITE:
            raise InputError(f"{who}: no sequence of this vocabulary's tokens spells {_shown(phrase)}; change it")
    for phrase in duty.must:
        for other in duty.must_not:
            _check_pair(phrase, other, who)
    if (needed := sum(cost(phrase, spelling) for phrase in duty.must)) > budget:
        said = ", ".join(map(_shown, duty.must))
        raise InputError(f"{who}: {said} take {needed} tokens, and a reply has {budget}; raise max_new_tokens")
    free = ~eos
    for phrase in duty.must_not:
        free = free & ~spelling.touches(phrase)
    if not (free & ~spelling.as_letter & [bool(piece) for piece in spelling.pieces]).any():
        said = ", ".join(map(_shown, duty.must_not))
        raise InputError(f"{who}: a reply could come to where {said} leave it no token; forbid less")


def _check_pair(must: bytes, forbidden: bytes, who: str) -> None:
    if occurs(must, forbidden, False):
        raise InputError(f"{who}: {_shown(must)} must be said and says {_shown(forbidden)}, which must not; change one")
    for length in range(1, len(forbidden)):
        tail = forbidden[len(forbidden) - length :]
        whole = begins_at(forbidden, len(forbidden) - length, tail[0], False) and ends_at(must, length, False)
        if must.startswith(tail) and whole:
            raise InputError(
                f"{who}: {_shown(forbidden)}, which must not be said, ends as {_shown(must)} begins, which must: "
                "behind the first part neither would do; change one"
            )


def _shown(phrase: bytes) -> str:
    return repr(phrase.decode(errors="replace"))


def eos_mask(size: int, eos_ids: Collection[int]) -> Mask:
    """(V,) bool, the tokens that end a reply."""
    return np.isin(np.arange(size), sorted(eos_ids))
