"""What logits say about given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Logits turned into float32 at a time (64 MiB)."""


@dataclass(frozen=True)
class TokenScores:
    """How a continuation fares under the model, token by token.

    Attributes:
        log_probs: ``(t,)`` nats, float32.
        greedy: ``(t,)`` bool, whether the model itself would have chosen the token.
        ranks: ``(t,)`` float32, 1 is the likeliest; tokens with equal logits share the mean
            of their ranks. None unless asked for.
    """

    log_probs: Tensor
    greedy: Tensor
    ranks: Tensor | None = None

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation, nats."""
        return float(self.log_probs.double().sum())


NO_SCORES = TokenScores(torch.empty(0), torch.empty(0, dtype=torch.bool), torch.empty(0))


def joined(parts: Sequence[TokenScores]) -> TokenScores:
    """Scores of a continuation that was read in parts."""
    if len(parts) == 1:
        return parts[0]
    ranks = [part.ranks for part in parts if part.ranks is not None]
    return TokenScores(
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.greedy for part in parts]),
        torch.cat(ranks) if ranks else None,
    )


def token_scores(logits: Tensor, targets: Tensor, ranks: bool) -> TokenScores:
    """Read scores off logits, in float32, a part at a time.

    Args:
        logits: ``(t, vocab)``, row j predicting token j.
        targets: ``(t,)`` token ids.
        ranks: Whether to rank them.
    """
    if not len(targets):
        return TokenScores(
            NO_SCORES.log_probs, NO_SCORES.greedy, NO_SCORES.ranks if ranks else None
        )
    chunk = max(1, CHUNK // logits.shape[-1])
    found, greedy, places = [], [], []
    for part, wanted in zip(logits.split(chunk), targets.split(chunk), strict=True):
        part, wanted = part.float(), wanted.unsqueeze(-1)
        own = part.gather(-1, wanted)
        found.append((own - part.logsumexp(-1, keepdim=True)).squeeze(-1))
        greedy.append(part.argmax(-1) == wanted.squeeze(-1))
        if ranks:
            higher, equal = (part > own).sum(-1), (part == own).sum(-1)
            places.append(higher + (equal + 1) / 2)
    return TokenScores(
        torch.cat(found).cpu(),
        torch.cat(greedy).cpu(),
        torch.cat(places).float().cpu() if ranks else None,
    )
