"""Files that say what has come in, what was answered and what happened; a kill at any moment leaves them usable.

prompts.jsonl   {"prompt", "from", "at"} in the order of arrival, {"refused": why, …} of what cannot be answered, and
                {"block": k, "end": n} where a block was closed
replies.jsonl   {"n", "prompt", "reply", the signals} of every prompt, once each
events.jsonl    {"prompts", "event", …}: alarms, trials of the gate, ends of holds
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Block(NamedTuple):
    """Prompts that are answered together."""

    number: int
    first: int
    """Number of its first prompt in the stream, from 0 on."""
    texts: list[str]

    @property
    def end(self) -> int:
        """Number of the prompt behind its last one."""
        return self.first + len(self.texts)


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole lines of a file, each with where it ends; one that was cut ends the file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield file.tell(), json.loads(line) if line.endswith(b"\n") else json.loads(b"cut")
            except ValueError:
                return


class Log:
    """A file of JSON lines that grows; what a kill has cut of the last one is dropped.

    Args:
        keep: lines to go on behind; none: all.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.count, end = 0, 0
        for at, _ in lines(path):
            if self.count == keep:
                break
            self.count, end = self.count + 1, at
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._end = path.open("ab", buffering=0), end
        self._file.truncate(end)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a line, whole or not at all.

        Raises: OSError: the disk is full.
        """
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)
        self.count += 1

    def sync(self) -> None:
        """See that it outlives the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more lines."""
        self._file.close()


class Journal:
    """What has come in. Prompts are written down as they arrive, from any thread, and blocks as they are closed.

    Args:
        after: blocks that need not be handed out again.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.taken: dict[str, int] = {}  # of each origin: the place behind the last prompt that came from it
        self._blocks: deque[Block] = deque()  # closed, to be handed out
        self._open: deque[str] = deque()  # arrived, in no block
        self.first = self.closed = self.refused = 0  # number of the first open prompt; blocks closed; prompts refused
        for _, line in lines(path):
            if "block" in line:
                texts = [self._open.popleft() for _ in range(line["end"] - self.first)]
                if line["block"] >= after:
                    self._blocks.append(Block(line["block"], self.first, texts))
                self.first, self.closed = line["end"], line["block"] + 1
                continue
            self.taken[line["from"]] = line["at"] + 1
            if "refused" in line:
                self.refused += 1
            else:
                self._open.append(line["prompt"])
        self._log = Log(path)
        self.some = threading.Condition()

    @property
    def count(self) -> int:
        """Prompts that have arrived."""
        return self.first + len(self._open)

    @property
    def waiting(self) -> int:
        """Prompts that have arrived and are in no block."""
        return len(self._open)

    def accept(self, text: str, origin: str, at: int = 0) -> int:
        """Write a prompt down, and where it stood at its origin.

        Returns: its number.
        Raises: OSError: the disk is full; the prompt was not taken.
        """
        with self.some:
            self._log.add({"prompt": text, "from": origin, "at": at})
            self._open.append(text)
            self.taken[origin] = at + 1
            self.some.notify_all()
            return self.count - 1

    def refuse(self, why: str, origin: str, at: int) -> None:
        """Write down that a prompt was passed over."""
        with self.some:
            self._log.add({"refused": why, "from": origin, "at": at})
            self.taken[origin] = at + 1
            self.refused += 1

    def next(self, most: int) -> Block | None:
        """A block that was closed before and is to be handed out again, or a new one of at most so many prompts."""
        if self._blocks:
            return self._blocks.popleft()
        with self.some:
            size = min(most, len(self._open))
            if not size:
                return None
            block = Block(self.closed, self.first, [self._open.popleft() for _ in range(size)])
            self._log.add({"block": block.number, "end": block.end})
            self._log.sync()
            self.first, self.closed = block.end, block.number + 1
            return block

    def close(self) -> None:
        """No more prompts."""
        self._log.close()
