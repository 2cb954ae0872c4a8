"""Heat maps over layers, in the manner of :mod:`safeedit.report.figures`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from safeedit.report.figures import LayerMap, _figure, _tag
from safeedit.report.wording import number

_RESTORED = re.compile(r"restored_at_(\w+)_by_layer")


@dataclass(frozen=True)
class Cell:
    """One layer of one row."""

    value: float
    words: str = ""
    """Shown beside the value when pointed at."""


def heat_map(rows: Sequence[tuple[str, Sequence[Cell | None]]]) -> LayerMap | None:
    """A strip of layers per row, the darker the larger the value; what is below zero is in the
    colour of failures.

    Args:
        rows: Name and cells, first layer first; None where there is nothing to show.

    Returns:
        None where no cell has a value.
    """
    values = [abs(cell.value) for _, cells in rows for cell in cells if cell is not None]
    if not values:
        return None
    largest = max(values)
    strips = tuple((name, _strip(name, cells, largest)) for name, cells in rows)
    return LayerMap(max(len(cells) for _, cells in rows), largest, strips)


def traced(notes: Mapping[str, Any]) -> LayerMap | None:
    """What MLPs bring back, by place, where an editor traced them (``locate: measure``)."""
    found = notes.get("effect_of_mlps")
    rows = [
        (match[1].replace("_", " "), [Cell(float(value)) for value in values])
        for key, values in (found.items() if isinstance(found, Mapping) else ())
        if (match := _RESTORED.fullmatch(key)) and values
    ]
    return heat_map(rows)


def _strip(name: str, cells: Sequence[Cell | None], largest: float) -> Markup:
    width, marks = 100 / len(cells), []
    for layer, cell in enumerate(cells):
        frame = {"x": f"{layer * width:.3f}%", "width": f"{width * 0.9:.3f}%", "y": 1, "rx": 2}
        if cell is None:
            marks.append(_tag("rect", **frame, height=20, class_="cell empty"))
            continue
        told = f"layer {layer}: {number(cell.value)}"
        title = _tag("title", f"{told}, {cell.words}" if cell.words else told)
        depth = abs(cell.value) / largest if largest > 0 else 0.0
        colour = {"style": "fill: var(--fail)"} if cell.value < 0 else {}
        opacity = f"{0.06 + 0.94 * depth:.3f}"
        marks.append(
            _tag("rect", [title], **frame, height=20, class_="cell", fill_opacity=opacity, **colour)
        )
    known = [(cell.value, layer) for layer, cell in enumerate(cells) if cell is not None]
    peak = f", largest {number(max(known)[0])} in layer {max(known)[1]}" if known else ": nothing"
    return _figure(f"{name}{peak}", 22, marks)
