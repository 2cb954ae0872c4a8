"""The HTML report stands alone, reads on a phone, and draws what it says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from safeedit import catalog
from safeedit.records import DosePoint, Glossary, Interval
from safeedit.report import content, figures, gates, html
from tests.report.records import run_record
from tests.report.test_formats import VARIANTS, hostile_record

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Every element opened is closed in order; attributes and text are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_is_well_formed(name: str) -> None:
    page = Page(html.render(VARIANTS[name]))
    assert page.open == []
    assert page.count("h1") == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_loads_nothing_and_runs_nothing(name: str) -> None:
    text = html.render(VARIANTS[name])
    page = Page(text)
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert str(attributes.get("href", "#")).startswith("#"), "links stay on the page"
        assert not any(key.startswith("on") for key in attributes)
    outside_namespaces = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|url\(|@import|@font-face", outside_namespaces)
    policy = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_is_made_for_phones_and_for_dark_rooms() -> None:
    text = html.render(VARIANTS["passed"])
    page = Page(text)
    viewport = [a["content"] for t, a in page.elements if a.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]
    assert "prefers-color-scheme: dark" in text
    assert "@media screen and (max-width" in text


def test_hostile_names_add_no_element_to_the_page() -> None:
    page = Page(html.render(hostile_record()))
    assert page.open == []
    assert page.count("script") == 0
    assert page.count("title") > 1  # the page's and the figures'
    assert 'alert("x")' in "".join(page.text)


def test_every_metric_has_its_figure_and_every_figure_its_words() -> None:
    record = VARIANTS["passed"]
    text = html.render(record)
    drawn = re.findall(r'<svg class="figure".*?</svg>', text, re.DOTALL)
    measured = [c for c in record.comparisons if c.after.value is not None]
    targets = content.targets(record, record.edits[0])
    assert len(drawn) == sum(map(len, (measured, record.verdicts, targets, record.model.roles)))
    for comparison in measured:
        assert f"{comparison.name}: before" in text


def _svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def _all(root: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in root.iter() if e.tag.endswith(tag) and e.get("class", "") == kind]


def _place(element: ElementTree.Element, key: str) -> float:
    return float(str(element.get(key)).rstrip("%"))


def test_before_and_after_stand_where_their_values_are() -> None:
    row = content.audits(VARIANTS["passed"])[0].rows[0]
    drawn = _svg(str(figures.before_after(row)))
    (ring,), (disc,) = _all(drawn, "circle", "ring"), _all(drawn, "circle", "disc")
    assert row.comparison.before is not None
    assert row.comparison.before.value is not None
    # 2.5 % are kept free at either end of a scale from 0 to 1.
    assert _place(ring, "cx") == pytest.approx(2.5 + 95 * row.comparison.before.value, abs=0.01)
    assert _place(disc, "cx") == pytest.approx(2.5, abs=0.01)
    (whisker,) = _all(drawn, "line", "whisker after")
    assert row.after.interval is not None
    assert _place(whisker, "x2") == pytest.approx(2.5 + 95 * row.after.interval.high, abs=0.01)
    (bound,) = _all(drawn, "line", "bound")
    assert _place(bound, "x1") == pytest.approx(2.5 + 95 * 0.02, abs=0.01)
    (beyond,) = _all(drawn, "rect", "beyond")
    assert _place(beyond, "x") == pytest.approx(_place(bound, "x1"))
    assert _all(drawn, "path", "diamond")


def test_a_minimum_shades_the_side_below_it() -> None:
    row = next(
        r for a in content.audits(VARIANTS["passed"]) for r in a.rows if r.name == "refusal_rate"
    )
    (beyond,) = _all(_svg(str(figures.before_after(row))), "rect", "beyond")
    assert _place(beyond, "x") == 0
    assert _place(beyond, "width") == pytest.approx(2.5 + 95 * 0.95, abs=0.01)


def test_a_scale_that_is_not_a_rate_holds_all_that_is_shown() -> None:
    row = content.audits(VARIANTS["passed"])[2].rows[0]
    drawn = _svg(str(figures.before_after(row)))
    for element in [*_all(drawn, "line", "whisker before"), *_all(drawn, "line", "whisker after")]:
        assert 2.5 < _place(element, "x1") < _place(element, "x2") < 97.5
    assert len(_all(drawn, "text", "tick start")) == 1


def test_the_dose_curve_marks_the_dose_taken_and_the_target() -> None:
    record = VARIANTS["passed"]
    edit = record.edits[0]
    target = content.targets(record, edit)[0]
    drawn = _svg(str(figures.dose_curve(edit.dose_curve, target, edit.dose)))
    (disc,), (chosen,) = _all(drawn, "circle", "disc"), _all(drawn, "line", "chosen")
    rings = _all(drawn, "circle", "ring")
    assert len(rings) == 3
    assert disc.get("cx") == chosen.get("x1")
    (bound,) = _all(drawn, "line", "bound")
    assert _place(disc, "cy") > _place(bound, "y1")  # 0.01 lies below 0.02
    assert all(_place(ring, "cy") < _place(bound, "y1") for ring in rings)
    heights = [_place(ring, "cy") for ring in rings]
    assert heights == sorted(heights)  # less and less comes out


@pytest.mark.parametrize(
    "values", [(0.5,), (None, None), (3.0, 3.0, 3.0), (0.0, 1e-9), (1e9, -1e9), (None, 0.2)]
)
def test_odd_dose_curves_are_drawn_all_the_same(values: tuple[float | None, ...]) -> None:
    points = [
        DosePoint(dose=float(i + 1), metrics={"a.m": value}, meets_targets=False)
        for i, value in enumerate(values)
    ]
    target = content.DoseTarget("a.m", "max", 0.3, "max 0.3")
    drawn = _svg(str(figures.dose_curve(points, target, chosen=1.0)))
    marks = _all(drawn, "circle", "ring") + _all(drawn, "circle", "disc")
    assert len(marks) == sum(value is not None for value in values)
    assert all(0 <= _place(mark, "cy") <= 142 for mark in marks)


def test_the_layer_map_is_darkest_where_the_change_is_largest() -> None:
    record = VARIANTS["passed"]
    changes = record.edits[0].changes
    found = figures.layer_map(changes, 30)
    assert found is not None
    largest = max(changes, key=lambda change: change.relative_norm)
    assert found.largest == largest.relative_norm
    strip = _svg(str(dict(found.strips)[largest.role]))
    cells = [e for e in strip.iter() if str(e.get("class", "")).startswith("cell")]
    assert len(cells) == 30
    depth = {i: float(str(c.get("fill-opacity", 0))) for i, c in enumerate(cells)}
    assert max(depth, key=depth.__getitem__) == largest.layer
    assert depth[0] == 0  # untouched


def test_a_layer_map_without_a_known_depth_reaches_the_deepest_change() -> None:
    changes = VARIANTS["passed"].edits[0].changes
    found = figures.layer_map(changes, 0)
    assert found is not None
    assert found.n_layers == 28
    outside = [change.model_copy(update={"layer": None}) for change in changes]
    assert figures.layer_map(outside, 30) is None


def test_changes_outside_the_layers_are_named() -> None:
    record = run_record()
    edit = record.edits[0]
    head = edit.changes[0].model_copy(update={"layer": None, "name": "lm_head.weight"})
    text = html.render(
        record.model_copy(
            update={"edits": (edit.model_copy(update={"changes": (*edit.changes, head)}),)}
        )
    )
    assert "Outside the layers" in text
    assert "lm_<wbr>head.<wbr>weight" in text


def test_an_interval_of_no_width_and_one_without_bounds_are_drawn() -> None:
    row = content.audits(VARIANTS["audit only"])[2].rows[0]
    point = row.after.model_copy(
        update={"value": 0.0, "interval": Interval(low=0.0, high=0.0, method="bootstrap")}
    )
    flat = content.MetricRow("m", row.comparison.model_copy(update={"after": point}), None, ())
    bare = content.MetricRow(
        "m",
        row.comparison.model_copy(update={"after": point.model_copy(update={"interval": None})}),
        None,
        (),
    )
    for one in (flat, bare):
        assert _all(_svg(str(figures.before_after(one))), "circle", "disc")


def test_a_page_of_every_metric_there_is_stays_small() -> None:
    record = run_record()
    specs = {
        f"{name}.{spec.name}": spec
        for name in catalog.names("auditors")
        for spec in catalog.auditor(name).metrics
    }
    assert len(specs) > 200
    some = record.comparisons[0]
    comparisons = tuple(some.model_copy(update={"name": name}) for name in specs)
    glossary = Glossary(metrics={name: spec.sentence for name, spec in specs.items()})
    text = html.render(record.model_copy(update={"comparisons": comparisons, "glossary": glossary}))
    assert len(text.encode()) < 2_000_000


def test_a_gate_is_drawn_with_its_interval_and_its_bound() -> None:
    (row, *_) = gates.gate_rows(VARIANTS["failed"])
    drawn = _svg(str(figures.gate_strip(row)))
    assert row.verdict.value == 0.125
    (disc,), (bound,) = _all(drawn, "circle", "disc"), _all(drawn, "line", "bound")
    (whisker,), (beyond,) = _all(drawn, "line", "whisker after"), _all(drawn, "rect", "beyond")
    assert _place(bound, "x1") < _place(disc, "cx")  # above what it must be at most
    assert _place(beyond, "x") == _place(bound, "x1")
    assert row.interval is not None
    assert _place(whisker, "x1") < _place(disc, "cx") < _place(whisker, "x2")
    change = next(r for r in gates.gate_rows(VARIANTS["passed"]) if r.verdict.of_change)
    (bound,) = _all(_svg(str(figures.gate_strip(change))), "line", "bound")
    assert 2.5 < _place(bound, "x1") < 97.5


def test_every_kind_of_matrix_has_its_row_on_the_map_changed_or_not() -> None:
    edit = VARIANTS["passed"].edits[0]
    found = figures.layer_map(edit.changes, 30, VARIANTS["passed"].model.roles)
    assert found is not None
    strips = dict(found.strips)
    assert tuple(strips) == VARIANTS["passed"].model.roles
    assert "not changed" in strips["attn_k"]
