"""A key-value cache whose rows begin and end at different times, and attention that reads little beyond their ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

LANES_OF_A_BLOCK = 16
WASTE = 0.15  # share of unused columns from which the lanes are read in blocks, and sorted
SORT_EVERY = 32  # steps
FEW = 8  # lanes up to which one call costs less than the reading it could save

Integers = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Neighbouring lanes that are read together."""

    lanes: slice
    columns: int
    hidden: Tensor | None  # (lanes, 1, 1, columns) bool, True = not of this text; None: every column is


class RowLayer(CacheLayerMixin):
    """Keys and values (N, H, C, D) of one layer; token t of a text lies in column t of its lane."""

    is_sliding = False

    def __init__(self, owner: RowCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows = len(self.owner.lengths)
        self.keys = key_states.new_zeros((rows, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((rows, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token (N, H, 1, D) behind each text; returns all columns in use, as views."""
        span = self.owner.span
        self.reserve(span, key_states, value_states)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if self.owner.even:
                buffer.select(2, span - 1).copy_(states.select(2, 0))
            else:
                buffer[self.owner.every, :, self.owner.positions] = states.select(2, 0)
        return self.keys.narrow(2, 0, span), self.values.narrow(2, 0, span)

    def reserve(self, columns: int, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for that many columns; the buffers grow by doubling, up to the context."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        have = self.keys.shape[-2]
        if columns > have:
            extra = max(columns, min(max(2 * have, 64), self.owner.limit + 1)) - have
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.span, 0

    def get_seq_length(self) -> int:
        return self.owner.span - 1

    def get_max_length(self) -> int:
        return -1


class RowCache:
    """The cache of N texts, each from column 0 of its own lane on: a text begun anew overwrites the one before it.

    Memory does not grow with the walk: there are as many columns as the longest text so far needed, or twice that; what
    lies behind the end of a text is never seen. Texts of similar lengths are brought together now and then, so that
    blocks of lanes can be read no further than the longest of theirs; `order` says which row lies in each lane, `lanes`
    in which lane each row lies.
    """

    def __init__(self, rows: int, layers: int, device: torch.device, limit: int) -> None:
        self.limit = limit  # tokens of the context; one more column takes what idle rows at its end write
        self.lengths: Integers = np.zeros(rows, dtype=np.int64)  # tokens of the text in each lane
        self.order: Integers = np.arange(rows)
        self.lanes: Integers = np.arange(rows)
        self.sorted = False  # whether `order` is another than that of the rows
        self.cache = Cache(layers=[RowLayer(self) for _ in range(layers)])
        self.device = device
        self.every = torch.arange(rows, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)  # where each lane writes, (N,)
        self.span, self.even = 1, True  # columns in use by the step under way; whether all lanes use them all
        self.steps = 0

    def aim(self) -> None:
        """Get ready for a step that appends a token in every lane; lanes that are idle write beyond their end."""
        self.steps += 1
        if self.steps % SORT_EVERY == 0:
            self.sort()
        self.positions = torch.from_numpy(self.lengths.copy()).to(self.device)
        self.span = int(self.lengths.max()) + 1
        self.even = bool((self.lengths == self.span - 1).all())

    def visible(self) -> Tensor:
        """What each lane sees in the step under way, (N, span) bool."""
        return torch.arange(self.span, device=self.device) <= self.positions[:, None]

    def blocks(self) -> list[Block]:
        """Lanes to be read together, so that few columns beyond the end of a text are read."""
        if self.even:
            return [Block(slice(0, len(self.lengths)), self.span, None)]
        parts, widths = _parts(self.lengths)
        if self.device.type != "cpu" or _columns(self.lengths) > (1 - WASTE) * self.span * len(self.lengths):
            parts, widths = [slice(0, len(self.lengths))], [self.span]
        hidden = ~self.visible()[:, None, None]
        return [Block(part, width, hidden[part, ..., :width]) for part, width in zip(parts, widths, strict=True)]

    def sort(self) -> None:
        """Bring texts of similar lengths together, where that saves reading."""
        order = np.argsort(self.lengths, kind="stable")
        if self.device.type != "cpu" or _columns(self.lengths[order]) > (1 - WASTE) * _columns(self.lengths):
            return
        moved = torch.from_numpy(order)
        blocks = list(zip(*_parts(self.lengths[order]), strict=True))
        for layer in self.cache.layers:
            for buffer in (layer.keys, layer.values):
                for part, copied in [(part, buffer[moved[part], :, : width - 1]) for part, width in blocks]:
                    buffer[part, :, : copied.shape[2]] = copied
        self.lengths, self.order = self.lengths[order], self.order[order]
        self.lanes, self.sorted = np.argsort(self.order), True

    def place(self, rows: Sequence[int], source: Cache, which: Sequence[int], lengths: Sequence[int]) -> None:
        """Begin `rows` anew with the texts `which` of a prefill, left-aligned, `lengths` tokens each."""
        lanes = self.lanes[list(rows)]
        self.lengths[lanes] = lengths
        longest = max(lengths)
        to, of = torch.from_numpy(lanes).to(self.device), torch.tensor(which, device=self.device)
        for layer, filled in zip(self.cache.layers, source.layers, strict=True):
            layer.reserve(longest, filled.keys, filled.values)
            layer.keys[to, :, :longest] = filled.keys[of, :, :longest]
            layer.values[to, :, :longest] = filled.values[of, :, :longest]

    def keep_rows(self, rows: Integers) -> None:
        """Forget all rows but these, and renumber them; their lanes are in the same order then."""
        lanes = self.lanes[rows]
        self.lengths = self.lengths[lanes]
        self.order = self.lanes = np.arange(len(rows))
        self.sorted, self.every = False, self.every[: len(rows)]
        index = torch.from_numpy(lanes).to(self.device)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]


def _parts(lengths: Integers) -> tuple[list[slice], list[int]]:
    """Blocks of lanes, and the columns that a step reads of each."""
    starts = range(0, len(lengths), LANES_OF_A_BLOCK)
    parts = [slice(start, min(start + LANES_OF_A_BLOCK, len(lengths))) for start in starts]
    return parts, [int(lengths[part].max()) + 1 for part in parts]


def _columns(lengths: Integers) -> int:
    """Columns that a step reads in blocks, over all lanes."""
    return sum((part.stop - part.start) * width for part, width in zip(*_parts(lengths), strict=True))


_blocks: list[Block] = []  # of the step under way


@contextmanager
def block_attention(model: Any, blocks: list[Block]) -> Iterator[None]:
    """Within, the model attends by blocks instead of by the attention it was loaded with."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    _blocks[:] = blocks
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _blocks.clear()


NAME = "tdistill_blocks"
PLAIN = {"sliding_window", "is_causal", "output_attentions", "position_ids", "cache_position", "use_cache"}
"""Options of attention that change nothing for one token behind its whole text, in a model without windows."""


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a lane, (N, Hq, 1, D) on (N, H, C, D), block by block; (N, 1, Hq, D) in return."""
    unknown = {name for name, given in options.items() if given is not None and name not in PLAIN}
    if unknown:
        raise TypeError(f"attention by blocks takes no {', '.join(sorted(unknown))}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[:, :, 0], key, value, scale, _blocks)[:, None], None


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, blocks: list[Block]) -> Tensor:
    """Attention of one new token a lane, block by block.  # (N, Hq, D) on (N, H, C, D) -> (N, Hq, D)"""
    heads = key.shape[1]
    grouped = query.reshape(len(query), heads, -1, query.shape[-1])  # (N, H, Hq / H, D): heads that share their keys
    if len(query) <= FEW and blocks[0].hidden is None:
        found = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, scale=scaling)
        return found.reshape(len(query), -1, value.shape[-1])
    grouped, parts = grouped * scaling, []
    for lanes, columns, hidden in blocks:
        keys, values = key[lanes, :, :columns].flatten(0, 1), value[lanes, :, :columns].flatten(0, 1)
        scores = torch.bmm(grouped[lanes].flatten(0, 1), keys.transpose(1, 2))  # (n·H, Hq / H, columns)
        if hidden is not None:
            scores.view(-1, heads, *scores.shape[1:]).masked_fill_(hidden, -torch.inf)
        parts.append(torch.bmm(torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype), values))
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found.reshape(len(query), -1, value.shape[-1])


AttentionInterface.register(NAME, _attend)
