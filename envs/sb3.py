"""The environment as a vector environment of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from envs.errors import InputError
from envs.vector_env import Array, Observation, TopPTokenVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise InputError("TopPVecEnv needs Stable-Baselines3, which is not installed: pip install tdistill[sb3]") from error

Indices = int | Iterable[int] | None
MASKS = "action_masks"


class TopPVecEnv(VecEnv):
    """`TopPTokenVectorEnv` as Stable-Baselines3 wants it: rows that end begin anew in the same step.

    Spaces, rewards and episode ends are those of `TopPTokenVectorEnv`. `step` returns observations, float32 rewards in
    nats, bool dones (terminated or truncated) and one info a row. The info of a row that ended holds
    `terminal_observation`, the single observation it ended with, and `TimeLimit.truncated`, whether it was cut rather
    than over, so that its value is to be bootstrapped; the infos of the other rows are empty. `action_masks()` is what
    sb3-contrib's MaskablePPO asks for. All rows share one teacher and one seed, and are stepped by one forward.

    Source: own adapter; the contract is that of `stable_baselines3.common.vec_env.VecEnv` 2.9.
    Args:
        num_envs: N, or an existing `TopPTokenVectorEnv` with same-step autoreset.
        settings: the other arguments of `TopPTokenVectorEnv`, `autoreset_mode` apart; none beside an existing one.
    Raises: InputError: settings that cannot be used, or Stable-Baselines3 is not installed (on import).
    """

    def __init__(self, num_envs: int | TopPTokenVectorEnv = 1, **settings: Any) -> None:
        if "autoreset_mode" in settings:
            raise InputError("TopPVecEnv resets rows in the step that ends them; leave autoreset_mode out")
        if isinstance(num_envs, TopPTokenVectorEnv):
            if settings:
                raise InputError(f"the environment given has its own {', '.join(settings)}; give either")
            self.env = num_envs
        else:
            self.env = TopPTokenVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        if self.env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InputError(
                f"the environment given has autoreset {self.env.autoreset_mode.value}; make it with "
                'autoreset_mode="same_step"'
            )
        self._mask: Array | None = None  # of the current states, as observed
        self._actions: Array | None = None
        super().__init__(self.env.num_envs, self.env.single_observation_space, self.env.single_action_space)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which slots hold a candidate in the current states.  # (N, K) bool

        Raises: ResetNeeded: before the first reset.
        """
        if self._mask is None:
            raise ResetNeeded("the environment has no state yet; call reset first")
        return self._mask.astype(bool)

    def reset(self) -> Observation:
        """Begin every row, with the seed and the options set before; the observations.  # (N, ...)"""
        observations, _ = self.env.reset(seed=self._seeds[0], options=_joined(self._options, self.num_envs))
        self._reset_seeds()
        self._reset_options()
        self._mask, self._actions = observations["mask"], None
        return observations

    def step_async(self, actions: Array) -> None:
        """Take note of a slot for every row; `step_wait` takes them."""
        self._actions = actions

    def step_wait(self) -> tuple[Observation, Array, Array, list[dict[str, Any]]]:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool, and infos.

        Raises: InvalidAction: a slot without a candidate; nothing has happened then. ResetNeeded: before the first
            reset.
        """
        assert self._actions is not None, "step_async comes first"
        observations, rewards, terminated, truncated, found = self.env.step(self._actions)
        self._mask, self._actions = observations["mask"], None
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in dones.nonzero()[0].tolist():
            infos[row]["terminal_observation"] = found["final_obs"][row]
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards.astype(np.float32, copy=False), dones, infos

    def render(self, mode: str | None = None) -> Any:
        """The texts of all rows in mode "ansi", otherwise as Stable-Baselines3 does it."""
        if self.render_mode == "ansi" and mode in {None, "ansi"}:
            return self.env.render()
        return super().render(mode)

    def close(self) -> None:
        self.env.close()

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == MASKS or hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the environment, which all rows share.

        Raises: AttributeError: there is none of that name.
        """
        value = self.action_masks if attr_name == MASKS else getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, for all rows at once.

        Raises: InputError: for some rows only.
        """
        if len(set(self._get_indices(indices))) < self.num_envs:
            raise InputError(f"the rows share one environment; set {attr_name!r} for all of them")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """Call a method once; a row gets its part of an answer that has one for each, and all of any other.

        Raises: AttributeError: there is none of that name.
        """
        method = self.action_masks if method_name == MASKS else getattr(self.env, method_name)
        answer = method(*args, **kwargs)
        split = isinstance(answer, (np.ndarray, tuple)) and len(answer) == self.num_envs
        return [answer[row] if split else answer for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Indices = None) -> list[bool]:
        """No row is wrapped by itself; wrap the whole, as `VecMonitor` does."""
        return [False for _ in self._get_indices(indices)]


def _joined(options: Sequence[dict[str, Any]], rows: int) -> dict[str, Any] | None:
    """The options of N rows, as `set_options` leaves them, as those of one reset: each row's `prompt`, or `prompts`.

    Raises: InputError: options that are not the same for all rows, prompts apart, or prompts for some rows only.
    """
    if len(options) != rows:
        raise InputError(f"{len(options)} options were given for {rows} rows; give one a row, or one for all")
    if not any(options):
        return None
    if all("prompt" in own for own in options):
        return {"prompts": [own["prompt"] for own in options]}
    if all(own == options[0] for own in options):
        return dict(options[0])
    raise InputError('rows have different options; give each a "prompt", or all of them the same "prompts"')
