"""Two checkpoints, tensor by tensor, streamed from their safetensors files.

No model is built: this works for any architecture, on weights larger than memory. Fails
with :class:`~safeedit.errors.ModelError` where there are no safetensors or they are damaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safeedit.errors import ModelError
from safeedit.policy.files import check_regular, read_json
from safeedit.records import Record

INDEX = "model.safetensors.index.json"
CHUNK = 1 << 24
"""Entries compared at a time."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorDifference(Record):
    """How one tensor differs between two checkpoints."""

    name: str
    status: Literal["changed", "dtype", "shape", "added", "removed"]
    """``dtype``: stored in another one (values are compared all the same); ``added``: only in
    the second checkpoint; ``removed``: only in the first."""
    shape: tuple[int, ...]
    """In the second checkpoint, or the first where it was removed."""
    dtype: str
    entries_changed: int
    """Entries whose stored bits differ (values, where dtypes do); all of them where the tensor
    has no counterpart of its shape."""
    share_changed: float
    delta_norm: float | None
    """Frobenius norm of the difference; None where there is no counterpart of its shape."""
    relative_norm: float
    """``delta_norm`` over the norm in the first checkpoint; infinite without counterpart."""


def diff_checkpoints(before: Path, after: Path) -> list[TensorDifference]:
    """The tensors in which two checkpoints differ, in the order of their names.

    Args:
        before: A folder with ``model.safetensors`` or a sharded one, or one file.
        after: Likewise.

    Raises:
        ModelError: One of them is no such thing, or damaged.
    """
    with _Weights(before) as old, _Weights(after) as new:
        rows = (_compare(name, old, new) for name in sorted(old.names | new.names))
        return [row for row in rows if row is not None]


class _Weights:
    """The tensors of one checkpoint by name, none in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()
        self._where: dict[str, Any] = {}

    def __enter__(self) -> _Weights:
        try:
            for path in _weight_files(self._path):
                with _damage(path):
                    check_regular(path)
                    file = self._files.enter_context(safe_open(path, framework="pt"))
                    self._where |= dict.fromkeys(file.keys(), (file, path))
        except BaseException:
            self._files.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        file, path = self._where[name]
        with _damage(path):
            return tuple(file.get_slice(name).get_shape())

    def chunks(self, name: str) -> Iterator[Tensor]:
        """The tensor in runs of whole rows of about ``CHUNK`` entries."""
        file, path = self._where[name]
        shape = self.shape(name)
        if not shape:
            yield file.get_tensor(name)
            return
        rows = max(1, CHUNK // max(1, math.prod(shape[1:])))
        part = file.get_slice(name)
        for start in range(0, shape[0], rows):
            with _damage(path):
                tensor: Tensor = part[start : start + rows]
            yield tensor

    def dtype(self, name: str) -> torch.dtype:
        file, _ = self._where[name]
        tensor: Tensor = file.get_slice(name)[:0] if self.shape(name) else file.get_tensor(name)
        return tensor.dtype


def _compare(name: str, old: _Weights, new: _Weights) -> TensorDifference | None:
    if name not in old or name not in new:
        return _unpaired(name, *((new, "added") if name in new else (old, "removed")))
    if old.shape(name) != new.shape(name):
        return _unpaired(name, new, "shape")
    recast = old.dtype(name) != new.dtype(name)
    changed, square, original = 0, 0.0, 0.0
    for left, right in zip(old.chunks(name), new.chunks(name), strict=True):
        differs = left.double() != right.double() if recast else _bits(left) != _bits(right)
        count = int(differs.sum())
        changed += count
        original += float(left.double().square().sum())
        if count:
            square += float((right.double() - left.double()).square().sum())
    if not changed and not recast:
        return None
    shape = new.shape(name)
    norm = math.sqrt(square)
    return TensorDifference(
        name=name,
        status="dtype" if recast else "changed",
        shape=shape,
        dtype=_name(new.dtype(name)),
        entries_changed=changed,
        share_changed=changed / max(1, math.prod(shape)),
        delta_norm=norm,
        relative_norm=norm / math.sqrt(original) if original else (math.inf if norm else 0.0),
    )


def _unpaired(
    name: str, weights: _Weights, status: Literal["added", "removed", "shape"]
) -> TensorDifference:
    shape = weights.shape(name)
    return TensorDifference(
        name=name,
        status=status,
        shape=shape,
        dtype=_name(weights.dtype(name)),
        entries_changed=math.prod(shape),
        share_changed=1.0,
        delta_norm=None,
        relative_norm=math.inf,
    )


def _bits(tensor: Tensor) -> Tensor:
    """Its entries as whole numbers, so that NaN equals NaN and -0 differs from 0."""
    return tensor.view(_BITS[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight_files(path: Path) -> list[Path]:
    if path.exists() and not path.is_dir():
        return [path]
    index = path / INDEX
    if index.exists():
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError("the index of this checkpoint is damaged", file=index) from error
        return [path / Path(shard).name for shard in shards]
    files = [path / "model.safetensors"] if (path / "model.safetensors").exists() else []
    if not files:
        raise ModelError(
            "there are no safetensors weights here",
            file=path,
            remedy="give a checkpoint folder or a .safetensors file; pickles are not opened",
        )
    return files


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Within it, what safetensors refuses becomes a :class:`ModelError`."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"cannot read these weights: {error}",
            file=path,
            remedy="the file is damaged, missing or not safetensors; fetch it again",
        ) from error
