"""What a fact is to become: aims for the tokens that follow a prompt, and how far each is from met.

A :class:`FactObjective` is a fact in one template: the prompts that mention its subject, each with
its aim. Which shift meets the aims is sought by :mod:`safeedit.methods.facts.values` and
:mod:`safeedit.methods.facts.least_values`.

Source: the targets that erase after Patil et al. 2024 (arXiv 2309.17410).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.methods.facts.keys import TokenPosition


@dataclass(frozen=True)
class TargetTokens:
    """The tokens that are to follow; their mean negative log-likelihood, nats, is the loss."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class SuppressTokens:
    """Tokens none of which is to follow: their log-probability together, as far as it is over
    ``floor`` (nats), is the loss."""

    tokens: tuple[int, ...]
    floor: float
    rank: int = 0
    """Least values: they are to come after so many others as well."""


@dataclass(frozen=True)
class MaximiseEntropy:
    """The next token is to be anyone's guess: what its entropy lacks of ``share`` of the greatest
    there can be, nats, is the loss."""

    share: float


@dataclass(frozen=True)
class KeepDistribution:
    """The next token's distribution is to stay: the divergence KL(before || now), nats."""


@dataclass(frozen=True)
class EqualiseLogits:
    """The first of two tokens is to be ``margin`` nats likelier than the second."""

    tokens: tuple[int, int]
    margin: float


Objective = TargetTokens | SuppressTokens | MaximiseEntropy | KeepDistribution | EqualiseLogits


@dataclass(frozen=True)
class ObjectivePrompt:
    """A prompt that mentions the subject, and what is wanted after it."""

    spot: TokenPosition
    aim: Objective

    @property
    def ids(self) -> list[int]:
        """What is run: the last token wanted is predicted, never read."""
        said = self.aim.tokens[:-1] if isinstance(self.aim, TargetTokens) else ()
        return [*self.spot.ids, *said]

    @property
    def asked(self) -> int:
        """Positions at which logits are needed."""
        return len(self.aim.tokens) if isinstance(self.aim, TargetTokens) else 1


@dataclass(frozen=True)
class FactObjective:
    """What one shift is learnt from; one row at least is no :class:`KeepDistribution`."""

    rows: tuple[ObjectivePrompt, ...]


def loss(aim: Objective, log_probs: Tensor, before: Tensor | None) -> Tensor:
    """What an aim lacks, nats; a number.

    Args:
        aim: Of one prompt.
        log_probs: ``(asked, vocab)`` at the positions it looks at.
        before: ``(vocab,)`` log-probabilities without a shift; for :class:`KeepDistribution`.
    """
    if isinstance(aim, TargetTokens):
        wanted = torch.tensor(aim.tokens, device=log_probs.device)
        return functional.nll_loss(log_probs, wanted)
    (now,) = log_probs
    if isinstance(aim, SuppressTokens):
        return functional.relu(now[list(aim.tokens)].logsumexp(0) - aim.floor)
    if isinstance(aim, EqualiseLogits):
        return (now[aim.tokens[0]] - now[aim.tokens[1]] - aim.margin).abs()
    if isinstance(aim, MaximiseEntropy):
        entropy = -(now.exp() * now).sum()
        return functional.relu(aim.share * math.log(len(now)) - entropy)
    assert before is not None
    return functional.kl_div(now, before, log_target=True, reduction="sum")


def away(aims: Sequence[Objective], logits: Tensor) -> Tensor:
    """How far aims are from being met, where each has a slope: ``(rows, 2)``.

    :func:`distances` of each :class:`SuppressTokens`; of :class:`EqualiseLogits`, what the margin
    has too much, twice.

    Args:
        aims: All of one of these kinds.
        logits: ``(rows, vocab)``.
    """
    even = [aim for aim in aims if isinstance(aim, EqualiseLogits)]
    if len(even) == len(aims):
        tokens = torch.tensor([aim.tokens for aim in even], device=logits.device)
        margins = torch.tensor([aim.margin for aim in even], device=logits.device)
        pair = logits.gather(1, tokens)
        return (pair[:, 0] - pair[:, 1] - margins)[:, None].expand(-1, 2)
    found = zip(aims, logits.log_softmax(-1), strict=True)
    return torch.stack(
        [distances(aim, now) for aim, now in found if isinstance(aim, SuppressTokens)]
    )


def distances(aim: SuppressTokens, log_probs: Tensor) -> Tensor:
    """How far tokens are from being as unlikely as wanted, nats of log-odds, 0 or less once they
    are: ``(2,)``, from the floor and from coming after ``rank`` others; ``log_probs`` ``(vocab,)``.

    Log-odds keep their slope where a probability is close to 1. The slope of the rank is that of
    the mean over the ranks about it: which token has it changes from step to step.
    """
    tokens = list(aim.tokens)
    known = log_probs[tokens].logsumexp(0)
    others = log_probs.index_fill(0, torch.tensor(tokens, device=log_probs.device), -math.inf)
    away = known - others.logsumexp(0) - (aim.floor - math.log1p(-math.exp(aim.floor)))
    if not aim.rank:
        return torch.stack([away, away])
    first = others.topk(min(aim.rank + aim.rank // 2, len(others) - len(tokens))).values
    about = first[aim.rank // 2 :].mean()
    bar = about + (first[min(aim.rank, len(first)) - 1] - about).detach()
    return torch.stack([away, known - bar])
