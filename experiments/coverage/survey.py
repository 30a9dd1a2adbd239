"""One pass of the teacher over replies: what is kept of each state is a few numbers, never a row of the vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from envs.prompts import Prompt
from envs.service_desk import Checks
from envs.teachers import Teacher
from experiments.coverage.reach import Reach, inside, reach
from experiments.coverage.words import Spelling, phrase_in, spelling, words_in
from experiments.evaluate import batches

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHECKED = "checks: "
LEXICON = "lexicon"
ALL = "all words"


@dataclass(frozen=True)
class Grid:
    """The masses and widths that are looked at: P of the one, W of the other, ascending; the last width is V."""

    masses: tuple[float, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """What the teacher makes of M replies, T tokens in all, one reply after another."""

    prompts: Ints  # (M,) which prompt each answers
    replies: list[list[int]]
    before: Floats  # (T,) mass before the token taken
    rank: Ints  # (T,) its rank
    sizes: Ints  # (T, P) candidates without a cut
    kept: Floats  # (M, P, W) Σ_t Z of a reply
    log_kept: Floats  # (M, P, W) Σ_t log Z of a reply, nats

    @property
    def lengths(self) -> Ints:
        """(M,) tokens of each reply, with its end."""
        return np.array([len(reply) for reply in self.replies], dtype=np.int64)

    @property
    def positions(self) -> Ints:
        """(T,) 0-based place of every token in its reply."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def whole(self, p: float, width: int) -> NDArray[np.bool_]:
        """(M,) whether a reply never leaves the sets."""
        ends = np.cumsum(self.lengths)
        out = np.concatenate([[0], np.cumsum(~inside(self.before, self.rank, p, width))])
        return np.asarray(out[ends] == out[ends - self.lengths])


@dataclass(frozen=True)
class Found:
    """Occurrences of words in replies, and how far their tokens reach: the largest values of any of a word's tokens."""

    words: list[str]
    prompts: Ints  # (O,) the prompt whose reply it stands in
    before: Floats  # (O,)
    rank: Ints  # (O,)

    def __len__(self) -> int:
        return len(self.words)

    def chosen(self, which: NDArray[np.bool_]) -> Found:
        """Those of them."""
        words = [word for word, own in zip(self.words, which, strict=True) if own]
        return Found(words, self.prompts[which], self.before[which], self.rank[which])

    def lost(self, grid: Grid) -> NDArray[np.bool_]:
        """(O, P, W) whether each falls out: any of its tokens lies outside the set."""
        rows = [
            [~inside(self.before, self.rank, p, width) for width in grid.widths] for p in grid.masses
        ]  # P × W of (O,)
        return np.moveaxis(np.array(rows, dtype=np.bool_).reshape(len(grid.masses), len(grid.widths), -1), -1, 0)


def survey(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[tuple[int, list[int]]],
    grid: Grid,
    about: str,
) -> Side:
    """Read the replies once, texts of like length together, and note what every state says.

    Args:
        prompts: their tokens.
        answers: which prompt a reply answers, and its tokens.
        about: what the progress bar calls them.
    """
    ids, replies = [list(prompts[which]) for which, _ in answers], [reply for _, reply in answers]
    found: dict[int, Reach] = {}
    with tqdm(total=sum(map(len, replies)), desc=f"reading {about}", unit="token") as bar:
        for chosen in batches(ids, replies, teacher.vocab_size):
            scores = teacher.score([ids[index] + replies[index] for index in chosen])
            for row, index in enumerate(chosen):
                start, reply = len(ids[index]) - 1, replies[index]
                states = scores[row, start : start + len(reply)]  # (T, V)
                taken = torch.tensor(reply, device=states.device)
                found[index] = Reach(*(part.cpu() for part in reach(states, taken, grid.masses, grid.widths)))
                bar.update(len(reply))
    ordered = [found[index] for index in range(len(answers))]
    kept = [part.kept for part in ordered]
    return Side(
        prompts=np.array([which for which, _ in answers], dtype=np.int64),
        replies=replies,
        before=np.concatenate([part.before.numpy() for part in ordered]),
        rank=np.concatenate([part.rank.numpy() for part in ordered]),
        sizes=np.concatenate([part.sizes.numpy() for part in ordered]),
        kept=np.stack([part.sum(0).numpy() for part in kept]),
        log_kept=np.stack([part.log().sum(0).numpy() for part in kept]),
    )


def spellings(side: Side, teacher: Teacher) -> list[Spelling]:
    """The texts of all replies."""
    return [spelling(reply, teacher.decode, teacher.eos_ids) for reply in side.replies]


def words_of(side: Side, texts: Sequence[Spelling]) -> Found:
    """Every word of the replies."""
    return _found(side, texts, [list(words_in(text.text)) for text in texts])


def phrases_of(side: Side, texts: Sequence[Spelling], phrases: Sequence[Sequence[str]]) -> Found:
    """Every occurrence of the phrases that are looked for in each reply; a phrase is lost if any of its tokens is."""
    places = [
        [(phrase.lower(), *span) for phrase in own for span in phrase_in(text.text, phrase)]
        for text, own in zip(texts, phrases, strict=True)
    ]
    return _found(side, texts, places)


def _found(side: Side, texts: Sequence[Spelling], places: Sequence[Sequence[tuple[str, int, int]]]) -> Found:
    words, prompts, before, rank = [], [], [], []
    begin = 0
    for prompt, text, own in zip(side.prompts, texts, places, strict=True):
        for word, start, end in own:
            if spelt := [begin + place for place in text.tokens(start, end)]:
                words.append(word)
                prompts.append(prompt)
                before.append(side.before[spelt].max())
                rank.append(side.rank[spelt].max())
        begin += len(text.ranges)
    return Found(words, np.array(prompts, np.int64), np.array(before, np.float64), np.array(rank, np.int64))


def by_group(
    side: Side, texts: Sequence[Spelling], prompts: Sequence[Prompt], corpus: Mapping[str, int], lexicon: Sequence[str]
) -> dict[str, Found]:
    """The words of the replies in groups: all, by how often the corpus has them, by tag; what is checked; the lexicon.

    Args:
        prompts: those that the replies answer.
        corpus: how often each word occurs in what the teacher is known by; a word without an entry counts as once.
        lexicon: words and phrases that are looked for in every reply.
    Returns: name -> occurrences; a group without any is left out, but for the lexicon.
    """
    every = words_of(side, texts)
    groups = {ALL: every}
    classes = np.array([frequency_class(corpus.get(word, 1)) for word in every.words])
    for name in sorted(set(classes), key=lambda name: int(name.split("–")[0].replace(",", ""))):
        groups[f"said {name} times"] = every.chosen(classes == name)
    for tag in sorted({tag for prompt in prompts for tag in prompt.tags}):
        groups[tag] = every.chosen(np.array([tag in prompts[which].tags for which in every.prompts], dtype=np.bool_))
    for field in fields(Checks):
        wanted = [getattr(prompts[which].checks, field.name) for which in side.prompts]
        groups[CHECKED + field.name] = phrases_of(side, texts, wanted)
    groups = {name: found for name, found in groups.items() if len(found)}
    if lexicon:
        groups[LEXICON] = phrases_of(side, texts, [lexicon] * len(texts))
    return groups


def frequency_class(count: int) -> str:
    """The power of ten that a count lies in.

    >>> frequency_class(42)
    '10–99'
    """
    low = 10 ** (len(str(count)) - 1)
    return f"{low:,}–{10 * low - 1:,}"


def word_counts(texts: Sequence[str]) -> Counter[str]:
    """How often each word occurs."""
    return Counter(word for text in texts for word, _, _ in words_in(text))
