"""The rules file: read, checked against a vocabulary and a budget, and what it asks of the reply to a prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import InputError
from envs.ruled import Allow, Potential
from experiments.config import from_mapping
from experiments.rules.duty import Duty, allowed, check, eos_mask
from experiments.rules.spelling import Mask, Spelling, pieces_of
from experiments.strict_yaml import read_mapping

FILE = "rules.yaml"
"""Its name beside a student."""


@dataclass(frozen=True)
class Rule:
    """One entry of a rules file."""

    name: str = ""
    when: str | None = None
    contains: str | None = None
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()

    def asks(self, prompt: str) -> bool:
        """Whether the rule is about this prompt."""
        if self.when is not None:
            return re.search(self.when, prompt) is not None
        return self.contains is None or self.contains in prompt

    @property
    def trigger(self) -> tuple[str | None, str | None]:
        """What makes the rule ask."""
        return self.when, self.contains


class Rules:
    """Rules over one vocabulary.

    Args:
        rules: in the order in which phrases are said where both are owed at the end.
        pieces: the bytes of each token (`pieces_of`); eos_ids: tokens that end a reply.
        budget: most new tokens of a reply.
    Raises: InputError: rules that contradict each other or cannot be kept (`duty.check`); those of one trigger, and
        those of every prompt, are taken together.
    """

    def __init__(self, rules: tuple[Rule, ...], pieces: list[bytes], eos_ids: Collection[int], budget: int) -> None:
        self.rules, self.spelling, self.budget = rules, Spelling(pieces), budget
        self.eos = eos_mask(len(pieces), eos_ids)
        self._duties: dict[tuple[str, ...], Duty] = {}
        for own in rules:
            self._duty([other for other in rules if other.trigger in (own.trigger, (None, None))])

    def duty_of(self, prompt: str) -> Duty:
        """What the reply to a prompt owes.

        Raises: InputError: the rules that this prompt calls contradict each other.
        """
        return self._duty([rule for rule in self.rules if rule.asks(prompt)])

    def allowed(self, duty: Duty, reply: list[int], ending: bool = False) -> Mask:
        """Tokens that may follow these new tokens; see `duty.allowed`.  # (V,)"""
        return allowed(duty, self.spelling, self.eos, self.text_of(reply), self.budget - len(reply), ending)

    def text_of(self, reply: list[int]) -> bytes:
        """New tokens as lower-case bytes; one outside the vocabulary writes nothing."""
        pieces = self.spelling.pieces
        return b"".join(pieces[token] for token in reply if token < len(pieces))

    def _duty(self, rules: list[Rule]) -> Duty:
        names = tuple(rule.name for rule in rules)
        if names not in self._duties:
            own = Duty(
                tuple(dict.fromkeys(phrase.encode().lower() for rule in rules for phrase in rule.must)),
                tuple(dict.fromkeys(phrase.encode().lower() for rule in rules for phrase in rule.must_not)),
            )
            check(own, self.spelling, self.eos, self.budget, " and ".join(names) or "no rule")
            self._duties[names] = own
        return self._duties[names]


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file; see `experiments.rules` for what that holds.

    Raises: InputError: no such file, no YAML, an unknown key, no rule, a rule without phrases, an empty phrase, two
        triggers, or a regular expression that is none.
    """
    values = read_mapping(path, "rules")
    entries = values.get("rules")
    if unknown := [str(key) for key in values if key != "rules"]:
        raise InputError(f"{path}: a rules file has no setting {unknown[0]!r} (known: rules)")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: `rules` must be a list of at least one rule")
    found = tuple(_rule(entry, number, path) for number, entry in enumerate(entries, 1))
    names = [rule.name for rule in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{path}: two rules have the name {min(twice)!r}; give each its own")
    return found


def in_env(rules: Rules, vocabulary: int, weight: float) -> tuple[Allow, Potential | None]:
    """What `envs.ruled.RuledVectorEnv` is given: the masks, and with a weight Φ(s) = weight · `Duty.progress`.

    Args:
        vocabulary: V of the teacher; its rows beyond the tokenizer's are masked.
        weight: nats for a phrase; 0: no potential.
    """

    def allow(prompt: str, reply: list[int]) -> Mask:
        found = np.zeros(vocabulary, dtype=bool)
        mask = rules.allowed(rules.duty_of(prompt), reply)[:vocabulary]
        found[: len(mask)] = mask
        return found

    def potential(prompt: str, reply: list[int]) -> float:
        return weight * rules.duty_of(prompt).progress(rules.text_of(reply))

    return allow, potential if weight else None


def rules_for(path: Path, tokenizer: Any, eos_ids: Collection[int], budget: int) -> Rules:
    """The rules of a file over a tokenizer's vocabulary.

    Raises: InputError: as `read_rules`, `pieces_of` and `Rules`.
    """
    return Rules(read_rules(path), pieces_of(tokenizer), eos_ids, budget)


def _rule(entry: Any, number: int, path: Path) -> Rule:
    who = f"{path}: rule {number}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{who} is {entry!r}; it must be a mapping with `must` or `must_not`")
    own = from_mapping(Rule, {"name": f"rule {number}", **entry}, who)
    if not own.must and not own.must_not:
        raise InputError(f"{who} is empty; give it phrases in `must` or `must_not`")
    if own.when is not None and own.contains is not None:
        raise InputError(f"{who} has `when` and `contains`; one of the two says when it asks")
    if own.when == "" or own.contains == "":
        raise InputError(f"{who} asks at an empty text; leave `when` and `contains` out to ask at every prompt")
    for phrase in (*own.must, *own.must_not):
        if not phrase or phrase != phrase.strip():
            raise InputError(f"{who}: the phrase {phrase!r} is empty or has white space around it; phrases are words")
    try:
        re.compile(own.when or "")
    except re.error as error:
        raise InputError(f"{who}: `when: {own.when}` is no regular expression ({error}); mend it") from error
    return own
