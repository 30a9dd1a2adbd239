"""What a teacher is, and how one is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from envs.errors import InputError
from envs.walk import Walk

DATA = Path(__file__).parent / "data"
EMBEDDED = DATA / "teacher"
WARM_START = DATA / "student"

_loaded: dict[tuple[str, bool], Teacher] = {}  # by name or resolved directory, and with a chat template or without


@runtime_checkable
class Teacher(Protocol):
    """A next-token distribution with its tokenizer: a handle that deep-copies to itself."""

    name: str
    vocab_size: int  # V: the width of its output
    eos_ids: frozenset[int]
    context_limit: int  # tokens it can see, prompt included

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def walk(self, rows: int) -> Walk: ...

    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (B, L, V), nats, of the token after each position; right-padded, one pass."""
        ...


def load_teacher(spec: str | Path | Teacher | tuple[Any, Any], *, chat_template: bool = False) -> Teacher:
    """A teacher from `"embedded"`, `"table:NAME"`, a directory, a hub id, a `Teacher` or `(model, tokenizer)`.

    The same name gives the same object. `(model, tokenizer)` is wrapped anew each time. With `chat_template` prompts
    are wrapped as a user's turn.

    Raises: InputError: an unknown name, or a model that cannot be loaded.
    """
    if isinstance(spec, tuple):
        from envs.hf_teacher import HFTeacher

        return HFTeacher(*spec, chat_template=chat_template)
    if not isinstance(spec, (str, Path)):
        if isinstance(spec, Teacher):
            return spec
        raise InputError(
            f"{type(spec).__name__} is no teacher; give a name, a directory, a Teacher or (model, tokenizer)"
        )
    name = str(spec)
    key = str(Path(name).resolve()) if Path(name).is_dir() else name, chat_template
    if key not in _loaded:
        _loaded[key] = _load(name, chat_template)
    return _loaded[key]


def _load(name: str, chat_template: bool) -> Teacher:
    from envs.table_teacher import TABLES

    if name.startswith("table:"):
        table = name.removeprefix("table:")
        if table not in TABLES:
            raise InputError(f"table teacher {table!r} does not exist{nearest(table, TABLES)}")
        return TABLES[table]()
    from envs.hf_teacher import HFTeacher, load_causal_lm

    if name == "embedded":
        return HFTeacher(*load_causal_lm(EMBEDDED), name=name, chat_template=chat_template)
    if not Path(name).is_dir() and (
        close := difflib.get_close_matches(name, ["embedded", *(f"table:{t}" for t in TABLES)])
    ):
        raise InputError(f"teacher {name!r} is neither a directory nor a known name; did you mean {close[0]!r}?")
    return HFTeacher(*load_causal_lm(name), name=name, chat_template=chat_template)


def recipe_of(teacher: Teacher) -> tuple[str, bool] | None:
    """The name or directory, and whether with a chat template, under which `load_teacher` gave this very object."""
    return next((key for key, loaded in _loaded.items() if loaded is teacher), None)


def reload_teacher(name: str, chat_template: bool) -> Teacher:
    """What a pickled teacher of `recipe_of` comes back as."""
    return load_teacher(name, chat_template=chat_template)


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The end of an error about an unknown name: what is close to it, and what there is."""
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(sorted(known))})"
