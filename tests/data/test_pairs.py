"""Contrastive pairs: from rows, from whole texts, from scored continuations, and as shipped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from safeedit.data import SPLITS, Item, load_dataset
from safeedit.data.formats import find_format
from safeedit.data.pairs import Pair, read_pairs
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from tests.benchmark_data import benchmark
from tests.data.sources import SECRET, jsonl, load, refused


def rtp(prompt: str, text: str | None, score: float | None, lead: float = 0.1) -> dict[str, Any]:
    return {
        "prompt": {"text": prompt, "toxicity": lead},
        "continuation": {"text": text, "toxicity": score},
        "challenging": False,
    }


def test_a_row_is_a_prompt_that_goes_on_in_two_ways(tmp_path: Path) -> None:
    row = {"prompt": "He is", "toxic": "a fool.", "neutral": "a baker."}
    (pair,) = read_pairs(load(jsonl(tmp_path / "a.jsonl", [row])).all())
    assert pair == Pair("He is", "a fool.", "He is", "a baker.")


def test_whole_texts_and_pairs_that_share_an_opening_are_read_as_pairs(tmp_path: Path) -> None:
    rows = [
        {"toxic": "You fool.", "neutral": "You baker."},
        {"prompt": "He is", "toxic": "a fool.", "neutral": "a baker."},
        {"prompt": "He is", "toxic": "a liar.", "neutral": "a doctor.", "split": "fit"},
    ]
    for row in rows:
        row["split"] = "fit"
    data = load(jsonl(tmp_path / "a.jsonl", rows), format="pairs")
    assert read_pairs(data.items("fit")) == (
        Pair("", "You fool.", "", "You baker."),
        Pair("He is", "a fool.", "He is", "a baker."),
        Pair("He is", "a liar.", "He is", "a doctor."),
    )
    error = refused(jsonl(tmp_path / "b.jsonl", rows[:1]))
    assert "format: pairs" in str(error)


def test_a_pair_that_lacks_a_text_is_refused_and_counted_but_not_quoted() -> None:
    items = [
        Item(id="1", prompt=SECRET, extra={"toxic": f"{SECRET} fool", "neutral": "x"}),
        Item(id="2", prompt=f"{SECRET}2", extra={"toxic": " ", "neutral": SECRET}),
        Item(id="3", prompt=f"{SECRET}3", extra={"neutral": SECRET}),
    ]
    with pytest.raises(DataError, match="2 of 3 items") as caught:
        read_pairs(items)
    assert SECRET not in str(caught.value)
    with pytest.raises(DataError, match="toxic"):
        read_pairs(())


def prompts_in(split: str, count: int) -> list[str]:
    """Openings that the format puts in one split."""
    texts = (f"opening {number}" for number in itertools.count())
    convert = find_format("realtoxicityprompts").convert
    inside = (text for text in texts if convert({"prompt": {"text": text}})["split"] == split)
    return list(itertools.islice(inside, count))


def test_scored_continuations_pair_by_length_then_by_their_prompts_scores(tmp_path: Path) -> None:
    t1, t2, n1, n2, n3, between, null, empty = prompts_in("fit", 8)
    (elsewhere,) = prompts_in("test", 1)
    rows = [
        rtp(elsewhere, "what good bikers", 0.05, lead=0.6),
        rtp(t1, "such a fool", 0.9, lead=0.6),
        rtp(n1, "such nice bakers", 0.05, lead=0.1),
        rtp(n2, "what good bakers", 0.05, lead=0.5),
        rtp(n3, "one two three four five six", 0.0, lead=0.6),
        rtp(t2, "liar", 0.5),
        rtp(between, "so so text", 0.3),
        rtp(null, "no score here", None),
        rtp(empty, " ", 0.0),
    ]
    data = load(jsonl(tmp_path / "a.jsonl", rows), format="rtp_pairs")
    assert set(read_pairs(data.all())) == {
        Pair(t1, "such a fool", n2, "what good bakers"),
        Pair(t2, "liar", n1, "such nice bakers"),
    }


def test_published_scores_give_pairs_each_text_once() -> None:
    path = benchmark("realtoxicityprompts/rtp_dev.jsonl")
    pairs = read_pairs(load_dataset(DataSpec(file=str(path), format="rtp_pairs"), Path()).all())
    assert len(pairs) > 200
    assert len({pair.neutral_opening for pair in pairs}) == len(pairs)
    prompts = load_dataset(DataSpec(file=str(path), format="realtoxicityprompts"), Path())
    tested = {item.prompt for item in prompts.items("test")}
    fitted = read_pairs(
        load_dataset(DataSpec(file=str(path), format="rtp_pairs"), Path()).items("fit")
    )
    openings = {p.toxic_opening for p in fitted} | {p.neutral_opening for p in fitted}
    assert len(fitted) > 100
    assert not openings & tested
    gaps = [abs(len(p.toxic.split()) - len(p.neutral.split())) for p in pairs]
    assert sum(gaps) / len(gaps) < 1


def test_the_pairs_that_ship_are_matched_and_divided() -> None:
    data = load_dataset(DataSpec(dataset="toxicity_pairs"), Path())
    assert [len(data.items(split)) for split in SPLITS] == [120, 40, 40]
    texts: set[str] = set()
    for split in SPLITS:
        pairs = read_pairs(data.items(split))
        for pair in pairs:
            words = [len(text.split()) for text in (pair.toxic, pair.neutral)]
            assert abs(words[0] - words[1]) <= 2
        ends = {text for pair in pairs for text in (pair.toxic, pair.neutral)}
        assert len(ends) == 2 * len(pairs)
        assert not ends & texts
        texts |= ends
