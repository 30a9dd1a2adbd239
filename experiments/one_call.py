"""A `transformers.LogitsProcessor` that knows where the prompts of its call of `generate` end."""

from __future__ import annotations

from torch import Tensor
from transformers import LogitsProcessor

from envs.errors import InputError


class OneCall(LogitsProcessor):  # type: ignore[misc]
    """Serves one call: its first texts are the prompts, each later ones are one token longer."""

    def __init__(self) -> None:
        self.prompt_length, self.length = -1, -1  # tokens, padding on the left included

    def follow(self, texts: Tensor) -> None:
        """Go on to these texts (B, L).

        Raises: InputError: they are not those of the last call with one token more, so that where the prompts end is
            not known.
        """
        if self.prompt_length < 0:
            self.prompt_length = texts.shape[1]
        elif texts.shape[1] != self.length + 1:
            raise InputError(
                f"texts of {texts.shape[1]} tokens follow texts of {self.length}: a processor serves one call of "
                "generate; make one for each"
            )
        self.length = texts.shape[1]
