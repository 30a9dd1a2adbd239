"""How a student is read from a directory or the hub, and whether its tokens are the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from agents.errors import InputError


def read_model(source: str, attn_implementation: str | None = None, trust_remote_code: bool = False) -> Any:
    """A causal LM in float32 from a directory or the hub.

    Args:
        attn_implementation: as transformers names them; None: its own choice.
        trust_remote_code: run the code that comes with it.
    Raises: InputError: nothing can be loaded, or it comes with code that is not to be run.
    """
    from transformers import AutoModelForCausalLM

    kind = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with _said(source):
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=trust_remote_code, **kind
        )


def load_tokenizer(source: str, trust_remote_code: bool = False) -> Any:
    """A tokenizer of the class its own files name: an architecture's usual class may misread a generic one.

    Raises: InputError: as `read_model`.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    with _said(source):
        generic = get_tokenizer_config(source).get("tokenizer_class") in {
            "TokenizersBackend",
            "PreTrainedTokenizerFast",
        }
        if generic:
            return PreTrainedTokenizerFast.from_pretrained(source)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


@contextmanager
def _said(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"student {source!r} comes with code of its own, which is not run unless asked for; read it, and give "
                "--trust-remote-code"
            ) from error
        raise InputError(f"student {source!r} is neither a directory nor a causal LM on the hub: {error}") from error


def check_tokenizers(teacher: Any, student: Any) -> None:
    """Raise one InputError naming the first token that differs; rows without a token are not a mismatch."""
    ours, theirs = ({number: token for token, number in own.get_vocab().items()} for own in (teacher, student))
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            raise InputError(
                f"teacher and student have different tokenizers: token {number} is {ours.get(number)!r} to the teacher "
                f"and {theirs.get(number)!r} to the student; take a student of the teacher's family or a size name, "
                "or draw a store in the student's tokens (`tdistill collect --student-tokenizer DIR`) and learn from "
                "it, with --store and --teacher none"
            )
