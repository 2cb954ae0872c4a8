"""Heat maps over layers."""

from __future__ import annotations

from safeedit.report.heatmap import Cell, heat_map


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
