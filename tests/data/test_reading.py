"""Files of rows, well-formed and not."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.sources import SECRET, jsonl, load, refused, rows

CONTENT = [
    {"id": "a", "prompt": "Où est-il?", "answer": "ici", "aliases": ["ici", "là"]},
    {"id": "b", "prompt": 'A "quoted", long\nquestion?', "answer": "x", "aliases": ["y"]},
    {"id": "c", "prompt": "Third?", "answer": "z", "aliases": []},
]


def as_lines() -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in CONTENT)


def as_csv() -> str:
    return (
        "id,prompt,answer,aliases\n"
        'a,Où est-il?,ici,"[""ici"", ""là""]"\n'
        'b,"A ""quoted"", long\nquestion?",x,y\n'
        "\n"
        "c,Third?,z,\n"
    )


def digest_of(path: Path) -> str:
    return load(path).digest


@pytest.fixture
def digest(tmp_path: Path) -> str:
    return digest_of(jsonl(tmp_path / "reference.jsonl", CONTENT))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", as_lines()),
        ("a.ndjson", as_lines()),
        ("a.json", as_lines()),
        ("a.json", json.dumps(CONTENT)),
        ("a.json", json.dumps(CONTENT, indent=2)),
        ("a.jsonl", json.dumps(CONTENT)),  # as Knowledge Sanitization published it
        ("a.csv", as_csv()),
        (
            "a.tsv",
            as_csv().replace(",", "\t").replace('"\t long', '", long').replace('"\t "', '", "'),
        ),
        ("noext", as_lines()),
    ],
)
def test_every_container_reads_the_same(tmp_path: Path, digest: str, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert digest_of(path) == digest


def test_parquet_reads_the_same(tmp_path: Path, digest: str) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CONTENT), path)
    assert digest_of(path) == digest


def test_parquet_nulls_are_absent_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"prompt": "a", "answer": None}, {"prompt": "b"}])
    pyarrow.parquet.write_table(table, path)
    assert [item.answer for item in load(path)] == [None, None]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"],
)
def test_encodings_with_marks_and_line_ends_read_the_same(
    tmp_path: Path, digest: str, encoding: str, end: str
) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + as_lines().replace("\n", end).encode(encoding))
    assert digest_of(path) == digest


def test_a_csv_file_with_a_mark_and_crlf_reads_the_same(tmp_path: Path, digest: str) -> None:
    path = tmp_path / "a.csv"
    head, rest = as_csv().split("\n", 1)
    path.write_bytes(f"{head}\r\n{rest}".encode("utf-8-sig"))
    assert digest_of(path) == digest


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert load(path).all()[0].prompt == "one\u2028two\x85three"


def test_utf_16_without_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16-le"))
    assert "NUL" in refused(path).message


def test_latin_1_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    error = refused(path)
    assert (error.line, error.message) == (2, "is not valid UTF-8 text")


@pytest.mark.parametrize(
    "line",
    [
        f"{SECRET}",
        f'{{"prompt": "{SECRET}"',
        f'{{"prompt": "{SECRET}",}}',
        f"{{'prompt': '{SECRET}'}}",
        f'{{"prompt": "{SECRET}"}} {SECRET}',
        f'{{"prompt": "{SECRET}", "score": NaN}}',
        f'{{"prompt": "{SECRET}", "prompt": "{SECRET}"}}',
        f'{{"prompt": "{SECRET}", "n": {"9" * 5000}}}',
        "[" * 100_000,
    ],
    ids=[
        "word", "cut off", "comma", "single quotes", "extra", "nan", "twice", "endless", "deep",
    ],
)  # fmt: skip
def test_a_line_that_is_not_json_is_located_and_not_quoted(tmp_path: Path, line: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(2))
    path.write_text(path.read_text() + "\n" + line + "\n")
    error = refused(path)
    assert error.line == 4
    assert error.message.startswith(("is not JSON", "is nested too deeply"))


@pytest.mark.parametrize("line", ["[1]", '"text"', "null", "3"])
def test_a_line_that_is_no_object_is_located(tmp_path: Path, line: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(2))
    path.write_text(path.read_text() + line + "\n")
    error = refused(path)
    assert error.line == 3
    assert "should be a JSON object" in error.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"prompt": "a"},\n{"prompt": b}\n]', 3),
        ('[\n{"prompt": "a"}\n{"prompt": "b"}\n]', 3),
        ('[\n{"prompt": "a"},\n', 3),
        ('[\n{"prompt": "a"},\n]', 3),
        ('[\n{"prompt": "a"}\n]\nmore', 4),
        ('[\n{"prompt": "a"},\n"b"]', 3),
    ],
)
def test_a_fault_in_an_array_is_located(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert refused(path).line == line


def test_in_an_array_on_one_line_rows_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*rows(3), {"prompt": rows(2)[1]["prompt"], "answer": "other"}]))
    assert "row 2 and row 4" in refused(path).message


def test_a_csv_row_of_another_length_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,answer\n"two\nlines",b\n{SECRET},b,c\n')
    error = refused(path)
    assert (error.line, error.message) == (4, "has 3 cells where the header has 2")


def test_a_csv_file_with_open_quotes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,answer\n"{SECRET},b\n')
    assert "not valid CSV" in refused(path).message


def test_a_csv_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,prompt\na,b\n")
    assert "same name" in refused(path).message


def test_a_csv_file_without_header_shows_no_record_as_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{SECRET},b\nc,d\n")
    refused(path)
    refused(path, columns={"prompt": "question"})
    refused(path, where={"role": "near"})


def test_lists_in_csv_cells_are_json_or_parted_by_bars(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,aliases\na,x|y | z\nb,"[""p|q""]"\n')
    assert [item.aliases for item in load(path)] == [("x", "y", "z"), ("p|q",)]


def test_a_csv_list_that_is_cut_off_is_located(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,aliases\na,[{SECRET}\n")
    assert refused(path).line == 2


def test_numbers_and_booleans_of_a_csv_file_can_be_filtered_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,n,flag\na,1,True\nb,2,false\n")
    assert [item.prompt for item in load(path, where={"n": 2})] == ["b"]
    assert [item.prompt for item in load(path, where={"flag": True})] == ["a"]


def test_a_text_file_is_read_by_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\n  three\n \nfour")
    assert [(item.id, item.prompt) for item in load(path)] == [
        ("1", "one\ntwo"),
        ("5", "three"),
        ("7", "four"),
    ]


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x01\x02")
    assert "what kind of file" in refused(path).message
    binary = tmp_path / "items.pkl"
    binary.write_bytes(b"\x80\x04\xff")
    assert "what kind of file" in refused(binary).message


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"x" * 40)
    assert "Parquet" in refused(path).message


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows())

    def denied(path: Path, *, limit: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    # root may read everything
    monkeypatch.setattr("safeedit.data.reading.read_regular", denied)
    assert "permission denied" in refused(path).message
