"""Tuning on the validation prompts: the same number of trials for every arm, on a seed that no comparison uses.

Trial 0 is the arm as it was given; a sampler (`--sampler`) proposes the others. An arm whose agent declares nothing to
search, or that fixes all of it, runs untuned, which the table says. Test prompts are not touched.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import InputError
from experiments import tpe
from experiments.arms import split_arm
from experiments.cell import build_agent
from experiments.config import ABSENT
from experiments.folder import write
from experiments.jobs import ENDS_ONE, FailedCells, run_cells, said
from experiments.metrics import task_measures
from experiments.report import aligned, csv_of
from experiments.samplers import TPE, Case, Grid, Sampler, arm_of, given, trials_of
from experiments.slices import BESIDE
from experiments.train import read_result
from experiments.workspace import Cell, Workspace

SEED = 1_000_000
LOWER_IS_BETTER = {"forward_kl", "leak"}
TRIALS = "trials.csv"
SPENT = ("updates", "seconds")  # what the measures of a curve stand at


@dataclass(frozen=True)
class Trial:
    """One trial of an arm at a mass, when its round is over."""

    number: int
    cell: Cell
    last: Mapping[str, float]  # the validation measures at its last update; none if it has failed

    def settings(self, arm: str) -> dict[str, Any]:
        """What sets it apart from its arm."""
        own = split_arm(arm)[1]
        return {name: value for name, value in split_arm(self.cell.agent)[1].items() if name not in own}


def sampler_of(space: Workspace, arms: Sequence[str], count: int, select: str) -> Sampler:
    """What `--sampler` asks for."""
    if getattr(space.config, "sampler", "") != TPE:
        return Grid(arms, count)
    begin = {arm: given(arm, space.settings(arm)) for arm in arms}
    return tpe.TreeParzen(space.out, begin, count, select in LOWER_IS_BETTER)


def check(space: Workspace, arms: Sequence[str], count: int, select: str) -> None:
    """Raises: InputError: too small a grid, an end of a space that the agent refuses, no Optuna to search with, or a
    measure that the validation prompts do not have."""
    prompts = space.splits.validation
    known = dict.fromkeys(task_measures([""] * len(prompts), prompts), 0.0) | {"greedy_length": 0.0}
    known |= dict.fromkeys(BESIDE if space.config.teacher != ABSENT else (), 0.0)
    if select not in known:
        raise InputError(_no_measure(select, known))
    student, sampled = space.seedling(SEED), getattr(space.config, "sampler", "") == TPE
    for arm in arms:
        agent, own = split_arm(arm)
        ends = tpe.check(arm, space.settings(arm)) if sampled else []
        for trial in [arm, *(arm_of(agent, own | end) for end in ends)] if sampled else trials_of(arm, count):
            build_agent(space.config, Cell(trial, SEED, space.masses[0]), student, space.settings(trial))


def tune(space: Workspace, arms: Sequence[str], count: int, select: str, jobs: int) -> str:
    """Run every arm's trials, keep them and the best settings in the run folder, and return what was chosen as text.

    Source: own derivation (equal tuning budgets).
    Args:
        select: the validation measure at the last update; the highest wins (the lowest of KL and leak).
    Raises: FailedCells: every trial of an arm failed. InputError: a measure that the validation prompts do not have.
    """
    cases = [(arm, top_p) for arm in arms for top_p in space.masses]
    sampler, found = sampler_of(space, arms, count, select), {case: list[Trial]() for case in cases}
    failures: dict[Cell, BaseException] = {}
    for numbers in sampler.rounds():
        proposed = [(case, number, sampler.trial(case, number)) for case in cases for number in numbers]
        cells = {(c, number): Cell(trial, SEED, c[1], "trial") for c, number, trial in proposed if trial is not None}
        failures |= dict(run_cells(space, list(dict.fromkeys(cells.values())), jobs, "tuning"))
        for (case, number), cell in cells.items():
            found[case].append(trial := Trial(number, cell, _last(space, cell)))
            score = _score(trial, select)
            if score is not None or trial.last or isinstance(failures[cell], ENDS_ONE):
                sampler.tell(case, number, score)  # what died by chance is tried again by the next command
    best = {case: _best(case, trials, select, failures) for case, trials in found.items()}
    chosen = {f"{arm} {top_p:g}": best[arm, top_p].settings(arm) for arm, top_p in cases}
    before = json.loads(space.tuned_file.read_text(encoding="utf-8")) if space.tuned_file.is_file() else {}
    write(space.tuned_file, json.dumps(before | chosen, indent=1))  # other arms' are of earlier commands, and stay
    write(space.out / TRIALS, trials_csv(space, found, best))
    text = f"{_heading(space, count, select)}:\n\n{table(found, best, count, select)}"
    write(space.tuned_file.with_suffix(".md"), text + "\n")
    return text


def _last(space: Workspace, cell: Cell) -> dict[str, float]:
    result = read_result(space, cell)
    return dict(result["curve"][-1]) if result is not None else {}


def _score(trial: Trial, select: str) -> float | None:
    """None of a trial that has failed, or whose measure is no finite number."""
    if trial.last and select not in trial.last:
        raise InputError(_no_measure(select, trial.last))
    score = trial.last.get(select, math.nan)
    return score if math.isfinite(score) else None


def _no_measure(select: str, known: Mapping[str, float]) -> str:
    there = sorted(name for name in known if name not in SPENT)
    return f"--select {select} is no validation measure here; there are {', '.join(there)}"


def _best(case: Case, trials: Sequence[Trial], select: str, failures: Mapping[Cell, BaseException]) -> Trial:
    scored = [(score, trial) for trial in trials if (score := _score(trial, select)) is not None]
    if not scored:
        ended = [said(failures[trial.cell]) for trial in trials if trial.cell in failures]
        last = ended[-1] if ended else f"{select} is no finite number"
        raise FailedCells(f"every trial of {case[0]} failed; the last: {last}", [])
    return (min if select in LOWER_IS_BETTER else max)(scored, key=lambda pair: pair[0])[1]


def _heading(space: Workspace, count: int, select: str) -> str:
    sampler, prompts = getattr(space.config, "sampler", ""), len(space.splits.validation)
    how = {TPE: f"the first {tpe.at_random(count)} at random, the others by a tree-structured Parzen estimator"}
    return (
        f"Settings chosen by {select} on {prompts} validation prompts, of {count} trials an arm, the given settings "
        f"first ({how.get(sampler, 'the others drawn from a grid')}; all of them: {TRIALS})"
    )


def table(found: Mapping[Case, Sequence[Trial]], best: Mapping[Case, Trial], count: int, select: str) -> str:
    """A line an arm and mass: trials, those that failed, the score as given and of the best, and what that one is."""
    lines = [["arm", "top_p", "trials", "failed", f"{select} as given", "best", "chosen"]]
    for (arm, top_p), trials in found.items():
        scores = [_score(trial, select) for trial in trials]
        own = best[arm, top_p]
        picked = arm_of("", own.settings(arm)).lstrip("@") or "as given"
        figures = ["failed" if score is None else f"{score:.4f}" for score in (scores[0], _score(own, select))]
        said = "untuned: nothing to try" if len(trials) == 1 < count else picked
        lines.append([arm, f"{top_p:g}", str(len(trials)), str(scores.count(None)), *figures, said])
    return aligned(lines, markdown=True)


def trials_csv(space: Workspace, found: Mapping[Case, Sequence[Trial]], best: Mapping[Case, Trial]) -> str:
    """A line a trial: whether it was chosen or has failed, its settings, its validation measures at the last update."""
    records = []
    for (arm, top_p), trials in found.items():
        begin = given(arm, space.settings(arm))
        tried = {name: begin[name] for trial in trials for name in trial.settings(arm)}
        for trial in trials:
            place = {"arm": arm, "top_p": top_p, "trial": trial.number}
            place |= {"chosen": int(trial is best[arm, top_p]), "failed": int(not trial.last)}
            measures = {name if name in SPENT else f"validation_{name}": x for name, x in trial.last.items()}
            records.append((place | tried | trial.settings(arm), measures))
    lines = [own | measures for own, measures in records]
    names = dict.fromkeys(name for part in (0, 1) for record in records for name in record[part])
    kept = _kept(space.out / TRIALS, list(found))
    return csv_of([*lines, *kept], list(names | dict.fromkeys(name for line in kept for name in line)))


def _kept(path: Path, cases: Sequence[Case]) -> list[dict[str, str]]:
    """Lines of the arms that an earlier command of this folder has searched and this one has not."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in csv.DictReader(file) if (line["arm"], float(line["top_p"])) not in cases]
