"""What the agents around Stable-Baselines3's learners share: settings, the walk, and how they are saved.

What they learn from is one transition at a time, walked by the student inside the candidate sets. The agents go on
from a saved zip (and replay buffer), but not to the weights they would have had: the episodes under way begin anew, as
do the random numbers.
"""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import LinearSchedule, safe_mean
from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

from agents.base import require
from agents.errors import DivergedError, InputError
from agents.loop import LoopAgent, LoopConfig
from agents.sb3_policies import StudentSpec
from agents.student import Student

MODEL, REPLAY, ABOUT = "model.zip", "replay.pkl", "about.json"


@dataclass(frozen=True)
class SB3Config(LoopConfig):
    """Settings that all of these agents have."""

    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: the rate falls to a tenth at the last step."""
    head_scale: float = 30.0
    """How many times faster the value head learns, which begins at 0."""
    max_grad_norm: float = 0.5
    """Largest gradient norm."""
    alpha: float = 1.0
    """Entropy temperature. Actor-critics: every step pays −α log π(a|s) on top of its reward, so that the optimum is
    the soft-optimal policy; 0: their plain return. Q learners: Q = v + α log π."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lr_schedule", self.lr_schedule in ("linear", "constant"), "must be linear or constant")
        require(self, "head_scale", self.head_scale > 0, "must be positive")
        require(self, "max_grad_norm", self.max_grad_norm > 0, "must be positive")
        require(self, "alpha", self.alpha >= 0, "must not be negative")


C = TypeVar("C", bound=SB3Config)


def even(steps: int, most: int) -> int:
    """The length of rollouts of at most so many steps that leave the fewest of all these steps over.

    >>> even(281, 32)
    31
    """
    return steps // -(-steps // most)


class _Watch(BaseCallback):
    """Calls `watch` where a rollout begins: between two updates."""

    def __init__(self, watch: Callable[[], None]) -> None:
        super().__init__()
        self.watch = watch

    def _on_rollout_start(self) -> None:
        self.watch()

    def _on_step(self) -> bool:
        return True


class SB3Agent(LoopAgent[C]):
    """An algorithm of Stable-Baselines3 around the student."""

    algorithm: ClassVar[Any]
    log_interval: ClassVar[int] = 1

    def __init__(self, student: Student, config: C, *, seed: int) -> None:
        super().__init__(student, config, seed=seed)
        self.model: Any = None

    @property
    @abstractmethod
    def rollout(self) -> int:
        """Most steps of each episode between two updates."""

    @abstractmethod
    def make(self, vec_env: Any, rollout: int, **common: Any) -> Any:
        """The model; `common` is what every algorithm takes."""

    @property
    def student(self) -> Student:
        return self._student if self.model is None else self.model.policy.student

    @property
    def steps(self) -> int:
        return 0 if self.model is None else int(self.model.num_timesteps)

    @property
    def gradient_steps(self) -> int:
        """As Stable-Baselines3 counts: passes over a rollout, for PPO."""
        return 0 if self.model is None else int(self.model._n_updates)

    @property
    def episode_return(self) -> float:
        found = None if self.model is None else self.model.ep_info_buffer
        return float(safe_mean([info["r"] for info in found or ()]))

    def learn(
        self, vec_env: Any, budget: int, *, watch: Callable[[], None] | None = None, logs: Path | None = None
    ) -> None:
        rows = vec_env.num_envs
        if budget < rows:
            raise InputError(f"{self.name}: a budget of {budget} steps is less than one of {rows} rows; lower num_envs")
        rollout = even(budget // rows, self.rollout)
        planned = budget // rows // rollout * rollout * rows
        if not is_vecenv_wrapped(vec_env, VecMonitor):
            vec_env = VecMonitor(vec_env)
        if self.model is None:
            self._make(vec_env, rollout)
        else:
            self.model.set_env(vec_env)
            self.model.set_random_seed(self.seed + self.steps)  # not the walks of before once more
        self.model.set_logger(Logger(None, []) if logs is None else configure(str(logs), ["tensorboard"]))
        if self.steps >= planned:
            return

        def looked_at() -> None:
            self._check_weights()
            if watch is not None:
                watch()

        callback = _Watch(looked_at)
        try:
            self.model.learn(
                planned - self.steps, callback=callback, log_interval=self.log_interval, reset_num_timesteps=False
            )
        except ValueError as error:
            self._check_weights()
            if "Expected parameter" in str(error):  # torch's, of a distribution that is none
                raise self._diverged() from error
            raise
        finally:
            self.model.dump_logs()
            self.model.logger.close()
            callback.locals, callback.globals = {}, {}  # they hold the callback itself, and it everything
        self._check_weights()

    def _make(self, vec_env: Any, rollout: int) -> None:
        config = self.config
        rate: Any = LinearSchedule(config.lr, config.lr / 10, 1.0) if config.lr_schedule == "linear" else config.lr
        kwargs = {"student": StudentSpec(self._student), "head_scale": config.head_scale}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last one may be smaller
            self.model = self.make(
                vec_env,
                rollout,
                learning_rate=rate,
                gamma=config.gamma,
                max_grad_norm=config.max_grad_norm,
                policy_kwargs=kwargs,
                seed=self.seed,
                device=next(self._student.parameters()).device,
            )

    def _check_weights(self) -> None:
        # A gradient that is no number reaches every weight: its norm scales them all.
        if not all(bool(torch.isfinite(value).all()) for value in self.student.value_head.parameters()):
            raise self._diverged()

    def _diverged(self) -> DivergedError:
        return DivergedError(f"{self.name}: its figures are no numbers any more after {self.steps} steps; lower lr")

    def save(self, directory: str | Path) -> None:
        """Write the zip, and the replay buffer of those that have one."""
        if self.model is None:
            raise InputError(f"{self.name} has not learned yet; there is nothing to save")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.model.save(directory / MODEL)
        if getattr(self.model, "replay_buffer", None) is not None:
            self.model.save_replay_buffer(directory / REPLAY)
        (directory / ABOUT).write_text(json.dumps({"agent": self.name}), encoding="utf-8")

    def load(self, directory: str | Path) -> None:
        path = Path(directory) / ABOUT
        if not path.is_file():
            raise InputError(f"no saved agent at {path}")
        if (other := json.loads(path.read_text(encoding="utf-8"))["agent"]) != self.name:
            raise InputError(f"{path} was saved by {other}, not by {self.name}; use another directory")
        self.model = self.algorithm.load(path.with_name(MODEL), device=next(self._student.parameters()).device)
        if path.with_name(REPLAY).is_file():
            self.model.load_replay_buffer(path.with_name(REPLAY))
