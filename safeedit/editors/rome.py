"""ROME: one layer's MLP is changed so that the subject's key brings another value.

The keyed road of :mod:`safeedit.methods.keyed_update` with one layer and shifts that are
reached exactly: for one fact the published rank-one update, with one key
throughout (r-ROME: the published code averages the key in one place and not in another, and
collapses); for many facts one joint solve. Ordinary text is felt by its second moment, read rather
than taken for the identity, attention sinks are left alone by name, and so are preserved facts.

Fails with :class:`~safeedit.errors.DataError` where a subject is missing, is not in its prompt, or
facts contradict each other, and with :class:`~safeedit.errors.EditError` where nothing is left to
move a key by.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", NeurIPS 2022 (arXiv
2202.05262); Gupta et al., "Rebuilding ROME", 2024 (arXiv 2403.07175).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from safeedit.contracts import LayerShape
from safeedit.errors import UsageError
from safeedit.methods.constrained_least_squares import Weighted
from safeedit.methods.keyed_update import KeyedEditor, KeyedParams


class Rome(KeyedEditor):
    """See the module's docstring."""

    Params = KeyedParams
    name: ClassVar[str] = "rome"
    summary: ClassVar[str] = "changes facts in one layer, in closed form, keyed to their subjects"
    results: ClassVar[str] = "erasure"
    measured: ClassVar[str] = (
        "Fifty facts at once: the answer is among the ten likeliest in 0.07 of unseen wordings, "
        "extracted in 0.02; 0.889 of near facts stay right, perplexity ratio 1.02."
    )

    def layers(self, model: LayerShape) -> tuple[int, ...]:
        """The one layer.

        Raises:
            UsageError: ``layers`` names several.
        """
        found = super().layers(model)
        if len(found) > 1:
            raise UsageError(
                f"rome edits one layer, and 'layers' names {len(found)}",
                field="layers",
                remedy="name one, such as 16%-16% or [4], or use memit",
            )
        return found

    def metric(self, second: Tensor) -> Weighted:
        """Ordinary text, and a floor for directions it hardly uses."""
        return Weighted.of(second)
