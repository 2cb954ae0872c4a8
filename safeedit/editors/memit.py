"""MEMIT: many facts at once, each shift spread over several layers' MLPs.

The keyed road of :mod:`safeedit.methods.keyed_update`: layers ascending, each taking its share of
what is still missing at the last one, keys read anew on the partly edited model, and a ridge that
trades the wanted shifts against what ordinary text feels.

With `variant: pmet` values are learnt as PMET does: a shift of what the last edited layer's
attention writes is sought beside that of its MLP, and let go, so that the MLP's holds what the MLP
is to bring and no more; what is still missing is measured on the MLP's own output, and each of `n`
layers left takes `1 / sqrt(n)` of it rather than `1 / n`. Not measured on a real model yet.

Where a norm follows the MLP (Gemma 2 and 3, OLMo-2) shifts can't be spread: of the default layers
the last alone is edited, and :class:`~safeedit.errors.UnsupportedModelError` is raised where
``layers`` names several. Fails otherwise as :mod:`~safeedit.editors.rome` does.

Source: Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023 (arXiv 2210.07229).
Published: ridge 15000 against layers of width 11008 to 16384, that is about 1; 100,000 texts. PMET:
Li et al., "PMET: Precise Model Editing in a Transformer", AAAI 2024 (arXiv 2308.08742).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from safeedit.methods.constrained_least_squares import Weighted
from safeedit.methods.keyed_update import KeyedEditor, KeyedParams
from safeedit.policy.layers import LayersOrAuto


class MemitParams(KeyedParams):
    """Parameters of MEMIT."""

    layers: LayersOrAuto = Field(
        "13%-27%",
        description="whose MLP outputs move (published: 4-8 of 32); auto: chosen by the run",
    )
    variant: Literal["memit", "pmet"] = Field(
        "memit",
        description="pmet: values are learnt beside shifts of what attention writes, by Adam "
        "whatever the target, and spread by the square root of the layers left",
    )

    @property
    def method(self) -> Literal["least", "adam"]:
        """How values are found."""
        return "adam" if self.variant == "pmet" else super().method


class Memit(KeyedEditor):
    """See the module's docstring."""

    Params = MemitParams
    name: ClassVar[str] = "memit"
    ridge: ClassVar[float] = 0.1
    """Published: about 1."""
    summary: ClassVar[str] = "changes many facts at once, spread over several layers"
    results: ClassVar[str] = "erasure"
    measured: ClassVar[str] = (
        "Fifty facts at once: the answer is among the ten likeliest in 0.05 of unseen wordings, "
        "extracted in 0; 0.875 of near facts stay right, perplexity ratio 1.02."
    )

    @property
    def with_attention(self) -> bool:
        """Whether this is PMET."""
        return bool(self.params.variant == "pmet")

    def metric(self, second: Tensor) -> Weighted:
        """Ordinary text, and a floor for directions it hardly uses."""
        return Weighted.of(second)
