"""What is measured of a student on held-out prompts; pure functions over log-probabilities and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from envs.candidates import Candidates, top_p
from envs.prompts import Prompt
from envs.service_desk import score_reply


class TokenMeasures(NamedTuple):
    """Per-position measures of a student against its teacher, each (T,), float64 but for `best`."""

    forward_kl: Tensor  # KL(π_T ‖ π_S), nats
    reverse_kl: Tensor  # KL(π_S ‖ π_T), nats
    agreement: Tensor  # 1 where both have the same most probable token
    leak: Tensor  # student mass outside the teacher's set
    entropy: Tensor  # H(π_S), nats
    best: Tensor  # the student's most probable token, int64
    confidence: Tensor  # its probability


def token_measures(
    student: Tensor, teacher: Tensor, p: float, max_candidates: int | None, sets: Candidates | None = None
) -> TokenMeasures:
    """Both distributions compared at T positions.

        KL(π_T‖π_S) = Σ_a π_T(a) (log π_T(a) − log π_S(a)),    leak = 1 − Σ_{a ∈ A_p} π_S(a)

    Source: sections (1) and (7) of the design.
    Args:
        student, teacher: (T, V) log-probabilities, nats; −∞ allowed where the other one is −∞ as well or has no mass.
        sets: the candidate sets that the leak is measured on; None: the nuclei of p and max_candidates.
    """
    found = top_p(teacher, p, max_candidates) if sets is None else sets
    s, t = student.double(), teacher.double()
    best = s.argmax(-1)
    inside = s.gather(-1, found.ids).exp().masked_fill(~found.mask, 0.0).sum(-1)
    return TokenMeasures(
        forward_kl=_divergence(t, s),
        reverse_kl=_divergence(s, t),
        agreement=(best == t.argmax(-1)).double(),
        leak=(1.0 - inside).clamp(0.0, 1.0),
        entropy=-torch.where(s.isfinite(), s.exp() * s, 0.0).sum(-1),
        best=best,
        confidence=s.gather(-1, best[..., None])[..., 0].exp(),
    )


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    # A token without mass adds nothing, also where its log-probability is finite and the other's is not.
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1).clamp(min=0.0)


def common_vocabulary(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both cut to the tokens they share and renormalised: rows added as padding are not a difference."""
    width = min(student.shape[-1], teacher.shape[-1])
    return torch.log_softmax(student[..., :width], -1), torch.log_softmax(teacher[..., :width], -1)


class _Words:
    """Words of any script in lower case, ideographs and syllables one by one; the package's own takes a–z alone."""

    PATTERN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")

    def tokenize(self, text: str) -> list[str]:
        return self.PATTERN.findall(text.lower())


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """Mean Rouge-L F1 of each text against the best of its references; None without any reference.

    Source: Lin (2004), by the `rouge-score` package.
    """
    found = [value for value in rouge_each(candidates, references) if value is not None]
    return fmean(found) if found else None


def rouge_each(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
    """The same of every text; None of one without references."""
    if not any(references):
        return [None for _ in zip(candidates, references, strict=True)]
    from rouge_score.rouge_scorer import RougeScorer  # and with it scipy.stats: a second

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return [
        max((scorer.score(reference, text)["rougeL"].fmeasure for reference in own), default=None)
        for text, own in zip(candidates, references, strict=True)
    ]


def task_measures(replies: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Shares of checked strings in greedy replies; a measure without anything to check is left out.

    `task_score` is over copied slots and required phrases, `critical_pass` the share of critical cases whose phrases
    are all present, `computed_score` and `rare_recall` the totals and the rare names.
    """
    found = {}
    for name, values in task_each(replies, prompts).items():
        if there := [value for value in values if value is not None]:
            found[name] = fmean(there)
    return found


def task_each(replies: Sequence[str], prompts: Sequence[Prompt]) -> dict[str, list[float | None]]:
    """The same of every reply; None where it has nothing to check."""
    scores = [score_reply(reply, prompt.checks) for reply, prompt in zip(replies, prompts, strict=True)]
    critical = [
        float(score.required == 1.0) if "critical" in prompt.tags and score.required is not None else None
        for score, prompt in zip(scores, prompts, strict=True)
    ]
    return {
        "task_score": [score.task for score in scores],
        "critical_pass": critical,
        "computed_score": [score.computed for score in scores],
        "rare_recall": [score.rare for score in scores],
    }


# Quantiles .975 of Student's t for 1, 2, … degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval (Student's t); the half-width of one value is NaN.

    >>> mean_and_interval([1.0, 3.0])
    (2.0, 12.706)
    """
    mean, count = fmean(values), len(values)
    if count < 2:
        return mean, float("nan")
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    quantile = T_QUANTILES[count - 2] if count - 2 < len(T_QUANTILES) else 1.96 + 2.4 / (count - 1)
    return mean, quantile * deviation / count**0.5
