"""Values: the shifts of one MLP's output at a subject that make the model say something else.

Each :class:`~safeedit.methods.facts.objectives.FactObjective` (a fact in one template) has a shift
of its own, ``(d_model,)``, added to what ``mlp_out`` writes at the subject's last token in each of
its rows. All units learn together by Adam, each until its own aim is met, and then leaves the
batch; none grows longer than a share of the output it is added to. With ``attention`` a shift of
what the block's attention writes there is learnt beside it and let go (PMET): what the facts need
of attention then does not end up in the MLP's.

Source: Meng et al. 2022 (ROME, arXiv 2202.05262, section 3.1 and appendix E.5), for one fact at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.contracts import Progress, silent
from safeedit.errors import EditError
from safeedit.methods.facts.objectives import FactObjective
from safeedit.methods.facts.passes import Passes
from safeedit.model.handle import ModelHandle


@dataclass(frozen=True, eq=False)
class Values:
    """What was learnt.

    Attributes:
        shifts: ``(units, d_model)`` fp32, CPU.
        outputs: ``(units,)`` length of the outputs the shifts are added to, mean over rows.
        losses: ``(units,)`` of the aim that is farthest from being met at the end, nats.
        steps: ``(units,)`` taken by each.
    """

    shifts: Tensor
    outputs: Tensor
    losses: Tensor
    steps: Tensor


def learn_values(
    model: ModelHandle,
    layer: int,
    units: Sequence[FactObjective],
    *,
    steps: int,
    learning_rate: float,
    max_norm: float,
    keep_weight: float,
    decay: float,
    stop: float,
    attention: bool = False,
    progress: Progress = silent,
    description: str = "learning values",
) -> Values:
    """Shifts of what the MLP of ``layer`` writes.

    Args:
        model: Stays as it is.
        layer: Which.
        units: One at least.
        steps: Of Adam, at most.
        learning_rate: Length of a first step, as a share of the output's.
        max_norm: Greatest length of a shift, as a share of the output's.
        keep_weight: Of divergence at rows to keep, in nats per nat.
        decay: Nats for a shift as long as the output; grows with its square.
        stop: A unit is done once the loss of each of its aims is at most this, nats.
        attention: Whether what attention writes is shifted as well meanwhile.
        progress: Shown per step.
        description: For ``progress``.

    Raises:
        EditError: The loss is not a finite number.
        AuditError: A row is longer than the context, or does not fit into memory.
    """
    passes = Passes(model, layer, units, attention=attention)
    scale = (passes.sizes / math.sqrt(model.d_model)).repeat_interleave(model.d_model, 1)
    free = torch.zeros(scale.shape, requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=learning_rate)
    losses, taken = torch.zeros(len(units)), torch.zeros(len(units), dtype=torch.long)
    active = list(range(len(units)))
    # One look more than steps, so that the losses told are those of the shifts returned.
    for step in progress(range(steps + 1), description, steps + 1):
        shifts = free * scale
        aims, gradient = passes.losses(shifts.detach(), active, keep_weight, grad=step < steps)
        _require_finite(aims)
        losses[active], taken[active] = aims, step
        active = [unit for unit, loss in zip(active, aims.tolist(), strict=True) if loss > stop]
        if step == steps or not active:
            break
        # Of a shift x |h| / sqrt(d), the square over |h|^2 is |x|^2 / d.
        free.grad = gradient * scale + 2 * decay / model.d_model * free.detach()
        _step(optimiser, free, active, max_norm, model.d_model)
    shifts = (free * scale).detach()[:, : model.d_model]
    return Values(shifts, passes.outputs, losses, taken)


def _require_finite(losses: Tensor) -> None:
    if not bool(torch.isfinite(losses).all()):
        raise EditError(
            "learning values diverged: the loss is no number",
            remedy="open the model in float32 (model: {dtype: float32})",
        )


@torch.no_grad()
def _step(
    optimiser: torch.optim.Optimizer,
    free: Tensor,
    active: Sequence[int],
    max_norm: float,
    width: int,
) -> None:
    """One step of the ``active`` units' rows of ``free`` ``(units, parts * width)``, in place; no
    part's root mean square grows beyond ``max_norm``."""
    moved = free.detach().clone()
    optimiser.step()
    moved[active] = free[active]
    parts = moved.unflatten(1, (-1, width))
    size = parts.norm(dim=2, keepdim=True) / math.sqrt(width)
    free.copy_((parts * (max_norm / size.clamp(min=1e-12)).clamp(max=1.0)).flatten(1))
