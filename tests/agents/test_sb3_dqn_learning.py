"""MaskableDQN reaches the hard Q* and SoftDQN the soft Q* of a masked maze, and no planted mistake does.

A learner is right when every legal Q is within TOLERANCE of value iteration and every greedy action is the optimal one;
an illegal action raises, in training as in the score. Runs without a mistake end within 2e-5 nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import objectives
from agents.sb3_dqn import MaskableDQN, SoftDQN
from tests.agents.sb3_maze import END, IllegalAction, Maze, SharedCoin, Table, TablePolicy, at, build, solve

TOLERANCE = 1e-3
STEPS = 2000
EPSILON = {"exploration_initial_eps": 0.3, "exploration_final_eps": 0.3}
LEARNERS: dict[str, tuple[type[MaskableDQN], float, dict[str, Any]]] = {  # name: class, α of its Q*, settings
    "hard": (MaskableDQN, 0.0, EPSILON),
    "double": (MaskableDQN, 0.0, {"double_q": True, **EPSILON}),
    "soft": (SoftDQN, 1.0, {}),
    "cold": (SoftDQN, 0.5, {"alpha": 0.5, **EPSILON}),
}


def score(name: str, mutate: Callable[[type[MaskableDQN]], type[MaskableDQN]] | None = None, **settings: Any) -> float:
    """Largest error of a legal Q after STEPS; infinite for an illegal or suboptimal action, or a Q not a number."""
    kind, alpha, chosen = LEARNERS[name]
    exact = solve(alpha)
    common: dict[str, Any] = {"learning_starts": 200, "batch_size": 64, "tau": 0.2, "target_update_interval": 4}
    model = build(
        mutate(kind) if mutate else kind,
        learning_rate=lambda left: 0.1 * left,
        train_freq=1,
        **{**common, **chosen, **settings},
    )
    try:
        model.learn(STEPS)
    except IllegalAction:
        return np.inf
    if (model.predict(at(*range(END)), deterministic=True)[0] != np.nanargmax(exact, axis=1)).any():
        return np.inf
    gaps = np.abs(model.q_net.q.detach().numpy()[:END] - exact)[~np.isnan(exact)]
    return float(np.nan_to_num(gaps, nan=np.inf).max())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_exact_values_are_reached(name: str, seed: int) -> None:
    assert score(name, seed=seed) < TOLERANCE


# ---- mistakes: each makes a class from a class ----


def everything(mask: th.Tensor) -> th.Tensor:
    return th.ones_like(mask)


def warm_up_unmasked(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    class Mutant(kind):
        _sample_action = OffPolicyAlgorithm._sample_action

    return Mutant


def epsilon_unmasked(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    """After a masked warm-up."""

    class Mutant(kind):
        def _explore(self, mask: th.Tensor) -> np.ndarray:
            late = self.num_timesteps >= self.learning_starts
            actions: np.ndarray = super()._explore(everything(mask) if late else mask)
            return actions

    return Mutant


def stock_predict(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    """DQN's own `predict`: random actions of the whole space. Its policy masks, so the greedy branch is right."""

    class Mutant(kind):
        predict = DQN.predict

    return Mutant


def behaviour_unmasked(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    class Mutant(kind):
        def _exploit(self, q: th.Tensor, mask: th.Tensor) -> th.Tensor:
            actions: th.Tensor = super()._exploit(q, everything(mask))
            return actions

    return Mutant


def argmax_unmasked(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    """Of deterministic `predict` alone: training never sees it."""

    class Mutant(kind):
        def predict(self, observation: Any, *args: Any, deterministic: bool = False) -> Any:
            if deterministic:
                observation = {**observation, "mask": np.ones_like(observation["mask"])}
            return super().predict(observation, *args, deterministic=deterministic)

    return Mutant


def target_unmasked(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    class Mutant(kind):
        def _next_values(self, observations: Any, mask: th.Tensor) -> th.Tensor:
            values: th.Tensor = super()._next_values(observations, everything(mask))
            return values

    return Mutant


def mask_asked_of_the_environment(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    """The next state's mask as `env.action_masks()` has it after the step: of the new episode when one has ended."""

    class Mutant(kind):
        def _store_transition(
            self, buffer: Any, action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
        ) -> None:
            for row, info in enumerate(infos):
                if "terminal_observation" in info:
                    info["terminal_observation"]["mask"] = new_obs["mask"][row]
            super()._store_transition(buffer, action, new_obs, reward, dones, infos)

    return Mutant


def done_by_product(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    """(1 − done)·V̄ where Q̄ of a terminal state is not a number."""

    class Mutant(kind):
        def _targets(self, batch: Any) -> th.Tensor:
            values = self._next_values(batch.next_observations, batch.next_observations["mask"].bool())[:, None]
            raw = th.where(batch.dones == 1, self.q_net_target(batch.next_observations)[:, :1], values)
            target: th.Tensor = batch.rewards + self.gamma * (1 - batch.dones) * raw
            return target.detach()

    return Mutant


def hard_maximum(kind: type[MaskableDQN]) -> type[MaskableDQN]:
    class Mutant(kind):
        _next_values = MaskableDQN._next_values

    return Mutant


def target_at(alpha: float) -> Callable[[type[MaskableDQN]], type[MaskableDQN]]:
    def mutate(kind: type[MaskableDQN]) -> type[MaskableDQN]:
        class Mutant(kind):
            def _next_values(self, observations: Any, mask: th.Tensor) -> th.Tensor:
                some = mask | ~mask.any(-1, keepdim=True)
                return objectives.soft_value(self.q_net_target(observations), some, alpha)

        return Mutant

    return mutate


PLACES = [warm_up_unmasked, behaviour_unmasked, argmax_unmasked, target_unmasked]
EPSILONS = [epsilon_unmasked, stock_predict]
ENDS = [mask_asked_of_the_environment, done_by_product]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        *[("hard", mistake) for mistake in PLACES + EPSILONS + ENDS],
        ("double", target_unmasked),
        *[("soft", mistake) for mistake in [*PLACES, *ENDS, hard_maximum]],
        *[("cold", mistake) for mistake in EPSILONS],
    ],
)
def test_a_mistake_is_noticed(name: str, mistake: Callable[[type[MaskableDQN]], type[MaskableDQN]]) -> None:
    assert score(name, mistake) > 30 * TOLERANCE


def test_a_wrong_temperature_is_noticed_and_the_planting_alone_is_not() -> None:
    assert score("soft", target_at(0.9)) > 30 * TOLERANCE
    assert score("soft", target_at(1.1)) > 30 * TOLERANCE
    assert score("soft", target_at(1.0)) < TOLERANCE


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_truncation_taken_for_termination_is_noticed(name: str) -> None:
    assert score(name, replay_buffer_kwargs={"handle_timeout_termination": False}) > 30 * TOLERANCE


# ---- one coin for each environment ----


class Door(Maze):
    """One state without end: 0 waits for 0.9, 1 pushes, 2 is illegal. `Doors` pays a push if it is the only one."""

    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"state": spaces.Discrete(1), "mask": spaces.MultiBinary(3)})

    def look(self) -> dict[str, Any]:
        return {"state": 0, "mask": np.array([1, 1, 0], np.int8)}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if action == 2:
            raise IllegalAction("2")
        return self.look(), 0.0 if action else 0.9, False, False, {}


class Doors(DummyVecEnv):
    def step_wait(self) -> Any:
        pushing = self.actions == 1
        looks, rewards, dones, infos = super().step_wait()
        return looks, np.where(pushing, float(pushing.sum() == 1), rewards), dones, infos


class DoorPolicy(TablePolicy):
    def make_q_net(self) -> Table:
        net = super().make_q_net()
        net.q = th.nn.Parameter(th.tensor([[0.9, 0.0, 9.0]]))
        return net


def worth_of_a_push(kind: type[MaskableDQN], seed: int) -> float:
    """Q(push) learned by 32 rows at ε = 0.06: the chance that none of the other 31 pushes, (1 − ε/2)^31 = 0.389.

    With one coin for all, the 32 rows explore together and a single push among them has probability 32/2^32: Q = 0.
    """
    model = build(
        kind,
        env=Doors([Door] * 32),
        policy=DoorPolicy,
        seed=seed,
        gamma=0.0,
        learning_starts=0,
        exploration_initial_eps=0.06,
        exploration_final_eps=0.06,
        learning_rate=lambda left: 0.05 * left,
        train_freq=1,
        batch_size=256,
        buffer_size=32_000,
    )
    model.exploration_rate = 0.06  # DQN's is 0 until its first step
    model.learn(32 * 800)
    assert model.predict({"state": 0, "mask": np.array([1, 1, 0])}, deterministic=True)[0] == 0
    return model.q_net.q[0, 1].item()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_lone_push_needs_a_coin_for_each_row(seed: int) -> None:
    assert worth_of_a_push(MaskableDQN, seed) == pytest.approx((1 - 0.03) ** 31, abs=0.1)


def test_one_coin_for_all_is_noticed() -> None:
    assert abs(worth_of_a_push(SharedCoin, 0)) < 0.01
