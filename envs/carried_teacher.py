"""A teacher whose log-probabilities are carried to the tokens of a student with another tokenizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs import carry
from envs.carry import Bounds, Mass, State
from envs.errors import InputError
from envs.hf_teacher import Worded
from envs.teachers import Teacher
from envs.token_bytes import Pieces, Tokens, tokens_of
from envs.vocab_map import VocabularyMap, vocabulary_map


def in_tokens_of(teacher: Teacher, tokenizer: Any, bounds: Bounds | None = None) -> Teacher:
    """The teacher in a student's tokens: itself where the two tokenizers are equal, a `CarriedTeacher` else.

    Raises: InputError: as `CarriedTeacher`; a teacher without a tokenizer, or that is only served.
    """
    own = getattr(teacher, "tokenizer", None)
    if own is None:
        raise InputError(f"teacher {teacher.name!r} has no tokenizer, so that its tokens are no bytes; take another")
    if not getattr(teacher, "whole", True):
        raise InputError(
            f"{teacher.name} returns its most probable tokens only, what they share with others cannot be summed; take "
            "a teacher that is here"
        )
    if _equal(own, tokenizer):
        return teacher
    return CarriedTeacher(teacher, tokenizer, bounds)


class CarriedTeacher(Worded):
    """A teacher in a student's tokens, as `envs.teachers.Teacher` asks; `envs.carry` says which law that is.

    A prompt is read by each side in its own tokens; replies begin on a boundary of both. It answers about prompts that
    it has encoded, and about replies that are cut as the map cuts them: of others the teacher says nothing. Its context
    is `own_limit` of its own tokens, whichever the student's are; rows of a walk that have filled it are `full`.

    Args:
        teacher:   one that is here, with a tokenizer.
        tokenizer: the student's.
        bounds:    how far is looked, and what is left out.
        tokens:    the two vocabularies as bytes, teacher's and student's; None: from the tokenizers.
    Raises: InputError: bounds outside [0, 1), a tokenizer whose tokens are no bytes, or one without an EOS token.
    """

    def __init__(
        self,
        teacher: Teacher,
        tokenizer: Any,
        bounds: Bounds | None = None,
        *,
        tokens: tuple[Tokens, Tokens] | None = None,
    ) -> None:
        super().__init__(tokenizer, "the student", bool(getattr(teacher, "chat_template", False)))
        self.teacher, self.bounds = teacher, bounds or Bounds()
        for name in ("look", "prune"):
            if not 0.0 <= (value := getattr(self.bounds, name)) < 1.0:
                raise InputError(f"{name} = {value} must lie in [0, 1)")
        if tokenizer.eos_token_id is None:
            raise InputError("the student's tokenizer names no EOS token, so that no text would end; set its eos_token")
        own, self.tokens = tokens or (tokens_of(getattr(teacher, "tokenizer", None)), tokens_of(tokenizer))
        eos = int(tokenizer.eos_token_id)
        self.map: VocabularyMap = vocabulary_map(
            own, self.tokens, teacher_eos=teacher.eos_ids, student_eos=eos, rows=teacher.vocab_size
        )
        self.name, self.vocab_size, self.eos_ids = teacher.name, self.map.size, frozenset({eos})
        self.own_limit = teacher.context_limit
        self.context_limit = self.own_limit * self.map.longest  # what fills the first is shorter than this
        self.model = getattr(teacher, "model", None)
        self.lost = Lost()
        self._prompts: dict[Pieces, Pieces] = {}

    def encode(self, text: str) -> list[int]:
        """The student's tokens of a prompt; the teacher's are remembered beside them.

        Raises: InputError: a text that has no token, or two texts that the student's tokenizer does not tell apart.
        """
        return self.remember(super().encode(text), self.teacher.encode(text))

    def remember(self, prompt: Sequence[int], theirs: Sequence[int]) -> list[int]:
        """Say what a prompt in the student's tokens is in the teacher's.

        Raises: InputError: it is something else already.
        """
        known = self._prompts.setdefault(tuple(prompt), tuple(theirs))
        if known != tuple(theirs):
            raise InputError(
                f"the prompt {self.decode(prompt)[:60]!r} is two different ones to the teacher, and one to the "
                "student's tokenizer; leave one of them out"
            )
        return list(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, byte by byte, special ones left out."""
        return self.tokens.text_of([int(token) for token in ids]).decode(errors="replace")

    def walk(self, rows: int) -> CarriedWalk:
        return CarriedWalk(self, rows)

    def score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Log-probabilities (B, L, V), nats, after each position of a reply, its prompt's last one included; those
        within prompts are zeros, as is what follows an EOS.

        Raises: InputError: a text that begins with no prompt that was encoded, or as `CarriedWalk.step`.
        """
        starts = [self._prompt_of(text) for text in sequences]
        found = torch.zeros(len(sequences), max(map(len, sequences)), self.vocab_size)  # (B, L, V)
        walk = self.walk(len(sequences))
        walk.start(range(len(sequences)), [list(text[:stop]) for text, stop in zip(sequences, starts, strict=True)])
        place = torch.tensor(starts) - 1
        ends = torch.tensor([len(text) for text in sequences])
        while True:
            rows = torch.arange(len(sequences))[place < ends]
            found[rows, place[rows]] = walk.log_probs[rows]
            place = place + 1
            inside = place < ends
            tokens = torch.tensor(
                [int(text[min(int(at), len(text) - 1)]) for text, at in zip(sequences, place, strict=True)]
            )
            over = torch.isin(tokens, torch.tensor(sorted(self.eos_ids)))
            active = inside & ~over
            place = torch.where(active, place, ends)
            if not active.any():
                return found
            walk.step(tokens, active)

    def theirs(self, prompt: Sequence[int]) -> Pieces:
        """A prompt in the teacher's tokens.  Raises: InputError: it was never encoded."""
        known = self._prompts.get(tuple(prompt))
        if known is None:
            raise InputError(
                f"the prompt {self.decode(prompt)[:60]!r} was not encoded by this teacher, which cannot tell how it "
                "reads it; give prompts as texts"
            )
        return known

    def _prompt_of(self, text: Sequence[int]) -> int:
        """How long the prompt of a text is: the longest that is known."""
        for stop in range(len(text), 0, -1):
            if tuple(text[:stop]) in self._prompts:
                return stop
        self.theirs(text)
        return 0


class Lost:
    """What could not be carried, over all states that were walked: shares of each state's probability."""

    def __init__(self) -> None:
        self.states, self.unwritten, self.pruned, self.most = 0, 0.0, 0.0, 0.0

    def add(self, state: State) -> None:
        """Count a state."""
        self.states += 1
        self.unwritten += state.unwritten
        self.pruned += state.pruned
        self.most = max(self.most, state.unwritten + state.pruned)


class CarriedWalk:
    """N texts of a carried teacher; what has no mass has −∞. See `envs.walk.Walk`."""

    def __init__(self, teacher: CarriedTeacher, rows: int) -> None:
        self._teacher = teacher
        self._states: list[State | None] = [None] * rows
        self._reader = PooledReader(teacher.teacher, rows)
        self.log_probs = torch.zeros(rows, teacher.vocab_size)  # (N, V)

    @property
    def full(self) -> Tensor:
        """Rows (N,) bool that have come to the end of the teacher's context, by one of the ways to read them."""
        limit = self._reader.limit
        return torch.tensor([state is not None and state.length >= limit for state in self._states])

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin these rows anew.  Raises: InputError: a prompt that was never encoded, or is too long."""
        own = self._teacher
        states = carry.start([own.theirs(prompt) for prompt in prompts], own.map, self._reader, own.bounds)
        self._show(list(rows), states)

    def step(self, tokens: Tensor, active: Tensor) -> None:
        """Append `tokens` (N,) to the rows that are `active` (N,) bool.

        Raises: InputError: a token to which the teacher gives no mass, or one more than its context takes.
        """
        own = self._teacher
        rows: list[int] = active.nonzero()[:, 0].tolist()
        taken = [int(tokens[row]) for row in rows]
        before = [state for row in rows if (state := self._states[row]) is not None]
        for state, token in zip(before, taken, strict=True):
            if state.mass[token] <= 0:
                raise InputError(
                    f"token {token} ({own.decode([token])!r}) has no mass of the teacher's: it does not continue its "
                    "text as the vocabulary map cuts it; learn from the teacher's own episodes (`tdistill collect`)"
                )
        self._show(rows, carry.step(before, taken, own.map, self._reader, own.bounds))

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._states = [self._states[row] for row in rows]
        self.log_probs = self.log_probs[list(rows)]

    def _show(self, rows: list[int], states: list[State]) -> None:
        found = self.log_probs.clone()
        for row, state in zip(rows, states, strict=True):
            self._states[row] = state
            self._teacher.lost.add(state)
            with np.errstate(divide="ignore"):
                found[row] = torch.from_numpy(np.log(np.minimum(state.mass, 1.0))).float()
        self.log_probs = found


class PooledReader:
    """The teacher's distributions after texts of its own tokens, by rows of one walk.

    A text that is one token longer than a row's is a step of that row; any other is begun in the row that was used
    longest ago.
    """

    def __init__(self, teacher: Teacher, rows: int) -> None:
        self._teacher, self._rows = teacher, max(2 * rows, 4)
        self._walk = teacher.walk(self._rows)
        self._held: OrderedDict[int, Pieces] = OrderedDict((row, ()) for row in range(self._rows))  # last used last
        self.limit = teacher.context_limit

    def __call__(self, texts: Sequence[Pieces]) -> list[Mass]:
        found: list[Mass] = []
        for begin in range(0, len(texts), self._rows):
            found += self._read(texts[begin : begin + self._rows])
        return found

    def _read(self, texts: Sequence[Pieces]) -> list[Mass]:
        if (longest := max(map(len, texts))) > self.limit:
            raise InputError(
                f"a text has {longest} of the teacher's own tokens, its context is {self.limit}; lower "
                "--max-new-tokens, or give shorter prompts"
            )
        known = {text: row for row, text in self._held.items() if text}
        before = [known.pop(text[:-1], None) for text in texts]  # a row goes on with one text alone
        stepped = [(row, text) for row, text in zip(before, texts, strict=True) if row is not None]
        taken = {row for row, _ in stepped}
        free = iter([row for row in self._held if row not in taken])
        rows = [next(free) if row is None else row for row in before]
        self._step(stepped)
        begun = [(row, list(text)) for row, text, old in zip(rows, texts, before, strict=True) if old is None]
        if begun:
            self._walk.start([row for row, _ in begun], [text for _, text in begun])
        for row, text in zip(rows, texts, strict=True):
            self._held[row] = text
            self._held.move_to_end(row)
        mass = self._walk.log_probs[rows].double().exp()
        return list((mass / mass.sum(1, keepdim=True)).numpy())

    def _step(self, pairs: list[tuple[int, Pieces]]) -> None:
        if pairs:
            tokens = torch.zeros(self._rows, dtype=torch.int64)
            active = torch.zeros(self._rows, dtype=torch.bool)
            for row, text in pairs:
                tokens[row], active[row] = text[-1], True
            self._walk.step(tokens, active)


def _equal(one: Any, other: Any) -> bool:
    """Whether two tokenizers are the same: tokens, what ends a text, and how they cut."""
    if one is other:
        return True
    if one.get_vocab() != other.get_vocab() or one.eos_token_id != other.eos_token_id:
        return False
    ours, theirs = getattr(one, "backend_tokenizer", None), getattr(other, "backend_tokenizer", None)
    return ours is not None and theirs is not None and str(ours.to_str()) == str(theirs.to_str())
