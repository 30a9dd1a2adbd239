"""Who a teacher is: digests of its weights and of its tokenizer, to be compared with those of whoever comes later."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from envs.table_teacher import TableTeacher
from envs.teachers import Teacher


def fingerprint(teacher: Teacher) -> dict[str, Any]:
    """`weights` and `tokenizer` as digests, `vocab_size`, `eos_ids` and `context_limit` as they are."""
    tokenizer = getattr(teacher, "tokenizer", None)
    words = sorted(tokenizer.get_vocab().items()) if tokenizer is not None else []
    return {
        "weights": weights_digest(teacher),
        "tokenizer": hashlib.blake2b(json.dumps(words).encode(), digest_size=16).hexdigest(),
        "vocab_size": teacher.vocab_size,
        "eos_ids": sorted(teacher.eos_ids),
        "context_limit": teacher.context_limit,
    }


def weights_digest(teacher: Teacher) -> str:
    """32 hexadecimal digits of the BLAKE2b of all weights, by name, with their types; of a served teacher, whose
    weights nobody sees, what its server says of them instead."""
    if (identity := getattr(teacher, "identity", None)) is not None:
        return str(identity)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(teacher, TableTeacher):
        digest.update(np.ascontiguousarray(teacher.probabilities).tobytes())
        return digest.hexdigest()
    model: Any = getattr(teacher, "model", None)
    for name, value in sorted(model.state_dict().items()) if model is not None else ():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value  # all processes ask together
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
