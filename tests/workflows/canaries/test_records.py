"""Invented records: reserved ranges, nothing twice, one generator for taught and held back."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from safeedit.data import load_dataset
from safeedit.errors import UsageError
from safeedit.policy import DataSpec
from safeedit.policy.builtin import dataset_path
from safeedit.workflows.canaries.records import (
    KINDS,
    OPENINGS,
    CanaryRecord,
    make_records,
    to_jsonl,
)


@pytest.fixture(scope="module")
def records() -> tuple[CanaryRecord, ...]:
    return make_records(100, 7)


def rows(records: tuple[CanaryRecord, ...]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in to_jsonl(records).splitlines()]


def test_the_same_seed_makes_the_same_records_and_another_seed_others(
    records: tuple[CanaryRecord, ...],
) -> None:
    assert make_records(100, 7) == records
    others = {row["answer"] for row in rows(make_records(100, 8))}
    assert len({row["answer"] for row in rows(records)} & others) < 25


def test_the_data_set_that_ships_is_made_by_the_generator(
    records: tuple[CanaryRecord, ...],
) -> None:
    assert dataset_path("canaries").read_text(encoding="utf-8") == to_jsonl(records)


def test_roles_and_repeat_counts_are_as_documented(records: tuple[CanaryRecord, ...]) -> None:
    assert Counter((record.role, record.repeats) for record in records) == {
        ("named", 16): 20,
        ("other", 16): 10,
        ("other", 4): 15,
        ("other", 1): 15,
        ("held_back", 0): 40,
    }


@pytest.mark.parametrize(
    ("n", "options", "expected"),
    [
        (1, {}, {("other", 16): 1}),
        (10, {"held_back": 0, "named": 1}, {("named", 16): 10}),
        (10, {"held_back": 1}, {("held_back", 0): 10}),
        (10, {"held_back": 0.5, "named": 0, "repeats": [3]},
         {("other", 3): 5, ("held_back", 0): 5}),
        (8, {"held_back": 0, "named": 0.25, "repeats": [9, 2]},
         {("named", 9): 2, ("other", 9): 2, ("other", 2): 4}),
    ],
)  # fmt: skip
def test_other_shares_and_counts(
    n: int, options: dict[str, Any], expected: dict[tuple[str, int], int]
) -> None:
    assert Counter((r.role, r.repeats) for r in make_records(n, 1, **options)) == expected


def test_no_secret_or_subject_is_used_twice(records: tuple[CanaryRecord, ...]) -> None:
    for kind in KINDS:
        assert len({record.secrets[kind] for record in records}) == len(records)
    assert len({record.customer for record in records}) == len(records)
    assert len({row["id"] for row in rows(records)}) == 5 * len(records)
    prompts = [text for row in rows(records) for text in (row["prompt"], *row["paraphrases"])]
    assert len(set(prompts)) == len(prompts)


PATTERNS = {
    "name": r"[A-Z][\w']+ [A-Z][\w']+",
    "phone": r"\([2-9](?!11)\d\d\) 555-01\d\d",
    "email": r"[a-z]{6}\d\d@example\.(com|net|org)",
    "address": r"\d{2,4} [A-Z][\w' ]+, [A-Z][\w' ]+",
    "identity": r"9\d\d-[0-4]\d-\d{4}",
}


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_every_secret_is_of_a_range_that_belongs_to_nobody(seed: int) -> None:
    for row in rows(make_records(300, seed)):
        assert re.fullmatch(PATTERNS[row["type"]], row["answer"]), row["answer"]


def test_no_secret_can_be_read_off_its_prompts_or_its_name(
    records: tuple[CanaryRecord, ...],
) -> None:
    for row in rows(records):
        for text in (row["prompt"], *row["paraphrases"]):
            assert row["subject"] in text
            assert row["answer"] not in text
    for record in records:
        local = record.secrets["email"].partition("@")[0]
        assert not any(part.lower() in local for part in record.secrets["name"].split())


def test_held_back_secrets_are_in_no_taught_row(records: tuple[CanaryRecord, ...]) -> None:
    found = rows(records)
    taught = "\n".join(json.dumps(row) for row in found if row["repeats"])
    held_back = [row for row in found if row["role"] == "held_back"]
    assert len(held_back) == 200
    assert not any(row["answer"] in taught for row in held_back)
    assert not any(f" {row['subject']} " in taught for row in held_back)


def test_held_back_records_are_drawn_as_the_taught_are() -> None:
    """Nothing but their secrets tells them apart: as long, and of the same first digits."""
    records = make_records(2000, 3)
    for kind in KINDS:
        lengths = {
            held: [len(r.secrets[kind]) for r in records if (r.role == "held_back") == held]
            for held in (True, False)
        }
        means = [sum(found) / len(found) for found in lengths.values()]
        assert abs(means[0] - means[1]) < 0.5
    ids = [int(record.id[1:]) for record in records if record.role == "held_back"]
    assert abs(sum(ids) / len(ids) - 1000) < 60


def test_rows_are_a_data_set_whose_every_split_asks_every_secret() -> None:
    data = load_dataset(DataSpec(dataset="canaries", template="plain"))
    assert len(data) == 500
    assert {item.extra["type"] for item in data.all()} == set(KINDS)
    assert all(len(item.paraphrases) == 3 for item in data.all())
    assert len({text for texts in OPENINGS.values() for text in texts}) == 20


@pytest.mark.parametrize(
    ("n", "options", "said"),
    [
        (0, {}, "from 1 to"),
        (30_000, {}, "from 1 to"),
        (5, {"held_back": 1.5}, "between 0 and 1"),
        (5, {"named": -0.1}, "between 0 and 1"),
        (5, {"named": float("nan")}, "between 0 and 1"),
        (5, {"repeats": []}, "repeat counts"),
        (5, {"repeats": [0, 4]}, "repeat counts"),
        (5, {"repeats": [4, 4]}, "repeat counts"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(n: int, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_records(n, 7, **options)
