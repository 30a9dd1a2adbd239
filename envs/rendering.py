"""A state as text: what was said, what was chosen, and what may come next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from envs.teachers import Teacher

SHOWN = 8
BAR = 20


def render_state(
    teacher: Teacher, prompt: Sequence[int], reply: Sequence[int], candidates: Sequence[tuple[int, float]]
) -> str:
    """The prompt, the reply with the token just chosen marked, and the most probable candidates.

    Args:
        prompt: token ids.
        reply: token ids so far; the last one is the choice just made.
        candidates: token id and log-probability (nats), most probable first; empty after EOS.
    """
    choice = f"⟦{token_text(teacher, reply[-1])}⟧" if reply else ""
    lines = [teacher.decode(prompt), f"▸ {teacher.decode(reply[:-1])}{choice}"]
    for slot, (token, logp) in enumerate(candidates[:SHOWN]):
        probability = math.exp(logp)
        bar = "█" * round(BAR * probability)
        lines.append(f"  {slot:3d} {probability:6.1%} {bar:{BAR}} {token_text(teacher, token)!r}")
    if len(candidates) > SHOWN:
        rest = sum(math.exp(logp) for _, logp in candidates[SHOWN:])
        lines.append(f"      {rest:6.1%} {len(candidates) - SHOWN} more candidates")
    return "\n".join(lines if candidates else [*lines, "  the text has ended"])


def token_text(teacher: Teacher, token: int) -> str:
    """What a token reads as; ⏹ for the end of the text, its number for a token without text."""
    return teacher.decode([token]) or ("⏹" if token in teacher.eos_ids else f"<{token}>")
