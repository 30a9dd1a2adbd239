"""Wrappers of the one-episode face."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing

from envs.errors import InputError
from envs.token_env import TopPTokenEnv

Observation = dict[str, Any]
Env = gymnasium.Env[Observation, np.int64]


class ClampSlot(gymnasium.ActionWrapper[Observation, np.int64, np.int64], RecordConstructorArgs):
    """For learners and checkers that cannot see a mask: slot modulo the number of candidates. **A different MDP.**

        a ↦ a mod |A_p(s)|

    Several actions then mean the same token, so a Q-function or a policy learned here is one of the clamped MDP; mask
    instead wherever the learner can. After EOS there is nothing to clamp to, and the episode is over.

    Raises: InputError: not a `TopPTokenEnv`.
    """

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._core = _core_of(env)

    def action(self, action: np.int64) -> np.int64:
        """The slot taken."""
        count = int(self._core.vector.candidates.sizes[0])
        return np.int64(int(action) % max(1, count))


class TokenActions(gymnasium.Wrapper[Observation, np.int64, Observation, np.int64], RecordConstructorArgs):
    """Token ids as actions, `Discrete(V)`; other wrappers go around this one, not inside.

    Args:
        outside: what a token outside the set does. "pay": it is appended, pays its full log π_T and is marked
            `in_set = False` (a student's own walk, section 7 of the design). "refuse": InvalidAction.
    Raises: InputError: another value of `outside`, not a `TopPTokenEnv`, or a wrapper inside that would be skipped.
    """

    def __init__(self, env: Env, outside: Literal["pay", "refuse"] = "pay") -> None:
        RecordConstructorArgs.__init__(self, outside=outside)
        super().__init__(env)
        if outside not in ("pay", "refuse"):
            raise InputError(f"outside = {outside!r} is neither 'pay' nor 'refuse'")
        self._core, self._outside = _core_of(env), outside
        inner = env
        while isinstance(inner, gymnasium.Wrapper):
            if not isinstance(inner, OrderEnforcing):
                raise InputError(f"{type(inner).__name__} stands inside TokenActions, which would skip it; swap them")
            inner = inner.env
        self.action_space = gymnasium.spaces.Discrete(self._core.vector.teacher.vocab_size)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a token id. Raises: InvalidAction: outside the vocabulary, or outside the set and refused."""
        if self._outside == "refuse":
            found = self._core.vector.candidates
            if int(action) not in found.ids[0, found.mask[0]].tolist():
                raise InvalidAction(f"token {int(action)} is outside the set; outside='pay' allows it")
        return self._core.step_token(int(action))


def _core_of(env: Env) -> TopPTokenEnv:
    if not isinstance(env.unwrapped, TopPTokenEnv):
        raise InputError(f"{type(env.unwrapped).__name__} has no candidates; wrap a TopPTokenEnv")
    return env.unwrapped
