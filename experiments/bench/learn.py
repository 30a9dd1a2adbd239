"""`tdistill bench learn`: one update on whole sequences against replay of single transitions, same agent, same loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents import make_agent
from agents.base import Agent
from agents.episodes import Episodes
from agents.objectives import average, forward_kl
from agents.student import Student, build_student
from envs.errors import InputError
from envs.hf_teacher import HFTeacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench import store
from experiments.bench.allocator import KEPT, allocator, keep_memory
from experiments.bench.env import bench_teacher
from experiments.bench.lockstep import ARMS, lockstep
from experiments.bench.rows import LastPosition, step_in_parts, transitions
from experiments.bench.timing import race
from experiments.collect import collect

CLASSES = 64  # of tokens that are followed alike, so that a text can be learnt in a minute
PART = 64  # transitions that run forward and backward together; more are no faster
HELD_OUT = 8  # episodes on which the divergence is measured
Figure = dict[str, Any]


@dataclass(frozen=True)
class BenchLearnConfig:
    """Time updates on whole sequences against replayed transitions, and from the store against a live teacher.

    The student is random, six layers 256 wide if not said otherwise; a narrow student under a wide softmax spends its
    time in the vocabulary head, which both arms pay alike. The machine should have nothing else to do.
    """

    vocabularies: tuple[int, ...] = (2048, 50257)
    """Widths of the softmax."""
    student: str = "base"
    """Size name of the student."""
    episodes: int = 32
    """Episodes of an update on sequences."""
    prompt_tokens: int = 32
    steps: int = 64
    """Tokens of an episode."""
    transitions: int = 128
    """Transitions that the other arm is timed on, of those of the same episodes: all would take minutes."""
    kl_episodes: int = 4
    """Episodes of an update when both learn: small updates learn sooner, for either arm."""
    kl_transitions: int = 32
    """Transitions of an update when both learn; 32 is what Stable-Baselines3's DQN takes."""
    kl_updates: int = 40
    """Updates on sequences whose divergence from the teacher the other arm has to reach; 0 leaves that out."""
    kl_cap: float = 6.0
    """How many times as long the other arm may take for it."""
    walk_rows: int = 64
    """Texts that a student walks together, with a teacher of six layers; 0 leaves that out."""
    store_episodes: int = 16
    """Episodes of an update from the teacher store; 0 leaves that out."""
    store_steps: int = 96
    """Tokens of these."""
    top_p: float = 0.9
    max_candidates: int = 64
    repeats: int = 5
    """Rounds that count; one more warms up."""
    threads: int | None = 1
    """CPU threads; none: as many as torch takes. One is the least noisy."""
    json: Path | None = None
    """Write the figures to this file too."""

    def __post_init__(self) -> None:
        counts = {"episodes": self.episodes, "prompt_tokens": self.prompt_tokens, "steps": self.steps}
        counts |= {
            "store_steps": self.store_steps,
            "transitions": self.transitions,
            "kl_episodes": self.kl_episodes,
            "kl_transitions": self.kl_transitions,
            "repeats": self.repeats,
        }
        counts |= {} if self.threads is None else {"threads": self.threads}
        for name, value in {**counts, "vocabularies": min(self.vocabularies, default=0)}.items():
            if value < 1:
                raise InputError(f"{name} has {value}; it must be at least 1")
        for name in ("walk_rows", "store_episodes"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"{name} = {value} must not be negative; 0 leaves that out")
        if self.kl_updates < 0 or self.kl_cap <= 0:
            raise InputError(f"kl_updates = {self.kl_updates} must not be negative, kl_cap = {self.kl_cap} above 0")


def run(config: BenchLearnConfig) -> list[Figure]:
    """Every figure of the benchmark, each with its `name` and `V`; ratios have `low` and `high`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    figures: list[Figure] = []
    for vocabulary in config.vocabularies:
        teacher = learnable_teacher(vocabulary)
        for part in PARTS:
            figures += part(config, teacher)
    if config.store_episodes and keep_memory():  # from here on, so it comes last
        for vocabulary in config.vocabularies:
            figures += store_part(config, vocabulary, KEPT)
    return figures


def learnable_teacher(vocabulary: int) -> HFTeacher:
    """The head of `bench_teacher` without its layers: what follows depends on the class of the last token alone."""
    teacher = bench_teacher(vocabulary)
    with torch.no_grad():
        teacher.model.model.layers = teacher.model.model.layers[:0]
        teacher.model.config.num_hidden_layers = 0
        embedding = teacher.model.get_input_embeddings().weight
        embedding.copy_(embedding[torch.arange(vocabulary) % CLASSES])
    return teacher


def episodes_of(config: BenchLearnConfig, teacher: HFTeacher, count: int, seed: int) -> Episodes:
    """Teacher episodes on random prompts."""
    rng = np.random.default_rng(seed)
    env = TopPTokenVectorEnv(
        min(count, 32),
        teacher=teacher,
        prompts=rng.integers(3, teacher.vocab_size, (count, config.prompt_tokens)).tolist(),
        top_p=config.top_p,
        max_candidates=config.max_candidates,
        max_new_tokens=config.steps,
    )
    return collect(env, count, seed=seed)


def learner(config: BenchLearnConfig, vocabulary: int, kind: type[Student]) -> Agent[Any]:
    """`soft_q` with its defaults but a constant rate, around a random student, the same for both kinds."""
    model = build_student(config.student, tokenizer=None, vocab_size=vocabulary).model
    return make_agent("soft_q", kind(model), total_updates=10**9, warmup=0)


def speed(config: BenchLearnConfig, teacher: HFTeacher) -> list[Figure]:
    """Transitions a second of one gradient step, on a batch of sequences and on transitions of the same batch."""
    batch = episodes_of(config, teacher, config.episodes, seed=0)
    rows = transitions(batch)
    whole, single = (learner(config, teacher.vocab_size, kind) for kind in (Student, LastPosition))

    def sequence(turn: int) -> int:
        whole.update(batch)
        return int(batch.length.sum())

    def transition(turn: int) -> int:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(turn))[: config.transitions]
        return step_in_parts(single, [rows.select(part) for part in chosen.chunk(-(-len(chosen) // PART))])

    with tqdm(total=2 * (config.repeats + 1), unit="run", desc=f"bench learn, V = {teacher.vocab_size:,}") as bar:
        found = race({"sequence": sequence, "transition": transition}, config.repeats, bar)
    where = {"V": teacher.vocab_size, "student": config.student}
    rates = [{"name": "transitions_per_second", "arm": arm, **where, **found.rate(arm)} for arm in found.samples]
    return [*rates, {"name": "sequence_over_transition", **where, **found.ratio("sequence", "transition")}]


def equal_kl(config: BenchLearnConfig, teacher: HFTeacher) -> list[Figure]:
    """Seconds from the same start to the same KL(T‖S) on held-out states: what `kl_updates` on sequences reach.

    Measuring is not timed. An arm that does not get there within `kl_cap` times as long is marked `capped`: its seconds
    are then a lower bound, and so is the ratio.
    """
    if not config.kl_updates:
        return []
    pool = episodes_of(config, teacher, 4 * config.episodes, seed=1)
    held = episodes_of(config, teacher, HELD_OUT, seed=2)
    logp = _teacher_logp(teacher, held)
    generator = torch.Generator().manual_seed(0)
    rows = transitions(pool)
    whole, single = (learner(config, teacher.vocab_size, kind) for kind in (Student, LastPosition))

    def draw(source: Episodes, size: int) -> Callable[[], Episodes]:
        return lambda: source.select(torch.randint(len(source), (size,), generator=generator))

    begin = divergence(whole, held, logp)
    seconds = _timed(whole, draw(pool, config.kl_episodes), config.kl_updates)
    goal, limit = divergence(whole, held, logp), config.kl_cap * seconds
    other, reached = 0.0, begin
    with tqdm(total=round(limit), unit="s", desc=f"to equal KL, V = {teacher.vocab_size:,}") as bar:
        while reached > goal and other < limit:
            other += _timed(single, draw(rows, config.kl_transitions), 2)
            reached = divergence(single, held, logp)
            bar.set_postfix_str(f"{reached:.3f}, goal {goal:.3f} nats")
            bar.update(round(min(other, limit)) - bar.n)
    where = {"V": teacher.vocab_size, "student": config.student, "kl_start": begin, "kl": goal}
    capped = {"capped": reached > goal, "kl_reached": reached}
    ratio = other / seconds
    return [
        {"name": "seconds_to_equal_kl", "arm": "sequence", **where, "value": seconds},
        {"name": "seconds_to_equal_kl", "arm": "transition", **where, "value": other, **capped},
        {"name": "transition_seconds_over_sequence", **where, "value": ratio, "low": ratio, "high": ratio, **capped},
    ]


@torch.no_grad()
def divergence(agent: Agent[Any], held: Episodes, teacher_logp: Tensor) -> float:
    """Mean KL(T‖S) over the states of held-out episodes, nats."""
    assert isinstance(agent.student, Student)
    logp = Student.scores(agent.student, held, full=True).logp  # every position, of both kinds
    assert logp is not None
    return float(average(forward_kl(teacher_logp, logp[:, :-1]), held.step_weights))


def _timed(agent: Agent[Any], draw: Callable[[], Episodes], updates: int) -> float:
    """Seconds of so many updates, drawing included."""
    begin = time.perf_counter()
    for _ in range(updates):
        agent.update(draw())
    return time.perf_counter() - begin


def _teacher_logp(teacher: HFTeacher, episodes: Episodes) -> Tensor:
    """log π_T of every state before a step.  # (B, T, V)"""
    found = torch.zeros(*episodes.slots.shape, teacher.vocab_size)
    for row in range(len(episodes)):
        prompt, steps = int(episodes.prompt_length[row]), int(episodes.length[row])
        scored = teacher.score([episodes.tokens[row, : prompt + steps].tolist()])[0]
        found[row, :steps] = scored[prompt - 1 : prompt + steps - 1]
    return found


def walks(config: BenchLearnConfig, teacher: HFTeacher) -> list[Figure]:
    """A student's walk in lockstep with a teacher of six layers, against two raw decodes."""
    if not config.walk_rows:
        return []
    size = (config.walk_rows, config.prompt_tokens, config.steps)
    with tqdm(total=ARMS * (config.repeats + 1), unit="run", desc=f"student walks, V = {teacher.vocab_size:,}") as bar:
        return lockstep(teacher.vocab_size, *size, config.repeats, bar)


def from_store(config: BenchLearnConfig, teacher: HFTeacher) -> list[Figure]:
    """Learning from the teacher store on the candidates, against both models over the whole vocabulary."""
    return store_part(config, teacher.vocab_size, allocator()) if config.store_episodes else []


def store_part(config: BenchLearnConfig, vocabulary: int, memory: str) -> list[Figure]:
    """The same under an allocator of this name."""
    about = f"teacher store, V = {vocabulary:,}, allocator {memory}"
    with tqdm(unit="run", desc=about) as bar:
        return store.learning(config, vocabulary, memory, bar)


PARTS: tuple[Callable[[BenchLearnConfig, HFTeacher], list[Figure]], ...] = (speed, equal_kl, walks, from_store)
"""What is measured at each width, in order."""
