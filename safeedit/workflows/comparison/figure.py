"""Success against locality as SVG: a mark for each row with its intervals, and the Pareto front.

Better is always up and to the right, whichever way a metric runs. The file stands by itself: it has
its own colours, light and dark, and carries its content as text for those who can't see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from safeedit.records import Metric
from safeedit.report.wording import estimate, number
from safeedit.text.display import clean
from safeedit.workflows.comparison.standings import Axis, Standing, Standings

_WIDTH, _HEIGHT = 760, 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 732, 24, 428
_LETTER, _LINE = 7.0, 14.0
"""Width and height that a letter of a label takes, roughly."""
_AWAY = (5.0, 20.0, 38.0, 60.0, 85.0)
"""How far from its mark a label may be, nearest first."""
_CLOSE = 6
"""Places for a label that are beside its mark."""
_LEGEND = (("front", "on the Pareto front"), ("behind", "off it"), ("control", "no editor"))

_STYLE = """
svg { --ink: #1c2430; --soft: #5b6675; --rule: #e1e5ea; --accent: #2459a9; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e4e8ee; --soft: #a3adba; --rule: #2c343f; --accent: #82b1f5; --page: #1a2028; }
}
text { font: 13px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink);
  paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
.page { fill: var(--page); }
.tick, .axis { fill: var(--soft); }
.start { text-anchor: start; } .middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--rule); }
.whisker { stroke: var(--soft); stroke-width: 1.5; opacity: .55; }
.leader { stroke: var(--soft); stroke-width: .75; }
.edge { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-dasharray: 5 4; }
.front { fill: var(--accent); stroke: var(--accent); }
.behind { fill: var(--page); stroke: var(--accent); stroke-width: 2; }
.control { fill: var(--page); stroke: var(--soft); stroke-width: 2; }
.control.front { fill: var(--soft); stroke: var(--soft); }
"""


_Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


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
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= 0.9 * rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Mark:
    """A row where it is drawn."""

    row: Standing
    x: float
    y: float
    across: tuple[float, float]
    """Where its interval in locality ends."""
    up: tuple[float, float]
    """The same in success."""


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
    marks = []
    for row in rows:
        stays, works = row.metrics[locality.metric], row.metrics[success.metric]
        ends = _span(across, stays), _span(up, works)
        marks.append(_Mark(row, across(_value(stays)), up(_value(works)), *ends))
    _front(svg, [mark for mark in marks if mark.row.place == "front"])
    for mark in marks:
        for x1, y1, x2, y2 in _whiskers(mark):
            _put(svg, "line", "whisker", x1=x1, x2=x2, y1=y1, y2=y2)
    for mark in marks:
        _mark(svg, _kind(mark.row), mark.x, mark.y)
    _legend(svg)
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


def _span(scale: _Scale, metric: Metric) -> tuple[float, float]:
    """Where a metric's interval lies, in pixels, ascending."""
    one, other = map(scale, _ends(metric))
    return min(one, other), max(one, other)


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


def _whiskers(mark: _Mark) -> list[_Box]:
    (left, right), (top, bottom) = mark.across, mark.up
    return [(left, mark.y, right, mark.y), (mark.x, top, mark.x, bottom)]


def _mark(svg: ElementTree.Element, kind: str, x: float, y: float) -> None:
    """A disc on the front, a ring off it; diamonds for what is no editor."""
    if kind.startswith("control"):
        _put(svg, "path", kind, d=f"M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z")
    else:
        _put(svg, "circle", kind, cx=x, cy=y, r="5")


def _kind(row: Standing) -> str:
    place = "front" if row.place == "front" else "behind"
    return place if row.kind == "editor" else f"control {place}"


def _legend(svg: ElementTree.Element) -> None:
    x, y = float(_LEFT + 6), float(_BOTTOM + 48)
    for kind, words in _LEGEND:
        _mark(svg, kind, x, y - 4)
        _text(svg, words, "axis start", x + 12, y)
        x += 30 + _LETTER * len(words)


def _labels(svg: ElementTree.Element, marks: Sequence[_Mark]) -> None:
    """Names near their marks, each where it meets least of the others; one that had to move away
    has a line to its mark."""
    taken = [(mark.x - 6, mark.y - 6, mark.x + 6, mark.y + 6) for mark in marks]
    taken += [(x1 - 1, y1 - 1, x2 + 1, y2 + 1) for m in marks for x1, y1, x2, y2 in _whiskers(m)]
    for mark in marks:
        width = _LETTER * len(mark.row.name)
        boxes = [
            (x, y, x + width, y + _LINE)
            for away in _AWAY
            for dy in (-_LINE - away / 2, away / 2, -_LINE / 2)
            for x, y in ((mark.x + 5 + away, mark.y + dy), (mark.x - 5 - away - width, mark.y + dy))
        ]
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken) + _out(box))
        taken.append(box)
        if boxes.index(box) >= _CLOSE:
            x = box[0] - 2 if box[0] > mark.x else box[2] + 2
            _put(svg, "line", "leader", x1=mark.x, y1=mark.y, x2=x, y2=box[1] + _LINE / 2)
        _text(svg, mark.row.name, "start", box[0], box[3] - 3)


def _overlap(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _out(box: _Box) -> float:
    """How far a label runs out of the frame, weighed so that this is worse than any overlap."""
    outside = max(_LEFT - box[0], 0) + max(box[2] - _WIDTH, 0)
    return 1e4 * (outside + max(_TOP - 8 - box[1], 0) + max(box[3] - _BOTTOM, 0))
