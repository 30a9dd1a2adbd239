"""A student with its expert as one policy, which is decoded and measured as any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from envs.decode import Decoder
from envs.sequences import context_limit_of
from experiments.expert.counts import NO_EVIDENCE, Expert, Pointer
from experiments.expert.mixture import Gate, mixture, opened


class Hybrid:
    """A causal language model, and the expert mixed in; see `mixture.mixture`.

    `envs.decode.decode` takes it for a policy.
    """

    def __init__(self, model: Any, expert: Expert, gate: Gate) -> None:
        self.model, self.expert, self.gate = model, expert, gate

    @property
    def context_limit(self) -> int:
        """Most tokens of a text."""
        return context_limit_of(self.model)

    def get_output_embeddings(self) -> Any:
        """The model's own."""
        return self.model.get_output_embeddings()

    def walk(self, rows: int) -> HybridWalk:
        """N texts extended together."""
        return HybridWalk(self, rows)

    def along(self, scores: Tensor, texts: Sequence[Sequence[int]], prompts: Sequence[int]) -> Tensor:
        """The mixture along replies, from the student's log-probabilities.

        Args:
            scores: (B, L, V) of the model; texts: B prompts with their replies; prompts: tokens of each prompt.
        Returns: (B, L, V) log-probabilities, those before the end of a prompt as they were.
        """
        found = scores.clone()
        for row, (text, size) in enumerate(zip(texts, prompts, strict=True)):
            pointer, states = self.expert.pointer(text[:size]), range(size, len(text))
            evidence = [self.expert.evidence(text[:place], pointer) for place in states]
            found[row, size - 1 : len(text) - 1] = mixture(scores[row, size - 1 : len(text) - 1], evidence, self.gate)
        return found


class HybridWalk:
    """`envs.decode.Decoder` with the expert mixed into every row; see `envs.walk.Walk`."""

    def __init__(self, policy: Hybrid, rows: int) -> None:
        self._policy, self._inner = policy, Decoder(policy.model, rows)
        self._texts: list[list[int]] = [[] for _ in range(rows)]
        self._pointers: list[Pointer | None] = [None] * rows
        self._mixed: tuple[Tensor, list[int]] | None = None  # of the texts as they are

    @property
    def logits(self) -> Tensor:
        """(N, V): the student's own where the gate is shut, else log-probabilities of the mixture."""
        return self._scores()[0]

    @property
    def log_norm(self) -> Tensor:
        """(N,) log Σ exp of `logits`."""
        _, rows = self._scores()
        found = self._inner.log_norm.clone()
        found[rows] = 0.0
        return found

    @property
    def log_probs(self) -> Tensor:
        """(N, V) float32, nats, on the CPU: the next token of every row."""
        return (self.logits.float() - self.log_norm[:, None]).clamp(max=0.0).cpu()

    def _scores(self) -> tuple[Tensor, list[int]]:
        """The logits, and the rows in which they are the mixture's."""
        if self._mixed is None:
            expert = self._policy.expert
            evidence = [
                NO_EVIDENCE if pointer is None else expert.evidence(text, pointer)
                for text, pointer in zip(self._texts, self._pointers, strict=True)
            ]
            self._mixed = opened(self._inner.logits, evidence, self._policy.gate)
        return self._mixed

    def expect(self, prompts: Sequence[Sequence[int]]) -> None:
        """Say which prompts are likely to be started next."""
        self._inner.expect(prompts)

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin these rows anew with these prompts. Raises: InputError: as the student's decoder."""
        self._inner.start(rows, prompts)
        self._mixed = None
        for row, prompt in zip(rows, prompts, strict=True):
            self._texts[row], self._pointers[row] = list(prompt), self._policy.expert.pointer(prompt)

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append `tokens` (N,) to the rows that are `active` (N,) bool. Raises: InputError: as the decoder."""
        self._inner.step(tokens, active)
        self._mixed = None
        for row in torch.nonzero(active)[:, 0].tolist():
            self._texts[row].append(int(tokens[row]))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._inner.keep_rows(rows)
        self._mixed = None
        self._texts = [self._texts[row] for row in rows]
        self._pointers = [self._pointers[row] for row in rows]
