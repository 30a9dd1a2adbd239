"""The expert as a `transformers.LogitsProcessor`: what plain `generate` is given."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.expert.counts import Expert, Pointer
from experiments.expert.files import expert_beside
from experiments.expert.mixture import Gate, mixture
from experiments.one_call import OneCall


class ExpertProcessor(OneCall):
    """Mixes the expert into every row of one call of `generate`.

    Where the gate is open the scores become the mixture's log-probabilities (`mixture.mixture`), else they stay as they
    are. What earlier processors rule out stays out: those that mask, as rules, may stand before or behind. Beams and
    batches may be reordered: everything follows from the tokens of a row.

    Args:
        padding: tokens that pad prompts on the left; they belong to no prompt.
    Raises (when called): InputError: the texts are not those of the last call with one token more, so that where the
        prompts end is not known (a processor serves one call).
    """

    def __init__(self, expert: Expert, gate: Gate, padding: Collection[int] = ()) -> None:
        super().__init__()
        self.expert, self.gate, self.padding = expert, gate, frozenset(padding)
        self._pointers: dict[tuple[int, ...], Pointer] = {}

    @classmethod
    def from_pretrained(cls, directory: str | Path, tokenizer: Any) -> ExpertProcessor:
        """That of the expert in a student's directory.

        Raises: InputError: as `files.expert_beside`.
        """
        padding = () if tokenizer.pad_token_id is None else (tokenizer.pad_token_id,)
        return cls(*expert_beside(Path(directory), tokenizer), padding)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) of what follows `input_ids` (B, L)."""
        self.follow(input_ids)
        evidence = []
        for text in input_ids.tolist():
            start = next((place for place, token in enumerate(text) if token not in self.padding), 0)
            prompt = tuple(text[start : self.prompt_length])
            if prompt not in self._pointers:
                self._pointers[prompt] = self.expert.pointer(prompt)
            evidence.append(self.expert.evidence(text[start:], self._pointers[prompt]))
        return mixture(scores, evidence, self.gate)
