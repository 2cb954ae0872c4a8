"""Several runs over time: what each gate said, which figures moved, what else was another then.

Runs stand in the order in which they began. A figure *moved* from one run to the next where the
interval of its difference leaves 0 out: paired by item where both runs asked the same items under
the same key of the digests, otherwise of two samples. A **regression** is a gate that said more
than it says now, or a figure that moved the worse way. Beside them stands what else is not as it
was (policy, model, data, version, machine), for a figure that moved may be about that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from safeedit.records import Comparison, Metric, RunRecord, Status, Verdict
from safeedit.report.wording import NOTHING, STATUS_WORDS, number
from safeedit.statistics.metrics import compare

Said = TypeVar("Said")
Trend = Literal["better", "worse", ""]

_RANK: dict[Status, int] = {"pass": 2, "inconclusive": 1, "fail": 0}


@dataclass(frozen=True)
class RunColumn:
    """One run."""

    number: int
    """From 1, the earliest."""
    day: str
    policy: str
    run_id: str
    status: Status
    changed: tuple[str, ...]
    """What is not as in the run before."""


@dataclass(frozen=True)
class HistoryCell:
    """What one run says in one row."""

    text: str
    trend: Trend = ""
    """Against the last run before it that says something there."""
    status: Status | None = None
    """Of a gate."""

    @property
    def marked(self) -> str:
        """The figure, with a word where it moved."""
        return f"{self.text} {self.trend}" if self.trend else self.text


@dataclass(frozen=True)
class HistoryRow:
    """One gate or metric over all runs."""

    name: str
    cells: tuple[HistoryCell, ...]

    @property
    def moved(self) -> bool:
        """Whether it is another in any run."""
        return any(cell.trend for cell in self.cells)


@dataclass(frozen=True)
class History:
    """Runs over time."""

    runs: tuple[RunColumn, ...]
    gates: tuple[HistoryRow, ...]
    metrics: tuple[HistoryRow, ...]

    @property
    def regressions(self) -> tuple[str, ...]:
        """In words, the latest run's first."""
        found = []
        for column in reversed(range(len(self.runs))):
            for row in (*self.gates, *self.metrics):
                if row.cells[column].trend == "worse":
                    found.append(_told(row, column))
        return tuple(found)

    @property
    def headline(self) -> str:
        """The first sentence."""
        last = len(self.runs)
        worse = sum(row.cells[-1].trend == "worse" for row in (*self.gates, *self.metrics))
        if worse:
            what = "gate or figure is" if worse == 1 else "gates and figures are"
            return f"{worse} {what} worse in run {last}, the latest, than before."
        return f"Nothing is worse in run {last}, the latest, than before."


def history(records: Sequence[RunRecord]) -> History:
    """Runs over time, the earliest first, whatever their order here."""
    found = sorted(records, key=lambda record: (record.started, record.run_id))
    before = (None, *found)
    runs = tuple(
        RunColumn(
            number, record.started[:10], record.policy_name, record.run_id, record.status,
            _changed(earlier, record) if earlier is not None else (),
        )
        for number, (earlier, record) in enumerate(zip(before, found, strict=False), 1)
    )  # fmt: skip
    verdicts = [{_gate(v): v for v in record.verdicts} for record in found]
    metrics = [{m.name: m for audit in record.after for m in audit.metrics} for record in found]
    return History(runs, _rows(verdicts, _gate_cell), _rows(metrics, _metric_cell))


def _rows(
    said: Sequence[dict[str, Said]], cell: Callable[[Said | None, Said | None], HistoryCell]
) -> tuple[HistoryRow, ...]:
    """A row for every name, in the order of the latest run; each cell against the last before it
    that says something."""
    names = dict.fromkeys(name for run in reversed(said) for name in run)
    rows = []
    for name in names:
        cells, last = [], None
        for run in said:
            found = run.get(name)
            cells.append(cell(last, found))
            last = found if found is not None else last
        rows.append(HistoryRow(name, tuple(cells)))
    return tuple(rows)


def _gate(verdict: Verdict) -> str:
    return f"{verdict.metric} {verdict.condition}"


def _gate_cell(before: Verdict | None, now: Verdict | None) -> HistoryCell:
    if now is None:
        return HistoryCell(NOTHING)
    was = _RANK[before.status] if before is not None else _RANK[now.status]
    rank = _RANK[now.status]
    trend: Trend = "worse" if rank < was else "better" if rank > was else ""
    return HistoryCell(f"{STATUS_WORDS[now.status]} {number(now.value)}", trend, now.status)


def _metric_cell(before: Metric | None, now: Metric | None) -> HistoryCell:
    if now is None or now.value is None:
        return HistoryCell(NOTHING)
    return HistoryCell(number(now.value), _trend(compare(before, now)))


def _trend(found: Comparison) -> Trend:
    interval = found.difference_interval
    if interval is None or interval.low <= 0 <= interval.high:
        return ""
    return "better" if (interval.low > 0) == (found.after.direction == "higher") else "worse"


def _told(row: HistoryRow, column: int) -> str:
    was = next(
        (row.cells[i] for i in reversed(range(column)) if row.cells[i].text != NOTHING), None
    )
    from_ = f" after {was.text}" if was is not None else ""
    return f"run {column + 1}: {row.name} is {row.cells[column].text}{from_}"


def _changed(before: RunRecord, now: RunRecord) -> tuple[str, ...]:
    """What is not as it was, by digests and versions."""

    def data(record: RunRecord) -> dict[str, object]:
        return {name: each.get("digest") for name, each in record.datasets.items()}

    compared = {
        "command": (before.command, now.command),
        "policy": (before.policy_digest, now.policy_digest),
        "model": (before.model.digest, now.model.digest),
        "dtype": (before.model.dtype, now.model.dtype),
        "data": (data(before), data(now)),
        "seed": (before.seed, now.seed),
        "safeedit": (before.environment.safeedit, now.environment.safeedit),
        "packages": (before.environment.packages, now.environment.packages),
        "device": (before.environment.device, now.environment.device),
        "processor": (before.environment.processor, now.environment.processor),
    }
    return tuple(name for name, (was, is_) in compared.items() if was != is_)
