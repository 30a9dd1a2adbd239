"""Candidate leaves: the successors s·a of the states of an episode, all read in one forward of its text.

The leaves of a text are appended to it. A 4-D attention mask lets each see its own prefix and itself, and position ids
put it right behind that prefix, so that it is read as if its text stood alone: k leaves a state cost k more tokens a
state, not k more texts. Models for which that does not hold (sliding windows, positions by column, recurrent state) are
found by their configuration and by a numerical probe, and read every leaf's text by itself: slower, as exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from agents.vocabulary import Part

TOLERANCE = 1e-4
"""Nats by which a packed leaf may differ from its text alone."""
ROOM = 2**26
"""Entries of the attention masks of one forward; a batch that needs more is read in several."""


@dataclass(frozen=True)
class Leaves:
    """What a student says of every state and of the successors asked for; 0 where there is none."""

    hidden: Tensor  # (B, T+1, D) last hidden state of each state
    leaf_hidden: Tensor  # (B, T+1, k, D) and of each successor
    leaf_value: Tensor  # (B, T+1, k) v(s·a)
    leaf_logp: Tensor | None = None  # (B, T+1, k, V) log π_S(·|s·a), only when asked for


class Places(NamedTuple):
    """States and leaves of B texts in two lists, each in the order of the texts."""

    row: Tensor  # (N,) int64 text of each state
    position: Tensor  # (N,) int64 its last token
    leaf_row: Tensor  # (M,) int64 text of each leaf
    prefix: Tensor  # (M,) int64 tokens of that text before the leaf
    leaf: Tensor  # (M,) int64 the leaf's token

    def within(self, start: int, stop: int) -> Places:
        """Those of texts start..stop, counted from the first of these."""
        state, leaf = (((row >= start) & (row < stop)) for row in (self.row, self.leaf_row))
        own = (self.leaf_row[leaf] - start, self.prefix[leaf], self.leaf[leaf])
        return Places(self.row[state] - start, self.position[state], *own)


class Read(NamedTuple):
    """Hidden states of N states and of M leaves, and the leaves' logits."""

    hidden: Tensor  # (N, D)
    leaf_hidden: Tensor  # (M, D)
    leaf_logits: Tensor  # (M, V); only with the head


class Reader(Protocol):
    """A causal LM: logits (N, V) and last hidden states (N, D) at these rows and positions of these tokens.

    Without `head` only the first logits are wanted; with a `part` of the vocabulary, its columns.
    """

    def __call__(
        self, tokens: Tensor, row: Tensor, position: Tensor, head: bool, part: Part | None = None, **attention: Tensor
    ) -> tuple[Tensor, Tensor]: ...


def read_packed(read: Reader, tokens: Tensor, places: Places, head: bool) -> Read:
    """States and leaves from one forward; from a few, each of some of the texts, where its masks would be large."""
    most = int(torch.bincount(places.leaf_row, minlength=1).max())
    texts = max(1, ROOM // (tokens.shape[1] + most) ** 2)
    parts = []
    for start in range(0, len(tokens), texts):
        some = places.within(start, start + texts)
        wide, leaf_position, attention = attach(tokens[start : start + texts], some)
        where = torch.cat([some.row, some.leaf_row]), torch.cat([some.position, leaf_position])
        logits, hidden = read(wide, *where, head, None, **attention)
        own = len(some.row)
        parts.append(Read(hidden[:own], hidden[own:], logits[own:]))
    return Read(*(torch.cat(values) for values in zip(*parts, strict=True)))


def read_apart(read: Reader, tokens: Tensor, places: Places, head: bool) -> Read:
    """The same from a forward of the texts and one more for every B leaves, each leaf behind a copy of its prefix."""
    logits, hidden = read(tokens, places.row, places.position, False)
    parts = [(logits[:0], hidden[:0])]
    for start in range(0, len(places.leaf), len(tokens)):
        some = slice(start, start + len(tokens))
        prefix = places.prefix[some]
        row = torch.arange(len(prefix), device=tokens.device)
        texts = torch.nn.functional.pad(tokens[places.leaf_row[some]], (0, 1))
        texts[row, prefix] = places.leaf[some]  # what stands behind it is seen by nobody
        parts.append(read(texts, row, prefix, head))
    leaf_logits, leaf_hidden = (torch.cat(values) for values in zip(*parts, strict=True))
    return Read(hidden, leaf_hidden, leaf_logits)


def attach(tokens: Tensor, places: Places) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The texts with their leaves behind them.

    Args:
        tokens: (B, L); places: whose leaves.
    Returns: tokens (B, W), W = L + most leaves of a text; the column of each leaf (M,); and `attention_mask`
        (B, 1, W, W), 0 where seen and the lowest number elsewhere, with `position_ids` (B, W).
    """
    row, length = places.leaf_row, tokens.shape[1]
    count = torch.bincount(row, minlength=len(tokens))  # (B,)
    first = count.cumsum(0) - count
    column = length + torch.arange(len(row), device=row.device) - first[row]  # (M,)
    most = int(count.max())
    wide = torch.nn.functional.pad(tokens, (0, most))
    position_ids = torch.nn.functional.pad(torch.arange(length, device=row.device), (0, most)).repeat(len(tokens), 1)
    seen = torch.eye(length + most, dtype=torch.bool, device=row.device).repeat(len(tokens), 1, 1)
    causal = torch.ones(length, length, dtype=torch.bool, device=row.device).tril()
    seen[:, :length, :length] = causal
    wide[row, column], position_ids[row, column] = places.leaf, places.prefix
    seen[row, column, :length] = causal[places.prefix - 1]
    mask = torch.zeros(seen.shape, device=row.device).masked_fill(~seen, torch.finfo(torch.float32).min)
    return wide, column, {"attention_mask": mask[:, None], "position_ids": position_ids}


def why_not_packed(read: Reader, config: Any, device: torch.device) -> str:
    """What keeps a model from reading packed leaves exactly; empty if nothing does."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"layers of type {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and not getattr(config, "layer_types", None):
        return f"a sliding window of {window} tokens"
    size = config.vocab_size
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [3, 1, 4, 1, 5, 2, 6]], device=device) % size
    row, prefix, leaf = torch.tensor([[0, 2, 5], [0, 7, 3], [1, 3, 2], [1, 3, 7], [1, 5, 1]], device=device).T
    last = torch.full((2,), tokens.shape[1] - 1, device=device)
    places = Places(torch.arange(2, device=device), last, row, prefix, leaf % size)
    try:
        with torch.no_grad():
            packed, apart = (how(read, tokens, places, True) for how in (read_packed, read_apart))
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError, KeyError) as error:
        return f"its forward does not take a mask for every token ({type(error).__name__}: {error})"
    gap = float((packed.leaf_logits.log_softmax(-1) - apart.leaf_logits.log_softmax(-1)).abs().max())
    return "" if gap <= TOLERANCE else f"packed leaves are off by {gap:.1g} nats"
