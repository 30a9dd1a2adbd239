"""Who walks the MDP, and how a walk becomes episodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from tqdm import tqdm

from agents import parallel
from agents.episodes import Episodes, padded
from envs.decode import Decoder
from envs.errors import InputError
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv
from experiments.references import Recital, Recited, teacher_logp_of
from experiments.tape import Tape

TEACHER_WALKS = ("full", "set")


def collect(
    env: TopPTokenVectorEnv,
    count: int,
    *,
    seed: int,
    student: Any = None,
    student_share: float = 0.0,
    teacher_mix: float = 0.0,
    teacher_walk: str = "full",
    version: int = 0,
    recited: Recited | None = None,
    progress: str | None = None,
) -> Episodes:
    """`count` whole episodes of the env's prompts, walked at temperature 1; the student's from its full softmax.

        teacher's episodes:  a ∼ π_T(·|s), or π_T^A with teacher_walk = "set"
        student's episodes:  a ∼ β π_T(·|s) + (1 − β) π_S(·|s),   β = teacher_mix

    A token outside the set is paid its full log π_T and marked. `behaviour_logp` is that of the distribution the token
    was drawn from. Student and teacher decode in lockstep, one cached forward of each a step; rows that the student has
    beyond the teacher's vocabulary are never drawn. The first `count` episodes begun are the ones returned, in that
    order, however long they take: taking those that finish first would prefer short replies. The discount
    γ(1 − terminated) is formed here, with the env's γ.

    Source: sections (2) and (7) of the design; mixtures by Ross et al. (2011), arXiv:1011.0686, algorithm 3.1.
    Args:
        student: causal LM that walks a share of the episodes; None: the teacher walks all.
        student_share: probability that an episode is the student's.
        teacher_mix: β in [0, 1].
        teacher_walk: "full" or "set".
        version: updates that the student has made; the student's episodes carry it.
        recited: replies to every prompt, which are said instead of drawn, in turn; `behaviour_logp` is the teacher's
            then, although nobody drew them.
        progress: label of a progress bar; None shows none.
    Raises: InputError: a count below 1, an env without next-step autoreset, whole vocabularies of candidates that would
        not fit in memory, a share or β outside [0, 1], or a share without a student.
    """
    who = (student, student_share, teacher_mix, teacher_walk)
    _check(env, count, *who)
    if recited is not None and student_share > 0:
        raise InputError(f"student_share = {student_share}, and replies are recited; one of the two")
    walk = _Walk(env, *who, torch.Generator().manual_seed(seed)) if recited is None else Recital(env, recited)
    observations, _ = env.reset(seed=seed)
    tape = Tape(env, count, version)
    begun = np.ones(env.num_envs, dtype=bool)
    with tqdm(total=count, desc=progress, unit="episode", disable=progress is None) as bar:
        while not tape.complete:
            if begun.any():
                rows = begun.nonzero()[0].tolist()
                walk.begin(rows)
                tape.begin(rows, observations, walk.own.numpy())
            tokens, teacher_logp, behaviour_logp = walk.draw()
            observations, rewards, terminated, truncated, infos = env.step_tokens(tokens)
            begun = infos["token"] < 0
            acted = ~begun
            walk.step(tokens, torch.from_numpy(acted & ~terminated & ~truncated))
            logp = (teacher_logp.numpy(), behaviour_logp.numpy())
            tape.write(acted, tokens.numpy(), rewards, *logp, infos["in_set"], observations)
            bar.update(tape.finish((terminated | truncated) & acted, terminated))
    return tape.episodes()


def numbers_of(episodes: Episodes, texts: Sequence[Sequence[int]]) -> list[int]:
    """Which of these prompts each episode began with: the first that is equal."""
    known = {tuple(text): number for number, text in reversed(list(enumerate(texts)))}
    begun = zip(episodes.tokens.tolist(), episodes.prompt_length.tolist(), strict=True)
    return [known[tuple(row[:length])] for row, length in begun]


def _check(
    env: TopPTokenVectorEnv, count: int, student: Any, student_share: float, teacher_mix: float, teacher_walk: str
) -> None:
    if not 0.0 <= student_share <= 1.0 or (student_share > 0 and student is None):
        raise InputError(f"student_share = {student_share} must lie in [0, 1], and needs a student above 0")
    if not 0.0 <= teacher_mix <= 1.0:
        raise InputError(f"teacher_mix = {teacher_mix} must lie in [0, 1]")
    if teacher_walk not in TEACHER_WALKS:
        raise InputError(f"teacher_walk = {teacher_walk!r} must be one of {', '.join(TEACHER_WALKS)}")
    if count < 1 or env.autoreset_mode is not AutoresetMode.NEXT_STEP:
        raise InputError(
            f"{count} episodes of an env with autoreset {env.autoreset_mode.value}: count must be at least 1, and rows "
            'are refilled with autoreset_mode="next_step"'
        )


class _Walk:
    """Who walks which row, and what each row's next token is drawn from."""

    def __init__(
        self,
        env: TopPTokenVectorEnv,
        student: Any,
        student_share: float,
        teacher_mix: float,
        teacher_walk: str,
        generator: torch.Generator,
    ) -> None:
        if not getattr(env.teacher, "whole", True) and (student_share > 0 or teacher_walk == "full"):
            raise InputError(
                f"{env.teacher.name} returns its most probable tokens only: `tdistill collect` draws its replies, "
                'here it walks the sets alone (teacher_walk="set", no student)'
            )
        self.env, self.share, self.mix, self.kind = env, student_share, teacher_mix, teacher_walk
        self.generator = generator
        self.walker = Decoder(student, env.num_envs) if student_share > 0 else None
        self.own = torch.zeros(env.num_envs, dtype=torch.bool)  # rows that the student walks

    def begin(self, rows: list[int]) -> None:
        """Draw who walks these rows, and let the student read the prompts of its own."""
        self.own[rows] = torch.rand(len(rows), generator=self.generator) < self.share
        own = [row for row in rows if self.own[row]]
        if self.walker is not None and own:
            self.walker.start(own, [self.env.prompt_tokens(row) for row in own])

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append the tokens where the student walks on."""
        if self.walker is not None:
            self.walker.step(torch.where(self.own, tokens, 0), active & self.own)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """A token for every row, its log π_T, and its log-probability where it was drawn; (N,) each."""
        mass = self._mass()
        tokens = _draw(mass, self.generator)
        teacher_logp = teacher_logp_of(self.env, tokens)
        drawn = mass.gather(1, tokens[:, None])[:, 0].log()
        return tokens, teacher_logp, torch.where(self.own | (self.kind == "set"), drawn, teacher_logp)

    def _mass(self) -> Tensor:
        """What each row's next token is drawn from.  # (N, V) probabilities"""
        if self.walker is None or not self.own.any():
            return self._teachers()
        width = self.env.teacher.vocab_size
        mass = torch.softmax(self.walker.logits[:, :width].float(), -1).cpu()
        missing = width - mass.shape[1]
        if missing > 0:
            mass = torch.nn.functional.pad(mass, (0, missing))
        if self.mix > 0:
            mass = torch.lerp(mass, self._softmax(), self.mix)
        if self.mix > 0 and missing > 0:  # the student cannot read what it has no rows for
            mass[:, width - missing :] = 0
            mass /= mass.sum(1, keepdim=True)
        return mass if self.own.all() else torch.where(self.own[:, None], mass, self._teachers())

    def _softmax(self) -> Tensor:
        logits, norm = self.env.scores
        return (logits.float() - norm[:, None]).exp_().cpu()

    def _teachers(self) -> Tensor:
        full = self._softmax()
        if self.kind == "full":
            return full
        found = self.env.candidates
        mass = torch.zeros_like(full).scatter_add_(1, found.ids, torch.where(found.mask, found.logp.exp(), 0))
        # A row whose text is over has no candidates; it draws something that nobody takes.
        return torch.where(found.mask.any(1, keepdim=True), mass / mass.sum(1, keepdim=True), full)


def _draw(mass: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row by inverting its distribution, (N,)."""
    heights = mass.double().cumsum(-1)
    highest = heights[:, -1:].contiguous()
    at = torch.rand(len(mass), 1, generator=generator, dtype=torch.float64) * highest
    # The last height may be shared by tokens without mass: the first that reaches it has some.
    drawn = torch.searchsorted(heights, at, right=True)[:, 0]
    return torch.minimum(drawn, torch.searchsorted(heights, highest)[:, 0])


def attach(batch: Episodes, teacher: Teacher, needs: Collection[str]) -> Episodes:
    """A micro-batch with what an agent `needs`: the teacher's full log-probabilities, from one pass over whole texts.

    Raises: InputError: something that cannot be attached.
    """
    unknown = set(needs) - {"teacher_logits"}
    if unknown:
        raise InputError(f"nothing attaches {', '.join(sorted(unknown))}; known is teacher_logits")
    if not needs:
        return batch
    shared = 1 < parallel.size() <= len(batch)
    own = batch.select(parallel.share(len(batch))) if shared else batch
    logp = _read(own, teacher)
    if shared:
        logp = parallel.gathered(padded(logp, [batch.slots.shape[1], logp.shape[2]], 0.0), len(batch))
    return replace(batch, teacher_logp=logp)


def _read(batch: Episodes, teacher: Teacher) -> Tensor:
    """The teacher's log-probabilities along these episodes.  # (B, T, V)"""
    ends = (batch.prompt_length + batch.length).tolist()
    texts = [row[:end].tolist() for row, end in zip(batch.tokens, ends, strict=True)]
    scores = teacher.score(texts).to(batch.tokens.device)  # (B, L, V)
    steps = torch.arange(batch.slots.shape[1])
    position = (batch.prompt_length[:, None] + steps - 1).clamp(max=scores.shape[1] - 1)  # (B, T)
    index = position[..., None].expand(-1, -1, scores.shape[-1])
    return _zero_beyond(scores.gather(1, index), batch.steps)


def _zero_beyond(logp: Tensor, steps: Tensor) -> Tensor:
    return torch.where(steps[..., None], logp, 0.0)
