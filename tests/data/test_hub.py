"""Data through Hugging Face ``datasets``; no network: a local folder plays the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from safeedit.data import load_dataset
from safeedit.errors import DataError
from safeedit.policy import DataSpec
from tests.data.sources import SECRET, jsonl, load, refused, rows


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which the library was called; it reads a local file instead."""
    path = jsonl(tmp_path / "hub.jsonl", rows(20))
    real, seen = datasets.load_dataset, dict[str, Any]()

    def local(name: str, config: str | None, **more: Any) -> Any:
        seen.update(more, name=name, config=config)
        return real(
            "json", data_files={"train": str(path)}, split=more["split"],
            streaming=more["streaming"], cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", local)
    return seen


@pytest.mark.parametrize("stream", [False, True])
def test_a_hub_data_set_is_read_with_its_revision_config_and_split(
    hub: dict[str, Any], stream: bool
) -> None:
    spec = DataSpec(
        hub="someone/things", hub_config="small", hub_split="train", revision="abc", stream=stream
    )
    data = load_dataset(spec)
    assert len(data) == 20
    assert (data.name, data.source) == ("someone/things", "someone/things")
    assert (hub["name"], hub["config"], hub["revision"]) == ("someone/things", "small", "abc")
    assert hub["streaming"] is stream


def test_a_stream_stops_at_its_limit_and_takes_the_first_rows(hub: dict[str, Any]) -> None:
    data = load_dataset(DataSpec(hub="a", stream=True, limit=5))
    assert [item.id for item in data] == ["1", "2", "3", "4", "5"]


def test_an_unknown_split_of_the_hub_is_an_error_with_a_remedy(hub: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="can't be read") as caught:
        load_dataset(DataSpec(hub="a", hub_split="nowhere"))
    assert "hub_split" in caught.value.remedy


def test_a_hub_out_of_reach_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **more: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="ConnectionError") as caught:
        load_dataset(DataSpec(hub="a/b"))
    assert "save_to_disk" in caught.value.remedy


def test_a_stream_that_breaks_says_where_and_quotes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        yield rows(1)[0]
        raise TypeError(f"could not convert {SECRET}")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(DataError, match="TypeError in row 2") as caught:
        load_dataset(DataSpec(hub="a/b", stream=True))
    assert SECRET not in str(caught.value)


def test_a_folder_of_the_hub_names_name_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "things").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="also a file or folder"):
        load_dataset(DataSpec(hub="things"))


def test_a_saved_data_set_reads_as_a_file_does(tmp_path: Path) -> None:
    digest = load(jsonl(tmp_path / "a.jsonl", rows())).digest
    datasets.Dataset.from_list(rows()).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").digest == digest


def test_a_saved_dictionary_of_splits_reads_the_one_named(tmp_path: Path) -> None:
    parts = {
        "train": datasets.Dataset.from_list(rows(3)),
        "dev": datasets.Dataset.from_list(rows(5)),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert len(load(tmp_path / "saved")) == 3
    assert len(load(tmp_path / "saved", hub_split="dev")) == 5
    assert refused(tmp_path / "saved", hub_split="test").remedy == "one of dev, train"


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    assert "saved data set" in refused(tmp_path / "saved").message


def test_a_checksum_of_a_folder_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows()).save_to_disk(tmp_path / "saved")
    assert "single files" in refused(tmp_path / "saved", sha256="0" * 64).message
