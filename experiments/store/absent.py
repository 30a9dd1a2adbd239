"""The teacher of a store, when the store is all there is of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from agents.loading import load_tokenizer
from envs.errors import InputError
from envs.hf_teacher import Worded
from experiments.config import ABSENT
from experiments.store.shards import TOKENIZER, Manifest


class AbsentTeacher(Worded):
    """A teacher that has spoken: its tokenizer is here, its weights are not.

    Raises: InputError: the store has no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        if not (folder / TOKENIZER).is_dir():
            raise InputError(f"the store {folder} holds no tokenizer, so that its teacher is needed; give --teacher")
        self.name, self.folder = ABSENT, folder
        super().__init__(load_tokenizer(str(folder / TOKENIZER)), ABSENT, bool(manifest.settings["chat_template"]))
        self.vocab_size = int(manifest.teacher["vocab_size"])
        self.eos_ids = frozenset(manifest.teacher["eos_ids"])
        self.context_limit = int(manifest.teacher["context_limit"])

    def walk(self, rows: int) -> NoReturn:
        """Raises: InputError: always."""
        self._ask()

    def score(self, sequences: Sequence[Sequence[int]]) -> NoReturn:
        """Raises: InputError: always."""
        self._ask()

    def _ask(self) -> NoReturn:
        raise InputError(
            f"the teacher of the store {self.folder} is asked for what the store does not hold; give it with --teacher"
        )
