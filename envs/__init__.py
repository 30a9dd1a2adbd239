"""The token MDP of a teacher: environments, teachers, candidate sets, prompts.

`import envs` registers `tdistill/TopPToken-v0`; it loads neither torch nor transformers until something is used.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium

_HOMES = {
    "Candidates": "candidates",
    "ClampSlot": "wrappers",
    "InputError": "errors",
    "Prompt": "prompts",
    "Reward": "rewards",
    "Teacher": "teachers",
    "TokenActions": "wrappers",
    "TopPTokenEnv": "token_env",
    "TopPTokenVectorEnv": "vector_env",
    "TopPVecEnv": "sb3",
    "load_prompts": "prompts",
    "load_teacher": "teachers",
    "make_reward": "rewards",
    "top_p": "candidates",
}
__all__ = sorted(_HOMES.keys() - {"TopPVecEnv"})  # which needs an extra; `from envs import *` does not

gymnasium.register(
    id="tdistill/TopPToken-v0",
    entry_point="envs.token_env:TopPTokenEnv",
    vector_entry_point="envs.vector_env:TopPTokenVectorEnv",
    # Its checks pass; they are left to the tests, so that `make` adds no wrapper that every step goes through.
    disable_env_checker=True,
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'envs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"envs.{_HOMES[name]}"), name)
