"""A trace as one HTML file in the manner of the reports: nothing loaded, nothing run."""

from __future__ import annotations

from safeedit.report.figures import LayerMap
from safeedit.report.heatmap import Cell, heat_map
from safeedit.report.html import page_environment
from safeedit.report.wording import bracket
from safeedit.workflows.tracing.record import Estimate, Trace

_WORDS = {
    "state": "Residual stream, as it leaves a layer",
    "mlp": "What MLPs write",
    "attention": "What attentions write",
}


def render(trace: Trace) -> str:
    """The whole page."""
    return page_environment().get_template("trace.html.j2").render(trace=trace, maps=maps(trace))


def maps(trace: Trace) -> list[tuple[str, LayerMap]]:
    """Title and heat map of each kind."""
    found = []
    for kind, places in trace.effects.items():
        drawn = heat_map([(place, [*map(_cell, layers)]) for place, layers in places.items()])
        if drawn is not None:
            found.append((_WORDS[kind], drawn))
    return found


def _cell(found: Estimate | None) -> Cell | None:
    if found is None:
        return None
    return Cell(found.value, f"{bracket(found.interval)} over {found.n} facts".lstrip())
