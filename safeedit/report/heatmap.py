"""Heat maps over layers, in the manner of :mod:`safeedit.report.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safeedit.report.figures import LayerMap
from safeedit.report.svg import figure, tag
from safeedit.report.wording import number


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


def _strip(name: str, cells: Sequence[Cell | None], largest: float) -> Markup:
    width, marks = 100 / len(cells), []
    for layer, cell in enumerate(cells):
        frame = {"x": f"{layer * width:.3f}%", "width": f"{width * 0.9:.3f}%", "y": 1, "rx": 2}
        if cell is None:
            marks.append(tag("rect", **frame, height=20, class_="cell empty"))
            continue
        told = f"layer {layer}: {number(cell.value)}"
        title = tag("title", f"{told}, {cell.words}" if cell.words else told)
        depth = abs(cell.value) / largest if largest > 0 else 0.0
        colour = {"style": "fill: var(--fail)"} if cell.value < 0 else {}
        opacity = f"{0.06 + 0.94 * depth:.3f}"
        marks.append(
            tag("rect", [title], **frame, height=20, class_="cell", fill_opacity=opacity, **colour)
        )
    known = [(cell.value, layer) for layer, cell in enumerate(cells) if cell is not None]
    peak = f", largest {number(max(known)[0])} in layer {max(known)[1]}" if known else ": nothing"
    return figure(f"{name}{peak}", 22, marks)
