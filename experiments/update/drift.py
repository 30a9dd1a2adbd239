"""How far a teacher has moved on the states of stored episodes, and which of the others it may have moved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.episodes import PAD_LOGP, Episodes
from envs.candidates import top_p
from envs.rewards import LogProb
from envs.teachers import Teacher

REST = 1e-4  # mass outside a set that is not told from less: stored log-probabilities are rounded
FEATURES = 1024  # an episode's tokens, hashed
RIDGE = 1.0
BLOCK = 4096  # episodes whose features are unpacked at a time
LOGITS_AT_ONCE = 2**24  # texts × positions × V


def coarse_kl(logp: Tensor, ids: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """A lower bound of KL(new ‖ old) that a candidate set of the old teacher is enough for.

        Σ_{a ∈ A} π'(a) log π'(a)/π(a) + r' log r'/r,   r = 1 − Σ_{a ∈ A} π(a),   r' alike

    All tokens outside the set count as one, and merging outcomes never raises a divergence. Masses r below `REST`
    count as `REST`.

    Source: the log-sum inequality (Cover and Thomas, Elements of Information Theory, theorem 2.7.1).
    Args:
        logp: (S, V) nats, log π' of the new teacher.
        ids, old, mask: (S, K) the old teacher's candidates, their log π, and which of them there are.
    Returns: (S,) nats.
    """
    new = logp.gather(1, ids).masked_fill(~mask, PAD_LOGP).clamp(min=PAD_LOGP).double()
    before = old.masked_fill(~mask, PAD_LOGP).double()
    inside = torch.where(mask, new.exp() * (new - before), 0.0).sum(1)
    rest, rest_before = (1 - values.exp().sum(1) for values in (new, before))
    rest, rest_before = rest.clamp(min=REST), rest_before.clamp(min=REST)
    return (inside + rest * (rest / rest_before).log()).float()


@dataclass(frozen=True)
class Reading:
    """What a teacher says along texts that another has walked."""

    drift: npt.NDArray[np.float64]  # (B,) mean `coarse_kl` of an episode's states, nats
    fall: npt.NDArray[np.float64]  # (B,) nats, the most that log π of a token of a text has fallen by, or 0
    episodes: Episodes  # the same texts, with this teacher's sets, log-probabilities and rewards


def read(episodes: Episodes, teacher: Teacher, mass: float, max_candidates: int, reward: str) -> Reading:
    """One pass over whole texts: how far the teacher has moved, and what it would have said.

    The walks stay those of the old teacher, and `behaviour_logp` is taken to be the new one's: what is used of them has
    drifted little, and has no token that the new one would hardly say.

    Args:
        mass, max_candidates: of the sets, equation (1).
        reward: logprob or topp_logprob, which follow from the log-probabilities.
    """
    length = int((episodes.prompt_length + episodes.length).max())
    rows = max(1, LOGITS_AT_ONCE // (length * teacher.vocab_size))
    parts = [
        _read(episodes.select(range(start, min(start + rows, len(episodes)))), teacher, mass, max_candidates, reward)
        for start in range(0, len(episodes), rows)
    ]
    drift, fall = (np.concatenate([getattr(part, name) for part in parts]) for name in ("drift", "fall"))
    return Reading(drift, fall, Episodes.concatenate([part.episodes for part in parts]))


def _read(episodes: Episodes, teacher: Teacher, mass: float, max_candidates: int, reward: str) -> Reading:
    ends = (episodes.prompt_length + episodes.length).tolist()
    scores = teacher.score([row[:end].tolist() for row, end in zip(episodes.tokens, ends, strict=True)])  # (B, L, V)
    where = episodes.states.nonzero(as_tuple=True)
    logp = scores[where[0], episodes.prompt_length[where[0]] + where[1] - 1].float().cpu()  # (S, V)
    moved = coarse_kl(logp, episodes.ids[where], episodes.logp[where], episodes.mask[where]).double()
    drift = torch.zeros(len(episodes), dtype=torch.float64).index_add(0, where[0], moved) / episodes.states.sum(1)
    found = top_p(logp, mass, max_candidates)
    width = int(found.sizes.max())
    shape = (*episodes.states.shape, width)
    ids = torch.zeros(shape, dtype=torch.int64).index_put(where, found.ids[:, :width])
    there = torch.zeros(shape, dtype=torch.bool).index_put(where, found.mask[:, :width])
    own = torch.full(shape, PAD_LOGP).index_put(where, found.logp[:, :width])
    same = (ids[:, :-1] == episodes.taken[..., None]) & there[:, :-1] & episodes.steps[..., None]
    slots = torch.where(same.any(-1), same.int().argmax(-1), -1)
    taken = torch.zeros(episodes.states.shape).index_put(where, logp.gather(1, _next(episodes)[where][:, None])[:, 0])
    paid = torch.where(episodes.steps, taken[:, :-1].clamp(PAD_LOGP, 0.0), 0.0)
    label = replace(episodes, ids=ids, logp=own, mask=there, slots=slots, in_set=slots >= 0)
    rewards = paid if reward == LogProb.name else torch.where(episodes.steps, paid - label.log_mass[:, :-1], 0.0)
    fall = torch.where(episodes.steps, episodes.teacher_logp_taken - paid, 0.0).amax(1).clamp(min=0).double()
    label = replace(label, rewards=rewards, behaviour_logp=paid, teacher_logp_taken=paid.clone())
    return Reading(drift.numpy(), fall.numpy(), label)


def _next(episodes: Episodes) -> Tensor:
    """The token taken in each state; 0 where none is.  # (B, T+1)"""
    return torch.nn.functional.pad(episodes.taken, (0, 1))


def features(episodes: Episodes) -> npt.NDArray[np.bool_]:
    """`hashed` tokens of episodes.  # (B, FEATURES)"""
    spans = zip(episodes.tokens.tolist(), episodes.prompt_length.tolist(), episodes.length.tolist(), strict=True)
    pairs = [(row[:start], row[start : start + steps]) for row, start, steps in spans]
    return hashed([prompt for prompt, _ in pairs], [reply for _, reply in pairs])


def hashed(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
    """Which tokens a prompt has, and which its reply, hashed to half of the columns each.  # (B, FEATURES)"""
    half, found = FEATURES // 2, np.zeros((len(prompts), FEATURES), dtype=bool)
    for row, pair in enumerate(zip(prompts, replies, strict=True)):
        for part, text in enumerate(pair):
            found[row, [part * half + token % half for token in text]] = True
    return found


def packed(known: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Eight features to a byte.  # (B, FEATURES) -> (B, FEATURES/8)"""
    return np.packbits(known, axis=1)


def unpacked(known: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """What was `packed`.  # (B, FEATURES/8) -> (B, FEATURES)"""
    return np.unpackbits(known, axis=1).view(np.bool_)


class Suspicion:
    """Ridge regression of an episode's drift on the tokens it has: where to look next, and nothing else.

        w = (XᵀX + λI)⁻¹ Xᵀ(y − ȳ)

    A wrong guess costs questions, not correctness: what is used of the store has been read, or a sample of it has.
    """

    def __init__(self) -> None:
        self.products, self.sums = np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES)
        self.columns, self.count, self.total = np.zeros(FEATURES), 0, 0.0

    def learn(self, known: npt.NDArray[np.bool_], drift: npt.NDArray[np.float64]) -> None:
        """Episodes whose drift is known.  # (B, FEATURES), (B,)"""
        rows = known.astype(np.float64)
        self.products += rows.T @ rows
        self.sums += rows.T @ drift
        self.columns += rows.sum(0)
        self.count, self.total = self.count + len(drift), self.total + float(drift.sum())

    def order(self, unknown: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Rows of these `packed` features, the most suspected first.  # (B, FEATURES/8) -> (B,)"""
        weights = self.weights()
        parts = [unpacked(unknown[start : start + BLOCK]) @ weights for start in range(0, len(unknown), BLOCK)]
        return np.argsort(-np.concatenate(parts), kind="stable")

    def foreseen(self, unknown: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """How far above the mean each is expected to lie; 0 before anything is known.  # (B, FEATURES) -> (B,)"""
        return np.asarray(unknown @ self.weights())

    def weights(self) -> npt.NDArray[np.float32]:
        """w.  # (FEATURES,)"""
        ridge, mean = self.products + RIDGE * np.eye(FEATURES), self.total / max(self.count, 1)
        return np.linalg.solve(ridge, self.sums - mean * self.columns).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """What it has learnt."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("products", "sums", "columns")}
        return {**arrays, "count": self.count, "total": self.total}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what the one that gave this state knew."""
        self.products, self.sums, self.columns = (state[name].numpy() for name in ("products", "sums", "columns"))
        self.count, self.total = state["count"], state["total"]
