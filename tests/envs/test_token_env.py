"""The one-episode face and its wrappers, as both checkers and a newcomer use them."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded

import envs
from envs.errors import InputError
from envs.table_teacher import toy
from tests.envs.models import twentieths

MAKE = {"teacher": twentieths(), "prompts": [[1], [2]], "top_p": 0.8, "max_new_tokens": 5}


def make(**kwargs: object) -> gymnasium.Env:
    return gymnasium.make("tdistill/TopPToken-v0", **{**MAKE, **kwargs})


def test_a_random_masked_agent_reaches_the_end() -> None:
    env = make()
    observation, info = env.reset(seed=0)
    env.action_space.seed(0)
    total, done = 0.0, False
    while not done:
        assert env.observation_space.contains(observation)
        slot = env.action_space.sample(mask=info["action_mask"])
        observation, reward, terminated, truncated, info = env.step(slot)
        assert isinstance(reward, float) and reward < 0
        assert type(terminated) is bool and type(truncated) is bool
        total, done = total + reward, terminated or truncated
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_a_named_teacher_survives_the_round_trip_of_a_spec() -> None:
    env = make(teacher="table:toy")
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    first, second = env.reset(seed=5)[0], again.reset(seed=5)[0]
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_teacher_object_is_never_copied() -> None:
    teacher = twentieths()
    env = make(teacher=teacher)
    assert env.unwrapped.vector.teacher is teacher
    assert copy.deepcopy(env.spec).kwargs["teacher"] is teacher


def test_the_prompt_can_be_chosen() -> None:
    env = make(render_mode="ansi")
    observation, _ = env.reset(options={"prompt": [2]})
    assert observation["context"][0] == 2 and observation["length"] == 1
    env.step(0)
    shown = env.render()
    assert shown.startswith("2\n▸ ⟦1⟧") and "45.0%" in shown


def test_every_state_is_printed_in_human_mode(capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode="human", max_new_tokens=1)
    env.reset(options={"prompt": [4]})
    env.step(0)
    printed = capsys.readouterr().out
    assert "⏹" in printed and "the text has ended" in printed
    assert env.unwrapped.render() is None
    with pytest.raises(ResetNeeded, match="render_mode"):
        envs.TopPTokenEnv(**MAKE).render()


def test_many_candidates_are_summed_up() -> None:
    from envs.rendering import render_state

    shown = render_state(toy(), [1], [], [(token % 6, float(np.log(0.1))) for token in range(10)])
    assert "20.0% 2 more candidates" in shown


def test_a_clamped_slot_is_taken_modulo_the_candidates() -> None:
    env = envs.ClampSlot(make())
    env.reset(options={"prompt": [1]})  # three candidates: tokens 2, 3, 4
    assert env.step(4)[4]["token"] == 3


def test_token_actions_pay_outside_or_forbid() -> None:
    env = envs.TokenActions(make())
    assert env.action_space.n == 6
    env.reset(options={"prompt": [1]})
    _, reward, _, _, info = env.step(5)
    assert reward == pytest.approx(np.log(1 / 20)) and info["in_set"] is False
    strict = envs.TokenActions(make(), outside="forbid")
    strict.reset(options={"prompt": [1]})
    with pytest.raises(InvalidAction, match="token 5 is outside"):
        strict.step(5)
    assert strict.step(2)[4]["in_set"] is True
    with pytest.raises(InputError, match="neither"):
        envs.TokenActions(make(), outside="drop")


def test_one_episode_has_no_rows() -> None:
    with pytest.raises(InputError, match="make_vec"):
        make(num_envs=2)
    with pytest.raises(AttributeError, match="nonsense"):
        envs.nonsense  # noqa: B018
