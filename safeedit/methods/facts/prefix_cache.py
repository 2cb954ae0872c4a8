"""Pasts: keys and values of what rows begin with, run once, each shared beginning kept once.

Many passes over rows of which only the last tokens change (a shift at a subject, say) need of the
tokens before them nothing but what attention reads. Here these are run through all blocks once; a
pass then runs each row's own tokens alone.

Pasts of a batch differ in length: they are padded on the *left*, so that distances between tokens
are true ones (sliding windows), masked, and positions are told to the model. Families whose
positions are learnt or rotary take that; all that are supported do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.model.batching import Batcher, pad_right
from safeedit.model.handle import ModelHandle
from safeedit.model.passes import filler_token

if TYPE_CHECKING:
    from transformers import Cache

_STRIDE = 16
"""Tokens of each past that are run at a time: what pasts share up to there is run once."""


def distinct(pasts: Sequence[Sequence[int]]) -> int:
    """How many tokens there are to keep, those of shared beginnings once."""
    return len(_tree(pasts)[0])


class PrefixCache:
    """What stands before the own tokens of rows.

    Args:
        model: Stays as it is; the keys and values are those of its weights now.
        pasts: Token ids per row; may be empty.
        within: Context that every pass runs in.
    """

    def __init__(
        self,
        model: ModelHandle,
        pasts: Sequence[Sequence[int]],
        within: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.model = model
        tokens, self.paths = _tree(pasts)
        self.kept: list[tuple[Tensor, Tensor]] = []
        """Block -> keys and values, ``(tokens kept, heads, width)``."""
        self.first = 0
        """The first block that can be run."""
        if tokens:
            self._fill(tokens, within)

    def inputs(self, rows: Sequence[int], own: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Arguments of the base model that run ``own`` tokens after the pasts of ``rows``,
        padded on the right."""
        return self._inputs([self.paths[row] for row in rows], own)

    def forget_below(self, layer: int) -> None:
        """Free what blocks before ``layer`` read; they can't be run from then on."""
        for block, (keys, values) in enumerate(self.kept[:layer]):
            self.kept[block] = (keys[:0].clone(), values[:0].clone())
        self.first = layer

    def _inputs(
        self, paths: Sequence[Sequence[int]], own: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        device, longest = self.model.device, max(map(len, paths))
        tokens = pad_right(own, filler_token(self.model))
        begins = torch.tensor([[len(path)] for path in paths])
        ends = begins + torch.tensor([[len(ids)] for ids in own])
        # Padding is given the row's last position: the next ones might be more than there are.
        positions = torch.minimum(begins + torch.arange(tokens.shape[1]), ends - 1)
        before = torch.arange(longest) >= longest - begins
        mask = torch.cat([before.long(), torch.ones_like(tokens)], 1)
        return {
            "input_ids": tokens.to(device),
            "attention_mask": mask.to(device),
            "position_ids": positions.to(device),
            "past_key_values": self._cache(paths, longest) if longest else None,
            "use_cache": longest > 0,
        }

    def _cache(self, paths: Sequence[Sequence[int]], longest: int) -> Cache:
        from transformers import DynamicCache

        # Not told the config, as in the engine: it keeps all keys.
        cache = DynamicCache()
        index = torch.tensor([[*[0] * (longest - len(path)), *path] for path in paths])
        for block, kept in enumerate(self.kept):
            if block >= self.first:
                keys, values = (each[index.to(each.device)].transpose(1, 2) for each in kept)
            elif block == 0:  # the one that is asked how long the past is
                keys, values = (
                    each.new_zeros(len(paths), each.shape[1], longest, each.shape[2])
                    for each in kept
                )
            else:
                continue
            cache.update(keys, values, block)
        return cache

    @torch.no_grad()
    def _fill(
        self, tokens: Sequence[int], within: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Run all tokens kept, a stride of each past at a time."""
        from transformers import DynamicCache

        known: set[int] = set()
        batcher = Batcher(self.model.engine.max_batch_tokens)

        def run(batch: list[int]) -> list[None]:
            chosen = [parts[number] for number in batch]
            own = [[tokens[node] for node in part] for _, part in chosen]
            inputs = self._inputs([before for before, _ in chosen], own)
            cache = inputs["past_key_values"] or DynamicCache()
            inputs |= {"past_key_values": cache, "use_cache": True}
            with within():
                self.model.model.base_model(**inputs)
            begin = len(chosen[0][0])
            for block, layer in enumerate(cache.layers):
                if len(self.kept) == block:
                    shapes = ((len(tokens), each.shape[1], each.shape[3])
                              for each in (layer.keys, layer.values))  # fmt: skip
                    keys, values = (layer.keys.new_zeros(shape) for shape in shapes)
                    self.kept.append((keys, values))
                for kept, found in zip(self.kept[block], (layer.keys, layer.values), strict=True):
                    for row, (_, part) in zip(found, chosen, strict=True):
                        kept[part] = row[:, begin : begin + len(part)].transpose(0, 1)
            return [None] * len(batch)

        for start in range(0, max(map(len, self.paths)), _STRIDE):
            parts: list[tuple[list[int], list[int]]] = []
            for path in sorted(self.paths, key=len, reverse=True):
                part = path[start : start + _STRIDE]
                if part and part[-1] not in known:
                    known.update(part)
                    parts.append((path[:start], part))
            for _ in batcher.each([len(part) for _, part in parts], run):
                pass


def _tree(pasts: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Tokens of the tree of all pasts, and each past's way through it."""
    tokens: list[int] = []
    paths: list[list[int]] = []
    places: dict[tuple[int, int], int] = {}
    for past in pasts:
        path: list[int] = []
        for token in past:
            key = (path[-1] if path else -1, token)
            if key not in places:
                places[key] = len(tokens)
                tokens.append(token)
            path.append(places[key])
        paths.append(path)
    return tokens, paths
