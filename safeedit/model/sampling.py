"""Choosing the next token: greedily, or at random in a way that can be repeated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import UsageError

_LIKELY = 512
"""Tokens looked at first: sorting a whole vocabulary takes longer than the model's pass."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults draw from the model's own distribution.

    Attributes:
        temperature: Logits are divided by it; 0 is greedy.
        top_p: Only the likeliest tokens that together reach this probability are drawn from
            (Holtzman et al. 1904.09751); the token that crosses the line is among them.
        top_k: Only so many of the likeliest are drawn from; 0 is all. Applied before
            ``top_p``, as transformers does.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UsageError(
                "sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0", field="sampling"
            )


def uniforms(seed: int, prompt: int, sample: int, n: int) -> Tensor:
    """The ``(n,)`` numbers in [0, 1) that decide one sampled answer, float64.

    They depend on nothing else, so an answer does not depend on its batch.
    """
    digest = hashlib.sha256(f"{seed}:{prompt}:{sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(n, generator=generator, dtype=torch.float64)


def draw(logits: Tensor, sampling: Sampling, u: Tensor) -> Tensor:
    """One token per row, by inverting the distribution function at ``u``.

    Args:
        logits: ``(n, vocab)``.
        sampling: How.
        u: ``(n,)`` in [0, 1).

    Returns:
        Token ids ``(n,)``.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_p == 1 and sampling.top_k == 0:
        return _invert(probabilities, u)
    values, ids = _candidates(probabilities, sampling)
    if sampling.top_k:
        values = values[:, : sampling.top_k]
        values = values / values.sum(-1, keepdim=True)
    # A token is kept if those before it don't yet reach top_p; the first always is.
    before = values.cumsum(-1, dtype=torch.float64) - values
    kept = values.masked_fill(before >= sampling.top_p, 0.0)
    return ids.gather(-1, _invert(kept, u).unsqueeze(-1)).squeeze(-1)


def _candidates(probabilities: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in descending order, as many as the sampling can need."""
    vocab = probabilities.shape[-1]
    n = min(vocab, sampling.top_k or _LIKELY)
    values, ids = probabilities.topk(n)
    if not sampling.top_k and n < vocab and bool((values.sum(-1) < sampling.top_p).any()):
        values, ids = probabilities.sort(descending=True)
    return values, ids


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """Smallest index whose cumulated weight exceeds the share ``u`` of all."""
    cumulated = weights.cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    index = torch.searchsorted(cumulated, u.to(cumulated)[:, None] * total, right=True)
    # u * total may round to total: then the last index that has any weight.
    last = (weights > 0).cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(index, last).squeeze(-1)
