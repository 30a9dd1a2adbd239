"""Stable-Baselines3's learners as agents: the same student, their own loops."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from sb3_contrib import MaskablePPO as MaskablePPOAlgorithm
from stable_baselines3 import A2C as A2CAlgorithm
from stable_baselines3 import PPO as PPOAlgorithm

from agents.base import FixedPoint, require
from agents.sb3_base import SB3Agent, SB3Config
from agents.sb3_buffers import SoftMaskableRolloutBuffer, SoftRolloutBuffer
from agents.sb3_dqn import MaskableDQN
from agents.sb3_dqn import SoftDQN as SoftDQNAlgorithm
from agents.sb3_policies import MaskableStudentActorCriticPolicy, StudentActorCriticPolicy, StudentQPolicy
from agents.search import Range, Search


@dataclass(frozen=True)
class A2CConfig(SB3Config):
    """Settings of A2C."""

    lr: float = 3e-4
    n_steps: int = 16
    """Steps of each episode between two updates."""
    gae_lambda: float = 0.5
    """λ of the advantages; 1 is the whole return. Short: a step's own reward says most of it in the soft return."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus in the loss, which looks at one state; `alpha` looks ahead."""
    vf_coef: float = 0.5
    """Weight of the squared error of the values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "n_steps", self.n_steps >= 1, "must be at least 1")
        require(self, "gae_lambda", 0 <= self.gae_lambda <= 1, "must lie in [0, 1]")
        require(self, "ent_coef", self.ent_coef >= 0, "must not be negative")
        require(self, "vf_coef", self.vf_coef >= 0, "must not be negative")


@dataclass(frozen=True)
class PPOConfig(A2CConfig):
    """Settings of PPO and MaskablePPO. Advantages are in nats, not normalised, so that `alpha` keeps its meaning."""

    n_steps: int = 64
    """Steps of each episode between two updates."""
    batch_size: int = 256
    """States of a mini-batch."""
    n_epochs: int = 2
    """Passes over a rollout."""
    clip_range: float = 0.2
    """How far the ratio of new to old probability may go from 1."""

    SEARCH: ClassVar[Search] = {**A2CConfig.SEARCH, "n_epochs": Range(1, 4)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "batch_size", self.batch_size >= 2, "must be at least 2")
        require(self, "n_epochs", self.n_epochs >= 1, "must be at least 1")
        require(self, "clip_range", self.clip_range > 0, "must be positive")


A = TypeVar("A", bound=A2CConfig)


class _OnPolicy(SB3Agent[A]):
    policy: ClassVar[Any] = StudentActorCriticPolicy
    buffer: ClassVar[Any] = SoftRolloutBuffer
    identity = "with alpha = 0 or an entropy bonus: Stable-Baselines3's own loss on the student's policy"

    @property
    def fixed_point(self) -> FixedPoint | None:
        """The soft-optimal policy, where the entropy is inside the return and nowhere else."""
        config = self.config
        soft = config.alpha > 0 and config.ent_coef == 0
        return FixedPoint("soft", gamma=config.gamma, alpha=config.alpha) if soft else None

    @property
    def rollout(self) -> int:
        return self.config.n_steps

    def make(self, vec_env: Any, rollout: int, **common: Any) -> Any:
        config = self.config
        return self.algorithm(
            self.policy,
            vec_env,
            n_steps=rollout,
            gae_lambda=config.gae_lambda,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            normalize_advantage=False,
            rollout_buffer_class=self.buffer,
            rollout_buffer_kwargs={"alpha": config.alpha},
            **self.own(rollout * vec_env.num_envs),
            **common,
        )

    @abstractmethod
    def own(self, states: int) -> dict[str, Any]:
        """What only this algorithm takes, for rollouts of so many states."""


class A2C(_OnPolicy[A2CConfig]):
    """Advantage actor-critic (arXiv:1602.01783), with Adam in place of RMSprop."""

    name = "sb3:a2c"
    Config = A2CConfig
    algorithm = A2CAlgorithm
    log_interval = 10

    def own(self, states: int) -> dict[str, Any]:
        return {"use_rms_prop": False}


class PPO(_OnPolicy[PPOConfig]):
    """Proximal policy optimisation (arXiv:1707.06347), masked by the student's own policy."""

    name = "sb3:ppo"
    Config = PPOConfig
    algorithm = PPOAlgorithm

    def own(self, states: int) -> dict[str, Any]:
        config = self.config
        batch = min(config.batch_size, states)
        return {"batch_size": batch, "n_epochs": config.n_epochs, "clip_range": config.clip_range}


class MaskablePPO(PPO):
    """sb3-contrib's PPO, which asks the environment for its masks."""

    name = "sb3:maskable_ppo"
    algorithm = MaskablePPOAlgorithm
    policy = MaskableStudentActorCriticPolicy
    buffer = SoftMaskableRolloutBuffer


@dataclass(frozen=True)
class DQNConfig(SB3Config):
    """Settings of the Q learners."""

    max_grad_norm: float = 10.0
    buffer_size: int = 20_000
    """Transitions that replay holds, at about a kilobyte each (more with more candidates)."""
    batch_size: int = 64
    """Transitions of an update."""
    learning_starts: int = 0
    """Steps of a uniform walk before anything is learned; a cloned student needs none."""
    train_freq: int = 1
    """Steps of each episode between two updates."""
    gradient_steps: int = 1
    """Gradient steps an update."""
    tau: float = 0.05
    """Share of the way that the target network moves; 1 copies."""
    target_update_interval: int = 32
    """Steps in the environment between two moves of the target network."""
    epsilon: float = 0.1
    """Share of random candidates at the start."""
    epsilon_end: float = 0.02
    """The same, from `exploration_fraction` of the run on."""
    exploration_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha > 0, "must be positive")
        for name in ("buffer_size", "batch_size", "train_freq", "gradient_steps", "target_update_interval"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "learning_starts", self.learning_starts >= 0, "must not be negative")
        require(self, "tau", 0 < self.tau <= 1, "must lie in (0, 1]")
        for name in ("epsilon", "epsilon_end", "exploration_fraction"):
            require(self, name, 0 <= getattr(self, name) <= 1, "must lie in [0, 1]")


@dataclass(frozen=True)
class SoftDQNConfig(DQNConfig):
    """Settings of SoftDQN: it explores by its own temperature, and needs no ε."""

    lr: float = 3e-4
    epsilon: float = 0.0
    """Share of random candidates at the start."""
    epsilon_end: float = 0.0


class DQN(SB3Agent[DQNConfig]):
    """Deep Q-learning under the mask (arXiv:1312.5602): hard values, so it learns the most probable text."""

    name = "sb3:dqn"
    Config = DQNConfig
    algorithm = MaskableDQN
    log_interval = 32  # episodes, here

    @property
    def fixed_point(self) -> FixedPoint | None:
        return FixedPoint("hard", gamma=self.config.gamma)

    @property
    def rollout(self) -> int:
        return self.config.train_freq

    def make(self, vec_env: Any, rollout: int, **common: Any) -> Any:
        config = self.config
        common["policy_kwargs"]["alpha"] = config.alpha
        return self.algorithm(
            StudentQPolicy,
            vec_env,
            buffer_size=max(config.buffer_size, vec_env.num_envs),
            batch_size=config.batch_size,
            learning_starts=config.learning_starts,
            train_freq=rollout,
            gradient_steps=config.gradient_steps,
            tau=config.tau,
            target_update_interval=max(config.target_update_interval, vec_env.num_envs),
            exploration_initial_eps=config.epsilon,
            exploration_final_eps=config.epsilon_end,
            exploration_fraction=max(config.exploration_fraction, 1e-9),
            **self.own(),
            **common,
        )

    def own(self) -> dict[str, Any]:
        """What only this algorithm takes."""
        return {}


class SoftDQN(DQN):
    """DQN with the soft target and a Boltzmann walk, at temperature `alpha` (equation 3)."""

    name = "sb3:soft_dqn"
    Config = SoftDQNConfig
    algorithm = SoftDQNAlgorithm

    @property
    def fixed_point(self) -> FixedPoint | None:
        return FixedPoint("soft", gamma=self.config.gamma, alpha=self.config.alpha)

    def own(self) -> dict[str, Any]:
        return {"alpha": self.config.alpha}
