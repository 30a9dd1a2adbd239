"""Held-out measures of a student or a teacher, under one decoding rule for every arm.

Greedy replies for the task score, its parts and Rouge-L; samples at temperature 1 and top-p 1 with fixed seeds for
everything else. Forward KL, agreement and leak are taken along the teacher's samples, reverse KL, entropy and length
along the student's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from agents.loading import check_tokenizers
from envs.candidates import check_top_p, normalise
from envs.decode import decode
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.prompts import Prompt, embedded_prompts, load_prompts, prompt_hash, split_prompts
from envs.sequences import right_padded
from envs.teachers import Teacher, load_teacher
from experiments.config import ABSENT, EvaluateConfig
from experiments.cost import TOKENS, check_price, costs, with_price
from experiments.metrics import TokenMeasures, common_vocabulary, rouge_l, task_measures, token_measures

TRAINED_ON = "training_prompts.json"
SAMPLE_SEED = 12345
ROWS = 64
LOGITS_AT_ONCE = 2**24  # rows × positions × V


@dataclass(frozen=True)
class Rule:
    """How every arm of a comparison is decoded and measured."""

    top_p: float
    max_candidates: int
    max_new_tokens: int


@dataclass(frozen=True)
class Exam:
    """Held-out prompts and what the teacher makes of them; the same for every student."""

    prompts: list[Prompt]
    ids: list[list[int]]
    samples: list[list[int]]  # one reply a prompt, from the teacher's full softmax; none of an absent teacher
    greedy: list[list[int]]  # the teacher's most probable replies


def set_exam(teacher: Teacher, prompts: Sequence[Prompt], rule: Rule) -> Exam:
    """Let the teacher answer the prompts."""
    ids = [teacher.encode(prompt.text) for prompt in prompts]
    samples, greedy = (answers(teacher, ids, teacher, rule, temperature) for temperature in (1.0, 0.0))
    return Exam(list(prompts), ids, samples, greedy)


def answers(policy: Any, ids: list[list[int]], teacher: Teacher, rule: Rule, temperature: float) -> list[list[int]]:
    """A reply of a causal LM, or of the teacher itself, to each prompt; the teacher's EOS ids end it."""
    return decode(
        policy,
        ids,
        eos_ids=teacher.eos_ids,
        max_new_tokens=rule.max_new_tokens,
        temperature=temperature,
        seed=SAMPLE_SEED,
        rows=ROWS,
        vocabulary=teacher.vocab_size,
    )


def measure(student: Any, exam: Exam, teacher: Teacher, rule: Rule, *, quick: bool = False) -> dict[str, float]:
    """Every measure of a causal LM on an exam.

    Args:
        student: a causal LM with the teacher's tokens; None measures the teacher itself.
        quick: the measures along the teacher's samples and of the greedy replies only.
    Returns: name -> value; KL and entropy in nats per token, lengths in tokens. An exam without the teacher's samples
        gives what needs no teacher.
    Raises: InputError: see `check_rows`.
    """
    policy = teacher if student is None else student
    if student is not None:
        said = max((max(text) for text in (*exam.ids, *exam.samples, *exam.greedy) if text), default=0)
        check_rows(said, student.get_output_embeddings().weight.shape[0])
    replies = exam.greedy if student is None else answers(student, exam.ids, teacher, rule, 0.0)
    greedy = [teacher.decode(reply) for reply in replies]
    figures = {
        **(_beside(student, exam, teacher, rule) if exam.samples else {}),
        **task_measures(greedy, exam.prompts),
        "greedy_length": fmean(map(len, replies)),
    }
    if quick:
        return figures
    samples = exam.samples if student is None else answers(student, exam.ids, teacher, rule, 1.0)
    overlaps = {
        "rouge_l": rouge_l(greedy, [prompt.references for prompt in exam.prompts]),
    }
    if exam.samples:
        own = along(student, exam.ids, samples, teacher, rule)
        figures |= {"reverse_kl": float(own.reverse_kl.mean()), "entropy": float(own.entropy.mean())}
        overlaps["rouge_l_teacher"] = rouge_l(greedy, [[teacher.decode(reply)] for reply in exam.greedy])
    return {
        **figures,
        "length": fmean(map(len, samples)),
        **{name: value for name, value in overlaps.items() if value is not None},
        "parameters": float(parameters_of(policy)),
    }


def check_rows(token: int, rows: int) -> None:
    """Raises: InputError: the teacher has a token, the largest that it named, for which the student has no row."""
    if token >= rows:
        raise InputError(
            f"the teacher gives mass to token {token}, the student's vocabulary has {rows} rows: rows that pad a "
            "vocabulary are no tokens, and this teacher was not taught so; take a student padded at least as far"
        )


def _beside(student: Any, exam: Exam, teacher: Teacher, rule: Rule) -> dict[str, float]:
    """The measures along the teacher's samples."""
    found = along(student, exam.ids, exam.samples, teacher, rule)
    return {
        "forward_kl": float(found.forward_kl.mean()),
        "agreement": float(found.agreement.mean()),
        "leak": float(found.leak.mean()),
    }


def speeds(student: Any, exam: Exam, teacher: Teacher, rule: Rule, repeats: int = 3) -> dict[str, float]:
    """Decoding speed of student and teacher on the exam's prompts, in turn, so that both meet the same machine.

    Nothing ends a reply before its budget, so that both write equally much.

    Returns: tokens per second of each at `ROWS` rows, and their ratio; medians over the repeats. Of an absent teacher
        the student's alone.
    """
    policies = {"tokens_per_second": student}
    if teacher.name != ABSENT:
        policies["teacher_tokens_per_second"] = teacher
    found: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(repeats):
        for name, policy in policies.items():
            start = time.perf_counter()
            ids, width = exam.ids[:ROWS], teacher.vocab_size
            replies = decode(policy, ids, eos_ids=(), max_new_tokens=rule.max_new_tokens, rows=ROWS, vocabulary=width)
            found[name].append(sum(map(len, replies)) / (time.perf_counter() - start))
    figures = {name: median(values) for name, values in found.items()}
    if len(policies) == 1:
        return figures
    return {**figures, "speed_up": median(own / other for own, other in zip(*found.values(), strict=True))}


def parameters_of(policy: Any) -> int:
    """Parameters of a causal LM or of a teacher's; 0 for a table."""
    model = policy if isinstance(policy, torch.nn.Module) else getattr(policy, "model", None)
    return sum(p.numel() for p in model.parameters()) if model is not None else 0


def along(student: Any, ids: list[list[int]], replies: list[list[int]], teacher: Teacher, rule: Rule) -> TokenMeasures:
    """The measures at every state of these replies, all positions in one list."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]) + len(replies[index]))
    parts: list[TokenMeasures] = []
    while order:
        longest = len(ids[order[-1]]) + len(replies[order[-1]])
        rows = max(1, LOGITS_AT_ONCE // (longest * teacher.vocab_size))
        chosen, order = order[-rows:], order[:-rows]
        texts = [ids[index] + replies[index] for index in chosen]
        teacher_logp = teacher.score(texts).cpu()
        student_logp = teacher_logp if student is None else _score(student, texts)
        for row, index in enumerate(chosen):
            states = slice(len(ids[index]) - 1, len(texts[row]) - 1)
            pair = common_vocabulary(student_logp[row, states], teacher_logp[row, states])
            parts.append(token_measures(*pair, rule.top_p, rule.max_candidates))
    return TokenMeasures(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _score(student: Any, texts: list[list[int]]) -> torch.Tensor:
    tokens, mask = right_padded(texts, student.get_output_embeddings().weight.device)
    with torch.no_grad():
        logits = student(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return normalise(torch.where(mask[..., None] > 0, logits, 0.0)).cpu()


def run(config: EvaluateConfig) -> dict[str, float]:
    """`tdistill evaluate`: measure a directory on held-out prompts.

    Raises: InputError: prompts that the student was trained on, or bad settings.
    """
    check_top_p(config.top_p, config.max_candidates)
    check_price(config.price)
    for name in ("eval_prompts", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} = {getattr(config, name)} is below 1")
    teacher = load_teacher(config.teacher, config.loading)
    prompts = chosen_prompts(config)
    refuse_training_prompts(Path(config.student), prompts)
    model, tokenizer = load_causal_lm(config.student, config.student_loading)
    check_same_tokens(teacher, tokenizer)
    rule = Rule(config.top_p, config.max_candidates, config.max_new_tokens)
    exam = set_exam(teacher, prompts, rule)
    own, theirs = costs(model, exam.ids, teacher, max(2, min(TOKENS, rule.max_new_tokens)))
    cost = with_price(speeds(model, exam, teacher, rule) | own, config.price)
    return {**measure(model, exam, teacher, rule), **cost, **{f"teacher_{name}": x for name, x in theirs.items()}}


def chosen_prompts(config: EvaluateConfig) -> list[Prompt]:
    """The prompts that `tdistill evaluate` was asked to measure on.

    Raises: InputError: a broken file, or a split that does not exist.
    """
    split = config.prompt_split
    if split not in (None, "validation", "test"):
        raise InputError(f"prompt_split {split!r} is neither 'validation' nor 'test'")
    if config.prompts is None:
        return embedded_prompts(split or "test", config.eval_prompts)
    prompts = load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format)
    return (prompts if split is None else getattr(split_prompts(prompts), split))[: config.eval_prompts]


def check_same_tokens(teacher: Teacher, tokenizer: Any) -> None:
    """Raises: InputError: the teacher's tokenizer differs; it names the first token that does."""
    own = getattr(teacher, "tokenizer", None)
    if own is not None and tokenizer is not None:
        check_tokenizers(own, tokenizer)


def remember_training_prompts(directory: Path, prompts: Sequence[Prompt], start: Path) -> None:
    """Write beside a student the hashes of the prompts it was trained on, those of its start included."""
    hashes = {prompt_hash(prompt.text) for prompt in prompts} | _trained_on(start)
    (directory / TRAINED_ON).write_text(json.dumps(sorted(hashes)), encoding="utf-8")


def _trained_on(directory: Path) -> set[str]:
    record = directory / TRAINED_ON
    return set(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else set()


def refuse_training_prompts(directory: Path, prompts: Sequence[Prompt]) -> None:
    """Raises: InputError: some of the prompts are among those the student was trained on."""
    known = _trained_on(directory)
    seen = [prompt.text for prompt in prompts if prompt_hash(prompt.text) in known]
    if seen:
        raise InputError(
            f"{directory} was trained on {len(seen)} of these {len(prompts)} prompts, for one {seen[0][:60]!r}; "
            "measure it on others"
        )
