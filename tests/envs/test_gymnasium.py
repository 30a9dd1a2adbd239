"""Gymnasium's own tools take the environment as one of theirs: make, vectorisers, wrappers, checkers, specs."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeReward,
    TransformReward,
)
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorRecordEpisodeStatistics

import envs
import envs.wrappers
from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from tests.envs.models import tiny_model, tiny_tokenizer, twentieths

ID = "tdistill/TopPToken-v0"
MAKE: dict[str, Any] = {"teacher": "table:toy", "prompts": [[1], [5, 3], [2]], "top_p": 0.8, "max_new_tokens": 5}
MODES = ["next_step", "same_step", "disabled"]
TABLE = twentieths()


def make(name: str = ID, **kwargs: Any) -> gymnasium.Env:
    return gymnasium.make(name, **{**MAKE, **kwargs})


def make_vec(rows: int = 3, mode: str = "next_step", **kwargs: Any) -> VectorEnv:
    return gymnasium.make_vec(
        ID, num_envs=rows, vectorization_mode="vector_entry_point", autoreset_mode=mode, **{**MAKE, **kwargs}
    )


def legal(rng: np.random.Generator, observations: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([rng.integers(max(1, count)) for count in observations["mask"].sum(1)])


# make


@pytest.mark.parametrize("name", [ID, f"envs:{ID}"])
def test_make_gives_the_environment_and_its_spec(name: str) -> None:
    env = make(name)
    assert isinstance(env.unwrapped, envs.TopPTokenEnv) and env.spec is not None and env.spec.id == ID
    assert env.spec.kwargs["top_p"] == 0.8 and env.unwrapped.spec is not None and "TopPToken-v0" in str(env)
    observation, info = env.reset(seed=3)
    assert observation in env.observation_space and info["token"] == -1


def test_make_vec_takes_every_way_of_vectorising() -> None:
    kinds = {"vector_entry_point": envs.TopPTokenVectorEnv, "sync": SyncVectorEnv, "async": AsyncVectorEnv}
    assert type(gymnasium.make_vec(ID, num_envs=2, **MAKE)) is envs.TopPTokenVectorEnv
    seen = []
    for way, kind in kinds.items():
        env = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=way, **{**MAKE, "prompts": [[1]]})
        assert type(env) is kind and env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert env.single_action_space.n == 6 and env.observation_space["context"].shape == (2, 6)
        env.reset(seed=0)
        observations, *_ = env.step(np.array([1, 0]))
        seen.append(observations)
        env.close()
    assert seen[0]["context"][:, 1].tolist() == [0, 3] and seen[0]["length"].tolist() == [2, 2]
    for other in seen[1:]:
        assert all(np.array_equal(seen[0][key], other[key]) for key in seen[0])


@pytest.mark.parametrize(("context", "count"), [("fork", 2), ("spawn", 1)])
def test_async_processes_share_observations_and_give_what_sync_gives(context: str, count: int) -> None:
    """A spawned process gets the arguments by pickle: a named teacher is loaded again there."""

    def rows(kind: Callable[..., VectorEnv], **kwargs: Any) -> list[Any]:
        env = kind([partial(gymnasium.make, f"envs:{ID}", **MAKE)] * count, **kwargs)
        rng, seen = np.random.default_rng(0), []
        observations, infos = env.reset(seed=4)
        for _ in range(8):
            observations, rewards, terminated, truncated, infos = env.step(legal(rng, observations))
            seen += [*observations.values(), rewards, terminated, truncated, infos["action_mask"], infos["lost_mass"]]
        env.close()
        return seen

    pairs = zip(rows(SyncVectorEnv), rows(AsyncVectorEnv, context=context, shared_memory=True), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


THREADED = f"""
import gymnasium, torch
from functools import partial
from gymnasium.vector import AsyncVectorEnv
torch.set_num_threads(2)
torch.randn(512, 2048).log_softmax(-1).sum()  # by both of them
env = AsyncVectorEnv([partial(gymnasium.make, "envs:{ID}", teacher="table:toy", prompts=[[1]])] * 2, context="fork")
env.reset(seed=0)
env.close()
"""


def test_forked_processes_do_not_wait_for_threads_that_are_not_there() -> None:
    subprocess.run([sys.executable, "-c", THREADED], check=True, timeout=120, capture_output=True)


# the three autoreset modes, against Gymnasium's SyncVectorEnv of single environments


class Told(gymnasium.Wrapper):
    """A single environment whose resets begin with the prompts that a vector environment has just dealt to its row."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.waiting: list[list[int]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=options or {"prompt": self.waiting.pop(0)})


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The same keys and masks; the same values and kinds of number wherever a mask says that there is one."""
    assert ours.keys() == theirs.keys()
    for key, wanted in theirs.items():
        if key.startswith("_"):
            assert ours[key].dtype == np.bool_ and ours[key].tolist() == wanted.tolist(), key
        elif isinstance(wanted, dict):
            assert_same_infos(ours[key], wanted)
        else:
            assert ours[key].dtype.kind == wanted.dtype.kind and ours[key].shape == wanted.shape, key
            for row in theirs[f"_{key}"].nonzero()[0]:
                assert_same(ours[key][row], wanted[row])


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    else:
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype or np.isscalar(theirs)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
def test_every_row_is_a_row_of_gymnasiums_own_sync_vector_env(mode: str) -> None:
    rows = 4
    ours = make_vec(rows, mode)
    theirs = SyncVectorEnv([lambda: Told(make())] * rows, autoreset_mode=AutoresetMode[mode.upper()])
    core, rng, resets, ends = ours.unwrapped, np.random.default_rng(1), 0, set()

    def tell(begun: np.ndarray) -> None:
        for row in begun.nonzero()[0]:
            theirs.envs[row].waiting.append(core.prompt_tokens(row))

    observations, infos = ours.reset(seed=7)
    tell(np.ones(rows, dtype=bool))
    their_observations, their_infos = theirs.reset()
    assert_same(observations, their_observations)
    assert_same_infos(infos, their_infos)
    over = np.zeros(rows, dtype=bool)
    for _ in range(60):
        slots = legal(rng, observations)
        result = ours.step(slots)
        begun = over if mode == "next_step" else (result[2] | result[3]) & (mode == "same_step")
        tell(begun)
        their_result = theirs.step(slots)
        for one, other in zip(result[:4], their_result[:4], strict=True):
            assert_same(one, {**other} if isinstance(other, dict) else other.astype(one.dtype))
        assert_same_infos(result[4], their_result[4])
        observations, over = result[0], result[2] | result[3]
        resets += int(over.sum())
        ends |= {(bool(a), bool(b)) for a, b in zip(result[2], result[3], strict=True)}
        if mode == "disabled" and over.any():
            observations, infos = ours.reset(options={"reset_mask": over})
            tell(over)
            their_observations, their_infos = theirs.reset(options={"reset_mask": over.copy()})
            assert_same(observations, their_observations)
            assert_same_infos(infos, their_infos)
    assert resets > 20 and ends == {(False, False), (True, False), (False, True)}


def test_the_infos_of_a_masked_reset_mark_its_rows_and_hold_every_row() -> None:
    env = make_vec(3, "disabled")
    env.reset(options={"prompts": [[1], [1], [5]]})
    slots = np.array([0, 1, 0])  # row 1 takes EOS
    *_, before = env.step(slots)
    _, infos = env.reset(options={"reset_mask": np.array([False, True, False]), "prompt": [2]})
    assert infos["_token"].tolist() == infos["_action_mask"].tolist() == [False, True, False]
    assert infos["action_mask"].any(1).all() and infos["token"].tolist() == [before["token"][0], -1, before["token"][2]]
    slots = env.action_space.sample(mask=tuple(infos["action_mask"]))
    assert not env.step(slots)[2][1] or slots[1] == 0  # state 2: slot 0 is EOS


def test_final_infos_are_arrays_of_numbers_and_flags() -> None:
    env = make_vec(2, "same_step")
    env.reset(options={"prompt": [1]})
    *_, infos = env.step(np.array([1, 0]))
    final = infos["final_info"]
    assert {key: final[key].dtype for key in final if key[0] != "_"} == {
        "action_mask": np.dtype("int8"),
        "token": np.dtype("int64"),
        "lost_mass": np.dtype("float64"),
        "cut": np.dtype("bool"),
        "in_set": np.dtype("bool"),
    }
    assert infos["_final_info"].tolist() == final["_token"].tolist() == [True, False]
    assert final["token"][0] == 0 and infos["final_obs"][1] is None


# reset options


def test_prompts_are_chosen_for_one_row_for_all_and_for_each() -> None:
    env = make_vec(2)
    observations, _ = env.reset(options={"prompt": "5 3"})
    assert observations["context"][:, :2].tolist() == [[5, 3], [5, 3]]
    observations, _ = env.reset(options={"prompts": [[1], [4, 2]]})
    assert observations["context"][:, :2].tolist() == [[1, 0], [4, 2]]
    for single in (make(), gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", **MAKE)):
        observation, _ = single.reset(options={"prompt": np.array([5, 3])})
        assert observation["context"].reshape(-1, 7)[0, :2].tolist() == [5, 3]


# wrappers


def test_statistics_of_one_episode() -> None:
    env = RecordEpisodeStatistics(make())
    _, info = env.reset(seed=0)
    total, steps, done = 0.0, 0, False
    env.action_space.seed(1)
    while not done:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample(mask=info["action_mask"]))
        total, steps, done = total + reward, steps + 1, terminated or truncated
    assert info["episode"]["r"] == pytest.approx(total) and info["episode"]["l"] == steps > 1


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_a_vector(mode: str) -> None:
    env = VectorRecordEpisodeStatistics(make_vec(3, mode))
    rng = np.random.default_rng(0)
    observations, _ = env.reset(seed=2)
    returns, lengths, waiting, seen = np.zeros(3), np.zeros(3, dtype=int), np.zeros(3, dtype=bool), 0
    for _ in range(40):
        observations, rewards, terminated, truncated, infos = env.step(legal(rng, observations))
        acting = ~waiting  # a row that next-step autoreset begins anew took no step
        assert not rewards[waiting].any()
        returns, lengths = returns + rewards, lengths + acting
        over = terminated | truncated
        assert ("episode" in infos) == over.any()
        for row in over.nonzero()[0]:
            assert infos["_episode"][row] and infos["episode"]["l"][row] == lengths[row]
            assert infos["episode"]["r"][row] == pytest.approx(returns[row], rel=1e-6)
            seen += 1
        returns[over], lengths[over] = 0, 0
        waiting = over if mode == "next_step" else np.zeros(3, dtype=bool)
        if mode == "disabled" and over.any():
            observations, _ = env.reset(options={"reset_mask": over})
    assert seen == env.episode_count > 10 and max(env.length_queue) <= 5


@pytest.mark.parametrize("mode", MODES)
def test_other_vector_wrappers(mode: str) -> None:
    plain, rng = make_vec(3, mode), np.random.default_rng(0)
    doubled = TransformReward(make_vec(3, mode), lambda rewards: 2 * rewards)
    listed, normal = DictInfoToList(make_vec(3, mode)), NormalizeReward(make_vec(3, mode))
    everyone = (plain, doubled, listed, normal)
    observations, *_ = [env.reset(seed=0)[0] for env in everyone]
    for _ in range(12):
        slots = legal(rng, observations)
        results = [env.step(slots) for env in everyone]
        observations, rewards, terminated, truncated, infos = results[0]
        np.testing.assert_array_equal(results[1][1], 2 * rewards)
        assert np.isfinite(results[3][1]).all() and not (results[3][1] > 0).any()
        for row, info in enumerate(results[2][4]):
            assert info["token"] == infos["token"][row] and info["action_mask"].shape == (6,)
            assert ("final_obs" in info) == bool(mode == "same_step" and (terminated | truncated)[row])
        if mode == "disabled" and (over := terminated | truncated).any():
            for env in everyone:
                rested, _ = env.reset(options={"reset_mask": over.copy()})
                observations = rested if env is plain else observations


def test_a_time_limit_cuts_inside_and_around_token_actions() -> None:
    forbidding = envs.TokenActions(make(max_episode_steps=1), outside="forbid")
    paying = TimeLimit(envs.TokenActions(make()), 1)
    for env in (forbidding, paying):
        env.reset(options={"prompt": [5]})
        assert env.step(3)[3] is True
    with pytest.raises(InputError, match="TimeLimit stands inside"):
        envs.TokenActions(make(max_episode_steps=1))


# seeds and spaces


def test_seeds_have_gymnasiums_meaning() -> None:
    env = make(prompts=[[token] for token in range(1, 6)] * 4)
    first = [env.reset(seed=9)[0]["context"][0], *(env.reset()[0]["context"][0] for _ in range(7))]
    assert env.unwrapped.np_random_seed == 9 and len(set(first)) > 1
    state = env.unwrapped.np_random.bit_generator.state
    assert first == [env.reset(seed=9)[0]["context"][0], *(env.reset()[0]["context"][0] for _ in range(7))]
    assert env.unwrapped.np_random.bit_generator.state == state and env.unwrapped.np_random_seed == 9
    assert env.reset(seed=np.int64(9))[0]["context"][0] == first[0]


def test_the_generator_of_the_environment_is_the_one_that_orders_prompts() -> None:
    prompts = [[1 + token % 5] * (1 + token % 3) for token in range(15)]
    one, other = (envs.TopPTokenEnv(**{**MAKE, "prompts": prompts}) for _ in range(2))
    for env in (one, other):
        env.np_random = np.random.default_rng(5)
    dealt = [[env.reset()[0]["context"].tolist() for _ in range(30)] for env in (one, other)]
    assert dealt[0] == dealt[1] and one.np_random_seed == -1 and one.np_random is one.vector.np_random
    fresh = envs.TopPTokenEnv(**{**MAKE, "prompts": prompts})
    seed = fresh.np_random_seed
    begun = [fresh.reset()[0]["context"].tolist() for _ in range(15)]
    assert fresh.np_random_seed == seed
    again = envs.TopPTokenEnv(**{**MAKE, "prompts": prompts})
    assert begun == [again.reset(seed=seed if number == 0 else None)[0]["context"].tolist() for number in range(15)]


def test_spaces_sample_by_the_masks() -> None:
    env = make_vec(4, teacher=TABLE)
    _, infos = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(30):
        *_, infos = env.step(env.action_space.sample(mask=tuple(infos["action_mask"])))


@pytest.mark.parametrize("outside", ["forbid", "pay"])
def test_token_actions_sample_by_their_mask_and_stay_inside(outside: str) -> None:
    env = envs.TokenActions(make(), outside=outside)
    env.action_space.seed(0)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        done = False
        while not done:
            mask = info["action_mask"]
            ids = env.unwrapped.vector.candidates.ids[0].tolist()[: mask.sum()]
            assert mask.dtype == np.int8 and mask.shape == (6,) and sorted(ids) == mask.nonzero()[0].tolist()
            token = env.action_space.sample(mask=mask)
            _, _, terminated, truncated, info = env.step(token)
            assert info["in_set"] and info["token"] == token
            done = terminated or truncated
        assert info["action_mask"].any() == truncated


# order and closing


def test_render_before_reset_says_so() -> None:
    for env in (make(render_mode="ansi"), make(render_mode="ansi").unwrapped, make_vec(render_mode="ansi")):
        with pytest.raises(ResetNeeded, match="reset"):
            env.render()


def test_closing_twice_is_closing_once() -> None:
    for env in (
        make(),
        make().unwrapped,
        envs.ClampSlot(make()),
        make_vec(),
        VectorRecordEpisodeStatistics(make_vec()),
    ):
        env.reset(seed=0)
        env.close()
        env.close()
    with make() as env:
        env.reset()
    assert env.unwrapped.vector.closed


def test_closing_lets_go_of_the_walk_with_its_cache() -> None:
    env = make(teacher=HFTeacher(tiny_model("llama"), tiny_tokenizer()), prompts=[[3]])
    env.reset(seed=0)
    walk = weakref.ref(env.unwrapped.vector._walk)
    env.close()
    gc.collect()
    assert walk() is None
