"""How fast a student walks: both models in lockstep, against the two raw decodes one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.env import Figure, bench_model, bench_teacher
from experiments.bench.peers import raw_decode
from experiments.bench.timing import race, spread
from experiments.collect import collect

ROWS = 64
PROMPT_TOKENS = 32
STEPS = 64
ARMS = 3


def lockstep(vocabulary: int, repeats: int, bar: tqdm[Any]) -> list[Figure]:
    """`lockstep_over_raw` and the rates behind it; the student is half as wide as the teacher and has half its layers.

    x = w · (1/a + 1/b),   w tokens/s of a student walk that ends in `Episodes`, a and b of raw decoding alone
    """
    teacher, student = bench_teacher(vocabulary), bench_model(vocabulary, width=128, layers=3)
    rng = np.random.default_rng(0)
    prompts: list[list[int]] = rng.integers(3, vocabulary, (16 * ROWS, PROMPT_TOKENS)).tolist()
    env = TopPTokenVectorEnv(ROWS, teacher=teacher, prompts=prompts, max_new_tokens=STEPS)

    def begin(turn: int) -> torch.Tensor:
        return torch.tensor(prompts[turn % 16 * ROWS :][:ROWS])

    def walk(turn: int) -> int:
        return int(collect(env, ROWS, seed=turn, student=student, student_share=1.0).length.sum())

    arms = {
        "lockstep": walk,
        "raw teacher": lambda turn: raw_decode(teacher.model, begin(turn), STEPS),
        "raw student": lambda turn: raw_decode(student, begin(turn), STEPS),
    }
    found = race(arms, repeats, bar)
    rounds = zip(*(found.samples[arm] for arm in arms), strict=True)
    ratios = [own.rate * (1 / one.rate + 1 / other.rate) for own, one, other in rounds]
    where = {"V": vocabulary, "N": ROWS}
    rates: list[Figure] = [{"name": "tokens_per_second", "arm": arm, **where, **found.rate(arm)} for arm in arms]
    return [*rates, {"name": "lockstep_over_raw", **where, **spread(ratios)}]
