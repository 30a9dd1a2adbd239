"""A protected lexicon: words and phrases as token sequences, offered where one begins or goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import InputError
from envs.extras import Flags, Ids
from envs.teachers import Teacher

ANCHOR = "a"  # a text behind which spellings are read: some tokenizers treat a text's first word apart
FRAMES = ("", "\n", "(")  # what a word without a space before it may stand behind
NO_IDS: Ids = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A token trie, written as a table of its inner nodes, that says what may come after a text.

        offered(text) = {a : u·a a prefix of a sequence, u a proper prefix, text ends in u}

    u = () is a beginning: a sequence that brings its own space begins anywhere, any other where the text so far is
    empty or ends in something that is no letter, digit or underscore.

    Source: own derivation; a trie with suffix matching as in Aho and Corasick (1975).
    """

    children: dict[tuple[int, ...], Ids]
    """Proper prefix of a sequence, not empty -> the tokens that go on from it."""
    anywhere: Ids
    """First tokens of the sequences that begin anywhere, increasing."""
    bounded: Ids
    """First tokens of all sequences, increasing: what begins at a word boundary."""
    closes: Flags
    """(V,) bool: a text that ends in this token ends at a word boundary."""
    sequences: frozenset[tuple[int, ...]] = frozenset()
    """All of them, whole."""
    _known: dict[tuple[int, ...], Ids] = field(default_factory=dict, repr=False)

    @cached_property
    def reach(self) -> int:
        """How many of the last tokens matter."""
        return max((1, *map(len, self.children)))

    @cached_property
    def most(self) -> int:
        """The most ids that any text is offered: the longest prefix that a text ends in settles the others."""
        return max(len(self.bounded), len(self.anywhere), *(len(self(text)) for text in self.children))

    def said(self, text: Sequence[int]) -> Flags:
        """Which tokens of a text belong to a sequence that stands there whole.  # (len(text),) bool"""
        found, sizes = np.zeros(len(text), dtype=bool), {len(sequence) for sequence in self.sequences}
        tokens = tuple(map(int, text))
        for start in range(len(tokens)):
            for size in sizes:
                if start + size <= len(tokens) and tokens[start : start + size] in self.sequences:
                    found[start : start + size] = True
        return found

    def __call__(self, text: Sequence[int]) -> Ids:
        """The tokens offered after a text, increasing."""
        tail = tuple(np.asarray(text[-self.reach :], dtype=np.int64).tolist())
        begins = self.bounded if not tail or self.closes[tail[-1]] else self.anywhere
        ends = [tail[start:] for start in range(len(tail)) if tail[start:] in self.children]
        if not ends:
            return begins
        if (found := self._known.get(ends[0])) is None:  # the longest of them settles the others
            found = self._known[ends[0]] = np.unique(np.concatenate([begins, *(self.children[end] for end in ends)]))
        return found


def read_words(path: Path) -> list[str]:
    """The words and phrases of a file, one a line; blank lines are left out, a word that comes again too.

    Raises: InputError: no such file, not UTF-8, or no word in it.
    """
    if not path.is_file():
        raise InputError(f"lexicon {str(path)!r} does not exist; give a text file with one word or phrase a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise InputError(f"lexicon {str(path)!r} holds 0 words; give at least 1, or leave --protect out")
    return words


def variants(word: str) -> list[str]:
    """A word in the cases it may be written in.

    >>> variants("brake pads")
    ['brake pads', 'BRAKE PADS', 'Brake pads', 'Brake Pads']
    """
    each = " ".join(part[:1].upper() + part[1:] for part in word.split(" "))
    return list(dict.fromkeys([word, word.lower(), word.upper(), word[:1].upper() + word[1:], each]))


def compiled(teacher: Teacher, words: Iterable[str]) -> Lexicon:
    """The lexicon of these words in the teacher's tokens, case and leading-space variants included.

    Raises: InputError: no word, or one that no sequence of the teacher's tokens spells.
    """
    spaced, bare = set[tuple[int, ...]](), set[tuple[int, ...]]()
    for word in words:
        found = [_spellings(teacher, variant) for variant in variants(word)]
        if not any(found[0]):
            raise InputError(
                f"no sequence of the teacher's tokens spells {word!r}, so that it cannot be protected; mend it or take "
                "it out of the lexicon"
            )
        for own, others in found:
            spaced |= own
            bare |= others
    if not spaced | bare:
        raise InputError("the lexicon holds 0 words; give at least 1")
    children: dict[tuple[int, ...], set[int]] = {}
    for sequence in spaced | bare:
        for length in range(1, len(sequence)):
            children.setdefault(sequence[:length], set()).add(sequence[length])
    return Lexicon(
        children={prefix: _ids(tokens) for prefix, tokens in children.items()},
        anywhere=_ids({sequence[0] for sequence in spaced}),
        bounded=_ids({sequence[0] for sequence in spaced | bare}),
        closes=_closes(teacher) if bare else np.zeros(teacher.vocab_size, dtype=bool),
        sequences=frozenset(spaced | bare),
    )


def _ids(tokens: Iterable[int]) -> Ids:
    return np.array(sorted(tokens), dtype=np.int64)


def _spellings(teacher: Teacher, text: str) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """The sequences that spell a text: those that bring a space of their own, and the others."""
    tokenizer = getattr(teacher, "tokenizer", None)
    if tokenizer is None:  # a table, whose tokens are its words
        try:
            return {tuple(teacher.encode(text))}, set()
        except InputError:
            return set(), set()

    def read(whole: str) -> list[int]:
        ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
        return ids

    anchor, spaced, bare = read(ANCHOR), set[tuple[int, ...]](), set[tuple[int, ...]]()
    for frame in (*FRAMES, ANCHOR + " ", ANCHOR + "\n"):
        before, whole = read(frame.rstrip(" ")), read(frame + text)
        sequence = tuple(whole[len(before) :])
        if whole[: len(before)] != before or not sequence:
            continue
        said = _behind(tokenizer, anchor, sequence)
        if "".join(said.split()).casefold() != "".join(text.split()).casefold():
            continue
        opens = _behind(tokenizer, anchor, sequence[:1])
        (spaced if opens[:1].isspace() else bare).add(sequence)
    return spaced, bare


def _behind(tokenizer: Any, anchor: Sequence[int], ids: Sequence[int]) -> str:
    """What tokens say behind others."""
    texts = [tokenizer.decode([*anchor, *more], skip_special_tokens=True) for more in ((), ids)]
    return str(texts[1][len(texts[0]) :])


def _closes(teacher: Teacher) -> Flags:
    """Tokens behind which a word may begin. Half a letter counts as one: rather offered too often than lost."""
    said = (teacher.decode([token]) for token in range(teacher.vocab_size))
    return np.array([not text or not (text[-1].isalnum() or text[-1] == "_") for text in said])
