"""What a model costs to run: operations and memory, how long a token takes, and the price of a million of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch

from envs.decode import decode
from envs.errors import InputError
from envs.teachers import Teacher
from experiments.bench.timing import MEGABYTE, Resident
from experiments.config import ABSENT
from experiments.flops import of_reading

BATCHES = (1, 16)
"""Texts that are answered together when a token is timed."""
TOKENS = 32  # of a reply that is timed, if the run lets it be that long
REPEATS = 3
TIMED = {"tokens_per_second", "speed_up", "price_of_million", "peak_memory_mb"} | {
    f"{part}_ms_{rows}" for part in ("first_token", "token") for rows in BATCHES
}
"""Measures that are not the same when they are taken again."""


def check_price(price: float | None) -> None:
    """Raises: InputError: a price of an hour that is not above 0."""
    if price is not None and not price > 0:
        raise InputError(f"price = {price:g} must be above 0: what an hour of this machine costs, in any currency")


def with_price(figures: dict[str, float], price: float | None) -> dict[str, float]:
    """These figures, and with a price of an hour that of a million tokens at their `tokens_per_second`."""
    if price is None or "tokens_per_second" not in figures:
        return figures
    return {**figures, "price_of_million": price_of_million(price, figures["tokens_per_second"])}


def price_of_million(price: float, tokens_per_second: float) -> float:
    """Price of 10⁶ tokens at a price of an hour, in its currency.

        price / 3600 · 10⁶ / (tokens per second)

    >>> price_of_million(3.6, 1000.0)
    1.0
    """
    return price / 3600 * 1e6 / tokens_per_second


def costs(
    student: Any, ids: Sequence[list[int]], teacher: Teacher, tokens: int = TOKENS
) -> tuple[dict[str, float], dict[str, float]]:
    """What student and teacher cost on these prompts, timed in turn so that both meet the same machine.

    flops_per_token   two for each weight that multiplies (`flops.of_reading`), attention left out
    first_token_ms_N  milliseconds from N prompts to the first token of each reply
    token_ms_N        milliseconds from then on for one more token of all N
    peak_memory_mb    the weights, and what resident memory (on a GPU: allocated memory) rises by above them at most
                      while 16 texts are answered; memory that the process already holds is used again unseen

    Source: own derivation.
    Args:
        student: a causal LM with the teacher's tokens; ids: prompts, which are repeated where they are too few;
            tokens: of a reply, at least 2.
    Returns: of the student and of the teacher, medians over the repeats; of an absent teacher nothing.
    """
    policies = [student] if teacher.name == ABSENT else [student, teacher]
    found = [_size(policy, ids, teacher.vocab_size, tokens) for policy in policies]
    for rows in BATCHES:
        prompts = list(islice(cycle(ids), rows))
        timed: list[list[tuple[float, float]]] = [[] for _ in policies]
        for _ in range(REPEATS):
            for samples, policy in zip(timed, policies, strict=True):
                samples.append(_latency(policy, prompts, teacher.vocab_size, tokens))
        for figures, samples in zip(found, timed, strict=True):
            first, more = (1000 * median(values) for values in zip(*samples, strict=True))
            figures |= {f"first_token_ms_{rows}": first, f"token_ms_{rows}": more}
    return found[0], found[1] if len(found) > 1 else {}


def _latency(policy: Any, prompts: list[list[int]], vocabulary: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and of each after it."""
    first, whole = (_seconds(policy, prompts, vocabulary, count) for count in (1, tokens))
    return first, max(whole - first, 0.0) / (tokens - 1)


def _seconds(policy: Any, prompts: list[list[int]], vocabulary: int, tokens: int) -> float:
    begin = time.perf_counter()
    decode(policy, prompts, eos_ids=(), max_new_tokens=tokens, rows=len(prompts), vocabulary=vocabulary)
    return time.perf_counter() - begin


def _size(policy: Any, ids: Sequence[list[int]], vocabulary: int, tokens: int) -> dict[str, float]:
    """Operations of a token and peak memory; nothing of a table, which has no weights."""
    model = policy if isinstance(policy, torch.nn.Module) else getattr(policy, "model", None)
    if model is None:
        return {}
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    device = next(model.parameters()).device
    prompts = list(islice(cycle(ids), max(BATCHES)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _seconds(policy, prompts, vocabulary, tokens)
        rise = (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE
    else:
        with Resident() as memory:
            _seconds(policy, prompts, vocabulary, tokens)
        rise = memory.rise
    return {"flops_per_token": of_reading(model, 1), "peak_memory_mb": weights / MEGABYTE + rise}
