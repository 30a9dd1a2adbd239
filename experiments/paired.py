"""Paired differences: every arm against one of them, seed by seed, so that what a seed does to all arms cancels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.metrics import mean_and_interval
from experiments.report import Row, aligned

COLUMNS = {
    "task_score": "task",
    "critical_pass": "critical",
    "rare_recall": "rare",
    "forward_kl": "KL(T‖S)",
    "reverse_kl": "KL(S‖T)",
    "leak": "leak",
    "entropy": "entropy",
    "length": "length",
}
"""Measure -> heading. Length and entropy stand beside the others: a shorter or surer text looks better by many."""
MOST_FLIPPED = 12
LEGEND = "* excludes 0 at 95 %; in brackets p of the exact sign-flip test"


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference in one measure, over the seeds that both have."""

    agent: str
    top_p: float
    measure: str
    mean: float
    half: float  # half of the 95 % interval, Student's t; NaN for one seed
    seeds: int
    p: float  # of the sign-flip test; NaN for too many seeds to try all flips


def differences(rows: Sequence[Row], reference: str) -> list[Difference]:
    """Every arm against the reference at its own top_p; measures that either lacks, or that are infinite, are left out.

        d_k = x_k(arm) − x_k(reference), over seeds k;   mean ± t_{.975, n−1} · s / √n

    Source: paired t-test, Student (1908).
    """
    known = {(row.agent, row.top_p, row.seed): row.measures for row in rows}
    found = []
    for agent, top_p in dict.fromkeys((row.agent, row.top_p) for row in rows):
        seeds = [seed for one, p, seed in known if (one, p) == (agent, top_p) and (reference, p, seed) in known]
        if agent == reference or not seeds:
            continue
        pairs = [(known[agent, top_p, seed], known[reference, top_p, seed]) for seed in seeds]
        for measure in COLUMNS:
            if all(math.isfinite(side.get(measure, math.nan)) for pair in pairs for side in pair):
                values = [own[measure] - other[measure] for own, other in pairs]
                place = (agent, top_p, measure, *mean_and_interval(values), len(pairs))
                found.append(Difference(*place, sign_flip_p(values)))
    return found


def sign_flip_p(values: Sequence[float]) -> float:
    """Exact two-sided p-value of no difference, without a normal law: how rare is so large a mean among sign flips?

        p = 2⁻ⁿ · #{σ ∈ {−1, +1}ⁿ : |Σ_k σ_k d_k| ≥ |Σ_k d_k|};   the smallest is 2¹⁻ⁿ, .0625 for five seeds

    Source: Fisher (1935), The Design of Experiments, section 21.
    Args:
        values: paired differences d_k, one a seed.
    Returns: p in (0, 1]; NaN above `MOST_FLIPPED` seeds.
    >>> sign_flip_p([3.0, 2.0, 1.0])
    0.25
    """
    count = len(values)
    if count > MOST_FLIPPED:
        return math.nan
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)  # (2**n, n)
    sums = np.abs(signs @ np.array(values, dtype=np.float64))
    return float(np.mean(sums >= sums[0] - 1e-12 * np.abs(values).sum()))  # flip 0 is none; sums of one size tie


def table(rows: Sequence[Row], reference: str, *, markdown: bool = False) -> str:
    """A line per arm and top_p; empty where no arm shares two seeds with the reference. A * excludes 0 at 95 %."""
    found = [entry for entry in differences(rows, reference) if entry.seeds > 1]
    if not found:
        return ""
    names = [name for name in COLUMNS if any(entry.measure == name for entry in found)]
    lines = [["agent", "top_p", "seeds", *(COLUMNS[name] for name in names)]]
    for agent, top_p in dict.fromkeys((entry.agent, entry.top_p) for entry in found):
        own = {entry.measure: entry for entry in found if (entry.agent, entry.top_p) == (agent, top_p)}
        cells = [_cell(own[name]) if name in own else "" for name in names]
        lines.append([agent, f"{top_p:g}", str(next(iter(own.values())).seeds), *cells])
    return aligned(lines, markdown)


def _cell(entry: Difference) -> str:
    digits = 1 if entry.measure == "length" else 3
    sure = "*" if abs(entry.mean) > entry.half else ""
    flips = "" if math.isnan(entry.p) else f" ({entry.p:.3f})"
    return f"{entry.mean:+.{digits}f}±{entry.half:.{digits}f}{sure}{flips}"


def figures(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """The differences as commands with `--json` write them."""
    return [
        {
            "name": f"paired/{entry.measure}",
            "value": entry.mean,
            "low": entry.mean - entry.half,
            "high": entry.mean + entry.half,
            "agent": entry.agent,
            "reference": reference,
            "top_p": entry.top_p,
            "seeds": entry.seeds,
            **({} if math.isnan(entry.p) else {"p_sign_flip": entry.p}),
        }
        for entry in differences(rows, reference)
        if entry.seeds > 1
    ]
