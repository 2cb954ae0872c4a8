"""AlphaEdit: as MEMIT, with no effect at all on the directions ordinary text lives in.

The keyed road of :mod:`safeedit.methods.keyed_update`. The change is confined to the complement of
the leading directions of ordinary text's second moment, as few of them as hold nine tenths of its
energy. (Published: all directions of an eigenvalue over 0.02, a number that means something else in
every model and layer.)

Fails as :mod:`~safeedit.editors.memit` does, and with :class:`~safeedit.errors.EditError` where
that leaves no direction.

Source: Fang et al., "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models", ICLR
2025 (arXiv 2410.02355).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from safeedit.methods.constrained_least_squares import NullSpace
from safeedit.methods.keyed_update import KeyedEditor, KeyedParams
from safeedit.policy.layers import LayersOrAuto


class AlphaeditParams(KeyedParams):
    """Parameters of AlphaEdit."""

    layers: LayersOrAuto = Field(
        "13%-27%",
        description="whose MLP outputs move (published: 4-8 of 32); auto: chosen by the run",
    )


class Alphaedit(KeyedEditor):
    """See the module's docstring."""

    Params = AlphaeditParams
    name: ClassVar[str] = "alphaedit"
    ridge: ClassVar[float] = 0.01
    energy: ClassVar[float] = 0.9
    """Share of ordinary text's energy that is out of reach."""
    summary: ClassVar[str] = "changes facts in the null space of ordinary text"
    baseline: ClassVar[bool] = True
    results: ClassVar[str] = "erasure"
    measured: ClassVar[str] = (
        "Fifty facts at once: the answer is among the ten likeliest in 0.05 of unseen wordings, "
        "extracted in 0.02; 0.875 of near facts stay right, perplexity ratio 1.03."
    )

    def metric(self, second: Tensor) -> NullSpace:
        """Nothing may reach the leading directions of ordinary text."""
        return NullSpace.of(second, self.energy)
