"""Losses that unlearn, from log-probabilities alone.

In all of them ``now`` are log-probabilities of an answer's tokens under the model that learns,
``base`` those under the untouched model, nats. Objectives that compare the two need no second
model: the base's are computed once and kept (:class:`~safeedit.methods.tuning.BaseAnswers` keeps
hidden states where whole distributions are needed).

Source: Dorna et al., "OpenUnlearning", 2025 (arXiv 2506.12618), whose names and defaults they have;
each function names its paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Published:
    """What an objective is used with in its reference code.

    Attributes:
        beta: Its strength; 0 where it has none.
        weight: Of the forget loss beside the retain loss.
    """

    beta: float = 0.0
    weight: float = 1.0


OBJECTIVES = MappingProxyType(
    {
        "ga": Published(),
        "wga": Published(beta=1.0),
        "satimp": Published(beta=5.0, weight=0.1),
        "npo": Published(beta=0.1),
        "simnpo": Published(beta=4.5, weight=0.125),
        "undial": Published(beta=10.0),
        "idk_nll": Published(),
        "idk_dpo": Published(beta=0.1),
        "jensun": Published(),
    }
)
"""Name -> its published setting."""


def gradient_ascent(now: Tensor) -> Tensor:
    """GA: the mean log-probability of the answer's tokens ``(tokens,)``, which has no least value.

    Source: Jang et al., "Knowledge Unlearning", ACL 2023 (arXiv 2210.01504).
    """
    return now.mean()


def weighted_ascent(now: Tensor, beta: float) -> Tensor:
    """WGA: as GA, each token weighted by its probability to the power of ``beta``, so that what is
    unlikely already is left alone.

    Source: Wang et al., ICLR 2025 (arXiv 2502.19301).
    """
    return (now.detach().exp() ** beta * now).mean()


def saturation_importance(now: Tensor, beta: float) -> Tensor:
    """SatImp: as WGA, and weighted by the probability of *not* saying the token as well.

    Source: Yang et al., "Exploring Criteria of Loss Reweighting", 2025 (arXiv 2505.11953).
    """
    probability = now.detach().exp()
    return (probability**beta * (1 - probability) * now).mean()


def negative_preference(now: Tensor, base: Tensor, beta: float) -> Tensor:
    """NPO: ``-2/beta log sigmoid(-beta (now - base))``, mean over answers; GA as ``beta -> 0``.

    Args:
        now: ``(answers,)`` summed over each answer's tokens.
        base: Likewise.
        beta: How soon an answer that has become unlikely is left alone.

    Source: Zhang et al., COLM 2024 (arXiv 2404.05868), equation 3.
    """
    return -2 / beta * functional.logsigmoid(-beta * (now - base)).mean()


def simple_negative_preference(now: Tensor, beta: float) -> Tensor:
    """SimNPO: NPO without the base, on the mean over tokens ``(answers,)`` instead of the sum.

    Source: Fan et al., 2024 (arXiv 2410.07163); its margin, 0 as published, is left out.
    """
    return -2 / beta * functional.logsigmoid(-beta * now).mean()


def preference(
    wanted: Tensor, wanted_base: Tensor, unwanted: Tensor, unwanted_base: Tensor, beta: float
) -> Tensor:
    """IdkDPO: the refusal is to gain on the answer, as compared with the base; ``(answers,)`` each,
    summed over tokens.

    Source: Rafailov et al., NeurIPS 2023 (arXiv 2305.18290), with the scale of the reference code.
    """
    gained = (wanted - wanted_base) - (unwanted - unwanted_base)
    return -2 / beta * functional.logsigmoid(beta * gained).mean()


def self_distillation(base: Tensor, now: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """UNDIAL: cross-entropy to the base's own distribution with the answer's logit lowered by
    ``beta``, ``(tokens,)``.

    Args:
        base: ``(tokens, vocab)`` log-probabilities.
        now: Likewise.
        wanted: ``(tokens,)`` the answer.
        beta: Logits.

    Source: Dong et al., NAACL 2025 (arXiv 2402.10052). The reference code averages over prompt and
    padding too, whose labels of -100 lower the vocabulary's token ``V - 100``.
    """
    lowered = base.scatter_add(-1, wanted[:, None], torch.full_like(base[:, :1], -beta))
    return -(lowered.softmax(-1) * now).sum(-1)


def divergence(base: Tensor, now: Tensor) -> Tensor:
    """KL(base || now), ``(tokens,)`` of ``(tokens, vocab)`` log-probabilities, nats."""
    return (base.exp() * (base - now)).sum(-1)


def jensen_shannon(base: Tensor, now: Tensor) -> Tensor:
    """Jensen-Shannon divergence, ``(tokens,)`` of ``(tokens, vocab)`` log-probabilities; log 2 nats
    at most."""
    middle = torch.logaddexp(base, now) - math.log(2)
    return (divergence(base, middle) + divergence(now, middle)) / 2


def jensen_shannon_to_token(now: Tensor) -> Tensor:
    """JensUn: Jensen-Shannon divergence from saying the wanted token for certain, ``(tokens,)`` of
    the wanted tokens' log-probabilities: only they matter,
    ``(2 log 2 + p log p - (1 + p) log(1 + p)) / 2``.

    Source: Singh et al., "Unlearning That Lasts", 2025 (arXiv 2509.02820). The reference code gives
    its "one-hot" distribution a mass of one *per token* of the refusal, at every position.
    """
    probability = now.exp()
    grown = (1 + probability) * torch.log1p(probability)
    return (2 * math.log(2) + probability * now - grown) / 2


def per_answer(log_probs: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sum and mean over each answer's tokens, ``(answers,)`` of ``(tokens,)``."""
    sums = torch.stack([part.sum() for part in log_probs.split(list(lengths))])
    return sums, sums / torch.tensor(lengths, device=sums.device)
