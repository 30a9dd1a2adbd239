"""The environment under rules: some tokens are masked, and a potential pays for coming nearer to what must be said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.candidates import PAD_LOGP, Candidates
from envs.deck import Card
from envs.errors import InputError
from envs.rewards import Reward, Step
from envs.vector_env import TopPTokenVectorEnv

Allow = Callable[[str, list[int]], npt.NDArray[np.bool_]]
"""(prompt text, new tokens) -> which tokens may follow, (V,)."""
Potential = Callable[[str, list[int]], float]
"""(prompt text, new tokens) -> Φ, in the unit of the reward."""


class RuledVectorEnv(TopPTokenVectorEnv):
    """`TopPTokenVectorEnv` with a mask on its candidates and a shaped reward.

        A'(s) = A_p(s) ∩ allowed(s), or A_p(s) where that is empty
        r'(s, a) = r(s, a) + F(s, s·a),   F(s, s') = γ Φ(s') − Φ(s),   Φ(terminal) = 0

    The mask changes what can be said: another MDP. The shaping does not: along an episode that terminates

        Σ_t γ^t F(s_t, s_{t+1}) = −Φ(s_0),

    so that Q'(s, a) = Q(s, a) − Φ(s), every policy keeps its rank, and the best one, hard or soft, stays the same. It
    only pays a phrase sooner: when it is begun. At a truncation Φ(s') is that of the state reached, whose value is
    bootstrapped, less its Φ like any other.

    `log_mass`, `lost_mass` and the renormalised teacher are those of A'. A state where the mask left nothing counts in
    `info["unruled"]`, bool (N,).

    Source: Ng, Harada and Russell (1999), theorem 1; soft values: own derivation, Φ(s) leaves the log-sum-exp.
    Args:
        allow: tokens that may be taken; None: all.
        potential: Φ; None: 0. It may depend on nothing but prompt and reply.
        settings: those of `TopPTokenVectorEnv`; `gamma` must be the learner's.
    Raises: InputError: as `TopPTokenVectorEnv`; a mask of another size, or a potential that is no finite number.
    """

    def __init__(
        self, num_envs: int = 1, *, allow: Allow | None = None, potential: Potential | None = None, **settings: Any
    ) -> None:
        super().__init__(num_envs, **settings)
        self._allow, self._potential = allow, potential
        self._unruled = np.zeros(num_envs, dtype=bool)
        self._height = np.zeros(num_envs)  # Φ of the current states
        self.reward = Shaped(self.reward, self._shaping) if potential is not None else self.reward

    def _begin(self, chosen: npt.NDArray[np.bool_], given: list[Card] | None = None) -> None:
        super()._begin(chosen, given)
        for row in chosen.nonzero()[0].tolist():
            self._height[row] = self._potential_of(row)

    def _look(self, rows: npt.NDArray[np.int64] | None = None) -> None:
        super()._look(rows)
        if self._allow is None:
            return
        found = self.candidates
        kept = found.mask.clone()
        for row in range(self.num_envs) if rows is None else rows.tolist():
            self._unruled[row] = False
            if found.mask[row].any():
                inside = found.mask[row] & torch.from_numpy(self._allowed(row))[found.ids[row]]
                self._unruled[row] = not inside.any()
                kept[row] = inside if inside.any() else found.mask[row]
        self._candidates = narrowed(found, kept)
        self._log_mass = self._candidates.log_mass

    def _infos(self) -> dict[str, Any]:
        own = {"unruled": self._unruled.copy(), "_unruled": np.ones(self.num_envs, dtype=bool)}
        return super()._infos() | own

    def _allowed(self, row: int) -> npt.NDArray[np.bool_]:
        assert self._allow is not None, "only an env with a mask asks for it"
        found = self._allow(self._prompt_text(row), self.reply_tokens(row))
        if found.shape != (size := (self.teacher.vocab_size,)):
            raise InputError(f"allow gave a mask of shape {found.shape}; it must be {size}, one for each token")
        return found

    def _prompt_text(self, row: int) -> str:
        card = self._cards[row]
        given = None if card is None else card.text
        return self.teacher.decode(self.prompt_tokens(row)) if given is None else given

    def _potential_of(self, row: int) -> float:
        if self._potential is None:
            return 0.0
        height = float(self._potential(self._prompt_text(row), self.reply_tokens(row)))
        if not np.isfinite(height):
            raise InputError(f"the potential of a state is {height}; return a finite number")
        return height

    def _shaping(self, step: Step) -> Tensor:
        """F of every row that acted; what others get is not read.  # (N,)"""
        before = self._height.copy()
        over = step.terminated.numpy()
        acted = self._token >= 0
        for row in acted.nonzero()[0].tolist():
            self._height[row] = 0.0 if over[row] else self._potential_of(row)
        return torch.from_numpy(np.where(acted, self.gamma * self._height - before, 0.0)).float()


class Shaped(Reward):
    """A reward plus a shaping term; it is no longer known for every candidate of a state."""

    def __init__(self, inner: Reward, shaping: Callable[[Step], Tensor]) -> None:
        self.inner, self.shaping = inner, shaping
        self.name = f"{inner.name} + shaping"
        self.needs_next, self.needs_text = inner.needs_next, inner.needs_text

    def __call__(self, step: Step) -> Tensor:
        return self.inner(step) + self.shaping(step)


def narrowed(found: Candidates, kept: Tensor) -> Candidates:
    """Candidates without those that are not `kept` (N, K), the others in their order and padding behind them."""
    order = torch.argsort((~kept).to(torch.int8), dim=-1, stable=True)
    mask = kept.gather(-1, order)
    return found._replace(
        ids=found.ids.gather(-1, order).masked_fill(~mask, 0),
        logp=found.logp.gather(-1, order).masked_fill(~mask, PAD_LOGP),
        mask=mask,
    )
