"""Arms over seeds and tasks: interquartile means, probabilities of improvement and performance profiles.

Intervals are bootstrap percentiles (`rliable`): whole seeds are drawn again, a seed with all its tasks; the tasks stay.
They reach no further than the seeds that were seen, so that of two or three they are too narrow.

Source: Agarwal et al. (2021), arXiv:2108.13264, sections 4.1 to 4.3. Departure: seeds are not drawn within every task.
All tasks of a seed are measured on one student, and share its luck; drawn apart, T tasks would average that away, and
intervals be too narrow by up to √T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments import paired
from experiments.report import Row, aligned, groups

if TYPE_CHECKING:
    from experiments.page.figures import Profiles

REPETITIONS = 1000
SEED = 0
THRESHOLDS = 51
OVERLAPPING = {"critical", "rare words"}  # slices across the kinds of message: their prompts would count twice
START, TEACHER = "start", "teacher"

Scores = NDArray[np.float64]
Key = tuple[str, float]
"""An arm at its top_p, as in `report.groups`."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; low and high are NaN where one seed gives none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What an arm's line says."""

    agent: str
    top_p: float
    seeds: int
    tasks: int
    iqm: Estimate
    better: Estimate | None  # probability of improvement over the reference; None for the reference itself


@dataclass(frozen=True)
class Matrices:
    """Scores of all arms, and what they are."""

    scores: dict[Key, Scores]  # (seeds, tasks) each; higher is better
    measure: str
    normalised: bool  # whether 0 is the start and 1 the teacher, at every top_p


def scores_of(rows: Sequence[Row]) -> dict[Key, Scores]:
    """Scores of every arm at every top_p, (seeds, tasks); higher is better.

        x ↦ (x − start) / (teacher − start),   task by task, start the mean over its seeds

    Tasks are the kinds of message where every arm has a task score on at least two of them, else all prompts are one
    task. The measure is the task score where every arm has it, else minus KL(T‖S) in nats/token. Start and teacher are
    no arms. Where one of the two is missing, or the teacher is not above the start on some task, a share of the way
    between them says nothing: then no task is normalised and the scores are the measure itself. An arm with a
    measure that is missing or infinite is left out.
    """
    return matrices(rows).scores


def matrices(rows: Sequence[Row]) -> Matrices:
    """The same with what they are."""
    arms, ends, measure = _measured(rows)
    spans = {}
    for top_p in {p for _, p in arms}:
        start, teacher = (ends.get((name, top_p)) for name in (START, TEACHER))
        if start is None or teacher is None or not bool(np.all(teacher.mean(0) > start.mean(0))):
            return Matrices(arms, measure, normalised=False)
        spans[top_p] = start.mean(0), teacher.mean(0) - start.mean(0)  # (tasks,)
    scores = {key: (own - spans[key[1]][0]) / spans[key[1]][1] for key, own in arms.items()}
    return Matrices(scores, measure, normalised=True)


def _measured(rows: Sequence[Row]) -> tuple[dict[Key, Scores], dict[Key, Scores], str]:
    """Arms, and start and teacher, as measured, (seeds, tasks); the name of the measure."""
    arms = [row for row in rows if row.agent not in (START, TEACHER)]
    kinds = [{name for name, own in _slices(row).items() if "task_score" in own} - OVERLAPPING for row in arms]
    tasks = sorted(set.intersection(*kinds)) if kinds else []
    scored = all("task_score" in row.measures for row in arms)

    def of(row: Row) -> list[float]:
        if len(tasks) > 1:
            own = _slices(row)
            return [own.get(task, {}).get("task_score", math.nan) for task in tasks]
        return [row.measures.get("task_score", math.nan) if scored else -row.measures.get("forward_kl", math.nan)]

    every = {key: np.array([of(row) for row in found], dtype=np.float64) for key, found in groups(rows).items()}
    finite = {key: found for key, found in every.items() if np.isfinite(found).all()}
    apart = {key: found for key, found in finite.items() if key[0] in (START, TEACHER)}
    own = {key: found for key, found in finite.items() if key not in apart}
    return own, apart, "task score" if scored or len(tasks) > 1 else "−KL(T‖S)"


def _slices(row: Row) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Mapping[str, float]] = getattr(row, "more", {}).get("slices", {})
    return found


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of what is left when a quarter (rounded down) goes at either end.

    The same as `rliable.metrics.aggregate_iqm`, which takes ten times as long: too long for every bootstrap sample.

    Args:
        scores: (seeds, tasks), taken together.
    >>> iqm(np.array([[0.0, 1.0], [2.0, 9.0]]))
    1.5
    """
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def aggregates(rows: Sequence[Row]) -> dict[Key, dict[str, Estimate]]:
    """Interquartile mean, mean and median over tasks of the means over seeds, and how far below the teacher on average.

    optimality gap = 1 − mean min(x, 1),   of normalised scores alone
    """
    found = matrices(rows)
    names = ["iqm", "mean", "median", *(["optimality_gap"] if found.normalised else [])]

    def every(x: Scores) -> Scores:
        gap = [1 - np.minimum(x, 1).mean()] if found.normalised else []
        return np.array([iqm(x), x.mean(), np.median(x.mean(0)), *gap])

    return {key: dict(zip(names, _intervals([own], every), strict=True)) for key, own in found.scores.items()}


def share_above(own: Scores, other: Scores) -> float:
    """Probability that a seed of one arm beats a seed of another, the mean over tasks; a tie is half.

        P(X > Y) = mean over tasks, seeds i and j of 1[x_i > y_j] + ½ · 1[x_i = y_j]

    Source: Mann and Whitney (1947), U / (n · m).
    Args:
        own, other: (seeds, tasks), the seeds may differ in number.
    """
    differences = own[:, None] - other[None]  # (seeds, seeds, tasks)
    return float(((np.sign(differences) + 1) / 2).mean())


def probability_of_improvement(rows: Sequence[Row], reference: str) -> dict[Key, Estimate]:
    """Of every arm over the reference at its own top_p; the interval draws the seeds of both apart, not in pairs."""
    return _improvements(scores_of(rows), reference)


def _improvements(scores: Mapping[Key, Scores], reference: str) -> dict[Key, Estimate]:
    return {
        (agent, top_p): _better(own, scores[reference, top_p])
        for (agent, top_p), own in scores.items()
        if agent != reference and (reference, top_p) in scores
    }


def _better(own: Scores, other: Scores) -> Estimate:
    return _intervals([own, other], lambda x, y: np.array([share_above(x, y)]))[0]


def performance_profile(rows: Sequence[Row]) -> tuple[Scores, dict[Key, tuple[Scores, Scores, Scores]]]:
    """Share of an arm's runs, over seeds and tasks, that score above a threshold.

        F(τ) = mean over seeds and tasks of 1[x > τ]

    Returns: thresholds (51,) from the lowest to the highest score, from 0 to 1 at least where scores are normalised;
        arm -> share, low and high, each (51,); low and high are NaN for one seed.
    """
    matrix = matrices(rows)
    if not matrix.scores:
        return np.empty(0), {}
    ends = [0.0, 1.0] if matrix.normalised else []
    together = np.concatenate([ends, *(own.ravel() for own in matrix.scores.values())])
    thresholds = np.linspace(together.min(), together.max(), THRESHOLDS)
    found = {}
    for key, own in matrix.scores.items():
        points = _intervals([own], lambda x: (x[..., None] > thresholds).mean((0, 1)))
        share, low, high = np.array([[point.value, point.low, point.high] for point in points]).T
        found[key] = (share, low, high)
    return thresholds, found


def _intervals(scores: list[Scores], measure: Callable[..., Scores]) -> list[Estimate]:
    """A measure's numbers with their intervals; none where an arm has one seed.

    rliable draws the seeds' numbers, one task of them, and what it has drawn is looked up in all tasks at once.
    """
    values = measure(*scores)
    if min(map(len, scores)) < 2:
        return [Estimate(float(value), math.nan, math.nan) for value in values]
    from rliable import library

    def of_seeds(*drawn: NDArray[np.int64]) -> Scores:
        return measure(*(own[seeds[:, 0]] for own, seeds in zip(scores, drawn, strict=True)))

    seeds = [np.arange(len(own))[:, None] for own in scores]  # (seeds, 1) of each arm
    with _seeded():
        given = {"": seeds[0] if len(seeds) == 1 else seeds}
        low, high = library.get_interval_estimates(given, of_seeds, reps=REPETITIONS)[1][""]
    return [Estimate(*map(float, found)) for found in zip(values, low, high, strict=True)]


@contextmanager
def _seeded() -> Iterator[None]:
    """The same rows give the same interval: rliable 1.2 draws from NumPy's global generator, whatever it is given."""
    before = np.random.get_state()
    np.random.seed(SEED)
    try:
        yield
    finally:
        np.random.set_state(before)


def summaries(rows: Sequence[Row], reference: str) -> list[Summary]:
    """A line per arm and top_p."""
    known = tuple((key, own.shape, own.tobytes()) for key, own in scores_of(rows).items())
    return list(_summaries(known, reference))


@lru_cache(maxsize=1)  # a comparison asks for its report, and again to print: seconds of bootstrap for thirty arms
def _summaries(known: tuple[tuple[Key, tuple[int, ...], bytes], ...], reference: str) -> tuple[Summary, ...]:
    scores = {key: np.frombuffer(content, dtype=np.float64).reshape(shape) for key, shape, content in known}
    better = _improvements(scores, reference)
    return tuple(
        Summary(*key, len(own), own.shape[1], _intervals([own], lambda x: np.array([iqm(x)]))[0], better.get(key))
        for key, own in scores.items()
    )


def several_seeds(rows: Sequence[Row]) -> bool:
    """Whether any arm has the two seeds that an interval takes."""
    return any(len(own) > 1 for (agent, _), own in groups(rows).items() if agent not in (START, TEACHER))


def table(found: Sequence[Summary], reference: str, *, markdown: bool = False) -> str:
    """Seeds, tasks, interquartile mean and probability of improvement with 95 % intervals; empty without arms."""
    if not found:
        return ""
    lines = [["agent", "top_p", "seeds", "tasks", "IQM", f"P(above {reference})"]]
    for own in found:
        better = "" if own.better is None else _cell(own.better)
        lines.append([own.agent, f"{own.top_p:g}", str(own.seeds), str(own.tasks), _cell(own.iqm), better])
    return aligned(lines, markdown)


def _cell(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{found.value:.3f} (one seed: no interval)"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def heading(rows: Sequence[Row]) -> str:
    """What the numbers of the table are."""
    found = matrices(rows)
    scale = ", start = 0 and teacher = 1" if found.normalised else ""
    return f"Interquartile mean of {found.measure} over seeds and tasks{scale}; bootstrap over whole seeds, 95 %"


def notes(rows: Sequence[Row], reference: str, trials: int) -> list[str]:
    """What a report says of an arm against another: paired differences, the table above, and the selection rule."""
    said = []
    if found := paired.table(rows, reference, markdown=True):
        said.append(f"Paired by seed, against {reference}; {paired.LEGEND}:\n\n{found}")
    if several_seeds(rows) and (found := table(summaries(rows, reference), reference, markdown=True)):
        said.append(f"{heading(rows)}:\n\n{found}")
    return [*said, f"{selection_rule(trials)}."]


def profiles(rows: Sequence[Row]) -> Profiles | None:
    """Performance profiles by the arms' labels, for the page; None of single seeds, which have no interval."""
    if not several_seeds(rows):
        return None
    thresholds, found = performance_profile(rows)
    several = len({top_p for _, top_p in found}) > 1
    labels = {key: f"{key[0]}, p = {key[1]:g}" if several else key[0] for key in found}
    return thresholds.tolist(), {labels[key]: (list(y), list(low), list(high)) for key, (y, low, high) in found.items()}


def selection_rule(trials: int) -> str:
    """How the weights and settings of every arm were chosen."""
    searched = f"searched on validation with {trials} trials each" if trials else "as given"
    return f"Selection rule of every arm: last weights; settings {searched}"


def figures(found: Sequence[Summary], reference: str) -> list[dict[str, Any]]:
    """The numbers that have an interval as commands with `--json` write them."""
    flat = []
    for own in found:
        place = {"agent": own.agent, "top_p": own.top_p, "seeds": own.seeds, "tasks": own.tasks}
        named = {"iqm": own.iqm, "probability_of_improvement": own.better}
        for name, estimate in named.items():
            if estimate is not None and not math.isnan(estimate.low):
                beside = {"reference": reference} if estimate is own.better else {}
                ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
                flat.append({"name": name, **ends, **place, **beside})
    return flat
