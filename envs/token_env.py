"""One episode at a time: the Gymnasium single-environment face of `envs.vector_env`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from envs import checks
from envs.errors import InputError
from envs.spaces import row_of
from envs.vector_env import Array, TopPTokenVectorEnv

Stepped = tuple[dict[str, Any], float, bool, bool, dict[str, Any]]

# OpenMP's threads are not there in a process that `AsyncVectorEnv` forks: what computes with several waits for them.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class TopPTokenEnv(gymnasium.Env[dict[str, Any], np.int64]):
    """One episode of token generation on a teacher's nucleus.

    Spaces, rewards, termination, information and arguments are those of `TopPTokenVectorEnv` for one row; the
    observation's `length` is a plain number. `reset(options={"prompt": text or token ids})` chooses the prompt. In mode
    "human" every state is printed.

    Wrappers deep-copy the spec of what they wrap; a teacher is a handle there and is never copied, also one that was
    given as `(model, tokenizer)`. A spec with a teacher's name goes through JSON and pickle; one with a `Teacher` does
    not go through JSON.

    Raises: InputError: as `TopPTokenVectorEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        if {"num_envs", "autoreset_mode"} & set(kwargs):
            raise InputError("one episode has neither num_envs nor autoreset_mode; use gymnasium.make_vec for those")
        mode = AutoresetMode.DISABLED
        self.vector = TopPTokenVectorEnv(1, render_mode=render_mode, autoreset_mode=mode, **kwargs)
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self._spec: EnvSpec | None = None
        self._over = False

    @property
    def spec(self) -> EnvSpec | None:
        """How the environment was made; `gymnasium.make` sets it. A pair (model, tokenizer) stands there as its handle,
        which deep-copies to itself."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        if value is not None and isinstance(value.kwargs.get("teacher"), tuple):
            value.kwargs = {**value.kwargs, "teacher": self.vector.teacher}
        self._spec = value

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; without a seed the random order of prompts goes on.

        Raises: InputError: an option, a seed or a prompt that cannot be used; nothing has happened then.
            ClosedEnvironmentError: after `close`.
        """
        options = checks.options_of(options, ("prompt",))
        if seed is None:
            self.vector.np_random = self.np_random  # one generator, `env.np_random`, orders the prompts
        observations, infos = self.vector.reset(seed=seed, options=options)
        if seed is not None:
            self._np_random, self._np_random_seed = self.vector.np_random, self.vector.np_random_seed
        self._over = False
        return _first(observations), row_of(infos, 0)

    def step(self, action: np.int64 | int) -> Stepped:
        """Take a slot.

        Raises: InvalidAction: it has no candidate, or is no integer; nothing has happened then. ResetNeeded: the
            episode has ended, or none has begun. ClosedEnvironmentError: after `close`.
        """
        self._check_state()
        return self._one(self.vector.step(np.array([checks.action_of(action, "slot")])))

    def step_token(self, token: np.int64 | int) -> Stepped:
        """Take a token, inside the set or not.

        Raises: InvalidAction: it is outside the vocabulary, or no integer. Otherwise as `step`.
        """
        self._check_state()
        return self._one(self.vector.step_tokens(np.array([checks.action_of(token, "token")])))

    def _check_state(self) -> None:
        _ = self.vector.candidates  # tells of an environment that is closed or has no state yet
        if self._over:
            raise ResetNeeded("the episode has ended; call reset to begin another")

    def _one(self, result: tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]) -> Stepped:
        observations, rewards, terminations, truncations, infos = result
        terminated, truncated = bool(terminations[0]), bool(truncations[0])
        self._over = terminated or truncated
        return _first(observations), float(rewards[0]), terminated, truncated, row_of(infos, 0)

    def render(self) -> str | None:
        """The text so far and the candidates, in mode "ansi".

        Raises: ResetNeeded: before the first reset, or made without a render mode.
        """
        if self.render_mode is None:
            raise ResetNeeded('nothing to render: make the environment with render_mode="ansi" or "human"')
        shown = self.vector.render()
        return shown[0] if shown else None

    def close(self) -> None:
        """Let go of the teacher's cache; closing twice does nothing."""
        self.vector.close()


def _first(observations: dict[str, Array]) -> dict[str, Any]:
    single = {key: value[0] for key, value in observations.items()}
    return {**single, "length": int(single["length"])}
