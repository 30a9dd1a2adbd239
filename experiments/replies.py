"""What a student replied, beside the teacher and the reference, with the teacher's opinion of each token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from envs.service_desk import score_reply
from envs.teachers import Teacher
from experiments.evaluate import Exam, Rule, batches


def records(exam: Exam, replies: Sequence[Sequence[int]], teacher: Teacher, rule: Rule) -> list[dict[str, Any]]:
    """One entry a prompt, as `replies.json` holds them.

    Returns: `prompt`, `reference`, `tags`, `teacher` and `student` (greedy), `score` (task score of the student's) and
        `tokens`, its own as [text, log π_T in nats, inside the teacher's set]; none of an absent teacher.
    """
    judged = _judged(exam, replies, teacher, rule) if exam.samples else {}
    found = []
    for index, (prompt, reply) in enumerate(zip(exam.prompts, replies, strict=True)):
        text = teacher.decode(reply)
        found.append(
            {
                "prompt": prompt.text,
                "reference": prompt.references[0] if prompt.references else None,
                "tags": list(prompt.tags),
                "teacher": teacher.decode(exam.greedy[index]) if exam.greedy else "",
                "student": text,
                "score": score_reply(text, prompt.checks).task,
                "tokens": judged.get(index, []),
            }
        )
    return found


def _judged(
    exam: Exam, replies: Sequence[Sequence[int]], teacher: Teacher, rule: Rule
) -> dict[int, list[tuple[str, float, bool]]]:
    found = {}
    for chosen in batches(exam.ids, replies, teacher.vocab_size):
        scores = teacher.score([exam.ids[index] + list(replies[index]) for index in chosen]).cpu()
        for row, index in enumerate(chosen):
            start, reply = len(exam.ids[index]) - 1, replies[index]
            logp = scores[row, start : start + len(reply)]  # (T, V)
            candidates = rule.sets(logp, exam.ids[index] + list(reply), len(exam.ids[index]))
            said = [[token] for token in reply]
            inside = (candidates.mask & (candidates.ids == candidates.ids.new_tensor(said))).any(-1)
            own = logp.gather(-1, candidates.ids.new_tensor(said))[:, 0]
            found[index] = list(zip(_pieces(reply, teacher), own.tolist(), inside.tolist(), strict=True))
    return found


def _pieces(reply: Sequence[int], teacher: Teacher) -> list[str]:
    """The text of each token; read behind the one before it, because some tokenizers drop a text's first space."""
    pieces = [teacher.decode(reply[:1])]
    for before, token in pairwise(reply):
        alone = teacher.decode([before])
        pieces.append(teacher.decode([before, token])[len(alone) :])
    return pieces
