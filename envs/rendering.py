"""A state as text: what was said, what was chosen, and what may come next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.teachers import Teacher

SHOWN = 8
BAR = 20


def render_state(prompt: str, reply: Sequence[str], candidates: Sequence[tuple[str, float]]) -> str:
    """The prompt, the reply with its last token marked, and the most probable candidates with their probabilities.

    Args:
        reply: tokens so far; the last one is the choice just made.
        candidates: token text and log-probability (nats), most probable first; empty after EOS.
    """
    *said, choice = reply or [""]
    lines = [prompt, f"▸ {''.join(said)}{f'⟦{choice}⟧' if choice else ''}"]
    for slot, (token, logp) in enumerate(candidates[:SHOWN]):
        probability = math.exp(logp)
        lines.append(f"  {slot:3d} {probability:6.1%} {'█' * round(BAR * probability):{BAR}} {token!r}")
    if len(candidates) > SHOWN:
        rest = sum(math.exp(logp) for _, logp in candidates[SHOWN:])
        lines.append(f"      {rest:6.1%} {len(candidates) - SHOWN} more candidates")
    return "\n".join(lines if candidates else [*lines, "  the text has ended"])


def token_text(teacher: Teacher, token: int) -> str:
    """What a token reads as; ⏹ for the end of the text."""
    return teacher.decode([token]) or ("⏹" if token in teacher.eos_ids else "")
