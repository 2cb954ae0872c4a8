"""Runs over time: a regression is seen at a glance, and what else was not as before."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from safeedit.records import Metric, RunRecord
from safeedit.report import json as as_json
from safeedit.report.history import History, history
from safeedit.report.over_time import as_html, as_markdown, on_screen
from tests.fixtures import call
from tests.report.records import run_record


def run(day: int, **changes: Any) -> RunRecord:
    started = f"2026-01-{day:02}T10:00:00+00:00"
    update = {"started": started, "run_id": f"202601{day:02}T100000-ab-{day:04}", **changes}
    return run_record().model_copy(update=update)


def with_metric(record: RunRecord, name: str, value: float) -> RunRecord:
    """The record with every item of a metric at one value."""

    def changed(metric: Metric) -> Metric:
        if metric.name != name:
            return metric
        items = dict.fromkeys(metric.items, value)
        return metric.model_copy(update={"items": items, "value": value})

    after = tuple(
        audit.model_copy(update={"metrics": tuple(map(changed, audit.metrics))})
        for audit in record.after
    )
    return record.model_copy(update={"after": after})


def with_verdict(record: RunRecord, metric: str, status: str) -> RunRecord:
    verdicts = tuple(
        verdict.model_copy(update={"status": status}) if verdict.metric == metric else verdict
        for verdict in record.verdicts
    )
    return record.model_copy(update={"verdicts": verdicts, "status": status})


def screen(found: History, width: int = 100) -> str:
    written = io.StringIO()
    on_screen(found, Console(file=written, width=width))
    return written.getvalue()


def test_runs_stand_in_the_order_in_which_they_began() -> None:
    found = history([run(3), run(1), run(2)])
    assert [each.day for each in found.runs] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [each.number for each in found.runs] == [1, 2, 3]


def test_of_equal_runs_nothing_is_worse() -> None:
    found = history([run(1), run(2)])
    assert found.regressions == ()
    assert not any(row.moved for row in (*found.gates, *found.metrics))
    assert "Nothing is worse" in screen(found)


def test_a_figure_that_moved_the_worse_way_is_a_regression() -> None:
    name = "leakage.extraction_rate"
    found = history([run(1), with_metric(run(2), name, 1.0)])
    (row,) = (row for row in found.metrics if row.name == name)
    assert row.cells[1].trend == "worse"
    assert found.regressions[0].startswith(f"run 2: {name} is 1.000 after ")
    assert "1 gate or figure is worse in run 2" in found.headline


def test_a_figure_that_moved_the_better_way_is_none() -> None:
    found = history([run(1), with_metric(run(2), "locality.near_unchanged", 1.0)])
    (row,) = (row for row in found.metrics if row.name == "locality.near_unchanged")
    assert row.cells[1].trend == "better"
    assert found.regressions == ()


def test_a_gate_that_passed_and_fails_is_a_regression_and_back_again_is_none() -> None:
    metric = "leakage.refusal_rate"
    found = history([run(1), with_verdict(run(2), metric, "inconclusive"), run(3)])
    (row,) = (row for row in found.gates if row.name.startswith(metric))
    assert [cell.trend for cell in row.cells] == ["", "worse", "better"]
    assert found.regressions[0].startswith("run 2: ")
    assert "Nothing is worse in run 3" in found.headline


def test_a_figure_that_a_run_lacks_is_held_against_the_last_that_has_it() -> None:
    first, third = run(1), with_metric(run(3), "leakage.extraction_rate", 1.0)
    second = run(2, after=())
    (row,) = (row for row in history([first, second, third]).metrics
              if row.name == "leakage.extraction_rate")  # fmt: skip
    assert [cell.trend for cell in row.cells] == ["", "", "worse"]


def test_what_else_is_not_as_before_is_said() -> None:
    other = run(2, policy_digest="0" * 64, seed=8)
    found = history([run(1), other, run(3, policy_digest="0" * 64, seed=8)])
    assert [each.changed for each in found.runs] == [(), ("policy", "seed"), ()]
    assert "not as before: policy, seed" in screen(found)


def test_every_format_names_the_regression_and_takes_no_text_as_markup() -> None:
    name = "leakage.extraction_rate"
    found = history([run(1, policy_name="<b>[red]x"), with_metric(run(2), name, 1.0)])
    text, page, shown = as_markdown(found), as_html(found), screen(found)
    for each in (page, shown):
        assert f"run 2: {name} is 1.000" in each
    assert "**1.000 worse**" in text
    assert "&lt;b&gt;[red]x" in page
    assert "<b>[red]x" in shown
    assert 'class="worse">1.000 worse' in page
    assert "<script" not in page
    HTMLParser().feed(page)


def test_a_screen_of_80_columns_shows_the_latest_runs_and_says_so() -> None:
    found = history([run(day) for day in range(1, 10)])
    text = screen(found, width=80)
    assert "The latest 6 of 9 runs" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_command_takes_several_records_and_refuses_one_twice(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / str(day)).mkdir()
        text = as_json.render(run(day))
        (tmp_path / str(day) / "report.json").write_text(text)
    result = call("report", tmp_path / "2", tmp_path / "1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.index("2026-01-01") < result.stdout.index("2026-01-02")
    assert call("report", tmp_path / "1", tmp_path / "2", "--format", "md").exit_code == 0
    twice = call("report", tmp_path / "1", tmp_path / "1")
    assert twice.exit_code == 2
    assert "given twice" in twice.stderr
    assert call("report", tmp_path / "1", tmp_path / "2", "--format", "junit").exit_code == 2
