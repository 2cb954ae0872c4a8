"""Success against locality as SVG: a mark for each row with its intervals, and the Pareto front.

Better is always up and to the right, whichever way a metric runs. The file stands by itself: it has
its own colours, light and dark, and carries its content as text for those who can't see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from safeedit.comparison.standings import Axis, Standing, Standings
from safeedit.report.wording import clean, estimate, number
from safeedit.results import Metric

_WIDTH, _HEIGHT = 760, 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 732, 24, 428
_LETTER, _LINE = 7.0, 14.0
"""Width and height that a letter of a label takes, roughly."""

_STYLE = """
svg { --ink: #1c2430; --soft: #5b6675; --rule: #e1e5ea; --accent: #2459a9; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e4e8ee; --soft: #a3adba; --rule: #2c343f; --accent: #82b1f5; --page: #1a2028; }
}
text { font: 13px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink); }
.page { fill: var(--page); }
.tick, .axis { fill: var(--soft); }
.start { text-anchor: start; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--rule); }
.whisker { stroke: var(--soft); stroke-width: 1.5; opacity: .55; }
.edge { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-dasharray: 5 4; }
.front { fill: var(--accent); stroke: var(--accent); }
.behind { fill: var(--page); stroke: var(--accent); stroke-width: 2; }
.control { fill: var(--page); stroke: var(--soft); stroke-width: 2; }
.control.front { fill: var(--soft); stroke: var(--soft); }
"""


@dataclass(frozen=True)
class _Scale:
    """Values of one metric -> pixels, the better end at ``best``."""

    low: float
    high: float
    worst: float
    best: float
    reversed: bool

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        if self.reversed:
            share = 1 - share
        return self.worst + (self.best - self.worst) * share

    def ticks(self) -> list[float]:
        """Round numbers within, about five."""
        rough = (self.high - self.low) / 5
        power: float = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Mark:
    """A row where it is drawn."""

    row: Standing
    x: float
    y: float


def render(standings: Standings) -> str:
    """The file. Rows without a value in one of the two metrics are not drawn."""
    success, locality = standings.success, standings.locality
    rows = [row for row in standings.rows if row.place]
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "width": str(_WIDTH),
            "role": "img",
        },
    )
    title = f"{standings.policy_name}: success against locality"
    ElementTree.SubElement(svg, "title").text = clean(title)
    ElementTree.SubElement(svg, "desc").text = clean(_in_words(rows, success, locality))
    ElementTree.SubElement(svg, "style").text = _STYLE
    _put(svg, "rect", "page", width=_WIDTH, height=_HEIGHT)
    across = _scale(rows, locality, _LEFT, _RIGHT)
    up = _scale(rows, success, _BOTTOM, _TOP)
    _axes(svg, across, up, locality, success)
    marks = [
        _Mark(
            row,
            across(_value(row.metrics[locality.metric])),
            up(_value(row.metrics[success.metric])),
        )
        for row in rows
    ]
    _front(svg, [mark for mark in marks if mark.row.place == "front"])
    for mark in marks:
        _whiskers(svg, mark, across, up, locality, success)
    for mark in marks:
        _mark(svg, mark)
    _labels(svg, marks)
    ElementTree.indent(svg, " ")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _put(
    parent: ElementTree.Element, tag: str, kind: str, **attributes: float | str
) -> ElementTree.Element:
    written = {
        name: f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    return ElementTree.SubElement(parent, tag, {"class": kind, **written})


def _text(parent: ElementTree.Element, text: str, kind: str, x: float, y: float) -> None:
    _put(parent, "text", kind, x=x, y=y).text = clean(text)


def _in_words(rows: Sequence[Standing], success: Axis, locality: Axis) -> str:
    told = [
        f"{row.name}: {estimate(s.value, s.interval)} against {estimate(k.value, k.interval)}"
        + (", on the front" if row.place == "front" else "")
        for row in rows
        for s, k in [(row.metrics[success.metric], row.metrics[locality.metric])]
    ]
    listed = "; ".join(told) or "no row has both"
    return f"{success.metric} against {locality.metric}. {listed}."


def _value(metric: Metric) -> float:
    assert metric.value is not None
    return metric.value


def _ends(metric: Metric) -> tuple[float, float]:
    value, interval = _value(metric), metric.interval
    return (interval.low, interval.high) if interval is not None else (value, value)


def _scale(rows: Sequence[Standing], axis: Axis, worst: float, best: float) -> _Scale:
    ends = [end for row in rows for end in _ends(row.metrics[axis.metric])] or [0.0, 1.0]
    low, high = min(ends), max(ends)
    share = low >= 0 and high <= 1 and axis.unit in ("rate", "f1")
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 0.5
    low, high = low - margin, high + margin
    if share:  # a little over, so that marks at the ends are whole
        low, high = max(low, -0.03), min(high, 1.03)
    return _Scale(low, high, worst, best, axis.direction == "lower")


def _axes(
    svg: ElementTree.Element, across: _Scale, up: _Scale, locality: Axis, success: Axis
) -> None:
    for value in across.ticks():
        x = across(value)
        _put(svg, "line", "grid", x1=x, x2=x, y1=float(_TOP), y2=float(_BOTTOM))
        _text(svg, number(value), "tick middle", x, _BOTTOM + 20)
    for value in up.ticks():
        y = up(value)
        _put(svg, "line", "grid", x1=float(_LEFT), x2=float(_RIGHT), y1=y, y2=y)
        _text(svg, number(value), "tick end", _LEFT - 10, y + 4)
    _text(svg, f"locality: {locality.metric} ({locality.unit}), better →", "axis end",
          _RIGHT, _BOTTOM + 48)  # fmt: skip
    _text(svg, f"↑ better: success, {success.metric} ({success.unit})", "axis start",
          _LEFT, _TOP - 8)  # fmt: skip


def _front(svg: ElementTree.Element, marks: Sequence[_Mark]) -> None:
    """Steps through the marks on the front: what is up and to the right of it, nobody reached."""
    ordered = sorted(marks, key=lambda mark: (mark.x, mark.y))
    if not ordered:
        return
    path = [f"M{_LEFT} {ordered[0].y:.1f}H{ordered[0].x:.1f}"]
    path += [f"V{mark.y:.1f}H{mark.x:.1f}" for mark in ordered[1:]]
    path.append(f"V{_BOTTOM}")
    _put(svg, "path", "edge", d="".join(path))


def _whiskers(
    svg: ElementTree.Element, mark: _Mark, across: _Scale, up: _Scale, locality: Axis, success: Axis
) -> None:
    low, high = map(across, _ends(mark.row.metrics[locality.metric]))
    _put(svg, "line", "whisker", x1=low, x2=high, y1=mark.y, y2=mark.y)
    low, high = map(up, _ends(mark.row.metrics[success.metric]))
    _put(svg, "line", "whisker", x1=mark.x, x2=mark.x, y1=low, y2=high)


def _mark(svg: ElementTree.Element, mark: _Mark) -> None:
    """A disc on the front, a ring off it; diamonds for what is no editor."""
    front = mark.row.place == "front"
    if mark.row.kind == "editor":
        _put(svg, "circle", "front" if front else "behind", cx=mark.x, cy=mark.y, r="5")
        return
    shape = f"M{mark.x:.1f} {mark.y - 6:.1f}l6 6-6 6-6-6z"
    _put(svg, "path", "control front" if front else "control", d=shape)


def _labels(svg: ElementTree.Element, marks: Sequence[_Mark]) -> None:
    """Names beside their marks, each where it meets least of the others."""
    taken = [(mark.x - 7, mark.y - 7, mark.x + 7, mark.y + 7) for mark in marks]
    for mark in marks:
        width = _LETTER * len(mark.row.name)
        boxes = [
            (x, y, x + width, y + _LINE)
            for dy in (-1.5 * _LINE, 0.5 * _LINE, -0.5 * _LINE, -2.5 * _LINE, 1.5 * _LINE)
            for x, y in ((mark.x + 9, mark.y + dy), (mark.x - 9 - width, mark.y + dy))
        ]
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken) + _out(box))
        taken.append(box)
        _text(svg, mark.row.name, "start", box[0], box[3] - 3)


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _out(box: _Box) -> float:
    """How far a label runs out of the frame, weighed so that this is worse than any overlap."""
    outside = max(_LEFT - box[0], 0) + max(box[2] - _WIDTH, 0)
    return 1e4 * (outside + max(_TOP - 8 - box[1], 0) + max(box[3] - _BOTTOM, 0))
