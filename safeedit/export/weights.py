"""The weights files of an export: those of the source, with the edited tensors in their places.

What no edit touched keeps its bytes, its dtype and its name, also where the model ran in another
dtype or never read it; the source's bytes are, where an adapter was merged, those of the sum. An
edited tensor keeps name and shape, and its dtype unless that can't hold what was measured (a policy
that asks for a wider one); an entry of it that the edit did not change is the source's own, so that
what was rounded in order to run is not rounded on disk.

Fails with :class:`~safeedit.errors.ExportError` where the disk does, where the source changed
meanwhile, and where other tensors differ from it than were edited.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from safeedit.delta import tensor_bytes
from safeedit.errors import ExportError
from safeedit.model.digest import digest_of, tensor_digest
from safeedit.model.handle import ModelHandle
from safeedit.model.headers import INDEX, TensorHeader, read_headers, read_settings
from safeedit.model.stored import StoredWeights, read_tensor, stored_digests


@dataclass(frozen=True)
class Written:
    """What lies in the weights files of a folder.

    Attributes:
        digests: Name of every tensor on disk -> SHA-256 over dtype, shape and bytes.
        changed: Names on disk of those that are not as in the source.
        originals: Name on disk -> the source's own tensor, of all that edits named.
    """

    digests: Mapping[str, str]
    changed: frozenset[str] = frozenset()
    originals: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Over all tensors on disk."""
        return digest_of(self.digests)


def write_weights(
    handle: ModelHandle, stored: StoredWeights, folder: Path, edited: Collection[str] | None = None
) -> Written:
    """Write the source's weights files into ``folder``, each tensor that differs in its place.

    Args:
        handle: The model as it is now; not modified.
        stored: Its source.
        folder: An existing folder.
        edited: The model's names of the tensors that edits named; None: any may differ.

    Raises:
        ExportError: A tensor differs that no edit named, or the source changed since its
            digests were taken.
        ModelError: The source is gone.
        OSError: The disk is full or can't be written.
    """
    before = stored.digests()
    changed: set[str] = set()
    for file, names in by_file(stored.headers).items():
        different = {}
        for name in names:
            if name in stored.names and (new := _to_write(handle, stored, name)) is not None:
                different[name] = new
        changed |= different.keys()
        merged = {n: stored.read(n) for n in names if n in stored.merged and n not in changed}
        replace_tensors(file, names, {**merged, **different}, folder / file.name)
    _write_index(stored, folder)
    named = {name for name in stored.names if _owner(stored, handle, name) in (edited or ())}
    if edited is not None and (stray := sorted(changed - named)):
        raise ExportError(
            f"'{stray[0]}' is not as in the source, and no edit named it",
            file=stored.headers[stray[0]].file,
            remedy="report this with the model's architecture and dtype",
        )
    digests = stored_digests(read_headers(folder))
    kept = {name: stored.read(name) for name in sorted(named)}
    moved = sorted(
        [n for n in before.keys() - changed if digests.get(n) != before[n]]
        + [name for name, tensor in kept.items() if tensor_digest(tensor) != before[name]]
    )
    if moved:
        raise ExportError(
            f"the source changed while it was edited: '{moved[0]}' is not what was opened",
            file=stored.headers[moved[0]].file,
            remedy="leave the model's files alone during a run, and run again",
        )
    return Written(digests, frozenset(changed), kept)


def replace_tensors(
    file: Path, names: Collection[str], tensors: Mapping[str, Tensor], target: Path
) -> None:
    """Copy a safetensors file with other tensors in the place of some.

    Args:
        file: What to copy.
        names: Of all its tensors that count.
        tensors: Name -> what takes its place; any dtype.
        target: The copy.

    Raises:
        ModelError: ``file`` is gone or damaged.
        OSError: The disk is full or can't be written.
    """
    if not tensors:
        shutil.copyfile(file, target)
        return
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    # Read where it lies: pages of the file, which the system lets go of when memory is short.
    kept = {name: read_tensor(file, name) for name in names if name not in tensors}
    save_file({**kept, **tensors}, target, metadata=metadata)


def _owner(stored: StoredWeights, handle: ModelHandle, name: str) -> str:
    """The name by which edits know a tensor on disk: of tied ones, that of the one that counts."""
    inside = stored.names[name]
    return handle.shape.tied.get(inside, inside)


def _to_write(handle: ModelHandle, stored: StoredWeights, name: str) -> Tensor | None:
    """What a tensor on disk becomes; None where the model holds just it."""
    inside = stored.names[name]
    in_parameters = inside in handle.shape.stored or inside in handle.shape.tied
    tensor = handle.stored(inside) if in_parameters else handle.model.state_dict()[inside]
    now, source = tensor.detach().cpu(), stored.read(name)
    then = source.to(now.dtype)
    if tensor_bytes(now) == tensor_bytes(then):
        return None
    if source.dtype == now.dtype:
        return now.clone()  # tied tensors share memory, which safetensors refuses to store
    dtype = handle.dtypes.get(_owner(stored, handle, name))
    if dtype is None:
        dtype = torch.promote_types(source.dtype, now.dtype)
    same = (then == now) & (torch.signbit(then) == torch.signbit(now))
    return torch.where(same, source.to(dtype), now.to(dtype))


def by_file(headers: Mapping[str, TensorHeader]) -> dict[Path, list[str]]:
    """File -> names of the tensors in it that count."""
    files: dict[Path, list[str]] = {}
    for name, header in headers.items():
        files.setdefault(header.file, []).append(name)
    return files


def _write_index(stored: StoredWeights, folder: Path) -> None:
    """The index of several files: the source's, with the size that the files have now."""
    files = by_file(stored.headers)
    if not (stored.folder / INDEX).is_file() or len(files) == 1:
        return
    index = read_settings(stored.folder / INDEX)
    places = {name: file.name for file, names in files.items() for name in names}
    total = sum((folder / file.name).stat().st_size for file in files)
    metadata = {**index.get("metadata", {}), "total_size": total}
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(places.items()))}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
