"""Batched decoding of any causal language model: rows finish and are refilled without stopping the others."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from envs.candidates import normalise
from envs.errors import InputError
from envs.kv_cache import SharedColumnCache

if TYPE_CHECKING:
    from envs.teachers import Walk

TOLERANCE = 1e-4  # nats, between the cached walk and the same text alone

_cacheable: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class Decoder:
    """N texts extended together by one causal language model; see `envs.teachers.Walk`.

    One forward of all rows appends a token to each. The rows share the write column of a preallocated key-value cache;
    a refilled row is prefilled in a small batch of its own and copied in. Models whose attention does not allow that
    (sliding windows, recurrent state, positions by column) are found by their configuration and by a numerical probe,
    and are run without a cache: slower, as exact.

    Raises: InputError: a text would outgrow the context, or an empty prompt.
    """

    def __init__(self, model: Any, rows: int) -> None:
        self.rows = rows
        self._engine = _Cached(model, rows) if cache_is_exact(model) else _Uncached(model, rows)
        self._limit = context_limit_of(model)
        self._length = np.zeros(rows, dtype=np.int64)
        width = model.get_output_embeddings().weight.shape[0]
        self.log_probs = torch.zeros(rows, width)  # (N, V)

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin these rows anew with these prompts."""
        for prompt in prompts:
            if not 0 < len(prompt) <= self._limit:
                raise InputError(f"a prompt has {len(prompt)} tokens; the model takes 1 to {self._limit}: shorten it")
        self._length[list(rows)] = [len(prompt) for prompt in prompts]
        self.log_probs[list(rows)] = normalise(self._engine.start(list(rows), prompts)).cpu()

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append `tokens` (N,) to the rows that are `active` (N,) bool."""
        if not active.any():
            return
        self._length += active.numpy()
        if self._length.max() > self._limit:
            self._length -= active.numpy()
            raise InputError(f"a text would outgrow the model's context of {self._limit} tokens; end it there")
        logp = self._engine.step(tokens, active)
        self.log_probs = torch.where(active[:, None], logp.cpu(), self.log_probs)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these; they are renumbered in this order."""
        index = torch.tensor(rows)
        self._engine.keep_rows(index)
        self.log_probs, self._length, self.rows = self.log_probs[index], self._length[list(rows)], len(rows)


class _Cached:
    def __init__(self, model: Any, rows: int) -> None:
        self.model = model
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self.layers = model.config.get_text_config().num_hidden_layers
        self.device = model.get_output_embeddings().weight.device
        self.cache = SharedColumnCache(rows, self.layers, self.device)
        self.length = torch.zeros(rows, dtype=torch.int64, device=self.device)  # tokens a row has
        self.limit = context_limit_of(model)

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        with torch.no_grad():
            output = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **self.options,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def start(self, rows: list[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        # Equal prompts are prefilled once.
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        which = torch.tensor([distinct.index(tuple(prompt)) for prompt in prompts], device=self.device)
        longest = max(map(len, distinct))
        tokens = torch.zeros(len(distinct), longest, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(distinct):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        prefill = SharedColumnCache(len(distinct), self.layers, self.device)
        logits = self.forward(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), prefill.cache)
        prefill.keep_rows(which)
        index = torch.tensor(rows, device=self.device)
        self.cache.place(index, prefill.cache, mask[which])
        self.length[index] = mask[which].sum(1)
        return logits[which]

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        tokens, active = tokens.to(self.device), active.to(self.device)
        self.cache.drop_dead_columns()
        mask = self.cache.mask_for_next()
        # A row that waits at the end of its context has no next position; it is given its last one, and not looked at.
        positions = self.length.clamp(max=self.limit - 1)
        logits = self.forward(tokens[:, None], mask, positions[:, None], self.cache.cache)
        self.cache.hide_last(~active)
        self.length += active
        # Idle rows may hold anything; a broken active row is an error.
        return normalise(torch.where(active[:, None], logits, 0.0))

    def keep_rows(self, rows: Tensor) -> None:
        self.cache.keep_rows(rows.to(self.device))
        self.length = self.length[rows.to(self.device)]


class _Uncached:
    """The slower exact path: every step runs the whole texts, right-padded."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model = model
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def start(self, rows: list[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        for row, prompt in zip(rows, prompts, strict=True):
            self.texts[row] = list(prompt)
        return last_logits(self.model, [self.texts[row] for row in rows])

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        running = active.nonzero()[:, 0].tolist()
        for row in running:
            self.texts[row].append(int(tokens[row]))
        logp = normalise(last_logits(self.model, [self.texts[row] for row in running]))
        full = torch.zeros(len(self.texts), logp.shape[-1])
        full[running] = logp.cpu()
        return full

    def keep_rows(self, rows: Tensor) -> None:
        self.texts = [self.texts[row] for row in rows.tolist()]


def right_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (B, L) int64 each; causality makes right padding harmless."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.as_tensor(sequence)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return tokens.to(device), mask.to(device)


def last_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, V) after the last token of each sequence, without any cache."""
    tokens, mask = right_padded(sequences, model.get_output_embeddings().weight.device)
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits[torch.arange(len(sequences)), mask.sum(1) - 1]


def context_limit_of(model: Any) -> int:
    """The most tokens a model can see; a million where its configuration sets no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(config, name, None), int):
            return limit
    return 1_000_000


def cache_is_exact(model: Any) -> bool:
    """Whether rows of different ages can share one cache: by the configuration and by a numerical probe, asked once."""
    if model not in _cacheable:
        reason = _configured_against(model) or _probed_against(model)
        if reason:
            warnings.warn(f"{type(model).__name__}: {reason}; decoding runs without a cache, slower", stacklevel=3)
        _cacheable[model] = not reason
    return _cacheable[model]


def _configured_against(model: Any) -> str:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    windowed = getattr(config, "use_sliding_window", True) and not getattr(config, "layer_types", None)
    hidden = window and windowed and window < context_limit_of(model)
    return f"a sliding window of {window} tokens" if hidden else ""


def _probed_against(model: Any) -> str:
    """A short ragged walk with a refill, compared with the same texts alone; empty when they agree."""
    width = model.get_output_embeddings().weight.shape[0]
    prompts = [[1, 2, 3, 4, 5, 6, 7], [3, 1], [5]]
    prompts = [[token % width for token in prompt] for prompt in prompts]
    try:
        engine = _Cached(model, 3)
        engine.start([0, 1, 2], prompts)
        for _ in range(3):
            engine.step(torch.tensor([1, 2, 3]) % width, torch.tensor([True, True, False]))
        engine.start([1], [[token % width for token in (4, 2, 6, 1)]])
        found = engine.step(torch.tensor([2, 3, 4]) % width, torch.ones(3, dtype=torch.bool))
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError, KeyError) as error:
        return f"its forward does not take a shared cache ({type(error).__name__}: {error})"
    texts = [[*prompts[0], 1, 1, 1, 2], [4, 2, 6, 1, 3], [*prompts[2], 4]]
    alone = torch.cat([normalise(last_logits(model, [[token % width for token in text]])) for text in texts])
    gap = float((found - alone).abs().max())
    return "" if gap <= TOLERANCE else f"a shared cache is off by {gap:.1g} nats"


def decode(
    policy: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    rows: int = 64,
    stop: Callable[[list[int]], bool] | None = None,
    vocabulary: int | None = None,
    progress: str | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt, the closing EOS included where one was produced.

    A token is drawn by inverting the distribution at a number that depends on (seed, prompt index, step) alone, so a
    reply does not depend on how many rows run beside it.

    Args:
        policy: a causal language model, or a `Teacher`.
        eos_ids: tokens that end a text.
        max_new_tokens: budget; the context limit ends a text too.
        temperature: 1 samples the model's own distribution, 0 takes its most probable token.
        rows: how many texts run together.
        stop: told the new tokens so far, says whether the text ends there.
        vocabulary: only ids below it are drawn; None = all. For a student whose padding rows its teacher does not have.
        progress: label of a progress bar; None shows none.
    Raises: InputError: an empty or too long prompt.
    """
    is_teacher = hasattr(policy, "walk")
    limit = policy.context_limit if is_teacher else context_limit_of(policy)
    rows = min(rows, len(prompts))
    replies: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return replies
    ends = torch.tensor(sorted(eos_ids))
    uniforms = np.zeros((rows, max_new_tokens))
    decoder: Walk = policy.walk(rows) if is_teacher else Decoder(policy, rows)
    serving = np.full(rows, -1)  # which prompt a row serves; -1: none
    queue = iter(range(len(prompts)))
    with tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None, leave=False) as bar:
        while True:
            _refill(decoder, serving, queue, prompts, uniforms, seed)
            active = torch.from_numpy(serving >= 0)
            if not active.any():
                return replies
            ages = np.array([len(replies[index]) if index >= 0 else 0 for index in serving])
            tokens = _draw(decoder.log_probs[:, :vocabulary], temperature, uniforms[np.arange(len(serving)), ages])
            ended = torch.isin(tokens, ends)
            for row in active.nonzero()[:, 0].tolist():
                reply, prompt = replies[serving[row]], prompts[serving[row]]
                reply.append(int(tokens[row]))
                full = len(reply) >= max_new_tokens or len(prompt) + len(reply) >= limit
                if ended[row] or full or (stop is not None and stop(reply)):
                    serving[row] = -1
                    bar.update()
            active = torch.from_numpy(serving >= 0)
            if active.any():
                decoder.step(tokens, active)
            serving, uniforms = _shrink(decoder, serving, uniforms, bar.n + int(active.sum()) == len(prompts))


def _refill(
    decoder: Walk,
    serving: np.ndarray[Any, Any],
    queue: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray[Any, Any],
    seed: int,
) -> None:
    free = (serving < 0).nonzero()[0].tolist()
    taken = [(row, index) for row, index in zip(free, queue, strict=False)]
    for row, index in taken:
        serving[row] = index
        uniforms[row] = np.random.default_rng([seed, index]).random(uniforms.shape[1])
    if taken:
        decoder.start([row for row, _ in taken], [prompts[index] for _, index in taken])


def _draw(logp: Tensor, temperature: float, uniforms: np.ndarray[Any, Any]) -> Tensor:
    """One token a row, (N,): the most probable at temperature 0, else the inverse of the distribution at a uniform."""
    if temperature == 0:
        return logp.argmax(-1)
    mass = torch.softmax(logp / temperature, -1).double().cumsum(-1)
    drawn = torch.searchsorted(mass, torch.from_numpy(uniforms)[:, None] * mass[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=logp.shape[-1] - 1)


def _shrink(
    decoder: Walk, serving: np.ndarray[Any, Any], uniforms: np.ndarray[Any, Any], queue_is_empty: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Once no prompt waits, idle rows are dropped when they are half of the batch."""
    running = (serving >= 0).nonzero()[0]
    if not queue_is_empty or not 0 < len(running) <= len(serving) // 2:
        return serving, uniforms
    decoder.keep_rows(running.tolist())
    return serving[running], uniforms[running]
