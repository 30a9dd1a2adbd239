"""What is noticed about a prompt and the student's reply to it; the teacher adds its own where it is asked.

Symbols: x prompt of n tokens; V vocabulary; c counts in prompts that are known to be usual.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from envs.prompts import prompt_hash
from experiments.evaluate import batches, score_texts
from experiments.text_metrics import repeated

UP, EITHER = "up", "either"
SIDES = {
    "surprise": UP,
    "prompt_length": EITHER,
    "seen_before": UP,
    "reply_length": EITHER,
    "entropy": UP,
    "repetition": UP,
    "forward_kl": UP,
    "leak": UP,
}
"""Signal -> which change of its mean is an alarm. The first three are of prompts, the next three of replies, the last
two of the teacher, of prompts that it was asked about by chance."""
TEACHER_DRIFT = "teacher_drift"
"""How far the teacher has moved on a training text; too far is an alarm, whatever was usual."""
OF_PROMPTS, OF_REPLIES, OF_TEACHER = tuple(SIDES)[:3], tuple(SIDES)[3:6], tuple(SIDES)[6:]
STRENGTH = 1.0
"""κ: occurrences that the frequency of a token is worth beside its counts behind another."""
LATELY = 512
"""Prompts among which one may have been before."""


class Bigrams:
    """How unlike the prompts it has counted a prompt is, in nats a token.

        surprise(x) = −(1/n) Σ_i log P(x_i | x_{i−1}),    P(b | a) = (c(a, b) + κ P(b)) / (c(a) + κ)
        P(b) = (c(b) + 1) / (Σ_b c(b) + V),    the first token's is P(x_1)

    Source: MacKay and Peto (1995), interpolated bigrams with one κ.
    >>> round(Bigrams([[1, 2], [1, 2]], 4).surprise([1, 2]), 3)  # −½ (log 3/8 + log (2 + 3/8)/3)
    0.607
    """

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int) -> None:
        self.single, self.pairs, self.before = Counter[int](), Counter[tuple[int, int]](), Counter[int]()
        for text in texts:
            self.single.update(text)
            self.pairs.update(pairwise(text))
            self.before.update(text[:-1])
        self.all = self.single.total() + vocab_size

    def surprise(self, text: Sequence[int]) -> float:
        """Of a prompt."""
        alone = [(self.single[token] + 1) / self.all for token in text]
        found = [math.log(alone[0])]
        for (a, b), mass in zip(pairwise(text), alone[1:], strict=True):
            found.append(math.log((self.pairs[a, b] + STRENGTH * mass) / (self.before[a] + STRENGTH)))
        return -fmean(found)


class Lately:
    """Which prompts came lately."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        self.hashes = deque(hashes, LATELY)

    def see(self, text: str) -> float:
        """1 if this very prompt is among the last `LATELY`, else 0; and remember it."""
        digest = prompt_hash(text)
        before = digest in self.hashes
        self.hashes.append(digest)
        return float(before)


@dataclass(frozen=True)
class Usual:
    """Values of a signal that are usual; others are told by their rank among them.

        rank(x) = (#{v < x} + ½ #{v = x}) / m,    p(x) = (1 + #{v ≥ x}) / (m + 1)

    Of a usual x the rank is uniform in [0, 1], but for ties, and p(x) ≤ α with a probability of at most α.

    Source: the probability integral transform; Papadopoulos et al. (2002), inductive conformal prediction, for p.
    """

    values: tuple[float, ...]
    """m of them, ascending."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Usual:
        """These values."""
        return cls(tuple(sorted(values)))

    def rank(self, value: float) -> float:
        """In [0, 1]; ½ of a value in the middle."""
        return (bisect_left(self.values, value) + bisect_right(self.values, value)) / (2 * len(self.values))

    def p(self, value: float) -> float:
        """In (0, 1]: how often a usual value is as high by chance, at most."""
        return (1 + len(self.values) - bisect_left(self.values, value)) / (len(self.values) + 1)


def of_replies(model: Any, prompts: list[list[int]], replies: list[list[int]]) -> list[dict[str, float]]:
    """Length in tokens, mean entropy of the student along it in nats, and repetition of each reply."""
    entropies: dict[int, float] = {}
    for chosen in batches(prompts, replies, model.get_output_embeddings().weight.shape[0]):
        texts, sizes = [prompts[row] + replies[row] for row in chosen], [len(prompts[row]) for row in chosen]
        logp = score_texts(model, texts, sizes)  # (B, L, V)
        for place, row in enumerate(chosen):
            own = logp[place, sizes[place] - 1 : len(texts[place]) - 1]
            entropies[row] = float(-torch.where(own.isfinite(), own.exp() * own, 0.0).sum(-1).mean())
    return [
        {"reply_length": float(len(reply)), "entropy": entropies[row], "repetition": repeated(reply)}
        for row, reply in enumerate(replies)
    ]
