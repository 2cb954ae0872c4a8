"""Every kind of gate is told alike by everything that judges, draws or prints it."""

from __future__ import annotations

import io
import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from safeedit.policy.gate import MEANINGS, GateSpec
from safeedit.records import Metric, PassingSide, RunRecord
from safeedit.report import card, content, figures, html, junit, markdown, terminal
from safeedit.statistics.metrics import compare, mean_metric
from safeedit.statistics.verdicts import judge
from tests.report.records import run_record

METRIC = "perplexity.nats_per_token"
BEFORE = 3.0

# kind, what the policy writes, values after that pass and that fail, and the bound on the metric
KINDS: tuple[tuple[str, float | str, float, float, float], ...] = (
    ("min", 2.5, 2.6, 2.4, 2.5),
    ("max", 3.5, 3.4, 3.6, 3.5),
    ("max_increase", 0.5, 3.4, 3.6, 3.5),
    ("max_increase", "10%", 3.2, 3.4, 3.3),
    ("max_decrease", 0.5, 2.6, 2.4, 2.5),
    ("max_decrease", "10%", 2.8, 2.6, 2.7),
    ("min_increase", 0.5, 3.6, 3.4, 3.5),
    ("min_increase", "10%", 3.4, 3.2, 3.3),
    ("min_decrease", 0.5, 2.4, 2.6, 2.5),
    ("min_decrease", "10%", 2.6, 2.8, 2.7),
)
PASSES: dict[str, PassingSide] = {
    "min": "above", "max": "below", "max_increase": "below", "max_decrease": "above",
    "min_increase": "above", "min_decrease": "below",
}  # fmt: skip


def measured(value: float) -> Metric:
    items = {str(n): value + 0.001 * (n % 3 - 1) for n in range(12)}
    return mean_metric(METRIC, items, "nats/token", "lower")


def record_of(kind: str, written: float | str, after: float) -> RunRecord:
    gate = {"metric": METRIC, kind: written}
    comparison = compare(measured(BEFORE), measured(after))
    verdict = judge(GateSpec.model_validate(gate), comparison)
    record = run_record(gates=(gate,))
    others = [each for each in record.comparisons if each.name != METRIC]
    return record.model_copy(
        update={
            "comparisons": (*others, comparison),
            "verdicts": (verdict,),
            "status": verdict.status,
            "exit_code": 0 if verdict.status == "pass" else 1,
        }
    )


def row_of(record: RunRecord) -> content.MetricRow:
    return next(row for each in content.audits(record) for row in each.rows if row.verdicts)


def test_every_kind_has_its_meaning_and_every_meaning_is_tested() -> None:
    assert set(MEANINGS) == {kind for kind, *_ in KINDS}
    assert {kind: meaning.passes for kind, meaning in MEANINGS.items()} == PASSES


@pytest.mark.parametrize(("kind", "written", "inside", "outside", "bound"), KINDS)
def test_a_verdict_carries_side_scale_and_bound(
    kind: str, written: float | str, inside: float, outside: float, bound: float
) -> None:
    for after, status in ((inside, "pass"), (outside, "fail")):
        (verdict,) = record_of(kind, written, after).verdicts
        assert verdict.status == status
        assert verdict.passes == PASSES[kind]
        assert verdict.of_change == (kind not in ("min", "max"))
        assert verdict.bound_on_metric == pytest.approx(bound)
        held = after - BEFORE if verdict.of_change else after
        assert verdict.value == pytest.approx(held)
        assert verdict.bound == pytest.approx(bound - BEFORE if verdict.of_change else bound)


def shaded(record: RunRecord) -> tuple[float, float, float]:
    """Left edge, right edge and place of the value after, in percent of the figure's width."""
    drawn = ElementTree.fromstring(str(figures.before_after(row_of(record))))
    found = {each.get("class"): each for each in drawn.iter() if each.get("class")}
    start = float(found["beyond"].get("x", "").rstrip("%"))
    width = float(found["beyond"].get("width", "").rstrip("%"))
    return start, start + width, float(found["disc"].get("cx", "").rstrip("%"))


@pytest.mark.parametrize(("kind", "written", "inside", "outside", "bound"), KINDS)
def test_charts_shade_the_failing_side(
    kind: str, written: float | str, inside: float, outside: float, bound: float
) -> None:
    left, right, value = shaded(record_of(kind, written, inside))
    assert not left <= value <= right
    left, right, value = shaded(record_of(kind, written, outside))
    assert left <= value <= right


@pytest.mark.parametrize(("kind", "written", "inside", "outside", "bound"), KINDS)
def test_every_rendering_signs_changes_and_names_the_verdict(
    kind: str, written: float | str, inside: float, outside: float, bound: float
) -> None:
    for after, word in ((inside, "passed"), (outside, "failed")):
        record = record_of(kind, written, after)
        (verdict,) = record.verdicts
        screen = io.StringIO()
        terminal.render(record, Console(file=screen, width=100))
        texts = {
            "terminal": screen.getvalue(),
            "html": html.render(record),
            "markdown": markdown.render(record),
            "card": card.render(record),
        }
        for name, text in texts.items():
            assert word in text, name
        sign = "+" if after > BEFORE else "\N{MINUS SIGN}"
        figure = f"{sign}{abs(after - BEFORE):.3f}" if verdict.of_change else f"{after:.3f}"
        assert figure in texts["html"]
        assert figure in texts["terminal"].replace("-", "\N{MINUS SIGN}")
        failures = ElementTree.fromstring(junit.render(record)).get("failures")
        assert failures == ("0" if word == "passed" else "1")


@pytest.mark.parametrize(("kind", "written", "inside", "outside", "bound"), KINDS)
def test_dose_curves_shade_the_failing_side_of_a_target(
    kind: str, written: float | str, inside: float, outside: float, bound: float
) -> None:
    record = record_of(kind, written, inside)
    (target,) = content.targets(record, record.edits[0])
    assert target.passes == PASSES[kind]
    assert target.bound == (None if MEANINGS[kind].of_change else bound)


CHANGES: tuple[str, ...] = tuple(kind for kind in MEANINGS if MEANINGS[kind].of_change)


@pytest.mark.parametrize(("kind", "after"), [*itertools.product(CHANGES, (0.0, 1.0))])
def test_a_percentage_of_zero_is_inconclusive(kind: str, after: float) -> None:
    def spec(bound: float | str) -> GateSpec:
        return GateSpec.model_validate({"metric": METRIC, kind: bound})

    def constant(value: float) -> Metric:
        return mean_metric(METRIC, {str(n): value for n in range(12)}, "nats/token", "lower")

    comparison = compare(constant(0.0), constant(after))
    found = judge(spec("50%"), comparison)
    assert (found.status, found.bound) == ("inconclusive", None)
    assert "was 0 before the edits" in found.reason
    assert judge(spec(0.5), comparison).status in ("pass", "fail")


def test_kinds_that_ask_for_a_change_are_told_from_those_that_allow_one() -> None:
    asking = {kind for kind in MEANINGS if MEANINGS[kind].asks_for_change}
    assert asking == {"min_increase", "min_decrease"}
