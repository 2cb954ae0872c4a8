"""The likeliest token, found without every logit in float32.

On CPUs that multiply in bfloat16, the head (a fifth of a small model) is run in that first. How far
its logits may be off is known from what rounding took from states and weights; only tokens that
could still be the likeliest, two or three of them on SmolLM2, are computed in float32. What is
found is what float32 finds, up to the rounding of its sums.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from safeedit.model.passes import not_finite

if TYPE_CHECKING:
    from safeedit.model.handle import ModelHandle

_MOST = 64
"""Tokens of a row that may be computed again, on average: where more could be the likeliest, all
are."""

_OWN_ROUNDING = 2.0**-8
"""Share of a logit that it may lose by being kept in bfloat16 itself."""


class LikeliestTokens:
    """The head of a model, asked for no more than its greatest logit.

    Args:
        handle: The model, which is not to change while this is used.
    """

    def __init__(self, handle: ModelHandle) -> None:
        self._weight = handle.head.weight.detach()

    @staticmethod
    def suit(handle: ModelHandle) -> bool:
        """Whether a model's head is one that this is quicker for."""
        weight, biased = handle.head.weight, "bias" in dict(handle.head.named_parameters())
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
        return on_cpu and not biased and multiplies_in_bfloat16()

    @cached_property
    def _rough(self) -> Tensor:
        return self._weight.to(torch.bfloat16)

    @cached_property
    def _longest(self) -> float:
        """Of a row of the head's weight."""
        return float(self._weight.norm(dim=1).max())

    @cached_property
    def _lost(self) -> float:
        """By rounding, of any row."""
        parts = zip(self._weight.split(1024), self._rough.split(1024), strict=True)
        return max(float((exact - rough).norm(dim=1).max()) for exact, rough in parts)

    def __call__(self, hidden: Tensor) -> Tensor:
        """``(n,)`` the tokens with the greatest logits, of what the head gets ``(n, d_model)``.

        A cap on logits changes no order and is left out.

        Raises:
            AuditError: Logits are not finite.
        """
        near = hidden.to(torch.bfloat16)
        logits = functional.linear(near, self._rough)
        best = logits.amax(-1).float()
        if not bool(torch.isfinite(best).all()):
            raise not_finite()
        # By Cauchy and Schwarz, how far any logit of a row may be from the exact one.
        off = (hidden - near).norm(dim=-1) * self._longest + near.float().norm(dim=-1) * self._lost
        bar = best - 2 * (off + best.abs() * _OWN_ROUNDING)
        rows, tokens = (logits >= bar[:, None]).nonzero(as_tuple=True)
        if len(rows) > _MOST * len(hidden):
            return functional.linear(hidden, self._weight).argmax(-1)
        exact = (hidden[rows] * self._weight[tokens]).sum(-1)
        greatest = torch.full_like(best, -torch.inf).scatter_reduce(0, rows, exact, "amax")
        first = exact == greatest[rows]  # of equal ones the first, as argmax has it
        found = tokens.new_full((len(hidden),), self._weight.shape[0])
        return found.scatter_reduce(0, rows[first], tokens[first], "amin")


def multiplies_in_bfloat16() -> bool:
    """Whether the CPU has instructions for it, without which it is no quicker."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
