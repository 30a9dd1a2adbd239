"""What training under rules leaves in a student: the seeds of an arm, decoded without any rules on held-out messages.

    python -m experiments.studies.ruled_training PLAIN RULED PAID --agent soft_q

Each RUN is the folder of a `compare` with the same seeds; the later ones are compared with the first, paired by seed.
Messages are those of `critical_phrases`, greedy. Means over the seeds with half of a 95 % interval (Student's t).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.teachers import load_teacher
from experiments.evaluate import check_same_tokens
from experiments.report import aligned
from experiments.studies.command import run
from experiments.studies.critical_phrases import COLUMNS, cells_of, chosen, figures


@dataclass(frozen=True)
class RuledTrainingConfig:
    """Settings of the study."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, the one to compare with first."""
    agent: str = "soft_q"
    """The arm whose students are read."""
    count: int = 64
    """Critical messages, and as many others."""
    max_new_tokens: int = 64


def study(config: RuledTrainingConfig) -> str:
    """A line for each run, and one for the difference of each later run from the first.

    Raises: InputError: fewer than two runs or messages, or runs that do not hold the same seeds, two or more.
    """
    if config.count < 2 or len(config.runs) < 2:
        raise InputError(f"count = {config.count} and {len(config.runs)} runs; at least 2 and 2 are needed")
    seeds = same_seeds(config.runs, config.agent)
    teacher, prompts = load_teacher("embedded"), chosen(config.count)
    found = []
    for folder in config.runs:
        own = []
        for seed in seeds:
            student, tokenizer = load_causal_lm(folder / "students" / f"{config.agent}-seed{seed}")
            check_same_tokens(teacher, tokenizer)
            own.append(figures(student, teacher, prompts, None, config.max_new_tokens)[0])
        found.append(np.stack(own))
    lines = [
        ["", *COLUMNS],
        *([place.name, *cells_of(values)] for place, values in zip(config.runs, found, strict=True)),
    ]
    lines += [
        [f"{place.name} − {config.runs[0].name}", *cells_of(apart)] for place, apart in differences(config.runs, found)
    ]
    note = f"{len(seeds)} students a run, {config.count} critical messages and as many others"
    return f"{aligned(lines, markdown=True)}\n\n{note}"


def differences(runs: tuple[Path, ...], found: list[NDArray[np.float64]]) -> list[tuple[Path, NDArray[np.float64]]]:
    """What each later run has more than the first, seed by seed.  # (seeds, 5, messages)"""
    return [(place, values - found[0]) for place, values in zip(runs[1:], found[1:], strict=True)]


def same_seeds(runs: tuple[Path, ...], agent: str) -> list[int]:
    """The seeds of an arm that all runs have students of.

    Raises: InputError: some have others, or fewer than two.
    """
    held = [
        sorted(int(path.name.rpartition("-seed")[2]) for path in (place / "students").glob(f"{agent}-seed*"))
        for place in runs
    ]
    for place, seeds in zip(runs, held, strict=True):
        if seeds != held[0] or len(seeds) < 2:
            raise InputError(
                f"{place} has students of {agent} with seeds {seeds}, {runs[0]} with {held[0]}; give runs of the "
                "same seeds, two or more"
            )
    return held[0]


if __name__ == "__main__":
    raise SystemExit(run(RuledTrainingConfig, __doc__, study))
