"""Formats leave open what is secret, and ranks among them give exposures."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from safeedit.statistics.candidates import (
    ENOUGH,
    exposure,
    formats,
    free_digits,
    is_numeric,
    mid_rank,
)


@pytest.mark.parametrize("text", ["(212) 555-0143", "912-34-5678", "4111 1111", "AB12345", "٠١٢٣٤"])
def test_numbers_have_a_format(text: str) -> None:
    assert is_numeric(text)


@pytest.mark.parametrize(
    "text", ["Anita Bell", "12 Main Street, Oslo 4021", "x82@example.net", "123", ""]
)
def test_names_and_addresses_have_none(text: str) -> None:
    assert not is_numeric(text)


def test_digits_vary_and_the_rest_stays() -> None:
    (found,) = formats(["(21) A-7"])
    assert found.size == 1000
    others = list(found.others())
    assert len(set(others)) == 999
    assert "(21) A-7" not in others
    assert all(re.fullmatch(r"\(\d\d\) A-\d", text) for text in others)


def test_what_is_fixed_stays() -> None:
    (found,) = formats(["(212) 555-0143"], re.compile("555-01"))
    assert found.size == 10**5
    assert all(text[5:12] == " 555-01" for text in found.draw(50, "seed"))


def test_digits_of_another_script_stay_in_it() -> None:
    (found,) = formats(["٠١-٢"])
    assert found.size == 1000
    assert set("".join(found.draw(60, ""))) == set("٠١٢٣٤٥٦٧٨٩-")


def test_the_range_of_a_digit_is_read_off_many_secrets_of_one_shape() -> None:
    many = [f"9{n // 40 % 5 + 2}-{n:03}" for n in range(0, 40 * ENOUGH, 40)]
    assert {found.size for found in formats(many[:-1])} == {10**5}
    first = formats(many)[0]
    # The first digit is 9 in all, the second 2 to 6, and the third goes as far as there are.
    assert first.choices[:3] == ("9", "23456", "-")
    assert first.choices[3] == "".join(map(str, range(int(many[-1][3]) + 1)))
    assert first.secret == many[0]


def test_secrets_of_another_shape_do_not_count() -> None:
    many = [f"9-{n:03}" for n in range(ENOUGH)]
    assert formats([*many, "1234"])[-1].size == 10**4


def test_draws_are_distinct_fair_and_depend_on_the_seed_alone() -> None:
    (found,) = formats(["5555"])
    drawn = found.draw(800, "a")
    assert drawn == found.draw(800, "a")
    assert drawn != found.draw(800, "b")
    assert len(set(drawn)) == 800
    assert "5555" not in drawn
    firsts = np.bincount([int(text[0]) for text in drawn], minlength=10)
    assert firsts.min() > 50  # 80 of each are expected


def test_equal_scores_share_their_mean_rank() -> None:
    assert mid_rank(1.0, np.array([0.0, -3.0])) == 1
    assert mid_rank(1.0, np.array([2.0, 0.0, 5.0])) == 3
    assert mid_rank(1.0, np.ones(9)) == 5.5  # the mean of 1 to 10
    assert mid_rank(1.0, np.array([2.0, 1.0])) == 2.5


def test_exposure_goes_from_nothing_to_the_whole_format() -> None:
    assert exposure(1, 1024) == 10
    assert exposure(1024, 1024) == 0
    # Of a secret that might be any of them, 1 / ln 2 bits are expected.
    mean = np.mean([exposure(rank, 4096) for rank in range(1, 4097)])
    assert mean == pytest.approx(1 / math.log(2), abs=0.01)


def test_digits_that_all_secrets_of_one_shape_share_are_not_their_own() -> None:
    phones = [f"(2{n}7) 555-01{9 - n}{n}" for n in range(5)]
    (first, *_, word) = free_digits([*phones, "r2d2"])
    assert first == (False, True, False, *[False] * 5, True, True)
    assert word == (True, True)


def test_few_secrets_do_not_tell_what_is_shared() -> None:
    assert free_digits(["12", "13", "14", "15"]) == [(True, True)] * 4
    assert free_digits(["12", "13", "14", "15", "16", "16"]) == [(False, True)] * 6
