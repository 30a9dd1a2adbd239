"""Arguments and contexts that cannot be used are refused when the environment is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from tests.envs.models import tiny_model, tiny_tokenizer
from tests.envs.test_checks import FACES, assert_refused, vector

SHORT = HFTeacher(tiny_model("llama"), tiny_tokenizer(), name="short")  # a context of 128 tokens


@pytest.mark.parametrize("rows", [0, -1, 2.0, 2.5, "2", None, True, np.nan])
def test_a_number_of_rows_that_is_none(rows: Any) -> None:
    with pytest.raises(InputError, match=f"num_envs = {rows!r} is (below 1|no whole number)"):
        vector(rows)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"top_p": np.nan}, "top_p = nan is no number"),
        ({"top_p": "0.9"}, "top_p = '0.9' is no number"),
        ({"top_p": True}, "top_p = True is no number"),
        ({"top_p": None}, "top_p = None"),
        ({"top_p": 1.1}, r"top_p = 1.1 is outside \(0, 1\]"),
        ({"gamma": np.nan}, "gamma = nan is no number"),
        ({"gamma": "1"}, "gamma = '1' is no number"),
        ({"gamma": -0.1}, r"gamma = -0.1 is outside \[0, 1\]"),
        ({"max_candidates": 2.0}, "max_candidates = 2.0 is no whole number"),
        ({"max_candidates": "64"}, "max_candidates = '64'"),
        ({"max_candidates": 0}, "max_candidates = 0 is below 1"),
        ({"max_new_tokens": 4.5}, "max_new_tokens = 4.5 is no whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0 is below 1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens = 0 is below 1"),
        ({"max_prompt_tokens": 8.0}, "max_prompt_tokens = 8.0 is no whole number"),
        ({"max_prompt_tokens": "8"}, "max_prompt_tokens = '8' is no whole number"),
        ({"stop_strings": ["", "a"]}, "a stop string is empty"),
        ({"stop_strings": [1]}, "stop string 1 is a int; give texts"),
        ({"prompts": [[1], [1.5]]}, "prompt 1 holds 1.5"),
        ({"render_mode": "rgb_array"}, "'rgb_array' is none of 'ansi', 'human' and None"),
        ({"reward": "logprop"}, "did you mean 'logprob'"),
    ],
)
def test_arguments_that_are_refused(face: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    # Gymnasium warns of a render mode by itself.
    with pytest.raises(InputError, match=says) as caught, warnings.catch_warnings(action="ignore"):
        face(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["later", None, 3])
def test_an_autoreset_mode_that_is_none(mode: Any) -> None:
    with pytest.raises(InputError, match=f"autoreset_mode {mode!r} is none of next_step, same_step, disabled"):
        vector(autoreset_mode=mode)


@pytest.mark.parametrize("mode", ["same_step", "SameStep", "SAME_STEP", AutoresetMode.SAME_STEP])
def test_an_autoreset_mode_by_any_of_its_names(mode: Any) -> None:
    assert vector(autoreset_mode=mode).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


# the teacher's context


@pytest.mark.parametrize("face", FACES)
def test_a_prompt_that_leaves_no_room_for_one_token(face: Callable[..., Any]) -> None:
    options = {"teacher": SHORT, "max_new_tokens": 1}
    for prompts in ([[3] * 128], [[3], [3] * 128], [[3], [3] * 200]):
        with pytest.raises(InputError, match=r"prompt \d has \d+ tokens, the limit is 127 .* context of 128"):
            face(**options, prompts=prompts)
    env = face(**options, prompts=[[3], [3] * 127])
    env.reset(seed=0)
    assert_refused(
        env, lambda: env.reset(options={"prompt": [3] * 128}), InputError, "has 128 tokens, the limit is 127"
    )
    env.reset(options={"prompt": [3] * 127})
    result = env.step(np.zeros(3, dtype=np.int64) if face is vector else 0)
    assert np.all(result[2] | result[3])


@pytest.mark.parametrize("face", FACES)
def test_a_context_shorter_than_asked(face: Callable[..., Any]) -> None:
    options = {"teacher": SHORT, "prompts": [[3] * 10, [3] * 100]}
    with pytest.raises(InputError, match=r"max_prompt_tokens = 128, but .* context of 128 tokens .* 127 .*lower it"):
        face(**options, max_prompt_tokens=128)
    with pytest.raises(InputError, match=r"max_new_tokens = 119 .* 128 .* shortest prompt of 10; lower it to 118"):
        face(**options, max_new_tokens=119)
    env = face(**options, max_prompt_tokens=127, max_new_tokens=118)  # the long prompt's episodes are truncated
    env.reset(seed=0, options={"prompt": [3] * 127})
    over = env.step(np.zeros(3, dtype=np.int64) if face is vector else 0)
    assert np.all(over[2] | over[3])
