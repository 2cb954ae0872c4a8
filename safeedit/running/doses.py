"""Which dose an edit takes: the least that meets its targets on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeedit.contracts import Proposal
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedAudit, PlannedEdit
from safeedit.policy import GateSpec
from safeedit.records import DosePoint, Verdict
from safeedit.running.audits import Audits, Metrics
from safeedit.statistics.verdicts import judge


@dataclass(frozen=True)
class ChosenDose:
    """The dose of one edit, and what led to it."""

    dose: float
    curve: tuple[DosePoint, ...] = ()
    """What was tried, in order; empty for a fixed dose."""
    met: bool | None = None
    """Whether it meets all targets; None for a fixed dose."""


def choose_dose(
    audits: Audits, model: ModelHandle, edit: PlannedEdit, proposal: Proposal
) -> ChosenDose:
    """The least dose that meets the targets on validation data.

    If none does, the one that misses fewest, and of those the one that misses by least.
    """
    if edit.spec.dose != "auto":
        return ChosenDose(float(edit.spec.dose))
    targets = [gate.model_copy(update={"min_n": 1, "confidence": None}) for gate in edit.targets]
    ids = {gate.audit for gate in targets}
    used = [audit for audit in audits.plan.audits if audit.id in ids]
    curve: list[DosePoint] = []
    shortfalls: list[float] = []
    what = f"edit {edit.id}: trying doses"
    for dose in audits.ctx.progress(proposal.doses, what, len(proposal.doses)):
        point, misses = _try(audits, model, proposal, dose, used, targets)
        curve.append(point)
        shortfalls.append(sum(map(_shortfall, misses)))
        if not misses:
            return ChosenDose(dose, tuple(curve), True)
    # The nearest; of equally near ones the least, since doses ascend.
    best = min(
        zip(curve, shortfalls, strict=True), key=lambda pair: (len(pair[0].misses), pair[1])
    )[0]
    audits.ctx.warn(
        f"edit {edit.id}: no dose met all targets on validation data; "
        f"took {best.dose:g}, which missed {len(best.misses)}"
    )
    return ChosenDose(best.dose, tuple(curve), False)


def _try(
    audits: Audits,
    model: ModelHandle,
    proposal: Proposal,
    dose: float,
    used: Sequence[PlannedAudit],
    targets: Sequence[GateSpec],
) -> tuple[DosePoint, list[Verdict]]:
    """One dose, measured on validation data, and the targets that it misses."""
    start = audits.store.effort.now()
    found: Metrics = {}
    with model.applied(proposal.at(dose)):
        for audit in used:
            audited = audits.against_base(model, audit, "validation")
            found |= audited.metrics if audited is not None else {}
    comparisons = audits.comparisons(found, "validation")
    verdicts = [judge(gate, comparisons.get(gate.metric)) for gate in targets]
    misses = [verdict for verdict in verdicts if verdict.status != "pass"]
    point = DosePoint(
        dose=dose,
        metrics={name: metric.value for name, metric in found.items()},
        meets_targets=not misses,
        misses=tuple(verdict.reason for verdict in misses),
        seconds=audits.store.effort.now() - start,
    )
    return point, misses


def _shortfall(miss: Verdict) -> float:
    """How far a missed target is, as a share of the greater of value and bound; 1 without a
    value."""
    if miss.value is None or miss.bound is None:
        return 1.0
    return abs(miss.value - miss.bound) / max(abs(miss.value), abs(miss.bound), 1e-12)
