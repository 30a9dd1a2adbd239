"""A small masked environment, its exact Q*, and a tabular policy to which illegal actions look best.

Four states, four actions; which are legal depends on the state, an illegal one raises. Action 3 is EOS and terminates,
the step limit truncates. What pays at once is not what is best (state 0 and state 2), so a wrong target shows in the
greedy actions. The observation after EOS has an empty mask, and Q of that state is not a number.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents.sb3_dqn import MaskableDQN, MaskableDQNPolicy

EOS, END, ACTIONS = 3, 4, 4
LIMIT, GAMMA = 4, 0.8
TEMPTING = 6.0  # initial Q of what is illegal; no Q* reaches it
MOVES = {  # state: {action: (next state, reward)}
    0: {0: (1, -0.2), 1: (2, -0.7)},
    1: {1: (3, -1.2), 2: (1, -0.9)},
    2: {0: (0, -0.3), EOS: (END, -0.5)},
    3: {2: (0, -0.5), EOS: (END, -2.5)},
}
LEGAL = np.array([[action in MOVES.get(state, {}) for action in range(ACTIONS)] for state in range(END + 1)])


class IllegalAction(Exception):
    pass


class Maze(gymnasium.Env):
    """One episode of MOVES from state 0, truncated after LIMIT steps; observation `state` and `mask_key`."""

    action_space = spaces.Discrete(ACTIONS)

    def __init__(self, mask_key: str = "mask") -> None:
        self.mask_key = mask_key
        self.observation_space = spaces.Dict({"state": spaces.Discrete(END + 1), mask_key: spaces.MultiBinary(ACTIONS)})

    def look(self) -> dict[str, Any]:
        return {"state": self.state, self.mask_key: LEGAL[self.state].astype(np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = 0, 0
        return self.look(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if int(action) not in MOVES[self.state]:
            raise IllegalAction(f"action {action} in state {self.state}")
        self.state, reward = MOVES[self.state][int(action)]
        self.steps += 1
        terminated = self.state == END
        return self.look(), reward, terminated, not terminated and self.steps >= LIMIT, {}


def mazes(n: int, mask_key: str = "mask") -> DummyVecEnv:
    return DummyVecEnv([lambda: Maze(mask_key)] * n)


def solve(alpha: float) -> np.ndarray:
    """Q* (END, ACTIONS) of the endless maze by value iteration; soft for alpha > 0, hard for 0; NaN where illegal."""
    q = {state: dict.fromkeys(moves, 0.0) for state, moves in MOVES.items()}
    for _ in range(400):
        value = {END: 0.0}
        for state, row in q.items():
            best = max(row.values())
            rest = np.log(sum(np.exp((x - best) / alpha) for x in row.values())) if alpha else 0.0
            value[state] = best + alpha * rest
        q = {s: {a: reward + GAMMA * value[after] for a, (after, reward) in row.items()} for s, row in MOVES.items()}
    return np.array([[q[state].get(action, np.nan) for action in range(ACTIONS)] for state in range(END)])


class Table(nn.Module):
    """Q(s, a) as free parameters: 0 where legal, TEMPTING where not, not-a-number after EOS."""

    def __init__(self) -> None:
        super().__init__()
        q = th.where(th.as_tensor(LEGAL), 0.0, TEMPTING)
        q[END] = th.nan
        self.q = nn.Parameter(q)
        self.modes: list[bool] = []

    def forward(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        self.modes.append(self.training)
        return self.q[obs["state"].long().reshape(-1)]

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)


class TablePolicy(MaskableDQNPolicy):
    def make_q_net(self) -> Table:
        return Table().to(self.device)


def build(kind: type[MaskableDQN] = MaskableDQN, n: int = 4, **settings: Any) -> MaskableDQN:
    """A learner on n mazes (or `env`) with the tabular policy, unless told otherwise."""
    env = settings.pop("env", None) or mazes(n, settings.get("mask_key", "mask"))
    chosen: dict[str, Any] = {"policy": TablePolicy, "seed": 0, "device": "cpu", "gamma": GAMMA, "buffer_size": 4000}
    return kind(env=env, **{**chosen, **settings})


def at(*states: int) -> dict[str, np.ndarray]:
    """Stacked observations of these states."""
    return {"state": np.array(states), "mask": LEGAL[list(states)].astype(np.int8)}


def give(model: MaskableDQN, online: Any = None, target: Any = None) -> None:
    """Write Q of single states, as {state: row}, into the networks."""
    with th.no_grad():
        for net, rows in ((model.q_net, online or {}), (model.q_net_target, target or {})):
            for state, row in rows.items():
                net.q[state] = th.tensor(row)


class SharedCoin(MaskableDQN):
    """One coin for all, as in DQN."""

    def _coins(self, n: int) -> np.ndarray:
        return np.full(n, np.random.random_sample() < self.exploration_rate)
