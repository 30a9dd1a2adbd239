"""`tdistill expert`: count an expert from the training prompts, fit its gate on validation prompts, lay it beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.prompts import Prompt, Splits, embedded_prompts, load_prompts, split_prompts
from envs.teachers import Teacher, load_teacher
from experiments.config import LoadConfig
from experiments.evaluate import Rule, answers, batches, check_same_tokens, score_texts
from experiments.expert.counts import Expert, Pair, counted
from experiments.expert.files import COUNTS, lay_beside
from experiments.expert.mixture import Gate, States, entropy, fitted, part_of
from experiments.expert.words import kinds_of, low_frequency
from experiments.references import TARGETS, replies_of
from experiments.rules.spelling import pieces_of
from experiments.seen import refuse_training_prompts


@dataclass(frozen=True)
class ExpertConfig(LoadConfig):
    """Make a hybrid student: count an expert of low-frequency words, and fit when it is heard."""

    student: Path
    """A student's directory; the expert is laid into its folder expert/, and nothing else there changes."""
    teacher: str = "embedded"
    prompts: Path | None = None
    """A .jsonl or text file, or a data set, split 80/10/10 by hash as `compare` does; none: the embedded corpus."""
    prompt_format: str = "prompt"
    """What its records are: prompt, dolly, selfinst or vicuna."""
    skip_bad: bool = False
    """Leave broken lines of the prompts file out instead of refusing it."""
    targets: str = "teacher"
    """Replies that are counted: "teacher", its samples, or "references", those of the training prompts."""
    episodes: int = 1024
    """Training prompts that are used."""
    eval_prompts: int = 256
    """Validation prompts, answered by the teacher, on which the gate is fitted."""
    max_new_tokens: int = 64
    order: int = 3
    """n of the n-grams."""
    match: int = 4
    """Most tokens of a context that is looked for in the prompt."""
    json: Path | None = None
    """Write the figures to this file too."""


def run(config: ExpertConfig) -> dict[str, float]:
    """The command.

    Returns: what was counted, the gate, and its gain on the validation prompts in nats a token.
    Raises: InputError: bad settings, no such student, another tokenizer than the teacher's, or validation prompts that
        the student was trained on.
    """
    for name, least in (("episodes", 1), ("eval_prompts", 1), ("max_new_tokens", 1), ("order", 2), ("match", 1)):
        if getattr(config, name) < least:
            raise InputError(f"{name} = {getattr(config, name)} is below {least}")
    if config.targets not in TARGETS:
        raise InputError(f"targets = {config.targets!r} is none of {', '.join(TARGETS)}")
    if not config.student.is_dir():
        raise InputError(f"student {str(config.student)!r} is no directory; an expert lies beside a student on disk")
    teacher, splits = load_teacher(config.teacher, config.loading), _splits(config)
    train, validation = splits.train[: config.episodes], splits.validation[: config.eval_prompts]
    refuse_training_prompts(config.student, validation)
    model, tokenizer = load_causal_lm(config.student, config.student_loading)
    check_same_tokens(teacher, tokenizer)
    rule = Rule(1.0, teacher.vocab_size, config.max_new_tokens)
    pairs: list[Pair]
    if config.targets == "references":
        pairs = [(prompt, reply) for prompt, own in replies_of(train, teacher).items() for reply in own]
    else:
        pairs = sampled(train, teacher, rule)
    expert = counted(pairs, kinds_of(pieces_of(tokenizer)), order=config.order, longest=config.match)
    gate, figures = fitted_on(model, expert, sampled(validation, teacher, rule), teacher)
    folder = lay_beside(config.student, expert, gate, tokenizer, train, validation)
    counts = {
        "replies": float(len(pairs)),
        "common_words": float(len(expert.common)),
        "contexts": float(len(expert.totals)),
        "bytes": float((folder / COUNTS).stat().st_size),
    }
    return counts | figures


def _splits(config: ExpertConfig) -> Splits:
    if config.prompts is None:
        train, validation = embedded_prompts("train", config.episodes), embedded_prompts("validation")
        return Splits(train, validation, [])
    return split_prompts(load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format))


def sampled(prompts: Sequence[Prompt], teacher: Teacher, rule: Rule) -> list[Pair]:
    """The teacher's own samples as replies to these prompts, one each."""
    ids = [teacher.encode(prompt.text) for prompt in prompts]
    return list(zip(ids, answers(teacher, ids, teacher, rule, 1.0), strict=True))


def fitted_on(model: Any, expert: Expert, pairs: Sequence[Pair], teacher: Teacher) -> tuple[Gate, dict[str, float]]:
    """The gate that is best on these prompts and replies.

    Returns: the gate; and as figures its weights and threshold (nats), the share of states in which it is open, and the
        gain in log-likelihood, nats a token: over all tokens, and over those of low-frequency words (`gain_rare`).
    """
    states, rare = states_of(model, expert, pairs, teacher)
    gate, gain = fitted(states)
    weights = np.array(gate.weights)[part_of(states.share)]
    weights = np.where((states.entropy > gate.threshold) & (states.share > 0), weights, 0.0)
    gains = np.log1p(weights * (states.expert / states.student - states.share))
    figures = {f"weight_{number}": weight for number, weight in enumerate(gate.weights, 1)}
    figures |= {"threshold": gate.threshold, "open": float((weights > 0).mean()), "gain": gain}
    return gate, figures | ({"gain_rare": float(gains[rare].mean())} if rare.any() else {})


def states_of(
    model: Any, expert: Expert, pairs: Sequence[Pair], teacher: Teacher
) -> tuple[States, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The states along these replies, reply after reply, and which of their tokens belong to a low-frequency word."""
    prompts, replies = [list(prompt) for prompt, _ in pairs], [list(reply) for _, reply in pairs]
    found: dict[int, list[tuple[float, ...]]] = {}
    for chosen in batches(prompts, replies, teacher.vocab_size):
        texts = [prompts[index] + replies[index] for index in chosen]
        scores = score_texts(model, texts, [len(prompts[index]) for index in chosen])
        for row, index in enumerate(chosen):
            size, pointer = len(prompts[index]), expert.pointer(prompts[index])
            logp = scores[row, size - 1 : len(texts[row]) - 1].double()
            entropies, own = entropy(logp).tolist(), logp.exp()
            found[index] = []
            for step, token in enumerate(replies[index]):
                evidence = expert.evidence(texts[row][: size + step], pointer)
                found[index].append((entropies[step], float(own[step, token]), evidence.of(token), evidence.share))
    columns = np.array([values for index in range(len(pairs)) for values in found[index]]).T
    rare = np.concatenate([low_frequency(reply, expert.kinds, expert.common) for reply in replies])
    return States(*columns), rare
