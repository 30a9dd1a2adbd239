"""How a student is read from a directory or the hub, and whether its tokens are the teacher's."""

from __future__ import annotations

from typing import Any

import torch

from agents.errors import InputError


def read_model(spec: str, attn_implementation: str | None = None, trust_remote_code: bool = False) -> Any:
    """A causal LM in float32 from a directory or the hub.

    Args:
        attn_implementation: as transformers names them; None: its own choice.
        trust_remote_code: run the code that comes with it.
    Raises: InputError: nothing can be loaded.
    """
    from transformers import AutoModelForCausalLM

    kind = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            spec, dtype=torch.float32, trust_remote_code=trust_remote_code, **kind
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"student {spec!r} is neither a directory nor a causal LM on the hub: {error}") from error


def load_tokenizer(source: str) -> Any:
    """A tokenizer of the class its own files name: an architecture's usual class may misread a generic one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    generic = get_tokenizer_config(source).get("tokenizer_class") in {"TokenizersBackend", "PreTrainedTokenizerFast"}
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source)


def check_tokenizers(teacher: Any, student: Any) -> None:
    """Raise one InputError naming the first token that differs; rows without a token are not a mismatch."""
    ours, theirs = ({number: token for token, number in own.get_vocab().items()} for own in (teacher, student))
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            raise InputError(
                f"teacher and student have different tokenizers: token {number} is {ours.get(number)!r} to the teacher "
                f"and {theirs.get(number)!r} to the student; take a student of the teacher's family or a size name"
            )
