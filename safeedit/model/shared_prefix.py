"""What prompts of a call begin with, run once: a system message, worked examples."""

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

_MIN_SAVED = 128
"""Tokens that some prompts must save, beyond what all do, to be worth a pass and its memory."""


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
        length = _shared(prompts)
        return cls() if length < _MIN_PREFIX else cls()._longer(handle, prompts[0][:length])

    @classmethod
    def of_each(cls, handle: ModelHandle, prompts: Sequence[Sequence[int]]) -> list[SharedPrefix]:
        """Of each prompt, what it shares with all, or with enough others to be worth it."""
        found = [cls.of(handle, prompts)] * len(prompts)
        todo = [(found[0], list(range(len(prompts))))] if prompts else []
        while todo:
            shorter, members = todo.pop()
            branches: dict[tuple[int, ...], list[int]] = {}
            for index in members:
                begin = shorter.length
                start = tuple(prompts[index][begin : begin + _MIN_PREFIX])
                branches.setdefault(start, []).append(index)
            for alike in branches.values():
                length = _shared([prompts[index] for index in alike])
                if (length - shorter.length) * (len(alike) - 1) >= _MIN_SAVED:
                    longer = shorter._longer(handle, prompts[alike[0]][:length])
                    for index in alike:
                        found[index] = longer
                    todo.append((longer, alike))
        return found

    @torch.no_grad()
    def _longer(self, handle: ModelHandle, tokens: Sequence[int]) -> SharedPrefix:
        """A prefix that this one begins."""
        cache, (rest,) = self.begin([tokens])
        ids = torch.tensor([rest], device=handle.device)
        handle.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        states = tuple((layer.keys, layer.values) for layer in cache.layers)
        return SharedPrefix(len(tokens), states)

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


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all begin with, but for one of the shortest."""
    return min(common_prefix(prompts), min(map(len, prompts)) - 1)
