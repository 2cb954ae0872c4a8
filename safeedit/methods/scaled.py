"""What the editors share whose doses scale a change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from safeedit import __version__
from safeedit.contracts import LayerShape, Proposal, RunContext
from safeedit.data import Dataset
from safeedit.delta import LowRank, Origin, Update, WeightDelta
from safeedit.errors import UnsupportedModelError, UsageError
from safeedit.model.handle import ModelHandle
from safeedit.policy.layers import resolve


def proposal_of(
    editor: str,
    params: Any,
    data: Dataset,
    ctx: RunContext,
    base: str,
    updates: Callable[[float], Mapping[str, Update]],
    notes: Mapping[str, Any],
) -> Proposal:
    """A change in the strengths that ``params.doses`` names.

    Args:
        editor: Its name.
        params: Its parameters, ``doses`` among them.
        data: What the change was fitted on, for the record.
        ctx: Of the run.
        base: Digest of the model it belongs to.
        updates: Dose -> tensor name -> its change.
        notes: For the record.
    """

    def at(dose: float) -> WeightDelta:
        if not 0 < dose < math.inf:
            raise UsageError(f"a dose of {dose:g} is no scale over 0", field="dose")
        origin = Origin(
            editor=editor,
            params=params.model_dump(mode="json"),
            data_digest=data.digest,
            version=__version__,
            seed=ctx.seed,
            dose=dose,
        )
        return WeightDelta(base, updates(dose), origin)

    return Proposal(tuple(sorted(set(params.doses))), at, dict(notes))


def scaled_proposal(
    editor: str,
    params: Any,
    data: Dataset,
    ctx: RunContext,
    base: str,
    updates: Mapping[str, LowRank],
    notes: Mapping[str, Any],
) -> Proposal:
    """As :func:`proposal_of`, of a low-rank change at dose 1 that doses scale."""

    def scaled(dose: float) -> dict[str, Update]:
        return {name: LowRank(u.left * dose, u.right) for name, u in updates.items()}

    return proposal_of(editor, params, data, ctx, base, scaled, notes)


def so_far(editor: str, base: str, updates: Mapping[str, LowRank]) -> WeightDelta:
    """The change while it is being solved for, layer by layer."""
    return WeightDelta(base, dict[str, Update](updates), Origin(editor=editor))


def spread_over(params: Any, model: LayerShape) -> tuple[int, ...]:
    """The layers that an editor spreads its shifts over, ascending.

    Where a norm follows the MLP, shifts can't be spread: of the editor's own layers it is then the
    last, where its values are found. Layers that a policy names are as it names them, see
    :func:`check_spread`.

    Args:
        params: Of the editor, with ``layers``.
        model: Its shape.

    Raises:
        UsageError: The model has no such layer.
    """
    found = resolve(params.layers, model.n_layers)
    named = "layers" in params.model_fields_set
    return found[-1:] if model.norm_after_mlp and not named else found


def check_spread(model: ModelHandle, layers: int, example: str) -> None:
    """See that a shift can be spread over so many layers.

    Raises:
        UnsupportedModelError: A norm follows the MLP, and there are several.
    """
    if layers > 1 and model.architecture.post_mlp_norm:
        raise UnsupportedModelError(
            f"in {model.architecture.family} models a norm follows the MLP, so that a shift "
            "cannot be spread over several layers",
            remedy=f"choose one layer, such as 'layers: {example}'",
        )
