"""Episodes as ragged columns, and back: what a shard of the store holds.

An episode is a row of lists; n tokens of the prompt, T of the reply, and T+1 states with k_t candidates each.

| column | items | what |
|---|---|---|
| `prompt` | n | tokens |
| `steps` | T+1 | a byte a state: 16 · k_t + (slot taken + 1), 0 for none; 0xF0: see `wide` |
| `wide` | 2 a state | k_t and slot + 1 of the states where these do not fit |
| `ids` | Σ k_t | candidates, most probable first |
| `logp` | Σ k_t | their log π_T, nats |
| `outside` | o | tokens taken outside their set, in order |
| `outside_logp` | o | their log π_T, nats |
| `rewards` | T | nats; only for rewards that do not follow from the rest |

An episode ended by itself if its last state has no candidates. Token ids take the smallest integers that hold V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from agents.episodes import PAD_LOGP, Episodes
from envs.errors import InputError
from envs.rewards import LogProb, TopPLogProb

Array = npt.NDArray[Any]
WIDE = 15  # candidates from which on a state's byte does not say how many there are
DERIVED = {LogProb.name, TopPLogProb.name}
"""Rewards that follow from the log-probabilities."""


@dataclass(frozen=True)
class Lists:
    """A column of lists: episode b's are `values[offsets[b] : offsets[b + 1]]`."""

    values: Array
    offsets: Array  # (B + 1,) int64

    def __getitem__(self, episode: int) -> Array:
        found: Array = self.values[self.offsets[episode] : self.offsets[episode + 1]]
        return found


class Column(Protocol):
    """A list of values for each episode."""

    def __getitem__(self, episode: int) -> Array: ...


@dataclass(frozen=True)
class Format:
    """How numbers are kept."""

    vocab_size: int
    logp: str = "float16"
    """float16 is off by up to 2⁻¹¹ of a value: .004 nats at 4 to 8 nats; float32 by nothing that matters."""
    reward: str = LogProb.name
    teacher_walk: str = "full"

    def __post_init__(self) -> None:
        if self.logp not in ("float16", "float32"):
            raise InputError(f'logp = {self.logp!r} must be "float16" or "float32"')

    @property
    def token(self) -> str:
        return str(np.min_scalar_type(self.vocab_size - 1))


def encode(episodes: Episodes, form: Format) -> dict[str, Lists]:
    """The columns of these episodes, the teacher's."""
    length, prompt = episodes.length.numpy(), episodes.prompt_length.numpy()
    mask, ids, slots = episodes.mask.numpy(), episodes.ids.numpy(), episodes.slots.numpy()
    states = np.arange(mask.shape[1]) <= length[:, None]  # (B, T+1)
    steps = states[:, 1:]
    count, taken = mask.sum(-1), np.pad(slots + 1, ((0, 0), (0, 1)))
    wide = (count >= WIDE) & states
    codes = np.where(wide, 16 * WIDE, 16 * count + taken)
    outside = steps & (slots < 0)
    in_prompt = np.arange(episodes.tokens.shape[1]) < prompt[:, None]
    width = form.token
    columns = {
        "prompt": _ragged(episodes.tokens.numpy(), in_prompt, width),
        "steps": _ragged(codes, states, "uint8"),
        "wide": _ragged(np.stack([count, taken], -1), wide[..., None].repeat(2, -1), "uint32"),
        "ids": _ragged(ids, mask, width),
        "logp": _ragged(episodes.logp.numpy(), mask, form.logp),
        "outside": _ragged(episodes.taken.numpy(), outside, width),
        "outside_logp": _ragged(episodes.teacher_logp_taken.numpy(), outside, form.logp),
    }
    return columns if form.reward in DERIVED else columns | {"rewards": _ragged(episodes.rewards.numpy(), steps, "f4")}


def decode(columns: Mapping[str, Column], rows: Sequence[int], form: Format, gamma: float) -> Episodes:
    """These episodes, discounted by γ."""
    codes, states = _joined(columns["steps"], rows)
    count, taken = codes.astype(np.int64) >> 4, codes.astype(np.int64) & 15
    wide = count == WIDE
    if wide.any():
        count[wide], taken[wide] = _joined(columns["wide"], rows)[0].reshape(-1, 2).T
    there = np.arange(int(states.max())) < states[:, None]  # (B, T+1)
    count, slots = (_padded(values, there) for values in (count, taken - 1))
    mask = np.arange(max(1, int(count.max()))) < count[..., None]  # (B, T+1, K)
    ids = _padded(_joined(columns["ids"], rows)[0].astype(np.int64), mask)
    logp = _padded(_joined(columns["logp"], rows)[0].astype(np.float32), mask, PAD_LOGP)
    slots, steps = np.where(there[:, 1:], slots[:, :-1], -1), there[:, 1:]
    at = np.clip(slots, 0, None)[..., None]
    reply, paid = (np.take_along_axis(values[:, :-1], at, 2)[..., 0] for values in (ids, logp))
    outside = steps & (slots < 0)
    reply[outside], paid[outside] = (_joined(columns[name], rows)[0] for name in ("outside", "outside_logp"))
    log_mass = torch.from_numpy(logp).logsumexp(-1)[:, :-1].numpy()
    rewards = _padded(_joined(columns["rewards"], rows)[0], steps) if "rewards" in columns else paid
    rewards = np.where(steps, rewards - log_mass if form.reward == TopPLogProb.name else rewards, 0)
    behaviour = paid - log_mass if form.teacher_walk == "set" else paid
    prompt, sizes = _joined(columns["prompt"], rows)
    length = states - 1
    terminated = np.take_along_axis(count, length[:, None], 1) == 0
    last = np.arange(steps.shape[1]) == length[:, None] - 1
    return Episodes(
        tokens=torch.from_numpy(_texts(prompt, sizes, reply, steps, length)),
        prompt_length=torch.from_numpy(sizes),
        length=torch.from_numpy(length),
        ids=torch.from_numpy(ids),
        logp=torch.from_numpy(logp),
        mask=torch.from_numpy(mask),
        slots=torch.from_numpy(slots),
        rewards=torch.from_numpy(rewards.astype(np.float32)),
        discounts=torch.from_numpy((gamma * (steps & ~(last & terminated))).astype(np.float32)),
        in_set=torch.from_numpy(slots >= 0),
        behaviour_logp=torch.from_numpy(np.where(steps, behaviour, 0).astype(np.float32)).clamp(max=0),
        teacher_logp_taken=torch.from_numpy(np.where(steps, paid, 0).astype(np.float32)),
        from_teacher=torch.ones(len(rows), dtype=torch.bool),
    )


def _ragged(values: Array, there: npt.NDArray[np.bool_], dtype: str) -> Lists:
    """The values that are there, episode by episode."""
    count = there.reshape(len(there), -1).sum(1)
    return Lists(values[there].astype(dtype), np.concatenate([[0], np.cumsum(count)]))


def _joined(column: Column, rows: Sequence[int]) -> tuple[Array, Array]:
    """The values of these episodes, one after another, and how many each has."""
    parts = [column[row] for row in rows]
    return np.concatenate(parts), np.array([len(part) for part in parts])


def _padded(values: Array, there: npt.NDArray[np.bool_], fill: float = 0) -> Array:
    """The values where they are there."""
    wide: Array = np.full(there.shape, fill, dtype=values.dtype)
    wide[there] = values
    return wide


def _texts(prompt: Array, sizes: Array, reply: Array, steps: npt.NDArray[np.bool_], length: Array) -> Array:
    """Prompts with their replies behind them, left-aligned.  # (B, L) int64"""
    place = np.arange(int((sizes + length).max()))
    tokens = np.zeros((len(sizes), len(place)), dtype=np.int64)
    tokens[place < sizes[:, None]] = prompt
    tokens[(place >= sizes[:, None]) & (place < (sizes + length)[:, None])] = reply[steps]
    return tokens
