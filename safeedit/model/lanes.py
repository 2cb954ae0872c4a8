"""What a model has read of several rows: their keys and values, side by side, aligned on the right.

Rows differ in length. Aligned on the right, what comes next stands one slot behind all of them, and
distances between a row's tokens are true ones, which sliding windows measure; what stands before a
shorter row is masked and positions are told to the model. New tokens are written into room that was
left for them: a cache that is copied for each token takes a seventh of the time of writing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.model.passes import context_length, head_inputs_at

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle
    from safeedit.model.shared_prefix import SharedPrefix

_ROOM = 16
"""Slots left for tokens to come: more take memory, fewer are copied out of more often."""


class Lanes:
    """Rows that a model is reading.

    Args:
        handle: The model.
        layers: Of its cache.
        lengths: Tokens of each row; they take the last slots.
    """

    def __init__(self, handle: ModelHandle, layers: list[Any], lengths: Sequence[int]) -> None:
        from transformers import DynamicCache

        self.handle = handle
        self._cache = DynamicCache()
        self._cache.layers = layers
        self._width = layers[0].get_seq_length() if layers else 0
        self._starts = [self._width - length for length in lengths]
        self._ends = [self._width] * len(lengths)

    @classmethod
    def begin(cls, handle: ModelHandle, prefix: SharedPrefix, count: int) -> Lanes:
        """``count`` rows that have read what all share."""
        layers = []
        for keys, values in prefix.states:
            layer = _roomy()()
            layer.fill(*(each.expand(count, -1, -1, -1) for each in (keys, values)))
            layers.append(layer)
        found = cls(handle, layers, [prefix.length] * count)
        found._cache.layer_class_to_replicate = _roomy()
        return found

    @property
    def layers(self) -> list[Any]:
        """Of the cache."""
        found: list[Any] = self._cache.layers
        return found

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [end - start for start, end in zip(self._starts, self._ends, strict=True)]

    def read(self, rows: Sequence[Sequence[int]], at: list[list[int]]) -> Tensor:
        """Read on; to be followed by :func:`regrouped` where these were not equally long.

        Args:
            rows: Tokens of each row, one at least.
            at: Per row, which of these tokens are asked about.

        Returns:
            What the head gets of these, ``(asked, d_model)``, row by row.
        """
        own = [list(row) for row in rows]
        width = max(map(len, own))
        places = None
        if any(self._starts):
            device = self.handle.device
            slots = torch.arange(self._width + width, device=device)
            starts = torch.tensor(self._starts, device=device)[:, None]
            most = context_length(self.handle) - 1  # of padding: learnt positions end there
            places = (slots >= starts).long(), (slots[self._width :] - starts).clamp(max=most)
        states = head_inputs_at(self.handle, own, self._cache, at, places)
        self._ends = [self._width + len(row) for row in own]
        self._width += width
        return states

    def span(self, row: int, length: int) -> slice:
        """Slots of the first tokens of a row."""
        return slice(self._starts[row], self._starts[row] + length)


Row = tuple[Lanes, int, int]
"""Lanes, a row of them, and how many of its tokens are kept."""


def regrouped(groups: Sequence[Sequence[Row]], *, room: int = _ROOM) -> list[Lanes]:
    """Rows of lanes put together otherwise, each group side by side; the lanes are used up.

    Args:
        groups: None of them empty.
        room: Slots left for tokens to come.
    """
    sources = list({id(lanes): lanes for rows in groups for lanes, _, _ in rows}.values())
    layers: list[list[Any]] = [[] for _ in groups]
    for number in range(len(sources[0].layers)):
        for made, rows in zip(layers, groups, strict=True):
            layer = _roomy()()
            spans = [(lanes.layers[number], row, lanes.span(row, n)) for lanes, row, n in rows]
            layer.gather(spans, max(n for _, _, n in rows), room)
            made.append(layer)
        for lanes in sources:  # a layer at a time: not two caches at once
            lanes.layers[number].drop()
    return [
        Lanes(rows[0][0].handle, made, [length for _, _, length in rows])
        for made, rows in zip(layers, groups, strict=True)
    ]


class _WithRoom:
    """What a layer of a cache does otherwise, to leave room."""

    keys: Tensor
    values: Tensor
    is_initialized: bool
    lazy_initialization: Callable[[Tensor, Tensor], None]
    _kept: tuple[Tensor, Tensor]
    """Keys and values ``(rows, heads, slots, head_dim)``, of which the first slots are in use."""
    _used: int

    def update(self, keys: Tensor, values: Tensor, *more: Any, **others: Any) -> Any:
        """As transformers calls it: add tokens, and return all there are."""
        if not self.is_initialized:
            self.fill(keys, values)
            return self.keys, self.values
        end = self._used + keys.shape[-2]
        if end > self._kept[0].shape[-2]:
            self._kept = _larger(self.keys, end + _ROOM), _larger(self.values, end + _ROOM)
        for kept, new in zip(self._kept, (keys, values), strict=True):
            kept[:, :, self._used : end] = new
        self._show(end)
        return self.keys, self.values

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, without room."""
        self.lazy_initialization(keys, values)
        self._kept = keys.contiguous(), values.contiguous()
        self._show(keys.shape[-2])

    def gather(self, rows: Sequence[tuple[Any, int, slice]], width: int, room: int) -> None:
        """Hold spans of rows of other layers, aligned on the right."""
        first = rows[0][0]
        self.lazy_initialization(first.keys, first.values)
        keys, values = (
            each.new_empty(len(rows), each.shape[1], width + room, each.shape[3])
            for each in (first.keys, first.values)
        )
        for place, (layer, row, span) in enumerate(rows):
            begin = width - (span.stop - span.start)
            for kept, old in ((keys, layer.keys), (values, layer.values)):
                kept[place, :, :begin] = 0  # masked, but a number: nought times NaN is NaN
                kept[place, :, begin:width] = old[row, :, span]
        self._kept = keys, values
        self._show(width)

    def drop(self) -> None:
        """Let go of the memory."""
        self.keys = self.values = torch.empty(0)
        self._kept = self.keys, self.values

    def _show(self, used: int) -> None:
        self._used = used
        self.keys, self.values = (each[:, :, :used] for each in self._kept)


def _larger(used: Tensor, slots: int) -> Tensor:
    count, heads, have, size = used.shape
    made = used.new_empty(count, heads, slots, size)
    made[:, :, :have] = used
    return made


@cache
def _roomy() -> Any:
    """A layer of a cache that leaves room; made late, since transformers takes long to import."""
    from transformers.cache_utils import DynamicLayer

    return type("Roomy", (_WithRoom, DynamicLayer), {})
