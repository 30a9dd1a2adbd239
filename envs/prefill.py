"""Prompts read before they are needed, several in one forward, and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from envs.sequences import at_positions, hidden_states_through, right_padded

FULL = 192  # tokens of a forward from which a wider one gains nothing
PADDING = 0.8  # a prompt shorter than this share of the longest one goes into another forward


@dataclass(frozen=True)
class Prefill:
    """Prompts that one forward has read."""

    prompts: list[tuple[int, ...]]
    cache: Cache  # keys and values (n, H, L, D) a layer, left-aligned
    logits: Tensor  # (n, V) after the last token of each


class Prefills:
    """The prompts that a model read last, `capacity` of them, for who samples one again.

    The model's weights must not change meanwhile.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.device = model.get_output_embeddings().weight.device
        self._kept: OrderedDict[tuple[int, ...], tuple[Prefill, int]] = OrderedDict()  # last used last

    def __call__(
        self, prompts: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]] = ()
    ) -> Iterator[tuple[Prefill, list[int], list[int]]]:
        """Prefills that hold these prompts: each with the numbers of the prompts it serves, and their places in it.

        If one has not been read, those of `ahead` that have not are read with it.
        """
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            numbers.setdefault(tuple(prompt), []).append(number)
        missing = [key for key in numbers if key not in self._kept]
        known = [self._kept[key][0] for key in numbers if key in self._kept]
        for key in numbers.keys() & self._kept.keys():
            self._kept.move_to_end(key)
        for prefill in {id(prefill): prefill for prefill in known}.values():
            yield _served(prefill, numbers)
        if not missing:
            return
        room = max(0, self.capacity - len(missing))
        later = [key for key in dict.fromkeys(map(tuple, ahead)) if key not in self._kept and key not in numbers]
        for batch in batches(missing + later[:room]):
            prefill = self._read(batch)
            yield _served(prefill, {key: numbers[key] for key in batch if key in numbers})
            self._kept.update({key: (prefill, place) for place, key in enumerate(batch)})
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)

    def _read(self, prompts: list[tuple[int, ...]]) -> Prefill:
        tokens, mask = right_padded(prompts, self.device)
        cache = DynamicCache()
        # Causality makes the padding on the right harmless, so that no mask is needed.
        with torch.no_grad(), hidden_states_through(self.model, at_positions(mask.sum(1) - 1)):
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        return Prefill(prompts, cache, output.logits[:, 0])


def _served(prefill: Prefill, numbers: dict[tuple[int, ...], list[int]]) -> tuple[Prefill, list[int], list[int]]:
    """A prefill, the numbers of the prompts it serves, and their places in it."""
    served = [(number, place) for place, key in enumerate(prefill.prompts) for number in numbers.get(key, ())]
    return prefill, [number for number, _ in served], [place for _, place in served]


def batches(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts of similar lengths together, the longest first, in forwards that are large enough."""
    batch: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if batch and len(prompt) < PADDING * len(batch[0]) and len(batch) * len(batch[0]) >= FULL:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch
