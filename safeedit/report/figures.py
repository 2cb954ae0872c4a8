"""Figures as inline SVG, drawn by hand: small, sharp at any size, in the page's own colours.

Widths are percentages and heights pixels, so that a figure fills a phone or a desk without
its lettering growing or shrinking. Colours come from CSS classes of the page. Every figure
carries its content as a text for those who can't see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from safeedit.records import DosePoint, Interval, Metric, TensorChange
from safeedit.report.attacks import AttackCurve
from safeedit.report.content import DoseTarget, MetricRow
from safeedit.report.gates import GateRow
from safeedit.report.svg import figure, tag
from safeedit.report.wording import estimate, number

_INSET = 2.5
"""Percent kept free at either end, so that a mark at the end of its scale is whole."""


def _percent(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    place = (value - low) / (high - low) if high > low else 0.5
    return _INSET + (100 - 2 * _INSET) * min(max(place, 0.0), 1.0)


def _x(value: float, scale: tuple[float, float]) -> str:
    return f"{_percent(value, scale):.2f}%"


def before_after(row: MetricRow) -> Markup:
    """A metric before (ring) and after (disc) with its intervals, a random control (diamond)
    and the bounds of its gates (line; the failing side is shaded)."""
    before, after = row.comparison.before, row.after
    scale = _scale(row)
    is_rate = scale == (0.0, 1.0)
    height = 40 if is_rate else 54
    marks: list[Markup] = []
    for bound, passes in row.bounds:
        place = _percent(bound, scale)
        start, width = (place, 100 - place) if passes == "below" else (0.0, place)
        marks.append(
            tag("rect", x=f"{start:.2f}%", y=0, width=f"{width:.2f}%", height=40, class_="beyond")
        )
        marks.append(
            tag("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=0, y2=40, class_="bound")
        )
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if is_rate else scale
    grid = [
        tag("line", x1=_x(t, scale), x2=_x(t, scale), y1=0, y2=40, class_="grid") for t in ticks
    ]
    label = f"{row.comparison.name}:"
    if before is not None and before.value is not None:
        label += f" before {estimate(before.value, before.interval)},"
        marks += _whisker(before.interval, scale, 13, "before")
        marks.append(tag("circle", cx=_x(before.value, scale), cy=13, r=4.5, class_="ring"))
    assert after.value is not None
    label += f" after {estimate(after.value, after.interval)}"
    marks += _whisker(after.interval, scale, 27, "after")
    marks.append(tag("circle", cx=_x(after.value, scale), cy=27, r=5, class_="disc"))
    if row.control is not None and row.control.value is not None:
        label += f", random control {number(row.control.value)}"
        # A nested svg moves its origin by percent; a path by itself can't.
        diamond = tag("path", d="M0-4.5 4.5 0 0 4.5-4.5 0z", class_="diamond")
        marks.append(
            tag("svg", [diamond], x=_x(row.control.value, scale), y=13, overflow="visible")
        )
    if not is_rate:
        marks.append(tag("text", number(scale[0]), x=f"{_INSET}%", y=52, class_="tick start"))
        marks.append(tag("text", number(scale[1]), x=f"{100 - _INSET}%", y=52, class_="tick end"))
    return figure(label, height, [*grid, *marks])


def _whisker(
    interval: Interval | None, scale: tuple[float, float], y: int, kind: str
) -> list[Markup]:
    if interval is None:
        return []
    ends = {"x1": _x(interval.low, scale), "x2": _x(interval.high, scale)}
    return [tag("line", **ends, y1=y, y2=y, class_=f"whisker {kind}")]


def _scale(row: MetricRow) -> tuple[float, float]:
    """0 to 1 for rates; else from the least to the largest thing shown, and a little more."""
    metrics = [m for m in (row.comparison.before, row.after, row.control) if m is not None]
    values = [value for metric in metrics for value in _extent(metric)]
    if row.after.unit == "rate" and all(0 <= value <= 1 for value in values):
        return 0.0, 1.0
    return _around([*values, *(bound for bound, _ in row.bounds)])


def _around(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, and a little more."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    if low >= 0 and high <= 1:  # no axis runs past what a share can be
        return max(low - margin, 0.0), min(high + margin, 1.0)
    return low - margin if low < 0 else max(low - margin, 0.0), high + margin


def _extent(metric: Metric) -> list[float]:
    ends = [metric.value]
    if metric.interval is not None:
        ends += [metric.interval.low, metric.interval.high]
    return [end for end in ends if end is not None and math.isfinite(end)]


def gate_strip(row: GateRow) -> Markup:
    """What a gate was held against: value (disc) with its interval, bound (line), the failing side
    shaded."""
    verdict = row.verdict
    value, bound = verdict.value, verdict.bound
    shown = [each for each in (value, bound) if each is not None and math.isfinite(each)]
    if row.interval is not None:
        shown += [row.interval.low, row.interval.high]
    scale = _around(shown) if shown else (0.0, 1.0)
    if row.unit == "rate" and not verdict.of_change and all(0 <= each <= 1 for each in shown):
        scale = (0.0, 1.0)
    height, middle = 24, 12
    marks = [
        tag("line", x1=_x(t, scale), x2=_x(t, scale), y1=2, y2=height - 2, class_="grid")
        for t in scale
    ]
    label = f"{verdict.metric}: {estimate(value, row.interval)}"
    if bound is not None:
        place = _percent(bound, scale)
        start, width = (place, 100 - place) if verdict.passes == "below" else (0.0, place)
        edges = {"x1": f"{place:.2f}%", "x2": f"{place:.2f}%", "y1": 0, "y2": height}
        marks += [
            tag("rect", x=f"{start:.2f}%", y=0, width=f"{width:.2f}%", height=height,
                class_="beyond"),
            tag("line", **edges, class_="bound"),
        ]  # fmt: skip
        label += f", must be {row.must_be}"
    marks += _whisker(row.interval, scale, middle, "after")
    if value is not None and math.isfinite(value):
        marks.append(tag("circle", cx=_x(value, scale), cy=middle, r=5, class_="disc"))
    return figure(label, height, marks)


def dose_curve(points: Sequence[DosePoint], target: DoseTarget, chosen: float) -> Markup:
    """One metric against the doses tried, with its target and the dose that was taken."""
    found = [(p.dose, p.metrics.get(target.metric)) for p in points]
    drawn = [(d, v) for d, v in found if v is not None and math.isfinite(v)]
    axis = _ValueAxis.of([value for _, value in drawn], target.bound)
    doses = [point.dose for point in points]
    # Doses grow by steps or by factors; in ranks either is even, and every dose has its label.
    place = {
        dose: 15 + 79 * (i / (len(doses) - 1) if len(doses) > 1 else 0.5)
        for i, dose in enumerate(doses)
    }
    marks = [*axis.grid(), *(axis.target(target, target.bound) if target.bound is not None else ())]
    if chosen in place:
        marks.append(
            tag("line", x1=f"{place[chosen]:.2f}%", x2=f"{place[chosen]:.2f}%", y1=f"{_TOP:g}",
                 y2=f"{_BOTTOM:g}", class_="chosen")
        )  # fmt: skip
    places = [(place[dose], axis.y(value), dose) for dose, value in drawn]
    for (x1, y1, _), (x2, y2, _) in pairwise(places):
        marks.append(
            tag("line", x1=f"{x1:.2f}%", x2=f"{x2:.2f}%", y1=f"{y1:.1f}", y2=f"{y2:.1f}",
                 class_="curve")
        )  # fmt: skip
    for x1, y1, dose in places:
        kind = "disc" if dose == chosen else "ring"
        marks.append(tag("circle", cx=f"{x1:.2f}%", cy=f"{y1:.1f}", r=4.5, class_=kind))
    every = max(1, math.ceil(len(doses) / 7))
    for i, dose in enumerate(doses):
        if i % every == 0 or dose == chosen:
            kind = "tick middle strong" if dose == chosen else "tick middle"
            marks.append(tag("text", f"{dose:g}", x=f"{place[dose]:.2f}%", y=136, class_=kind))
    label = f"{target.metric} against dose: " + ", ".join(
        f"{dose:g}: {number(value)}" for dose, value in found
    )
    return figure(label, 142, marks)


def attack_curve(curve: AttackCurve) -> Markup:
    """A metric against steps of training: the edited model, the untouched one, the control."""
    values = [v for _, series in curve.series for v in series if v is not None]
    axis = _ValueAxis.of(values, None)
    place = {
        steps: 15 + 79 * (i / (len(curve.steps) - 1) if len(curve.steps) > 1 else 0.5)
        for i, steps in enumerate(curve.steps)
    }
    marks = axis.grid()
    for (_, series), (line, mark) in zip(curve.series, _SERIES, strict=False):
        points = [
            (place[steps], axis.y(value))
            for steps, value in zip(curve.steps, series, strict=True)
            if value is not None
        ]
        for (x1, y1), (x2, y2) in pairwise(points):
            marks.append(
                tag("line", x1=f"{x1:.2f}%", x2=f"{x2:.2f}%", y1=f"{y1:.1f}", y2=f"{y2:.1f}",
                     class_=f"curve {line}")
            )  # fmt: skip
        for x, y in points:
            marks.append(tag("circle", cx=f"{x:.2f}%", cy=f"{y:.1f}", r=4.5, class_=mark))
    for steps in curve.steps:
        marks.append(
            tag("text", f"{steps:g}", x=f"{place[steps]:.2f}%", y=136, class_="tick middle")
        )
    label = f"{curve.metric} against steps of training: " + "; ".join(
        f"{name} " + ", ".join(number(value) for value in series) for name, series in curve.series
    )
    return figure(label, 142, marks)


_SERIES = (("edited", "disc"), ("untouched", "ring"), ("invented", "ring invented"))
"""Classes of the line and of the marks of each series of an attack's curve."""

_TOP, _BOTTOM = 6.0, 118.0
"""Between these are the values of a dose curve."""


@dataclass(frozen=True)
class _ValueAxis:
    """The vertical axis of a dose curve."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], bound: float | None) -> _ValueAxis:
        """One that shows the values and the bound; all of 0 to 1 where they fill some of it."""
        shown = [*values, *([bound] if bound is not None else [])]
        low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
        if low >= 0 and high <= 1 and high - low > 0.2:
            low, high = 0.0, 1.0
        return cls(low, high)

    def y(self, value: float) -> float:
        span = self.high - self.low
        margin = 0.15 * span or 0.5 * abs(self.high) or 0.5
        return _BOTTOM - (_BOTTOM - _TOP) * (value - self.low + margin) / (span + 2 * margin)

    def grid(self) -> list[Markup]:
        ends = (self.low, self.high) if self.high > self.low else (self.low,)
        heights = [(value, self.y(value)) for value in ends]
        return [
            *(tag("line", x1="11%", x2="98%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
              for _, y in heights),
            *(tag("text", number(value), x="10%", y=f"{y + 4:.1f}", class_="tick end")
              for value, y in heights),
        ]  # fmt: skip

    def target(self, target: DoseTarget, bound: float) -> list[Markup]:
        """The side that fails, shaded, and its edge."""
        edge = self.y(bound)
        start, height = (_TOP, edge - _TOP) if target.passes == "below" else (edge, _BOTTOM - edge)
        return [
            tag("rect", x="11%", y=f"{start:.1f}", width="87%", height=f"{max(height, 0):.1f}",
                 class_="beyond"),
            tag("line", x1="11%", x2="98%", y1=f"{edge:.1f}", y2=f"{edge:.1f}", class_="bound"),
        ]  # fmt: skip


def scatter(row: MetricRow) -> Markup:
    """Items of a metric along its axis, before (rings) and after (discs), with their trends."""
    before, after = row.comparison.before, row.after
    drawn = [(m, kind) for m, kind in ((before, "ring"), (after, "disc")) if m is not None]
    clouds = [
        ([(x, m.items[key]) for key, x in m.positions.items() if key in m.items], kind)
        for m, kind in drawn
    ]
    xs = [x for points, _ in clouds for x, _ in points]
    ys = [y for points, _ in clouds for _, y in points] + [0.0]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    margin = 0.08 * (high - low) or 0.5
    top, bottom = 6.0, 190.0

    def place(x: float) -> str:
        share = (x - left) / (right - left) if right > left else 0.5
        return f"{13 + 84 * share:.2f}%"

    def y(value: float) -> str:
        share = (value - low + margin) / (high - low + 2 * margin)
        return f"{bottom - (bottom - top) * share:.1f}"

    marks = [
        tag("line", x1="11%", x2="99%", y1=y(v), y2=y(v), class_="grid")
        for v in dict.fromkeys((low, 0.0, high))
    ]
    marks += [
        tag("text", number(v), x="10%", y=y(v), dy=4, class_="tick end")
        for v in dict.fromkeys((low, 0.0, high))
    ]
    for points, kind in clouds:
        marks += [tag("circle", cx=place(x), cy=y(v), r=3, class_=kind) for x, v in points]
    trends = [
        (trend, word)
        for (points, _), word in zip(clouds, ("before", "after")[-len(clouds) :], strict=True)
        if (trend := _trend(points)) is not None
    ]
    for (slope, start), word in trends:
        ends = {"y1": y(start + slope * left), "y2": y(start + slope * right)}
        marks.append(tag("line", x1=place(left), x2=place(right), **ends, class_=f"whisker {word}"))
    marks += [
        tag("text", number(left), x="13%", y=208, class_="tick start"),
        tag("text", after.axis, x="55%", y=208, class_="tick middle"),
        tag("text", number(right), x="97%", y=208, class_="tick end"),
    ]
    slopes = ", ".join(f"slope {word} {number(slope)}" for (slope, _), word in trends)
    label = f"{row.comparison.name} of {len(after.positions)} items along {after.axis}"
    return figure(f"{label}: {slopes}" if slopes else label, 214, marks)


def _trend(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Slope and value at 0 of the straight line of least squares; None where x is all alike."""
    n = len(points)
    if n < 2:
        return None
    x, y = (math.fsum(values) / n for values in zip(*points, strict=True))
    spread = math.fsum((a - x) ** 2 for a, _ in points)
    if not spread:
        return None
    slope = math.fsum((a - x) * (b - y) for a, b in points) / spread
    return slope, y - slope * x


@dataclass(frozen=True)
class LayerMap:
    """Where in the model a change went: one strip of layers for each role of tensor."""

    n_layers: int
    largest: float
    """What the darkest cell stands for: a change's norm over that of the weights."""
    strips: tuple[tuple[str, Markup], ...]


def layer_map(
    changes: Sequence[TensorChange], n_layers: int, roles: Sequence[str] = ()
) -> LayerMap | None:
    """A cell for each role and layer, the darker the larger the change against the weights.

    Tensors outside the layers (embeddings, head) are left out; of several tensors of one
    role and layer the largest change is shown. None where no layer was changed.

    Args:
        changes: Of one edit.
        n_layers: Of the model; 0 where the record doesn't tell.
        roles: All that a block has, each of which gets its row, changed or not.
    """
    cells: dict[str, dict[int, TensorChange]] = {role: {} for role in roles}
    for change in changes:
        if change.layer is not None:
            row = cells.setdefault(change.role, {})
            known = row.get(change.layer)
            if known is None or known.relative_norm < change.relative_norm:
                row[change.layer] = change
    if not any(cells.values()):
        return None
    n_layers = max(n_layers, *(layer + 1 for row in cells.values() for layer in row))
    largest = max(change.relative_norm for row in cells.values() for change in row.values())
    strips = tuple((role, _strip(role, row, n_layers, largest)) for role, row in cells.items())
    return LayerMap(n_layers, largest, strips)


def _strip(role: str, row: dict[int, TensorChange], n_layers: int, largest: float) -> Markup:
    width = 100 / n_layers
    marks = []
    for layer in range(n_layers):
        frame = {"x": f"{layer * width:.3f}%", "width": f"{width * 0.9:.3f}%", "y": 1, "rx": 2}
        change = row.get(layer)
        if change is None:
            marks.append(tag("rect", **frame, height=20, class_="cell empty"))
            continue
        depth = change.relative_norm / largest if largest > 0 else 0.0
        title = tag("title", f"layer {layer}, {change.name}: {number(change.relative_norm)}")
        opacity = f"{0.12 + 0.88 * depth:.3f}"
        marks.append(tag("rect", [title], **frame, height=20, class_="cell", fill_opacity=opacity))
    changed = f"layers {', '.join(map(str, sorted(row)))} changed" if row else "not changed"
    return figure(f"{role}: {changed}", 22, marks)
