"""`tdistill bench env`: the environment against what people do without it, on the same weights, in the same process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.token_env import TopPTokenEnv
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.parts import parts_of
from experiments.bench.peers import NaiveEnv, generate, raw_decode
from experiments.bench.timing import Race, race

EOS = 2
MEAN_LENGTH = 32  # tokens of a reply in the refilling arm, geometric
RAGGED = (8, 64)  # tokens of a prompt in the refilling arm, uniform
Figure = dict[str, Any]
Arm = Callable[[int], int]


@dataclass(frozen=True)
class BenchEnvConfig:
    """Time the environment against raw Hugging Face decoding, `generate` and a naive environment.

    The teacher is a Llama 256 wide with six layers and random weights. Arms of a comparison run in turn, round by
    round; ratios are of the same round. The machine should have nothing else to do.
    """

    rows: tuple[int, ...] = (1, 8, 32, 128)
    """How many episodes run together; refilling and the adapter are measured with the most."""
    vocabularies: tuple[int, ...] = (2048, 50257)
    """Widths of the softmax; refilling and the adapter are measured with the first."""
    prompt_tokens: int = 32
    steps: int = 64
    """Tokens of an episode."""
    top_p: float = 0.9
    max_candidates: int = 64
    repeats: int = 5
    """Rounds that count; one more warms up."""
    threads: int | None = 1
    """CPU threads; none: as many as torch takes. One is the least noisy."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        counts = {"prompt_tokens": self.prompt_tokens, "steps": self.steps, "repeats": self.repeats}
        counts |= {} if self.threads is None else {"threads": self.threads}
        smallest = {"rows": min(self.rows, default=0), "vocabularies": min(self.vocabularies, default=0)}
        for name, value in {**counts, **smallest}.items():
            if value < 1:
                raise InputError(f"{name} has {value}; it must be at least 1")


def run(config: BenchEnvConfig) -> list[Figure]:
    """Every figure of the benchmark, each with its `name`, `V` and `N`; ratios have `low` and `high`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    figures: list[Figure] = []
    widest = max(config.rows)
    with tqdm(total=_total(config), unit="run", desc="bench env") as bar:
        for vocabulary in config.vocabularies:
            teacher = bench_teacher(vocabulary)
            for rows in config.rows:
                found = race(_arms(config, teacher, rows), config.repeats, bar)
                figures += _figures(found, vocabulary, rows)
                figures += _parts(config, teacher, rows)
            if vocabulary == config.vocabularies[0]:
                figures += _refilling(config, teacher, widest, bar)
                figures += _adapter(config, teacher, widest, bar)
    return figures


def bench_teacher(vocabulary: int) -> HFTeacher:
    """A random Llama 256 wide with six layers, its head so sharp that a nucleus has a dozen tokens or more."""
    return HFTeacher(bench_model(vocabulary, width=256, layers=6), None, name=f"random Llama, V = {vocabulary:,}")


def bench_model(vocabulary: int, width: int, layers: int, tied: bool = False) -> Any:
    """A random Llama with a sharp head, the same at every call; one whose head is its embedding is not sharp."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=43 * width // 16,
                num_hidden_layers=layers,
                num_attention_heads=8,
                max_position_embeddings=1024,
                bos_token_id=1,
                eos_token_id=EOS,
                pad_token_id=EOS,
                tie_word_embeddings=tied,
            )
        )
    with torch.no_grad():
        model.lm_head.weight.mul_(1.0 if tied else 16.0)
    return model.eval()


def options_of(config: BenchEnvConfig) -> dict[str, Any]:
    """What an environment of the benchmark is given."""
    return {
        "prompts": [[3] * config.prompt_tokens],
        "top_p": config.top_p,
        "max_candidates": config.max_candidates,
        "max_new_tokens": config.steps,
    }


def make(config: BenchEnvConfig, teacher: HFTeacher, rows: int, **options: Any) -> TopPTokenVectorEnv:
    """The environment of an arm."""
    return TopPTokenVectorEnv(rows, teacher=teacher, **{**options_of(config), **options})


def prompts_of(config: BenchEnvConfig, teacher: HFTeacher, rows: int, turn: int) -> list[list[int]]:
    """Prompts that no other round has, so that none has been read before."""
    rng = np.random.default_rng([turn, rows])
    drawn: list[list[int]] = rng.integers(3, teacher.vocab_size, (rows, config.prompt_tokens)).tolist()
    return drawn


def walk(env: Any, prompts: list[list[int]], steps: int, rng: np.random.Generator) -> int:
    """An episode a row, by slots drawn uniformly from the sets; returns the tokens taken, resets left out."""
    _, infos = env.reset(options={"prompts": prompts})
    taken = 0
    for _ in range(steps):
        sizes = infos["action_mask"].sum(1)
        *_, infos = env.step((rng.random(len(sizes)) * sizes).astype(np.int64))
        taken += int((infos["token"] >= 0).sum())
    return taken


def _arms(config: BenchEnvConfig, teacher: HFTeacher, rows: int) -> dict[str, Arm]:
    env = make(config, teacher, rows)
    rng = np.random.default_rng(0)

    def prompts(turn: int) -> list[list[int]]:
        return prompts_of(config, teacher, rows, turn)

    def naive(turn: int) -> int:
        alone = NaiveEnv(teacher.model, config.top_p, config.max_candidates)
        seen = alone.reset(prompts(turn)[0])
        for _ in range(config.steps):
            seen, *_ = alone.step(int(rng.integers(seen["mask"].sum())))
        return config.steps

    arms: dict[str, Arm] = {
        "env": lambda turn: walk(env, prompts(turn), config.steps, rng),
        "raw_hf": lambda turn: raw_decode(teacher.model, torch.tensor(prompts(turn)), config.steps),
        # A quarter of the steps: whole vocabularies are sorted, which takes most of a minute otherwise.
        "generate": lambda turn: generate(
            teacher.model, torch.tensor(prompts(turn)), max(1, config.steps // 4), config.top_p
        ),
        "naive": naive,
    }
    if rows == 1:
        single = TopPTokenEnv(teacher=teacher, **options_of(config))
        arms["single"] = lambda turn: _single(single, prompts(turn)[0], rng)
    return arms


def _single(env: TopPTokenEnv, prompt: list[int], rng: np.random.Generator) -> int:
    _, info = env.reset(options={"prompt": prompt})
    taken, over = 0, False
    while not over:
        _, _, terminated, truncated, info = env.step(int(rng.integers(info["action_mask"].sum())))
        taken, over = taken + 1, terminated or truncated
    return taken


def _figures(found: Race, vocabulary: int, rows: int) -> list[Figure]:
    where = {"V": vocabulary, "N": rows}
    figures: list[Figure] = []
    for arm in found.samples:
        figures.append({"name": "steps_per_second", "arm": arm, **where, **found.rate(arm)})
        figures.append({"name": "peak_memory_mb", "arm": arm, **where, "value": found.peaks[arm]})
    figures += [
        {"name": f"over_{peer}", **where, **found.ratio("env", peer)} for peer in ("raw_hf", "generate", "naive")
    ]
    if rows == 1:
        figures.append({"name": "single_over_naive", **where, **found.ratio("single", "naive")})
    return figures


def _parts(config: BenchEnvConfig, teacher: HFTeacher, rows: int) -> list[Figure]:
    begin = prompts_of(config, teacher, rows, 0)
    shares = parts_of(teacher, rows, begin, **options_of(config))
    where = {"V": teacher.vocab_size, "N": rows}
    return [{"name": "share_of_time", "part": part, **where, "value": share} for part, share in shares.items()]


def _refilling(config: BenchEnvConfig, teacher: HFTeacher, rows: int, bar: tqdm[Any]) -> list[Figure]:
    """Ragged prompts and geometric lengths with refilling, over the same tokens in lock-step episodes."""
    middle = sum(RAGGED) // 2
    rng = np.random.default_rng(1)

    def prompt(length: int) -> list[int]:
        drawn: list[int] = rng.integers(3, teacher.vocab_size, length).tolist()
        return drawn

    ragged = [prompt(int(rng.integers(RAGGED[0], RAGGED[1] + 1))) for _ in range(32 * rows)]
    refilling = make(config, teacher, rows, prompts=ragged, max_new_tokens=4 * MEAN_LENGTH)
    lock_step = make(config, teacher, rows, prompts=[prompt(middle) for _ in ragged], max_new_tokens=MEAN_LENGTH)
    refilling.reset(seed=0)
    lock_step.reset(seed=0)

    def refill(turn: int) -> int:
        """Goes on where the round before stopped; the one that warms up brings the rows out of step."""
        taken = 0
        for _ in range(4 * MEAN_LENGTH):
            tokens = np.where(rng.random(rows) < 1 / MEAN_LENGTH, EOS, refilling.candidates.ids[:, 0].numpy())
            *_, infos = refilling.step_tokens(tokens)
            taken += int((infos["token"] >= 0).sum())
        return taken

    def fixed(turn: int) -> int:
        taken = 0
        for _ in range(4):
            lock_step.reset()
            for _ in range(MEAN_LENGTH):
                *_, infos = lock_step.step_tokens(lock_step.candidates.ids[:, 0].numpy())
                taken += int((infos["token"] >= 0).sum())
        return taken

    found = race({"refill": refill, "fixed": fixed}, config.repeats, bar)
    where = {"V": teacher.vocab_size, "N": rows}
    return [{"name": "refill_over_fixed", **where, **found.ratio("refill", "fixed")}]


def _adapter(config: BenchEnvConfig, teacher: HFTeacher, rows: int, bar: tqdm[Any]) -> list[Figure]:
    """The Stable-Baselines3 adapter over the environment itself, both with same-step autoreset."""
    from envs.sb3 import TopPVecEnv

    rng = np.random.default_rng(2)
    mode = AutoresetMode.SAME_STEP
    env = make(config, teacher, rows, autoreset_mode=mode)
    inside = make(config, teacher, rows, autoreset_mode=mode)
    adapter = TopPVecEnv(inside)

    def adapted(turn: int) -> int:
        adapter.set_options({"prompts": prompts_of(config, teacher, rows, turn)})
        adapter.reset()
        for _ in range(config.steps):
            sizes = adapter.action_masks().sum(1)
            adapter.step((rng.random(rows) * sizes).astype(np.int64))
        return rows * config.steps

    def itself(turn: int) -> int:
        _, infos = env.reset(options={"prompts": prompts_of(config, teacher, rows, turn)})
        for _ in range(config.steps):
            sizes = infos["action_mask"].sum(1)
            *_, infos = env.step((rng.random(rows) * sizes).astype(np.int64))
        return rows * config.steps

    found = race({"sb3": adapted, "env": itself}, config.repeats, bar)
    where = {"V": teacher.vocab_size, "N": rows}
    return [{"name": "sb3_over_env", **where, **found.ratio("sb3", "env")}]


def _total(config: BenchEnvConfig) -> int:
    arms = sum(5 if rows == 1 else 4 for rows in config.rows) * len(config.vocabularies) + 4
    return arms * (config.repeats + 1)
