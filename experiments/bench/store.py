"""Learning from the teacher store on the candidates, against a distillation step over the whole vocabulary."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents import make_agent
from agents.episodes import PAD_LOGP, Episodes
from agents.student import Student
from agents.vocabulary import SHARE, Head
from envs.candidates import log_norm, top_p
from envs.hf_teacher import HFTeacher
from envs.sequences import right_padded
from envs.vector_env import TopPTokenVectorEnv
from experiments.bench.allocator import KEPT, trim
from experiments.bench.env import Figure, bench_model, bench_teacher
from experiments.bench.peers import trl_step
from experiments.bench.timing import Resident, race
from experiments.collect import collect
from experiments.store.fingerprint import fingerprint
from experiments.store.shards import Manifest, Store, write_shard

if TYPE_CHECKING:
    from experiments.bench.learn import BenchLearnConfig

CLIP = 1.0  # of the gradient, in every arm
RESTING = Head(resting=True)
BATCHES = 4  # in the store: a round takes the next


@dataclass(frozen=True)
class Setting:
    """One teacher with a store of its episodes, and how many of these an update takes."""

    teacher: HFTeacher
    store: Store
    batch: int
    top_p: float
    max_candidates: int

    def read(self, turn: int) -> Episodes:
        """The batch of a round, from the store."""
        first = turn * self.batch % len(self.store)
        return self.store.select(range(first, first + self.batch))


def learning(config: BenchLearnConfig, vocabulary: int, allocator: str, bar: tqdm[Any]) -> list[Figure]:
    """The figures named below, each with its allocator.

    Teacher 256 wide with six layers, student 128 with two, its head tied. Vocabulary rows that a batch does not touch
    rest in our arms (`--resting-rows`); `adamw` is `memory` with all rows walked. Where the vocabulary is so narrow
    that `store` computes its head whole, `sampled` computes the candidates and an eighth of the others. `trl` is the
    step of TRL's own trainer, where that is installed. Memory is the rise of resident memory above the models, of each
    arm in a process of its own, and is left out where this process was told to keep memory.
    """
    with setting_of(config, vocabulary) as setting:
        held = [setting.read(turn) for turn in range(BATCHES)]
        arms: dict[str, Callable[[int], int]] = {
            "trunk": trunk_arm(setting, held),
            "memory": arm(setting, lambda turn: held[turn % BATCHES]),
            "store": arm(setting, setting.read),
            "live": arm(setting, lambda turn: asked(held[turn % BATCHES], setting)),
            "adamw": arm(setting, lambda turn: held[turn % BATCHES], Head()),
            "gkd": gkd_arm(setting, held),
        }
        if Head().negatives >= SHARE * vocabulary:
            arms["sampled"] = arm(setting, setting.read, Head("candidates", vocabulary // 8, resting=True))
        if find_spec("trl") is not None:
            student = bench_model(vocabulary, width=128, layers=2, tied=True).float()
            trained = (student, setting.teacher.model, vocabulary, CLIP)
            arms["trl"] = trl_step(*trained, [(batch.tokens, batch.prompt_length, predicted(batch)) for batch in held])
        bar.reset(len(arms) * (config.repeats + 1))
        found = race(arms, config.repeats, bar)
    where = {"V": vocabulary, "allocator": allocator}
    rates = [{"name": "tokens_per_second", "arm": name, **where, **found.rate(name)} for name in arms]
    ratios = {
        "gkd_over_store": ("store", "gkd"),
        "gkd_over_sampled": ("sampled", "gkd"),
        "trl_over_store": ("store", "trl"),
        "step_over_trunk": ("trunk", "store"),
        "live_over_store": ("store", "live"),
        "loading_over_memory": ("store", "memory"),
        "adamw_over_resting": ("memory", "adamw"),
    }
    named = [{"name": name, **where, **found.ratio(*pair)} for name, pair in ratios.items() if arms.keys() >= {*pair}]
    if allocator == KEPT:
        return [*rates, *named]
    rises = {name: rise(config, vocabulary, name) for name in ("store", "gkd")}
    peaks = [{"name": "peak_memory_mb", "arm": name, **where, "value": value} for name, value in rises.items()]
    return [*rates, *named, *peaks, {"name": "memory_ratio", **where, "value": rises["gkd"] / rises["store"]}]


def rise(config: BenchLearnConfig, vocabulary: int, name: str) -> float:
    """Megabytes that resident memory rises by, above the models, in two updates of an arm in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_rise, config, vocabulary, name).result()


def _rise(config: BenchLearnConfig, vocabulary: int, name: str) -> float:
    torch.set_num_threads(config.threads or torch.get_num_threads())
    with setting_of(config, vocabulary) as setting:
        held = [setting.read(turn) for turn in range(BATCHES)]
        run = gkd_arm(setting, held) if name == "gkd" else arm(setting, setting.read)
        trim()  # what drawing the store has left behind is not to be used again unseen
        with Resident() as memory:
            run(0)
            run(1)
    return memory.rise


@contextmanager
def setting_of(config: BenchLearnConfig, vocabulary: int) -> Iterator[Setting]:
    """A teacher and a store of its episodes, for as long as they are needed."""
    teacher = bench_teacher(vocabulary)
    rng = np.random.default_rng(0)
    count = BATCHES * config.store_episodes
    env = TopPTokenVectorEnv(
        min(count, 32),
        teacher=teacher,
        prompts=rng.integers(3, vocabulary, (count, config.prompt_tokens)).tolist(),
        top_p=config.top_p,
        max_candidates=config.max_candidates,
        max_new_tokens=config.store_steps,
    )
    settings = {"logp": "float16", "reward": "logprob", "teacher_walk": "full"}
    with TemporaryDirectory() as folder:
        manifest = Manifest(settings, fingerprint(teacher), {})
        line = write_shard(Path(folder) / "shard-00000.arrow", collect(env, count, seed=0), manifest.form)
        manifest.shards["shard-00000.arrow"] = line
        manifest.write(Path(folder))
        yield Setting(teacher, Store(folder, teacher), config.store_episodes, config.top_p, config.max_candidates)


def learner(setting: Setting, head: Head) -> Any:
    """`gkd` on the candidates, off-policy, around the student that every arm begins with."""
    model = bench_model(setting.teacher.vocab_size, width=128, layers=2, tied=True)
    student = Student(model, head=head)
    settings: dict[str, Any] = {"on": "set", "student_share": 0.0, "warmup": 0, "clip": CLIP}
    return make_agent("gkd", student, total_updates=10**9, **settings)


def arm(setting: Setting, batch_of: Callable[[int], Episodes], head: Head = RESTING) -> Callable[[int], int]:
    """Get the batch of a round and learn from it."""
    agent = learner(setting, head)

    def run(turn: int) -> int:
        batch = batch_of(turn)
        agent.update(batch)
        return int(batch.length.sum())

    return run


def asked(batch: Episodes, setting: Setting) -> Episodes:
    """The same texts with the candidate sets that the teacher gives them now, one forward for all states."""
    ends = (batch.prompt_length + batch.length).tolist()
    texts = [row[:end].tolist() for row, end in zip(batch.tokens, ends, strict=True)]
    tokens, mask = right_padded(texts, torch.device("cpu"))
    where = batch.states.nonzero(as_tuple=True)
    with torch.no_grad():
        hidden = setting.teacher.model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        logits = setting.teacher.model.lm_head(hidden[where[0], batch.prompt_length[where[0]] + where[1] - 1])
    found = top_p(logits, setting.top_p, setting.max_candidates, log_norm=log_norm(logits))
    width = int(found.sizes.max())
    shape = (*batch.states.shape, width)
    ids = torch.zeros(shape, dtype=torch.int64).index_put(where, found.ids[:, :width])
    logp = torch.full(shape, PAD_LOGP).index_put(where, found.logp[:, :width])
    there = torch.zeros(shape, dtype=torch.bool).index_put(where, found.mask[:, :width])
    at = (ids[:, :-1] == batch.taken[..., None]) & there[:, :-1]
    slots = torch.where(at.any(-1) & batch.steps, at.int().argmax(-1), -1)
    return replace(batch, ids=ids, logp=logp, mask=there, slots=slots, in_set=slots >= 0)


def gkd_arm(setting: Setting, batches: list[Episodes]) -> Callable[[int], int]:
    """A GKD step as it is usually written: both models, whole texts, all positions' logits, the whole vocabulary."""
    model = bench_model(setting.teacher.vocab_size, width=128, layers=2, tied=True).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def run(turn: int) -> int:
        batch = batches[turn % len(batches)]
        with torch.no_grad():
            theirs = setting.teacher.model(input_ids=batch.tokens, use_cache=False).logits
        ours = model(input_ids=batch.tokens, use_cache=False).logits
        loss = jensen_shannon(ours, theirs, predicted(batch))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        return int(batch.length.sum())

    return run


def jensen_shannon(ours: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """½ KL(T‖M) + ½ KL(S‖M), M the mean of both, over the whole vocabulary; averaged where the weights are.

    Args: logits (B, L, V) of student and teacher; weights (B, L).
    """
    student, teacher = ours.log_softmax(-1), theirs.log_softmax(-1)
    mixture = torch.stack([student, teacher]).logsumexp(0) - math.log(2)
    apart = torch.nn.functional.kl_div(mixture, teacher, reduction="none", log_target=True).sum(-1)
    apart = apart + torch.nn.functional.kl_div(mixture, student, reduction="none", log_target=True).sum(-1)
    return (apart * weights).sum() / (2 * weights.sum())


def predicted(batch: Episodes) -> Tensor:
    """Positions whose next token belongs to the reply.  # (B, L) float32"""
    place, start = torch.arange(batch.tokens.shape[1]), batch.prompt_length[:, None] - 1
    return ((place >= start) & (place < start + batch.length[:, None])).float()


def trunk_arm(setting: Setting, batches: list[Episodes]) -> Callable[[int], int]:
    """The floor: the student's layers forward and backward with their optimiser, without embedding and head."""
    model = bench_model(setting.teacher.vocab_size, width=128, layers=2, tied=True).float()
    model.get_input_embeddings().requires_grad_(False)
    weights = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)

    def run(turn: int) -> int:
        batch = batches[turn % len(batches)]
        loss = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state.square().mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        return int(batch.length.sum())

    return run
