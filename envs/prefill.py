"""Prompts read before they are needed: several in one forward, each once."""

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
    """The prefills of one model: what was read last stays, `capacity` prompts in all, for who samples a prompt again.

    The model's weights must not change meanwhile.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.device = model.get_output_embeddings().weight.device
        self._kept: OrderedDict[int, Prefill] = OrderedDict()  # last used last
        self._place: dict[tuple[int, ...], int] = {}
        self._count = 0

    def __call__(
        self, prompts: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]] = ()
    ) -> Iterator[tuple[Prefill, list[int], list[int]]]:
        """Prefills that hold these prompts: each with the numbers of the prompts it serves, and their places in it.

        If one has not been read, those of `ahead` that have not are read with it.
        """
        keys = [tuple(prompt) for prompt in prompts]
        missing = [key for key in dict.fromkeys(keys) if key not in self._place]
        for number in dict.fromkeys(self._place[key] for key in keys if key in self._place):
            self._kept.move_to_end(number)
            yield self._served(self._kept[number], keys)
        if not missing:
            return
        wanted = set(missing)
        room = max(0, self.capacity - len(missing))
        later = [key for key in dict.fromkeys(map(tuple, ahead)) if key not in self._place and key not in wanted]
        for batch in batches(missing + later[:room]):
            prefill = self._read(batch)
            yield self._served(prefill, keys)
            self._keep(prefill)

    def _served(self, prefill: Prefill, keys: list[tuple[int, ...]]) -> tuple[Prefill, list[int], list[int]]:
        place = {key: number for number, key in enumerate(prefill.prompts)}
        served = [(number, place[key]) for number, key in enumerate(keys) if key in place]
        return prefill, [number for number, _ in served], [inside for _, inside in served]

    def _read(self, prompts: list[tuple[int, ...]]) -> Prefill:
        tokens, mask = right_padded(prompts, self.device)
        cache = DynamicCache()
        # Causality makes the padding on the right harmless, so that no mask is needed.
        with torch.no_grad(), hidden_states_through(self.model, at_positions(mask.sum(1) - 1)):
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        return Prefill(prompts, cache, output.logits[:, 0])

    def _keep(self, prefill: Prefill) -> None:
        number, self._count = self._count, self._count + 1
        self._kept[number] = prefill
        self._place.update(dict.fromkeys(prefill.prompts, number))
        while sum(len(kept.prompts) for kept in self._kept.values()) > self.capacity:
            gone, old = self._kept.popitem(last=False)
            for key in old.prompts:
                if self._place[key] == gone:
                    del self._place[key]


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
