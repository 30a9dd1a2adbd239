"""The rules as a `transformers.LogitsProcessor`: what plain `generate` is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.one_call import OneCall
from experiments.rules.duty import Duty, begun
from experiments.rules.rules import FILE, Rules, rules_for


class RulesProcessor(OneCall):
    """Masks the tokens that the rules forbid, in every row of one call of `generate`.

    A row without a rule for its prompt is left as it is. Beams and batches may be reordered: everything follows from
    the tokens of a row.

    Args:
        rules: over the model's vocabulary; their budget must be the call's `max_new_tokens`.
        tokenizer: reads the prompts, special tokens (as padding on the left) left out.
    Raises (when called): InputError: the texts are not those of the last call with one token more, so that where the
        prompts end is not known (a processor serves one call), or the rules that a prompt calls contradict.
    """

    def __init__(self, rules: Rules, tokenizer: Any) -> None:
        super().__init__()
        self.rules, self.tokenizer, self.masker = rules, tokenizer, Masker(rules)
        self._duties: dict[tuple[int, ...], Duty] = {}

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, tokenizer: Any, max_new_tokens: int, eos_ids: Collection[int] | None = None
    ) -> RulesProcessor:
        """That of the `rules.yaml` in a student's directory.

        Args:
            eos_ids: tokens that end a reply; None: the tokenizer's.
        Raises: InputError: as `rules_for`.
        """
        ends = [tokenizer.eos_token_id] if eos_ids is None else eos_ids
        return cls(rules_for(Path(directory) / FILE, tokenizer, ends, max_new_tokens), tokenizer)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with −∞ where a token may not follow `input_ids` (B, L)."""
        self.follow(input_ids)
        found = scores
        for row, text in enumerate(input_ids.tolist()):
            duty = self._duty(tuple(text[: self.prompt_length]))
            if duty.must or duty.must_not:
                found = scores.clone() if found is scores else found
                found[row] = self.masker(duty, text[self.prompt_length :], scores[row])
        return found

    def _duty(self, prompt: tuple[int, ...]) -> Duty:
        if prompt not in self._duties:
            self._duties[prompt] = self.rules.duty_of(self.tokenizer.decode(prompt, skip_special_tokens=True))
        return self._duties[prompt]


class Masker:
    """Logits of the next token, by prompt and reply so far, with −∞ where the rules do not allow it.

    Where the model would end a reply that still owes a phrase, the phrase is said at once, and to its end. Rows beyond
    the tokenizer's vocabulary write nothing and are masked too.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._ending: set[tuple[Duty, tuple[int, ...]]] = set()  # where a phrase was begun because the reply was ending

    def __call__(self, duty: Duty, reply: list[int], scores: Tensor) -> Tensor:
        """Scores (V,) of the token after these new tokens."""
        if not duty.must and not duty.must_not:
            return scores
        size, place = min(len(self.rules.spelling), len(scores)), (duty, tuple(reply))
        ending = bool(self.rules.eos[int(scores[:size].argmax())]) or self._goes_on(duty, reply)
        if ending:
            self._ending.add(place)
        mask = torch.from_numpy(self.rules.allowed(duty, reply, ending)[:size]).to(scores.device)
        found = torch.full_like(scores, -torch.inf)
        found[:size] = scores[:size].masked_fill(~mask, -torch.inf)
        return found

    def _goes_on(self, duty: Duty, reply: list[int]) -> bool:
        text = self.rules.text_of(reply)
        under_way = any(begun(text, phrase) for phrase in duty.owed(text)) or text.endswith(b" ")
        return under_way and (duty, tuple(reply[:-1])) in self._ending


def adjuster(rules: Rules, prompts: Sequence[str]) -> Callable[[int, list[int], Tensor], Tensor]:
    """What `envs.decode.decode` is given as `adjust` to keep the rules for these prompts.

    Raises: InputError: the rules that a prompt calls contradict each other.
    """
    masker, duties = Masker(rules), [rules.duty_of(prompt) for prompt in prompts]
    return lambda number, reply, logits: masker(duties[number], reply, logits)
