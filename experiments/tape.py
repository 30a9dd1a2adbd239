"""What N rows of an environment are doing, and the episodes that are done."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.episodes import PAD_LOGP, Episodes
from envs.errors import InputError
from envs.rewards import Sqil
from envs.vector_env import TopPTokenVectorEnv

MEMORY_LIMIT = 4 * 2**30  # bytes of candidate rows

Array = npt.NDArray[Any]


class Tape:
    """Written step by step; `episodes` gives the first `count` that were begun, in that order.

    Args:
        version: updates that the student has made which walks.
    Raises: InputError: whole vocabularies of candidates that would not fit in memory.
    """

    def __init__(self, env: TopPTokenVectorEnv, count: int, version: int = 0) -> None:
        rows, steps = env.num_envs, env.max_new_tokens
        slots = env.candidates.ids.shape[-1]
        needed = count * (steps + 1) * slots * 13
        if needed > MEMORY_LIMIT and env.top_p == 1.0:
            raise InputError(
                f"top_p = 1 keeps {slots} candidates for every state, {needed / 2**30:.0f} GiB for {count} episodes; "
                "lower episodes, or top_p"
            )
        self.env, self.count, self.version = env, count, version
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
            version=torch.tensor([self.version if self.from_student[row] else 0]),
        )

    def episodes(self) -> Episodes:
        return Episodes.concatenate([self.done[number] for number in range(self.count)])
