"""What a run protects: its settings compiled to plain data, and a digest that tells one protection from another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from envs.errors import InputError
from envs.extras import Extras, Flags, fitting
from envs.lexicon import compiled, read_words
from envs.prompts import Prompt, embedded_prompts, load_prompts, split_prompts
from envs.teachers import Teacher
from experiments.folder import digest
from experiments.slices import rare_tokens


class Protected(Protocol):
    """Settings with a protection and the prompts that say what is rare."""

    @property
    def protect(self) -> Path | None: ...
    @property
    def copy_prompt(self) -> bool: ...
    @property
    def rare_within(self) -> int | None: ...
    @property
    def max_candidates(self) -> int: ...
    @property
    def prompts(self) -> Path | None: ...
    @property
    def prompt_format(self) -> str: ...
    @property
    def skip_bad(self) -> bool: ...


def check_protection(config: Protected) -> None:
    """Raises: InputError: a lexicon that is missing or empty, or rare_within below 1."""
    if config.rare_within is not None and config.rare_within < 1:
        raise InputError(f"rare_within = {config.rare_within} is below 1; 32 is a usual value, leave it out for none")
    if config.protect is not None:
        read_words(config.protect)


def protects(config: Protected) -> bool:
    """Whether anything joins the nuclei."""
    return config.protect is not None or config.copy_prompt or config.rare_within is not None


def fitting_extras(config: Protected, teacher: Teacher, prompts: Iterable[Prompt]) -> Extras | None:
    """As `extras_of`, if `max_candidates` holds them in replies to these prompts.

    Raises: InputError: as `extras_of`, or it does not.
    """
    found = extras_of(config, teacher)
    if found is None:
        return None
    longest, width = max(len(teacher.encode(prompt.text)) for prompt in prompts), teacher.vocab_size
    return fitting(found, min(config.max_candidates, width), width, longest)


def extras_of(config: Protected, teacher: Teacher) -> Extras | None:
    """What joins the nuclei; None where nothing is protected. Rare is what the training prompts have seldom.

    Raises: InputError: as `check_protection`, or a word that no sequence of tokens spells.
    """
    check_protection(config)
    if not protects(config):
        return None
    lexicon = None if config.protect is None else compiled(teacher, read_words(config.protect))
    return Extras(
        follow=lexicon,
        most=0 if lexicon is None else lexicon.most,
        copied=plain_tokens(teacher) if config.copy_prompt else None,
        rare=None if config.rare_within is None else low_frequency(teacher, _training_prompts(config)),
        within=config.rare_within or 0,
    )


def _training_prompts(config: Protected) -> list[Prompt]:
    if config.prompts is None:
        return embedded_prompts("train")
    found = load_prompts(config.prompts, skip_bad=config.skip_bad, prompt_format=config.prompt_format)
    return split_prompts(found).train


def plain_tokens(teacher: Teacher) -> Flags:
    """Tokens that say something: neither special, nor the end of a text, nor rows that pad a vocabulary.  # (V,)"""
    tokenizer = getattr(teacher, "tokenizer", None)
    special = set(teacher.eos_ids) | set(getattr(tokenizer, "all_special_ids", ()))
    ids = np.arange(teacher.vocab_size)
    known = ids if tokenizer is None else sorted(tokenizer.get_vocab().values())
    return np.isin(ids, known) & ~np.isin(ids, sorted(special))


def low_frequency(teacher: Teacher, prompts: Sequence[Prompt]) -> Flags:
    """Tokens that these prompts and their references have seldom, as `slices.rare_tokens`, or never.  # (V,)"""
    texts = [text for prompt in prompts for text in (prompt.text, *prompt.references)]
    tokenizer = getattr(teacher, "tokenizer", None)
    if tokenizer is None:
        corpus = [teacher.encode(text) for text in texts]
    else:
        corpus = tokenizer(texts, add_special_tokens=False)["input_ids"]
    common = {token for text in corpus for token in text} - rare_tokens(corpus)
    return plain_tokens(teacher) & ~np.isin(np.arange(teacher.vocab_size), sorted(common))


def digest_of(config: Protected, extras: Extras | None) -> str:
    """What the sets of a run depend on beside p and K, as sixteen digits; empty where nothing is protected."""
    if extras is None:
        return ""
    words = [] if config.protect is None else sorted(read_words(config.protect))
    rare = "" if extras.rare is None else digest(np.packbits(extras.rare).tobytes())
    return digest(json.dumps([words, config.copy_prompt, extras.within, rare]))
