"""Wrappers of the one-episode face."""

from __future__ import annotations

from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from envs import checks
from envs.errors import InputError
from envs.token_env import TopPTokenEnv

Observation = dict[str, Any]
Env = gymnasium.Env[Observation, np.int64]
Stepped = tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]


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
        """The slot taken.

        Raises: InvalidAction: no integer. ResetNeeded: no episode has begun. ClosedEnvironmentError: after `close`.
        """
        count = int(self._core.vector.candidates.sizes[0])
        return np.int64(checks.action_of(action, "slot") % max(1, count))


class TokenActions(gymnasium.Wrapper[Observation, np.int64, Observation, np.int64], RecordConstructorArgs):
    """Token ids as actions, `Discrete(V)`, and their mask.

    `info["action_mask"]`, int8 (V,), is 1 for the tokens of the set, whatever `outside` is: under "forbid" the legal
    ones, under "pay" those that a sampler which wants to stay inside may take. It is all 0 after EOS. The observation's
    `mask` stays one of slots.

    Args:
        outside: what a token outside the set does. "pay": it is appended, pays its full log π_T and is marked
            `in_set = False` (a student's own walk, section 7 of the design). "forbid": InvalidAction.
    Raises: InputError: another value of `outside`, not a `TopPTokenEnv`, or, under "pay", a wrapper inside that would
        be skipped: a token without a slot goes to the environment itself.
    """

    def __init__(self, env: Env, outside: Literal["pay", "forbid"] = "pay") -> None:
        RecordConstructorArgs.__init__(self, outside=outside)
        super().__init__(env)
        if outside not in ("pay", "forbid"):
            raise InputError(f"outside = {outside!r} is neither 'pay' nor 'forbid'")
        self._core, self._outside = _core_of(env), outside
        inner = env
        while outside == "pay" and isinstance(inner, gymnasium.Wrapper):
            if not isinstance(inner, (OrderEnforcing, PassiveEnvChecker)):
                raise InputError(f"{type(inner).__name__} stands inside TokenActions, which would skip it; swap them")
            inner = inner.env
        self.action_space = gymnasium.spaces.Discrete(self._core.vector.teacher.vocab_size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode, as `TopPTokenEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._masked(info)

    def step(self, action: np.int64 | int) -> Stepped:
        """Take a token id.

        Raises: InvalidAction: outside the vocabulary, or outside the set and forbidden; nothing has happened then.
            Otherwise as `TopPTokenEnv.step`.
        """
        result: Stepped = (
            self._core.step_token(action) if self._outside == "pay" else self.env.step(self._slot_of(action))
        )
        return (*result[:4], self._masked(result[4]))

    def _slot_of(self, action: np.int64 | int) -> np.int64:
        found, token = self._core.vector.candidates, checks.action_of(action, "token")
        slots = ((found.ids[0] == token) & found.mask[0]).nonzero()[:, 0]
        if found.mask[0].any() and not len(slots):
            raise InvalidAction(
                f"token {token} is outside the set of {int(found.sizes[0])}; choose by info['action_mask'], "
                "or allow it with outside='pay'"
            )
        return np.int64(slots[0] if len(slots) else 0)  # after EOS there is none: the environment says so

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        found = self._core.vector.candidates
        mask = np.zeros(self._core.vector.teacher.vocab_size, dtype=np.int8)  # (V,)
        mask[found.ids[0, found.mask[0]].numpy()] = 1
        return {**info, "action_mask": mask}


def _core_of(env: Env) -> TopPTokenEnv:
    if not isinstance(env.unwrapped, TopPTokenEnv):
        raise InputError(f"{type(env.unwrapped).__name__} has no candidates; wrap a TopPTokenEnv")
    return env.unwrapped
