"""Rows through Hugging Face ``datasets``: from the hub, and from folders it saved.

The library takes seconds to import and is imported by the functions that need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safeedit.data.reading import RawRow, without_nulls
from safeedit.errors import DataError
from safeedit.policy import DataSpec


def read_saved(path: Path, split: str | None) -> Iterator[RawRow]:
    """The rows of a folder that ``save_to_disk`` wrote.

    Args:
        path: The folder.
        split: Of a saved DatasetDict; train by default.

    Raises:
        DataError: The folder is no saved data set, or has no such split.
    """
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            "is a folder, not a data file",
            file=path,
            remedy="name a file in it, or a published format that is a folder (format: ...)",
        )
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"can't be opened as a saved data set ({type(error).__name__})", file=path
        ) from error
    if isinstance(found, datasets.DatasetDict):
        found = _pick_split(found, split or "train", path)
    for number, columns in enumerate(found, start=1):
        yield RawRow(number, None, without_nulls(columns), path)


def _pick_split(found: Mapping[Any, Any], split: str, path: Path) -> Any:
    if split not in found:
        raise DataError(
            f"has no split {split!r}", file=path, field="hub_split",
            remedy=f"one of {', '.join(sorted(map(str, found)))}",
        )  # fmt: skip
    return found[split]


def read_hub(spec: DataSpec) -> Iterator[RawRow]:
    """The rows of a hub data set, through Hugging Face ``datasets``.

    Raises:
        DataError: The hub can't be reached, or has no such data set, split or revision.
    """
    import datasets

    assert spec.hub is not None
    if Path(spec.hub).exists():
        # The library prefers a folder of that name in the working directory to the hub.
        raise DataError(
            f"{spec.hub!r} is also a file or folder here, and would be read instead of the hub",
            field="hub",
            remedy="use file: for it, or run from another folder",
        )
    try:
        found: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            spec.hub,
            spec.hub_config,
            split=spec.hub_split or "train",
            revision=spec.revision,
            streaming=spec.stream,
        )
    except Exception as error:  # the library raises a dozen unrelated types
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise _unreadable(spec, f"{type(error).__name__}: {reason}") from error
    rows = iter(found)
    for number in itertools.count(1):
        try:
            columns = next(rows)
        except StopIteration:
            return
        except Exception as error:
            # Rows are being converted here, and such errors quote them.
            raise _unreadable(spec, f"{type(error).__name__} in row {number}") from None
        yield RawRow(number, None, without_nulls(columns), None)


def _unreadable(spec: DataSpec, reason: str) -> DataError:
    return DataError(
        f"hub data set {spec.hub!r} can't be read: {reason}",
        field="hub",
        remedy="check the name, hub_config, hub_split and revision, and the network; "
        "offline, save it first with datasets' save_to_disk and use file:",
    )
