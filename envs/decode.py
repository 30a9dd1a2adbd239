"""Batched decoding of any causal language model: rows finish and are refilled without stopping the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from envs.candidates import log_norm
from envs.engine import make_engine
from envs.errors import InputError
from envs.sequences import context_limit_of
from envs.walk import Expectant, Walk, full_of, scores_of


class Decoder:
    """N texts extended together by one causal language model; see `envs.walk.Walk`.

    One forward of all rows appends a token to each. Every row has columns of its own in one key-value cache, so that a
    row that is begun anew overwrites its text and disturbs no other; prompts are read several at a time, ahead of their
    need, and a prompt that comes again soon is not read again (the model's weights must not change meanwhile). Models
    whose attention does not allow that (sliding windows, recurrent state, positions by column) are found by their
    configuration and by a numerical probe, and are run without a cache: slower, as exact.

    Raises: InputError: a text would outgrow the context, or an empty prompt.
    """

    def __init__(self, model: Any, rows: int) -> None:
        self.rows = rows
        self._engine = make_engine(model, rows)
        self._limit = context_limit_of(model)
        self._length = np.zeros(rows, dtype=np.int64)
        self._ahead: Sequence[Sequence[int]] = ()
        head = model.get_output_embeddings().weight
        self.logits = torch.zeros(rows, head.shape[0], dtype=head.dtype, device=head.device)  # (N, V)
        self.log_norm = torch.zeros(rows, device=head.device)  # (N,)

    @property
    def log_probs(self) -> Tensor:
        """(N, V) float32, nats, on the CPU: the next token of every row."""
        return (self.logits.float() - self.log_norm[:, None]).clamp(max=0.0).cpu()

    def expect(self, prompts: Sequence[Sequence[int]]) -> None:
        """Say which prompts are likely to be started next; they may be read ahead of that."""
        self._ahead = prompts

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin these rows anew with these prompts.

        Raises: InputError: an empty or too long prompt, or the model's logits are no numbers.
        """
        for prompt in prompts:
            if not 0 < len(prompt) <= self._limit:
                raise InputError(f"a prompt has {len(prompt)} tokens; the model takes 1 to {self._limit}: shorten it")
        index = list(rows)
        found = self._engine.start(index, prompts, self._ahead)
        self._length[index] = [len(prompt) for prompt in prompts]
        self.log_norm[index] = log_norm(found)
        self.logits[index] = found

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append `tokens` (N,) to the rows that are `active` (N,) bool; the others stay as they are.

        Raises: InputError: a text would outgrow the context, or the model's logits are no numbers.
        """
        if not active.any():
            return
        length = self._length + active.numpy()
        if length.max() > self._limit:
            raise InputError(f"a text would outgrow the model's context of {self._limit} tokens; end it there")
        logits = self._engine.step(tokens, active)
        self._length = length
        if not active.all():
            idle = (~active).nonzero()[:, 0].to(logits.device)
            logits[idle] = self.logits[idle]
        self.log_norm, self.logits = log_norm(logits), logits

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these; they are renumbered in this order."""
        index = torch.tensor(rows)
        self._engine.keep_rows(index)
        index = index.to(self.logits.device)
        self.logits, self.log_norm = self.logits[index], self.log_norm[index]
        self._length, self.rows = self._length[list(rows)], len(rows)


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
    adjust: Callable[[int, list[int], Tensor], Tensor] | None = None,
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
        adjust: of a prompt's number, its new tokens and the logits (V,) of the next, makes those that it is drawn from.
    Raises: InputError: an empty or too long prompt.
    """
    is_teacher = hasattr(policy, "walk")
    limit = policy.context_limit if is_teacher else context_limit_of(policy)
    replies: list[list[int]] = [[] for _ in prompts]
    if not (rows := min(rows, len(prompts))):
        return replies
    ends = torch.tensor(sorted(eos_ids))
    uniforms = np.zeros((rows, max_new_tokens))
    decoder: Walk = policy.walk(rows) if is_teacher else Decoder(policy, rows)
    serving = np.full(rows, -1)  # which prompt a row serves; -1: none
    queue = deque(range(len(prompts)))
    with tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None, leave=False) as bar:
        while True:
            _refill(decoder, serving, queue, prompts, uniforms, seed)
            active = torch.from_numpy(serving >= 0)
            if not active.any():
                return replies
            ages = np.array([len(replies[index]) if index >= 0 else 0 for index in serving])
            logits = _adjusted(scores_of(decoder)[0][:, :vocabulary], serving, replies, adjust)
            tokens = _draw(logits, temperature, uniforms[np.arange(len(serving)), ages])
            ended = torch.isin(tokens, ends)
            for row in active.nonzero()[:, 0].tolist():
                reply = replies[serving[row]]
                reply.append(int(tokens[row]))
                full = len(reply) >= min(max_new_tokens, limit - len(prompts[serving[row]]))
                if ended[row] or full or (stop is not None and stop(reply)):
                    serving[row] = -1
                    bar.update()
            bar.update(_step(decoder, tokens, serving))
            serving, uniforms = _shrink(decoder, serving, uniforms, not queue)


def _step(decoder: Walk, tokens: Tensor, serving: np.ndarray[Any, Any]) -> int:
    """Append a token to every row that serves a prompt, and end those that can read no more.

    Returns: how many these are.
    """
    decoder.step(tokens, torch.from_numpy(serving >= 0))
    full = (serving >= 0) & full_of(decoder, len(serving)).numpy()
    serving[full] = -1
    return int(full.sum())


def _refill(
    decoder: Walk,
    serving: np.ndarray[Any, Any],
    queue: deque[int],
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray[Any, Any],
    seed: int,
) -> None:
    free = (serving < 0).nonzero()[0].tolist()
    taken = [(row, queue.popleft()) for row in free[: len(queue)]]
    for row, index in taken:
        serving[row] = index
        uniforms[row] = np.random.default_rng([seed, index]).random(uniforms.shape[1])
    if taken:
        if isinstance(decoder, Expectant):
            decoder.expect([prompts[index] for index in islice(queue, len(serving))])
        decoder.start([row for row, _ in taken], [prompts[index] for _, index in taken])


def _adjusted(
    logits: Tensor,
    serving: np.ndarray[Any, Any],
    replies: list[list[int]],
    adjust: Callable[[int, list[int], Tensor], Tensor] | None,
) -> Tensor:
    """The logits of the rows that serve a prompt, changed if anything changes them.  # (N, V)"""
    if adjust is None:
        return logits
    pairs = zip(serving.tolist(), logits, strict=True)
    return torch.stack([adjust(index, replies[index], row) if index >= 0 else row for index, row in pairs])


def _draw(logits: Tensor, temperature: float, uniforms: np.ndarray[Any, Any]) -> Tensor:
    """One token a row, (N,): the most probable at temperature 0, else the inverse of the distribution at a uniform."""
    logits = logits.float().cpu()
    if temperature == 0:
        return logits.argmax(-1)
    mass = torch.softmax(logits / temperature, -1).double().cumsum(-1)
    drawn = torch.searchsorted(mass, torch.from_numpy(uniforms)[:, None] * mass[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def _shrink(
    decoder: Walk, serving: np.ndarray[Any, Any], uniforms: np.ndarray[Any, Any], queue_is_empty: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Once no prompt waits, idle rows are dropped when they are half of the batch."""
    running = (serving >= 0).nonzero()[0]
    if not queue_is_empty or not 0 < len(running) <= len(serving) // 2:
        return serving, uniforms
    decoder.keep_rows(running.tolist())
    return serving[running], uniforms[running]
