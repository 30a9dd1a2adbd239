"""What a teacher says along whole texts, asked for once where it is learnt from again and again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from agents.episodes import Episodes
from envs.teachers import Teacher
from experiments.collect import attach
from experiments.workspace import Report

MEMORY = 2**30  # bytes of labels that are held; a distribution takes four a token of the vocabulary
CHUNK = 16  # texts of one question


class Labels:
    """Attaches what an agent `needs` to its batches, from memory where it was told to remember the text.

    What is remembered is asked for in the order of the episodes, whatever was learnt from before: a cell that was
    stopped and goes on finds the same labels, bit by bit.
    """

    def __init__(self, teacher: Teacher, needs: Collection[str]) -> None:
        self.teacher, self.needs = teacher, needs
        self._known: dict[tuple[int, bytes], Tensor] = {}  # text -> (T, V) nats

    def remember(self, episodes: Episodes, draws: int, report: Report) -> int:
        """Ask for the labels of all episodes if `draws` of them will be learnt from, more than there are, and they fit.

        Returns: tokens that the teacher read.
        """
        size = 4 * self.teacher.vocab_size * int(episodes.length.sum())
        if not self.needs or draws <= len(episodes) or size > MEMORY:
            return 0
        for start in range(0, len(episodes), CHUNK):
            report(f"labels of {start} of {len(episodes)} episodes", 0)
            part = episodes.select(range(start, min(start + CHUNK, len(episodes))))
            labels = attach(part, self.teacher, self.needs).teacher_logp
            assert labels is not None
            for text, row, steps in zip(_texts(part), labels, part.length.tolist(), strict=True):
                self._known[text] = row[:steps].clone()
        return _read(episodes)

    def attach(self, batch: Episodes) -> tuple[Episodes, int]:
        """The batch with its labels, and how many tokens the teacher had to read for them."""
        if not self.needs:
            return batch, 0
        texts = _texts(batch)
        missing = [row for row, text in enumerate(texts) if text not in self._known]
        if len(missing) == len(batch):
            return attach(batch, self.teacher, self.needs), _read(batch)
        labels = torch.zeros(*batch.slots.shape, self.teacher.vocab_size)
        for row, text in enumerate(texts):
            if (known := self._known.get(text)) is not None:
                labels[row, : len(known)] = known
        if not missing:
            return replace(batch, teacher_logp=labels), 0
        part = attach(batch.select(missing), self.teacher, self.needs)
        assert part.teacher_logp is not None
        labels[missing, : part.teacher_logp.shape[1]] = part.teacher_logp
        return replace(batch, teacher_logp=labels), _read(part)


def _texts(episodes: Episodes) -> list[tuple[int, bytes]]:
    """Where each episode's reply begins, and its tokens."""
    starts, ends = episodes.prompt_length.tolist(), (episodes.prompt_length + episodes.length).tolist()
    rows = zip(starts, episodes.tokens.cpu().numpy(), ends, strict=True)
    return [(start, row[:end].tobytes()) for start, row, end in rows]


def _read(episodes: Episodes) -> int:
    """Tokens of all texts."""
    return int((episodes.prompt_length + episodes.length).sum())
