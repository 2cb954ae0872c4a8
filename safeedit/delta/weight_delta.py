"""A change of several tensors, bound to the weights it was computed on; read and written here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safeedit.cache import PRIVATE, write_atomically
from safeedit.delta.updates import (
    KINDS,
    Columns,
    Dense,
    LowRank,
    Update,
    random_update,
    tensor_bytes,
)
from safeedit.errors import EditError, ModelError, UsageError
from safeedit.policy.files import check_regular

FORMAT = "safeedit delta 1"
"""Written into every file; a file that says something else is refused."""


class Weights(Protocol):
    """Where a delta looks up the tensors it stands beside; a ``ModelHandle`` is one."""

    def oriented(self, name: str) -> Tensor:
        """The tensor called ``name``, (out, in) where it is a matrix."""
        ...


@dataclass(frozen=True)
class Origin:
    """Where a delta comes from: enough to make it again."""

    editor: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
    data_digest: str = ""
    version: str = ""
    """Of safeedit."""
    seed: int = 0
    dose: float | None = None


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """A change of weights, computed on one model and bound to it.

    Args:
        base: ``ModelHandle.digest()`` of the weights it was computed on.
        updates: Tensor name -> update.
        origin: Where it comes from.
    """

    base: str
    updates: Mapping[str, Update]
    origin: Origin

    def __post_init__(self) -> None:
        object.__setattr__(self, "updates", MappingProxyType(dict(sorted(self.updates.items()))))

    def scaled(self, factor: float) -> WeightDelta:
        """The same change, ``factor`` times as strong.

        Raises:
            UsageError: It replaces columns, which has no strength to scale.
        """
        updates: dict[str, Update] = {}
        for name, update in self.updates.items():
            if isinstance(update, LowRank):
                updates[name] = LowRank(update.left * factor, update.right)
            elif isinstance(update, Dense):
                updates[name] = Dense(update.values * factor)
            else:
                raise UsageError(
                    f"the update of {name} replaces columns and cannot be scaled",
                    remedy="choose how many columns are replaced instead",
                )
        return WeightDelta(self.base, updates, self.origin)

    def norms(self, weights: Weights | None = None) -> dict[str, float]:
        """Frobenius norm of each tensor's change.

        Args:
            weights: The weights before the change; needed where columns are replaced.

        Raises:
            UsageError: Columns are replaced and ``weights`` is None.
        """
        norms = {}
        for name, update in self.updates.items():
            if isinstance(update, LowRank):
                norms[name] = float(torch.linalg.vector_norm(update.singular_values()))
            elif isinstance(update, Dense):
                norms[name] = float(torch.linalg.vector_norm(update.values))
            elif weights is None:
                raise UsageError(
                    f"the norm of replaced columns of {name} depends on the weights they replace",
                    remedy="pass the model",
                )
            else:
                norms[name] = float(torch.linalg.vector_norm(update.change(weights.oriented(name))))
        return norms

    def norm(self, weights: Weights | None = None) -> float:
        """Frobenius norm over all tensors; arguments as in :meth:`norms`."""
        return math.sqrt(math.fsum(value**2 for value in self.norms(weights).values()))

    @property
    def only_zeroes(self) -> bool:
        """Whether all it does is to set columns to zero."""
        return all(
            isinstance(update, Columns) and not update.values.any()
            for update in self.updates.values()
        )

    def random_like(self, seed: int, weights: Weights | None = None) -> WeightDelta:
        """The control of this delta: as large, in the same places, with random content.

        Low-rank updates keep rank and singular values and get random directions; dense ones
        keep the norms of their rows, in random order (so a change of few rows stays one);
        replaced columns become as many other columns, zeroed.

        Args:
            seed: Of the random directions; the same seed gives the same control.
            weights: The model; needed where columns are replaced.

        Raises:
            UsageError: Columns are replaced and ``weights`` is None.
        """
        updates = {}
        for name, update in self.updates.items():
            # Seeded by name, so that a tensor's control doesn't depend on its neighbours.
            key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            width = 0
            if isinstance(update, Columns):
                if weights is None:
                    raise UsageError(
                        f"a control for replaced columns of {name} needs its width",
                        remedy="pass the model",
                    )
                width = weights.oriented(name).shape[1]
            updates[name] = random_update(update, width, generator)
        return WeightDelta(self.base, updates, self.origin)

    def digest(self) -> str:
        """SHA-256 over base, origin and every value."""
        total = hashlib.sha256(self._header().encode())
        for name, update in self.updates.items():
            for part, tensor in update.parts.items():
                total.update(f"{name}\0{part}\0{tuple(tensor.shape)}\0".encode())
                total.update(tensor_bytes(tensor))
        return total.hexdigest()

    def _header(self) -> str:
        origin = self.origin
        return json.dumps(
            {
                "format": FORMAT,
                "base": self.base,
                "updates": {name: update.kind for name, update in self.updates.items()},
                "origin": {
                    "editor": origin.editor,
                    "params": dict(origin.params),
                    "data_digest": origin.data_digest,
                    "version": origin.version,
                    "seed": origin.seed,
                    "dose": origin.dose,
                },
            },
            sort_keys=True,
        )

    def packed(self) -> tuple[str, dict[str, Tensor]]:
        """A header that says what it is, JSON, and its tensors by name."""
        return self._header(), {
            f"{name}::{part}": tensor
            for name, update in self.updates.items()
            for part, tensor in update.parts.items()
        }

    @classmethod
    def unpacked(cls, header: str, tensors: Mapping[str, Tensor]) -> WeightDelta:
        """The delta that :meth:`packed` gave.

        Raises:
            ModelError: They are not of a delta of this version.
        """
        try:
            return cls._unpacked(json.loads(header), tensors.__getitem__, len(tensors))
        except _UNREADABLE as error:
            raise _unreadable(error) from error

    @classmethod
    def _unpacked(
        cls, header: dict[str, Any], tensor: Callable[[str], Tensor], count: int
    ) -> WeightDelta:
        if header["format"] != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        updates = {}
        for name, kind in header["updates"].items():
            build, parts = KINDS[kind]
            updates[name] = build(*(tensor(f"{name}::{part}") for part in parts))
        if count != sum(len(KINDS[kind][1]) for kind in header["updates"].values()):
            raise ValueError("it holds tensors that its header does not name")
        return cls(header["base"], updates, Origin(**header["origin"]))

    def save(self, path: Path | str) -> None:
        """Write as safetensors; whole or not at all.

        Raises:
            OSError: The file can't be written.
        """
        header, tensors = self.packed()
        # A clone where factors share storage (views of one matrix): safetensors refuses
        # to store aliases.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        write_atomically(Path(path), save(tensors, metadata={"safeedit": header}), PRIVATE)

    @classmethod
    def load(cls, path: Path | str) -> WeightDelta:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: The file is missing, damaged, or not a delta of this version.
        """
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["safeedit"])
                return cls._unpacked(header, file.get_tensor, len(file.keys()))
        except FileNotFoundError as error:
            raise ModelError("this delta file does not exist", file=path) from error
        except _UNREADABLE as error:
            raise _unreadable(error, path) from error


_UNREADABLE = (
    *(SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError),
    *(EditError, RecursionError),
)


def _unreadable(error: Exception, path: Path | str | None = None) -> ModelError:
    reason = error.message if isinstance(error, EditError) else error
    return ModelError(
        f"cannot read this delta: {reason}",
        file=path,
        remedy="the file is damaged or not a safeedit delta; make it again with apply",
    )
