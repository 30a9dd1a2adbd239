"""What each prompt adds to a measure that is a mean, so that it can be taken over some of the prompts, or again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.metrics import TokenMeasures
from experiments.slices import BESIDE, OWN
from experiments.text_metrics import repeated

Parts: TypeAlias = NDArray[np.float64]
"""(prompts, 2): what is added up, and how much of it there is; (0, 0) of a prompt that the measure leaves out."""


def parts(
    by_prompt: Mapping[str, Sequence[float | None]],
    greedy: Sequence[Sequence[int]],
    samples: Sequence[Sequence[int]],
    beside: tuple[TokenMeasures, Sequence[int]] | None = None,
    own: tuple[TokenMeasures, Sequence[int]] | None = None,
) -> dict[str, Parts]:
    """Measure -> its parts, of every measure that is a mean over prompts or over tokens.

        measure = Σ_prompts added / Σ_prompts count

    Source: own derivation.
    Args:
        by_prompt: measures of greedy replies as texts, None where there is nothing to measure.
        greedy, samples: replies as tokens.
        beside, own: as `slices.by_tag`.
    """
    counted: dict[str, Sequence[float | None]] = {
        **by_prompt,
        "greedy_length": [float(len(reply)) for reply in greedy],
        "length": [float(len(reply)) for reply in samples],
        "repetition": [repeated(reply) for reply in samples],
    }
    found = {name: _counted(values) for name, values in counted.items()}
    for names, part in ((BESIDE, beside), (OWN, own)):
        if part is not None:
            found |= {name: _per_token(getattr(part[0], name), part[1]) for name in names}
    if "reverse_kl" in found:
        added = found["reverse_kl"][:, 0]
        found["reverse_kl_sum"] = np.stack([added, np.ones_like(added)], 1)
    return found


def mean(own: Parts) -> float:
    """The measure.

    >>> mean(np.array([[3.0, 2.0], [1.0, 2.0], [0.0, 0.0]]))
    1.0
    """
    return float(own[:, 0].sum() / own[:, 1].sum())


def _counted(values: Sequence[float | None]) -> Parts:
    return np.array([(0.0, 0.0) if value is None else (value, 1.0) for value in values], dtype=np.float64)


def _per_token(values: Tensor, lengths: Sequence[int]) -> Parts:
    added = [float(part.sum()) for part in torch.split(values, list(lengths))]
    return np.stack([np.array(added), np.array(lengths, dtype=np.float64)], 1)
