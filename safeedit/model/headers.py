"""What the headers of a checkpoint's safetensors files say: names, dtypes, shapes.

A header is a few kilobytes at the front of a file of gigabytes, so everything that can be told
from it is told before any weight is read.

Fails with :class:`~safeedit.errors.ModelError`, which names the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeedit.errors import ModelError
from safeedit.policy.files import check_regular, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as its file announces it.

    Attributes:
        dtype: As safetensors writes it: ``F32``, ``BF16``, ``F8_E4M3``, ``I64`` ...
        shape: In the order stored.
        file: The safetensors file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def n_entries(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> dict[Path, frozenset[str]]:
    """The files that transformers would load, each with what the index says it holds.

    A checkpoint of one file has no index, and the set is empty. No file at all: an empty mapping.

    Raises:
        ModelError: The index can't be read, names no tensors, or points out of the folder.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        return {single: frozenset()}
    if not index.exists():
        return {}
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError("the index of the shards names no tensors", file=index, remedy=_AGAIN)
    shards: dict[Path, set[str]] = {}
    for tensor, shard in places.items():
        name = Path(str(shard))
        if name.name != str(shard) or "\0" in str(shard):
            raise ModelError(
                "the index of the shards points out of its folder", file=index, remedy=_AGAIN
            )
        shards.setdefault(folder / name, set()).add(tensor)
    return {file: frozenset(tensors) for file, tensors in shards.items()}


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a checkpoint, by name; empty where there are no safetensors.

    Raises:
        ModelError: A shard is missing, is no plain file, is cut short or corrupt, or lacks a
            tensor that the index promises.
    """
    files = weight_files(folder)
    found: dict[str, TensorHeader] = {}
    for path, promised in files.items():
        header = read_header(path, of=len(files))
        if absent := promised - header.keys():
            raise ModelError(
                f"the index promises '{min(absent)}', which this shard does not hold",
                file=path,
                remedy=_AGAIN,
            )
        # Where two shards hold a tensor of one name, the index says which of them counts.
        found.update({n: t for n, t in header.items() if n not in found or n in promised})
    return found


def read_header(path: Path, *, of: int = 1) -> dict[str, TensorHeader]:
    """Every tensor of one safetensors file, by name.

    Args:
        path: The file.
        of: How many files the checkpoint has, for the message about one that is missing.

    Raises:
        ModelError: It is missing, is no plain file, is cut short or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(part.get_dtype(), tuple(part.get_shape()), path)
                for name, part in slices.items()
            }
    except FileNotFoundError as error:
        raise ModelError(
            f"a shard of the checkpoint is missing ({of} in all)", file=path, remedy=_AGAIN
        ) from error
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"the file is corrupt or cut short: {reason}",
            file=path,
            remedy="fetch it again; if it lies in safeedit's cache, delete the folder it is in",
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        ModelError: It is no plain file, not JSON, nested too deeply, or not an object.
    """
    try:
        found = read_json(path)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"this can't be read as JSON: {reason}", file=path, remedy=_AGAIN
        ) from error
    if not isinstance(found, dict):
        raise ModelError("this is not a JSON object", file=path, remedy=_AGAIN)
    return found
