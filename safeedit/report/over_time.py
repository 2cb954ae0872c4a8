"""Runs over time as text: on a screen, as Markdown, as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from safeedit.report.history import History, HistoryRow, RunColumn
from safeedit.report.html import page_environment
from safeedit.report.markdown import escape, table
from safeedit.report.wording import STATUS_WORDS, plural
from safeedit.text.display import clean

MOST = 6
"""Runs that a screen shows, the latest ones; files show all."""

_TONES = {"better": "green", "worse": "bold red", "": ""}
_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def on_screen(found: History, console: Console) -> None:
    """Print what a glance must tell: what is worse, the gates, the figures that moved."""
    console.print()
    console.print(_text(found.headline, "bold"))
    for sentence in found.regressions:
        console.print(_text(f"- {sentence}", "red" if _is_latest(found, sentence) else "dim"))
    runs = found.runs[-MOST:]
    if len(runs) < len(found.runs):
        console.print(_text(f"The latest {len(runs)} of {len(found.runs)} runs; --format md or "
                            "html shows all.", "dim"))  # fmt: skip
    console.print()
    for run in runs:
        console.print(_text(_line(run), _STYLES[run.status]))
    _print(console, "Gates", found.gates, runs)
    _print(console, "Figures that moved", [row for row in found.metrics if row.moved], runs)


def as_markdown(found: History) -> str:
    """All runs, gates and figures."""
    lines = ["# Runs over time", "", escape(found.headline), ""]
    lines += [f"- {escape(sentence)}" for sentence in found.regressions]
    lines += [
        "",
        *(f"{run.number}. {escape(_line(run, numbered=False))}" for run in found.runs),
        "",
    ]
    for title, rows in (("Gates", found.gates), ("Figures", found.metrics)):
        if rows:
            head = [title.lower(), *(str(run.number) for run in found.runs)]
            lines += [f"## {title}", ""]
            lines += table(head, [_escaped(row) for row in rows])
    return "\n".join(lines).rstrip() + "\n"


def as_html(found: History) -> str:
    """One page with all of it; nothing is loaded, nothing is run."""
    page = page_environment().get_template("history.html.j2")
    return page.render(history=found, line=_line)


def _line(run: RunColumn, *, numbered: bool = True) -> str:
    what = f"; not as before: {', '.join(run.changed)}" if run.changed else ""
    number = f"{run.number}  " if numbered else ""
    return f"{number}{run.day}  {run.policy}  {STATUS_WORDS[run.status]}{what}"


def _is_latest(found: History, sentence: str) -> bool:
    return sentence.startswith(f"run {len(found.runs)}:")


def _escaped(row: HistoryRow) -> list[str]:
    cells = (f"**{escape(c.marked)}**" if c.trend == "worse" else escape(c.marked)
             for c in row.cells)  # fmt: skip
    return [escape(row.name), *cells]


def _print(
    console: Console, title: str, rows: Sequence[HistoryRow], runs: Sequence[RunColumn]
) -> None:
    if not rows:
        return
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("", overflow="fold")
    for run in runs:
        grid.add_column(str(run.number), justify="right")
    for row in rows:
        cells = row.cells[-len(runs) :]
        grid.add_row(_text(row.name), *(_text(cell.marked, _TONES[cell.trend]) for cell in cells))
    console.print()
    console.print(_text(f"{title} ({plural(len(rows), 'row')})", "bold"))
    console.print(Padding(grid, (0, 0, 0, 2)))


def _text(text: str, style: str = "") -> Text:
    """Words that are never read as markup."""
    return Text(clean(text), style)
