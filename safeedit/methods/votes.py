"""Which neurons many secrets agree on: DEPN's privacy-neuron aggregator.

Each text votes for the neurons whose attribution reaches a share of its own greatest one; the
neurons with most votes come first, ties going to the greater sum of shares, then to the lower
number. Texts of several kinds (phone numbers, names) are counted apart and the kinds take turns
in naming the next neuron, so that many texts of one kind do not outvote few of another.

Source: Wu et al., EMNLP 2023 (arXiv 2310.20138), section 2.3; the turns are ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import UsageError


@dataclass(frozen=True, eq=False)
class Ranking:
    """Neurons in the order in which to take them.

    Attributes:
        order: ``(k,)`` numbers of the neurons with a vote, best first.
        votes: ``(neurons,)`` how many texts voted for each.
        shares: ``(neurons,)`` sum over those texts of attribution over the text's greatest.
        abstained: Texts that no neuron supports: all their attributions are zero or negative.
    """

    order: Tensor
    votes: Tensor
    shares: Tensor
    abstained: int

    def top(self, count: int) -> frozenset[int]:
        """The first ``count`` neurons."""
        return frozenset(self.order[:count].tolist())

    def agreement(self, other: Ranking, count: int) -> float:
        """Share of the first ``count`` neurons that both name; 1 where neither names any."""
        one, two = self.top(count), other.top(count)
        return len(one & two) / max(len(one), len(two)) if one or two else 1.0


def rank(scores: Tensor, *, threshold: float, kinds: Sequence[Hashable] | None = None) -> Ranking:
    """Let texts vote for neurons.

    Args:
        scores: ``(texts, neurons)`` signed attributions; positive ones support the secret.
        threshold: Share of a text's greatest attribution from which a neuron gets its vote.
        kinds: Per text, its kind; None counts them all together.

    Raises:
        UsageError: ``kinds`` does not go with ``scores``, or an attribution is not a number.
    """
    kinds = [None] * len(scores) if kinds is None else list(kinds)
    if len(kinds) != len(scores):
        raise UsageError(f"{len(kinds)} kinds do not go with {len(scores)} texts")
    if not bool(torch.isfinite(scores).all()):
        raise UsageError("attributions hold NaN or infinity")
    votes = torch.zeros(scores.shape[1], dtype=torch.long)
    shares = torch.zeros(scores.shape[1], dtype=torch.float64)
    lists: list[list[int]] = []
    abstained = 0
    for kind in dict.fromkeys(kinds):
        own_votes, own_shares = torch.zeros_like(votes), torch.zeros_like(shares)
        for row in (row for row, k in zip(scores, kinds, strict=True) if k == kind):
            # One text at a time: a second matrix as large as the first may not fit.
            greatest = row.max()
            if greatest <= 0:
                abstained += 1
                continue
            share = (row / greatest).double().cpu()
            # The greatest itself always votes: a share of 1 may round below a threshold of 1.
            voted = (share >= threshold) & (share > 0) | (row == greatest).cpu()
            own_votes += voted
            own_shares += share * voted
        lists.append(_ordered(own_votes, own_shares))
        votes += own_votes
        shares += own_shares
    order = torch.tensor(list(dict.fromkeys(_in_turns(lists))), dtype=torch.long)
    return Ranking(order, votes, shares, abstained)


def _ordered(votes: Tensor, shares: Tensor) -> list[int]:
    by_share = shares.argsort(descending=True, stable=True)
    order = by_share[votes[by_share].argsort(descending=True, stable=True)]
    found: list[int] = order[: int((votes > 0).sum())].tolist()
    return found


def _in_turns(lists: Sequence[list[int]]) -> Iterator[int]:
    """The best of each list, then the next of each; what another named already costs no turn."""
    seen: set[int] = set()
    queues = [iter(found) for found in lists]
    while queues:
        for queue in list(queues):
            named = next((neuron for neuron in queue if neuron not in seen), None)
            if named is None:
                queues.remove(queue)
            else:
                seen.add(named)
                yield named
