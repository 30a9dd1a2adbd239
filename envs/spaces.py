"""The observation space of a row, which all faces of the environment share, and a row of what N rows say."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.candidates import PAD_LOGP


def observation_space(vocabulary: int, slots: int, width: int) -> spaces.Dict:
    """What a row shows, for V tokens, K slots and texts of at most `width` tokens (L); the keys are the contract's."""
    return spaces.Dict(
        {
            "context": spaces.Box(0, vocabulary - 1, (width,), np.int32),
            "length": spaces.Discrete(width + 1),
            "ids": spaces.Box(0, vocabulary - 1, (slots,), np.int32),
            "logp": spaces.Box(PAD_LOGP, 0.0, (slots,), np.float32),
            "mask": spaces.MultiBinary(slots),
        }
    )


def row_of(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """What a single environment's info holds for this row: numbers and flags as plain Python ones, arrays as arrays."""
    values = {key: value[row] for key, value in infos.items() if not key.startswith("_")}
    return {key: value if isinstance(value, np.ndarray) else value.item() for key, value in values.items()}
