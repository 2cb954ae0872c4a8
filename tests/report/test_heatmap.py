"""Heat maps over layers, and where the report draws one."""

from __future__ import annotations

from safeedit.report import html
from safeedit.report.heatmap import Cell, heat_map, traced
from tests.report.records import run_record

NOTES = {
    "effect_of_mlps": {
        "facts": 3,
        "restored_at_last_subject_by_layer": [0.1, 0.4, -0.2],
        "restored_at_last_by_layer": [0.0, 0.0, 0.1],
    }
}


def test_darker_is_more_and_less_than_nothing_has_another_colour() -> None:
    drawn = heat_map([("here", [Cell(0.1), Cell(0.4, "sure"), None, Cell(-0.2)])])
    assert drawn is not None
    assert (drawn.n_layers, drawn.largest) == (4, 0.4)
    ((name, strip),) = drawn.strips
    assert name == "here"
    assert "largest 0.400 in layer 1" in strip
    assert "layer 1: 0.400, sure" in strip
    assert 'fill-opacity="1.000"' in strip
    assert strip.count("empty") == 1
    assert strip.count("--fail") == 1
    assert heat_map([("here", [None, None])]) is None
    flat = heat_map([("here", [Cell(0.0)]), ("there", [None])])
    assert flat is not None
    assert "there: nothing" in flat.strips[1][1]


def test_what_an_editor_traced_is_drawn_in_the_report() -> None:
    drawn = traced(NOTES)
    assert drawn is not None
    assert [name for name, _ in drawn.strips] == ["last subject", "last"]
    assert traced({}) is None
    assert traced({"effect_of_mlps": {"prompts": 2}}) is None
    record = run_record()
    told = "bring back under noise"
    assert told not in html.render(record)
    edits = (record.edits[0].model_copy(update={"notes": NOTES}), *record.edits[1:])
    page = html.render(record.model_copy(update={"edits": edits}))
    assert page.count(told) == 1
    assert "layer 2: −0.200" in page
