"""What all prompts of a call begin with (a chat template's system message), run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safeedit.model.batching import common_prefix

if TYPE_CHECKING:
    from transformers import Cache

    from safeedit.model.handle import ModelHandle

_MIN_PREFIX = 8
"""Shared tokens below which reuse is not worth a pass of its own."""


@dataclass(frozen=True)
class SharedPrefix:
    """First tokens that prompts share, and what attention keeps of them."""

    length: int = 0
    """In tokens; 0 where too few are shared."""
    states: tuple[tuple[Tensor, Tensor], ...] = ()
    """Per block, keys and values ``(1, heads, length, head_dim)``."""

    @classmethod
    @torch.no_grad()
    def of(cls, handle: ModelHandle, prompts: Sequence[Sequence[int]]) -> SharedPrefix:
        """Of what all prompts share, but for one token of the shortest."""
        if len(prompts) < 2:
            return cls()
        length = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if length < _MIN_PREFIX:
            return cls()
        from transformers import DynamicCache

        cache = DynamicCache()
        tokens = torch.tensor([list(prompts[0][:length])], device=handle.device)
        handle.model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        return cls(length, tuple((layer.keys, layer.values) for layer in cache.layers))

    def begin(self, rows: Sequence[Sequence[int]]) -> tuple[Cache, list[list[int]]]:
        """A new cache that holds the prefix for each row, and what is left of the rows."""
        from transformers import DynamicCache

        # Not told the config: layers with a sliding window then keep all keys, which masks
        # made from positions in the cache rely on.
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.states):
            size = (len(rows), -1, -1, -1)
            cache.update(keys.expand(size), values.expand(size), layer)
        return cache, [list(row[self.length :]) for row in rows]
