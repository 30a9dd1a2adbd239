"""Bad input: one clear error each, that names the value, the limit and the remedy, and changes nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, InvalidAction, ResetNeeded

import envs
from envs.checks import SHOWN
from envs.errors import InputError
from tests.envs.models import twentieths

ID = "tdistill/TopPToken-v0"
TABLE = twentieths()
MAKE: dict[str, Any] = {"teacher": TABLE, "prompts": [[1], [2], [3], [5]], "top_p": 0.8, "max_new_tokens": 4}


def single(**kwargs: Any) -> Any:
    return envs.TopPTokenEnv(**{**MAKE, **kwargs})


def made(**kwargs: Any) -> Any:
    return gymnasium.make(ID, **{**MAKE, **kwargs})


def vector(rows: Any = 3, **kwargs: Any) -> Any:
    return envs.TopPTokenVectorEnv(rows, **{**MAKE, **kwargs})


FACES = [single, made, vector]


def core_of(env: Any) -> envs.TopPTokenVectorEnv:
    return env if isinstance(env, envs.TopPTokenVectorEnv) else env.unwrapped.vector


def state_of(env: Any) -> list[Any]:
    core = core_of(env)
    generator = env.np_random.bit_generator.state
    return [
        core._context.tolist(),
        core._length.tolist(),
        core._token.tolist(),
        core._ended.tolist(),
        core.prompt_index.tolist(),
        core.log_probs.tolist(),
        core.candidates.ids.tolist(),
        generator,
        env.unwrapped.np_random_seed,
        list(core._deck._queue),
    ]


def assert_refused(env: Any, call: Callable[[], Any], error: type[Exception], says: str) -> None:
    """One error that says this, on one line; the state is what it was, and a legal step goes on."""
    before = state_of(env)
    with pytest.raises(error, match=says) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert state_of(env) == before
    core = core_of(env)
    env.step(np.zeros(core.num_envs, dtype=np.int64) if env is core else 0)


# actions


@pytest.mark.parametrize("method", ["step", "step_tokens"])
@pytest.mark.parametrize(
    ("actions", "says"),
    [
        ([0.0, 0.0, 0.0], r"\[0.0, 0.0, 0.0\] are of dtype float64; give one KIND a row, integers of shape \(3,\)"),
        (np.array([0.0, np.nan, 0.0]), "nan.* are of dtype float64"),
        (torch.zeros(3), "dtype float32"),
        ([True, False, True], "dtype bool"),
        (torch.zeros(3, dtype=torch.bool), "dtype bool"),
        (["0", "1", "0"], "dtype <U1"),
        ("000", "dtype <U3"),
        (None, "None are of dtype object"),
        ([None, 0, 0], "dtype object"),
        ([2**70, 0, 0], "dtype object"),
        ([0, 0], r"are of shape \(2,\); give one KIND a row, integers of shape \(3,\)"),
        ([0, 0, 0, 0], r"shape \(4,\)"),
        ([[0], [0], [0]], r"shape \(3, 1\)"),
        ([[0, 0, 0]], r"shape \(1, 3\)"),
        ([[0, 0], [0], [0]], "are no array"),
        (0, r"shape \(\)"),
        (np.int64(1), r"shape \(\)"),
        (np.zeros(1000, dtype=np.int64), r"… are of shape \(1000,\)"),
    ],
)
def test_actions_of_another_shape_or_dtype(actions: Any, says: str, method: str) -> None:
    env = vector()
    env.reset(seed=0)
    kind = "slot" if method == "step" else "token"
    assert_refused(env, lambda: getattr(env, method)(actions), InvalidAction, says.replace("KIND", kind))


@pytest.mark.parametrize(
    "actions",
    [
        (0, 0, 0),
        np.zeros(3, np.uint8),
        torch.zeros(3, dtype=torch.int32),
        np.zeros(6, int)[::-2],
        np.broadcast_to(0, 3),
    ],
)
def test_integers_of_any_width_and_stride_are_actions(actions: Any) -> None:
    env = vector()
    env.reset(seed=0)
    with warnings.catch_warnings(action="error"):
        assert (env.step(actions)[0]["length"] == 2).all()


@pytest.mark.parametrize("wrapper", [lambda env: env, envs.ClampSlot, envs.TokenActions, "forbid"])
@pytest.mark.parametrize(
    "action", [0.0, np.nan, True, np.bool_(True), "0", None, [0], [[0]], np.zeros(1, int), 2**70, {}]
)
def test_an_action_of_one_episode_is_one_integer(action: Any, wrapper: Any) -> None:
    env = envs.TokenActions(made(), outside="forbid") if wrapper == "forbid" else wrapper(made())
    env.reset(seed=0)
    kind = "token" if isinstance(env, envs.TokenActions) else "slot"
    says = f"action {re.escape(repr(action))} is no {kind}; give one integer"
    before = state_of(env)
    with pytest.raises(InvalidAction, match=says):
        env.step(action)
    assert state_of(env) == before


def test_zero_dimensional_arrays_are_integers() -> None:
    for action in (np.array(0), torch.tensor(0), np.int32(0), np.uint8(0)):
        env = made()
        env.reset()
        env.step(action)


@pytest.mark.parametrize("slot", [3, 6, 99, -1])
@pytest.mark.parametrize("face", FACES)
def test_a_padding_slot(face: Callable[..., Any], slot: int) -> None:
    env = face()
    env.reset(seed=0, options={"prompt": [1]})  # three candidates
    action = np.full(3, slot) if face is vector else slot
    says = f"slot {slot} of row 0 has no candidate; it has 3, from slot 0: choose by `mask`"
    assert_refused(env, lambda: env.step(action), InvalidAction, says)


@pytest.mark.parametrize("token", [6, -1])
def test_a_token_of_no_vocabulary(token: int) -> None:
    env = vector()
    env.reset(seed=0)
    assert_refused(env, lambda: env.step_tokens(np.full(3, token)), InvalidAction, f"token {token} of row 0.* of 6")
    one = made()
    one.reset(seed=0, options={"prompt": [1]})
    assert_refused(one, lambda: one.unwrapped.step_token(token), InvalidAction, f"token {token} of row 0")
    one.reset(seed=0, options={"prompt": [1]})
    assert_refused(one, lambda: envs.TokenActions(one).step(token), InvalidAction, f"token {token} of row 0")


def test_a_token_outside_the_set_where_that_is_forbidden() -> None:
    env = envs.TokenActions(made(), outside="forbid")
    env.reset(options={"prompt": [1]})
    for token in (5, 6, -1):
        before = state_of(env)
        with pytest.raises(InvalidAction, match=f"token {token} is outside the set of 3; choose by .*outside='pay'"):
            env.step(token)
        assert state_of(env) == before
    for word in ("refuse", "drop", None):
        with pytest.raises(InputError, match=f"outside = {word!r} is neither 'pay' nor 'forbid'"):
            envs.TokenActions(made(), outside=word)


# order


@pytest.mark.parametrize("face", FACES)
def test_a_step_before_the_first_reset(face: Callable[..., Any]) -> None:
    env = face()
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(3, dtype=np.int64) if face is vector else 0)
    if face is vector:
        with pytest.raises(ResetNeeded, match="no state yet; call reset first"):
            env.step_tokens(np.zeros(3, dtype=np.int64))
    else:
        with pytest.raises(ResetNeeded, match="no state yet; call reset first"):
            env.unwrapped.step_token(0)
        for outer in (envs.ClampSlot(env), envs.TokenActions(env), envs.TokenActions(env, outside="forbid")):
            with pytest.raises(ResetNeeded, match="reset"):
                outer.step(0)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("face", FACES)
def test_nothing_but_closing_goes_on_after_close(face: Callable[..., Any], begun: bool) -> None:
    env = face(render_mode="ansi")
    if begun:
        env.reset(seed=0)
    env.close()
    says = "the environment is closed; make a new one"
    action = np.zeros(3, dtype=np.int64) if face is vector else 0
    calls = [env.reset, lambda: env.reset(seed=1, options={}), lambda: env.unwrapped.step(action)]
    calls += [lambda: core_of(env).step_tokens([0] * core_of(env).num_envs), lambda: core_of(env).log_probs]
    calls += [env.unwrapped.render] + [lambda: env.step(action)] * (begun or face is not made)
    if face is not vector:
        calls += [lambda: env.unwrapped.step_token(0), lambda: envs.ClampSlot(env).step(0)]
        calls += [lambda: envs.TokenActions(env).step(0), lambda: envs.TokenActions(env, outside="forbid").step(0)]
    for call in calls:
        with pytest.raises(ClosedEnvironmentError, match=says):
            call()
    env.close()


def test_a_step_after_the_end_names_the_remedy_of_its_face() -> None:
    for env in (made(), envs.ClampSlot(made()), envs.TokenActions(made()), envs.TokenActions(made(), outside="forbid")):
        env.reset(options={"prompt": [4]})
        assert env.step(0)[2]  # EOS, token 0, has 17 of 20
        with pytest.raises(ResetNeeded, match="the episode has ended; call reset to begin another"):
            env.step(0)
        env.reset(options={"prompt": [1]})
        env.step(2)
    rows = vector(2, autoreset_mode="disabled")
    rows.reset(options={"prompts": [[4], [1]]})
    rows.step([0, 0])
    before = state_of(rows)
    for call in (rows.step, rows.step_tokens):
        with pytest.raises(ResetNeeded, match=r'row 0 has ended; reset it with options={"reset_mask": ...}'):
            call([0, 0])
        assert state_of(rows) == before


# resets


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"options": {"promt": [1]}}, "reset has no option 'promt'; did you mean 'prompt'"),
        ({"options": {"seed": 3}}, "reset has no option 'seed'.*known: .*prompt"),
        ({"options": {3: 4}}, "reset has no option 3"),
        ({"options": "prompt"}, "options = 'prompt' is no dict; give options="),
        ({"options": [("prompt", [1])]}, "is no dict"),
        ({"options": {"prompt": [1], "prompts": [[1]] * 3}}, "'?prompts'?"),
        ({"options": {"prompt": []}}, "prompt 0 has 0 tokens"),
        ({"options": {"prompt": [1] * 2}}, "prompt 0 has 2 tokens, the limit is 1 .*shorten it"),
        ({"options": {"prompt": [6]}}, "outside the vocabulary of 6"),
        ({"options": {"prompt": [-1]}}, "prompt 0 holds -1, which is no token id"),
        ({"options": {"prompt": [1.0]}}, "prompt 0 holds 1.0, which is no token id; give whole numbers"),
        ({"options": {"prompt": [True]}}, "prompt 0 holds True"),
        ({"options": {"prompt": ["1"]}}, "prompt 0 holds '1'"),
        ({"options": {"prompt": "w1"}}, "'w1' is no text of 'twentieths'"),
        ({"options": {"prompt": ""}}, "a prompt is empty"),
        ({"options": {"prompt": 3}}, "prompt 0 is a int"),
        ({"seed": "3"}, "seed = '3' is no whole number; give an integer of at least 0"),
        ({"seed": 3.0}, "seed = 3.0 is no whole number"),
        ({"seed": np.nan}, "seed = nan"),
        ({"seed": True}, "seed = True"),
        ({"seed": -1}, "seed = -1 is below 0"),
        ({"seed": [1, 2, 3]}, r"seed = \[1, 2, 3\].*one seed"),
        ({"seed": 3, "options": {"prompt": [6]}}, "outside the vocabulary"),
    ],
)
def test_resets_that_are_refused(face: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    env = face()
    env.reset(seed=0)
    env.reset()
    assert_refused(env, lambda: env.reset(**given), InputError, says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": [[1]]}, "1 prompts were given for 3 rows; give one a row"),
        ({"prompts": "1 2"}, "prompts = '1 2' is no list; give one prompt a row, 3 of them"),
        ({"prompts": 3}, "prompts = 3 is no list"),
        ({"prompts": [[1], [1] * 5, [1]]}, "prompt 1 has 5 tokens, the limit is 1"),
        ({"prompts": [[1], "1", [1]]}, "prompt 1 is a str among others"),
        ({"prompt": [1], "prompts": [[1]] * 3}, "both 'prompt', one for every row, and 'prompts', one a row"),
        ({"reset_mask": np.ones(2, bool)}, r"of shape \(2,\) and dtype bool; give a bool array of shape \(3,\)"),
        ({"reset_mask": np.ones((3, 1), bool)}, r"shape \(3, 1\)"),
        ({"reset_mask": True}, r"shape \(\)"),
        ({"reset_mask": np.ones(3)}, "dtype float64"),
        ({"reset_mask": [0, 1, 2]}, "dtype int64"),
        ({"reset_mask": [[True], [True, False], []]}, "no array"),
        ({"reset_mask": np.zeros(3, bool)}, "chooses no row"),
        ({"reset_mask": np.array([True, False, True]), "prompts": [[1]] * 3}, "3 prompts were given for 2 rows"),
        ({"reset_mas": np.ones(3, bool)}, "did you mean 'reset_mask'"),
    ],
)
def test_resets_of_a_vector_that_are_refused(options: dict[str, Any], says: str) -> None:
    env = vector()
    env.reset(seed=0)
    assert_refused(env, lambda: env.reset(seed=1, options=options), InputError, says)


def test_the_first_reset_begins_every_row() -> None:
    env = vector()
    with pytest.raises(ResetNeeded, match="leave reset_mask out"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(options={"reset_mask": np.ones(3, bool)})


def test_one_episode_takes_no_vector_option() -> None:
    for options in ({"prompts": [[1]]}, {"reset_mask": np.ones(1, bool)}):
        with pytest.raises(InputError, match="reset has no option"):
            single().reset(options=options)


def test_a_long_value_is_cut_in_an_error() -> None:
    env = vector()
    env.reset()
    with pytest.raises(InvalidAction) as caught:
        env.step(np.zeros((40, 40)))
    assert "…" in str(caught.value) and len(str(caught.value)) < 3 * SHOWN
