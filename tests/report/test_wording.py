"""Figures read the same everywhere."""

from __future__ import annotations

import pytest

from safeedit.report import wording


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"), (0.0, "0.000"), (0.0125, "0.013"), (-0.5, "−0.500"), (3.14159, "3.142"),
        (31.4159, "31.42"), (314.159, "314.2"), (31415.9, "31,416"), (4.2e-7, "4.2e-07"),
        (2.5e9, "2.5e+09"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_figures_keep_the_digits_that_matter(value: float | None, expected: str) -> None:
    assert wording.number(value) == expected


def test_a_change_carries_its_sign() -> None:
    assert wording.number(0.5, signed=True) == "+0.500"
    assert wording.number(-0.5, signed=True) == "−0.500"
    assert wording.number(0.0, signed=True) == "0.000"


@pytest.mark.parametrize(
    ("p", "expected"), [(None, ""), (0.5, "p = 0.5"), (0.0321, "p = 0.032"), (1e-9, "p < 0.001")]
)
def test_p_values_do_not_pretend_precision(p: float | None, expected: str) -> None:
    assert wording.p_value(p) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert wording.duration(seconds) == expected


def test_sizes_are_in_powers_of_ten() -> None:
    assert wording.size(999) == "999 B"
    assert wording.size(2_310_000_000) == "2.31 GB"


def test_shares_of_next_to_nothing_are_not_nothing() -> None:
    assert wording.share(0, 10) == "0.0 %"
    assert wording.share(1, 100_000) == "0.001 %"
    assert wording.share(1, 0) == "–"


def test_lists_read_as_sentences() -> None:
    assert wording.listing([]) == ""
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b"]) == "a and b"
    assert wording.listing(["a", "b", "c"]) == "a, b, and c"
