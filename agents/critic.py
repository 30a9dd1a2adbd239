"""A critic beside the student: the value of its own future, read from its last hidden states and never felt by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """V of a last hidden state, by a small network that starts at 0; with no hidden layer, a table of a table's states.

    Args:
        width:  D of the student's last hidden states.
        hidden: neurons of the one hidden layer; 0: none.
        seed:   of its first weights.
    """

    def __init__(self, width: int, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            below = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
            last = nn.Linear(hidden or width, 1, bias=bool(hidden))
        nn.init.zeros_(last.weight)
        if hidden:
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*below, last)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...,) nats."""
        values: Tensor = self.layers(hidden.detach().float())[..., 0]
        return values


class RunningMean:
    """The mean of the last values seen: of all of them at first, then fading at `rate`."""

    def __init__(self, rate: float) -> None:
        self.rate, self.count, self.value = rate, 0, 0.0

    def after(self, seen: float) -> float:
        """What it is once it has seen this too."""
        return self.value + max(self.rate, 1 / (self.count + 1)) * (seen - self.value)

    def see(self, seen: float) -> None:
        """Take one value in."""
        self.value = self.after(seen)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"count": self.count, "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count, self.value = state["count"], state["value"]
