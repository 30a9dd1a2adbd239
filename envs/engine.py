"""How N texts of one model are extended together: four ways, all exact, the fastest that a model allows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from envs.candidates import normalise
from envs.kv_cache import RowCache, block_attention
from envs.lean import LeanStep, is_llama_like
from envs.prefill import Prefills
from envs.sequences import context_limit_of, hidden_states_through, last_logits

TOLERANCE = 1e-4  # nats, between a walk and the same text alone
AHEAD = 4  # prompts for a quarter of the rows are read ahead, and kept
LEAST_KEPT = 16

_ways: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Engine(Protocol):
    """N texts without any check."""

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]]) -> Tensor:
        """Begin these rows anew; logits (n, V) after each prompt. `ahead`: prompts that may come next."""
        ...

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        """Append `tokens` (N,) where `active` (N,) bool; logits (N, V), anything in the other rows."""
        ...

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all rows but these, and renumber them."""
        ...


def make_engine(model: Any, rows: int) -> Engine:
    """The fastest engine that is exact for this model."""
    way = way_of(model)
    return Uncached(model, rows) if way == "none" else Cached(model, rows, way)


class Cached:
    """One forward a step over a cache: written out ("lean"), the model's own with attention by blocks of rows
    ("blocks"), or wholly its own ("own")."""

    def __init__(self, model: Any, rows: int, way: str) -> None:
        self.model, self.way = model, way
        self.device = model.get_output_embeddings().weight.device
        self.limit = context_limit_of(model)
        layers = model.config.get_text_config().num_hidden_layers
        self.cache = RowCache(rows, layers, self.device, self.limit)
        self.lean = LeanStep(model, rows) if way == "lean" else None
        self.prefills = Prefills(model, max(rows // AHEAD, LEAST_KEPT))

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]]) -> Tensor:
        found = torch.empty(0)
        for prefill, numbers, places in self.prefills(prompts, ahead):
            if not len(found):
                found = prefill.logits.new_empty(len(prompts), prefill.logits.shape[-1])
            if numbers:
                self.cache.place(
                    [rows[number] for number in numbers],
                    prefill.cache,
                    places,
                    [len(prompts[number]) for number in numbers],
                )
                found[numbers] = prefill.logits[places]
        return found

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        cache = self.cache
        cache.aim()
        if cache.sorted:
            order = torch.from_numpy(cache.order)
            tokens, active = tokens[order], active[order]
        tokens = tokens.to(self.device)
        # A text that waits at the end of its context has no next position; it gets its last one, unlooked at.
        positions = cache.positions.clamp(max=self.limit - 1)
        with torch.no_grad():
            if self.lean is not None:
                lanes = torch.from_numpy(cache.lanes).to(self.device) if cache.sorted else None
                logits = self.lean(tokens, positions, cache, lanes)
            else:
                logits = self._forward(tokens, positions)
        cache.lengths += active.numpy()
        return logits

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        cache, blocks = self.cache, self.way == "blocks"
        with ExitStack() as around:
            if blocks:
                around.enter_context(block_attention(self.model, cache.blocks()))
            if cache.sorted:
                around.enter_context(hidden_states_through(self.model, lambda hidden: hidden[cache.lanes]))
            output = self.model(
                input_ids=tokens[:, None],
                attention_mask=None if blocks else cache.visible().long(),
                position_ids=positions[:, None],
                past_key_values=cache.cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep_rows(self, rows: Tensor) -> None:
        self.cache.keep_rows(rows.numpy())


class Uncached:
    """The slow path: every step runs the whole texts, right-padded."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model = model
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], ahead: Sequence[Sequence[int]]) -> Tensor:
        for row, prompt in zip(rows, prompts, strict=True):
            self.texts[row] = list(prompt)
        return last_logits(self.model, prompts)

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        running = active.nonzero()[:, 0].tolist()
        for row in running:
            self.texts[row].append(int(tokens[row]))
        found = last_logits(self.model, [self.texts[row] for row in running])
        logits = found.new_zeros(len(self.texts), found.shape[-1])
        logits[running] = found
        return logits

    def keep_rows(self, rows: Tensor) -> None:
        self.texts = [self.texts[row] for row in rows.tolist()]


def cache_is_exact(model: Any) -> bool:
    """Whether rows of different ages can share one cache: by the configuration and by a numerical probe, asked once."""
    return way_of(model) != "none"


def way_of(model: Any) -> str:
    """ "blocks", "own" (the model's own attention on the cache) or "none" (no cache), the first that is exact."""
    if model not in _ways:
        reason = _configured_against(model)
        able = {
            "lean": is_llama_like(model),
            "blocks": getattr(model, "_supports_attention_backend", False),
            "own": True,
        }
        ways = [way for way, possible in able.items() if possible]
        found = "none"
        for way in ways if not reason else []:
            problem = _probed_against(model, way)
            if not problem:
                found = way
                break
            reason = problem
        if found == "none":
            warnings.warn(f"{type(model).__name__}: {reason}; decoding runs without a cache, slower", stacklevel=4)
        _ways[model] = found
    return _ways[model]


def _configured_against(model: Any) -> str:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    windowed = getattr(config, "use_sliding_window", True) and not getattr(config, "layer_types", None)
    hidden = window and windowed and window < context_limit_of(model)
    return f"a sliding window of {window} tokens" if hidden else ""


def _probed_against(model: Any, way: str) -> str:
    """A short ragged walk with refills, compared with the same texts alone; empty when they agree."""
    width = model.get_output_embeddings().weight.shape[0]

    def text(*tokens: int) -> list[int]:
        return [token % width for token in tokens]

    texts = [text(1, 2, 3, 4, 5, 6, 7), text(3, 1), text(5)]
    tokens, active = torch.tensor([1, 2, 3]) % width, torch.tensor([True, True, False])
    try:
        engine = Cached(model, 3, way)
        engine.start([0, 1, 2], texts, [])
        for _ in range(3):
            engine.step(tokens, active)
        engine.start([1], [text(4, 2, 6, 1)], [])
        found = engine.step(torch.tensor([2, 3, 4]) % width, torch.ones(3, dtype=torch.bool))
        ends = [[*texts[0], *text(1, 1, 1, 2)], text(4, 2, 6, 1, 3), [*texts[2], *text(4)]]
        alone = torch.cat([normalise(last_logits(model, [end])) for end in ends])
        gap = float((normalise(found) - alone).abs().max())
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError, KeyError) as error:
        return f"its forward does not take a shared cache ({type(error).__name__}: {error})"
    # In half precision two exact paths differ by its rounding; what the probe is to find is off by more.
    allowed = max(TOLERANCE, 64 * torch.finfo(found.dtype).eps if found.dtype.itemsize < 4 else 0.0)
    return "" if gap <= allowed else f"a shared cache is off by {gap:.1g} nats"
