"""Who walks the MDP, and how a walk becomes episodes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from tqdm import tqdm

from agents.episodes import PAD_LOGP, Episodes
from envs.decode import Decoder
from envs.errors import InputError
from envs.rewards import Sqil
from envs.teachers import Teacher
from envs.vector_env import TopPTokenVectorEnv

MEMORY_LIMIT = 4 * 2**30  # bytes of candidate rows

Array = npt.NDArray[Any]


def collect(
    env: TopPTokenVectorEnv,
    count: int,
    *,
    seed: int,
    student: Any = None,
    student_share: float = 0.0,
    progress: str | None = None,
) -> Episodes:
    """`count` whole episodes of the env's prompts, walked from full softmaxes at temperature 1.

    The first `count` episodes begun are the ones returned, in that order, however long they take: taking those that
    finish first would prefer short replies. The discount γ(1 − terminated) is formed here, with the env's γ.

    Args:
        student: causal LM that walks a share of the episodes; None: the teacher walks all.
        student_share: probability that an episode is the student's.
        progress: label of a progress bar; None shows none.
    Raises: InputError: a count below 1, an env without next-step autoreset, whole vocabularies of candidates that would
        not fit in memory, or a share without a student.
    """
    if not 0.0 <= student_share <= 1.0 or (student_share > 0 and student is None):
        raise InputError(f"student_share = {student_share} must lie in [0, 1], and needs a student above 0")
    if count < 1 or env.autoreset_mode is not AutoresetMode.NEXT_STEP:
        raise InputError(
            f"{count} episodes of an env with autoreset {env.autoreset_mode.value}: count must be at least 1, and rows "
            'are refilled with autoreset_mode="next_step"'
        )
    generator = torch.Generator().manual_seed(seed)
    observations, _ = env.reset(seed=seed)
    tape = _Tape(env, count)
    walker = Decoder(student, env.num_envs) if student_share > 0 else None
    own = np.zeros(env.num_envs, dtype=bool)  # rows that the student walks
    begun = np.ones(env.num_envs, dtype=bool)
    with tqdm(total=count, desc=progress, unit="episode", disable=progress is None) as bar:
        while not tape.complete:
            if begun.any():
                rows = begun.nonzero()[0].tolist()
                own[rows] = torch.rand(len(rows), generator=generator).numpy() < student_share
                tape.begin(rows, observations, own)
                if walker is not None:
                    walker.start(rows, [env.prompt_tokens(row) for row in rows])
            behaviour = env.log_probs
            if walker is not None:
                behaviour = torch.where(torch.from_numpy(own)[:, None], walker.log_probs, behaviour)
            tokens = torch.multinomial(behaviour.exp(), 1, generator=generator)[:, 0]
            teacher_logp = env.log_probs.gather(1, tokens[:, None])[:, 0].numpy().copy()
            behaviour_logp = behaviour.gather(1, tokens[:, None])[:, 0].numpy().copy()
            observations, rewards, terminated, truncated, infos = env.step_tokens(tokens)
            begun = infos["token"] < 0
            acted = ~begun
            if walker is not None:
                walker.step(tokens, torch.from_numpy(acted & ~terminated & ~truncated))
            tape.write(acted, tokens.numpy(), rewards, teacher_logp, behaviour_logp, infos["in_set"], observations)
            bar.update(tape.finish((terminated | truncated) & acted, terminated))
    return tape.episodes()


class _Tape:
    """What N rows are doing, and the episodes that are done."""

    def __init__(self, env: TopPTokenVectorEnv, count: int) -> None:
        rows, steps = env.num_envs, env.max_new_tokens
        slots = env.candidates.ids.shape[-1]
        needed = count * (steps + 1) * slots * 13
        if needed > MEMORY_LIMIT and env.top_p == 1.0:
            raise InputError(
                f"top_p = 1 keeps {slots} candidates for every state, {needed / 2**30:.0f} GiB for {count} episodes; "
                "lower episodes, or top_p"
            )
        self.env, self.count = env, count
        self.sqil = isinstance(env.reward, Sqil)
        self.ids = np.zeros((rows, steps + 1, slots), dtype=np.int32)
        self.logp = np.zeros((rows, steps + 1, slots), dtype=np.float32)
        self.mask = np.zeros((rows, steps + 1, slots), dtype=bool)
        self.scalars = np.zeros(
            (3, rows, steps), dtype=np.float32
        )  # rewards, teacher's and behaviour's log-probability
        self.tokens = np.zeros((rows, steps), dtype=np.int64)
        self.in_set = np.zeros((rows, steps), dtype=bool)
        self.age = np.zeros(rows, dtype=np.int64)
        self.number = np.full(rows, -1)  # which episode a row is, in the order they began
        self.from_student = np.zeros(rows, dtype=bool)
        self.begun = 0
        self.done: dict[int, Episodes] = {}

    @property
    def complete(self) -> bool:
        return len(self.done) == self.count

    def begin(self, rows: list[int], observations: dict[str, Array], own: Array) -> None:
        for row in rows:
            self.number[row] = self.begun if self.begun < self.count else -1
            self.begun += 1
        self.age[rows] = 0
        self.from_student[rows] = own[rows]
        self._write_state(np.asarray(rows), observations)

    def write(
        self,
        acted: Array,
        tokens: Array,
        rewards: Array,
        teacher_logp: Array,
        behaviour_logp: Array,
        in_set: Array,
        observations: dict[str, Array],
    ) -> None:
        rows = acted.nonzero()[0]
        age = self.age[rows]
        paid = np.where(self.from_student, rewards, Sqil.teacher_step) if self.sqil else rewards
        self.scalars[:, rows, age] = np.stack([paid, teacher_logp, behaviour_logp])[:, rows]
        self.tokens[rows, age] = tokens[rows]
        self.in_set[rows, age] = in_set[rows]
        self.age[rows] += 1
        self._write_state(rows, observations)

    def _write_state(self, rows: Array, observations: dict[str, Array]) -> None:
        age = self.age[rows]
        self.ids[rows, age] = observations["ids"][rows]
        self.logp[rows, age] = observations["logp"][rows]
        self.mask[rows, age] = observations["mask"][rows].astype(bool)

    def finish(self, ended: Array, terminated: Array) -> int:
        """Put the ended rows among the done episodes; returns how many were wanted."""
        wanted = (ended & (self.number >= 0)).nonzero()[0].tolist()
        for row in wanted:
            self.done[int(self.number[row])] = self._episode(row, bool(terminated[row]))
        return len(wanted)

    def _episode(self, row: int, terminated: bool) -> Episodes:
        steps = int(self.age[row])
        prompt = self.env.prompt_tokens(row)
        mask = torch.from_numpy(self.mask[row, : steps + 1])
        width = max(1, int(mask.sum(1).max()))
        ids = torch.from_numpy(self.ids[row, : steps + 1, :width]).long()
        taken = torch.from_numpy(self.tokens[row, :steps].copy())
        in_set = torch.from_numpy(self.in_set[row, :steps].copy())
        slots = (ids[:-1] == taken[:, None]).logical_and(mask[:-1, :width]).int().argmax(1)
        discounts = torch.full((1, steps), float(self.env.gamma))
        discounts[0, -1] *= not terminated
        rewards, teacher_logp, behaviour_logp = torch.from_numpy(self.scalars[:, row, :steps].copy())
        return Episodes(
            tokens=torch.tensor([prompt + taken.tolist()]),
            prompt_length=torch.tensor([len(prompt)]),
            length=torch.tensor([steps]),
            ids=ids[None],
            logp=torch.from_numpy(self.logp[row, : steps + 1, :width].copy())[None].clamp(min=PAD_LOGP),
            mask=mask[None, :, :width].clone(),
            slots=torch.where(in_set, slots, -1)[None],
            rewards=rewards[None],
            discounts=discounts,
            in_set=in_set[None],
            behaviour_logp=behaviour_logp[None].clamp(PAD_LOGP, 0.0),
            teacher_logp_taken=teacher_logp[None].clamp(PAD_LOGP, 0.0),
            from_teacher=torch.tensor([not self.from_student[row]]),
        )

    def episodes(self) -> Episodes:
        return Episodes.concatenate([self.done[number] for number in range(self.count)])


def attach(batch: Episodes, teacher: Teacher, needs: Collection[str]) -> Episodes:
    """A micro-batch with what an agent `needs`: the teacher's full log-probabilities, from one pass over whole texts.

    Raises: InputError: something that cannot be attached.
    """
    unknown = set(needs) - {"teacher_logits"}
    if unknown:
        raise InputError(f"nothing attaches {', '.join(sorted(unknown))}; known is teacher_logits")
    if not needs:
        return batch
    ends = (batch.prompt_length + batch.length).tolist()
    texts = [row[:end].tolist() for row, end in zip(batch.tokens, ends, strict=True)]
    scores = teacher.score(texts)  # (B, L, V)
    steps = torch.arange(batch.slots.shape[1])
    position = (batch.prompt_length[:, None] + steps - 1).clamp(max=scores.shape[1] - 1)  # (B, T)
    index = position[..., None].expand(-1, -1, scores.shape[-1])
    return replace(batch, teacher_logp=_zero_beyond(scores.gather(1, index), batch.steps))


def _zero_beyond(logp: Tensor, steps: Tensor) -> Tensor:
    return torch.where(steps[..., None], logp, 0.0)
