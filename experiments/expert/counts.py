"""What the expert has counted, and the evidence that it has in a state.

Symbols: x prompt; y reply; s = x·y a state; R the tokens that belong to a low-frequency word; V vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from experiments.expert.words import Kinds, Word, common_words, low_frequency, spans

Pair: TypeAlias = "tuple[Sequence[int], Sequence[int]]"
"""Tokens of a prompt and of a reply to it."""
STRENGTH = 1.0
"""κ: occurrences that a shorter context is worth beside a longer one's."""
ANY = -1
"""In place of a last token: all of them together."""


class Evidence(NamedTuple):
    """e(·|s), a distribution that does not sum to 1: what is missing is left to the student."""

    ids: NDArray[np.int64]
    """(E,) tokens, each once."""
    mass: NDArray[np.float64]
    """(E,) e(a|s) > 0."""

    @property
    def share(self) -> float:
        """ε(s) = Σ_a e(a|s), in [0, 1): how far the expert answers for this state."""
        return float(self.mass.sum())

    def of(self, token: int) -> float:
        """e(token|s)."""
        return float(self.mass[self.ids == token].sum())


NO_EVIDENCE = Evidence(np.zeros(0, np.int64), np.zeros(0))


class Pointer:
    """Where in a prompt a text may go on with a low-frequency word.

    m(s) is the length of the longest context, at most `longest`, that a place i of the prompt shares with the end of
    the text: x_{i−m} … x_{i−1} = the text's last m tokens; i runs over tokens of low-frequency words, with m = 0 over
    their first ones. All places of this length are pointed at:

        q(a|s) = #{i : x_i = a, m_i = m(s)} / #{i : m_i = m(s)}

    Source: Merity et al. (2017), pointer sentinel mixture (arXiv:1609.07843), with matching contexts for attention.
    """

    def __init__(self, prompt: Sequence[int], kinds: Kinds, common: frozenset[Word], longest: int) -> None:
        self.longest = longest
        self._places: dict[Word, Counter[int]] = defaultdict(Counter)
        rare, first = low_frequency(prompt, kinds, common), {start for start, _ in spans(prompt, kinds)}
        for place in rare.nonzero()[0].tolist():
            for length in range(0 if place in first else 1, min(longest, place) + 1):
                self._places[tuple(prompt[place - length : place])][prompt[place]] += 1

    def __call__(self, text: Sequence[int]) -> tuple[int, Counter[int]]:
        """m(s), and how often each token is pointed at; no token at all where the prompt has no such word."""
        for length in range(min(self.longest, len(text)), -1, -1):
            if found := self._places.get(tuple(text[len(text) - length :])):
                return length, found
        return 0, Counter()


@dataclass(frozen=True, eq=False)
class Expert:
    """Counts of low-frequency targets. The evidence in a state is a copy from the prompt, or else an n-gram:

        e(a|s) = r(s) q(a|s) + (1 − r(s)) P(a|u)

        r(s) = (h(m, w) + κ r_m) / (n(m, w) + κ),   r_m = (h(m) + ½) / (n(m) + 1)
        P(a|u_1 … u_k) = (c(u, a) + κ P(a|u_2 … u_k)) / (c(u) + κ),   P(a|∅) = 0

    n(m, w) counts the states with a match of m tokens (`Pointer`) and last token w, h(m, w) those whose next token was
    pointed at; c(u) the other states behind a context u, and c(u, a) those of them where a ∈ R came next.

    Source: MacKay and Peto (1995), interpolated n-grams; Merity et al. (2017, arXiv:1609.07843) for the pointer; the
    copying estimate is Krichevsky and Trofimov's (1981), interpolated in the same way; own combination.
    """

    kinds: Kinds
    """(V,) uint8, what each token is to a word; see `words.kinds_of`."""
    common: frozenset[Word]
    """Words that are not low-frequency."""
    longest: int
    """Most tokens of a matching context."""
    order: int
    """n of the n-grams: contexts have 1 to n − 1 tokens."""
    copies: dict[tuple[int, int], tuple[int, int]]
    """(m, w) -> (h, n); w = ANY: over all w."""
    totals: dict[Word, int]
    """Context u -> c(u)."""
    targets: dict[Word, dict[int, int]]
    """Context u -> a -> c(u, a)."""
    _known: dict[Word, Evidence] = field(default_factory=dict, repr=False)

    def pointer(self, prompt: Sequence[int]) -> Pointer:
        """That of a prompt."""
        return Pointer(prompt, self.kinds, self.common, self.longest)

    def evidence(self, text: Sequence[int], pointer: Pointer) -> Evidence:
        """e(·|s) after a text, prompt and reply so far."""
        length, pointed = pointer(text)
        rest = self.by_context(tuple(text[len(text) - min(self.order - 1, len(text)) :]))
        if not pointed:
            return rest
        copying = self.reliability(length, text[-1])
        found = {token: copying * count / pointed.total() for token, count in pointed.items()}
        for token, mass in zip(rest.ids.tolist(), rest.mass.tolist(), strict=True):
            found[token] = found.get(token, 0.0) + (1.0 - copying) * mass
        return Evidence(np.array(list(found), np.int64), np.array(list(found.values())))

    def reliability(self, length: int, last: int) -> float:
        """r(s): how often what a match of so many tokens points at came next behind this token."""
        hits, trials = self.copies.get((length, ANY), (0, 0))
        overall = (hits + 0.5) / (trials + 1.0)
        hits, trials = self.copies.get((length, last), (0, 0))
        return (hits + STRENGTH * overall) / (trials + STRENGTH)

    def by_context(self, context: Word) -> Evidence:
        """P(·|u), the longest context known and all shorter ones."""
        if not context:
            return NO_EVIDENCE
        if context not in self.totals:
            return self.by_context(context[1:])
        if context not in self._known:
            shorter, total = self.by_context(context[1:]), self.totals[context]
            mass = dict(zip(shorter.ids.tolist(), (STRENGTH * shorter.mass).tolist(), strict=True))
            for token, count in self.targets.get(context, {}).items():
                mass[token] = mass.get(token, 0.0) + count
            ids, values = np.array(list(mass), np.int64), np.array(list(mass.values()), np.float64)
            self._known[context] = Evidence(ids, values / (total + STRENGTH))
        return self._known[context]


def counted(pairs: Iterable[Pair], kinds: Kinds, *, order: int = 3, longest: int = 4) -> Expert:
    """The expert of these prompts and replies.

    Contexts that were seen once, and no target behind them, are left out: the shorter ones answer for them.

    Args:
        kinds: of the tokenizer's tokens.
        order: n ≥ 2 of the n-grams; longest: most tokens, ≥ 1, of a context that is matched in the prompt.
    Raises: InputError: a number out of range, no reply, or no word in the replies.
    """
    if order < 2 or longest < 1:
        raise InputError(f"order = {order} and match = {longest}; give at least 2 and 1")
    given = [(list(prompt), list(reply)) for prompt, reply in pairs]
    common = common_words((reply for _, reply in given), kinds)
    if not common:
        raise InputError(f"{len(given)} replies hold no word that comes again; give more to count")
    copies: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    totals, targets = Counter[Word](), defaultdict[Word, Counter[int]](Counter)
    for prompt, reply in given:
        pointer, rare = Pointer(prompt, kinds, common, longest), low_frequency(reply, kinds, common)
        text = prompt + reply
        for place, token in enumerate(reply):
            before = text[: len(prompt) + place]
            length, pointed = pointer(before)
            if pointed:
                for key in ((length, ANY), (length, before[-1])):
                    copies[key][0] += token in pointed
                    copies[key][1] += 1
            if token in pointed:
                continue
            for size in range(1, min(order - 1, len(before)) + 1):
                context = tuple(before[len(before) - size :])
                totals[context] += 1
                if rare[place]:
                    targets[context][token] += 1
    kept = {context: total for context, total in totals.items() if total > 1 or context in targets}
    return Expert(
        kinds=kinds,
        common=common,
        longest=longest,
        order=order,
        copies={key: (hits, trials) for key, (hits, trials) in copies.items()},
        totals=kept,
        targets={context: dict(own) for context, own in targets.items()},
    )
