"""A tabular student: logits and a value for every n-gram state, behind the interface of `Student`.

With it an agent can reach its fixed point exactly, so that the equations can be told from their mistakes.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from agents.episodes import Episodes
from agents.leaves import Leaves
from agents.scores import Scores, on_candidates, pack, places_of, spread, unpack_leaves, unpack_scores


class TableStudent(nn.Module):
    """z(s, ·) and v(s) in a table; the state is the last n tokens as a base-V number, the most recent one lowest.

    Texts shorter than n are left-padded with the EOS id. Everything starts at 0: the uniform student.
    """

    def __init__(self, vocab_size: int, order: int, eos_id: int = 0) -> None:
        super().__init__()
        self.vocab_size, self.order, self.eos_id = vocab_size, order, eos_id
        self.z = nn.Parameter(torch.zeros(vocab_size**order, vocab_size, dtype=torch.float64))  # (S, V) nats
        self.v = nn.Parameter(torch.zeros(vocab_size**order, dtype=torch.float64))  # (S,) nats

    def state_of(self, tokens: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """State of the texts tokens[row, :position + 1].  # (B, L), (N,), (N,) -> (N,)"""
        padded = torch.nn.functional.pad(tokens, (self.order, 0), value=self.eos_id)
        state = torch.zeros_like(position)
        for back in reversed(range(self.order)):
            state = state * self.vocab_size + padded[row, position + self.order - back]
        return state

    def scores(self, episodes: Episodes, full: bool = False) -> Scores:
        """As `Student.scores`."""
        packed = pack(episodes)
        state = self.state_of(episodes.tokens, packed.where[0], packed.position)
        return unpack_scores(episodes, packed, self.z[state], self.v[state], full)

    def values(self, episodes: Episodes) -> Tensor:
        """As `Student.values`.  # (B, T+1)"""
        packed = pack(episodes)
        return spread(episodes, packed, self.v[self.state_of(episodes.tokens, packed.where[0], packed.position)])

    def let_rows_rest(self) -> list[Tensor]:
        """None: a table has no vocabulary weights."""
        return []

    @property
    def width(self) -> int:
        """As `Student.width`: its hidden state is the state itself, as an indicator."""
        return len(self.z)

    @property
    def eos_ids(self) -> frozenset[int]:
        """As `Student.eos_ids`."""
        return frozenset({self.eos_id})

    def leaves(self, episodes: Episodes, ids: Tensor, mask: Tensor, full: bool = False) -> Leaves:
        """As `Student.leaves`."""
        places = places_of(episodes, ids, mask)
        state = self.state_of(episodes.tokens, places.row, places.position)
        before = self.state_of(episodes.tokens, places.leaf_row, places.prefix - 1)
        after = (before * self.vocab_size + places.leaf) % len(self.z)
        hidden, leaf_hidden = (torch.eye(len(self.z), dtype=self.z.dtype)[where] for where in (state, after))
        return unpack_leaves(episodes, mask, hidden, leaf_hidden, self.v[after], self.z[after] if full else None)

    @torch.no_grad()
    def log_policy(self, context: Tensor, length: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """As `Student.log_policy`.  # (N, K)"""
        state = self.state_of(context, torch.arange(len(context)), length - 1)
        return on_candidates(self.z[state], ids, mask)[0]

    def at_ids(self, context: Tensor, length: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `Student.at_ids`.  # (N, K), (N,)"""
        state = self.state_of(context, torch.arange(len(context)), length - 1)
        return self.z[state].gather(1, ids), self.v[state]

    def value_of(self, context: Tensor, length: Tensor) -> Tensor:
        """As `Student.value_of`.  # (N,)"""
        return self.v[self.state_of(context, torch.arange(len(context)), length - 1)]

    def copy(self) -> Self:
        """A frozen copy, as a target network."""
        return copy.deepcopy(self).requires_grad_(False)
