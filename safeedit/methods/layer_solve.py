"""Layer by layer: shifts that one layer is to write, shared out among several.

Each layer, ascending, takes its share of what is still missing at the last one: ``1 / n`` where
``n`` layers are left (or ``1 / sqrt(n)``). What is missing, and the keys that read it, are told
anew on the partly edited model. One layer is the case in which it takes all. The solve itself is
:mod:`safeedit.methods.constrained_least_squares`.

Source: Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023 (arXiv 2210.07229).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from safeedit.delta import LowRank
from safeedit.errors import EditError
from safeedit.methods.constrained_least_squares import (
    Change,
    InputMetric,
    constrained_least_squares,
)
from safeedit.methods.facts.keys import Ordinary
from safeedit.methods.scaled import so_far
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """What is to be moved in one layer.

    Attributes:
        keys: ``(m, n)`` what its matrix reads where something is to move.
        missing: ``(d_model, n)`` by what the last layer's output is still to move there.
        held: ``(m, n0)`` keys that are to stay.
    """

    keys: Tensor
    missing: Tensor
    held: Tensor


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """One layer's change and what it was solved from."""

    site: Site
    change: Change
    held: Tensor
    ordinary: Ordinary

    def effect(self, model: ModelHandle) -> dict[str, Any]:
        """What the solve predicts, for the record; ``model`` is the unedited one."""
        weight = model.weight(self.site).float().cpu()
        change = self.change
        return {
            "reached_median": float(change.reached.median()),
            "reached_least": float(change.reached.min()),
            "missed": change.missed,
            "independent_keys": change.independent,
            "condition": min(change.condition, 1e300),
            "share_of_ordinary_output": change.share_of(weight, self.ordinary.second),
            "share_of_preserved_output": change.share_on(weight, self.held),
            "tokens_of_ordinary_text": self.ordinary.tokens,
        }


def solve_layers(
    editor: str,
    model: ModelHandle,
    sites: Sequence[Site],
    ordinary: Mapping[Site, Ordinary],
    target: Callable[[Site], LayerTarget],
    metric: Callable[[Tensor], InputMetric],
    *,
    ridge: float,
    preserve_weight: float = math.inf,
    share: Callable[[int], float] = float,
    whose: str,
    remedy: str,
) -> list[SolvedLayer]:
    """The changes of all layers' output matrices, at dose 1.

    Args:
        editor: Its name, for the change so far.
        model: Its weights are the same before and after.
        sites: MLP output matrices, ascending.
        ordinary: What ordinary text feeds into each.
        target: What each is to do, asked on the model as it is with the layers before it edited.
        metric: What inputs of second moment ``(m, m)`` feel of a change.
        ridge: What ordinary text weighs against missed shifts, in units of the MLP's width.
        preserve_weight: What a held key's move weighs against a missed shift.
        share: How many layers are left, this one included -> what is missing is divided by it.
        whose: Owner of the keys, for the error: ``the subjects'``.
        remedy: What may leave something to move, for the error.

    Raises:
        EditError: Nothing is left to move a layer's keys by, or see the solve's own module.
    """
    base = model.digest()
    solved: list[SolvedLayer] = []
    for done, site in enumerate(sites):
        with model.applied(so_far(editor, base, updates_of(solved))):
            wanted = target(site)
        change = constrained_least_squares(
            wanted.keys,
            wanted.missing / share(len(sites) - done),
            metric(ordinary[site].second),
            ridge=ridge * model.shape.d_mlp,
            preserve=wanted.held,
            preserve_weight=preserve_weight,
        )
        if not change.independent:
            raise EditError(
                f"nothing is left to move {whose} keys by in layer {site.layer}: they lie in the "
                "span of what is to stay",
                remedy=remedy,
            )
        solved.append(SolvedLayer(site, change, wanted.held, ordinary[site]))
    return solved


def updates_of(solved: Sequence[SolvedLayer]) -> dict[str, LowRank]:
    """Tensor name -> its change at dose 1."""
    return {each.site.weight: LowRank(each.change.left, each.change.right) for each in solved}
