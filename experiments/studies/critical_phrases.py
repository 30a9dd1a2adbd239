"""What rules keep, and what they cost: students decoded greedily with and without them, on the same held-out messages.

    python -m experiments.studies.critical_phrases STUDENT... --rules rules.yaml

Critical messages and ordinary ones of the embedded test split, the same number of each. Of several students (the seeds
of an arm) means with half of a 95 % interval over the students (Student's t), of one student over the messages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from envs.decode import decode
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.prompts import Prompt, embedded_prompts
from envs.teachers import Teacher, load_teacher
from experiments.evaluate import check_context, check_same_tokens
from experiments.metrics import mean_and_interval, task_each
from experiments.report import aligned
from experiments.rules.processor import adjuster
from experiments.rules.rules import Rules, rules_for
from experiments.studies.command import run

AMONG = 4096  # test messages that are looked through for critical ones
COLUMNS = ("critical kept", "task, critical", "task, others", "tokens, critical", "tokens, others")
REPEATS = 3


@dataclass(frozen=True)
class CriticalPhrasesConfig:
    """Settings of the study."""

    students: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of students; several are the seeds of one arm."""
    rules: Path
    """A rules file."""
    count: int = 96
    """Critical messages, and as many others."""
    max_new_tokens: int = 64


def study(config: CriticalPhrasesConfig) -> str:
    """A line without rules, one with them, one of the difference, and how fast either decodes."""
    if config.count < 2 or not config.students:
        raise InputError(f"count = {config.count} and {len(config.students)} students; at least 2 and 1 are needed")
    teacher, prompts = load_teacher("embedded"), chosen(config.count)
    tokenizer = getattr(teacher, "tokenizer", None)
    rules = rules_for(config.rules, tokenizer, teacher.eos_ids, config.max_new_tokens)
    free, ruled, ratios = [], [], []
    for directory in config.students:
        student, own = load_causal_lm(directory)
        check_same_tokens(teacher, own)
        check_context(student, str(directory), prompts, teacher, config.max_new_tokens)
        free.append(figures(student, teacher, prompts, None, config.max_new_tokens)[0])
        ruled.append(figures(student, teacher, prompts, rules, config.max_new_tokens)[0])
        ratios.append(slower(student, teacher, prompts, rules, config.max_new_tokens))
    lines = [["", *COLUMNS]]
    values = {"without rules": np.stack(free), "with rules": np.stack(ruled)}
    values["difference"] = values["with rules"] - values["without rules"]
    lines += [[name, *cells_of(found)] for name, found in values.items()]
    note = f"{len(config.students)} students, {config.count} critical messages and as many others"
    speed = f"decoding with rules takes {fmean(ratios):.2f} of the time ({min(ratios):.2f} – {max(ratios):.2f})"
    return f"{aligned(lines, markdown=True)}\n\n{note}; {speed}"


def chosen(count: int) -> list[Prompt]:
    """The first critical messages of the test split, and the first others.

    Raises: InputError: there are not as many.
    """
    prompts = embedded_prompts("test", AMONG)
    parts = [[prompt for prompt in prompts if ("critical" in prompt.tags) is wanted] for wanted in (True, False)]
    if (fewest := min(map(len, parts))) < count:
        raise InputError(f"count = {count} is above the {fewest} critical messages among {AMONG}; lower it")
    return [prompt for part in parts for prompt in part[:count]]


def figures(
    student: Any, teacher: Teacher, prompts: Sequence[Prompt], rules: Rules | None, budget: int
) -> tuple[NDArray[np.float64], list[str]]:
    """What each half of the messages gives under `COLUMNS`, (5, messages of a half), and the replies."""
    replies = _decoded(student, teacher, prompts, rules, budget)
    texts, half = [teacher.decode(reply) for reply in replies], len(prompts) // 2
    each = task_each(texts, prompts)
    task = np.array([0.0 if value is None else value for value in each["task_score"]])  # each message has some
    kept = np.array([value or 0.0 for value in each["critical_pass"][:half]])
    lengths = np.array([float(len(reply)) for reply in replies])
    return np.stack([kept, task[:half], task[half:], lengths[:half], lengths[half:]]), texts


def slower(student: Any, teacher: Teacher, prompts: Sequence[Prompt], rules: Rules, budget: int) -> float:
    """Time of a token with rules over that without, medians of runs in turn."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPEATS):
        for under in times:
            begin = time.perf_counter()
            replies = _decoded(student, teacher, prompts, rules if under else None, budget)
            times[under].append((time.perf_counter() - begin) / sum(map(len, replies)))
    return median(times[True]) / median(times[False])


def _decoded(
    student: Any, teacher: Teacher, prompts: Sequence[Prompt], rules: Rules | None, budget: int
) -> list[list[int]]:
    return decode(
        student,
        [teacher.encode(prompt.text) for prompt in prompts],
        eos_ids=teacher.eos_ids,
        max_new_tokens=budget,
        temperature=0.0,
        vocabulary=teacher.vocab_size,
        adjust=None if rules is None else adjuster(rules, [prompt.text for prompt in prompts]),
    )


def cells_of(found: NDArray[np.float64]) -> list[str]:
    """Means with intervals of (students, 5, messages)."""
    cells = []
    for column, values in zip(COLUMNS, found.swapaxes(0, 1), strict=True):
        mean, half = mean_and_interval((values.mean(1) if len(values) > 1 else values[0]).tolist())
        digits = 1 if column.startswith("tokens") else 3
        cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
    return cells


if __name__ == "__main__":
    raise SystemExit(run(CriticalPhrasesConfig, __doc__, study))
