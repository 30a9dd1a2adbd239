"""What a teacher is, and how one is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from envs.errors import InputError
from envs.walk import Walk

DATA = Path(__file__).parent / "data"
EMBEDDED = DATA / "teacher"
WARM_START = DATA / "student"

SERVED = "served:"
"""Before the URL of a teacher that is only served: see `envs.served_teacher`."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loading:
    """How a model is read from a directory or the hub.

    Raises: InputError: a type of number that is not among `DTYPES`, or a device that is not there.
    """

    dtype: str = "float32"
    """Of its weights; half precision is coarser, and slow on a CPU."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:N"."""
    attn_implementation: str | None = None
    """As transformers names them: eager, sdpa, flash_attention_2, …; none: its own choice."""
    trust_remote_code: bool = False
    """Run the model code that comes with a directory or from the hub."""
    chat_template: bool = False
    """Wrap each prompt as a user's turn of the tokenizer's chat template."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} must be one of {', '.join(DTYPES)}")
        check_device(self.device)


def check_device(name: str) -> None:
    """Raises: InputError: no device of this name is here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f'device {name!r} is none; give "cpu", "cuda" or "cuda:N"') from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f'device {name!r} must be "cpu", "cuda" or "cuda:N"')
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"device {name!r} was asked for, torch {torch.__version__} sees {count} CUDA devices; give --device cpu, "
            "or install the CUDA build of torch on a machine with one"
        )


_loaded: dict[tuple[str, Loading], Teacher] = {}  # by name or resolved directory, and how it was loaded


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


def load_teacher(
    spec: str | Path | Teacher | tuple[Any, Any], loading: Loading | None = None, *, chat_template: bool = False
) -> Teacher:
    """A teacher from `"embedded"`, `"table:NAME"`, a directory, a hub id, a `Teacher` or `(model, tokenizer)`.

    The same name, loaded the same way, gives the same object. `(model, tokenizer)` is wrapped anew each time, its
    weights as they are.

    Raises: InputError: an unknown name, or a model that cannot be loaded.
    """
    loading = loading or Loading()
    loading = replace(loading, chat_template=loading.chat_template or chat_template)
    if isinstance(spec, tuple):
        from envs.hf_teacher import HFTeacher

        return HFTeacher(*spec, chat_template=loading.chat_template)
    if not isinstance(spec, (str, Path)):
        if isinstance(spec, Teacher):
            return spec
        raise InputError(
            f"{type(spec).__name__} is no teacher; give a name, a directory, a Teacher or (model, tokenizer)"
        )
    name = str(spec)
    key = str(Path(name).resolve()) if Path(name).is_dir() else name, loading
    if key not in _loaded:
        _loaded[key] = _load(name, loading)
    return _loaded[key]


def _load(name: str, loading: Loading) -> Teacher:
    from envs.table_teacher import TABLES

    if name.startswith("table:"):
        table = name.removeprefix("table:")
        if table not in TABLES:
            raise InputError(f"table teacher {table!r} does not exist{nearest(table, TABLES)}")
        return TABLES[table]()
    if name.startswith(SERVED):
        raise InputError(
            f"teacher {name!r} is only served: its whole distributions are not to be had; draw a store from it "
            "(`tdistill collect --teacher-tokenizer DIR`) and learn from that, with --store and --teacher none"
        )
    from envs.hf_teacher import HFTeacher, load_causal_lm

    if name == "embedded":
        return HFTeacher(*load_causal_lm(EMBEDDED, loading), name=name, chat_template=loading.chat_template)
    if not Path(name).is_dir() and (
        close := difflib.get_close_matches(name, ["embedded", *(f"table:{t}" for t in TABLES)])
    ):
        raise InputError(f"teacher {name!r} is neither a directory nor a known name; did you mean {close[0]!r}?")
    return HFTeacher(*load_causal_lm(name, loading), name=name, chat_template=loading.chat_template)


def recipe_of(teacher: Teacher) -> tuple[str, Loading] | None:
    """What `load_teacher` was told when it gave this very object."""
    return next((key for key, loaded in _loaded.items() if loaded is teacher), None)


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The end of an error about an unknown name: what is close to it, and what there is."""
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(sorted(known))})"
