"""Specs go to files and other processes; wrapping an environment copies no teacher."""

from __future__ import annotations

import json
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import envs
from envs.hf_teacher import HFTeacher
from envs.teachers import load_teacher
from tests.envs.models import tiny_model, tiny_tokenizer, twentieths
from tests.envs.test_gymnasium import MAKE, assert_same, make, make_vec

TABLE = twentieths()


def test_specs_of_named_teachers_go_through_json_and_pickle_with_their_wrappers() -> None:
    env = envs.ClampSlot(TimeLimit(make(), 3))
    tokens = envs.TokenActions(make(), outside="forbid")
    for made in (env, tokens, make()):
        assert made.spec is not None
        for again in (EnvSpec.from_json(made.spec.to_json()), pickle.loads(pickle.dumps(made.spec))):
            remade = gymnasium.make(again)
            assert str(remade) == str(made) and remade.action_space == made.action_space
            one, other = made.reset(seed=5), remade.reset(seed=5)
            assert_same(one[0], other[0])
            assert_same(one[1], other[1])
            assert made.unwrapped.vector.teacher is remade.unwrapped.vector.teacher
    remade = gymnasium.make(EnvSpec.from_json(tokens.spec.to_json()))
    remade.reset(options={"prompt": [1]})
    with pytest.raises(InvalidAction):  # "forbid" came along
        remade.step(5)


def test_specs_of_vectors_go_through_json_and_pickle() -> None:
    env = make_vec(2, "same_step")
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gymnasium.make_vec(spec)
        assert again.num_envs == 2 and again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert_same(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_what_a_teacher_object_cannot_do_is_said() -> None:
    teacher = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="mine")
    env = make(teacher=teacher)
    with pytest.raises(TypeError, match="HFTeacher is not JSON serializable"):
        env.spec.to_json()
    with pytest.raises(pickle.PicklingError, match=r"'mine' was given as an object.*save_pretrained.*directory"):
        pickle.dumps(env.spec)
    by_value = pickle.loads(pickle.dumps(make(teacher=TABLE).spec))  # a table is a few numbers
    assert np.array_equal(by_value.kwargs["teacher"].table, TABLE.table)


def test_a_teacher_loaded_by_name_is_pickled_by_name() -> None:
    teacher = load_teacher("embedded")
    packed = pickle.dumps(make(teacher=teacher, prompts=["Hello"]).spec)
    assert len(packed) < 2000 and pickle.loads(packed).kwargs["teacher"] is teacher


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.parametrize("given_as", ["object", "pair", "name"])
def test_ten_wrappers_copy_no_teacher(given_as: str) -> None:
    """By identity, by the address of the weights, and by the memory of the process: a copy would be 40 MB."""
    model = tiny_model("llama")
    weights = 10_000_000 * 4
    model.ballast = torch.nn.Parameter(torch.ones(10_000_000))
    pair = (model, tiny_tokenizer())
    teacher: Any = {"object": HFTeacher(*pair), "pair": pair, "name": "embedded"}[given_as]
    env = make(teacher=teacher, prompts=[[3]])
    assert env.spec is not None
    held, before = env.unwrapped.vector.teacher, resident()
    layers = []
    for number in range(10):
        env = RecordEpisodeStatistics(env) if number % 2 else TimeLimit(env, 100)
        assert env.spec is not None and env.spec.kwargs["teacher"] is (teacher if given_as != "pair" else held)
        layers.append(env.spec)
    remade = gymnasium.make(layers[-1])
    assert remade.unwrapped.vector.teacher is held
    address = next(held.model.parameters()).data_ptr()
    assert next(remade.unwrapped.vector.teacher.model.parameters()).data_ptr() == address
    assert resident() - before < weights / 2


def test_a_spec_is_json() -> None:
    assert json.loads(make().spec.to_json())["kwargs"]["prompts"] == MAKE["prompts"]
