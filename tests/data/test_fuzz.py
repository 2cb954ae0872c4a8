"""Whatever a file holds, it loads or a DataError says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from safeedit.data import FORMATS, SPLITS, Dataset
from safeedit.errors import DataError
from tests.data.sources import ERASED, load

SETTINGS = settings(
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS)
COLUMNS = st.sampled_from(
    ["id", "prompt", "answer", "aliases", "paraphrases", "subject", "split", "role", "text",
     "question", "input", "output", "output_gold", "case_id", "requested_rewrite", "attribute",
     "src", "answers", "name", "email", "challenging", "Prompt", "instruction", "messages",
     "conversations", "choices", "data", "edit", "locality", "portability", "questions",
     "ground_truth", "target_new", "labels", "concept"]
)  # fmt: skip
ROWS = st.lists(st.dictionaries(COLUMNS, VALUES), max_size=4)


def loads_or_refuses(path: Path, **spec: Any) -> Dataset | None:
    try:
        return load(path, ERASED, **spec)
    except DataError:
        return None


TURNS = st.lists(
    st.dictionaries(st.sampled_from(["role", "from", "content", "value"]), VALUES, max_size=3),
    max_size=3,
)
NESTED = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(COLUMNS | st.sampled_from(["prompt", "str", "value"]), inner, max_size=3)
    ),
    max_leaves=12,
)


NEW = ["auto", "chat", "alpaca", "multiple_choice"]
NEW += [name for name in FORMATS if name.startswith(("knowedit", "ripple", "mquake"))]


@pytest.mark.parametrize("format_", NEW)
@SETTINGS
@given(content=st.lists(st.dictionaries(COLUMNS, NESTED | TURNS, max_size=5), max_size=3))
def test_any_nested_rows_are_read_or_refused(
    tmp_path: Path, format_: str, content: list[dict[str, Any]]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    loads_or_refuses(path, format=format_)


@pytest.mark.hostile
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format_", ["auto", *FORMATS])
@settings(SETTINGS, max_examples=3000)
@given(content=st.lists(st.dictionaries(COLUMNS, NESTED | TURNS, max_size=5), max_size=3))
def test_thousands_of_nested_rows_are_read_or_refused(
    tmp_path: Path, format_: str, content: list[dict[str, Any]]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    loads_or_refuses(path, format=format_)


@pytest.mark.parametrize("depth", [50, 900, 5000, 200_000])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_rows_of_any_depth_are_read_or_refused(tmp_path: Path, depth: int, suffix: str) -> None:
    for opening, closing in (("[", "]"), ('{"prompt": ', "}"), ('{"prompt": "a?", "x": [', "]}")):
        path = tmp_path / f"a{suffix}"
        path.write_text(opening * depth + "1" + closing * depth)
        loads_or_refuses(path)
        path.write_text(f'prompt,aliases\na?,"{"[" * depth}"\n')
        loads_or_refuses(path)


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".csv.zst", ""]
)
@SETTINGS
@given(raw=st.binary(max_size=100) | st.text(alphabet='{}[]",:\n\r\0a1é ', max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path: Path, suffix: str, raw: bytes | str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    loads_or_refuses(path)


@pytest.mark.parametrize("format_", ["auto", *FORMATS])
@SETTINGS
@given(content=ROWS)
def test_any_rows_are_read_or_refused(
    tmp_path: Path, format_: str, content: list[dict[str, Any]]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    loads_or_refuses(path, format=format_)


QUESTIONS = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from("abcdef")},
        optional={
            "answer": st.sampled_from(["x", "X", "y"]),
            "split": st.sampled_from(SPLITS),
            "paraphrases": st.lists(st.sampled_from("abcdefghijk"), max_size=5),
        },
    ),
    max_size=6,
)


@pytest.mark.parametrize("role", [None, ERASED])
@SETTINGS
@given(content=QUESTIONS)
def test_what_is_loaded_has_no_phrasing_in_two_splits(
    tmp_path: Path, role: Any, content: list[dict[str, Any]]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    try:
        data = load(path, role)
    except DataError:
        return
    event("loaded")
    for first, second in (("fit", "test"), ("fit", "validation"), ("validation", "test")):
        one = {p.text for p in data.phrasings(first)}  # type: ignore[arg-type]
        assert not one & {p.text for p in data.phrasings(second)}  # type: ignore[arg-type]
