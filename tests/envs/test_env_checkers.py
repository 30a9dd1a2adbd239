"""Both libraries' checkers pass on every registered id, through every wrapper, without a warning."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
import envs.wrappers
from envs.table_teacher import TableTeacher
from tests.envs.test_gymnasium import make

IDS = sorted(spec.id for spec in gymnasium.registry.values() if spec.namespace == "tdistill")


def wrapped() -> list[tuple[str, Callable[[gymnasium.Env], gymnasium.Env]]]:
    """Every wrapper of this project, in the settings in which any action is legal."""
    found = [
        (name, one)
        for name, one in inspect.getmembers(envs.wrappers, inspect.isclass)
        if issubclass(one, gymnasium.Wrapper) and one.__module__ == "envs.wrappers"
    ]
    assert {"ClampSlot", "TokenActions"} <= {name for name, _ in found}
    return [*found, ("forbid", lambda env: envs.TokenActions(env, outside="forbid"))]


@pytest.mark.parametrize("render_mode", [None, "ansi", "human"])
@pytest.mark.parametrize(("name", "wrapper"), wrapped())
@pytest.mark.parametrize("id_", IDS)
def test_both_checkers_pass_without_a_warning(id_: str, name: str, wrapper: Any, render_mode: str | None) -> None:
    # Checkers sample without a mask; nothing is outside where every token always has the same probability and p = 1.
    even = {"teacher": TableTeacher(np.full((6, 6), 1 / 6)), "top_p": 1.0, "max_candidates": None}
    options: dict[str, Any] = {"render_mode": render_mode, **(even if name == "forbid" else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped")
        check_env(wrapper(make(id_, **options)))
        sb3_check_env(wrapper(make(id_, **options)))


@pytest.mark.parametrize("id_", IDS)
def test_the_passive_checker_of_make_has_nothing_to_say(id_: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(id_, disable_env_checker=False, render_mode="ansi")
        assert "PassiveEnvChecker" in str(env)
        for outer in (env, envs.TokenActions(make(id_, disable_env_checker=False))):
            outer.reset(seed=0, options={"prompt": [5]})
            for action in (3, 3):  # slot 3, and token 3, at 5; then slot 0 alone
                outer.step(min(action, int(outer.unwrapped.vector.candidates.sizes[0]) - 1))
        assert isinstance(env.render(), str)
        env.close()


def test_a_broken_environment_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see a seed that is not heeded."""
    reset = envs.TopPTokenEnv.reset
    monkeypatch.setattr(envs.TopPTokenEnv, "reset", lambda self, *, seed=None, options=None: reset(self))
    with pytest.raises(AssertionError, match="seed"), warnings.catch_warnings(action="ignore"):
        check_env(envs.ClampSlot(make()))
