"""Which dose an edit takes: the least that meets its targets on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeedit.contracts import Proposal
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedAudit, PlannedEdit
from safeedit.policy import GateSpec
from safeedit.records import DosePoint, Verdict
from safeedit.running.audits import Asked, Audits, Metrics
from safeedit.statistics.verdicts import judge


@dataclass(frozen=True)
class ChosenDose:
    """The dose of one edit, and what led to it."""

    dose: float
    curve: tuple[DosePoint, ...] = ()
    """What was tried, in order; empty for a fixed dose."""
    met: bool | None = None
    """Whether it meets all targets; None for a fixed dose."""


@dataclass(frozen=True)
class TriedDose:
    """One dose, and what each target says of it on validation data."""

    point: DosePoint
    verdicts: tuple[Verdict, ...]

    @property
    def shortfall(self) -> tuple[int, float]:
        """How many targets it misses, and by how much in all, for comparison with others."""
        misses = [verdict for verdict in self.verdicts if verdict.status != "pass"]
        return len(misses), sum(map(_distance, misses))

    @property
    def room(self) -> float:
        """How far within its targets it is, in all: each counts 1 at most."""
        return sum(_distance(verdict) for verdict in self.verdicts if verdict.status == "pass")


def choose_dose(
    audits: Audits, model: ModelHandle, edit: PlannedEdit, proposal: Proposal
) -> ChosenDose:
    """The least dose that meets the targets on validation data.

    If none does, the one that misses fewest, and of those the one that misses by least.
    """
    if edit.spec.dose != "auto":
        return ChosenDose(float(edit.spec.dose))
    tried = try_doses(audits, model, edit, proposal)
    curve = tuple(each.point for each in tried)
    best = best_of(tried).point
    if not best.meets_targets:
        audits.ctx.warn(
            f"edit {edit.id}: no dose met all targets on validation data; "
            f"took {best.dose:g}, which missed {len(best.misses)}"
        )
    return ChosenDose(best.dose, curve, best.meets_targets)


def try_doses(
    audits: Audits, model: ModelHandle, edit: PlannedEdit, proposal: Proposal
) -> list[TriedDose]:
    """Doses in ascending order, up to the first that meets all targets; a fixed one alone."""
    doses = proposal.doses if edit.spec.dose == "auto" else (float(edit.spec.dose),)
    targets = [gate.model_copy(update={"min_n": 1, "confidence": None}) for gate in edit.targets]
    ids = {gate.audit for gate in targets}
    used = [audit for audit in audits.plan.audits if audit.id in ids]
    tried: list[TriedDose] = []
    for place, dose in enumerate(
        audits.ctx.progress(doses, f"edit {edit.id}: trying doses", len(doses))
    ):
        _ahead(audits, model, proposal, doses[place:], used)
        tried.append(_try(audits, model, proposal, dose, used, targets))
        if tried[-1].point.meets_targets:
            break
    return tried


def _ahead(
    audits: Audits,
    model: ModelHandle,
    proposal: Proposal,
    doses: Sequence[float],
    used: Sequence[PlannedAudit],
) -> None:
    """Have the next doses measured, so many that every worker has something to do: what comes after
    the first that meets its targets is in vain."""
    if audits.elsewhere is not None and used:
        some = doses[: max(1, audits.elsewhere.workers // len(used))]
        deltas = [proposal.at(dose) for dose in some]
        audits.ahead(
            model, [Asked(audit, "validation", delta) for delta in deltas for audit in used]
        )


def best_of(tried: Sequence[TriedDose]) -> TriedDose:
    """The nearest to its targets; of equally near ones the first, which is the least."""
    return min(tried, key=lambda each: each.shortfall)


def _try(
    audits: Audits,
    model: ModelHandle,
    proposal: Proposal,
    dose: float,
    used: Sequence[PlannedAudit],
    targets: Sequence[GateSpec],
) -> TriedDose:
    """One dose, measured on validation data."""
    start = audits.store.effort.now()
    found: Metrics = {}
    with model.applied(proposal.at(dose)):
        for audit in used:
            audited = audits.against_base(model, audit, "validation")
            found |= audited.metrics if audited is not None else {}
    comparisons = audits.comparisons(found, "validation")
    verdicts = tuple(judge(gate, comparisons.get(gate.metric)) for gate in targets)
    misses = [verdict for verdict in verdicts if verdict.status != "pass"]
    point = DosePoint(
        dose=dose,
        metrics={name: metric.value for name, metric in found.items()},
        meets_targets=not misses,
        misses=tuple(verdict.reason for verdict in misses),
        seconds=audits.store.effort.now() - start,
    )
    return TriedDose(point, verdicts)


def _distance(verdict: Verdict) -> float:
    """How far value and bound of a target are apart, as a share of the greater of them; 1 without a
    value."""
    if verdict.value is None or verdict.bound is None:
        return 1.0
    value, bound = verdict.value, verdict.bound
    return abs(value - bound) / max(abs(value), abs(bound), 1e-12)
