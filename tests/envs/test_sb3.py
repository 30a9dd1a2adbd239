"""The environment is one of Stable-Baselines3's: its contract, its wrappers, its callbacks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

import envs
from envs.errors import InputError
from envs.sb3 import TopPVecEnv
from envs.vector_env import TopPTokenVectorEnv
from tests.envs.models import twentieths

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {
    "teacher": twentieths(),
    "prompts": [[1], [2], [3, 5], [4]],
    "top_p": 0.8,
    "max_new_tokens": 4,
}


def started(rows: int = 5, seed: int = 0, **changes: Any) -> TopPVecEnv:
    env = TopPVecEnv(rows, **{**OPTIONS, **changes})
    env.seed(seed)
    env.reset()
    return env


def drawn(rng: np.random.Generator, env: Any) -> np.ndarray:
    masks = get_action_masks(env)
    slots: np.ndarray = (rng.random(masks.shape) * masks).argmax(1)
    return slots


def test_it_is_the_vector_environment_with_ended_rows_begun_anew() -> None:
    """Step by step equal to the environment inside; and every end is told apart."""
    env, raw = TopPVecEnv(5, **OPTIONS), TopPTokenVectorEnv(5, autoreset_mode="same_step", **OPTIONS)
    env.seed(3)
    observations, (expected, _) = env.reset(), raw.reset(seed=3)
    rng, ends = np.random.default_rng(0), {"cut": 0, "over": 0}
    for _ in range(60):
        for key, value in expected.items():
            np.testing.assert_array_equal(observations[key], value)
            assert observations[key].dtype == env.observation_space[key].dtype
        np.testing.assert_array_equal(env.action_masks(), expected["mask"].astype(bool))
        slots = drawn(rng, env)
        observations, rewards, dones, infos = env.step(slots)
        expected, paid, terminated, truncated, found = raw.step(slots)
        np.testing.assert_array_equal(rewards, paid)
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert rewards.dtype == np.float32 and dones.dtype == bool and len(infos) == 5
        for row, info in enumerate(infos):
            if not dones[row]:
                assert info == {}
                continue
            assert info["TimeLimit.truncated"] is bool(truncated[row])
            ends["cut" if truncated[row] else "over"] += 1
            last = info["terminal_observation"]
            for key, value in found["final_obs"][row].items():
                np.testing.assert_array_equal(last[key], value)
            assert env.observation_space.contains({**last, "length": int(last["length"])})
            assert last["mask"].any() == truncated[row]  # a state that was cut has candidates, one that is over none
    assert min(ends.values()) > 1


def test_replay_bootstraps_cut_rows_and_no_others() -> None:
    env, rng = started(), np.random.default_rng(1)
    buffer = DictReplayBuffer(200, env.observation_space, env.action_space, device="cpu", n_envs=5)
    observations, cut, over = env.reset(), 0, 0
    for _ in range(40):
        slots = drawn(rng, env)
        after, rewards, dones, infos = env.step(slots)
        buffer.add(observations, dict(after), slots, rewards, dones, infos)
        cut += sum(info.get("TimeLimit.truncated", False) for info in infos)
        over += sum("terminal_observation" in info and not info["TimeLimit.truncated"] for info in infos)
        observations = after
    assert buffer.full and buffer.timeouts.sum() == cut > 0
    assert (buffer.dones * (1 - buffer.timeouts)).sum() == over > 0


def test_masks_are_found_through_wrappers() -> None:
    env = started()
    for face in (env, VecMonitor(env), VecCheckNan(VecMonitor(env))):
        assert is_masking_supported(face)
        masks = get_action_masks(face)
        assert masks.shape == (5, 6) and masks.dtype == bool
        np.testing.assert_array_equal(masks, env.action_masks())
        np.testing.assert_array_equal(face.env_method("action_masks", indices=[2])[0], masks[2])


def test_monitor_and_nan_checks_work_on_it() -> None:
    env, rng = VecCheckNan(VecMonitor(started()), raise_exception=True), np.random.default_rng(0)
    env.reset()
    returns, episodes = np.zeros(5), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            _, rewards, dones, infos = env.step(drawn(rng, env))
            returns += rewards
            for row in dones.nonzero()[0]:
                assert infos[row]["episode"]["r"] == pytest.approx(returns[row], abs=1e-4)
                assert 1 <= infos[row]["episode"]["l"] <= 4 and "terminal_observation" in infos[row]
                returns[row], episodes = 0.0, episodes + 1
    assert episodes > 10
    assert not any(env.env_is_wrapped(Monitor))


def test_callbacks_work_on_it(tmp_path: Path) -> None:
    env, exam = VecMonitor(TopPVecEnv(4, **OPTIONS)), VecMonitor(TopPVecEnv(2, **OPTIONS))
    model = MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    evaluate = MaskableEvalCallback(exam, n_eval_episodes=3, eval_freq=8, log_path=str(tmp_path), verbose=0)
    model.learn(64, callback=[evaluate, CheckpointCallback(8, str(tmp_path))])
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].shape == (2, 3)
    assert len(list(tmp_path.glob("rl_model_*_steps.zip"))) == 2


def test_seeds_and_options_reach_the_reset() -> None:
    env = TopPVecEnv(5, **OPTIONS)
    env.seed(5)
    first, on = env.reset(), env.reset()
    env.seed(5)
    np.testing.assert_array_equal(env.reset()["context"], first["context"])
    assert (first["context"] != on["context"]).any()  # without a seed the deck goes on
    env.set_options({"prompts": [[5], [4], [3], [2], [1]]})
    assert env.reset()["context"][:, 0].tolist() == [5, 4, 3, 2, 1]
    env.set_options([{"prompt": [row + 1]} for row in range(5)])
    assert env.reset()["context"][:, 0].tolist() == [1, 2, 3, 4, 5]
    env.set_options({"prompt": "3"})
    assert env.reset()["context"][:, 0].tolist() == [3] * 5


def test_attributes_methods_and_faces(capsys: pytest.CaptureFixture[str]) -> None:
    env = started(render_mode="ansi")
    assert env.render_mode == "ansi" and len(env.render()) == 5 and len(env.env_method("render")) == 5
    assert env.get_attr("top_p") == [0.8] * 5 and not env.has_attr("nothing")
    assert env.env_method("prompt_tokens", 0, indices=0) == [env.env.prompt_tokens(0)]
    env.set_attr("render_mode", None)
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    assert env.unwrapped is env and envs.TopPVecEnv is TopPVecEnv
    started(render_mode="human").render()
    assert capsys.readouterr().out
    env.close()
    env.close()


def test_an_existing_environment_is_taken_as_it_is() -> None:
    raw = TopPTokenVectorEnv(3, autoreset_mode="same_step", **OPTIONS)
    env = TopPVecEnv(raw)
    assert env.env is raw and env.num_envs == 3


BAD = [
    (lambda: TopPVecEnv(2, autoreset_mode="next_step", **OPTIONS), "leave autoreset_mode out"),
    (lambda: TopPVecEnv(TopPTokenVectorEnv(2, **OPTIONS)), "same_step"),
    (lambda: TopPVecEnv(TopPTokenVectorEnv(2, autoreset_mode="same_step", **OPTIONS), top_p=0.5), "its own top_p"),
    (lambda: TopPVecEnv(0, **OPTIONS), "num_envs"),
    (lambda: started().set_attr("top_p", 0.5, indices=[0]), "share one environment"),
]


@pytest.mark.parametrize(("make", "says"), BAD)
def test_what_cannot_be_is_one_error(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_wrong_options_and_steps_are_named() -> None:
    env = TopPVecEnv(2, **OPTIONS)
    for call in (env.action_masks, lambda: env.step(np.zeros(2, dtype=np.int64))):
        with pytest.raises(ResetNeeded):
            call()
    for options, says in (([{"prompt": [1]}], "2 rows"), ([{"prompt": [1]}, {"prompts": [[1]]}], "different options")):
        env.set_options(options)
        with pytest.raises(InputError, match=says):
            env.reset()
    env.set_options()
    env.reset()
    with pytest.raises(InvalidAction, match="no candidate"):
        env.step(np.array([0, 5]))
    assert (env.step(np.array([0, 0]))[1] < 0).all()  # nothing had happened


def test_without_stable_baselines3_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "from envs import *\n"
        "import envs\n"
        "try: envs.TopPVecEnv\n"
        "except envs.InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "pip install tdistill[sb3]" in done.stdout
