"""One episode at a time: the Gymnasium single-environment face of `envs.vector_env`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from envs.errors import InputError
from envs.vector_env import Array, TopPTokenVectorEnv


class TopPTokenEnv(gymnasium.Env[dict[str, Any], np.int64]):
    """One episode of token generation on a teacher's nucleus.

    Spaces, rewards, termination, information and arguments are those of `TopPTokenVectorEnv` for one row; the
    observation's `length` is a plain number. `reset(options={"prompt": text or token ids})` chooses the prompt. In mode
    "human" every state is printed.

    Raises: InputError: as `TopPTokenVectorEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"]}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        if {"num_envs", "autoreset_mode"} & set(kwargs):
            raise InputError("one episode has neither num_envs nor autoreset_mode; use gymnasium.make_vec for those")
        mode = AutoresetMode.DISABLED
        self.vector = TopPTokenVectorEnv(1, render_mode=render_mode, autoreset_mode=mode, **kwargs)
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; without a seed the random order of prompts goes on."""
        super().reset(seed=seed)
        unknown = sorted(set(options or {}) - {"prompt"})
        if unknown:
            raise InputError(f'reset takes options={{"prompt": text or token ids}}, not {unknown[0]!r}')
        prompt = (options or {}).get("prompt")
        chosen = None if prompt is None else {"prompts": [prompt]}
        observations, infos = self.vector.reset(seed=seed, options=chosen)
        return _first(observations), _first_info(infos)

    def step(self, action: np.int64 | int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take a slot. Raises: InvalidAction: it has no candidate. ResetNeeded: the episode has ended."""
        return self._one(self.vector.step(np.asarray([action])))

    def step_token(self, token: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take a token, inside the set or not. Raises: InvalidAction: it is outside the vocabulary."""
        return self._one(self.vector.step_tokens(np.asarray([token])))

    def _one(
        self, result: tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = result
        return (
            _first(observations),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first_info(infos),
        )

    def render(self) -> str | None:
        """The text so far and the candidates, in mode "ansi".

        Raises: ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            raise ResetNeeded('nothing to render: make the environment with render_mode="ansi" or "human"')
        shown = self.vector.render()
        return shown[0] if shown else None


def _first(observations: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    single = {key: value[0] for key, value in observations.items()}
    return {**single, "length": int(single["length"])}


def _first_info(infos: dict[str, Any]) -> dict[str, Any]:
    """Row 0 of the infos, numbers as plain Python ones."""
    rows = {key: value[0] for key, value in infos.items() if not key.startswith("_")}
    return {key: value if isinstance(value, np.ndarray) else value.item() for key, value in rows.items()}
