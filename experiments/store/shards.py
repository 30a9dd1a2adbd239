"""The files of a store: shards in Arrow, and a manifest that says what they are and which of them are whole.

store.json          what was drawn, from whom, and the shards with their digests
tokenizer/          the teacher's, if it has one
prompts.json        hashes of the prompts that are replied to; not there in stores that are older than this
shard-00000.arrow   episodes (`experiments.store.columns`), one shard for every so many prompts

A shard takes its name only once it is whole, and its line in the manifest after that: whatever stops a collection, what
the manifest names is there, and the next one goes on behind it. `datasets.Dataset.from_file` reads a shard as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from agents.episodes import Episodes
from envs.errors import InputError
from envs.teachers import SERVED, Teacher
from experiments.folder import write
from experiments.seen import hashes_in
from experiments.store.columns import Array, Format, Lists, decode, encode
from experiments.store.fingerprint import fingerprint

MANIFEST = "store.json"
TOKENIZER = "tokenizer"
PROMPTS = "prompts.json"
UPDATED = "updated_from"
"""Where the settings of a store say that `tdistill update` made it of another; empty or not there in others."""


@dataclass(frozen=True)
class Manifest:
    """What a store says about itself."""

    settings: dict[str, Any]  # what the episodes depend on
    teacher: dict[str, Any]  # its fingerprint
    shards: dict[str, dict[str, Any]]  # file name -> episodes, tokens, bytes, digest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises: InputError: no store there, or a manifest that is cut short."""
        path = folder / MANIFEST
        if not path.is_file():
            raise InputError(f"no store in {folder}: it holds no {MANIFEST}; draw one with `tdistill collect`")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is no manifest of a store ({error}); draw the store anew") from error

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        write(folder / MANIFEST, json.dumps(asdict(self), indent=1))

    @property
    def form(self) -> Format:
        """How the numbers of its shards are kept."""
        names = ("logp", "reward", "teacher_walk")
        return Format(self.teacher["vocab_size"], **{name: self.settings[name] for name in names})


def write_beside(folder: Path, tokenizer: Any, prompts: Iterable[str]) -> None:
    """Write what lies beside the shards and is not there yet.

    Args:
        tokenizer: of the episodes' tokens; None: there is none.
        prompts: `prompt_hash` of those that are replied to; none: they are not known.
    """
    if tokenizer is not None and not (folder / TOKENIZER).is_dir():
        tokenizer.save_pretrained(folder / TOKENIZER)
    if (hashes := sorted(set(prompts))) and not (folder / PROMPTS).is_file():
        write(folder / PROMPTS, json.dumps(hashes))


def write_shard(path: Path, episodes: Episodes, form: Format) -> dict[str, Any]:
    """Write a shard, whole or not at all.

    Returns: its line in the manifest.
    """
    pa = arrow()
    columns = encode(episodes, form)
    arrays = {
        name: pa.ListArray.from_arrays(pa.array(lists.offsets, pa.int32()), pa.array(lists.values))
        for name, lists in columns.items()
    }
    table = pa.table(arrays)
    partial = path.with_name(path.name + ".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    line = {
        "episodes": len(episodes),
        "tokens": int(episodes.length.sum()),
        "min_mass": float(episodes.log_mass[episodes.states].min().exp()),
        "candidate_bytes": columns["ids"].values.nbytes + columns["logp"].values.nbytes,
        "bytes": partial.stat().st_size,
        "digest": digest_of(partial),
    }
    os.replace(partial, path)
    return line


def arrow() -> Any:
    """The module that reads and writes shards.

    Raises: InputError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f"a store needs pyarrow ({error}): pip install 'tdistill[store]'") from error
    return pyarrow


def digest_of(path: Path) -> str:
    """32 hexadecimal digits of the BLAKE2b of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Store:
    """The episodes of a store, read where they lie: nothing is held in memory but what is asked for.

    Args:
        folder: where `tdistill collect` has written.
        teacher: who is to be learnt from, if that is at hand; it must be the one that walked.
    Raises: InputError: no store, a shard that is missing or damaged, by name, a prompts.json that is none, or another
        teacher's.
    """

    def __init__(self, folder: str | Path, teacher: Teacher | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if teacher is not None:
            check_teacher(self.manifest, fingerprint(teacher), self.folder)
        self.names = sorted(self.manifest.shards)
        command = "update" if self.manifest.settings.get(UPDATED) else "collect"
        if not self.names:
            raise InputError(f"the store {self.folder} holds no episodes yet; go on with `tdistill {command}`")
        for name in self.names:
            if damage := damage_of(self.folder / name, self.manifest.shards[name]):
                raise InputError(f"{self.folder / name} {damage}; the same `tdistill {command}` draws it anew, alone")
        self.ends = np.cumsum([self.manifest.shards[name]["episodes"] for name in self.names])
        self.prompts = hashes_in(self.folder / PROMPTS)  # of those that are replied to, as `prompt_hash` gives them

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def dataset(self) -> Any:
        """All shards as one Hugging Face dataset, mapped into memory."""
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset.from_file(str(self.folder / name)) for name in self.names])

    @cached_property
    def columns(self) -> dict[str, Mapped]:
        """The columns of all shards, mapped into memory."""
        shards = [_mapped(self.folder / name) for name in self.names]
        return {column: Mapped([own[column] for own in shards], self.ends) for column in shards[0]}

    def select(self, rows: Sequence[int], gamma: float = 1.0) -> Episodes:
        """These episodes, in this order, discounted by γ."""
        return decode(self.columns, rows, self.manifest.form, gamma)


@dataclass(frozen=True)
class Stored:
    """The episodes of a store under one γ, to be learnt from as if they were in memory."""

    store: Store
    gamma: float = 1.0

    def __len__(self) -> int:
        return len(self.store)

    @property
    def tokens(self) -> int:
        """Of all replies."""
        return sum(int(line["tokens"]) for line in self.store.manifest.shards.values())

    @property
    def min_mass(self) -> float:
        """The least that a candidate set retains."""
        return min(float(line["min_mass"]) for line in self.store.manifest.shards.values())

    def discounted(self, gamma: float) -> Stored:
        """The same episodes under another γ."""
        return Stored(self.store, gamma)

    def select(self, rows: Sequence[int]) -> Episodes:
        """These episodes, in this order."""
        return self.store.select(rows, self.gamma)


@dataclass(frozen=True)
class Mapped:
    """A column over several shards."""

    shards: list[Lists]
    ends: Array  # (S,) episodes up to the end of each shard

    def __getitem__(self, episode: int) -> Array:
        shard = int(np.searchsorted(self.ends, episode, side="right"))
        return self.shards[shard][episode - int(self.ends[shard - 1]) if shard else episode]


def _mapped(path: Path) -> dict[str, Lists]:
    pa = arrow()
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
    lists = {name: table.column(name).chunk(0) for name in table.column_names}
    return {name: Lists(own.values.to_numpy(), own.offsets.to_numpy()) for name, own in lists.items()}


def damage_of(path: Path, line: Mapping[str, Any]) -> str:
    """What is wrong with a shard; empty if nothing is."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != line["bytes"]:
        return f"has {path.stat().st_size} bytes, {line['bytes']} were written: it is cut short or was changed"
    return "" if digest_of(path) == line["digest"] else "is damaged: its digest is another than when it was written"


def check_teacher(manifest: Manifest, found: Mapping[str, Any], folder: Path) -> None:
    """A served teacher's server may be started again with another context.

    Raises: InputError: another teacher's store, saying in what they differ.
    """
    free = {"context_limit"} if str(manifest.settings.get("teacher")).startswith(SERVED) else set[str]()
    for name, theirs in manifest.teacher.items():
        if name not in free and found[name] != theirs:
            if name == "tokenizer" and "carry" in manifest.settings:
                raise InputError(
                    f"the store {folder} is in the tokens of a student (--student-tokenizer), the teacher given has "
                    "others; learn from it with --teacher none, or go on drawing it with that --student-tokenizer"
                )
            raise InputError(
                f"the store {folder} was drawn from another teacher: its {name} is {theirs}, this one's {found[name]}; "
                "give that teacher, or draw a store of this one into another folder"
            )
