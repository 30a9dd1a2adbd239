"""Prompts: where episodes begin. JSONL, plain text, the embedded corpus; splits that never overlap."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from envs.errors import InputError
from envs.records import Prompt as Prompt  # whose home is beside what it is made of
from envs.records import Record, format_named, is_dataset, parsed, rows
from envs.service_desk import messages

if TYPE_CHECKING:
    from envs.teachers import Teacher

EMBEDDED_COUNTS = {"train": 4096, "validation": 256, "test": 256}


class Splits(NamedTuple):
    """Three lists of prompts; no text stands in two of them."""

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]


def prompt_hash(text: str) -> str:
    """Identity of a prompt: 16 hexadecimal digits of the BLAKE2b of its text, outer white space aside.

    >>> prompt_hash("Where is my order?") == prompt_hash(" Where is my order? ")
    True
    """
    return hashlib.blake2b(text.strip().encode(), digest_size=8).hexdigest()


def embedded_prompts(split: str, count: int | None = None) -> list[Prompt]:
    """Prompts of the embedded service desk.

    Args:
        split: `train`, `validation` or `test`; the corpus keeps their prompts disjoint.
        count: how many; None = 4,096 for training, 256 for the held-out splits.
    Raises: InputError: an unknown split.
    """
    if split not in EMBEDDED_COUNTS:
        raise InputError(f"split {split!r} is none of {', '.join(EMBEDDED_COUNTS)}")
    return [
        Prompt(
            text=message.prompt,
            references=(message.reply,),
            tags=(message.kind, *(["critical"] if message.critical else [])),
            checks=message.checks,
        )
        for message in messages(split, EMBEDDED_COUNTS[split] if count is None else count)
    ]


def load_prompts(
    source: str | Path | Sequence[str] | None, *, skip_bad: bool = False, prompt_format: str = "prompt"
) -> list[Prompt]:
    """Prompts from a file, from strings, or the embedded training split.

    Args:
        source: a path to `.jsonl` (one object a line, see `Prompt`) or to any other text file (one prompt a line, blank
            lines ignored), to a folder that `datasets` can read or NAME[:SPLIT] of the hub (extra `store`), a list of
            strings, or None for the embedded training split.
        skip_bad: leave broken lines out instead of refusing the file.
        prompt_format: how records become prompts, one of `envs.records.FORMATS`.
    Raises: InputError: no such file, a broken line (named with its number), or no prompt left.
    """
    if source is None:
        return embedded_prompts("train")
    if not isinstance(source, (str, Path)):
        prompts = [Prompt(text) for text in source]
        name = "the list of prompts"
    else:
        path = Path(source)
        prompts = _read(path, skip_bad, prompt_format)
        name = str(path)
    if not prompts:
        raise InputError(f"{name} holds 0 prompts; at least 1 is needed")
    return prompts


def split_prompts(prompts: Iterable[Prompt], seed: int = 0) -> Splits:
    """Train, validation and test, disjoint by text: about 80, 10 and 10 %.

    A prompt's place follows from how the hash of its text and the seed ranks among the others: the order in the file
    does not matter, what else is in it does. Repeated texts are merged into their first occurrence.

    Raises: InputError: fewer than 3 distinct prompts, so that a split would be empty.
    """
    distinct: dict[str, Prompt] = {}
    for prompt in prompts:
        distinct.setdefault(prompt_hash(prompt.text), prompt)
    if len(distinct) < 3:
        raise InputError(
            f"{len(distinct)} distinct prompts cannot be split into train, validation and test; give at least 3"
        )
    order = sorted(distinct, key=lambda key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest())
    held_out = max(1, len(order) // 10)
    chosen = [distinct[key] for key in order]
    return Splits(train=chosen[2 * held_out :], validation=chosen[held_out : 2 * held_out], test=chosen[:held_out])


def embedded_splits(counts: Mapping[str, int] | None = None) -> Splits:
    """The embedded corpus as three splits; `counts` overrides how many prompts each has."""
    sizes = {**EMBEDDED_COUNTS, **(counts or {})}
    return Splits(*(embedded_prompts(split, sizes[split]) for split in Splits._fields))


@runtime_checkable
class Carried(Protocol):
    """A teacher that is asked in a student's tokens and reads its own: `envs.carried_teacher`."""

    own_limit: int  # of its own tokens, prompt included

    def theirs(self, prompt: Sequence[int]) -> tuple[int, ...]: ...


def beyond(ids: Sequence[int], teacher: Teacher) -> str:
    """How a prompt leaves a carried teacher no room in its own tokens; empty: it does leave room.

    Raises: InputError: the teacher has not encoded this prompt.
    """
    if not isinstance(teacher, Carried) or (own := len(teacher.theirs(ids))) < teacher.own_limit:
        return ""
    return f"{own} of the teacher's own tokens, the limit is {teacher.own_limit - 1} (one less than its context)"


def fitting(
    prompts: Iterable[Prompt],
    teacher: Teacher,
    *,
    longest: int | None = None,
    skip_bad: bool = False,
    most: int | None = None,
    what: str = "prompt",
) -> list[tuple[Prompt, list[int]]]:
    """Prompts that leave room for a reply, in their order, and their tokens.

    Args:
        longest: most tokens of a prompt, if less than the teacher's context leaves.
        skip_bad: leave longer ones out instead of refusing them.
        most: stop at so many that fit.
        what: their name in an error.
    Raises: InputError: a longer prompt, or none that fits.
    """
    room = teacher.context_limit - 1
    limit, why = room, f"one less than the teacher's context of {room + 1}"
    if longest is not None and longest < room:
        limit, why = longest, "max_prompt_tokens"
    found = list[tuple[Prompt, list[int]]]()
    for prompt in prompts:
        if len(found) == most:
            break
        ids = teacher.encode(prompt.text)
        over = f"{len(ids)} tokens, the limit is {limit} ({why})" if len(ids) > limit else beyond(ids, teacher)
        if not over:
            found.append((prompt, ids))
        elif not skip_bad:
            raise InputError(
                f"the {what} {prompt.text[:60]!r} has {over}; shorten it, or leave such prompts out with --skip-bad"
            )
    if not found:
        own = f", {teacher.own_limit - 1} of the teacher's own" if isinstance(teacher, Carried) else ""
        raise InputError(f"no {what} has at most {limit} tokens ({why}){own}; shorten them")
    return found


def encode_prompts(teacher: Teacher, source: Any) -> tuple[list[Prompt], list[list[int]]]:
    """Prompts and their token ids, from anything the environment accepts; prompts given as ids carry no text.

    Args:
        source: a file or None as in `load_prompts`; a list of texts and `Prompt`s; or a list of lists of token ids.
    Raises: InputError: no prompt, texts mixed with ids, or an id outside the vocabulary.
    """
    items = load_prompts(source) if source is None or isinstance(source, (str, Path)) else list(source)
    if not items:
        raise InputError("the list of prompts holds 0 prompts; at least 1 is needed")
    if all(isinstance(item, (str, Prompt)) for item in items):
        prompts = [Prompt(item) if isinstance(item, str) else item for item in items]
        return prompts, [teacher.encode(prompt.text) for prompt in prompts]
    encoded = []
    for number, item in enumerate(items):
        if isinstance(item, (str, Prompt, Mapping)) or not hasattr(item, "__iter__"):
            raise InputError(
                f"prompt {number} is a {type(item).__name__} among others; give texts only, or lists of token ids only"
            )
        ids = _token_ids(item, number)
        if any(not 0 <= token < teacher.vocab_size for token in ids):
            raise InputError(f"prompt {number} has ids outside the vocabulary of {teacher.vocab_size}")
        encoded.append(ids)
    return [], encoded


def _token_ids(item: Iterable[Any], number: int) -> list[int]:
    """Token ids as plain integers; a number with a fraction or a flag is no id."""
    ids = []
    for token in item:
        try:
            ids.append(operator.index(token))
        except TypeError:
            ids.append(-1)
        if ids[-1] < 0 or isinstance(token, bool):
            raise InputError(f"prompt {number} holds {token!r}, which is no token id; give whole numbers from 0")
    return ids


def _read(source: Path, skip_bad: bool, prompt_format: str) -> list[Prompt]:
    """Prompts of a file or a data set, record by record."""
    make, listed = format_named(prompt_format), is_dataset(source)
    plain = prompt_format == "prompt" and source.suffix != ".jsonl"
    records: Iterable[tuple[int, Record | str]] = enumerate(rows(source), start=1) if listed else _lines(source)
    unit, prompts = "row" if listed else "line", []
    for number, record in records:
        try:
            if isinstance(record, str):
                prompts.append(Prompt(record) if plain else make(parsed(record)))
            else:
                prompts.append(make(record))
        except InputError as error:
            if not skip_bad:
                raise InputError(
                    f"{source}, {unit} {number}: {error} (or leave such {unit}s out with --skip-bad)"
                ) from error
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    if not path.is_file():
        raise InputError(f"prompts file {str(path)!r} does not exist; give a .jsonl or a text file, one prompt a line")
    try:
        # Not splitlines: a line separator of Unicode may stand inside a JSON string.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
