"""Held-out measures of a student or a teacher, under one decoding rule for every arm.

Greedy replies for the task score, its parts and Rouge-L; samples at temperature 1 and top-p 1 with fixed seeds for
everything else. Forward KL, agreement and leak are taken along the teacher's samples, reverse KL, entropy and length
along the student's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from agents.loading import check_tokenizers
from envs.candidates import Candidates, check_top_p, normalise
from envs.decode import decode
from envs.errors import InputError
from envs.extras import Extras, hybrid, texts_along
from envs.hf_teacher import load_causal_lm
from envs.prompts import Prompt, embedded_prompts, fitting, load_prompts, split_prompts
from envs.sequences import context_limit_of, right_padded
from envs.teachers import Teacher, load_teacher
from experiments import per_prompt, positions, slices
from experiments.calibration import expected_error, reliability
from experiments.config import ABSENT, EvaluateConfig
from experiments.cost import TOKENS, check_price, costs, with_price
from experiments.expert.files import FOLDER, expert_beside
from experiments.expert.hybrid import Hybrid
from experiments.metrics import TokenMeasures, common_vocabulary, rouge_each, task_each, task_measures, token_measures
from experiments.per_prompt import Parts
from experiments.protect import fitting_extras
from experiments.seen import refuse_selection_prompts, refuse_training_prompts
from experiments.text_metrics import matched_measures, text_measures

SAMPLE_SEED = 12345
ROWS = 64
LOGITS_AT_ONCE = 2**24  # rows × positions × V


@dataclass(frozen=True)
class Rule:
    """How every arm of a comparison is decoded and measured."""

    top_p: float
    max_candidates: int
    max_new_tokens: int
    extras: Extras | None = None  # what joins every nucleus

    def sets(self, teacher: torch.Tensor, text: Sequence[int], prompt: int) -> Candidates:
        """The candidate sets along a reply to a prompt of so many tokens, of log-probabilities (T, V)."""
        states = [] if self.extras is None else texts_along(text, prompt, len(teacher))
        return hybrid(teacher, self.top_p, self.max_candidates, extras=self.extras, texts=states)


@dataclass(frozen=True)
class Exam:
    """Held-out prompts and what the teacher makes of them; the same for every student."""

    prompts: list[Prompt]
    ids: list[list[int]]
    samples: list[list[int]]  # one reply a prompt, from the teacher's full softmax; none of an absent teacher
    greedy: list[list[int]]  # the teacher's most probable replies
    rare: list[int] = field(default_factory=list)  # `slices.rare_tokens` of samples and training references


@dataclass(frozen=True)
class Findings:
    """What a whole measurement gives."""

    measures: dict[str, float]
    more: dict[str, Any]  # slices, positions, calibration; the latter two of a teacher that is there
    replies: list[list[int]]  # the greedy ones
    parts: dict[str, Parts] = field(default_factory=dict)  # what each prompt adds to the measures that are means


@dataclass(frozen=True)
class Evaluation:
    """What `tdistill evaluate` finds."""

    figures: dict[str, float]
    exam: Exam
    student: Findings
    teacher: Findings | None  # where it was asked for


def set_exam(teacher: Teacher, prompts: Sequence[Prompt], rule: Rule, train: Sequence[Prompt] = ()) -> Exam:
    """Let the teacher answer the prompts; the references of `train` say, beside its samples, which tokens are rare."""
    ids = [teacher.encode(prompt.text) for prompt in prompts]
    samples, greedy = (answers(teacher, ids, teacher, rule, temperature) for temperature in (1.0, 0.0))
    tokenizer, texts = getattr(teacher, "tokenizer", None), [text for prompt in train for text in prompt.references]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"] if tokenizer is not None and texts else []
    return Exam(list(prompts), ids, samples, greedy, sorted(slices.rare_tokens([*samples, *read])))


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
    return (glance if quick else examine)(student, exam, teacher, rule).measures


def glance(student: Any, exam: Exam, teacher: Teacher, rule: Rule) -> Findings:
    """The quick measures of a causal LM on an exam.

    Args, Raises: as `measure`.
    """
    replies, greedy = _greedy(student, exam, teacher, rule)
    beside = along(student, exam.ids, exam.samples, teacher, rule) if exam.samples else None
    figures = _closeness(beside, greedy, exam) | {"greedy_length": fmean(map(len, replies))}
    return Findings(figures, {}, replies)


def examine(student: Any, exam: Exam, teacher: Teacher, rule: Rule) -> Findings:
    """Every measure of a causal LM on an exam, and its parts by slice, position and confidence.

    Args, Raises: as `measure`.
    """
    replies, greedy = _greedy(student, exam, teacher, rule)
    samples = exam.samples if student is None else answers(student, exam.ids, teacher, rule, 1.0)
    beside = along(student, exam.ids, exam.samples, teacher, rule) if exam.samples else None
    figures = _closeness(beside, greedy, exam)
    figures |= {"greedy_length": fmean(map(len, replies)), "length": fmean(map(len, samples)), **text_measures(samples)}
    overlaps = {"rouge_l": rouge_each(greedy, [prompt.references for prompt in exam.prompts])}
    parts: list[tuple[TokenMeasures, list[int]]] = []
    more: dict[str, Any] = {}
    if beside is not None:
        own = beside if student is None else along(student, exam.ids, samples, teacher, rule)
        lengths = [[len(reply) for reply in side] for side in (exam.samples, samples)]
        parts = [(beside, lengths[0]), (own, lengths[1])]
        more = _by_position(*parts) | {"calibration": _calibration(beside, exam)}
        figures |= _own_text(own, exam, samples, more)
        overlaps["rouge_l_teacher"] = rouge_each(greedy, [[teacher.decode(reply)] for reply in exam.greedy])
    more["slices"] = slices.by_tag(exam.prompts, greedy, samples, *parts)
    if beside is not None:
        more["slices"] |= slices.rare_words(beside, exam.samples, set(exam.rare))
    by_prompt = {**overlaps, **task_each(greedy, exam.prompts)}
    added = per_prompt.parts(by_prompt, replies, samples, *parts)
    figures |= {name: per_prompt.mean(added[name]) for name in overlaps if added[name][:, 1].any()}
    figures["parameters"] = float(parameters_of(teacher if student is None else student))
    return Findings(figures, more, replies, added)


def _greedy(student: Any, exam: Exam, teacher: Teacher, rule: Rule) -> tuple[list[list[int]], list[str]]:
    """The greedy replies, and their texts."""
    if student is not None:
        said = max((max(text) for text in (*exam.ids, *exam.samples, *exam.greedy) if text), default=0)
        check_rows(said, student.get_output_embeddings().weight.shape[0])
    replies = exam.greedy if student is None else answers(student, exam.ids, teacher, rule, 0.0)
    return replies, [teacher.decode(reply) for reply in replies]


def _closeness(beside: TokenMeasures | None, greedy: list[str], exam: Exam) -> dict[str, float]:
    """The measures along the teacher's samples, and what the greedy replies are worth."""
    means = {} if beside is None else {name: float(getattr(beside, name).mean()) for name in slices.BESIDE}
    return means | task_measures(greedy, exam.prompts)


def _calibration(beside: TokenMeasures, exam: Exam) -> dict[str, list[float]]:
    drawn = torch.tensor([token for reply in exam.samples for token in reply])
    return reliability(beside.confidence, beside.best == drawn)


def _by_position(beside: tuple[TokenMeasures, list[int]], own: tuple[TokenMeasures, list[int]]) -> dict[str, Any]:
    at, own_at = positions.places(beside[1]), positions.places(own[1])
    forward = positions.by_position(beside[0].forward_kl, at)
    return {
        "positions": {
            "forward_kl": forward,
            "leak": positions.by_position(beside[0].leak, at),
            "reverse_kl": positions.by_position(own[0].reverse_kl, own_at),
            "excess_error": positions.excess_error(positions.by_position(own[0].forward_kl, own_at), forward),
            "count": torch.bincount(at).tolist(),
            "own_count": torch.bincount(own_at).tolist(),
        }
    }


def _own_text(own: TokenMeasures, exam: Exam, samples: list[list[int]], more: dict[str, Any]) -> dict[str, float]:
    """Measures along the student's own samples: per token, per reply, and up to the length of the teacher's reply."""
    limits = zip(samples, exam.samples, strict=True)
    matched = torch.cat([torch.arange(len(reply)) < len(other) for reply, other in limits])
    by = more["positions"]
    excess = positions.at_the_end(by["excess_error"], by["count"], by["own_count"])
    return {
        "reverse_kl": float(own.reverse_kl.mean()),
        "entropy": float(own.entropy.mean()),
        "reverse_kl_sum": float(own.reverse_kl.sum()) / len(samples),
        "reverse_kl_matched": float(own.reverse_kl[matched].mean()),
        **matched_measures(samples, exam.samples),
        "ece": expected_error(more["calibration"]),
        **({} if excess is None else {"excess_error": excess}),
    }


def check_rows(token: int, rows: int) -> None:
    """Raises: InputError: the teacher has a token, the largest that it named, for which the student has no row."""
    if token >= rows:
        raise InputError(
            f"the teacher gives mass to token {token}, the student's vocabulary has {rows} rows: rows that pad a "
            "vocabulary are no tokens, and this teacher was not taught so; take a student padded at least as far"
        )


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
    """The measures at every state of these replies, all positions in one list: reply after reply, in their order."""
    parts: dict[int, TokenMeasures] = {}
    for chosen in batches(ids, replies, teacher.vocab_size):
        texts = [ids[index] + replies[index] for index in chosen]
        teacher_logp = teacher.score(texts).cpu()
        sizes = [len(ids[index]) for index in chosen]
        student_logp = teacher_logp if student is None else score_texts(student, texts, sizes)
        for row, index in enumerate(chosen):
            states = slice(len(ids[index]) - 1, len(texts[row]) - 1)
            pair = common_vocabulary(student_logp[row, states], teacher_logp[row, states])
            sets = rule.sets(pair[1], texts[row], len(ids[index]))
            parts[index] = token_measures(*pair, rule.top_p, rule.max_candidates, sets)
    ordered = [parts[index] for index in range(len(ids))]
    return TokenMeasures(*(torch.cat(values) for values in zip(*ordered, strict=True)))


def batches(ids: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], width: int) -> Iterator[list[int]]:
    """Which texts are read together: those of like length, the longest first, as many as memory has room for."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]) + len(replies[index]))
    while order:
        longest = len(ids[order[-1]]) + len(replies[order[-1]])
        rows = max(1, LOGITS_AT_ONCE // (longest * width))
        chosen, order = order[-rows:], order[:-rows]
        yield chosen


def score_texts(student: Any, texts: list[list[int]], prompts: Sequence[int]) -> torch.Tensor:
    """Log-probabilities along texts, (B, L, V), of a causal LM or a hybrid; `prompts`: tokens of each text's prompt."""
    if isinstance(student, Hybrid):
        return student.along(score_texts(student.model, texts, prompts), texts, prompts)
    tokens, mask = right_padded(texts, student.get_output_embeddings().weight.device)
    with torch.no_grad():
        logits = student(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return normalise(torch.where(mask[..., None] > 0, logits, 0.0)).cpu()


def run(config: EvaluateConfig, beside_teacher: bool = False) -> Evaluation:
    """`tdistill evaluate`: measure a directory on held-out prompts; the teacher's own measures too if asked for.

    Raises: InputError: prompts that the student was trained or selected on, or bad settings.
    """
    check_top_p(config.top_p, config.max_candidates)
    check_price(config.price)
    for name in ("eval_prompts", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} = {getattr(config, name)} is below 1")
    teacher = load_teacher(config.teacher, config.loading)
    prompts = [prompt for prompt, _ in fitting(chosen_prompts(config), teacher, skip_bad=config.skip_bad)]
    refuse_training_prompts(Path(config.student), prompts)
    refuse_selection_prompts(Path(config.student), prompts)
    model, tokenizer = load_causal_lm(config.student, config.student_loading)
    check_same_tokens(teacher, tokenizer)
    check_context(model, config.student, prompts, teacher, config.max_new_tokens)
    policy = with_expert(config, model, tokenizer, prompts) if config.expert else model
    extras = fitting_extras(config, teacher, prompts)
    rule = Rule(config.top_p, config.max_candidates, config.max_new_tokens, extras)
    exam = set_exam(teacher, prompts, rule)
    own, theirs = costs(model, exam.ids, teacher, max(2, min(TOKENS, rule.max_new_tokens)))
    cost = with_price(speeds(policy, exam, teacher, rule) | own, config.price)
    found = examine(policy, exam, teacher, rule)
    figures = {**found.measures, **cost, **{f"teacher_{name}": x for name, x in theirs.items()}}
    return Evaluation(figures, exam, found, examine(None, exam, teacher, rule) if beside_teacher else None)


def with_expert(config: EvaluateConfig, model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> Hybrid:
    """The student with the expert beside it.

    Raises: InputError: as `expert_beside`, or the expert was counted or fitted on some of these prompts.
    """
    found = Hybrid(model, *expert_beside(Path(config.student), tokenizer))
    refuse_training_prompts(Path(config.student) / FOLDER, prompts)
    refuse_selection_prompts(Path(config.student) / FOLDER, prompts)
    return found


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


def check_context(model: Any, name: str, prompts: Sequence[Prompt], teacher: Teacher, budget: int) -> None:
    """Raises: InputError: a student that does not see as far as the teacher replies to these prompts, which fit it."""
    longest = max(len(teacher.encode(prompt.text)) for prompt in prompts)
    needed = min(longest + budget, teacher.context_limit)
    if (seen := context_limit_of(model)) < needed:
        raise InputError(
            f"student {name!r} sees {seen} tokens, the run needs {needed} (longest prompt and max_new_tokens); lower "
            "these, or take a student with a longer context"
        )


def check_same_tokens(teacher: Teacher, tokenizer: Any) -> None:
    """Raises: InputError: the teacher's tokenizer differs; it names the first token that does."""
    own = getattr(teacher, "tokenizer", None)
    if own is not None and tokenizer is not None:
        check_tokenizers(own, tokenizer)
