"""What a report says of a gate: its verdict, in plain words, with the interval and the bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safeedit.records import RECOVERED, Interval, Metric, RunRecord, Verdict
from safeedit.report.wording import how_near, number

RECOVERED_PLAIN = (
    "How much of the edit's effect an attack undoes: 0 is nothing, 1 is all that the untouched "
    "model still tells under the same attack. Lower is better."
)


@dataclass(frozen=True)
class GateRow:
    """One gate with what was held against its bound."""

    verdict: Verdict
    sentence: str
    """What its metric is, in plain words; empty where the record does not tell."""
    interval: Interval | None
    """What was held against the bound; where the value itself was, its interval."""
    unit: str

    @property
    def must_be(self) -> str:
        """``at most 0.02``; of a change ``at most +0.05``."""
        verdict = self.verdict
        if verdict.bound is None:
            return verdict.condition
        side = "at most" if verdict.passes == "below" else "at least"
        return f"{side} {number(verdict.bound, signed=verdict.of_change)}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Under what it was measured, why it did not pass, and how little would turn it."""
        verdict = self.verdict
        found = []
        if verdict.under:
            found.append(f"Under the attack {verdict.under}.")
        if verdict.against:
            found.append(f"Held against {verdict.against}.")
        if verdict.status != "pass" or verdict.confidence:
            found.append(verdict.reason.removeprefix(f"{verdict.metric} "))
        if near := how_near(verdict):
            found.append(near)
        return tuple(found)


def gate_rows(record: RunRecord) -> tuple[GateRow, ...]:
    """All gates, in the order of the policy."""
    return tuple(_row(record, verdict) for verdict in record.verdicts)


def plain(record: RunRecord, metric: str) -> str:
    """What a metric is in plain words, by its full name; empty where the record does not tell."""
    if metric.endswith(f".{RECOVERED}"):
        return RECOVERED_PLAIN
    return record.glossary.metrics.get(metric, "")


def _row(record: RunRecord, verdict: Verdict) -> GateRow:
    interval, unit = None, ""
    if verdict.under:
        held = _held(record, verdict)
        interval, unit = (held.interval, held.unit) if held is not None else (None, "")
    else:
        found = next((c for c in record.comparisons if c.name == verdict.metric), None)
        if found is not None and not verdict.against:
            unit = found.after.unit
            interval = found.difference_interval if verdict.of_change else found.after.interval
    return GateRow(verdict, plain(record, verdict.metric), verdict.interval or interval, unit)


def _held(record: RunRecord, verdict: Verdict) -> Metric | None:
    """The metric under an attack whose value the gate was held against."""
    metrics: Iterable[Metric] = (
        metric
        for attack in record.attacks
        if attack.id == verdict.under
        for point in attack.points
        for metric in point.edited
    )
    found = (m for m in metrics if m.name == verdict.metric and m.value == verdict.value)
    return None if verdict.of_change else next(found, None)
