"""What is told of a stage at its end: a few figures, by name, never data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from safeedit.export.weights import Written
from safeedit.model.handle import ModelHandle
from safeedit.observing import Figures
from safeedit.planning.attacks import headline_of
from safeedit.planning.plan import PlannedAudit
from safeedit.records import AuditRecord, Metric, RunRecord, Verdict
from safeedit.running.doses import ChosenDose


def of_model(model: ModelHandle) -> Figures:
    """How large it is, in which dtype, where."""
    return {
        "parameters": model.shape.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def headlines(audits: Iterable[PlannedAudit], found: Iterable[AuditRecord]) -> Figures:
    """The metric that stands for each audit."""
    return worst_headlines(audits, [[metric for record in found for metric in record.metrics]])


def worst_headlines(audits: Iterable[PlannedAudit], found: Sequence[Sequence[Metric]]) -> Figures:
    """The metric that stands for each audit, of several measurements the worst."""
    figures: Figures = {}
    for audit in audits:
        name = f"{audit.id}.{headline_of(audit)}"
        values = [
            metric.value
            for metrics in found
            for metric in metrics
            if metric.name == name and metric.value is not None
        ]
        if values:
            lower = audit.metrics[name].direction == "lower"
            figures[name] = max(values) if lower else min(values)
    return figures


def of_dose(chosen: ChosenDose, offered: int) -> Figures:
    """The dose that was taken, after how many were tried, and whether it meets its targets."""
    figures: Figures = {"dose": chosen.dose}
    if chosen.met is not None:
        figures["doses tried"] = f"{len(chosen.curve)} of {offered}"
        figures["targets"] = "met" if chosen.met else "missed"
    return figures


def of_staging(written: Written) -> Figures:
    """How many tensors lie on the disk, and how many of them were changed."""
    return {"tensors": len(written.digests), "changed": len(written.changed)}


def of_verdicts(verdicts: Sequence[Verdict]) -> Figures:
    """How many gates there are, and what they say."""
    figures: Figures = {"gates": len(verdicts)}
    for status, word in (("pass", "passed"), ("fail", "failed"), ("inconclusive", "inconclusive")):
        if count := sum(verdict.status == status for verdict in verdicts):
            figures[word] = count
    return figures


def of_verdict(record: RunRecord) -> Figures:
    """What was decided."""
    exported = record.export.directory if record.export is not None else "nothing"
    return {**of_verdicts(record.verdicts), "verdict": record.status, "exported": exported}
