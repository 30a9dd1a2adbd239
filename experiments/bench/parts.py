"""Where the time of a step goes: the model's forward, the candidates, and everything else."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from envs.decode import Decoder
from envs.engine import Engine
from envs.hf_teacher import HFTeacher
from envs.vector_env import TopPTokenVectorEnv


class TimedEngine:
    """An engine that adds up the seconds of its steps."""

    def __init__(self, engine: Engine, seconds: dict[str, float]) -> None:
        self.engine, self.seconds = engine, seconds
        self.start, self.keep_rows = engine.start, engine.keep_rows

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        begin = time.perf_counter()
        logits = self.engine.step(tokens, active)
        self.seconds["forward"] += time.perf_counter() - begin
        return logits


class TimedDecoder(Decoder):
    """A decoder that adds what its steps do beside the forward to the seconds of the candidates."""

    def __init__(self, model: Any, rows: int, seconds: dict[str, float]) -> None:
        super().__init__(model, rows)
        self.seconds = seconds
        self._engine = TimedEngine(self._engine, seconds)

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """As `Decoder.step`."""
        begin, forward = time.perf_counter(), self.seconds["forward"]
        super().step(tokens, active)
        self.seconds["candidates"] += time.perf_counter() - begin - (self.seconds["forward"] - forward)


class TimedTeacher(HFTeacher):
    """A teacher whose walks are timed."""

    def __init__(self, teacher: HFTeacher, seconds: dict[str, float]) -> None:
        super().__init__(teacher.model, teacher.tokenizer, name=teacher.name)
        self.seconds = seconds

    def walk(self, rows: int) -> Decoder:
        return TimedDecoder(self.model, rows, self.seconds)


class TimedEnv(TopPTokenVectorEnv):
    """An environment that adds up the seconds its candidates take."""

    seconds: dict[str, float]

    def _look(self, rows: npt.NDArray[np.int64] | None = None) -> None:
        begin = time.perf_counter()
        super()._look(rows)
        self.seconds["candidates"] += time.perf_counter() - begin


def parts_of(teacher: HFTeacher, rows: int, begin: list[list[int]], **options: Any) -> dict[str, float]:
    """Shares of the time of one episode's steps: the forward, the candidates (logits normalised, sets found), the rest.

    Reading the prompts to `begin` with is left out.
    """
    seconds: dict[str, float] = defaultdict(float)

    env = TimedEnv(rows, teacher=TimedTeacher(teacher, seconds), **options)
    env.seconds = seconds
    _, infos = env.reset(options={"prompts": begin})
    seconds.clear()
    started = time.perf_counter()
    for _ in range(env.max_new_tokens):
        *_, infos = env.step(infos["action_mask"].sum(1) - 1)
    total = time.perf_counter() - started
    shares = {name: seconds[name] / total for name in ("forward", "candidates")}
    return {**shares, "bookkeeping": 1.0 - sum(shares.values())}
