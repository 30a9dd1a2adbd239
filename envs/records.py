"""What a line of a prompts file or a row of a public data set says: prompt, references, tags, checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.service_desk import Checks

Record = Mapping[str, Any]
HUB = re.compile(r"[\w.-]+/[\w.-]+")
FILES = (".jsonl", ".json", ".txt", ".csv", ".md")

TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."
"""The words around an instruction that the data sets below are usually learnt with.

Source: the prompt of Stanford Alpaca (2023), as in the code of MiniLLM (arXiv:2306.08543).
"""


@dataclass(frozen=True)
class Prompt:
    """One prompt and what is known about a good reply to it.

    A JSONL line carries the same fields: `prompt` (required), `reference` (a string or a list of strings), `tags` (a
    list of strings) and `checks` (an object with any of `copied`, `computed`, `required`, `rare`: lists of strings).
    """

    text: str
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    checks: Checks = field(default_factory=Checks)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("a prompt is empty (0 characters besides white space); give it text or remove it")
        if any("\ud800" <= character <= "\udfff" for character in self.text):
            raise InputError(f"a prompt holds half of a surrogate pair, which is no text: {self.text[:60]!a}; mend it")


def prompt_of(record: Record) -> Prompt:
    """`prompt`, and if it has them `reference`, `tags` and `checks`."""
    if not isinstance(record, Mapping) or not isinstance(record.get("prompt"), str):
        raise InputError('each line must be an object with a string under "prompt"')
    checks, known = record.get("checks", {}), {own.name for own in fields(Checks)}
    if not isinstance(checks, Mapping) or not set(checks) <= known:
        raise InputError(f'"checks" must be an object with keys among {", ".join(sorted(known))}')
    return Prompt(
        text=record["prompt"],
        references=_replies(record.get("reference", []), "reference"),
        tags=_strings(record.get("tags", []), "tags"),
        checks=Checks(**{key: _strings(value, f"checks.{key}") for key, value in checks.items()}),
    )


def dolly(record: Record) -> Prompt:
    """databricks-dolly-15k: `instruction`, `context`, `response`, `category`; or `input` and `output` for two."""
    context = record.get("context", record.get("input", ""))
    replies = record.get("response", record.get("output", []))
    return _instruction(record, context, replies, "response", record.get("category"))


def selfinst(record: Record) -> Prompt:
    """Self-Instruct's user-oriented tasks: `instruction`, and the `input` and `output` of the first of `instances`."""
    instances = record.get("instances")
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], Mapping):
        raise InputError('"instances" must be a list of objects with "input" and "output"')
    return _instruction(record, instances[0].get("input", ""), instances[0].get("output", []), "output", None)


def vicuna(record: Record) -> Prompt:
    """Vicuna's questions: `text` (or the first of `turns`) and `category`; there are no references."""
    turns = record.get("turns")
    text = turns[0] if isinstance(turns, list) and turns else record.get("text")
    return _instruction({"instruction": text}, "", [], "reference", record.get("category"), "text")


FORMATS: dict[str, Callable[[Record], Prompt]] = {
    "prompt": prompt_of,
    "dolly": dolly,
    "selfinst": selfinst,
    "vicuna": vicuna,
}
"""Name of a format -> what it makes of a record. Raises: InputError: a record that it cannot read."""


def format_named(name: str) -> Callable[[Record], Prompt]:
    """Raises: InputError: an unknown format."""
    if name not in FORMATS:
        raise InputError(f"prompt_format = {name!r} must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def parsed(line: str) -> Record:
    """A line of JSON.  Raises: InputError: it is none, or no object."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets within brackets
        raise InputError(f"not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise InputError("each line must be a JSON object")
    return record


def is_dataset(source: Path) -> bool:
    """Whether this names a data set: a folder, or NAME[:SPLIT] of the hub that is no file here."""
    if source.exists():
        return source.is_dir()
    name = str(source).partition(":")[0]
    return Path(name).is_dir() or bool(HUB.fullmatch(name) and not name.endswith(FILES))


def rows(source: Path) -> Iterator[Record]:
    """The rows of a data set: a folder that `datasets` reads or has saved, or NAME[:SPLIT] of the hub; else of train.

    Raises: InputError: it cannot be read, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("data sets are read by `datasets`: pip install 'tdistill[store]'") from None
    name, _, split = str(source).partition(":")
    try:
        if any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
            found = found[split or "train"] if isinstance(found, datasets.DatasetDict) else found
        else:
            found = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"no data set can be read from {name!r}, split {split or 'train'!r} ({why}); give a .jsonl file, a folder "
            "that `datasets` can read, or OWNER/NAME[:SPLIT] of the hub and a network"
        ) from error
    yield from found


def _instruction(
    record: Record, context: Any, replies: Any, reply: str, category: Any, name: str = "instruction"
) -> Prompt:
    task = record.get("instruction")
    if not isinstance(task, str) or not task.strip() or not isinstance(context or "", str):
        raise InputError(f'"{name}" must be a text, and what comes with it too; it is {json.dumps(task)[:60]}')
    if context and context.strip():
        words = f"{TASK}, paired with an input that provides further context. {REQUEST}"
        text = f"{words}\n\n### Instruction:\n{task}\n\n### Input:\n{context}\n\n### Response:\n"
    else:
        text = f"{TASK}. {REQUEST}\n\n### Instruction:\n{task}\n\n### Response:\n"
    return Prompt(text, _replies(replies, reply), (category,) if isinstance(category, str) else ())


def _replies(value: Any, name: str) -> tuple[str, ...]:
    return _strings([value] if isinstance(value, str) else value, name)


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f'"{name}" must be a list of strings, not {json.dumps(value)[:60]}')
    return tuple(value)
