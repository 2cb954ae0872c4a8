"""Steering: shifts added to the residual stream wherever an entity is mentioned, at run time.

:func:`steering` is a side-car: within the context the model acts as if its weights were others;
after it, nothing is left. Mentions are found in the token ids themselves, by offsets, in every
pass: in batches padded on either side, in prompts of one token, behind a shared prefix, and in text
the model writes, where an entity's tokens come one pass at a time. What stands in a key-value cache
is remembered with the cache, and follows it when its rows are chosen, repeated or cut.

A mention is no part of a longer word as far as is known when its last token is read: what is
written one token at a time is shifted although the next token may make a longer word of it. Of
several entities that end at one token the longest counts. A shift stays in the keys and values of a
cache: begin with a new one where a context ends.

Fails with :class:`~safeedit.errors.UsageError` where a pass brings embeddings instead of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from safeedit.errors import UsageError
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import TokenisedText

_UNKNOWN = -1
"""Stands for tokens in a cache that this module has not seen."""

_SLACK = 8
"""Tokens looked at before the longest mention that a new token can end."""


@dataclass(frozen=True, eq=False)
class Steer:
    """What is added for one entity.

    Attributes:
        subject: The entity, as texts write it.
        layer: The block after which it is added.
        shift: ``(d_model,)``, added at the last token of every mention.
    """

    subject: str
    layer: int
    shift: Tensor

    def __repr__(self) -> str:
        return f"Steer(layer={self.layer})"


@contextmanager
def steering(model: ModelHandle, steers: Sequence[Steer]) -> Iterator[ModelHandle]:
    """Within the context, entities' shifts are added wherever they are mentioned.

    Args:
        model: Opened with a tokenizer.
        steers: One per entity and layer.
    """
    finder = _Finder(model, sorted({steer.subject for steer in steers}, key=len, reverse=True))
    layers = sorted({steer.layer for steer in steers})
    with ExitStack() as hooks:
        for module in dict.fromkeys((model.model, model.model.base_model)):
            hooks.callback(
                module.register_forward_pre_hook(finder.note_call, with_kwargs=True).remove
            )
        hooks.callback(model.embedding.register_forward_pre_hook(finder.read).remove)
        for layer in layers:
            shifts = {s.subject: s.shift for s in steers if s.layer == layer}
            hook = _adding(finder, shifts)
            hooks.callback(model.blocks()[layer].register_forward_hook(hook).remove)
        yield model


def _adding(finder: _Finder, shifts: dict[str, Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        found = [place for place in finder.places if place[2] in shifts]
        if not found:
            return None
        rows = torch.tensor([row for row, _, _ in found], device=hidden.device)
        columns = torch.tensor([column for _, column, _ in found], device=hidden.device)
        added = torch.stack([shifts[subject] for _, _, subject in found])
        moved = hidden.index_put(
            (rows, columns), added.to(hidden.device, hidden.dtype), accumulate=True
        )
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook


class _Finder:
    """Where entities are mentioned in the pass that is running.

    Args:
        model: Whose passes.
        subjects: Longest first.
    """

    def __init__(self, model: ModelHandle, subjects: Sequence[str]) -> None:
        self._tokenizer = model.engine.codec.tokenizer
        self._subjects = subjects
        self._window = max((len(s.encode()) for s in subjects), default=0) + _SLACK
        self._places: list[tuple[int, int, str]] | None = None
        self._call: dict[str, Any] = {}
        self._histories: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()
        self._begun: tuple[Any, Tensor] | None = None
        """A cache that one row began, and its ids: other caches may be begun with a copy."""

    @property
    def places(self) -> list[tuple[int, int, str]]:
        """Row, column and subject of each mention that ends in the running pass."""
        if self._places is None:
            raise UsageError(
                "steering needs token ids: a pass brought embeddings", remedy="pass input_ids"
            )
        return self._places

    def note_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep what a pass is told of its past."""
        self._places = None
        for name in ("attention_mask", "past_key_values"):
            if kwargs.get(name) is not None:
                self._call[name] = kwargs[name]

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Find mentions in the ids that are about to be embedded."""
        call, self._call = self._call, {}
        new = args[0].detach().reshape(-1, args[0].shape[-1]).cpu()
        cache = call.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        ids = torch.cat([self._past(cache, past, len(new)), new], 1)
        mask = call.get("attention_mask")
        real = ids != _UNKNOWN
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            real &= mask.bool().cpu()
        self._places = [
            (row, column - past, subject)
            for row in range(len(ids))
            for column, subject in self._in_row(ids[row], real[row], past)
        ]
        if cache is not None:
            self._remember(cache, ids)

    def _in_row(self, ids: Tensor, real: Tensor, past: int) -> list[tuple[int, str]]:
        """Column and subject of mentions that end at ``past`` or after it."""
        columns = real.nonzero()[:, 0].tolist()
        new = sum(column >= past for column in columns)
        columns = columns[max(0, len(columns) - new - self._window) :]
        if not new:
            return []
        text = TokenisedText(self._tokenizer, ids[columns].tolist())
        found: dict[int, str] = {}
        for subject in self._subjects:
            for span in text.spans(subject):
                found.setdefault(columns[span[-1]], subject)
        return [(column, subject) for column, subject in found.items() if column >= past]

    def _past(self, cache: Any, past: int, rows: int) -> Tensor:
        """``(rows, past)`` ids in the cache."""
        unknown = torch.full((rows, past), _UNKNOWN, dtype=torch.long)
        if not past:
            return unknown
        known = self._histories.get(cache)
        if known is None:
            known = self._copied(cache, past)
        fits = known is not None and known.shape[1] == past and known.shape[0] in (1, rows)
        return known.expand(rows, -1) if known is not None and fits else unknown

    def _copied(self, cache: Any, past: int) -> Tensor | None:
        """Ids of a cache that was filled with a copy of another's beginning."""
        if self._begun is None:
            return None
        other, ids = self._begun
        try:
            own, theirs = (each.layers[0].keys[0, :, :past] for each in (cache, other))
        except (AttributeError, IndexError, TypeError):
            return None
        return ids[:, :past] if torch.equal(own, theirs) else None

    def _remember(self, cache: Any, ids: Tensor) -> None:
        if cache not in self._histories:
            self._follow(cache)
            if len(ids) == 1:
                self._begun = (cache, ids)
        self._histories[cache] = ids

    def _follow(self, cache: Any) -> None:
        """What is done to a cache's rows or length is done to its history."""

        def following(name: str, change: Callable[[Tensor, Any], Tensor]) -> None:
            own = getattr(cache, name)

            def both(argument: Any) -> None:
                own(argument)
                self._histories[cache] = change(self._histories[cache], argument)

            setattr(cache, name, both)

        following("batch_select_indices", lambda ids, rows: ids[rows.cpu()])
        following("reorder_cache", lambda ids, rows: ids[rows.cpu()])
        following("batch_repeat_interleave", lambda ids, times: ids.repeat_interleave(times, 0))
        following("crop", lambda ids, length: ids[:, :length])
