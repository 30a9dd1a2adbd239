"""What is usual before the stream begins: prompts as those of the training split, replies as to those of validation."""

from __future__ import annotations

import json
from typing import Any

from envs.decode import decode
from envs.errors import InputError
from experiments.evaluate import ROWS, along
from experiments.folder import write
from experiments.online.config import OnlineConfig
from experiments.online.signals import OF_TEACHER, SIDES, Bigrams, Lately, of_replies
from experiments.workspace import Workspace

FEWEST = 32
"""Prompts that say what is usual."""
MOST = 2048
"""Prompts that are enough for it."""


def usual_of(space: Workspace, config: OnlineConfig, model: Any) -> tuple[Bigrams, dict[str, list[float]]]:
    """Counts of one half of the training prompts, and usual values of every signal.

    Those of prompts are of the other half, which the counts have not seen; those of replies and of the teacher are of
    the validation prompts, which the student has not learnt from, as it answers them at the beginning.

    Raises: InputError: too few prompts.
    """
    train, held = space.splits.train, space.splits.validation
    half = len(train) // 2
    if half < FEWEST or len(held) < FEWEST:
        raise InputError(
            f"{len(train)} training and {len(held)} validation prompts do not say what is usual; {2 * FEWEST} and "
            f"{FEWEST} do: give more --prompts, or raise --eval-prompts"
        )
    encode = space.teacher.encode
    bigrams = Bigrams([encode(prompt.text) for prompt in train[:half]], space.teacher.vocab_size)

    def make() -> None:
        lately, chosen = Lately(), train[half:][-MOST:]
        texts = [encode(prompt.text) for prompt in chosen]
        of_prompts = [
            {"surprise": bigrams.surprise(text), "prompt_length": len(text), "seen_before": lately.see(prompt.text)}
            for text, prompt in zip(texts, chosen, strict=True)
        ]
        found = [*of_prompts, *_of_replies(space, config, model)]
        usual = {name: [float(own[name]) for own in found if name in own] for name in SIDES}
        write(path, json.dumps(usual))

    path = space.out / "shared" / "usual.json"
    space.once(path, make)
    found: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return bigrams, found


def _of_replies(space: Workspace, config: OnlineConfig, model: Any) -> list[dict[str, float]]:
    """What is noticed about the student's replies to the validation prompts, by it and by the teacher."""
    teacher = space.teacher
    prompts = [teacher.encode(prompt.text) for prompt in space.splits.validation]
    replies = decode(
        model,
        prompts,
        eos_ids=teacher.eos_ids,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        rows=ROWS,
        vocabulary=teacher.vocab_size,
    )
    own = of_replies(model, prompts, replies)
    found, start = along(model, prompts, replies, teacher, space.rule(config.top_p)), 0
    for signals, reply in zip(own, replies, strict=True):
        part = slice(start, start + len(reply))
        signals |= {name: float(getattr(found, name)[part].mean()) for name in OF_TEACHER}
        start += len(reply)
    return own
