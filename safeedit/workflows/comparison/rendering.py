"""A comparison as a table in Markdown and on a screen: pure functions of the standings."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeedit.records import Metric
from safeedit.report.markdown import escape, table
from safeedit.report.wording import (
    MINUS,
    NOTHING,
    STATUS_WORDS,
    duration,
    estimate,
    listing,
    number,
    size,
)
from safeedit.statistics.seeds import Spread
from safeedit.text.display import clean
from safeedit.workflows.comparison import figure
from safeedit.workflows.comparison.standings import Axis, Standing, Standings

_PLACES = {"front": "yes", "overlaps": "overlaps it", "behind": "no", "": NOTHING}
_KEY = ("locality", "edit success", "portability", "fluency")
"""KnowEdit's scores; its other names are ways to fail."""


def render_all(standings: Standings) -> dict[str, str]:
    """File name -> text."""
    return {
        "comparison.json": standings.model_dump_json(indent=2) + "\n",
        "comparison.md": markdown(standings),
        "comparison.svg": figure.render(standings),
    }


def markdown(standings: Standings) -> str:
    """The table, the figure beside it, and every figure there is."""
    model, success, locality = standings.model, standings.success, standings.locality
    lines = [
        f"# {escape(standings.policy_name)}: editors compared",
        "",
        f"{escape(model.source)} ({escape(model.architecture)}, {model.parameters:,} parameters, "
        f"{escape(model.dtype)} on {escape(model.device)}), {_seeds_told(standings)}, safeedit "
        f"{escape(standings.safeedit)}. Success is {escape(_told(success))}. Locality is "
        f"{escape(_told(locality))}. Brackets are 95 % intervals of each row alone.",
        "",
        "![success against locality](comparison.svg)",
        "",
    ]
    head = ["", f"{success.metric} ({success.direction})", f"{locality.metric} "
            f"({locality.direction})", "Pareto front", "gates", "dose", "fit", "choice of dose",
            "whole run", "peak memory", "weights changed"]  # fmt: skip
    lines += table(list(map(escape, head)), [_main(row, standings) for row in standings.rows])
    lines += [_FRONT, ""]
    failed = [row for row in standings.rows if row.error]
    lines += [f"- {escape(row.name)} failed: {escape(row.error)}" for row in failed]
    told = [row for row in standings.rows if row.warning]
    lines += [f"- {escape(row.name)}: {escape(row.warning)}" for row in told]
    lines += [""] * bool(failed or told)
    lines += _knowedit(standings)
    lines += _every(standings)
    lines += _spread(standings)
    return "\n".join(lines).rstrip() + "\n"


_FRONT = (
    "A row is on the front if no other is at least as good in both metrics and better in one, by "
    "value. One off it overlaps it if the rows that beat it do so within intervals that overlap."
)


def _told(axis: Axis) -> str:
    return f"{axis.metric} ({axis.description}; {axis.unit}, {axis.direction} is better)"


def _main(row: Standing, standings: Standings) -> list[str]:
    cost = row.cost
    cells = [
        row.name,
        _estimate(row.metrics.get(standings.success.metric)),
        _estimate(row.metrics.get(standings.locality.metric)),
        "failed" if row.error else _PLACES[row.place],
        STATUS_WORDS[row.status] if row.status else "",
        _dose(row),
        duration(cost.fit_seconds) if cost else "",
        duration(cost.dose_seconds) if cost else "",
        duration(cost.wall_seconds) if cost else "",
        size(cost.peak_memory_bytes) if cost else "",
        "" if row.entries_changed is None else f"{row.entries_changed:,}",
    ]
    return [escape(cell) for cell in cells]


def _dose(row: Standing) -> str:
    if row.dose is None:
        return ""
    return f"{row.dose:g}" + (" (no dose met its targets)" if row.targets_met is False else "")


def _estimate(metric: Metric | None) -> str:
    return NOTHING if metric is None else estimate(metric.value, metric.interval)


def _knowedit(standings: Standings) -> list[str]:
    """The same under KnowEdit's names, and its taxonomy of failures."""
    names = standings.knowedit
    if not names:
        return []
    order = [name for name in _KEY if name in names]
    order += [name for name in names if name not in _KEY]
    rows = [
        [escape(row.name), *(escape(_estimate(row.metrics.get(names[name]))) for name in order)]
        for row in standings.rows
        if not row.error
    ]
    nearest = ", ".join(f"{name}: {names[name]}" for name in order)
    return [
        "## In KnowEdit's terms",
        "",
        "Whole answers are generated and judged by rule, where KnowEdit scores tokens given the "
        f"gold ones before, so published figures are higher. Taken here: {escape(nearest)}.",
        "",
        *table(["", *map(escape, order)], rows),
    ]


def _every(standings: Standings) -> list[str]:
    """All metrics, a row for each and a column for each editor."""
    there = [row for row in standings.rows if not row.error]
    metrics = dict.fromkeys(name for row in there for name in row.metrics)
    known = {name: metric for row in there for name, metric in row.metrics.items()}
    rows = [
        [
            escape(name),
            *(escape(_estimate(row.metrics.get(name))) for row in there),
            escape(f"{known[name].n:,}"),
            escape(f"{known[name].unit} ({known[name].direction})"),
        ]
        for name in metrics
    ]
    head = ["metric", *(escape(row.name) for row in there), "n", "unit (better)"]
    return ["## Every figure", "", *table(head, rows)]


def _seeds_told(standings: Standings) -> str:
    if len(standings.seeds) < 2:
        return f"seed {standings.seed}"
    return f"means over seeds {listing([str(seed) for seed in standings.seeds])}"


def _spread(standings: Standings) -> list[str]:
    """How far every figure spreads over several seeds."""
    there = [row for row in standings.rows if row.by_seed]
    if not there:
        return []
    names = dict.fromkeys(name for row in there for name in row.by_seed)
    rows = []
    for name in names:
        spreads = [Spread(row.by_seed.get(name, ())) for row in there]
        rows.append(
            [escape(name)]
            + [
                f"{number(each.deviation)} ({number(each.least)} to {number(each.greatest)})"
                for each in spreads
            ]
        )
    head = ["metric", *(escape(row.name) for row in there)]
    told = "Standard deviation over the seeds, least and greatest value."
    return ["## Over the seeds", "", told, "", *table(head, rows)]


def show(standings: Standings, console: Console) -> None:
    """Print the table, in 80 columns."""
    if console.encoding.lower().startswith("utf"):
        _show(standings, console)
        return
    with console.capture() as capture:
        _show(standings, console)
    words = capture.get().replace(MINUS, "-").replace(NOTHING, "-")
    console.file.write(words.encode(console.encoding, "replace").decode(console.encoding))


def _show(standings: Standings, console: Console) -> None:
    success, locality = standings.success, standings.locality
    console.print()
    console.print(Text(clean(f"{standings.policy_name}: editors compared"), "bold"))
    if len(standings.seeds) > 1:
        console.print(Text(clean(_seeds_told(standings))))
    for name, axis in (("success", success), ("locality", locality)):
        console.print(Text(clean(f"{name}: {axis.metric}, {axis.direction} is better")))
    console.print()
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    found.add_column("", overflow="fold")
    for heading in ("success", "locality"):
        found.add_column(heading, justify="right", no_wrap=True)
    found.add_column("front", no_wrap=True)
    for heading in ("fit", "memory"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in standings.rows:
        if row.error:
            continue
        cost = row.cost
        cells = [
            row.name,
            _estimate(row.metrics.get(success.metric)),
            _estimate(row.metrics.get(locality.metric)),
            _PLACES[row.place],
            duration(cost.fit_seconds) if cost else "",
            size(cost.peak_memory_bytes) if cost else "",
        ]
        style = "green" if row.place == "front" and row.kind == "editor" else ""
        found.add_row(*(Text(clean(cell), style) for cell in cells))
    console.print(found)
    for row in standings.rows:
        if row.error:
            console.print(Text(clean(f"{row.name} failed: {row.error}"), "red"))
        if row.warning and row.kind in ("editor", "prompt"):
            console.print(Text(clean(f"{row.name}: {row.warning}"), "yellow"))
