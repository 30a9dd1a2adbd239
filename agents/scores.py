"""What a student says of every state of a batch of episodes, and the states in one list, without the padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from agents import objectives, parallel
from agents.episodes import PAD_LOGP, Episodes, padded
from agents.leaves import Leaves, Places
from agents.softmax import picked
from agents.vocabulary import Part


@dataclass(frozen=True)
class Scores:
    """What a student says of every state of B episodes, in nats; 0 (PAD_LOGP for log_policy) where there is none."""

    log_policy: Tensor  # (B, T+1, K) log π_S^A: the student renormalised on the candidates
    value: Tensor  # (B, T+1) v(s), which is V_p(s) of the levelled Q
    log_inside: Tensor  # (B, T+1) log(1 − leak): student mass on the candidates
    logp_taken: Tensor  # (B, T) full-softmax log π_S(a_t|s_t)
    logp: Tensor | None = None  # (B, T+1, V) full log π_S, only when asked for

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        """Those of all episodes in order, padded to the largest T and K among them."""
        joined: dict[str, Tensor] = {}
        for name in parts[0].fields():
            values = [part.fields()[name] for part in parts]
            shape = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
            joined[name] = torch.cat([padded(value, shape, _fill(name)) for value in values])
        return Scores(**joined)

    def gathered(self, episodes: Episodes) -> Scores:
        """Those of all these episodes, of which every process has scored its `parallel.share`."""
        steps, candidates = episodes.ids.shape[1:]
        shapes = {
            name: [steps - (name == "logp_taken"), *([candidates] if name == "log_policy" else value.shape[2:])]
            for name, value in self.fields().items()
        }
        flat = [padded(value, shapes[name], _fill(name)).flatten(1) for name, value in self.fields().items()]
        whole = parallel.gathered(torch.cat(flat, 1), len(episodes))
        parts = torch.split(whole, [part.shape[1] for part in flat], 1)
        return Scores(**{name: part.reshape(-1, *shapes[name]) for name, part in zip(shapes, parts, strict=True)})

    def fields(self) -> dict[str, Tensor]:
        """Every tensor by name, absent ones left out."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(Scores))
        return {name: value for name, value in pairs if value is not None}


def _fill(name: str) -> float:
    return PAD_LOGP if name == "log_policy" else 0.0


class Scorer(Protocol):
    """What agents ask of a student; `Student` and `TableStudent` both answer it."""

    @property
    def width(self) -> int: ...  # D, of its last hidden states
    @property
    def eos_ids(self) -> frozenset[int]: ...
    def scores(self, episodes: Episodes, full: bool = False) -> Scores: ...
    def values(self, episodes: Episodes) -> Tensor: ...  # (B, T+1), without the vocabulary head
    def log_policy(self, context: Tensor, length: Tensor, ids: Tensor, mask: Tensor) -> Tensor: ...  # (N, K)
    def leaves(self, episodes: Episodes, ids: Tensor, mask: Tensor, full: bool = False) -> Leaves: ...
    def copy(self) -> Self: ...
    def parameters(self) -> Any: ...
    def let_rows_rest(self) -> list[Tensor]: ...  # weights with gradients by rows from now on; none if not asked for
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Packed(NamedTuple):
    """The valid states of B episodes in one list of N."""

    where: tuple[Tensor, Tensor]  # episode and row of each, (N,) int64 both
    position: Tensor  # (N,) int64 position in `tokens` of the last token of each state's text


def pack(episodes: Episodes) -> Packed:
    """List the states that have candidates; row t's text ends at prompt_length + t − 1."""
    episode, row = episodes.states.nonzero(as_tuple=True)
    return Packed((episode, row), episodes.prompt_length[episode] + row - 1)


def on_candidates(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log π_S^A (N, K), PAD_LOGP off the candidates, and its normaliser (N,), the log-sum-exp of their logits."""
    return renormalised(logits.gather(1, ids), mask)


def renormalised(candidate: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `on_candidates`, of the candidates' own logits.  # (N, K), (N, K) -> (N, K), (N,)"""
    some = mask | ~mask.any(-1, keepdim=True)  # a finished row has no candidates and no use for its answer
    inside = objectives.soft_value(candidate, some)
    return torch.where(mask, candidate - inside[:, None], PAD_LOGP), inside


def unpack_scores(
    episodes: Episodes, packed: Packed, logits: Tensor, value: Tensor, full: bool, part: Part | None = None
) -> Scores:
    """Scores (B, T+1, ...) from the logits (N, V) and values (N,) of the packed states, or in a part's columns."""
    where = packed.where
    ids, taken = (episodes.ids, episodes.taken) if part is None else (part.ids, part.taken)
    if part is not None:
        logits = logits + part.log_weight[where[0]]
    taken = torch.nn.functional.pad(taken, (0, 1))[where]  # (N,)
    ids = torch.cat([taken[:, None], ids[where]], 1)  # (N, 1 + K)
    named, everything = picked(logits, ids)  # (N, 1 + K), (N,)
    policy, inside = renormalised(named[:, 1:], episodes.mask[where])  # (N, K), (N,)
    logp_taken = spread(episodes, packed, named[:, 0] - everything)[:, :-1]
    return Scores(
        log_policy=spread(episodes, packed, policy, PAD_LOGP),
        value=spread(episodes, packed, value),
        log_inside=spread(episodes, packed, (inside - everything).clamp(max=0)),
        logp_taken=torch.where(episodes.steps, logp_taken, 0),
        logp=spread(episodes, packed, logits - everything[:, None]) if full else None,
    )


def unpack_leaves(
    episodes: Episodes, mask: Tensor, hidden: Tensor, leaf_hidden: Tensor, value: Tensor, logits: Tensor | None
) -> Leaves:
    """Leaves (B, T+1, k, ...) from the hidden states (N, D) of states, and (M, ...) of the leaves where `mask` is."""
    where = mask.nonzero(as_tuple=True)

    def wide(values: Tensor) -> Tensor:
        return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(where, values)

    logp = None if logits is None else wide(logits.log_softmax(-1))
    return Leaves(spread(episodes, pack(episodes), hidden), wide(leaf_hidden), wide(value), logp)


def places_of(episodes: Episodes, ids: Tensor, mask: Tensor) -> Places:
    """The states of these episodes and the leaves `ids` behind them, where `mask`."""
    packed = pack(episodes)
    episode, row, column = mask.nonzero(as_tuple=True)
    prefix = episodes.prompt_length[episode] + row
    return Places(packed.where[0], packed.position, episode, prefix, ids[episode, row, column])


def spread(episodes: Episodes, packed: Packed, values: Tensor, fill: float = 0.0) -> Tensor:
    """(N, ...) back to (B, T+1, ...)."""
    wide = values.new_full((*episodes.states.shape, *values.shape[1:]), fill)
    return wide.index_put(packed.where, values)
