"""Digests of tensors, as they are stored.

A tensor's digest covers dtype, shape and bytes; a model's digest covers the names and
digests of its tensors in sorted order. Equal digests mean byte-identical weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from safeedit.delta import tensor_bytes

Stamp = tuple[int, int, torch.dtype, torch.Size]
"""What tells that a tensor was written to since it was last read."""


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes, in hex."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    total = hashlib.sha256(f"{dtype} {tuple(tensor.shape)}\n".encode())
    total.update(tensor_bytes(tensor))
    return total.hexdigest()


def digest_of(tensor_digests: Mapping[str, str]) -> str:
    """SHA-256 over the sorted names and digests of a model's tensors, in hex."""
    lines = (f"{name} {digest}\n" for name, digest in sorted(tensor_digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class DigestCache:
    """Digests that are computed again only for tensors written to in between.

    Writes are seen through torch's version counters. A write through ``tensor.data`` or from
    another framework escapes them: where a proof is wanted, ask with ``fresh=True``.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamp, str]] = {}

    def digests(self, tensors: Mapping[str, Tensor], *, fresh: bool = False) -> dict[str, str]:
        """Name -> digest, in the order of ``tensors``.

        Args:
            tensors: Name -> tensor as stored.
            fresh: Read every byte again, whatever is remembered.
        """
        stamps = {name: _stamp(tensor) for name, tensor in tensors.items()}
        stale = [
            name
            for name, stamp in stamps.items()
            if fresh or stamp is None or self._known.get(name, (None,))[0] != stamp
        ]
        # hashlib releases the interpreter lock, so threads hash side by side.
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            computed = dict(
                zip(stale, pool.map(lambda name: tensor_digest(tensors[name]), stale), strict=True)
            )
        for name, digest in computed.items():
            self.remember(name, tensors[name], digest)
        return {name: computed.get(name) or self._known[name][1] for name in tensors}

    def remember(self, name: str, tensor: Tensor, digest: str) -> None:
        """Note a digest known from elsewhere: a tensor restored to bytes hashed before."""
        stamp = _stamp(tensor)
        if stamp is not None:
            self._known[name] = (stamp, digest)

    def known(self, name: str, tensor: Tensor) -> str | None:
        """The digest if it is remembered and the tensor unwritten since."""
        stamp, digest = self._known.get(name, (None, None))
        return digest if stamp is not None and stamp == _stamp(tensor) else None


def _stamp(tensor: Tensor) -> Stamp | None:
    if tensor.is_inference():  # keeps no version counter
        return None
    return tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape
