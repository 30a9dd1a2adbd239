"""The student's own episodes while an agent learns: portions drawn from the training prompts, as the agent asks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import Agent
from agents.episodes import Episodes
from agents.replay import Replay
from agents.student import Student
from agents.walks import Walks
from experiments.collect import collect
from experiments.flops import counted
from experiments.workspace import COLLECT_ROWS, Cell, Workspace

REPLAY_MEMORY = 2**31  # bytes of episodes before any are spilled to disk


class Walker:
    """Draws a portion whenever one is due, and hands out the student's share of each batch.

    Portion i is drawn by the student as it is after i·every updates, with a seed of its own: (seed, i). A checkpoint
    holds the portions that may still be learnt from, as older weights cannot draw them again.
    """

    def __init__(self, space: Workspace, cell: Cell, agent: Agent[Any], walks: Walks, folder: Path) -> None:
        self.agent, self.walks, self.seed = agent, walks, cell.seed
        assert isinstance(agent.student, Student)
        self.student = agent.student
        gamma = getattr(agent.config, "gamma", space.config.gamma)
        self.env = space.env(min(COLLECT_ROWS, walks.episodes), cell.top_p, gamma)
        self.replay = Replay(walks.episodes * walks.keep, cell.seed, folder / "replay", REPLAY_MEMORY)
        self.portions = 0

    def sample(self, record: dict[str, Any]) -> Episodes:
        """The student's part of the next batch; what drawing it cost is added to the record."""
        if self.portions <= self.agent.updates // self.walks.every:
            begin = time.monotonic()
            drawn = self._draw()
            received, flops = counted(lambda: self.agent.receive(drawn.to(self.student.model.device)))
            self.replay.add(received.to("cpu"))
            record["flops"] += flops
            tokens = int(drawn.length.sum())
            record["student_tokens"] += tokens
            record["teacher_tokens"] += tokens
            record["walk_seconds"] += time.monotonic() - begin
        return self.replay.sample(self.walks.student_episodes(self.agent.config.batch_size))

    def _draw(self) -> Episodes:
        walks, number = self.walks, self.portions
        self.portions += 1
        return collect(
            self.env,
            walks.episodes,
            seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]),
            student=self.student.model,
            student_share=1.0,
            teacher_mix=walks.teacher_mix * walks.mix_decay**number,
            version=self.agent.updates,
        )

    def save(self, directory: Path) -> None:
        """Write the portions that are held, and where their passes stand."""
        for number, held in enumerate(self.replay.portions()):
            episodes = Episodes.load(held) if isinstance(held, Path) else held.select(range(len(held)))
            episodes.save(directory / f"walk-{number}.safetensors")
        torch.save({"portions": self.portions, "replay": self.replay.state_dict()}, directory / "walks.pt")

    def load(self, directory: Path) -> None:
        """Go on as the walker that was saved would have."""
        state = torch.load(directory / "walks.pt", weights_only=True)
        for number in range(len(list(directory.glob("walk-*.safetensors")))):
            self.replay.add(Episodes.load(directory / f"walk-{number}.safetensors"))
        self.portions = state["portions"]
        self.replay.load_state_dict(state["replay"])
