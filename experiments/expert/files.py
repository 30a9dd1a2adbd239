"""The expert on disk: plain numbers beside a student, read back whole or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from envs.errors import InputError
from envs.prompts import Prompt
from experiments.expert.counts import Expert
from experiments.expert.mixture import PARTS, Gate
from experiments.expert.words import Word
from experiments.folder import digest, write
from experiments.seen import remember

FOLDER = "expert"
"""Its name in a student's directory."""
COUNTS, SETTINGS = "expert.safetensors", "expert.json"
FORMAT = 1


def vocabulary_of(tokenizer: Any) -> str:
    """What an expert's token ids mean, as sixteen digits."""
    return digest(json.dumps(sorted(tokenizer.get_vocab().items())))


def lay_beside(
    student: Path,
    expert: Expert,
    gate: Gate,
    tokenizer: Any,
    counted_on: Sequence[Prompt] = (),
    fitted_on: Sequence[Prompt] = (),
) -> Path:
    """Write the expert into a student's directory, in place of one that is there, and the prompts it has seen.

    Returns: its folder.
    """
    folder = student / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    remember(folder, student, counted_on, fitted_on)
    content = save(_tensors(expert))
    (folder / COUNTS).write_bytes(content)
    settings = {
        "format": FORMAT,
        "vocabulary": vocabulary_of(tokenizer),
        "counts": digest(content),
        "order": expert.order,
        "longest": expert.longest,
        "weights": list(gate.weights),
        "threshold": gate.threshold,
    }
    write(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
    return folder


def expert_beside(student: Path, tokenizer: Any) -> tuple[Expert, Gate]:
    """The expert in a student's directory, for a tokenizer that must be the one it was counted with.

    Raises: InputError: there is none, a file is damaged or from another expert, or the tokenizer is another one.
    """
    folder = student / FOLDER
    remedy = f"make it with tdistill expert --student {student}"
    for name in (SETTINGS, COUNTS):
        if not (folder / name).is_file():
            raise InputError(f"there is no {folder / name}, so that {student} has no expert; {remedy}")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        gate = Gate(tuple(map(float, settings["weights"])), float(settings["threshold"]))
        sizes = settings["order"], settings["longest"]
        known = [settings[name] for name in ("format", "vocabulary", "counts")]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / SETTINGS} is damaged ({error!r}); {remedy}") from error
    if known[0] != FORMAT:
        raise InputError(f"{folder / SETTINGS} has format {known[0]!r}, this version reads {FORMAT}; {remedy}")
    whole = all(isinstance(size, int) for size in sizes) and sizes[0] >= 2 and sizes[1] >= 1
    weights = len(gate.weights) == PARTS and all(0.0 <= weight <= 1.0 for weight in gate.weights)
    if not whole or not weights or not 0.0 <= gate.threshold < float("inf"):
        raise InputError(
            f"{folder / SETTINGS}: weights {gate.weights} must be {PARTS} in [0, 1], threshold {gate.threshold} a "
            f"number from 0 on, order {sizes[0]} a whole number from 2 on and longest {sizes[1]} from 1 on; {remedy}"
        )
    content = (folder / COUNTS).read_bytes()
    if digest(content) != known[2]:
        raise InputError(f"{folder / COUNTS} is damaged, or not the one that {SETTINGS} was written with; {remedy}")
    if (own := vocabulary_of(tokenizer)) != known[1]:
        raise InputError(
            f"{folder} was counted with another tokenizer (vocabulary {known[1]}, here {own}), so that its token ids "
            f"mean something else; {remedy}"
        )
    try:
        return _expert(load(content), *sizes), gate
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{folder / COUNTS} holds no expert ({error!r}); {remedy}") from error


def _tensors(expert: Expert) -> dict[str, torch.Tensor]:
    copies = sorted(expert.copies.items())
    contexts = sorted(expert.totals)
    rows = [sorted(expert.targets.get(context, {}).items()) for context in contexts]
    common, starts = _joined(sorted(expert.common))
    found = {
        "kinds": expert.kinds,
        "common": common,
        "common_starts": starts,
        "copies": np.array([(*key, *value) for key, value in copies], np.int64).reshape(-1, 4),
        "totals": np.array([expert.totals[context] for context in contexts], np.int32),
        "targets": np.array([pair for row in rows for pair in row], np.int32).reshape(-1, 2),
        "target_starts": np.cumsum([0, *map(len, rows)]),
    }
    found["contexts"], found["context_starts"] = _joined(contexts)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}


def _expert(tensors: dict[str, torch.Tensor], order: int, longest: int) -> Expert:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    contexts = _parted(arrays["contexts"], arrays["context_starts"])
    starts, pairs = arrays["target_starts"].tolist(), [(row[0], row[1]) for row in arrays["targets"].tolist()]
    rows = [dict(pairs[start:end]) for start, end in pairwise(starts)]
    return Expert(
        kinds=arrays["kinds"],
        common=frozenset(_parted(arrays["common"], arrays["common_starts"])),
        longest=longest,
        order=order,
        copies={(row[0], row[1]): (row[2], row[3]) for row in arrays["copies"].tolist()},
        totals=dict(zip(contexts, arrays["totals"].tolist(), strict=True)),
        targets={context: row for context, row in zip(contexts, rows, strict=True) if row},
    )


def _joined(words: Iterable[Word]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Sequences one behind another, and where each begins, with the end behind them."""
    given = list(words)
    return np.array([token for word in given for token in word], np.int32), np.cumsum([0, *map(len, given)])


def _parted(tokens: NDArray[np.int32], starts: NDArray[np.int64]) -> list[Word]:
    flat, places = tokens.tolist(), starts.tolist()
    return [tuple(flat[start:end]) for start, end in pairwise(places)]
