"""What a base run leaves for later runs: tensors that say which data they belong to.

A reference made on other data, or on another split, would be compared item by item with
the wrong items and give plausible nonsense; so each carries a fingerprint, and a mismatch
raises :class:`~safeedit.errors.AuditError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from safeedit.data import Dataset
from safeedit.errors import AuditError
from safeedit.records import Split

FINGERPRINT = "fingerprint"
_PAD = -1


def fingerprint(data: Mapping[str, Dataset], split: Split, *more: str) -> Tensor:
    """Eight bytes (uint8) that stand for the data sets, the split, and whatever else made it."""
    parts = [f"{role}={data[role].digest}" for role in sorted(data)]
    found = hashlib.sha256("\n".join([split, *parts, *more]).encode()).digest()[:8]
    return torch.tensor(list(found), dtype=torch.uint8)


def check_reference(
    reference: Mapping[str, Tensor], data: Mapping[str, Dataset], split: Split, *more: str
) -> None:
    """See that a reference was made on this data.

    Raises:
        AuditError: It was made on other data, by another auditor, or with something else of what
            ``more`` names (a scorer).
    """
    own = reference.get(FINGERPRINT)
    if own is None or not torch.equal(own.cpu(), fingerprint(data, split, *more)):
        other = " or in another way" if more else ""
        raise AuditError(
            f"the reference of the base run was made on other data{other}",
            remedy="audit the base again with the same auditor, data and split",
        )


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences as one int32 matrix ``(n, longest)``, filled with -1."""
    width = max((len(sequence) for sequence in sequences), default=0)
    padded = torch.full((len(sequences), width), _PAD, dtype=torch.int32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
    return padded


def unpad(padded: Tensor) -> list[list[int]]:
    """The sequences :func:`pad` was given."""
    return [[token for token in row if token != _PAD] for row in padded.tolist()]


def stable_order(texts: Iterable[str]) -> list[str]:
    """Distinct texts in an order that depends on them alone, not on the file they came in.

    By hash rather than by alphabet, so that the first few are a fair sample.
    """
    return sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
