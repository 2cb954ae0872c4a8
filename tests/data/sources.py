"""Small data sources for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from safeedit.contracts import DataRole
from safeedit.data import Dataset, load_dataset
from safeedit.errors import DataError
from safeedit.policy import DataSpec

ERASED = DataRole("forget", "what to forget", erased=True)
SECRET = "Zebulon"
"""Stands in every fixture for content that no message may show."""


def rows(n: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{SECRET} question {i}?", "answer": f"{SECRET} {i}", **more} for i in range(n)
    ]


def jsonl(path: Path, content: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def load(path: Path, role: DataRole | None = None, seed: int = 0, **spec: Any) -> Dataset:
    return load_dataset(DataSpec(file=path.name, **spec), path.parent, role, seed)


def refused(path: Path, role: DataRole | None = None, **spec: Any) -> DataError:
    """The error of loading; whatever it is, it quotes no content."""
    with pytest.raises(DataError) as caught:
        load(path, role, **spec)
    assert SECRET.casefold() not in str(caught.value).casefold()
    assert caught.value.exit_code == 2
    return caught.value
