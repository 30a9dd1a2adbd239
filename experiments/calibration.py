"""Whether a student's confidence is how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 10


def reliability(confidence: Tensor, correct: Tensor) -> dict[str, list[float]]:
    """Mean confidence and accuracy in ten bins [0, .1), …, [.9, 1] of confidence, and how many fall in each.

    Source: Guo et al. (2017), arXiv:1706.04599, section 2.
    Args:
        confidence: (T,) probability of the student's most probable token.
        correct: (T,) bool, whether the token that the teacher drew is that one.
    Returns: `confidence`, `accuracy` and `count`, ten values each; zeros where a bin is empty.
    """
    place = (confidence * BINS).long().clamp(0, BINS - 1)
    count = torch.bincount(place, minlength=BINS).double()
    sums = {"confidence": confidence.double(), "accuracy": correct.double()}
    means = {name: torch.bincount(place, value, minlength=BINS) / count.clamp(min=1) for name, value in sums.items()}
    return {**{name: value.tolist() for name, value in means.items()}, "count": count.tolist()}


def expected_error(bins: dict[str, list[float]]) -> float:
    """Expected calibration error, Σ_b n_b / N · |accuracy_b − confidence_b|.

    Source: Guo et al. (2017), equation 3.
    """
    parts = zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True)
    return sum(count * abs(accuracy - mean) for count, accuracy, mean in parts) / sum(bins["count"])
