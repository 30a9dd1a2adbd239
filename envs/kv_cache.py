"""One preallocated key-value cache whose rows begin and end at different times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


# transformers carries no types, so its classes are Any to the checker.
class SharedColumnLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values (N, H, C, D) of one layer; all rows write the same column, and the buffer grows by doubling."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.column = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros((*key_states.shape[:2], 0, key_states.shape[-1]))
        self.values = value_states.new_zeros((*value_states.shape[:2], 0, value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns; returns everything written so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.column + key_states.shape[-2]
        self.reserve(end)
        self.keys[:, :, self.column : end] = key_states
        self.values[:, :, self.column : end] = value_states
        self.column = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, columns: int) -> None:
        """Make room for that many columns."""
        missing = columns - self.keys.shape[-2]
        if missing > 0:
            extra = max(missing, self.keys.shape[-2], 64)
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def shift(self, columns: int) -> None:
        """Move what is written to the right (positive: new empty columns on the left) or left (negative: drop them)."""
        for buffer in (self.keys, self.values):
            written = buffer[:, :, max(0, -columns) : self.column].clone()
            start = max(0, columns)
            buffer[:, :, :start] = 0
            buffer[:, :, start : start + written.shape[-2]] = written
        self.column += columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.column + query_length, 0

    def get_seq_length(self) -> int:
        return self.column

    def get_max_length(self) -> int:
        return -1


class SharedColumnCache:
    """The cache of N texts, right-aligned at one write column; which columns a row sees is its row of `visible`."""

    def __init__(self, rows: int, layers: int, device: torch.device) -> None:
        self.cache = Cache(layers=[SharedColumnLayer() for _ in range(layers)])
        self.visible = torch.zeros(rows, 128, dtype=torch.int64, device=device)  # (N, C)

    @property
    def column(self) -> int:
        """The column that is written next."""
        return int(self.cache.layers[0].column)

    def mask_for_next(self) -> Tensor:
        """The attention mask (N, column + 1) of a forward that writes one column, which every row sees."""
        if self.column >= self.visible.shape[1]:
            self.visible = torch.nn.functional.pad(self.visible, (0, self.visible.shape[1]))
        self.visible[:, self.column] = 1
        return self.visible[:, : self.column + 1]

    def hide_last(self, rows: Tensor) -> None:
        """Make the column just written invisible to these rows (N,) bool."""
        self.visible[rows, self.column - 1] = 0

    def place(self, rows: Tensor, prefilled: Cache, mask: Tensor) -> None:
        """Put a left-padded prefill (its cache and its mask (n, L)) just before the write column of these rows."""
        length = mask.shape[1]
        fresh = not self.cache.layers[0].is_initialized
        if length > self.column:
            self._shift(length - self.column, prefilled)
        elif fresh:
            self._shift(0, prefilled)
        start = self.column - length
        for layer, source in zip(self.cache.layers, prefilled.layers, strict=True):
            layer.keys[rows, :, start : self.column] = source.keys[:, :, :length]
            layer.values[rows, :, start : self.column] = source.values[:, :, :length]
        self.visible[rows] = 0
        self.visible[rows, start : self.column] = mask

    def drop_dead_columns(self) -> None:
        """Drop the columns on the left that no row sees, once they are many."""
        seen = self.visible[:, : self.column].any(0)
        dead = int(seen.int().argmax()) if bool(seen.any()) else self.column
        if dead >= 64:
            self._shift(-dead)

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all rows but these, and renumber them."""
        self.visible = self.visible[rows]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def _shift(self, columns: int, like: Cache | None = None) -> None:
        for number, layer in enumerate(self.cache.layers):
            if not layer.is_initialized and like is not None:
                source = like.layers[number]
                rows = self.visible.shape[0]
                layer.keys = source.keys.new_zeros((rows, *source.keys.shape[1:2], 0, source.keys.shape[-1]))
                layer.values = source.values.new_zeros((rows, *source.values.shape[1:2], 0, source.values.shape[-1]))
                layer.is_initialized = True
            layer.reserve(layer.column + max(0, columns))
            layer.shift(columns)
        end = self.column
        if end > self.visible.shape[1]:
            self.visible = torch.nn.functional.pad(self.visible, (0, end))
        self.visible = torch.roll(self.visible, columns, 1)
        self.visible[:, end:] = 0
        self.visible[:, : max(0, columns)] = 0
