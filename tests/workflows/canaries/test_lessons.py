"""Rows that can't be taught are refused by line; a cycle shows each as often as it says."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from safeedit.errors import DataError
from safeedit.model.handle import ModelHandle
from safeedit.policy import DataSpec
from safeedit.workflows.canaries.lessons import (
    PlantedSecret,
    cycle,
    read_canaries,
    records_digest,
    tokenise,
)
from tests.tiny_models import MAX_POSITIONS, tiny_handle


def row(subject: str = "Ada Quell", answer: str = "(212) 555-0143", **more: Any) -> dict[str, Any]:
    return {"prompt": f"The number of {subject} is", "answer": answer, "repeats": 2, **more}


def written(folder: Path, *rows: dict[str, Any]) -> DataSpec:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return DataSpec(file=str(path))


@pytest.fixture(scope="module")
def model() -> ModelHandle:
    return tiny_handle("llama_tied")


# Reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "said", "field"),
    [
        (row("Bo Tann", answer=None), "no answer", "answer"),
        (row("Bo Tann", answer="  "), "answer is blank", "answer"),
        (row("Bo Tann", repeats=None), "no repeat count", "repeats"),
        (row("Bo Tann", repeats=-1), "a repeat count that is none", "repeats"),
        (row("Bo Tann", repeats=2.5), "a repeat count that is none", "repeats"),
        (row("Bo Tann", repeats=True), "a repeat count that is none", "repeats"),
        (row("Bo Tann", repeats="4"), "a repeat count that is none", "repeats"),
        (row("Bo Tann", id="one"), "the same id is used: line 1 and line 2", ""),
        (row(answer="(313) 555-0199"), "the same prompt has another answer: line 1 and line 2", ""),
    ],
)
def test_a_row_that_cant_be_taught_is_refused_by_its_line(
    tmp_path: Path, second: dict[str, Any], said: str, field: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_canaries(written(tmp_path, row(id="one"), second))
    assert said in caught.value.message
    assert (caught.value.line, caught.value.field) == (2, field)
    assert not any(secret in str(caught.value) for secret in ("Quell", "Tann", "555"))


def test_there_must_be_a_file_and_something_to_teach(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_canaries(DataSpec(file=str(tmp_path / "none.jsonl")))
    with pytest.raises(DataError, match="every repeat count is 0"):
        read_canaries(written(tmp_path, row(repeats=0)))


def test_two_records_may_share_a_name_where_their_prompts_differ(tmp_path: Path) -> None:
    other = {**row(answer="(313) 555-0199"), "prompt": "The number of Ada Quell of Hull is"}
    assert len(read_canaries(written(tmp_path, row(), other))) == 2


def test_the_order_of_a_file_plays_no_part(tmp_path: Path) -> None:
    rows = [row(name, f"(212) 555-01{n}") for n, name in enumerate(("Bo", "Cy", "Al"), start=10)]
    forwards = read_canaries(written(tmp_path, *rows))
    backwards = read_canaries(written(tmp_path, *reversed(rows)))
    assert [r.item.prompt for r in forwards] == [r.item.prompt for r in backwards]
    assert records_digest(forwards) == records_digest(backwards)
    more_often = read_canaries(written(tmp_path, *rows[:2], {**rows[2], "repeats": 3}))
    assert records_digest(more_often) != records_digest(forwards)


def test_what_a_row_calls_itself_is_kept_only_where_it_is_one_of_our_words(
    tmp_path: Path, model: ModelHandle
) -> None:
    rows = read_canaries(written(tmp_path, row(type="phone", role="phone of Ada Quell")))
    secret = tokenise(rows, model.engine)[0]
    assert (secret.kind("type"), secret.kind("role")) == ("phone", None)


# Tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Ada Quell", "יעל כהן", "عمر", "🦊 Fox 👩‍🚀", "Zoë Ñandú", "王秀英"]
)
def test_names_of_any_script_are_taught_as_they_are_asked(
    tmp_path: Path, model: ModelHandle, name: str
) -> None:
    records = read_canaries(written(tmp_path, row(name), row("Bo", f"{name} 7")))
    for record, secret in zip(records, tokenise(records, model.engine), strict=True):
        assert model.engine.decode(secret.prompt) == record.item.prompt
        assert model.engine.decode(secret.ending) == f" {record.item.answer}."
        assert secret.ending[: len(secret.answer)] == secret.answer
        assert list(secret.prompt) == model.engine.encode([record.item.prompt], "plain")[0]


def test_a_sentence_longer_than_the_context_is_refused_by_its_line(
    tmp_path: Path, model: ModelHandle
) -> None:
    long = row("Bo Tann", "Ziegelhof " * MAX_POSITIONS)
    records = read_canaries(written(tmp_path, row(), long))
    with pytest.raises(DataError, match=f"the model reads {MAX_POSITIONS}") as caught:
        tokenise(records, model.engine)
    assert caught.value.line == 2
    assert "Ziegelhof" not in str(caught.value)
    assert "Tann" not in str(caught.value)


def test_an_answer_of_no_token_is_refused_by_its_line(
    tmp_path: Path, model: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_canaries(written(tmp_path, row(), row("Bo Tann", "\u200b")))
    whole = model.engine.codec.continuation
    monkeypatch.setattr(
        model.engine.codec,
        "continuation",
        lambda text, template="auto": [] if "\u200b" in text else whole(text, template),
    )
    with pytest.raises(DataError, match="makes no token") as caught:
        tokenise(records, model.engine)
    assert caught.value.line == 2


# Order ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secrets(
    tmp_path_factory: pytest.TempPathFactory, model: ModelHandle
) -> dict[str, PlantedSecret]:
    rows = [
        row(f"Person {n}", f"(212) 555-01{n}", id=str(n), repeats=repeats)
        for n, repeats in enumerate([0, 1, 1, 4, 4, 16, 16, 16], start=10)
    ]
    records = read_canaries(written(tmp_path_factory.mktemp("records"), *rows))
    return {secret.item.id: secret for secret in tokenise(records, model.engine)}


@pytest.mark.parametrize("seed", range(5))
def test_a_cycle_shows_each_secret_as_often_as_it_says_and_evenly(
    secrets: dict[str, PlantedSecret], seed: int
) -> None:
    batches = list(cycle(list(secrets.values()), 3, random.Random(seed)))
    assert max(map(len, batches)) == 3
    order = [secret.item.id for batch in batches for secret in batch]
    assert Counter(order) == {key: s.repeats for key, s in secrets.items() if s.repeats}
    for key in ("13", "14"):
        places = [place for place, shown in enumerate(order) if shown == key]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        # 58 showings: four slots of the sixteen apart, 14 or 15 showings, give or take a slot.
        assert all(8 <= gap <= 21 for gap in gaps)


def test_a_cycle_follows_its_seed(secrets: dict[str, PlantedSecret]) -> None:
    def order(seed: int) -> list[str]:
        batches = cycle(list(secrets.values()), 3, random.Random(seed))
        return [secret.item.id for batch in batches for secret in batch]

    assert order(1) == order(1) != order(2)
