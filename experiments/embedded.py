"""`tdistill teacher`: trains, measures and saves the embedded teacher and its warm-start student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from envs.candidates import normalise, top_p
from envs.decode import decode
from envs.service_desk import messages, score_reply
from experiments.pretrain import TeacherConfig, encode, train_teacher
from experiments.warm_start import WarmStartConfig, clone, held_out_loss, sample_pairs, save_half

MASSES = (0.5, 0.8, 0.9, 0.95)
BUDGET = 96


@dataclass(frozen=True)
class EmbeddedConfig:
    """Train the service desk's tokenizer and teacher, then clone the warm-start student from it.

    Stop it whenever you like: the same command goes on from the last checkpoint of the teacher.
    """

    out: Path
    """Folder that gets `teacher/`, `student/` and, while training, `training/`."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: WarmStartConfig = field(default_factory=WarmStartConfig)
    measured: int = 400
    """Held-out messages that the figures of the model cards are taken on."""
    json: Path | None = None
    """Write the figures to this file too."""


def run(config: EmbeddedConfig) -> dict[str, float]:
    """Train both models and save them with their cards.

    Returns: the figures of both cards.
    Raises: InputError: `out` holds a run with another configuration.
    """
    teacher, tokenizer = train_teacher(config.teacher, config.out / "training")
    figures = measure(teacher, tokenizer, config.measured)
    card = model_card("the embedded teacher", asdict(config.teacher), figures)
    save_half(teacher, tokenizer, config.out / "teacher", card)
    student, training = clone(config.student, teacher, tokenizer)
    student_figures = {**training, **measure(student, tokenizer, config.measured)}
    card = model_card("the warm-start student", asdict(config.student), student_figures)
    save_half(student, tokenizer, config.out / "student", card)
    both = {"teacher": figures, "student": student_figures}
    return {f"{who} {name}": value for who, found in both.items() for name, value in found.items()}


def measure(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """What a model card states, on `count` messages of the test split.

    Perplexity of the references; nucleus sizes along the model's own samples at several p; at p = .9 the share of
    positions with two candidates or more and the mean of −log P(stay inside) = −Σ log Z (identity (4b)); shares of
    checked strings in greedy replies.
    """
    test = messages("test", count)
    references = [encode(tokenizer, message) for message in test]
    figures = {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "held-out perplexity": math.exp(held_out_loss(model, references, tokenizer.pad_token_id)),
    }
    figures |= nucleus_figures(model, tokenizer, count)
    prompts = [prompt for prompt, _ in references]
    replies = decode(model, prompts, eos_ids={tokenizer.eos_token_id}, max_new_tokens=BUDGET, temperature=0)
    texts = [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]
    scores = [score_reply(text, message.checks) for text, message in zip(texts, test, strict=True)]
    for part in ("task", "copied", "required", "computed", "rare"):
        found = [value for score in scores if (value := getattr(score, part)) is not None]
        if found:
            figures[f"{part} score, greedy"] = fmean(found)
    return figures


def nucleus_figures(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Sizes of the candidate sets along the model's own samples, and how often it leaves them."""
    sizes: dict[float, list[int]] = {p: [] for p in MASSES}
    stay: list[float] = []
    with torch.no_grad():
        for prompt, reply in sample_pairs(model, tokenizer, "test", count, 0, BUDGET):
            logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            logp = normalise(logits)  # (T, V)
            for p in MASSES:
                found = top_p(logp, p)
                sizes[p] += found.sizes.tolist()
                if p == 0.9:
                    stay.append(-float(found.log_mass.sum()))
    means = {f"mean nucleus at p = {p}": fmean(sizes[p]) for p in MASSES}
    return {
        **means,
        "positions with 2 or more candidates at p = 0.9": fmean(size >= 2 for size in sizes[0.9]),
        "-log P(stay inside) per reply at p = 0.9, nats": fmean(stay),
    }


def model_card(title: str, settings: Mapping[str, object], figures: Mapping[str, float]) -> str:
    """A model card: what it is, how it was made, what was measured."""
    rows = [
        f"| {name} | {value:,.0f} |" if value >= 1000 else f"| {name} | {value:.4g} |"
        for name, value in figures.items()
    ]
    made = [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(
        [
            "---",
            "license: mit",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# tdistill: {title}",
            "",
            "Replies to the mail of a generated bicycle workshop (`envs/service_desk.py`); nobody's data.",
            "`tokenizer(message)` ends in `<sep>`, after which the model writes the reply and `<eos>`.",
            "",
            "| measured on held-out messages | |",
            "|---|---:|",
            *rows,
            "",
            "| made with | |",
            "|---|---:|",
            *made,
            "",
        ]
    )
