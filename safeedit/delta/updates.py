"""What happens to one tensor: something is added, or columns are put in its place.

All values are in (out, in) orientation, fp32, on the CPU; the maths is done in fp32 or wider, and
cast once to the tensor's own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.errors import EditError
from safeedit.records import TensorChange


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes as stored; no copy where it is contiguous and on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.cpu().numpy().data


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EditError(message)


@dataclass(frozen=True, eq=False)
class LowRank:
    """Adds ``left @ right``.

    Args:
        left: ``(out, rank)``.
        right: ``(rank, in)``.

    Raises:
        EditError: The factors don't fit together, or hold NaN or infinity.
    """

    left: Tensor
    right: Tensor
    kind = "low_rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _fp32(self.left))
        object.__setattr__(self, "right", _fp32(self.right))
        _require(
            self.left.dim() == 2
            and self.right.dim() == 2
            and self.left.shape[1] == self.right.shape[0],
            f"low-rank factors {tuple(self.left.shape)} and {tuple(self.right.shape)} "
            "do not multiply",
        )
        _require_finite(self.left, self.right)

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def fits(self, shape: tuple[int, ...]) -> bool:
        return (self.left.shape[0], self.right.shape[1]) == shape

    def change(self, weight: Tensor) -> Tensor:
        """What is added to ``weight`` ``(out, in)``, in the dtype of the maths, on its device."""
        dtype = _maths_dtype(weight)
        return self.left.to(weight.device, dtype) @ self.right.to(weight.device, dtype)

    def applied_to(self, weight: Tensor) -> Tensor:
        factors = (part.to(weight.device, _maths_dtype(weight)) for part in (self.left, self.right))
        return torch.addmm(weight.to(_maths_dtype(weight)), *factors).to(weight.dtype)

    def singular_values(self) -> Tensor:
        """``(min(rank, out, in),)``, fp64, without forming the product."""
        _, left = torch.linalg.qr(self.left.double())
        _, right = torch.linalg.qr(self.right.double().T)
        values: Tensor = torch.linalg.svdvals(left @ right.T)
        return values


@dataclass(frozen=True, eq=False)
class Columns:
    """Puts ``values`` in the place of columns: the outgoing weights of chosen neurons.

    Args:
        indices: ``(k,)``, distinct columns of the (out, in) matrix.
        values: ``(out, k)``; zeros silence the neurons exactly.

    Raises:
        EditError: The shapes disagree, an index repeats or is negative, or a value is not
            finite.
    """

    indices: Tensor
    values: Tensor
    kind = "columns"

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", self.indices.detach().to("cpu", torch.int64))
        object.__setattr__(self, "values", _fp32(self.values))
        _require(
            self.indices.dim() == 1
            and self.values.dim() == 2
            and self.values.shape[1] == len(self.indices),
            f"{tuple(self.indices.shape)} column indices do not go with values "
            f"{tuple(self.values.shape)}",
        )
        _require(
            len(self.indices.unique()) == len(self.indices) and bool((self.indices >= 0).all()),
            "column indices must be distinct and not negative",
        )
        _require_finite(self.values)

    @classmethod
    def zeroed(cls, indices: Tensor, out_features: int) -> Columns:
        """The update that silences the neurons ``indices`` ``(k,)``."""
        return cls(indices, torch.zeros(out_features, len(indices)))

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"indices": self.indices, "values": self.values}

    def fits(self, shape: tuple[int, ...]) -> bool:
        return (
            len(shape) == 2
            and self.values.shape[0] == shape[0]
            and bool((self.indices < shape[1]).all())
        )

    def change(self, weight: Tensor) -> Tensor:
        """New columns minus old ones, zero elsewhere; ``(out, in)`` as in :class:`LowRank`."""
        dtype, indices = _maths_dtype(weight), self.indices.to(weight.device)
        values = self.values.to(weight.device, dtype)
        delta = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        return delta.index_copy_(1, indices, values - weight[:, indices].to(dtype))

    def applied_to(self, weight: Tensor) -> Tensor:
        values = self.values.to(weight.device, weight.dtype)
        return weight.index_copy(1, self.indices.to(weight.device), values)


@dataclass(frozen=True, eq=False)
class Dense:
    """Adds ``values``: ``(out, in)`` for a matrix, ``(out,)`` for a bias.

    Raises:
        EditError: A value is NaN or infinite.
    """

    values: Tensor
    kind = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _fp32(self.values))
        _require_finite(self.values)

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def fits(self, shape: tuple[int, ...]) -> bool:
        return tuple(self.values.shape) == shape

    def change(self, weight: Tensor) -> Tensor:
        """What is added to ``weight``, in the dtype of the maths, on its device."""
        return self.values.to(weight.device, _maths_dtype(weight))

    def applied_to(self, weight: Tensor) -> Tensor:
        return (weight.to(_maths_dtype(weight)) + self.change(weight)).to(weight.dtype)


Update = LowRank | Columns | Dense
"""What happens to one tensor."""

KINDS: dict[str, tuple[type[Update], tuple[str, ...]]] = {
    "low_rank": (LowRank, ("left", "right")),
    "columns": (Columns, ("indices", "values")),
    "dense": (Dense, ("values",)),
}
"""Name of a kind -> its class and the tensors that make one."""


def all_finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity."""
    # Its extremes are NaN or infinite exactly if an entry is; unlike torch.isfinite this needs
    # no temporary and one pass.
    return not tensor.numel() or all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor))


def _require_finite(*tensors: Tensor) -> None:
    _require(all(map(all_finite, tensors)), "an update holds NaN or infinity")


def _maths_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def apply_update(weight: Tensor, update: Update) -> Tensor:
    """``weight`` after ``update``: computed in fp32, cast once to the weight's own dtype.

    Args:
        weight: ``(out, in)``, or ``(out,)`` for a bias; not modified.
        update: What happens to it.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        EditError: The update doesn't fit the weight's shape.
    """
    if not update.fits(tuple(weight.shape)):
        raise EditError(
            f"a {update.kind} update with parts "
            f"{ {name: tuple(part.shape) for name, part in update.parts.items()} } "
            f"does not fit a tensor of shape {tuple(weight.shape)}"
        )
    return update.applied_to(weight.detach())


def measure_change(
    name: str, role: str, layer: int | None, before: Tensor, after: Tensor, update: Update
) -> TensorChange:
    """What an update did to a stored tensor, rounding included.

    Args:
        name: The tensor's name.
        role: Its role, e.g. ``mlp_out``.
        layer: Its layer, None outside the blocks.
        before: The tensor before, (out, in), in the model's dtype.
        after: The tensor after, as stored.
        update: The intended change.
    """
    dtype = _maths_dtype(before)
    intended = update.change(before)
    norm = float(torch.linalg.vector_norm(intended))
    original = float(torch.linalg.vector_norm(before.to(dtype)))
    # after - before is exact or nearly so (neighbouring floats), so what remains after
    # subtracting the intention is the rounding of the cast.
    arrived = after.to(dtype) - before.to(dtype)
    changed = int(torch.count_nonzero(arrived))
    error = float(torch.linalg.vector_norm(arrived.sub_(intended)))
    return TensorChange(
        name=name,
        layer=layer,
        role=role,
        shape=tuple(before.shape),
        kind=update.kind,  # type: ignore[arg-type]
        delta_norm=norm,
        relative_norm=norm / original if original else (math.inf if norm else 0.0),
        cast_error=error / norm if norm else 0.0,
        share_changed=changed / before.numel() if before.numel() else 0.0,
        entries_changed=changed,
        effective_rank=_effective_rank(intended),
    )


def _effective_rank(change: Tensor) -> float | None:
    """The participation ratio of a matrix's squared singular values, without finding them."""
    if change.dim() != 2:
        return None
    wide = change if change.shape[0] <= change.shape[1] else change.T
    size = torch.linalg.vector_norm(wide)
    if not float(size) > 0:
        return 0.0
    scaled = wide / size
    return float(1 / (scaled @ scaled.T).square().sum())


def random_update(update: Update, width: int, generator: torch.Generator) -> Update:
    """As large a change, of the same kind, with random content.

    Args:
        update: What it is like.
        width: Columns of the matrix; looked at only where columns are replaced.
        generator: Makes the content.
    """
    gaussian: Callable[..., Tensor] = lambda *shape: torch.randn(  # noqa: E731
        *shape, generator=generator, dtype=torch.float64
    )
    if isinstance(update, LowRank):
        values = update.singular_values()
        left, _ = torch.linalg.qr(gaussian(update.left.shape[0], len(values)))
        right, _ = torch.linalg.qr(gaussian(update.right.shape[1], len(values)))
        return LowRank(left * values, right.T)
    if isinstance(update, Dense):
        rows = update.values.double().reshape(len(update.values), -1)
        if update.values.dim() == 1:
            rows = rows.T
        random = gaussian(*rows.shape)
        random *= rows.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
        random = random[torch.randperm(len(rows), generator=generator)]
        return Dense(random.reshape(update.values.shape))
    taken = torch.zeros(width, dtype=torch.bool)
    taken[update.indices] = True
    shuffled = torch.randperm(width, generator=generator)
    # Other columns first; the edit's own only where there are too few others.
    order = torch.cat([shuffled[~taken[shuffled]], shuffled[taken[shuffled]]])
    chosen = order[: len(update.indices)].sort().values
    return Columns.zeroed(chosen, update.values.shape[0])
