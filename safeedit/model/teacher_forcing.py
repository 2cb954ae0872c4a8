"""Continuations that are given: run after their prompts, and read off the logits that predict them.

A distribution over the vocabulary is read within the batch that made it and goes with it: a row of
the vocabulary per item is 20 GB of a model of 0.3 B parameters with 262,144 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safeedit.errors import UsageError
from safeedit.model import batching
from safeedit.model.batching import Batcher
from safeedit.model.passes import check_prompts, finite, head_inputs_at, logits_at
from safeedit.model.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

Read = Callable[[int, range, Tensor, Tensor], Any]
"""``read(index, positions, logits (p, vocab), targets (p,))``: what is made of positions of one
continuation."""


class TeacherForcing:
    """Prompts with continuations, laid out in batches.

    What differs in its last token alone, as "he" and "she" after one prompt do, is run once.

    Args:
        handle: The model.
        prompts: Token ids.
        continuations: Token ids; may be empty.
        read: See :data:`Read`.

    Raises:
        AuditError: A prompt is empty, or too long with its continuation.
        UsageError: There are more prompts than continuations, or fewer.
    """

    def __init__(
        self,
        handle: ModelHandle,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        read: Read,
    ) -> None:
        if len(prompts) != len(continuations):
            raise UsageError("prompts and continuations must be equally many")
        self.handle, self.prompts, self.continuations = handle, prompts, continuations
        self.read = read
        # The last token of a continuation is predicted, never read.
        self.rows = [[*p, *c[:-1]] for p, c in zip(prompts, continuations, strict=True)]
        check_prompts(handle, prompts)
        check_prompts(handle, self.rows)
        self.prefix = SharedPrefix.of(handle, prompts)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, (prompt, row) in enumerate(zip(prompts, self.rows, strict=True)):
            alike.setdefault((len(prompt), len(continuations[index]), *row), []).append(index)
        self.groups = list(alike.values())
        """Indices of those that are run as one."""
        self.most = max(1, batching.MAX_LOGITS // handle.shape.vocab_size)
        """Positions whose logits are computed at a time."""

    def each(self, batcher: Batcher) -> Iterator[tuple[int, list[Any]]]:
        """``(index, parts)`` in any order: what ``read`` made of each part of a continuation, of
        which there are several only where it asks for more than ``MAX_LOGITS`` logits."""
        vocab = self.handle.shape.vocab_size
        for group, found in batcher.each(
            [len(self.rows[some[0]]) for some in self.groups],
            torch.no_grad()(self._batch),
            logits=[len(self.continuations[some[0]]) * vocab for some in self.groups],
        ):
            yield from zip(self.groups[group], map(list, zip(*found, strict=True)), strict=True)

    def _batch(self, batch: list[int]) -> list[list[list[Any]]]:
        """``[group][part][member]`` -> what was read."""
        firsts = [self.groups[group][0] for group in batch]
        cache, own = self.prefix.begin([self.rows[i] for i in firsts])
        begin = [len(self.prompts[i]) - 1 - self.prefix.length for i in firsts]
        counts = [len(self.continuations[i]) for i in firsts]
        asked = [list(range(f, f + n)) for f, n in zip(begin, counts, strict=True)]
        if max(counts) > self.most:  # and so alone in its batch
            (group,) = batch
            return [self._in_parts(group, head_inputs_at(self.handle, own, cache, asked))]
        logits = logits_at(self.handle, own, cache, asked).split(counts)
        return [
            [self._of_all(group, range(len(part)), part)]
            for group, part in zip(batch, logits, strict=True)
        ]

    def _in_parts(self, group: int, states: Tensor) -> list[list[Any]]:
        starts = range(0, len(states), self.most)
        return [
            self._of_all(group, range(at, at + len(part)), finite(self.handle.logits(part)))
            for at, part in zip(starts, states.split(self.most), strict=True)
        ]

    def _of_all(self, group: int, positions: range, logits: Tensor) -> list[Any]:
        members = self.groups[group]
        wanted = [self.continuations[i][positions.start : positions.stop] for i in members]
        targets = torch.tensor(wanted, dtype=torch.long, device=logits.device)
        return [
            self.read(i, positions, logits, own) for i, own in zip(members, targets, strict=True)
        ]


def tail_log_probs(
    handle: ModelHandle, batcher: Batcher, prompt: list[int], tails: Sequence[Sequence[int]]
) -> Iterator[tuple[int, float]]:
    """Log-probabilities of continuations of one prompt; those that differ in their last token alone
    are run as one.

    Args:
        handle: The model.
        batcher: Sizes the batches.
        prompt: Token ids.
        tails: Token ids; an empty one has probability 1.

    Yields:
        ``(index, nats)``, in any order.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for index, tail in enumerate(tails):
        if tail:
            sharing.setdefault(tuple(tail[:-1]), []).append(index)
        else:
            yield index, 0.0
    groups = list(sharing.values())

    def read(group: int, positions: range, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()
        scale = logits.logsumexp(-1)
        own = (logits.gather(-1, targets[:, None])[:, 0] - scale).double()
        if positions.stop < len(rows[group]):
            return own.sum()
        last = torch.tensor([tails[index][-1] for index in groups[group]])
        ends = logits[-1, last.to(logits.device)] - scale[-1]
        return own[:-1].sum() + ends.double()

    rows = [tails[group[0]] for group in groups]
    forced = TeacherForcing(handle, [prompt] * len(rows), rows, read)
    for group, parts in forced.each(batcher):
        yield from zip(groups[group], sum(parts).tolist(), strict=True)
