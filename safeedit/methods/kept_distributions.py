"""The base's distributions over next tokens, kept so that later models can be held against them.

A vocabulary of up to 49,152 tokens is kept whole, as float16 log-probabilities that are normalised
again when read. That rounding (at most ``2^-11 |log p|`` each) enters the divergence squared: an
unchanged model reads below 1e-5 nats.

Of a larger vocabulary the base's 16,384 likeliest tokens are kept at each position, and the
probability of all others together: as many bytes (96 KiB a position), whatever the vocabulary. The
divergence over these is a *lower bound* of the true one, for what is moved about among the others
is not seen. Exactly, it is short by ``r KL(base's others || edited's others)``, where ``r`` is the
others' probability under the base and both are normalised: by at most ``r`` times the greatest
log-ratio among them. On SmolLM2's answers, were it so kept, ``r`` is 5e-5 on average and the bound
is short of the whole by one part in ten thousand; the caller prints ``r`` beside the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = 3 << 14
"""Greatest vocabulary that is kept whole: two bytes a token, which is as much as six bytes (a token
and its log-probability) for the :data:`LIKELIEST`."""
LIKELIEST = 1 << 14
"""Tokens kept of a larger one."""

_IMPOSSIBLE = -6e4
"""Least log-probability that float16 holds; below, it would read as -inf."""


@dataclass(frozen=True, eq=False)
class KeptDistributions:
    """Distributions of the base at a number of positions.

    Attributes:
        log_probs: ``(positions, vocab or likeliest)`` nats, float16.
        tokens: ``(positions, likeliest)`` int32, whose they are; None: of the whole vocabulary.
        others: ``(positions,)`` nats, float32, of all other tokens together; None as ``tokens``.
    """

    log_probs: Tensor
    tokens: Tensor | None = None
    others: Tensor | None = None

    @classmethod
    def empty(cls, positions: int, vocab: int) -> KeptDistributions:
        """Room for distributions over ``vocab`` tokens."""
        if vocab <= WHOLE:
            return cls(torch.empty(positions, vocab, dtype=torch.float16))
        likeliest = min(LIKELIEST, vocab)
        return cls(
            torch.empty(positions, likeliest, dtype=torch.float16),
            torch.empty(positions, likeliest, dtype=torch.int32),
            torch.empty(positions),
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str) -> KeptDistributions | None:
        """What :meth:`tensors` gave, or None where nothing was kept."""
        log_probs = tensors.get(f"log_probs_{name}")
        if log_probs is None:
            return None
        return cls(log_probs, tensors.get(f"tokens_{name}"), tensors.get(f"others_{name}"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As they travel in a reference."""
        found = {f"log_probs_{name}": self.log_probs}
        if self.tokens is not None and self.others is not None:
            found |= {f"tokens_{name}": self.tokens, f"others_{name}": self.others}
        return found

    def put(self, first: int, log_probs: Tensor) -> None:
        """Keep distributions ``(n, vocab)``, nats, at positions from ``first`` on."""
        places = slice(first, first + len(log_probs))
        if self.tokens is None or self.others is None:
            self.log_probs[places] = log_probs.clamp(min=_IMPOSSIBLE).half().cpu()
            return
        kept = log_probs.topk(self.tokens.shape[1], dim=-1)
        others = log_probs.scatter(-1, kept.indices, -torch.inf).logsumexp(-1)
        self.log_probs[places] = kept.values.clamp(min=_IMPOSSIBLE).half().cpu()
        self.tokens[places] = kept.indices.int().cpu()
        self.others[places] = others.clamp(min=_IMPOSSIBLE).cpu()

    def divergence(self, first: int, now: Tensor) -> Tensor:
        """KL(base || now) ``(n,)``, nats; ``now`` ``(n, vocab)``, at positions from ``first``."""
        places = slice(first, first + len(now))
        base = self.log_probs[places].to(now.device).float()
        if self.tokens is not None and self.others is not None:
            tokens = self.tokens[places].to(now.device).long()
            others = now.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
            now = torch.cat([now.gather(-1, tokens), others], -1)
            base = torch.cat([base, self.others[places, None].to(now.device)], -1)
        base = base.log_softmax(-1)
        return (base.exp() * (base - now.clamp(min=-1e5))).sum(-1)

    @property
    def note(self) -> str:
        """What is to be said beside a divergence from them; empty where they are whole."""
        if self.tokens is None or self.others is None or not len(self.others):
            return ""
        return (
            f"a lower bound: the base's {self.tokens.shape[1]} likeliest tokens are told apart, "
            f"all others (mean probability {float(self.others.double().exp().mean()):.2g}) "
            "count as one"
        )
