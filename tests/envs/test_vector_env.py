"""The vector environment keeps the contracts of the house."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from envs.candidates import PAD_LOGP, normalise, top_p
from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.sequences import last_logits
from envs.table_teacher import toy
from envs.vector_env import TopPTokenVectorEnv
from tests.envs.models import EXACT, VOCABULARY, tiny_model, tiny_tokenizer, twentieths

TEACHERS = {arch: HFTeacher(tiny_model(arch), tiny_tokenizer()) for arch in EXACT}

TWENTIETHS = twentieths()


def toy_env(rows: int = 3, **kwargs: Any) -> TopPTokenVectorEnv:
    options = {"teacher": TWENTIETHS, "prompts": [[1], [2], [3, 5], [4]], "top_p": 0.8, "max_new_tokens": 6}
    return TopPTokenVectorEnv(rows, **{**options, **kwargs})


def random_slots(rng: np.random.Generator, infos: dict[str, Any]) -> np.ndarray:
    counts = infos["action_mask"].sum(1)
    return np.array([rng.integers(max(1, count)) for count in counts])


@pytest.mark.parametrize("arch", EXACT)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_row_at_every_moment_is_that_text_alone(arch: str, seed: int) -> None:
    """Exactness: within 1e-4 nats of the text alone without a cache, and the same set but for ties."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, VOCABULARY, rng.integers(1, 9)).tolist() for _ in range(6)]
    env = TopPTokenVectorEnv(4, teacher=TEACHERS[arch], prompts=prompts, max_new_tokens=7, max_candidates=32)
    observations, infos = env.reset(seed=seed)
    for _ in range(20):
        observations, _, terminated, _, infos = env.step(random_slots(rng, infos))
        for row in range(4):
            if terminated[row]:
                assert not observations["mask"][row].any()
                continue
            text = observations["context"][row, : observations["length"][row]].tolist()
            alone = normalise(last_logits(TEACHERS[arch].model, [text]))[0]
            mask = observations["mask"][row].astype(bool)
            ids = observations["ids"][row, mask]
            assert np.abs(alone[ids].numpy() - observations["logp"][row, mask]).max() <= 1e-4
            wider, narrower = (set(top_p(alone, 0.9 + slack, 32).ids.tolist()) for slack in (1e-4, -1e-4))
            last = float(alone[ids[-1]])
            for token in set(ids.tolist()) ^ set(top_p(alone, 0.9, 32).ids[: mask.sum()].tolist()):
                assert token in wider ^ narrower or abs(float(alone[token]) - last) <= 1e-4


def test_spaces_keys_and_pads() -> None:
    env = toy_env()
    observations, infos = env.reset(seed=0)
    assert {key: (value.dtype, value.shape) for key, value in observations.items()} == {
        "context": (np.dtype("int32"), (3, 8)),
        "length": (np.dtype("int64"), (3,)),
        "ids": (np.dtype("int32"), (3, 6)),
        "logp": (np.dtype("float32"), (3, 6)),
        "mask": (np.dtype("int8"), (3, 6)),
    }
    assert env.observation_space.contains(observations)
    assert infos["action_mask"].dtype == np.int8 and infos["_token"].all()
    pads = observations["mask"] == 0
    assert (observations["logp"][pads] == PAD_LOGP).all() and (observations["ids"][pads] == 0).all()
    assert (np.diff(observations["logp"], axis=1) <= 0).all()


def test_a_step_by_hand() -> None:
    """State 1: 9, 6, 2, 1, 1, 1 twentieths for tokens 2, 3, 4, 0, 1, 5; at p = .8 the set is {2, 3, 4}."""
    env = toy_env(1, prompts=[[1]])
    observations, infos = env.reset()
    assert observations["ids"][0].tolist() == [2, 3, 4, 0, 0, 0]
    assert infos["lost_mass"][0] == pytest.approx(3 / 20)
    observations, rewards, terminated, truncated, infos = env.step(np.array([1]))
    assert rewards[0] == pytest.approx(np.log(6 / 20))
    assert not terminated[0] and not truncated[0]
    assert observations["context"][0].tolist() == [1, 3, 0, 0, 0, 0, 0]
    assert infos["token"][0] == 3 and infos["in_set"][0]
    _, rewards, terminated, truncated, infos = env.step(np.array([0]))  # state 3: EOS has 12 twentieths
    assert rewards[0] == pytest.approx(np.log(12 / 20)) and terminated[0] and not truncated[0]
    assert not infos["action_mask"].any() and infos["lost_mass"][0] == 0


def test_the_budget_truncates_and_leaves_candidates_to_bootstrap_from() -> None:
    env = toy_env(1, prompts=[[1]], max_new_tokens=2)
    env.reset()
    env.step_tokens([2])
    observations, _, terminated, truncated, _ = env.step_tokens([1])
    assert truncated[0] and not terminated[0] and observations["mask"][0].sum() == 3
    env.reset()
    env.step_tokens([2])
    _, _, terminated, truncated, _ = env.step_tokens([0])  # EOS with the last token of the budget
    assert terminated[0] and not truncated[0]


def test_the_context_limit_truncates() -> None:
    env = TopPTokenVectorEnv(1, teacher=TEACHERS["llama"], prompts=[[3] * 119], max_prompt_tokens=126, max_new_tokens=9)
    env.reset(options={"prompts": [[3] * 126]})
    _, _, terminated, truncated, _ = env.step_tokens([4])
    assert not (terminated[0] or truncated[0])
    observations, _, terminated, truncated, _ = env.step_tokens([4])
    assert truncated[0] and observations["length"][0] == 128 and observations["mask"].any()


def test_padding_slots_are_invalid_and_change_nothing() -> None:
    env = toy_env()
    before, infos = env.reset(seed=1)
    slots = np.zeros(3, dtype=np.int64)
    for bad in (int(infos["action_mask"][1].sum()), 6, -1):
        slots[1] = bad
        with pytest.raises(InvalidAction, match=f"slot {bad} of row 1"):
            env.step(slots)
    with pytest.raises(InvalidAction, match="token 6 of row 0"):
        env.step_tokens([6, 0, 0])
    after, *_ = env.step(np.zeros(3, dtype=np.int64))
    assert (after["length"] == before["length"] + 1).all()


def test_tokens_outside_the_set_pay_in_full_and_are_marked() -> None:
    env = toy_env(1, prompts=[[1]])
    env.reset()
    _, rewards, _, _, infos = env.step_tokens([5])
    assert rewards[0] == pytest.approx(np.log(1 / 20)) and not infos["in_set"][0]


def test_next_step_autoreset_refills_a_row_and_ignores_its_action() -> None:
    env = toy_env(2, prompts=[[1], [4]])
    env.reset(seed=0, options={"prompts": [[1], [2]]})
    assert env.prompt_index.tolist() == [-1, -1]
    _, _, terminated, _, _ = env.step_tokens([0, 1])
    assert terminated.tolist() == [True, False]
    observations, rewards, terminated, truncated, infos = env.step(np.array([99, 0]))
    assert rewards[0] == 0 and not (terminated[0] or truncated[0]) and infos["token"][0] == -1
    assert observations["length"].tolist() == [1, 3]
    assert env.prompt_tokens(0) == observations["context"][0, :1].tolist() and env.prompt_index[0] in {0, 1}


def test_same_step_autoreset_keeps_the_last_observation() -> None:
    env = toy_env(2, autoreset_mode="same_step")
    env.reset(options={"prompts": [[1], [2]]})
    observations, rewards, terminated, _, infos = env.step_tokens([0, 1])
    assert terminated.tolist() == [True, False] and rewards[0] == pytest.approx(np.log(1 / 20))
    assert infos["_final_obs"].tolist() == [True, False]
    assert not infos["final_obs"][0]["mask"].any() and infos["final_obs"][0]["length"] == 2
    assert infos["final_info"]["token"][0] == 0
    assert observations["length"][0] == len(env.prompt_tokens(0)) and observations["mask"][0].any()
    assert infos["token"].tolist() == [-1, 1]


def test_without_autoreset_rows_wait_for_a_mask() -> None:
    env = toy_env(2, autoreset_mode="disabled")
    env.reset(options={"prompts": [[1], [2]]})
    env.step_tokens([0, 1])
    with pytest.raises(ResetNeeded, match="row 0 has ended"):
        env.step_tokens([1, 1])
    observations, _ = env.reset(options={"reset_mask": np.array([True, False])})
    assert observations["length"].tolist()[1] == 2
    env.step_tokens([1, 1])


def test_a_seeded_reset_of_some_rows_leaves_the_others_as_they_are() -> None:
    teacher = TEACHERS["llama"]
    env = TopPTokenVectorEnv(2, teacher=teacher, prompts=[[3], [4, 5]], max_new_tokens=9, autoreset_mode="disabled")
    env.reset(options={"prompts": [[3], [4, 5]]})
    env.step_tokens([6, 7])
    env.reset(seed=1, options={"reset_mask": np.array([True, False]), "prompts": [[8]]})
    observations, *_ = env.step_tokens([9, 10])
    for row, text in enumerate(([8, 9], [4, 5, 7, 10])):
        assert observations["context"][row, : len(text)].tolist() == text
        alone = normalise(last_logits(teacher.model, [text]))[0]
        assert (env.log_probs[row] - alone).abs().max() <= 1e-4


def test_a_step_that_failed_half_way_is_not_gone_on_from() -> None:
    model = tiny_model("llama")
    env = TopPTokenVectorEnv(1, teacher=HFTeacher(model, tiny_tokenizer()), prompts=[[3]])
    env.reset()
    healthy = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="hold NaN"):
        env.step_tokens([4])
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step_tokens([4])
    with torch.no_grad():
        model.lm_head.weight.copy_(healthy)
    env.reset(seed=0)
    env.step_tokens([4])


def test_seeds_repeat_episodes_and_every_prompt_comes_once_a_pass() -> None:
    def run(seed: int) -> list[np.ndarray]:
        env, rng = toy_env(), np.random.default_rng(0)
        observations, infos = env.reset(seed=seed)
        seen = [observations["context"]]
        for _ in range(30):
            observations, *_, infos = env.step(random_slots(rng, infos))
            seen.append(observations["context"])
        return seen

    assert all(np.array_equal(a, b) for a, b in zip(run(3), run(3), strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(run(3), run(4), strict=True))
    env = toy_env(4)
    env.reset(seed=0)
    assert sorted(env.prompt_index) == [0, 1, 2, 3]
    first = env.prompt_index.tolist()
    env.reset()
    assert sorted(env.prompt_index) == [0, 1, 2, 3]
    env.reset(seed=0)
    assert env.prompt_index.tolist() == first


def test_observations_are_fresh_arrays() -> None:
    env = toy_env()
    first, _ = env.reset(seed=0)
    kept = {key: value.copy() for key, value in first.items()}
    env.step(np.zeros(3, dtype=np.int64))
    assert all(np.array_equal(first[key], kept[key]) for key in first)


def test_stop_strings_terminate() -> None:
    env = toy_env(1, prompts=[[1]], stop_strings=("2 3",))
    env.reset()
    assert not env.step_tokens([2])[2][0]
    assert env.step_tokens([3])[2][0]


def test_a_callable_reward_pays_at_the_end_whichever_it_is() -> None:
    env = toy_env(2, prompts=[[1]], reward=lambda prompt, reply: float(len(reply.split())), max_new_tokens=2)
    env.reset()
    assert env.step_tokens([2, 0])[1].tolist() == [0.0, 0.0]
    assert env.step_tokens([2, 2])[1][0] == 2.0


def test_gymnasium_makes_it() -> None:
    env = gymnasium.make_vec(
        "tdistill/TopPToken-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        autoreset_mode="next_step",
        teacher=toy(),
        prompts=[[1]],
        top_p=1.0,
        max_candidates=1,
    )
    observations, _ = env.reset(seed=0)
    assert observations["mask"].sum(1).tolist() == [6, 6]
    assert isinstance(env.unwrapped, envs.TopPTokenVectorEnv)


def test_prompts_of_every_kind_are_taken() -> None:
    env = toy_env(1, prompts=["1 2", "3"])
    assert env.max_prompt_tokens == 2
    assert toy_env(1, prompts=[envs.Prompt("4 4 4")]).max_prompt_tokens == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_p": 0.0}, r"outside \(0, 1\]"),
        ({"max_candidates": 0}, "max_candidates = 0"),
        ({"rows": 0}, "num_envs = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"render_mode": "rgb"}, "'rgb'"),
        ({"reward": "logprop"}, "did you mean 'logprob'"),
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"autoreset_mode": "later"}, "'later' is none of"),
        ({"prompts": [[1], [1] * 5], "max_prompt_tokens": 4}, "prompt 1 has 5 tokens, the limit is 4"),
        ({"prompts": [[1], []]}, "prompt 1 has 0 tokens"),
        ({"prompts": [[1], [6]]}, "prompt 1 has ids outside the vocabulary of 6"),
        ({"prompts": []}, "0 prompts"),
        ({"teacher": "table:tiy"}, "did you mean 'toy'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        toy_env(**options)


def test_bad_resets_are_named() -> None:
    env = toy_env(2)
    with pytest.raises(ResetNeeded, match="no state yet"):
        env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match="one seed"):
        env.reset(seed=[1, 2])
    with pytest.raises(InputError, match="1 prompts were given for 2 rows"):
        env.reset(options={"prompts": [[1]]})
    with pytest.raises(InputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, dtype=bool)})


def test_episodes_drawn_from_log_probs_follow_the_table() -> None:
    env = toy_env(4000, prompts=[[4]], max_new_tokens=1)
    env.reset(seed=0)
    drawn = torch.multinomial(env.log_probs.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert (drawn == 0).float().mean() == pytest.approx(17 / 20, abs=0.02)
