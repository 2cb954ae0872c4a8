"""What a run takes: memory by arithmetic, time by what finished runs took on this machine."""

from __future__ import annotations

import math
from typing import Any

from safeedit.planning.paces import Basis, Paces
from safeedit.planning.plan import Plan
from safeedit.planning.road import apply_road, attack_points, cost, taught_tokens

_TRAINED = 16
"""Bytes for each weight that an attack trains: the weight, its gradient, an optimiser's moments."""
_TOUCHED = 12
"""Bytes for each weight that an edit may change."""
_BESIDE = 1.0e9
"""Bytes of everything else: the interpreter, its libraries, activations."""


def estimates(plan: Plan) -> dict[str, Any]:
    """Memory (bytes), tokens and time (seconds) of a run that finds nothing done before.

    ``basis`` says what most of the time stands on: the same work in runs on this machine, work
    like it, or arithmetic alone.
    """
    paces, road = Paces.of(plan), apply_road(plan)
    stages = {stage.name: paces.seconds(stage) for stage in road}
    by_basis: dict[Basis, float] = {}
    for stage in road:
        for kind, amount in stage.kinds().items():
            pace, basis = paces.pace(kind)
            by_basis[basis] = by_basis.get(basis, 0.0) + amount * pace
    taught = sum(map(taught_tokens, plan.attacks))
    reading = sum(cost(audit.auditor, dict(audit.data)) for audit in plan.audits)
    rounds = 2 + sum(2 if edit.spec.dose == "auto" else 1 for edit in plan.edits)
    under = sum(
        attack_points(attack) * sum(cost(audit.auditor, audit.data) for audit in attack.audits)
        for attack in plan.attacks
    )
    return {
        "weights_bytes": plan.weights_bytes,
        "peak_memory_bytes": peak_bytes(plan),
        "forward_tokens": reading * rounds + 2 * under,
        "training_tokens": 2 * taught
        + sum(cost(edit.editor, edit.data.roles) for edit in plan.edits),
        "seconds": sum(stages.values()) * plan.loaded.policy.seeds,
        "stages": stages,
        "basis": max(by_basis, key=lambda each: by_basis[each]),
    }


def peak_bytes(plan: Plan) -> float:
    """What the run's own process may come to hold at once."""
    taught = any(map(taught_tokens, plan.attacks))
    touched = sum(math.prod(t.shape) for edit in plan.edits for t in edit.tensors)
    trained = plan.shape.n_parameters * (_TRAINED if taught else 0)
    return plan.weights_bytes * 2 + trained + touched * _TOUCHED + _BESIDE
