"""How a set of replies is as text: variety, repetition, lengths; pure functions over lists of tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

Replies = Sequence[Sequence[int]]
ORDER = 4  # of self-BLEU and of repetition
EPSILON = 0.1  # matches counted where an order has none


def text_measures(replies: Replies) -> dict[str, float]:
    """Everything here, by its name; the closing EOS counts as a token."""
    return {
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "self_bleu": self_bleu(replies),
        "repetition": fmean(map(repeated, replies)),
        **length_measures(replies),
    }


def matched_measures(replies: Replies, others: Replies) -> dict[str, float]:
    """Variety and repetition against other replies, each pair cut to its shorter one: length makes no difference then.

    Returns: `distinct_2_matched`, the ratio of both sides' distinct-2 (1 where neither has a bigram), and
        `repetition_matched`, the difference of their repetition; ours over, and minus, theirs.
    """
    shortest = [min(len(one), len(other)) for one, other in zip(replies, others, strict=True)]
    own, their = ([text[:n] for text, n in zip(side, shortest, strict=True)] for side in (replies, others))
    theirs = distinct(their, 2)
    return {
        "distinct_2_matched": distinct(own, 2) / theirs if theirs else 1.0,
        "repetition_matched": fmean(map(repeated, own)) - fmean(map(repeated, their)),
    }


def ngrams(reply: Sequence[int], order: int) -> list[tuple[int, ...]]:
    """The runs of `order` tokens, in their order."""
    return [tuple(reply[start : start + order]) for start in range(len(reply) - order + 1)]


def distinct(replies: Replies, order: int) -> float:
    """Different n-grams of all replies over their number; 0 without any. It falls as texts grow longer.

    Source: Li et al. (2016), arXiv:1510.03055, section 5 (distinct-n).
    """
    found = [gram for reply in replies for gram in ngrams(reply, order)]
    return len(set(found)) / len(found) if found else 0.0


def repeated(reply: Sequence[int]) -> float:
    """Share of a reply's 4-grams that repeat an earlier one, 1 − different / all; 0 below four tokens.

    Source: Welleck et al. (2020), arXiv:1908.04319, equation 9 (seq-rep-4).
    """
    found = ngrams(reply, ORDER)
    return 1.0 - len(set(found)) / len(found) if found else 0.0


def length_measures(replies: Replies) -> dict[str, float]:
    """Standard deviation (n − 1; 0 of one reply) and quantiles (linear between values) of lengths in tokens."""
    lengths = [len(reply) for reply in replies]
    low, high = np.quantile(lengths, [0.1, 0.9]).tolist()
    return {"length_sd": stdev(lengths) if len(lengths) > 1 else 0.0, "length_p10": low, "length_p90": high}


def self_bleu(replies: Replies) -> float:
    """Mean BLEU-4 of each reply with all others as its references; 0 of one reply alone. High where texts are alike.

        BLEU = min(1, exp(1 − r/c)) · (Π_n m_n / t_n)^(1/N),   N = min(4, c)

    with c tokens in the reply, r in the reference nearest in length (the shorter of two), m_n of its t_n n-grams
    matched, each at most as often as in the reference that has it most, 0.1 where none is (smoothing 1 of Chen & Cherry
    2014).
    Source: Zhu et al. (2018), arXiv:1802.01886; Papineni et al. (2002).
    """
    if len(replies) < 2:
        return 0.0
    logs: list[list[float]] = [[] for _ in replies]
    for order in range(1, ORDER + 1):
        counts = [Counter(ngrams(reply, order)) for reply in replies]
        most: dict[tuple[int, ...], tuple[int, int, int]] = {}  # highest count, whose it is, highest of the others
        for index, own in enumerate(counts):
            for gram, count in own.items():
                first, holder, second = most.get(gram, (0, -1, 0))
                most[gram] = (count, index, first) if count > first else (first, holder, max(second, count))
        for index, own in enumerate(counts):
            if own:
                matched = 0
                for gram, count in own.items():
                    first, holder, second = most[gram]
                    matched += min(count, second if holder == index else first)
                logs[index].append(math.log((matched or EPSILON) / own.total()))
    lengths = Counter(map(len, replies))
    return fmean(_brevity(len(reply), lengths) * math.exp(fmean(own)) for reply, own in zip(replies, logs, strict=True))


def _brevity(length: int, lengths: Counter[int]) -> float:
    others = [other for other, count in lengths.items() if other != length or count > 1]
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return min(1.0, math.exp(1.0 - nearest / length))
