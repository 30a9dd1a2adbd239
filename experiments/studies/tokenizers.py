"""A student with another tokenizer than its teacher's, beside one of equal size with the teacher's.

    python -m experiments.studies.tokenizers

The embedded teacher; students that begin at random. *same* learns from a store in the teacher's tokens, *other* from
one in those of a byte-level BPE that splits as GPT-2's does (the teacher's takes every digit apart), to which the
teacher's log-probabilities are carried (`envs.carry`). With as many entries both have as many parameters. Both answer
the same test prompts; divergences are per byte, so that they compare:

    KL a byte = Σ over states of the teacher's replies of KL(π_T ‖ π_S) / Σ bytes of these replies

each in its own tokens. Bytes of a token follow from that. What is not carried is the mean mass of a state of the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from agents.student import Student
from envs.carried_teacher import in_tokens_of
from envs.errors import InputError
from envs.hf_teacher import load_tokenizer
from envs.prompts import embedded_prompts
from envs.service_desk import messages
from envs.teachers import EMBEDDED, Teacher, load_teacher
from experiments.compare import compare
from experiments.config import ABSENT, CompareConfig
from experiments.evaluate import Exam, Rule, measure, parameters_of, set_exam
from experiments.folder import write
from experiments.metrics import mean_and_interval
from experiments.paired import sign_flip_p
from experiments.report import aligned
from experiments.store.draw import CollectConfig, draw
from experiments.studies.command import run

SAME, OTHER = "same", "other"


@dataclass(frozen=True)
class TokenizersConfig:
    """Settings of the study."""

    vocabulary: int = 2048
    """Entries of the other tokenizer; the teacher's has 2,048."""
    agents: tuple[str, ...] = ("bc", "bellman_distill")
    """Agents that learn from episodes alone."""
    student: str = "tiny"
    """Size name of both students."""
    seeds: int = 5
    lr: float = 2e-3
    """Of the agents: students begin at random."""
    count: int = 2048
    """Training prompts, with a reply each; all seeds of an arm share its store."""
    updates: int = 2000
    batch_size: int = 16
    eval_prompts: int = 128
    """Test prompts."""
    max_new_tokens: int = 80
    """Budget of a reply, in the student's tokens."""
    jobs: int = 1
    """Worker processes."""
    out: Path = Path("runs/tokenizers")
    """The same command goes on where it stopped."""


@dataclass(frozen=True)
class Measured:
    """One student."""

    agent: str
    seed: int
    figures: dict[str, float]  # task_score, kl_a_byte, parameters


@dataclass(frozen=True)
class Side:
    """The students with one tokenizer."""

    students: list[Measured]
    bytes_a_token: float  # of the teacher's replies to the test prompts
    not_carried: float  # mean mass of a state of the store


def study(config: TokenizersConfig) -> dict[str, Side]:
    """Both arms, drawn, trained and measured; what stands in `out` is not done again.

    Raises: InputError: fewer than one seed, prompt or update.
    """
    for name in ("seeds", "count", "updates", "eval_prompts"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} = {getattr(config, name)} is below 1")
    if not (config.out / "tokenizer" / "tokenizer.json").is_file():
        other_tokenizer(config.vocabulary).save_pretrained(config.out / "tokenizer")
    return {name: _side(config, name) for name in (SAME, OTHER)}


def other_tokenizer(size: int, count: int = 4096) -> Any:
    """Byte-level BPE of so many messages of the embedded corpus, split as GPT-2's splits.

    A prompt ends in `<sep>`, as the teacher's does.

    Raises: InputError: the corpus does not hold enough for the size.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<sep>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator((text for own in messages("train", count) for text in (own.prompt, own.reply)), trainer)
    if found.get_vocab_size() != size:
        raise InputError(f"vocabulary = {size}: the corpus gives one of {found.get_vocab_size()}; take that")
    end = ("<sep>", found.token_to_id("<sep>"))
    found.post_processor = processors.TemplateProcessing(single="$A <sep>", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<pad>",
        eos_token="<eos>",
        sep_token="<sep>",
        clean_up_tokenization_spaces=False,
    )


def _side(config: TokenizersConfig, name: str) -> Side:
    place = config.out / f"tokenizer-{name}"
    tokenizer = str(config.out / "tokenizer") if name == OTHER else str(EMBEDDED)
    store = draw(
        CollectConfig(
            out=config.out / f"store-{name}",
            student_tokenizer=tokenizer,
            count=config.count,
            max_new_tokens=config.max_new_tokens,
        )
    )
    compare(
        CompareConfig(
            teacher=ABSENT,
            store=config.out / f"store-{name}",
            student=config.student,
            agents=config.agents,
            seeds=config.seeds,
            updates=config.updates,
            batch_size=config.batch_size,
            agent_config=tuple(f"{agent}.lr={config.lr}" for agent in config.agents),
            eval_every=config.updates,
            threads=1,
            jobs=config.jobs,
            eval_prompts=min(16, config.eval_prompts),
            max_new_tokens=config.max_new_tokens,
            out=place,
        )
    )
    teacher = in_tokens_of(load_teacher("embedded"), load_tokenizer(tokenizer))
    rule = Rule(0.9, 64, config.max_new_tokens)
    exam = _exam(config, name, teacher, rule)
    size = sum(len(teacher.decode(reply).encode()) for reply in exam.samples)
    tokens = sum(map(len, exam.samples))
    students = [
        Measured(agent, seed, _measured(place / "students" / f"{agent}-seed{seed}", exam, teacher, rule, tokens / size))
        for agent in config.agents
        for seed in range(config.seeds)
    ]
    lost = store.get("mean_unwritten_mass", 0.0) + store.get("mean_pruned_mass", 0.0)
    return Side(students, size / tokens, lost)


def _exam(config: TokenizersConfig, name: str, teacher: Teacher, rule: Rule) -> Exam:
    """The teacher's replies to the test prompts in an arm's tokens, kept beside the store."""
    prompts = embedded_prompts("test", config.eval_prompts)
    path = config.out / f"exam-{name}-{config.eval_prompts}.json"
    if not path.is_file():
        made = set_exam(teacher, prompts, rule)
        write(path, json.dumps({"samples": made.samples, "greedy": made.greedy}))
    return Exam(prompts, [teacher.encode(prompt.text) for prompt in prompts], **json.loads(path.read_text()))


def _measured(place: Path, exam: Exam, teacher: Teacher, rule: Rule, tokens_a_byte: float) -> dict[str, float]:
    student = Student.load(place).model
    found = measure(student, exam, teacher, rule, quick=True)
    return {
        "task_score": found["task_score"],
        "kl_a_byte": found["forward_kl"] * tokens_a_byte,
        "parameters": float(parameters_of(student)),
    }


def table(sides: dict[str, Side]) -> str:
    """A line for each agent and tokenizer, and one for the difference, paired by seed; half of a 95 % interval."""
    lines = [["agent", "tokens", "bytes a token", "parameters", "task", "KL, nats a byte", "mass not carried"]]
    for agent in dict.fromkeys(own.agent for own in sides[SAME].students):
        columns: dict[str, dict[str, list[float]]] = {}
        for name, side in sides.items():
            own = [student.figures for student in side.students if student.agent == agent]
            columns[name] = {key: [figures[key] for figures in own] for key in own[0]}
            lines.append(
                [
                    agent,
                    name,
                    f"{side.bytes_a_token:.2f}",
                    f"{fmean(columns[name]['parameters']):,.0f}",
                    _with_interval(columns[name]["task_score"], 3),
                    _with_interval(columns[name]["kl_a_byte"], 4),
                    f"{side.not_carried:.1e}" if side.not_carried else "0",
                ]
            )
        cells = [
            _difference([a - b for a, b in zip(columns[OTHER][key], columns[SAME][key], strict=True)], digits)
            for key, digits in (("task_score", 3), ("kl_a_byte", 4))
        ]
        lines.append([agent, "other − same", "", "", *cells, ""])
    return aligned(lines, markdown=True)


def _with_interval(values: Sequence[float], digits: int) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:.{digits}f}±{half:.{digits}f}"


def _difference(values: Sequence[float], digits: int) -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:+.{digits}f}±{half:.{digits}f} (p {sign_flip_p(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(run(TokenizersConfig, __doc__, lambda config: table(study(config))))
