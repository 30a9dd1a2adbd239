"""`tdistill generate`: talk to a student side by side with its teacher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envs.decode import decode
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.teachers import Teacher, load_teacher
from experiments.config import GenerateConfig
from experiments.evaluate import check_same_tokens
from experiments.expert.files import expert_beside
from experiments.expert.hybrid import Hybrid
from experiments.rules.processor import adjuster
from experiments.rules.rules import FILE, Rules, rules_for


def run(config: GenerateConfig) -> None:
    """Answer the prompts given, or those typed, and print both replies with their speed.

    Raises: InputError: no such model, other tokens than the teacher's, no expert where it is asked for, a prompt too
        long, or a temperature below 0.
    """
    if config.temperature < 0:
        raise InputError(f"temperature = {config.temperature} is below 0; 0 takes the most probable token")
    if config.max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {config.max_new_tokens} is below 1")
    teacher = load_teacher(config.teacher, config.loading)
    student, tokenizer = load_causal_lm(config.student, config.student_loading)
    check_same_tokens(teacher, tokenizer)
    rules = _rules(config, tokenizer, teacher)
    own = Hybrid(student, *expert_beside(Path(config.student), tokenizer)) if config.expert else student
    for prompt in config.prompt or _typed():
        print(f"\n> {prompt}")
        for name, policy in (("student", own), ("teacher", teacher)):
            text, speed = reply(policy, prompt, teacher, config, rules if name == "student" else None)
            print(f"  {name} ({speed:,.0f} tokens/s): {text}")


def _rules(config: GenerateConfig, tokenizer: Any, teacher: Teacher) -> Rules | None:
    """The rules that the student keeps to, said once; None: there are none."""
    beside = Path(config.student) / FILE
    if config.rules == "none" or (config.rules == "beside" and not beside.is_file()):
        return None
    path = beside if config.rules == "beside" else Path(config.rules)
    found = rules_for(path, tokenizer, teacher.eos_ids, config.max_new_tokens)
    print(f"rules of the student's replies: {path} ({len(found.rules)})")
    return found


def reply(
    policy: Any, prompt: str, teacher: Teacher, config: GenerateConfig, rules: Rules | None = None
) -> tuple[str, float]:
    """One reply and the speed of its decoding in tokens per second."""
    start = time.perf_counter()
    (tokens,) = decode(
        policy,
        [teacher.encode(prompt)],
        eos_ids=teacher.eos_ids,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        vocabulary=teacher.vocab_size,
        adjust=None if rules is None else adjuster(rules, [prompt]),
    )
    return teacher.decode(tokens), len(tokens) / (time.perf_counter() - start)


def _typed() -> Iterator[str]:
    """Lines from the terminal until it ends (Ctrl-D); blank ones are passed over."""
    while True:
        try:
            line = input("\nprompt (Ctrl-D ends): ")
        except EOFError:
            print()
            return
        if line.strip():
            yield line
