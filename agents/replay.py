"""Replay of whole episodes: seeded passes over what is held, bounded, in memory or spilled to disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from agents.episodes import Episodes
from agents.errors import InputError


class Source(Protocol):
    """Episodes, in memory or read as they are asked for."""

    def __len__(self) -> int: ...
    def select(self, index: Sequence[int]) -> Episodes: ...


class Replay:
    """Holds at least the last `capacity` episodes, in the portions they came in, and hands them out in shuffled passes.

    Every episode is drawn once before any is drawn again; new episodes start a new pass. The oldest portion leaves as
    soon as the others fill the capacity.

    Args:
        capacity: episodes, at least 1.
        seed:     of the shuffling.
        spill:    directory for portions, one file each, read row by row; None keeps all in memory.
        memory:   bytes of portions that are kept in memory before any is spilled.
    Raises: InputError: capacity < 1, or a batch asked of an empty replay.
    """

    def __init__(self, capacity: int, seed: int = 0, spill: str | Path | None = None, memory: int = 0) -> None:
        if capacity < 1:
            raise InputError(f"replay capacity is {capacity}; it must be at least 1")
        self.capacity, self.memory = capacity, memory
        self.spill = Path(spill) if spill is not None else None
        self._portions: deque[tuple[int, Source | Path]] = deque()
        self._added = 0
        self._pass: list[int] = []  # episodes still to come in this pass
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return sum(size for size, _ in self._portions)

    def add(self, episodes: Source) -> None:
        """Take a portion in, and let the oldest portions go that the capacity no longer needs."""
        held: Source | Path = episodes
        if self.spill is not None and isinstance(episodes, Episodes) and self._is_full_with(episodes):
            held = self.spill / f"portion-{self._added:06d}.safetensors"
            episodes.save(held)
        self._portions.append((len(episodes), held))
        self._added += 1
        self._pass = []
        while len(self) - self._portions[0][0] >= self.capacity:
            _, gone = self._portions.popleft()
            if isinstance(gone, Path):
                gone.unlink(missing_ok=True)

    def _is_full_with(self, episodes: Episodes) -> bool:
        return sum(map(_bytes, self.portions())) + _bytes(episodes) > self.memory

    def portions(self) -> list[Source | Path]:
        """What is held, oldest first: episodes, or the files they were spilled to."""
        return [held for _, held in self._portions]

    def sample(self, batch: int) -> Episodes:
        """The next `batch` episodes of the pass (a new one begins where the old one ends)."""
        if not self._portions:
            raise InputError("the replay is empty; add episodes before sampling")
        chosen: list[int] = []
        while len(chosen) < batch:
            self._pass = self._pass or torch.randperm(len(self), generator=self._generator).tolist()
            taken, self._pass = self._pass[: batch - len(chosen)], self._pass[batch - len(chosen) :]
            chosen += taken
        parts, start = [], 0
        for size, held in self._portions:
            rows = [index - start for index in chosen if start <= index < start + size]
            if rows:
                parts.append(Episodes.load(held, rows) if isinstance(held, Path) else held.select(rows))
            start += size
        return Episodes.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """Where the passes stand; the episodes themselves are to be added again, in the same portions."""
        return {"pass": list(self._pass), "generator": self._generator.get_state(), "held": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing as the replay that gave `state` would have.

        Raises: InputError: other episodes are held than were then.
        """
        if state["held"] != len(self):
            raise InputError(
                f"the replay holds {len(self)} episodes, {state['held']} when it was saved; add the same ones"
            )
        self._pass = list(state["pass"])
        self._generator.set_state(state["generator"])


def _bytes(held: Source | Path) -> int:
    """Memory that a portion takes; none for one that lies elsewhere."""
    if not isinstance(held, Episodes):
        return 0
    return sum(value.numel() * value.element_size() for value in held.fields().values())
