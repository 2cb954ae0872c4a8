"""The table and the figure: whole, honest and safe from their input."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from safeedit.workflows.comparison import figure
from safeedit.workflows.comparison.rendering import markdown, render_all, show
from safeedit.workflows.comparison.standings import Cost, Standing, Standings
from tests.workflows.comparison.examples import LOCALITY, SUCCESS, row, standings

SVG = "{http://www.w3.org/2000/svg}"
COST = Cost(
    fit_seconds=3.2, dose_seconds=10, wall_seconds=75, peak_memory_bytes=2_610_000_000,
    peak_device_bytes=0,
)  # fmt: skip


def rows() -> list[Standing]:
    return [
        row("none", 1.0, 1.0, kind="none"),
        row("rome", 0.1, 0.8, cost=COST, dose=0.5, targets_met=False, entries_changed=1234,
            status="fail"),
        row("task_vector", 0.4, 0.6),
        row("random", 0.9, 0.95, kind="random", warning="as rome"),
        Standing(name="memit", use="memit", kind="editor", error="nothing | left <to> move"),
    ]  # fmt: skip


def screen(found: Standings, encoding: str = "utf-8", width: int = 80) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    show(found, Console(file=file, width=width, highlight=False))
    file.flush()
    return raw.getvalue().decode(encoding)


def drawn(found: Standings) -> ElementTree.Element:
    return ElementTree.fromstring(figure.render(found))


def marks(svg: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """Centres of the circles of a class, the legend's left out."""
    found = [c for c in svg.iter(f"{SVG}circle") if c.get("class") == kind]
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in found]
    return [(x, y) for x, y in places if y < 440]


def test_every_row_is_in_the_table_and_costs_are_told() -> None:
    table = markdown(standings(*rows()))
    (rome,) = [line for line in table.splitlines() if line.startswith("| rome |")]
    for cell in ("0.100", "0.800", "front", "failed", "0.5 (no dose met", "3.2 s", "10 s",
                 "1 min 15 s", "2.61 GB", "1,234"):  # fmt: skip
        assert cell in rome.replace("yes", "front"), cell
    assert "- memit failed: nothing \\| left \\<to\\> move" in table
    assert "| task\\_vector | 0.400" in table
    assert "| metric | none | rome | task\\_vector | random | n | unit (better) |" in table
    assert "- random: as rome" in table


def test_all_files_are_made() -> None:
    found = standings(*rows())
    files = render_all(found)
    assert list(files) == ["comparison.json", "comparison.md", "comparison.svg"]
    assert Standings.model_validate_json(files["comparison.json"]) == found


def test_the_screen_fits_80_columns_and_needs_no_unicode() -> None:
    for encoding in ("utf-8", "ascii"):
        said = screen(standings(*rows()), encoding)
        assert all(len(line) <= 80 for line in said.splitlines())
        assert "memit failed" in said
        assert re.search(r"rome +0\.100 \[0\.050, 0\.150\] +0\.800", said)
        assert "?" not in said


def test_better_is_up_and_to_the_right_whichever_way_a_metric_runs() -> None:
    found = standings(row("a", 0.0, 0.9), row("b", 0.5, 0.5))
    ((ax, ay),) = marks(drawn(found), "front")
    ((bx, by),) = marks(drawn(found), "behind")
    assert ax > bx
    assert ay < by
    turned = LOCALITY.model_copy(update={"direction": "lower"})
    found = found.model_copy(update={"locality": turned})
    ((ax, _),) = marks(drawn(found), "front")
    ((bx, _),) = marks(drawn(found), "behind")
    assert ax < bx


def test_marks_whiskers_and_names_are_there_for_all_that_have_both_values() -> None:
    svg = drawn(standings(*rows(), row("half", None, 0.5)))
    assert len(marks(svg, "front")) == 1
    assert len(marks(svg, "behind")) == 1
    diamonds = [p for p in svg.iter(f"{SVG}path") if "control" in p.get("class", "")]
    assert len(diamonds) == 3, "none, random and the legend"
    assert sum(e.get("class") == "whisker" for e in svg.iter()) == 8
    labels = {t.text for t in svg.iter(f"{SVG}text")}
    assert {"none", "rome", "task_vector", "random"} <= labels
    assert not {"half", "memit"} & labels
    told = svg.findtext(f"{SVG}desc")
    assert told is not None
    assert "rome: 0.100 [0.050, 0.150] against 0.800 [0.750, 0.850], on the front" in told


@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_any_number_of_rows_stays_within_the_frame(count: int) -> None:
    crowd = [row(f"editor@variant{i}", 0.01 * (i % 3), 0.9 + 0.001 * i) for i in range(count)]
    svg = drawn(standings(*crowd))
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "")) <= 760
        assert 0 <= float(text.get("y", "")) <= 500
    assert "nan" not in figure.render(standings(*crowd))


def test_names_do_not_lie_on_each_other() -> None:
    crowd = [row(f"editor{i}", 0.02, 0.9 + 0.0005 * i, None) for i in range(6)]
    svg = drawn(standings(row("none", 1.0, 1.0), *crowd))
    places = [
        (float(t.get("x", "")), float(t.get("y", "")))
        for t in svg.iter(f"{SVG}text")
        if (t.text or "").startswith("editor")
    ]
    assert len(set(places)) == 6
    for i, (x, y) in enumerate(places):
        for a, b in places[i + 1 :]:
            assert abs(x - a) >= 40 or abs(y - b) >= 11


def test_names_can_not_break_out() -> None:
    hostile = "x</text><script>alert(1)</script>"
    found = standings(row(hostile, 0.1, 0.5), policy_name="a|b\x1b[31m<b>")
    assert "<script>" not in figure.render(found)
    ElementTree.fromstring(figure.render(found))
    assert "<script>" not in markdown(found)
    assert "\x1b" not in markdown(found) + screen(found) + figure.render(found)


def test_metrics_in_other_units_get_their_own_scale() -> None:
    nats = SUCCESS.model_copy(update={"unit": "nats"})
    svg = drawn(standings(row("a", -20.0, 0.5), row("b", -3.0, 0.9), success=nats))
    ticks = [t.text for t in svg.iter(f"{SVG}text") if t.get("class") == "tick end"]
    assert len(ticks) >= 3
    assert "−20.00" in ticks
