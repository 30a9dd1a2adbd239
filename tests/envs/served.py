"""A table teacher behind the loopback server, with a tokenizer that calls its tokens by their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.served_teacher import ServedTeacher
from envs.serving import Serving
from envs.table_teacher import TABLES
from experiments.bench.loopback import Answer, Loopback

QUICK: dict[str, Any] = {"backoff": 0.01, "attempts": 3, "timeout": 20.0, "concurrency": 4}


def numbers(folder: Path, vocabulary: int = 6, renamed: dict[int, str] | None = None) -> Path:
    """Directory of a tokenizer whose token 3 is "3"; 0 is its end."""
    words = {(renamed or {}).get(token, str(token)): token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=(renamed or {}).get(0, "0")).save_pretrained(folder)
    return folder


def loopback(table: str = "toy", **own: Any) -> Loopback:
    return Loopback(TABLES[table](), **{"shown": str, "rows": 4, **own})


def served(server: Loopback, folder: Path, **serving: Any) -> ServedTeacher:
    tokenizer = folder / "tokenizer"
    return ServedTeacher(
        server.url, tokenizer if tokenizer.is_dir() else numbers(tokenizer), Serving(**QUICK | serving)
    )


def is_greeting(body: dict[str, Any]) -> bool:
    """Whether a request belongs to the handshake, which draws nothing."""
    return bool(body["temperature"] == 0.0)


def broken(answer: Answer) -> Answer:
    return Answer(200, b'{"choices": [', answer.headers)
