"""Who walks: the teacher or a student, token by token or a whole reply."""

from __future__ import annotations

import torch

from agents.scores import on_candidates
from envs.teachers import Teacher
from experiments.explore.views import Pupil, end_of
from experiments.explore.walk import Settings, Walk


@torch.no_grad()
def next_token(teacher: Teacher, pupil: Pupil | None, walk: Walk, settings: Settings, seed: int) -> int:
    """A token of the teacher (None) or of a student, from its full softmax at temperature α, inside the set or not.

    Ids that pad a student's vocabulary beyond the teacher's are never drawn.
    """
    text = [*walk.prompt, *walk.reply()]
    if pupil is None:
        logits = teacher.score([text])[0, -1].cpu().float()  # (V,)
    else:
        device = next(iter(pupil.model.parameters())).device
        every = torch.arange(min(pupil.model.vocab_size, teacher.vocab_size), device=device)[None]
        mask = torch.ones_like(every, dtype=torch.bool)
        context, length = torch.tensor([text], device=device), torch.tensor([len(text)], device=device)
        found, _ = pupil.model.at_ids(context, length, every)
        logits = on_candidates(found, torch.arange(every.shape[1], device=device)[None], mask)[0][0].cpu().float()
    generator = torch.Generator().manual_seed(seed)
    return int(torch.multinomial((logits / settings.alpha).softmax(-1), 1, generator=generator))


def whole_reply(teacher: Teacher, pupil: Pupil | None, walk: Walk, settings: Settings, seed: int) -> tuple[int, ...]:
    """The rest of a reply, up to its end, from where a walk stands."""
    before = len(walk.reply())
    while not end_of(teacher, walk.prompt, walk.reply(), settings):
        walk = walk.take(next_token(teacher, pupil, walk, settings, seed + len(walk.reply())))
    return walk.reply()[before:]
