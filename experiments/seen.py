"""Prompts that a student has seen: it was trained on them, or chosen by what it did on them.

Their hashes lie beside the student and are handed on to those that begin with it; to measure it on them is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from envs.errors import InputError
from envs.prompts import Prompt, prompt_hash
from experiments.folder import write

TRAINED_ON = "training_prompts.json"
SELECTED_ON = "selection_prompts.json"
"""Validation prompts by which the student's settings, or how long its warm-up went on, were chosen."""


def remember(
    directory: Path,
    start: Path,
    trained: Sequence[Prompt],
    selected: Sequence[Prompt] = (),
    more: Iterable[str] = (),
) -> None:
    """Write beside a student the hashes of the prompts it has seen, those that its start has seen included.

    Args:
        start:    where the student began, if that is a directory.
        trained:  the prompts it was trained on.
        selected: the prompts it was selected on; none of a student that nothing was chosen for.
        more:     hashes of further prompts that it was trained on.
    """
    for name, prompts, others in ((TRAINED_ON, trained, set(more)), (SELECTED_ON, selected, set[str]())):
        if hashes := {prompt_hash(prompt.text) for prompt in prompts} | others | hashes_in(start / name):
            write(directory / name, json.dumps(sorted(hashes)))


def hashes_in(record: Path) -> set[str]:
    """The hashes of prompts that a record holds; none where it is not there.

    Raises: InputError: a record that is none: what is not known to be unseen must not be measured on.
    """
    if not record.is_file():
        return set()
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise InputError(f"{record} is no JSON list of prompt hashes; remove it if it is not from this project")
    return set(found)


def refuse_training_prompts(directory: Path, prompts: Sequence[Prompt]) -> None:
    """Raises: InputError: some of the prompts are among those the student was trained on."""
    if seen := _among(prompts, hashes_in(directory / TRAINED_ON)):
        raise InputError(
            f"{directory} was trained on {len(seen)} of these {len(prompts)} prompts, for one {seen[0][:60]!r}; "
            "measure it on others"
        )


def refuse_selection_prompts(directory: Path, prompts: Sequence[Prompt]) -> None:
    """Raises: InputError: some of the prompts are among those the student was selected on."""
    if seen := _among(prompts, hashes_in(directory / SELECTED_ON)):
        raise InputError(
            f"{directory} was selected on {len(seen)} of these {len(prompts)} prompts, for one {seen[0][:60]!r}: its "
            "settings or its warm-up were chosen by what it did on them, so that figures on them flatter it; measure "
            "it on others, as the test split of the prompts that it was selected on (--prompt-split test)"
        )


def _among(prompts: Sequence[Prompt], known: set[str]) -> list[str]:
    return [prompt.text for prompt in prompts if prompt_hash(prompt.text) in known]
