"""MaskableDQN and SoftDQN: targets by hand, each place of the mask for itself, behaviour, files, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from agents.errors import InputError
from agents.sb3_dqn import MaskableDQN, MaskableMultiInputPolicy, SoftDQN, legal_argmax, legal_sample
from tests.agents.sb3_maze import ACTIONS, END, EOS, LEGAL, TEMPTING, Maze, SharedCoin, at, build, give, mazes


def as_batch(*rows: tuple[int, int, float, int, float]) -> DictReplayBufferSamples:
    """(state, action, reward, next state, done) rows, as replay returns them."""
    states, actions, rewards, after, dones = zip(*rows, strict=True)

    def column(values: Any, kind: th.dtype) -> th.Tensor:
        return th.tensor(values, dtype=kind)[:, None]

    def look(at_states: Any) -> dict[str, th.Tensor]:
        return {
            "state": column(at_states, th.int64),
            "mask": th.as_tensor(LEGAL[list(at_states)].astype(np.int8)),
        }

    return DictReplayBufferSamples(
        look(states),
        column(actions, th.int64),
        look(after),
        column(dones, th.float32),
        column(rewards, th.float32),
    )


# ---- targets by hand ----


def test_hard_targets_by_hand() -> None:
    model = build()
    give(model, target={1: [50.0, -2.0, -3.0, 50.0], 2: [-1.0, 50.0, math.inf, -4.0]})
    batch = as_batch((0, 0, -0.2, 1, 0), (0, 1, -0.7, 2, 0), (2, EOS, -0.5, END, 1))
    expected = [-0.2 + 0.8 * -2.0, -0.7 + 0.8 * -1.0, -0.5]
    assert model._targets(batch).flatten().tolist() == pytest.approx(expected)


def test_double_q_chooses_online_and_reads_the_slow_network() -> None:
    rows = {"online": {1: [50.0, -9.0, -3.0, 50.0]}, "target": {1: [50.0, -2.0, -5.0, 50.0]}}
    batch = as_batch((0, 0, -0.2, 1, 0), (2, EOS, -0.5, END, 1))
    model, plain = build(double_q=True), build()
    give(model, **rows)
    give(plain, **rows)
    assert model._targets(batch).flatten().tolist() == pytest.approx([-0.2 + 0.8 * -5.0, -0.5])
    assert plain._targets(batch).flatten().tolist() == pytest.approx([-0.2 + 0.8 * -2.0, -0.5])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_soft_targets_by_hand(alpha: float) -> None:
    model = build(SoftDQN, alpha=alpha)
    give(model, target={1: [50.0, -2.0, -3.0, math.inf]})
    soft = alpha * math.log(math.exp(-2 / alpha) + math.exp(-3 / alpha))
    targets = model._targets(as_batch((0, 0, -0.2, 1, 0), (2, EOS, -0.5, END, 1)))
    assert targets.flatten().tolist() == pytest.approx([-0.2 + 0.8 * soft, -0.5])


def test_discounts_of_a_custom_replay_buffer_are_read_by_the_hard_target_and_refused_by_the_soft() -> None:
    batch = as_batch((0, 0, -0.2, 1, 0))._replace(discounts=th.tensor([[0.5]]))
    model = build()
    give(model, target={1: [50.0, -2.0, -3.0, 50.0]})
    assert model._targets(batch).item() == pytest.approx(-0.2 + 0.5 * -2.0)
    with pytest.raises(InputError, match="one step"):
        build(SoftDQN)._targets(batch)


@pytest.mark.parametrize(
    ("max_grad_norm", "variance", "step"),
    [(10.0, 1.0, -0.25 * 0.6), (0.1, 1.0, -0.25 * 0.1), (10.0, 4.0, -0.25 * 0.5)],
)
def test_one_gradient_step_by_hand(max_grad_norm: float, variance: float, step: float) -> None:
    """Huber inside its parabola, plain SGD: Q ← Q − lr·(Q − y) on the entry taken and nowhere else.

    y = −0.2/σ + 0.8·(−0.5), σ² the variance of returns that VecNormalize divides rewards by.
    """
    env = VecNormalize(mazes(1), training=False, norm_obs=False)
    env.ret_rms.var = np.array(variance)
    sgd = {"optimizer_class": th.optim.SGD}
    model = build(env=env, policy_kwargs=sgd, learning_rate=0.25, learning_starts=0, max_grad_norm=max_grad_norm)
    model.learn(0)
    model.replay_buffer.add(at(0), at(1), np.array([0]), np.array([-0.2]), np.array([False]), [{}])
    give(model, target={1: [50.0, -0.5, -3.0, 50.0]})
    before = model.q_net.q.detach().clone()
    model.train(gradient_steps=1, batch_size=8)
    moved = model.q_net.q.detach() - before
    assert moved[0, 0].item() == pytest.approx(step, rel=1e-4)
    moved[0, 0] = 0
    assert th.nan_to_num(moved).abs().max() == 0


# ---- each place for itself ----


def illegal(states: list[int], actions: np.ndarray) -> bool:
    return not all(LEGAL[state, action] for state, action in zip(states, actions, strict=True))


def test_warm_up_is_uniform_over_the_legal_actions() -> None:
    model = build(n=3, learning_starts=100)
    model.learn(0)
    model._last_obs = at(0, 1, 2)
    drawn = np.stack([model._sample_action(100, n_envs=3)[0] for _ in range(600)])  # (600, 3)
    for column, state in enumerate((0, 1, 2)):
        counts = np.bincount(drawn[:, column], minlength=ACTIONS)
        assert (counts[~LEGAL[state]] == 0).all()
        assert np.abs(counts[LEGAL[state]] - 300).max() < 5 * math.sqrt(600 / 4)
    stock = np.stack([OffPolicyAlgorithm._sample_action(model, 100, n_envs=3)[0] for _ in range(50)])
    assert any(illegal([0, 1, 2], row) for row in stock)  # what this test would see without the mask


def test_epsilon_draws_legal_actions_alone() -> None:
    model = build()
    model.exploration_rate = 1.0
    states = [0, 1, 2, 3] * 8
    draws = np.stack([model.predict(at(*states))[0] for _ in range(100)])
    assert not any(illegal(states, row) for row in draws)
    assert all((draws[:, 0] == action).any() for action in np.flatnonzero(LEGAL[0]))
    assert any(illegal(states, DQN.predict(model, at(*states))[0]) for _ in range(100))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", [MaskableDQN, SoftDQN])
def test_greedy_actions_are_legal_however_good_others_look(kind: type[MaskableDQN], deterministic: bool) -> None:
    model = build(kind)
    give(model, online={0: [-80.0, -100.0, math.inf, math.nan]})
    actions, state = model.predict(at(0, 1, 2, 3), deterministic=deterministic)
    assert actions.dtype == np.int64 and actions[0] == 0 and state is None
    assert not illegal([0, 1, 2, 3], actions)
    single, _ = model.predict({"state": 0, "mask": LEGAL[0]}, deterministic=deterministic)
    assert single.shape == () and single == 0
    assert int(model.q_net(model.policy.obs_to_tensor(at(1))[0]).argmax()) in (0, EOS)  # illegal, without the mask


def test_the_policy_alone_masks() -> None:
    model = build()
    assert not illegal([0, 1, 2, 3], model.policy.predict(at(0, 1, 2, 3))[0])
    whole = build(policy="MultiInputPolicy")
    assert isinstance(whole.policy, MaskableMultiInputPolicy)
    with th.no_grad():
        whole.policy.q_net.q_net[-1].bias[:] = th.tensor([0.0, 0.0, 0.0, 1e3])
    assert not illegal([0, 1, 2, 3], whole.policy.predict(at(0, 1, 2, 3))[0])
    assert whole.policy.q_net._predict(whole.policy.obs_to_tensor(at(1))[0]).item() == EOS


def test_legal_argmax_prefers_a_legal_minus_infinity() -> None:
    q = th.tensor([[9.0, -math.inf], [math.nan, -1.0]])
    assert legal_argmax(q, th.tensor([[False, True], [False, True]])).tolist() == [1, 1]


def test_legal_sample_is_uniform_and_rows_are_independent() -> None:
    np.random.seed(0)
    drawn = legal_sample(np.tile([True, False, True, True], (30_000, 1)))
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert ((counts[[0, 2, 3]] - 10_000) ** 2 / 10_000).sum() < 18.4  # χ² with 2 degrees, 1 in 10,000
    pairs = np.mean(drawn[0::2] == drawn[1::2])
    assert abs(pairs - 1 / 3) < 5 * math.sqrt(2 / 9 / 15_000)


def dispersion(model: MaskableDQN, n: int = 64, calls: int = 400) -> tuple[float, float]:
    """Mean rate of non-greedy actions, and the variance of their number a call over the binomial one."""
    give(model, online={0: [1.0, 0.0, TEMPTING, TEMPTING]})
    model.exploration_rate = 0.3
    found = np.array([(model.predict(at(*[0] * n))[0] != 0).sum() for _ in range(calls)])
    rate = found.mean() / n
    return rate, found.var() / (n * rate * (1 - rate))


def test_epsilon_is_one_coin_an_environment() -> None:
    rate, spread = dispersion(build())
    assert abs(rate - 0.15) < 5 * math.sqrt(0.15 * 0.85 / (64 * 400))
    assert abs(spread - 1) < 5 * math.sqrt(2 / 400)
    assert dispersion(build(SharedCoin))[1] > 5


def test_boltzmann_frequencies() -> None:
    """softmax(Q/α) over three legal actions, by χ² with 2 degrees of freedom (1 in 10,000)."""
    model = build(SoftDQN, alpha=0.5)
    give(model, online={1: [-1.0, -1.5, -0.4, 9.0]})
    look = {"state": np.full(20_000, 1), "mask": np.tile(np.array([1, 1, 1, 0], np.int8), (20_000, 1))}
    counts = np.bincount(model.predict(look)[0], minlength=4)
    assert counts[3] == 0

    def chi2(alpha: float) -> float:
        weights = np.exp(np.array([-1.0, -1.5, -0.4]) / alpha)
        expected = 20_000 * weights / weights.sum()
        return float(((counts[:3] - expected) ** 2 / expected).sum())

    assert chi2(0.5) < 18.4
    assert chi2(0.45) > 50 and chi2(1.0) > 50
    assert (model.predict(look, deterministic=True)[0] == 2).all()


def test_soft_explores_by_its_temperature_alone_unless_told() -> None:
    for left in (1.0, 0.5, 0.0):
        assert build(SoftDQN).exploration_schedule(left) == 0
        assert build(SoftDQN, exploration_initial_eps=0.2, exploration_final_eps=0.2).exploration_schedule(left) == 0.2


def test_networks_run_in_the_right_mode_and_only_where_needed() -> None:
    model = build(double_q=True, learning_starts=0, exploration_initial_eps=0.5, exploration_final_eps=0.5)
    model.learn(40)
    online, slow = model.q_net.modes, model.q_net_target.modes
    assert not any(slow) and slow
    del online[:]
    updates = model._n_updates
    model.train(gradient_steps=2, batch_size=4)
    assert online == [False, True, False, True]  # the chooser, then the loss
    assert model._n_updates == updates + 2
    del online[:]
    model.exploration_rate = 1.0
    model.predict(at(0, 1))
    assert online == []
    model.predict(at(0, 1), deterministic=True)
    assert online == [False]


def test_a_truncated_state_keeps_its_own_mask_in_replay() -> None:
    """What `env.action_masks()` would answer after the cut is the mask of the next episode's first state."""
    model = build(n=1, learning_starts=1000)
    model.learn(200)
    replay = model.replay_buffer
    cut = np.flatnonzero(replay.timeouts[:200, 0])
    ended = np.flatnonzero((replay.dones - replay.timeouts)[:200, 0])
    after = replay.next_observations["state"][:200, 0, 0]
    assert len(cut) > 10 and len(ended) > 10
    assert (replay.next_observations["mask"][:200, 0] == LEGAL[after]).all()
    assert (after[ended] == END).all() and (after[cut] != END).all()
    assert (LEGAL[after[cut]] != LEGAL[0]).any()
    sampled = replay.sample(256)
    assert ((sampled.dones == 1) == (sampled.next_observations["state"] == END)).all()


# ---- files ----


@pytest.mark.parametrize("kind", [MaskableDQN, SoftDQN])
def test_save_and_load_give_the_same_actions(kind: type[MaskableDQN], tmp_path: Path) -> None:
    special: dict[str, Any] = {"alpha": 0.3} if kind is SoftDQN else {"double_q": True}
    model = build(kind, policy="MultiInputPolicy", mask_key="legal", learning_starts=8, **special).learn(120)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    look = {"state": np.arange(END), "legal": LEGAL[:END].astype(np.int8)}
    alone = MaskableMultiInputPolicy.load(tmp_path / "policy.pt", device="cpu")
    assert (alone.predict(look)[0] == model.predict(look, deterministic=True)[0]).all()
    for env in (None, Maze("legal")):
        again = kind.load(tmp_path / "model.zip", env=env, device="cpu")
        assert {name: getattr(again, name) for name in special} == special
        assert again.mask_key == again.policy.mask_key == "legal"
        assert (again.policy.predict(look)[0] == alone.predict(look)[0]).all()
        for deterministic in (True, False):
            drawn = []
            for each in (model, again):
                each.set_random_seed(5)
                each.exploration_rate = 0.4
                drawn.append([each.predict(look, deterministic=deterministic)[0] for _ in range(20)])
            assert np.array_equal(*drawn)
    again.learn(40)


def test_runs_are_reproducible_and_log(tmp_path: Path) -> None:
    def run(seed: int) -> list[float]:
        model = build(SoftDQN, seed=seed, learning_starts=16, tensorboard_log=str(tmp_path), exploration_final_eps=0.1)
        model.learn(400, log_interval=None)
        assert model.logger.name_to_value["rollout/exploration_rate"] == pytest.approx(model.exploration_rate)
        assert {"train/loss", "train/n_updates"} <= set(model.logger.name_to_value)
        return model.q_net.q[:END].flatten().tolist()

    assert run(3) == run(3) != run(4)
    assert (tmp_path / "SoftDQN_1").is_dir()


# ---- a full Stable-Baselines3 policy, and bad input ----


@pytest.mark.parametrize(("kind", "best"), [(MaskableDQN, -1.2), (SoftDQN, -2.0)])  # 0, 2, EOS; 0, 2, 0, 2, cut
def test_a_network_over_the_observation_learns(kind: type[MaskableDQN], best: float) -> None:
    """MultiInputPolicy on a single environment that is no vector environment; an illegal action would raise."""
    model = build(kind, policy="MultiInputPolicy", env=Maze(), learning_rate=3e-3, learning_starts=100, tau=0.2)
    model.target_update_interval = 4
    model.learn(1500)
    mean, _ = evaluate_policy(model, Maze(), n_eval_episodes=2, deterministic=True, warn=False)
    assert mean == pytest.approx(best)


class Odd(Maze):
    def __init__(self, **entries: spaces.Space[Any]) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"state": spaces.Discrete(END + 1), **entries})


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (Odd(), {}, "no 'mask' among the observation's keys"),
        (Maze("legal"), {}, "mask_key="),
        (Odd(mask=spaces.MultiBinary(ACTIONS - 1)), {}, "MultiBinary"),
        (Odd(mask=spaces.Box(0, 1, (ACTIONS,))), {}, "MultiBinary"),
        (Odd(mask=spaces.Discrete(ACTIONS)), {}, "MultiBinary"),
        ("CartPole-v1", {"policy": "MlpPolicy"}, "a Dict with the action mask"),
        (Maze(), {"n_steps": 3}, "n_steps is 3"),
    ],
)
def test_an_environment_without_a_readable_mask_is_refused(env: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(env=env, **{"policy": "MultiInputPolicy", **settings})


def test_actions_that_do_not_start_at_zero_are_refused() -> None:
    env = Maze()
    env.action_space = spaces.Discrete(ACTIONS, start=1)
    with pytest.raises(InputError, match="starts at 0"):
        build(env=env)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha is"):
        build(SoftDQN, alpha=alpha)


def test_soft_takes_no_double_q() -> None:
    with pytest.raises(InputError, match="double_q"):
        build(SoftDQN, double_q=True)


def test_a_state_without_actions_is_refused_where_one_is_needed() -> None:
    model = build()
    dead = {"state": np.array([0, END]), "mask": LEGAL[[0, END]].astype(np.int8)}
    for call in (model.predict, model.policy.predict):
        with pytest.raises(InputError, match=r"no legal action in row\(s\) \[1\]"):
            call(dead)
    model.learn(0)
    model._last_obs = dead
    with pytest.raises(InputError, match="no legal action"):
        model._sample_action(100, n_envs=2)
    with pytest.raises(InputError, match="is not terminal"):
        model._targets(as_batch((2, EOS, -0.5, END, 0)))


@pytest.mark.parametrize("wrong", [np.zeros(4), {"state": np.array([0])}, (at(0), {})])
def test_an_observation_without_its_mask_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="without 'mask'"):
        build().predict(wrong)
