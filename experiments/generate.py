"""`tdistill generate`: talk to a student side by side with its teacher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from envs.decode import decode
from envs.errors import InputError
from envs.hf_teacher import load_causal_lm
from envs.teachers import Teacher, load_teacher
from experiments.config import GenerateConfig
from experiments.evaluate import check_same_tokens


def run(config: GenerateConfig) -> None:
    """Answer the prompts given, or those typed, and print both replies with their speed.

    Raises: InputError: no such model, other tokens than the teacher's, a prompt too long, or a temperature below 0.
    """
    if config.temperature < 0:
        raise InputError(f"temperature = {config.temperature} is below 0; 0 takes the most probable token")
    if config.max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {config.max_new_tokens} is below 1")
    teacher = load_teacher(config.teacher, config.loading)
    student, tokenizer = load_causal_lm(config.student, config.student_loading)
    check_same_tokens(teacher, tokenizer)
    for prompt in config.prompt or _typed():
        print(f"\n> {prompt}")
        for name, policy in (("student", student), ("teacher", teacher)):
            text, speed = reply(policy, prompt, teacher, config)
            print(f"  {name} ({speed:,.0f} tokens/s): {text}")


def reply(policy: Any, prompt: str, teacher: Teacher, config: GenerateConfig) -> tuple[str, float]:
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
