"""Replies that a prompts file gives, walked as episodes: what supervised fine-tuning learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envs.errors import InputError
from envs.prompts import Prompt
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv

TARGETS = ("teacher", "references")

Recited = Mapping[tuple[int, ...], Sequence[Sequence[int]]]
"""Tokens of a prompt -> the replies to it, each with its end."""


def replies_of(prompts: Sequence[Prompt], teacher: Teacher) -> Recited:
    """The references of these prompts as tokens, each with an EOS behind it.

    Raises: InputError: a prompt without a reference, or a teacher whose texts are no text.
    """
    if getattr(teacher, "tokenizer", None) is None:
        raise InputError(f"teacher {teacher.name!r} has no tokenizer to read references with; use --targets teacher")
    eos = end_of(teacher)
    found: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt in prompts:
        if not prompt.references:
            raise InputError(
                f"the prompt {prompt.text[:60]!r} has no reference to learn from; give it a `reference` in the JSONL, "
                "or use --targets teacher"
            )
        said = found.setdefault(tuple(teacher.encode(prompt.text)), [])
        for reference in prompt.references:
            said.append([*tokens_of(reference, teacher), eos])
    return found


def tokens_of(text: str, teacher: Teacher) -> list[int]:
    """The tokens of a text that is no prompt: nothing is added to it.

    Raises: InputError: a table teacher that has no such tokens.
    """
    tokenizer = getattr(teacher, "tokenizer", None)
    if tokenizer is None:
        return teacher.encode(text)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def end_of(teacher: Teacher) -> int:
    """The token that ends a text: the tokenizer's own where the teacher knows it, else the first of the teacher's."""
    own: int | None = getattr(getattr(teacher, "tokenizer", None), "eos_token_id", None)
    return min(teacher.eos_ids) if own is None or own not in teacher.eos_ids else own


class Recital:
    """Says every prompt's replies, one after another as the prompt comes up again, on the rows of an environment.

    What does not fit into the environment's budget is cut there, as any other episode.
    """

    def __init__(self, env: TopPTokenVectorEnv, recited: Recited) -> None:
        self.env, self.recited = env, recited
        self.turns: Counter[tuple[int, ...]] = Counter()
        self.lines: list[Sequence[int]] = [[0]] * env.num_envs
        self.at = torch.zeros(env.num_envs, dtype=torch.int64)
        self.own = torch.zeros(env.num_envs, dtype=torch.bool)

    def begin(self, rows: list[int]) -> None:
        """Choose what these rows say."""
        for row in rows:
            prompt = tuple(self.env.prompt_tokens(row))
            self.lines[row] = self.recited[prompt][self.turns[prompt] % len(self.recited[prompt])]
            self.turns[prompt] += 1
        self.at[rows] = 0

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Go on to the next token where the text goes on."""
        self.at += active

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next token of every row, and twice its log π_T; (N,) each."""
        places = zip(self.lines, self.at.tolist(), strict=True)
        tokens = torch.tensor([line[min(place, len(line) - 1)] for line, place in places])
        logp = teacher_logp_of(self.env, tokens)
        return tokens, logp, logp


def teacher_logp_of(env: TopPTokenVectorEnv, tokens: Tensor) -> Tensor:
    """log π_T of a token for every row.  # (N,)"""
    logits, norm = env.scores
    return (logits.gather(1, tokens[:, None].to(logits.device))[:, 0].float() - norm).cpu()
