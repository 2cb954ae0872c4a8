"""What a report says of attacks: the matrix of audits times attacks, curves, what came back when.

Of several seeds a cell shows the worst, and between which values they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from safeedit.records import RECOVERED, AttackPoint, AttackRecord, Metric, RunRecord
from safeedit.report.wording import bracket, number, plural

ATTACKS_EXPLAINED = (
    "What the audits find when somebody tries to bring back what was suppressed, beside the same "
    "attack on the untouched model. Effect undone: 0 if nothing comes back, 1 if all that the "
    "untouched model still tells under that attack."
)

Tone = Literal["good", "middling", "bad", ""]

_GOOD, _BAD = 0.1, 0.5
"""Shares of the effect that came back, below and above which a cell is coloured."""


@dataclass(frozen=True)
class AttackCell:
    """One metric under one attack at one strength."""

    edited: float | None
    """Of the edited model under the attack; of several seeds the worst."""
    base: float | None
    """Of the untouched model under the same attack and seed."""
    spread: tuple[float, float] | None
    """Least and greatest over seeds; None of one seed."""
    headline: bool
    """Whether it is the metric of its audit that the recovered share is told of."""
    tone: Tone
    """By the share of the effect that came back, where the metric is the one that it is told of."""

    @property
    def words(self) -> str:
        """``.06 (untouched 1)``, with the spread over seeds."""
        text = number(self.edited)
        if self.spread is not None:
            text += f" ({number(self.spread[0])} to {number(self.spread[1])})"
        return text if self.base is None else f"{text} (untouched {number(self.base)})"


@dataclass(frozen=True)
class AttackRow:
    """One attack at one strength."""

    attack: str
    label: str
    cells: tuple[AttackCell | None, ...]
    recovered: tuple[Metric, ...]
    """Of each audit, the worst of its seeds."""
    invented: tuple[Metric, ...]

    @property
    def recovered_words(self) -> str:
        """Share that came back with its interval, or why there is none, for each audit."""
        found = []
        for metric in self.recovered:
            audit = metric.name.rpartition(".")[0]
            what = f"{number(metric.value)} {bracket(metric.interval)}".strip()
            if metric.value is None:
                what = f"undefined: {metric.note}"
            found.append(f"{audit} {what}" if len(self.recovered) > 1 else what)
        return "; ".join(found)


@dataclass(frozen=True)
class AttackMatrix:
    """All attacks, a column for each metric that was looked at under any of them."""

    metrics: tuple[str, ...]
    unattacked: tuple[tuple[float | None, float | None], ...]
    """Of each metric: the edited model's value without an attack, and the untouched model's."""
    rows: tuple[AttackRow, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class AttackCurve:
    """A metric against steps of training, at one rate."""

    metric: str
    title: str
    steps: tuple[float, ...]
    """From 0."""
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Name (``edited model``, ``untouched model``, ``never known``) -> its values."""


def attack_matrix(record: RunRecord) -> AttackMatrix | None:
    """The matrix; None where the policy has no attacks."""
    if not record.attacks:
        return None
    names = dict.fromkeys(
        metric.name
        for attack in record.attacks
        for point in attack.points
        for metric in point.edited
        if not metric.name.endswith(f".{RECOVERED}")
    )
    compared = {found.name: found for found in record.comparisons}
    unattacked = []
    for name in names:
        found = compared.get(name)
        before = found.before.value if found is not None and found.before is not None else None
        unattacked.append((found.after.value if found is not None else None, before))
    rows = [row for attack in record.attacks for row in _rows(attack, tuple(names))]
    remarks = [remark for attack in record.attacks for remark in _remarks(attack)]
    return AttackMatrix(tuple(names), tuple(unattacked), tuple(rows), tuple(remarks))


def _rows(attack: AttackRecord, names: Sequence[str]) -> Iterable[AttackRow]:
    for label, points in _by_label(attack).items():
        recovered = _worst_of([_named(point.edited, f".{RECOVERED}") for point in points])
        tones = {metric.name.rpartition(".")[0]: _tone(metric) for metric in recovered}
        headline = set(attack.headlines.values())
        cells = tuple(
            _cell(points, name, tones.get(name.rpartition(".")[0], ""), name in headline)
            for name in names
        )
        invented = _worst_of([point.never_known for point in points])
        yield AttackRow(attack.id, label, cells, recovered, invented)


def _by_label(attack: AttackRecord) -> dict[str, list[AttackPoint]]:
    """Strength in words -> its points, one a seed."""
    found: dict[str, list[AttackPoint]] = {}
    for point in attack.points:
        found.setdefault(point.label, []).append(point)
    return found


def _cell(
    points: Sequence[AttackPoint], name: str, tone: Tone, headline: bool
) -> AttackCell | None:
    pairs = [(point, metric) for point in points for metric in point.edited if metric.name == name]
    if not pairs:
        return None
    metrics = [metric for _, metric in pairs]
    worst = _worst(metrics)
    of = next(point for point, metric in pairs if metric is worst)
    base = next((metric.value for metric in of.base if metric.name == name), None)
    values = [metric.value for metric in metrics if metric.value is not None]
    spread = (min(values), max(values)) if len(pairs) > 1 and values else None
    return AttackCell(worst.value, base, spread, headline, tone if headline else "")


def _named(metrics: Iterable[Metric], ending: str) -> tuple[Metric, ...]:
    return tuple(metric for metric in metrics if metric.name.endswith(ending))


def _worst_of(seeds: Sequence[Sequence[Metric]]) -> tuple[Metric, ...]:
    """Of each metric, the worst over seeds."""
    by_name: dict[str, list[Metric]] = {}
    for found in seeds:
        for metric in found:
            by_name.setdefault(metric.name, []).append(metric)
    return tuple(map(_worst, by_name.values()))


def _worst(metrics: Sequence[Metric]) -> Metric:
    known = [metric for metric in metrics if metric.value is not None]
    sign = 1.0 if metrics[0].direction == "lower" else -1.0
    return max(known, key=lambda metric: sign * (metric.value or 0.0)) if known else metrics[0]


def _tone(metric: Metric) -> Tone:
    if metric.value is None:
        return ""
    return "good" if metric.value <= _GOOD else "bad" if metric.value >= _BAD else "middling"


def _remarks(attack: AttackRecord) -> Iterable[str]:
    if attack.failed:
        yield f"{attack.id} is missing, or not whole: it failed {attack.failed}."
    if attack.left_out:
        yield (
            f"{attack.id} uses {plural(attack.left_out, 'item')} itself; the audits under it ask "
            "about the others."
        )
    if (half := _half_back(attack)) is not None:
        yield f"{attack.id}: {half}"


def _half_back(attack: AttackRecord) -> str | None:
    """After how many steps of training half of the effect is back."""
    trained = [point for point in attack.points if "steps" in point.notes]
    if not trained:
        return None
    back = [
        (int(point.notes["steps"]), point.label)
        for point in trained
        for metric in _named(point.edited, f".{RECOVERED}")
        if metric.value is not None and metric.value >= _BAD
    ]
    if back:
        return f"half of the edit's effect or more is back after {min(back)[1]}."
    most = max(int(point.notes["steps"]) for point in trained)
    return f"less than half of the edit's effect is back after {plural(most, 'step')}."


def attack_curves(record: RunRecord) -> tuple[AttackCurve, ...]:
    """A curve for each training of two stops or more, and each headline metric."""
    compared = {found.name: found for found in record.comparisons}
    found = []
    for attack in record.attacks:
        for rate, points in _trainings(attack).items():
            for name in attack.headlines.values():
                start = compared.get(name)
                before = start.before.value if start is not None and start.before else None
                after = start.after.value if start is not None else None
                edited = (after, *(_value(point.edited, name) for point in points))
                base = (before, *(_value(point.base, name) for point in points))
                audit = name.rpartition(".")[0]
                invented = (None, *(_of_audit(point.never_known, audit) for point in points))
                series = [("edited model", edited), ("untouched model", base)]
                if any(value is not None for value in invented):
                    series.append(("never known", invented))
                steps = (0.0, *(float(point.notes["steps"]) for point in points))
                title = f"{attack.id}, learning rate {rate:g}"
                found.append(AttackCurve(name, title, steps, tuple(series)))
    return tuple(found)


def _trainings(attack: AttackRecord) -> dict[float, list[AttackPoint]]:
    """Learning rate -> its stops with the first seed, where there are several."""
    found: dict[float, list[AttackPoint]] = {}
    for point in attack.points:
        if "steps" in point.notes and point.seed == attack.points[0].seed:
            found.setdefault(float(point.notes["learning_rate"]), []).append(point)
    return {rate: points for rate, points in found.items() if len(points) > 1}


def _value(metrics: Iterable[Metric], name: str) -> float | None:
    return next((metric.value for metric in metrics if metric.name == name), None)


def _of_audit(metrics: Iterable[Metric], audit: str) -> float | None:
    return next((m.value for m in metrics if m.name.rpartition(".")[0] == audit), None)
