"""`tdistill bench memory`: what an environment holds over hours, with rows that end and begin all the time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.timing import resident

EOS = 2
POINTS = 200
Figure = dict[str, Any]


@dataclass(frozen=True)
class BenchMemoryConfig:
    """Step a small environment for long, and plot the memory of the process.

    Prompts have 1 to 32 tokens and replies 32 in the mean, so that rows are refilled all the time.
    """

    steps: int = 200_000
    """Steps of the environment, each of all rows."""
    rows: int = 8
    figure: Path = Path("runs/bench/memory.png")
    """Where the curve goes."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        for name, value, least in (("steps", self.steps, POINTS), ("rows", self.rows, 1)):
            if value < least:
                raise InputError(f"{name} = {value} is below {least}")


def run(config: BenchMemoryConfig) -> list[Figure]:
    """Resident megabytes by step, and by how much the second half rises above the first, its warm-up left out."""
    torch.set_num_threads(1)  # the model is tiny
    env = TopPTokenVectorEnv(config.rows, teacher=_teacher(), prompts=_prompts(), max_new_tokens=4 * 32)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    every = config.steps // POINTS
    curve: list[tuple[int, float]] = []
    for step in tqdm(range(1, config.steps + 1), desc="bench memory", unit="step", mininterval=1.0):
        tokens = np.where(rng.random(config.rows) < 1 / 32, EOS, env.candidates.ids[:, 0].numpy())
        env.step_tokens(tokens)
        if step % every == 0:
            curve.append((step, resident()))
    _plot(curve, config)
    megabytes = [value for _, value in curve]
    tenth, half = len(curve) // 10, len(curve) // 2
    rise = max(megabytes[half:]) - max(megabytes[tenth:half])
    points = [{"name": "resident_mb", "step": step, "value": value} for step, value in curve]
    return [{"name": "rise_mb", "steps": config.steps, "N": config.rows, "value": rise}, *points]


def _teacher() -> HFTeacher:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=512, max_position_embeddings=256, eos_token_id=EOS, **sizes)
        return HFTeacher(LlamaForCausalLM(config), None, name="a tiny random Llama")


def _prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 512, rng.integers(1, 33)).tolist() for _ in range(1000)]


def _plot(curve: list[tuple[int, float]], config: BenchMemoryConfig) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.0, 3.2), layout="constrained")
    axes = canvas.subplots()
    axes.plot([step for step, _ in curve], [value for _, value in curve], linewidth=1.2)
    axes.set(xlabel="steps of the environment", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title(f"{config.rows} rows, refilled all the time", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    config.figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(config.figure, dpi=150)
