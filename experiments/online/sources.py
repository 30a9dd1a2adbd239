"""Where prompts come from: a folder of files, or standard input."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from envs.errors import InputError
from envs.prompts import load_prompts
from envs.records import parsed, prompt_of
from experiments.folder import digest
from experiments.online.journal import Journal

Problem = Callable[[str], str]
"""Why a prompt cannot be answered; empty if it can."""
AHEAD = 256
"""Prompts of standard input that may wait to be answered."""
CHUNK = 2**16
"""Bytes that are read at a time."""


class Source(Protocol):
    """A stream of prompts that writes them into a journal."""

    @property
    def over(self) -> bool:
        """Whether nothing will come any more."""
        ...

    def pump(self, most: int, wait: float) -> None:
        """See that so many prompts wait in the journal, or fewer where no more are there after `wait` seconds."""
        ...

    def deliver(self, number: int, reply: str, ended: bool) -> None:
        """Hand a reply to whoever asked; `ended`: it ended by itself, not by its budget."""
        ...

    def close(self) -> None:
        """Take nothing any more."""
        ...


class Folder:
    """Files in the order of their names, each prompt once; names that begin with a dot or end in .partial wait.

    Broken lines are passed over, and so are files that hold no prompts.

    Args:
        follow: wait for further files when all are read.
    """

    def __init__(self, path: Path, journal: Journal, problem: Problem, follow: bool = False) -> None:
        self.path, self.journal, self.problem, self.follow = path, journal, problem, follow
        self._done = set[str]()
        self._prompts = self._read()
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether all files are read, and none is waited for."""
        return self._ended and not self.follow

    def pump(self, most: int, wait: float) -> None:
        """As `Source.pump`."""
        if self._ended:
            time.sleep(wait)
            self._prompts = self._read()
        for text, name, place in self._prompts:
            self.journal.accept(text, name, place)
            if self.journal.waiting >= most:
                self._ended = False
                return
        self._ended = True

    def deliver(self, number: int, reply: str, ended: bool) -> None:
        """Nobody waits: replies are in replies.jsonl."""

    def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> Iterator[tuple[str, str, int]]:
        """Prompts that have not been taken, each with its file and its place there."""
        for path in sorted(self.path.iterdir()):
            name = path.name
            if not path.is_file() or name.startswith(".") or name.endswith(".partial") or name in self._done:
                continue
            self._done.add(name)
            try:
                prompts = load_prompts(path, skip_bad=True)
            except (InputError, UnicodeDecodeError, OSError) as error:
                self._done.remove(name)  # it may be mended
                if name not in self.journal.taken:
                    self.journal.refuse(str(error), name, -1)
                continue
            for place in range(self.journal.taken.get(name, 0), len(prompts)):
                text = prompts[place].text
                if why := self.problem(text):
                    self.journal.refuse(why, name, place)
                else:
                    yield text, name, place


class Lines:
    """Standard input, or another file of lines, read as they come: a prompt each, or a JSON object with `prompt`.

    A pipe is read once: what was read ahead, some kilobytes, and is not in the journal is gone with a kill. Of a file
    that is redirected here, lines that were taken are passed over; it is told from others by its first line.

    Args:
        descriptor: of the file; 0 is standard input.
    """

    def __init__(self, journal: Journal, problem: Problem, descriptor: int = 0) -> None:
        self.journal, self.problem, self.descriptor = journal, problem, descriptor
        self.origin = "stdin"
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the end of the file was read."""
        return self._ended

    def pump(self, most: int, wait: float) -> None:
        """As `Source.pump`.

        Raises: whatever reading raised, as OSError.
        """
        with self.journal.some:
            self.journal.some.wait_for(lambda: self.journal.waiting >= most or self._ended, wait)
        if self._error is not None:
            raise self._error

    def deliver(self, number: int, reply: str, ended: bool) -> None:
        """Nobody waits: replies are in replies.jsonl."""

    def close(self) -> None:
        """Take no further line."""
        self._closed = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # the thread that pumps raises it
            self._error = error
        with self.journal.some:
            self._ended = True
            self.journal.some.notify_all()

    def _read(self) -> None:
        known, is_file = 0, stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        for place, line in enumerate(self._lines()):
            if is_file and not place:
                self.origin = f"stdin {digest(line)}"
                known = self.journal.taken.get(self.origin, 0)
            if place >= known and (text := self._text(line, place)):
                self.journal.accept(text, self.origin, place)
            while self.journal.waiting >= AHEAD and not self._closed:
                time.sleep(0.01)

    def _lines(self) -> Iterator[bytes]:
        """Lines as they come, until the end or `close`: a thread that waited in `read` could not be ended."""
        rest = b""
        while not self._closed:
            if not select.select([self.descriptor], [], [], 0.1)[0]:
                continue
            if not (read := os.read(self.descriptor, CHUNK)):
                break
            *whole, rest = (rest + read).split(b"\n")
            for line in whole:
                if self._closed:
                    return
                yield line
        if rest and not self._closed:
            yield rest

    def _text(self, line: bytes, place: int) -> str:
        """The prompt of a line; empty, and noted, if it has none that can be answered."""
        try:
            if not (text := line.decode().strip()):
                return ""
            text = prompt_of(parsed(text)).text if text.startswith("{") else text
            why = self.problem(text)
        except (InputError, UnicodeDecodeError) as error:
            text, why = "", str(error)
        if why:
            self.journal.refuse(why, self.origin, place)
        return "" if why else text
