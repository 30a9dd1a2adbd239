"""How much is there for lookahead to find? The teacher conditioned on staying inside, against each set renormalised.

What soft Q-learning at γ = 1 and distillation on the sets learn differs by identity (4c). Over whole replies y to a
prompt the difference has a closed form in the retained masses Z alone, so that walks inside the sets measure it:

    KL(renormalised ‖ conditioned) = log E[exp S] − E[S],   S = Σ_t log Z(s_t),   y ∼ Π_t π_T^A
    E[exp S] = P_T(the teacher never leaves the sets)

A student whose KL to the teacher is far above it has other worries than to look ahead.

    python -m experiments.studies.stay_inside

Source: own derivation from identity (4b).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from envs.candidates import check_top_p
from envs.prompts import embedded_prompts, load_prompts
from envs.teachers import Teacher, load_teacher
from experiments.evaluate import Rule
from experiments.metrics import mean_and_interval
from experiments.report import aligned
from experiments.studies.command import run
from experiments.studies.rollouts import mean_by, walks_from


@dataclass(frozen=True)
class StayInsideConfig:
    """Settings of the study."""

    teacher: str = "embedded"
    """"embedded", "table:NAME", a directory, or a hub id."""
    prompts: Path | None = None
    """A .jsonl or text file; none: the embedded validation split."""
    top_p: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95)
    count: int = 64
    """Prompts."""
    walks: int = 32
    """Replies to each, inside the sets. KL is underestimated by about Var(S)/2 over this number."""
    max_candidates: int = 64
    max_new_tokens: int = 64
    """Budget of a reply: a text that is cut there has stayed inside."""
    seed: int = 0


@dataclass(frozen=True)
class Gap:
    """What one prompt's replies say, and how long they are."""

    kl: Tensor  # (U,) nats a reply, KL(renormalised ‖ conditioned)
    log_stay: Tensor  # (U,) log P_T(never leaves)
    length: Tensor  # (U,) tokens


def gap(teacher: Teacher, texts: list[list[int]], each: int, rule: Rule, seed: int) -> Gap:
    """The difference of the two policies over whole replies to U different prompts."""
    walks, number = walks_from(texts, each, teacher, rule, seed=seed, teacher_walk="set")
    total = (walks.log_mass[:, :-1] * walks.steps).sum(1)  # S
    grouped = total[number.argsort(stable=True)].reshape(len(texts), each)
    log_stay = grouped.logsumexp(1) - math.log(each)
    return Gap(log_stay - grouped.mean(1), log_stay, mean_by(number, walks.length.float(), len(texts)))


def study(config: StayInsideConfig) -> str:
    """A line for each top_p: means over prompts with half of a 95 % interval."""
    for top_p in config.top_p:
        check_top_p(top_p, config.max_candidates)
    teacher = load_teacher(config.teacher)
    prompts = embedded_prompts("validation") if config.prompts is None else load_prompts(config.prompts)
    texts = [list(text) for text in dict.fromkeys(tuple(teacher.encode(prompt.text)) for prompt in prompts)]
    lines = [["p", "−log P(stays inside)", "KL, nats a reply", "nats a token", "tokens"]]
    for top_p in config.top_p:
        rule = Rule(top_p, config.max_candidates, config.max_new_tokens)
        found = gap(teacher, texts[: config.count], config.walks, rule, config.seed)
        a_token = found.kl / found.length
        cells = (
            _with_interval(values, digits) for values, digits in ((-found.log_stay, 2), (found.kl, 3), (a_token, 5))
        )
        lines.append([f"{top_p:g}", *cells, f"{float(found.length.mean()):.1f}"])
    return aligned(lines, markdown=True)


def _with_interval(values: Tensor, digits: int) -> str:
    mean, half = mean_and_interval(values.tolist())
    return f"{mean:.{digits}f}±{half:.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(run(StayInsideConfig, __doc__, study))
