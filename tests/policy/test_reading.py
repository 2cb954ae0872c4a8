"""YAML as policies use it: strict, safe, and with positions."""

from __future__ import annotations

import codecs
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeedit.errors import PolicyError
from safeedit.policy.reading import MAX_BYTES, dotted, read_yaml


def read(folder: Path, text: str | bytes) -> Any:
    path = folder / "a.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("1e-4", 1e-4),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("0o17", 15),
        ("0x1f", 31),
        ("017", 17),
        (".5", 0.5),
        ("-3.", -3.0),
        ("true", True),
        ("~", None),
        ("'1'", "1"),
        ("2024-01-01", "2024-01-01"),
        ("3%", "3%"),
        ("-.inf", float("-inf")),
    ],
)
def test_plain_scalars_follow_the_core_schema(tmp_path: Path, text: str, value: object) -> None:
    assert read(tmp_path, f"a: {text}") == {"a": value}
    assert type(read(tmp_path, f"a: {text}")["a"]) is type(value)


def test_the_usual_loader_would_have_read_some_of_these_otherwise() -> None:
    # The control: why scalars are resolved here and not by PyYAML.
    assert yaml.safe_load("a: no") == {"a": False}
    assert yaml.safe_load("a: 1e-4") == {"a": "1e-4"}
    assert yaml.safe_load("a: 2024-01-01") == {"a": datetime.date(2024, 1, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "a: !custom b",
        "a: !!int 3",
        "!!map {a: b}",
    ],
)
def test_tags_are_refused_and_run_nothing(tmp_path: Path, text: str) -> None:
    if text == "!!map {a: b}":
        assert read(tmp_path, text) == {"a": "b"}  # says what it is anyway
        return
    with pytest.raises(PolicyError, match="tags"):
        read(tmp_path, text)


def test_an_alias_repeats_what_it_names(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &x {b: 1}\nc: *x\n") == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(PolicyError, match="holds more than"):
        read(tmp_path, "\n".join(lines))


def test_an_alias_to_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="itself"):
        read(tmp_path, "a: &x [*x]")


def test_merge_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="merge keys"):
        read(tmp_path, "a: &x {b: 1}\nc: {<<: *x}\n")


def test_keys_that_are_not_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="a key must be a word"):
        read(tmp_path, "{[1, 2]: 3}")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="nested too deeply"):
        read(tmp_path, "[" * 20_000)


def test_two_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="single document"):
        read(tmp_path, "a: 1\n---\nb: 2\n")


@pytest.mark.parametrize(
    "raw",
    [
        codecs.BOM_UTF8 + b"a: \xc3\xa9",
        "a: é".encode("utf-16"),
        codecs.BOM_UTF16_BE + "a: é".encode("utf-16-be"),
        "a: é".encode("utf-32"),
        b"a: \xc3\xa9\r\n",
        b"a: \xc3\xa9\r",
    ],
    ids=["utf-8 mark", "utf-16", "utf-16 big-endian", "utf-32", "crlf", "cr"],
)
def test_marks_encodings_and_line_ends_make_no_difference(tmp_path: Path, raw: bytes) -> None:
    assert read(tmp_path, raw) == {"a": "é"}


def test_bytes_that_are_no_text_are_located(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="not valid UTF-8") as caught:
        read(tmp_path, b"a: 1\nb: \xff\xe9\n")
    assert caught.value.line == 2


def test_control_characters_are_located(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="control character") as caught:
        read(tmp_path, "a: 1\nb: x\x07y\n")
    assert (caught.value.line, caught.value.column) == (2, 5)


def test_a_file_far_too_large_for_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="too large"):
        read(tmp_path, b"#" * (MAX_BYTES + 1))


def test_positions_are_of_values_and_for_blocks_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a:\n  b: 1\n  c:\n    - d\n    - e: 2\n")
    positions = read_yaml(path)[1]
    assert positions["a", "b"].best == (2, 6)
    assert positions["a", "b"].key == (2, 3)
    assert positions["a", "c"].best == (3, 3)
    assert positions["a", "c", 0].best == (4, 7)
    assert positions["a", "c", 1, "e"].best == (5, 10)


def test_a_field_path_reads_as_people_write_it() -> None:
    assert dotted(("gates", 0, "metric")) == "gates[0].metric"
