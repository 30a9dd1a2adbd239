"""How fast a student walks: both models in lockstep, against the two raw decodes one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.env import Figure, bench_model, bench_teacher
from experiments.bench.peers import raw_decode
from experiments.bench.timing import race, spread
from experiments.collect import collect

ARMS = 3
BATCHES = 16  # of prompts, a round reads one: none is read twice in a row


def lockstep(vocabulary: int, rows: int, prompt_tokens: int, steps: int, repeats: int, bar: tqdm[Any]) -> list[Figure]:
    """`lockstep_over_raw` and the rates behind it; the student is half as wide as the teacher and has half its layers.

    x = w · (1/a + 1/b),   w tokens/s of a student walk that ends in `Episodes`, a and b of raw decoding alone
    """
    teacher, student = bench_teacher(vocabulary), bench_model(vocabulary, width=128, layers=3)
    rng = np.random.default_rng(0)
    prompts: list[list[int]] = rng.integers(3, vocabulary, (BATCHES * rows, prompt_tokens)).tolist()
    env = TopPTokenVectorEnv(rows, teacher=teacher, prompts=prompts, max_new_tokens=steps)

    def begin(turn: int) -> torch.Tensor:
        return torch.tensor(prompts[turn % BATCHES * rows :][:rows])

    def walk(turn: int) -> int:
        return int(collect(env, rows, seed=turn, student=student, student_share=1.0).length.sum())

    arms: dict[str, Callable[[int], int]] = {
        "lockstep": walk,
        "raw teacher": lambda turn: raw_decode(teacher.model, begin(turn), steps),
        "raw student": lambda turn: raw_decode(student, begin(turn), steps),
    }
    found = race(arms, repeats, bar)
    rounds = zip(*(found.samples[arm] for arm in arms), strict=True)
    ratios = [own.rate * (1 / one.rate + 1 / other.rate) for own, one, other in rounds]
    where = {"V": vocabulary, "N": rows}
    rates: list[Figure] = [{"name": "tokens_per_second", "arm": arm, **where, **found.rate(arm)} for arm in arms]
    return [*rates, {"name": "lockstep_over_raw", **where, **spread(ratios)}]
