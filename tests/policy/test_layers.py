"""Layers as a policy writes them: numbers, lists and shares of the depth."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from safeedit.errors import UsageError
from safeedit.policy.layers import Layers, resolve


class Holder(BaseModel):
    layers: Layers


@pytest.mark.parametrize(
    ("written", "depth", "expected"),
    [
        ("3-8", 30, (3, 4, 5, 6, 7, 8)),
        (" 0 - 1 ", 30, (0, 1)),
        ("4-4", 30, (4,)),
        ([3, 4, 5], 30, (3, 4, 5)),
        ([5, 3, 5], 30, (3, 5)),
        (7, 30, (7,)),
        ("10%-30%", 30, tuple(range(3, 9))),
        ("0%-100%", 3, (0, 1, 2)),
        ("50%-100%", 3, (1, 2)),
        ("12.5% - 25%", 8, (1,)),
        ("100%-100%", 4, (3,)),
        ("0%-0%", 4, (0,)),
        ("0%-1%", 2, (0,)),
    ],
)
def test_layers_are_read_in_every_way_of_writing_them(
    written: Any, depth: int, expected: tuple[int, ...]
) -> None:
    assert resolve(Holder(layers=written).layers, depth) == expected


@pytest.mark.parametrize("depth", [100, 200, 1000])
def test_shares_that_fall_on_a_layer_are_exact(depth: int) -> None:
    # In binary .07 * 100 is more than 7, and .29 * 100 less than 29.
    per = depth // 100
    for share in range(100):
        found = resolve(f"0%-{share + 1}%", depth)
        assert found[-1] == (share + 1) * per - 1
        assert resolve(f"{share}%-100%", depth)[0] == share * per


@given(
    shares=st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted),
    depth=st.integers(1, 130),
)
def test_a_share_always_means_at_least_one_layer_of_the_model(
    shares: list[int], depth: int
) -> None:
    start, end = (Fraction(share, 10) for share in shares)
    found = resolve(Holder(layers=f"{float(start)}%-{float(end)}%").layers, depth)
    assert found
    assert all(0 <= layer < depth for layer in found)
    assert found == tuple(range(found[0], found[-1] + 1))
    assert found[0] == min(floor(start * depth / 100), depth - 1)
    assert found[-1] == max(ceil(end * depth / 100) - 1, found[0])


@pytest.mark.parametrize(
    "written",
    [
        "8-3", "30%-10%", "10%-130%", "3-30%", "3", "all", "", "-1-3", [], [-1], [1.0], [True],
        True, -1, 2.5, None, ["3"], {"from": 3}, "1e1-20", "3-8;9",
    ],
)  # fmt: skip
def test_what_are_no_layers_is_refused_with_examples(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"3-8, 10%-30% or \[3, 4, 5\]"):
        Holder(layers=written)


@pytest.mark.parametrize("written", ["28-30", [2, 30], 30])
def test_a_layer_the_model_does_not_have_is_refused(written: Any) -> None:
    with pytest.raises(UsageError, match="layer 30 does not exist: the model has 30") as caught:
        resolve(Holder(layers=written).layers, 30)
    assert "0 to 29" in caught.value.remedy
    assert caught.value.field == "layers"


def test_the_field_survives_being_written_to_a_record_and_read_again() -> None:
    for written in ("3-8", "10%-30%", [3, 4], 5):
        holder = Holder(layers=written)
        assert Holder.model_validate(json.loads(holder.model_dump_json())) == holder


def test_the_schema_accepts_what_the_field_does() -> None:
    from jsonschema import Draft202012Validator

    check = Draft202012Validator(Holder.model_json_schema())
    for good in ("3-8", "10%-30%", "12.5%-20%", 3, [1, 2]):
        assert check.is_valid({"layers": good}), good
    for bad in ("all", -1, [], [-1], "3", None):
        assert not check.is_valid({"layers": bad}), bad
