"""The summary on a screen: what was decided, on what figures, at what cost.

It fits 80 columns and needs neither colour nor a terminal.
"""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from safeedit.records import EditRecord, RunRecord
from safeedit.report import content
from safeedit.report.attacks import AttackMatrix, attack_matrix
from safeedit.report.content import MetricRow
from safeedit.report.seeds import SeedTable, seed_table
from safeedit.report.wording import (
    MINUS,
    NOTHING,
    STATUS_WORDS,
    bracket,
    count,
    how_near,
    number,
    p_value,
    pieces,
    size,
)
from safeedit.text.display import clean

_NARROW = 72
"""Columns below which the random control and the p value are left out, rather than names broken
into single words."""
_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_TONES = {"good": "green", "middling": "yellow", "bad": "red", "": ""}
_TRENDS = {"better": "green", "worse": "red", "": ""}


def render(record: RunRecord, console: Console) -> None:
    """Print the summary."""
    if console.encoding.lower().startswith("utf"):
        _render(record, console)
        return
    with console.capture() as capture:
        _render(record, console)
    words = capture.get().replace(MINUS, "-").replace(NOTHING, "-")
    console.file.write(words.encode(console.encoding, "replace").decode(console.encoding))


def _render(record: RunRecord, console: Console) -> None:
    console.print()
    title = Text.assemble(
        (STATUS_WORDS[record.status].upper(), f"bold {_STYLES[record.status]}"),
        "  ",
        (clean(record.policy_name), "bold"),
    )
    console.print(title)
    console.print(_text(content.headline(record)))
    console.print(_text(content.model_line(record), "dim"))
    for warning in record.warnings:
        console.print(_text(f"warning: {warning}", "yellow"))
    if record.verdicts:
        _print(console, "Gates", _gates(record))
        for verdict in record.verdicts:
            near = how_near(verdict)
            if verdict.status != "pass":
                console.print(_item("; ".join(filter(None, (verdict.reason, near)))))
            elif verdict.nearness is not None and verdict.nearness.is_near:
                console.print(_item(f"{verdict.metric} {verdict.condition} passes, but {near}"))
    two_models = content.compares(record)
    for audit in content.audits(record):
        if audit.rows:
            table = _metrics(audit.rows, two_models, narrow=console.width < _NARROW)
            _print(console, audit.id, table)
    if matrix := attack_matrix(record):
        _print(console, "Under attack", _attacks(matrix))
        for remark in matrix.remarks:
            console.print(_item(remark))
    if found := content.edit_by_edit(record):
        _print(console, "Edit by edit", _edit_by_edit(found))
        for sentence in found.undone:
            console.print(_item(sentence))
    if beside := seed_table(record):
        _print(console, f"Over {len(beside.seeds)} seeds", _seeds(beside))
    for edit in record.edits:
        _print_edit(console, record, edit)
    console.print()
    console.print(_text("What this does not show", "bold"))
    for limit in content.limits(record):
        console.print(_item(limit))
    console.print()
    cost = f"{content.cost(record)}, peak memory {size(record.resources.peak_memory_bytes)}"
    if record.resources.peak_device_bytes:
        cost += f", on the device {size(record.resources.peak_device_bytes)}"
    console.print(_text(cost))
    if record.export is not None:
        console.print(_text(f"export: {record.export.directory}"), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    """Words that are never read as markup."""
    return Text(clean(text), style)


class _Name:
    """Words and names: a name that is longer than its column breaks after ``_``, ``.`` or ``/``,
    and never within a word."""

    def __init__(self, text: str) -> None:
        self._words = clean(text).split()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max((len(part) for word in self._words for part in pieces(word)), default=0)
        return Measurement(longest, len(" ".join(self._words)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for word in self._words:
            whole = len(word) <= options.max_width
            for place, part in enumerate([word] if whole else pieces(word)):
                space = " " if lines[-1] and not place else ""
                if lines[-1] and len(lines[-1] + space + part) > options.max_width:
                    lines.append("")
                    space = ""
                lines[-1] += space + part
        yield Text("\n".join(lines))


def _item(text: str) -> Table:
    item = Table.grid(padding=(0, 1))
    item.add_row("-", _text(text))
    return item


def _print(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(_text(title, "bold"))
    console.print(Padding(table, (0, 0, 0, 2)))


def _table(*columns: tuple[str, bool]) -> Table:
    """A table without lines; a column is its heading and whether it holds figures."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading, figures in columns:
        if figures:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


def _gates(record: RunRecord) -> Table:
    table = _table(("", False), ("metric", False), ("condition", False), ("measured", True))
    for verdict in record.verdicts:
        table.add_row(
            _text(STATUS_WORDS[verdict.status], _STYLES[verdict.status]),
            _Name(verdict.metric),
            _text(verdict.condition.replace(" at confidence ", " at ")),
            _text(number(verdict.value, signed=verdict.of_change)),
        )
    return table


def _seeds(found: SeedTable) -> Table:
    """Doses and gated metrics; the files have every figure, and every seed's own."""
    table = _table(
        ("", False), ("mean", True), ("deviation", True), ("least", True), ("greatest", True)
    )
    for name, spread in found.gated.items():
        cells = (spread.mean, spread.deviation, spread.least, spread.greatest)
        table.add_row(_text(name), *(_text(number(cell)) for cell in cells))
    return table


def _metrics(rows: tuple[MetricRow, ...], two_models: bool, *, narrow: bool) -> Table:
    controlled = any(row.control for row in rows) and not narrow
    tested = two_models and not narrow
    columns = [("metric", False)]
    columns += [("before", True)] if two_models else []
    columns += [("after" if two_models else "value", True), ("95 %", True)]
    columns += [("random", True)] if controlled else []
    columns += [("p", True)] if tested else []
    table = _table(*columns, ("n", True))
    table.columns[0].min_width = max(len(part) for row in rows for part in pieces(row.name))
    for row in rows:
        found = row.comparison
        cells: list[RenderableType] = [_Name(row.name)]
        if two_models:
            cells.append(_text(number(found.before.value) if found.before else NOTHING))
        cells += [
            _text(number(row.after.value), _TRENDS[row.trend]),
            _text(bracket(row.after.interval), "dim"),
        ]
        if controlled:
            cells.append(_text(number(row.control.value) if row.control else "", "dim"))
        if tested:
            cells.append(_text(p_value(found.p_value).removeprefix("p ").removeprefix("= ")))
        table.add_row(*cells, _text(count(row.after).partition(" ")[0], "dim"))
    return table


def _attacks(matrix: AttackMatrix) -> Table:
    """One line for each attack, strength and metric: names of metrics don't fit across."""
    table = _table(
        ("attack", False), ("metric", False), ("untouched", True), ("edited", True),
        ("undone", True),
    )  # fmt: skip
    for name, (after, before) in zip(matrix.metrics, matrix.unattacked, strict=True):
        table.add_row(_text("none", "dim"), _Name(name), _figure(before), _figure(after), _text(""))
    for row in matrix.rows:
        for name, cell in zip(matrix.metrics, row.cells, strict=True):
            if cell is None:
                continue
            own = [m for m in row.recovered if m.name.rpartition(".")[0] == name.rpartition(".")[0]]
            undone = number(own[0].value) if own and cell.headline else ""
            table.add_row(
                _text(f"{row.attack}, {row.label}"),
                _Name(name),
                _figure(cell.base),
                _text(number(cell.edited), _TONES[cell.tone]),
                _text(undone),
            )
    return table


def _figure(value: float | None) -> Text:
    return _text(number(value), "dim")


def _edit_by_edit(found: content.EditByEdit) -> Table:
    table = _table(("gate, after", False), *((edit, True) for edit in found.edits))
    for gate, verdicts in found.rows:
        values = (_text(number(verdict.value), _STYLES[verdict.status]) for verdict in verdicts)
        table.add_row(_Name(gate), *values)
    return table


def _print_edit(console: Console, record: RunRecord, edit: EditRecord) -> None:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    for label, value in content.edit_facts(record, edit):
        facts.add_row(_text(label), _Name(value))
    _print(console, f"Edit {edit.id}", facts)
    targets = content.targets(record, edit)
    shown = [m for m in dict.fromkeys(t.metric for t in targets) if _tried(edit, m)][:5]
    if edit.dose_curve:
        # Doses down the side would not leave room for names of metrics across the top.
        doses = edit.dose_curve[-6:]
        curve = _table(
            ("dose, on validation data", False),
            *((f"{p.dose:g}{'*' if p.dose == edit.dose else ''}", True) for p in doses),
        )
        for metric in shown:
            curve.add_row(_Name(metric), *(_text(number(p.metrics.get(metric))) for p in doses))
        met = ["all" if p.meets_targets else f"{len(p.misses)} off" for p in doses]
        curve.add_row(_text("targets met", "dim"), *(_text(word, "dim") for word in met))
        console.print(Padding(curve, (1, 0, 0, 2)))


def _tried(edit: EditRecord, metric: str) -> bool:
    return any(metric in point.metrics for point in edit.dose_curve)
