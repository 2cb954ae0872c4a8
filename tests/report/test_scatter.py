"""Scatter plots: a mark for each item, before and after, and their trends."""

from __future__ import annotations

import re

from safeedit.records import Metric
from safeedit.report import figures, html
from safeedit.report.content import MetricRow
from safeedit.statistics.metrics import compare
from tests.report.records import digest, run_record

SCORES = (-0.9, -0.4, 0.0, 0.5, 0.8)


def metric(slope: float, name: str = "bias.margin") -> Metric:
    keys = [digest(f"job {score}") for score in SCORES]
    items = {key: slope * score + 0.1 for key, score in zip(keys, SCORES, strict=True)}
    return Metric(
        name=name, value=sum(items.values()) / 5, interval=None, n=5, unit="probability",
        direction="lower", items=items, positions=dict(zip(keys, SCORES, strict=True)),
        axis="stereotypical score",
    )  # fmt: skip


def test_every_item_is_a_mark_and_the_slopes_are_told() -> None:
    row = MetricRow("margin", compare(metric(0.5), metric(0.1)), None, ())
    drawn = str(figures.scatter(row))
    assert drawn.count('class="ring"') == drawn.count('class="disc"') == 5
    assert "slope before 0.500, slope after 0.100" in drawn
    assert "stereotypical score" in drawn
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert all(0 <= y <= 200 for y in heights)
    rings, discs = heights[:5], heights[5:]
    assert max(rings) - min(rings) > 4 * (max(discs) - min(discs))


def test_without_a_before_only_the_after_is_drawn() -> None:
    row = MetricRow("margin", compare(None, metric(0.1)), None, ())
    drawn = str(figures.scatter(row))
    assert "ring" not in drawn
    assert "slope after 0.100" in drawn
    assert "slope before" not in drawn


def test_the_page_draws_it_where_a_metric_has_positions_and_nowhere_else() -> None:
    record = run_record()
    assert "each item along" not in html.render(record)
    name = f"{record.after[0].id}.margin"
    more = (*record.comparisons, compare(metric(0.5, name), metric(0.1, name)))
    page = html.render(record.model_copy(update={"comparisons": more}))
    assert page.count("each item along stereotypical score") == 1
