"""The first screen of a report: five questions that anybody asks, answered in sentences.

What was asked, what was done, did it pass, what did it cost, what was not measured. Figures are
those of the tables below; nothing is said here that is not measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeedit.records import EditRecord, RunRecord
from safeedit.report import content
from safeedit.report.content import MetricRow
from safeedit.report.evidence import class_rows
from safeedit.report.gates import GateRow, gate_rows, plain
from safeedit.report.wording import (
    STATUS_WORDS,
    how_near,
    listing,
    number,
    plural,
    share,
    size,
)

MOST = 4
"""Points under an answer; what is more stands in the tables."""


@dataclass(frozen=True)
class Point:
    """A line under an answer: what it is about, the figure, what else is to be said of it."""

    text: str
    figure: str = ""
    detail: str = ""


@dataclass(frozen=True)
class PlainAnswer:
    """One question of the first screen."""

    question: str
    text: str
    points: tuple[Point, ...] = ()


def first_screen(record: RunRecord) -> tuple[PlainAnswer, ...]:
    """The five answers."""
    return (_asked(record), _done(record), _passed(record), _cost(record), _unmeasured(record))


def _asked(record: RunRecord) -> PlainAnswer:
    told = str(record.policy.get("description") or "").strip()
    text = told or "The policy has no description of its own."
    if text[-1:].isalnum():
        text += "."
    points = [
        Point(f"{_capital(what)}.", detail=_items(record, f"edit:{name}."))
        for name, what in record.glossary.edits.items()
    ]
    looked = [f"{name}: {what}" for name, what in record.glossary.audits.items()]
    points += [Point("Measured:", detail=f"{'; '.join(looked)}.")] if looked else []
    gates = len(record.verdicts)
    points.append(
        Point(f"{_capital(plural(gates, 'condition'))} had to hold on the very weights measured.")
        if gates
        else Point("No condition was set.")
    )
    return PlainAnswer("What was asked?", text, tuple(points))


def _items(record: RunRecord, prefix: str) -> str:
    """How many items each role of a stage has."""
    found = []
    for name, data in record.datasets.items():
        counts = data.get("items")
        if name.startswith(prefix) and isinstance(counts, dict) and "items" in counts:
            found.append(f"{counts['items']:,} under {name.removeprefix(prefix)!r}")
    return f"Items: {listing(found)}." if found else ""


def _done(record: RunRecord) -> PlainAnswer:
    question = "What was done?"
    if record.command == "attack":
        tried = [f"{each.id}: {record.glossary.attacks.get(each.id, '')}".rstrip(": ")
                 for each in record.attacks]  # fmt: skip
        text = (
            "A checkpoint that somebody edited was held against the one it was made from"
            f"{', and attacked:' if tried else '.'}"
        )
        return PlainAnswer(question, text, tuple(map(Point, tried)))
    if not record.edits:
        base = record.compared_with
        against = "" if base is None else f", and held against {base.source}"
        text = f"Nothing was edited: the model was measured as it is{against}."
        return PlainAnswer(question, text)
    points = [Point(f"Edit {edit.id}: {_changed(record, edit)}", detail=_strength(edit))
              for edit in record.edits]  # fmt: skip
    if record.attacks:
        names = listing([attack.id for attack in record.attacks])
        points.append(
            Point(
                f"Then {plural(len(record.attacks), 'attack')} tried to undo it:",
                detail=f"{names}.",
            )
        )
    n = len(record.edits)
    text = "The model's weights were edited" + (
        f", {n} edits one after the other." if n > 1 else "."
    )
    return PlainAnswer(question, text, tuple(points))


def _changed(record: RunRecord, edit: EditRecord) -> str:
    numbers = sum(change.entries_changed for change in edit.changes)
    return (
        f"{plural(len(edit.changes), 'tensor')} changed, {share(numbers, record.model.parameters)} "
        f"of the model's numbers; {edit.untouched_verified:,} others proved unchanged, byte for "
        "byte."
    )


def _strength(edit: EditRecord) -> str:
    if edit.dose_mode == "fixed":
        return f"Its strength ({edit.dose:g}) was fixed by the policy."
    tried = plural(len(edit.dose_curve), "strength")
    if edit.targets_met:
        return f"Of {tried} tried, {edit.dose:g} was the least that met all targets."
    return f"Of {tried} tried, none met all targets; {edit.dose:g} came nearest."


def _passed(record: RunRecord) -> PlainAnswer:
    points = []
    if (row := _leading(record)) is not None:
        points.append(_effect(record, row))
    gates = gate_rows(record)
    points += [_missed(gate) for gate in gates if gate.verdict.status != "pass"]
    near = [verdict for verdict in record.verdicts if verdict.status == "pass"
            and verdict.nearness is not None and verdict.nearness.is_near]  # fmt: skip
    if near:
        first = f"{near[0].metric}: {how_near(near[0])}"
        points.append(
            Point(f"{plural(len(near), 'gate')} passed narrowly.", detail=f"E.g. {first}.")
        )
    more = len(points) - MOST
    if more > 0:
        points = [*points[: MOST - 1], Point(f"{more + 1} more; see the gates.")]
    return PlainAnswer("Did it pass?", content.headline(record), tuple(points))


def _missed(gate: GateRow) -> Point:
    """A gate that failed or is inconclusive."""
    verdict = gate.verdict
    name = f"{verdict.metric} under {verdict.under}" if verdict.under else verdict.metric
    value = figure(verdict.value, "" if verdict.of_change else gate.unit)
    return Point(
        f"{_capital(STATUS_WORDS[verdict.status])}: {gate.sentence or name}",
        f"{value}, must be {gate.must_be}",
        f"({name})" if gate.sentence else "",
    )


def _leading(record: RunRecord) -> MetricRow | None:
    """What tells most of the edit's effect: whether it still comes out, by a gated metric if there
    is one; where nothing is to be suppressed, a gated metric that got better."""
    rows = _rows(record)
    told = [row for row in rows if row.comparison.name in record.glossary.erasure]
    gated = [row for row in told if row.verdicts]
    lower = [row for row in (*gated, *told) if row.after.direction == "lower"]
    better = [row for row in rows if row.verdicts and row.trend == "better"]
    return next(iter([*lower, *gated, *told, *better]), None)


def _effect(record: RunRecord, row: MetricRow) -> Point:
    """A metric in plain words, with its values before and after."""
    before, after = row.comparison.before, row.after
    now = figure(after.value, after.unit)
    said = f"{figure(before.value, before.unit)} before, {now} after" if before else now
    detail = ""
    if after.interval is not None:
        low, high = (figure(end, after.unit) for end in (after.interval.low, after.interval.high))
        detail = f"95\u00a0% interval {low} to {high}"
    found = {verdict.status for verdict in row.verdicts}
    if found:
        held = "within the bound that was set"
        if found != {"pass"}:
            held = f"{'outside of' if 'fail' in found else 'not shown to be within'} the bound"
        detail = f"{detail}; {held}" if detail else held
    sentence = plain(record, row.comparison.name) or f"{row.comparison.name}:"
    return Point(sentence, said, f"({detail})" if detail else "")


def figure(value: float | None, unit: str) -> str:
    """A rate in percent, anything else as in the tables."""
    if value is None or unit != "rate":
        return number(value)
    return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"


def _cost(record: RunRecord) -> PlainAnswer:
    rows = _rows(record)
    others = [row for row in rows if row.comparison.name not in record.glossary.erasure]
    worse = [row for row in others if row.trend == "worse"]
    spent = (
        f"{content.cost(record)} on {record.environment.device}, "
        f"{size(record.resources.peak_memory_bytes)} of memory."
    )
    about = plural(len(others), "figure") + " about everything else" * (len(others) < len(rows))
    if not content.compares(record):
        text = "Nothing about the model was changed."
    elif not others:
        text = "What else changed was not measured."
    elif not worse:
        text = f"Of {about}, none got worse beyond doubt."
    else:
        text = f"Of {about}, {len(worse)} got worse beyond doubt:"
    worse.sort(key=lambda row: not row.verdicts)
    points = [_effect(record, row) for row in worse[: MOST - 1]]
    if len(worse) > len(points):
        points.append(Point(f"{len(worse) - len(points)} more, under before and after."))
    return PlainAnswer(
        "What did it cost?", text, (*points, Point("Time and memory:", detail=spent))
    )


def _unmeasured(record: RunRecord) -> PlainAnswer:
    untried = [row.kind.name for row in class_rows(record) if not row.measured]
    untried = [name[0].lower() + name[1:] for name in untried]
    text = "Nothing is known about prompts, attacks and languages that were not measured."
    if record.glossary.erasure:
        text = (
            "Whether what was suppressed is still inside the model was not shown, only whether it "
            "comes out under what was tried here."
        )
    points = [Point("Not tried:", detail=f"{listing(untried)}.")] if untried else []
    for audit in content.audits(record):
        if audit.unmeasured:
            names = [name for name, _ in audit.unmeasured]
            some = names[:5] + ([f"{len(names) - 5} more"] if len(names) > 5 else [])
            points.append(Point(f"Without a value in {audit.id}:", detail=f"{listing(some)}."))
    if skipped := content.skipped(record):
        points.append(Point("Skipped, though asked for:", detail=f"{listing(list(skipped))}."))
    points = points[: MOST - 1]
    if not record.other_seeds:
        points.append(Point("Other seeds:", detail=f"this is one run, with seed {record.seed}."))
    return PlainAnswer("What was not measured?", text, tuple(points))


def _rows(record: RunRecord) -> Sequence[MetricRow]:
    return [row for audit in content.audits(record) for row in audit.rows]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
