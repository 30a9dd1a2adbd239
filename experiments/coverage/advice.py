"""Shares with their intervals, and which p and K they speak for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.coverage.survey import ALL, Floats, Found, Grid, Side
from experiments.statistics import Estimate

REPETITIONS = 1000


@dataclass(frozen=True)
class Shares:
    """Shares at every p and K with their 95 % intervals, (P, W) each; NaN where there is nothing to share."""

    value: Floats
    low: Floats
    high: Floats

    def at(self, p: int, width: int = -1) -> Estimate:
        """One of them; without a width, of the uncut sets."""
        return Estimate(*(float(part[p, width]) for part in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Limits:
    """What may be lost at most, as shares."""

    words: float
    cut: float


@dataclass(frozen=True)
class Advice:
    """A p and a K, and why."""

    top_p: float
    max_candidates: int
    reason: str
    met: bool  # whether both limits are


def draws(prompts: int, seed: int) -> Floats:
    """How often each prompt is drawn in each bootstrap sample.  # (R, N)

    Source: Efron (1979); the prompts are drawn with replacement, all tokens and words of one together.
    """
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(prompts, size=prompts), minlength=prompts) for _ in range(REPETITIONS)])


def ratio(part: Floats, whole: Floats, weights: Floats) -> Shares:
    """Σ part / Σ whole over prompts, with percentiles of the same over bootstrap samples.

    Args:
        part: (N, P, W) of each prompt; whole: (N,); weights: (R, N), see `draws`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = weights @ whole  # (R,)
        again = (weights @ part.reshape(len(part), -1)) / sums[:, None]
        value = part.sum(0) / whole.sum()
    again = again[sums > 0]
    low, high = np.quantile(again, [0.025, 0.975], axis=0) if len(again) else np.full((2, value.size), np.nan)
    return Shares(value, low.reshape(value.shape), high.reshape(value.shape))


def lost(found: Found, grid: Grid, weights: Floats) -> Shares:
    """Share of the occurrences that fall out at every p and K."""
    prompts = weights.shape[1]
    part = np.zeros((prompts, len(grid.masses), len(grid.widths)))
    np.add.at(part, found.prompts, found.lost(grid))
    return ratio(part, np.bincount(found.prompts, minlength=prompts).astype(np.float64), weights)


def mass_kept(side: Side, weights: Floats) -> Shares:
    """Mean of Z over the states of the replies."""
    prompts = weights.shape[1]
    part = np.zeros((prompts, *side.kept.shape[1:]))
    np.add.at(part, side.prompts, side.kept)
    return ratio(part, np.bincount(side.prompts, side.lengths, prompts).astype(np.float64), weights)


def mass_cut(side: Side, weights: Floats) -> Shares:
    """Mean over the states of what K cuts off the sets, Z(A_p) − Z(A_p cut to K)."""
    prompts = weights.shape[1]
    part = np.zeros((prompts, *side.kept.shape[1:]))
    np.add.at(part, side.prompts, side.kept[..., -1:] - side.kept)
    return ratio(part, np.bincount(side.prompts, side.lengths, prompts).astype(np.float64), weights)


def advise(guarded: Mapping[str, Shares], cut: Shares, grid: Grid, limits: Limits) -> Advice:
    """The smallest p, and there the smallest K, that lose no more than they may.

    p: of every guarded group the share of words lost, without a cut, is at most `limits.words` at the upper end of its
    interval. K: the mean mass cut is at most `limits.cut`, and the words lost are still within their limit, both at
    the upper ends; V cuts nothing, so that some K always fits. Where no p does, the largest is named, and said so.

    Source: own derivation.

    Args:
        guarded: what must not be lost, by name; groups with an occurrence.
        cut: see `mass_cut`.
    """

    def worst(p: int, width: int = -1) -> tuple[float, str]:
        name = max(guarded, key=lambda own: float(guarded[own].high[p, width]))
        return float(guarded[name].high[p, width]), name

    def said_at(p: int) -> str:
        name = worst(p)[1]
        return f"{percent(guarded[name].at(p))} of {name if name == ALL else repr(name)}"

    fitting = [place for place in range(len(grid.masses)) if worst(place)[0] <= limits.words]
    p = fitting[0] if fitting else len(grid.masses) - 1
    limit = f"{'within' if fitting else 'beyond'} the limit of {100 * limits.words:g} %"
    reason = f"At p = {grid.masses[p]:g} {said_at(p)} fall out, {limit}"
    if fitting and p:
        reason += f"; at p = {grid.masses[p - 1]:g} {said_at(p - 1)}"
    if grid.masses[p] == 1.0:
        return Advice(1.0, grid.widths[-1], f"{reason}. p = 1 keeps the whole vocabulary, whatever K", True)
    width = next(
        place
        for place in range(len(grid.widths))  # the last one cuts nothing
        if cut.high[p, place] <= limits.cut and (not fitting or worst(p, place)[0] <= limits.words)
    )
    reason += f". K = {grid.widths[width]:,} cuts {percent(cut.at(p, width))} of the mass; the limit is "
    return Advice(grid.masses[p], grid.widths[width], f"{reason}{100 * limits.cut:g} %", bool(fitting))


def percent(found: Estimate) -> str:
    """A share and its interval.

    >>> percent(Estimate(0.0123, 0.01, 0.02))
    '1.23 % (1.00–2.00)'
    """
    return f"{100 * found.value:.2f} % ({100 * found.low:.2f}–{100 * found.high:.2f})"
