"""What a report says, whatever its format: the record's facts put in order and in words.

Reports never say that anything was removed or that a law was kept: an edit suppresses
behaviour, measurements are evidence for that under the attacks that were tried, and
:func:`limits` says what was not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from safeedit.policy.gate import GateSpec
from safeedit.records import (
    ATTACK_NAMES,
    Comparison,
    ControlRecord,
    EditRecord,
    Metric,
    PassingSide,
    RunRecord,
    Verdict,
)
from safeedit.report.wording import duration, listing, number, plural, share, took
from safeedit.statistics.intervals import wilson


@dataclass(frozen=True)
class MetricRow:
    """One metric, before and after, with what it is held against."""

    name: str
    """Within its audit."""
    comparison: Comparison
    control: Metric | None
    """The same metric after a random change of equal size, if one was measured; of several, the
    one in the middle."""
    verdicts: tuple[Verdict, ...]

    @property
    def after(self) -> Metric:
        return self.comparison.after

    @property
    def trend(self) -> Literal["better", "worse", ""]:
        """Which way the metric went, where its interval leaves no doubt that it went."""
        interval = self.comparison.difference_interval
        if interval is None or interval.low <= 0 <= interval.high:
            return ""
        return "better" if (interval.low > 0) == (self.after.direction == "higher") else "worse"

    @property
    def bounds(self) -> tuple[tuple[float, PassingSide], ...]:
        """Bounds of its gates on the metric's own scale, each with the side that passes."""
        return tuple(
            (verdict.bound_on_metric, verdict.passes)
            for verdict in self.verdicts
            if verdict.bound_on_metric is not None
        )


@dataclass(frozen=True)
class Audit:
    """One audit's metrics: those that have a value, and why others have none."""

    id: str
    use: str
    rows: tuple[MetricRow, ...]
    unmeasured: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DoseTarget:
    """What ``dose: auto`` had to reach in one metric, on validation data."""

    metric: str
    passes: PassingSide
    bound: float | None
    """On the metric's scale; None for bounds on its change."""
    words: str


def compares(record: RunRecord) -> bool:
    """Whether before and after are two models, not one measured once."""
    return bool(record.edits) or record.before != record.after


def headline(record: RunRecord) -> str:
    """The outcome in a sentence or two."""
    found = [verdict.status for verdict in record.verdicts]
    n, failed, unsure = len(found), found.count("fail"), found.count("inconclusive")
    over = f" over {len(record.all_seeds)} seeds" if record.other_seeds else ""
    if not n:
        text = "The policy sets no gates, so nothing was decided."
    elif not failed and not unsure:
        text = f"The gate passed{over}." if n == 1 else f"All {n} gates passed{over}."
        if record.status != "pass":
            text += " A required audit was skipped, so the outcome is inconclusive."
    else:
        parts = [f"{failed} failed"] * bool(failed) + [f"{unsure} inconclusive"] * bool(unsure)
        text = f"Of {plural(n, 'gate')}{over}, {listing(parts)}."
    if record.export is not None:
        which = f"checkpoint of seed {record.seed}" if over else "checkpoint"
        return f"{text} The {which} that was measured is the one that was exported."
    if record.command in ("audit", "attack"):
        return f"{text} This run only measured; it edited and exported nothing."
    if record.status == "pass" and record.exit_code:
        return f"{text} The export itself failed: nothing was exported."
    if record.status == "pass" and not record.policy.get("export"):
        return f"{text} The policy names no export, so nothing was exported."
    return f"{text} Nothing was exported."


def audits(record: RunRecord) -> tuple[Audit, ...]:
    """All metrics by audit, in the order measured."""
    two_models = compares(record)
    uses = {audit.id: audit.use for audit in record.after}
    controls = _middle_controls(record)
    rows: dict[str, list[MetricRow]] = {audit: [] for audit in uses}
    unmeasured: dict[str, list[tuple[str, str]]] = {audit: [] for audit in uses}
    for comparison in record.comparisons:
        audit, _, name = comparison.name.rpartition(".")
        if comparison.after.value is None:
            unmeasured.setdefault(audit, []).append((name, comparison.after.note))
            continue
        if not two_models:
            comparison = comparison.model_copy(update={"before": None})
        verdicts = tuple(
            v.of_checkpoint for v in record.verdicts if v.metric == comparison.name and not v.under
        )
        row = MetricRow(name, comparison, controls.get(comparison.name), verdicts)
        rows.setdefault(audit, []).append(row)
    return tuple(
        Audit(audit, uses.get(audit, audit), tuple(found), tuple(unmeasured.get(audit, ())))
        for audit, found in rows.items()
    )


def _middle_controls(record: RunRecord) -> dict[str, Metric]:
    """Name -> metric of the random control whose value lies in the middle."""
    drawn: dict[str, list[Metric]] = {}
    for control in _controls(record):
        if control.random:
            for metric in control.metrics:
                drawn.setdefault(metric.name, []).append(metric)
    found = {}
    for name, metrics in drawn.items():
        with_value = sorted(
            (metric for metric in metrics if metric.value is not None),
            key=lambda metric: metric.value or 0.0,
        )
        found[name] = with_value[(len(with_value) - 1) // 2] if with_value else metrics[0]
    return found


def _controls(record: RunRecord) -> Sequence[ControlRecord]:
    """Of the last edit that has them: those measured nearest to the final weights."""
    for edit in reversed(record.edits):
        if edit.controls:
            return edit.controls
    return ()


@dataclass(frozen=True)
class ControlTable:
    """Edit and controls beside each other, a column for each metric that gates look at."""

    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def control_table(record: RunRecord) -> ControlTable | None:
    """What the edit did beside what its controls did; None where one random column says it."""
    controls = _controls(record)
    if len(controls) < 2:
        return None
    measured = {metric.name for control in controls for metric in control.metrics}
    wanted = [gate.metric for gate in record.verdicts]
    names = tuple(dict.fromkeys(name for name in wanted if name in measured))
    found = {comparison.name: comparison for comparison in record.comparisons}

    def values(metrics: Mapping[str, Metric | None]) -> tuple[float | None, ...]:
        return tuple(m.value if (m := metrics.get(name)) else None for name in names)

    rows = [
        ("before", values({name: each.before for name, each in found.items()})),
        ("this edit", values({name: each.after for name, each in found.items()})),
    ]
    for control in controls:
        label = f"{control.name} (seed {control.seed})" if control.random else control.name
        rows.append((label, values({metric.name: metric for metric in control.metrics})))
    return ControlTable(names, tuple(rows))


@dataclass(frozen=True)
class EditByEdit:
    """What the gates said after each of several edits, and what one edit undid of another's."""

    edits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Verdict, ...]], ...]
    """Metric with its condition -> its verdict after each edit."""
    undone: tuple[str, ...]
    """A sentence for each gate that passed after some edit and no longer does at the end."""


def edit_by_edit(record: RunRecord) -> EditByEdit | None:
    """Gates from edit to edit; None where there is one edit, or nothing was gated between them."""
    if len(record.edits) < 2:
        return None
    stages = [edit.gates_so_far for edit in record.edits[:-1]]
    stages.append(tuple(verdict.of_checkpoint for verdict in record.verdicts))
    ids = tuple(edit.id for edit in record.edits)
    found = [{(v.metric, v.condition): v for v in stage} for stage in stages]
    rows, undone = [], []
    for gate in found[-1]:
        if not all(gate in stage for stage in found):
            continue
        verdicts = tuple(stage[gate] for stage in found)
        rows.append((" ".join(gate), verdicts))
        held = [place for place, verdict in enumerate(verdicts) if verdict.status == "pass"]
        if held and held[-1] < len(verdicts) - 1:
            undone.append(
                f"{gate[0]} passed after {ids[held[-1]]} and no longer does after "
                f"{ids[held[-1] + 1]}: {verdicts[held[-1] + 1].reason}."
            )
    return EditByEdit(ids, tuple(rows), tuple(undone)) if rows else None


def targets(record: RunRecord, edit: EditRecord) -> tuple[DoseTarget, ...]:
    """The targets of an edit's dose: its own, or the policy's gates."""
    stages: Sequence[Mapping[str, Any]] = record.policy.get("edits") or ()
    own = next((stage.get("targets") for stage in stages if stage.get("id") == edit.id), None)
    gates = [GateSpec.model_validate(gate) for gate in own or record.policy.get("gates") or ()]
    return tuple(
        DoseTarget(
            gate.metric,
            gate.meaning.passes,
            None if gate.meaning.of_change else gate.bound.value,
            f"{gate.kind} {gate.bound}",
        )
        for gate in gates
    )


def edit_facts(record: RunRecord, edit: EditRecord) -> tuple[tuple[str, str], ...]:
    """What an edit did, as pairs of label and words."""
    changed = sum(change.entries_changed for change in edit.changes)
    layers = sorted({change.layer for change in edit.changes if change.layer is not None})
    span = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else ""
    if len(layers) == 1:
        span = f"layer {layers[0]}"
    mode = "least that met its targets on validation data"
    if edit.dose_mode == "fixed":
        mode = "fixed by the policy"
    elif not edit.targets_met:
        mode = "no dose met all targets on validation data; this one came nearest"
    facts = [
        *_layers_tried(edit),
        ("dose", f"{edit.dose:g} ({mode})"),
        ("tensors changed", f"{plural(len(edit.changes), 'tensor')}{span and ', '}{span}"),
        (
            "stored values changed",
            f"{changed:,} ({share(changed, record.model.parameters)} of the model's parameters)",
        ),
    ]
    if edit.changes:
        largest = max(edit.changes, key=lambda change: change.relative_norm)
        facts.append(
            ("largest change", f"{number(largest.relative_norm)} of the norm of {largest.name}")
        )
        error = max(change.cast_error for change in edit.changes)
        facts.append(("largest rounding error", f"{number(error)} of the intended change"))
        facts += _spectrum(edit)
    as_run = f" (as run, in {record.model.dtype})" if record.model.casts else ""
    facts.append(
        ("proved untouched", f"{plural(edit.untouched_verified, 'tensor')}, byte for byte{as_run}")
    )
    facts.append(("time", duration(edit.seconds)))
    return tuple(facts)


def _spectrum(edit: EditRecord) -> list[tuple[str, str]]:
    """In how many directions an edit changes weights, and whether they tell what was erased."""
    found = []
    ranks = [each.effective_rank for each in edit.changes if each.effective_rank is not None]
    if ranks:
        largest = f", at most {number(max(ranks))}" if len(ranks) > 1 else ""
        found.append(("effective rank", f"{number(median(ranks))} in the median matrix{largest}"))
    if (read := edit.vocabulary) is not None:
        found.append(
            (
                "read as vocabulary",
                f"of {plural(read.answers, 'erased answer')} {read.found} begin with one of the "
                f"ten likeliest tokens of {plural(read.directions, 'direction')} that it writes "
                f"({number(read.expected)} by chance)",
            )
        )
    return found


def _layers_tried(edit: EditRecord) -> list[tuple[str, str]]:
    """What ``layers: auto`` chose among, a line for each place."""
    found = []
    for place in edit.layers_tried:
        figures = ", ".join(f"{name} {number(value)}" for name, value in place.metrics.items())
        off = plural(len(place.misses), "target")
        told = "targets met" if place.meets_targets else f"{off} off"
        word = "layer" if len(place.layers) == 1 else "layers"
        found.append(
            (
                f"{word} {listing([str(layer) for layer in place.layers])}, "
                f"{'taken' if place.taken else 'tried'}",
                f"{plural(place.facts, 'fact')} of validation data at dose {place.dose:g}: "
                f"{told}; {figures}",
            )
        )
    return found


def weights_facts(record: RunRecord) -> tuple[tuple[str, str | None], ...]:
    """What lies on disk before and after, by names, dtypes and bytes, and what ran of it."""
    model, export = record.model, record.export
    cast = [
        f"{plural(each.tensors, 'tensor')} ({each.entries:,} numbers) stored in {each.stored}, run "
        f"in {each.run}{'' if each.exact else ', rounded'}"
        for each in model.casts
    ]
    return (
        ("weights before the edits", model.digest),
        ("weights exported", export.weights_digest if export else None),
        (
            "kept as the source stores them",
            f"{plural(export.untouched, 'tensor')}, byte for byte, verified on disk"
            if export and export.untouched
            else None,
        ),
        ("cast to run", "; ".join(cast) or None),
        ("not read by the model, kept", _some(model.unread) or None),
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return listing([*names[:most], *more])


def model_line(record: RunRecord) -> str:
    """The base model in one line."""
    model = record.model
    source = f"{model.source}@{model.revision}" if model.revision else model.source
    if model.adapter is not None:
        source += f" with {model.adapter.source} merged"
    return (
        f"{source} ({model.architecture}, {model.parameters:,} parameters, {model.dtype} on "
        f"{model.device})"
    )


def without_value(audit: Audit) -> str:
    """The metrics of an audit that have no value, those with one reason together."""
    names: dict[str, list[str]] = {}
    for name, note in audit.unmeasured:
        names.setdefault(note, []).append(name)
    return "; ".join(
        f"{listing(found)} ({note})" if note else listing(found) for note, found in names.items()
    )


def limits(record: RunRecord) -> tuple[str, ...]:
    """What the run does not show. Never empty."""
    found: list[str] = []
    if record.edits:
        found.append(
            "The edits suppress behaviour. These figures are evidence for suppression under the "
            "attacks listed here; they do not show that the information has left the weights."
        )
    ran = [audit.use for audit in record.after]
    if ran:
        names = listing(sorted(set(ran)))
        found.append(
            f"Measured by {names}, on the data sets named in this report, in the languages of "
            "those data sets. Nothing is claimed about other prompts, attacks or languages."
        )
    else:
        found.append("No audit was made: nothing is known about the model's behaviour.")
    if untested := untried(record):
        found.append(f"Not tested: resistance to {listing(list(untested))}.")
    for audit in audits(record):
        if audit.unmeasured:
            found.append(f"Without a value in {audit.id}: {without_value(audit)}.")
    if missing := skipped(record):
        found.append(f"Skipped, though the policy asks for it: {listing(list(missing))}.")
    found += _small_samples(record)
    found += leak(record)
    if any(not edit.controls for edit in record.edits):
        uncontrolled = listing([edit.id for edit in record.edits if not edit.controls])
        found.append(
            f"No random change of equal size was measured beside {uncontrolled}, so it is not "
            "shown that the effect is the edit's own."
        )
    runs = f"One run with seed {record.seed}. "
    if record.other_seeds:
        runs = f"Runs with seeds {listing([str(run.seed) for run in record.all_seeds])}. "
    found.append(
        f"{runs}Intervals speak of the items that were drawn, not of other seeds; p values are not "
        "adjusted for the number of metrics."
    )
    return tuple(found)


def untried(record: RunRecord) -> tuple[str, ...]:
    """Classes of attacks that neither an audit nor an attack of this run tries, in words."""
    tried = {attack for audit in record.after for attack in audit.covers}
    tried |= {attack.tries for attack in record.attacks if attack.points}
    return tuple(what for attack, what in ATTACK_NAMES.items() if attack not in tried)


def skipped(record: RunRecord) -> tuple[str, ...]:
    """Audits that the policy asks for and the record does not have."""
    made = {audit.id for audit in record.after}
    wanted = [str(audit.get("id")) for audit in record.policy.get("audits") or ()]
    return tuple(audit for audit in wanted if audit not in made)


def cost(record: RunRecord) -> str:
    """How long it took, with all of its seeds."""
    every = [run.resources for run in record.all_seeds]
    return took(
        sum(each.wall_seconds for each in every), sum(each.spared_seconds for each in every)
    )


def leak(record: RunRecord) -> tuple[str, ...]:
    """What an export gives away of what the edits hide, beside what its model says; a sentence
    each."""
    export = record.export
    if export is None:
        return ()
    if export.withheld:
        sealed = ", encrypted" if export.withheld == "encrypted" else ""
        files = f"The original tensors and the deltas are kept elsewhere{sealed}."
    else:
        files = (
            "Warning: evidence/ holds the original tensors (undo.safetensors) and the edits' "
            "deltas. With these anybody can undo the edits and find out what they hide: leave them "
            "out of a copy that is passed on, or keep them elsewhere (export.private)."
        )
    return (
        files,
        "Whoever holds this checkpoint and the model that it was made from can compare the two, "
        "and may find out what the edits hide (arXiv 2505.24379): 'safeedit attack "
        "two-checkpoints' measures how far, on the policy's own items.",
    )


def _small_samples(record: RunRecord) -> list[str]:
    """For gated rates of exactly 0 or 1: what they are still compatible with."""
    found = []
    gated = {verdict.metric for verdict in record.verdicts if not verdict.under}
    for comparison in record.comparisons:
        metric = comparison.after
        if (
            comparison.name in gated
            and metric.unit == "rate"
            and metric.n
            and metric.value in (0, 1)
        ):
            interval = metric.interval or wilson(metric.value * metric.n, metric.n)
            end = f"up to {number(interval.high)}"
            if metric.value == 1:
                end = f"down to {number(interval.low)}"
            found.append(
                f"{comparison.name} is {metric.value:g} on {plural(metric.n, 'independent item')}; "
                f"that is compatible with a true rate of {end}."
            )
    return found
