"""What an edit's effect is held against: random changes of its size, its editor's own controls.

Also what gates would say of a model between two edits. Both are measured in passing: only with
audits that their policy leaves ``control: true``.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeedit.contracts import Control
from safeedit.delta import WeightDelta
from safeedit.model.handle import ModelHandle
from safeedit.planning.plan import PlannedEdit
from safeedit.records import ControlRecord, Metric, Verdict
from safeedit.running.audits import Asked, Audits, Metrics
from safeedit.statistics.verdicts import judge


def measure_controls(
    audits: Audits,
    model: ModelHandle,
    edit: PlannedEdit,
    delta: WeightDelta,
    own: Sequence[Control],
) -> tuple[ControlRecord, ...]:
    """Random changes like this one, then the editor's own controls, on the same test data."""
    name = "random neurons zeroed" if delta.only_zeroes else "random delta of equal norm"
    measured = []
    seeds = range(audits.ctx.seed + 1, audits.ctx.seed + 1 + int(edit.spec.control))
    drawn = {seed: delta.random_like(seed, model) for seed in seeds}
    in_passing = [audit for audit in audits.plan.audits if audit.spec.control]
    asked = [
        Asked(audit, "test", each, learn=False)
        for each in (*drawn.values(), *(control.delta for control in own))
        for audit in in_passing
    ]
    audits.ahead(model, asked)
    for seed, each in drawn.items():
        found = _control_metrics(audits, model, each)
        measured.append(ControlRecord(name=name, random=True, seed=seed, metrics=found))
    for control in own:
        found = _control_metrics(audits, model, control.delta)
        measured.append(
            ControlRecord(name=control.name, random=False, seed=audits.ctx.seed, metrics=found)
        )
    return tuple(measured)


def _control_metrics(audits: Audits, model: ModelHandle, delta: WeightDelta) -> tuple[Metric, ...]:
    with model.applied(delta):
        return tuple(
            metric
            for audit in audits.plan.audits
            for metric in audits.in_passing(model, audit, "a control")
        )


def gates_so_far(audits: Audits, model: ModelHandle) -> tuple[Verdict, ...]:
    """What gates say of a model that awaits further edits, as far as their audits are made between
    edits: those that controls are measured with."""
    gates = audits.plan.gates_as_is
    found = Metrics()
    for audit in audits.plan.audits:
        if names := frozenset(gate.name for gate in gates if gate.audit == audit.id):
            found |= {
                metric.name: metric
                for metric in audits.in_passing(model, audit, "the edits so far", names)
            }
    comparisons = audits.comparisons(found, "test")
    return tuple(
        judge(gate, comparisons[gate.metric]) for gate in gates if gate.metric in comparisons
    )
