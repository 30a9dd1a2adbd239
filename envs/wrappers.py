"""Wrappers of the one-episode face."""

from __future__ import annotations

from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction

from envs.errors import InputError
from envs.token_env import TopPTokenEnv

Observation = dict[str, Any]


class ClampSlot(gymnasium.ActionWrapper[Observation, np.int64, np.int64]):
    """For learners and checkers that cannot see a mask: slot modulo the number of candidates. **A different MDP.**

        a ↦ a mod |A_p(s)|

    Several actions then mean the same token, so a Q-function or a policy learned here is one of the clamped MDP; mask
    instead wherever the learner can. After EOS there is nothing to clamp to, and the episode is over.
    """

    def action(self, action: np.int64) -> np.int64:
        count = int(cast(TopPTokenEnv, self.unwrapped).vector.candidates.mask[0].sum())
        return np.int64(int(action) % max(1, count))


class TokenActions(gymnasium.Wrapper[Observation, np.int64, Observation, np.int64]):
    """Token ids as actions, `Discrete(V)`.

    Args:
        outside: what a token outside the set does. "pay": it is appended, pays its full log π_T and is marked
            `in_set = False` (a student's own walk, section 7 of the design). "refuse": InvalidAction.
    Raises: InputError: another value of `outside`.
    """

    def __init__(self, env: gymnasium.Env[Observation, np.int64], outside: Literal["pay", "refuse"] = "pay") -> None:
        super().__init__(env)
        if outside not in ("pay", "refuse"):
            raise InputError(f"outside = {outside!r} is neither 'pay' nor 'refuse'")
        self.outside = outside
        self.core = cast(TopPTokenEnv, self.unwrapped)
        self.action_space = gymnasium.spaces.Discrete(self.core.vector.teacher.vocab_size)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a token id."""
        if self.outside == "refuse":
            found = self.core.vector.candidates
            if int(action) not in found.ids[0, found.mask[0]].tolist():
                raise InvalidAction(f"token {int(action)} is outside the set; outside='pay' allows it")
        return self.core.step_token(int(action))
