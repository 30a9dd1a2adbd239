"""Measures of a part of the prompts or of the tokens: by tag, and where the teacher says something rare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from envs.prompts import Prompt
from experiments.metrics import TokenMeasures, task_measures

FEWEST = 4  # prompts that make a slice
RARE_SHARE = 0.1
BESIDE = ("forward_kl", "agreement", "leak")  # along the teacher's samples
OWN = ("reverse_kl", "entropy")  # along the student's
RARE = "rare words"


def rare_tokens(corpus: Sequence[Sequence[int]]) -> set[int]:
    """Tokens that a corpus has at most r times each: the largest r with which they hold at most a tenth of it.

    Source: own derivation. Empty where the rarest tokens are more than a tenth already.
    """
    counts = Counter(token for text in corpus for token in text)
    held, rare = 0, set[int]()
    for times, tokens in sorted(Counter(counts.values()).items()):
        held += times * tokens
        if held > RARE_SHARE * counts.total():
            break
        rare = {token for token, count in counts.items() if count <= times}
    return rare


def by_tag(
    prompts: Sequence[Prompt],
    greedy: Sequence[str],
    samples: Sequence[Sequence[int]],
    beside: tuple[TokenMeasures, Sequence[int]] | None = None,
    own: tuple[TokenMeasures, Sequence[int]] | None = None,
) -> dict[str, dict[str, float]]:
    """Every tag that at least four prompts carry, with its measures; per token as the whole exam's are.

    Args:
        greedy: texts of the greedy replies; samples: the replies drawn, whose length stands beside the others.
        beside, own: measures along the teacher's and the student's samples, and the lengths of these.
    """
    tags = Counter(tag for prompt in prompts for tag in set(prompt.tags))
    found = {}
    for tag in sorted(tag for tag, count in tags.items() if count >= FEWEST):
        chosen = [index for index, prompt in enumerate(prompts) if tag in prompt.tags]
        entry = {"prompts": float(len(chosen)), "length": fmean(len(samples[index]) for index in chosen)}
        for names, part in ((BESIDE, beside), (OWN, own)):
            if part is not None:
                entry |= means(part[0], names, _positions(part[1], chosen))
        entry |= task_measures([greedy[index] for index in chosen], [prompts[index] for index in chosen])
        found[tag] = entry
    return found


def rare_words(beside: TokenMeasures, samples: Sequence[Sequence[int]], rare: set[int]) -> dict[str, dict[str, float]]:
    """The measures where the teacher's sample says a rare token; `prompts` counts those that have one."""
    with_any = sum(any(token in rare for token in reply) for reply in samples)
    if not with_any:
        return {}
    chosen = torch.tensor([token in rare for reply in samples for token in reply])
    return {RARE: {"prompts": float(with_any), "tokens": float(chosen.sum()), **means(beside, BESIDE, chosen)}}


def means(measures: TokenMeasures, names: Sequence[str], chosen: Tensor) -> dict[str, float]:
    """Means of these measures at the chosen positions, (T,) bool."""
    return {name: float(getattr(measures, name)[chosen].mean()) for name in names}


def _positions(lengths: Sequence[int], chosen: Sequence[int]) -> Tensor:
    among = torch.zeros(len(lengths), dtype=torch.bool)
    among[list(chosen)] = True
    return among.repeat_interleave(torch.tensor(lengths))
