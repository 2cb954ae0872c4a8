"""A model as a plain Hugging Face folder: safetensors, configs, tokenizer.

``AutoModelForCausalLM.from_pretrained`` opens it in a process without safeedit. Fails with
:class:`~safeedit.errors.ExportError` where the disk does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from safeedit.errors import ExportError
from safeedit.export.staging import writing
from safeedit.export.weights import Written, write_weights
from safeedit.model.carried import GENERATION_CONFIG, carry_over
from safeedit.model.handle import ModelHandle
from safeedit.model.headers import read_headers
from safeedit.model.portable import make_portable
from safeedit.model.quiet import quiet
from safeedit.model.stored import stored_digests

MAX_SHARD = "5GB"
"""Size of a weights file above which several are written; what hubs and loaders like."""

_LEFTOVERS = (
    "quantization_config",  # of the file it was read from: the weights are stored in full
    "auto_map",  # names code beside the weights, which we neither run nor ship
    "_name_or_path",  # a path on this machine
)


def write_checkpoint(
    handle: ModelHandle, folder: Path, edited: Collection[str] | None = None
) -> Written:
    """Write a model and its tokenizer into ``folder``.

    The weights are those of its source but for what was edited, see
    :mod:`safeedit.export.weights`; a model that never lay on a disk is written in the dtype it
    has. What else makes its source usable comes along, see :mod:`safeedit.model.carried`.

    Args:
        handle: The model; not modified.
        folder: An existing folder.
        edited: Names of the tensors that edits named; None: any may differ from the source.

    Returns:
        What lies in the weights files.

    Raises:
        ExportError: The disk is full or can't be written, or the source changed meanwhile.
    """
    with writing(folder), quiet():
        check_space(folder, sum(p.numel() * p.element_size() for p in handle.model.parameters()))
        if handle.on_disk is not None:
            _write_settings(handle, folder)
            written = write_weights(handle, handle.on_disk, folder, edited)
        else:
            handle.model.save_pretrained(
                folder, state_dict=_tensors(handle), max_shard_size=MAX_SHARD
            )
            written = Written(stored_digests(read_headers(folder)))
        if handle.tokenizer is not None:
            handle.tokenizer.save_pretrained(folder)
        _clean(folder / "config.json")
        make_portable(folder, handle.tokenizer)
        if handle.folder is not None:
            carry_over(handle.folder, folder)
    return written


def _write_settings(handle: ModelHandle, folder: Path) -> None:
    """``config.json`` of the model as it was measured: class, dtype, whether the head is tied."""
    model, config = handle.model, handle.config
    config.architectures = [type(model).__name__]
    config.dtype = str(handle.dtype).removeprefix("torch.")
    if config.tie_word_embeddings and not handle.shape.tied_embeddings:
        config.tie_word_embeddings = False
    config.save_pretrained(folder)
    own = None if handle.folder is None else handle.folder / GENERATION_CONFIG
    if model.can_generate() and not (own is not None and own.is_file()):
        model.generation_config.save_pretrained(folder)


def _tensors(handle: ModelHandle) -> dict[str, Tensor]:
    """All tensors as they lie in memory, tied ones once. ``save_pretrained`` finds them by
    itself except in a tied model that accelerate spread over GPU and main memory."""
    saved = handle.model.state_dict()
    return {
        name: handle.stored(name) if name in handle.shape.stored else saved[name]
        for name in handle.tensor_names()
    }


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse at once what would fail after minutes of writing."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ExportError(
            f"the checkpoint needs {n_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            file=folder,
            remedy="free some space on that disk, or export to another one",
        )


def _clean(path: Path) -> None:
    config = json.loads(path.read_text())
    kept = {key: value for key, value in config.items() if key not in _LEFTOVERS}
    if kept != config:
        path.write_text(json.dumps(kept, indent=2) + "\n")
