"""Whether a model fits this machine, known before any of it is loaded.

What is certain is refused: the weights alone, once for the run and once for each worker that it
starts here, are more than all the memory there is. What is estimated is warned of.

Fails with :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

import psutil
import torch

from safeedit.errors import ModelError
from safeedit.planning.estimates import peak_bytes
from safeedit.planning.plan import Plan


def check_memory(plan: Plan, warnings: list[str]) -> None:
    """Refuse a model that can't be held, warn of a run that may not end.

    Args:
        plan: Resolved.
        warnings: Added to.

    Raises:
        ModelError: The weights alone are more than this machine's memory.
    """
    model, engine = plan.loaded.policy.model, plan.loaded.policy.engine
    # A cluster that runs elsewhere has memory of its own.
    here = 0 if engine.address else engine.workers or (2 if engine.use == "ray" else 0)
    weights = plan.weights_bytes
    need, have = weights * (1 + here), machine_memory(model.device)
    copies = f"{1 + here} copies of the weights" if here else "the weights"
    if need > have:
        raise ModelError(
            f"{copies} take {_gb(need)} in {plan.dtype}, and this machine has {_gb(have)} of "
            "memory",
            remedy="take a machine with more memory, 'dtype: bfloat16' where the policy says "
            "float32" + (", or fewer workers" if here else ""),
        )
    peak = peak_bytes(plan) + weights * here
    if peak > have:
        warnings.append(
            f"the run may take {_gb(peak)} of memory at its peak, by a rough estimate, and this "
            f"machine has {_gb(have)}"
        )


def machine_memory(device: str) -> float:
    """Bytes of memory that a model on a ``model.device`` of a policy may take here."""
    found = float(psutil.virtual_memory().total)
    if device in ("auto", "cuda") and torch.cuda.is_available():
        found += sum(
            torch.cuda.get_device_properties(gpu).total_memory
            for gpu in range(torch.cuda.device_count())
        )
    return found


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
